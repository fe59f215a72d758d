//! Tests of multiples of the change that an adapter makes.

use reprpo_core::model::pass::Request;
use reprpo_core::model::stream::Stream;
use reprpo_core::model::{Adapted, Model, check_coefficient};
use reprpo_core::weights::{ModelFiles, read_safetensors};
use reprpo_plugin::prelude::*;
use reprpo_plugin::registry::{AdapterEntry, Registry};
use reprpo_plugin::serde_json::{Value, json};
use reprpo_plugin::tch::{self, Device};

use super::fixture::{disturb, off};
use crate::golden::own;

fn open(name: &str, kind: Kind) -> (Model, Stream) {
    let dir = own().join("models").join(name);
    let model = Model::load(&ModelFiles::open(&dir).unwrap(), kind, Device::Cpu).unwrap();
    let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
    let stream = Stream::from_padded(&io["input_ids"], &io["attention_mask"], Device::Cpu).unwrap();
    (model, stream)
}

/// All adapters that can be attached without other adapters.
fn entries() -> Vec<&'static AdapterEntry> {
    let alone = |entry: &&AdapterEntry| {
        let fields = Value::Object(entry.about.defaults().unwrap());
        entry.build(&fields.to_string()).unwrap().sources().is_empty()
    };
    Registry::builtin().unwrap().all::<AdapterEntry>().filter(alone).collect()
}

/// Builds an adapter with default settings except for `fields`.
fn build(entry: &AdapterEntry, fields: Value) -> Box<dyn Adapter> {
    let mut config = entry.about.defaults().unwrap();
    // The default feed-forward modules of IA³ are not among the targets of these tests.
    config.entry("feedforward_modules").and_modify(|f| *f = json!([]));
    // Heads have 8 outputs.
    config.entry("group_size").and_modify(|f| *f = json!(8));
    // The default blocks are fractions of more than two layers.
    config.entry("layers").and_modify(|f| *f = json!("0"));
    config.entry("positions").and_modify(|f| *f = json!("all"));
    for (field, value) in fields.as_object().unwrap() {
        config.entry(field).and_modify(|f| *f = value.clone());
    }
    entry.build(&Value::Object(config).to_string()).unwrap()
}

/// Attaches an adapter and adds noise to its trained parameters.
fn attached(adapter: &dyn Adapter, model: &Model) -> Adapted {
    let adapted = Adapted::attach(adapter, model, model.info().layers, 0).unwrap();
    let mut parameters: Vec<_> = adapted.changed().flat_map(|c| c.parameters).collect();
    parameters.retain(|p| p.tensor.requires_grad());
    disturb(&parameters);
    adapted
}

fn states(model: &Model, adapted: Option<&Adapted>, stream: &Stream, sites: &[Site]) -> PassStates {
    let request = Request { adapted, hidden: true, sites, ..Request::default() };
    let reached = model.forward(stream, request).unwrap();
    PassStates { hidden: reached.hidden.unwrap().states().shallow_clone(), sites: reached.states }
}

struct PassStates {
    hidden: Tensor,
    sites: Vec<Tensor>,
}

fn hidden(model: &Model, adapted: Option<&Adapted>, stream: &Stream) -> Tensor {
    states(model, adapted, stream, &[]).hidden
}

#[test]
fn adapters_that_rotate_or_reflect_refuse_multiples_by_name() {
    let mut refusing = Vec::new();
    for entry in entries() {
        let (name, adapter) = (entry.about.name, build(entry, json!({})));
        for c in [0.0, 1.0] {
            check_coefficient(&*adapter, c).unwrap();
        }
        for c in [-1.0, 0.5] {
            let Err(e) = check_coefficient(&*adapter, c) else { continue };
            let text = format!("{e:?}");
            assert!(text.contains(&format!("`{name}` multiplies the weights by r")), "{text}");
            refusing.push((name, c));
        }
        check_coefficient(&*adapter, f64::NAN).unwrap_err();
    }
    let expected = ["boft", "ether", "hra", "oft"];
    assert_eq!(refusing, expected.map(|name| [(name, -1.0), (name, 0.5)]).concat());
}

#[test]
fn no_change_and_the_trained_change_are_exact() {
    let _guard = tch::no_grad_guard();
    for (name, targets) in [
        ("llama", json!(["q_proj", "v_proj"])),
        ("phi3", json!(["qkv_proj.q_proj", "qkv_proj.v_proj", "gate_up_proj.up_proj"])),
    ] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let (model, stream) = open(name, kind);
            let base = hidden(&model, None, &stream);
            for entry in entries() {
                let adapter = build(entry, json!({ "target_modules": targets }));
                let adapted = attached(&*adapter, &model);
                let trained = hidden(&model, Some(&adapted), &stream);
                let [off, on] = [0.0, 1.0].map(|c| {
                    let scaled = adapted.with_coefficient(&*adapter, c).unwrap();
                    hidden(&model, Some(&scaled), &stream)
                });
                let of = format!("{name}, {kind:?}, {}", entry.about.name);
                assert!(off == base && on == trained && trained != base, "{of}");
            }
        }
    }
}

