//! Tests the adapter `weight-steering`, which is made of the adapters of two runs.

use super::*;

/// Executes a command in `folder`. The paths in it are relative to this folder.
fn reprpo_at(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    let command = command.env("OMP_NUM_THREADS", "1").current_dir(folder);
    command.args(args).output().expect("the command runs")
}

fn succeeds(folder: &Path, args: &[&str]) -> String {
    let output = reprpo_at(folder, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output)
}

fn fails(folder: &Path, args: &[&str]) -> String {
    let output = reprpo_at(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
    stderr(&output)
}

/// Returns log p(chosen) and log p(rejected) of all training pairs.
fn scores(folder: &Path, pairs: &str, of: &[&str]) -> Vec<[f64; 2]> {
    let args = ["score", "--device", "cpu", "--dtype", "f32", "--data", pairs, "--json"];
    let output = reprpo_at(folder, &[&args, of].concat());
    assert!(output.status.success(), "{of:?}: {}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let side = |line: &Value, side: &str| line[side]["logp_sum"].as_f64().expect("a number");
    lines.map(|line| [side(&line, "chosen"), side(&line, "rejected")]).collect()
}

/// Mean of log p(chosen) − log p(rejected).
fn margin(scores: &[[f64; 2]]) -> f64 {
    scores.iter().map(|[chosen, rejected]| chosen - rejected).sum::<f64>() / scores.len() as f64
}

#[test]
fn two_runs_are_combined_and_the_result_does_not_need_them() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (model, pairs) = (
        golden.join("models/llama").display().to_string(),
        golden.join("trl/pairs.jsonl").display().to_string(),
    );
    for (out, extra) in [
        ("plus", &["--adapter", "lora"][..]),
        ("minus", &["--adapter", "hra", "--set", "train.swap_labels=1"]),
    ] {
        let fixed = ["--intervention", "sft", "--set", "train.epochs=6"];
        let output = run(&golden, &dir.path().join(out), &[&fixed, extra].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let both = ["--set", "adapter.plus=plus", "--set", "adapter.minus=minus/adapter"];
    let steered = |out: &str, coefficient: &str, sources: &[&str]| {
        let fixed = ["run", "--device", "cpu", "--dtype", "f32", "--no-eval"];
        let data = ["--model", &model, "--dataset", &pairs, "--intervention", "none"];
        let adapter = ["--adapter", "weight-steering", "--set", coefficient, "--out", out];
        succeeds(dir.path(), &[&fixed[..], &data, &adapter, sources].concat())
    };
    let log = steered("runs/steered", "adapter.coefficient=1.5", &both);
    assert!(log.contains("6 modules adapted, 0 trainable parameters"), "{log}");
    steered("runs/back", "adapter.coefficient=-1.5", &both);
    steered("runs/plus-only", "adapter.coefficient=1", &both[..2]);
    let config = std::fs::read_to_string(dir.path().join("runs/steered/config.toml"));
    let config = config.expect("a configuration");
    assert!(config.contains("plus = \"../../plus\""), "{config}");

    let adapter = |out: &str| format!("{out}/adapter");
    let scored = |out: &str| {
        let folder = adapter(out);
        scores(dir.path(), &pairs, &["--model", &model, "--load-adapter", &folder])
    };
    let base = scores(dir.path(), &pairs, &["--model", &model]);
    let (forth, back) = (scored("runs/steered"), scored("runs/back"));
    assert!(
        margin(&forth) > margin(&base) + 1.0 && margin(&back) < margin(&base) - 1.0,
        "{} {} {}",
        margin(&back),
        margin(&base),
        margin(&forth)
    );
    for (ours, plus) in scored("runs/plus-only").iter().zip(scored("plus")) {
        assert!((ours[0] - plus[0]).abs() < 1e-4 * plus[0].abs(), "{ours:?} {plus:?}");
    }

    // The run can be repeated from another folder, because its paths are relative to its own.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let run_folder = dir.path().join("runs/steered").display().to_string();
    succeeds(elsewhere.path(), &["reproduce", &run_folder, "--out", "again"]);
    let bytes = |folder: &Path| {
        std::fs::read(folder.join("adapter/adapter_model.safetensors")).expect("an adapter")
    };
    assert!(
        bytes(&elsewhere.path().join("again")) == bytes(&dir.path().join("runs/steered")),
        "the repeated run has another adapter"
    );

    // The saved adapter contains the change.
    for source in ["plus", "minus"] {
        std::fs::remove_dir_all(dir.path().join(source)).expect("the folder is removed");
    }
    assert_eq!(scored("runs/steered"), forth);
    succeeds(elsewhere.path(), &["eval", &run_folder, "--device", "cpu"]);
    succeeds(dir.path(), &["export", "runs/steered", "--merge", "--out", "merged"]);
    let merged = scores(dir.path(), &pairs, &["--model", "merged"]);
    for (merged, forth) in merged.iter().zip(&forth) {
        assert!((merged[0] - forth[0]).abs() < 1e-4 * forth[0].abs(), "{merged:?} {forth:?}");
    }
    let change = fails(dir.path(), &["eval", "runs/steered", "--set", "adapter.coefficient=2"]);
    assert!(change.contains("`adapter.coefficient` is `2` (--set)"), "{change}");
}

#[test]
fn a_combination_that_cannot_be_trained_or_read_is_refused_before_the_folder_exists() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let lora = format!("adapter.plus={}", golden.join("peft/lora").display());
    for (extra, expected) in [
        (
            &["--set", &lora, "--intervention", "dpo"][..],
            "the adapter `weight-steering` has no trainable parameters, but the intervention \
                `dpo` trains\n\nhint: add `--intervention none`",
        ),
        (&["--intervention", "none"], "`adapter.plus` is not set, but a new adapter of type"),
        (
            &["--intervention", "none", "--set", "adapter.plus=missing"],
            "`adapter.plus` is `missing` (--set), but this value cannot be used\n  because the \
                folder `missing` does not exist",
        ),
        (
            &[
                "--intervention",
                "none",
                "--set",
                &lora,
                "--set",
                "adapter.target_modules=[\"o_proj\"]",
            ],
            "selects `model.layers.0.self_attn.o_proj`, which was not changed by the adapter in \
                `adapter.plus`",
        ),
    ] {
        let out = dir.path().join("refused");
        let all = [&["--adapter", "weight-steering"], extra].concat();
        let output = run(&golden, &out, &all);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{extra:?}: {text}");
        assert!(text.contains(expected), "{extra:?}: {text}");
        assert!(!out.exists(), "{extra:?}");
    }
}

#[test]
fn an_adapter_of_another_base_model_causes_a_warning() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let plus = dir.path().join("plus");
    let output = run(&golden, &plus, &["--set", "train.epochs=1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // A model with tensors of the same shapes, but another epsilon in its norms.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    for entry in std::fs::read_dir(golden.join("models/llama")).expect("the model") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, other.join(path.file_name().expect("a name"))).expect("a copy");
    }
    let config = std::fs::read_to_string(other.join("config.json")).expect("a configuration");
    let changed = config.replace("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-03");
    assert_ne!(config, changed);
    std::fs::write(other.join("config.json"), changed).expect("the file is written");
    let source = format!("adapter.plus={}", plus.display());
    let args = ["--intervention", "none", "--adapter", "weight-steering", "--set", &source];
    for (model, warns) in [(golden.join("models/llama"), false), (other, true)] {
        let model = model.display().to_string();
        let out = dir.path().join(format!("warns-{warns}"));
        let output = run(&golden, &out, &[&args[..], &["--model", &model]].concat());
        let text = stderr(&output);
        assert!(output.status.success(), "{text}");
        assert_eq!(text.contains("which is a different model"), warns, "{text}");
    }
}
