//! The first phase of a run: reads and checks all inputs. Nothing is written before all checks have
//! passed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::adapter::AdapterChoice;
use super::batch_size::Trial;
use super::fingerprints::{Fingerprints, StartFingerprints};
use super::folder::is_empty;
use super::labels::swap_labels;
use super::saved_transforms::SavedTransforms;
use super::start::Start;
use super::{checkpoint, fitting, marks, training_pairs};
use crate::api::{Intervention, ModelInfo, RunInfo, Statistics, Tap, Transform};
use crate::config::{Batch, Experiment, Origin, ReferenceModel};
use crate::error::{Error, Result};
use crate::eval::{EvalSplit, TrainingPairs};
use crate::ffi;
use crate::fingerprint::{self, Fingerprint};
use crate::guard::faults;
use crate::model::Model;
use crate::model::attach::unmatched;
use crate::model::peft::Saved;
use crate::other_base;
use crate::reference::{FitSites, ReferenceCache};
use crate::registry::Registry;
use crate::report::Progress;
use crate::session::Session;
use crate::shifts;
use crate::text::{TokenPair, Tokenised};
use crate::train::{Steps, Taps};

/// The step of a checkpoint, and the locked log of its run.
type LockedCheckpoint = (usize, Option<File>);

/// The checkpoint that a run is resumed from.
#[derive(Debug)]
pub struct Resumed {
    /// Number of finished steps.
    pub step: usize,
    /// The run's log, locked for this process; `None` if it could not be opened.
    pub lock: Option<File>,
    /// Names of the inputs that have changed since the checkpoint was written. Empty unless
    /// `--inexact-resume` is used.
    pub differences: Vec<String>,
}

/// A run whose inputs have been read and checked.
pub struct Plan<'a> {
    /// The experiment. The model and the data set are pinned to the commits that were read.
    pub experiment: Experiment,
    /// The registered plugins.
    pub registry: &'a Registry,
    /// The model, its tokenizer and the data set.
    pub session: Session,
    /// The training objective and its taps; `None` after the run has been assembled.
    method: Option<(Box<dyn Intervention>, Taps)>,
    /// The sites whose states the method sees before the first step; `None` if it needs none.
    pub fit_sites: Option<FitSites>,
    /// The statistics of the run that is resumed; `None` for a new run, or if there are none.
    pub statistics: Option<Statistics>,
    /// The adapter to train.
    pub adapter: AdapterChoice,
    /// The pairs to train on.
    pub pairs: Tokenised,
    /// Number of pairs in `pairs` whose completions were swapped.
    pub swapped_labels: usize,
    /// The held-out pairs to validate on; empty if the run has no validation.
    pub held_out: Vec<TokenPair>,
    /// The pairs to evaluate on; empty if the run has no evaluation.
    pub eval_splits: Vec<EvalSplit>,
    /// Fingerprint of the adapter in `init_adapter`; `None` if the run starts from the base model.
    pub starts_from: Option<Fingerprint>,
    /// Fingerprints of everything that the training steps depend on.
    pub fingerprints: Fingerprints,
    /// The run's folder.
    pub folder: PathBuf,
    /// The checkpoint to resume from; `None` for a new run.
    pub checkpoint: Option<Resumed>,
    /// A warning if the adapter in `init_adapter` was trained on a different base model.
    pub base_warning: Option<String>,
    /// How the number of pairs in a micro-batch was chosen, if it was chosen for this run.
    pub batch_size: Option<String>,
    /// Other warnings for the user.
    pub warnings: Vec<String>,
    /// When the run began.
    pub begin: Instant,
}

