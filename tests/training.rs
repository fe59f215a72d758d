//! Complete training runs of the command on tiny models.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

use crate::{golden, json, metrics, reprpo, stderr};

/// Executes `reprpo run` on the tiny Llama model and the golden pairs.
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
    command
        .arg("--dataset")
        .arg(golden.join("trl/pairs.jsonl"))
        .arg("--out")
        .arg(out)
        .args(extra)
        .output()
        .expect("the command runs")
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
fn the_loss_of_every_method_falls() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let original = &["--set", "intervention.variant=original"][..];
    // With a logarithm, the retain term starts at its minimum and outweighs the reroute term unless
    // α is small.
    let logarithm_only =
        &["--set", "intervention.variant=original", "--set", "intervention.alpha=0"][..];
    let reroute = &[
        "--set",
        "intervention.transform_in=reroute",
        "--set",
        "intervention.log=true",
        "--set",
        "intervention.alpha=0.01",
        "--set",
        "tap.pooling=common",
        "--transform",
        "ortho",
    ][..];
    let unbounded = &["--set", "intervention.loss_type=unbounded"][..];
    let several = &[
        "--set",
        "intervention.loss_type=[\"sigmoid\", \"sft\"]",
        "--set",
        "intervention.loss_weights=[1, 0.5]",
    ][..];
    for (i, (name, extra)) in [
        ("dpo", unbounded),
        ("dpo", several),
        ("mse", &[]),
        ("mse", reroute),
        ("mse", logarithm_only),
        ("rank", &[]),
        ("rank", original),
        ("prefvec", original),
        ("rr", &[]),
        ("sft", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.path().join(i.to_string());
        let args = [
            "--intervention",
            name,
            "--set",
            "train.epochs=4",
            "--set",
            "train.batch=8",
            "--set",
            "train.accumulate=1",
            "--set",
            "train.shuffle=false",
        ];
        let output = run(&golden, &out, &[&args[..], extra].concat());
        assert!(
            output.status.success(),
            "{name} {extra:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = metrics(&out);
        // The first and the last epoch contain the same pairs.
        let sum = |lines: &[Value]| lines.iter().map(|l| number(l, "loss")).sum::<f64>();
        let (first, last) = (sum(&lines[..3]), sum(&lines[lines.len() - 3..]));
        assert!(last < first, "{name} {extra:?}: {first} then {last}");
    }
}

#[test]
fn a_pair_with_equal_completions_is_excluded_from_the_loss_and_counted() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        format!(
            "{}\n",
            serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        )
    };
    let plain = [
        pair("Name a fruit that is red.", " An apple is red.", " The sky."),
        pair("How many legs has a spider?", " It has eight legs.", " It has four legs."),
        pair("What is two plus three?", " Five.", " Seven, I think."),
    ]
    .concat();
    let equal = pair("Where do fish live?", " In water.", " In water.");
    // These two completions are identical up to the 36th token.
    let cut = pair(
        "Name a fruit that is red.",
        " An apple is red, and so is a cherry when it is ripe.",
        " An apple is red, and so is a cherry when it is blue.",
    );
    for method in ["mse", "rank", "prefvec"] {
        let losses = |name: &str, text: &str, extra: &[&str]| {
            let (data, out) = (
                dir.path().join(format!("{method}-{name}.jsonl")),
                dir.path().join(format!("{method}-{name}")),
            );
            std::fs::write(&data, text).expect("the file is written");
            let mut command = Command::cargo_bin("reprpo").expect("the binary");
            command.env("OMP_NUM_THREADS", "1").args([
                "run",
                "--dtype",
                "f32",
                "--device",
                "cpu",
                "--no-eval",
                "--layers",
                "1,2",
                "--intervention",
                method,
            ]);
            command
                .arg("--model")
                .arg(golden.join("models/llama"))
                .arg("--dataset")
                .arg(&data)
                .arg("--out")
                .arg(&out);
            command.args(
                [
                    "train.warmup=0",
                    // Adam takes steps of this size even if a gradient is only a rounding error,
                    // so a larger learning rate would separate the runs.
                    "train.lr=5e-4",
                    "train.epochs=4",
                    "train.shuffle=false",
                    "train.schedule=constant",
                ]
                .map(|s| ["--set", s])
                .concat(),
            );
            let output = command.args(extra).output().expect("the command runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{method}, {name}: {text}");
            let log = std::fs::read_to_string(out.join("log.txt")).expect("a log");
            (metrics(&out).iter().map(|l| number(l, "loss")).collect::<Vec<_>>(), text, log)
        };
        let (without, quiet, _) = losses("plain", &plain, &[]);
        assert!(!quiet.contains("left out of the loss"), "{method}: {quiet}");
        let short = ["--set", "train.max_length=36"];
        for (name, text, extra) in [
            ("equal", format!("{plain}{equal}"), &[][..]),
            ("cut", format!("{cut}{plain}"), &short),
        ] {
            let (with, text, log) = losses(name, &text, extra);
            for (a, b) in with.iter().zip(&without) {
                // The tolerance allows for rounding in float32, which depends on the size of the
                // batch.
                assert!((a - b).abs() < 1e-3, "{method}, {name}: {with:?} {without:?}");
            }
            for text in [text, log] {
                assert!(
                    text.contains(
                        "warning: 4 of the 16 pairs seen were left out of the loss: \
                        each has no preference direction"
                    ),
                    "{method}, {name}: {text}"
                );
            }
        }
    }
}

