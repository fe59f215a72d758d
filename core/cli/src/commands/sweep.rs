//! `reprpo sweep`: one run per combination of values, and a table of all runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reprpo_core::config::{Experiment, Origin};
use reprpo_core::error::{Context, Fault, quoted};
use reprpo_core::eval::statistics::SplitSummary;
use reprpo_core::eval::{PERPLEXITY_NOTE, perplexity_mark, table};
use reprpo_core::files::write_whole;
use reprpo_core::registry::Kind;
use reprpo_core::report::{Align, Grid};
use reprpo_core::run::{self, Prior, Start};
use reprpo_core::{Error, Result};
use serde::Serialize;
use serde_json::Value;

use crate::App;
use crate::args::SweepArgs;
use crate::interrupt;

/// A field and the values that the sweep sets it to.
struct Axis {
    field: String,
    values: Vec<String>,
}

impl Axis {
    /// Parses `FIELD=V1,V2`, or `KIND=all` for every plugin of a kind.
    fn parse(text: &str, app: &App<'_>) -> Result<Self> {
        let malformed = || {
            Error::new(format!("`--over` must be `FIELD=V1,V2`, got `{text}`"))
                .hint("write `--over adapter=lora,hra`, or `--over adapter=all`")
        };
        let (field, values) = text.split_once('=').ok_or_else(malformed)?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        if field.trim().is_empty() || values.iter().any(String::is_empty) {
            return Err(malformed());
        }
        Self { field: field.trim().to_owned(), values }.expanded(app)
    }

    /// Reads one entry of a grid file.
    fn read(field: &str, value: &toml::Value, app: &App<'_>) -> Result<Self> {
        let text = |v: &toml::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let values = match value {
            toml::Value::Array(values) => values.iter().map(text).collect(),
            toml::Value::Table(_) => {
                return Err(Error::new(format!("`{field}` in the grid is a table, not a list"))
                    .hint(format!(
                        "write one line per field, e.g. `\"{field}.lr\" = [1e-4, 1e-3]`, and put \
                            values that all runs share into `--config FILE`"
                    )));
            }
            value => vec![text(value)],
        };
        Self { field: field.to_owned(), values }.expanded(app)
    }

    fn expanded(mut self, app: &App<'_>) -> Result<Self> {
        if self.values == ["all"] {
            let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == self.field) else {
                return Err(Error::new(format!("`all` is not a valid value for `{}`", self.field))
                    .hint(format!(
                        "use `all` only for: {}",
                        Kind::ALL.map(Kind::name).join(", ")
                    )));
            };
            self.values = app.registry.of(kind).map(|e| e.about().name.to_owned()).collect();
        }
        if self.values.is_empty() {
            return Err(Error::new(format!("`{}` has no values to sweep over", self.field)));
        }
        Ok(self)
    }
}

/// Reads the axes from a grid file. Each line of the file sets a field to a list of values.
fn grid(file: &Path, app: &App<'_>) -> Result<Vec<Axis>> {
    let text = std::fs::read_to_string(file)
        .within(|| format!("cannot read the grid `{}`", file.display()))?;
    let table: toml::Table = toml::from_str(&text)
        .map_err(|e| Error::new(format!("`{}` is not TOML", file.display())).because(e))?;
    table
        .iter()
        .map(|(field, value)| Axis::read(field, value, app))
        .collect::<Result<_>>()
        .within(|| format!("in `{}`", file.display()))
}

/// Returns every combination of values. Each combination lists its values in the order of the axes,
/// and the last axis varies fastest.
fn combinations(axes: &[Axis]) -> Vec<Vec<&str>> {
    axes.iter().fold(vec![Vec::new()], |all, axis| {
        all.into_iter()
            .flat_map(|head: Vec<&str>| {
                axis.values.iter().map(move |v| [&head[..], &[v.as_str()]].concat())
            })
            .collect()
    })
}

