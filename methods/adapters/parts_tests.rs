//! Tests adapters on parts of fused modules. Such adapters must match adapters on separate modules.
//! Merging and saving must also work.

use std::collections::BTreeSet;

use reprpo_core::model::pass::Request;
use reprpo_core::model::peft::{self, Saved};
use reprpo_core::model::stream::Stream;
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::{AdapterEntry, Registry};
use reprpo_core::weights::{ModelFiles, read_safetensors};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Value, json};
use reprpo_plugin::tch::{self, Device};

use super::fixture::{disturb, off};
use crate::golden::own;

/// Models with fused modules, and some of the parts of those modules.
const FUSED: [(&str, &[&str]); 3] = [
    ("phi3", &["qkv_proj.q_proj", "qkv_proj.v_proj", "gate_up_proj.up_proj"]),
    ("gpt_neox", &["query_key_value.k_proj", "query_key_value.v_proj"]),
    ("gpt2", &["c_attn.q_proj", "c_attn.v_proj"]),
];

fn open(name: &str, kind: Kind) -> (ModelFiles, Model, Stream) {
    let dir = own().join("models").join(name);
    let files = ModelFiles::open(&dir).unwrap();
    let model = Model::load(&files, kind, Device::Cpu).unwrap();
    let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
    let stream = Stream::from_padded(&io["input_ids"], &io["attention_mask"], Device::Cpu).unwrap();
    (files, model, stream)
}

/// Returns the indices of each part's rows in the output of a fused module. The indices are
/// hard-coded, so that the tests do not depend on the model's own table.
fn parts(module: &str) -> Vec<(&'static str, Vec<i64>)> {
    let range = |from: i64, to: i64| (from..to).collect::<Vec<i64>>();
    // Four heads of width 8, each with a query, key and value.
    let of_heads = |i: i64| {
        (0..4).flat_map(|head| range(24 * head + 8 * i, 24 * head + 8 * (i + 1))).collect()
    };
    match module.rsplit('.').next().unwrap() {
        // Four query heads, two key heads and two value heads, all of width 8.
        "qkv_proj" => {
            vec![("q_proj", range(0, 32)), ("k_proj", range(32, 48)), ("v_proj", range(48, 64))]
        }
        "gate_up_proj" => vec![("gate_proj", range(0, 72)), ("up_proj", range(72, 144))],
        "query_key_value" => {
            vec![("q_proj", of_heads(0)), ("k_proj", of_heads(1)), ("v_proj", of_heads(2))]
        }
        // Four query heads, four key heads and four value heads, all of width 8.
        "c_attn" => {
            vec![("q_proj", range(0, 32)), ("k_proj", range(32, 64)), ("v_proj", range(64, 96))]
        }
        _ => Vec::new(),
    }
}

/// Returns the built-in adapters that change linear modules.
fn adapters() -> Vec<&'static AdapterEntry> {
    Registry::builtin()
        .unwrap()
        .all::<AdapterEntry>()
        .filter(|e| e.about.defaults().unwrap().contains_key("target_modules"))
        .collect()
}

fn entry(name: &str) -> &'static AdapterEntry {
    Registry::builtin().unwrap().adapter(name).unwrap()
}

/// Builds an adapter with default settings except for `fields`.
fn build(entry: &AdapterEntry, fields: Value) -> Box<dyn Adapter> {
    let mut config = entry.about.defaults().unwrap();
    // IA³'s feed-forward modules must be among its targets, but these tests do not target the
    // default feed-forward modules.
    config.entry("feedforward_modules").and_modify(|f| *f = json!([]));
    // Heads have 8 outputs.
    config.entry("group_size").and_modify(|f| *f = json!(8));
    config.extend(fields.as_object().unwrap().clone());
    entry.build(&Value::Object(config).to_string()).unwrap()
}

/// Attaches an adapter and adds noise to its parameters.
fn attached(adapter: &dyn Adapter, model: &Model) -> Adapted {
    let adapted = Adapted::attach(adapter, model, model.info().layers, 0).unwrap();
    disturb(&adapted.changed().flat_map(|c| c.parameters).collect::<Vec<_>>());
    adapted
}

fn logits(model: &Model, adapted: Option<&Adapted>, stream: &Stream) -> Tensor {
    let reached =
        model.forward(stream, Request { adapted, hidden: true, ..Request::default() }).unwrap();
    model.logits(&reached.hidden.unwrap()).unwrap()
}

