mod architectures;

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::testing;
use crate::testing::gguf::{Writer, numbers as array, text};

impl Writer {
    fn open(&self) -> Result<Gguf> {
        open(&self.bytes())
    }
}

fn open(bytes: &[u8]) -> Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

fn refused(bytes: &[u8]) -> String {
    let (opened, seconds) = testing::seconds_of(|| open(bytes));
    assert!(seconds < 1.0, "it took {seconds} seconds");
    format!("{:?}", opened.expect_err("an invalid file must be refused"))
}

/// Returns pseudorandom bytes for `count` blocks. `scales` contains the offsets of the
/// half-precision scales in a block. These scales have moderate values.
fn blocks(count: usize, size: usize, scales: &[usize]) -> Vec<u8> {
    let mut seed = 7u32;
    let mut bytes: Vec<u8> = (0..count * size)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        })
        .collect();
    for (i, block) in bytes.chunks_mut(size).enumerate() {
        for &at in scales {
            block[at..at + 2]
                .copy_from_slice(&f16::from_f32(0.25 * (i + at + 1) as f32).to_le_bytes());
        }
    }
    bytes
}

/// The expected values were computed with Python's `gguf` package (see `fixtures/make.py`).
#[test]
fn every_type_is_decoded_bit_for_bit_as_in_the_gguf_package() {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/weights/gguf/fixtures/blocks.safetensors");
    let fixture = crate::weights::read_safetensors(&fixture).unwrap();
    for format in &types::FORMATS {
        let bytes = Vec::<u8>::try_from(&fixture[&format!("{}.bytes", format.name)]).unwrap();
        let expected = Vec::<f32>::try_from(&fixture[&format!("{}.numbers", format.name)]).unwrap();
        assert_eq!(bytes.len() / format.bytes * format.block, expected.len(), "{}", format.name);
        let mut numbers = vec![0f32; expected.len()];
        (format.decode)(&bytes, &mut numbers);
        let differs = numbers.iter().zip(&expected).position(|(x, y)| x.to_bits() != y.to_bits());
        assert_eq!(differs.map(|i| (i, numbers[i], expected[i])), None, "{}", format.name);
    }
    assert_eq!(
        fixture.len(),
        2 * types::FORMATS.len(),
        "every type in the fixture must be supported"
    );
}

#[test]
fn long_tensors_are_decoded_correctly_from_every_type() {
    for (id, scales) in [
        (0, &[2usize][..]),
        (1, &[0]),
        (30, &[0]),
        (3, &[0, 2]),
        (8, &[0]),
        (11, &[108]),
        (13, &[0, 2]),
    ] {
        let format = types::format(id).unwrap();
        // The tensor is large enough to be decoded in several chunks. The last chunk is shorter.
        let (rows, inner) = (37, 1024 + format.block);
        let data = blocks(rows * inner / format.block, format.bytes, scales);
        let gguf = Writer::llama()
            .tensor("output.weight", &[inner as u64, rows as u64], id, &data)
            .open()
            .unwrap();
        let mut expected = vec![0f32; rows * inner];
        (format.decode)(&data, &mut expected);
        let expected = Tensor::from_slice(&expected).reshape([rows as i64, inner as i64]);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            assert!(
                gguf.read("lm_head.weight", kind).unwrap().equal(&expected.to_kind(kind)),
                "{} as {kind:?}",
                format.name
            );
        }
    }
}

