//! One registered plugin, its types erased, by kind: how it is made, and what the engine has to
//! know of it before.

use super::about::{About, parse};
use super::kind::Kind;
use crate::api::{
    Adapter, AdapterPlugin, Dataset, DatasetPlugin, Init, Intervention, InterventionPlugin,
    ModelInfo, PeftFile, Plugin, Tap, TapPlugin, Transform, TransformCx, TransformPlugin,
};
use crate::error::{Error, Result};
use crate::guard::{Guarded, Who, guard};

/// One registered plugin, of whatever kind.
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
    /// Its kind.
    pub fn kind(self) -> Kind {
        match self {
            Entry::Intervention(_) => Kind::Intervention,
            Entry::Adapter(_) => Kind::Adapter,
            Entry::Transform(_) => Kind::Transform,
            Entry::Tap(_) => Kind::Tap,
            Entry::Dataset(_) => Kind::Dataset,
        }
    }

    /// Its description.
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

/// A registry entry whose type tells its kind.
pub trait TypedEntry: 'static {
    /// The kind.
    const KIND: Kind;

    /// The entry, if it is of this kind.
    fn of_entry(entry: Entry) -> Option<&'static Self>;
}

/// The entry of an intervention.
#[derive(Debug)]
pub struct InterventionEntry {
    /// Its description.
    pub about: About,
    /// Its default of `train.lr` with a low-rank update (LoRA); `None` keeps the engine's.
    pub learning_rate: Option<f64>,
    build: fn(&str, &ModelInfo) -> Result<Box<dyn Intervention>>,
}

impl InterventionEntry {
    /// Of the plugin `P` in the crate `origin`.
    pub const fn of<P: InterventionPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            learning_rate: None,
            build: |json, model| {
                Ok(Box::new(made::<P, dyn Intervention>(Kind::Intervention, || {
                    parse::<P>(json)?.build(model)
                })?))
            },
        }
    }

    /// With this default of `train.lr`.
    #[must_use]
    pub const fn learning_rate(self, rate: f64) -> Self {
        Self { learning_rate: Some(rate), ..self }
    }

    /// The intervention, from its configuration (JSON text) and the model's shape.
    ///
    /// # Errors
    /// Fails if the configuration does not fit, or if the intervention refuses it.
    pub fn build(&self, json: &str, model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        (self.build)(json, model)
    }
}

/// The entry of an adapter.
#[derive(Debug)]
pub struct AdapterEntry {
    /// Its description.
    pub about: About,
    /// `peft_type` on disk.
    pub peft_type: &'static str,
    /// Fields that may have another value when a saved adapter is trained further.
    pub adjustable: &'static [&'static str],
    /// True if PEFT's configuration of this type has `layers_to_transform`.
    pub peft_has_layers: bool,
    /// Its factor on the default of `train.lr`.
    pub learning_rate_factor: f64,
    build: fn(&str) -> Result<Box<dyn Adapter>>,
    from_peft: fn(PeftFile<'_>) -> Result<(String, Vec<String>)>,
}

impl AdapterEntry {
    /// Of the plugin `P` in the crate `origin`.
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
                Ok(Box::new(made::<P, dyn Adapter>(Kind::Adapter, || parse::<P>(json)?.build())?))
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
                guard(Who { kind: Kind::Adapter.name(), name: P::NAME }, "from_peft", read)
            },
        }
    }

    /// With these fields, which a run may change when it continues from a saved adapter.
    #[must_use]
    pub const fn adjustable(self, fields: &'static [&'static str]) -> Self {
        Self { adjustable: fields, ..self }
    }

    /// With or without `layers_to_transform` in PEFT's configuration of this type.
    #[must_use]
    pub const fn peft_has_layers(self, has: bool) -> Self {
        Self { peft_has_layers: has, ..self }
    }

    /// With this factor on the default of `train.lr`.
    #[must_use]
    pub const fn learning_rate_factor(self, factor: f64) -> Self {
        Self { learning_rate_factor: factor, ..self }
    }

    /// The adapter, from its configuration (JSON text).
    ///
    /// # Errors
    /// Fails if the configuration does not fit, or if the adapter refuses it.
    pub fn build(&self, json: &str) -> Result<Box<dyn Adapter>> {
        (self.build)(json)
    }

    /// The configuration (JSON text) that a saved adapter stands for, and warnings for the user.
    ///
    /// # Errors
    /// Fails if the plugin cannot honour a field of the file, or cannot compute what PEFT computes
    /// with it.
    pub fn from_peft(&self, file: PeftFile<'_>) -> Result<(String, Vec<String>)> {
        (self.from_peft)(file)
    }
}

