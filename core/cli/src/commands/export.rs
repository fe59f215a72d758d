//! `reprpo export`.

use reprpo_core::fingerprint;
use reprpo_core::model::control_vector;
use reprpo_core::model::export::Export;
use reprpo_core::model::{Model, check_coefficient};
use reprpo_core::run::{AdapterChoice, attach_saved};
use reprpo_core::weights::{Extent, ModelFiles, locate};
use reprpo_core::{Error, Result};
use tch::{Device, Kind};

use crate::App;
use crate::args::{ExportArgs, ExportDtype, layers};
use crate::trained::TrainedAdapter;

pub fn run(args: &ExportArgs, app: &App<'_>) -> Result<()> {
    if !(args.shard > 0.0 && args.shard.is_finite()) {
        return Err(Error::new(format!("`--shard` must be greater than 0, got {}", args.shard))
            .hint("give the maximum file size in gigabytes, e.g. `--shard 5`"));
    }
    if args.out.exists() {
        return Err(Error::new(format!("`{}` already exists", args.out.display()))
            .hint("choose a different `--out`, or remove the folder"));
    }
    let trained = TrainedAdapter::find(&args.target, args.model.get("model"))?;
    let mut layers = layers::defaults(app)?;
    trained.apply(&mut layers)?;
    layers::environment(&mut layers);
    args.model.apply(&mut layers);
    let experiment = layers.resolve()?.experiment;

    let mut progress = app.printer.progress();
    let saved = AdapterChoice::saved(&trained.adapter, &experiment, app.registry)?;
    check_coefficient(saved.adapter.as_ref(), args.coefficient)?;
    let explained = |e| experiment.sources.explain("model", &experiment.model, e);
    let source = locate(&experiment.model, Extent::Whole).map_err(explained)?;
    let files = ModelFiles::open(&source.path).map_err(explained)?;
    let found = fingerprint::of_model(&source, &files);
    experiment.sources.check_model(&experiment.model, &found)?;
    trained.warn(&experiment, &source, &found, app)?;
    let tokenizer = files.tokenizer()?;
    let doing = if args.control_vector { "reading the edits of" } else { "merging" };
    progress.message(&format!("{doing} `{}` into {}", trained.adapter.display(), files.describe()));
    // Merge in float32 on the CPU, regardless of the run's precision and device. The result is
    // kept, and speed does not matter.
    let model = Model::load(&files, Kind::Float, Device::Cpu)?;
    let adapted =
        attach_saved(&saved, &model)?.with_coefficient(saved.adapter.as_ref(), args.coefficient)?;
    if args.control_vector {
        control_vector::write(
            adapted.edits(),
            args.coefficient,
            &model.info().architecture,
            &args.out,
        )?;
        return app.printer.data(&args.out.display().to_string());
    }
    let kind = match args.dtype {
        ExportDtype::F32 => Kind::Float,
        ExportDtype::Bf16 => Kind::BFloat16,
    };
    let written = Export::merged(&files, &model, Some(&adapted), kind)?.write(
        &files,
        &tokenizer,
        &args.out,
        (args.shard * 1e9) as u64,
    )?;
    let listed: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    app.printer.data(&listed.join("\n"))
}
