//! The data flags, which every command that reads pairs takes as one group.

use std::marker::PhantomData;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use reprpo_core::config::{Flag, Layering, TrainConfig};
use reprpo_core::{Error, Result};

use super::fields::{apply, argument, given, of_field};

/// A command that reads pairs.
pub trait PairReader {
    /// How its data flags differ from those of the others.
    const HOW: Reading;
}

/// The differences between the commands that read pairs.
pub struct Reading {
    source: Source,
    /// `None` if the command has no `--split`.
    split: Option<Split>,
    /// The rest of the help of `--max-length`, after the field's documentation; `None` if the
    /// command does not have the flag. `{default}` stands for the field's default.
    max_length: Option<&'static str>,
    /// The example of `--set` in the help; `None` if the flag belongs to another group.
    set: Option<&'static str>,
}

/// How a command is given the pairs.
enum Source {
    /// By `--dataset`, with another help if there is one.
    Dataset(Option<&'static str>),
    /// By `--data`, which must be given.
    Data,
    /// By its first argument.
    First,
}

/// What `--split` chooses.
enum Split {
    /// The split to train on.
    Train,
    /// The split to judge or score, instead of every split.
    Score,
    /// The split to read, instead of every split.
    Read,
}

/// `reprpo run`, and commands that take the same flags.
#[derive(Clone, Debug)]
pub struct Trained;
/// `reprpo eval`.
#[derive(Clone, Debug)]
pub struct Judged;
/// `reprpo score`.
#[derive(Clone, Debug)]
pub struct Scored;
/// `reprpo states`.
#[derive(Clone, Debug)]
pub struct Probed;
/// `reprpo data inspect`.
#[derive(Clone, Debug)]
pub struct Inspected;
/// `reprpo data tokens`.
#[derive(Clone, Debug)]
pub struct Tokenised;
/// `reprpo data fetch`.
#[derive(Clone, Debug)]
pub struct Fetched;

impl PairReader for Trained {
    const HOW: Reading = Reading {
        source: Source::Dataset(None),
        split: Some(Split::Train),
        max_length: None,
        set: None,
    };
}

impl PairReader for Judged {
    const HOW: Reading = Reading {
        source: Source::Dataset(Some(
            "The preference pairs: a name, `NAME:PART`, a file, or a repository of the hub, as \
                `org/name`; a run's own when not given.",
        )),
        split: Some(Split::Score),
        max_length: Some(
            "; a run's own `train.max_length` when not given, or no limit without a run. Longer \
                completions are cut at their end, and counted under the table.",
        ),
        set: Some("eval.max_pairs=none"),
    };
}

impl PairReader for Scored {
    const HOW: Reading = Reading {
        source: Source::Data,
        split: Some(Split::Score),
        max_length: Some(
            "; no limit when not given. Longer completions are cut at their end. The output shows \
                which pairs are cut or dropped, and a warning counts pairs longer than the \
                model's context.",
        ),
        set: Some("dataset.bad_rows=skip"),
    };
}

impl PairReader for Probed {
    const HOW: Reading = Reading {
        source: Source::Dataset(Some(
            "The preference pairs: a name, `NAME:PART`, a file, `-` for standard input, or a \
                repository of the hub, as `org/name`; a run's own when not given.",
        )),
        split: Some(Split::Read),
        max_length: Some(
            "; a run's own `train.max_length` when not given, or no limit without a run.",
        ),
        set: Some("tap.pooling=last"),
    };
}

impl PairReader for Inspected {
    const HOW: Reading = Reading {
        source: Source::First,
        split: Some(Split::Read),
        max_length: Some(" in a run; {default} when not given."),
        set: Some("dataset.test=FILE"),
    };
}

impl PairReader for Tokenised {
    const HOW: Reading = Reading {
        source: Source::First,
        split: Some(Split::Read),
        max_length: Some(", cut as in a run; no limit when not given."),
        set: Some("dataset.test=FILE"),
    };
}

impl PairReader for Fetched {
    const HOW: Reading = Reading {
        source: Source::First,
        split: None,
        max_length: None,
        set: Some("dataset.oos=org/other:test"),
    };
}

impl Reading {
    /// The name of the pairs on the command line, as errors show it.
    fn source(&self) -> &'static str {
        match self.source {
            Source::Dataset(_) => "--dataset",
            Source::Data => "--data",
            Source::First => "DATA",
        }
    }

