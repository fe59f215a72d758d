//! Computes runs in this process, one after another. They share the values of the reference in
//! memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::runner::{Board, Event, Job, Runner};
use crate::error::{Error, Fault, Result};
use crate::registry::Registry;
use crate::report::Progress;
use crate::run::{self, Prior, Start};

/// Computes runs in this process.
pub struct Local<'a> {
    registry: &'a Registry,
    stop: Arc<AtomicBool>,
    all_messages: bool,
    queue: VecDeque<Job>,
}

impl<'a> Local<'a> {
    /// Creates a runner that stops when `stop` becomes true. If `all_messages` is false, only the
    /// warnings of the runs are shown; the other messages are in their logs.
    pub fn new(registry: &'a Registry, stop: Arc<AtomicBool>, all_messages: bool) -> Self {
        Self { registry, stop, all_messages, queue: VecDeque::new() }
    }

    /// Completes a run. A new run is trained from the start, and an interrupted one from its last
    /// checkpoint, if there is one. A trained run is only evaluated.
    fn complete(&self, job: &Job, progress: &mut dyn Progress) -> Result<()> {
        let (folder, registry) = (job.folder.clone(), self.registry);
        let (experiment, start) = match Prior::find(&folder, &job.experiment, registry)? {
            Prior::None => (job.experiment.clone(), Start::New(folder)),
            Prior::Begun => {
                run::clear(&folder)?;
                (job.experiment.clone(), Start::New(folder))
            }
            Prior::Checkpoint(recorded) => (*recorded, Start::Resume { folder, inexact: false }),
            Prior::Trained(recorded) => {
                return run::judge_trained(&recorded, &folder, registry, &self.stop, progress)
                    .map(drop);
            }
            Prior::Finished(_) => return Ok(()),
        };
        run::run(&experiment, &start, registry, &self.stop, progress).map(drop)
    }
}

impl Runner for Local<'_> {
    fn submit(&mut self, job: Job) -> Result<()> {
        self.queue.push_back(job);
        Ok(())
    }

    fn wait(&mut self, board: &mut Board<'_>) -> Result<Event> {
        let job =
            self.queue.pop_front().ok_or_else(|| Error::internal("there is no run to wait for"))?;
        board.begin(&job.name);
        let (name, all_messages) = (job.name.as_str(), self.all_messages);
        let outcome = self.complete(&job, &mut Report { board, name, all_messages });
        match outcome {
            Err(e) if e.fault() == Fault::Interrupted => Err(e),
            outcome => Ok(Event::Completed { name: job.name, error: outcome.err() }),
        }
    }

    fn threads(&self) -> Option<usize> {
        Some(tch::get_num_threads() as usize)
    }
}

/// Passes the progress of a run on to the board.
struct Report<'a, 'b> {
    board: &'a mut Board<'b>,
    name: &'a str,
    all_messages: bool,
}

impl Progress for Report<'_, '_> {
    fn stage(&mut self, name: &str, total: Option<u64>) {
        self.board.progress(self.name, |running| {
            (running.stage, running.done, running.total) = (name.to_owned(), 0, total);
            running.fields.clear();
        });
    }

    fn skip(&mut self, by: u64) {
        self.board.progress(self.name, |running| running.done += by);
    }

    fn advance(&mut self, by: u64, fields: &[(&str, f64)]) {
        self.board.progress(self.name, |running| {
            running.done += by;
            if !fields.is_empty() {
                running.fields =
                    fields.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            }
        });
    }

    fn message(&mut self, text: &str) {
        if self.all_messages {
            self.board.message(text);
        } else if text.starts_with("warning") {
            self.board.message(&format!("{}: {text}", self.name));
        }
    }

    fn finish(&mut self) {}
}
