//! Tests of single architectures: names of tensors, order of rows, and settings.

use serde_json::json;

use super::*;

/// A file of the given architecture with all required settings.
fn of(architecture: &'static str) -> Writer {
    let w = Writer::of(architecture);
    match architecture {
        "gemma2" => w
            .count("attention.key_length", 16)
            .count("attention.value_length", 16)
            .count("attention.sliding_window", 8),
        "gpt2" => without(w, "attention.head_count_kv").float("attention.layer_norm_epsilon", 1e-5),
        _ => w,
    }
}

/// Removes the setting `name` from the file.
fn without(mut w: Writer, name: &str) -> Writer {
    let key = text(&format!("{}.{name}", w.architecture));
    w.entries.retain(|entry| !entry.starts_with(&key));
    w
}

/// Adds tensors with llama.cpp's names `names` to the file. Each contains one number.
fn with(w: Writer, names: &[&str]) -> Writer {
    names.iter().fold(w, |w, name| w.floats(name, &[1, 1], [1.0]))
}

fn config(w: Writer) -> Value {
    w.open().unwrap().config().clone()
}

fn values(gguf: &Gguf, name: &str) -> Tensor {
    gguf.read(name, Kind::Float).unwrap()
}

const SEPARATE: [&str; 4] = [
    "blk.3.attn_q.weight",
    "blk.3.attn_k.weight",
    "blk.3.attn_v.weight",
    "blk.3.attn_output.weight",
];
const GATED: [&str; 3] = ["blk.3.ffn_gate.weight", "blk.3.ffn_up.weight", "blk.3.ffn_down.weight"];
const ATTENTION: [&str; 4] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
const MLP: [&str; 3] = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

/// Hugging Face's names of an architecture's tensors, in the order of `SEPARATE`, `norms` and
/// `GATED`.
fn renamed(architecture: &'static str, norms: &[&str]) -> Vec<String> {
    // The matrices need several rows, because one row cannot be divided among two heads.
    let rows = |w: Writer, name: &&str| w.floats(name, &[1, 4], [1.0; 4]);
    let w = SEPARATE.iter().fold(of(architecture), rows);
    let w = with(with(w, norms), &GATED);
    let gguf = with(w, &["output_norm.weight", "output.weight"]).open().unwrap();
    let names: Vec<String> = gguf.names().map(str::to_owned).collect();
    assert_eq!(names.first().map(String::as_str), Some("model.embed_tokens.weight"));
    assert_eq!(names[names.len() - 2..], ["model.norm.weight", "lm_head.weight"]);
    names[1..names.len() - 2].to_vec()
}

fn in_block(modules: &[&str]) -> Vec<String> {
    modules.iter().map(|module| format!("model.layers.3.{module}.weight")).collect()
}