impl<'a> Plan<'a> {
    /// Reads and checks all inputs of the run.
    ///
    /// # Errors
    /// Fails if the folder is in use, or if a plugin rejects the experiment. Also fails if the
    /// model, the data or a saved file cannot be read or does not match the experiment. A resumed
    /// run fails if the inputs have changed since the checkpoint was written.
    pub fn new(
        experiment: &Experiment,
        start: &Start,
        registry: &'a Registry,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let begin = Instant::now();
        let (folder, resumed) = open(start)?;
        let mut experiment = experiment.clone();
        if resumed.is_some() {
            // Do not compare the inputs with the fingerprints in the run's `config.toml`. The
            // checkpoint's fingerprints cover more inputs and are compared below.
            experiment.sources.forget_records();
        }
        let saved =
            experiment.init_adapter.as_deref().map(|dir| Saved::read(dir, registry)).transpose();
        let saved = saved.map_err(|e| {
            explain(&experiment, "init_adapter", experiment.init_adapter.as_deref(), e)
        })?;
        let transforms =
            experiment.init_transform.as_deref().map(SavedTransforms::read).transpose();
        let transforms = transforms.map_err(|e| {
            explain(&experiment, "init_transform", experiment.init_transform.as_deref(), e)
        })?;
        let mut start_fingerprints =
            start_fingerprints(&experiment, saved.as_ref(), transforms.as_ref())?;
        let adapter = AdapterChoice::new(&experiment, saved, registry)?;
        if adapter.has_edits() {
            return Err(explain(
                &experiment,
                "init_adapter",
                experiment.init_adapter.as_deref(),
                Error::new(
                    "the adapter was saved with edits of the residual stream, and training cannot \
                        continue from them",
                )
                .hint("choose an adapter without `edits.safetensors`"),
            ));
        }
        start_fingerprints.start.extend(adapter.source_fingerprints().cloned());
        start_fingerprints.paths.extend(
            adapter.adapter.sources().iter().map(|source| format!("adapter.{}", source.field)),
        );

        progress.message(&format!("loading {}", experiment.model));
        let session = Session::open(&experiment, registry)?;
        pin(&mut experiment, &session)?;
        if session.model.device().is_cuda() {
            ffi::cuda_reset_peak(session.model.device())?;
        }
        let base_warning = match &experiment.init_adapter {
            Some(dir) => {
                other_base::warning(dir, &experiment.model, &session.source, &session.fingerprint)?
            }
            None => None,
        };
        let (intervention, taps) = method(&experiment, &session.model, registry)?;
        let fit_sites = match intervention.needs().fit {
            true => Some(fit_sites(&experiment, intervention.as_ref(), &session, registry)?),
            false => None,
        };
        faults::check()?;
        if !intervention.needs().evaluate_only {
            let without_steps = || registry.without_steps(session.model.info());
            adapter.check_trainable(&experiment.intervention.name, without_steps)?;
        }
        if let Some(saved) = transforms {
            saved.restore(&experiment, &taps)?;
        }
        if adapter.values.is_none()
            && let Some(e) =
                unmatched(adapter.adapter.as_ref(), session.model.info())?.into_iter().next()
        {
            return Err(e);
        }
        let mut warnings = adapter.warnings(&session.model)?;
        for folder in adapter.source_folders() {
            warnings.extend(other_base::warning(
                folder,
                &experiment.model,
                &session.source,
                &session.fingerprint,
            )?);
        }
        warnings.extend(adapter.training_warnings(&session.model)?);

        let train = &experiment.train;
        let evaluate_only = intervention.needs().evaluate_only;
        let (mut pairs, held_out) = training_pairs::read(&session, &experiment, evaluate_only)?;
        // The held-out pairs keep their labels, so that validation measures the true preference.
        let swapped_labels = swap_labels(&mut pairs, train.swap_labels, train.seed);
        // Read the evaluation pairs before training, so that a bad row is reported immediately
        // instead of after hours of training.
        let eval_splits = if experiment.eval.enabled {
            let training = TrainingPairs::new(&train.split, &pairs);
            shifts::read(&session, &experiment, Some(&training), registry)?
        } else {
            Vec::new()
        };
        warnings.extend(validate(
            intervention.as_ref(),
            &taps,
            session.model.info(),
            &Steps::new(&pairs.pairs, train),
        )?);
        let mut batch_size = None;
        if experiment.train.batch == Batch::Auto && !intervention.needs().evaluate_only {
            let choice = Trial {
                model: &session.model,
                adapter: &adapter,
                pairs: &pairs.pairs,
                train: &experiment.train,
                fit_sites: fit_sites.as_ref(),
                method: || method(&experiment, &session.model, registry),
            }
            .choose(progress)?;
            batch_size = Some(choice.describe());
            (experiment.train.batch, experiment.train.accumulate) =
                (Batch::Pairs(choice.batch), choice.accumulate);
        }
        let tokenizer = fingerprint::of_tokenizer(&session.tokenizer)?;
        let data = [&pairs.pairs[..], &held_out];
        let statistics = match &resumed {
            Some(_) if fit_sites.is_some() => Some(fitting::read(&folder)?),
            _ => None,
        };
        let mut fingerprints = Fingerprints::new(
            &experiment,
            session.model.kind(),
            session.fingerprint.clone(),
            tokenizer,
            data,
            &start_fingerprints,
        );
        if let Some(statistics) = &statistics {
            fingerprints.set_statistics(statistics)?;
        }
        let checkpoint = match (start, resumed) {
            (Start::Resume { folder, inexact }, Some((step, lock))) => Some(Resumed {
                step,
                lock,
                differences: checkpoint::check(folder, step, &fingerprints, *inexact)?,
            }),
            _ => None,
        };
        Ok(Self {
            experiment,
            registry,
            session,
            method: Some((intervention, taps)),
            fit_sites,
            statistics,
            adapter,
            pairs,
            swapped_labels,
            held_out,
            eval_splits,
            starts_from: start_fingerprints.adapter,
            fingerprints,
            folder,
            checkpoint,
            base_warning,
            batch_size,
            warnings,
            begin,
        })
    }

