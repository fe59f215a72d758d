//! Registry entries, with one type per kind of plugin. An entry erases the plugin's type. It
//! contains functions that build the plugin, and properties that the engine needs before the plugin
//! is built.

use super::about::{About, parse};
use super::kind::Kind;
use crate::api::{
    Adapter, AdapterPlugin, Dataset, DatasetPlugin, Init, Intervention, InterventionPlugin,
    ModelInfo, PeftFile, Plugin, Tap, TapPlugin, Transform, TransformCx, TransformPlugin,
};
use crate::error::{Error, Result};
use crate::guard::{Guarded, MethodId, guard};

/// A registered plugin of any kind.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// An intervention.
    Intervention(&'static InterventionEntry),
    /// An adapter.
    Adapter(&'static AdapterEntry),
    /// A transform.
    Transform(&'static TransformEntry),
    /// A tap.
    Tap(&'static TapEntry),
    /// A data set.
    Dataset(&'static DatasetEntry),
}

inventory::collect!(Entry);

impl Entry {
    /// The kind of the plugin.
    pub fn kind(self) -> Kind {
        match self {
            Entry::Intervention(_) => Kind::Intervention,
            Entry::Adapter(_) => Kind::Adapter,
            Entry::Transform(_) => Kind::Transform,
            Entry::Tap(_) => Kind::Tap,
            Entry::Dataset(_) => Kind::Dataset,
        }
    }

    /// The description of the plugin.
    pub fn about(self) -> &'static About {
        match self {
            Entry::Intervention(entry) => &entry.about,
            Entry::Adapter(entry) => &entry.about,
            Entry::Transform(entry) => &entry.about,
            Entry::Tap(entry) => &entry.about,
            Entry::Dataset(entry) => &entry.about,
        }
    }
}

/// A registry entry of a kind that is known at compile time.
pub trait TypedEntry: 'static {
    /// The kind of plugin.
    const KIND: Kind;

    /// Returns the typed entry if `entry` is of this kind.
    fn of_entry(entry: Entry) -> Option<&'static Self>;
}

/// The entry of an intervention.
#[derive(Debug)]
pub struct InterventionEntry {
    /// Description of the plugin.
    pub about: About,
    /// Default of `train.lr`, before the adapter's `learning_rate_factor` is applied; `None` to use
    /// the engine's default.
    pub learning_rate: Option<f64>,
    build: fn(&str, &ModelInfo) -> Result<Box<dyn Intervention>>,
}

impl InterventionEntry {
    /// Creates the entry of the plugin `P` from the crate `origin`.
    pub const fn of<P: InterventionPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            learning_rate: None,
            build: |json, model| {
                Ok(Box::new(build_guarded::<P, dyn Intervention>(Kind::Intervention, || {
                    parse::<P>(json)?.build(model)
                })?))
            },
        }
    }

    /// Sets the default of `train.lr`.
    #[must_use]
    pub const fn learning_rate(self, rate: f64) -> Self {
        Self { learning_rate: Some(rate), ..self }
    }

    /// Builds the intervention from its configuration (JSON text) for a model.
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type, or if the intervention rejects a value.
    pub fn build(&self, json: &str, model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        (self.build)(json, model)
    }
}

/// The entry of an adapter.
#[derive(Debug)]
pub struct AdapterEntry {
    /// Description of the plugin.
    pub about: About,
    /// Value of `peft_type` in `adapter_config.json`.
    pub peft_type: &'static str,
    /// Fields that may change when training continues from a saved adapter.
    pub adjustable: &'static [&'static str],
    /// True if PEFT's configuration class for this type has `layers_to_transform`.
    pub peft_has_layers: bool,
    /// Factor by which the default of `train.lr` is multiplied.
    pub learning_rate_factor: f64,
    build: fn(&str) -> Result<Box<dyn Adapter>>,
    from_peft: fn(PeftFile<'_>) -> Result<(String, Vec<String>)>,
}

