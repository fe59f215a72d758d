//! Runs a study: searches each group, and then computes its final runs.
//!
//! The engine keeps no state of its own. It asks the samplers from the beginning and finds the runs
//! that are already complete in the study's folder. Repeating it therefore computes only what is
//! missing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::objective::{self, Outcome};
use super::plan::{Group, Plan, Resolver};
use super::record;
use super::results::{Phase, Results, Run, State, Trial};
use super::runner::{Board, Event, Job, Runner};
use super::sampler::{Sampler, SharedConversation};
use super::space::Point;
use crate::error::{Error, Fault, Result, quoted};
use crate::registry::Registry;
use crate::run::{Prior, in_use};

/// A study and what it needs to run.
pub struct Study<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The folder of the study.
    pub folder: &'a Path,
    /// The command line, for the record.
    pub command: &'a [String],
    /// The registered plugins.
    pub registry: &'a Registry,
    /// Resolves the experiments.
    pub resolver: &'a Resolver<'a>,
    /// The external sampler, if the search has one.
    pub conversation: Option<SharedConversation>,
}

/// The progress of a group.
enum Stage {
    Search { sampler: Box<dyn Sampler>, open: Vec<usize> },
    Final,
}

/// Waiting time for another process that is writing to a run, such as a worker of a study that was
/// killed.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

impl Study<'_> {
    /// Runs the study.
    ///
    /// # Errors
    /// Fails if a run in the study's folder has a different configuration, or if a file cannot be
    /// written. Returns `Error::interrupted` if the user stopped the study. A run that fails does
    /// not end the study.
    pub fn run(&self, runner: &mut dyn Runner, board: &mut Board<'_>) -> Result<Results> {
        let mut engine = Engine {
            study: self,
            runner,
            board,
            threads: record::threads(self.folder),
            results: Results {
                trials: Vec::new(),
                runs: BTreeMap::new(),
                tuned: vec![None; self.plan.groups.len()],
                errors: Vec::new(),
                found: 0,
                submitted: false,
            },
        };
        let outcome = engine.run();
        engine.board.finish();
        let results = engine.results;
        // An error of the study itself must not change its record.
        if outcome.as_ref().map_or_else(|e| e.fault() == Fault::Interrupted, |()| true) {
            record::write(self, &results)?;
        }
        outcome.map_err(|e| match e.fault() {
            Fault::Interrupted => e.hint(format!(
                "to continue, repeat the command with `--out {}`",
                quoted(self.folder)
            )),
            _ => e,
        })?;
        if let Some(conversation) = &self.conversation {
            conversation.borrow_mut().send(&record::end(self.plan, &results))?;
        }
        Ok(results)
    }
}

struct Engine<'s, 'a, 'b> {
    study: &'s Study<'a>,
    runner: &'s mut dyn Runner,
    board: &'s mut Board<'b>,
    /// Numbers of threads of runs that an earlier process completed.
    threads: BTreeMap<String, usize>,
    results: Results,
}

