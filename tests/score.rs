//! Compares `reprpo score` on plain text with transformers for models of every architecture, in
//! folders and in GGUF files.
//!
//! `score/make.py` writes the reference values.

use std::path::{Path, PathBuf};

use reprpo_core::weights::write_safetensors;
use serde_json::{Value, json};
use tch::Tensor;

use crate::{golden, jsonl, logp_sums, reprpo, stderr, stdout};

#[allow(dead_code, reason = "tests in `core` use the rest")]
#[path = "../core/src/testing/gguf.rs"]
mod gguf;
#[path = "../core/src/model/tiny/numbers.rs"]
mod numbers;

use gguf::{Writer, numbers as array, text, texts};
use numbers::numbers;

struct Values(Value);

impl Values {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/score/values.json");
        Self(serde_json::from_slice(&std::fs::read(path).expect("values")).expect("JSON"))
    }

    fn config(&self, architecture: &str) -> Value {
        self.0["models"][architecture]["config"].clone()
    }

    fn tensors(&self, architecture: &str) -> Vec<(String, Vec<i64>, Vec<f32>)> {
        let shapes = self.0["models"][architecture]["tensors"].as_object().expect("shapes");
        let of = |(name, shape): (&String, &Value)| {
            let shape: Vec<i64> = serde_json::from_value(shape.clone()).expect("a shape");
            (name.clone(), shape.clone(), numbers(name, &shape))
        };
        shapes.iter().map(of).collect()
    }

    /// Returns Σ log p of the chosen and the rejected completion of each pair, computed by
    /// transformers.
    fn scores(&self, architecture: &str, rule: &str) -> Vec<[f64; 2]> {
        serde_json::from_value(self.0["models"][architecture]["scores"][rule].clone())
            .expect("scores")
    }

    fn pairs(&self, at: &Path) -> String {
        jsonl(at, "pairs.jsonl", self.0["pairs"].as_array().expect("pairs")).display().to_string()
    }

    /// Writes the model folder after `change` has edited the configuration and the tensors.
    fn folder(
        &self,
        at: &Path,
        architecture: &str,
        bos: bool,
        change: impl Fn(&mut Value, &mut Vec<(String, Tensor)>),
    ) -> PathBuf {
        std::fs::create_dir_all(at).expect("a folder");
        let mut config = self.config(architecture);
        let mut tensors: Vec<(String, Tensor)> = self
            .tensors(architecture)
            .into_iter()
            .map(|(name, shape, values)| (name, Tensor::from_slice(&values).reshape(&shape)))
            .collect();
        change(&mut config, &mut tensors);
        let mut tokenizer = self.0["tokenizer"].clone();
        if bos {
            tokenizer["post_processor"] = self.0["with_bos"].clone();
        }
        write_safetensors(&at.join("model.safetensors"), &tensors).expect("weights");
        for (name, value) in [
            ("config.json", &config),
            ("tokenizer.json", &tokenizer),
            ("tokenizer_config.json", &self.0["tokenizer_config"]),
        ] {
            std::fs::write(at.join(name), value.to_string()).expect("the file is written");
        }
        at.to_owned()
    }

    /// Writes the same model as a GGUF file in the layout of llama.cpp's converter. Returns `None`
    /// if llama.cpp does not have the architecture.
    fn gguf(
        &self,
        at: &Path,
        architecture: &'static str,
        bos: bool,
        change: impl Fn(Writer) -> Writer,
    ) -> Option<PathBuf> {
        let name = match architecture {
            "mistral" => return None,
            "gemma3_text" => "gemma3",
            "gpt_neox" => "gptneox",
            "olmo3" => "olmo2",
            same => same,
        };
        let config = self.config(architecture);
        let count =
            |field: &str| config[field].as_u64().map(|n| u32::try_from(n).expect("a count"));
        let heads = count("num_attention_heads").or(count("n_head")).expect("heads");
        let kv_heads = count("num_key_value_heads").unwrap_or(heads);
        let w = Writer { version: 3, architecture: name, entries: Vec::new(), tensors: Vec::new() };
        let w = w.entry("general.architecture", 8, &text(name));
        let w = if architecture == "gpt2" {
            settings_of_gpt2(w, &config)
        } else {
            settings(w, architecture, &config)
        };

        let strings = |v: &Value| {
            v.as_array()
                .expect("strings")
                .iter()
                .map(|s| s.as_str().expect("a string").to_owned())
                .collect::<Vec<_>>()
        };
        let (tokens, special) =
            (strings(&self.0["tokens"]), self.0["special"].as_u64().expect("a count") as usize);
        let sorts = (0..tokens.len())
            .map(|i| (if i < special { 3i32 } else { 1 }).to_le_bytes())
            .collect::<Vec<_>>();
        let w = w.entry("tokenizer.ggml.model", 8, &text("gpt2")).entry(
            "tokenizer.ggml.pre",
            8,
            &text("gpt-2"),
        );
        let w = w.entry("tokenizer.ggml.tokens", 9, &texts(&tokens)).entry(
            "tokenizer.ggml.token_type",
            9,
            &array(5, sorts.into_iter()),
        );
        let w = w.entry("tokenizer.ggml.merges", 9, &texts(&strings(&self.0["merges"]))).entry(
            "tokenizer.ggml.add_bos_token",
            7,
            &[bos.into()],
        );
        let id = |w: Writer, what: &str, id: u32| {
            w.entry(&format!("tokenizer.ggml.{what}_token_id"), 4, &id.to_le_bytes())
        };
        let w = change(id(id(w, "bos", 0), "eos", 1));

        let tensors = self.tensors(architecture).into_iter();
        let w = tensors.fold(w, |w, (name, shape, values)| {
            let reordered = matches!(architecture, "llama" | "smollm3" | "granite");
            let conv1d = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"]
                .iter()
                .any(|end| name.ends_with(end));
            let values = match &name {
                name if reordered && name.contains("q_proj") => {
                    interleave_halves(&values, heads as usize)
                }
                name if reordered && name.contains("k_proj") => {
                    interleave_halves(&values, kv_heads as usize)
                }
                name if name.contains("query_key_value") => {
                    group_by_projection(&values, heads as usize)
                }
                name if architecture.starts_with("gemma") && name.ends_with("norm.weight") => {
                    values.iter().map(|x| x + 1.0).collect()
                }
                _ if conv1d => flat(&Tensor::from_slice(&values).reshape(&shape).tr()),
                _ => values,
            };
            let mut axes: Vec<u64> = shape.iter().rev().map(|n| *n as u64).collect();
            if conv1d {
                axes.reverse();
            }
            w.floats(&gguf_name(architecture, &name), &axes, values)
        });
        std::fs::write(at, w.bytes()).expect("the file is written");
        Some(at.to_owned())
    }
}