#[test]
fn an_adapter_on_a_part_changes_only_the_rows_of_the_part() {
    for (name, targets) in FUSED {
        let (files, model, stream) = open(name, Kind::Double);
        let _guard = tch::no_grad_guard();
        let weights = files.load(Kind::Double, Device::Cpu).unwrap();
        for entry in adapters() {
            let adapted = attached(&*build(entry, json!({ "target_modules": targets })), &model);
            let mut checked = 0;
            for module in &model.info().linears {
                let parts = parts(&module.name);
                let named = |part: &str| format!("{}.{part}", module.name);
                let at_parts = parts.iter().map(|(part, _)| Site::Output(named(part)));
                let sites: Vec<Site> =
                    [Site::Input(module.name.clone()), Site::Output(module.name.clone())]
                        .into_iter()
                        .chain(at_parts)
                        .collect();
                let states = model
                    .forward(
                        &stream,
                        Request { adapted: Some(&adapted), sites: &sites, ..Request::default() },
                    )
                    .unwrap()
                    .states;
                let (x, y) = (&states[0], &states[1]);
                for ((part, rows), at_part) in parts.iter().zip(&states[2..]) {
                    assert_eq!(
                        model.info().width(&Site::Output(named(part))).unwrap(),
                        rows.len() as i64
                    );
                    let rows = Tensor::from_slice(rows);
                    // Each column of a `Conv1D` weight belongs to one output.
                    let of_outputs = |t: &Tensor| {
                        if name == "gpt2" && t.dim() == 2 { t.tr() } else { t.shallow_clone() }
                    };
                    let own = |kind: &str| {
                        weights
                            .get(&format!("{}.{kind}", module.name))
                            .map(|t| of_outputs(t).index_select(0, &rows))
                    };
                    let frozen = Frozen::new(own("weight").unwrap(), own("bias"));
                    let plain = frozen.forward(x).unwrap();
                    let expected = match adapted.get(&named(part)) {
                        Some(adapter) => {
                            checked += 1;
                            let changed = adapter.forward(x, &frozen, false).unwrap();
                            assert!(
                                off(&changed, &plain) > 1e-4,
                                "{name}: {} changes nothing",
                                entry.about.name
                            );
                            changed
                        }
                        None => plain,
                    };
                    let worst =
                        off(&y.index_select(1, &rows), &expected).max(off(at_part, &expected));
                    assert!(
                        worst < 1e-10,
                        "model {name}, adapter {}: part {} is off by {worst:e}",
                        entry.about.name,
                        named(part)
                    );
                }
            }
            assert_eq!(checked, targets.len() * model.info().layers);
        }
    }
}

/// Phi-3's block is Llama's block with fused modules, so its weights can be split into a Llama
/// model.
#[test]
fn adapted_parts_equal_the_adapted_modules_of_the_unfused_model() {
    let (files, model, stream) = open("phi3", Kind::Double);
    let mut config = files.config().clone();
    config["model_type"] = "llama".into();
    let unfused = |name: &str| name.replace("qkv_proj.", "").replace("gate_up_proj.", "");
    let split = |(name, t): (String, Tensor)| {
        let module = name.trim_end_matches(".weight").to_owned();
        let rows = parts(&module);
        let own = |(part, rows): &(&str, Vec<i64>)| {
            (
                unfused(&format!("{module}.{part}.weight")),
                t.index_select(0, &Tensor::from_slice(rows)),
            )
        };
        if rows.is_empty() {
            vec![(name, t.shallow_clone())]
        } else {
            rows.iter().map(own).collect()
        }
    };
    let tensors =
        files.load(Kind::Double, Device::Cpu).unwrap().into_iter().flat_map(split).collect();
    let llama = Model::from_tensors(&config, tensors, Kind::Double, Device::Cpu).unwrap();
    assert!(off(&logits(&llama, None, &stream), &logits(&model, None, &stream)) < 1e-10);
    for entry in adapters() {
        let name = entry.about.name;
        let adapted = attached(
            &*build(
                entry,
                json!({ "target_modules": ["qkv_proj.q_proj", "qkv_proj.v_proj",
                    "gate_up_proj.up_proj"] }),
            ),
            &model,
        );
        let theirs = Adapted::attach(
            &*build(entry, json!({ "target_modules": ["q_proj", "v_proj", "up_proj"] })),
            &llama,
            3,
            0,
        )
        .unwrap();
        theirs
            .restore(&adapted.tensors().into_iter().map(|(name, t)| (unfused(&name), t)).collect())
            .unwrap();
        let (ours, reference) =
            (logits(&model, Some(&adapted), &stream), logits(&llama, Some(&theirs), &stream));
        assert!(
            off(&ours, &reference) < 1e-10,
            "adapter {name}: the logits are off by {:e}",
            off(&ours, &reference)
        );
        assert!(off(&ours, &logits(&model, None, &stream)) > 1e-3, "{name} changes nothing");
        if adapted.parameters().is_empty() {
            continue;
        }
        for logits in [&ours, &reference] {
            logits.square().mean(Kind::Double).backward();
        }
        for ((key, ours), (_, theirs)) in adapted.parameters().into_iter().zip(theirs.parameters())
        {
            let (ours, theirs) = (ours.grad(), theirs.grad());
            let worst = off(&ours, &theirs) / theirs.abs().max().double_value(&[]);
            assert!(worst < 1e-8, "adapter {name}: the gradient of {key} is off by {worst:e}");
        }
    }
}

