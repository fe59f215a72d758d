//! Whole training runs on tiny models, through the command.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

use crate::{golden, json, metrics, reprpo, stderr};

/// `reprpo run` on the tiny Llama model and its pairs.
fn run(golden: &Path, out: &Path, extra: &[&str]) -> Output {
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    // Tests run side by side, and a small model gains nothing from threads.
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
        .expect("it runs")
}

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {line}"))
}

#[test]
fn a_run_of_trl_is_reproduced_step_by_step() {
    for root in golden::roots() {
        the_run_of_trl_is_reproduced_in(&root);
    }
}

fn the_run_of_trl_is_reproduced_in(golden: &Path) {
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

/// The losses of a run of ten steps.
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
    let output = command.env("OMP_NUM_THREADS", "1").output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    metrics(&out).iter().take(10).map(|line| number(line, "loss")).collect()
}

fn differ_at_most(by: f64, ours: &[f64], reference: &[f64]) {
    assert_eq!(ours.len(), reference.len());
    for (step, (a, b)) in ours.iter().zip(reference).enumerate() {
        assert!((a - b).abs() <= by * b.abs().max(1.0), "step {}: {a} against {b}", step + 1);
    }
}

#[test]
fn bf16_stays_within_two_per_cent_of_float32() {
    let golden = golden::own();
    for method in ["dpo", "prefvec"] {
        let run = |dtype| {
            losses(&golden, &["--intervention", method, "--device", "cpu", "--dtype", dtype])
        };
        differ_at_most(0.02, &run("bf16"), &run("f32"));
    }
}

#[test]
fn a_card_gives_the_losses_of_the_cpu() {
    let golden = golden::own();
    if !tch::Cuda::is_available() {
        eprintln!("skipped: no CUDA card");
        return;
    }
    for method in ["dpo", "prefvec"] {
        let run = |device, dtype| {
            losses(&golden, &["--intervention", method, "--device", device, "--dtype", dtype])
        };
        let reference = run("cpu", "f32");
        differ_at_most(1e-4, &run("cuda:0", "f32"), &reference);
        differ_at_most(0.02, &run("cuda:0", "bf16"), &reference);
    }
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_leaves_nothing() {
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
    assert!(text.contains("the loss is") || text.contains("the norm of the gradient is"), "{text}");
    assert!(!out.exists());
}

#[test]
fn a_method_that_trains_nothing_saves_its_adapter_as_it_starts() {
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
    // With a logarithm the retain term begins at its lowest, and outweighs the other unless α is
    // small.
    let log_of_reroute =
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
        ("mse", log_of_reroute),
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
        // The same pairs in the first and in the last epoch.
        let sum = |lines: &[Value]| lines.iter().map(|l| number(l, "loss")).sum::<f64>();
        let (first, last) = (sum(&lines[..3]), sum(&lines[lines.len() - 3..]));
        assert!(last < first, "{name} {extra:?}: {first} then {last}");
    }
}

#[test]
fn a_pair_of_equal_completions_teaches_nothing_and_is_counted() {
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
            std::fs::write(&data, text).expect("written");
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
            let output = command.args(extra).output().expect("it runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{method}, {name}: {text}");
            let log = std::fs::read_to_string(out.join("log.txt")).expect("a log");
            (metrics(&out).iter().map(|l| number(l, "loss")).collect::<Vec<_>>(), text, log)
        };
        let (without, quiet, _) = losses("plain", &plain, &[]);
        assert!(!quiet.contains("did not count"), "{method}: {quiet}");
        let short = ["--set", "train.max_length=36"];
        for (name, text, extra) in [
            ("equal", format!("{plain}{equal}"), &[][..]),
            ("cut", format!("{cut}{plain}"), &short),
        ] {
            let (with, said, log) = losses(name, &text, extra);
            for (a, b) in with.iter().zip(&without) {
                // In float32, whose rounding depends on the batch.
                assert!((a - b).abs() < 1e-3, "{method}, {name}: {with:?} {without:?}");
            }
            for text in [said, log] {
                assert!(
                    text.contains(
                        "warning: 4 of the 16 pairs seen did not count in the loss: \
                        each has no preference direction"
                    ),
                    "{method}, {name}: {text}"
                );
            }
        }
    }
}

