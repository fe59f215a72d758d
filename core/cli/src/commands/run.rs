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
    let begin = if app.world.is_first() { Some(begin(args, app)?) } else { None };
    let (experiment, start) = match shared(begin, args, app)? {
        Begin::Train(experiment, start) => (*experiment, start),
        Begin::Evaluate(experiment, folder) => {
            let stop = interrupt::watch()?;
            let mut progress = progress(args, app);
            let evaluation =
                run::judge_trained(&experiment, &folder, app.registry, &stop, progress.as_mut())?;
            return result(&folder, Some(evaluation), args, app);
        }
        Begin::Nothing => return Ok(()),
    };
    let stop = interrupt::watch()?;
    let evaluation =
        run::run(&experiment, &start, app.registry, &stop, progress(args, app).as_mut())?;
    result(start.folder(), evaluation, args, app)
}

/// What the command has to do.
enum Begin {
    /// Train, from this start.
    Train(Box<Experiment>, Start),
    /// Evaluate the trained run in this folder.
    Evaluate(Box<Experiment>, PathBuf),
    /// The run is finished, and its result was printed.
    Nothing,
}

fn begin(args: &RunArgs, app: &App<'_>) -> Result<Begin> {
    match &args.resume {
        Some(_) if args.resumes_automatically() => resume_auto(args, app),
        Some(folder) => Ok(resume(recorded(folder, app)?, folder.clone(), args)),
        None => {
            let experiment = args.experiment.resolve(app)?.experiment;
            let out = folder(&experiment)?;
            Ok(Begin::Train(Box::new(experiment), Start::New(out)))
        }
    }
}

fn resume(experiment: Experiment, folder: PathBuf, args: &RunArgs) -> Begin {
    let inexact = args.inexact_resume;
    Begin::Train(Box::new(experiment), Start::Resume { folder, inexact })
}

/// Tells all ranks what rank 0 found, because only rank 0 changes the folder. `begin` is `None` on
/// the other ranks.
fn shared(begin: Option<Begin>, args: &RunArgs, app: &App<'_>) -> Result<Begin> {
    let found = begin.as_ref().and_then(|begin| match begin {
        Begin::Train(_, Start::New(folder)) => Some(("new".to_owned(), folder.clone())),
        Begin::Train(_, Start::Resume { folder, .. }) => {
            Some(("resume".to_owned(), folder.clone()))
        }
        Begin::Evaluate(_, folder) => Some(("evaluate".to_owned(), folder.clone())),
        Begin::Nothing => None,
    });
    let found = app.world.gather(found)?.into_iter().next().flatten();
    if let Some(begin) = begin {
        return Ok(begin);
    }
    let Some((what, folder)) = found else { return Ok(Begin::Nothing) };
    Ok(match what.as_str() {
        "new" => {
            let experiment = args.experiment.resolve(app)?.experiment;
            Begin::Train(Box::new(experiment), Start::New(folder))
        }
        "resume" => resume(recorded(&folder, app)?, folder, args),
        _ => Begin::Evaluate(Box::new(recorded(&folder, app)?), folder),
    })
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

/// Finds out where `--resume auto` continues. If the run is finished, prints its result.
fn resume_auto(args: &RunArgs, app: &App<'_>) -> Result<Begin> {
    let experiment = args.experiment.resolve(app)?.experiment;
    let Some(folder) = experiment.out.clone() else {
        return Err(
            Error::new("`--resume auto` needs the folder of the run").hint("give `--out DIR`")
        );
    };
    let note = |text: &str| app.printer.note(&format!("{text}: `{}`", folder.display()));
    Ok(match Prior::find(&folder, &experiment, app.registry)? {
        Prior::None => Begin::Train(Box::new(experiment), Start::New(folder)),
        Prior::Begun => {
            note("starting over, because the run was stopped before its first checkpoint");
            run::clear(&folder)?;
            Begin::Train(Box::new(experiment), Start::New(folder))
        }
        Prior::Checkpoint(recorded) => {
            note("resuming from the last checkpoint");
            resume(*recorded, folder, args)
        }
        Prior::Trained(recorded) => {
            note("already trained, evaluating it");
            Begin::Evaluate(recorded, folder)
        }
        Prior::Finished(recorded) => {
            note("already finished");
            let evaluation = if recorded.eval.enabled {
                Some(Evaluation::read(&folder.join("eval"))?)
            } else {
                None
            };
            result(&folder, evaluation, args, app)?;
            Begin::Nothing
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