/// For these adapters, the change is proportional to one of the parameters.
const PROPORTIONAL: [(&str, &str); 5] = [
    ("delora", "delora_lambda"),
    ("lora", "lora_B.weight"),
    ("miss", "miss_block"),
    ("shira", "shira_weight"),
    ("vera", "vera_lambda_b"),
];

#[test]
fn a_multiple_is_the_adapter_with_a_multiple_of_its_parameter() {
    let _guard = tch::no_grad_guard();
    let (model, stream) = open("llama", Kind::Double);
    for (name, key) in PROPORTIONAL {
        let adapter = build(Registry::builtin().unwrap().adapter(name).unwrap(), json!({}));
        for c in [-1.0, 0.5, 3.0] {
            let adapted = attached(&*adapter, &model);
            let scaled = adapted.with_coefficient(&*adapter, c).unwrap();
            let found = hidden(&model, Some(&scaled), &stream);
            let mut multiplied = 0;
            for p in adapted.changed().flat_map(|c| c.parameters).filter(|p| p.key == key) {
                let _ = p.tensor.shallow_clone().f_mul_scalar_(c).unwrap();
                multiplied += 1;
            }
            assert!(multiplied > 0, "`{name}` has no `{key}`");
            let expected = hidden(&model, Some(&adapted), &stream);
            assert!(off(&found, &expected) < 1e-10, "{name}, {c}: {:e}", off(&found, &expected));
            assert!(off(&found, &hidden(&model, None, &stream)) > 1e-6, "{name}, {c}");
        }
    }
}

#[test]
fn a_multiple_of_ia3_is_a_multiple_of_the_distance_of_its_scales_from_1() {
    let _guard = tch::no_grad_guard();
    let (model, stream) = open("llama", Kind::Double);
    let entry = Registry::builtin().unwrap().adapter("ia3").unwrap();
    let fields = json!({
        "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]
    });
    let adapter = build(entry, fields);
    let adapted = attached(&*adapter, &model);
    let scaled = adapted.with_coefficient(&*adapter, -1.0).unwrap();
    let found = hidden(&model, Some(&scaled), &stream);
    for p in adapted.changed().flat_map(|c| c.parameters) {
        let opposite: Tensor = 2.0 - &p.tensor;
        p.tensor.shallow_clone().copy_(&opposite);
    }
    assert!(off(&found, &hidden(&model, Some(&adapted), &stream)) < 1e-10);
}

#[test]
fn a_multiple_of_an_edit_of_states_moves_them_proportionally() {
    let _guard = tch::no_grad_guard();
    let (model, stream) = open("llama", Kind::Double);
    let entry = Registry::builtin().unwrap().adapter("loreft").unwrap();
    let adapter = build(entry, json!({}));
    let adapted = attached(&*adapter, &model);
    let at = |adapted: Option<&Adapted>| {
        states(&model, adapted, &stream, &[Site::Block(0)]).sites.remove(0)
    };
    let (base, trained) = (at(None), at(Some(&adapted)));
    assert!(off(&base, &trained) > 1e-3);
    for c in [-1.0, 0.5] {
        let multiplied = adapted.with_coefficient(&*adapter, c).unwrap();
        let found = at(Some(&multiplied));
        assert!(off(&(found - &base), &((&trained - &base) * c)) < 1e-12, "{c}");
    }
}

#[test]
fn a_merged_multiple_computes_the_same() {
    let _guard = tch::no_grad_guard();
    for (name, targets) in [
        ("llama", json!(["q_proj", "v_proj"])),
        ("phi3", json!(["qkv_proj.q_proj", "qkv_proj.v_proj", "gate_up_proj.up_proj"])),
    ] {
        let (mut model, stream) = open(name, Kind::Double);
        let base = hidden(&model, None, &stream);
        for entry in entries() {
            let adapter = build(entry, json!({ "target_modules": targets }));
            let adapted = attached(&*adapter, &model);
            if adapted.changes_blocks() || check_coefficient(&*adapter, -2.0).is_err() {
                continue;
            }
            let scaled = adapted.with_coefficient(&*adapter, -2.0).unwrap();
            let with = hidden(&model, Some(&scaled), &stream);
            let merged = model.merge(&scaled).unwrap();
            let found = hidden(&model, None, &stream);
            model.unmerge(merged);
            let of = format!("{name}, {}", entry.about.name);
            assert!(off(&found, &with) < 1e-9, "{of}: {:e}", off(&found, &with));
            assert!(off(&found, &base) > 1e-6, "{of}");
        }
    }
}
