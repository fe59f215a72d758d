//! The data flags of commands that read pairs.

use std::marker::PhantomData;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use reprpo_core::config::{Flag, Layering, TrainConfig};
use reprpo_core::{Error, Result};

use super::CONFIGURATION;
use super::fields::{apply, argument, given, of_field};

/// A command that reads pairs.
pub trait PairReader {
    /// The data flags that this command accepts.
    const SPEC: DataFlagSpec;
}

/// The data flags that a command accepts, and changes to their help texts.
pub struct DataFlagSpec {
    source: Source,
    /// `None` if the command has no `--split`.
    split: Option<Split>,
    /// True if the command has `--shift` and `--suite`, and no other group of flags contains them.
    shifts: bool,
    /// Last part of the help of `--max-length`. `{default}` is replaced by the field's default.
    /// `None` if the command does not have the flag.
    max_length: Option<&'static str>,
    /// True if the command has `--cluster`, because its output depends on the clusters.
    clusters: bool,
    /// The example in the help of `--set`; `None` if another group of flags contains `--set`.
    set: Option<&'static str>,
}

/// The argument that selects the data set.
enum Source {
    /// The optional flag `--dataset`. The string replaces the help text of the field.
    Dataset(Option<&'static str>),
    /// The required flag `--data`.
    Data,
    /// The first positional argument, which is required.
    First,
}

/// What the command does with the splits that `--split` selects.
enum Split {
    /// The split to train on.
    Train,
    /// The splits to evaluate or score; all splits by default.
    Score,
    /// The splits to read; all splits by default.
    Read,
}

/// `reprpo run`, and commands that take the same flags.
#[derive(Clone, Debug)]
pub struct RunData;
/// `reprpo eval`.
#[derive(Clone, Debug)]
pub struct EvalData;
/// `reprpo score`.
#[derive(Clone, Debug)]
pub struct ScoreData;
/// `reprpo states`.
#[derive(Clone, Debug)]
pub struct StatesData;
/// `reprpo data inspect`.
#[derive(Clone, Debug)]
pub struct InspectData;
/// `reprpo data tokens`.
#[derive(Clone, Debug)]
pub struct TokensData;
/// `reprpo data fetch`.
#[derive(Clone, Debug)]
pub struct FetchData;

impl PairReader for RunData {
    const SPEC: DataFlagSpec = DataFlagSpec {
        source: Source::Dataset(None),
        split: Some(Split::Train),
        shifts: false,
        max_length: None,
        clusters: true,
        set: None,
    };
}

impl PairReader for EvalData {
    const SPEC: DataFlagSpec = DataFlagSpec {
        source: Source::Dataset(Some(
            "Preference pairs: the name of a data set, `NAME:PART`, a file, or a Hugging Face \
                repository such as `org/name`. Defaults to the run's own data.",
        )),
        split: Some(Split::Score),
        shifts: true,
        max_length: Some(
            ". Defaults to the run's `train.max_length`, or to no limit without a run. Longer \
                completions are truncated at the end and counted below the table.",
        ),
        clusters: true,
        set: Some("eval.max_pairs=none"),
    };
}

impl PairReader for ScoreData {
    const SPEC: DataFlagSpec = DataFlagSpec {
        source: Source::Data,
        split: Some(Split::Score),
        shifts: false,
        max_length: Some(
            ". Defaults to no limit. Longer completions are truncated at the end. The output shows \
                how many pairs are truncated or dropped. A warning counts the pairs that exceed \
                the model's context.",
        ),
        clusters: true,
        set: Some("dataset.bad_rows=skip"),
    };
}

impl PairReader for StatesData {
    const SPEC: DataFlagSpec = DataFlagSpec {
        source: Source::Dataset(Some(
            "Preference pairs: the name of a data set, `NAME:PART`, a file, `-` for standard \
                input, or a Hugging Face repository such as `org/name`. Defaults to the run's own \
                data.",
        )),
        split: Some(Split::Read),
        shifts: false,
        max_length: Some(
            ". Defaults to the run's `train.max_length`, or to no limit without a run.",
        ),
        clusters: false,
        set: Some("tap.pooling=last"),
    };
}

impl PairReader for InspectData {
    const SPEC: DataFlagSpec = DataFlagSpec {
        source: Source::First,
        split: Some(Split::Read),
        shifts: false,
        max_length: Some(". Pairs are cut as in a run. Defaults to {default}."),
        clusters: true,
        set: Some("dataset.test=FILE"),
    };
}

impl PairReader for TokensData {
    const SPEC: DataFlagSpec = DataFlagSpec {
        source: Source::First,
        split: Some(Split::Read),
        shifts: false,
        max_length: Some(". Pairs are cut as in a run. Defaults to no limit."),
        clusters: false,
        set: Some("dataset.test=FILE"),
    };
}

impl PairReader for FetchData {
    const SPEC: DataFlagSpec = DataFlagSpec {
        source: Source::First,
        split: None,
        shifts: false,
        max_length: None,
        clusters: false,
        set: Some("dataset.oos=org/other:test"),
    };
}

impl DataFlagSpec {
    /// Name of the argument that selects the data set, for error messages.
    fn source(&self) -> &'static str {
        match self.source {
            Source::Dataset(_) => "--dataset",
            Source::Data => "--data",
            Source::First => "DATA",
        }
    }