/// Returns the integer field `field` of the configuration.
fn size(config: &Value, field: &str) -> u32 {
    config[field].as_u64().and_then(|n| u32::try_from(n).ok()).expect("a size")
}

fn number(v: &Value) -> f32 {
    v.as_f64().expect("a number") as f32
}

/// Adds GPT-2's settings. The converter always writes four times the hidden size as the
/// feed-forward size.
fn settings_of_gpt2(w: Writer, config: &Value) -> Writer {
    let width = size(config, "n_embd");
    let w = w
        .count("block_count", size(config, "n_layer"))
        .count("context_length", size(config, "n_positions"))
        .count("embedding_length", width);
    let w = w
        .count("feed_forward_length", 4 * width)
        .count("attention.head_count", size(config, "n_head"));
    w.float("attention.layer_norm_epsilon", number(&config["layer_norm_epsilon"]))
}

/// Adds the settings of the other architectures.
fn settings(w: Writer, architecture: &str, config: &Value) -> Writer {
    let (heads, hidden) = (size(config, "num_attention_heads"), size(config, "hidden_size"));
    let head = if config["head_dim"].is_null() { hidden / heads } else { size(config, "head_dim") };
    let kv_heads = if config["num_key_value_heads"].is_null() {
        heads
    } else {
        size(config, "num_key_value_heads")
    };
    let by_layer = config["rope_parameters"].get("full_attention");
    let rope = by_layer.unwrap_or(&config["rope_parameters"]);
    let w = w
        .count("embedding_length", hidden)
        .count("attention.head_count", heads)
        .count("attention.head_count_kv", kv_heads);
    let w = w.count("attention.key_length", head).count("attention.value_length", head);
    let w = w
        .count("feed_forward_length", size(config, "intermediate_size"))
        .count("block_count", size(config, "num_hidden_layers"));
    let w = w
        .count("context_length", size(config, "max_position_embeddings"))
        .float("rope.freq_base", number(&rope["rope_theta"]));
    let turned =
        rope["partial_rotary_factor"].as_f64().map_or(head, |part| (f64::from(head) * part) as u32);
    let w = w.count("rope.dimension_count", turned);
    let w =
        match config["rms_norm_eps"].as_f64() {
            Some(eps) => w.float("attention.layer_norm_rms_epsilon", eps as f32),
            None => w
                .float("attention.layer_norm_epsilon", number(&config["layer_norm_eps"]))
                .entry("gptneox.use_parallel_residual", 7, &[1]),
        };
    let window = |w: Writer| w.count("attention.sliding_window", size(config, "sliding_window"));
    let swa = |w: Writer| {
        w.float(
            "rope.freq_base_swa",
            number(&config["rope_parameters"]["sliding_attention"]["rope_theta"]),
        )
    };
    match architecture {
        "gemma2" => {
            let w = window(w)
                .float("attn_logit_softcapping", number(&config["attn_logit_softcapping"]));
            w.float("final_logit_softcapping", number(&config["final_logit_softcapping"]))
        }
        "gemma3_text" => {
            let w = swa(window(w).count("attention.sliding_window_pattern", 2));
            w.float("final_logit_softcapping", number(&config["final_logit_softcapping"]))
        }
        "olmo3" => {
            let sliding: Vec<u8> = config["layer_types"]
                .as_array()
                .expect("layers")
                .iter()
                .map(|layer| u8::from(layer == "sliding_attention"))
                .collect();
            let pattern =
                [&7u32.to_le_bytes()[..], &(sliding.len() as u64).to_le_bytes(), &sliding].concat();
            let w = swa(window(w)).entry("olmo2.attention.sliding_window_pattern", 9, &pattern);
            let w = w
                .entry("olmo2.rope.scaling.type", 8, &text("yarn"))
                .float("rope.scaling.factor", number(&rope["factor"]));
            let w = w.count(
                "rope.scaling.original_context_length",
                size(rope, "original_max_position_embeddings"),
            );
            let w = w.float("rope.scaling.yarn_attn_factor", number(&rope["attention_factor"]));
            w.float("rope.scaling.yarn_beta_fast", number(&rope["beta_fast"]))
                .float("rope.scaling.yarn_beta_slow", number(&rope["beta_slow"]))
        }
        "granite" => {
            let w = w
                .float("attention.scale", number(&config["attention_multiplier"]))
                .float("embedding_scale", number(&config["embedding_multiplier"]));
            w.float("residual_scale", number(&config["residual_multiplier"]))
                .float("logit_scale", number(&config["logits_scaling"]))
        }
        _ => w,
    }
}

