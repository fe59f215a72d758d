//! Tests that the score of a sequence does not depend on the other sequences in its batch, or on
//! the way attention is computed.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::{Device, Kind};

use super::*;
use crate::api::Side;
use crate::batch::{BatchSpec, PairBatch};
use crate::generate::{Sampling, generate};
use crate::model::tiny::{Case, Fixture};
use crate::text::TokenPair;

const STRATEGIES: [Strategy; 3] = [Strategy::Segments, Strategy::Trees, Strategy::Padded];

/// Σ log p of both completions of each pair, with `together` pairs in each forward pass.
fn scores(model: &Model, pairs: &[TokenPair], together: usize) -> Vec<[f64; 2]> {
    let _guard = tch::no_grad_guard();
    let of = |some: &[TokenPair]| {
        let batch =
            PairBatch::of(&some.iter().collect::<Vec<_>>(), BatchSpec::SCORED, model).unwrap();
        let hidden = model
            .forward(&batch.stream, Request { hidden: true, ..Request::default() })
            .unwrap()
            .hidden
            .unwrap();
        let logps =
            model.score_tokens(&hidden, &batch.predicted, Detail::NONE, None).unwrap().logprobs;
        let side = |rejected| {
            Vec::<f64>::try_from(
                batch.tokens_of(&logps, rejected).unwrap().sum().to_kind(Kind::Double),
            )
            .unwrap()
        };
        side(Side::Chosen)
            .into_iter()
            .zip(side(Side::Rejected))
            .map(|(chosen, rejected)| [chosen, rejected])
            .collect::<Vec<_>>()
    };
    pairs.chunks(together).flat_map(of).collect()
}

fn worst(ours: &[[f64; 2]], expected: &[[f64; 2]]) -> f64 {
    assert_eq!(ours.len(), expected.len());
    let off = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs().max(1.0);
    ours.iter().flatten().zip(expected.iter().flatten()).map(off).fold(0.0, f64::max)
}

#[test]
fn every_architecture_and_rope_type_gives_the_same_scores_as_transformers() {
    let fixture = Fixture::read().unwrap();
    let (pairs, cases) = (fixture.pairs(), fixture.cases());
    for case in cases {
        let model = fixture.model(case, Kind::Float, Device::Cpu).unwrap();
        for together in [1, pairs.len()] {
            let off = worst(&scores(&model, &pairs, together), &case.scores);
            assert!(
                off < 1e-5,
                "{}, {}, {together} pairs in a pass: difference {off:e}",
                case.architecture,
                case.rope
            );
        }
    }
    let covered =
        |architecture: &str| cases.iter().filter(|c| c.architecture == architecture).count();
    let architectures =
        ARCHITECTURES.iter().map(|(name, ..)| *name).filter(|name| *name != "gemma3");
    let expected = |name: &str| match name {
        "gpt2" => 1,
        "phi3" => 2,
        _ => 6,
    };
    assert!(architectures.into_iter().all(|name| covered(name) == expected(name)));
}