impl AdapterEntry {
    /// Creates the entry of the plugin `P` from the crate `origin`.
    pub const fn of<P: AdapterPlugin>(
        peft_type: &'static str,
        origin: &'static str,
        version: &'static str,
    ) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            peft_type,
            adjustable: &[],
            peft_has_layers: true,
            learning_rate_factor: 1.0,
            build: |json| {
                Ok(Box::new(build_guarded::<P, dyn Adapter>(Kind::Adapter, || {
                    parse::<P>(json)?.build()
                })?))
            },
            from_peft: |file| {
                let read = || {
                    let mut config = P::from_peft(file.json)?;
                    let warnings = config.reconcile(&file)?;
                    Ok((
                        serde_json::to_string(&config)
                            .map_err(|e| Error::internal(e.to_string()))?,
                        warnings,
                    ))
                };
                guard(MethodId { kind: Kind::Adapter.name(), name: P::NAME }, "from_peft", read)
            },
        }
    }

    /// Sets the fields that may change when training continues from a saved adapter.
    #[must_use]
    pub const fn adjustable(self, fields: &'static [&'static str]) -> Self {
        Self { adjustable: fields, ..self }
    }

    /// Sets whether PEFT's configuration class for this type has `layers_to_transform`.
    #[must_use]
    pub const fn peft_has_layers(self, has: bool) -> Self {
        Self { peft_has_layers: has, ..self }
    }

    /// Sets the factor by which the default of `train.lr` is multiplied.
    #[must_use]
    pub const fn learning_rate_factor(self, factor: f64) -> Self {
        Self { learning_rate_factor: factor, ..self }
    }

    /// Builds the adapter from its configuration (JSON text).
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type, or if the adapter rejects a value.
    pub fn build(&self, json: &str) -> Result<Box<dyn Adapter>> {
        (self.build)(json)
    }

    /// True if a new adapter with default settings lacks a saved adapter that it must be made of.
    pub fn needs_sources(&self) -> bool {
        let sources = self.build("{}").map(|adapter| adapter.sources()).unwrap_or_default();
        sources.iter().any(|source| source.required && source.path.is_none())
    }

    /// Converts the PEFT configuration of a saved adapter to the plugin's configuration (JSON
    /// text). Also returns warnings for the user.
    ///
    /// # Errors
    /// Fails if the plugin does not support the value of a field, or if its outputs would differ
    /// from PEFT's.
    pub fn from_peft(&self, file: PeftFile<'_>) -> Result<(String, Vec<String>)> {
        (self.from_peft)(file)
    }
}

/// The entry of a transform.
#[derive(Debug)]
pub struct TransformEntry {
    /// Description of the plugin.
    pub about: About,
    build: fn(&str, &TransformCx<'_>, &mut Init) -> Result<Box<dyn Transform>>,
}

impl TransformEntry {
    /// Creates the entry of the plugin `P` from the crate `origin`.
    pub const fn of<P: TransformPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            build: |json, cx, init| {
                Ok(Box::new(build_guarded::<P, dyn Transform>(Kind::Transform, || {
                    parse::<P>(json)?.build(cx, init)
                })?))
            },
        }
    }

    /// Builds the transform for the site `cx.site` from the given configuration (JSON text).
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type, or if the transform rejects a value.
    pub fn build(
        &self,
        json: &str,
        cx: &TransformCx<'_>,
        init: &mut Init,
    ) -> Result<Box<dyn Transform>> {
        (self.build)(json, cx, init)
    }
}

/// The entry of a tap.
#[derive(Debug)]
pub struct TapEntry {
    /// Description of the plugin.
    pub about: About,
    build: fn(&str) -> Result<Box<dyn Tap>>,
}

