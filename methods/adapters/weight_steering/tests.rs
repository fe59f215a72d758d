//! Tests the combination of adapters in complete models.

use reprpo_core::model::pass::Request;
use reprpo_core::model::stream::Stream;
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::Registry;
use reprpo_core::weights::{ModelFiles, read_safetensors};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Value, json};
use reprpo_plugin::tch::{self, Device};

use super::super::fixture::{disturb, off, refused};
use super::WeightSteering;
use crate::golden::own;

fn open(name: &str, kind: Kind) -> (ModelFiles, Model, Stream) {
    let dir = own().join("models").join(name);
    let files = ModelFiles::open(&dir).unwrap();
    let model = Model::load(&files, kind, Device::Cpu).unwrap();
    let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
    let stream = Stream::from_padded(&io["input_ids"], &io["attention_mask"], Device::Cpu).unwrap();
    (files, model, stream)
}

fn logits(model: &Model, adapted: Option<&Adapted>, stream: &Stream) -> Tensor {
    let request = Request { adapted, hidden: true, ..Request::default() };
    model.logits(&model.forward(stream, request).unwrap().hidden.unwrap()).unwrap()
}

/// Attaches an adapter with noise on its parameters, as if it had been trained.
fn trained(name: &str, config: &Value, model: &Model) -> Adapted {
    let entry = Registry::builtin().unwrap().adapter(name).unwrap();
    let adapter = entry.build(&config.to_string()).unwrap();
    let adapted = Adapted::attach(&*adapter, model, model.info().layers, 0).unwrap();
    disturb(&adapted.changed().flat_map(|c| c.parameters).collect::<Vec<_>>());
    adapted
}

fn steered(config: WeightSteering, sources: &[Option<Adapted>], model: &Model) -> Result<Adapted> {
    let adapter = config.build().unwrap();
    Adapted::attach_made_of(&*adapter, sources, model, model.info().layers, 0)
}

fn with_coefficient(coefficient: f64) -> WeightSteering {
    WeightSteering { coefficient, ..WeightSteering::default() }
}

/// Returns the message of the error for a combination of adapters that is refused.
fn error(config: WeightSteering, sources: &[Option<Adapted>], model: &Model) -> String {
    format!("{:?}", steered(config, sources, model).expect_err("it is refused"))
}

/// IA³ scales the biases of Qwen2's projections, so the biases change too.
#[test]
fn one_run_with_coefficient_one_equals_the_run_also_in_its_biases() {
    let _guard = tch::no_grad_guard();
    let (_, model, stream) = open("qwen2", Kind::Double);
    let base = logits(&model, None, &stream);
    for name in ["ia3", "road", "hra"] {
        let config = match name {
            "ia3" => json!({ "target_modules": ["k_proj", "v_proj"], "feedforward_modules": [] }),
            "road" => json!({ "target_modules": ["q_proj", "v_proj"], "group_size": 8 }),
            _ => json!({ "target_modules": ["q_proj", "down_proj"], "r": 4 }),
        };
        let sources = [Some(trained(name, &config, &model)), None];
        let expected = logits(&model, sources[0].as_ref(), &stream);
        let ours = steered(with_coefficient(1.0), &sources, &model).unwrap();
        let bias = ours
            .tensors()
            .into_iter()
            .any(|(key, t)| key.ends_with("bias_delta") && t.abs().max().double_value(&[]) > 1e-3);
        assert_eq!(bias, name != "hra", "{name}");
        assert!(off(&expected, &base) > 1e-3, "{name} changes nothing");
        assert!(off(&logits(&model, Some(&ours), &stream), &expected) < 1e-10, "{name}");
        let none = steered(with_coefficient(0.0), &sources, &model).unwrap();
        assert_eq!(logits(&model, Some(&none), &stream), base, "{name}");
    }
}

#[test]
fn adapters_of_different_methods_and_modules_add_up_to_combined_weights() {
    let _guard = tch::no_grad_guard();
    for (name, plus, minus) in [
        ("llama", &["q_proj", "up_proj"][..], &["q_proj", "o_proj"][..]),
        ("phi3", &["qkv_proj.q_proj", "qkv_proj.v_proj"], &["qkv_proj.v_proj", "o_proj"]),
        ("gpt2", &["c_attn.q_proj", "c_fc"], &["c_attn.q_proj", "c_attn.k_proj"]),
    ] {
        let (_, model, stream) = open(name, Kind::Double);
        let c = -1.5;
        let sources = [
            Some(trained("lora", &json!({ "r": 2, "target_modules": plus }), &model)),
            Some(trained("hra", &json!({ "r": 2, "target_modules": minus }), &model)),
        ];
        let ours = steered(with_coefficient(c), &sources, &model).unwrap();
        // The weights of each module after both adapters are merged, and their combination.
        let weights = |source: &Option<Adapted>| {
            let merged = source.as_ref().unwrap().merged(&model).unwrap();
            merged.into_iter().collect::<std::collections::BTreeMap<_, _>>()
        };
        let (added, removed) = (weights(&sources[0]), weights(&sources[1]));
        let combined: std::collections::BTreeMap<_, _> =
            ours.merged(&model).unwrap().into_iter().collect();
        let all: std::collections::BTreeSet<_> = added.keys().chain(removed.keys()).collect();
        assert_eq!(combined.keys().collect::<std::collections::BTreeSet<_>>(), all, "{name}");
        for (module, combined) in &combined {
            let base = model.frozen(module).unwrap().dense().unwrap();
            let of = |side: &std::collections::BTreeMap<String, Frozen>| {
                side.get(module).map_or_else(|| base.copy(), |f| f.dense().unwrap())
            };
            let expected = &base + (of(&added) - of(&removed)) * c;
            assert!(off(&expected, &base) > 1e-3, "{name}: {module} hardly changes");
            assert!(off(&combined.dense().unwrap(), &expected) < 1e-12, "{name}: {module}");
        }
        let mut merged = open(name, Kind::Double).1;
        let _ = merged.merge(&ours).unwrap();
        let worst = off(&logits(&merged, None, &stream), &logits(&model, Some(&ours), &stream));
        assert!(worst < 1e-9, "{name}: off by {worst:e}");
    }
}

