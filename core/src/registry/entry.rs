//! One registered plugin, its types erased.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Kind;
use crate::api::{
    Adapter, AdapterPlugin, Dataset, DatasetPlugin, Init, Intervention, InterventionPlugin, ModelInfo, PeftFile, Plugin, Tap, TapPlugin, Transform,
    TransformCx, TransformPlugin,
};
use crate::error::{Error, Result};
use crate::plugin::{Guarded, Who, guard};

/// What a plugin says of itself.
#[derive(Debug)]
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// One line.
    pub summary: &'static str,
    /// Formula and advice.
    pub explain: &'static str,
    /// Where it comes from.
    pub reference: &'static str,
    /// Fields and values of its example.
    pub example: &'static [(&'static str, &'static str)],
    /// The crate it is written in.
    pub origin: &'static str,
    /// That crate's version.
    pub version: &'static str,
    // As JSON text: a plugin may have been built with another layout of JSON values.
    schema: fn() -> Result<String>,
    defaults: fn() -> Result<String>,
    check: fn(&str) -> Result<(), Misfit>,
    rewrite: fn(&str) -> Result<String>,
}

/// A configuration that does not fit a plugin's types.
#[derive(Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The field, as `weights[2]`; empty where it is the whole.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl About {
    const fn of<P: Plugin>(origin: &'static str, version: &'static str) -> Self {
        // What a plugin's types do, derived or written by hand, is its code as well.
        fn text<P: Plugin, V: serde::Serialize>(doing: &str, value: impl FnOnce() -> V) -> Result<String> {
            guard(Who { kind: "plugin", name: P::NAME }, doing, || serde_json::to_string(&value()).map_err(|e| Error::new("it is no JSON").because(e)))
        }
        About {
            name: P::NAME,
            aliases: P::ALIASES,
            summary: P::SUMMARY,
            explain: P::EXPLAIN,
            reference: P::REFERENCE,
            example: P::EXAMPLE,
            origin,
            version,
            schema: || text::<P, _>("schema", || schemars::schema_for!(P::Config)),
            defaults: || text::<P, _>("defaults", P::Config::default),
            check: |json| {
                let checked = guard(Who { kind: "plugin", name: P::NAME }, "deserialize", || Ok(typed::<P::Config>(json).map(|_| ())));
                checked.unwrap_or_else(|e| Err(Misfit { path: String::new(), message: format!("{e:?}") }))
            },
            rewrite: |json| {
                let text = || serde_json::to_string(&parse::<P::Config>(P::NAME, json)?).map_err(|e| Error::new("it is no JSON").because(e));
                guard(Who { kind: "plugin", name: P::NAME }, "serialize", text)
            },
        }
    }

    /// JSON schema of its configuration.
    ///
    /// # Errors
    /// Where the plugin's own description of its types fails.
    pub fn schema(&self) -> Result<Value> {
        self.parsed(&(self.schema)()?)
    }

    fn parsed(&self, json: &str) -> Result<Value> {
        serde_json::from_str(json).map_err(|e| Error::internal(format!("what `{}` says of its configuration is no JSON", self.name)).because(e))
    }

    /// Whether a configuration (JSON text) has the fields and types of this plugin. Ranges are checked when it is made.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn check(&self, json: &str) -> Result<(), Misfit> {
        (self.check)(json)
    }

    /// A configuration (JSON text) as the plugin's types read it and write it again.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn rewrite(&self, json: &str) -> Result<String> {
        (self.rewrite)(json)
    }

    /// Its configuration as it is when nothing is said.
    ///
    /// # Errors
    /// Where the plugin's defaults are not an object.
    pub fn defaults(&self) -> Result<serde_json::Map<String, Value>> {
        match self.parsed(&(self.defaults)()?)? {
            Value::Object(map) => Ok(map),
            other => Err(Error::internal(format!("the configuration of `{}` is {other}, not an object", self.name))),
        }
    }
}

