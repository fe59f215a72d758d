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

#[cfg(target_os = "linux")]
#[test]
fn the_largest_micro_batch_gives_the_same_adapter_as_its_number() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let method =
        ["--intervention", "dpo", "--adapter", "lora", "--set", "adapter.lora_dropout=0.3"];
    let with = |name: &str, sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", *set]).collect::<Vec<_>>();
        let out = dir.path().join(name);
        (adapter(&golden, &out, &[&method[..], &sets].concat()), out)
    };
    let (chosen, out) = with("auto", &["train.batch=auto", "train.accumulate=3"]);
    let config = std::fs::read_to_string(out.join("config.toml")).expect("a configuration");
    assert!(config.contains("\nbatch = 12\naccumulate = 1\n"), "{config}");
    let log = std::fs::read_to_string(out.join("log.txt")).expect("a log");
    let line = "`train.batch` is `auto`: a step of 12 pairs has 1 micro-batch of up to 12 pairs, ";
    assert!(log.contains(line), "{log}");
    let (same, _) = with("number", &["train.batch=12", "train.accumulate=1"]);
    assert!(chosen == same);
}

#[test]
fn a_loss_that_depends_on_the_micro_batch_needs_a_number() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for case in [
        &["--intervention", "dpo", "--set", "intervention.loss_type=aot"][..],
        &["--intervention", "dpo", "--set", "intervention.loss_type=sft"],
        &["--intervention", "dpo", "--set", "intervention.loss_type=[\"sigmoid\", \"sft\"]"],
    ] {
        let out = dir.path().join("run");
        let output = run(&golden, &out, &[case, &["--set", "train.batch=auto"]].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("`train.batch` is `auto`, but the loss of this method depends on"));
        assert!(text.contains("hint: set `train.batch` to a number") && !out.exists(), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_error_about_missing_memory_names_the_pass_its_size_and_the_settings() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (dir.path().join("long.jsonl"), dir.path().join("run"));
    let pair = serde_json::json!({ "prompt": "a b ".repeat(6000), "chosen": "c", "rejected": "d" });
    std::fs::write(&data, format!("{pair}\n{pair}\n")).expect("the file is written");
    // The attention weights of a prompt of n tokens have n² elements for each head.
    let binary = assert_cmd::cargo::cargo_bin("reprpo");
    let refused = |intervention: &str| {
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -v 5000000; exec \"$0\" \"$@\""])
            .arg(&binary)
            .env("OMP_NUM_THREADS", "1")
            .args(["run", "--device", "cpu", "--dtype", "f32", "--no-eval", "--model"])
            .arg(golden.join("models/llama"))
            .arg("--dataset")
            .arg(&data)
            .arg("--out")
            .arg(&out)
            .args(["--intervention", intervention, "--adapter", "lora"])
            .args(["--set", "train.max_length=100000", "--set", "attention=eager"])
            .output()
            .expect("the command runs");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(!out.exists());
        text
    };
    // The first pass of `sft` is the first step, and that of `dpo` computes the reference.
    let of_both =
        ["hint: lower `train.max_length`", "hint: compute in bfloat16 with `--dtype bf16`"];
    let of_a_step = [
        "step 1 failed",
        "memory ran out in micro-batch 1 of 1",
        "GB could not be allocated for 2 pairs",
        "hint: lower `train.batch`",
        "hint: set `train.checkpointing=true`",
    ];
    let of_the_reference = [
        "cannot compute the values of the reference",
        "memory ran out in a pass without gradients",
        "GB could not be allocated for 1 pair with",
    ];
    for (intervention, own) in [("sft", &of_a_step[..]), ("dpo", &of_the_reference)] {
        let text = refused(intervention);
        for part in own.iter().chain(&of_both) {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
