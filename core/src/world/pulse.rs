//! The heartbeat of the ranks: each one reports its step, and notices when another one ends or
//! stops.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ffi::Store;

/// Time between two reports.
const EVERY: Duration = Duration::from_secs(5);
/// A rank that has not reported for this time counts as lost.
const LOST: Duration = Duration::from_secs(13);
/// How long an operation of the store may take.
const ANSWER: Duration = Duration::from_secs(8);

/// The report of a rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Report {
    /// Number of reports so far.
    beat: u64,
    /// Number of finished steps.
    step: usize,
    /// Why the rank ends; `None` while it computes.
    end: Option<End>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum End {
    Finished,
    Failed(String),
}

/// Called when a rank is lost while this one may wait for it. It must end the process.
pub type OnLoss = Arc<dyn Fn(Error) + Send + Sync>;

/// The reports of all ranks.
pub struct Pulse {
    shared: Arc<Shared>,
    /// The first thread exchanges reports through the store. It hangs if the store does not answer,
    /// so the second thread checks when the store answered last.
    threads: [Thread; 2],
}

struct Shared {
    rank: usize,
    size: usize,
    step: AtomicUsize,
    ended: AtomicBool,
    beat: Mutex<u64>,
    /// When the store answered last.
    answered: Mutex<Instant>,
    /// Number of finished steps of rank 0, as far as this rank knows.
    step_of_first: AtomicUsize,
    /// Why the world cannot continue, once it is known.
    lost: Mutex<Option<String>>,
}

impl Pulse {
    /// Starts to report through `store`.
    pub fn start(store: Store, rank: usize, size: usize, on_loss: OnLoss) -> Result<Self> {
        let shared = Arc::new(Shared {
            rank,
            size,
            step: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            beat: Mutex::new(0),
            answered: Mutex::new(Instant::now()),
            step_of_first: AtomicUsize::new(0),
            lost: Mutex::new(None),
        });
        shared.report(&store, None)?;
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .map(|handle| handle.thread().clone())
                .map_err(|e| Error::internal("cannot start the heartbeat").because(e))
        };
        let (reporter, alarm) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = [
            spawn("heartbeat", Box::new(move || reporter.exchange(&store)))?,
            spawn("alarm", Box::new(move || alarm.watch(&on_loss)))?,
        ];
        Ok(Self { shared, threads })
    }

    /// Sets the number of finished steps for the next report.
    pub fn at_step(&self, step: usize) {
        self.shared.step.store(step, Ordering::Relaxed);
    }

    /// Ends the reports. The last one says how this rank ended.
    pub fn end(&mut self, store: &Store, failure: Option<&Error>) {
        if self.shared.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let end = failure.map_or(End::Finished, |e| End::Failed(e.in_a_line()));
        // The process ends anyway. The others notice that the reports stop.
        let _ = self.shared.report(store, Some(end));
        self.threads.iter().for_each(Thread::unpark);
    }

    /// After an operation failed with `e`: waits until it is known which rank has ended, and
    /// explains the error.
    pub fn explain(&self, e: Error) -> Error {
        let begin = Instant::now();
        while begin.elapsed() < LOST + EVERY + EVERY {
            if let Some(why) = self.shared.why_lost() {
                return Error::new(why).because(e);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        e.within("the ranks lost their connection, although all of them still report")
    }
}

impl Shared {
    fn report(&self, store: &Store, end: Option<End>) -> Result<()> {
        let mut beat = self.beat.lock().map_err(|_| Error::internal("the heartbeat failed"))?;
        *beat += 1;
        let report = Report { beat: *beat, step: self.step.load(Ordering::Relaxed), end };
        let text = serde_json::to_vec(&report).map_err(|e| Error::internal(e.to_string()))?;
        store.set(&key(self.rank), &text)
    }

    /// Reports and reads the other reports until this rank ends or another one is lost.
    fn exchange(&self, store: &Store) {
        let mut known = vec![(Report::default(), Instant::now()); self.size];
        while !self.ended.load(Ordering::Relaxed) {
            if let Ok(lost) = self.report(store, None).and_then(|()| self.look(store, &mut known)) {
                if let Ok(mut answered) = self.answered.lock() {
                    *answered = Instant::now();
                }
                self.step_of_first.store(known[0].0.step, Ordering::Relaxed);
                if let Some(why) = lost {
                    self.lose(why);
                    return;
                }
            }
            std::thread::park_timeout(EVERY);
        }
    }

    /// Describes the number of steps that another rank has finished. It has reported `reported`. To
    /// finish a step, this rank has needed the other's share of it, so the other had finished the
    /// step before.
    fn at_least(&self, reported: usize) -> String {
        let own = self.step.load(Ordering::Relaxed);
        format!("at least {}", steps(reported.max(own.saturating_sub(1))))
    }

    fn lose(&self, why: String) {
        if let Ok(mut lost) = self.lost.lock() {
            lost.get_or_insert(why);
        }
    }

    fn why_lost(&self) -> Option<String> {
        self.lost.lock().ok().and_then(|lost| lost.clone())
    }

    /// Ends the process when a rank is lost or the store does not answer.
    fn watch(&self, on_loss: &OnLoss) {
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_secs(1));
            let silent = self.answered.lock().map_or(Duration::ZERO, |answered| answered.elapsed());
            if silent > LOST {
                self.lose(format!(
                    "the store of the ranks has not answered for {} s; its host, rank 0 or the \
                        launcher, has ended or hangs; rank 0 had finished {}",
                    silent.as_secs(),
                    self.at_least(self.step_of_first.load(Ordering::Relaxed))
                ));
            }
            let Some(why) = self.why_lost() else { continue };
            // The main thread may be in an operation that waits for the lost rank. If it is not, it
            // reports the error itself.
            std::thread::sleep(Duration::from_secs(2));
            if !self.ended.load(Ordering::Relaxed) {
                on_loss(Error::new(why));
            }
            return;
        }
    }

    /// Reads the reports of the other ranks. Returns why the world cannot continue.
    fn look(&self, store: &Store, known: &mut [(Report, Instant)]) -> Result<Option<String>> {
        let now = Instant::now();
        for (rank, (report, since)) in known.iter_mut().enumerate() {
            if rank == self.rank || report.end.is_some() {
                continue;
            }
            if store.has(&key(rank))? {
                let text = store.get(&key(rank), ANSWER)?;
                let found: Report = serde_json::from_slice(&text)
                    .map_err(|e| Error::internal("a report is damaged").because(e))?;
                if found != *report {
                    (*report, *since) = (found, now);
                }
            }
            if let Some(End::Failed(why)) = &report.end {
                return Ok(Some(format!("rank {rank} failed after {}: {why}", steps(report.step))));
            }
            if report.end.is_none() && since.elapsed() > LOST {
                return Ok(Some(format!(
                    "rank {rank} has not answered for {} s; it had finished {}",
                    since.elapsed().as_secs(),
                    self.at_least(report.step)
                )));
            }
        }
        Ok(None)
    }
}

fn key(rank: usize) -> String {
    format!("report/{rank}")
}

fn steps(steps: usize) -> String {
    format!("{steps} step{}", if steps == 1 { "" } else { "s" })
}
