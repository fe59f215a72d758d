//! Reads and writes adapters in PEFT's format: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! PEFT only adapts whole modules. Adapters on parts of fused modules are converted to adapters on
//! whole modules if the method supports it. Otherwise they are saved under the names of the parts,
//! which only reprpo can read.

use std::path::Path;

use indexmap::IndexMap;
use regex::Regex;
use serde_json::{Map, Value, json};
use tch::Tensor;

use self::targets::TargetFields;
use super::edits::Edits;
use super::{Adapted, Model};
use crate::api::{Adapter, BlockEdit, PeftConfig, PeftFile, Selected, Selection, Targets};
use crate::error::{Context, Error, Result};
use crate::registry::{AdapterEntry, Registry};
use crate::weights::{Located, SafetensorsFile, locate_adapter, write_safetensors};

mod modules;
mod targets;

pub use modules::SavedModules;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// The tensor file that older versions of PEFT write.
const PICKLE: &str = "adapter_model.bin";
/// The prefix that PEFT adds to module names.
const PREFIX: &str = "base_model.model.";
/// The prefix that PEFT adds to the names of tensors that all modules share.
const SHARED_PREFIX: &str = "base_model.";
/// The PEFT version that saved adapters declare.
const PEFT_VERSION: &str = "0.21.2";

/// The configuration of a saved adapter, converted to the options of its plugin.
#[derive(Debug)]
pub struct SavedConfig {
    /// The plugin that implements this type of adapter.
    pub entry: &'static AdapterEntry,
    /// The configuration of the plugin.
    pub config: Map<String, Value>,
    /// Warnings for the user about settings whose meaning depends on the version of PEFT.
    pub warnings: Vec<String>,
    /// Warnings for a run that continues training from the adapter.
    pub training_warnings: Vec<String>,
    /// The fields about tensors of the base model.
    pub modules: SavedModules,
    /// The adapter's tensor file, whose values have not been read yet.
    tensors: SafetensorsFile,
}

impl SavedConfig {
    /// Reads the configuration of an adapter in PEFT's format from a folder or a repository on the
    /// hub. Only the shapes of the tensors are read, not their values.
    ///
    /// # Errors
    /// Fails if a file is missing or damaged, if no plugin implements this type of adapter, or if
    /// the plugin does not support the value of a field.
    pub fn read(dir: &Path, registry: &Registry) -> Result<Self> {
        let dir = &locate_adapter(dir)?;
        let path = dir.join(CONFIG);
        let text = std::fs::read_to_string(&path)
            .within(|| format!("cannot read `{}`", path.display()))
            .map_err(|e| {
                e.hint(format!(
                    "give a folder with `{CONFIG}` and `{TENSORS}`, such as \
                the `adapter` folder of a run"
                ))
            })?;
        let within = || format!("cannot use the adapter in `{}`", dir.display());
        let peft = PeftConfig::parse(&text).within(within)?;
        let modules = SavedModules::read(&peft).within(within)?;
        let kind: String = peft.need("peft_type").within(within)?;
        let known = || registry.all::<AdapterEntry>();
        let Some(entry) = known().find(|entry| entry.peft_type == kind) else {
            return Err(Error::unknown("peft_type", &kind, known().map(|entry| entry.peft_type)))
                .within(within);
        };
        let tensors = dir.join(TENSORS);
        if !tensors.exists() && dir.join(PICKLE).exists() {
            return Err(Error::new(format!("`{}` has no {TENSORS}", dir.display()))
                .hint(format!(
                    "its {PICKLE} is a pickle, which reprpo never reads because it can run code"
                ))
                .hint(
                    "load it in PEFT and save it again with `save_pretrained(..., \
                    safe_serialization=True)`",
                ));
        }
        let tensors = SafetensorsFile::open(&tensors)?;
        let shapes: Vec<(String, Vec<i64>)> =
            tensors.shapes().map(|(key, shape)| (key.to_owned(), shape.to_vec())).collect();
        check_layers_pattern(&peft, &shapes).within(within)?;
        let text = modules::with_parameter_targets(&text).within(within)?;
        let (config, warnings) =
            entry.from_peft(PeftFile { json: &text, shapes: &shapes }).within(within)?;
        let config: Map<String, Value> =
            serde_json::from_str(&config).map_err(|e| Error::internal(e.to_string()))?;
        if !config.contains_key("exclude_modules") {
            // PEFT's class of this method does not have the field.
            peft.must_be_off(&["exclude_modules"]).within(within)?;
        }
        let about = |w: String| format!("the adapter in `{}`: {w}", dir.display());
        let warnings = warnings.into_iter().map(about).collect();
        let training_warnings = unknown_dropout(&text, &config)?.into_iter().map(about).collect();
        Ok(Self { entry, config, warnings, training_warnings, modules, tensors })
    }
}

