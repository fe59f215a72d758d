//! The cache of reference values: the same bytes with and without it, and `reprpo cache`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::resume::copy;
use crate::{golden, isolated_command, json, metrics, reprpo_in, stderr, stdout, transcript};

/// Arguments of a run whose method needs log-probabilities and pooled states of the reference.
fn args(out: &str, extra: &[&str]) -> Vec<String> {
    let golden = golden::own();
    let (model, pairs) = (golden.join("models/llama"), golden.join("trl/pairs.jsonl"));
    let mut args: Vec<String> = ["run", "--device", "cpu", "--out", out].map(str::to_owned).into();
    args.extend(["--model".into(), model.display().to_string()]);
    args.extend(["--dataset".into(), pairs.display().to_string()]);
    for set in [
        "train.epochs=2",
        "train.batch=2",
        "train.accumulate=1",
        "train.lr=2e-3",
        "eval.completions=0",
    ] {
        args.extend(["--set".into(), set.into()]);
    }
    if !extra.contains(&"--intervention") {
        args.extend(
            ["--intervention", "prefvec", "--set", "intervention.lambda_dpo=1"].map(Into::into),
        );
    }
    if !extra.contains(&"--dtype") {
        args.extend(["--dtype".into(), "f32".into()]);
    }
    args.extend(extra.iter().map(|arg| (*arg).to_owned()));
    args
}

fn run(folder: &Path, out: &str, extra: &[&str]) -> Output {
    let args = args(out, extra);
    let output = reprpo_in(folder, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", transcript(&output));
    output
}

/// Number of pairs whose values the run computed.
fn computed(output: &Output) -> usize {
    let text = stderr(output);
    let line = text.lines().find_map(|line| line.strip_prefix("values of the reference: "));
    let n = line.and_then(|line| line.split(' ').next()?.parse().ok());
    n.unwrap_or_else(|| panic!("no number of computed values: {text}"))
}

/// The files with values in the cache of `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let collections = list(&folder.join("cache/reference"));
    let all = collections.iter().flat_map(|collection| list(collection));
    all.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")).collect()
}

fn assert_equal(folder: &Path, one: &str, other: &str) {
    let (one, other) = (folder.join(one), folder.join(other));
    assert_eq!(metrics(&one), metrics(&other));
    for file in ["adapter/adapter_model.safetensors", "eval/summary.json", "eval/pairs.jsonl"] {
        assert!(fs::read(one.join(file)).unwrap() == fs::read(other.join(file)).unwrap(), "{file}");
    }
}

const DISK: [&str; 2] = ["--reference-cache", "disk"];

#[test]
fn runs_with_a_cold_and_a_warm_cache_are_equal_to_runs_without_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let off = run(here, "off", &["--reference-cache", "off"]);
    run(here, "memory", &[]);
    assert_eq!(files(here).len(), 0, "nothing is written by default");
    let cold = run(here, "cold", &DISK);
    let n = computed(&cold);
    assert!(n > 0 && computed(&off) == n);
    let written = files(here);
    let before: Vec<Vec<u8>> = written.iter().map(|file| fs::read(file).unwrap()).collect();
    let warm = run(here, "warm", &DISK);
    let text = stderr(&warm);
    assert!(text.contains(&format!("0 pairs computed, {n} were on disk")), "{text}");
    assert!(text.contains("B of reference values"), "{text}");
    for other in ["memory", "cold", "warm"] {
        assert_equal(here, "off", other);
    }
    let after: Vec<Vec<u8>> = files(here).iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(files(here) == written && before == after, "the warm run changed the cache");
    // A damaged file is computed again, with the same result.
    let mut bytes = before[0].clone();
    let at = bytes.len() - 70;
    bytes[at] ^= 1;
    fs::write(&written[0], bytes).unwrap();
    let repaired = run(here, "repaired", &DISK);
    assert!(
        stderr(&repaired).contains("cached values are computed again"),
        "{}",
        stderr(&repaired)
    );
    assert!(fs::read(&written[0]).unwrap() == before[0]);
    assert_equal(here, "off", "repaired");
}

#[test]
fn other_seeds_batches_and_methods_reuse_the_values_and_other_references_do_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let mut number = 0;
    let mut computes = |extra: &[&str]| {
        number += 1;
        computed(&run(here, &format!("run-{number}"), &[&DISK, extra].concat()))
    };
    assert!(computes(&[]) > 0);
    for extra in [
        &["--seed", "5"][..],
        &["--set", "train.batch=3", "--set", "train.epochs=1"],
        &["--intervention", "dpo"],
        &["--adapter", "hra", "--no-eval"],
        // The held-out pairs depend on the seed.
        &["--set", "train.validate_every=2", "--set", "train.validation_pairs=3"],
        &["--set", "train.validate_every=2", "--set", "train.validation_pairs=3", "--seed", "7"],
        &["--set", "eval.max_pairs=3"],
    ] {
        assert_eq!(computes(extra), 0, "{extra:?}");
    }
    let init = golden::own().join("trl/trajectory_init");
    let init = ["--adapter", "lora", "--init-adapter", init.to_str().expect("UTF-8")];
    for extra in [
        &["--dtype", "bf16"][..],
        &["--set", "attention=eager"],
        &["--layers", "0.5"],
        &["--set", "train.max_length=24"],
        &init,
    ] {
        assert!(computes(extra) > 0, "{extra:?}");
        assert_eq!(computes(extra), 0, "{extra:?}");
    }
    assert_eq!(computes(&[&init[..], &["--set", "train.reference=base"]].concat()), 0);
}

