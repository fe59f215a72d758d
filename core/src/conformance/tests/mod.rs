//! The kit on methods that keep what they promise, and on methods that each break a promise.

mod faulty;
mod misdescribed;

use std::collections::BTreeSet;

use faulty::{FaultyAdapter, FaultyDataset, FaultyIntervention, FaultyTap, FaultyTransform};
use misdescribed::of;
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
const TWIN: &str = "a pair whose completions are the same does not outweigh the others";
const LEARNT: &str =
    "60 steps at its defaults lower the loss and raise the accuracy on the training pairs";
const GRADIENTS: &str = "gradients agree with central finite differences";
const REACH: &str = "the gradient reaches all that is trained, and nothing else";
const ACCUMULATION: &str = "a batch of n equals n batches of one accumulated";
const SEED: &str = "the same seed gives the same bytes";
const LEARNING: &str = "training lowers the loss";
const BARE: &str = "a batch without what it asked for is an error";
const NAMING: &str = "its tensors have names of their own and axes as wide as they say";
const IDENTITY: &str = "the adapter starts as the identity where it says so";
const OFF: &str = "with the adapter off the base is what it was, to the bit";
const MERGING: &str = "merged weights compute the same, and unmerged ones are the old ones";
const SAVING: &str = "what is saved loads back to the same bytes";
const FUSING: &str =
    "adapters of parts compute the same where they are put as one of the whole module";
const LEAVES: &str = "its tensors are leaves with names of their own";
const SEEDED: &str = "it is made of the seed alone";
const LINEAR: &str = "it is linear where it says so";
const ORTHOGONAL: &str = "it keeps lengths and angles where it says so";
const PLACES: &str = "what it reads is in the model, or an error";
const ORDER: &str = "it reads in the order of a pass, each place once";
const OUTSIDE: &str = "layers outside the model are an error";
const SPLITS: &str = "its splits have names of their own";
const WHOLE: &str = "the pairs of every split can be read and are whole";
const TWICE: &str = "reading a split twice gives the same pairs";
const COUNT: &str = "a split holds as many pairs as it says";
const UNKNOWN_SPLIT: &str = "a split that it does not have is an error";
const DOCUMENTED: &str = "it says what it is, and what every field of it is";
const ROUND_TRIP: &str =
    "its defaults are the fields of its schema, and stay what they are when written and read";
const NAME: &str = "no field is called `name`, where its own name stands";
const UNKNOWN_FIELD: &str = "a field that it does not have is refused";
const MISFIT: &str = "a configuration that does not fit is an error";
const EXAMPLE: &str = "its documented example fits and runs";

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
fn the_stand_ins_keep_what_they_promise() {
    for entry in stand_ins::ALL {
        let findings: Vec<_> = examine(entry).collect();
        let wrong: Vec<String> =
            findings.iter().filter(|f| f.violation().is_some()).map(ToString::to_string).collect();
        assert!(wrong.is_empty(), "{}: {}", entry.kind().name(), wrong.join("\n"));
        assert!(findings.iter().any(|f| f.verdict == Verdict::Holds));
    }
}