    /// Number of steps that were finished before this process; 0 for a new run.
    pub fn first_step(&self) -> usize {
        self.checkpoint.as_ref().map_or(0, |resumed| resumed.step)
    }

    /// All pairs of the training split, in the order of the data set: those to train on and the
    /// held-out pairs.
    pub fn all_pairs(&self) -> Vec<&TokenPair> {
        let mut all: Vec<&TokenPair> = self.pairs.pairs.iter().chain(&self.held_out).collect();
        all.sort_by_key(|pair| pair.index);
        all
    }

    /// Creates the cache of a reference: the base model with the adapter, or without an adapter.
    pub fn cache(&self, adapter: Option<&Fingerprint>) -> ReferenceCache {
        let base = &self.session.reference;
        let source = adapter.map_or_else(|| base.clone(), |adapter| base.with_adapter(adapter));
        ReferenceCache::new(source, &self.experiment.cache)
    }

    /// Builds another instance of the training objective.
    ///
    /// # Errors
    /// Fails if the plugin rejects its configuration.
    pub(super) fn intervention(&self) -> Result<Box<dyn Intervention>> {
        intervention(&self.experiment, &self.session.model, self.registry)
    }

    /// Takes the training objective and its taps out of the plan.
    ///
    /// # Errors
    /// Fails if they have already been taken.
    pub(super) fn take_method(&mut self) -> Result<(Box<dyn Intervention>, Taps)> {
        self.method.take().ok_or_else(|| Error::internal("the run was assembled twice"))
    }
}

/// Returns the run's folder. For a resumed run, also locks the folder and returns the step of its
/// checkpoint.
fn open(start: &Start) -> Result<(PathBuf, Option<LockedCheckpoint>)> {
    match start {
        Start::New(folder) if folder.exists() && !is_empty(folder) => {
            Err(Error::new(format!("`{}` already exists", folder.display()))
                .hint("choose a different `--out`, or remove the folder"))
        }
        Start::New(folder) => Ok((folder.to_owned(), None)),
        Start::Resume { folder, .. } => {
            // Without the lock, another process could replace the checkpoint while it is read.
            let lock = marks::lock(folder)?;
            Ok((folder.to_owned(), Some((checkpoint::latest(folder)?, lock))))
        }
    }
}

/// Pins the experiment's model and data set to the commits that were read.
fn pin(experiment: &mut Experiment, session: &Session) -> Result<()> {
    experiment.model = session.source.pinned(&experiment.model);
    if let Some(json) = session.dataset.pinned() {
        let wrong = || {
            Error::internal(format!(
                "dataset `{}` returned a pinned configuration that is not a JSON object",
                experiment.dataset.name
            ))
        };
        experiment.dataset.config = serde_json::from_str(&json).map_err(|e| wrong().because(e))?;
    }
    Ok(())
}