#[test]
fn a_flat_start_is_left_by_seeded_noise_that_is_logged() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let output = run(
            &golden,
            &out,
            &[&["--set", "train.epochs=10", "--set", "train.schedule=constant"], extra].concat(),
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (
            std::fs::read(out.join("adapter/adapter_model.safetensors")).expect("an adapter"),
            metrics(&out),
            said,
        )
    };
    for adapter in ["lora", "hra"] {
        let rr = ["--intervention", "rr", "--adapter", adapter];
        let ((bytes, lines, said), (again, ..)) =
            (of(&format!("{adapter}-a"), &rr), of(&format!("{adapter}-b"), &rr));
        assert!(
            said.contains(
                "the loss is flat at the reference, so training starts from a perturbed adapter: \
            noise of standard deviation 0.01 "
            ),
            "{said}"
        );
        assert_eq!(bytes, again);
        // The rejected states turn away. Without the noise they would stay where they are.
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
fn a_run_that_learnt_nothing_says_so_in_its_last_lines() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let last = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let output = run(&golden, &out, extra);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let log = std::fs::read_to_string(out.join("log.txt")).expect("a log");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // The very last line on the terminal, which the log does not have, names the run's folder.
        let lines = |text: &str, skip: usize| {
            text.lines().rev().skip(skip).take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(&text, 1), lines(&log, 0));
        lines(&log, 0)
    };
    let still = last(
        "still",
        &["--intervention", "dpo", "--set", "train.lr=1e-12", "--set", "train.epochs=3"],
    );
    assert!(
        still[0].starts_with("warning: the margin did not move: `rewards/margins` was "),
        "{still:?}"
    );
    // The retain term of the original begins at its minimum, so the loss can only rise.
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
        rising.iter().any(|l| l.starts_with("warning: the loss ended no lower than it began: ")),
        "{rising:?}"
    );
    let learnt = last("learnt", &["--intervention", "dpo", "--set", "train.epochs=3"]);
    assert!(!learnt.iter().any(|l| l.contains("warning")), "{learnt:?}");
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
            let said = &summary["completions"]["prompts"][0];
            assert!(
                ["before", "after"]
                    .iter()
                    .all(|when| said[when]["tokens"] == 4 || said[when]["ended"] == true),
                "{name}, {method}: {summary}"
            );
        }
    }
}