/// Each part gets the whole module's A and its own rows of the module's B.
#[test]
fn lora_on_a_whole_module_equals_lora_on_all_of_its_parts() {
    for (name, module) in
        [("phi3", "qkv_proj"), ("gpt_neox", "query_key_value"), ("gpt2", "c_attn")]
    {
        let (_, model, stream) = open(name, Kind::Double);
        let _guard = tch::no_grad_guard();
        let whole = attached(&*build(entry("lora"), json!({ "target_modules": [module] })), &model);
        let in_parts = ["q_proj", "k_proj", "v_proj"].map(|part| format!("{module}.{part}"));
        let in_parts = Adapted::attach(
            &*build(entry("lora"), json!({ "target_modules": in_parts })),
            &model,
            3,
            0,
        )
        .unwrap();
        let of_part = |(name, t): (String, Tensor)| {
            let (at, key) = name.split_once(".lora_").unwrap();
            let values = parts(at).into_iter().map(|(part, rows)| {
                let value = if key == "B.weight" {
                    t.index_select(0, &Tensor::from_slice(&rows))
                } else {
                    t.shallow_clone()
                };
                (format!("{at}.{part}.lora_{key}"), value)
            });
            values.collect::<Vec<_>>()
        };
        in_parts.restore(&whole.tensors().into_iter().flat_map(of_part).collect()).unwrap();
        let (ours, reference) =
            (logits(&model, Some(&in_parts), &stream), logits(&model, Some(&whole), &stream));
        assert!(
            off(&ours, &reference) < 1e-10,
            "model {name}: off by {:e}",
            off(&ours, &reference)
        );
        assert!(off(&ours, &logits(&model, None, &stream)) > 1e-3);
    }
}

#[test]
fn merged_parts_compute_the_same_and_do_not_change_other_rows() {
    for (name, targets) in FUSED {
        let (_, mut model, stream) = open(name, Kind::Double);
        let _guard = tch::no_grad_guard();
        let base = logits(&model, None, &stream);
        for entry in adapters() {
            let adapted = attached(&*build(entry, json!({ "target_modules": targets })), &model);
            let with = logits(&model, Some(&adapted), &stream);
            for (module, merged) in adapted.merged(&model).unwrap() {
                let before = model.frozen(&module).unwrap();
                for (part, rows) in parts(&module) {
                    let rows = Tensor::from_slice(&rows);
                    let same = merged.dense().unwrap().index_select(0, &rows)
                        == before.dense().unwrap().index_select(0, &rows);
                    assert_eq!(
                        same,
                        adapted.get(&format!("{module}.{part}")).is_none(),
                        "{name}, {}: {module}.{part}",
                        entry.about.name
                    );
                }
            }
            let merged = model.merge(&adapted).unwrap();
            let worst = off(&logits(&model, None, &stream), &with);
            assert!(
                worst < 1e-9,
                "model {name}, adapter {}: the merged logits are off by {worst:e}",
                entry.about.name
            );
            model.unmerge(merged);
            assert!(
                logits(&model, None, &stream) == base,
                "model {name}, adapter {}: the unmerged model differs from the base model",
                entry.about.name
            );
        }
    }
}

