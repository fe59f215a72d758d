//! Computes several runs at the same time, each in a process of its own.
//!
//! A worker is `reprpo run --worker DIR`, with the folder of the study. It writes its progress as
//! JSON lines to stdout, and its other output goes to a log in the study's folder. Its stdin is a
//! pipe from this process. When the pipe is closed, also because this process was killed, the
//! worker writes a checkpoint and ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use serde_json::Value;

use super::runner::{Board, Event, Job, Runner, Running};
use crate::error::{Context, Error, Result, quoted};
use crate::files::write_whole;

/// How the workers are started.
pub struct WorkerSettings {
    /// The program.
    pub program: PathBuf,
    /// Further arguments of `run`.
    pub arguments: Vec<String>,
    /// Names of environment variables that the workers must not inherit.
    pub hidden: Vec<String>,
    /// Number of workers.
    pub jobs: usize,
    /// Number of threads of each worker.
    pub threads: usize,
    /// The cards to distribute the workers to; empty to leave the choice to the workers.
    pub cards: Vec<String>,
}

/// Name of the file that every worker of a study locks, together with the other workers.
const LOCK: &str = ".workers";

/// Locks the study in `folder` for a worker. The lock ends with the process.
///
/// # Errors
/// Fails if the file cannot be opened.
pub fn lock_as_worker(folder: &Path) -> Result<File> {
    let file = open_lock(folder)?;
    // Some file systems do not support locks.
    let _ = file.lock_shared();
    Ok(file)
}

/// Waits until the workers of an earlier process have ended, which write their checkpoints. Calls
/// `message` if there are any.
///
/// # Errors
/// Fails if the file cannot be opened.
pub fn wait_for_workers(folder: &Path, message: impl FnOnce()) -> Result<()> {
    let file = open_lock(folder)?;
    if matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
        message();
        let _ = file.lock();
    }
    Ok(())
}

fn open_lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .within(|| format!("cannot write `{}`", path.display()))
}

/// Computes runs in several processes.
pub struct Workers {
    settings: WorkerSettings,
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    queue: VecDeque<Job>,
    slots: Vec<Option<Worker>>,
    sender: Sender<(usize, Option<Value>)>,
    receiver: Receiver<(usize, Option<Value>)>,
}

struct Worker {
    name: String,
    child: Child,
    /// Closing it asks the worker to stop.
    stdin: Option<ChildStdin>,
    log: PathBuf,
    /// Length of the log before the worker was started.
    log_start: u64,
}

/// The exit code of a run that was interrupted.
const INTERRUPTED: i32 = 130;
/// Interval at which the flag `stop` is read.
const POLL: Duration = Duration::from_millis(100);

impl Workers {
    /// Creates the runner of the study in `folder`.
    pub fn new(settings: WorkerSettings, folder: PathBuf, stop: Arc<AtomicBool>) -> Self {
        let (sender, receiver) = channel();
        let slots = (0..settings.jobs.max(1)).map(|_| None).collect();
        Self { settings, folder, stop, queue: VecDeque::new(), slots, sender, receiver }
    }

    fn start(&mut self, slot: usize, job: &Job) -> Result<()> {
        let logs = self.folder.join("logs");
        std::fs::create_dir_all(&logs)
            .within(|| format!("cannot create the folder `{}`", logs.display()))?;
        let log = logs.join(format!("{}.log", job.name));
        let within = || format!("cannot write `{}`", log.display());
        let file = File::options().create(true).append(true).open(&log).within(within)?;
        let log_start = file.metadata().within(within)?.len();
        let plan = write_plan(&self.folder, job)?;
        let mut command = Command::new(&self.settings.program);
        command.args(["run", "--quiet", "--resume", "auto", "--worker"]).arg(&self.folder);
        command
            .arg("--config")
            .arg(plan)
            .arg("--out")
            .arg(&job.folder)
            .args(&self.settings.arguments);
        for name in &self.settings.hidden {
            command.env_remove(name);
        }
        command
            .env("OMP_NUM_THREADS", self.settings.threads.to_string())
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file);
        // A run that names its card must see all of them.
        let cards = &self.settings.cards;
        if !cards.is_empty() && ["auto", "cuda"].contains(&job.experiment.device.as_str()) {
            command.env("CUDA_VISIBLE_DEVICES", &cards[slot % cards.len()]);
        }
        let mut child = command.spawn().map_err(|e| {
            let program = self.settings.program.display();
            Error::internal(format!("cannot start `{program}`")).because(e)
        })?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let sender = self.sender.clone();
        let read = move || {
            for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { break };
                if let Ok(event) = serde_json::from_str(&line)
                    && sender.send((slot, Some(event))).is_err()
                {
                    return;
                }
            }
            // If the study has ended, nobody waits for the worker.
            let _ = sender.send((slot, None));
        };
        std::thread::Builder::new()
            .name("worker".to_owned())
            .spawn(read)
            .map_err(|e| Error::internal("cannot start a thread").because(e))?;
        self.slots[slot] = Some(Worker { name: job.name.clone(), child, stdin, log, log_start });
        Ok(())
    }

    fn fill(&mut self, board: &mut Board<'_>) -> Result<()> {
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_none()
                && let Some(job) = self.queue.pop_front()
            {
                self.start(slot, &job)?;
                board.begin(&job.name);
            }
        }
        Ok(())
    }

    /// Waits for a moment until `stop` becomes true. Returns false if it does not.
    fn is_stopping(&self) -> bool {
        (0..10).any(|_| {
            let stops = self.stop.load(Ordering::Relaxed);
            if !stops {
                std::thread::sleep(POLL);
            }
            stops
        })
    }

    /// Asks all workers to write a checkpoint, and waits until they have ended.
    fn interrupt(&mut self) {
        for worker in self.slots.iter_mut().flatten() {
            drop(worker.stdin.take());
        }
        for worker in self.slots.iter_mut().flatten() {
            // The worker has ended if this fails.
            let _ = worker.child.wait();
        }
        self.slots.iter_mut().for_each(|slot| *slot = None);
    }
}

