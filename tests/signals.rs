//! Runs that a signal asks to end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::golden;

/// Starts the command from a shell that first runs `trap`, with stderr in a pipe.
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
        .expect("it runs")
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

/// SIGHUP, or SIGTERM where the tests themselves were started with it ignored, as by `nohup`.
fn hang_up() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if mask.is_some_and(|mask| mask & 1 == 1) { "TERM" } else { "HUP" }
}

/// Reads stderr up to and including a line that contains `sign`.
fn until(err: &mut impl BufRead, sign: &str) -> String {
    let mut text = String::new();
    while !text.contains(sign) {
        assert!(err.read_line(&mut text).expect("text") > 0, "it ended before `{sign}`: {text}");
    }
    text
}

fn rest(mut err: impl BufRead) -> String {
    let mut text = String::new();
    err.read_to_string(&mut text).expect("text");
    text
}

/// The arguments of a run that takes some seconds.
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
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const READY: &str = "modules adapted";
const LONG: [&str; 2] = ["--set", "train.epochs=100"];

#[test]
fn every_signal_that_asks_for_an_end_leaves_a_checkpoint() {
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
        assert_eq!(child.wait().expect("it ends").code(), Some(130), "{name}: {text}");
        assert!(
            text.contains("interrupted after step") && text.contains("reprpo run --resume"),
            "{name}: {text}"
        );
        assert!(out.join("checkpoints/latest").is_file());
    }
}

/// A failed write to the closed terminal must not end the run before its checkpoint is written.
#[test]
fn a_closed_terminal_leaves_a_checkpoint() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut child = start("", &training(&golden, &out, &[&LONG[..], &["-v"]].concat()));
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    until(&mut err, "loading");
    drop(err);
    while !out.join("metrics.jsonl").is_file() || lines(&out) == 0 {
        assert!(child.try_wait().expect("a status").is_none(), "it ended when its terminal closed");
        std::thread::sleep(Duration::from_millis(50));
    }
    signal(&child, hang_up());
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(out.join("checkpoints/latest").is_file());
}

#[test]
fn a_run_that_was_started_by_nohup_outlives_its_terminal() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let args = training(&golden, &out, &["--set", "train.epochs=2"]);
    let mut child = start("trap '' HUP;", &args);
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    until(&mut err, READY);
    signal(&child, "HUP");
    let text = rest(err);
    assert!(child.wait().expect("it ends").success(), "{text}");
    assert!(out.join("adapter/adapter_model.safetensors").is_file());
}

#[test]
fn a_second_signal_ends_at_once_and_the_last_checkpoint_stays_good() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let args =
        training(&golden, &out, &["--set", "train.epochs=8", "--set", "train.checkpoint_every=1"]);
    let mut child = start("", &args);
    let mut err = BufReader::new(child.stderr.take().expect("stderr"));
    until(&mut err, READY);
    // Two signals in quick succession count as one request.
    signal(&child, "TERM");
    signal(&child, "USR1");
    let text = rest(err);
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{text}");
    assert!(text.contains("interrupted after step"), "{text}");
    let step: usize = std::fs::read_to_string(out.join("checkpoints/latest"))
        .expect("a checkpoint")
        .trim()
        .parse()
        .expect("a step");

    // Opening a pipe that nobody reads blocks, as if a step took long. The run opens its metrics
    // after the model is loaded, and its log before that.
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
        "it ended at a second signal that came soon after the first: {}",
        rest(err)
    );
    let asked = Instant::now();
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(!rest(err).contains("interrupted after step"));
    std::fs::remove_file(&metrics).expect("removed");
    std::fs::rename(&kept, &metrics).expect("moved back");

    // An exit while the next checkpoint was being written leaves a file that is cut off and a
    // temporary one.
    let next = out.join(format!("checkpoints/step-{}", step + 1));
    let whole = std::fs::read(out.join(format!("checkpoints/step-{step}/parameters.safetensors")))
        .expect("parameters");
    std::fs::create_dir(&next).expect("a folder");
    std::fs::write(next.join("parameters.safetensors"), &whole[..whole.len() / 2])
        .expect("written");
    std::fs::write(next.join(".tmpAbCdEf"), &whole[..9]).expect("written");
    resumes(&out);
    let uninterrupted = dir.path().join("whole");
    let args = training(&golden, &uninterrupted, &["--set", "train.epochs=8"]);
    let output = start("", &args).wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = |run: &Path| {
        std::fs::read(run.join("adapter/adapter_model.safetensors")).expect("an adapter")
    };
    assert!(bytes(&out) == bytes(&uninterrupted));
}