/// The result of one combination.
#[derive(Serialize)]
struct Row {
    values: Vec<(String, String)>,
    run: PathBuf,
    /// Mean loss over the first and the last quarter of the steps; `None` if there were no steps.
    loss: Option<[f64; 2]>,
    splits: Vec<SplitSummary>,
    error: Option<String>,
}

impl Row {
    /// Reads the result of a finished run from its folder.
    fn read(values: Vec<(String, String)>, run: &Path) -> Result<Self> {
        let metrics = std::fs::read_to_string(run.join("metrics.jsonl"))
            .within(|| format!("cannot read `{}`", run.join("metrics.jsonl").display()))?;
        let losses: Vec<f64> = metrics
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok()?["loss"].as_f64())
            .collect();
        let quarter = losses.len().div_ceil(4);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let loss = (!losses.is_empty())
            .then(|| [mean(&losses[..quarter]), mean(&losses[losses.len() - quarter..])]);
        let summary = run.join("eval/summary.json");
        let splits = match std::fs::read_to_string(&summary) {
            Ok(text) => serde_json::from_str::<Value>(&text)
                .and_then(|v| serde_json::from_value(v["splits"].clone()))
                .map_err(|e| {
                    Error::new(format!("`{}` is not an evaluation summary", summary.display()))
                        .because(e)
                })?,
            Err(_) => Vec::new(),
        };
        Ok(Self { values, run: run.to_owned(), loss, splits, error: None })
    }
}

pub fn run(args: &SweepArgs, app: &App<'_>) -> Result<()> {
    let mut axes =
        args.grid.as_deref().map(|file| grid(file, app)).transpose()?.unwrap_or_default();
    for over in &args.over {
        axes.push(Axis::parse(over, app)?);
    }
    if axes.is_empty() {
        return Err(Error::new("the sweep has no fields to vary")
            .hint("give `--over adapter=lora,hra`, or a grid file"));
    }
    let combinations = combinations(&axes);
    // Resolve every experiment before the first run. A mistake is then reported immediately, not
    // after hours of training.
    let plans = combinations
        .iter()
        .map(|values| {
            let named: Vec<(String, String)> =
                axes.iter().zip(values).map(|(a, v)| (a.field.clone(), (*v).to_owned())).collect();
            let mut experiment = args.experiment.clone();
            experiment.output.remove("out");
            experiment
                .fields
                .set
                .extend(named.iter().map(|(field, value)| format!("{field}={value}")));
            let resolved = experiment
                .resolve(app)
                .within(|| format!("the run `{}` is not valid", values.join(" × ")))?;
            let configured =
                !matches!(resolved.origins.get("eval.completions"), None | Some(Origin::Default));
            let mut experiment = resolved.experiment;
            if !configured {
                // Skip sample completions. They would flood the terminal, and can take as long as a
                // short run.
                experiment.eval.completions = 0;
            }
            Ok((named, experiment))
        })
        .collect::<Result<Vec<(Vec<(String, String)>, Experiment)>>>()?;
    let out = folder(args)?;
    let stop = interrupt::watch()?;
    let mut rows = Vec::new();
    for (i, (named, experiment)) in plans.into_iter().enumerate() {
        let name: Vec<String> = named
            .iter()
            .map(|(_, v)| {
                v.chars()
                    .map(|c| if c.is_alphanumeric() || "._+-".contains(c) { c } else { '_' })
                    .collect()
            })
            .collect();
        let run = out.join(name.join("-"));
        let values = named.iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>().join(" × ");
        app.printer.note(&format!("\n[{} of {}] {values}", i + 1, combinations.len()));
        match advance(&experiment, &run, &stop, app) {
            Ok(()) => rows.push(Row::read(named, &run)?),
            Err(e) if e.fault() == Fault::Interrupted => {
                return Err(e.hint(format!(
                    "to resume the sweep, repeat the command with `--out {}`",
                    quoted(&out)
                )));
            }
            Err(e) => {
                app.printer.error(&e);
                rows.push(Row {
                    values: named,
                    run,
                    loss: None,
                    splits: Vec::new(),
                    error: Some(e.message().to_owned()),
                });
            }
        }
    }
    let table = grid_of(&axes, &rows);
    std::fs::create_dir_all(&out)
        .within(|| format!("cannot create the folder `{}`", out.display()))?;
    let json = serde_json::to_value(&rows).map_err(|e| Error::internal(e.to_string()))?;
    write_whole(&out.join("summary.json"), format!("{json:#}\n").as_bytes())?;
    write_whole(
        &out.join("summary.md"),
        format!("{}\n{}\n{}", table.markdown(), legend(&rows, "  \n"), dropped_and_cut(&rows))
            .as_bytes(),
    )?;
    app.printer.note(&format!("\nthe sweep is in `{}`", out.display()));
    if args.json {
        app.printer.json(&json)?
    } else {
        app.printer.data(&format!(
            "{}\n{}{}",
            table.plain(),
            legend(&rows, "\n"),
            dropped_and_cut(&rows)
        ))?
    }
    match rows.iter().filter(|r| r.error.is_some()).count() {
        0 => Ok(()),
        failed => Err(Error::new(format!("{failed} of {} runs failed", rows.len())).hint(format!(
            "see the errors above; to run only what is missing, repeat the command with \
                    `--out {}`",
            quoted(&out)
        ))),
    }
}

