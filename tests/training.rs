//! Complete training runs of the command on tiny models.

mod errors;
mod interruption;
mod learning;
mod memory;
mod saved_adapters;
mod sweep;
mod transforms;
mod weight_steering;

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

use crate::{golden, json, metrics, reprpo, stderr};

/// Executes `reprpo run`, by default on the tiny Llama model and the golden pairs.
fn run(golden: &Path, out: &Path, extra: &[&str]) -> Output {
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    // Tests run in parallel, and threads do not speed up a tiny model.
    command.env("OMP_NUM_THREADS", "1").args([
        "run",
        "--dtype",
        "f32",
        "--device",
        "cpu",
        "--no-eval",
        "--set",
        "train.warmup=0",
        "--set",
        "train.lr=2e-3",
    ]);
    if !extra.contains(&"--model") {
        command.arg("--model").arg(golden.join("models/llama"));
    }
    if !extra.contains(&"--dataset") {
        command.arg("--dataset").arg(golden.join("trl/pairs.jsonl"));
    }
    command.arg("--out").arg(out).args(extra).output().expect("the command runs")
}

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {line}"))
}

#[test]
fn a_trl_run_is_reproduced_step_by_step() {
    for root in golden::roots() {
        assert_trl_run_is_reproduced(&root);
    }
}

