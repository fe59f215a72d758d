//! `reprpo data`.

use std::path::{Path, PathBuf};

use reprpo_core::config::{Origin, Resolved, TrainConfig};
use reprpo_core::data::histogram;
use reprpo_core::data::{self, Example, InspectSpec, Inspection, SplitReport, TokenReport};
use reprpo_core::hub::Hub;
use reprpo_core::report::{Align, Grid, lines};
use reprpo_core::session::context_of;
use reprpo_core::text::{Findings, Limits, Outcome, Tokenizer, each};
use reprpo_core::weights::{Extent, ModelFiles, locate};
use reprpo_core::{Error, Result};
use serde_json::json;

use crate::args::{
    DataArgs, DataCommand, FetchDataArgs, InspectArgs, PairReader, PairsArgs, TokensArgs, layers,
};
use crate::{App, engine};

pub fn run(args: &DataArgs, app: &App<'_>) -> Result<()> {
    match &args.command {
        DataCommand::Inspect(args) => inspect(args, app),
        DataCommand::Tokens(args) => tokens(args, app),
        DataCommand::Fetch(args) => fetch(args, app),
    }
}

fn fetch(args: &FetchDataArgs, app: &App<'_>) -> Result<()> {
    let mut layers = layers::defaults(app)?;
    layers::environment(&mut layers);
    args.data.apply(&mut layers)?;
    let experiment = layers.resolve()?.experiment;
    // Opening a Hugging Face data set downloads the files of its splits.
    let dataset = data::open(&experiment, app.registry)?;
    let source = args.data.source();
    let Some(pinned) = dataset.pinned() else {
        return Err(Error::new(format!(
            "`{source}` is not a Hugging Face data set, so there is nothing to fetch"
        ))
        .hint(
            "give a Hugging Face repository such as `org/name`, or use `reprpo data inspect` to \
                look at a data set on this machine",
        ));
    };
    let pinned: serde_json::Value = serde_json::from_str(&pinned).map_err(|e| {
        Error::internal("the pinned configuration of the data set is not valid JSON").because(e)
    })?;
    let cache = Hub::of_environment()?.settings().cache.clone();
    let splits = dataset.splits();
    if args.json {
        return app
            .printer
            .json(&json!({ "data": source, "splits": splits, "cache": cache, "pinned": pinned }));
    }
    let mut grid = Grid::new(["split", "data"].map(|column| (column, Align::Left)));
    for split in &splits {
        grid.row([&split.name, &split.describes]);
    }
    app.printer.data(&grid.plain())?;
    app.printer.note(&format!("files are in `{}`", cache.display()));
    Ok(())
}

fn tokens(args: &TokensArgs, app: &App<'_>) -> Result<()> {
    let resolved = resolve(&args.pairs, app)?;
    let (experiment, _) = engine::LengthLimit::of(&resolved).apply(&resolved.experiment);
    let dataset = data::open(&experiment, app.registry)?;
    let path = locate(&experiment.model, Extent::Tokenizer)
        .map_err(|e| experiment.sources.explain("model", &experiment.model, e))?
        .path;
    let tokenizer = ModelFiles::tokenizer_of(&path)?;
    let limits = limits(&args.pairs, &experiment.train, Some(&path));
    let splits = match args.pairs.data.split() {
        Some(split) => vec![split.to_owned()],
        None => dataset.splits().into_iter().map(|split| split.name).collect(),
    };
    let (mut findings, several) = (Findings::default(), splits.len() > 1);
    for split in &splits {
        let rows =
            data::rows(dataset.as_ref(), split)?.take(args.pairs.max_pairs.unwrap_or(usize::MAX));
        each(&tokenizer, rows, &limits, None, |(_, row, pair), outcome| {
            if let Outcome::Kept { pair: kept, prompt, .. } = &outcome {
                findings.add(&tokenizer, &pair, kept, prompt, limits.context);
            }
            let line = if args.json {
                ids_line(split, row, &outcome)
            } else {
                text_line(several.then_some(split), row, &outcome, &tokenizer)?
            };
            app.printer.data(&line)
        })?;
    }
    findings.lines().iter().for_each(|line| app.printer.note(line));
    Ok(())
}

/// The token ids of a pair as a line of JSON.
fn ids_line(split: &str, row: usize, outcome: &Outcome) -> String {
    let line = match outcome {
        Outcome::Dropped(why) => {
            json!({ "split": split, "index": row, "dropped": why, "reason": why.to_string() })
        }
        Outcome::Kept { pair, cut, .. } => {
            let mut ids = json!({ "split": split, "index": row, "prompt_ids": pair.prompt,
                "chosen_ids": pair.chosen, "rejected_ids": pair.rejected });
            if cut.any() {
                ids["truncated"] = json!(cut.to_string());
            }
            ids
        }
    };
    format!("{line}\n")
}