/// Explains the columns of the table. If a perplexity ratio is marked as low, also explains the
/// mark.
fn legend(rows: &[Row], line_end: &str) -> String {
    let mut lines = vec![
        "loss: mean over the first and over the last quarter of the steps; points: 100·(acc − \
            base acc), with a 95 % interval over clusters of pairs, if there is one",
        "ppl ratio: of the split on its left; below 1 means that the chosen text became less \
            likely",
    ];
    if rows
        .iter()
        .flat_map(|r| &r.splits)
        .filter_map(|s| s.change.as_ref())
        .any(|c| !perplexity_mark(c.perplexity_ratio).is_empty())
    {
        lines.push(PERPLEXITY_NOTE);
    }
    lines.join(line_end)
}

/// Returns one line for each split in which pairs were dropped or truncated. The counts are from
/// the run that dropped or truncated the most pairs.
fn dropped_and_cut(rows: &[Row]) -> String {
    let mut most: Vec<&SplitSummary> = Vec::new();
    for split in rows.iter().flat_map(|row| &row.splits) {
        match most.iter_mut().find(|known| known.split == split.split) {
            Some(known) if known.dropped + known.truncated < split.dropped + split.truncated => {
                *known = split
            }
            Some(_) => {}
            None => most.push(split),
        }
    }
    most.iter()
        .filter_map(|split| {
            table::dropped_and_cut(&split.split, split.dropped, split.truncated, None)
        })
        .map(|line| format!("\n{line}"))
        .collect()
}

/// Completes a run. A new run is trained from the start, and an interrupted run from its last
/// checkpoint, if any. A trained run is only evaluated. A finished run does not change.
fn advance(
    experiment: &Experiment,
    run: &Path,
    stop: &Arc<AtomicBool>,
    app: &App<'_>,
) -> Result<()> {
    let mut progress = app.printer.progress();
    let (experiment, begin) = match Prior::find(run, experiment, app.registry)? {
        Prior::None => (experiment.clone(), Start::New(run.to_owned())),
        Prior::Begun => {
            run::clear(run)?;
            (experiment.clone(), Start::New(run.to_owned()))
        }
        Prior::Checkpoint(recorded) => {
            (*recorded, Start::Resume { folder: run.to_owned(), inexact: false })
        }
        Prior::Trained(recorded) => {
            return run::judge_trained(&recorded, run, app.registry, stop, progress.as_mut())
                .map(drop);
        }
        Prior::Finished(_) => {
            app.printer.note(&format!("already finished: `{}`", run.display()));
            return Ok(());
        }
    };
    run::run(&experiment, &begin, app.registry, stop, progress.as_mut()).map(drop)
}

