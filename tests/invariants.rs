//! Checks every built-in method with the conformance kit.

use rayon::prelude::*;
use reprpo_core::conformance::{
    ADAPTERS, Case, Invariant, LESSON, Method, TRAINING, Verdict, examine,
};
use reprpo_core::registry::{
    AdapterEntry, Entry, InterventionEntry, Kind, Registry, TransformEntry, TypedEntry,
};
use {reprpo_datasets as _, reprpo_methods as _};

fn built_in() -> Registry {
    Registry::builtin().expect("the built-ins do not collide")
}

/// Returns all built-in plugins of one kind with their default settings.
fn all<E: TypedEntry>() -> Vec<Method<&'static E>> {
    let methods: Vec<_> = built_in().all::<E>().map(Method::default_of).collect();
    assert!(!methods.is_empty());
    methods
}

fn intervention(name: &str) -> Method<&'static InterventionEntry> {
    Method::default_of(built_in().intervention(name).expect("a built-in method"))
}

fn adapter(name: &str) -> Method<&'static AdapterEntry> {
    Method::default_of(built_in().adapter(name).expect("a built-in method"))
}

/// Checks every case against the invariants for training and for adapters, and reports all
/// violations together.
fn check(cases: &[Case]) {
    check_against(&[TRAINING, ADAPTERS], cases);
}

/// Checks every case against `invariants`.
fn check_against(invariants: &[&[Invariant]], cases: &[Case]) {
    let violations: Vec<String> = cases
        .par_iter()
        .flat_map_iter(|case| {
            invariants.iter().copied().flatten().filter_map(move |invariant| {
                match (invariant.check)(case) {
                    Ok(Verdict::Violated(how)) => {
                        Some(format!("{case}: {}: {how}", invariant.name))
                    }
                    Err(e) => Some(format!("{case}: {}: {e:?}", invariant.name)),
                    Ok(_) => None,
                }
            })
        })
        .collect();
    assert!(
        violations.is_empty(),
        "{} of {} cases:\n{}",
        violations.len(),
        cases.len(),
        violations.join("\n")
    );
}

/// Checks each plugin together with stand-ins for the other kinds, like the test in a plugin's own
/// crate.
#[test]
fn every_built_in_plugin_passes_the_conformance_kit() {
    let registry = built_in();
    let entries: Vec<Entry> = Kind::ALL.into_iter().flat_map(|kind| registry.of(kind)).collect();
    let violations: Vec<String> = entries
        .par_iter()
        .flat_map_iter(|entry| {
            let wrong = examine(*entry).filter(|finding| finding.violation().is_some());
            wrong.map(|finding| {
                format!("{} ({}) {finding}", entry.about().name, entry.kind().name())
            })
        })
        .collect();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_intervention_satisfies_the_invariants_with_every_adapter() {
    let adapters = all::<AdapterEntry>();
    let with_each = |intervention: Method<&'static InterventionEntry>| {
        let case = move |adapter: &Method<_>| Case {
            intervention: intervention.clone(),
            adapter: adapter.clone(),
            transform: None,
        };
        adapters.iter().map(case)
    };
    let cases: Vec<Case> = all().into_iter().flat_map(with_each).collect();
    check(&cases);
}

/// Every intervention runs with the default adapter, and every adapter with the default
/// intervention. No setting is changed.
#[test]
fn every_method_learns_with_default_settings() {
    let interventions = all().into_iter().map(|intervention| (intervention, adapter("lora")));
    let adapters = all().into_iter().map(|adapter| (intervention("dpo"), adapter));
    let cases: Vec<Case> = interventions
        .chain(adapters)
        .map(|(intervention, adapter)| Case { intervention, adapter, transform: None })
        .collect();
    check_against(&[LESSON], &cases);
}

#[test]
fn every_intervention_on_states_satisfies_the_invariants_with_every_transform() {
    let transforms = all::<TransformEntry>();
    let with_each = |intervention: Method<&'static InterventionEntry>| {
        let case = move |transform: &Method<_>| Case {
            intervention: intervention.clone(),
            adapter: adapter("lora"),
            transform: Some(transform.clone()),
        };
        transforms.iter().map(case)
    };
    let cases: Vec<Case> =
        all().into_iter().flat_map(with_each).filter(Case::reads_states).collect();
    check(&cases);
}