#[test]
fn seeded_noise_perturbs_a_flat_start_and_is_logged() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let output = run(
            &golden,
            &out,
            &[&["--set", "train.epochs=10", "--set", "train.schedule=constant"], extra].concat(),
        );
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        (
            std::fs::read(out.join("adapter/adapter_model.safetensors")).expect("an adapter"),
            metrics(&out),
            text,
        )
    };
    for adapter in ["lora", "hra"] {
        let rr = ["--intervention", "rr", "--adapter", adapter];
        let ((bytes, lines, text), (again, ..)) =
            (of(&format!("{adapter}-a"), &rr), of(&format!("{adapter}-b"), &rr));
        assert!(
            text.contains(
                "the loss is flat at the reference, so training starts from a perturbed adapter: \
            noise with standard deviation 0.01 "
            ),
            "{text}"
        );
        assert_eq!(bytes, again);
        // The rejected states turn away from the reference; without the noise they would not move.
        let reroute = |l: &Value| number(l, "rr/reroute");
        assert!(
            reroute(&lines[0]) > 0.9 && reroute(&lines[lines.len() - 1]) < 0.7,
            "{adapter}: {} then {}",
            lines[0],
            lines[lines.len() - 1]
        );
        let (other, ..) = of(&format!("{adapter}-c"), &[&rr[..], &["--seed", "5"]].concat());
        assert_ne!(bytes, other);
    }
    assert!(!of("dpo", &["--intervention", "dpo"]).2.contains("flat"));
}

#[test]
fn a_run_that_learned_nothing_warns_in_its_last_lines() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let last = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let output = run(&golden, &out, extra);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let log = std::fs::read_to_string(out.join("log.txt")).expect("a log");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // The last line on the terminal names the run's folder; the log does not contain this line.
        let lines = |text: &str, skip: usize| {
            text.lines().rev().skip(skip).take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(&text, 1), lines(&log, 0));
        lines(&log, 0)
    };
    let unmoved = last(
        "unmoved",
        &["--intervention", "dpo", "--set", "train.lr=1e-12", "--set", "train.epochs=3"],
    );
    assert!(
        unmoved[0].starts_with("warning: the margin did not move: `rewards/margins` was "),
        "{unmoved:?}"
    );
    // The retain term of the original variant starts at its minimum, so the loss can only rise.
    let rising = last(
        "rising",
        &[
            "--intervention",
            "mse",
            "--set",
            "intervention.variant=original",
            "--set",
            "train.epochs=3",
        ],
    );
    assert!(
        rising.iter().any(|l| l.starts_with("warning: the loss did not decrease: ")),
        "{rising:?}"
    );
    let learned = last("learned", &["--intervention", "dpo", "--set", "train.epochs=3"]);
    assert!(!learned.iter().any(|l| l.contains("warning")), "{learned:?}");
}

