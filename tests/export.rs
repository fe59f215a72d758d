//! Exported models: merged models as Hugging Face folders.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

use crate::golden;

fn reprpo(folder: &Path, args: &[&str]) -> Output {
    Command::cargo_bin("reprpo")
        .expect("the binary")
        .env("OMP_NUM_THREADS", "1")
        .current_dir(folder)
        .args(args)
        .output()
        .expect("the command runs")
}

fn stdout_of(folder: &Path, args: &[&str]) -> String {
    let output = reprpo(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn error(folder: &Path, args: &[&str]) -> String {
    let output = reprpo(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the log-probabilities of all completions under a model or an adapter.
fn scores(folder: &Path, pairs: &str, of: &[&str]) -> Vec<f64> {
    let text = stdout_of(
        folder,
        &[&["score", "--device", "cpu", "--dtype", "f32", "--data", pairs, "--json"], of].concat(),
    );
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines
        .flat_map(|line| {
            ["chosen", "rejected"].map(|side| line[side]["logp_sum"].as_f64().expect("a number"))
        })
        .collect()
}

#[test]
fn a_merged_folder_scores_like_the_model_with_its_adapter() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (model, pairs) = (
        golden.join("models/llama").display().to_string(),
        golden.join("trl/pairs.jsonl").display().to_string(),
    );
    let train = |adapter: &str, extra: &[&str]| {
        let run = [
            "run",
            "--no-eval",
            "--device",
            "cpu",
            "--model",
            &model,
            "--dataset",
            &pairs,
            "--adapter",
            adapter,
            "--out",
            adapter,
        ];
        let rate =
            ["--set", "train.lr=5e-3", "--set", "train.warmup=0", "--set", "train.max_pairs=16"];
        stdout_of(dir.path(), &[&run[..], &rate, extra].concat());
    };
    let scores = |of: &[&str]| scores(dir.path(), &pairs, of);
    let base = scores(&["--model", &model]);
    for (adapter, extra) in [
        ("lora", &["--set", "adapter.target_modules=all-linear"][..]),
        ("hra", &[]),
        ("ia3", &["--set", "train.lr=3e-2"]),
    ] {
        train(adapter, extra);
        let merged = format!("{adapter}-merged");
        let files = stdout_of(dir.path(), &["export", adapter, "--merge", "--out", &merged]);
        assert!(
            files.contains("config.json")
                && files.contains("model.safetensors")
                && files.contains("tokenizer.json"),
            "{files}"
        );
        let with = scores(&["--model", &model, "--load-adapter", &format!("{adapter}/adapter")]);
        let merged_scores = scores(&["--model", &merged]);
        for ((with, merged), base) in with.iter().zip(&merged_scores).zip(&base) {
            assert!((with - merged).abs() < 1e-4 * with.abs(), "{adapter}: {with} {merged}");
            assert!((with - base).abs() > 1e-3, "{adapter} changes nothing");
        }
    }

    // The shards contain the same model. A shard is larger than the limit only if it consists of a
    // single large tensor.
    stdout_of(
        dir.path(),
        &["export", "lora/adapter", "--merge", "--out", "pieces", "--shard", "0.00005"],
    );
    let index: Value = serde_json::from_slice(
        &std::fs::read(dir.path().join("pieces/model.safetensors.index.json")).expect("an index"),
    )
    .expect("JSON");
    let shards = index["weight_map"]
        .as_object()
        .expect("places")
        .values()
        .map(|v| v.as_str().expect("a file"))
        .collect::<std::collections::BTreeSet<_>>();
    assert!(
        shards.len() > 2
            && shards.iter().all(|file| dir.path().join("pieces").join(file).is_file())
    );
    assert_eq!(scores(&["--model", "pieces"]), scores(&["--model", "lora-merged"]));

    // In bf16, the file is half as large and the model still loads.
    stdout_of(dir.path(), &["export", "lora", "--merge", "--out", "half", "--dtype", "bf16"]);
    let size = |of: &str| {
        std::fs::metadata(dir.path().join(of).join("model.safetensors")).expect("weights").len()
    };
    assert!(size("half") * 2 < size("lora-merged") + 8192);
    let config: Value = serde_json::from_slice(
        &std::fs::read(dir.path().join("half/config.json")).expect("a configuration"),
    )
    .expect("JSON");
    assert_eq!(config["dtype"], "bfloat16");

    assert!(
        error(dir.path(), &["export", "lora", "--merge", "--out", "half"])
            .contains("`half` already exists")
    );
    train("loreft", &["--intervention", "sft"]);
    assert!(
        error(dir.path(), &["export", "loreft", "--merge", "--out", "no"])
            .contains("so it cannot be merged into the weights")
    );
    assert!(!dir.path().join("no").exists());
    assert!(
        error(dir.path(), &["export", "nothing", "--merge", "--out", "no"])
            .contains("there is neither a run nor an adapter in `nothing`")
    );
}

#[test]
fn adapted_parts_are_merged_into_their_fused_module() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let pairs = golden.join("trl/pairs.jsonl").display().to_string();
    let scores = |of: &[&str]| scores(dir.path(), &pairs, of);
    for (name, targets) in [
        ("phi3", r#"["qkv_proj.q_proj", "gate_up_proj.up_proj"]"#),
        ("gpt_neox", r#"["query_key_value.k_proj"]"#),
        ("gpt2", r#"["c_attn.k_proj", "mlp.c_proj"]"#),
    ] {
        let model = golden.join("models").join(name).display().to_string();
        let base = scores(&["--model", &model]);
        for adapter in ["lora", "hra"] {
            let run = format!("{name}-{adapter}");
            let targets = format!("adapter.target_modules={targets}");
            let args = [
                "run",
                "--no-eval",
                "--device",
                "cpu",
                "--model",
                &model,
                "--dataset",
                &pairs,
                "--adapter",
                adapter,
                "--out",
                &run,
                "--set",
                &targets,
            ];
            stdout_of(
                dir.path(),
                &[
                    &args[..],
                    &[
                        "--set",
                        "train.lr=5e-3",
                        "--set",
                        "train.warmup=0",
                        "--set",
                        "train.max_pairs=16",
                    ],
                ]
                .concat(),
            );
            let with = scores(&["--model", &model, "--load-adapter", &format!("{run}/adapter")]);
            let merged = format!("{run}-merged");
            stdout_of(dir.path(), &["export", &run, "--merge", "--out", &merged]);
            for ((with, merged), base) in with.iter().zip(scores(&["--model", &merged])).zip(&base)
            {
                assert!((with - merged).abs() < 1e-4 * with.abs(), "{run}: {with} {merged}");
                assert!((with - base).abs() > 1e-4, "{run} changes nothing");
            }
        }
    }
}

#[test]
fn an_exported_tokenizer_gives_the_same_ids_and_chats() {
    let golden = golden::own();
    use reprpo_core::text::Tokenizer;
    let tokenizer = Tokenizer::from_folder(&golden.join("tokenizer")).expect("a tokenizer");
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in tokenizer.files().expect("files") {
        std::fs::write(dir.path().join(name), text).expect("the file is written");
    }
    let again = Tokenizer::from_folder(dir.path()).expect("the same");
    let text = "Evidence, 1234 and opinion\n\t<|im_end|> é 漢字";
    assert_eq!(tokenizer.encode(text).expect("ids"), again.encode(text).expect("ids"));
    assert_eq!(tokenizer.encode_alone(text).expect("ids"), again.encode_alone(text).expect("ids"));
    let chat = [reprpo_core::api::Message::new("user", "Hello")];
    assert_eq!(tokenizer.render_chat(&chat, true).ok(), again.render_chat(&chat, true).ok());
}

#[test]
fn a_model_that_stays_as_stored_trains_and_exports_the_same_bytes() {
    if !crate::docs::has_smollm2() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let pairs = golden::own().join("trl/pairs.jsonl").display().to_string();
    let run = [
        ["run", "--no-eval"],
        ["--device", "cpu"],
        ["--dtype", "bf16"],
        ["--model", "smollm2-135m-instruct"],
        ["--dataset", &pairs],
        ["--intervention", "dpo"],
        ["--adapter", "lora"],
        ["--set", "train.max_pairs=4"],
        ["--set", "train.batch=2"],
        ["--set", "train.warmup=0"],
    ]
    .concat();
    let [dense, stored] =
        [("dense", None), ("stored", Some("--quantize-base"))].map(|(out, flag)| {
            let extra = ["--out", out].into_iter().chain(flag);
            stdout_of(dir.path(), &run.iter().copied().chain(extra).collect::<Vec<_>>());
            let merged = format!("{out}-merged");
            stdout_of(dir.path(), &["export", out, "--merge", "--dtype", "bf16", "--out", &merged]);
            [
                format!("{out}/adapter/adapter_model.safetensors"),
                format!("{merged}/model.safetensors"),
            ]
            .map(|file| std::fs::read(dir.path().join(file)).expect("a file"))
        });
    assert!(dense[0] == stored[0], "the adapters differ");
    assert!(dense[1] == stored[1], "the merged models differ");
}

/// The adapters were saved by PEFT: with full modules, with trained tokens of a tied model, and in
/// a sub-folder.
#[test]
fn a_merged_adapter_of_peft_contains_its_saved_modules() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let pairs = golden.join("trl/pairs.jsonl").display().to_string();
    let scores = |of: &[&str]| scores(dir.path(), &pairs, of);
    let off = |a: &[f64], b: &[f64]| {
        a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
    };
    for (name, base, tied) in [
        ("saved", "llama", false),
        ("tied_head", "qwen3", false),
        ("tokens_tied", "qwen3", true),
        ("excluded", "llama", false),
    ] {
        let model = golden.join("models").join(base).display().to_string();
        let adapter = golden.join("peft_modules").join(name).display().to_string();
        stdout_of(dir.path(), &["export", &adapter, "--model", &model, "--merge", "--out", name]);
        let config = std::fs::read(dir.path().join(name).join("config.json")).expect("a file");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        assert_eq!(config["tie_word_embeddings"], tied, "{name}");
        let with = scores(&["--model", &model, "--load-adapter", &adapter]);
        let merged = scores(&["--model", name]);
        assert!(off(&merged, &with) < 1e-5, "{name}: {}", off(&merged, &with));
        assert!(off(&with, &scores(&["--model", &model])) > 1e-2, "{name} changes nothing");
    }
    let several = golden.join("peft_modules").display().to_string();
    let text = error(dir.path(), &["export", &several, "--merge", "--out", "none"]);
    assert!(text.contains("adapters in sub-folders") && text.contains("choose one"), "{text}");
}