impl TapEntry {
    /// Creates the entry of the plugin `P` from the crate `origin`.
    pub const fn of<P: TapPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            build: |json| {
                Ok(Box::new(build_guarded::<P, dyn Tap>(Kind::Tap, || parse::<P>(json)?.build())?))
            },
        }
    }

    /// Builds the tap from its configuration (JSON text).
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type, or if the tap rejects a value.
    pub fn build(&self, json: &str) -> Result<Box<dyn Tap>> {
        (self.build)(json)
    }
}

/// The entry of a data set.
#[derive(Debug)]
pub struct DatasetEntry {
    /// Description of the plugin.
    pub about: About,
    /// The field that `--dataset NAME:TEXT` sets to TEXT.
    pub argument: Option<&'static str>,
    /// File extensions that the plugin supports, without the dot.
    pub extensions: &'static [&'static str],
    /// True if the plugin supports repositories on the hub.
    pub repositories: bool,
    /// True if the plugin supports reading pairs from standard input.
    pub stdin: bool,
    build: fn(&str) -> Result<Box<dyn Dataset>>,
}

impl DatasetEntry {
    /// Creates the entry of the plugin `P` from the crate `origin`.
    pub const fn of<P: DatasetPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            argument: None,
            extensions: &[],
            repositories: false,
            stdin: false,
            build: |json| {
                Ok(Box::new(build_guarded::<P, dyn Dataset>(Kind::Dataset, || {
                    parse::<P>(json)?.build()
                })?))
            },
        }
    }

    /// Sets the field that receives TEXT in `--dataset NAME:TEXT`.
    #[must_use]
    pub const fn argument(self, field: &'static str) -> Self {
        Self { argument: Some(field), ..self }
    }

    /// Sets the supported file extensions, without the dot. If the user chooses a file with such an
    /// extension, the field named by `argument` receives its path.
    #[must_use]
    pub const fn extensions(self, endings: &'static [&'static str]) -> Self {
        Self { extensions: endings, ..self }
    }

    /// Sets whether the plugin supports repositories on the hub. If the user chooses a repository,
    /// the field named by `argument` receives its name.
    #[must_use]
    pub const fn repositories(self, reads: bool) -> Self {
        Self { repositories: reads, ..self }
    }

    /// Sets whether the plugin supports standard input. If the user chooses standard input, the
    /// field named by `argument` receives `-`.
    #[must_use]
    pub const fn stdin(self, reads: bool) -> Self {
        Self { stdin: reads, ..self }
    }

    /// Opens the data set with its configuration (JSON text).
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type, or if the data set cannot be opened.
    pub fn build(&self, json: &str) -> Result<Box<dyn Dataset>> {
        (self.build)(json)
    }
}

macro_rules! typed {
    ($($kind:ident: $entry:ty),*) => {$(
        impl TypedEntry for $entry {
            const KIND: Kind = Kind::$kind;

            fn of_entry(entry: Entry) -> Option<&'static Self> {
                if let Entry::$kind(entry) = entry { Some(entry) } else { None }
            }
        }

        impl From<&'static $entry> for Entry {
            fn from(entry: &'static $entry) -> Self {
                Entry::$kind(entry)
            }
        }

        impl AsRef<About> for $entry {
            fn as_ref(&self) -> &About {
                &self.about
            }
        }
    )*};
}
typed!(Intervention: InterventionEntry, Adapter: AdapterEntry, Transform: TransformEntry,
    Tap: TapEntry, Dataset: DatasetEntry);

impl AsRef<About> for Entry {
    fn as_ref(&self) -> &About {
        self.about()
    }
}

/// Calls `build`, and wraps its result in a guard that adds the name of the plugin `P` to errors.
/// This generic function is compiled in the plugin's crate, so panics are caught there.
fn build_guarded<P: Plugin, T: ?Sized>(
    kind: Kind,
    build: impl FnOnce() -> Result<Box<T>>,
) -> Result<Guarded<T>> {
    let method = MethodId { kind: kind.name(), name: P::NAME };
    Ok(Guarded::new(method, guard(method, "build", build)?))
}
