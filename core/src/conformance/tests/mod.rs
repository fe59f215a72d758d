//! Tests of the conformance tests: methods that satisfy all invariants pass, and methods with a
//! flaw are reported.

mod faulty;
mod misdescribed;

use std::collections::BTreeSet;

use faulty::{FaultyAdapter, FaultyDataset, FaultyIntervention, FaultyTap, FaultyTransform};
use misdescribed::tap_entry;
use rayon::prelude::*;

use super::adapters::ADAPTERS;
use super::datasets::DATASETS;
use super::described::DESCRIBED;
use super::interventions::INTERVENTIONS;
use super::lesson::LESSON;
use super::taps::TAPS;
use super::training::TRAINING;
use super::transforms::TRANSFORMS;
use super::{Method, Verdict, examine, stand_ins};
use crate::registry::{
    AdapterEntry, DatasetEntry, Entry, InterventionEntry, TapEntry, TransformEntry,
};

const FINITE: &str = "the loss and its gradients are finite";
const TWIN: &str = "a pair with identical completions does not dominate the gradient";
const LEARNT: &str =
    "60 steps with the defaults lower the loss and raise the accuracy on the training pairs";
const GRADIENTS: &str = "gradients agree with central finite differences";
const REACH: &str = "every trained tensor receives a gradient, and no frozen tensor does";
const ACCUMULATION: &str = "a batch of n gives the same gradient as n accumulated batches of one";
const SHARING: &str = "shared and separate sequences have the same gradient";
const CHECKPOINTING: &str = "activation checkpointing gives the same loss and the same gradients";
const SEED: &str = "the same seed gives the same bytes";
const LEARNING: &str = "training lowers the loss";
const MISSING_VALUES: &str = "a batch that lacks the method's inputs is an error";
const NAMING: &str = "tensor names are unique, and declared axes have the right width";
const TRAINABLE: &str = "the adapter has trained tensors if it claims to";
const IDENTITY: &str = "the adapter starts as the identity if it claims to";
const OFF: &str = "with the adapter off, the base model is bitwise unchanged";
const MERGING: &str = "merging preserves the outputs, and unmerging restores the weights";
const SAVING: &str = "a saved adapter loads back to the same bytes";
const FUSING: &str =
    "fusing the adapters of a module's parts into a single adapter preserves the outputs";
const LEAVES: &str = "the parameters are trainable leaf tensors with unique names";
const SEEDED: &str = "the transform is determined by its seed";
const LINEAR: &str = "the transform is linear if it claims to be";
const ORTHOGONAL: &str = "the transform preserves lengths and angles if it claims to";
const PLACES: &str = "the sites exist in the model, or the tap returns an error";
const ORDER: &str = "the sites are unique and in the order of a forward pass";
const OUTSIDE: &str = "an out-of-range layer is an error";
const SPLITS: &str = "the splits have unique names";
const WHOLE: &str = "the pairs of every split can be read and are complete";
const TWICE: &str = "reading a split twice gives the same pairs";
const COUNT: &str = "a split has as many pairs as it declares";
const UNKNOWN_SPLIT: &str = "an unknown split is an error";
const DOCUMENTED: &str = "the method and all its fields are documented";
const ROUND_TRIP: &str =
    "the defaults match the fields of the schema, and survive a round trip through JSON";
const NAME: &str = "no field is called `name`, which is reserved";
const UNKNOWN_FIELD: &str = "an unknown field is an error";
const MISFIT: &str = "a configuration with values of the wrong type is an error";
const EXAMPLE: &str = "the documented example is valid and runs";

fn leaked<E: 'static>(entry: E) -> Entry
where
    Entry: From<&'static E>,
{
    Entry::from(&*Box::leak(Box::new(entry)))
}

fn violated(method: impl Into<Method>) -> Vec<&'static str> {
    examine(method).filter(|f| f.violation().is_some()).map(|f| f.statement).collect()
}

#[test]
fn the_stand_ins_satisfy_all_invariants() {
    for entry in stand_ins::ALL {
        let findings: Vec<_> = examine(entry).collect();
        let wrong: Vec<String> =
            findings.iter().filter(|f| f.violation().is_some()).map(ToString::to_string).collect();
        assert!(wrong.is_empty(), "{}: {}", entry.kind().name(), wrong.join("\n"));
        assert!(findings.iter().any(|f| f.verdict == Verdict::Holds));
    }
}