#[test]
fn rows_of_queries_and_keys_are_returned_in_hugging_faces_order() {
    // transformers converts the rows with reshape(heads, rows / 2, 2, inner).swapaxes(1, 2).
    let values = Tensor::arange(16 * 32, (Kind::Float, tch::Device::Cpu)).reshape([16, 32]);
    let data: Vec<u8> = (0..16 * 32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let ones: Vec<u8> = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let w = Writer::llama().tensor("blk.0.attn_q.weight", &[32, 16], 0, &data).tensor(
        "blk.0.attn_k.weight",
        &[32, 16],
        0,
        &data,
    );
    let gguf = w
        .tensor("blk.0.attn_v.weight", &[32, 16], 0, &data)
        .tensor("blk.0.attn_q.bias", &[16], 0, &ones)
        .open()
        .unwrap();
    let rotated = |heads: i64| {
        values.reshape([heads, 16 / heads / 2, 2, 32]).transpose(1, 2).reshape([16, 32])
    };
    let read =
        |name: &str| gguf.read(&format!("model.layers.0.self_attn.{name}"), Kind::Float).unwrap();
    assert!(read("q_proj.weight").equal(&rotated(2)));
    assert!(read("k_proj.weight").equal(&rotated(1)));
    assert!(read("v_proj.weight").equal(&values));
    assert!(read("q_proj.bias").equal(&(rotated(2).select(1, 0) / 32)));
    assert_eq!(gguf.config()["attention_bias"], true);
}

#[test]
fn a_file_truncated_at_any_byte_is_an_error() {
    let whole = Writer::llama()
        .entry("x.list", 9, &[&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("a")].concat())
        .bytes();
    assert!(open(&whole).is_ok());
    for keep in 0..whole.len() {
        refused(&whole[..keep]);
    }
}

#[test]
fn changing_any_byte_never_causes_a_panic() {
    let whole = Writer::llama().tensor("blk.0.attn_q.weight", &[32, 4], 3, &[1; 80]).bytes();
    for at in 0..whole.len() - 256 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(gguf) = open(&bytes) {
                for name in gguf.names() {
                    assert!(gguf.read(name, Kind::Float).unwrap().defined());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn changing_several_bytes_never_causes_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let list = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("a")].concat();
        let mut bytes = Writer::llama().entry("x.list", 9, &list).tensor("blk.0.attn_q.weight",
            &[32, 4], 3, &[1; 80]).bytes();
        // Only change bytes of the header, because any change of the tensor data is valid.
        let header = bytes.len() - 256;
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        if let Ok(gguf) = open(&bytes) {
            for name in gguf.names() {
                assert!(gguf.read(name, Kind::BFloat16).unwrap().defined());
            }
        }
    }
}

#[test]
fn a_malicious_header_uses_little_time_and_memory() {
    let most = u64::MAX.to_le_bytes();
    let head = |tensors: [u8; 8], entries: [u8; 8], rest: &[u8]| {
        [b"GGUF", &3u32.to_le_bytes()[..], &tensors, &entries, rest].concat()
    };
    let one = 1u64.to_le_bytes();
    assert!(refused(&head(most, one, &[])).contains("ends"));
    assert!(refused(&head([0; 8], most, &[])).contains("metadata entries"));
    assert!(refused(&head([0; 8], one, &most)).contains("ends inside a key"));
    let array = |of: u32| {
        [&text("k"), &9u32.to_le_bytes()[..], &of.to_le_bytes(), &most, &[0; 64]].concat()
    };
    for of in [0, 4, 7, 8, 9, 12] {
        refused(&head([0; 8], one, &array(of)));
    }
    let nested: Vec<u8> =
        (0..100_000).flat_map(|_| [&9u32.to_le_bytes()[..], &one].concat()).collect();
    assert!(
        refused(&head([0; 8], one, &[&text("k"), &9u32.to_le_bytes()[..], &nested].concat()))
            .contains("nested more than 4 levels deep")
    );
    assert!(refused(&head(most, [0; 8], &[0; 64])).contains("tensors"));
    let sixty = (1u64 << 60).to_le_bytes();
    for of in [0u32, 4, 8, 9, 12, 13, u32::MAX] {
        refused(&head(
            [0; 8],
            one,
            &[&text("k"), &9u32.to_le_bytes()[..], &of.to_le_bytes(), &sixty, &[0; 1 << 16]]
                .concat(),
        ));
    }
}

#[test]
fn an_endless_header_is_refused() {
    // The header declares a list of 2^40 strings. The rest of the file is sparse and reads as
    // zeros, i.e. as the lengths of empty strings.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let head = [
        b"GGUF",
        &3u32.to_le_bytes()[..],
        &[0; 8],
        &1u64.to_le_bytes(),
        &text("k"),
        &9u32.to_le_bytes(),
        &8u32.to_le_bytes(),
    ]
    .concat();
    std::fs::write(&path, [&head[..], &(1u64 << 40).to_le_bytes()].concat()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    let (opened, seconds) = testing::seconds_of(|| Gguf::open(&path));
    let e = opened.unwrap_err();
    assert!(e.message().contains("has a header of more than"), "{e:?}");
    assert!(seconds < 1.0, "it took {seconds} seconds");
}

#[cfg(unix)]
#[test]
fn opening_a_named_pipe_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let created = std::process::Command::new("mkfifo").arg(&path).status();
    if created.is_ok_and(|s| s.success()) {
        assert!(Gguf::open(&path).unwrap_err().message().contains("is not a file"));
    }
}