/// The invariants also apply to variants of the methods.
#[test]
fn variants_of_the_methods_satisfy_the_invariants() {
    let variants: &[(Kind, &str, &'static str)] = &[
        (Kind::Adapter, "lora", r#"{"use_rslora": true, "target_modules": "all-linear"}"#),
        (Kind::Adapter, "hra", r#"{"r": 3, "target_modules": "all-linear"}"#),
        (Kind::Adapter, "hra", r#"{"apply_gs": true}"#),
        (Kind::Adapter, "oft", r#"{"use_cayley_neumann": true}"#),
        (Kind::Adapter, "ether", r#"{"plus": false, "two_sided": false}"#),
        (Kind::Adapter, "boft", r#"{"boft_n_butterfly_factor": 2}"#),
        (
            Kind::Adapter,
            "lora",
            r#"{"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3.0}}"#,
        ),
        (Kind::Adapter, "loreft", r#"{"positions": "all"}"#),
        (Kind::Adapter, "shira", r#"{"r": 2, "target_modules": "all-linear"}"#),
        (Kind::Adapter, "road", r#"{"variant": "road_2", "target_modules": "all-linear"}"#),
        (Kind::Adapter, "road", r#"{"variant": "road_4", "group_size": 8}"#),
        (
            Kind::Adapter,
            "delora",
            r#"{"rank_pattern": {"v_proj": 2}, "lambda_pattern": {"v_proj": 3.0}}"#,
        ),
        (Kind::Adapter, "miss", r#"{"r": 5, "target_modules": "all-linear"}"#),
        (Kind::Adapter, "miss", r#"{"r": 8, "variant": "bat", "target_modules": "all-linear"}"#),
        (Kind::Adapter, "miss", r#"{"r": 6, "variant": "mini", "mini_r": 8}"#),
        (Kind::Adapter, "lora", r#"{"init": "pissa", "r": 3, "target_modules": "all-linear"}"#),
        (
            Kind::Adapter,
            "lora",
            r#"{"init": "olora", "use_rslora": true, "rank_pattern": {"v_proj": 2}}"#,
        ),
        (
            Kind::Adapter,
            "weight-steering",
            r#"{"coefficient": -0.5, "target_modules": ["v_proj"], "layers_to_transform": [1]}"#,
        ),
        (Kind::Intervention, "mse", r#"{"log": true}"#),
        (Kind::Intervention, "mse", r#"{"variant": "original"}"#),
        (Kind::Intervention, "rank", r#"{"variant": "original"}"#),
        (Kind::Intervention, "mse", r#"{"variant": "original", "original_version": "later"}"#),
        (Kind::Intervention, "rank", r#"{"variant": "original", "original_version": "later"}"#),
        (Kind::Intervention, "cpo", r#"{"loss_type": "hinge", "cpo_alpha": 0.0}"#),
        (Kind::Intervention, "cpo", r#"{"loss_type": "ipo", "cpo_alpha": 0.5}"#),
        (Kind::Intervention, "simpo", r#"{"cpo_alpha": 0.5, "label_smoothing": 0.1}"#),
        (Kind::Intervention, "orpo", r#"{"beta": 0.0}"#),
        (Kind::Intervention, "dpo", r#"{"loss_type": "simper"}"#),
        (Kind::Intervention, "dpo", r#"{"loss_type": "ipo_relu"}"#),
        (Kind::Intervention, "innerpo", r#"{"inner": "sigmoid"}"#),
        (Kind::Intervention, "innerpo", r#"{"inner": "symlog", "dpo": {"loss_type": "simper"}}"#),
        (Kind::Intervention, "innerpo", r#"{"mode": "topk"}"#),
        (Kind::Intervention, "innerpo", r#"{"mode": "topkl"}"#),
        (Kind::Intervention, "innerpo", r#"{"variant": "original"}"#),
        (
            Kind::Intervention,
            "innerpo",
            r#"{"variant": "original", "original_dpo_loss": "ipo", "original_filter_sinks": true}"#,
        ),
        (Kind::Intervention, "innerpo", r#"{"variant": "original", "mode": "topk"}"#),
        (Kind::Intervention, "innerpo", r#"{"variant": "original", "mode": "topkl"}"#),
        (Kind::Intervention, "innerpo", r#"{"variant": "original", "mode": "dpo"}"#),
        (Kind::Intervention, "prefvec", r#"{"lambda_angle": 0.5, "lambda_dpo": 1.0}"#),
        (
            Kind::Intervention,
            "dpo",
            r#"{"loss_type": ["ipo", "sigmoid", "apo_zero"], "loss_weights": [0.2, 1.0, 0.5]}"#,
        ),
        (Kind::Intervention, "dpo", r#"{"f_divergence_type": "js_divergence", "ld_alpha": 0.5}"#),
        (
            Kind::Intervention,
            "projgrad",
            r#"{"source": "policy", "sign": "pos", "mag_clip": 0.5, "scale_orth": true}"#,
        ),
        (Kind::Intervention, "projbp", r#"{"keep_norm": false, "mag_clip": null}"#),
        (Kind::Intervention, "prefvec", r#"{"direction": "random", "lambda_angle": 0.5}"#),
        (Kind::Intervention, "mse", r#"{"direction": "random"}"#),
        (Kind::Intervention, "projgrad", r#"{"direction": "random", "mag_clip": 0.5}"#),
        (Kind::Intervention, "projbp", r#"{"direction": "random"}"#),
    ];
    let cases: Vec<Case> = variants
        .iter()
        .map(|(kind, name, json)| match kind {
            Kind::Adapter => Case {
                intervention: intervention("dpo"),
                adapter: Method::new(adapter(name).entry, *json),
                transform: None,
            },
            _ => Case {
                intervention: Method::new(intervention(name).entry, *json),
                adapter: adapter("lora"),
                transform: None,
            },
        })
        .collect();
    check(&cases);
}
