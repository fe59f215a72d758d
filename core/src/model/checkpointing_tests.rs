//! Tests that activation checkpointing gives the same states and gradients, bit for bit.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::api::Completions;
use crate::batch::{BatchSpec, PairBatch, Sharing};
use crate::conformance::Case;
use crate::ffi::{HookErrors, register_hook};
use crate::model::tiny::Fixture;
use crate::run::AdapterChoice;

/// The adapter of the conformance tests, on all linear modules of `model`, with noise.
fn adapted(model: &Model) -> Adapted {
    let adapter = AdapterChoice::of_new(
        Case::of_stand_ins().adapter.entry,
        r#"{"target_modules": "all-linear"}"#,
    )
    .unwrap();
    let adapted = adapter.attach(model, model.info().layers, 0).unwrap();
    let _guard = tch::no_grad_guard();
    for (i, (name, mut tensor)) in adapted.parameters().into_iter().enumerate() {
        let noise = tiny::weight(&format!("{name}{i}"), &tensor.size());
        let _ = tensor.g_add_(&(noise * 0.1).to_kind(tensor.kind()));
    }
    adapted
}

/// Every kind of site in the first two blocks, and columns of the residual stream. Some sites are
/// the same tensor.
fn sites(info: &ModelInfo) -> Vec<Site> {
    let mut sites = vec![
        Site::Residual(0),
        Site::Residual(1).columns(0..3),
        Site::Residual(1),
        Site::Block(0),
        Site::Block(0).columns(2..4),
        Site::Block(1),
        Site::Residual(info.layers),
        Site::Block(info.layers - 1).columns(1..2),
    ];
    for linear in info.linears.iter().filter(|linear| linear.layer.is_some_and(|k| k < 2)) {
        sites.push(Site::Output(linear.name.clone()));
        sites.push(Site::Input(linear.name.clone()));
        sites.push(Site::Output(linear.name.clone()).columns(0..2));
    }
    sites
}

/// A pass and its backward pass. Returns the loss, the states and the gradients of all parameters.
fn step(model: &Model, adapted: &Adapted, sites: &[Site], checkpointing: bool) -> Vec<Tensor> {
    let pairs = Fixture::read().unwrap().pairs();
    let spec = BatchSpec {
        logprobs: Completions::Both,
        states: Completions::Both,
        sharing: Sharing::for_adapted(Some(adapted)),
    };
    let batch = PairBatch::of(&pairs.iter().collect::<Vec<_>>(), spec, model).unwrap();
    let errors = HookErrors::default();
    let halved = |site: &Site, y: Tensor| {
        if site.to_string().ends_with("v_proj") {
            register_hook(&y, Box::new(|gradient| Ok(gradient * 0.5)), &errors)?;
        }
        Ok(y)
    };
    let request = || Request {
        adapted: Some(adapted),
        train: Some(PassSeed::default()),
        sites,
        hidden: true,
        checkpointing,
        intercept: Some(&halved),
        ..Request::default()
    };
    let output = model.forward(&batch.stream, request()).unwrap();
    let logps = model
        .score_tokens(output.hidden.as_ref().unwrap(), &batch.predicted, Detail::NONE, None)
        .unwrap()
        .logprobs;
    // Each state enters the loss twice, with different weights for each element.
    let of_state = |(i, state): (usize, &Tensor)| {
        let weight = tiny::weight(&format!("of state {i}"), &state.size()).to_kind(state.kind());
        (state * weight).sum(Kind::Float) * 1e-3 + state.square().mean(Kind::Float) * 1e-2
    };
    let loss = output
        .states
        .iter()
        .enumerate()
        .map(of_state)
        .fold(-logps.mean(Kind::Float), |sum, term| sum + term);
    loss.backward();
    assert_eq!(output.saved.is_some(), checkpointing);
    if let Some(saved) = output.saved {
        assert_eq!(saved.blocks.len(), model.info().layers);
        model.backward(saved, &batch.stream, request()).unwrap();
    }
    errors.check().unwrap();
    let gradients = adapted.parameters().into_iter().map(|(name, mut parameter)| {
        assert!(parameter.grad().defined(), "`{name}` has no gradient");
        let gradient = parameter.grad().copy();
        parameter.zero_grad();
        gradient
    });
    let gradients: Vec<Tensor> = gradients.collect();
    output.states.iter().map(Tensor::detach).chain([loss.detach()]).chain(gradients).collect()
}

#[test]
fn every_architecture_has_the_same_gradients_with_checkpointing() {
    let fixture = Fixture::read().unwrap();
    for case in fixture.cases() {
        for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
            let model = fixture.model(case, kind, Device::Cpu).unwrap();
            let (adapted, sites) = (adapted(&model), sites(model.info()));
            for sites in [&sites[..], &[]] {
                let kept = step(&model, &adapted, sites, false);
                let again = step(&model, &adapted, sites, true);
                let name = format!("{}, {}, {kind:?}", case.architecture, case.rope);
                assert_eq!(kept.len(), again.len());
                for (i, (a, b)) in kept.iter().zip(&again).enumerate() {
                    let off = (a - b).abs().max().double_value(&[]);
                    assert!(a.equal(b), "{name}, {i} of {}: {off:e}", kept.len());
                    assert!(a.isfinite().all().int64_value(&[]) == 1, "{name}, {i}");
                }
            }
        }
    }
}

#[test]
fn blocks_below_the_adapter_and_above_the_gradient_do_not_run_again() {
    let fixture = Fixture::read().unwrap();
    let model =
        fixture.model(fixture.case("llama", "default").unwrap(), Kind::Float, Device::Cpu).unwrap();
    let layers = model.info().layers;
    let entry = Case::of_stand_ins().adapter.entry;
    let json = r#"{"target_modules": ["v_proj"], "layers_to_transform": [1]}"#;
    let adapted = AdapterChoice::of_new(entry, json).unwrap().attach(&model, layers, 0).unwrap();
    let mut builder = stream::StreamBuilder::default();
    builder.push(&[3, 1, 4, 1, 5], None).unwrap();
    let stream = builder.finish(Device::Cpu).unwrap();
    let (runs, sites) = (Cell::new(0), [Site::Block(1), Site::Residual(layers)]);
    let count = |_: &Site, y: Tensor| {
        runs.set(runs.get() + 1);
        Ok(y)
    };
    let request = || Request {
        adapted: Some(&adapted),
        sites: &sites,
        hidden: true,
        checkpointing: true,
        intercept: Some(&count),
        ..Request::default()
    };
    for (read, expected) in [(0, 2), (1, 2)] {
        runs.set(0);
        let output = model.forward(&stream, request()).unwrap();
        let saved = output.saved.unwrap();
        assert_eq!(saved.blocks.iter().map(|b| b.block).collect::<Vec<_>>(), [1, 2][..layers - 1]);
        output.states[read].sum(Kind::Float).backward();
        model.backward(saved, &stream, request()).unwrap();
        assert_eq!(runs.get(), expected);
    }
    // The loss does not depend on any block.
    runs.set(0);
    let output = model.forward(&stream, request()).unwrap();
    model.backward(output.saved.unwrap(), &stream, request()).unwrap();
    assert_eq!(runs.get(), 1);
}