/// Returns a warning for each kind of dropout in the text of an `adapter_config.json` that the
/// method does not implement. Dropout only acts in training.
fn unknown_dropout(text: &str, config: &Map<String, Value>) -> Result<Vec<String>> {
    let file: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| Error::internal(e.to_string()))?;
    let unknown = file.iter().filter(|(field, value)| {
        field.ends_with("dropout")
            && !config.contains_key(*field)
            && value.as_f64().is_some_and(|p| p != 0.0)
    });
    let warning = |(field, p): (&String, &Value)| {
        format!("it was trained with `{field}` = {p}, but the training continues without it")
    };
    Ok(unknown.map(warning).collect())
}

/// Checks `layers_pattern`, which names the model's list of layers. PEFT uses it together with
/// `layers_to_transform`, to find the index of a module's layer in its name. For each tensor of the
/// file, it must find the same index as without the pattern.
///
/// # Errors
/// Fails if a pattern is not a regular expression, or if it finds another index or none.
fn check_layers_pattern(peft: &PeftConfig, shapes: &[(String, Vec<i64>)]) -> Result<()> {
    let patterns: Vec<String> = match peft.get::<Value>("layers_pattern")? {
        Some(Value::String(one)) if !one.is_empty() => vec![one],
        Some(Value::Array(list)) => {
            list.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    let layers = peft.get::<Value>("layers_to_transform")?;
    let all_layers = layers.is_none_or(|l| l.as_array().is_some_and(Vec::is_empty));
    if patterns.iter().all(String::is_empty) || all_layers {
        return Ok(());
    }
    let compiled = |pattern: &String| {
        Regex::new(&format!(r"^(?:.*?\.)?(?:{pattern})\.(\d+)\.")).map_err(|e| {
            Error::new(format!("invalid regular expression `{pattern}` in `layers_pattern`"))
                .because(e)
        })
    };
    let compiled = patterns.iter().map(compiled).collect::<Result<Vec<_>>>()?;
    let usual = Regex::new(r"^.*?\.[^.]*\.(\d+)\.").map_err(|e| Error::internal(e.to_string()))?;
    let index = |regex: &Regex, name: &str| {
        regex.captures(name).and_then(|found| found.get(1)).map(|index| index.as_str().to_owned())
    };
    for (key, _) in shapes {
        let name = key.strip_prefix(PREFIX).unwrap_or(key);
        let Some(expected) = index(&usual, name) else { continue };
        if compiled.iter().find_map(|regex| index(regex, name)).as_ref() != Some(&expected) {
            let text = patterns.join("`, `");
            return Err(Error::new(format!(
                "`layers_pattern` in adapter_config.json must be the name of the model's list of \
                    layers, got `{text}`, which is not the list in `{name}`"
            ))
            .hint("the list is called `h` in GPT-2, and `layers` in all other supported models"));
        }
    }
    Ok(())
}

/// An adapter read from disk, before it is attached to a model.
#[derive(Debug)]
pub struct Saved {
    /// The plugin that implements this type of adapter.
    pub entry: &'static AdapterEntry,
    /// The configuration of the plugin.
    pub config: Map<String, Value>,
    /// The tensors, named `module.key`, or `key` if all modules share them.
    pub values: IndexMap<String, Tensor>,
    /// Edits of the residual stream that act together with the adapter.
    pub edits: Vec<BlockEdit>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// Warnings for a run that continues training from the adapter.
    pub training_warnings: Vec<String>,
    /// The fields about tensors of the base model. They decide how `values` are divided.
    pub modules: SavedModules,
}

impl Saved {
    /// Reads the configuration and the tensors of an adapter in PEFT's format from a folder or a
    /// repository on the hub.
    ///
    /// # Errors
    /// Fails in the same cases as [`SavedConfig::read`], or if a tensor cannot be read or its name
    /// lacks PEFT's prefix.
    pub fn read(dir: &Path, registry: &Registry) -> Result<Self> {
        let SavedConfig { entry, config, warnings, training_warnings, modules, tensors } =
            SavedConfig::read(dir, registry)?;
        let mut names: Vec<&str> = tensors.names().collect();
        names.sort_unstable();
        let values = names
            .into_iter()
            .map(|key| match key.strip_prefix(PREFIX).or_else(|| key.strip_prefix(SHARED_PREFIX)) {
                Some(name) => Ok((name.to_owned(), tensors.read(key)?)),
                None => Err(Error::new(format!(
                    "`{key}` in `{}` does not start with `{SHARED_PREFIX}`",
                    tensors.path().display()
                ))),
            })
            .collect::<Result<_>>()?;
        let edits = Edits::read(tensors.path().parent().unwrap_or(Path::new("")))?;
        Ok(Self { entry, config, values, edits, warnings, training_warnings, modules })
    }

    /// The configuration of the adapter, including the fields about tensors of the base model, for
    /// its fingerprint.
    pub fn identity(&self) -> Value {
        let mut config = self.config.clone();
        if !self.modules.fields().is_empty() {
            config.insert("base_tensors".to_owned(), Value::Object(self.modules.fields().clone()));
        }
        Value::Object(config)
    }
}

/// The base model of an adapter, under a name that other programs can resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// A repository on the hub, or a path.
    pub name: String,
    /// The commit of the repository.
    pub revision: Option<String>,
}

impl Base {
    /// Describes a base model. `given` is what the user specified, and `source` is where the model
    /// was found.
    pub fn new(given: &str, source: &Located) -> Self {
        match &source.repository {
            Some(repo) => Self { name: repo.name.clone(), revision: Some(repo.revision.clone()) },
            // Other programs would resolve a relative path from their own working directory.
            None if Path::new(given).exists() => {
                let path = std::path::absolute(given)
                    .map_or_else(|_| given.to_owned(), |path| path.to_string_lossy().into_owned());
                Self { name: path, revision: None }
            }
            None => given.into(),
        }
    }

    /// Reads the base model from the configuration of the adapter in `dir`. Returns `None` if the
    /// configuration does not name a base model.
    ///
    /// # Errors
    /// Fails if the adapter's configuration cannot be read.
    pub fn of_adapter(dir: &Path) -> Result<Option<Self>> {
        let json = crate::files::read_json(&dir.join(CONFIG))?;
        let text = |field: &str| {
            json.get(field)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        Ok(text("base_model_name_or_path").map(|name| Self { name, revision: text("revision") }))
    }
}

impl From<&str> for Base {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), revision: None }
    }
}