/// The decoded tokens of a pair on one line, with the completions between ⟨ and ⟩.
fn text_line(
    split: Option<&String>,
    row: usize,
    outcome: &Outcome,
    tokenizer: &Tokenizer,
) -> Result<String> {
    let split = split.map_or_else(String::new, |split| format!("{split} "));
    let text = |ids: &[i64]| -> Result<String> {
        Ok(lines::visible(&tokenizer.decode(ids)?).replace("⏎\n", "⏎"))
    };
    Ok(match outcome {
        Outcome::Dropped(why) => {
            format!("{BOLD}{split}{row}{PLAIN}  {YELLOW}dropped{PLAIN}: {why}\n")
        }
        Outcome::Kept { pair, cut, .. } => {
            let (prompt, chosen, rejected) =
                (text(&pair.prompt)?, text(&pair.chosen)?, text(&pair.rejected)?);
            let cut =
                if cut.any() { format!("  {YELLOW}cut{PLAIN}: {cut}") } else { String::new() };
            format!(
                "{BOLD}{split}{row}{PLAIN}  {DIM}{prompt}{PLAIN}  chosen \
                    {GREEN}⟨{chosen}⟩{PLAIN}  rejected {RED}⟨{rejected}⟩{PLAIN}{cut}\n"
            )
        }
    })
}

fn inspect(args: &InspectArgs, app: &App<'_>) -> Result<()> {
    let resolved = resolve(&args.pairs, app)?;
    let (experiment, train) = (&resolved.experiment, &resolved.experiment.train);
    // Open the data before looking for a model, so that errors in the data are reported first.
    let dataset = data::open(experiment, app.registry)?;
    let found = tokenizer(&resolved, app)?;
    let (path, tokenizer) = found.unzip();
    let spec = InspectSpec {
        splits: args.pairs.data.split().map(|split| vec![split.to_owned()]),
        tokenizer: tokenizer.as_ref(),
        limits: limits(&args.pairs, train, path.as_deref()),
        max_pairs: args.pairs.max_pairs,
        examples: args.examples,
    };
    let found = data::inspect(dataset.as_ref(), &spec, app.printer.progress().as_mut())?;
    let model = tokenizer.map(|_| experiment.model.as_str());
    if args.json {
        let mut shown = json!(found);
        shown["data"] = json!(args.pairs.data.source());
        shown["model"] = json!(model);
        return app.printer.json(&shown);
    }
    app.printer.data(&as_text(args.pairs.data.source(), model, &found))
}

/// Settings for tokenising pairs. `model` is the path of the model's files, if they are on this
/// machine.
fn limits<C: PairReader>(args: &PairsArgs<C>, train: &TrainConfig, model: Option<&Path>) -> Limits {
    Limits {
        max_length: train.max_length,
        max_prompt_length: train.max_prompt_length,
        add_eos: !args.no_eos,
        special_tokens: !args.no_special_tokens,
        context: model.and_then(context_of),
    }
}

fn resolve<C: PairReader>(args: &PairsArgs<C>, app: &App<'_>) -> Result<Resolved> {
    let mut layers = layers::defaults(app)?;
    layers::environment(&mut layers);
    args.model.apply(&mut layers);
    args.data.apply(&mut layers)?;
    layers.resolve()
}

/// Loads the model's tokenizer, and returns it with the path of the model's files. Returns `None`
/// if no model was given and the default model has not been fetched.
fn tokenizer(resolved: &Resolved, app: &App<'_>) -> Result<Option<(PathBuf, Tokenizer)>> {
    let model = &resolved.experiment.model;
    match locate(model, Extent::Tokenizer) {
        Ok(found) => {
            ModelFiles::tokenizer_of(&found.path).map(|tokenizer| Some((found.path, tokenizer)))
        }
        Err(e) if matches!(resolved.origins.get("model"), None | Some(Origin::Default)) => {
            let how = e.hints().first().map_or_else(String::new, |hint| format!("; {hint}"));
            app.printer.note(&format!(
                "lengths are in characters, because the model `{model}` is not on this machine{how}"
            ));
            Ok(None)
        }
        Err(e) => Err(resolved.experiment.sources.explain("model", model, e)),
    }
}

fn as_text(data: &str, model: Option<&str>, found: &Inspection) -> String {
    let mut text = match model {
        Some(model) => format!("{data}, in tokens of {model}\n"),
        None => format!("{data}, in characters\n"),
    };
    let first = found.splits.first().map_or("", |s| s.name.as_str());
    for split in &found.splits {
        text.push('\n');
        text += &split_text(split, found, first);
    }
    text
}

