//! `cargo xtask`: sets up the build environment, runs the demo or the tests, and builds packages.
//!
//! It runs before libtorch is installed. Therefore, it must not depend on tch, either directly or
//! through another crate of this workspace.

mod bench_peer;
mod compiler;
mod config;
mod failure;
mod libtorch;
mod model;
mod package;
mod paths;
mod pins;
mod platform;
mod progress;
mod prose;
mod run;
#[path = "../../libtorch_version.rs"]
mod version;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::bench_peer::BenchPeer;
use crate::package::PackageOptions;
use crate::package::link::{self, Link};
use crate::platform::Variant;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Sets up the build environment, runs the demo or the tests, and builds packages"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download libtorch and configure cargo to use it; does nothing if this was done before
    Setup(Options),
    /// Download a model
    Model(ModelArgs),
    /// Set up libtorch, then train and evaluate on the data set `synthetic`; arguments after `--`
    /// are passed to `reprpo run`
    Demo(PassedArgs),
    /// Set up libtorch, then run all tests of the workspace; arguments after `--` are passed to
    /// `cargo test`
    Test(PassedArgs),
    /// Compare the speed of training with TRL and PEFT
    BenchPeer(Box<BenchPeer>),
    /// Search comments, strings and Markdown for violations of the style guide
    Prose,
    /// Build the Python wheel, which depends on the torch package
    Wheel(PackageOptions),
    /// Build the tarball; its binary uses libtorch from a torch package or from `LIBTORCH`
    Dist(PackageOptions),
    /// Link the packaged binary; rustc calls this command as its linker
    #[command(hide = true)]
    Link(Link),
}

/// Flags that choose the libtorch to set up.
#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Use the CPU-only build of libtorch, even if there is a GPU
    #[arg(long, conflicts_with = "cuda")]
    cpu: bool,
    /// Use the CUDA build of libtorch (2.5 GB), even if no driver is found
    #[arg(long)]
    cuda: bool,
    /// Keep the downloaded wheels after unpacking them
    #[arg(long)]
    keep_downloads: bool,
}

impl Options {
    /// The variant of libtorch that the flags request, if any.
    fn variant(&self) -> Option<Variant> {
        match (self.cpu, self.cuda) {
            (true, _) => Some(Variant::Cpu),
            (_, true) => Some(Variant::Cuda),
            _ => None,
        }
    }
}

#[derive(Args)]
struct ModelArgs {
    /// Name of the model
    #[arg(value_parser = model::names(), default_value = model::default().name)]
    model: String,
    #[command(flatten)]
    options: Options,
}

/// Setup options, and arguments for `reprpo run` or `cargo test`.
#[derive(Args)]
struct PassedArgs {
    #[command(flatten)]
    options: Options,
    #[arg(last = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    let started = Instant::now();
    let command = Cli::parse().command;
    let timed = !matches!(command, Command::Link(_));
    let result = dispatch(command);
    let status = match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    };
    if timed {
        progress::line(&format!("total time: {}", progress::duration(started.elapsed())));
    }
    status
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup(options) => {
            libtorch::set_up(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Model(ModelArgs { model, options }) => {
            model::set_up(model::named(&model), &options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(passed) => run::demo(&passed.options, &passed.args),
        Command::Test(passed) => run::test(&passed.options, &passed.args),
        Command::BenchPeer(args) => bench_peer::run(&args),
        Command::Prose => prose::run(),
        Command::Wheel(options) => package::wheel(&options).map(|()| ExitCode::SUCCESS),
        Command::Dist(options) => package::dist(&options).map(|()| ExitCode::SUCCESS),
        Command::Link(link) => link::run(&link),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_after_the_dashes_are_passed_on() {
        let cli = Cli::parse_from(["xtask", "demo", "--cpu", "--", "--seed", "3"]);
        let Command::Demo(passed) = cli.command else { panic!("not the demo") };
        assert_eq!(passed.options.variant(), Some(Variant::Cpu));
        assert_eq!(passed.args, ["--seed", "3"]);
    }

    #[test]
    fn an_unknown_model_is_an_error() {
        assert!(Cli::try_parse_from(["xtask", "model", "gemma3-270m"]).is_ok());
        assert!(Cli::try_parse_from(["xtask", "model", "gemma4"]).is_err());
    }

    #[test]
    fn cpu_and_cuda_exclude_each_other() {
        assert!(Cli::try_parse_from(["xtask", "setup", "--cpu", "--cuda"]).is_err());
    }
}
