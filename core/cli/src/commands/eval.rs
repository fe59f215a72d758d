//! `reprpo eval`.

use std::path::{Path, PathBuf};

use reprpo_core::Result;
use reprpo_core::config::{Experiment, Layering};
use serde_json::Value;

use crate::App;
use crate::args::{EvalArgs, layers};
use crate::engine::{self, Longest};
use crate::interrupt;
use crate::trained::Trained;

pub fn run(args: &EvalArgs, app: &App<'_>) -> Result<()> {
    // All of them are understood before the first one is computed.
    let targets = match args.targets[..] {
        [] => {
            let (experiment, longest) = resolve(args, app, |layers| {
                layers.start_from_adapter();
                Ok(())
            })?;
            let adapter = experiment.init_adapter.clone();
            vec![(experiment, longest, adapter)]
        }
        _ => args
            .targets
            .iter()
            .map(|folder| target(folder, args, app))
            .collect::<Result<Vec<_>>>()?,
    };
    let stop = interrupt::watch()?;
    let mut found = Vec::with_capacity(targets.len());
    for (experiment, longest, adapter) in &targets {
        let evaluation = engine::evaluate(
            experiment,
            longest,
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

/// What stands in `folder`: a run with its configuration, or an adapter that names its model.
fn target(
    folder: &Path,
    args: &EvalArgs,
    app: &App<'_>,
) -> Result<(Experiment, Longest, Option<PathBuf>)> {
    let trained = Trained::find(folder, args.model.get("model"))?;
    let (experiment, longest) = resolve(args, app, |layers| trained.apply(layers))?;
    Ok((experiment, longest, Some(trained.adapter)))
}

fn resolve(
    args: &EvalArgs,
    app: &App<'_>,
    target: impl FnOnce(&mut Layering<'_>) -> Result<()>,
) -> Result<(Experiment, Longest)> {
    let mut layers = layers::defaults(app)?;
    target(&mut layers)?;
    layers::environment(&mut layers);
    args.model.apply(&mut layers);
    args.data.apply(&mut layers)?;
    let resolved = layers.resolve()?;
    let longest = Longest::of(&resolved);
    Ok((resolved.experiment, longest))
}