/// How to make the plugin, by kind. Configurations are JSON text.
#[derive(Debug)]
pub enum Make {
    /// From a configuration and the model's shape.
    Intervention(fn(&str, &ModelInfo) -> Result<Box<dyn Intervention>>),
    /// From a configuration, or from PEFT's.
    Adapter {
        /// `peft_type` on disk.
        peft_type: &'static str,
        /// From this project's configuration.
        build: fn(&str) -> Result<Box<dyn Adapter>>,
        /// From a saved adapter to this project's configuration, with warnings for the user.
        from_peft: fn(PeftFile<'_>) -> Result<(String, Vec<String>)>,
        /// Fields that may have another value when a saved adapter is trained further.
        adjustable: &'static [&'static str],
        /// True if PEFT's configuration of this type has `layers_to_transform`.
        peft_has_layers: bool,
    },
    /// From a configuration, for one tap.
    Transform(fn(&str, &TransformCx<'_>, &mut Init) -> Result<Box<dyn Transform>>),
    /// From a configuration.
    Tap(fn(&str) -> Result<Box<dyn Tap>>),
    /// From a configuration.
    Dataset {
        /// The field that `--dataset NAME:TEXT` fills.
        argument: Option<&'static str>,
        /// Endings of files that it opens.
        extensions: &'static [&'static str],
        /// Whether it takes repositories of the hub.
        repositories: bool,
        /// True if it reads pairs from standard input.
        stdin: bool,
        /// Opens it.
        build: fn(&str) -> Result<Box<dyn Dataset>>,
    },
}

/// One registered plugin.
#[derive(Debug)]
pub struct Entry {
    /// For people.
    pub about: About,
    /// For the engine.
    pub make: Make,
    /// Its contribution to the default of `train.lr`.
    pub learning_rate: LearningRate,
}

/// A plugin's contribution to the default of `train.lr`, which is the intervention's rate times the adapter's factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LearningRate {
    /// No contribution: the engine's default stays.
    Engine,
    /// The rate of an intervention with a low-rank update (LoRA).
    Rate(f64),
    /// The factor of an adapter.
    Factor(f64),
}

inventory::collect!(Entry);

/// A configuration from its JSON text; an error names the field.
fn parse<T: DeserializeOwned>(name: &str, json: &str) -> Result<T> {
    typed(json).map_err(|Misfit { path, message }| {
        let place = if path.is_empty() { format!("`{name}`") } else { format!("`{path}` of `{name}`") };
        Error::new(format!("the configuration field {place} is not right"))
            .because(Error::new(message))
            .hint(format!("`reprpo explain {name}` describes every field"))
    })
}

fn typed<T: DeserializeOwned>(json: &str) -> Result<T, Misfit> {
    let mut de = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut de).map_err(|e| {
        let path = e.path().to_string();
        Misfit { path: if path == "." { String::new() } else { path }, message: strip_position(&e.inner().to_string()).to_owned() }
    })
}

/// serde_json ends a message with a line and a column of text that the user never saw.
fn strip_position(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(head, _)| head)
}

