//! `reprpo states`.

use reprpo_core::eval;
use reprpo_core::run::{AdapterChoice, StatesSource, StatesSpec, attach_saved, write_states};
use reprpo_core::session::Session;
use reprpo_core::{Error, Result};
use serde_json::{json, to_value};

use crate::App;
use crate::args::{StatesArgs, layers};
use crate::engine::{self, LengthLimit};
use crate::interrupt;
use crate::trained::TrainedAdapter;

pub fn run(args: &StatesArgs, app: &App<'_>) -> Result<()> {
    if !(args.shard > 0.0 && args.shard.is_finite()) {
        return Err(Error::new(format!("`--shard` must be greater than 0, got {}", args.shard))
            .hint("give the maximum file size in gigabytes, e.g. `--shard 2`"));
    }
    let trained = args
        .target
        .as_deref()
        .map(|folder| TrainedAdapter::find(folder, args.model.get("model")))
        .transpose()?;
    let mut layers = layers::defaults(app)?;
    if let Some(trained) = &trained {
        trained.apply(&mut layers)?;
    }
    layers::environment(&mut layers);
    args.model.apply(&mut layers);
    args.tap.apply(&mut layers);
    args.data.apply(&mut layers)?;
    let resolved = layers.resolve()?;
    let (mut experiment, limit) = LengthLimit::of(&resolved).apply(&resolved.experiment);
    experiment.eval.max_pairs = args.max_pairs;

    let adapter = trained.as_ref().filter(|_| !args.base).map(|trained| &trained.adapter);
    let saved =
        adapter.map(|dir| AdapterChoice::saved(dir, &experiment, app.registry)).transpose()?;
    let tap = app.registry.tap(&experiment.tap.name)?.build(&experiment.tap.json())?;
    let stop = interrupt::watch()?;
    let session = Session::open(&experiment, app.registry)?;
    if let Some(trained) = &trained {
        trained.warn(&experiment, &session.source, &session.fingerprint, app)?;
    }
    let adapted = saved.map(|saved| attach_saved(&saved, &session.model)).transpose()?;
    app.printer.note(&session.describes);
    let splits = eval::read(&session, &experiment, None)?;
    app.printer.note(&limit);
    engine::describe(&splits, app);

    let source =
        StatesSource { model: &session.model, adapted: adapted.as_ref(), tap: tap.as_ref() };
    let spec = StatesSpec {
        per_token: args.per_token,
        tokens: experiment.eval.tokens,
        shard: (args.shard * 1e9) as usize,
    };
    let described = json!({ "model": session.source.pinned(&experiment.model), "adapter": adapter,
        "dataset": experiment.dataset, "tap": experiment.tap });
    let written = write_states(
        &source,
        &splits,
        spec,
        &described,
        &args.out,
        &stop,
        app.printer.progress().as_mut(),
    )?;
    if args.json {
        return app.printer.json(&to_value(&written).map_err(|e| Error::internal(e.to_string()))?);
    }
    app.printer.note(&format!(
        "states of {} pairs at {} taps, {:.1} MB in {}",
        written.pairs,
        written.taps.len(),
        written.bytes as f64 / 1e6,
        args.out.display()
    ));
    app.printer.data(&args.out.display().to_string())
}
