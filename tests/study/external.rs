//! Studies whose points another program chooses.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use super::*;
use crate::python_with;

const SEARCH: &str = "[search]\nsampler = \"external\"\ntrials = 3\n[search.fields]\n\
    \"train.lr\" = { low = 1e-4, high = 1e-1, log = true }\n";

/// Runs the study with a program that answers the n-th request with the n-th learning rate. Ends
/// the conversation when there are no more. Returns all messages and whether the study succeeded.
fn conversation(place: &Place, rates: &[f64]) -> (Vec<Value>, bool) {
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("reprpo"))
        .args(["sweep", "e.toml"])
        .env("OMP_NUM_THREADS", "1")
        .env("REPRPO_CACHE", place.path("cache"))
        .current_dir(place.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command runs");
    let mut stdin = child.stdin.take();
    let mut rates = rates.iter();
    let mut messages = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("stdout")).lines() {
        let message: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
        if message["type"] == "ask" {
            match (rates.next(), &mut stdin) {
                (Some(rate), Some(stdin)) => {
                    let answer = json!({ "values": { "train.lr": rate } });
                    writeln!(stdin, "{answer}").expect("the command reads");
                }
                _ => stdin = None,
            }
        }
        messages.push(message);
    }
    (messages, child.wait().expect("the command ends").success())
}

#[test]
fn an_external_program_drives_a_study_and_continues_it() {
    let place = Place::new();
    place.write("e.toml", &format!("seeds = [1]\n{BASE}{SEARCH}"));
    let (first, succeeded) = conversation(&place, &[1e-3]);
    assert!(!succeeded, "the program ended before the search was over");
    let kinds = |messages: &[Value]| -> Vec<String> {
        messages.iter().map(|m| m["type"].as_str().expect("a type").to_owned()).collect()
    };
    assert_eq!(kinds(&first), ["start", "ask", "tell", "ask"]);
    assert_eq!(
        first[0],
        json!({
            "type": "start", "study": "e", "objective": "mean_log_sigmoid",
            "direction": "maximize", "selected_on": "validation",
            "methods": { "e": { "fields": { "train.lr":
                { "low": 1e-4, "high": 0.1, "log": true, "integer": false } }, "trials": 3 } },
        })
    );
    let (second, succeeded) = conversation(&place, &[2e-2, 5e-4]);
    assert!(succeeded);
    assert_eq!(kinds(&second), ["start", "tell", "ask", "tell", "ask", "tell", "end"]);
    let mut expected = first[2].clone();
    expected["resumed"] = json!(true);
    assert_eq!(second[1], expected);
    let tells: Vec<&Value> = second.iter().filter(|m| m["type"] == "tell").collect();
    let best = tells
        .iter()
        .max_by(|a, b| a["score"].as_f64().partial_cmp(&b["score"].as_f64()).expect("numbers"));
    assert_eq!(second[6]["tuned"]["e"], best.expect("a trial")["values"]);
    // A program that only wants to see the results is told all of them.
    let (third, succeeded) = conversation(&place, &[]);
    assert!(succeeded);
    assert_eq!(kinds(&third), ["start", "tell", "tell", "tell", "end"]);
}

#[test]
fn optuna_drives_a_study() {
    let Some(python) = python_with("optuna") else { return };
    let place = Place::new();
    place.write("e.toml", &format!("seeds = [1]\n{BASE}{METHODS}{SEARCH}"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/optuna_study.py");
    let run = |n: &str| {
        std::process::Command::new(&python)
            .arg(&script)
            .arg(assert_cmd::cargo::cargo_bin!("reprpo"))
            .args(["sweep", "e.toml", "--sampler", "external", "--trials", n])
            .env("OMP_NUM_THREADS", "1")
            .env("REPRPO_CACHE", place.path("cache"))
            .current_dir(place.path(""))
            .output()
            .expect("Python runs")
    };
    let output = run("3");
    assert!(output.status.success(), "{}", transcript(&output));
    let study = place.study("runs/e");
    assert_eq!(trials(&study, "dpo", "search").len(), 3);
    // More trials continue the study.
    let output = run("4");
    assert!(output.status.success(), "{}", transcript(&output));
    let text = transcript(&output);
    assert!(text.contains("best of dpo"), "{text}");
    let study = place.study("runs/e");
    let (dpo, states) = (trials(&study, "dpo", "search"), trials(&study, "states", "search"));
    assert_eq!((dpo.len(), states.len()), (4, 4));
    assert!(dpo.iter().all(|trial| trial["score"].is_f64()), "{dpo:?}");
}
