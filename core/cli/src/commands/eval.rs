//! `reprpo eval`.

use std::path::{Path, PathBuf};

use reprpo_core::config::{Experiment, Layering};
use reprpo_core::eval::Evaluation;
use reprpo_core::model::check_coefficient;
use reprpo_core::run::AdapterChoice;
use reprpo_core::{Context, Result};
use serde_json::Value;

use crate::App;
use crate::args::{EvalArgs, layers};
use crate::engine::{self, LengthLimit, SavedAdapter};
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
    if !args.coefficient.is_empty() {
        targets.iter().try_for_each(|target| target.check_coefficients(&args.coefficient, app))?;
    }
    let stop = interrupt::watch()?;
    let (mut found, mut gap) = (Vec::new(), "");
    for target in &targets {
        let adapter = target.adapter.as_deref().map(|folder| SavedAdapter {
            folder,
            coefficients: &args.coefficient,
            trained: target.trained.as_ref(),
        });
        let mut show = |coefficient: Option<f64>, evaluation: &Evaluation| {
            if args.json {
                let mut json = evaluation.json();
                json["coefficient"] = coefficient.into();
                found.push(json);
                return Ok(());
            }
            let text = if args.long { evaluation.plain_with_details() } else { evaluation.plain() };
            // An empty line separates the tables.
            app.printer.data(&format!("{}{text}", std::mem::replace(&mut gap, "\n")))
        };
        engine::evaluate(
            &target.experiment,
            &target.length_limit,
            adapter,
            &stop,
            app.printer.progress().as_mut(),
            app,
            &mut show,
        )?;
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

impl Target {
    /// Checks that the adapter accepts the coefficients.
    fn check_coefficients(&self, coefficients: &[f64], app: &App<'_>) -> Result<()> {
        let Some(folder) = &self.adapter else { return Ok(()) };
        let saved = AdapterChoice::saved(folder, &self.experiment, app.registry)?;
        coefficients.iter().try_for_each(|c| {
            check_coefficient(saved.adapter.as_ref(), *c)
                .within(|| format!("cannot evaluate `{}`", folder.display()))
        })
    }
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