#[test]
fn an_invalid_tensor_is_refused() {
    let with = |axes: &[u64], kind, bytes: usize| {
        refused(&Writer::llama().tensor("output.weight", axes, kind, &vec![0; bytes]).bytes())
    };
    assert!(with(&[1 << 40, 1 << 40], 0, 32).contains("with a dimension of size"));
    assert!(with(&[0, 4], 0, 32).contains("with a dimension of size"));
    assert!(with(&[1 << 30], 0, 32).contains("ends before the end of tensor `output.weight`"));
    assert!(with(&[33], 8, 64).contains("not a multiple of 32"));
    assert!(with(&[1, 1, 1, 1, 1], 0, 32).contains("5 dimensions"));
    assert!(with(&[1; 9], 0, 32).contains("9 dimensions"));
    let unknown = with(&[32], 99, 32);
    assert!(unknown.contains("number 99") && unknown.contains("Q4_1"), "{unknown}");
    let twice = refused(
        &Writer::llama()
            .tensor("output.weight", &[1], 0, &[0; 4])
            .tensor("output.weight", &[1], 0, &[0; 4])
            .bytes(),
    );
    assert!(twice.contains("duplicate tensor `output.weight`"), "{twice}");
    let mut w = Writer::llama().tensor("output.weight", &[1], 0, &[0; 4]);
    w.tensors[1].0 = "blk.0.\u{fffd}".into();
    let mut bytes = w.bytes();
    let at = bytes.windows(3).position(|w| w == "\u{fffd}".as_bytes()).unwrap();
    bytes[at] = 0xff;
    assert!(refused(&bytes).contains("is not UTF-8"));
    let unread = with(&[256], 16, 96);
    assert!(
        unread.contains("IQ2_XXS") && unread.contains("`output.weight`") && unread.contains("Q4_1"),
        "{unread}"
    );
    let heads =
        refused(&Writer::llama().tensor("blk.0.attn_q.weight", &[32, 6], 0, &[0; 768]).bytes());
    assert!(heads.contains("2 heads"), "{heads}");
    let bias = refused(&Writer::llama().tensor("blk.0.attn_q.bias", &[32], 8, &[0; 34]).bytes());
    assert!(bias.contains("`blk.0.attn_q.bias`") && bias.contains("Q8_0"), "{bias}");
    let unlisted =
        refused(&Writer::llama().tensor("blk.0.ffn_gate_exps.weight", &[32], 0, &[0; 128]).bytes());
    assert!(unlisted.contains("`blk.0.ffn_gate_exps.weight`"), "{unlisted}");
}