    fn source_argument(&self, flag: &Flag) -> Arg {
        let arg = argument(flag);
        match self.source {
            Source::Dataset(help) => {
                arg.help(help.unwrap_or(&flag.help).trim_end_matches('.').to_owned())
            }
            Source::Data => {
                arg.long("data").alias("dataset").value_name("FILE|NAME|ID").required(true)
            }
            Source::First => Arg::new(flag.path.clone())
                .value_name("DATA")
                .help(flag.help.trim_end_matches('.').to_owned())
                .required(true),
        }
    }

    fn split(&self) -> Option<Flag> {
        Some(match self.split.as_ref()? {
            Split::Train => of_field("train.split"),
            Split::Score => of_field("eval.splits"),
            Split::Read => {
                let flag = of_field("eval.splits");
                let help = flag.help.replace("to score", "to read");
                flag.help(&help)
            }
        })
    }

    fn max_length(&self) -> Option<Flag> {
        let rest =
            self.max_length?.replace("{default}", &TrainConfig::default().max_length.to_string());
        let flag = of_field("train.max_length");
        let help = format!("{}{rest}", flag.help.trim_end_matches('.'));
        Some(flag.help(&help))
    }

    fn shift_flags(&self) -> Vec<Flag> {
        if self.shifts { vec![of_field(SHIFTS), of_field(SUITE)] } else { Vec::new() }
    }

    /// The flags that set a field, except the argument that selects the data set.
    fn flags(&self) -> Vec<Flag> {
        [Some(of_field(DATA_DIR)), self.split(), self.max_length()]
            .into_iter()
            .flatten()
            .chain(self.shift_flags())
            .collect()
    }
}

const DATA_DIR: &str = "dataset.data_dir";
const SHIFTS: &str = "eval.shifts";
const SUITE: &str = "eval.suite";
const COLUMNS: &str = "columns";
const CLUSTER: &str = "cluster";
const SET: &str = "set";

/// The values given for the data flags of the command `C`.
#[derive(Clone, Debug)]
pub struct DataFlags<C> {
    source: Option<String>,
    given: Vec<(Flag, String)>,
    columns: Option<String>,
    cluster: Option<String>,
    /// The `FIELD=VALUE` assignments of `--set`, which can set any field.
    pub set: Vec<String>,
    command: PhantomData<C>,
}

impl<C: PairReader> DataFlags<C> {
    /// The data set as given on the command line, or an empty string.
    pub fn source(&self) -> &str {
        self.source.as_deref().unwrap_or_default()
    }

