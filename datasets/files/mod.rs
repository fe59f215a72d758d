//! The `file` data set, which reads preference pairs from local files.

mod answers;
pub(crate) mod cluster;
mod csv;
mod flaws;
mod format;
mod implicit;
pub(crate) mod input;
mod json;
mod jsonl;
mod pages;
mod parquet;
mod place;
mod python;
mod row;
mod sharegpt;
mod source;
mod value;

use std::path::PathBuf;

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json;
use sha2::{Digest, Sha256};

pub use self::format::{BadRows, Format};
pub use self::place::Place;
pub use self::row::{Columns, Row, pairs};
pub use self::source::{EXTENSIONS, Pairs, Reading, Rows, Source, extension};

/// Preference pairs from local files, with one file per split: `--dataset pairs.jsonl`.
#[dataset(
    name = "file",
    summary = "preference pairs from .jsonl, .json, .csv, .tsv and .parquet files, plain or \
        compressed (.gz, .zst)",
    reference = "TRL, dataset formats: preference, standard and conversational, with explicit and \
        implicit prompt",
    explain = "\
A row has the columns prompt, chosen and rejected. Each is a string, or a list of {role, content}
for the model's chat template. `--columns prompt=question,chosen=best` sets other names.

A chat template gets every field of a message (tool_calls, tool_call_id, name, reasoning_content
and others), the column `tools` (a list of JSON schemas, or the same as JSON text) and the
variables in the column `chat_template_kwargs`. Other columns are ignored; images, audio and video
are an error. If the prompt is a list of messages and the completions are plain text, each
completion is one assistant turn. The content of a message can also be a list of {type: \"text\",
text}.

The columns chosen and rejected can each contain a list of answers, as in RewardBench 2: a list of
texts, or a list of conversations. The row then has one pair for each chosen and each rejected
answer, in training as well. The evaluation also counts the rows in which every chosen answer scores
higher than every rejected one.

If there is no column `prompt`, the prompt is the common prefix of chosen and rejected, as in TRL:
the same characters, without a space before the first difference, or the same messages. This also
applies if prompt is text and the other two are conversations. `--columns prompt=none` always uses
the common prefix.

`--dataset pairs.jsonl` trains on that file. The splits to evaluate on are other files, `--set
dataset.test=FILE`, `dataset.oos=FILE` (the shift) and `dataset.rnd=FILE` (unrelated pairs), or
parts of the same file: `--split 'train[:900]' --set 'eval.splits=[\"train[900:]\"]'`.

A .jsonl file has one object per line. A .json file has a list of objects, several objects in a
row, {\"data\": [rows]}, one list per column, or {prompt, responses: {text: 1 or 0}} as in GENIES.
A .csv or .tsv file has a header. Each of these can be compressed, e.g. `.jsonl.gz` or
`.jsonl.zst`. Parquet can be compressed with snappy, zstd or gzip; in messages, fields of types
that JSON lacks (times, decimals, intervals) are left out.

`--dataset -` reads JSON lines or JSON, plain or compressed, from standard input. The run records
their SHA-256: to resume or evaluate it later, pipe in the same pairs.

ShareGPT's format is also supported. Its messages are {from, value} with the speakers human, gpt,
system, tool, observation and function_call (whose value is JSON with name and arguments). If
there is no column `prompt`, the prompt is the text in the column `system`, if there is one,
followed by the column `conversations`. As in LLaMA-Factory, chosen and rejected can each be a
single message.

The metrics of a run have confidence intervals over clusters: pairs of the same cluster count as
dependent. The column `example_id` names the cluster of a pair, if it exists; otherwise, pairs with
the same prompt are a cluster. `--cluster COLUMN` chooses another column.

Reading stops with an error that names the line if a column is missing or has another type, if a
completion in a .csv or .tsv is an empty field, or if conversations are mixed with plain texts.
`bad_rows=skip` skips such rows and reports their number. A file that is not JSON, CSV or UTF-8 is
always an error, and so is a row of more than `max_row_mib`. Python writes NaN, Infinity, numbers
beyond 64 bits and lone surrogates (\\ud83d) into JSON. They are allowed in fields that a pair
does not need; in other fields, they make the row a bad row.",
    example(train = "pairs.jsonl", test = "held_out.jsonl"),
    argument = "train",
    extensions = &source::EXTENSIONS,
    stdin = true,
)]
pub struct Files {
    /// File with the pairs to train on, or `-` for standard input. Required; `--dataset FILE` sets
    /// it.
    #[schemars(extend("format" = "path"))]
    pub train: PathBuf,
    /// File with held-out pairs of the training distribution.
    #[schemars(extend("format" = "path"))]
    pub test: Option<PathBuf>,
    /// File with pairs of the shifted distribution.
    #[schemars(extend("format" = "path"))]
    pub oos: Option<PathBuf>,
    /// File with unrelated pairs.
    #[schemars(extend("format" = "path"))]
    pub rnd: Option<PathBuf>,
    /// SHA-256 of standard input. A run that reads pairs from standard input records it
    /// automatically. To resume or evaluate the run, pipe in the same pairs.
    pub stdin: Option<String>,
    /// Format of the rows.
    #[serde(flatten)]
    pub format: Format,
}