#[test]
fn errors_name_the_invalid_setting() {
    let swap = |key: &str, kind: u32, value: &[u8]| {
        let mut w = Writer::llama();
        w.entries.retain(|e| !e.starts_with(&text(key)));
        refused(&w.entry(key, kind, value).bytes())
    };
    assert!(swap("general.architecture", 8, &text("lama")).contains("did you mean `llama`?"));
    assert!(
        swap("llama.attention.head_count", 4, &[0; 4])
            .contains("`llama.attention.head_count` must be")
    );
    assert!(
        swap("llama.block_count", 8, &text("one")).contains("must be an integer, but is a string")
    );
    assert!(swap("llama.rope.scaling.type", 8, &text("dynamic")).contains("`dynamic`"));
    assert!(
        swap("llama.attention.layer_norm_rms_epsilon", 6, &f32::NAN.to_le_bytes())
            .contains("not finite")
    );
    for alignment in [0u32, 3, 33, 1 << 30] {
        let refused = swap("general.alignment", 4, &alignment.to_le_bytes());
        assert!(
            refused.contains(&format!("alignment {alignment}")) && refused.contains("power of two"),
            "{refused}"
        );
    }
    let mut w = Writer::llama();
    w.entries.remove(1);
    assert!(refused(&w.bytes()).contains("does not have the key `llama.embedding_length`"));
    let mut w = Writer::llama();
    w.version = 1;
    assert!(refused(&w.bytes()).contains("version 1"));
    w.version = 3u32.swap_bytes();
    assert!(refused(&w.bytes()).contains("big-endian"));
    assert!(refused(b"PK\x03\x04").contains("not a GGUF file"));
}

#[test]
fn overlapping_tensors_are_refused() {
    let w = Writer::llama().tensor("output.weight", &[32, 2], 0, &[0; 256]);
    let mut bytes = w.bytes();
    let at = bytes.windows(13).position(|w| w == b"output.weight").unwrap() + 13 + 4 + 16 + 4;
    bytes[at..at + 8].fill(0);
    assert!(refused(&bytes).contains("has overlapping tensors"));
}

/// Writes a Llama model, split into three files. The last file contains two of the four tensors.
fn parts(dir: &Path) -> Vec<PathBuf> {
    let values: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let empty =
        || Writer { version: 3, architecture: "llama", entries: Vec::new(), tensors: Vec::new() };
    let part = |w: Writer, n: u16| {
        w.entry("split.no", 2, &n.to_le_bytes()).entry("split.count", 2, &3u16.to_le_bytes())
    };
    let whole = |w: Writer| w.entry("split.tensors.count", 5, &4i32.to_le_bytes());
    let files = [
        part(whole(Writer::llama()), 0),
        part(empty(), 1).tensor("output.weight", &[32, 2], 0, &values),
        part(empty(), 2).tensor("output_norm.weight", &[32], 0, &values[..128]).tensor(
            "blk.0.attn_q.weight",
            &[16, 4],
            0,
            &values,
        ),
    ];
    let path = |n: usize| dir.join(format!("m-{n:05}-of-00003.gguf"));
    files.iter().enumerate().for_each(|(i, w)| std::fs::write(path(i + 1), w.bytes()).unwrap());
    (1..=3).map(path).collect()
}

#[test]
fn a_split_model_can_be_opened_by_any_part() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    for part in &parts {
        let gguf = Gguf::open(part).unwrap();
        assert_eq!(
            gguf.names().collect::<Vec<_>>(),
            [
                "model.embed_tokens.weight",
                "lm_head.weight",
                "model.norm.weight",
                "model.layers.0.self_attn.q_proj.weight"
            ]
        );
        assert_eq!(gguf.config()["tie_word_embeddings"], false);
        assert!(
            gguf.read("model.norm.weight", Kind::Float)
                .unwrap()
                .equal(&Tensor::arange(32, (Kind::Float, tch::Device::Cpu)))
        );
    }
    let files = crate::weights::ModelFiles::open(dir.path()).unwrap();
    assert!(
        files.describe().contains("GGUF in 3 parts, 4 tensors"),
        "a folder that only contains a split model must be opened: {}",
        files.describe()
    );
}

