//! Tests that load unusual checkpoints. Some have renamed, missing or unknown tensors. Others have
//! a separate output head, although the configuration ties the head to the embedding.

use indexmap::IndexMap;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::*;
use crate::model::tiny::{Fixture, weight};
use crate::testing::warnings::warnings;

fn built(config: &Value, tensors: IndexMap<String, Tensor>) -> Result<Model> {
    Model::from_tensors(config, tensors, Kind::Float, Device::Cpu)
}

fn logits(model: &Model) -> Tensor {
    let _guard = tch::no_grad_guard();
    let mut builder = stream::StreamBuilder::default();
    builder.push(&[3, 14, 15, 9, 2, 6], None).unwrap();
    let output = model
        .forward(
            &builder.finish(Device::Cpu).unwrap(),
            Request { hidden: true, ..Request::default() },
        )
        .unwrap();
    model.logits(&output.hidden.unwrap()).unwrap()
}

/// Returns the configuration of an architecture, with `tie_word_embeddings` set to `tied`, and
/// weights of the same architecture.
fn with(fixture: &Fixture, architecture: &str, tied: bool) -> (Value, IndexMap<String, Tensor>) {
    let mut config = fixture.case(architecture, "default").unwrap().config.clone();
    config["tie_word_embeddings"] = json!(tied);
    (config, fixture.tensors(architecture, Kind::Float).unwrap())
}

fn embedding_and_head(architecture: &str) -> [&'static str; 2] {
    match architecture {
        "gpt_neox" => ["gpt_neox.embed_in.weight", "embed_out.weight"],
        "gpt2" => ["transformer.wte.weight", "lm_head.weight"],
        _ => ["model.embed_tokens.weight", "lm_head.weight"],
    }
}

const ALL: [&str; 13] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma3_text",
    "gpt_neox",
    "gemma2",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "gpt2",
];

#[test]
fn a_head_that_differs_from_the_embedding_is_kept_even_if_the_configuration_ties_them() {
    let fixture = Fixture::read().unwrap();
    for architecture in ALL {
        let [embedding, head] = embedding_and_head(architecture);
        let (tied, mut tensors) = with(&fixture, architecture, true);
        tensors.shift_remove("lm_head.weight");
        let shape = tensors[embedding].size();
        let of = |config: &Value, own: Option<Tensor>| {
            let mut tensors: IndexMap<String, Tensor> =
                tensors.iter().map(|(name, t)| (name.clone(), t.copy())).collect();
            tensors.extend(own.map(|own| (head.to_owned(), own)));
            built(config, tensors)
        };
        let other = || Some(weight("another head", &shape));
        let (model, logged) = warnings(|| of(&tied, other()).unwrap());
        assert!(
            logged.len() == 1
                && logged[0].contains(head)
                && logged[0].contains("tie_word_embeddings"),
            "{architecture}: {logged:?}"
        );
        assert!(!model.is_tied());
        let untied = with(&fixture, architecture, false).0;
        let (expected, silent) = warnings(|| of(&untied, other()).unwrap());
        assert!(silent.is_empty() && logits(&model).equal(&logits(&expected)), "{architecture}");

        // A head that is missing or equals the embedding is tied.
        let (plain, silent) = warnings(|| of(&tied, None).unwrap());
        assert!(plain.is_tied() && silent.is_empty(), "{architecture}: {silent:?}");
        assert!(!logits(&plain).equal(&logits(&expected)), "{architecture}");
        let (twice, silent) = warnings(|| of(&tied, Some(tensors[embedding].copy())).unwrap());
        assert!(
            twice.is_tied() && silent.is_empty() && logits(&twice).equal(&logits(&plain)),
            "{architecture}"
        );
        // If the file contains only the embedding or only the head, the model uses that tensor as
        // both.
        let mut only: IndexMap<String, Tensor> =
            tensors.iter().map(|(name, t)| (name.clone(), t.copy())).collect();
        let matrix = only.shift_remove(embedding).unwrap();
        only.insert(head.to_owned(), matrix);
        assert!(logits(&built(&tied, only).unwrap()).equal(&logits(&plain)), "{architecture}");

        let e = of(&untied, None).unwrap_err();
        assert!(
            e.message().contains(head)
                && e.hints().iter().any(|h| h.contains("`tie_word_embeddings` to true")),
            "{e:?}"
        );
        assert!(
            of(&tied, Some(weight("h", &[shape[0] + 1, shape[1]])))
                .unwrap_err()
                .message()
                .contains(head)
        );
    }
}