    /// The value of `--split`, if it was given.
    pub fn split(&self) -> Option<&str> {
        let path = C::SPEC.split()?.path;
        self.given.iter().find(|(flag, _)| flag.path == path).map(|(_, text)| text.as_str())
    }

    /// Adds the given values to `layers`.
    ///
    /// # Errors
    /// Fails if the columns are not a list of `PART=COLUMN`, or if an assignment is malformed.
    pub fn apply(&self, layers: &mut Layering<'_>) -> Result<()> {
        if let Some(source) = &self.source {
            layers.flag(C::SPEC.source(), "dataset", source);
        }
        self.given
            .iter()
            .for_each(|(flag, text)| apply(layers, &format!("--{}", flag.name), flag, text));
        columns(layers, self.columns.as_deref())?;
        if let Some(column) = &self.cluster {
            layers.flag("--cluster", "dataset.cluster_column", column);
        }
        self.set.iter().try_for_each(|assignment| layers.set(assignment))
    }
}

impl<C: PairReader> Args for DataFlags<C> {
    fn augment_args(command: Command) -> Command {
        let spec = C::SPEC;
        let columns =
            Arg::new(COLUMNS).long("columns").value_name("PART=COLUMN").help_heading("Data");
        let cluster = spec.clusters.then(|| {
            let cluster = Arg::new(CLUSTER).long("cluster").value_name("COLUMN");
            cluster.help_heading("Data").help(
                "Column that names the cluster of a pair, e.g. `question_id`. Pairs of the same \
                    cluster count as dependent in confidence intervals. Defaults to `example_id` \
                    if it exists, otherwise to the prompt",
            )
        });
        let set = |example: &str| {
            let set = Arg::new(SET)
                .long("set")
                .value_name("FIELD=VALUE")
                .action(ArgAction::Append)
                .help_heading(CONFIGURATION);
            set.help(format!("Set any field of the experiment, e.g. `{example}`; may be repeated"))
        };
        command
            .arg(spec.source_argument(&of_field("dataset")))
            .arg(argument(&of_field(DATA_DIR)))
            .args(spec.split().iter().map(argument))
            .args(spec.shift_flags().iter().map(argument))
            .arg(
                columns.help(
                    "Names of the columns, e.g. `prompt=question,chosen=best,rejected=worst`",
                ),
            )
            .args(cluster)
            .args(spec.max_length().iter().map(argument))
            .args(spec.set.map(set))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: PairReader> FromArgMatches for DataFlags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let set = C::SPEC
            .set
            .and_then(|_| matches.get_many(SET))
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        Ok(Self {
            source: given(matches, &of_field("dataset")),
            given: C::SPEC
                .flags()
                .into_iter()
                .filter_map(|flag| given(matches, &flag).map(|text| (flag, text)))
                .collect(),
            columns: matches.get_one(COLUMNS).cloned(),
            cluster: C::SPEC.clusters.then(|| matches.get_one(CLUSTER).cloned()).flatten(),
            set,
            command: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Adds the column names given by `--columns`.
///
/// # Errors
/// Fails if the text is not a list of `PART=COLUMN`, or if a `PART` is not `prompt`, `chosen` or
/// `rejected`.
fn columns(layers: &mut Layering<'_>, text: Option<&str>) -> Result<()> {
    for named in text.into_iter().flat_map(|text| text.split(',')) {
        let wrong = || {
            Error::new(format!("`--columns` must be a list of `PART=COLUMN`, got `{named}`"))
                .hint("write `--columns prompt=question,chosen=best,rejected=worst`")
        };
        let (part, column) = named
            .split_once('=')
            .map(|(part, column)| (part.trim(), column.trim()))
            .ok_or_else(wrong)?;
        if column.is_empty() {
            return Err(wrong());
        }
        let parts = ["prompt", "chosen", "rejected"];
        if !parts.contains(&part) {
            return Err(Error::unknown("part of a pair", part, parts));
        }
        layers.flag("--columns", &format!("dataset.{part}_column"), column);
    }
    Ok(())
}