#[test]
fn errors_name_missing_and_wrong_parts() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    let e = |path: &Path| format!("{:?}", Gguf::open(path).unwrap_err());
    std::fs::rename(&parts[1], dir.path().join("2")).unwrap();
    let missing = e(&parts[2]);
    assert!(
        missing.contains("part 3 of 3")
            && missing.contains("one part is missing")
            && missing.contains("m-00002-of-00003.gguf`"),
        "{missing}"
    );
    let renamed = e(&dir.path().join("2"));
    assert!(
        renamed.contains("its name does not match") && renamed.contains("NAME-00002-of-00003.gguf"),
        "{renamed}"
    );
    std::fs::copy(&parts[2], &parts[1]).unwrap();
    let twice = e(&parts[0]);
    assert!(
        twice.contains("m-00002")
            && twice.contains("part 3 of 3 according to its metadata, but part 2 of 3"),
        "{twice}"
    );
    let empty =
        Writer { version: 3, architecture: "llama", entries: Vec::new(), tensors: Vec::new() };
    std::fs::write(
        &parts[1],
        empty.entry("split.no", 2, &[1, 0]).entry("split.count", 2, &[3, 0]).bytes(),
    )
    .unwrap();
    assert!(e(&parts[0]).contains("3 tensors in total instead of 4"));
    std::fs::write(&parts[1], "GGUF").unwrap();
    assert!(e(&parts[0]).contains("m-00002"));
}

#[test]
fn the_1_that_llama_cpp_adds_to_gemmas_norms_is_subtracted() {
    let w = Writer::of("gemma3")
        .count("attention.key_length", 16)
        .count("attention.value_length", 16)
        .count("attention.sliding_window", 8);
    let w = w
        .float("rope.freq_base", 1e6)
        .floats("blk.0.attn_q_norm.weight", &[4], [1.5, 1.0, 0.0, 2.0])
        .floats("output_norm.weight", &[1], [1.25]);
    let gguf = w
        .floats("blk.0.ffn_norm.weight", &[1], [3.0])
        .floats("blk.0.attn_v.weight", &[2, 1], [1.0, 2.0])
        .open()
        .unwrap();
    let read = |name: &str| {
        Vec::<f64>::try_from(
            gguf.read(name, Kind::BFloat16).unwrap().to_kind(Kind::Double).flatten(0, -1),
        )
        .unwrap()
    };
    assert_eq!(read("model.layers.0.self_attn.q_norm.weight"), [0.5, 0.0, -1.0, 1.0]);
    assert_eq!(read("model.layers.0.pre_feedforward_layernorm.weight"), [2.0]);
    assert_eq!(read("model.norm.weight"), [0.25]);
    assert_eq!(read("model.layers.0.self_attn.v_proj.weight"), [1.0, 2.0]);
    let config = gguf.config();
    assert_eq!(
        (&config["model_type"], &config["head_dim"], &config["sliding_window"]),
        (&"gemma3_text".into(), &16.into(), &8.into())
    );
    assert_eq!(config["query_pre_attn_scalar"], 16);
    assert_eq!(config["rope_parameters"]["full_attention"]["rope_theta"], 1e6);
    assert_eq!(config["rope_parameters"]["sliding_attention"]["rope_theta"], 1e4);
}

#[test]
fn gpt_neox_queries_keys_and_values_are_grouped_by_head() {
    // llama.cpp's converter applies reshape(heads, 3, d, inner).transpose(0, 1).
    let ours = Tensor::arange(12 * 2, (Kind::Float, tch::Device::Cpu)).reshape([12, 2]);
    let theirs = Vec::<f32>::try_from(
        ours.reshape([2, 3, 2, 2]).transpose(0, 1).contiguous().flatten(0, -1),
    )
    .unwrap();
    let w = Writer::of("gptneox")
        .float("attention.layer_norm_epsilon", 1e-5)
        .count("rope.dimension_count", 4);
    let w = w
        .entry("gptneox.use_parallel_residual", 7, &[0])
        .floats("output.weight", &[1], [7.0])
        .floats("output_norm.bias", &[1], [1.0]);
    let gguf = w
        .floats("blk.0.attn_qkv.weight", &[2, 12], theirs)
        .floats("blk.0.ffn_up.bias", &[1], [1.0])
        .open()
        .unwrap();
    assert!(
        gguf.read("gpt_neox.layers.0.attention.query_key_value.weight", Kind::Float)
            .unwrap()
            .equal(&ours)
    );
    for name in [
        "embed_out.weight",
        "gpt_neox.final_layer_norm.bias",
        "gpt_neox.layers.0.mlp.dense_h_to_4h.bias",
    ] {
        assert!(gguf.names().any(|n| n == name), "{name}");
    }
    let config = gguf.config();
    assert_eq!(
        (&config["use_parallel_residual"], &config["hidden_act"]),
        (&false.into(), &"gelu".into())
    );
    assert_eq!(config["rope_parameters"]["partial_rotary_factor"], 0.25);
}

