use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::testing;

fn small(dir: &Path, config: &str) -> PathBuf {
    std::fs::write(dir.join("config.json"), config).unwrap();
    dir.to_owned()
}

fn tensor(x: f32) -> Tensor {
    Tensor::from_slice(&[x, x + 1.0])
}

#[test]
fn a_folder_is_read_as_float32_and_bfloat16() {
    let files = ModelFiles::open(&testing::golden::own().join("models/llama")).unwrap();
    assert_eq!(files.config()["model_type"], "llama");
    let (full, half) = (
        files.load(Kind::Float, Device::Cpu).unwrap(),
        files.load(Kind::BFloat16, Device::Cpu).unwrap(),
    );
    assert!(full.keys().eq(&files.names()));
    for (name, tensor) in &full {
        assert_eq!((tensor.kind(), half[name].kind()), (Kind::Float, Kind::BFloat16));
        assert!(!tensor.requires_grad());
        assert!(tensor.to_kind(Kind::BFloat16).equal(&half[name]), "{name}");
    }
    assert!(files.describe().contains("safetensors"), "{}", files.describe());
    assert!(files.tokenizer().unwrap().has_chat_template());
    assert!(files.load(Kind::Int64, Device::Cpu).is_err());
}

#[test]
fn shards_are_read_as_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = small(dir.path(), "{}");
    write_safetensors(&path.join("m-2.safetensors"), &[("c".into(), tensor(3.0))]).unwrap();
    write_safetensors(
        &path.join("m-1.safetensors"),
        &[("a".into(), tensor(1.0)), ("b".into(), tensor(2.0).to_kind(Kind::BFloat16))],
    )
    .unwrap();
    let index = |map: &str| {
        std::fs::write(
            path.join("model.safetensors.index.json"),
            format!(r#"{{"weight_map": {map}}}"#),
        )
        .unwrap()
    };
    index(r#"{"c": "m-2.safetensors", "a": "m-1.safetensors", "b": "m-1.safetensors"}"#);
    let files = ModelFiles::open(&path).unwrap();
    let mut names = files.names();
    assert_eq!(names.pop().as_deref(), Some("c"), "tensors are listed in shard order");
    assert_eq!(names.len(), 2);
    assert!(files.load(Kind::Float, Device::Cpu).unwrap()["b"].equal(&tensor(2.0)));

    index(r#"{"c": "m-3.safetensors"}"#);
    let e = ModelFiles::open(&path).unwrap_err();
    assert!(e.message().contains("m-3.safetensors") && e.message().contains("missing"), "{e:?}");
    index(r#"{"d": "m-2.safetensors"}"#);
    assert!(ModelFiles::open(&path).unwrap_err().message().contains("does not contain tensor `d`"));
    index(r#"{"d": "../m-2.safetensors"}"#);
    assert!(
        ModelFiles::open(&path)
            .unwrap_err()
            .message()
            .contains("must refer to a file in the same folder")
    );
    index(r#"{"d": 7}"#);
    assert!(ModelFiles::open(&path).is_err());
}

#[test]
fn folders_without_a_supported_model_have_specific_errors() {
    let dir = tempfile::tempdir().unwrap();
    let open = || format!("{:?}", ModelFiles::open(dir.path()).unwrap_err());
    assert!(open().contains("config.json` is missing"));
    small(dir.path(), "{");
    assert!(open().contains("not valid JSON"));
    small(dir.path(), "[]");
    assert!(open().contains("not a JSON object"));
    small(dir.path(), "{}");
    assert!(open().contains("contains neither model.safetensors"));
    std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(open().contains("pickle") && open().contains("save_pretrained"));
    small(dir.path(), r#"{"quantization_config": {"quant_method": "gptq"}}"#);
    assert!(open().contains("gptq"));
    assert!(
        ModelFiles::open(&dir.path().join("pytorch_model.bin"))
            .unwrap_err()
            .message()
            .contains("only part of a model")
    );
    assert!(ModelFiles::open(&dir.path().join("nothing")).is_err());
}

#[test]
fn integer_tensors_of_a_checkpoint_keep_their_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = small(dir.path(), "{}");
    write_safetensors(
        &path.join("model.safetensors"),
        &[
            ("ids".into(), Tensor::from_slice(&[1i64])),
            ("w".into(), tensor(1.0).to_kind(Kind::Double)),
        ],
    )
    .unwrap();
    let all = ModelFiles::open(&path).unwrap().load(Kind::BFloat16, Device::Cpu).unwrap();
    assert_eq!((all["ids"].kind(), all["w"].kind()), (Kind::Int64, Kind::BFloat16));
}

#[test]
fn smollm2_gguf_has_hugging_faces_names_and_settings() {
    let Some(model) = testing::smollm2() else { return };
    let files = ModelFiles::open(&model).unwrap();
    let expected = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": { "rope_theta": 100_000.0, "rope_type": "default" },
        "max_position_embeddings": 8192, "vocab_size": 49152,
        "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2,
    });
    assert_eq!(files.config(), &expected);
    for kind in [Kind::Float, Kind::BFloat16] {
        let start = Instant::now();
        let all = files.load(kind, Device::Cpu).unwrap();
        eprintln!("{} as {kind:?} in {:?}", files.describe(), start.elapsed());
        assert_eq!(all.len(), 272);
        assert_eq!(all["model.embed_tokens.weight"].size(), [49152, 576]);
        assert_eq!(all["model.layers.29.mlp.down_proj.weight"].size(), [576, 1536]);
        assert_eq!(all["model.norm.weight"].kind(), kind);
        assert_eq!(all.values().map(Tensor::numel).sum::<usize>(), 134_515_008);
    }
}

/// Returns a value of `/proc/self/status` in bytes. `line` is the label of the value, such as
/// `VmRSS:`.
#[cfg(target_os = "linux")]
fn memory(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kilobytes =
        status.lines().find_map(|l| l.strip_prefix(line)).unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<f64>().unwrap() * 1024.0
}

/// Loads a model. Prints the time in seconds, and the peak memory divided by the size of the
/// weights. Must run in a fresh process, because the peak covers the whole life of a process.
#[cfg(target_os = "linux")]
fn measure(path: &Path, kind: Kind) {
    drop(tensor(1.0));
    let (before, start) = (memory("VmRSS:"), Instant::now());
    let all = ModelFiles::open(path).unwrap().load(kind, Device::Cpu).unwrap();
    let (seconds, peak) = (start.elapsed().as_secs_f64(), memory("VmHWM:") - before);
    let weights: usize = all.values().map(|t| t.numel() * kind.elt_size_in_bytes()).sum();
    eprintln!("measured {seconds} {}", peak / weights as f64);
}

/// To run this benchmark:
/// `cargo test --release -p reprpo-core --lib -- --ignored --nocapture loading`.
#[cfg(target_os = "linux")]
#[ignore = "measures time, so it needs a release build and an idle machine"]
#[test]
fn loading_takes_two_seconds_and_little_extra_memory() {
    const MEASURED: &str = "REPRPO_TEST_MEASURED";
    let kind = |name: &str| if name == "bf16" { Kind::BFloat16 } else { Kind::Float };
    if let Ok(given) = std::env::var(MEASURED) {
        let (name, path) = given.split_once(':').unwrap();
        return measure(Path::new(path), kind(name));
    }
    let Some(model) = testing::smollm2() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let all: Vec<(String, Tensor)> = ModelFiles::open(&model)
            .unwrap()
            .load(kind(name), Device::Cpu)
            .unwrap()
            .into_iter()
            .collect();
        write_safetensors(&folder.join("model.safetensors"), &all).unwrap();
        small(&folder, "{}")
    };
    let (f32s, bf16s) = (folder("f32"), folder("bf16"));
    for (what, path, name) in [
        ("GGUF to float32", &model, "f32"),
        ("GGUF to bfloat16", &model, "bf16"),
        ("float32 to float32", &f32s, "f32"),
        ("float32 to bfloat16", &f32s, "bf16"),
        ("bfloat16 to float32", &bf16s, "f32"),
        ("bfloat16 to bfloat16", &bf16s, "bf16"),
    ] {
        let once = || {
            let mut own = std::process::Command::new(std::env::current_exe().unwrap());
            own.args([
                "--ignored",
                "--exact",
                "--nocapture",
                "weights::tests::loading_takes_two_seconds_and_little_extra_memory",
            ]);
            let out = own.env(MEASURED, format!("{name}:{}", path.display())).output().unwrap();
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix("measured "))
                .unwrap_or_else(|| panic!("{text}"));
            let numbers: Vec<f64> = line.split(' ').map(|x| x.parse().unwrap()).collect();
            (numbers[0], numbers[1])
        };
        // Take the shortest time of three runs, because the machine may be busy. For memory, take
        // the largest value.
        let (seconds, times) =
            (0..3).map(|_| once()).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap();
        eprintln!("{what} took {seconds:.2} s; peak memory was {times:.3} × the weights");
        assert!(
            times <= 1.3 && seconds < 2.0,
            "{what} took {seconds} s; peak memory was {times} × the weights"
        );
    }
}

/// Cloning a repository without `git lfs` leaves a small pointer file in place of each large file.
#[test]
fn a_git_lfs_pointer_is_an_error_that_names_the_file_and_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("my model");
    std::fs::create_dir(&folder).unwrap();
    let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n");
    let check = |file: &str, e: Error| {
        let path = folder.join(file);
        let e = format!("{e:?}");
        let what = format!("`{}` is a Git LFS pointer, not the file itself", path.display());
        assert!(
            e.contains(&what) && e.contains(&format!("`git -C '{}' lfs pull`", folder.display())),
            "{file}: {e}"
        );
    };
    let write = |file: &str, text: &str| std::fs::write(folder.join(file), text).unwrap();
    write("config.json", "{}");
    write("model.safetensors", &pointer);
    check("model.safetensors", ModelFiles::open(&folder).unwrap_err());
    write("tokenizer.json", &pointer);
    check("tokenizer.json", ModelFiles::tokenizer_of(&folder).unwrap_err());
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    write("model.safetensors.index.json", &pointer);
    check("model.safetensors.index.json", ModelFiles::open(&folder).unwrap_err());
    write("model.safetensors.index.json", r#"{"weight_map": {"a": "m-1.safetensors"}}"#);
    write("m-1.safetensors", &pointer);
    check("m-1.safetensors", ModelFiles::open(&folder).unwrap_err());
    write("config.json", &pointer);
    check("config.json", ModelFiles::open(&folder).unwrap_err());
    write("x.gguf", &pointer);
    check("x.gguf", ModelFiles::open(&folder.join("x.gguf")).unwrap_err());
}
