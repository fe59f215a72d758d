//! `reprpo run`.

use std::path::{Path, PathBuf};

use reprpo_core::config::Experiment;
use reprpo_core::error::quoted;
use reprpo_core::eval::Evaluation;
use reprpo_core::report::Progress;
use reprpo_core::run::{self, Prior, Start};
use reprpo_core::study::lock_as_worker;
use reprpo_core::{Error, Result};
use serde_json::json;

use crate::App;
use crate::args::RunArgs;
use crate::{interrupt, worker};

pub fn run(args: &RunArgs, app: &App<'_>) -> Result<()> {
    let _lock = match &args.worker {
        None => None,
        Some(study) => {
            let lock = lock_as_worker(study)?;
            worker::stop_with_stdin(interrupt::watch()?)?;
            Some(lock)
        }
    };
    let inexact = args.inexact_resume;
    let (experiment, start) = match &args.resume {
        Some(_) if args.resumes_automatically() => match resume_auto(args, app)? {
            Some(begin) => begin,
            None => return Ok(()),
        },
        Some(folder) => (recorded(folder, app)?, Start::Resume { folder: folder.clone(), inexact }),
        None => {
            let experiment = args.experiment.resolve(app)?.experiment;
            let out = folder(&experiment)?;
            (experiment, Start::New(out))
        }
    };
    let stop = interrupt::watch()?;
    let evaluation =
        run::run(&experiment, &start, app.registry, &stop, progress(args, app).as_mut())?;
    result(start.folder(), evaluation, args, app)
}

fn progress(args: &RunArgs, app: &App<'_>) -> Box<dyn Progress> {
    if args.worker.is_some() {
        Box::new(worker::Reports::default())
    } else {
        app.printer.progress()
    }
}

/// Prints the result of the run in `folder`.
fn result(
    folder: &Path,
    evaluation: Option<Evaluation>,
    args: &RunArgs,
    app: &App<'_>,
) -> Result<()> {
    if args.worker.is_some() {
        return Ok(());
    }
    app.printer.note(&format!("the run is in `{}`", folder.display()));
    match (evaluation, args.json) {
        (Some(evaluation), true) => {
            let mut json = evaluation.json();
            json["run"] = json!(folder);
            app.printer.json(&json)
        }
        (None, true) => app.printer.json(&json!({ "run": folder })),
        (Some(evaluation), false) => app.printer.data(&evaluation.plain()),
        (None, false) => Ok(()),
    }
}

/// Returns the experiment for `--resume auto`, and the point at which to continue. If training is
/// already complete, evaluates the run if needed, prints the result and returns `None`.
fn resume_auto(args: &RunArgs, app: &App<'_>) -> Result<Option<(Experiment, Start)>> {
    let experiment = args.experiment.resolve(app)?.experiment;
    let Some(folder) = experiment.out.clone() else {
        return Err(
            Error::new("`--resume auto` needs the folder of the run").hint("give `--out DIR`")
        );
    };
    let note = |text: &str| app.printer.note(&format!("{text}: `{}`", folder.display()));
    Ok(match Prior::find(&folder, &experiment, app.registry)? {
        Prior::None => Some((experiment, Start::New(folder))),
        Prior::Begun => {
            note("starting over, because the run was stopped before its first checkpoint");
            run::clear(&folder)?;
            Some((experiment, Start::New(folder)))
        }
        Prior::Checkpoint(recorded) => {
            note("resuming from the last checkpoint");
            Some((*recorded, Start::Resume { folder, inexact: args.inexact_resume }))
        }
        Prior::Trained(recorded) => {
            note("already trained, evaluating it");
            let stop = interrupt::watch()?;
            let evaluation = run::judge_trained(
                &recorded,
                &folder,
                app.registry,
                &stop,
                progress(args, app).as_mut(),
            )?;
            result(&folder, Some(evaluation), args, app)?;
            None
        }
        Prior::Finished(recorded) => {
            note("already finished");
            let evaluation = if recorded.eval.enabled {
                Some(Evaluation::read(&folder.join("eval"))?)
            } else {
                None
            };
            result(&folder, evaluation, args, app)?;
            None
        }
    })
}

/// Reads the experiment from the `config.toml` of the run in `folder`.
fn recorded(folder: &Path, app: &App<'_>) -> Result<Experiment> {
    let config = folder.join("config.toml");
    if !config.is_file() {
        return Err(Error::new(format!(
            "there is no run in `{}`, because the folder has no `config.toml`",
            folder.display()
        ))
        .hint("give a folder that `reprpo run` wrote, e.g. `--resume runs/NAME`"));
    }
    Experiment::read(&config, app.registry)
}

/// Returns the folder for a new run: `--out`, or an unused folder in `runs/` by default.
fn folder(experiment: &Experiment) -> Result<PathBuf> {
    match &experiment.out {
        Some(out) if out.exists() => Err(Error::new(format!("`{}` already exists", out.display()))
            .hint(format!(
                "choose a different `--out`, remove the folder, or resume the run in it with \
                    `--resume {}`",
                quoted(out)
            ))),
        Some(out) => Ok(out.clone()),
        None => {
            let stem = format!(
                "{}-{}-{}",
                experiment.intervention.name, experiment.adapter.name, experiment.dataset.name
            );
            let names = (1u32..).map(|n| Path::new("runs").join(format!("{stem}-{n}")));
            names
                .into_iter()
                .find(|p| !p.exists())
                .ok_or_else(|| Error::internal("there is no unused folder name in `runs`"))
        }
    }
}
