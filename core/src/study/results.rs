//! The trials of a study, and the runs that they share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::objective::Outcome;
use super::space::Point;
use crate::config::Experiment;

/// The part of a study that a trial belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The search for the tuned point.
    Search,
    /// The runs with all seeds.
    Final,
}

/// A point, a seed and the run that belongs to them. A run can belong to two trials: one of the
/// search, and a final one.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Index of the group.
    pub group: usize,
    /// The part of the study.
    pub phase: Phase,
    /// The values of the searched fields.
    pub point: Point,
    /// The share of the full resource.
    pub share: f64,
    /// The name of the run.
    pub run: String,
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The run is not complete.
    Missing,
    /// The run is complete.
    Finished,
    /// The run failed with this error.
    Failed(String),
}

/// A run of a study.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// The experiment.
    pub experiment: Experiment,
    /// The state.
    pub state: State,
    /// The objective; `None` if it is not finite, or if the run has none.
    pub score: Option<f64>,
    /// The other results of a finished run.
    pub outcome: Outcome,
    /// Number of threads that computed the run, if it is known.
    pub threads: Option<usize>,
}

/// Everything that is known about a study.
pub struct Results {
    /// The trials, in the order in which they were planned. This order depends on which runs were
    /// finished first; see [`ordered`](Self::ordered).
    pub trials: Vec<Trial>,
    /// The runs, by name.
    pub runs: BTreeMap<String, Run>,
    /// The tuned point of each group; `None` for a group that is not searched, or not yet.
    pub tuned: Vec<Option<Point>>,
    /// Errors of groups whose search found no point.
    pub errors: Vec<(usize, String)>,
    /// Number of runs that were complete before.
    pub found: usize,
    /// True if the runs were submitted to another program, which continues the study.
    pub submitted: bool,
}

impl Results {
    /// The trials by group and phase, and then in the order of the sampler and of the seeds.
    pub fn ordered(&self) -> Vec<&Trial> {
        let mut trials: Vec<&Trial> = self.trials.iter().collect();
        // The trials of one group and phase are already in their order.
        trials.sort_by_key(|trial| (trial.group, trial.phase));
        trials
    }
}