#[test]
fn every_architecture_learns() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let llamas =
        ["llama", "llama_tied_rope3", "mistral", "phi3", "qwen2", "qwen3", "smollm3", "granite"];
    let models =
        ["gemma2", "gemma3_text", "gpt2", "gpt_neox", "olmo2", "olmo3"].into_iter().chain(llamas);
    for model in models.map(|name| golden.join("models").join(name)) {
        let name = model.file_name().expect("a name").to_str().expect("UTF-8");
        for (method, adapter) in [("dpo", "lora"), ("prefvec", "hra")] {
            let out = dir.path().join(format!("{name}-{method}"));
            let judged = ["eval.enabled=true", "eval.max_pairs=1", "eval.completion_tokens=4"]
                .map(|s| ["--set", s])
                .concat();
            learns(
                &golden,
                &out,
                &[
                    &[
                        "--intervention",
                        method,
                        "--adapter",
                        adapter,
                        "--model",
                        model.to_str().expect("UTF-8"),
                    ][..],
                    &judged,
                ]
                .concat(),
            );
            let summary: Value = serde_json::from_slice(
                &std::fs::read(out.join("eval/summary.json")).expect("a summary"),
            )
            .expect("JSON");
            let completions = &summary["completions"]["prompts"][0];
            assert!(
                ["before", "after"]
                    .iter()
                    .all(|when| completions[when]["tokens"] == 4
                        || completions[when]["ended"] == true),
                "{name}, {method}: {summary}"
            );
        }
    }
}

/// Trains for 20 steps, checks that the loss falls, and returns stderr.
fn learns(golden: &Path, out: &Path, extra: &[&str]) -> String {
    // With 20 pairs and 4 pairs per step, the first and the last five steps see the same pairs.
    let sets = [
        "train.batch=4",
        "train.accumulate=1",
        "train.epochs=4",
        "train.max_pairs=20",
        "train.shuffle=false",
    ];
    let output = run(golden, out, &[extra, &sets.map(|s| ["--set", s]).concat()].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{extra:?}: {text}");
    let lines = metrics(out);
    assert_eq!(lines.len(), 20, "{extra:?}");
    let sum = |lines: &[Value]| lines.iter().map(|l| number(l, "loss")).sum::<f64>();
    let (first, last) = (sum(&lines[..5]), sum(&lines[15..]));
    assert!(last < first, "{extra:?}: {first} then {last}");
    text
}

#[test]
fn adapters_on_parts_of_fused_modules_learn() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, part, layers) in [
        ("phi3", "qkv_proj.q_proj", "model.layers"),
        ("gpt_neox", "query_key_value.v_proj", "gpt_neox.layers"),
        ("gpt2", "c_attn.q_proj", "transformer.h"),
    ] {
        let model = golden.join("models").join(name);
        let targets = format!("adapter.target_modules=[\"{part}\"]");
        for (method, adapter) in
            [("dpo", "lora"), ("projgrad", "lora"), ("projbp", "lora"), ("prefvec", "hra")]
        {
            let out = dir.path().join(format!("{name}-{method}"));
            let text = learns(
                &golden,
                &out,
                &[
                    "--intervention",
                    method,
                    "--adapter",
                    adapter,
                    "--model",
                    model.to_str().expect("UTF-8"),
                    "--set",
                    &targets,
                ],
            );
            assert!(text.contains(" parts of modules adapted, "), "{text}");
            // The run warns at its start if PEFT cannot read the adapter.
            assert_eq!(
                text.contains("warning: PEFT cannot read this adapter"),
                adapter == "hra",
                "{text}"
            );
            let tensors = reprpo_core::weights::read_safetensors(
                &out.join("adapter/adapter_model.safetensors"),
            )
            .expect("tensors");
            let whole = part.split_once('.').expect("a part").0;
            let (at, key) =
                if adapter == "hra" { (part, "hra_u") } else { (whole, "lora_B.weight") };
            let wanted = |name: &String| {
                name.starts_with(&format!("base_model.model.{layers}.0."))
                    && name.ends_with(&format!(".{at}.{key}"))
            };
            assert!(tensors.keys().any(wanted), "{:?}", tensors.keys());
        }
    }
}

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