#[test]
fn a_missing_or_repeated_prefix_does_not_change_the_model() {
    let fixture = Fixture::read().unwrap();
    for architecture in ALL {
        let (config, tensors) = with(
            &fixture,
            architecture,
            ["qwen3", "gemma3_text", "gemma2", "gpt2"].contains(&architecture),
        );
        let base = match architecture {
            "gpt_neox" => "gpt_neox.",
            "gpt2" => "transformer.",
            _ => "model.",
        };
        let renamed = |rename: &dyn Fn(&str) -> String| {
            let tensors =
                tensors.iter().map(|(name, t)| (rename(name), t.shallow_clone())).collect();
            logits(&built(&config, tensors).unwrap())
        };
        let expected = renamed(&str::to_owned);
        assert!(
            renamed(&|name| name.strip_prefix(base).unwrap_or(name).to_owned()).equal(&expected),
            "{architecture}, without the prefix"
        );
        assert!(
            renamed(&|name| format!("{base}{name}")).equal(&expected),
            "{architecture}, with a repeated prefix"
        );
    }
    // A tensor that is stored both with and without the prefix is an error: one copy is unused.
    let (config, mut tensors) = with(&fixture, "llama", false);
    tensors.insert("norm.weight".to_owned(), tensors["model.norm.weight"].copy());
    assert!(built(&config, tensors).unwrap_err().message().contains("`norm.weight`"));
}

#[test]
fn errors_explain_tensor_names_that_other_programs_write() {
    let fixture = Fixture::read().unwrap();
    let (config, tensors) = with(&fixture, "llama", false);
    let error = |rename: &dyn Fn(&str) -> String| {
        let tensors = tensors.iter().map(|(name, t)| (rename(name), t.shallow_clone())).collect();
        format!("{:?}", built(&config, tensors).unwrap_err())
    };
    for (prefix, cause) in [
        ("_orig_mod.", "torch.compile"),
        ("base_model.model.", "PEFT"),
        ("module.", "DistributedDataParallel"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("_forward_module.", "DeepSpeed"),
    ] {
        let text = error(&|name| format!("{prefix}{name}"));
        assert!(text.contains("hint:") && text.contains(cause), "{prefix}: {text}");
    }
    let inside =
        |from: &'static str, to: &'static str| error(&move |name| name.replacen(from, to, 1));
    assert!(inside("layers.1.", "layers.1._orig_mod.").contains("torch.compile"));
    assert!(inside("q_proj.weight", "q_proj.base_layer.weight").contains("PEFT"));
    assert!(inside("q_proj.weight", "q_proj.qweight").contains("GPTQ"));
    assert!(inside("mlp.", "mlp.experts.0.").contains("mixture of experts"));
    assert!(inside("model.layers.", "transformer.h.").contains("save_pretrained"));
    assert!(inside("model.layers.2.", "model.layers.7.").contains("no shard is missing"));
    // The file has every tensor of the model, and one unknown tensor.
    for (name, cause) in [
        ("model.layers.0.mlp.up_proj.weight_scale", "quantization_config"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.SCB", "bitsandbytes"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "merge_and_unload"),
    ] {
        let mut more: IndexMap<String, Tensor> =
            tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        more.insert(name.to_owned(), Tensor::from_slice(&[1.0f32]));
        let text = format!("{:?}", built(&config, more).unwrap_err());
        assert!(text.contains(name) && text.contains(cause), "{text}");
    }
}
