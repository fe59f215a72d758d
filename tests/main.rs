//! The whole program as its users run it.

mod command;
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
mod resume;
mod score;
mod selftest;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod slurm;
mod states;
mod tokenizer;
mod tokens;
mod training;
mod validation;

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

/// `reprpo` without colours and without the `REPRPO_*` variables of the machine that runs the
/// tests.
///
/// It computes in one thread: tests run side by side, and a small model gains nothing from threads.
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
    reprpo_command(args).output().expect("it runs")
}

/// `reprpo` in a folder that also holds its caches, as on a machine that has fetched nothing.
fn isolated_command(folder: &Path, args: &[&str]) -> Command {
    let mut command = reprpo_command(args);
    command.env("REPRPO_CACHE", folder.join("cache")).env("HF_HOME", folder).current_dir(folder);
    command
}

fn reprpo_in(folder: &Path, args: &[&str]) -> Output {
    isolated_command(folder, args).output().expect("it runs")
}

/// Stdout of a command that succeeded.
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Stdout and stderr of a command, whether it succeeded or not.
fn transcript(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(output))
}

/// The JSON document that a command printed.
fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).expect("JSON")
}

/// The JSON documents that a command printed, one per line.
fn json_lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Σ log p of the chosen and the rejected completion of each pair, as `reprpo score --json` printed
/// them.
fn logp_sums(output: &Output) -> Vec<[f64; 2]> {
    json_lines(output)
        .iter()
        .map(|line| {
            ["chosen", "rejected"].map(|side| line[side]["logp_sum"].as_f64().expect("a number"))
        })
        .collect()
}

/// The lines of a run's metrics.jsonl.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect()
}

/// Writes a file with one JSON document per line.
fn jsonl(folder: &Path, name: &str, rows: &[Value]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>())
        .expect("written");
    path
}
