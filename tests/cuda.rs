//! The same binary works with and without CUDA: it loads libtorch's CUDA library if there is a
//! driver.
//!
//! These tests need no GPU, because an empty library with the driver's name replaces the driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::{golden, json, plugins, reprpo_command, stderr};

/// Creates a folder with an empty driver library.
fn with_driver() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("driver.rs");
    fs::write(&source, "").expect("the file is written");
    let output = Command::new("rustc")
        .args(["--crate-type", "cdylib", "-o"])
        .arg(dir.path().join("libcuda.so.1"))
        .arg(&source)
        .output()
        .expect("rustc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dir
}

/// Returns the folder of libtorch that the command uses, as printed by `doctor`.
fn libtorch() -> PathBuf {
    let found = check(
        &json(&reprpo_command(&["doctor", "--json"]).output().expect("the command runs")),
        "libtorch",
    );
    PathBuf::from(
        found["found"].as_str().and_then(|text| text.split(", in ").nth(1)).expect("a folder"),
    )
}

/// Returns the check `name` from the output of `doctor --json`.
fn check(checks: &Value, name: &str) -> Value {
    checks
        .as_array()
        .expect("a list")
        .iter()
        .find(|check| check["name"] == name)
        .expect("the check")
        .clone()
}

/// Runs the command with `folder` first in the library path.
fn reprpo(folder: &Path, args: &[&str]) -> Output {
    reprpo_command(args)
        .env("LD_LIBRARY_PATH", folder)
        .env("REPRPO_PLUGIN_DIR", folder.join("no-plugins"))
        .output()
        .expect("the command runs")
}

/// Trains a tiny model for a few steps.
fn train(folder: &Path, device: &str) -> Output {
    let golden = golden::own();
    let (model, pairs) = (
        golden.join("models/llama").display().to_string(),
        golden.join("trl/pairs.jsonl").display().to_string(),
    );
    let out = folder.join(format!("run-on-{device}")).display().to_string();
    let set = ["--set", "train.max_pairs=8", "--no-eval", "--device", device, "--dtype", "f32"];
    reprpo(
        folder,
        &[&["run", "--model", &model, "--dataset", &pairs, "--out", &out][..], &set[..]].concat(),
    )
}

#[test]
fn a_driver_without_cuda_in_libtorch_is_reported_and_the_cpu_is_used() {
    if libtorch().join("libtorch_cuda.so").exists() {
        eprintln!("skipped: this libtorch was built with CUDA");
        return;
    }
    let driver = with_driver();
    let found = check(&json(&reprpo(driver.path(), &["doctor", "--json"])), "cuda");
    assert_eq!(
        (&found["state"], &found["found"]),
        (
            &"limited".into(),
            &"there is an NVIDIA driver, but this libtorch was built without CUDA".into()
        )
    );
    let output = train(driver.path(), "auto");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        stderr(&output).matches("built without CUDA, so everything runs on the CPU").count(),
        1,
        "{}",
        stderr(&output)
    );
    let quiet = train(driver.path(), "cpu");
    assert!(quiet.status.success() && !stderr(&quiet).contains("CUDA"), "{}", stderr(&quiet));
    let refused = train(driver.path(), "cuda");
    assert!(
        refused.status.code() == Some(1)
            && stderr(&refused).contains("libtorch was built without CUDA"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn a_cuda_library_that_cannot_be_loaded_causes_a_warning_and_plugins_still_load() {
    let driver = with_driver();
    for file in
        fs::read_dir(libtorch()).expect("libtorch").map(|entry| entry.expect("an entry").path())
    {
        let name = file.file_name().expect("a name");
        if name != "libtorch_cuda.so" {
            std::os::unix::fs::symlink(&file, driver.path().join(name)).expect("a link");
        }
    }
    fs::write(driver.path().join("libtorch_cuda.so"), "not a library")
        .expect("the file is written");
    let checks = json(&reprpo(driver.path(), &["doctor", "--json"]));
    let place = check(&checks, "libtorch");
    assert!(
        place["found"]
            .as_str()
            .is_some_and(|found| found.contains(&driver.path().display().to_string())),
        "{place}"
    );
    let found = check(&checks, "cuda");
    assert!(
        found["state"] == "limited"
            && found["found"].as_str().is_some_and(|text| text.contains("libtorch_cuda.so: ")),
        "{found}"
    );
    let output = train(driver.path(), "auto");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        stderr(&output)
            .matches("CUDA library cannot be loaded, so everything runs on the CPU")
            .count(),
        1,
        "{}",
        stderr(&output)
    );
    let plugin = plugins::library("faults").display().to_string();
    let examined = reprpo(driver.path(), &["plugin", "check", &plugin]);
    assert!(
        stderr(&examined).is_empty() || !stderr(&examined).contains("cannot be used as a plugin"),
        "{}",
        stderr(&examined)
    );
}
