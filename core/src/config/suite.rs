//! Suites: for each training distribution, the shifts that a benchmark evaluates.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Choice, DataSource, Shift};
use crate::error::{Context, Error, Result};
use crate::registry::Registry;

/// The text of a suite and the crate that contains it, registered by [`suite!`](crate::suite).
#[derive(Debug)]
pub struct SuiteText {
    /// TOML text in the format of a suite file.
    pub toml: &'static str,
    /// Name of the crate that contains the suite.
    pub origin: &'static str,
}

inventory::collect!(SuiteText);

/// Registers the text of a suite with the program that links the crate, e.g.
/// `suite!(include_str!("mine.toml"));`.
#[macro_export]
macro_rules! suite {
    ($toml:expr) => {
        $crate::inventory::submit! {
            $crate::config::SuiteText { toml: $toml, origin: env!("CARGO_PKG_NAME") }
        }
    };
}

/// A suite. It only names data sets, and is independent of models and methods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// Name on the command line.
    pub name: String,
    /// One line that says what the suite measures.
    pub summary: String,
    /// Source of the suite: paper or project; empty if there is none.
    pub reference: String,
    /// The training distributions with their shifts.
    pub training_sets: Vec<TrainingSet>,
    /// The shifts for all other training distributions; empty if there are none.
    pub others: Vec<Shift>,
}

/// A training distribution of a suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingSet {
    /// The training data. If there are several entries, they are the same data in different places,
    /// such as a local folder and the hub.
    pub datasets: Vec<DataSource>,
    /// The rows to evaluate. A row called `rnd` is an unrelated distribution.
    pub shifts: Vec<Shift>,
}

