//! `reprpo run`.

use std::path::{Path, PathBuf};

use reprpo_core::config::Experiment;
use reprpo_core::error::quoted;
use reprpo_core::{Error, Result};
use serde_json::json;

use crate::App;
use crate::args::RunArgs;
use crate::engine::{self, Start};
use crate::interrupt;

pub fn run(args: &RunArgs, app: &App<'_>) -> Result<()> {
    let (experiment, start) = match &args.resume {
        Some(folder) => (recorded(folder, app)?, Start::Resume(folder.clone())),
        None => {
            let experiment = args.experiment.resolve(app)?.experiment;
            let out = folder(&experiment)?;
            (experiment, Start::New(out))
        }
    };
    let stop = interrupt::watch()?;
    let evaluation = engine::run(&experiment, &start, &stop, app.printer.progress().as_mut(), app)?;
    app.printer.note(&format!("the run is in `{}`", start.folder().display()));
    match (evaluation, args.json) {
        (Some(evaluation), true) => {
            let mut json = evaluation.json();
            json["run"] = json!(start.folder());
            app.printer.json(&json)
        }
        (None, true) => app.printer.json(&json!({ "run": start.folder() })),
        (Some(evaluation), false) => app.printer.data(&evaluation.plain()),
        (None, false) => Ok(()),
    }
}

/// The experiment of the run in `folder`.
fn recorded(folder: &Path, app: &App<'_>) -> Result<Experiment> {
    let config = folder.join("config.toml");
    if !config.is_file() {
        return Err(Error::new(format!("there is no run in `{}`: it holds no `config.toml`", folder.display()))
            .hint("give the folder that `reprpo run` made, as `--resume runs/NAME`"));
    }
    Experiment::read(&config, app.registry)
}

/// Where the run goes: what the user said, or the first free name below `runs/`.
fn folder(experiment: &Experiment) -> Result<PathBuf> {
    match &experiment.out {
        Some(out) if out.exists() => Err(Error::new(format!("`{}` exists already", out.display()))
            .hint(format!("give another `--out`, remove it, or go on with the run in it by `--resume {}`", quoted(out)))),
        Some(out) => Ok(out.clone()),
        None => {
            let stem = format!("{}-{}-{}", experiment.intervention.name, experiment.adapter.name, experiment.dataset.name);
            let names = (1u32..).map(|n| Path::new("runs").join(format!("{stem}-{n}")));
            names.into_iter().find(|p| !p.exists()).ok_or_else(|| Error::internal("every name below `runs` is taken"))
        }
    }
}