/// Width of one attention head of the models whose rows llama.cpp reorders.
const HEAD: i64 = 8;

/// Reorders the rows of each head from the two halves of Hugging Face to the interleaved pairs of
/// llama.cpp.
fn interleave_halves(values: &[f32], heads: usize) -> Vec<f32> {
    flat(&Tensor::from_slice(values).reshape([heads as i64, 2, HEAD / 2, -1]).transpose(1, 2))
}

/// Reorders the rows of a fused projection: the queries of all heads, then the keys, then the
/// values.
fn group_by_projection(values: &[f32], heads: usize) -> Vec<f32> {
    flat(&Tensor::from_slice(values).reshape([heads as i64, 3, -1]).transpose(0, 1))
}

fn flat(t: &Tensor) -> Vec<f32> {
    Vec::try_from(t.contiguous().flatten(0, -1)).expect("numbers")
}

fn gguf_name(architecture: &str, name: &str) -> String {
    let (module, part) = name.rsplit_once('.').expect("a part");
    let ends = [
        ("embed_tokens", "token_embd"),
        ("embed_in", "token_embd"),
        ("transformer.wte", "token_embd"),
        ("transformer.wpe", "position_embd"),
        ("model.norm", "output_norm"),
        ("final_layer_norm", "output_norm"),
        ("transformer.ln_f", "output_norm"),
        ("lm_head", "output"),
        ("embed_out", "output"),
    ];
    if let Some((_, theirs)) = ends.iter().find(|(ours, _)| module.ends_with(ours)) {
        return format!("{theirs}.{part}");
    }
    let in_block = module.split_once(".layers.").or(module.split_once(".h.")).expect("a layer").1;
    let (layer, module) = in_block.split_once('.').expect("a module");
    let around = architecture.starts_with("gemma") || architecture.starts_with("olmo");
    let theirs = match module {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" | "attention.dense" | "attn.c_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.qkv_proj" | "attention.query_key_value" | "attn.c_attn" => "attn_qkv",
        "input_layernorm" | "ln_1" => "attn_norm",
        "post_attention_layernorm" if around => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" | "ln_2" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" | "mlp.dense_h_to_4h" | "mlp.c_fc" => "ffn_up",
        "mlp.down_proj" | "mlp.dense_4h_to_h" | "mlp.c_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    format!("blk.{layer}.{theirs}.{part}")
}

/// Scores the pairs. Returns Σ log p of the two completions of each pair, and stderr.
fn scored(model: &Path, pairs: &str) -> (Vec<[f64; 2]>, String) {
    let output = reprpo(&[
        "score",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--json",
        "--data",
        pairs,
        "--model",
        &model.display().to_string(),
    ]);
    assert!(output.status.success(), "{}: {}", model.display(), stderr(&output));
    (logp_sums(&output), stderr(&output))
}

/// Trains the model with a learning rate too small to change it and exports the run. The returned
/// model must have the same scores as the original.
fn trained_and_exported(dir: &Path, model: &Path, pairs: &str) -> PathBuf {
    let (run, merged) = (dir.join("run").display().to_string(), dir.join("merged"));
    let model = model.display().to_string();
    stdout(&reprpo(&[
        "run",
        "--no-eval",
        "--set",
        "train.lr=1e-12",
        "--device",
        "cpu",
        "--model",
        &model,
        "--dataset",
        pairs,
        "--out",
        &run,
    ]));
    stdout(&reprpo(&["export", &run, "--merge", "--out", &merged.display().to_string()]));
    merged
}

fn assert_near(found: &[[f64; 2]], expected: &[[f64; 2]], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((a - b).abs() < 1e-4, "{what}: {a} instead of {b}");
    }
}

