//! Trains ten steps with every intervention, adapter, transform, tap and architecture on the tested
//! device. The reference is the same training in float32 on the CPU, with the eager attention
//! kernel.

use super::report::{Difference, Outcome, Row};
use super::trial::{Tolerances, Trial, Way};
use super::{Section, Selftest};
use crate::api::{Needs, States};
use crate::config::plugin_fields;
use crate::error::Result;
use crate::registry::{AdapterEntry, Entry, InterventionEntry, Kind, TapEntry};

/// In float32, the losses and gradient norms of ten steps differ from the reference by about 1e-6.
/// A loss near 0 can be the difference of larger terms, and has their rounding errors. The error of
/// a small loss is therefore divided by one hundredth of the largest loss.
const F32: Tolerances = Tolerances { loss: 1e-4, norm: [1e-3, 1e-3], floor: 1e-2 };
/// In bf16, the gradient is only compared at the first step, where both runs have the same weights.
/// Later, the weights differ by rounding, and the gradient may jump where the loss has a kink. A
/// wrong gradient still shows in the losses of later steps.
const BF16: Tolerances = Tolerances { loss: 2e-2, norm: [5e-2, f64::INFINITY], floor: 1e-1 };

/// A run, and the name of its row in the report.
pub struct Subject {
    /// Kind and name of the plugin or architecture that is tested.
    pub name: String,
    /// Settings of the run.
    pub trial: Trial,
}

/// Returns one run for every plugin and one for every architecture. Each plugin is combined with
/// the default plugins of the other kinds. Adapters that are made of the adapters of other runs are
/// left out.
///
/// # Errors
/// Fails if a model cannot be written.
pub fn subjects(test: &Selftest<'_>) -> Result<Vec<Subject>> {
    let workshop = &test.workshop;
    let reader = reader(test)?;
    let mut subjects = Vec::new();
    for kind in [Kind::Intervention, Kind::Adapter, Kind::Transform, Kind::Tap] {
        for entry in workshop.registry().of(kind) {
            if matches!(entry, Entry::Adapter(adapter) if adapter.needs_sources()) {
                continue;
            }
            let mut choices = vec![(kind, entry.about().name)];
            // Transforms and taps only have an effect with an intervention that reads states.
            if let (Kind::Transform | Kind::Tap, Some(reader)) = (kind, reader) {
                choices.push((Kind::Intervention, reader.about.name));
            }
            let mut trial = workshop.trial(choices);
            if let Entry::Tap(tap) = entry {
                trial.set.extend(shallow(tap)?);
            }
            subjects
                .push(Subject { name: format!("{} {}", kind.name(), entry.about().name), trial });
        }
    }
    for (name, model) in workshop.fixture().architectures() {
        model?;
        let model = workshop.architecture(name)?;
        subjects.push(Subject {
            name: format!("architecture {name}"),
            trial: Trial { model, ..workshop.trial(Vec::new()) },
        });
    }
    Ok(subjects)
}

/// Returns an intervention that reads the states of the policy and the reference at the run's tap,
/// if there is one.
fn reader(test: &Selftest<'_>) -> Result<Option<&'static InterventionEntry>> {
    let info = test.workshop.info()?;
    let reads = |entry: &&'static InterventionEntry| {
        let Ok(intervention) = entry.build("{}", &info) else { return false };
        let Needs { states, reference_states, evaluate_only, .. } = intervention.needs();
        states > States::None && reference_states && !evaluate_only && intervention.tap().is_none()
    };
    Ok(test.workshop.registry().all::<InterventionEntry>().find(reads))
}

/// Returns a setting that makes a tap read the first two blocks. This is needed because the default
/// layers of some taps do not exist in a small model.
fn shallow(tap: &TapEntry) -> Result<Option<String>> {
    let has_layers = plugin_fields(&tap.about)?.iter().any(|field| field.name == "layers");
    Ok(has_layers.then(|| "tap.layers=0,1".to_owned()))
}

/// Trains each subject on the tested device, and compares the run with a reference run on the CPU.
///
/// # Errors
/// Fails if a model cannot be written. Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let subjects = subjects(test)?;
    let made_of_others: Vec<String> = test
        .workshop
        .registry()
        .all::<AdapterEntry>()
        .filter(|entry| entry.needs_sources())
        .map(|entry| format!("{} {}", Kind::Adapter.name(), entry.about.name))
        .collect();
    test.begin(Section::Methods, subjects.len() + made_of_others.len());
    for name in made_of_others {
        test.check(Section::Methods, &name, |_| {
            let why = "the adapter is made of the adapters of other runs";
            Ok(vec![Row::new(Section::Methods, &name, Outcome::Skipped, why)])
        })?;
    }
    for Subject { name, trial } in subjects {
        test.check(Section::Methods, &name, |test| {
            let reference = test.workshop.train(&trial, Way::PLAIN, test.stop)?;
            if reference.losses.is_empty() {
                return Ok(vec![Row::new(
                    Section::Methods,
                    &name,
                    Outcome::Skipped,
                    "the method trains nothing",
                )]);
            }
            let mut rows = Vec::new();
            for (dtype, tolerances) in [("f32", F32), ("bf16", BF16)] {
                let run = test.workshop.train(&trial, Way::usual(test.device, dtype), test.stop)?;
                let worst = Difference::worst_of(run.differences(&reference, dtype, tolerances));
                rows.extend(worst.map(|worst| Row::of(Section::Methods, &name, worst)));
            }
            Ok(rows)
        })?;
    }
    Ok(())
}
