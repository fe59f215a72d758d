//! `cargo xtask`: makes a fresh machine ready, then runs what the README promises.
//!
//! It runs before libtorch is there, so it may not depend on tch nor on any crate of this workspace
//! that does.

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
mod run;
#[path = "../../libtorch_version.rs"]
mod version;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::package::PackageOptions;
use crate::package::link::{self, Link};
use crate::platform::Variant;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Sets a machine up, runs the demo or the tests, and builds packages"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch libtorch and tell cargo where it lies; does nothing when all is there
    Setup(Options),
    /// Fetch a model
    Model(OfModel),
    /// Set up, then train and evaluate on the synthetic shift; arguments after `--` go to
    /// `reprpo run`
    Demo(WithArgs),
    /// Set up, then run every test of the workspace; arguments after `--` go to `cargo test`
    Test(WithArgs),
    /// Build the Python wheel, which `pip install` puts next to torch
    Wheel(PackageOptions),
    /// Build the tarball, which runs with the libtorch of a Python or of `LIBTORCH`
    Dist(PackageOptions),
    /// Link the binary of a package; rustc calls it as its linker
    #[command(hide = true)]
    Link(Link),
}

#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Take the libtorch without CUDA, also where there is a GPU
    #[arg(long, conflicts_with = "cuda")]
    cpu: bool,
    /// Take the libtorch with CUDA (2.5 GB), also where no driver is found
    #[arg(long)]
    cuda: bool,
    /// Keep the downloaded wheels after unpacking them
    #[arg(long)]
    keep_downloads: bool,
}

impl Options {
    /// The variant that was asked for, if one was.
    fn variant(&self) -> Option<Variant> {
        match (self.cpu, self.cuda) {
            (true, _) => Some(Variant::Cpu),
            (_, true) => Some(Variant::Cuda),
            _ => None,
        }
    }
}

#[derive(Args)]
struct OfModel {
    /// Which one
    #[arg(value_parser = model::names(), default_value = model::default().name)]
    model: String,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct WithArgs {
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
        Command::Model(OfModel { model, options }) => {
            model::set_up(model::named(&model), &options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(with) => run::demo(&with.options, &with.args),
        Command::Test(with) => run::test(&with.options, &with.args),
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
        let Command::Demo(with) = cli.command else { panic!("not the demo") };
        assert_eq!(with.options.variant(), Some(Variant::Cpu));
        assert_eq!(with.args, ["--seed", "3"]);
    }

    #[test]
    fn a_model_that_there_is_not_is_refused() {
        assert!(Cli::try_parse_from(["xtask", "model", "gemma3-270m"]).is_ok());
        assert!(Cli::try_parse_from(["xtask", "model", "gemma4"]).is_err());
    }

    #[test]
    fn cpu_and_cuda_exclude_each_other() {
        assert!(Cli::try_parse_from(["xtask", "setup", "--cpu", "--cuda"]).is_err());
    }
}
