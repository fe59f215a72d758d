//! Compares adapters whose files contain more than the tensors of the method with PEFT: biases,
//! full modules, rows of the embedding, and adapters of the embedding and of the head. Also tests
//! the fields that select modules.

use std::path::Path;

use crate::golden::{error, own};
use reprpo_core::model::export::Export;
use reprpo_core::model::pass::Request;
use reprpo_core::model::peft;
use reprpo_core::model::stream::Stream;
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::Registry;
use reprpo_core::run::{AdapterChoice, attach_saved};
use reprpo_core::weights::{ModelFiles, locate_adapter, read_safetensors, write_safetensors};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Map, Value, json};
use reprpo_plugin::tch::{self, Device};

fn logits(model: &Model, adapted: Option<&Adapted>, stream: &Stream) -> Tensor {
    let request = Request { adapted, hidden: true, ..Request::default() };
    let reached = model.forward(stream, request).unwrap();
    model.logits(&reached.hidden.expect("the hidden states were requested")).unwrap()
}

fn choice(dir: &Path) -> AdapterChoice {
    AdapterChoice::read(dir, &Registry::builtin().unwrap()).unwrap_or_else(|e| panic!("{e:?}"))
}

fn config(dir: &Path) -> Map<String, Value> {
    let path = locate_adapter(dir).unwrap().join("adapter_config.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Compares the adapter `name` for the model `base` with PEFT: the logits without the adapter, with
/// it, after it was saved and read again, and after it was merged and exported.
fn agrees(base: &str, name: &str) {
    let _guard = tch::no_grad_guard();
    let dir = own().join("peft_modules").join(name);
    let files = ModelFiles::open(&own().join("models").join(base)).unwrap();
    let model = Model::load(&files, Kind::Float, Device::Cpu).unwrap();
    let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
    let (ids, mask) = (&io["input_ids"], &io["attention_mask"]);
    let stream = Stream::from_padded(ids, mask, Device::Cpu).unwrap();
    let real = mask.reshape([-1]).nonzero().squeeze_dim(1);
    let rows = |name: &str| io[name].reshape([-1, model.info().vocab]).index_select(0, &real);
    let close = |what: &str, ours: &Tensor, theirs: &str| {
        let off = error(ours, &rows(theirs));
        println!("{name}: {what}: {off:.1e}");
        assert!(off < 1e-5, "{name}: {what} off by {off}");
    };

    let saved = choice(&dir);
    assert_eq!(saved.warnings(&model).unwrap(), [""; 0], "{name}");
    let adapted = attach_saved(&saved, &model).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    close("without the adapter", &logits(&model, None, &stream), "base_logits");
    close("with the adapter", &logits(&model, Some(&adapted), &stream), "logits");
    close("without it again", &logits(&model, None, &stream), "base_logits");

    // Nothing is lost when the adapter is saved again.
    let folder = tempfile::tempdir().unwrap();
    peft::write(folder.path(), saved.entry, &*saved.adapter, &adapted, &model, &base.into())
        .unwrap();
    let file = "adapter_model.safetensors";
    let [ours, theirs] = [folder.path().to_owned(), locate_adapter(&dir).unwrap()]
        .map(|dir| std::fs::read(dir.join(file)).unwrap());
    assert!(ours == theirs, "{name}: the file differs from PEFT's file");
    let again = attach_saved(&choice(folder.path()), &model).unwrap();
    close("after saving", &logits(&model, Some(&again), &stream), "logits");
    let (ours, theirs) = (config(folder.path()), config(&dir));
    for field in ["modules_to_save", "trainable_token_indices", "bias", "lora_bias"] {
        let of = |config: &Map<String, Value>| {
            config.get(field).filter(|v| !v.is_null() && **v != json!("none")).cloned()
        };
        // The model of `bias_none` has no biases, so there is nothing to save.
        if name != "bias_none" {
            assert_eq!(of(&ours), of(&theirs), "{name}: {field}");
        }
    }

    let export = Export::merged(&files, &model, Some(&adapted), Kind::Float);
    if name == "lora_bias_added" {
        let e = format!("{:?}", export.unwrap_err());
        assert!(e.contains("cannot be merged into a module without a bias"), "{e}");
        return;
    }
    let out = folder.path().join("merged");
    export.unwrap().write(&files, &files.tokenizer().unwrap(), &out, u64::MAX).unwrap();
    let merged = Model::load(&ModelFiles::open(&out).unwrap(), Kind::Float, Device::Cpu).unwrap();
    let theirs = if io.contains_key("merged_logits") { "merged_logits" } else { "logits" };
    close("merged", &logits(&merged, None, &stream), theirs);
    close("merged, compared with unmerged", &logits(&merged, None, &stream), "logits");
}

#[test]
fn excluded_modules_and_layers_agree_with_peft() {
    agrees("llama", "excluded");
    agrees("llama", "excluded_pattern");
}

#[test]
fn saved_biases_agree_with_peft() {
    agrees("qwen2", "bias_all");
    agrees("gpt2", "bias_all_gpt2");
    agrees("qwen2", "bias_only");
    agrees("llama", "bias_none");
}

#[test]
fn lora_with_a_bias_agrees_with_peft() {
    agrees("qwen2", "lora_bias");
    agrees("llama", "lora_bias_added");
}

#[test]
fn saved_modules_agree_with_peft() {
    agrees("llama", "saved");
    agrees("llama", "saved_linear");
    agrees("gemma2", "saved_gemma2");
    agrees("gpt2", "saved_gpt2");
    agrees("gpt_neox", "saved_neox");
    agrees("qwen3", "saved_qwen3");
}

#[test]
fn saved_matrices_of_a_tied_model_agree_with_peft() {
    agrees("qwen3", "tied_head");
    agrees("qwen3", "tied_both");
}

#[test]
fn adapters_of_the_embedding_and_of_the_head_agree_with_peft() {
    agrees("llama", "vocabulary");
    agrees("qwen3", "vocabulary_tied");
    agrees("gemma2", "vocabulary_gemma2");
    agrees("qwen3", "vocabulary_both");
}

#[test]
fn trained_tokens_agree_with_peft() {
    agrees("llama", "tokens");
    agrees("qwen3", "tokens_tied");
    agrees("llama", "tokens_of_head");
}

#[test]
fn the_weights_of_linear_modules_as_targets_agree_with_peft() {
    agrees("llama", "parameters");
}

/// Copies the files of an adapter and changes its configuration and tensors.
fn changed(
    name: &str,
    fields: &Value,
    tensors: impl Fn(&str, &Tensor) -> Option<(String, Tensor)>,
) -> tempfile::TempDir {
    let (from, to) = (own().join("peft_modules").join(name), tempfile::tempdir().unwrap());
    let mut config = config(&from);
    config.extend(fields.as_object().unwrap().clone());
    std::fs::write(to.path().join("adapter_config.json"), Value::Object(config).to_string())
        .unwrap();
    let file = "adapter_model.safetensors";
    let values = read_safetensors(&from.join(file)).unwrap();
    let values: Vec<_> = values.iter().filter_map(|(key, t)| tensors(key, t)).collect();
    write_safetensors(&to.path().join(file), &values).unwrap();
    to
}

fn same(key: &str, t: &Tensor) -> Option<(String, Tensor)> {
    Some((key.to_owned(), t.shallow_clone()))
}

fn model(name: &str) -> Model {
    let files = ModelFiles::open(&own().join("models").join(name)).unwrap();
    Model::load(&files, Kind::Float, Device::Cpu).unwrap()
}

#[test]
fn an_adapter_that_cannot_be_read_as_peft_reads_it_is_refused() {
    let without = |end: &'static str| {
        move |key: &str, t: &Tensor| {
            Some((key.to_owned(), t.shallow_clone())).filter(|_| !key.ends_with(end))
        }
    };
    let first_rows = |key: &str, t: &Tensor| {
        let resized = key.ends_with("lm_head.weight");
        Some((key.to_owned(), if resized { t.narrow(0, 0, 300) } else { t.shallow_clone() }))
    };
    let folders = [
        (changed("saved", &json!({}), without("model.norm.weight")), "llama"),
        (changed("saved", &json!({}), first_rows), "llama"),
        (changed("tokens", &json!({ "trainable_token_indices": [3, 40] }), same), "llama"),
        (changed("tokens", &json!({ "trainable_token_indices": [3, 40, 384] }), same), "llama"),
        (changed("tokens", &json!({ "trainable_token_indices": null }), same), "llama"),
        (
            changed("tokens", &json!({ "trainable_token_indices": { "q_proj": [3] } }), same),
            "llama",
        ),
        (
            changed("tokens_tied", &json!({ "trainable_token_indices": { "lm_head": [3] } }), same),
            "qwen3",
        ),
        (changed("vocabulary", &json!({}), without("lora_embedding_B")), "llama"),
    ];
    let messages = [
        "`modules_to_save` selects `model.norm.weight`, but the file does not contain it",
        "a vocabulary that was resized is not supported",
        "has the shape [3, 32], but the model has 384 tokens of width 32",
        "has the shape [3, 32], but the model has 384 tokens of width 32",
        "but `trainable_token_indices` is not set",
        "`trainable_token_indices` names `q_proj`, which is neither the embedding nor the head",
        "`trainable_token_indices` names `lm_head`, which is tied to `model.embed_tokens`",
        "cannot use the adapter of `model.embed_tokens`",
    ];
    for ((folder, base), message) in folders.iter().zip(messages) {
        let e = format!("{:?}", attach_saved(&choice(folder.path()), &model(base)).unwrap_err());
        assert!(e.contains(message), "{e}");
    }
    let refused = |name: &str, fields: Value| {
        let folder = changed(name, &fields, same);
        let read = AdapterChoice::read(folder.path(), &Registry::builtin().unwrap());
        format!("{:?}", read.err().expect("the adapter must be refused"))
    };
    let e = refused("saved", json!({ "bias": "some" }));
    assert!(e.contains("unknown value `some` for `bias`"), "{e}");
    let e = refused("parameters", json!({ "target_parameters": ["mlp.experts.gate_up_proj"] }));
    assert!(
        e.contains(
            "`target_parameters` contains `mlp.experts.gate_up_proj`, which is not supported"
        ),
        "{e}"
    );
    let e = refused("parameters", json!({ "alpha_pattern": { "q_proj": 3 } }));
    assert!(
        e.contains("`alpha_pattern` is not supported together with `target_parameters`"),
        "{e}"
    );
}

#[test]
fn entries_that_are_not_in_the_model_and_unknown_dropout_give_warnings() {
    let more = json!({ "modules_to_save": ["lm_head", "embed_tokens", "norm", "score"],
        "module_dropout": 0.2 });
    let (folder, model) = (changed("saved", &more, same), model("llama"));
    let saved = choice(folder.path());
    let warnings = saved.warnings(&model).unwrap();
    assert!(
        warnings.len() == 1
            && warnings[0].starts_with("`modules_to_save` lists `score`, which is not a module"),
        "{warnings:?}"
    );
    let warnings = saved.training_warnings(&model).unwrap();
    assert!(
        warnings.len() == 2
            && warnings[0].contains("trained with `module_dropout` = 0.2")
            && warnings[1].starts_with("the saved adapter replaces 9 tensors of the base model")
            && warnings[1].contains("are not trained, and are saved again"),
        "{warnings:?}"
    );
}

#[test]
fn an_adapter_in_a_sub_folder_is_found_unless_there_are_several() {
    let folder = own().join("peft_modules/excluded");
    assert_eq!(locate_adapter(&folder).unwrap(), folder.join("style"));
    let e = format!("{:?}", locate_adapter(&own().join("peft_modules")).unwrap_err());
    assert!(e.contains("adapters in sub-folders") && e.contains("peft_modules/bias_all,"), "{e}");
    assert_eq!(locate_adapter(&own().join("peft")).unwrap_err().hints().len(), 1);
    let none = own().join("models");
    assert_eq!(locate_adapter(&none).unwrap(), none);
}

#[test]
fn modules_can_be_excluded_from_a_new_adapter() {
    let (model, registry) = (model("llama"), Registry::builtin().unwrap());
    let attach = |fields: Value| {
        let entry = registry.adapter("hra").unwrap();
        let mut config = entry.about.defaults().unwrap();
        config.extend(fields.as_object().unwrap().clone());
        let adapter = entry.build(&Value::Object(config).to_string()).unwrap();
        Adapted::attach(&*adapter, &model, 3, 0)
    };
    let names = |fields: Value| attach(fields).unwrap().names().map(str::to_owned).collect();
    let found: Vec<String> = names(json!({ "target_modules": "all-linear",
        "exclude_modules": ["mlp.up_proj"], "layers_to_transform": [1] }));
    assert_eq!(found.len(), 6);
    let found: Vec<String> =
        names(json!({ "exclude_modules": r".*layers\.[01]\..*", "target_modules": ["q_proj"] }));
    assert_eq!(found, ["model.layers.2.self_attn.q_proj"]);
    for (excluded, message, hint) in [
        (json!(["v_porj"]), "excludes none of the modules", "did you mean `v_proj`?"),
        (json!("v_proj"), "excludes none of the modules", "a regular expression for whole names"),
        (json!(["q_proj", "v_proj"]), "excludes every module", ""),
        (json!("("), "invalid regular expression `(` in `exclude_modules`", ""),
    ] {
        let e = format!("{:?}", attach(json!({ "exclude_modules": excluded })).unwrap_err());
        assert!(e.contains(message) && e.contains(hint), "{e}");
    }
}