/// Every statement is broken by some method, and is found broken; and a method breaks no other than
/// it has to.
#[test]
fn each_broken_promise_is_found() {
    let (intervention, adapter) = (
        leaked(InterventionEntry::of::<FaultyIntervention>("", "")),
        leaked(AdapterEntry::of::<FaultyAdapter>("FAULTY", "", "")),
    );
    let (transform, tap) = (
        leaked(TransformEntry::of::<FaultyTransform>("", "")),
        leaked(TapEntry::of::<FaultyTap>("", "")),
    );
    // At such a learning rate nothing is learnt.
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
            r#"{"flaw": "divides_by_the_deviation"}"#,
            &[FINITE, TWIN, ACCUMULATION, SEED, LEARNT],
        ),
        (intervention, r#"{"flaw": "remembers"}"#, &[GRADIENTS, ACCUMULATION, SEED]),
        (intervention, r#"{"flaw": "climbs"}"#, &[GRADIENTS, LEARNING, LEARNT]),
        (intervention, r#"{"flaw": "divides_by_the_spread"}"#, &[TWIN]),
        (intervention, r#"{"flaw": "starts_flat"}"#, &[LEARNT]),
        (slow_intervention, r#"{"flaw": "none"}"#, &[LEARNT]),
        (slow_adapter, r#"{"flaw": "none"}"#, &[LEARNT]),
        (intervention, r#"{"flaw": "sees_nothing"}"#, &[GRADIENTS, REACH, LEARNING, LEARNT]),
        (intervention, r#"{"flaw": "panics"}"#, &[BARE]),
        (intervention, r#"{"flaw": "makes_do"}"#, &[BARE]),
        (adapter, r#"{"flaw": "none"}"#, &[]),
        (adapter, r#"{"flaw": "idles"}"#, &[REACH]),
        (adapter, r#"{"flaw": "trains_the_base"}"#, &[REACH]),
        (adapter, r#"{"flaw": "writes_to_the_base"}"#, &[GRADIENTS, REACH, ACCUMULATION, OFF]),
        (adapter, r#"{"flaw": "starts_elsewhere"}"#, &[IDENTITY]),
        (adapter, r#"{"flaw": "starts_here"}"#, &[IDENTITY]),
        (adapter, r#"{"flaw": "merges_twice"}"#, &[MERGING]),
        (adapter, r#"{"flaw": "none", "scale": 2.0}"#, &[SAVING]),
        (adapter, r#"{"flaw": "names_twice"}"#, &[NAMING, SAVING]),
        (adapter, r#"{"flaw": "mistakes_its_axis"}"#, &[NAMING]),
        (adapter, r#"{"flaw": "ignores_the_seed"}"#, &[ACCUMULATION, SEED]),
        (adapter, r#"{"flaw": "fuses_without_groups"}"#, &[FUSING]),
        (transform, r#"{"flaw": "none"}"#, &[]),
        (transform, r#"{"flaw": "stretches"}"#, &[ORTHOGONAL]),
        (transform, r#"{"flaw": "bends"}"#, &[LINEAR]),
        (transform, r#"{"flaw": "looks_around"}"#, &[LINEAR]),
        (transform, r#"{"flaw": "ignores_the_seed"}"#, &[SEEDED, ACCUMULATION, SEED]),
        (transform, r#"{"flaw": "names_twice"}"#, &[LEAVES]),
        (transform, r#"{"flaw": "detaches"}"#, &[GRADIENTS, REACH]),
        (tap, r#"{"flaw": "none"}"#, &[]),
        (tap, r#"{"flaw": "reads_block_five"}"#, &[PLACES]),
        (tap, r#"{"flaw": "reads_nothing"}"#, &[PLACES]),
        (tap, r#"{"flaw": "reads_backwards"}"#, &[ORDER]),
        (tap, r#"{"flaw": "reads_twice"}"#, &[ORDER]),
        (tap, r#"{"flaw": "clamps"}"#, &[OUTSIDE]),
        (dataset, r#"{"flaw": "none"}"#, &[]),
        (dataset, r#"{"flaw": "names_twice"}"#, &[SPLITS]),
        (dataset, r#"{"flaw": "holds_nothing"}"#, &[WHOLE, COUNT]),
        (dataset, r#"{"flaw": "prefers_itself"}"#, &[WHOLE]),
        (dataset, r#"{"flaw": "mixes"}"#, &[WHOLE]),
        (dataset, r#"{"flaw": "shuffles"}"#, &[TWICE]),
        (dataset, r#"{"flaw": "miscounts"}"#, &[COUNT]),
        (dataset, r#"{"flaw": "takes_any_split"}"#, &[UNKNOWN_SPLIT]),
    ]
    .map(|(entry, json, breaks)| (Method::new(entry, json), breaks))
    .into();
    let described: Vec<(Method, &[&str])> = [
        (of::<misdescribed::Undocumented>(), &[DOCUMENTED] as &[&str]),
        (of::<misdescribed::UndocumentedWithin>(), &[DOCUMENTED]),
        (of::<misdescribed::FullStop>(), &[DOCUMENTED]),
        (of::<misdescribed::Hides>(), &[ROUND_TRIP]),
        (of::<misdescribed::Drifts>(), &[ROUND_TRIP]),
        (of::<misdescribed::Named>(), &[NAME, EXAMPLE]),
        (of::<misdescribed::TakesAnyField>(), &[UNKNOWN_FIELD]),
        (of::<misdescribed::TakesAnyFieldWithin>(), &[UNKNOWN_FIELD]),
        (of::<misdescribed::TakesAnyType>(), &[MISFIT]),
        (of::<misdescribed::ExampleOfAnother>(), &[EXAMPLE]),
        (of::<misdescribed::ExampleOutOfRange>(), &[EXAMPLE]),
    ]
    .map(|(entry, breaks)| (leaked(entry).into(), breaks))
    .into();
    let table: Vec<(Method, &[&str])> = behaviour.into_iter().chain(described).collect();
    let broken: Vec<Vec<&str>> =
        table.par_iter().map(|(method, _)| violated(method.clone())).collect();
    let unlike: Vec<String> = table
        .iter()
        .zip(&broken)
        .filter(|((_, breaks), broken)| {
            broken.iter().collect::<BTreeSet<_>>() != breaks.iter().collect()
        })
        .map(|((method, _), broken)| format!("{method}: {broken:#?}"))
        .collect();
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));
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
fn a_finding_is_a_line_and_below_it_what_is_wrong() {
    let entry = leaked(TapEntry::of::<FaultyTap>("", ""));
    let finding = examine(Method::new(entry, r#"{"flaw": "panics"}"#))
        .find(|f| f.statement == PLACES)
        .expect("it is among them");
    assert_eq!(
        finding.to_string(),
        format!(
            "violated  {PLACES}\n          `sites` of tap `faulty` panicked\n            because \
                the tap is off"
        )
    );
}