/// Builds the training objective.
///
/// # Errors
/// Fails if there is no such intervention, or if the plugin rejects its configuration.
pub(super) fn intervention(
    experiment: &Experiment,
    model: &Model,
    registry: &Registry,
) -> Result<Box<dyn Intervention>> {
    registry
        .intervention(&experiment.intervention.name)?
        .build(&experiment.intervention.json(), model.info())
}

/// Builds the training objective, and its taps with their transforms.
fn method(
    experiment: &Experiment,
    model: &Model,
    registry: &Registry,
) -> Result<(Box<dyn Intervention>, Taps)> {
    let intervention = intervention(experiment, model, registry)?;
    let tap = tap(experiment, intervention.as_ref(), registry)?;
    let (transform, json) =
        (registry.transform(&experiment.transform.name)?, experiment.transform.json());
    let taps =
        Taps::build(tap.as_ref(), &intervention.needs(), model, &experiment.train, |cx, init| {
            transform.build(&json, cx, init)
        })?;
    Ok((intervention, taps))
}

/// Returns the method's own tap, or the run's tap.
fn tap(
    experiment: &Experiment,
    intervention: &dyn Intervention,
    registry: &Registry,
) -> Result<Box<dyn Tap>> {
    match intervention.tap() {
        Some(own) => {
            reject_tap(experiment)?;
            Ok(own)
        }
        None => registry.tap(&experiment.tap.name)?.build(&experiment.tap.json()),
    }
}

/// The sites whose states `intervention` sees before the first step.
///
/// # Errors
/// Fails if the tap does not fit the model.
pub(super) fn fit_sites(
    experiment: &Experiment,
    intervention: &dyn Intervention,
    session: &Session,
    registry: &Registry,
) -> Result<FitSites> {
    let tap = tap(experiment, intervention, registry)?;
    FitSites::new(tap.as_ref(), session.model.info())
}

/// Fails if the user chose a tap, but the intervention defines its own sites.
fn reject_tap(experiment: &Experiment) -> Result<()> {
    let chosen =
        |origin: &&Origin| matches!(origin, Origin::Flag(_) | Origin::Set | Origin::Environment(_));
    let Some(origin) = experiment.sources.origin("tap.name").filter(chosen) else { return Ok(()) };
    let (tap, intervention) = (&experiment.tap.name, &experiment.intervention.name);
    Err(Error::new(format!(
        "`tap` is `{tap}` ({origin}), but the intervention `{intervention}` \
        defines its own sites"
    ))
    .hint("remove `tap`, or choose a different intervention"))
}

/// Lets the method check the run, and returns its warnings.
fn validate(
    intervention: &dyn Intervention,
    taps: &Taps,
    model: &ModelInfo,
    steps: &Steps<'_>,
) -> Result<Vec<String>> {
    let all = |holds: fn(&dyn Transform) -> bool| taps.transforms.iter().all(|t| holds(t.as_ref()));
    intervention.validate(&RunInfo {
        model,
        sites: &taps.sites,
        pooling: taps.pooling,
        linear_transforms: all(|t| t.linear()),
        orthogonal_transforms: all(|t| t.orthogonal()),
        pairs: steps.pairs,
        steps: steps.count,
    })
}

/// Adds to the error `e` where the user set `field` to `path`.
fn explain(experiment: &Experiment, field: &str, path: Option<&Path>, e: Error) -> Error {
    experiment.sources.explain(field, &path.unwrap_or(Path::new("")).to_string_lossy(), e)
}

/// Returns the fingerprints of the saved values that the run starts from.
fn start_fingerprints(
    experiment: &Experiment,
    saved: Option<&Saved>,
    transforms: Option<&SavedTransforms>,
) -> Result<StartFingerprints> {
    let adapter = |saved: &Saved| {
        fingerprint::of_tensors("a saved adapter", &saved.identity(), &saved.values)
    };
    let adapter = saved.map(adapter).transpose()?;
    let transforms = transforms
        .map(|t| fingerprint::of_tensors("saved transforms", &Value::Null, t.values()))
        .transpose()?;
    let reference = adapter.clone().filter(|_| experiment.train.reference == ReferenceModel::Start);
    let start = adapter.iter().cloned().chain(transforms).collect();
    Ok(StartFingerprints { start, paths: Vec::new(), reference, adapter })
}
