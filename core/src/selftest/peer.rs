//! Compares this program's training speed with TRL and PEFT on the same machine. Both sides use the
//! same model shape, adapter, precision, batch size and number of tokens, and take turns.
//!
//! TRL and PEFT run in a child process, the peer. The peer waits while this program computes. The
//! peer reads this program's adapter in PEFT's format, so both sides train the same parameters.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tch::Kind;

use super::report::{Outcome, Row};
use super::shapes::{LARGE, SMALL, Shape};
use super::speed::{Plan, TOKENS, Trainer};
use super::{Section, Selftest, kind_name};
use crate::error::{Context, Error, Result};
use crate::ffi::libtorch_folder;
use crate::files::write_whole;
use crate::memory::Memory;
use crate::session::device_name;

const SCRIPT: &str = include_str!("peer.py");
/// Number of measurements of each side.
const ROUNDS: usize = 3;
/// Time limit for starting the peer, and for each of its measurements.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// The side that failed, with its error.
enum Failure {
    /// This program failed.
    Ours(Error),
    /// The peer failed. This is not a failure of this program.
    Peer(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Ours(e)
    }
}

/// Compares the training speed on each model shape. If the peer cannot run, the comparison is
/// skipped.
///
/// # Errors
/// Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let shapes = if test.device.is_cuda() { &[SMALL, LARGE][..] } else { &[SMALL] };
    test.begin(Section::Peer, shapes.len());
    for shape in shapes {
        test.check(Section::Peer, shape.name, |test| match compared(test, shape) {
            Ok(row) => Ok(vec![row]),
            // Ctrl-C also ends the peer, which is in the same process group.
            Err(_) if test.stop.load(Ordering::Relaxed) => Err(Error::interrupted("interrupted")),
            Err(Failure::Peer(e)) => {
                Ok(vec![Row::new(Section::Peer, shape.name, Outcome::Skipped, e.in_a_line())])
            }
            Err(Failure::Ours(e)) => Err(e),
        })?;
    }
    Ok(())
}

fn compared(test: &mut Selftest<'_>, shape: &Shape) -> Result<Row, Failure> {
    let mut plan = Plan::of(test.device, test.options.full);
    plan.steps = if test.device.is_cuda() { plan.steps } else { 2 };
    let memory = Memory::begin(test.device)?;
    let mut ours = Trainer::new(&test.workshop, shape, test.device)?;
    let folder = test.workshop.scratch(&format!("peer-{}", shape.name))?;
    ours.write_adapter(&folder.join("adapter"))?;
    let dtype = if ours.model.kind() == Kind::BFloat16 { "bfloat16" } else { "float32" };
    let spec = json!({
        "config": shape.config(), "adapter": folder.join("adapter"), "folder": folder.join("out"),
        "device": device_name(test.device), "dtype": dtype,
        "threads": tch::get_num_threads(), "steps": plan.steps, "batch": plan.batch,
        "tokens": TOKENS,
    });
    let mut peer = Peer::start(&folder, &spec).map_err(Failure::Peer)?;
    let ready = peer.answer(test.stop).map_err(Failure::Peer)?;
    if let Some(missing) = ready["missing"].as_array() {
        let missing: Vec<&str> = missing.iter().filter_map(Value::as_str).collect();
        return Err(Failure::Peer(Error::new(format!(
            "`python3` cannot import {}",
            missing.join(", ")
        ))));
    }
    let number = |answer: &Value, name: &str| {
        let number = answer[name].as_f64();
        number.ok_or_else(|| {
            Failure::Peer(Error::new(format!("the peer's answer does not contain `{name}`")))
        })
    };
    let (mine, theirs) = (ours.trained() as f64, number(&ready, "trained")?);
    if mine != theirs {
        return Err(Failure::Peer(Error::new(format!(
            "PEFT trains {theirs} parameters instead of {mine}, so the speeds cannot be compared"
        ))));
    }
    let pairs = (plan.steps * plan.batch) as f64;
    let (mut rates, mut ratios, mut peak) = (Vec::new(), Vec::new(), 0.0);
    for _ in 0..ROUNDS {
        ours.steps(1, plan.batch, test.stop)?;
        let mine = pairs / ours.steps(plan.steps, plan.batch, test.stop)?;
        let answer = peer.ask(test.stop).map_err(Failure::Peer)?;
        let theirs = pairs / number(&answer, "seconds")?;
        peak = number(&answer, "peak")?;
        rates.push([mine, theirs]);
        ratios.push(mine / theirs);
    }
    let (own_peak, _) = memory.peak()?;
    let [mine, theirs] = [0, 1].map(|side| median(rates.iter().map(|pair| pair[side]).collect()));
    let ratio = median(ratios);
    let kind = kind_name(ours.model.kind());
    let versions = ready["versions"].clone();
    let of = |name: &str| versions[name].as_str().unwrap_or("?").to_owned();
    let compared = format!(
        "{ratio:.2} times as fast as TRL {} with PEFT {}: {mine:.2} against {theirs:.2} pairs/s, \
            peak {:.2} against {:.2} GB; {}, {kind}, batches of {} × ({TOKENS} + \
         {TOKENS}) tokens, medians of {ROUNDS} runs",
        of("trl"),
        of("peft"),
        own_peak / 1e9,
        peak / 1e9,
        ours.methods,
        plan.batch,
    );
    let mut row = Row::new(Section::Peer, shape.name, Outcome::Measured, compared);
    row.values = json!({
        "ratio": ratio, "pairs_per_second": mine, "peer_pairs_per_second": theirs, "rounds": rates,
        "peak_gb": own_peak / 1e9, "peer_peak_gb": peak / 1e9,
        "methods": ours.methods, "trained": ours.trained(), "dtype": kind, "batch": plan.batch,
        "prompt_tokens": TOKENS, "completion_tokens": TOKENS,
        "steps": plan.steps, "versions": versions,
    });
    Ok(row)
}