#[test]
fn a_model_file_that_was_written_again_has_its_own_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    copy(&golden::own().join("models/llama"), &here.join("model"));
    let computes = |out: &str| {
        let eval = ["eval", "--model", "./model", "--dataset", "pairs.jsonl", "--json"];
        let before = files(here).len();
        json(&reprpo_in(here, &[&eval[..], &["--set", out], &DISK].concat()));
        files(here).len() > before
    };
    fs::copy(golden::own().join("trl/pairs.jsonl"), here.join("pairs.jsonl")).expect("a copy");
    assert!(computes("eval.score=mean") && !computes("eval.score=sum"));
    // The fingerprint of a large file only covers a part of it, so the time of the file counts too.
    let weights = fs::File::options().append(true).open(here.join("model/model.safetensors"));
    let weights = weights.expect("the weights");
    let time = weights.metadata().and_then(|about| about.modified()).expect("a time");
    weights.set_modified(time + std::time::Duration::from_millis(1)).expect("the time is set");
    assert!(computes("eval.score=mean") && !computes("eval.score=sum"));
}

#[test]
fn runs_of_a_sweep_share_the_values_in_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = args("sweep", &["--over", "train.seed=0,1", "--over", "adapter=lora,hra"]);
    let args: Vec<&str> =
        std::iter::once("sweep").chain(args[1..].iter().map(String::as_str)).collect();
    let output = reprpo_in(folder.path(), &args);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let lines: Vec<&str> =
        text.lines().filter(|line| line.starts_with("values of the reference: ")).collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(!lines[0].contains("in memory"), "{text}");
    for line in &lines[1..] {
        assert!(line.contains(": 0 pairs computed, ") && line.contains("in memory"), "{text}");
    }
}

#[test]
fn two_processes_can_use_the_cache_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let start = |out: &str| {
        let args = args(out, &[&DISK[..], &["--set", "cache.max_gb=4e-5"]].concat());
        let command = isolated_command(here, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let mut command = {
            let mut plain = std::process::Command::new(command.get_program());
            plain.args(command.get_args()).current_dir(here);
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => plain.env(name, value),
                    None => plain.env_remove(name),
                };
            }
            plain
        };
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command runs")
    };
    let children = ["a", "b", "c"].map(start);
    for mut child in children {
        assert!(child.wait().expect("the command ends").success());
    }
    run(here, "alone", &["--reference-cache", "off"]);
    for out in ["a", "b", "c"] {
        assert_equal(here, "alone", out);
    }
    let size: u64 = files(here).iter().map(|file| file.metadata().expect("a file").len()).sum();
    assert!(size <= 80_000, "{size}");
}

#[test]
fn evaluations_reuse_the_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    run(here, "run", &["--no-eval", "--reference-cache", "off"]);
    let eval =
        |extra: &[&str]| json(&reprpo_in(here, &[&["eval", "run", "--json"], extra].concat()));
    let expected = eval(&["--reference-cache", "off"]);
    assert_eq!(eval(&DISK), expected);
    let written = files(here).len();
    assert!(written > 0);
    assert_eq!(eval(&DISK), expected);
    assert_eq!(files(here).len(), written);
}

#[test]
fn the_cache_is_listed_and_cleared() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let empty = reprpo_in(here, &["cache"]);
    assert!(stdout(&empty).is_empty() && stderr(&empty).contains("no values are cached"));
    assert_eq!(json(&reprpo_in(here, &["cache", "--json"]))["bytes"], 0);
    run(here, "run", &DISK);
    let listed = json(&reprpo_in(here, &["cache", "--json"]));
    let collections = listed["collections"].as_array().expect("a list");
    let sum: u64 = collections.iter().map(|one| one["bytes"].as_u64().expect("a number")).sum();
    let size: u64 = files(here).iter().map(|file| file.metadata().expect("a file").len()).sum();
    assert_eq!((listed["bytes"].as_u64(), sum), (Some(size), size));
    for one in collections {
        assert_eq!(one["dtype"], "float32", "{one}");
        assert!(one["model"].as_str().is_some_and(|model| model.contains("llama")), "{one}");
        assert!(one["pairs"].as_u64() > Some(0) && one["last_used"].as_u64() > Some(0), "{one}");
    }
    let values: Vec<&str> = collections.iter().filter_map(|one| one["values"].as_str()).collect();
    assert!(values.contains(&"log-probabilities"), "{values:?}");
    assert!(
        values.iter().any(|values| values.starts_with("states at hidden_states.")),
        "{values:?}"
    );
    let table = stdout(&reprpo_in(here, &["cache"]));
    assert!(
        table.contains("log-probabilities")
            && table.contains("just now")
            && table.contains("total"),
        "{table}"
    );

    let key = collections[0]["key"].as_str().expect("a key");
    let unknown = reprpo_in(here, &["cache", "clear", "zzz"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        stderr(&unknown).contains("unknown key `zzz`") && stderr(&unknown).contains(key),
        "{}",
        stderr(&unknown)
    );
    let removed = json(&reprpo_in(here, &["cache", "clear", &key[..8], "--json"]));
    assert_eq!(removed["collections"][0]["key"], key);
    let left: Value = json(&reprpo_in(here, &["cache", "--json"]));
    let left = left["collections"].as_array().expect("a list");
    assert!(left.len() + 1 == collections.len() && left.iter().all(|one| one["key"] != key));
    assert!(reprpo_in(here, &["cache", "clear"]).status.success());
    assert_eq!(files(here).len(), 0);
}
