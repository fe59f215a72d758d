//! Flags that describe a whole experiment, shared by several commands.

use std::path::PathBuf;

use clap::Args;
use reprpo_core::Result;
use reprpo_core::config::{Assignment, Layering, Resolved};

use super::data_flags::{DataFlags, RunData};
use super::fields::{
    CacheFlags, EvaluationFlags, FieldFlags, MethodFlags, ModelFlags, OutputFlags, StartFlags,
    TrainingFlags,
};
use super::{CONFIGURATION, layers};
use crate::App;

/// Flags that set fields of the experiment.
#[derive(Args, Clone)]
pub struct ExperimentArgs {
    #[command(flatten)]
    pub model: FieldFlags<ModelFlags>,
    #[command(flatten)]
    method: FieldFlags<MethodFlags>,
    #[command(flatten)]
    start: FieldFlags<StartFlags>,
    #[command(flatten)]
    data: DataFlags<RunData>,
    #[command(flatten)]
    training: FieldFlags<TrainingFlags>,
    #[command(flatten)]
    evaluation: FieldFlags<EvaluationFlags>,
    #[command(flatten)]
    pub output: FieldFlags<OutputFlags>,
    #[command(flatten)]
    cache: FieldFlags<CacheFlags>,
    #[command(flatten)]
    pub fields: ConfigurationFlags,
}

/// Flags that set any field of the experiment.
#[derive(Args, Clone)]
pub struct ConfigurationFlags {
    /// TOML file with fields of the experiment; may be repeated, and later files override earlier
    /// ones.
    #[arg(long, value_name = "FILE", help_heading = CONFIGURATION)]
    pub config: Vec<PathBuf>,
    /// Set any field of the experiment, e.g. `train.lr=3e-5`; may be repeated. `none` clears an
    /// optional field.
    #[arg(long, value_name = "FIELD=VALUE", help_heading = CONFIGURATION)]
    pub set: Vec<String>,
}

impl ExperimentArgs {
    /// Resolves the experiment from the binary's defaults, the configuration files, the environment
    /// and these flags.
    ///
    /// # Errors
    /// Fails if a configuration file cannot be read, or if a name, field or value is not valid.
    pub fn resolve(&self, app: &App<'_>) -> Result<Resolved> {
        self.resolve_within(app, &[], &[])
    }

    /// Resolves the experiment of a run of a study. Like [`resolve`](Self::resolve), but `base` is
    /// a layer between the configuration files and the environment, and `over` overrides
    /// everything.
    ///
    /// # Errors
    /// Fails in the same cases as [`resolve`](Self::resolve).
    pub fn resolve_within(
        &self,
        app: &App<'_>,
        base: &[Assignment],
        over: &[Assignment],
    ) -> Result<Resolved> {
        self.fields.resolve_within(app, base, over, |layers| {
            self.model.apply(layers);
            self.start.apply(layers);
            self.data.apply(layers)?;
            self.method.apply(layers);
            self.training.apply(layers);
            self.evaluation.apply(layers);
            self.output.apply(layers);
            self.cache.apply(layers);
            Ok(())
        })
    }
}

impl ConfigurationFlags {
    /// Resolves an experiment. Later sources override earlier ones: the binary's defaults, the
    /// configuration files, the environment, the fields that `flags` sets, and `--set`.
    ///
    /// # Errors
    /// Fails if a configuration file cannot be read, or if a name, field or value is not valid.
    pub fn resolve(
        &self,
        app: &App<'_>,
        flags: impl FnOnce(&mut Layering<'_>) -> Result<()>,
    ) -> Result<Resolved> {
        self.resolve_within(app, &[], &[], flags)
    }

    fn resolve_within(
        &self,
        app: &App<'_>,
        base: &[Assignment],
        over: &[Assignment],
        flags: impl FnOnce(&mut Layering<'_>) -> Result<()>,
    ) -> Result<Resolved> {
        let mut layers = layers::defaults(app)?;
        for file in &self.config {
            layers.file(file)?;
        }
        base.iter().for_each(|assignment| layers.assign(assignment));
        layers::environment(&mut layers);
        flags(&mut layers)?;
        for assignment in &self.set {
            layers.set(assignment)?;
        }
        over.iter().for_each(|assignment| layers.assign(assignment));
        layers.start_from_adapter();
        layers.resolve()
    }
}
