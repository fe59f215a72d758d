//! `reprpo bench`: the fields of its report, and its errors. Durations are not compared with fixed
//! values, because tests run on busy machines.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::{golden, json, jsonl, reprpo_in, stderr, stdout};

/// Six pairs with four prompts.
fn pairs(folder: &Path) -> String {
    let row = |(i, prompt): (usize, &str)| {
        let (prompt, chosen) = (format!("{prompt}?"), format!(" yes {i}"));
        json!({ "prompt": prompt, "chosen": chosen, "rejected": " no." })
    };
    let rows: Vec<Value> =
        ["one", "one", "two", "three", "three", "four"].into_iter().enumerate().map(row).collect();
    jsonl(folder, "pairs.jsonl", &rows).display().to_string()
}

fn bench(folder: &Path, more: &[&str]) -> Output {
    let model = golden::own().join("models/llama").display().to_string();
    let fixed = ["bench", "--model", &model, "--device", "cpu", "--dtype", "f32"];
    reprpo_in(folder, &[&fixed[..], more].concat())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn sum(values: &Value) -> f64 {
    values.as_object().expect("an object").values().map(number).sum()
}

#[test]
fn the_report_is_complete_and_consistent() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = pairs(folder.path());
    let args = ["--intervention", "dpo", "--adapter", "lora", "--dataset", &data, "--json"];
    let settings = ["--pairs", "5", "--repeat", "2", "--set", "train.batch=2"];
    let report = json(&bench(folder.path(), &[&args[..], &settings].concat()));
    // Two micro-batches of two pairs are one step by default.
    for (field, expected) in [
        ("pairs", json!(5)),
        ("steps", json!(2)),
        ("batch", json!(2)),
        ("repeat", json!(2)),
        ("warmup", json!(1)),
        ("threads", json!(1)),
        ("device", json!("cpu")),
        ("intervention", json!("dpo")),
        ("adapter", json!("lora")),
    ] {
        assert_eq!(report[field], expected, "{field}: {report:#}");
    }
    for field in ["trained", "tokens", "rows", "scored", "start_seconds"] {
        assert!(number(&report[field]) > 0.0, "{field}: {report:#}");
    }
    for pass in ["first", "cached"] {
        let measured = &report[pass];
        let seconds = number(&measured["seconds"]);
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
        assert!(close(5.0 / seconds, number(&measured["pairs_per_second"])), "{measured:#}");
        assert!(
            close(number(&report["tokens"]) / seconds, number(&measured["tokens_per_second"])),
            "{measured:#}"
        );
        assert_eq!(measured["all_seconds"].as_array().map(Vec::len), Some(2));
        // `other` is the rest of the duration, so that the phases add up to all of it.
        let phases = &measured["phases"];
        assert!(close(sum(phases), seconds), "{measured:#}");
        let names: Vec<&String> = phases.as_object().expect("an object").keys().collect();
        let expected =
            "data reference forward head backward hooks optimiser logging other".split(' ');
        assert!(names.into_iter().eq(expected), "{phases}");
        for phase in ["data", "forward", "head", "backward", "optimiser", "logging"] {
            assert!(number(&phases[phase]) > 0.0, "{phase}: {phases}");
        }
        let operations = &measured["operations"];
        let total = number(&operations["total"]);
        assert!(close(sum(operations), 2.0 * total), "{operations}");
        let share = total / seconds / number(&measured["matrix_rate"]);
        assert!(close(share, number(&measured["share_of_matrix_rate"])), "{measured:#}");
        let share = total / seconds / number(&measured["product_rate"]);
        assert!(close(share, number(&measured["share_of_product_rate"])), "{measured:#}");
    }
    // Only the first pass runs the reference, which has no adapter.
    let operations = |pass: &str, part: &str| number(&report[pass]["operations"][part]);
    assert!(operations("first", "products") > operations("cached", "products"));
    assert!(operations("first", "attention") > operations("cached", "attention"));
    assert_eq!(operations("first", "adapter"), operations("cached", "adapter"));
    let shapes = report["shapes"].as_array().expect("a list");
    assert!(shapes.iter().all(|shape| number(&shape["rate"]) > 0.0), "{shapes:?}");
    assert_eq!(shapes.iter().filter(|shape| shape["head"] == true).count(), 1);
    let shares: f64 = shapes.iter().map(|shape| number(&shape["share"])).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shapes:?}");
    // No run was written.
    let files: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(files.len(), 1, "{files:?}");
}

#[test]
fn hooks_of_a_method_are_a_phase() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = pairs(folder.path());
    let args = ["--intervention", "projbp", "--dataset", &data, "--pairs", "2", "--json"];
    let report = json(&bench(folder.path(), &args));
    for pass in ["first", "cached"] {
        assert!(number(&report[pass]["phases"]["hooks"]) > 0.0, "{report:#}");
    }
}

#[test]
fn distinct_prompts_skip_pairs_with_a_known_prompt() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = pairs(folder.path());
    let output = bench(folder.path(), &["--dataset", &data, "--distinct-prompts"]);
    let text = stdout(&output);
    assert!(text.contains("\n4 pairs with ") && text.contains("share of it"), "{text}");
    assert!(
        stderr(&output).contains("only 4 pairs of `train` can be measured"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn unusable_input_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = pairs(folder.path());
    for (args, code, expected) in [
        (&["--pairs", "0"][..], 2, "--pairs"),
        (&["--repeat", "0"], 2, "--repeat"),
        (&["--out", "x"], 2, "--out"),
        (&["--dataset", &data, "--split", "nothing"], 1, "nothing"),
        (&["--dataset", &data, "--intervention", "dop"], 1, "did you mean `dpo`?"),
        (&["--dataset", &data, "--intervention", "none"], 1, "takes no steps"),
    ] {
        let output = bench(folder.path(), args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
    }
}
