//! The command line: one file for each command, and one for each group of flags that several
//! commands share.
//!
//! A flag that sets a field of the experiment is declared by the field, and a command chooses the
//! groups that it takes.

mod config;
mod data;
mod data_flags;
mod doctor;
mod eval;
mod experiment;
mod export;
mod fields;
pub mod layers;
mod list;
mod model;
mod names;
mod new;
mod plugin;
mod run;
mod score;
mod selftest;
mod speak;
mod states;
mod sweep;

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use reprpo_core::Result;
use reprpo_core::config::PluginFile;
use reprpo_core::registry::{Kind, Registry};

pub use config::{ConfigArgs, ConfigCommand, ShowArgs};
pub use data::{DataArgs, DataCommand, FetchDataArgs, InspectArgs, PairsArgs, TokensArgs};
pub use data_flags::PairReader;
pub use doctor::DoctorArgs;
pub use eval::EvalArgs;
pub use experiment::ExperimentArgs;
pub use export::{ExportArgs, Written};
pub use list::{ExplainArgs, ListArgs, Listed};
pub use model::{FetchArgs, ModelArgs, ModelCommand};
use names::Names;
pub use new::NewArgs;
pub use plugin::{CheckArgs, PluginArgs, PluginCommand};
pub use run::{RunArgs, check_resume};
pub use score::ScoreArgs;
pub use selftest::SelftestArgs;
pub use speak::{ChatArgs, GenerateArgs, SpeakerArgs};
pub use states::StatesArgs;
pub use sweep::SweepArgs;

/// Align what a language model represents: preference pairs train an adapter through its hidden
/// states and gradients.
#[derive(Parser)]
#[command(
    name = "reprpo",
    version,
    arg_required_else_help = true,
    after_long_help = "\
Exit codes: 0 done, 1 something in what you gave, 2 usage or a defect, 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// Say nothing but results and errors.
    #[arg(long, short, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Log more; twice for everything. `REPRPO_LOG` takes a filter.
    #[arg(long, short, action = ArgAction::Count, global = true, help_heading = "Output")]
    pub verbose: u8,
    /// A plugin's library to load; may be given again. Those in the plugin folder are there without
    /// it.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Plugins")]
    pub plugin: Vec<PathBuf>,
    /// Fetch nothing: models and data of the hub are taken from its cache. `HF_HUB_OFFLINE=1` says
    /// the same.
    #[arg(long, global = true, help_heading = "Hub")]
    pub offline: bool,
    /// Colour the output; `NO_COLOR` is respected.
    #[arg(long, value_enum, default_value_t = Color::Auto, global = true, help_heading = "Output")]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    Always,
    Never,
}

#[derive(Subcommand)]
pub enum Command {
    Run(Box<RunArgs>),
    Sweep(Box<SweepArgs>),
    Eval(EvalArgs),
    Score(ScoreArgs),
    Export(ExportArgs),
    States(Box<StatesArgs>),
    Generate(GenerateArgs),
    Chat(ChatArgs),
    List(ListArgs),
    Explain(ExplainArgs),
    Config(ConfigArgs),
    Data(DataArgs),
    Model(ModelArgs),
    New(NewArgs),
    Plugin(PluginArgs),
    Doctor(DoctorArgs),
    Selftest(SelftestArgs),
}

impl Cli {
    /// The plugin files that flags, configuration files and the environment name, and those of the
    /// runs that are given.
    ///
    /// # Errors
    /// A configuration file that cannot be read.
    pub fn plugins(&self) -> Result<Vec<PluginFile>> {
        let mut files: Vec<PluginFile> = self.global.plugin.iter().map(PluginFile::at).collect();
        if let Ok(text) = std::env::var("REPRPO_PLUGINS") {
            files.extend(PluginFile::in_text(&text));
        }
        let of_run =
            |folder: &Path| Some(folder.join("config.toml")).filter(|config| config.is_file());
        let (configs, sets): (Vec<PathBuf>, &[String]) = match &self.command {
            Command::Run(args) => (
                args.resume
                    .as_deref()
                    .filter(|_| !args.resumes_automatically())
                    .and_then(of_run)
                    .into_iter()
                    .chain(args.experiment.config.clone())
                    .collect(),
                &args.experiment.set,
            ),
            Command::Sweep(args) => (args.experiment.config.clone(), &args.experiment.set),
            Command::Config(ConfigArgs { command: ConfigCommand::Show(args) }) => {
                (args.experiment.config.clone(), &args.experiment.set)
            }
            Command::Data(DataArgs { command: DataCommand::Inspect(args) }) => {
                (Vec::new(), &args.pairs.data.set)
            }
            Command::Data(DataArgs { command: DataCommand::Tokens(args) }) => {
                (Vec::new(), &args.pairs.data.set)
            }
            Command::Data(DataArgs { command: DataCommand::Fetch(args) }) => {
                (Vec::new(), &args.data.set)
            }
            Command::Score(args) => (Vec::new(), &args.data.set),
            Command::States(args) => {
                (args.target.as_deref().and_then(of_run).into_iter().collect(), &args.data.set)
            }
            Command::Generate(args) => {
                (args.speaker.target.as_deref().and_then(of_run).into_iter().collect(), &[])
            }
            Command::Chat(args) => {
                (args.speaker.target.as_deref().and_then(of_run).into_iter().collect(), &[])
            }
            Command::Export(args) => (of_run(&args.target).into_iter().collect(), &[]),
            Command::Eval(args) => {
                (args.targets.iter().filter_map(|target| of_run(target)).collect(), &args.data.set)
            }
            _ => (Vec::new(), &[]),
        };
        for config in configs {
            files.extend(PluginFile::in_file(&config)?);
        }
        files.extend(
            sets.iter()
                .filter_map(|set| set.split_once('='))
                .filter(|(field, _)| field.trim() == "plugins")
                .flat_map(|(_, v)| PluginFile::in_text(v)),
        );
        Ok(files)
    }
}

/// The command, with the names of the registered plugins in its help.
pub fn command(registry: &Registry) -> clap::Command {
    let describe = |command: clap::Command, kinds: &[Kind]| {
        kinds.iter().fold(command, |command, kind| {
            command.mut_arg(kind.name(), |arg| arg.value_parser(Names::of(registry, *kind)))
        })
    };
    let recipes = |command: clap::Command| {
        command.mut_arg("recipe", |arg| arg.value_parser(Names::of_recipes(registry)))
    };
    Cli::command()
        .mut_subcommand("run", |c| recipes(describe(c, &Kind::ALL)))
        .mut_subcommand("sweep", |c| recipes(describe(c, &Kind::ALL)))
        .mut_subcommand("config", |c| {
            c.mut_subcommand("show", |c| recipes(describe(c, &Kind::ALL)))
        })
        .mut_subcommand("eval", |c| describe(c, &[Kind::Dataset]))
        .mut_subcommand("states", |c| describe(c, &[Kind::Tap, Kind::Dataset]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command(&Registry::builtin().expect("plugins")).debug_assert();
    }

    #[test]
    fn every_flag_that_a_field_declares_belongs_to_a_command() {
        let registry = Registry::builtin().expect("plugins");
        let command = command(&registry);
        let taken: Vec<String> = command
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
            .map(|arg| arg.get_id().to_string())
            .collect();
        let flags = reprpo_core::config::flags();
        let missing: Vec<&String> =
            flags.iter().map(|flag| &flag.path).filter(|path| !taken.contains(path)).collect();
        assert!(missing.is_empty(), "no command takes the flags of {missing:?}");
    }
}
