//! The interface between a study and the place where its runs are computed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::Experiment;
use crate::error::{Error, Result};

/// A run that must be computed.
#[derive(Clone, Debug)]
pub struct Job {
    /// The name of the run in the study.
    pub name: String,
    /// The folder of the run.
    pub folder: PathBuf,
    /// The experiment.
    pub experiment: Experiment,
}

/// An event that a runner reports.
pub enum Event {
    /// A run is complete, or it failed.
    Completed {
        /// The name of the run.
        name: String,
        /// The error of a failed run.
        error: Option<Error>,
    },
    /// All submitted runs will be computed by another program, which continues the study.
    Submitted,
}

/// Computes runs.
pub trait Runner {
    /// Adds a run to the queue. A folder that contains a part of the run is continued.
    ///
    /// # Errors
    /// Fails if the run cannot be prepared.
    fn submit(&mut self, job: Job) -> Result<()>;

    /// Works until a run is complete. There must be a run in the queue.
    ///
    /// # Errors
    /// Returns `Error::interrupted` if the user stopped the study. Runs in progress have then
    /// written a checkpoint.
    fn wait(&mut self, board: &mut Board<'_>) -> Result<Event>;

    /// Number of threads of each run; `None` if it is not known.
    fn threads(&self) -> Option<usize>;
}

/// Shows the state of a study.
pub trait Monitor: Send {
    /// Called whenever the state has changed. The monitor decides how often it draws.
    fn update(&mut self, view: &View);

    /// Shows a line of text.
    fn message(&mut self, text: &str);

    /// Removes the view.
    fn finish(&mut self);
}

/// The state of a study, for people.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Number of complete runs, including those of earlier processes.
    pub finished: usize,
    /// Number of runs that failed.
    pub failed: usize,
    /// The largest possible number of runs.
    pub total: usize,
    /// The runs in progress.
    pub running: Vec<Running>,
    /// Estimated time until the end; `None` before the first run is complete.
    pub left: Option<Duration>,
}

impl View {
    /// The largest possible number of runs that have not begun.
    pub fn remaining(&self) -> usize {
        self.total.saturating_sub(self.finished + self.failed + self.running.len())
    }
}

/// A run in progress.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// The name of the run.
    pub name: String,
    /// The stage, e.g. `train`.
    pub stage: String,
    /// Number of finished steps of the stage.
    pub done: u64,
    /// Number of steps of the stage, if it is known.
    pub total: Option<u64>,
    /// Values of the latest step, e.g. the loss.
    pub fields: Vec<(String, f64)>,
}

/// The state of a study and the monitor that shows it.
pub struct Board<'a> {
    /// The state.
    pub view: View,
    monitor: &'a mut dyn Monitor,
    /// Number of runs that are computed at the same time.
    jobs: usize,
    began: Vec<(String, Instant)>,
    /// Duration of the runs that this process completed.
    durations: Vec<Duration>,
}

impl<'a> Board<'a> {
    /// Creates a board for a study with at most `total` runs, of which `jobs` are computed at the
    /// same time.
    pub fn new(monitor: &'a mut dyn Monitor, total: usize, jobs: usize) -> Self {
        let view = View { total, ..View::default() };
        Self { view, monitor, jobs, began: Vec::new(), durations: Vec::new() }
    }

    /// Shows a line of text.
    pub fn message(&mut self, text: &str) {
        self.monitor.message(text);
    }

    /// Removes the view.
    pub fn finish(&mut self) {
        self.monitor.finish();
    }

    /// Records that a run has begun.
    pub fn begin(&mut self, name: &str) {
        self.began.push((name.to_owned(), Instant::now()));
        self.view.running.push(Running { name: name.to_owned(), ..Running::default() });
        self.draw();
    }

    /// Changes the progress of a run.
    pub fn progress(&mut self, name: &str, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.view.running.iter_mut().find(|running| running.name == name) {
            change(running);
        }
        self.draw();
    }

    /// Records that a run has ended, and returns its duration in this process.
    pub fn end(&mut self, name: &str, failed: bool) -> Duration {
        self.view.running.retain(|running| running.name != name);
        let began = self.began.iter().position(|(of, _)| of == name);
        let took = began.map_or(Duration::ZERO, |i| self.began.swap_remove(i).1.elapsed());
        match failed {
            true => self.view.failed += 1,
            false => {
                self.view.finished += 1;
                self.durations.push(took);
            }
        }
        self.draw();
        took
    }

    /// Records that a run was already complete.
    pub fn found(&mut self) {
        self.view.finished += 1;
    }

    fn draw(&mut self) {
        self.view.left = (!self.durations.is_empty()).then(|| {
            let mean = self.durations.iter().sum::<Duration>() / self.durations.len() as u32;
            let begun: Duration =
                self.began.iter().map(|(_, began)| began.elapsed().min(mean)).sum();
            let runs = (self.view.remaining() + self.view.running.len()) as u32;
            (mean * runs).saturating_sub(begun) / self.jobs.max(1) as u32
        });
        self.monitor.update(&self.view);
    }
}