#[test]
fn tensors_of_rotary_factors_become_settings() {
    let w = Writer::of("phi3")
        .count("attention.sliding_window", 0)
        .count("rope.scaling.original_context_length", 64)
        .float("rope.scaling.attn_factor", 1.25);
    let w = w.floats("rope_factors_long.weight", &[2], [4.0, 8.0]).floats(
        "rope_factors_short.weight",
        &[2],
        [1.0, 2.0],
    );
    let gguf = w
        .floats("blk.0.attn_qkv.weight", &[1], [1.0])
        .floats("blk.0.ffn_up.weight", &[1], [1.0])
        .open()
        .unwrap();
    let expected = serde_json::json!({ "rope_type": "longrope", "rope_theta": 1e4,
        "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0],
        "attention_factor": 1.25, "original_max_position_embeddings": 64,
        "partial_rotary_factor": 1.0 });
    assert_eq!(gguf.config()["rope_parameters"], expected);
    assert_eq!(
        (&gguf.config()["original_max_position_embeddings"], &gguf.config()["sliding_window"]),
        (&64.into(), &Value::Null)
    );
    assert!(gguf.names().eq([
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight"
    ]));

    let llama = Writer::llama().floats("rope_freqs.weight", &[2], [1.0, 8.0]).open().unwrap();
    let rope = &llama.config()["rope_parameters"];
    assert_eq!(
        (&rope["short_factor"], &rope["long_factor"], &rope["attention_factor"]),
        (&vec![1.0, 8.0].into(), &vec![1.0, 8.0].into(), &1.0.into())
    );
    let one = refused(&Writer::of("phi3").floats("rope_factors_long.weight", &[1], [1.0]).bytes());
    assert!(one.contains("separate factors"), "{one}");
    let scaled = refused(&Writer::llama().float("attention.scale", 0.5).bytes());
    assert!(scaled.contains("`llama.attention.scale`"), "{scaled}");
}

/// Opens the file that `w` writes, and returns `rope_parameters` from its configuration.
fn rope(w: Writer) -> Value {
    w.open().unwrap().config()["rope_parameters"].clone()
}

#[test]
fn a_scaling_factor_without_a_type_is_linear_under_the_new_and_the_old_key() {
    let linear = serde_json::json!({ "rope_type": "linear", "factor": 4.0, "rope_theta": 1e4 });
    let default = serde_json::json!({ "rope_type": "default", "rope_theta": 1e4 });
    let llama = Writer::llama;
    let of_type = |w: Writer, kind: &str| w.entry("llama.rope.scaling.type", 8, &text(kind));
    assert_eq!(rope(llama().float("rope.scaling.factor", 4.0)), linear);
    assert_eq!(rope(llama().float("rope.scale_linear", 4.0)), linear);
    assert_eq!(rope(of_type(llama().float("rope.scaling.factor", 4.0), "linear")), linear);
    assert_eq!(rope(of_type(llama().float("rope.scale_linear", 4.0), "linear")), linear);
    // If both keys exist, the new key `rope.scaling.factor` takes precedence.
    assert_eq!(
        rope(llama().float("rope.scale_linear", 2.0).float("rope.scaling.factor", 4.0)),
        linear
    );
    assert_eq!(rope(of_type(llama().float("rope.scaling.factor", 4.0), "none")), default);
    assert_eq!(rope(llama().float("rope.scaling.factor", 1.0)), default);
    assert_eq!(rope(llama().float("rope.scale_linear", 0.0)), default);
    assert_eq!(rope(llama().float("rope.scaling.attn_factor", 1.0)), default);
    for wrong in
        [llama().float("rope.scaling.factor", -1.0), llama().float("rope.scaling.attn_factor", 1.5)]
    {
        refused(&wrong.bytes());
    }
    let factors =
        llama().float("rope.scaling.factor", 4.0).floats("rope_freqs.weight", &[2], [1.0, 8.0]);
    assert!(refused(&factors.bytes()).contains("separate factors"));
}