/// Returns a warning if PEFT cannot read the files of this adapter, and `None` if it can.
///
/// # Errors
/// Fails if the adapter cannot be converted to whole modules.
pub fn unreadable(
    entry: &AdapterEntry,
    adapter: &dyn Adapter,
    adapted: &Adapted,
    model: &Model,
) -> Result<Option<String>> {
    let name = entry.about.name;
    let saved = adapted.saved_form(adapter)?;
    let (adapter, adapted) = converted_or(&saved, adapter, adapted);
    let warning = |why: String| {
        Some(format!(
            "PEFT cannot read this adapter: {why}; reprpo can read it, and `reprpo export \
                --merge` merges it into the weights"
        ))
    };
    if let Some(part) = adapted.parts(model.info()).next()
        && adapted.fused(adapter, model)?.is_none()
    {
        let part = &part.linear.name;
        return Ok(warning(format!(
            "it only adapts whole modules, and `{name}` on `{part}`, a part of a module, cannot be \
                converted to an adapter of the whole module"
        )));
    }
    let conv1d = conv1d(adapted, model).filter(|_| !adapter.peft_has_conv1d());
    Ok(conv1d.and_then(|module| {
        warning(format!(
            "it does not support `{name}` for modules of the class `Conv1D`, such as `{module}`"
        ))
    }))
}

/// Returns the converted adapter if there is one, and the given adapter otherwise.
fn converted_or<'a>(
    converted: &'a Option<(Box<dyn Adapter>, Adapted)>,
    adapter: &'a dyn Adapter,
    adapted: &'a Adapted,
) -> (&'a dyn Adapter, &'a Adapted) {
    match converted {
        Some((adapter, adapted)) => (adapter.as_ref(), adapted),
        None => (adapter, adapted),
    }
}

