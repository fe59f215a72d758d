//! The controls: random directions, swapped labels, and an instruction instead of training.

use std::path::Path;

use serde_json::{Value, json};

use crate::resume::{Tree, WORDS, kill, started};
use crate::{golden, json, jsonl, metrics, reprpo_in, stderr, transcript};

/// Creates a tree whose `pairs.jsonl` contains 40 pairs with distinct prompts.
fn tree() -> Tree {
    let tree = Tree::new();
    let words = |from: i64, n: i64| {
        (0..n).map(|i| format!("w{}", (from * 31 + i * 7) % WORDS)).collect::<Vec<_>>().join(" ")
    };
    let row = |i: i64| {
        json!({ "prompt": format!("w{} {} ", i % WORDS, words(i, 2)),
            "chosen": words(i + 3, 2 + i % 3), "rejected": words(2 * i + 5, 3) })
    };
    jsonl(&tree.path(""), "pairs.jsonl", &(0..40).map(row).collect::<Vec<_>>());
    tree
}

fn sets<'a>(fields: &[&'a str]) -> Vec<&'a str> {
    fields.iter().flat_map(|field| ["--set", *field]).collect()
}

fn adapter(tree: &Tree, run: &str) -> Vec<u8> {
    std::fs::read(tree.path(run).join("adapter/adapter_model.safetensors")).expect("an adapter")
}

fn summary(tree: &Tree, run: &str) -> Value {
    let text = std::fs::read(tree.path(run).join("eval/summary.json")).expect("a summary");
    serde_json::from_slice(&text).expect("JSON")
}

fn losses(run: &Path) -> Vec<f64> {
    metrics(run).iter().map(|line| line["loss"].as_f64().expect("a loss")).collect()
}

/// The flags of each method with a random direction.
const METHODS: [(&str, &[&str]); 4] = [
    ("prefvec", &["--intervention", "prefvec", "--layers", "1,2"]),
    ("mse", &["--intervention", "mse", "--layers", "1,2"]),
    ("projgrad", &["--intervention", "projgrad"]),
    ("projbp", &["--intervention", "projbp"]),
];
const RANDOM: [&str; 2] = ["--set", "intervention.direction=random"];

#[test]
fn a_killed_run_with_a_random_direction_resumes_to_the_same_bytes() {
    for (name, method) in METHODS {
        let tree = tree();
        let extra = [method, &RANDOM, &["--set", "train.checkpoint_every=2"]].concat();
        tree.run("whole", &extra);
        let run = tree.path("killed");
        let args = tree.run_args("killed", &extra);
        kill(started(&tree.path(""), &args, || run.join("checkpoints/latest").is_file()));
        if !run.join("adapter").exists() {
            let output = tree.reprpo("", &["run", "--resume", "killed"]);
            assert!(output.status.success(), "{}", transcript(&output));
        }
        assert!(adapter(&tree, "whole") == adapter(&tree, "killed"), "{name}");
        assert_eq!(losses(&tree.path("whole")), losses(&run), "{name}");
    }
}

#[test]
fn a_random_direction_depends_on_the_seed_and_not_on_the_size_of_the_batches() {
    for (name, method) in METHODS {
        let tree = tree();
        let run = |out: &str, fields: &[&str]| {
            tree.run(out, &[method, &sets(fields)].concat());
            losses(&tree.path(out))
        };
        let direction = "intervention.direction=random";
        let small = run("small", &[direction, "train.batch=2", "train.accumulate=4"]);
        let large = run("large", &[direction, "train.batch=8", "train.accumulate=1"]);
        let preference = run("preference", &["train.batch=8", "train.accumulate=1"]);
        for (a, b) in small.iter().zip(&large) {
            assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{name}: {small:?} {large:?}");
        }
        // The first loss of the gradient methods is that of dpo.
        assert_ne!(large, preference, "{name}");
    }
}

#[test]
fn swapped_labels_change_the_training_but_not_the_labels_of_the_evaluation() {
    let tree = tree();
    let fields = ["train.validate_every=8", "eval.max_pairs=none"];
    let run = |out: &str, extra: &[&str]| {
        let output = tree.run(out, &sets(&[&fields, extra].concat()));
        (transcript(&output), summary(&tree, out))
    };
    let (plain_text, plain) = run("plain", &[]);
    let (text, swapped) = run("swapped", &["train.swap_labels=0.5"]);
    assert!(!plain_text.contains("swapped"), "{plain_text}");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("chosen and rejected are swapped in "))
        .unwrap_or_else(|| panic!("no line about the swapped labels: {text}"));
    let n: usize = line.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((8..=28).contains(&n) && line.contains("of the 36 pairs"), "{line}");
    assert!(
        swapped["title"]
            .as_str()
            .expect("a title")
            .contains("(labels of 50 % of the training pairs swapped)"),
        "{swapped}"
    );
    // The base model has the same accuracy on the training split, because its labels are the true
    // ones. The trained models differ.
    let base = |summary: &Value| summary["splits"][0]["base_accuracy"].clone();
    assert_eq!(base(&plain), base(&swapped));
    assert!(adapter(&tree, "plain") != adapter(&tree, "swapped"));
    let of = |name: &str| {
        let text = std::fs::read(tree.path(name).join("validation.json")).expect("validations");
        serde_json::from_slice::<Value>(&text).expect("JSON")["rows"].clone()
    };
    assert_eq!(of("plain"), of("swapped"), "the same pairs must be held out");
    // With all labels swapped, the training is that on a file with exchanged columns.
    let rows: Vec<Value> = std::fs::read_to_string(tree.path("pairs.jsonl"))
        .expect("pairs")
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).expect("JSON");
            json!({ "prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"] })
        })
        .collect();
    jsonl(&tree.path(""), "exchanged.jsonl", &rows);
    tree.run("all", &sets(&["train.swap_labels=1"]));
    tree.run("exchanged", &["--set", "dataset=exchanged.jsonl"]);
    assert!(adapter(&tree, "all") == adapter(&tree, "exchanged"));
}