/// The format of a suite file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    suite: Header,
    #[serde(default)]
    train: Vec<Row>,
    others: Option<Others>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    summary: String,
    #[serde(default)]
    reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    dataset: OneOrMore,
    shifts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Others {
    shifts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// A training distribution and one of its shifts.
#[derive(Clone, Debug, Serialize)]
pub struct SuitePair {
    /// Training data, as text: a data set and its fields; see `DataSource`.
    pub train: String,
    /// Name of the shift.
    pub shift: String,
    /// The data of the shift.
    pub sources: Vec<String>,
}

impl Suite {
    /// The suites of this program, sorted by name.
    ///
    /// # Errors
    /// Fails if the text of a suite is not valid.
    pub fn all() -> Result<Vec<Self>> {
        let mut all = inventory::iter::<SuiteText>
            .into_iter()
            .map(|text| {
                Self::read(text.toml)
                    .within(|| format!("cannot parse a suite of the crate `{}`", text.origin))
            })
            .collect::<Result<Vec<_>>>()?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Finds a suite by its name, or reads a suite file. `text` is a file if it ends with `.toml`.
    /// A path in a suite file is relative to the file's folder, or else to the current folder.
    ///
    /// # Errors
    /// Fails if there is no suite of this name, or if the file cannot be read or is not valid.
    pub fn find(text: &str) -> Result<Self> {
        if Path::new(text).extension().is_some_and(|ending| ending == "toml") {
            let toml = std::fs::read_to_string(text)
                .within(|| format!("cannot read the suite `{text}`"))?;
            let mut suite = Self::read(&toml).within(|| format!("in the suite `{text}`"))?;
            suite.resolve_paths(Path::new(text).parent().unwrap_or(Path::new("")));
            return Ok(suite);
        }
        let all = Self::all()?;
        let names: Vec<String> = all.iter().map(|suite| suite.name.clone()).collect();
        all.into_iter().find(|suite| suite.name == text).ok_or_else(|| {
            Error::unknown("suite", text, names).hint("or give a suite file, which ends with .toml")
        })
    }

    /// Replaces the paths that exist in `folder`.
    fn resolve_paths(&mut self, folder: &Path) {
        let sets = self.training_sets.iter_mut();
        let (datasets, shifts): (Vec<_>, Vec<_>) =
            sets.map(|set| (&mut set.datasets, &mut set.shifts)).unzip();
        let shifts = shifts.into_iter().flatten().chain(&mut self.others);
        let sources = shifts.flat_map(|shift| &mut shift.sources);
        for source in datasets.into_iter().flatten().chain(sources) {
            let path = folder.join(&source.dataset);
            if path.exists() {
                source.dataset = path.to_string_lossy().into_owned();
            }
        }
    }

    /// Parses the text of a suite file.
    ///
    /// # Errors
    /// Fails if the text is not TOML, or if a field is missing, unknown or not valid.
    pub fn read(toml: &str) -> Result<Self> {
        let File { suite, train, others } = toml::from_str(toml).map_err(|e| {
            Error::new("this is not a suite").because(e).hint(
                "a suite has a table `[suite]` with `name` and `summary`, and tables `[[train]]` \
                    with `dataset` and `shifts`",
            )
        })?;
        let training_set = |row: Row| {
            let datasets = match row.dataset {
                OneOrMore::One(one) => vec![one],
                OneOrMore::More(more) => more,
            };
            if datasets.is_empty() {
                return Err(Error::new("`dataset` is empty"));
            }
            Ok(TrainingSet {
                datasets: datasets.iter().map(|d| DataSource::parse(d)).collect::<Result<_>>()?,
                shifts: shifts(&row.shifts)?,
            })
        };
        let read = Self {
            name: suite.name,
            summary: suite.summary,
            reference: suite.reference,
            training_sets: train.into_iter().map(training_set).collect::<Result<_>>()?,
            others: others.map_or(Ok(Vec::new()), |others| shifts(&others.shifts))?,
        };
        if read.training_sets.is_empty() && read.others.is_empty() {
            return Err(Error::new("the suite has no shifts")
                .hint("add a table `[[train]]` with `dataset` and `shifts`"));
        }
        Ok(read)
    }

    /// The shifts of a training distribution.
    ///
    /// # Errors
    /// Fails if the suite does not contain the distribution and has no shifts for others.
    pub fn shifts_of(&self, dataset: &Choice, registry: &Registry) -> Result<&[Shift]> {
        for set in &self.training_sets {
            for source in &set.datasets {
                // A data set that does not exist here, such as a missing file, is not this one.
                if source.selects(dataset, registry).unwrap_or(false) {
                    return Ok(&set.shifts);
                }
            }
        }
        if !self.others.is_empty() {
            return Ok(&self.others);
        }
        let argument = registry.dataset(&dataset.name)?.argument;
        let text = argument.and_then(|field| dataset.config.get(field)?.as_str());
        let shown = match text {
            Some(text) => format!("{}:{text}", dataset.name),
            None => dataset.name.clone(),
        };
        let known: Vec<String> =
            self.training_sets.iter().map(|set| set.datasets[0].to_string()).collect();
        Err(Error::new(format!(
            "the suite `{}` has no shifts for the training data `{shown}`",
            self.name
        ))
        .hint(format!("it has shifts for: {}", known.join(", "))))
    }

    /// All training distributions with each of their shifts, for studies of a whole suite.
    pub fn pairs(&self) -> Vec<SuitePair> {
        let of = |set: &TrainingSet| {
            let train = set.datasets[0].to_string();
            set.shifts
                .iter()
                .map(move |shift| SuitePair {
                    train: train.clone(),
                    shift: shift.name.clone(),
                    sources: shift.sources.iter().map(DataSource::to_string).collect(),
                })
                .collect::<Vec<_>>()
        };
        self.training_sets.iter().flat_map(of).collect()
    }
}

/// Parses a list of shifts. Entries with the same explicit name form one shift.
///
/// # Errors
/// Fails if an entry is not valid, or if two entries without a name get the same one.
pub fn shifts(entries: &[String]) -> Result<Vec<Shift>> {
    let mut all: Vec<(Shift, bool)> = Vec::new();
    for text in entries {
        let (shift, is_named) = Shift::parse(text)?;
        match all.iter_mut().find(|(other, _)| other.name == shift.name) {
            Some((other, true)) if is_named => other.sources.extend(shift.sources),
            Some((other, _)) => {
                return Err(Error::new(format!(
                    "two shifts are called `{}`: `{}` and `{}`",
                    shift.name, other.sources[0], shift.sources[0]
                ))
                .hint(
                    "give them different names, as in `NAME=DATASET#SPLIT`, or give both the \
                        same name to score their pairs together",
                ));
            }
            None => all.push((shift, is_named)),
        }
    }
    Ok(all.into_iter().map(|(shift, _)| shift).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITE: &str = r#"
[suite]
name = "mine"
summary = "a test"
[[train]]
dataset = ["a.jsonl", "org/a"]
shifts = ["b.jsonl", "both=c.jsonl", "both=d.jsonl#test[:3]"]
[[train]]
dataset = "e.jsonl"
shifts = ["rnd=f.jsonl"]
"#;

    #[test]
    fn entries_with_the_same_name_form_one_shift() {
        let suite = Suite::read(SUITE).unwrap();
        let shifts = &suite.training_sets[0].shifts;
        let names: Vec<&str> = shifts.iter().map(|shift| shift.name.as_str()).collect();
        assert_eq!(names, ["b", "both"]);
        assert_eq!(shifts[1].sources.len(), 2);
        let pairs: Vec<(String, String)> =
            suite.pairs().into_iter().map(|pair| (pair.train, pair.shift)).collect();
        let expected = [("a.jsonl", "b"), ("a.jsonl", "both"), ("e.jsonl", "rnd")];
        assert_eq!(pairs, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn shifts_without_a_name_must_differ() {
        let error = |entries: &[&str]| {
            let entries: Vec<String> = entries.iter().map(|e| (*e).to_owned()).collect();
            shifts(&entries).unwrap_err().to_string()
        };
        assert!(error(&["x/a.jsonl", "y/a.jsonl"]).starts_with("two shifts are called `a`"));
        assert!(error(&["a=x.jsonl", "y/a.jsonl"]).starts_with("two shifts are called `a`"));
    }

    #[test]
    fn a_suite_without_shifts_or_with_unknown_fields_is_refused() {
        for text in [
            "",
            "[suite]\nname = \"a\"\nsummary = \"b\"",
            "[suite]\nname = \"a\"\nsummary = \"b\"\ncolour = 1",
            "[suite]\nname = \"a\"\nsummary = \"b\"\n[[train]]\ndataset = []\nshifts = [\"x\"]",
            "[suite]\nname = \"a\"\nsummary = \"b\"\n[[train]]\ndataset = \"d\"\nshifts = [\"#\"]",
        ] {
            assert!(Suite::read(text).is_err(), "{text}");
        }
    }
}
