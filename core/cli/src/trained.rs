//! What a command is given to look at: a run, or an adapter that names its model.

use std::path::{Path, PathBuf};

use reprpo_core::config::Layering;
use reprpo_core::weights::locate_adapter;
use reprpo_core::{Error, Result};
use serde_json::Value;

/// A trained adapter, and where its model is said.
pub struct Trained {
    /// Its folder, in PEFT's format.
    pub adapter: PathBuf,
    base: Base,
}

enum Base {
    /// The configuration of its run.
    Config(PathBuf),
    /// What the adapter says itself.
    Named(String),
    /// Nothing says it but the user.
    Unknown,
}

impl Trained {
    /// What stands in `folder`, or in the repository of the hub that it names: a run with its configuration, or an adapter; `model` is the base that the user names.
    ///
    /// # Errors
    /// A folder with neither, or an adapter whose model nobody names.
    pub fn find(folder: &Path, model: Option<&str>) -> Result<Self> {
        let folder = &locate_adapter(folder)?;
        let (config, peft) = (folder.join("config.toml"), folder.join("adapter_config.json"));
        if config.is_file() {
            return Ok(Self { adapter: folder.join("adapter"), base: Base::Config(config) });
        }
        if !peft.is_file() {
            return Err(Error::new(format!("there is neither a run nor an adapter in `{}`", folder.display()))
                .hint("a run has a `config.toml`, an adapter an `adapter_config.json`"));
        }
        let text = std::fs::read_to_string(&peft).map_err(|e| Error::new(format!("cannot read `{}`", peft.display())).because(e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| Error::new(format!("`{}` is not JSON", peft.display())).because(e))?;
        let named = json.get("base_model_name_or_path").and_then(Value::as_str).filter(|m| !m.is_empty());
        let base = match (named, model) {
            (Some(named), _) => Base::Named(named.to_owned()),
            (None, Some(_)) => Base::Unknown,
            (None, None) => {
                return Err(Error::new(format!("the adapter in `{}` does not say which model it is for", folder.display())).hint("name it with `--model`"));
            }
        };
        Ok(Self { adapter: folder.to_owned(), base })
    }

    /// Puts what is known of the experiment under what the user says.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    pub fn say(&self, layers: &mut Layering<'_>) -> Result<()> {
        match &self.base {
            Base::Config(config) => layers.file(config)?,
            Base::Named(model) => layers.flag("base_model_name_or_path", "model", model),
            Base::Unknown => {}
        }
        layers.adapter(&self.adapter)
    }
}