#[test]
fn yarn_has_hugging_faces_factors_regardless_of_the_converter() {
    let w = || {
        Writer::of("qwen3")
            .entry("qwen3.rope.scaling.type", 8, &text("yarn"))
            .float("rope.scaling.factor", 4.0)
    };
    let yarn = serde_json::json!({ "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 128, "rope_theta": 1e4 });
    assert_eq!(rope(w()), yarn);
    let fast = w()
        .float("rope.scaling.yarn_beta_fast", 32.0)
        .float("rope.scaling.yarn_beta_slow", 1.0)
        .float("rope.scaling.yarn_ext_factor", 1.0);
    let mut expected = yarn.clone();
    (expected["beta_fast"], expected["beta_slow"]) =
        (serde_json::json!(32.0), serde_json::json!(1.0));
    assert_eq!(rope(fast), expected);
    // The default factor is 1 + ln(4) / 10.
    assert_eq!(rope(w().float("rope.scaling.attn_factor", 1.138_629_4)), yarn);
    for (name, value) in
        [("attn_factor", 1.0), ("yarn_ext_factor", 0.0), ("yarn_log_multiplier", 0.1)]
    {
        let e = refused(&w().float(&format!("rope.scaling.{name}"), value).bytes());
        assert!(e.contains(&format!("`qwen3.rope.scaling.{name}` ({value})")), "{e}");
    }
    // Without YaRN, `yarn_log_multiplier` and `yarn_beta_fast` have no effect. `yarn_attn_factor`
    // is rejected.
    assert!(
        Writer::of("qwen3")
            .float("rope.scaling.yarn_log_multiplier", 0.1)
            .float("rope.scaling.yarn_beta_fast", 8.0)
            .open()
            .is_ok()
    );
    assert!(
        refused(&Writer::of("qwen3").float("rope.scaling.yarn_attn_factor", 1.2).bytes())
            .contains("`qwen3.rope.scaling.yarn_attn_factor` (1.2)")
    );
    let factors = refused(&w().floats("rope_freqs.weight", &[2], [1.0, 8.0]).bytes());
    assert!(factors.contains("`yarn` with separate factors"), "{factors}");
}

#[test]
fn every_architecture_can_rotate_only_a_part_of_each_head() {
    let (heads, width) = (2, 16);
    let of = |architecture: &'static str| {
        let w = Writer::of(architecture).count("rope.dimension_count", 4);
        let w = if architecture == "gptneox" {
            w.float("attention.layer_norm_epsilon", 1e-5)
        } else {
            w
        };
        if architecture.starts_with("gemma") {
            w.count("attention.sliding_window", 8).count("attention.key_length", 16)
        } else {
            w
        }
    };
    for architecture in [
        "llama", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "smollm3", "granite", "phi3",
        "gptneox",
    ] {
        let rope = rope(of(architecture));
        let sets = if architecture == "gemma3" {
            vec![rope["full_attention"].clone(), rope["sliding_attention"].clone()]
        } else {
            vec![rope]
        };
        for rope in sets {
            let rotated = match rope["dimension_count"].as_i64() {
                Some(rotated) => rotated as f64,
                None => rope["partial_rotary_factor"].as_f64().unwrap() * f64::from(width),
            };
            assert_eq!(rotated, 4.0, "{architecture}: rope parameters {rope}");
        }
        let whole = of(architecture).count("attention.head_count_kv2", 0);
        assert!(refused(&whole.bytes()).contains("attention.head_count_kv2"));
    }
    // In float64, 30 / 88 * 88 is slightly less than 30 and would be truncated to 29. The stored
    // fraction must give 30.
    let odd = rope(
        Writer::of("phi3").count("attention.key_length", 88).count("rope.dimension_count", 30),
    );
    assert_eq!((odd["partial_rotary_factor"].as_f64().unwrap() * 88.0) as i64, 30);
    // If the file specifies the width of a head (32), the fraction is 8 / 32.
    let wide =
        rope(Writer::of("phi3").count("attention.key_length", 32).count("rope.dimension_count", 8));
    assert_eq!(wide["partial_rotary_factor"], 0.25);
    // As in llama.cpp, the whole head is rotated if `rope.dimension_count` is missing. Hugging
    // Face's default for GPT-NeoX is a quarter of the head.
    let neox = Writer::of("gptneox").float("attention.layer_norm_epsilon", 1e-5);
    assert_eq!(rope(neox)["partial_rotary_factor"], 1.0);
    assert_eq!(
        rope(Writer::llama().count("rope.dimension_count", 16)),
        serde_json::json!({ "rope_type": "default", "rope_theta": 1e4 })
    );
    for wrong in [3, 18, 0] {
        let e = refused(&Writer::llama().count("rope.dimension_count", wrong).bytes());
        assert!(e.contains("`llama.rope.dimension_count`"), "{e}");
    }
    // In llama.cpp's order, rows that are rotated together are adjacent. Only the first four rows
    // of each head are rotated here.
    let ours = Tensor::arange(i64::from(heads * width), (Kind::Float, tch::Device::Cpu))
        .reshape([i64::from(heads * width), 1]);
    let values = Vec::<f32>::try_from(ours.flatten(0, -1)).unwrap();
    let gguf = of("llama").floats("blk.0.attn_q.weight", &[1, 32], values).open().unwrap();
    let read = Vec::<f64>::try_from(
        gguf.read("model.layers.0.self_attn.q_proj.weight", Kind::Double).unwrap().flatten(0, -1),
    )
    .unwrap();
    let head = |at: f64| {
        [0.0, 2.0, 1.0, 3.0].into_iter().chain((4..16).map(f64::from)).map(move |r| at + r)
    };
    assert_eq!(read, head(0.0).chain(head(16.0)).collect::<Vec<_>>());
}

#[test]
fn an_unsupported_setting_that_may_change_the_output_is_refused_by_name() {
    for (key, value) in [
        ("attention.sliding_window", 8.0),
        ("attention.scale", 0.5),
        ("attention.clamp_kqv", 3.0),
        ("attention.causal", 0.0),
        ("attention.key_length_swa", 8.0),
        ("attn_logit_softcapping", 50.0),
        ("embedding_scale", 12.0),
        ("expert_shared_count", 1.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("nextn_predict_layers", 1.0),
        ("residual_scale", 0.2),
        ("rope.dimension_sections", 4.0),
        ("rope.freq_base_swa", 1e5),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("an_unknown_setting", 1.0),
    ] {
        let e = refused(&Writer::llama().float(key, value).bytes());
        assert!(
            e.contains(&format!("`llama.{key}` ({value})")) && e.contains("Hugging Face folder"),
            "{e}"
        );
    }
    // These settings have no effect on the output.
    for (key, value) in [
        ("attention.causal", 1.0),
        ("attention.sliding_window", 0.0),
        ("expert_count", 0.0),
        ("expert_used_count", 2.0),
        ("logit_scale", 1.0),
        ("rope.scaling.finetuned", 1.0),
        ("rope.scaling.original_context_length", 64.0),
        ("vocab_size", 2.0),
    ] {
        let w = if key.contains("count") || key.contains("length") {
            Writer::llama().count(key, value as u32)
        } else {
            Writer::llama().float(key, value)
        };
        assert!(w.open().is_ok(), "key {key}: result {:?}", w.open());
    }
    // Keys of another architecture are ignored.
    assert!(Writer::llama().entry("mistral.logit_scale", 6, &2f32.to_le_bytes()).open().is_ok());
}

#[test]
fn the_tokens_for_the_end_of_a_text_a_turn_and_a_message_all_end_a_completion() {
    let ids = [("eos", 1u32), ("eot", 3), ("eom", 5)];
    let add = |w: Writer, (name, id): &(&str, u32)| {
        w.entry(&format!("tokenizer.ggml.{name}_token_id"), 4, &id.to_le_bytes())
    };
    let bytes = ids.iter().fold(Writer::llama(), add).bytes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(crate::weights::ModelFiles::open(&path).unwrap().ends().unwrap(), [1, 3, 5]);
}