/// Checks that every pair has the same score by itself and in batches of random order and size.
fn scores_do_not_depend_on_the_batch(model: &Model, pairs: &[TokenPair], what: &str) {
    let separate: Vec<[f64; 2]> =
        pairs.iter().flat_map(|pair| scores(model, std::slice::from_ref(pair), 1)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for round in 0..4 {
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.shuffle(&mut rng);
        let shuffled: Vec<TokenPair> = order.iter().map(|i| pairs[*i].clone()).collect();
        let expected: Vec<[f64; 2]> = order.iter().map(|i| separate[*i]).collect();
        let off = worst(&scores(model, &shuffled, rng.random_range(2..=pairs.len())), &expected);
        assert!(off < 1e-11, "{what}, round {round}: {off:e}");
    }
}

#[test]
fn a_pair_has_the_same_score_by_itself_and_in_every_batch() {
    let fixture = Fixture::read().unwrap();
    let pairs = fixture.pairs();
    for case in fixture.cases() {
        let mut model = fixture.model(case, Kind::Double, Device::Cpu).unwrap();
        for strategy in STRATEGIES {
            for kernel in [Kernel::Sdpa, Kernel::Eager] {
                model.set_attention(strategy);
                model.set_attention_kernel(kernel);
                scores_do_not_depend_on_the_batch(
                    &model,
                    &pairs,
                    &format!("{}, {}, {strategy:?}, {kernel:?}", case.architecture, case.rope),
                );
            }
        }
    }
}

#[test]
fn scores_of_models_with_capped_attention_do_not_depend_on_the_batch() {
    let fixture = Fixture::read().unwrap();
    for rope in ["default", "dynamic"] {
        let case = fixture.case("gemma3_text", rope).unwrap();
        let mut config = case.config.clone();
        config["attn_logit_softcapping"] = json!(2.0);
        let mut model = Model::from_tensors(
            &config,
            fixture.tensors("gemma3_text", Kind::Double).unwrap(),
            Kind::Double,
            Device::Cpu,
        )
        .unwrap();
        for strategy in STRATEGIES {
            model.set_attention(strategy);
            scores_do_not_depend_on_the_batch(
                &model,
                &fixture.pairs(),
                &format!("capped, {rope}, {strategy:?}"),
            );
        }
    }
}

#[test]
fn gemma3_gives_the_same_scores_as_its_text_model_with_every_rope_type() {
    let fixture = Fixture::read().unwrap();
    for case in fixture.cases().iter().filter(|c| c.architecture == "gemma3_text") {
        let config = json!({ "model_type": "gemma3", "text_config": case.config });
        let tensors = fixture.tensors(&case.architecture, Kind::Float).unwrap();
        let model = Model::from_tensors(&config, tensors, Kind::Float, Device::Cpu).unwrap();
        let off = worst(&scores(&model, &fixture.pairs(), 5), &case.scores);
        assert!(off < 1e-5, "{}: {off:e}", case.rope);
    }
}

#[test]
fn generation_past_the_original_context_gives_the_same_tokens_as_transformers() {
    let fixture = Fixture::read().unwrap();
    let prompt = fixture.pairs()[0].prompt.clone();
    let mut count = 0;
    for case in fixture.cases() {
        let Case { architecture, rope, generated: Some(expected), .. } = case else { continue };
        let sampling = Sampling { max_new_tokens: expected.len(), ..Sampling::default() };
        let found = generate(
            &fixture.model(case, Kind::Float, Device::Cpu).unwrap(),
            None,
            &prompt,
            &[],
            sampling,
            &mut |_| true,
        )
        .unwrap();
        assert_eq!(&found, expected, "{architecture}, {rope}");
        count += 1;
    }
    assert_eq!(count, 24);
}

#[test]
fn sequences_with_different_frequencies_do_not_share_a_prompt() {
    let fixture = Fixture::read().unwrap();
    let pairs = fixture.pairs();
    let tokens = |rope: &str| {
        let model =
            fixture.model(fixture.case("llama", rope).unwrap(), Kind::Float, Device::Cpu).unwrap();
        PairBatch::of(&[&pairs[0], &pairs[2]], BatchSpec::SCORED, &model)
            .unwrap()
            .stream
            .layout
            .tokens()
    };
    // The two pairs have the same prompt of 6 tokens, and completions of 4, 9, 5 and 6 tokens.
    // The prompt and the completion of 9 tokens do not fit into the original context of 12 tokens,
    // so this completion needs its own copy of the prompt. The other three completions fit.
    assert_eq!(
        (tokens("default"), tokens("longrope"), tokens("dynamic")),
        (6 + 24, 12 + 24, 12 + 24)
    );
    let dynamic =
        fixture.model(fixture.case("llama", "dynamic").unwrap(), Kind::Float, Device::Cpu).unwrap();
    let mut builder = stream::StreamBuilder::default();
    let root = builder.push(&[1; 6], None).unwrap();
    builder.push(&[2; 4], Some(root)).unwrap();
    builder.push(&[3; 9], Some(root)).unwrap();
    let shared = dynamic.forward(
        &builder.finish(Device::Cpu).unwrap(),
        Request { hidden: true, ..Request::default() },
    );
    assert!(shared.unwrap_err().message().contains("different rotary frequencies"));
}

#[test]
fn a_sequence_longer_than_the_learned_positions_is_refused() {
    let fixture = Fixture::read().unwrap();
    let model =
        fixture.model(fixture.case("gpt2", "default").unwrap(), Kind::Float, Device::Cpu).unwrap();
    let forward = |prompt: usize, completion: usize| {
        let mut builder = stream::StreamBuilder::default();
        let root = builder.push(&vec![1; prompt], None).unwrap();
        builder.push(&vec![2; completion], Some(root)).unwrap();
        model.forward(
            &builder.finish(Device::Cpu).unwrap(),
            Request { hidden: true, ..Request::default() },
        )
    };
    assert!(forward(40, 8).is_ok());
    let e = forward(40, 9).unwrap_err();
    assert!(e.message().contains("has 49 tokens, but the model has positions for 48"), "{e:?}");
    // Generation stops when the model has no more positions.
    let sampling = Sampling { max_new_tokens: 60, ..Sampling::default() };
    let completion =
        |prompt: usize| generate(&model, None, &vec![1; prompt], &[], sampling, &mut |_| true);
    assert_eq!((completion(3).unwrap().len(), completion(48).unwrap().len()), (46, 1));
    assert!(completion(49).unwrap_err().message().contains("positions for 48"));
}

#[test]
fn columns_of_a_site_equal_those_of_the_whole_state() {
    let fixture = Fixture::read().unwrap();
    for architecture in ["llama", "phi3", "gpt_neox", "gpt2"] {
        let model = fixture
            .model(fixture.case(architecture, "default").unwrap(), Kind::Float, Device::Cpu)
            .unwrap();
        let d = model.info().head_dim;
        let inner = model
            .info()
            .linears
            .iter()
            .filter(|l| l.layer == Some(1))
            .flat_map(|l| [Site::Input(l.name.clone()), Site::Output(l.name.clone())]);
        let parts = model.info().parts.iter().map(|p| Site::Output(p.linear.name.clone()));
        let wholes: Vec<Site> = inner
            .chain(parts)
            .chain([Site::Residual(0), Site::Block(1), Site::Residual(3)])
            .collect();
        let heads: Vec<Site> = wholes.iter().map(|site| site.clone().columns(d..2 * d)).collect();
        let batch =
            PairBatch::of(&fixture.pairs().iter().collect::<Vec<_>>(), BatchSpec::SCORED, &model)
                .unwrap();
        let read = |sites: &[Site]| {
            model.forward(&batch.stream, Request { sites, ..Request::default() }).unwrap().states
        };
        for ((site, head), whole) in heads.iter().zip(read(&heads)).zip(read(&wholes)) {
            assert_eq!(head.size()[1], model.info().width(site).unwrap());
            assert!(head.equal(&whole.narrow(1, d, d)), "{architecture}: {site}");
        }
    }
}