#[cfg(unix)]
#[test]
fn ctrl_c_in_the_evaluation_keeps_the_adapter_and_suggests_eval() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let args = [
        "--dataset",
        "synthetic",
        "--set",
        "train.max_pairs=2",
        "--set",
        "eval.max_pairs=none",
        "--set",
        "eval.tokens=1",
    ];
    let (code, text) = interrupted(&golden, &out, "trained on", &args);
    assert_eq!(code, Some(130), "{text}");
    assert!(
        text.contains("the evaluation was interrupted") && text.contains("hint: run `reprpo eval "),
        "{text}"
    );
    assert!(out.join("adapter/adapter_model.safetensors").is_file());
}

#[cfg(unix)]
#[test]
fn ctrl_c_during_the_completions_keeps_the_adapter() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    // More tokens than the test could wait for; a tiny model does not end its text by itself.
    let args = [
        "--dataset",
        "synthetic",
        "--set",
        "train.max_pairs=2",
        "--set",
        "eval.completion_tokens=1000000",
    ];
    let (code, text) = interrupted(&golden, &out, "trained on", &args);
    assert_eq!(code, Some(130), "{text}");
    assert!(
        text.contains("interrupted after 0 of 4 completions")
            && text.contains("hint: run `reprpo eval "),
        "{text}"
    );
    assert!(out.join("adapter/adapter_model.safetensors").is_file() && !out.join("eval").exists());
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

#[test]
fn a_data_file_that_cannot_be_used_is_named_with_its_line() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let good = r#"{"prompt": "x", "chosen": "y", "rejected": "z"}"#;
    for (name, text, expected) in [
        ("empty.jsonl", String::new(), "`empty.jsonl` has no pairs"),
        ("foreign.jsonl", "hello".to_owned(), "cannot read line 1 of `foreign.jsonl`"),
        ("columns.jsonl", r#"{"question": "x"}"#.to_owned(), "there is no column `chosen`"),
        (
            "line.jsonl",
            format!("{good}\n{good}\n{{\"prompt\": \n{good}\n"),
            "cannot read line 3 of `line.jsonl`",
        ),
        (
            "foreign.parquet",
            "this is not a table".to_owned(),
            "`foreign.parquet` is not a complete parquet file",
        ),
        ("columns.csv", "a,b".to_owned(), "there is no column `chosen`"),
        ("table.xlsx", "a,b".to_owned(), "no dataset can open `table.xlsx`"),
    ] {
        std::fs::write(dir.path().join(name), text).expect("the file is written");
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .current_dir(dir.path())
            .args(["run", "--dataset", name, "--out", "run", "--model"])
            .arg(std::path::absolute(golden.join("models/llama")).expect("a path"));
        let output = command.output().expect("the command runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!out.exists(), "{name}");
    }
}

#[test]
fn a_run_that_cannot_learn_warns() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, warmup, warns) in
        [("warm", "train.warmup=0.03", true), ("cold", "train.warmup=0", false)]
    {
        let output =
            run(&golden, &dir.path().join(name), &["--set", "train.max_pairs=8", "--set", warmup]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.contains("warning: nothing will be learned") == warns,
            "{name}: {text}"
        );
    }
}

#[test]
fn an_unknown_evaluation_split_is_reported_before_training() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    command
        .args(["run", "--set", "eval.splits=[\"tset\"]", "--model"])
        .arg(golden.join("models/llama"))
        .arg("--out")
        .arg(&out);
    let output = command.output().expect("the command runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("unknown split `tset`") && text.contains("did you mean `test`"),
        "{text}"
    );
    assert!(!out.exists());
}