/// Saves an adapter and loads it again. Returns the saved configuration, the names of the saved
/// tensors, and the difference between the logits before saving and after loading.
fn save_and_load(
    entry: &AdapterEntry,
    adapter: &dyn Adapter,
    model: &Model,
    stream: &Stream,
) -> (Value, BTreeSet<String>, f64) {
    let adapted = attached(adapter, model);
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    peft::write(first.path(), entry, adapter, &adapted, model, &"fused".into()).unwrap();
    let saved = Saved::read(first.path(), &Registry::builtin().unwrap()).unwrap();
    let again = entry.build(&Value::Object(saved.config).to_string()).unwrap();
    let fresh = Adapted::attach(&*again, model, model.info().layers, 1).unwrap();
    fresh.restore(&saved.values).unwrap();
    peft::write(second.path(), entry, &*again, &fresh, model, &"fused".into()).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let bytes = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(file)).unwrap();
        assert!(
            bytes(&first) == bytes(&second),
            "adapter {}: `{file}` changes if the loaded adapter is saved again",
            entry.about.name
        );
    }
    let changed = logits(model, Some(&adapted), stream);
    assert!(
        off(&changed, &logits(model, None, stream)) > 1e-3,
        "{} changes nothing",
        entry.about.name
    );
    let config =
        serde_json::from_slice(&std::fs::read(first.path().join("adapter_config.json")).unwrap())
            .unwrap();
    (
        config,
        saved.values.keys().cloned().collect(),
        off(&logits(model, Some(&fresh), stream), &changed),
    )
}

#[test]
fn parts_are_saved_as_whole_modules_if_the_method_allows_it() {
    // PEFT does not support MiSS and RoAd for GPT-2's `Conv1D`.
    for (model_name, module, other, readable) in [
        ("phi3", "qkv_proj", "o_proj", "ia3 lora miss road"),
        ("gpt_neox", "query_key_value", "dense_4h_to_h", "ia3 lora miss road"),
        ("gpt2", "c_attn", "attn.c_proj", "ia3 lora"),
    ] {
        let (_, model, stream) = open(model_name, Kind::Float);
        let _guard = tch::no_grad_guard();
        let (mut fused, mut read) = (Vec::new(), Vec::new());
        for entry in adapters() {
            let name = entry.about.name;
            let targets =
                [format!("{module}.q_proj"), format!("{module}.v_proj"), other.to_owned()];
            let adapter = build(entry, json!({ "target_modules": targets }));
            let unreadable =
                peft::unreadable(entry, &*adapter, &attached(&*adapter, &model), &model).unwrap();
            let (config, tensors, error) = save_and_load(entry, &*adapter, &model, &stream);
            let in_part = tensors.iter().any(|t| t.contains(&format!("{module}.q_proj.")));
            let saved = format!("{model_name}, adapter {name}: error {error:e}, {tensors:?}");
            if in_part {
                assert!(error == 0.0, "{saved}");
                assert_eq!(config["target_modules"], json!(targets));
            } else {
                fused.push(name);
                assert!(error < 1e-4, "{saved}");
                assert_eq!(config["target_modules"], json!([module, other]));
            }
            match unreadable {
                None => read.push(name),
                Some(why) => {
                    assert!(why.contains(&format!("`{name}`")) && why.contains("--merge"), "{why}");
                }
            }
        }
        assert_eq!(fused, ["ia3", "lora", "miss", "road"], "{model_name}");
        assert_eq!(read.join(" "), readable, "{model_name}");
    }
}