/// Writes the configuration of a run to the study's folder and returns the path of the file.
pub(super) fn write_plan(folder: &Path, job: &Job) -> Result<PathBuf> {
    let plans = folder.join("plan");
    std::fs::create_dir_all(&plans)
        .within(|| format!("cannot create the folder `{}`", plans.display()))?;
    let plan = plans.join(format!("{}.toml", job.name));
    write_whole(&plan, job.experiment.to_toml().as_bytes())?;
    Ok(plan)
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.interrupt();
    }
}

impl Runner for Workers {
    fn submit(&mut self, job: Job) -> Result<()> {
        self.queue.push_back(job);
        Ok(())
    }

    fn wait(&mut self, board: &mut Board<'_>) -> Result<Event> {
        self.fill(board)?;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                board.message("stopping: each run in progress writes a checkpoint");
                self.interrupt();
                return Err(Error::interrupted("the study was interrupted"));
            }
            let (slot, event) = match self.receiver.recv_timeout(POLL) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("the channel of the workers is closed"));
                }
            };
            match event {
                Some(event) => {
                    let Some(worker) = &self.slots[slot] else { continue };
                    let name = worker.name.clone();
                    if let Some(text) = event["message"].as_str() {
                        board.message(&format!("{name}: {text}"));
                    }
                    board.progress(&name, |running| apply(running, &event));
                }
                None => {
                    let Some(mut worker) = self.slots[slot].take() else { continue };
                    let status = worker
                        .child
                        .wait()
                        .map_err(|e| Error::internal("cannot wait for a worker").because(e))?;
                    // A terminal interrupts the workers together with this process, and they may
                    // notice it first.
                    if status.code() == Some(INTERRUPTED) && self.is_stopping() {
                        self.interrupt();
                        return Err(Error::interrupted("the study was interrupted"));
                    }
                    let error = (!status.success()).then(|| worker.failure(status));
                    return Ok(Event::Completed { name: worker.name, error });
                }
            }
        }
    }

    fn threads(&self) -> Option<usize> {
        Some(self.settings.threads)
    }
}

/// Applies an event of a worker to the progress of its run.
fn apply(running: &mut Running, event: &Value) {
    if let Some(stage) = event["stage"].as_str() {
        stage.clone_into(&mut running.stage);
        running.total = event["total"].as_u64();
        running.fields.clear();
    }
    if let Some(done) = event["done"].as_u64() {
        running.done = done;
    }
    if let Some(fields) = event["fields"].as_object().filter(|fields| !fields.is_empty()) {
        let number = |(name, value): (&String, &Value)| Some((name.clone(), value.as_f64()?));
        running.fields = fields.iter().filter_map(number).collect();
    }
}

impl Worker {
    /// The error of a worker that failed: the lines that it wrote from its last `error:` on.
    fn failure(&self, status: ExitStatus) -> Error {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[(self.log_start as usize).min(bytes.len())..]);
        let hint = format!("see `{}`", quoted(&self.log));
        let Some(at) = text.rfind("error: ") else {
            let how = status.code().map_or_else(
                || format!("the worker was killed ({status}), perhaps because memory ran out"),
                |code| format!("the worker ended with exit code {code}"),
            );
            return Error::new(how).hint(hint);
        };
        let lines: Vec<&str> = text[at + "error: ".len()..]
            .lines()
            .map(str::trim)
            .take_while(|line| !line.is_empty())
            .collect();
        Error::new(lines.join(", ")).hint(hint)
    }
}
