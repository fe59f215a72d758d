//! `reprpo reproduce`.

use std::path::{Path, PathBuf};

use reprpo_core::config::Experiment;
use reprpo_core::results::Reproduction;
use reprpo_core::run::{self, Start};
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::ReproduceArgs;
use crate::interrupt;

pub fn run(args: &ReproduceArgs, app: &App<'_>) -> Result<()> {
    if let Some(tolerance) = args.tolerance.filter(|t| !(*t >= 0.0 && t.is_finite())) {
        return Err(Error::new(format!("`--tolerance` must be at least 0, got {tolerance}")));
    }
    let config = args.run.join("config.toml");
    if !config.is_file() {
        return Err(Error::new(format!(
            "there is no run in `{}`, because the folder has no `config.toml`",
            args.run.display()
        ))
        .hint("give a folder that `reprpo run` wrote"));
    }
    if !args.run.join("adapter").join("adapter_config.json").is_file() {
        return Err(Error::new(format!("the run in `{}` is not finished", args.run.display()))
            .hint(format!("finish it with `reprpo run --resume {}`", args.run.display())));
    }
    // The experiment remembers the recorded fingerprints of the model and the data, and the run
    // compares them before it starts.
    let experiment = Experiment::read(&config, app.registry)?;
    let out = args.out.clone().map_or_else(|| unused(&args.run), Ok)?;
    let stop = interrupt::watch()?;
    let start = Start::New(out.clone());
    run::run(&experiment, &start, app.registry, &stop, app.printer.progress().as_mut())?;
    let found = Reproduction::between(&args.run, &out)?;
    app.printer.note(&format!("the repetition is in `{}`", out.display()));
    if args.json {
        let json = serde_json::to_value(&found).map_err(|e| Error::internal(e.to_string()))?;
        app.printer.json(&json)?;
    } else {
        app.printer.data(&found.plain())?;
    }
    match args.tolerance {
        _ if found.identical => Ok(()),
        Some(tolerance) if found.is_within(tolerance) => {
            app.printer.note(&format!("all differences are within {tolerance}"));
            Ok(())
        }
        Some(tolerance) => {
            Err(Error::new(format!("the repetition differs from the run by more than {tolerance}")))
        }
        None => Err(Error::new("the repetition is not identical to the run")
            .hint("allow differences with `--tolerance`, e.g. `--tolerance 1e-3`")),
    }
}

/// The first unused folder name of the form `RUN-again-1`.
fn unused(run: &Path) -> Result<PathBuf> {
    let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut names = (1u32..).map(|n| run.with_file_name(format!("{name}-again-{n}")));
    names.find(|p| !p.exists()).ok_or_else(|| Error::internal("there is no unused folder name"))
}