#[test]
fn the_tensors_of_every_architecture_get_hugging_faces_names() {
    let two = ["blk.3.attn_norm.weight", "blk.3.ffn_norm.weight"];
    let four = [
        "blk.3.attn_norm.weight",
        "blk.3.post_attention_norm.weight",
        "blk.3.ffn_norm.weight",
        "blk.3.post_ffw_norm.weight",
    ];
    let olmo = [
        "blk.3.attn_q_norm.weight",
        "blk.3.attn_k_norm.weight",
        "blk.3.post_attention_norm.weight",
        "blk.3.post_ffw_norm.weight",
    ];
    let expected = |norms: &[&str]| in_block(&[&ATTENTION, norms, &MLP].concat());
    for llama in ["granite", "smollm3"] {
        assert_eq!(
            renamed(llama, &two),
            expected(&["input_layernorm", "post_attention_layernorm"]),
            "{llama}"
        );
    }
    let sandwich = [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ];
    assert_eq!(renamed("gemma2", &four), expected(&sandwich));
    let after = [
        "self_attn.q_norm",
        "self_attn.k_norm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ];
    assert_eq!(renamed("olmo2", &olmo), expected(&after));

    let modules = ["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"];
    let theirs: Vec<String> = modules
        .iter()
        .flat_map(|m| ["weight", "bias"].map(|part| format!("blk.3.{m}.{part}")))
        .collect();
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let gguf = with(
        of("gpt2"),
        &[
            &theirs[..],
            &["position_embd.weight", "output_norm.weight", "output_norm.bias", "output.weight"],
        ]
        .concat(),
    )
    .open()
    .unwrap();
    let modules = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"];
    let block = modules
        .iter()
        .flat_map(|m| ["weight", "bias"].map(|part| format!("transformer.h.3.{m}.{part}")));
    let ends = [
        "transformer.wpe.weight",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
        "lm_head.weight",
    ]
    .map(str::to_owned);
    assert!(
        gguf.names().eq(["transformer.wte.weight".to_owned()].into_iter().chain(block).chain(ends)),
        "{:?}",
        gguf.names().collect::<Vec<_>>()
    );

    for (architecture, unknown) in [
        ("olmo2", "blk.0.attn_norm.weight"),
        ("granite", "blk.0.ffn_gate_inp.weight"),
        ("granite", "blk.0.attn_q_norm.weight"),
        ("llama", "position_embd.weight"),
    ] {
        let e = refused(&with(of(architecture), &[unknown]).bytes());
        assert!(e.contains(&format!("`{unknown}`")), "{e}");
    }
}

#[test]
fn rows_are_only_reordered_for_architectures_that_llama_cpp_reorders() {
    let theirs = Tensor::arange(8 * 2, (Kind::Float, tch::Device::Cpu)).reshape([8, 2]);
    let numbers = Vec::<f32>::try_from(theirs.flatten(0, -1)).unwrap();
    // The conversion to transformers' order is reshape(heads, rows / heads / 2, 2,
    // inner).transpose(1, 2).
    let ours =
        |heads: i64| theirs.reshape([heads, 8 / heads / 2, 2, 2]).transpose(1, 2).reshape([8, 2]);
    for (architecture, reordered) in
        [("granite", true), ("smollm3", true), ("gemma2", false), ("olmo2", false)]
    {
        let w = SEPARATE
            .iter()
            .take(3)
            .fold(of(architecture), |w, name| w.floats(name, &[2, 8], numbers.clone()));
        let w = w.floats("blk.3.attn_q.bias", &[8], (0..8).map(|i| i as f32));
        let gguf = w.open().unwrap();
        let of = |name: &str| values(&gguf, &format!("model.layers.3.self_attn.{name}"));
        let [q, k] = if reordered {
            [ours(2), ours(1)]
        } else {
            [theirs.shallow_clone(), theirs.shallow_clone()]
        };
        assert!(
            of("q_proj.weight").equal(&q)
                && of("k_proj.weight").equal(&k)
                && of("v_proj.weight").equal(&theirs),
            "{architecture}"
        );
        assert!(of("q_proj.bias").equal(&(q.select(1, 0) / 2)), "{architecture}");
    }
}

#[test]
fn gpt_2s_matrices_are_transposed_in_every_type_and_kind() {
    let (outputs, inputs) = (100, 64);
    for (id, scales) in [(0, &[2usize][..]), (1, &[0]), (8, &[0])] {
        let format = types::format(id).unwrap();
        let data = blocks(outputs * inputs / format.block, format.bytes, scales);
        let names = ["attn_qkv", "attn_output", "ffn_up", "ffn_down"]
            .map(|module| format!("blk.0.{module}.weight"));
        let w = names.iter().fold(of("gpt2"), |w, name| {
            w.tensor(name, &[inputs as u64, outputs as u64], id, &data)
        });
        let gguf = w
            .tensor("position_embd.weight", &[inputs as u64, outputs as u64], id, &data)
            .open()
            .unwrap();
        let mut theirs = vec![0f32; outputs * inputs];
        (format.decode)(&data, &mut theirs);
        let theirs = Tensor::from_slice(&theirs).reshape([outputs as i64, inputs as i64]);
        for module in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
                let ours = gguf.read(&format!("transformer.h.0.{module}.weight"), kind).unwrap();
                assert!(
                    ours.equal(&theirs.tr().to_kind(kind)),
                    "{module} in {} as {kind:?}",
                    format.name
                );
            }
        }
        assert!(
            values(&gguf, "transformer.wpe.weight").equal(&theirs),
            "an embedding is not a Conv1D"
        );
        assert_eq!(
            gguf.config()["n_inner"],
            outputs,
            "the width must be that of the matrix, not four times the width of the model"
        );
    }
    let e = refused(&of("gpt2").floats("blk.0.ffn_up.weight", &[4], [0.0; 4]).bytes());
    assert!(e.contains("`blk.0.ffn_up.weight`") && e.contains("must be a matrix"), "{e}");
}

