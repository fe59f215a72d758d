//! `reprpo eval`.

use std::path::{Path, PathBuf};

use reprpo_core::Result;
use reprpo_core::config::{Experiment, Layering};
use serde_json::Value;

use crate::App;
use crate::args::{EvalArgs, layers};
use crate::engine::{self, LengthLimit};
use crate::interrupt;
use crate::trained::TrainedAdapter;

pub fn run(args: &EvalArgs, app: &App<'_>) -> Result<()> {
    // Resolve every target before evaluating the first one, so that a mistake in the last target
    // is reported immediately.
    let targets = match args.targets[..] {
        [] => {
            let (experiment, length_limit) = resolve(args, app, |layers| {
                layers.start_from_adapter();
                Ok(())
            })?;
            let adapter = experiment.init_adapter.clone();
            vec![Target { experiment, length_limit, adapter, trained: None }]
        }
        _ => args
            .targets
            .iter()
            .map(|folder| target(folder, args, app))
            .collect::<Result<Vec<_>>>()?,
    };
    let stop = interrupt::watch()?;
    let mut found = Vec::with_capacity(targets.len());
    for target in &targets {
        let evaluation = engine::evaluate(
            &target.experiment,
            &target.length_limit,
            target.adapter.as_deref(),
            target.trained.as_ref(),
            &stop,
            app.printer.progress().as_mut(),
            app,
        )?;
        if !args.json {
            let text = if args.long { evaluation.plain_with_details() } else { evaluation.plain() };
            app.printer.data(&text)?;
        }
        found.push(evaluation.json());
    }
    if args.json { app.printer.json(&Value::Array(found)) } else { Ok(()) }
}

/// What to evaluate.
struct Target {
    experiment: Experiment,
    length_limit: LengthLimit,
    /// Folder of the adapter; `None` to evaluate the base model only.
    adapter: Option<PathBuf>,
    /// The experiment of the run that trained the adapter, without the settings of this command.
    /// `None` if it is not known.
    trained: Option<Experiment>,
}

/// Finds the adapter in `folder`, the folder of a run or of a PEFT adapter.
fn target(folder: &Path, args: &EvalArgs, app: &App<'_>) -> Result<Target> {
    let adapter = TrainedAdapter::find(folder, args.model.get("model"))?;
    let (experiment, length_limit) = resolve(args, app, |layers| adapter.apply(layers))?;
    let trained = if adapter.is_run() {
        let mut layers = layers::defaults(app)?;
        adapter.apply(&mut layers)?;
        // The run's own data may be missing if other data is evaluated.
        layers.resolve().ok().map(|resolved| resolved.experiment)
    } else {
        None
    };
    Ok(Target { experiment, length_limit, adapter: Some(adapter.adapter), trained })
}

fn resolve(
    args: &EvalArgs,
    app: &App<'_>,
    target: impl FnOnce(&mut Layering<'_>) -> Result<()>,
) -> Result<(Experiment, LengthLimit)> {
    let mut layers = layers::defaults(app)?;
    target(&mut layers)?;
    layers::environment(&mut layers);
    args.model.apply(&mut layers);
    args.data.apply(&mut layers)?;
    args.cache.apply(&mut layers);
    let resolved = layers.resolve()?;
    let length_limit = LengthLimit::of(&resolved);
    Ok((resolved.experiment, length_limit))
}