impl DatasetPlugin for Files {
    fn build(self) -> Result<Box<dyn Dataset>> {
        if self.train.as_os_str().is_empty() {
            return Err(Error::new("no training file given")
                .hint("use `--dataset pairs.jsonl`, or `--set dataset.train=pairs.jsonl`"));
        }
        let reading = self.format.reading()?;
        let pinned = stdin(&self)?;
        let named = [
            ("train", Some(self.train)),
            ("test", self.test),
            ("oos", self.oos),
            ("rnd", self.rnd),
        ];
        let named = named.into_iter().filter_map(|(split, path)| Some((split, path?)));
        let open = |path: PathBuf| {
            let source = Source::open(&path, reading.clone(), &[])?;
            // Read the first pair, so that an invalid file is reported before the model is loaded.
            source.pairs()?.first().map(|_| source)
        };
        let splits = named.map(|(split, path)| {
            Ok((split, open(path).within(|| format!("cannot load the `{split}` pairs"))?))
        });
        Ok(Box::new(Splits { splits: splits.collect::<Result<_>>()?, pinned }))
    }
}

/// Returns the configuration as JSON, including the SHA-256 of standard input. Returns `None` if no
/// split reads standard input. A later command uses the SHA-256 to detect that different pairs were
/// piped in.
///
/// # Errors
/// Fails if several splits read standard input, or if standard input cannot be read. Also fails if
/// the SHA-256 differs from the recorded one.
fn stdin(config: &Files) -> Result<Option<String>> {
    let splits = [
        ("train", Some(&config.train)),
        ("test", config.test.as_ref()),
        ("oos", config.oos.as_ref()),
        ("rnd", config.rnd.as_ref()),
    ];
    let named: Vec<&str> = splits
        .into_iter()
        .filter(|(_, path)| path.is_some_and(|p| input::is_stdin(p)))
        .map(|(split, _)| split)
        .collect();
    match named[..] {
        [] => return Ok(None),
        [_] => {}
        _ => {
            return Err(Error::new(format!(
                "standard input (`-`) is used for several splits: {}",
                named.join(", ")
            ))
            .hint("standard input can only be read once: write the other splits to files"));
        }
    }
    let other = |why: &str| {
        Error::new(format!("the run's pairs came from standard input, {why}"))
            .hint("pipe in the same pairs again, or use different pairs with `--dataset FILE`")
            .hint("use `--set dataset.stdin=none` to skip this check")
    };
    if config.stdin.is_some() && input::stdin_is_terminal() {
        return Err(other("which is now a terminal"));
    }
    let bytes = input::stdin()?;
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    match &config.stdin {
        Some(_) if bytes.is_empty() => return Err(other("which is now empty")),
        Some(recorded) if *recorded != found => {
            return Err(other(&format!(
                "which now contains different pairs: SHA-256 {found} instead of {recorded}"
            )));
        }
        _ => {}
    }
    let pinned = Files { stdin: Some(found), ..config.clone() };
    serde_json::to_string(&pinned).map(Some).map_err(|e| Error::internal(e.to_string()))
}

struct Splits {
    splits: Vec<(&'static str, Source)>,
    /// Configuration that the run records, as JSON. If `None`, the run records the original
    /// configuration.
    pinned: Option<String>,
}

impl Dataset for Splits {
    fn splits(&self) -> Vec<SplitInfo> {
        let info = |(split, source): &(&'static str, Source)| SplitInfo {
            name: (*split).to_owned(),
            describes: source.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            pairs: source.count(),
        };
        self.splits.iter().map(info).collect()
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        Ok(Box::new(self.rows(split)?.map(|row| row.map(|(_, pair)| pair))))
    }

    fn rows(&self, split: &str) -> Result<RowIter<'_>> {
        let found = self.splits.iter().find(|(name, _)| *name == split);
        let (_, source) = found.ok_or_else(|| {
            Error::unknown("split", split, self.splits.iter().map(|(name, _)| name))
        })?;
        Ok(Box::new(source.pairs()?))
    }

    fn pinned(&self) -> Option<String> {
        self.pinned.clone()
    }

    fn files(&self, split: &str) -> Vec<PathBuf> {
        self.splits
            .iter()
            .filter(|(name, _)| *name == split)
            .map(|(_, source)| source.path().to_owned())
            .collect()
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(crate) mod parquet_fixtures;
#[cfg(test)]
mod tests;