#[test]
fn a_matrix_of_several_slabs_is_transposed() {
    let (outputs, inputs) = (3000, 1024);
    let numbers = Tensor::arange(outputs * inputs, (Kind::Float, tch::Device::Cpu))
        .reshape([outputs, inputs]);
    let flat = Vec::<f32>::try_from(numbers.flatten(0, -1)).unwrap();
    let gguf = of("gpt2")
        .floats("blk.0.ffn_up.weight", &[inputs as u64, outputs as u64], flat)
        .open()
        .unwrap();
    assert!(values(&gguf, "transformer.h.0.mlp.c_fc.weight").equal(&numbers.tr()));
}

#[test]
fn sizes_of_gpt_2_have_the_names_of_its_configuration() {
    let expected = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 2,
        "tie_word_embeddings": true, "n_embd": 32, "n_layer": 1,
        "n_head": 2, "n_inner": 64, "n_positions": 128, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    });
    assert_eq!(config(of("gpt2")), expected);
    assert_eq!(config(with(of("gpt2"), &["output.weight"]))["tie_word_embeddings"], false);
    // GPT-2 does not have rotary positions, so settings of rotary positions have no effect.
    assert_eq!(config(of("gpt2").float("rope.freq_base", 1e6)), expected);
    let shared = refused(&of("gpt2").count("attention.head_count_kv", 1).bytes());
    assert!(shared.contains("2 heads cannot have 1 key-value heads"), "{shared}");
    let wide = refused(&of("gpt2").count("attention.key_length", 32).bytes());
    assert!(wide.contains("key-value heads of width 32"), "{wide}");
    assert!(
        refused(&without(of("gpt2"), "attention.layer_norm_epsilon").bytes())
            .contains("`gpt2.attention.layer_norm_epsilon`")
    );
}

/// An array of booleans in GGUF's format.
fn booleans(all: &[bool]) -> Vec<u8> {
    [
        &7u32.to_le_bytes()[..],
        &(all.len() as u64).to_le_bytes(),
        &all.iter().map(|x| u8::from(*x)).collect::<Vec<_>>(),
    ]
    .concat()
}

/// Sets the number of blocks.
fn layers(w: Writer, count: u32) -> Writer {
    without(w, "block_count").count("block_count", count)
}