    /// The argument that names the pairs.
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

    /// The flags that set a field, besides the one that names the pairs.
    fn flags(&self) -> Vec<Flag> {
        [Some(of_field(DATA_DIR)), self.split(), self.max_length()].into_iter().flatten().collect()
    }
}

const DATA_DIR: &str = "dataset.data_dir";
const COLUMNS: &str = "columns";
const SET: &str = "set";

/// The data flags that were given to the command `C`.
#[derive(Clone, Debug)]
pub struct DataFlags<C> {
    source: Option<String>,
    given: Vec<(Flag, String)>,
    columns: Option<String>,
    /// Assignments to any field.
    pub set: Vec<String>,
    command: PhantomData<C>,
}

impl<C: PairReader> DataFlags<C> {
    /// The text that names the pairs; empty if none was given.
    pub fn source(&self) -> &str {
        self.source.as_deref().unwrap_or_default()
    }

    /// The split that was given.
    pub fn split(&self) -> Option<&str> {
        let path = C::HOW.split()?.path;
        self.given.iter().find(|(flag, _)| flag.path == path).map(|(_, text)| text.as_str())
    }

    /// Adds what was given.
    ///
    /// # Errors
    /// Fails if the columns are not a list of `PART=COLUMN`, or if an assignment is malformed.
    pub fn apply(&self, layers: &mut Layering<'_>) -> Result<()> {
        if let Some(source) = &self.source {
            layers.flag(C::HOW.source(), "dataset", source);
        }
        self.given
            .iter()
            .for_each(|(flag, text)| apply(layers, &format!("--{}", flag.name), flag, text));
        columns(layers, self.columns.as_deref())?;
        self.set.iter().try_for_each(|assignment| layers.set(assignment))
    }
}

impl<C: PairReader> Args for DataFlags<C> {
    fn augment_args(command: Command) -> Command {
        let how = C::HOW;
        let columns =
            Arg::new(COLUMNS).long("columns").value_name("PART=COLUMN").help_heading("Data");
        let set = |example: &str| {
            let set = Arg::new(SET)
                .long("set")
                .value_name("FIELD=VALUE")
                .action(ArgAction::Append)
                .help_heading("Data");
            set.help(format!("Any field of the experiment, as `{example}`; may be given again"))
        };
        command
            .arg(how.source_argument(&of_field("dataset")))
            .arg(argument(&of_field(DATA_DIR)))
            .args(how.split().iter().map(argument))
            .arg(
                columns.help(
                    "Names of a file's columns, as `prompt=question,chosen=best,rejected=worst`",
                ),
            )
            .args(how.max_length().iter().map(argument))
            .args(how.set.map(set))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: PairReader> FromArgMatches for DataFlags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let set =
            C::HOW.set.and_then(|_| matches.get_many(SET)).into_iter().flatten().cloned().collect();
        Ok(Self {
            source: given(matches, &of_field("dataset")),
            given: C::HOW
                .flags()
                .into_iter()
                .filter_map(|flag| given(matches, &flag).map(|text| (flag, text)))
                .collect(),
            columns: matches.get_one(COLUMNS).cloned(),
            set,
            command: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Adds the columns that `--columns` names.
///
/// # Errors
/// Fails if the text is not a list of `PART=COLUMN`, or if a pair does not have such a part.
fn columns(layers: &mut Layering<'_>, text: Option<&str>) -> Result<()> {
    for named in text.into_iter().flat_map(|text| text.split(',')) {
        let wrong = || {
            Error::new(format!("`--columns {named}` names no column"))
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