/// Returns the name of the first adapted module that is a `Conv1D` in transformers. A module with
/// an adapter on one part also counts as adapted.
fn conv1d<'a>(adapted: &'a Adapted, model: &'a Model) -> Option<&'a str> {
    let module = |name: &'a str| model.info().part(name).map_or(name, |part| &part.holder);
    adapted.names().map(module).find(|module| model.is_conv1d(module))
}

/// Writes `adapted` in PEFT's format to the folder `dir`, which is created if it is missing. Each
/// file is written atomically.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn write(
    dir: &Path,
    entry: &AdapterEntry,
    adapter: &dyn Adapter,
    adapted: &Adapted,
    model: &Model,
    base: &Base,
) -> Result<()> {
    let saved = adapted.saved_form(adapter)?;
    let (adapter, adapted) = converted_or(&saved, adapter, adapted);
    let fused = adapted.fused(adapter, model)?;
    let in_file = |targets: Targets| {
        Ok::<_, Error>(
            if fused.is_some() { targets.whole(model.info())? } else { targets }
                .in_names_of(model.info()),
        )
    };
    let (given, targets) = (adapter, in_file(adapter.targets())?);
    let (adapter, adapted) = converted_or(&fused, adapter, adapted);
    let written = TargetFields::of(targets, given, adapted, model.info(), entry.peft_has_layers)?;
    let mut config: Map<String, Value> =
        serde_json::from_str(&adapter.peft_config()).map_err(|e| {
            Error::internal(format!(
                "the `peft_config` of `{}` is not a JSON object",
                entry.about.name
            ))
            .because(e)
        })?;
    // Rewrite the other fields that select modules too, such as IA³'s `feedforward_modules`.
    // Otherwise, PEFT might select different modules.
    for (field, value) in
        config.iter_mut().filter(|(field, value)| field.ends_with("_modules") && !value.is_null())
    {
        let meant: Targets = serde_json::from_value(value.take()).map_err(|e| {
            Error::internal(format!("`{field}` must be a list of module names or a pattern"))
                .because(e)
        })?;
        *value = json!(written.inner(in_file(meant)?, adapted)?);
    }
    if let Some(flag) = config.get_mut("fan_in_fan_out") {
        *flag = json!(adapter.peft_has_conv1d() && conv1d(adapted, model).is_some());
    }
    for Selection { field, modules } in adapter.selections() {
        if let (Selected::Patterns(_), Some(Value::Object(patterns))) =
            (modules, config.get_mut(&field))
        {
            *patterns = targets::patterns(std::mem::take(patterns), adapted)?;
        }
    }
    for (field, value) in [
        ("peft_type", json!(entry.peft_type)),
        ("task_type", json!("CAUSAL_LM")),
        ("base_model_name_or_path", json!(base.name)),
        ("revision", json!(base.revision)),
        ("inference_mode", json!(true)),
        ("auto_mapping", Value::Null),
        ("peft_version", json!(PEFT_VERSION)),
        ("target_modules", json!(written.with_names(&adapted.replacements().targets, adapted))),
    ] {
        config.insert(field.to_owned(), value);
    }
    config.extend(adapted.replacements().fields.clone());
    // Omit this field if PEFT's configuration class does not have it. PEFT warns about unknown
    // fields.
    if let Some(layers) = written.layers {
        config.insert("layers_to_transform".to_owned(), json!(layers));
    }
    config.sort_keys();
    std::fs::create_dir_all(dir)
        .within(|| format!("cannot create the folder `{}`", dir.display()))?;
    let prefix = |name: &str| if adapted.is_shared(name) { SHARED_PREFIX } else { PREFIX };
    let of_base = adapted.replacements().snapshot()?;
    let tensors: Vec<_> = adapted
        .snapshot()?
        .into_iter()
        .chain(of_base)
        .map(|(name, t)| (format!("{}{name}", prefix(&name)), t))
        .collect();
    write_safetensors(&dir.join(TENSORS), &tensors)?;
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::internal(e.to_string()))?;
    crate::files::write_whole(&dir.join(CONFIG), text.as_bytes())
}