/// Each faulty method violates exactly the expected invariants, and each invariant is violated by
/// at least one of the methods.
#[test]
fn each_flaw_violates_exactly_the_expected_invariants() {
    let (intervention, adapter) = (
        leaked(InterventionEntry::of::<FaultyIntervention>("", "")),
        leaked(AdapterEntry::of::<FaultyAdapter>("FAULTY", "", "")),
    );
    let (transform, tap) = (
        leaked(TransformEntry::of::<FaultyTransform>("", "")),
        leaked(TapEntry::of::<FaultyTap>("", "")),
    );
    // These learning rates are too small to learn anything.
    let slow_intervention =
        leaked(InterventionEntry::of::<FaultyIntervention>("", "").learning_rate(1e-12));
    let slow_adapter =
        leaked(AdapterEntry::of::<FaultyAdapter>("FAULTY", "", "").learning_rate_factor(1e-9));
    let dataset = leaked(DatasetEntry::of::<FaultyDataset>("", ""));
    let behaviour: Vec<(Method, &[&str])> = [
        (intervention, r#"{"flaw": "none"}"#, &[] as &[&str]),
        (intervention, r#"{"flaw": "detaches"}"#, &[GRADIENTS]),
        (intervention, r#"{"flaw": "sums"}"#, &[ACCUMULATION]),
        (
            intervention,
            r#"{"flaw": "divides_by_deviation"}"#,
            &[FINITE, TWIN, ACCUMULATION, SEED, LEARNT],
        ),
        (
            intervention,
            r#"{"flaw": "counts_calls"}"#,
            &[GRADIENTS, ACCUMULATION, SHARING, CHECKPOINTING, SEED],
        ),
        (intervention, r#"{"flaw": "wrong_sign"}"#, &[GRADIENTS, LEARNING, LEARNT]),
        (intervention, r#"{"flaw": "divides_by_reference_margin"}"#, &[TWIN]),
        (intervention, r#"{"flaw": "starts_flat"}"#, &[LEARNT]),
        (slow_intervention, r#"{"flaw": "none"}"#, &[LEARNT]),
        (slow_adapter, r#"{"flaw": "none"}"#, &[LEARNT]),
        (intervention, r#"{"flaw": "zero_gradient"}"#, &[GRADIENTS, REACH, LEARNING, LEARNT]),
        (intervention, r#"{"flaw": "panics"}"#, &[MISSING_VALUES]),
        (intervention, r#"{"flaw": "ignores_missing_values"}"#, &[MISSING_VALUES]),
        (adapter, r#"{"flaw": "none"}"#, &[]),
        (adapter, r#"{"flaw": "unused_parameter"}"#, &[REACH]),
        (adapter, r#"{"flaw": "trains_the_base"}"#, &[REACH]),
        (
            adapter,
            r#"{"flaw": "writes_to_the_base"}"#,
            &[GRADIENTS, REACH, ACCUMULATION, SHARING, CHECKPOINTING, OFF],
        ),
        (adapter, r#"{"flaw": "claims_not_to_train"}"#, &[TRAINABLE]),
        (adapter, r#"{"flaw": "starts_changed"}"#, &[IDENTITY]),
        (adapter, r#"{"flaw": "claims_to_start_changed"}"#, &[IDENTITY]),
        (adapter, r#"{"flaw": "merges_twice"}"#, &[MERGING]),
        (adapter, r#"{"flaw": "none", "scale": 2.0}"#, &[SAVING]),
        (adapter, r#"{"flaw": "duplicate_names"}"#, &[NAMING, SAVING]),
        (adapter, r#"{"flaw": "wrong_axis"}"#, &[NAMING]),
        (adapter, r#"{"flaw": "ignores_the_seed"}"#, &[ACCUMULATION, SEED]),
        (adapter, r#"{"flaw": "fuses_without_groups"}"#, &[FUSING]),
        (transform, r#"{"flaw": "none"}"#, &[]),
        (transform, r#"{"flaw": "not_orthogonal"}"#, &[ORTHOGONAL]),
        (transform, r#"{"flaw": "not_linear"}"#, &[LINEAR]),
        (transform, r#"{"flaw": "uses_context"}"#, &[LINEAR]),
        (transform, r#"{"flaw": "ignores_the_seed"}"#, &[SEEDED, ACCUMULATION, SEED]),
        (transform, r#"{"flaw": "duplicate_names"}"#, &[LEAVES]),
        (transform, r#"{"flaw": "detaches"}"#, &[GRADIENTS, REACH]),
        (tap, r#"{"flaw": "none"}"#, &[]),
        (tap, r#"{"flaw": "reads_block_five"}"#, &[PLACES]),
        (tap, r#"{"flaw": "reads_nothing"}"#, &[PLACES]),
        (tap, r#"{"flaw": "reads_backwards"}"#, &[ORDER]),
        (tap, r#"{"flaw": "reads_twice"}"#, &[ORDER]),
        (tap, r#"{"flaw": "clamps"}"#, &[OUTSIDE]),
        (dataset, r#"{"flaw": "none"}"#, &[]),
        (dataset, r#"{"flaw": "duplicate_names"}"#, &[SPLITS]),
        (dataset, r#"{"flaw": "no_pairs"}"#, &[WHOLE, COUNT]),
        (dataset, r#"{"flaw": "equal_completions"}"#, &[WHOLE]),
        (dataset, r#"{"flaw": "mixes_text_and_messages"}"#, &[WHOLE]),
        (dataset, r#"{"flaw": "shuffles"}"#, &[TWICE]),
        (dataset, r#"{"flaw": "miscounts"}"#, &[COUNT]),
        (dataset, r#"{"flaw": "takes_any_split"}"#, &[UNKNOWN_SPLIT]),
    ]
    .map(|(entry, json, breaks)| (Method::new(entry, json), breaks))
    .into();
    let described: Vec<(Method, &[&str])> = [
        (tap_entry::<misdescribed::Undocumented>(), &[DOCUMENTED] as &[&str]),
        (tap_entry::<misdescribed::UndocumentedWithin>(), &[DOCUMENTED]),
        (tap_entry::<misdescribed::FullStop>(), &[DOCUMENTED]),
        (tap_entry::<misdescribed::OmitsField>(), &[ROUND_TRIP]),
        (tap_entry::<misdescribed::ChangesInRoundTrip>(), &[ROUND_TRIP]),
        (tap_entry::<misdescribed::ReservedName>(), &[NAME, EXAMPLE]),
        (tap_entry::<misdescribed::TakesAnyField>(), &[UNKNOWN_FIELD]),
        (tap_entry::<misdescribed::TakesAnyFieldWithin>(), &[UNKNOWN_FIELD]),
        (tap_entry::<misdescribed::TakesAnyType>(), &[MISFIT]),
        (tap_entry::<misdescribed::ExampleWithUnknownField>(), &[EXAMPLE]),
        (tap_entry::<misdescribed::ExampleOutOfRange>(), &[EXAMPLE]),
    ]
    .map(|(entry, breaks)| (leaked(entry).into(), breaks))
    .into();
    let table: Vec<(Method, &[&str])> = behaviour.into_iter().chain(described).collect();
    let broken: Vec<Vec<&str>> =
        table.par_iter().map(|(method, _)| violated(method.clone())).collect();
    let unexpected: Vec<String> = table
        .iter()
        .zip(&broken)
        .filter(|((_, breaks), broken)| {
            broken.iter().collect::<BTreeSet<_>>() != breaks.iter().collect()
        })
        .map(|((method, _), broken)| format!("{method}: {broken:#?}"))
        .collect();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    let cases = [TRAINING, INTERVENTIONS, ADAPTERS, LESSON].into_iter().flatten().map(|i| i.name);
    let described = DESCRIBED.iter().map(|i| i.name);
    let by_kind = TRANSFORMS
        .iter()
        .map(|i| i.name)
        .chain(TAPS.iter().map(|i| i.name))
        .chain(DATASETS.iter().map(|i| i.name));
    assert_eq!(
        cases.chain(described).chain(by_kind).collect::<BTreeSet<_>>(),
        broken.into_iter().flatten().collect()
    );
}

#[test]
fn a_finding_is_shown_as_a_line_followed_by_the_violation() {
    let entry = leaked(TapEntry::of::<FaultyTap>("", ""));
    let finding = examine(Method::new(entry, r#"{"flaw": "panics"}"#))
        .find(|f| f.statement == PLACES)
        .expect("the finding of this invariant");
    assert_eq!(
        finding.to_string(),
        format!(
            "violated  {PLACES}\n          `sites` of tap `faulty` panicked\n            because \
                the tap is off"
        )
    );
}