fn assert_trl_run_is_reproduced(golden: &Path) {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let init = golden.join("trl/trajectory_init");
    let sets = [
        "train.schedule=linear",
        "train.batch=4",
        "train.accumulate=1",
        "train.epochs=5",
        "train.clip=1.0",
        "train.weight_decay=0",
        "train.shuffle=false",
        "train.max_length=512",
    ];
    let mut args = vec![
        "--intervention",
        "dpo",
        "--adapter",
        "lora",
        "--init-adapter",
        init.to_str().expect("UTF-8"),
    ];
    args.extend(sets.iter().flat_map(|s| ["--set", s]));
    let output = run(golden, &out, &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let text = std::fs::read_to_string(golden.join("trl/trajectory.json")).expect("the trajectory");
    let reference: Value = serde_json::from_str(&text).expect("JSON");
    let reference = reference["steps"].as_array().expect("steps");
    let ours = metrics(&out);
    assert_eq!(ours.len(), reference.len());
    assert!((number(&ours[0], "loss") - std::f64::consts::LN_2).abs() < 1e-6);
    for (a, b) in ours.iter().zip(reference) {
        for (name, tolerance) in [
            ("loss", 1e-4),
            ("grad_norm", 1e-2),
            ("learning_rate", 1e-9),
            ("entropy", 1e-4),
            ("logits/chosen", 1e-4),
            ("logits/rejected", 1e-4),
            ("mean_token_accuracy", 1e-4),
            ("rewards/chosen", 1e-4),
            ("rewards/rejected", 1e-4),
            ("rewards/accuracies", 1e-6),
            ("rewards/margins", 1e-4),
            ("epoch", 1e-6),
            ("num_tokens", 0.5),
        ] {
            let (x, y) = (number(a, name), number(b, name));
            assert!((x - y).abs() <= tolerance, "step {}: {name} is {x}, TRL has {y}", a["step"]);
        }
        for name in ["logps/chosen", "logps/rejected"] {
            let (x, y) = (number(a, name), number(b, name));
            assert!(
                (x - y).abs() <= 1e-5 * y.abs(),
                "step {}: {name} is {x}, TRL has {y}",
                a["step"]
            );
        }
    }
    let read = |path: PathBuf| reprpo_core::weights::read_safetensors(&path).expect("tensors");
    let (ours, theirs) = (
        read(out.join("adapter/adapter_model.safetensors")),
        read(golden.join("trl/trajectory_final/adapter_model.safetensors")),
    );
    assert_eq!(ours.len(), theirs.len());
    for (name, tensor) in &theirs {
        let worst = (tensor - &ours[name]).abs().max().double_value(&[]);
        assert!(worst <= 1e-4, "{name} differs by {worst}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_the_loss_falls() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let runs = ["a", "b"].map(|name| {
        let out = dir.path().join(name);
        let output = run(
            &golden,
            &out,
            &["--intervention", "prefvec", "--adapter", "hra", "--set", "train.epochs=6"],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    });
    let bytes = runs.each_ref().map(|out| {
        std::fs::read(out.join("adapter/adapter_model.safetensors")).expect("an adapter")
    });
    assert_eq!(bytes[0], bytes[1]);
    let lines = metrics(&runs[0]);
    assert!(number(&lines[lines.len() - 1], "loss") < number(&lines[0], "loss"));
}

#[test]
fn a_batch_of_four_equals_four_batches_of_one_accumulated() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str, batch: &str, accumulate: &str| {
        let out = dir.path().join(name);
        let output = run(
            &golden,
            &out,
            &[
                "--intervention",
                "prefvec",
                "--adapter",
                "lora",
                "--set",
                batch,
                "--set",
                accumulate,
            ],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        metrics(&out)
    };
    let (whole, parts) = (
        of("whole", "train.batch=4", "train.accumulate=1"),
        of("parts", "train.batch=1", "train.accumulate=4"),
    );
    assert_eq!(whole.len(), parts.len());
    for (a, b) in whole.iter().zip(&parts) {
        assert!((number(a, "loss") - number(b, "loss")).abs() < 1e-4, "{a}\n{b}");
        assert!((number(a, "grad_norm") - number(b, "grad_norm")).abs() < 1e-2, "{a}\n{b}");
    }
}

/// Trains for ten steps or more and returns the first ten losses.
fn losses(golden: &Path, extra: &[&str]) -> Vec<f64> {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    command
        .args([
            "run",
            "--no-eval",
            "--set",
            "train.epochs=4",
            "--set",
            "train.warmup=0",
            "--set",
            "train.lr=2e-3",
        ])
        .args(extra);
    command
        .arg("--model")
        .arg(golden.join("models/llama"))
        .arg("--dataset")
        .arg(golden.join("trl/pairs.jsonl"))
        .arg("--out")
        .arg(&out);
    let output = command.env("OMP_NUM_THREADS", "1").output().expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    metrics(&out).iter().take(10).map(|line| number(line, "loss")).collect()
}

fn assert_relative_difference(by: f64, ours: &[f64], reference: &[f64]) {
    assert_eq!(ours.len(), reference.len());
    for (step, (a, b)) in ours.iter().zip(reference).enumerate() {
        assert!((a - b).abs() <= by * b.abs().max(1.0), "step {}: {a} instead of {b}", step + 1);
    }
}

#[test]
fn bf16_losses_stay_within_two_per_cent_of_float32() {
    let golden = golden::own();
    for method in ["dpo", "prefvec"] {
        let run = |dtype| {
            losses(&golden, &["--intervention", method, "--device", "cpu", "--dtype", dtype])
        };
        assert_relative_difference(0.02, &run("bf16"), &run("f32"));
    }
}

#[test]
fn a_gpu_gives_the_same_losses_as_the_cpu() {
    let golden = golden::own();
    if !tch::Cuda::is_available() {
        eprintln!("skipped: this machine has no CUDA device");
        return;
    }
    for method in ["dpo", "prefvec"] {
        let run = |device, dtype| {
            losses(&golden, &["--intervention", method, "--device", device, "--dtype", dtype])
        };
        let reference = run("cpu", "f32");
        assert_relative_difference(1e-4, &run("cuda:0", "f32"), &reference);
        assert_relative_difference(0.02, &run("cuda:0", "bf16"), &reference);
    }
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_leaves_no_files() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let output = run(
        &golden,
        &out,
        &[
            "--intervention",
            "dpo",
            "--adapter",
            "lora",
            "--set",
            "train.lr=1e30",
            "--set",
            "train.epochs=3",
        ],
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the loss is") || text.contains("the gradient norm is"), "{text}");
    assert!(!out.exists());
}

#[test]
fn a_method_without_a_loss_saves_the_initial_adapter_unchanged() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (init, out) = (golden.join("trl/adapter"), dir.path().join("run"));
    let output = run(
        &golden,
        &out,
        &["--intervention", "none", "--init-adapter", init.to_str().expect("UTF-8")],
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("nothing is trained"), "{text}");
    assert!(
        std::fs::read_to_string(out.join("log.txt")).expect("a log").contains("nothing is trained")
    );
    assert!(metrics(&out).is_empty());
    let bytes =
        |dir: PathBuf| std::fs::read(dir.join("adapter_model.safetensors")).expect("an adapter");
    assert!(bytes(out.join("adapter")) == bytes(init));
}

#[test]
fn metrics_that_are_only_logged_can_be_computed_less_often() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |every: usize| {
        let out = dir.path().join(format!("every-{every}"));
        let set = format!("train.metrics_every={every}");
        let args = ["--intervention", "dpo", "--adapter", "lora", "--set", "train.accumulate=1"];
        let output =
            run(&golden, &out, &[&args[..], &["--set", "train.batch=1", "--set", &set]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (metrics(&out), std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap())
    };
    let ((all, adapter), (some, same)) = (of(1), of(3));
    assert!(adapter == same, "the adapters differ");
    assert!(all.len() > 4, "{} steps", all.len());
    for (i, (line, other)) in all.iter().zip(&some).enumerate() {
        let logged = i == 0 || i + 1 == all.len() || (i + 1) % 3 == 0;
        for (name, value) in line.as_object().expect("an object") {
            let only_logged = ["logps/", "logits/", "entropy", "mean_token_accuracy"]
                .iter()
                .any(|beginning| name.starts_with(beginning));
            let expected = (logged || !only_logged).then_some(value);
            assert_eq!(other.get(name), expected, "step {}: {name}", i + 1);
        }
    }
}