const ARCHITECTURES: [&str; 13] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma3_text",
    "gemma2",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "gpt2",
    "gpt_neox",
];

/// Scores the models of all architectures, from folders and from GGUF files, and compares them with
/// transformers.
fn assert_scores_of_transformers(rule: &str, bos: bool) {
    let (values, dir) = (Values::read(), tempfile::tempdir().expect("a folder"));
    let pairs = values.pairs(dir.path());
    let mut files = 0;
    for architecture in ARCHITECTURES {
        let folder = values.folder(&dir.path().join(architecture), architecture, bos, |_, _| {});
        let gguf =
            values.gguf(&dir.path().join(format!("{architecture}.gguf")), architecture, bos, |w| w);
        for model in [Some(folder), gguf].into_iter().flatten() {
            let (found, log) = scored(&model, &pairs);
            assert_near(&found, &values.scores(architecture, rule), &model.display().to_string());
            // For Qwen 2's folder, the command warns that it splits text like the tokenizer class
            // in transformers.
            let warnings: Vec<&str> = log
                .lines()
                .filter(|l| l.contains("WARN") && !l.contains("`Qwen2Tokenizer`"))
                .collect();
            assert!(warnings.is_empty(), "{warnings:?}");
            files += 1;
        }
    }
    assert_eq!(files, 25);
}

#[test]
fn plain_text_scores_as_in_transformers_without_a_bos_rule() {
    assert_scores_of_transformers("plain", false);
}

#[test]
fn plain_text_scores_as_in_transformers_with_a_bos_rule() {
    assert_scores_of_transformers("bos", true);
}