/// The entry of a transform.
#[derive(Debug)]
pub struct TransformEntry {
    /// Its description.
    pub about: About,
    build: fn(&str, &TransformCx<'_>, &mut Init) -> Result<Box<dyn Transform>>,
}

impl TransformEntry {
    /// Of the plugin `P` in the crate `origin`.
    pub const fn of<P: TransformPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            build: |json, cx, init| {
                Ok(Box::new(made::<P, dyn Transform>(Kind::Transform, || {
                    parse::<P>(json)?.build(cx, init)
                })?))
            },
        }
    }

    /// The transform of one tap, from its configuration (JSON text).
    ///
    /// # Errors
    /// Fails if the configuration does not fit, or if the transform refuses it.
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
    /// Its description.
    pub about: About,
    build: fn(&str) -> Result<Box<dyn Tap>>,
}

impl TapEntry {
    /// Of the plugin `P` in the crate `origin`.
    pub const fn of<P: TapPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            build: |json| {
                Ok(Box::new(made::<P, dyn Tap>(Kind::Tap, || parse::<P>(json)?.build())?))
            },
        }
    }

    /// The tap, from its configuration (JSON text).
    ///
    /// # Errors
    /// Fails if the configuration does not fit, or if the tap refuses it.
    pub fn build(&self, json: &str) -> Result<Box<dyn Tap>> {
        (self.build)(json)
    }
}

/// The entry of a data set.
#[derive(Debug)]
pub struct DatasetEntry {
    /// Its description.
    pub about: About,
    /// The field that `--dataset NAME:TEXT` fills.
    pub argument: Option<&'static str>,
    /// Endings of files that it opens.
    pub extensions: &'static [&'static str],
    /// True if it reads repositories of the hub.
    pub repositories: bool,
    /// True if it reads pairs from standard input.
    pub stdin: bool,
    build: fn(&str) -> Result<Box<dyn Dataset>>,
}

impl DatasetEntry {
    /// Of the plugin `P` in the crate `origin`.
    pub const fn of<P: DatasetPlugin>(origin: &'static str, version: &'static str) -> Self {
        Self {
            about: About::of::<P>(origin, version),
            argument: None,
            extensions: &[],
            repositories: false,
            stdin: false,
            build: |json| {
                Ok(Box::new(made::<P, dyn Dataset>(Kind::Dataset, || parse::<P>(json)?.build())?))
            },
        }
    }

    /// With this field, which `--dataset NAME:TEXT` fills.
    #[must_use]
    pub const fn argument(self, field: &'static str) -> Self {
        Self { argument: Some(field), ..self }
    }

    /// With files of these endings, without the dot, whose path fills the argument.
    #[must_use]
    pub const fn extensions(self, endings: &'static [&'static str]) -> Self {
        Self { extensions: endings, ..self }
    }

    /// With repositories of the hub, which fill the argument.
    #[must_use]
    pub const fn repositories(self, reads: bool) -> Self {
        Self { repositories: reads, ..self }
    }

    /// With standard input, `-`, which fills the argument.
    #[must_use]
    pub const fn stdin(self, reads: bool) -> Self {
        Self { stdin: reads, ..self }
    }

    /// Opens the data set, from its configuration (JSON text).
    ///
    /// # Errors
    /// Fails if the configuration does not fit, or if the data set cannot be opened.
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

/// The object that `P` builds, behind a guard of the crate that this is compiled in, which is the
/// plugin's.
fn made<P: Plugin, T: ?Sized>(
    kind: Kind,
    build: impl FnOnce() -> Result<Box<T>>,
) -> Result<Guarded<T>> {
    let who = Who { kind: kind.name(), name: P::NAME };
    Ok(Guarded::new(who, guard(who, "build", build)?))
}