#[test]
fn an_unusable_setting_is_named_and_no_run_folder_is_created() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (out, phi3) = (dir.path().join("run"), golden.join("models/phi3").display().to_string());
    for (extra, expected) in [
        (vec!["--device", "cuda:77"], "the device `cuda:77` is not available"),
        (vec!["--device", "gpu"], "`device` is `gpu`"),
        (vec!["--model", "/no/such/model"], "/no/such/model"),
        (vec!["--intervention", "prefvec", "--layers", "99"], "layer `99`"),
        (vec!["--set", "train.max_length=5"], "no usable pairs"),
        (vec!["--set", "adapter.target_modules=[\"q_pro\"]"], "unknown target module `q_pro`"),
        (
            vec!["--model", &phi3, "--set", "adapter.target_modules=[\"qkv_proj.qproj\"]"],
            "did you mean `qkv_proj.q_proj`?",
        ),
        (
            vec![
                "--model",
                &phi3,
                "--set",
                "adapter.target_modules=[\"qkv_proj.q_proj\", \"v_proj\"]",
            ],
            "qkv_proj` and its part `q_proj`",
        ),
        (vec!["--set", "adapter.rr=8"], "has no field `rr`"),
        (vec!["--init-adapter", "/no/such/adapter"], "/no/such/adapter"),
        (vec!["--set", "adapter.rank_pattern={\"q_porj\"=4}"], "did you mean `q_proj`?"),
        (
            vec!["--set", "adapter.target_modules=q_proj"],
            "did you mean `adapter.target_modules=[\"q_proj\"]` or \
                `adapter.target_modules=.*q_proj`?",
        ),
        (
            vec!["--set", "adapter.target_modules=q_proj,v_proj"],
            "`adapter.target_modules=[\"q_proj\", \"v_proj\"]`",
        ),
        (
            vec!["--adapter", "hra", "--set", "adapter.layers_to_transform=[0, 7]"],
            "`adapter.layers_to_transform` contains 7",
        ),
    ] {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .args(["run", "--no-eval"])
            .arg("--dataset")
            .arg(golden.join("trl/pairs.jsonl"))
            .arg("--out")
            .arg(&out);
        if !extra.contains(&"--model") {
            command.arg("--model").arg(golden.join("models/llama"));
        }
        let output = command.args(&extra).output().expect("the command runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{extra:?}: {text}");
        assert!(text.contains(expected), "{extra:?}: {text}");
        assert!(!out.exists(), "{extra:?}");
    }
}

#[test]
fn a_sweep_runs_every_combination_and_resumes_where_it_stopped() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let sweep = |out: &str, extra: &[&str]| {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command.env("OMP_NUM_THREADS", "1").current_dir(&dir).args([
            "sweep",
            "--json",
            "--no-eval",
            "--set",
            "train.epochs=2",
            "--set",
            "train.lr=2e-3",
            "--out",
            out,
        ]);
        command
            .arg("--model")
            .arg(golden.join("models/llama"))
            .arg("--dataset")
            .arg(golden.join("trl/pairs.jsonl"))
            .args(extra)
            .output()
            .expect("the command runs")
    };
    let over = ["--over", "intervention=dpo,prefvec", "--over", "adapter=lora,hra"];
    let output = sweep("grid", &over);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(rows.len(), 4);
    for row in &rows {
        let loss = row["loss"].as_array().expect("two losses");
        assert!(loss[1].as_f64() < loss[0].as_f64(), "{row}");
    }
    assert!(
        dir.path().join("grid/prefvec-hra/adapter/adapter_model.safetensors").is_file()
            && dir.path().join("grid/summary.md").is_file()
    );

    std::fs::remove_dir_all(dir.path().join("grid/dpo-hra")).expect("the file exists");
    let again = sweep("grid", &over);
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && text.matches("already finished").count() == 3, "{text}");
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&again.stdout).expect("JSON"), rows);

    // Sweeps generate sample completions only if `eval.completions` is set.
    let config = |run: &str| {
        std::fs::read_to_string(dir.path().join(run).join("config.toml")).expect("a configuration")
    };
    assert!(config("grid/dpo-lora").contains("\ncompletions = 0\n"), "{}", config("grid/dpo-lora"));
    assert!(
        sweep("completions", &["--over", "adapter=lora", "--set", "eval.completions=2"])
            .status
            .success()
    );
    assert!(
        config("completions/lora").contains("\ncompletions = 2\n"),
        "{}",
        config("completions/lora")
    );

    // An error in the last combination is found before the first one runs.
    let mistake = sweep("mistake", &["--over", "intervention=dpo,prefvek"]);
    assert_eq!(mistake.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&mistake.stderr).contains("did you mean `prefvec`?")
            && !dir.path().join("mistake").exists()
    );
}

/// A transform that can scale and rotate the states, so that training it changes the loss.
const LEARNED_TRANSFORM: [&str; 8] = [
    "--transform",
    "ether",
    "--set",
    "transform.form=plus",
    "--set",
    "transform.blocks=2",
    "--set",
    "transform.reduce=4",
];
/// An intervention that reads the transformed states.
const STATE_READER: [&str; 4] = ["--intervention", "prefvec", "--layers", "1,2"];

