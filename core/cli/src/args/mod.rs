//! The command line. There is one file for each command, and one for each group of shared flags.
//!
//! Flags that set a field of the experiment are generated from the field's declaration. Each
//! command lists the groups of flags that it accepts.

mod bench;
mod cache;
mod coefficient;
mod compare;
mod config;
mod data;
mod data_flags;
mod doctor;
mod eval;
mod experiment;
mod export;
mod fields;
mod generate;
pub mod layers;
mod list;
mod model;
mod names;
mod new;
mod plugin;
mod report;
mod reproduce;
mod run;
mod score;
mod selftest;
mod states;
mod sweep;

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use reprpo_core::Result;
use reprpo_core::config::PluginFile;
use reprpo_core::registry::{Kind, Registry};

pub use bench::BenchArgs;
pub use cache::{CacheArgs, CacheCommand, ClearArgs};
pub use compare::{CompareArgs, ComparisonArgs};
pub use config::{ConfigArgs, ConfigCommand, ShowArgs};
pub use data::{DataArgs, DataCommand, FetchDataArgs, InspectArgs, PairsArgs, TokensArgs};
pub use data_flags::PairReader;
pub use doctor::DoctorArgs;
pub use eval::EvalArgs;
pub use experiment::ExperimentArgs;
pub use export::{ExportArgs, ExportDtype};
pub use generate::{ChatArgs, GenerateArgs, GenerationArgs};
pub use list::{ExplainArgs, ListArgs, ListKind};
pub use model::{FetchArgs, ModelArgs, ModelCommand};
use names::Names;
pub use new::NewArgs;
pub use plugin::{CheckArgs, PluginArgs, PluginCommand};
pub use report::ReportArgs;
pub use reproduce::ReproduceArgs;
pub use run::{RunArgs, check_resume};
pub use score::ScoreArgs;
pub use selftest::SelftestArgs;
pub use states::StatesArgs;
pub use sweep::{Launcher, SweepArgs};

/// Train language models from preference pairs through their hidden states and gradients.
#[derive(Parser)]
#[command(
    name = "reprpo",
    version,
    arg_required_else_help = true,
    disable_help_flag = true,
    disable_version_flag = true,
    after_long_help = "\
Exit codes: 0 success, 1 invalid input, 2 usage error or internal error, 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Args)]
pub struct Global {
    /// Plugin library to load; may be repeated. The libraries in the plugin folder are always
    /// loaded.
    #[arg(long, value_name = "FILE", global = true, help_heading = CONFIGURATION)]
    pub plugin: Vec<PathBuf>,
    /// Do not use the network: take models and data sets from the Hugging Face cache. The same as
    /// `HF_HUB_OFFLINE=1`.
    #[arg(long, global = true, help_heading = GENERAL)]
    pub offline: bool,
    /// Print only results and errors.
    #[arg(long, short, global = true, help_heading = GENERAL)]
    pub quiet: bool,
    /// Log more; `-vv` logs everything. `REPRPO_LOG` sets a filter instead.
    #[arg(long, short, action = ArgAction::Count, global = true, help_heading = GENERAL)]
    pub verbose: u8,
    /// When to use colour. `NO_COLOR` is respected.
    #[arg(long, value_enum, default_value_t = Color::Auto, global = true, help_heading = GENERAL)]
    pub color: Color,
}

/// Help heading of the flags that load plugins or set arbitrary fields.
const CONFIGURATION: &str = "Plugins and configuration";
/// Help heading of the flags without a more specific heading.
const GENERAL: &str = "General";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// Use colour only on a terminal.
    Auto,
    /// Use colour even if the output goes to a file or a pipe.
    Always,
    /// Do not use colour.
    Never,
}

/// The commands, in the order in which `--help` lists them.
#[derive(Subcommand)]
pub enum Command {
    // Getting started.
    Doctor(DoctorArgs),
    Selftest(SelftestArgs),
    Bench(Box<BenchArgs>),
    List(ListArgs),
    Explain(ExplainArgs),
    Model(ModelArgs),
    Cache(CacheArgs),
    // Training.
    Run(Box<RunArgs>),
    Sweep(Box<SweepArgs>),
    Reproduce(ReproduceArgs),
    Config(ConfigArgs),
    // Looking at results.
    Compare(CompareArgs),
    Report(ReportArgs),
    Eval(EvalArgs),
    Score(ScoreArgs),
    Generate(GenerateArgs),
    Chat(ChatArgs),
    States(Box<StatesArgs>),
    Export(ExportArgs),
    // Data.
    Data(DataArgs),
    // Extending.
    New(NewArgs),
    Plugin(PluginArgs),
}

impl Cli {
    /// Returns all plugin files to load. They come from `--plugin`, the environment and the
    /// configuration files, and from the runs that the command reads.
    ///
    /// # Errors
    /// Fails if a configuration file cannot be read.
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
                    .chain(args.experiment.fields.config.clone())
                    .collect(),
                &args.experiment.fields.set,
            ),
            Command::Bench(args) => (args.fields.config.clone(), &args.fields.set),
            Command::Sweep(args) => {
                let configs = args.experiment.fields.config.iter().chain(&args.study);
                (configs.cloned().collect(), &args.experiment.fields.set)
            }
            Command::Config(ConfigArgs { command: ConfigCommand::Show(args) }) => {
                (args.experiment.fields.config.clone(), &args.experiment.fields.set)
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
                (args.generation.target.as_deref().and_then(of_run).into_iter().collect(), &[])
            }
            Command::Chat(args) => {
                (args.generation.target.as_deref().and_then(of_run).into_iter().collect(), &[])
            }
            Command::Reproduce(args) => (of_run(&args.run).into_iter().collect(), &[]),
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

/// Builds the command line, with the names of the registered plugins in the help.
pub fn command(registry: &Registry) -> clap::Command {
    let describe = |command: clap::Command, kinds: &[Kind]| {
        kinds.iter().fold(command, |command, kind| {
            command.mut_arg(kind.name(), |arg| arg.value_parser(Names::of(registry, *kind)))
        })
    };
    let recipes = |command: clap::Command| {
        command.mut_arg("recipe", |arg| arg.value_parser(Names::of_recipes(registry)))
    };
    // These flags replace clap's built-in ones, which cannot be listed under a heading.
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::Help)
        .global(true)
        .help("Print help (see more with '--help')")
        .long_help("Print help (see a summary with '-h')")
        .help_heading(GENERAL);
    let version = Arg::new("version")
        .short('V')
        .long("version")
        .action(ArgAction::Version)
        .help("Print version")
        .help_heading(GENERAL);
    Cli::command()
        .args([help, version])
        .mut_subcommand("run", |c| recipes(describe(c, &Kind::ALL)))
        .mut_subcommand("bench", |c| recipes(describe(c, &Kind::ALL)))
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
        assert!(missing.is_empty(), "no command accepts the flags of the fields {missing:?}");
    }
}
