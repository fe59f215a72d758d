//! What a command is given to look at: a run, or an adapter that names its model.

use std::path::{Path, PathBuf};

use reprpo_core::config::{Experiment, Layering, Record};
use reprpo_core::fingerprint::Fingerprint;
use reprpo_core::model::peft;
use reprpo_core::other_base;
use reprpo_core::weights::{Located, locate_adapter};
use reprpo_core::{Error, Result};

use crate::App;

/// A trained adapter, and what names its model.
pub struct Trained {
    /// Its folder, in PEFT's format.
    pub adapter: PathBuf,
    base: Base,
}

enum Base {
    /// The configuration of its run.
    Config(PathBuf),
    /// The configuration of the run that made the adapter; only its model is used.
    ConfigOfAdapter(PathBuf),
    /// The base model that the adapter's own file `config` names.
    Named { config: PathBuf, model: String },
    /// Only the user names it.
    Unknown,
}

impl Trained {
    /// What stands in `folder`, or in the repository of the hub that it names: a run with its
    /// configuration, or an adapter; `model` is the base that the user names.
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
            return Err(Error::new(format!(
                "there is neither a run nor an adapter in `{}`",
                folder.display()
            ))
            .hint("a run has a `config.toml`, an adapter an `adapter_config.json`"));
        }
        if let Some((config, _)) = other_base::run_of(folder)? {
            return Ok(Self { adapter: folder.to_owned(), base: Base::ConfigOfAdapter(config) });
        }
        let base = match (peft::Base::of_adapter(folder)?, model) {
            (Some(named), _) => {
                let beside = other_base::beside(folder, &named.name)
                    .map(|path| path.to_string_lossy().into_owned());
                Base::Named { config: peft, model: beside.unwrap_or(named.name) }
            }
            (None, Some(_)) => Base::Unknown,
            (None, None) => {
                return Err(Error::new(format!(
                    "the adapter in `{}` does not say which model it is for",
                    folder.display()
                ))
                .hint("name it with `--model`"));
            }
        };
        Ok(Self { adapter: folder.to_owned(), base })
    }

    /// Adds what is known of the experiment, below the user's own settings.
    ///
    /// # Errors
    /// Fails if a configuration cannot be read.
    pub fn apply(&self, layers: &mut Layering<'_>) -> Result<()> {
        match &self.base {
            Base::Config(config) => {
                if Record::read(config)?.is_none() {
                    tracing::warn!(
                        "`{}` has no section `record`: its relative paths start at the current \
                            folder, and reprpo cannot check that they lead to the run's own model \
                            and data",
                        config.display()
                    );
                }
                layers.file(config)?;
            }
            Base::ConfigOfAdapter(config) => layers.model_of(config)?,
            Base::Named { config, model } => {
                if Path::new(model).is_relative()
                    && Path::new(model).exists()
                    && other_base::beside(&self.adapter, model).is_none()
                {
                    tracing::warn!(
                        "`base_model_name_or_path` in `{}` is the relative path `{model}`: it \
                            starts at the current folder, and reprpo cannot check that it leads \
                            to the adapter's own base model",
                        config.display()
                    );
                }
                layers.base(config, model);
            }
            Base::Unknown => {}
        }
        layers.adapter(&self.adapter)
    }

    /// Calls [`warn_of_other_base`] for this adapter.
    ///
    /// # Errors
    /// Fails if the adapter's configuration cannot be read.
    pub fn warn(
        &self,
        experiment: &Experiment,
        source: &Located,
        found: &Fingerprint,
        app: &App<'_>,
    ) -> Result<()> {
        warn_of_other_base(&self.adapter, experiment, source, found, app)
    }
}

/// Warns if the experiment's model, found at `source`, is not or may not be the one that the
/// adapter was made for.
///
/// # Errors
/// Fails if the adapter's configuration cannot be read.
pub fn warn_of_other_base(
    adapter: &Path,
    experiment: &Experiment,
    source: &Located,
    found: &Fingerprint,
    app: &App<'_>,
) -> Result<()> {
    if let Some(why) = other_base::warning(adapter, &experiment.model, source, found)? {
        app.printer.note(&format!("warning: {why}"));
    }
    Ok(())
}