fn trained(
    golden: &Path,
    out: &Path,
    extra: &[&str],
) -> std::collections::BTreeMap<String, tch::Tensor> {
    let output = run(
        golden,
        out,
        &[&LEARNED_TRANSFORM[..], &STATE_READER[..], &["--set", "train.epochs=3"], extra].concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    reprpo_core::weights::read_safetensors(&out.join("transform/transform.safetensors"))
        .expect("tensors")
        .into_iter()
        .collect()
}

#[test]
fn a_transform_trains_at_its_own_learning_rate_or_stays_fixed() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str, extra: &[&str]| trained(&golden, &dir.path().join(name), extra);
    let frozen = of("frozen", &["--set", "train.transform=false"]);
    assert_eq!(
        frozen.keys().collect::<Vec<_>>(),
        ["0.linear", "0.u", "0.w", "1.linear", "1.u", "1.w"]
    );
    let moved = |extra: &[&str]| {
        let values = of(&format!("{extra:?}").replace(['/', ' '], ""), extra);
        values
            .iter()
            .map(|(name, t)| (t - &frozen[name]).abs().max().double_value(&[]))
            .fold(0.0, f64::max)
    };
    let (slow, same, fast) = (
        moved(&["--set", "train.transform_lr=1e-9"]),
        moved(&[]),
        moved(&["--set", "train.transform_lr=5e-2"]),
    );
    assert!(slow < 1e-6 && same > 1e-3 && fast > 5.0 * same, "{slow:e} {same:e} {fast:e}");
    let shared = of("shared", &["--set", "train.share_transform=true"]);
    assert_eq!(shared.keys().collect::<Vec<_>>(), ["0.linear", "0.u", "0.w"]);
    let bytes = |name: &str| {
        std::fs::read(dir.path().join(name).join("transform/transform.safetensors"))
            .expect("tensors")
    };
    of("again", &["--set", "train.share_transform=true"]);
    assert_eq!(bytes("shared"), bytes("again"));
}

#[test]
fn training_only_the_transform_does_not_lower_the_loss() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    trained(&golden, &out, &["--set", "train.lr=1e-12", "--set", "train.transform_lr=5e-2"]);
    let lines = metrics(&out);
    let (first, last) = (number(&lines[0], "loss"), number(&lines[lines.len() - 1], "loss"));
    assert!((first - last).abs() < 1e-3, "{first} {last}");
}

#[test]
fn a_run_starts_from_the_saved_transforms_of_another() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    trained(&golden, &dir.path().join("first"), &[]);
    let saved = dir.path().join("first/transform");
    let from = ["--init-transform", saved.to_str().expect("UTF-8")];
    trained(
        &golden,
        &dir.path().join("second"),
        &[&from[..], &["--set", "train.transform=false"]].concat(),
    );
    let bytes = |name: &str, file: &str| {
        std::fs::read(dir.path().join(name).join("transform").join(file)).expect("a file")
    };
    for file in ["transform.safetensors", "transform_config.json"] {
        assert_eq!(bytes("first", file), bytes("second", file), "{file}");
    }
    let saved = "contains `ether` with form = plus, blocks = 2, reduce = 4, but this run uses ";
    let taps = "contains separate transforms for the taps `hidden_states.1`, `hidden_states.2`, \
        but this run uses ";
    for (args, expected) in [
        ([&STATE_READER[..], &["--transform", "none"]].concat(), format!("{saved}`none`")),
        (
            [&STATE_READER[..], &LEARNED_TRANSFORM, &["--set", "transform.blocks=1"]].concat(),
            format!("{saved}`ether` with form = plus, blocks = 1"),
        ),
        (
            [&LEARNED_TRANSFORM[..], &["--intervention", "prefvec", "--layers", "0,2"]].concat(),
            format!("{taps}separate transforms for the taps `hidden_states.0`"),
        ),
        (
            [&STATE_READER[..], &LEARNED_TRANSFORM, &["--set", "train.share_transform=true"]]
                .concat(),
            format!("{taps}shared transforms"),
        ),
        (
            [&LEARNED_TRANSFORM[..], &["--intervention", "dpo"]].concat(),
            "but the intervention `dpo` reads no states".to_owned(),
        ),
        (
            [&STATE_READER[..], &["--set", "init_transform=/no/such/folder"]].concat(),
            "/no/such/folder".to_owned(),
        ),
    ] {
        let out = dir.path().join("refused");
        let output = run(&golden, &out, &[&from[..], &args].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(&expected), "{args:?}: {text}");
        assert!(!out.exists(), "{args:?}");
    }
}