#[test]
fn lora_of_parts_keeps_its_scale_in_a_file_of_whole_modules() {
    for (model_name, at, module) in [
        ("phi3", "model.layers.1.self_attn.qkv_proj", "qkv_proj"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value", "query_key_value"),
    ] {
        let (_, model, stream) = open(model_name, Kind::Float);
        let _guard = tch::no_grad_guard();
        let patterns = json!({ "r": 4, "lora_alpha": 6.0, "rank_pattern": { "v_proj": 2 },
            "alpha_pattern": { "v_proj": 5.0 } });
        for (fields, rank, alpha) in [
            (json!({ "r": 16, "lora_alpha": 32.0 }), 32, 64.0),
            (json!({ "r": 8, "lora_alpha": 4.0, "use_rslora": true }), 16, 4.0 / 8f64.sqrt() * 4.0),
            (json!({ "r": 3, "lora_alpha": 3.0, "use_dora": true }), 6, 6.0),
            (json!({ "r": 4, "lora_alpha": 4.0, "lora_bias": true }), 8, 8.0),
            (patterns, 6, 9.0),
            (json!({ "r": 2, "lora_alpha": 8.0, "layers_to_transform": [1] }), 4, 16.0),
        ] {
            let mut fields = fields;
            // This regular expression matches parts. It is saved as a list of module names.
            fields["target_modules"] = json!(format!(r".*\.{module}\.[qv]_proj"));
            let (config, tensors, error) = save_and_load(
                entry("lora"),
                &*build(entry("lora"), fields.clone()),
                &model,
                &stream,
            );
            assert!(error < 1e-4, "model {model_name}, fields {fields}: error {error:e}");
            assert_eq!(
                (&config["rank_pattern"][at], &config["alpha_pattern"][at]),
                (&json!(rank), &json!(alpha)),
                "{fields}"
            );
            // PEFT ignores `layers_to_transform` for modules that are listed by their full names.
            let names = config["target_modules"].as_array().unwrap();
            let layers =
                fields["layers_to_transform"].as_array().map_or(model.info().layers, Vec::len);
            assert_eq!(
                (names.len(), config.get("layers_to_transform")),
                (layers, None),
                "{config}"
            );
            assert!(names.contains(&json!(at)), "{config}");
            assert!(tensors.contains(&format!("{at}.lora_B.weight")), "{tensors:?}");
        }
    }
}

/// The saved form is a LoRA of twice the rank, which is then combined like any other.
#[test]
fn pissa_and_olora_of_parts_are_saved_as_lora_of_whole_modules() {
    let (_, model, stream) = open("phi3", Kind::Float);
    let _guard = tch::no_grad_guard();
    for fields in [
        json!({ "init": "pissa", "r": 4, "lora_alpha": 6.0, "rank_pattern": { "v_proj": 2 } }),
        json!({ "init": "olora", "r": 3, "lora_alpha": 2.0, "use_rslora": true }),
        json!({ "init": "pissa", "r": 2, "use_dora": true }),
    ] {
        let mut fields = fields;
        fields["target_modules"] = json!(["qkv_proj.q_proj", "qkv_proj.v_proj", "o_proj"]);
        let adapter = build(entry("lora"), fields.clone());
        let (config, tensors, error) = save_and_load(entry("lora"), &*adapter, &model, &stream);
        assert!(error < 1e-4, "{fields}: error {error:e}");
        assert_eq!(config["target_modules"], json!(["qkv_proj", "o_proj"]));
        assert_eq!(config["init_lora_weights"], json!(true));
        assert!(tensors.contains("model.layers.1.self_attn.qkv_proj.lora_B.weight"), "{tensors:?}");
    }
}

#[test]
fn a_saved_adapter_on_conv1d_modules_sets_fan_in_fan_out_if_peft_supports_it() {
    let (_, model, stream) = open("gpt2", Kind::Float);
    let _guard = tch::no_grad_guard();
    let mut readable = Vec::new();
    for entry in adapters() {
        let name = entry.about.name;
        let adapter = build(entry, json!({ "target_modules": ["q_proj", "o_proj"] }));
        let unreadable =
            peft::unreadable(entry, &*adapter, &attached(&*adapter, &model), &model).unwrap();
        let (config, _, error) = save_and_load(entry, &*adapter, &model, &stream);
        assert_eq!(config["target_modules"], json!(["c_attn", "attn.c_proj"]), "{name}");
        assert_eq!(error, 0.0, "{name}");
        match unreadable {
            None => {
                readable.push(name);
                assert_eq!(config["fan_in_fan_out"], json!(true), "{name}");
            }
            Some(why) => {
                assert!(
                    why.contains(&format!("does not support `{name}`"))
                        && why.contains("`transformer.h.0.attn.c_attn`")
                        && why.contains("--merge"),
                    "{why}"
                );
                assert!(config.get("fan_in_fan_out").is_none_or(|flag| flag == false), "{name}");
            }
        }
    }
    assert_eq!(readable, ["ia3", "lora", "vera"]);
}