fn sliding(config: &Value) -> Vec<bool> {
    config["layer_types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer == "sliding_attention")
        .collect()
}

#[test]
fn gemma_2_has_the_windows_and_soft_caps_of_llama_cpp() {
    let plain = config(
        layers(of("gemma2"), 3)
            .float("attn_logit_softcapping", 20.0)
            .float("final_logit_softcapping", 15.0),
    );
    assert_eq!(
        (&plain["model_type"], &plain["hidden_activation"]),
        (&"gemma2".into(), &"gelu_pytorch_tanh".into())
    );
    assert_eq!(
        (&plain["attn_logit_softcapping"], &plain["final_logit_softcapping"]),
        (&20.0.into(), &15.0.into())
    );
    assert_eq!(sliding(&plain), [true, false, true]);
    assert_eq!(
        (&plain["sliding_window"], &plain["query_pre_attn_scalar"], &plain["head_dim"]),
        (&8.into(), &16.into(), &16.into())
    );
    assert_eq!(plain["rope_parameters"], json!({ "rope_type": "default", "rope_theta": 1e4 }));
    assert_eq!(plain["tie_word_embeddings"], true);

    // The 27B model has 46 blocks. Its scale is the model's width divided by the number of heads.
    let wide = || {
        Writer::of("gemma2").count("attention.key_length", 32).count("attention.value_length", 32)
    };
    assert_eq!(config(layers(wide(), 42))["query_pre_attn_scalar"], 32);
    assert_eq!(config(layers(wide(), 46))["query_pre_attn_scalar"], 16);
    let usual = config(wide());
    assert_eq!(
        (
            &usual["sliding_window"],
            &usual["attn_logit_softcapping"],
            &usual["final_logit_softcapping"]
        ),
        (&4096.into(), &50.0.into(), &30.0.into())
    );

    let gguf = of("gemma2")
        .floats("blk.0.post_ffw_norm.weight", &[2], [1.5, 0.0])
        .floats("output_norm.weight", &[1], [1.25])
        .open()
        .unwrap();
    assert!(
        values(&gguf, "model.layers.0.post_feedforward_layernorm.weight")
            .equal(&Tensor::from_slice(&[0.5f32, -1.0]))
    );
    assert!(values(&gguf, "model.norm.weight").equal(&Tensor::from_slice(&[0.25f32])));

    assert!(
        of("gemma2").float("rope.freq_base", 1e5).float("rope.freq_base_swa", 1e5).open().is_ok()
    );
    let local = refused(&of("gemma2").float("rope.freq_base_swa", 1e5).bytes());
    assert!(local.contains("`gemma2.rope.freq_base_swa` (100000)"), "{local}");
}

#[test]
fn the_pattern_of_windows_can_be_a_period_or_a_list() {
    let key = "attention.sliding_window_pattern";
    let list = |w: Writer, all: &[bool]| {
        let key = format!("{}.{key}", w.architecture);
        w.entry(&key, 9, &booleans(all))
    };
    for (architecture, usual) in
        [("gemma2", [true, false, true, false]), ("olmo2", [true, true, true, false])]
    {
        let four = || {
            without(layers(of(architecture), 4), "attention.sliding_window")
                .count("attention.sliding_window", 8)
        };
        assert_eq!(sliding(&config(four())), usual, "{architecture}");
        assert_eq!(sliding(&config(four().count(key, 3))), [true, true, false, true]);
        assert_eq!(sliding(&config(four().count(key, 1))), [false; 4]);
        assert_eq!(sliding(&config(four().count(key, 0))), [true; 4]);
        assert_eq!(
            sliding(&config(list(four(), &[false, true, true, false]))),
            [false, true, true, false]
        );
        let short = refused(&list(four(), &[true]).bytes());
        assert!(
            short.contains(key) && short.contains("has 1 entries, but the model has 4 layers"),
            "{short}"
        );
    }
    for architecture in ["gemma2", "olmo2", "smollm3", "gpt2", "llama"] {
        let many = refused(&layers(of(architecture), 0x7fff_ffff).bytes());
        assert!(
            many.contains(&format!(
                "`{architecture}.block_count` must be between 1 and 16384, got 2147483647"
            )),
            "{many}"
        );
    }
}

#[test]
fn an_olmo_2_file_with_a_window_is_an_olmo_3_model() {
    let second = config(of("olmo2").float("rope.freq_base", 5e5));
    assert_eq!(
        (&second["model_type"], &second["architectures"]),
        (&"olmo2".into(), &json!(["Olmo2ForCausalLM"]))
    );
    assert_eq!(second["rope_parameters"], json!({ "rope_type": "default", "rope_theta": 5e5 }));
    assert!(second.get("layer_types").is_none() && second.get("sliding_window").is_none());
    assert_eq!(config(of("olmo2").count("attention.sliding_window", 0))["model_type"], "olmo2");

    let third = || of("olmo2").count("attention.sliding_window", 4096).float("rope.freq_base", 5e5);
    let plain = config(third());
    assert_eq!(
        (&plain["model_type"], &plain["architectures"]),
        (&"olmo3".into(), &json!(["Olmo3ForCausalLM"]))
    );
    let default = |theta: f64| json!({ "rope_type": "default", "rope_theta": theta });
    assert_eq!(
        plain["rope_parameters"],
        json!({ "full_attention": default(5e5), "sliding_attention": default(5e5) })
    );
    assert_eq!(
        config(third().float("rope.freq_base_swa", 1e4))["rope_parameters"]["sliding_attention"],
        default(1e4)
    );

    // Only layers without a window are scaled.
    let w = third()
        .entry("olmo2.rope.scaling.type", 8, &text("yarn"))
        .float("rope.scaling.factor", 8.0)
        .count("rope.scaling.original_context_length", 64);
    let scaled = config(w.float("rope.scaling.yarn_attn_factor", 1.25));
    let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64,
        "attention_factor": 1.25, "rope_theta": 5e5 });
    assert_eq!(
        scaled["rope_parameters"],
        json!({ "full_attention": yarn, "sliding_attention": default(5e5) })
    );
}

