//! Tests that adapters are saved according to PEFT's rules. This file has its own implementation of
//! the rules. It also tests PEFT files whose configuration does not match their tensors.

use std::collections::BTreeSet;
use std::path::Path;

use reprpo_core::conformance;
use reprpo_core::model::attach::unmatched;
use reprpo_core::model::peft::{self, Saved};
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::{AdapterEntry, Registry};
use reprpo_core::weights::{read_safetensors, write_safetensors};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Map, Value, json};
use reprpo_plugin::tch::Device;
use reprpo_plugin::testkit::random;

use super::fixture::{disturb, off};
use crate::golden;

fn adapters() -> Vec<&'static AdapterEntry> {
    Registry::builtin()
        .unwrap()
        .all::<AdapterEntry>()
        .filter(|e| e.about.defaults().unwrap().contains_key("target_modules"))
        .collect()
}

/// Builds the adapter from `fields`. Sizes that are not in `fields` are chosen to fit the small
/// model. All other fields have their defaults.
fn build(entry: &AdapterEntry, fields: &Value) -> Box<dyn Adapter> {
    let mut config = entry.about.defaults().unwrap();
    for (field, value) in [
        ("r", json!(2)),
        ("oft_block_size", json!(8)),
        ("boft_block_size", json!(8)),
        ("blocks", json!(2)),
    ] {
        // OFT is configured by block size or by number of blocks; keep the unused setting at 0.
        if config.get(field).is_some_and(|old| *old != json!(0)) {
            config.insert(field.to_owned(), value);
        }
    }
    config.extend(fields.as_object().unwrap().clone());
    entry.build(&Value::Object(config).to_string()).unwrap()
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Returns the modules that PEFT adapts for an `adapter_config.json`. Panics if PEFT rejects the
/// file.
fn found_by_peft(config: &Value, model: &ModelInfo) -> BTreeSet<String> {
    let kind = config["peft_type"].as_str().unwrap();
    let layers: Option<Vec<u64>> =
        serde_json::from_value(config["layers_to_transform"].clone()).unwrap();
    assert!(
        !["IA3", "ROAD", "SHIRA"].contains(&kind) || config.get("layers_to_transform").is_none(),
        "PEFT's {kind} does not support `layers_to_transform`"
    );
    let names = model.linears.iter().map(|l| l.name.clone());
    match &config["target_modules"] {
        Value::String(text) => {
            assert!(
                layers.is_none(),
                "`layers_to_transform` cannot be used when `target_modules` is a str"
            );
            assert!(
                !text.contains("(?<") && !text.contains("*+"),
                "Python's `re` interprets this differently: {text}"
            );
            let regex = regex::Regex::new(&format!("^(?:{text})$")).unwrap();
            names.filter(|n| text == "all-linear" || regex.is_match(n)).collect()
        }
        list => {
            let list: Vec<String> = serde_json::from_value(list.clone()).unwrap();
            let within = |n: &str| {
                let k: u64 = n.split('.').nth(2).unwrap().parse().unwrap();
                layers.as_ref().is_none_or(|some| some.is_empty() || some.contains(&k))
            };
            names
                .filter(|n| {
                    list.contains(n)
                        || (list.iter().any(|s| n.ends_with(&format!(".{s}"))) && within(n))
                })
                .collect()
        }
    }
}

/// Returns the adapted modules whose inputs are scaled by PEFT's IA³.
fn feedforward_modules(config: &Value, names: &BTreeSet<String>) -> BTreeSet<String> {
    match &config["feedforward_modules"] {
        Value::String(text) => {
            let regex = regex::Regex::new(&format!("^(?:{text})$")).unwrap();
            names.iter().filter(|n| regex.is_match(n)).cloned().collect()
        }
        list => {
            let list: Vec<String> = serde_json::from_value(list.clone()).unwrap();
            if let Some(all) = config["target_modules"].as_array() {
                assert!(
                    list.iter().all(|f| all.iter().any(|t| t == f)),
                    "`feedforward_modules` should be a subset of `target_modules`"
                );
            }
            names.iter().filter(|n| list.iter().any(|f| n.ends_with(f))).cloned().collect()
        }
    }
}

/// Values of `target_modules`, with a description of each. Some are Rust regular expressions that
/// Python rejects or interprets differently.
fn forms() -> Vec<(&'static str, Value)> {
    vec![
        ("ends", json!(["v_proj", "down_proj"])),
        (
            "whole names",
            json!([
                "model.layers.0.self_attn.v_proj",
                "model.layers.2.mlp.down_proj",
                "model.layers.1.mlp.down_proj"
            ]),
        ),
        ("ends and whole names", json!(["model.layers.0.self_attn.v_proj", "mlp.down_proj"])),
        ("expression", json!(r".*\.(v|down)_proj")),
        ("all", json!("all-linear")),
        ("expression of Rust's", json!(r".*\.(?<which>v|down)_proj")),
        ("expression that Python interprets differently", json!(r".*+\.(v|down)_proj")),
    ]
}

/// Combinations of `layers_to_transform` and the number of blocks that the run computes.
const RESTRICTIONS: [(Option<&[usize]>, usize); 5] =
    [(None, 3), (Some(&[1, 2]), 3), (Some(&[0, 1, 2]), 3), (None, 2), (Some(&[1, 2]), 2)];

#[test]
fn peft_finds_the_adapted_modules_of_every_saved_adapter() {
    let model = conformance::model(Kind::Float).unwrap();
    let registry = Registry::builtin().unwrap();
    for entry in adapters() {
        for (form, targets) in forms() {
            for (layers, blocks) in RESTRICTIONS {
                let what = format!(
                    "adapter {}: targets {form}, layers {layers:?}, {blocks} blocks",
                    entry.about.name
                );
                let mut fields =
                    json!({ "target_modules": targets, "layers_to_transform": layers });
                for inner in
                    [json!(["down_proj"]), json!(r".*\.(?<x>down)_proj"), json!("all-linear")]
                {
                    if entry.about.defaults().unwrap().contains_key("feedforward_modules") {
                        fields["feedforward_modules"] =
                            match form.contains("whole") && inner.is_array() {
                                true => json!([]),
                                false => inner.clone(),
                            };
                    } else if inner != json!(["down_proj"]) {
                        continue;
                    }
                    assert_peft_reads_the_saved_adapter(
                        &what, entry, &fields, &model, blocks, &registry,
                    );
                }
            }
        }
    }
}

fn assert_peft_reads_the_saved_adapter(
    what: &str,
    entry: &'static AdapterEntry,
    fields: &Value,
    model: &Model,
    blocks: usize,
    registry: &Registry,
) {
    let adapter = build(entry, fields);
    let adapted = Adapted::attach_saved(&*adapter, model, blocks, 0).unwrap();
    disturb(&adapted.changed().flat_map(|c| c.parameters).collect::<Vec<_>>());
    let folder = tempfile::tempdir().unwrap();
    peft::write(folder.path(), entry, &*adapter, &adapted, model, &"fixture".into()).unwrap();
    let config = json_file(&folder.path().join("adapter_config.json"));
    let tensors = read_safetensors(&folder.path().join("adapter_model.safetensors")).unwrap();
    let names: BTreeSet<String> = adapted.names().map(str::to_owned).collect();
    let found = found_by_peft(&config, model.info());
    assert_eq!(found, names, "{what}: {config}");
    if config.get("feedforward_modules").is_some() {
        for name in &feedforward_modules(&config, &names) {
            assert_eq!(
                tensors[&format!("base_model.model.{name}.ia3_l")].size()[0],
                1,
                "{what}: {config}"
            );
        }
        let inputs = tensors.values().filter(|t| t.size()[0] == 1).count();
        assert_eq!(inputs, feedforward_modules(&config, &names).len(), "{what}: {config}");
    }
    // Reading the file gives the same adapter, and writing that adapter gives the same
    // configuration.
    let saved = Saved::read(folder.path(), registry).unwrap();
    let fresh = entry.build(&Value::Object(saved.config).to_string()).unwrap();
    let warnings: Vec<String> =
        unmatched(&*fresh, model.info()).unwrap().iter().map(|e| e.to_string()).collect();
    // Entries that match no computed block are saved too, so reading them back causes a warning.
    assert!(
        warnings
            .iter()
            .all(|t| fields["target_modules"].is_array() && t.contains("target_modules")),
        "{what}: {warnings:?}"
    );
    let again = Adapted::attach_saved(&*fresh, model, 3, 1).unwrap();
    again.restore(&saved.values).unwrap();
    assert_eq!(again.names().collect::<Vec<_>>(), adapted.names().collect::<Vec<_>>(), "{what}");
    for name in adapted.names() {
        let frozen = model.frozen(name).unwrap();
        let x = random(&[3, frozen.inputs()]).to_kind(Kind::Float);
        let y = |a: &Adapted| a.get(name).unwrap().forward(&x, &frozen, false).unwrap();
        assert!(off(&y(&again), &y(&adapted)) < 1e-5, "{what}: {name}");
    }
    let twice = tempfile::tempdir().unwrap();
    peft::write(twice.path(), entry, &*fresh, &again, model, &"fixture".into()).unwrap();
    assert_eq!(json_file(&twice.path().join("adapter_config.json")), config, "{what}");
}

#[test]
fn peft_finds_the_ranks_of_rank_pattern() {
    let model = conformance::model(Kind::Float).unwrap();
    let lora = Registry::builtin().unwrap().adapter("lora").unwrap();
    for patterns in [
        json!({ r"layers\.1\..*": 3, "q_proj": 5 }),
        json!({ "(?i)Q_PROJ": 5, r"layers\.1\..*": 3 }),
    ] {
        for layers in [Value::Null, json!([0, 1])] {
            let fields = json!({ "target_modules": ".*(q|v)_proj", "rank_pattern": patterns,
                "alpha_pattern": { "v_proj": 7.0 }, "layers_to_transform": layers });
            let adapter = build(lora, &fields);
            let adapted = Adapted::attach(&*adapter, &model, 3, 0).unwrap();
            let folder = tempfile::tempdir().unwrap();
            peft::write(folder.path(), lora, &*adapter, &adapted, &model, &"fixture".into())
                .unwrap();
            let config = json_file(&folder.path().join("adapter_config.json"));
            let ranks = config["rank_pattern"].as_object().unwrap();
            for (name, tensor) in
                adapted.tensors().iter().filter(|(name, _)| name.contains("lora_A"))
            {
                let name = name.trim_end_matches(".lora_A.weight");
                let key = ranks.keys().find(|k| {
                    regex::Regex::new(&format!(r"^(?:.*\.)?({k})$")).unwrap().is_match(name)
                });
                let r = key.map_or(2, |k| ranks[k].as_i64().unwrap());
                assert!(
                    ranks.keys().all(|k| !k.contains("(?")),
                    "Python's `re` interprets this differently: {config}"
                );
                assert_eq!(tensor.size()[0], r, "{name}: {config}");
            }
        }
    }
}

#[test]
fn a_name_that_matches_no_module_is_an_error_only_in_a_new_adapter() {
    let model = conformance::model(Kind::Float).unwrap();
    let entry = |name: &str| Registry::builtin().unwrap().adapter(name).unwrap();
    let cases = [
        (
            "lora",
            json!({ "rank_pattern": { "q_porj": 4 } }),
            "`q_porj` in `adapter.rank_pattern`",
            "did you mean `q_proj`?",
        ),
        (
            "lora",
            json!({ "alpha_pattern": { "k_proj": 4.0 } }),
            "`k_proj` in `adapter.alpha_pattern`",
            "the model has this module",
        ),
        (
            "lora",
            json!({ "target_modules": ["q_proj", "w_pack"] }),
            "unknown target module `w_pack`",
            "valid: ",
        ),
        (
            "hra",
            json!({ "layers_to_transform": [1, 3] }),
            "`adapter.layers_to_transform` contains 3, but the model only has layers 0 to 2",
            "",
        ),
        (
            "oft",
            json!({ "target_modules": ["layers.1.mlp.up_proj"], "layers_to_transform": [1, 0] }),
            "contains 0, but `adapter.target_modules`",
            "these layers: 1",
        ),
        (
            "vera",
            json!({ "target_modules": ["q_proj", "1.mlp.up_proj"], "layers_to_transform": [0] }),
            "`1.mlp.up_proj` in `adapter.target_modules`",
            "",
        ),
        (
            "ia3",
            json!({ "target_modules": ".*[kv]_proj" }),
            "`down_proj` in `adapter.feedforward_modules`",
            "remove it from",
        ),
    ];
    for (name, fields, message, hint) in cases {
        let adapter = build(entry(name), &fields);
        let e = Adapted::attach(&*adapter, &model, 3, 0).unwrap_err();
        assert!(e.message().contains(message) && format!("{e:?}").contains(hint), "{e:?}");
        assert!(
            Adapted::attach_saved(&*adapter, &model, 3, 0).unwrap().names().count() > 0,
            "{fields}"
        );
    }
    let empty = build(entry("boft"), &json!({ "layers_to_transform": [] }));
    assert!(
        Adapted::attach(&*empty, &model, 3, 0)
            .unwrap_err()
            .message()
            .contains("`adapter.layers_to_transform` is empty")
    );
    let none = build(entry("boft"), &json!({ "target_modules": ["q_porj"] }));
    assert!(
        format!("{:?}", Adapted::attach_saved(&*none, &model, 3, 0).unwrap_err())
            .contains("did you mean `q_proj`?")
    );
}

/// Writes a folder in PEFT's format with the given configuration and one tensor.
fn saved(config: &Value, key: &str, shape: &[i64]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let tensor = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    write_safetensors(
        &folder.path().join("adapter_model.safetensors"),
        &[(format!("base_model.model.model.layers.0.self_attn.{key}"), tensor)],
    )
    .unwrap();
    folder
}

fn read(folder: &Path) -> Saved {
    Saved::read(folder, &Registry::builtin().unwrap()).unwrap_or_else(|e| panic!("{e:?}"))
}

#[test]
fn one_butterfly_factor_in_the_file_overrides_the_configuration() {
    let config = |factors: u32| {
        json!({ "peft_type": "BOFT", "boft_block_size": 8,
        "boft_block_num": 0, "boft_n_butterfly_factor": factors, "target_modules": ["q_proj"] })
    };
    let with = |configured: u32, stored: i64| {
        let saved = read(saved(&config(configured), "q_proj.boft_R", &[stored, 4, 8, 8]).path());
        (saved.config["boft_n_butterfly_factor"].clone(), saved.warnings)
    };
    let (factors, warnings) = with(2, 1);
    assert_eq!(factors, json!(1));
    assert!(
        warnings.len() == 1
            && warnings[0]
                .contains("`boft_n_butterfly_factor` is 2, but each `boft_R` contains 1 factor"),
        "{warnings:?}"
    );
    assert_eq!(with(2, 2), (json!(2), vec![]));
    assert_eq!(with(1, 1), (json!(1), vec![]));
    // PEFT rejects this file too.
    assert_eq!(with(3, 2), (json!(3), vec![]));
}

#[test]
fn an_adapter_with_the_older_series_of_oft_gets_a_warning() {
    let with = |version: Option<&str>, more: Value| {
        let mut config = json!({ "peft_type": "OFT", "r": 0, "oft_block_size": 8,
            "use_cayley_neumann": true, "target_modules": ["q_proj"] });
        config
            .as_object_mut()
            .unwrap()
            .extend(version.map(|v| ("peft_version".to_owned(), json!(v))));
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(saved(&config, "q_proj.oft_R.weight", &[4, 28]).path()).warnings
    };
    for old in
        [Some("0.17.1"), Some("0.9.0"), Some("0.18.0.dev0@abc"), Some("0.18.0rc1"), Some("?"), None]
    {
        let warnings = with(old, json!({}));
        let [warning] = &warnings[..] else { panic!("{old:?}: {warnings:?}") };
        assert!(
            warning.contains("changed in PEFT 0.18")
                && warning.contains("counts its last power of Q twice"),
            "{old:?}: {warning}"
        );
    }
    for new in ["0.18.0", "0.18.1", "0.18.0.post1", "0.21.2", "0.22.1.dev0", "1.0"] {
        assert_eq!(with(Some(new), json!({})), [""; 0], "{new}");
    }
    assert_eq!(with(None, json!({ "use_cayley_neumann": false })), [""; 0]);
    assert_eq!(with(None, json!({ "num_cayley_neumann_terms": 2 })), [""; 0]);
    assert!(with(None, json!({ "num_cayley_neumann_terms": 3 }))[0].contains("2Q²"));
}

#[test]
fn an_error_names_a_pickled_adapter_file() {
    let folder = saved(
        &json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"] }),
        "q_proj.lora_A.weight",
        &[4, 32],
    );
    std::fs::rename(
        folder.path().join("adapter_model.safetensors"),
        folder.path().join("adapter_model.bin"),
    )
    .unwrap();
    let e = format!("{:?}", Saved::read(folder.path(), &Registry::builtin().unwrap()).unwrap_err());
    assert!(
        e.contains("has no adapter_model.safetensors")
            && e.contains("adapter_model.bin is a pickle, which reprpo never reads"),
        "{e}"
    );
}

#[test]
fn layers_pattern_must_name_the_models_list_of_layers() {
    let with = |pattern: Value| {
        let config = json!({ "peft_type": "HRA", "r": 2, "layers_to_transform": [0],
            "layers_pattern": pattern, "target_modules": ["q_proj"] });
        Saved::read(saved(&config, "q_proj.hra_u", &[32, 2]).path(), &Registry::builtin().unwrap())
    };
    for good in [json!(null), json!([]), json!(""), json!("layers"), json!(["h", "layers"])] {
        assert_eq!(with(good).unwrap().config["layers_to_transform"], json!([0]));
    }
    let e = format!("{:?}", with(json!(["blocks"])).unwrap_err());
    assert!(
        e.contains(
            "`layers_pattern` in adapter_config.json must be the name of the model's list of \
                layers, got `blocks`"
        ) && e.contains("`layers`"),
        "{e}"
    );
    let everywhere = json!({ "peft_type": "HRA", "r": 2, "layers_to_transform": [],
        "target_modules": ["q_proj"] });
    assert_eq!(
        read(saved(&everywhere, "q_proj.hra_u", &[32, 2]).path()).config["layers_to_transform"],
        json!(null)
    );
}

/// PEFT 0.21.2 saved these adapters. Their `peft_version` was edited or removed.
#[test]
fn files_of_other_versions_of_peft_get_a_warning() {
    let changed = |name: &str, field: &str, value: Option<&str>| {
        let (from, to) = (golden::own().join("peft").join(name), tempfile::tempdir().unwrap());
        let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
        let mut config: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(config["peft_version"], "0.21.2");
        match value {
            Some(value) => drop(config.insert(field.into(), value.into())),
            None => drop(config.remove(field)),
        }
        std::fs::write(to.path().join("adapter_config.json"), Value::Object(config).to_string())
            .unwrap();
        let file = "adapter_model.safetensors";
        std::fs::copy(from.join(file), to.path().join(file)).unwrap();
        to
    };
    for (name, version, warned) in [
        ("oft", Some("0.21.2"), false),
        ("oft_neumann", Some("0.21.2"), false),
        ("oft_neumann", Some("0.17.1"), true),
        ("oft_neumann", None, true),
        ("oft", None, false),
        ("hra", None, false),
        ("vera", None, false),
    ] {
        let warnings = read(changed(name, "peft_version", version).path()).warnings;
        assert_eq!(!warnings.is_empty(), warned, "{name}, {version:?}: {warnings:?}");
    }
    let boft = read(&golden::own().join("peft/boft"));
    assert!(boft.warnings[0].contains("boft_n_butterfly_factor"), "{:?}", boft.warnings);

    // PEFT releases before 0.14 do not write this field.
    let older = changed("oft", "oft_block_size", None);
    assert!(Saved::read(older.path(), &Registry::builtin().unwrap()).is_err());

    let pickle = tempfile::tempdir().unwrap();
    let config = json!({ "peft_type": "LORA", "r": 2, "target_modules": ["q_proj"] });
    std::fs::write(pickle.path().join("adapter_config.json"), config.to_string()).unwrap();
    std::fs::write(pickle.path().join("adapter_model.bin"), b"\x80\x02}.").unwrap();
    let e = Saved::read(pickle.path(), &Registry::builtin().unwrap()).unwrap_err();
    assert!(format!("{e:?}").contains("is a pickle"), "{e:?}");
}

#[test]
fn files_written_by_older_versions_of_peft_get_a_warning() {
    let Some(shared) = golden::shared("cases/42-oft-versions") else { return };
    let cases = shared.join("cases");
    for (name, warned) in [
        ("oft", false),
        ("oft_neumann", false),
        ("oft_nokey", false),
        ("oft_old", true),
        ("oft_nover", true),
        ("hra", false),
        ("vera", false),
    ] {
        let warnings = read(&cases.join("42-oft-versions").join(name)).warnings;
        assert_eq!(!warnings.is_empty(), warned, "{name}: {warnings:?}");
    }
    assert!(
        Saved::read(&cases.join("42-oft-versions/oft_pre14"), &Registry::builtin().unwrap())
            .is_err()
    );
    let e = format!(
        "{:?}",
        Saved::read(&cases.join("38-adapter-bin"), &Registry::builtin().unwrap()).unwrap_err()
    );
    assert!(e.contains("is a pickle"), "{e}");
}