/// Removes a folder from a search path.
fn without(path: &OsStr, folder: &Path) -> Result<OsString> {
    let other = std::env::split_paths(path)
        .filter(|entry| entry.canonicalize().map_or(true, |entry| entry != folder));
    std::env::join_paths(other)
        .map_err(|e| Error::new("cannot change `LD_LIBRARY_PATH`").because(e))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The peer's process.
struct Peer {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
    log: PathBuf,
}

impl Peer {
    fn start(folder: &Path, spec: &Value) -> Result<Self> {
        let (script, file, log) =
            (folder.join("peer.py"), folder.join("spec.json"), folder.join("log.txt"));
        write_whole(&script, SCRIPT.as_bytes())?;
        write_whole(&file, spec.to_string().as_bytes())?;
        let stderr =
            std::fs::File::create(&log).within(|| format!("cannot write `{}`", log.display()))?;
        let mut command = Command::new("python3");
        // reprpo's launcher may have added its libtorch to the search path. The peer's torch may be
        // a different version and must not load this libtorch.
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", without(&path, libtorch_folder())?);
        }
        command.arg(&script).arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().within(|| "cannot start `python3`".to_owned())?;
        let (Some(questions), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::internal("the peer has no pipes"));
        };
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, questions, answers, log })
    }

    /// Requests another measurement, and returns the peer's answer.
    fn ask(&mut self, stop: &AtomicBool) -> Result<Value> {
        let asked = self.questions.write_all(b"\n").and_then(|()| self.questions.flush());
        asked.map_err(|e| self.ended().because(e))?;
        self.answer(stop)
    }

    /// Waits for the peer's next line and parses it.
    fn answer(&mut self, stop: &AtomicBool) -> Result<Value> {
        let begin = Instant::now();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::interrupted("interrupted"));
            }
            match self.answers.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    return serde_json::from_str(&line)
                        .map_err(|e| Error::new("the peer's answer is not JSON").because(e));
                }
                Err(RecvTimeoutError::Timeout) if begin.elapsed() > LONGEST => {
                    return Err(Error::new(format!(
                        "the peer did not answer within {} minutes",
                        LONGEST.as_secs() / 60
                    )));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        }
    }

    /// The error for a process that ended early. It contains the last line of the peer's log.
    fn ended(&self) -> Error {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no output");
        Error::new(format!("the peer ended early: {}", last.trim()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_libtorch_of_this_process_is_removed_from_the_search_path() {
        let folder = tempfile::tempdir().unwrap().keep().canonicalize().unwrap();
        let path =
            std::env::join_paths([folder.join("."), "/nowhere".into(), folder.join("..")]).unwrap();
        let rest = without(&path, &folder).unwrap();
        assert_eq!(rest, std::env::join_paths(["/nowhere".into(), folder.join("..")]).unwrap());
        assert_eq!(without(folder.as_os_str(), &folder).unwrap(), "");
        std::fs::remove_dir(&folder).unwrap();
    }
}