#[test]
fn every_transform_tap_and_pooling_trains() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, args) in [
        ("suppressed", vec!["--transform", "suppressed", "--layers", "1,2"]),
        (
            "svd",
            vec!["--transform", "svd", "--layers", "1,2", "--set", "train.share_transform=true"],
        ),
        ("out", vec!["--tap", "side-out", "--layers", "-1", "--transform", "ether"]),
        (
            "value",
            vec![
                "--tap",
                "side-out",
                "--layers",
                "-1",
                "--set",
                "tap.modules=[\"v_proj\"]",
                "--set",
                "tap.pooling=common",
            ],
        ),
        (
            "original",
            vec![
                "--tap",
                "side",
                "--layers",
                "-1",
                "--transform",
                "hra",
                "--set",
                "tap.pooling=original",
            ],
        ),
    ] {
        let out = dir.path().join(name);
        let output = run(
            &golden,
            &out,
            &[vec!["--intervention", "prefvec", "--set", "train.epochs=4"], args].concat(),
        );
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let losses: Vec<f64> = metrics(&out).iter().map(|l| number(l, "loss")).collect();
        assert!(
            losses.iter().all(|l| l.is_finite()) && losses[losses.len() - 1] < losses[0],
            "{name}: {losses:?}"
        );
    }
    for (args, expected) in [
        (
            ["--transform", "svd", "--tap", "side", "--layers", "-1"],
            "the transform `svd` needs states of the width of the embeddings, 32, but those at",
        ),
        (
            ["--transform", "suppressed", "--tap", "side", "--layers", "-1"],
            "the transform `suppressed` reads the residual stream",
        ),
    ] {
        let output = run(
            &golden,
            &dir.path().join("refused"),
            &[&["--intervention", "prefvec"], &args[..]].concat(),
        );
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(expected),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn a_rotation_does_not_change_a_loss_of_lengths_and_angles() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let losses = |transform: &str| {
        let out = dir.path().join(transform);
        let output = run(
            &golden,
            &out,
            &[
                "--intervention",
                "prefvec",
                "--layers",
                "1,2",
                "--transform",
                transform,
                "--set",
                "train.clip=0",
            ],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        metrics(&out).iter().map(|l| number(l, "loss")).collect::<Vec<_>>()
    };
    let plain = losses("none");
    for turned in ["ortho", "ether"].map(losses) {
        assert!(
            plain.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-4),
            "{plain:?} {turned:?}"
        );
    }
}

