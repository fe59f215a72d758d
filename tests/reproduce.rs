//! `reprpo reproduce`, the recorded environment and states, and the events for TensorBoard.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::metrics;
use crate::resume::Tree;
use crate::{json, python_with, stderr, stdout, transcript};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

#[test]
fn a_repeated_run_is_identical() {
    let tree = Tree::new();
    tree.run("a", &["--intervention", "prefvec", "--layers", "1,2"]);
    let output = tree.reprpo("", &["reproduce", "a"]);
    let text = stdout(&output);
    assert!(text.starts_with("identical: all results have the same bytes\n"), "{text}");
    for file in ["adapter/adapter_model.safetensors", "eval/pairs.jsonl", "metrics.jsonl"] {
        assert!(text.contains(&format!("{file}: same bytes")), "{text}");
    }
    assert!(text.contains("environment: the same"), "{text}");
    assert!(tree.path("a-again-1/adapter").is_dir());
}

#[test]
fn a_repetition_that_differs_names_the_size_of_the_difference() {
    let tree = Tree::new();
    tree.run("a", &[]);
    // The recorded learning rate is slightly different from the one that was used.
    let config = tree.path("a/config.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, text.replace("lr = 0.005", "lr = 0.00500001")).expect("a file");
    let environment = tree.path("a/environment.json");
    let text = std::fs::read_to_string(&environment).expect("an environment");
    let other = text.replace("\"libtorch\": \"", "\"libtorch\": \"0.");
    std::fs::write(&environment, other).expect("a file");
    let output = tree.reprpo("", &["reproduce", "a", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", transcript(&output));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["identical"], false);
    let (loss, score) = (found["loss"].as_f64(), found["score"].as_f64());
    assert!(loss < Some(1e-4) && score > Some(0.0) && score < Some(1e-2), "{found}");
    let environment = found["environment"].to_string();
    assert!(environment.contains("libtorch: `0."), "{environment}");
    let within = tree.reprpo("", &["reproduce", "a", "--tolerance", "0.01"]);
    assert!(within.status.success(), "{}", transcript(&within));
    let beyond = tree.reprpo("", &["reproduce", "a", "--tolerance", "1e-12"]);
    assert!(stderr(&beyond).contains("by more than 0.000000000001"), "{}", stderr(&beyond));
}

#[test]
fn changed_data_are_refused_before_the_repetition_starts() {
    let tree = Tree::new();
    tree.run("a", &[]);
    let pairs = tree.path("pairs.jsonl");
    let text = std::fs::read_to_string(&pairs).expect("pairs");
    std::fs::write(&pairs, text.replacen("w", "w1", 1)).expect("pairs");
    let output = tree.reprpo("", &["reproduce", "a", "--out", "b"]);
    assert_eq!(output.status.code(), Some(1), "{}", transcript(&output));
    assert!(!tree.path("b").exists());
}

#[test]
fn a_method_on_states_records_their_motion() {
    let tree = Tree::new();
    tree.run("a", &["--intervention", "prefvec", "--layers", "1,2"]);
    let states = read(&tree.path("a/eval/states.json"));
    let layers = states["sites"].as_array().expect("sites").len();
    assert!(layers > 0 && states["pairs"].as_u64() > Some(0), "{states}");
    let last = &states["sites"][layers - 1];
    assert!(last["chosen_across"].as_f64() > Some(0.0), "{states}");
    tree.run("b", &["--intervention", "dpo"]);
    assert!(!tree.path("b/eval/states.json").exists());
    tree.run("c", &["--intervention", "dpo", "--set", "eval.states=true"]);
    assert!(tree.path("c/eval/states.json").is_file());
    // A report on these runs has the plot.
    stdout(&tree.reprpo("", &["report", "a", "c", "--out", "page.html"]));
    let page = std::fs::read_to_string(tree.path("page.html")).expect("a page");
    assert!(page.contains("Motion of the states"));
}

/// Returns the contents of the records of an event file, after checking their lengths.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes")) as usize;
        all.push(rest[12..12 + length].to_vec());
        rest = &rest[16 + length..];
    }
    all
}

#[test]
fn tensorboard_reads_the_events_of_a_run() {
    let tree = Tree::new();
    let fields = ["--set", "train.tensorboard=true", "--set", "train.validate_every=2"];
    tree.run("a", &fields);
    let folder = tree.path("a/tb");
    let files: Vec<_> = folder.read_dir().expect("a folder").map(|e| e.expect("a file")).collect();
    assert_eq!(files.len(), 1);
    let records = records(&std::fs::read(files[0].path()).expect("events"));
    let steps = metrics(&tree.path("a"));
    // The version, the lines of `metrics.jsonl`, and the evaluation.
    assert_eq!(records.len(), steps.len() + 2);
    assert!(records[0].ends_with(b"brain.Event:2"));
    let script = "import sys, json\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1])\n\
        events.Reload()\n\
        print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] \
        for tag in events.Tags()['scalars']}))\n";
    let Some(python) = python_with("tensorboard") else { return };
    let output = Command::new(python).args(["-c", script]).arg(&folder).output();
    let found = json(&output.expect("Python runs"));
    for (tag, name) in
        [("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("eval/loss", "eval_loss")]
    {
        let wanted: Vec<(u64, f64)> =
            steps.iter().filter_map(|s| Some((s["step"].as_u64()?, s[name].as_f64()?))).collect();
        let events = found[tag].as_array().unwrap_or_else(|| panic!("{tag}: {found}"));
        assert_eq!(events.len(), wanted.len(), "{tag}");
        for (event, (step, value)) in events.iter().zip(wanted) {
            assert_eq!(event[0], step);
            assert!((event[1].as_f64().expect("a value") - value).abs() <= 1e-6 * value.abs());
        }
    }
}
