//! The target of commands such as `eval` and `generate`: a run, or a saved adapter.

use std::path::{Path, PathBuf};

use reprpo_core::config::{Experiment, Layering, Record};
use reprpo_core::fingerprint::Fingerprint;
use reprpo_core::model::peft;
use reprpo_core::other_base;
use reprpo_core::weights::{Located, locate_adapter};
use reprpo_core::{Error, Result};

use crate::App;

/// A trained adapter, and the source of its base model's name.
pub struct TrainedAdapter {
    /// Folder of the adapter, in PEFT format.
    pub adapter: PathBuf,
    base: Base,
}

enum Base {
    /// The run's configuration file. The whole experiment is taken from this file.
    Config(PathBuf),
    /// The configuration file of the run that wrote the adapter. Only the model is taken from it.
    ConfigOfAdapter(PathBuf),
    /// The base model that the adapter's `adapter_config.json` names.
    Named { config: PathBuf, model: String },
    /// The adapter does not name its base model, so the user must set `--model`.
    Unknown,
}

impl TrainedAdapter {
    /// Finds the run or the adapter in `folder`. `folder` may also be the name of a Hugging Face
    /// repository. `model` is the value of `--model`, if given.
    ///
    /// # Errors
    /// Fails if `folder` has no run and no adapter. Also fails if neither the adapter nor `model`
    /// names the base model.
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
            .hint(
                "give a folder with a `config.toml` (a run) or an `adapter_config.json` \
                    (an adapter)",
            ));
        }
        if let Some((config, _)) = other_base::run_of(folder)? {
            return Ok(Self { adapter: folder.to_owned(), base: Base::ConfigOfAdapter(config) });
        }
        let base = match (peft::Base::of_adapter(folder)?, model) {
            (Some(named), _) => {
                let sibling = other_base::beside(folder, &named.name)
                    .map(|path| path.to_string_lossy().into_owned());
                Base::Named { config: peft, model: sibling.unwrap_or(named.name) }
            }
            (None, Some(_)) => Base::Unknown,
            (None, None) => {
                return Err(Error::new(format!(
                    "the adapter in `{}` does not name its base model",
                    folder.display()
                ))
                .hint("give the base model with `--model`"));
            }
        };
        Ok(Self { adapter: folder.to_owned(), base })
    }

    /// True if the folder is that of a run.
    pub fn is_run(&self) -> bool {
        matches!(self.base, Base::Config(_))
    }

    /// Adds the settings of the run or the adapter to `layers`, below the user's own settings.
    ///
    /// # Errors
    /// Fails if a configuration cannot be read.
    pub fn apply(&self, layers: &mut Layering<'_>) -> Result<()> {
        match &self.base {
            Base::Config(config) => {
                if Record::read(config)?.is_none() {
                    tracing::warn!(
                        "`{}` has no `record` section: relative paths in it are resolved against \
                            the current folder, and reprpo cannot check that they lead to the \
                            run's own model and data",
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
                        "`base_model_name_or_path` in `{}` is the relative path `{model}`: it is \
                            resolved against the current folder, and reprpo cannot check that it \
                            leads to the adapter's own base model",
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

/// Warns if the experiment's model is not the base model of the adapter, or if the models cannot be
/// compared. `source` is the location of the experiment's model.
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