#[test]
fn an_untied_head_is_used_and_exported_despite_a_tied_configuration() {
    let (values, dir) = (Values::read(), tempfile::tempdir().expect("a folder"));
    let pairs = values.pairs(dir.path());
    // The file contains an untied head, but the configuration says that the head is tied.
    let model = values.folder(&dir.path().join("tied"), "llama", false, |config, _| {
        config["tie_word_embeddings"] = json!(true)
    });
    let expected = values.scores("llama", "plain");
    let (found, log) = scored(&model, &pairs);
    assert_near(&found, &expected, "an untied head");
    assert!(
        log.contains("WARN")
            && log.contains("`lm_head.weight` differs")
            && log.contains("tie_word_embeddings"),
        "{log}"
    );

    let merged = trained_and_exported(dir.path(), &model, &pairs);
    let config: Value = serde_json::from_slice(
        &std::fs::read(merged.join("config.json")).expect("a configuration"),
    )
    .expect("JSON");
    assert_eq!(config["tie_word_embeddings"], false);
    let (found, log) = scored(&merged, &pairs);
    assert_near(&found, &expected, "exported");
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn a_model_without_the_tensor_prefix_scores_the_same_and_can_be_exported() {
    let (values, dir) = (Values::read(), tempfile::tempdir().expect("a folder"));
    let pairs = values.pairs(dir.path());
    let model = values.folder(&dir.path().join("model"), "qwen3", false, |_, tensors| {
        for (name, _) in tensors.iter_mut() {
            *name = name.replacen("model.", "", 1);
        }
    });
    let expected = values.scores("qwen3", "plain");
    assert_near(&scored(&model, &pairs).0, &expected, "without a prefix");
    let merged = trained_and_exported(dir.path(), &model, &pairs);
    assert_near(&scored(&merged, &pairs).0, &expected, "exported");
}

#[test]
fn gguf_keys_that_change_the_scores_are_applied_or_rejected() {
    let (values, dir) = (Values::read(), tempfile::tempdir().expect("a folder"));
    let pairs = values.pairs(dir.path());
    let at = |name: &str| dir.path().join(name);
    let linear = |config: &mut Value| {
        config["rope_parameters"] =
            json!({ "rope_type": "linear", "rope_theta": 1e4, "factor": 4.0 })
    };
    let expected =
        scored(&values.folder(&at("linear"), "llama", false, |config, _| linear(config)), &pairs).0;
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        let file =
            values.gguf(&at("x.gguf"), "llama", false, |w| w.float(key, 4.0)).expect("a file");
        assert_near(&scored(&file, &pairs).0, &expected, key);
    }
    assert!((expected[0][0] - values.scores("llama", "plain")[0][0]).abs() > 0.1);

    let file = values
        .gguf(&at("x.gguf"), "llama", false, |mut w| {
            w.entries.retain(|entry| !entry.windows(18).any(|at| at == b"tokenizer.ggml.pre"));
            w
        })
        .expect("a file");
    let (found, log) = scored(&file, &pairs);
    assert_near(&found, &values.scores("llama", "plain"), "without `pre`");
    assert!(
        log.contains("WARN") && log.contains("`tokenizer.ggml.pre`") && log.contains("GPT-2"),
        "{log}"
    );

    let file = values
        .gguf(&at("x.gguf"), "llama", false, |w| w.float("logit_scale", 0.5))
        .expect("a file");
    let refused = reprpo(&[
        "score",
        "--device",
        "cpu",
        "--data",
        &pairs,
        "--model",
        &file.display().to_string(),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("`llama.logit_scale` (0.5)"), "{}", stderr(&refused));
}

#[test]
fn a_pair_scores_the_same_with_and_without_a_longer_pair() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let pairs = [
        json!({ "prompt": "The sky is", "chosen": " blue and wide.",
            "rejected": " green 123 today." }),
        json!({ "prompt": "A longer one:  the 12 grey boats lie in the old harbour and wait for \
            the wind, and",
            "chosen": " nobody knows when it will come, says the \
                man.", "rejected": " they're sold." }),
    ];
    let write = |name: &str, pairs: &[Value]| jsonl(dir.path(), name, pairs).display().to_string();
    let (alone, both) = (write("alone.jsonl", &pairs[..1]), write("both.jsonl", &pairs));
    let long = json!({ "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2,
        1.3], "long_factor": [2.0, 4.0, 8.0, 16.0],
        "original_max_position_embeddings": 24 });
    // transformers computed the expected scores one sequence at a time.
    let text = std::fs::read(golden.join("scores.json")).expect("scores");
    let expected: Value = serde_json::from_slice(&text).expect("JSON");
    for (context, rope) in
        [(16, json!({ "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4 })), (64, long)]
    {
        let of_type = expected[rope["rope_type"].as_str().expect("a type")].clone();
        let expected: [f64; 2] = serde_json::from_value(of_type).expect("two scores");
        let model = dir.path().join(rope["rope_type"].as_str().expect("a type"));
        std::fs::create_dir(&model).expect("a folder");
        for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::write(
                model.join(file),
                std::fs::read(golden.join("models/llama").join(file)).expect("a file"),
            )
            .expect("the file is written");
        }
        let mut config: Value = serde_json::from_slice(
            &std::fs::read(golden.join("models/llama/config.json")).expect("a file"),
        )
        .expect("JSON");
        config["max_position_embeddings"] = json!(context);
        config["rope_parameters"] = rope;
        std::fs::write(model.join("config.json"), config.to_string()).expect("the file is written");
        let (first, together) = (scored(&model, &alone).0, scored(&model, &both).0);
        assert_near(&first, &[expected], "alone");
        assert_near(&together[..1], &[expected], "with a longer pair");
    }
}
