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
            vec![(experiment, length_limit, adapter)]
        }
        _ => args
            .targets
            .iter()
            .map(|folder| target(folder, args, app))
            .collect::<Result<Vec<_>>>()?,
    };
    let stop = interrupt::watch()?;
    let mut found = Vec::with_capacity(targets.len());
    for (experiment, length_limit, adapter) in &targets {
        let evaluation = engine::evaluate(
            experiment,
            length_limit,
            adapter.as_deref(),
            &stop,
            app.printer.progress().as_mut(),
            app,
        )?;
        if !args.json {
            app.printer.data(&evaluation.plain())?;
        }
        found.push(evaluation.json());
    }
    if args.json { app.printer.json(&Value::Array(found)) } else { Ok(()) }
}

/// Finds the adapter in `folder`, the folder of a run or of a PEFT adapter. Returns the experiment,
/// the length limit for the evaluation, and the path of the adapter.
fn target(
    folder: &Path,
    args: &EvalArgs,
    app: &App<'_>,
) -> Result<(Experiment, LengthLimit, Option<PathBuf>)> {
    let trained = TrainedAdapter::find(folder, args.model.get("model"))?;
    let (experiment, length_limit) = resolve(args, app, |layers| trained.apply(layers))?;
    Ok((experiment, length_limit, Some(trained.adapter)))
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
