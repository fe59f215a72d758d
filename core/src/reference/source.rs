//! Identifies a reference by everything that can change the bytes of its values, except the tokens.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::config::{Experiment, flat};
use crate::ffi::{LIBTORCH_VERSION, compute_capability};
use crate::fingerprint::{Fingerprint, Parts};
use crate::model::Model;
use crate::plugin;
use crate::weights::type_name;

/// Version of the format of cached values. Increase it if the same key must not find older values.
const FORMAT: &str = "reference values 1";

/// Sections and fields of the experiment that do not change the values of a reference, or that are
/// part of the key in another form. New fields are part of the key by default.
const NOT_IN_KEY: [&str; 16] = [
    "recipe",
    "plugins",
    "model",
    "device",
    "dtype",
    "out",
    "init_adapter",
    "init_transform",
    "intervention",
    "adapter",
    "transform",
    "tap",
    "dataset",
    "train",
    "eval",
    "cache",
];

/// A description of a reference for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The model, as given by the user.
    pub model: String,
    /// Data type of the frozen weights.
    pub dtype: String,
    /// The device that computed the values.
    pub device: String,
    /// The beginning of the digest of the adapter; `None` if the reference is the base model.
    pub adapter: Option<String>,
    /// Version of libtorch.
    pub libtorch: String,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.model)?;
        match &self.adapter {
            Some(adapter) => write!(f, " with adapter {adapter}"),
            None => Ok(()),
        }
    }
}

/// A reference: a model, an optional adapter, and everything else that can change the bytes of its
/// values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub(super) digest: String,
    about: About,
    /// Digests of the plugin files, which can contain the code of an adapter.
    plugins: Vec<String>,
}

impl Source {
    /// The base model of `experiment`. `weights` is the fingerprint of the files of `model`.
    pub fn of_base(experiment: &Experiment, model: &Model, weights: &Fingerprint) -> Self {
        let (dtype, device) = (type_name(model.kind()), describe(model.device()));
        // The version and the sources of the engine.
        let engine = plugin::Fingerprint::ours().to_string();
        let mut parts = Parts::new(FORMAT);
        for part in [&weights.sha256, &dtype, &device, LIBTORCH_VERSION, &engine] {
            parts.add(part.as_bytes());
        }
        let in_key = |path: &str| {
            let section = path.split('.').next().unwrap_or(path);
            !NOT_IN_KEY.contains(&section)
        };
        for (path, value) in flat(&experiment.to_json(), in_key) {
            parts.add(path.as_bytes());
            parts.add(value.to_string().as_bytes());
        }
        let about = About {
            model: experiment.model.clone(),
            dtype,
            device,
            adapter: None,
            libtorch: LIBTORCH_VERSION.to_owned(),
        };
        let plugins = experiment.plugins.iter().filter_map(|p| p.sha256.clone()).collect();
        Self { digest: parts.hex(), about, plugins }
    }

    /// The same model with a saved adapter.
    #[must_use]
    pub fn with_adapter(&self, adapter: &Fingerprint) -> Self {
        let mut parts = Parts::new("adapter of the reference");
        parts.add(self.digest.as_bytes());
        parts.add(adapter.sha256.as_bytes());
        // The code of the adapter is in a plugin file or in this program.
        self.plugins.iter().for_each(|plugin| parts.add(plugin.as_bytes()));
        parts.add(program().as_bytes());
        let name = adapter.sha256[..adapter.sha256.len().min(8)].to_owned();
        let about = About { adapter: Some(name), ..self.about.clone() };
        Self { digest: parts.hex(), about, plugins: self.plugins.clone() }
    }

    /// The description for people.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// True if the reference has an adapter.
    pub fn is_adapted(&self) -> bool {
        self.about.adapter.is_some()
    }
}

/// The device, with the properties that decide which kernels it runs.
pub(crate) fn describe(device: Device) -> String {
    match device {
        Device::Cuda(_) => {
            let capability = compute_capability(device);
            capability.map_or_else(|| "cuda".to_owned(), |(a, b)| format!("cuda, sm_{a}{b}"))
        }
        Device::Cpu => {
            let threads = tch::get_num_threads();
            let s = if threads == 1 { "" } else { "s" };
            format!("cpu, {}, {threads} thread{s}", processor())
        }
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The name of the processor, or its architecture if the system does not report a name.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Length and modification time of this program, which change with every build.
fn program() -> String {
    let about = std::env::current_exe().and_then(std::fs::metadata);
    about.map_or_else(|_| String::new(), |about| format!("{} {:?}", about.len(), about.modified()))
}