impl Engine<'_, '_, '_> {
    fn run(&mut self) -> Result<()> {
        let plan = self.study.plan;
        let mut stages: Vec<Option<Stage>> = Vec::new();
        for group in &plan.groups {
            let conversation = self.study.conversation.as_ref();
            stages.push(Some(match plan.search.as_ref().filter(|_| !group.space.is_empty()) {
                Some(search) => Stage::Search {
                    sampler: search.sampler(&group.name, &group.space, conversation)?,
                    open: Vec::new(),
                },
                None => Stage::Final,
            }));
        }
        loop {
            for (group, stage) in stages.iter_mut().enumerate() {
                self.advance(group, stage)?;
            }
            let missing = self.results.runs.values().filter(|run| run.state == State::Missing);
            if missing.count() == 0 {
                return Ok(());
            }
            match self.runner.wait(self.board)? {
                Event::Submitted => {
                    self.results.submitted = true;
                    return Ok(());
                }
                Event::Completed { name, error } => self.complete(&name, error)?,
            }
        }
    }

    /// Advances a group as far as its results allow. Adds the runs that are needed next.
    fn advance(&mut self, group: usize, stage: &mut Option<Stage>) -> Result<()> {
        let plan = self.study.plan;
        while let Some(current) = stage {
            match current {
                Stage::Search { sampler, open } => {
                    if open.iter().any(|i| self.of(*i).state == State::Missing) {
                        return Ok(());
                    }
                    // The scores are told in the order of the trials, so that a search does not
                    // depend on which of its runs ends first.
                    if !open.is_empty() {
                        let scores: Vec<Option<f64>> =
                            open.iter().map(|i| self.of(*i).score).collect();
                        sampler.tell(&scores)?;
                    }
                    let proposals = sampler.ask()?;
                    open.clear();
                    let seed = plan.search.as_ref().map(|search| search.seed);
                    let ended = proposals.is_empty();
                    for proposal in proposals {
                        open.push(self.add(
                            group,
                            Phase::Search,
                            proposal.point,
                            proposal.share,
                            seed,
                        )?);
                    }
                    if ended {
                        *stage = Some(Stage::Final);
                        self.tune(group);
                    }
                }
                Stage::Final => {
                    self.add_final(group)?;
                    *stage = None;
                }
            }
        }
        Ok(())
    }

    fn of(&self, trial: usize) -> &Run {
        &self.results.runs[&self.results.trials[trial].run]
    }

    /// Selects the tuned point: the best score of a run with the full resource. Of equal scores,
    /// the first one wins.
    fn tune(&mut self, group: usize) {
        let results = &mut self.results;
        let scored = results
            .trials
            .iter()
            .filter(|t| t.group == group && t.phase == Phase::Search && t.share >= 1.0)
            .filter_map(|trial| Some((results.runs[&trial.run].score?, &trial.point)));
        match scored.reduce(|best, other| if other.0 > best.0 { other } else { best }) {
            Some((_, point)) => results.tuned[group] = Some(point.clone()),
            None => {
                let text =
                    "no run of the search has a score, so there is no tuned point".to_owned();
                results.errors.push((group, text));
            }
        }
    }

    fn add_final(&mut self, index: usize) -> Result<()> {
        let plan = self.study.plan;
        let group: &Group = &plan.groups[index];
        let points: Vec<Point> = if group.space.is_empty() {
            vec![Point::new()]
        } else if plan.all_points {
            let mut points: Vec<Point> = Vec::new();
            for trial in self.results.trials.iter().filter(|t| t.group == index && t.share >= 1.0) {
                if !points.contains(&trial.point) {
                    points.push(trial.point.clone());
                }
            }
            points
        } else {
            self.results.tuned[index].iter().cloned().collect()
        };
        for point in points {
            for seed in &group.seeds {
                self.add(index, Phase::Final, point.clone(), 1.0, *seed)?;
            }
        }
        Ok(())
    }

    /// Adds a trial. If its run is not complete, submits it.
    fn add(
        &mut self,
        index: usize,
        phase: Phase,
        point: Point,
        share: f64,
        seed: Option<u64>,
    ) -> Result<usize> {
        let plan = self.study.plan;
        let group = &plan.groups[index];
        let experiment = plan.experiment(group, &point, share, seed, self.study.resolver)?;
        let seed = seed.unwrap_or(experiment.train.seed);
        let name = match group.seeds[..] {
            // The grid has no seeds, so they are not part of its names.
            [None] if phase == Phase::Final && group.space.is_empty() => {
                plan.run_name(group, &point, share, None)
            }
            _ => plan.run_name(group, &point, share, Some(seed)),
        };
        let trial = self.results.trials.len();
        let of_run = Trial { group: index, phase, point, share, run: name.clone() };
        if let Some(known) = self.results.runs.get(&name) {
            if known.experiment != experiment {
                return Err(Error::new(format!("two runs of the study have the name `{name}`"))
                    .hint("give the methods and values names that differ in letters or digits"));
            }
            self.board.view.total = self.board.view.total.saturating_sub(1);
            self.results.trials.push(of_run);
            return Ok(trial);
        }
        let folder = self.study.folder.join(plan.runs()).join(&name);
        self.wait_for_others(&folder);
        let threads = self.threads.get(&name).copied();
        let prior = Prior::find(&folder, &experiment, self.study.registry)?;
        let run = Run {
            folder: folder.clone(),
            experiment: experiment.clone(),
            state: State::Missing,
            score: None,
            outcome: Outcome::default(),
            threads,
        };
        self.results.runs.insert(name.clone(), run);
        self.results.trials.push(of_run);
        if matches!(prior, Prior::Finished(_)) {
            self.read(&name)?;
            self.results.found += 1;
            self.board.found();
        } else {
            self.runner.submit(Job { name, folder, experiment })?;
        }
        Ok(trial)
    }

    /// Waits while another process is writing to the run, for example a worker of a study that was
    /// killed and is writing its checkpoint.
    fn wait_for_others(&mut self, folder: &Path) {
        let mut waited = Duration::ZERO;
        while in_use(folder) && waited < PATIENCE {
            if waited.is_zero() {
                let shown = folder.display();
                self.board
                    .message(&format!("waiting for another process that writes to `{shown}`"));
            }
            std::thread::sleep(POLL);
            waited += POLL;
        }
    }

    /// Records the end of a run.
    fn complete(&mut self, name: &str, error: Option<Error>) -> Result<()> {
        let took = self.board.end(name, error.is_some());
        let threads = self.runner.threads();
        let number = self.board.view.finished + self.board.view.failed;
        let place = format!("[{number} of {}] {name}", self.board.view.total);
        match error {
            None => {
                self.read(name)?;
                let run = self.results.runs.get_mut(name);
                let score = run.and_then(|run| {
                    run.threads = threads;
                    run.score
                });
                let score =
                    score.map_or_else(String::new, |score| format!(", mean log σ {score:.4}"));
                self.board.message(&format!("{place}: {:.0} s{score}", took.as_secs_f64()));
            }
            Some(e) => {
                let line = e.in_a_line();
                let hints: String =
                    e.hints().iter().map(|hint| format!("\n  hint: {hint}")).collect();
                self.board.message(&format!("{place}: error: {line}{hints}"));
                if let Some(run) = self.results.runs.get_mut(name) {
                    run.state = State::Failed(line);
                }
            }
        }
        record::write(self.study, &self.results)
    }

    /// Reads the results of a finished run.
    fn read(&mut self, name: &str) -> Result<()> {
        let search = self.study.plan.search.as_ref();
        let Some(run) = self.results.runs.get_mut(name) else { return Ok(()) };
        run.outcome = Outcome::read(&run.folder)?;
        run.score = match search {
            Some(search) if search.select_on_shift && run.experiment.eval.enabled => {
                objective::on_shift(&run.folder, run.experiment.eval.score)?
            }
            Some(search) if search.select_on_shift => None,
            _ => objective::on_validation(&run.folder)?,
        };
        run.state = State::Finished;
        Ok(())
    }
}
