//! Runs that receive a termination signal.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::golden;

/// Starts the command from a shell that first executes `trap`, with stderr in a pipe.
fn start(trap: &str, args: &[impl AsRef<std::ffi::OsStr>]) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{trap} exec \"$@\""), "sh"])
        .arg(assert_cmd::cargo::cargo_bin!("reprpo"))
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs")
}

fn signal(child: &Child, name: &str) {
    assert!(
        Command::new("kill")
            .args([&format!("-{name}"), &child.id().to_string()])
            .status()
            .expect("kill")
            .success()
    );
}

/// Returns SIGHUP, or SIGTERM if the test process ignores SIGHUP, e.g. because it was started by
/// `nohup`.
fn hang_up() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if mask.is_some_and(|mask| mask & 1 == 1) { "TERM" } else { "HUP" }
}

/// Reads stderr up to and including the first line that contains `sign`.
fn until(err: &mut impl BufRead, sign: &str) -> String {
    let mut text = String::new();
    while !text.contains(sign) {
        assert!(
            err.read_line(&mut text).expect("text") > 0,
            "the command ended before it printed `{sign}`: {text}"
        );
    }
    text
}

fn rest(mut err: impl BufRead) -> String {
    let mut text = String::new();
    err.read_to_string(&mut text).expect("text");
    text
}

/// Returns the arguments of a run that takes some seconds.
fn training(golden: &Path, out: &Path, extra: &[&str]) -> Vec<String> {
    let path = |p: &Path| p.display().to_string();
    let (model, data) = (path(&golden.join("models/llama")), path(&golden.join("trl/pairs.jsonl")));
    let mut args: Vec<String> = [
        "run",
        "--no-eval",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--model",
        &model,
        "--dataset",
        &data,
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend(["--out".to_owned(), path(out)]);
    args.extend(extra.iter().map(|s| (*s).to_owned()));
    args
}

fn lines(out: &Path) -> usize {
    std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics").lines().count()
}

fn resumes(out: &Path) {
    let out = out.display().to_string();
    let child = start("", &["run", "--resume", &out]);
    let output = child.wait_with_output().expect("the command ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const READY: &str = "modules adapted";
const LONG: [&str; 2] = ["--set", "train.epochs=100"];

#[test]
fn every_termination_signal_leaves_a_checkpoint() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for (run, name) in ["TERM", hang_up(), "USR1", "USR2"].into_iter().enumerate() {
        let out = dir.path().join(run.to_string());
        let args = training(&golden, &out, &LONG);
        let mut child = start("", &args);
        let mut err = BufReader::new(child.stderr.take().expect("stderr"));
        until(&mut err, READY);
        signal(&child, name);
        let text = rest(err);
        assert_eq!(child.wait().expect("the command ends").code(), Some(130), "{name}: {text}");
        assert!(
            text.contains("interrupted after step") && text.contains("reprpo run --resume"),
            "{name}: {text}"
        );
        assert!(out.join("checkpoints/latest").is_file());
    }
}

/// A failed write to the closed terminal must not end the run before it has written a checkpoint.
#[test]
fn a_run_whose_terminal_closes_leaves_a_checkpoint() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut child = start("", &training(&golden, &out, &[&LONG[..], &["-v"]].concat()));
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    until(&mut err, "loading");
    drop(err);
    while !out.join("metrics.jsonl").is_file() || lines(&out) == 0 {
        assert!(
            child.try_wait().expect("a status").is_none(),
            "the run ended when its terminal closed"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    signal(&child, hang_up());
    assert_eq!(child.wait().expect("the command ends").code(), Some(130));
    assert!(out.join("checkpoints/latest").is_file());
}

#[test]
fn a_run_started_by_nohup_survives_its_terminal() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let args = training(&golden, &out, &["--set", "train.epochs=2"]);
    let mut child = start("trap '' HUP;", &args);
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    until(&mut err, READY);
    signal(&child, "HUP");
    let text = rest(err);
    assert!(child.wait().expect("the command ends").success(), "{text}");
    assert!(out.join("adapter/adapter_model.safetensors").is_file());
}

#[test]
fn a_second_signal_ends_the_run_at_once_and_keeps_the_last_checkpoint_valid() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let args =
        training(&golden, &out, &["--set", "train.epochs=8", "--set", "train.checkpoint_every=1"]);
    let mut child = start("", &args);
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    until(&mut err, READY);
    // Two signals in quick succession count as one.
    signal(&child, "TERM");
    signal(&child, "USR1");
    let text = rest(err);
    assert_eq!(child.wait().expect("the command ends").code(), Some(130), "{text}");
    assert!(text.contains("interrupted after step"), "{text}");
    let step: usize = std::fs::read_to_string(out.join("checkpoints/latest"))
        .expect("a checkpoint")
        .trim()
        .parse()
        .expect("a step");

    // Opening a pipe that nobody reads blocks, which simulates a long step. The run opens its log
    // before it loads the model, and its metrics afterwards.
    let (metrics, kept) = (out.join("metrics.jsonl"), out.join("kept.jsonl"));
    std::fs::rename(&metrics, &kept).expect("moved");
    assert!(Command::new("mkfifo").arg(&metrics).status().expect("mkfifo").success());
    let mut child = start("", &["run", "--resume", &out.display().to_string()]);
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    until(&mut err, "loading");
    signal(&child, "TERM");
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "TERM");
    std::thread::sleep(Duration::from_millis(2200));
    assert!(
        child.try_wait().expect("a status").is_none(),
        "a second signal shortly after the first ended the run: {}",
        rest(err)
    );
    let asked = Instant::now();
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("the command ends").code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(!rest(err).contains("interrupted after step"));
    std::fs::remove_file(&metrics).expect("removed");
    std::fs::rename(&kept, &metrics).expect("moved back");

    // A run that ends while it writes a checkpoint leaves a truncated file and a temporary file.
    let next = out.join(format!("checkpoints/step-{}", step + 1));
    let parameters =
        std::fs::read(out.join(format!("checkpoints/step-{step}/parameters.safetensors")))
            .expect("parameters");
    std::fs::create_dir(&next).expect("a folder");
    std::fs::write(next.join("parameters.safetensors"), &parameters[..parameters.len() / 2])
        .expect("the file is written");
    std::fs::write(next.join(".tmpAbCdEf"), &parameters[..9]).expect("the file is written");
    resumes(&out);
    let uninterrupted = dir.path().join("whole");
    let args = training(&golden, &uninterrupted, &["--set", "train.epochs=8"]);
    let output = start("", &args).wait_with_output().expect("the command ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = |run: &Path| {
        std::fs::read(run.join("adapter/adapter_model.safetensors")).expect("an adapter")
    };
    assert!(bytes(&out) == bytes(&uninterrupted));
}