/// A run of 20 steps whose loss falls; what it said.
fn learns(golden: &Path, out: &Path, extra: &[&str]) -> String {
    // Four pairs a step of 20 pairs: the first and the last five steps see the same pairs.
    let sets = [
        "train.batch=4",
        "train.accumulate=1",
        "train.epochs=4",
        "train.max_pairs=20",
        "train.shuffle=false",
    ];
    let output = run(golden, out, &[extra, &sets.map(|s| ["--set", s]).concat()].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{extra:?}: {said}");
    let lines = metrics(out);
    assert_eq!(lines.len(), 20, "{extra:?}");
    let sum = |lines: &[Value]| lines.iter().map(|l| number(l, "loss")).sum::<f64>();
    let (first, last) = (sum(&lines[..5]), sum(&lines[15..]));
    assert!(last < first, "{extra:?}: {first} then {last}");
    said
}

#[test]
fn parts_of_fused_modules_learn() {
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
            let said = learns(
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
            assert!(said.contains(" parts of modules adapted, "), "{said}");
            // What PEFT cannot read is said when the run begins.
            assert_eq!(
                said.contains("warning: PEFT cannot read this adapter"),
                adapter == "hra",
                "{said}"
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

/// Starts `reprpo run`, and asks it to stop as Ctrl-C does once its stderr holds `sign`.
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
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
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
    (child.wait().expect("it ends").code(), text)
}

/// Interrupts a run in training and resumes it: it ends as one that was never interrupted, in its
/// metrics and in `files`.
#[cfg(unix)]
fn goes_on_as_if_nothing_had_been(golden: &Path, args: &[&str], sign: &str, files: &[&str]) {
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
            .expect("it runs")
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
        String::from_utf8_lossy(&again.stderr).contains("has ended"),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_training_leaves_a_run_that_goes_on_as_if_nothing_had_been() {
    let golden = golden::own();
    // With dropout and trained transforms, so that chance and everything that is kept take part.
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
    goes_on_as_if_nothing_had_been(
        &golden,
        &[&args[..], &judged].concat(),
        "modules adapted",
        &files,
    );
}

/// On disk LoRA's parts are whole modules, and what a run goes on with are the parts.
#[cfg(unix)]
#[test]
fn ctrl_c_in_training_keeps_parts_of_modules_apart() {
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
    goes_on_as_if_nothing_had_been(
        &golden,
        &args,
        "parts of modules adapted",
        &["adapter/adapter_model.safetensors"],
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_the_evaluation_keeps_the_adapter_and_says_how_to_judge_it() {
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
        text.contains("the evaluation was interrupted") && text.contains("hint: `reprpo eval "),
        "{text}"
    );
    assert!(out.join("adapter/adapter_model.safetensors").is_file());
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_the_completions_keeps_the_adapter() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    // So many tokens that nobody waits for them, and a model that is too small to come to an end.
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
            && text.contains("hint: `reprpo eval "),
        "{text}"
    );
    assert!(out.join("adapter/adapter_model.safetensors").is_file() && !out.join("eval").exists());
}

#[test]
fn an_error_after_a_checkpoint_says_what_is_left() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let sets =
        ["--set", "train.lr=1e30", "--set", "train.epochs=3", "--set", "train.checkpoint_every=1"];
    let output =
        run(&golden, &out, &[&["--intervention", "dpo", "--adapter", "lora"][..], &sets].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: step ") && text.contains("keeps the last checkpoint"), "{text}");
    assert!(out.join("checkpoints/latest").is_file());
}

#[test]
fn a_data_file_that_cannot_be_used_is_named_with_its_line() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let good = r#"{"prompt": "x", "chosen": "y", "rejected": "z"}"#;
    for (name, text, says) in [
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
            "hello, I am no table".to_owned(),
            "`foreign.parquet` is not a complete parquet file",
        ),
        ("columns.csv", "a,b".to_owned(), "there is no column `chosen`"),
        ("table.xlsx", "a,b".to_owned(), "no dataset opens files like `table.xlsx`"),
    ] {
        std::fs::write(dir.path().join(name), text).expect("written");
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .current_dir(dir.path())
            .args(["run", "--dataset", name, "--out", "run", "--model"])
            .arg(std::path::absolute(golden.join("models/llama")).expect("a path"));
        let output = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(says), "{name}: {text}");
        assert!(!out.exists(), "{name}");
    }
}

#[test]
fn a_run_that_cannot_learn_says_so() {
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
fn a_split_to_judge_by_is_looked_for_before_training() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    command
        .args(["run", "--set", "eval.splits=[\"tset\"]", "--model"])
        .arg(golden.join("models/llama"))
        .arg("--out")
        .arg(&out);
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("unknown split `tset`") && text.contains("did you mean `test`"),
        "{text}"
    );
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_used_is_named_before_anything_is_written() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (out, phi3) = (dir.path().join("run"), golden.join("models/phi3").display().to_string());
    for (extra, says) in [
        (vec!["--device", "cuda:77"], "the device `cuda:77` is not available"),
        (vec!["--device", "gpu"], "`device` is `gpu`"),
        (vec!["--model", "/no/such/model"], "/no/such/model"),
        (vec!["--intervention", "prefvec", "--layers", "99"], "layer `99`"),
        (vec!["--set", "train.max_length=5"], "no pair that can be used"),
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
            "`adapter.layers_to_transform` has 7",
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
        let output = command.args(&extra).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{extra:?}: {text}");
        assert!(text.contains(says), "{extra:?}: {text}");
        assert!(!out.exists(), "{extra:?}");
    }
}

#[test]
fn a_sweep_runs_every_combination_and_goes_on_where_it_was_left() {
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
            .expect("it runs")
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

    std::fs::remove_dir_all(dir.path().join("grid/dpo-hra")).expect("it was there");
    let again = sweep("grid", &over);
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && text.matches("already finished").count() == 3, "{text}");
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&again.stdout).expect("JSON"), rows);

    // Sweeps generate no sample completions unless they are configured.
    let config = |run: &str| {
        std::fs::read_to_string(dir.path().join(run).join("config.toml")).expect("a configuration")
    };
    assert!(config("grid/dpo-lora").contains("\ncompletions = 0\n"), "{}", config("grid/dpo-lora"));
    assert!(
        sweep("heard", &["--over", "adapter=lora", "--set", "eval.completions=2"]).status.success()
    );
    assert!(config("heard/lora").contains("\ncompletions = 2\n"), "{}", config("heard/lora"));

    // A slip in the last of them is found before the first one runs.
    let slip = sweep("slip", &["--over", "intervention=dpo,prefvek"]);
    assert_eq!(slip.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&slip.stderr).contains("did you mean `prefvec`?")
            && !dir.path().join("slip").exists()
    );
}

/// A transform that can shrink and turn what it compares, so that training it shows.
const LEARNT: [&str; 8] = [
    "--transform",
    "ether",
    "--set",
    "transform.form=plus",
    "--set",
    "transform.blocks=2",
    "--set",
    "transform.reduce=4",
];
/// What reads the states that it maps.
const READ: [&str; 4] = ["--intervention", "prefvec", "--layers", "1,2"];