impl Entry {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self.make {
            Make::Intervention(_) => Kind::Intervention,
            Make::Adapter { .. } => Kind::Adapter,
            Make::Transform(_) => Kind::Transform,
            Make::Tap(_) => Kind::Tap,
            Make::Dataset { .. } => Kind::Dataset,
        }
    }

    /// Of an intervention. Called by `register!`.
    pub const fn intervention<P: InterventionPlugin>(origin: &'static str, version: &'static str) -> Self {
        let build: fn(&str, &ModelInfo) -> Result<Box<dyn Intervention>> =
            |json, model| Ok(Box::new(made::<P, dyn Intervention>(Kind::Intervention, || P::build(parse(P::NAME, json)?, model))?));
        let rate = match P::LEARNING_RATE {
            Some(rate) => LearningRate::Rate(rate),
            None => LearningRate::Engine,
        };
        Entry { about: About::of::<P>(origin, version), make: Make::Intervention(build), learning_rate: rate }
    }

    /// Of an adapter. Called by `register!`.
    pub const fn adapter<P: AdapterPlugin>(origin: &'static str, version: &'static str) -> Self {
        Entry {
            about: About::of::<P>(origin, version),
            make: Make::Adapter {
                peft_type: P::PEFT_TYPE,
                build: |json| Ok(Box::new(made::<P, dyn Adapter>(Kind::Adapter, || P::build(parse(P::NAME, json)?))?)),
                from_peft: |file| {
                    let read = || {
                        let mut config = P::from_peft(file.json)?;
                        let warnings = P::reconcile(&mut config, &file)?;
                        Ok((serde_json::to_string(&config).map_err(|e| Error::internal(e.to_string()))?, warnings))
                    };
                    guard(Who { kind: Kind::Adapter.name(), name: P::NAME }, "from_peft", read)
                },
                adjustable: P::ADJUSTABLE,
                peft_has_layers: P::PEFT_HAS_LAYERS,
            },
            learning_rate: LearningRate::Factor(P::LEARNING_RATE_FACTOR),
        }
    }

    /// Of a transform. Called by `register!`.
    pub const fn transform<P: TransformPlugin>(origin: &'static str, version: &'static str) -> Self {
        let build: fn(&str, &TransformCx<'_>, &mut Init) -> Result<Box<dyn Transform>> =
            |json, cx, init| Ok(Box::new(made::<P, dyn Transform>(Kind::Transform, || P::build(parse(P::NAME, json)?, cx, init))?));
        Entry { about: About::of::<P>(origin, version), make: Make::Transform(build), learning_rate: LearningRate::Engine }
    }

    /// Of a tap. Called by `register!`.
    pub const fn tap<P: TapPlugin>(origin: &'static str, version: &'static str) -> Self {
        let build: fn(&str) -> Result<Box<dyn Tap>> = |json| Ok(Box::new(made::<P, dyn Tap>(Kind::Tap, || P::build(parse(P::NAME, json)?))?));
        Entry { about: About::of::<P>(origin, version), make: Make::Tap(build), learning_rate: LearningRate::Engine }
    }

    /// Of a data set. Called by `register!`.
    pub const fn dataset<P: DatasetPlugin>(origin: &'static str, version: &'static str) -> Self {
        let build: fn(&str) -> Result<Box<dyn Dataset>> = |json| Ok(Box::new(made::<P, dyn Dataset>(Kind::Dataset, || P::build(parse(P::NAME, json)?))?));
        Entry {
            about: About::of::<P>(origin, version),
            make: Make::Dataset { argument: P::ARGUMENT, extensions: P::EXTENSIONS, repositories: P::REPOSITORIES, stdin: P::STDIN, build },
            learning_rate: LearningRate::Engine,
        }
    }
}

/// What `P` builds, behind a guard of the crate that this is compiled in, which is the plugin's.
fn made<P: Plugin, T: ?Sized>(kind: Kind, build: impl FnOnce() -> Result<Box<T>>) -> Result<Guarded<T>> {
    let who = Who { kind: kind.name(), name: P::NAME };
    Ok(Guarded::new(who, guard(who, "build", build)?))
}

/// Registers a plugin with the program that links its crate: `register!(intervention: Dpo);`, or a recipe by its text:
/// `register!(recipe: include_str!("mine.toml"));`.
#[macro_export]
macro_rules! register {
    (recipe: $toml:expr) => {
        $crate::inventory::submit! {
            $crate::registry::RecipeText { toml: $toml, origin: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") }
        }
    };
    ($kind:ident: $plugin:ty) => {
        $crate::inventory::submit! {
            $crate::registry::Entry::$kind::<$plugin>(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
        }
    };
}
