//! Tests runs that are interrupted or fail after they have started.

use super::*;

/// Starts `reprpo run` and sends it SIGINT, as Ctrl-C does, when a line of its stderr contains
/// `sign`.
/// Returns the exit code and stderr.
#[cfg(unix)]
fn interrupted(golden: &Path, out: &Path, sign: &str, extra: &[&str]) -> (Option<i32>, String) {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("reprpo"));
    command
        .env("OMP_NUM_THREADS", "1")
        .args(["run", "--dtype", "f32", "--device", "cpu"])
        .arg("--model")
        .arg(golden.join("models/llama"))
        .arg("--out")
        .arg(out)
        .args(extra);
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command runs");
    let mut text = String::new();
    for line in BufReader::new(child.stderr.take().expect("stderr")).lines() {
        let line = line.expect("text");
        if line.contains(sign) {
            Command::new("kill")
                .args(["-INT", &child.id().to_string()])
                .status()
                .expect("a signal");
        }
        text += &format!("{line}\n");
    }
    (child.wait().expect("the command ends").code(), text)
}

/// Interrupts a run during training, resumes it, and checks that its metrics and `files` equal
/// those of an uninterrupted run.
#[cfg(unix)]
fn assert_resumed_run_equals_an_uninterrupted_one(
    golden: &Path,
    args: &[&str],
    sign: &str,
    files: &[&str],
) {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let data = golden.join("trl/pairs.jsonl");
    let same = [
        "--no-eval",
        "--set",
        "train.warmup=0",
        "--set",
        "train.lr=2e-3",
        "--dataset",
        data.to_str().expect("UTF-8"),
    ];
    let (code, text) = interrupted(golden, &out, sign, &[&same[..], args].concat());
    assert_eq!(code, Some(130), "{text}");
    assert!(
        text.contains("interrupted after step") && text.contains("reprpo run --resume"),
        "{text}"
    );
    let resume = || {
        Command::cargo_bin("reprpo")
            .expect("the binary")
            .env("OMP_NUM_THREADS", "1")
            .args(["run", "--resume"])
            .arg(&out)
            .output()
            .expect("the command runs")
    };
    let output = resume();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let whole = dir.path().join("whole");
    let output = run(golden, &whole, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(metrics(&out), metrics(&whole));
    for file in files {
        assert!(
            std::fs::read(out.join(file)).unwrap() == std::fs::read(whole.join(file)).unwrap(),
            "{file}"
        );
    }
    let again = resume();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("has already finished"),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
}

#[cfg(unix)]
#[test]
fn a_run_resumed_after_ctrl_c_equals_an_uninterrupted_one() {
    let golden = golden::own();
    // Dropout and trained transforms, so that the test covers random numbers and all saved state.
    let args = [
        "--intervention",
        "prefvec",
        "--transform",
        "hra",
        "--layers",
        "1,2",
        "--set",
        "intervention.lambda_dpo=1.0",
    ];
    let args =
        [&args[..], &["--set", "train.epochs=4", "--set", "adapter.lora_dropout=0.1"]].concat();
    let judged = [
        "--set",
        "eval.enabled=true",
        "--set",
        "eval.max_pairs=4",
        "--set",
        "eval.completion_tokens=6",
    ];
    let files = [
        "adapter/adapter_model.safetensors",
        "transform/transform.safetensors",
        "eval/summary.json",
    ];
    assert_resumed_run_equals_an_uninterrupted_one(
        &golden,
        &[&args[..], &judged].concat(),
        "modules adapted",
        &files,
    );
}

/// A saved LoRA adapter has merged the parts of a module into the whole module, but a resumed run
/// needs the separate parts.
#[cfg(unix)]
#[test]
fn ctrl_c_in_training_keeps_the_parts_of_modules_separate() {
    let golden = golden::own();
    let model = format!("model={}", golden.join("models/phi3").display());
    let targets = "adapter.target_modules=[\"qkv_proj.q_proj\", \"qkv_proj.v_proj\"]";
    let args = [
        "--set",
        &model,
        "--set",
        targets,
        "--set",
        "train.epochs=12",
        "--set",
        "adapter.lora_dropout=0.1",
    ];
    assert_resumed_run_equals_an_uninterrupted_one(
        &golden,
        &args,
        "parts of modules adapted",
        &["adapter/adapter_model.safetensors"],
    );
}

/// Interrupts a run on synthetic data after its training. Returns the folder that contains the run
/// `run`, and stderr.
#[cfg(unix)]
fn interrupted_after_training(settings: &[&str]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let mut args = vec!["--dataset", "synthetic", "--set", "train.max_pairs=2"];
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let out = dir.path().join("run");
    let (code, text) = interrupted(&golden::own(), &out, "trained on", &args);
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("hint: run `reprpo eval "), "{text}");
    assert!(out.join("adapter/adapter_model.safetensors").is_file());
    (dir, text)
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_the_evaluation_keeps_the_adapter_and_suggests_eval() {
    let (_, text) = interrupted_after_training(&["eval.max_pairs=none", "eval.tokens=1"]);
    assert!(text.contains("the evaluation was interrupted"), "{text}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_during_the_completions_keeps_the_adapter() {
    // More tokens than the test could wait for; a tiny model does not end its text by itself.
    let (dir, text) = interrupted_after_training(&["eval.completion_tokens=1000000"]);
    assert!(text.contains("interrupted after 0 of 4 completions"), "{text}");
    assert!(!dir.path().join("run/eval").exists());
}

#[test]
fn an_error_after_a_checkpoint_says_that_the_checkpoint_is_kept() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let sets =
        ["--set", "train.lr=1e30", "--set", "train.epochs=3", "--set", "train.checkpoint_every=1"];
    let output =
        run(&golden, &out, &[&["--intervention", "dpo", "--adapter", "lora"][..], &sets].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: step ") && text.contains("the last checkpoint is in"), "{text}");
    assert!(out.join("checkpoints/latest").is_file());
}
