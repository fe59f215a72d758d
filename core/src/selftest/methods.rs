//! Ten steps of training with every intervention, adapter, transform, tap and architecture, against
//! the same steps taken the plainest way.

use super::report::{Difference, Outcome, Row};
use super::trial::{Tolerances, Trial, Way};
use super::{Section, Selftest};
use crate::api::{Needs, States};
use crate::config::plugin_fields;
use crate::error::Result;
use crate::registry::{Entry, InterventionEntry, Kind, TapEntry};

/// In float32, ten steps differ by about 1e-6. A loss near 0 is a difference of larger terms, whose
/// rounding it keeps, so it counts as one hundredth of the run's largest loss.
const F32: Tolerances = Tolerances { loss: 1e-4, norm: [1e-3, 1e-3], floor: 1e-2 };
/// In bf16, the gradient is only compared at the first step, where the weights are the same. Later
/// it is that of other weights, and on another side of the kinks that some losses have. The losses
/// of later steps show a wrong gradient.
const BF16: Tolerances = Tolerances { loss: 2e-2, norm: [5e-2, f64::INFINITY], floor: 1e-1 };

/// A run and the name of its row.
pub struct Subject {
    /// The kind and the name of what is varied.
    pub name: String,
    /// The settings.
    pub trial: Trial,
}

/// Runs with every plugin, one varied at a time, and with every architecture.
///
/// # Errors
/// Fails if a model cannot be written.
pub fn subjects(test: &Selftest<'_>) -> Result<Vec<Subject>> {
    let workshop = &test.workshop;
    let reader = reader(test)?;
    let mut subjects = Vec::new();
    for kind in [Kind::Intervention, Kind::Adapter, Kind::Transform, Kind::Tap] {
        for entry in workshop.registry().of(kind) {
            let mut choices = vec![(kind, entry.about().name)];
            // A transform and a tap only matter to an intervention that reads states.
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

/// An intervention that reads states of policy and reference at the tap of the run; `None` if there
/// is none.
fn reader(test: &Selftest<'_>) -> Result<Option<&'static InterventionEntry>> {
    let info = test.workshop.info()?;
    let reads = |entry: &&'static InterventionEntry| {
        let Ok(intervention) = entry.build("{}", &info) else { return false };
        let Needs { states, reference_states, evaluate_only, .. } = intervention.needs();
        states > States::None && reference_states && !evaluate_only && intervention.tap().is_none()
    };
    Ok(test.workshop.registry().all::<InterventionEntry>().find(reads))
}

/// Settings that let a tap read the first blocks. The default layers of some taps hold none of a
/// small model's.
fn shallow(tap: &TapEntry) -> Result<Option<String>> {
    let has_layers = plugin_fields(&tap.about)?.iter().any(|field| field.name == "layers");
    Ok(has_layers.then(|| "tap.layers=0,1".to_owned()))
}

/// Compares the runs.
///
/// # Errors
/// Fails if a model cannot be written, or if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let subjects = subjects(test)?;
    test.begin(Section::Methods, subjects.len());
    for Subject { name, trial } in subjects {
        test.check(Section::Methods, &name, |test| {
            let reference = test.workshop.train(&trial, Way::PLAIN, test.stop)?;
            if reference.losses.is_empty() {
                return Ok(vec![Row::new(
                    Section::Methods,
                    &name,
                    Outcome::Skipped,
                    "it trains nothing",
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
