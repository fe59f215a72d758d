//! Tests settings that reduce the memory of training, and errors about missing memory.

use super::*;

/// The bytes of the adapter that a run writes.
fn adapter(golden: &Path, out: &Path, args: &[&str]) -> Vec<u8> {
    let output = run(golden, out, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    std::fs::read(out.join("adapter/adapter_model.safetensors")).expect("an adapter")
}

#[test]
fn checkpointing_gives_the_same_adapter() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    // The micro-batches of a step have different dropout masks.
    let sets = ["train.batch=2", "train.accumulate=2", "train.epochs=2", "train.max_pairs=6"];
    let sets: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let cases: &[&[&str]] = &[
        &["--intervention", "dpo", "--adapter", "lora", "--set", "adapter.lora_dropout=0.3"],
        &["--intervention", "dpo", "--adapter", "lora", "--set", "dtype=bf16"],
        &[
            "--intervention",
            "prefvec",
            "--adapter",
            "hra",
            "--tap",
            "side-in",
            "--layers",
            "0,1",
            "--transform",
            "ether",
        ],
        &["--intervention", "projbp", "--adapter", "lora", "--set", "adapter.lora_dropout=0.1"],
        &["--intervention", "mse", "--adapter", "loreft", "--layers", "1,2"],
    ];
    for (i, case) in cases.iter().enumerate() {
        let args = [case, &sets[..]].concat();
        let plain = adapter(&golden, &dir.path().join(format!("{i}-plain")), &args);
        let (out, args) = (
            dir.path().join(format!("{i}-checkpointing")),
            [&args[..], &["--set", "train.checkpointing=true"]].concat(),
        );
        assert!(adapter(&golden, &out, &args) == plain, "{case:?}");
        assert_eq!(metrics(&out), metrics(&dir.path().join(format!("{i}-plain"))), "{case:?}");
    }
}

#[test]
fn the_dropout_of_a_module_does_not_depend_on_other_modules() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    // B starts at 0, so that the loss of the first step does not depend on dropout. The gradient of
    // B in `v_proj` of the last block only depends on the masks of this module.
    let first_step = |out: &str, targets: &str| {
        let targets = format!("adapter.target_modules={targets}");
        let sets = [
            "adapter.lora_dropout=0.5",
            "train.max_pairs=2",
            "train.epochs=1",
            "train.clip=0",
            &targets,
        ];
        let args: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
        let out = dir.path().join(out);
        adapter(
            &golden,
            &out,
            &[&["--intervention", "dpo", "--adapter", "lora"], &args[..]].concat(),
        );
        let file = out.join("adapter/adapter_model.safetensors");
        let tensors = tch::Tensor::read_safetensors(file).expect("tensors");
        let last =
            |(name, _): &&(String, tch::Tensor)| name.contains("v_proj") && name.contains("lora_B");
        let found = tensors.iter().filter(last).max_by_key(|(name, _)| name);
        found.expect("a tensor").1.shallow_clone()
    };
    let only_v = first_step("only-v", r#"["v_proj"]"#);
    let together = first_step("together", r#"["k_proj", "v_proj"]"#);
    assert!(only_v.abs().max().double_value(&[]) > 0.0 && only_v.equal(&together));
}

/// A run that may use at most `limit` bytes of address space.
#[cfg(target_os = "linux")]
#[test]
fn an_error_about_missing_memory_names_the_step_its_size_and_the_settings() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (dir.path().join("long.jsonl"), dir.path().join("run"));
    let pair = serde_json::json!({ "prompt": "a b ".repeat(6000), "chosen": "c", "rejected": "d" });
    std::fs::write(&data, format!("{pair}\n{pair}\n")).expect("the file is written");
    // The attention weights of a prompt of n tokens have n² elements for each head.
    let binary = assert_cmd::cargo::cargo_bin("reprpo");
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 5000000; exec \"$0\" \"$@\""])
        .arg(binary)
        .env("OMP_NUM_THREADS", "1")
        .args(["run", "--device", "cpu", "--dtype", "f32", "--no-eval", "--model"])
        .arg(golden.join("models/llama"))
        .arg("--dataset")
        .arg(&data)
        .arg("--out")
        .arg(&out)
        .args(["--set", "train.max_length=100000", "--set", "attention=eager"])
        .output()
        .expect("the command runs");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "step 1 failed",
        "memory ran out in micro-batch 1 of 1",
        "GB could not be allocated for 2 pairs",
        "hint: lower `train.batch`",
        "hint: set `train.checkpointing=true`",
        "hint: lower `train.max_length`",
        "hint: compute in bfloat16 with `--dtype bf16`",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!out.exists());
}