fn split_text(split: &SplitReport, found: &Inspection, first: &str) -> String {
    let form = match split.conversations {
        0 => "plain text",
        n if n == split.pairs => "conversations",
        _ => "plain text and conversations",
    };
    let mut text = format!("{BOLD}{}{PLAIN}: {}\n", split.name, split.describes);
    let mut lines = vec![format!(
        "{}, {form}, {}",
        count(split.pairs, "pair"),
        count(split.prompts, "different prompt")
    )];
    lines.push(format!(
        "{}, the largest with {}",
        count(split.clusters, "cluster"),
        count(split.largest_cluster, "pair")
    ));
    if split.prompts < split.clusters {
        lines.push(
            "warning: pairs with the same prompt are in different clusters; to treat them as \
                dependent, name the column of the prompt with `--cluster`"
                .to_owned(),
        );
    }
    if let Some(used) = &split.used {
        lines.extend(used_lines(used, found));
    }
    lines.extend(remarks(split, first));
    // Add colours after wrapping, because escape sequences must not count towards the line width.
    let lines: String = lines.iter().map(|line| indented(line, "  ")).collect();
    text += &lines.replace("  warning: ", &format!("  {YELLOW}warning{PLAIN}: "));

    let named = [
        ("prompt", &split.prompt),
        ("chosen", &split.chosen),
        ("rejected", &split.rejected),
        ("prompt + longer", &split.whole),
    ];
    let mut grid = Grid::new(
        std::iter::once((found.unit, Align::Left))
            .chain(["p50", "p90", "p99", "max", "mean"].map(|c| (c, Align::Right))),
    );
    for (name, l) in named {
        grid.row([
            name.to_owned(),
            l.p50.to_string(),
            l.p90.to_string(),
            l.p99.to_string(),
            l.max.to_string(),
            format!("{:.1}", l.mean),
        ]);
    }
    text += &format!("\n{}", block(&grid.plain()));
    text += &format!("\n{}", block(&histogram(found.unit, &named[..3])));
    for example in &split.examples {
        text += &format!("\n{}", example_text(example));
    }
    text
}

/// Reports how many pairs a run would use, truncate and drop, and warns about problems with their
/// tokens.
fn used_lines(used: &TokenReport, found: &Inspection) -> Vec<String> {
    let mut lines = vec![format!(
        "{} used, {} of them cut to {} tokens",
        used.kept, used.truncated, found.max_length
    )];
    lines.extend(used.dropped.iter().map(|(why, n)| format!("{n} dropped: {why}")));
    lines.extend(warning(
        "pairs whose completions are identical after cutting",
        used.findings.identical,
    ));
    lines.extend(used.findings.of_tokens());
    lines
}

/// Returns warnings about the pairs of a split. One of them counts the prompts that also occur in
/// the split named `first`.
fn remarks(split: &SplitReport, first: &str) -> Vec<String> {
    let found = [
        ("repeated pairs", split.repeated),
        ("pairs that repeat an earlier pair with chosen and rejected swapped", split.contradicted),
        ("pairs whose completions are identical", split.identical),
        ("pairs without a prompt", split.without_prompt),
        ("pairs with an empty completion", split.without_completion),
        (
            "pairs whose completions repeat the prompt, so that the model reads it twice",
            split.prompt_repeated,
        ),
        (
            &format!("pairs whose prompt also occurs in `{first}`"),
            split.in_first.unwrap_or_default(),
        ),
    ];
    found.into_iter().filter_map(|(what, n)| warning(what, n)).collect()
}

/// A line with a warning and the number of pairs; `None` if there are no such pairs.
fn warning(what: &str, n: usize) -> Option<String> {
    (n > 0).then(|| format!("warning: {what}: {n}"))
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[1;33m";
const PLAIN: &str = "\x1b[0m";

/// Maximum number of characters in a line.
const WIDTH: usize = 80;

/// Number of lines that are shown from the start and from the end of a long text.
const SHOWN: (usize, usize) = (6, 4);

fn example_text(example: &Example) -> String {
    let (prompt, of) =
        (example.chosen.mask.iter().filter(|m| **m == 0).count(), |mask: &[u8]| {
            mask.iter().filter(|m| **m == 1).count()
        });
    let lengths = match (example.dropped, example.chosen.mask.is_empty()) {
        (Some(why), _) => format!("dropped, {why}"),
        (None, true) => "not tokenised".to_owned(),
        (None, false) => format!(
            "{prompt} prompt tokens, ⟨{}⟩ chosen, ⟨{}⟩ rejected",
            of(&example.chosen.mask),
            of(&example.rejected.mask)
        ),
    };
    let mut text = format!("  pair {}: {lengths}\n", example.index);
    for (name, written, colour) in [
        ("prompt", lines::visible(&example.prompt), DIM),
        ("chosen", format!("⟨{}⟩", lines::visible(&example.chosen.text)), GREEN),
        ("rejected", format!("⟨{}⟩", lines::visible(&example.rejected.text)), RED),
    ] {
        for (i, line) in lines::shortened(&written, WIDTH - 14, SHOWN).iter().enumerate() {
            let name = if i == 0 { name } else { "" };
            text += &format!("    {name:<8}  {colour}{line}{PLAIN}\n");
        }
    }
    text
}

fn block(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Wraps a sentence into lines of at most [`WIDTH`] characters, including the indent `by`. Lines
/// after the first are indented by two more spaces.
fn indented(sentence: &str, by: &str) -> String {
    let mut lines = vec![by.to_owned()];
    for word in sentence.split(' ') {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line + 1 + word.chars().count() > WIDTH && line > by.len() + 2 {
            lines.push(format!("{by}  "));
        }
        if let Some(line) = lines.last_mut() {
            if !line.trim().is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_sentences_fit_into_the_width() {
        assert!(indented(&"word ".repeat(40), "  ").lines().all(|l| l.chars().count() <= WIDTH));
    }
}