/// Returns the folder of the sweep: `--out`, or the first unused name below `runs/`. The folder
/// `--out` may already contain some of the sweep's runs.
fn folder(args: &SweepArgs) -> Result<PathBuf> {
    match args.experiment.output.get("out") {
        Some(out) => Ok(PathBuf::from(out)),
        None => {
            let mut names = (1u32..).map(|n| Path::new("runs").join(format!("sweep-{n}")));
            names
                .find(|p| !p.exists())
                .ok_or_else(|| Error::internal("there is no unused folder name in `runs`"))
        }
    }
}

fn grid_of(axes: &[Axis], rows: &[Row]) -> Grid {
    let mut splits: Vec<&str> = Vec::new();
    for split in rows.iter().flat_map(|r| &r.splits) {
        if !splits.contains(&split.split.as_str()) {
            splits.push(&split.split);
        }
    }
    let columns = axes
        .iter()
        .map(|a| (a.field.clone(), Align::Left))
        .chain([("loss".to_owned(), Align::Right)]);
    let of_split =
        |s: &&str| [(format!("{s}, points"), Align::Right), ("ppl ratio".to_owned(), Align::Right)];
    let mut grid = Grid::new(columns.chain(splits.iter().flat_map(of_split)));
    for row in rows {
        let mut cells: Vec<String> = row.values.iter().map(|(_, v)| v.clone()).collect();
        cells.push(match (&row.error, row.loss) {
            (Some(_), _) => "failed".to_owned(),
            (None, Some([first, last])) => format!("{first:.4} → {last:.4}"),
            (None, None) => "–".to_owned(),
        });
        for split in &splits {
            let dash = || "–".to_owned();
            let change =
                row.splits.iter().find(|s| s.split == *split).and_then(|s| s.change.as_ref());
            cells.push(change.and_then(|c| c.points).map_or_else(dash, |p| match p.interval() {
                Some((low, high)) => format!("{:+.1} [{low:+.1}, {high:+.1}]", p.value),
                None => format!("{:+.1}", p.value),
            }));
            // Show the perplexity ratio next to the change in accuracy, because a higher accuracy
            // means little if the model no longer writes coherent text.
            cells.push(change.map_or_else(dash, |c| {
                let ratio = c.perplexity_ratio;
                ratio.map_or_else(dash, |r| format!("{:.2}", r.value)) + perplexity_mark(ratio)
            }));
        }
        grid.row(cells);
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(field: &str, values: &[&str]) -> Axis {
        Axis { field: field.to_owned(), values: values.iter().map(|v| (*v).to_owned()).collect() }
    }

    #[test]
    fn the_last_axis_varies_fastest() {
        let axes = [axis("a", &["1", "2"]), axis("b", &["x", "y"])];
        assert_eq!(combinations(&axes), [["1", "x"], ["1", "y"], ["2", "x"], ["2", "y"]]);
    }

    #[test]
    fn a_perplexity_ratio_below_one_half_is_marked_and_explained() {
        use reprpo_core::config::Score;
        use reprpo_core::eval::statistics::{Change, Clusters, Metric};

        let row = |ratio: f64| {
            let at = |value| Some(Metric { value, low: None, high: None, no_interval: None });
            let change =
                Change { points: at(40.0), perplexity_ratio: at(ratio), ..Change::default() };
            let split = SplitSummary::of_base("oos", "", &[], &Clusters::default(), Score::Mean);
            let split = SplitSummary { change: Some(change), ..split };
            Row {
                values: vec![("a".into(), "1".into())],
                run: PathBuf::new(),
                loss: None,
                splits: vec![split],
                error: None,
            }
        };
        let rows = [row(0.31), row(1.05)];
        let text = grid_of(&[axis("a", &["1"])], &rows).plain();
        assert!(
            text.contains("oos, points") && text.contains("0.31*") && text.contains("1.05"),
            "{text}"
        );
        assert!(
            legend(&rows, "\n").contains("*: ppl ratio below 0.5")
                && !legend(&rows[1..], "\n").contains('*')
        );
    }
}