/// The reference of a run that starts from a saved adapter is that adapter, as in TRL, or with
/// `train.reference=base` the base model.
#[test]
fn a_run_that_starts_from_an_adapter_uses_it_as_the_reference() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let first = dir.path().join("first");
    let output = run(&golden, &first, &["--set", "train.epochs=2", "--seed", "3"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let adapter = first.join("adapter");
    let margin = |out: &str, extra: &[&str]| {
        let out = dir.path().join(out);
        let output = run(
            &golden,
            &out,
            &[&["--init-adapter", adapter.to_str().expect("UTF-8")], extra].concat(),
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (number(&metrics(&out)[0], "rewards/margins"), number(&metrics(&out)[0], "loss"))
    };
    let (start, loss) = margin("start", &[]);
    assert!(start.abs() < 1e-5 && (loss - std::f64::consts::LN_2).abs() < 1e-5, "{start} {loss}");
    let (base, loss) = margin("base", &["--set", "train.reference=base"]);
    assert!(base > 0.01 && loss < std::f64::consts::LN_2, "{base} {loss}");
    // Training the adapter leaves the reference unchanged.
    let (_, end) = margin("again", &["--set", "train.epochs=3"]);
    assert!((end - std::f64::consts::LN_2).abs() < 1e-5, "{end}");
    let lines = metrics(&dir.path().join("again"));
    assert!(number(&lines[lines.len() - 1], "rewards/margins") > 0.0);
}

/// The settings of a saved adapter apply to the new run. A different value for one of them is an
/// error, except for dropout, and `config show` prints the values that the run uses.
#[test]
fn a_run_that_starts_from_an_adapter_keeps_its_settings() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let first = dir.path().join("first");
    let output = run(&golden, &first, &["--set", "adapter.r=4"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let adapter = first.join("adapter").display().to_string();
    let second = |out: &str, extra: &[&str]| {
        run(
            &golden,
            &dir.path().join(out),
            &[&["--init-adapter", adapter.as_str()], extra].concat(),
        )
    };
    for (extra, expected) in [
        (vec!["--adapter", "hra"], "`adapter.name` is `hra` (flag --adapter), but the adapter in"),
        (vec!["--set", "adapter.r=2"], "`adapter.r` is `2` (--set), but the adapter in"),
        (
            vec!["--set", "adapter.target_modules=all-linear"],
            "`adapter.target_modules` is `all-linear` (--set)",
        ),
    ] {
        let output = second("refused", &extra);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{extra:?}: {text}");
        assert!(text.contains(expected), "{extra:?}: {text}");
    }
    let shown = |extra: &[&str]| {
        json(&reprpo(
            &[&["config", "show", "--json", "--init-adapter", adapter.as_str()], extra].concat(),
        ))["adapter"]
            .clone()
    };
    for (out, extra, dropout) in
        [("plain", vec![], 0.0), ("dropout", vec!["--set", "adapter.lora_dropout=0.5"], 0.5)]
    {
        let output = second(out, &extra);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let kept: toml::Table = toml::from_str(
            &std::fs::read_to_string(dir.path().join(out).join("config.toml")).expect("a file"),
        )
        .expect("TOML");
        let shown = shown(&extra);
        assert_eq!((&shown["r"], &shown["lora_dropout"]), (&4.into(), &dropout.into()));
        assert_eq!(
            (kept["adapter"]["r"].as_integer(), kept["adapter"]["lora_dropout"].as_float()),
            (Some(4), Some(dropout))
        );
        let margin = number(&metrics(&dir.path().join(out))[0], "rewards/margins");
        assert_eq!(margin.abs() < 1e-6, dropout == 0.0, "{out}: {margin}");
    }
    // An evaluation uses the run's adapter with its saved settings.
    let judged = |extra: &[&str]| {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .env("OMP_NUM_THREADS", "1")
            .args(["eval", "--device", "cpu"])
            .arg(&first)
            .args(extra)
            .output()
            .expect("the command runs")
    };
    let output = judged(&["--set", "adapter.r=2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("`adapter.r` is `2` (--set)"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = judged(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Like PEFT, the command skips names in a saved adapter that match nothing; it also prints a
/// warning.
#[test]
fn a_saved_adapter_is_used_without_the_names_that_match_nothing() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (from, to) = (golden.join("peft/lora"), dir.path().join("lora"));
    std::fs::create_dir(&to).expect("a folder");
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors"))
        .expect("the file is copied");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["rank_pattern"] = serde_json::json!({ "q_porj": 2 });
    config["target_modules"].as_array_mut().expect("a list").push("w_pack".into());
    std::fs::write(to.join("adapter_config.json"), config.to_string())
        .expect("the file is written");
    let score = |adapter: &Path| {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .env("OMP_NUM_THREADS", "1")
            .args(["score", "--json", "--device", "cpu", "--dtype", "f32"]);
        command
            .arg("--model")
            .arg(golden.join("models/llama"))
            .arg("--data")
            .arg(golden.join("trl/pairs.jsonl"));
        let output = command.arg("--load-adapter").arg(adapter).output().expect("the command runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        (output.stdout, text)
    };
    let ((plain, quiet), (same, warned)) = (score(&from), score(&to));
    assert_eq!(plain, same);
    assert!(!quiet.contains("WARN"), "{quiet}");
    for expected in [
        "unknown target module `w_pack`; this part of the saved adapter is ignored",
        "`q_porj` in `adapter.rank_pattern` matches none",
    ] {
        assert!(warned.contains(expected), "{warned}");
    }
}
