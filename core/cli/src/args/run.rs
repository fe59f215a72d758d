//! Arguments of `reprpo run`.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};

use super::ExperimentArgs;

/// Train an adapter on preference pairs and compare the result with the base model.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo run
  reprpo run --set train.max_pairs=64 --set eval.max_pairs=20
  reprpo run --intervention prefvec --adapter hra --dataset genies:math --data-dir DATA
  reprpo run --dataset pairs.jsonl --model ./my-model --set train.lr=3e-5 --set train.epochs=2
  reprpo run --config experiment.toml --out runs/mine --seed 1
  reprpo run --dataset genies:math --data-dir DATA --suite genies-probing
  reprpo run --intervention prefvec --set intervention.direction=random
  reprpo run --recipe reprpo_hra --dataset genies:math --data-dir DATA
  reprpo run --resume runs/dpo-lora-synthetic-1
  reprpo run --resume auto --out runs/mine --dataset pairs.jsonl --set train.checkpoint_every=50

`reprpo explain NAME` lists the fields of a plugin, which `--set` can change. `reprpo config show`
prints the resulting configuration.")]
pub struct RunArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Resume the run in DIR from its last checkpoint. With `auto`, the same command starts the run
    /// in `--out` or resumes it, so that a requeued job can use the same script.
    #[arg(long, value_name = "DIR|auto", help_heading = "Training")]
    pub resume: Option<PathBuf>,
    /// Resume even if the data, the model, the tokenizer or the configuration changed since the
    /// checkpoint. The result may then differ from that of an uninterrupted run.
    #[arg(long, requires = "resume", help_heading = "Training")]
    pub inexact_resume: bool,
    /// Write the progress as JSON lines to stdout, and stop when stdin is closed. Only for the
    /// processes that `reprpo sweep --jobs` starts.
    #[arg(long, value_name = "DIR", hide = true)]
    pub worker: Option<PathBuf>,
    /// Print the result as JSON, including the folder of the run.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

impl RunArgs {
    /// True for `--resume auto`. The experiment then comes from the command line, and the progress
    /// from the `--out` folder.
    pub fn resumes_automatically(&self) -> bool {
        self.resume.as_deref() == Some(Path::new(AUTO))
    }
}

/// The value of `--resume` that stands for the folder given by `--out`.
const AUTO: &str = "auto";

/// Rejects `--resume DIR` together with flags that configure the experiment. The run in DIR already
/// has a configuration.
///
/// # Errors
/// Fails if `--resume DIR` is combined with a flag that sets a field of the experiment.
pub fn check_resume(
    matches: &ArgMatches,
    command: impl FnOnce() -> Command,
) -> Result<(), clap::Error> {
    let Some(run) = matches.subcommand_matches("run") else { return Ok(()) };
    if run.get_one::<PathBuf>("resume").is_none_or(|folder| folder == Path::new(AUTO)) {
        return Ok(());
    }
    // Collect all flags of the experiment here. clap's group for `ExperimentArgs` omits the flags
    // of flattened structs.
    let experiment = ExperimentArgs::augment_args(Command::new("experiment"));
    let given = |arg: &&clap::Arg| {
        run.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    let Some(flag) = experiment.get_arguments().find(given).and_then(clap::Arg::get_long) else {
        return Ok(());
    };
    let text = format!(
        "the argument '--resume <DIR>' cannot be used with '--{flag}': the run in the folder has \
            its own configuration; only '--resume auto' can be combined with such flags"
    );
    let mut command = command();
    // Build the command, so that the error shows the usage of `run`, as clap's own errors do.
    command.build();
    Err(command.find_subcommand_mut("run").map_or_else(
        || clap::Error::new(ErrorKind::ArgumentConflict),
        |run| run.error(ErrorKind::ArgumentConflict, text),
    ))
}