#[test]
fn swapped_labels_use_the_same_values_from_the_cache_as_without_it() {
    let tree = tree();
    let method = ["--intervention", "prefvec", "--layers", "1"];
    let run = |out: &str, extra: &[&str]| {
        tree.run(out, &[&method[..], extra].concat());
        adapter(&tree, out)
    };
    let swapped = ["--set", "train.swap_labels=0.5"];
    let uncached = run("uncached", &swapped);
    let cache = tree.path("cache");
    let cached = |out: &str, extra: &[&str]| {
        let args =
            tree.run_args(out, &[&method[..], &["--reference-cache", "disk"], extra].concat());
        let args: Vec<&str> = args.into_iter().collect();
        let mut command = crate::reprpo_command(&args);
        let output = command
            .env("REPRPO_CACHE", &cache)
            .current_dir(tree.path(""))
            .output()
            .expect("the command runs");
        assert!(output.status.success(), "{}", transcript(&output));
        adapter(&tree, out)
    };
    cached("first", &[]);
    assert!(cached("second", &swapped) == uncached);
    assert!(cached("third", &swapped) == uncached);
}

#[test]
fn the_fraction_of_swapped_labels_must_be_from_0_to_1() {
    let tree = tree();
    let output = tree.reprpo("", &tree.run_args("run", &["--set", "train.swap_labels=2"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("`train.swap_labels` is 2 (--set), but must be a fraction"),
        "{}",
        stderr(&output)
    );
}

/// Scores of the completions in `eval/pairs.jsonl`: Σ log p of chosen and rejected.
fn scores(tree: &Tree, run: &str, model: &str) -> Vec<[f64; 2]> {
    let text = std::fs::read_to_string(tree.path(run).join("eval/pairs.jsonl")).expect("pairs");
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            ["chosen", "rejected"]
                .map(|side| line[model][side]["logp_sum"].as_f64().expect("a number"))
        })
        .collect()
}

#[test]
fn an_instruction_is_only_read_by_the_second_model_and_needs_no_training() {
    let tree = tree();
    let none = ["--intervention", "none", "--set", "eval.max_pairs=10"];
    tree.run("plain", &none);
    let instruction = "eval.instruction=w1 w2 w3";
    let output = tree.run("with", &[&none[..], &["--set", instruction]].concat());
    assert!(
        summary(&tree, "with")["title"]
            .as_str()
            .expect("a title")
            .ends_with("(with an instruction in the prompts)"),
        "{}",
        transcript(&output)
    );
    assert_eq!(scores(&tree, "plain", "base"), scores(&tree, "with", "base"));
    assert_eq!(scores(&tree, "plain", "base"), scores(&tree, "plain", "trained"));
    // The same scores as for prompts that contain the instruction.
    let rows: Vec<Value> = std::fs::read_to_string(tree.path("pairs.jsonl"))
        .expect("pairs")
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).expect("JSON");
            let prompt = format!("w1 w2 w3\n\n{}", row["prompt"].as_str().expect("text"));
            row["prompt"] = prompt.into();
            row
        })
        .collect();
    jsonl(&tree.path(""), "instructed.jsonl", &rows);
    tree.run("expected", &[&none[..], &["--set", "dataset=instructed.jsonl"]].concat());
    let (found, expected) = (scores(&tree, "with", "trained"), scores(&tree, "expected", "base"));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
    assert_ne!(found, scores(&tree, "plain", "base"));
}

#[test]
fn a_base_model_can_be_evaluated_with_an_instruction() {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = golden::own();
    let (model, pairs) = (golden.join("models/llama"), golden.join("trl/pairs.jsonl"));
    let (model, pairs) = (model.display().to_string(), pairs.display().to_string());
    let output = reprpo_in(
        folder.path(),
        &[
            "eval",
            "--model",
            &model,
            "--dataset",
            &pairs,
            "--dtype",
            "f32",
            "--device",
            "cpu",
            "--set",
            "eval.instruction=Be brief.",
            "--set",
            "eval.completions=1",
            "--set",
            "eval.completion_tokens=2",
            "--json",
        ],
    );
    let table = &json(&output)[0];
    assert!(table["splits"][0]["change"]["accuracy"].is_object(), "{table}");
    assert_eq!(table["completions"]["instructed"], json!(true), "{table}");
    assert!(table["completions"]["prompts"][0]["after"].is_object(), "{table}");
}