#[test]
fn every_fourth_layer_of_smollm3_has_no_rotary_positions() {
    let nine = config(layers(of("smollm3"), 9).float("rope.freq_base", 5e6));
    assert_eq!(
        (&nine["model_type"], &nine["architectures"]),
        (&"smollm3".into(), &json!(["SmolLM3ForCausalLM"]))
    );
    assert_eq!(nine["no_rope_layers"], json!([1, 1, 1, 0, 1, 1, 1, 0, 1]));
    assert_eq!(nine["rope_parameters"]["rope_theta"], 5e6);
}

#[test]
fn multipliers_of_granite_are_read_and_0_means_the_default() {
    let fields =
        ["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"];
    let of_file = |w: Writer| {
        let config = config(w);
        fields.map(|field| config[field].as_f64().unwrap())
    };
    let given = of("granite")
        .float("attention.scale", 0.015_625)
        .float("embedding_scale", 12.0)
        .float("residual_scale", 0.22)
        .float("logit_scale", 8.0);
    assert_eq!(of_file(given), [0.015_625, 12.0, 0.22, 8.0]);
    assert_eq!(of_file(of("granite")), [0.25, 1.0, 1.0, 1.0]);
    assert_eq!(
        of_file(
            of("granite")
                .float("attention.scale", 0.0)
                .float("embedding_scale", 0.0)
                .float("residual_scale", 0.0)
        ),
        [0.25, 1.0, 1.0, 1.0]
    );

    // A Granite 4 model without Mamba layers and experts.
    let four = without(of("granite"), "attention.head_count_kv").entry(
        "granite.rope.scaling.finetuned",
        7,
        &[1],
    );
    let four = four
        .count("expert_count", 0)
        .count("expert_used_count", 0)
        .count("ssm.conv_kernel", 4)
        .count("ssm.state_size", 128)
        .count("expert_shared_feed_forward_length", 64);
    let keys = |all: [u32; 2]| {
        four.clone().entry(
            "granite.attention.head_count_kv",
            9,
            &array(4, all.into_iter().map(u32::to_le_bytes)),
        )
    };
    assert_eq!(config(keys([1, 1]))["num_key_value_heads"], 1);
    let mixed = refused(&keys([1, 2]).bytes());
    assert!(mixed.contains("`granite.attention.head_count_kv` differs between layers"), "{mixed}");
    let unrotated =
        refused(&of("granite").entry("granite.rope.scaling.finetuned", 7, &[0]).bytes());
    assert!(unrotated.contains("`granite.rope.scaling.finetuned` (false)"), "{unrotated}");
    let experts = refused(&of("granite").count("expert_count", 8).bytes());
    assert!(experts.contains("mixtures of experts"), "{experts}");
}
