//! Pairs from the user's own files, in the columns that TRL reads.

mod csv;
mod format;
mod implicit;
mod json;
mod jsonl;
mod pages;
mod parquet;
mod place;
mod row;
mod source;
mod value;

use std::path::PathBuf;

use reprpo_plugin::prelude::*;

pub use self::format::{BadRows, Format};
pub use self::place::Place;
pub use self::row::{Columns, Row, pairs};
pub use self::source::{ENDINGS, Pairs, Reading, Rows, Source};

/// `--dataset pairs.jsonl`.
pub struct Files;

/// Which files hold which split, and how they are read.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct Config {
    /// File with the pairs to train on. Required; `--dataset FILE` fills it.
    #[schemars(extend("format" = "path"))]
    pub train: PathBuf,
    /// File with pairs of the same distribution that are kept from training.
    #[schemars(extend("format" = "path"))]
    pub test: Option<PathBuf>,
    /// File with pairs of the shifted distribution.
    #[schemars(extend("format" = "path"))]
    pub oos: Option<PathBuf>,
    /// File with pairs of an unrelated judgement.
    #[schemars(extend("format" = "path"))]
    pub rnd: Option<PathBuf>,
    /// How their rows are read.
    #[serde(flatten)]
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self { train: PathBuf::new(), test: None, oos: None, rnd: None, format: Format::default() }
    }
}

impl Plugin for Files {
    const NAME: &'static str = "file";
    const SUMMARY: &'static str = "preference pairs from .jsonl, .json, .csv, .tsv and .parquet files";
    const EXPLAIN: &'static str = "\
A row has the columns prompt, chosen and rejected; others are ignored. Each is a string, or a list of
{role, content} for the model's chat template. `--columns prompt=question,chosen=best` gives them other names.

Without a column `prompt`, the beginning that chosen and rejected share is the prompt, as in TRL: the same
characters, less a blank before the first that differs, or the same messages. So it is where prompt is text and the
other two are conversations. `--columns prompt=none` asks for it.

`--dataset pairs.jsonl` trains on that file. The splits that are compared with it are files of their own:
`--set dataset.test=FILE`, `dataset.oos=FILE` (the shift), `dataset.rnd=FILE` (something unrelated); or parts of one
file: `--split 'train[:900]' --set 'eval.splits=[\"train[900:]\"]'`.

.jsonl has an object on every line. .json is a list of objects, objects one after another, {\"data\": [rows]}, lists
by column, or GENIES' own {prompt, responses: {text: 1 or 0}}. .csv and .tsv have a header. Parquet may be compressed
with snappy or zstd.

An empty completion, a missing column, another type, or conversations among plain texts are an error that names the
line; `bad_rows=skip` passes such rows over and says how many. What is no JSON, no CSV or not UTF-8 is always an
error, and so is a row of more than `max_row_mib`.";
    const REFERENCE: &'static str = "TRL, dataset formats: preference, standard and conversational, with explicit and implicit prompt";
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("train", "pairs.jsonl"), ("test", "held_out.jsonl")];
    type Config = Config;
}

impl DatasetPlugin for Files {
    const ARGUMENT: Option<&'static str> = Some("train");
    const EXTENSIONS: &'static [&'static str] = &source::ENDINGS;

    fn build(config: Config) -> Result<Box<dyn Dataset>> {
        if config.train.as_os_str().is_empty() {
            return Err(Error::new("no file to train on was named").hint("`--dataset pairs.jsonl`, or `--set dataset.train=pairs.jsonl`"));
        }
        let reading = config.format.reading()?;
        let named = [("train", Some(config.train)), ("test", config.test), ("oos", config.oos), ("rnd", config.rnd)];
        let named = named.into_iter().filter_map(|(split, path)| Some((split, path?)));
        let open = |path: PathBuf| {
            let source = Source::open(&path, reading.clone(), &[])?;
            // By its first pair a file is judged before a model is loaded for it.
            source.pairs()?.first().map(|_| source)
        };
        let splits = named.map(|(split, path)| Ok((split, open(path).within(|| format!("the `{split}` pairs cannot be used"))?)));
        Ok(Box::new(Splits(splits.collect::<Result<_>>()?)))
    }
}

reprpo_plugin::register!(dataset: Files);

struct Splits(Vec<(&'static str, Source)>);

impl Dataset for Splits {
    fn splits(&self) -> Vec<SplitInfo> {
        let info = |(split, source): &(&'static str, Source)| SplitInfo {
            name: (*split).to_owned(),
            describes: source.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            pairs: source.count(),
        };
        self.0.iter().map(info).collect()
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        let found = self.0.iter().find(|(name, _)| *name == split);
        let (_, source) = found.ok_or_else(|| Error::unknown("split", split, self.0.iter().map(|(name, _)| name)))?;
        Ok(Box::new(source.pairs()?))
    }

    fn files(&self, split: &str) -> Vec<PathBuf> {
        self.0.iter().filter(|(name, _)| *name == split).map(|(_, source)| source.path().to_owned()).collect()
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod written;