#[test]
fn a_change_that_is_smaller_than_the_rounding_of_bf16_is_kept() {
    let _guard = tch::no_grad_guard();
    let (_, model, _) = open("llama", Kind::BFloat16);
    let config = json!({ "r": 1, "lora_alpha": 1.0, "target_modules": ["q_proj"] });
    let source = trained("lora", &config, &model);
    let name = "model.layers.1.self_attn.q_proj";
    let of = |key: &str| {
        let all = source.tensors();
        all.into_iter().find(|(k, _)| *k == format!("{name}.{key}")).unwrap().1
    };
    let (a, b) = (of("lora_A.weight"), of("lora_B.weight"));
    let _ = b.shallow_clone().f_mul_scalar_(1e-4).unwrap();
    let expected = b.matmul(&a);
    let weight = model.frozen(name).unwrap().dense().unwrap();
    let step = weight.to_kind(Kind::Float).abs().max().double_value(&[]) / 256.0;
    let largest = expected.abs().max().double_value(&[]);
    assert!(largest < step / 4.0, "the change {largest:e} must be smaller than {step:e}");
    let ours = steered(with_coefficient(1.0), &[Some(source), None], &model).unwrap();
    let (_, change) =
        ours.tensors().into_iter().find(|(k, _)| *k == format!("{name}.weight_delta")).unwrap();
    assert_eq!(change.kind(), Kind::Float);
    assert!(off(&change, &expected) < 1e-2 * largest);
}

#[test]
fn combinations_that_cannot_be_computed_are_refused() {
    let (_, model, _) = open("phi3", Kind::Float);
    let lora = |targets: &[&str]| {
        Some(trained("lora", &json!({ "r": 2, "target_modules": targets }), &model))
    };
    let e =
        error(with_coefficient(1.0), &[lora(&["qkv_proj.q_proj"]), lora(&["qkv_proj"])], &model);
    assert!(
        e.contains(
            "`adapter.plus` changes `model.layers.0.self_attn.qkv_proj.q_proj`, a part of the \
                module `model.layers.0.self_attn.qkv_proj`, but `adapter.minus` changes the whole"
        ),
        "{e}"
    );
    let blocks = trained("loreft", &json!({ "r": 2, "layers": "0" }), &model);
    let e = error(with_coefficient(1.0), &[lora(&["qkv_proj"]), Some(blocks)], &model);
    assert!(e.contains("the adapter in `adapter.minus` changes the output of block 0"), "{e}");
    let restricted = |targets: Targets, layers: Option<Vec<usize>>| WeightSteering {
        target_modules: targets,
        layers_to_transform: layers,
        ..WeightSteering::default()
    };
    let source = || [lora(&["qkv_proj"]), None];
    let e = error(restricted(["qkv_proj", "o_proj"].into(), None), &source(), &model);
    assert!(
        e.contains(
            "`adapter.target_modules` selects `model.layers.0.self_attn.o_proj`, which was not \
                changed by the adapter in `adapter.plus`"
        ),
        "{e}"
    );
    let e = error(restricted([].into(), Some(vec![9])), &source(), &model);
    assert!(e.contains("only has layers 0 to 2"), "{e}");
    let only = steered(restricted([].into(), Some(vec![1])), &source(), &model).unwrap();
    assert_eq!(only.names().collect::<Vec<_>>(), ["model.layers.1.self_attn.qkv_proj"]);
    let only = steered(restricted(["qkv_proj"].into(), Some(vec![2])), &source(), &model).unwrap();
    assert_eq!(only.names().collect::<Vec<_>>(), ["model.layers.2.self_attn.qkv_proj"]);

    let config = |coefficient, plus: &str, minus: &str| WeightSteering {
        coefficient,
        plus: Some(plus.into()),
        minus: Some(minus.into()),
        ..WeightSteering::default()
    };
    let e = refused(config(f64::INFINITY, "a", "b"));
    assert!(e.contains("`adapter.coefficient` must be a finite number, got inf"), "{e}");
    let e = refused(config(1.0, "runs/a", "runs/a"));
    assert!(e.contains("`adapter.plus` and `adapter.minus` are both `runs/a`"), "{e}");
}
