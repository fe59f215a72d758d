//! Tests of the complete program, run in the way that users run it.

mod baselines;
mod bench;
mod cache;
mod clusters;
mod coefficient;
mod command;
mod controls;
#[cfg(target_os = "linux")]
mod cuda;
mod data;
mod docs;
mod export;
mod fetch;
mod generate;
mod golden;
mod hub;
mod invariants;
mod plugins;
mod precision;
#[cfg(target_os = "linux")]
mod ranks;
mod reproduce;
mod results;
mod resume;
mod score;
mod selftest;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod slurm;
mod states;
#[cfg(unix)]
mod study;
mod suites;
mod tokenizer;
mod tokens;
mod training;
mod validation;

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

/// Returns a `reprpo` command without colours and without the user's `REPRPO_*` variables.
///
/// It uses one thread, because tests run in parallel and threads do not speed up a small model.
fn reprpo_command(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REPRPO_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").env("OMP_NUM_THREADS", "1").args(args);
    command
}

fn reprpo(args: &[&str]) -> Output {
    reprpo_command(args).output().expect("the command runs")
}

/// Returns a `reprpo` command that runs in `folder` and has its empty caches there.
fn isolated_command(folder: &Path, args: &[&str]) -> Command {
    let mut command = reprpo_command(args);
    command.env("REPRPO_CACHE", folder.join("cache")).env("HF_HOME", folder).current_dir(folder);
    command
}

fn reprpo_in(folder: &Path, args: &[&str]) -> Output {
    isolated_command(folder, args).output().expect("the command runs")
}

/// Returns the Python that has `package`: that of the environment variable `TEST_PYTHON`, or
/// `python3`. Returns `None`, and the caller skips its test, if it does not have the package.
fn python_with(package: &str) -> Option<String> {
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = format!("import {package}");
    let found = std::process::Command::new(&python).args(["-c", &import]).output();
    let has_package = found.is_ok_and(|output| output.status.success());
    if !has_package {
        eprintln!("skipped: `{python}` cannot import {package} (`pip install {package}`)");
    }
    has_package.then_some(python)
}

/// Checks that a command succeeded and returns its stdout.
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns stdout and stderr of a command, even if the command failed.
fn transcript(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(output))
}

/// Checks that a command succeeded and parses its stdout as JSON.
fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).expect("JSON")
}

/// Checks that a command succeeded and parses each line of its stdout as JSON.
fn json_lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Returns Σ log p of the chosen and the rejected completion of each pair from the output of
/// `reprpo score --json`.
fn logp_sums(output: &Output) -> Vec<[f64; 2]> {
    json_lines(output)
        .iter()
        .map(|line| {
            ["chosen", "rejected"].map(|side| line[side]["logp_sum"].as_f64().expect("a number"))
        })
        .collect()
}

/// Parses the lines of a run's `metrics.jsonl`.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect()
}

/// Writes a file with one JSON document per line and returns its path.
fn jsonl(folder: &Path, name: &str, rows: &[Value]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>())
        .expect("the file is written");
    path
}