fn trained(
    golden: &Path,
    out: &Path,
    extra: &[&str],
) -> std::collections::BTreeMap<String, tch::Tensor> {
    let output =
        run(golden, out, &[&LEARNT[..], &READ[..], &["--set", "train.epochs=3"], extra].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    reprpo_core::weights::read_safetensors(&out.join("transform/transform.safetensors"))
        .expect("tensors")
        .into_iter()
        .collect()
}

#[test]
fn a_transform_trains_at_its_own_rate_or_not_at_all() {
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
fn a_loss_cannot_fall_by_changing_the_transform_alone() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    trained(&golden, &out, &["--set", "train.lr=1e-12", "--set", "train.transform_lr=5e-2"]);
    let lines = metrics(&out);
    let (first, last) = (number(&lines[0], "loss"), number(&lines[lines.len() - 1], "loss"));
    assert!((first - last).abs() < 1e-3, "{first} {last}");
}

#[test]
fn a_run_starts_from_the_transforms_of_another() {
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
    let saved = "are `ether` with form = plus, blocks = 2, reduce = 4, but those of this run are ";
    let taps =
        "are one each of the taps `hidden_states.1`, `hidden_states.2`, but those of this run are ";
    for (args, says) in [
        ([&READ[..], &["--transform", "none"]].concat(), format!("{saved}`none`")),
        (
            [&READ[..], &LEARNT, &["--set", "transform.blocks=1"]].concat(),
            format!("{saved}`ether` with form = plus, blocks = 1"),
        ),
        (
            [&LEARNT[..], &["--intervention", "prefvec", "--layers", "0,2"]].concat(),
            format!("{taps}one each of the taps `hidden_states.0`"),
        ),
        (
            [&READ[..], &LEARNT, &["--set", "train.share_transform=true"]].concat(),
            format!("{taps}shared ones"),
        ),
        (
            [&LEARNT[..], &["--intervention", "dpo"]].concat(),
            "but the intervention `dpo` reads no states".to_owned(),
        ),
        (
            [&READ[..], &["--set", "init_transform=/no/such/folder"]].concat(),
            "/no/such/folder".to_owned(),
        ),
    ] {
        let out = dir.path().join("refused");
        let output = run(&golden, &out, &[&from[..], &args].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(&says), "{args:?}: {text}");
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
    for (args, says) in [
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
            String::from_utf8_lossy(&output.stderr).contains(says),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn a_rotation_changes_nothing_for_a_loss_of_lengths_and_angles() {
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

/// A run that goes on from another's adapter is compared with that adapter, as TRL compares it, or
/// with the base.
#[test]
fn a_run_that_goes_on_from_an_adapter_keeps_it_as_the_reference() {
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
    // What is trained is not what it is compared with.
    let (_, end) = margin("again", &["--set", "train.epochs=3"]);
    assert!((end - std::f64::consts::LN_2).abs() < 1e-5, "{end}");
    let lines = metrics(&dir.path().join("again"));
    assert!(number(&lines[lines.len() - 1], "rewards/margins") > 0.0);
}

/// The settings of a saved adapter apply: a setting that contradicts them is refused, dropout can
/// be changed, and `config show` shows what the run does.
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
    for (extra, says) in [
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
        assert!(text.contains(says), "{extra:?}: {text}");
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
            .expect("it runs")
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

/// PEFT passes over names in a saved adapter that match nothing; so does the command, with a
/// warning.
#[test]
fn a_saved_adapter_is_used_without_the_names_that_match_nothing() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (from, to) = (golden.join("peft/lora"), dir.path().join("lora"));
    std::fs::create_dir(&to).expect("a folder");
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors"))
        .expect("copied");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["rank_pattern"] = serde_json::json!({ "q_porj": 2 });
    config["target_modules"].as_array_mut().expect("a list").push("w_pack".into());
    std::fs::write(to.join("adapter_config.json"), config.to_string()).expect("written");
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
        let output = command.arg("--load-adapter").arg(adapter).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        (output.stdout, text)
    };
    let ((plain, quiet), (same, warned)) = (score(&from), score(&to));
    assert_eq!(plain, same);
    assert!(!quiet.contains("WARN"), "{quiet}");
    for says in [
        "unknown target module `w_pack`; this part of the saved adapter is ignored",
        "`q_porj` in `adapter.rank_pattern` matches none",
    ] {
        assert!(warned.contains(says), "{warned}");
    }
}
