//! Base and trained model on every split of a data set.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::completions::completions;
use super::score_pairs;
use super::statistics::{PairScore, SplitSummary};
use crate::api::{Dataset, SplitInfo};
use crate::config::{EvalConfig, Experiment};
use crate::data;
use crate::error::{Context, Error, Fault, Result};
use crate::model::Adapted;
use crate::registry::Registry;
use crate::report::{Completions, Progress, Table};
use crate::session::Session;

/// What an evaluation found.
#[derive(Debug)]
pub struct Evaluation {
    /// A row a split.
    pub table: Table,
    /// What the model said before and after, where that was asked for.
    pub completions: Option<Completions>,
    /// Scores by split: name, base, and trained where there is an adapter.
    pub scores: Vec<(String, Vec<PairScore>, Option<Vec<PairScore>>)>,
}

impl Evaluation {
    /// For a terminal.
    pub fn plain(&self) -> String {
        let spoken = self.completions.as_ref().map_or_else(String::new, |c| format!("\n{}", c.plain()));
        self.table.plain() + &spoken
    }

    /// For `eval/table.md`.
    pub fn markdown(&self) -> String {
        let spoken = self.completions.as_ref().map_or_else(String::new, |c| format!("\n{}", c.markdown()));
        self.table.markdown() + &spoken
    }

    /// For `eval/summary.json`: the table, and `completions`, null where there are none.
    pub fn json(&self) -> Value {
        let mut value = self.table.json();
        value["completions"] = json!(self.completions);
        value
    }

    /// Reads the table and the completions that [`write`](Self::write) left in `dir`, without the scores.
    ///
    /// # Errors
    /// Fails if there is no `summary.json`, or if it holds something else.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("summary.json");
        let within = || format!("cannot read `{}`", path.display());
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).within(within)?).map_err(|e| Error::new(within()).because(e))?;
        let completions = serde_json::from_value(json["completions"].take()).map_err(|e| Error::new(within()).because(e))?;
        let table = serde_json::from_value(json).map_err(|e| Error::new(within()).because(e))?;
        Ok(Self { table, completions, scores: Vec::new() })
    }

    /// Writes `summary.json`, `table.md` and `pairs.jsonl` (a row a pair) into `dir`.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).within(|| format!("cannot make the folder `{}`", dir.display()))?;
        let mut rows = String::new();
        for (split, base, policy) in &self.scores {
            for (i, pair) in base.iter().enumerate() {
                rows += &format!("{}\n", json!({"split": split, "index": pair.index, "base": pair, "trained": policy.as_ref().map(|p| &p[i])}));
            }
        }
        crate::files::write_whole(&dir.join("pairs.jsonl"), rows.as_bytes())?;
        crate::files::write_whole(&dir.join("table.md"), self.markdown().as_bytes())?;
        crate::files::write_whole(&dir.join("summary.json"), format!("{:#}\n", self.json()).as_bytes())
    }
}

/// The splits that an evaluation scores: those that are named, each of which may be a part as `train[750:]`, or all.
///
/// # Errors
/// A name of a split that the data set does not have, or a part that is empty or cannot be understood.
pub fn splits(dataset: &dyn Dataset, config: &EvalConfig) -> Result<Vec<SplitInfo>> {
    match &config.splits {
        None => Ok(dataset.splits()),
        Some(some) => some.iter().map(|split| data::info(dataset, split)).collect(),
    }
}

/// Scores the splits that the experiment names, or all, by the base model and with `adapted`; and lets them speak, before
/// training with the adapter that it `began` with, where it did not begin with the base model.
///
/// # Errors
/// A split that the data set does not have, one without a usable pair, or what libtorch says; `Error::interrupted` when
/// `stop` turned true.
pub fn evaluate(
    session: &Session,
    [began, adapted]: [Option<&Adapted>; 2],
    experiment: &Experiment,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Evaluation> {
    let config = &experiment.eval;
    let (mut summaries, mut scores) = (Vec::new(), Vec::new());
    let splits = splits(session.dataset.as_ref(), config)?;
    let completions = if config.completions > 0 {
        match completions(session, &splits, [began, adapted], experiment, stop, progress) {
            Err(e) if e.fault() != Fault::Interrupted => {
                // They are for people to look at: an odd tokenizer is to cost nobody the numbers.
                progress.finish();
                progress.message(&format!("warning: there are no completions: {}", e.in_a_line()));
                None
            }
            made => made?,
        }
    } else {
        None
    };
    for split in splits {
        let pairs = session.tokenise(&split.name, &experiment.train, config.max_pairs)?.pairs;
        let passes = if adapted.is_some() { 2 } else { 1 };
        progress.stage(&format!("eval {}", split.name), Some(passes * pairs.len() as u64));
        let base = score_pairs(&session.model, None, &pairs, config.tokens, stop, progress)?;
        let policy = match adapted {
            Some(a) => Some(score_pairs(&session.model, Some(a), &pairs, config.tokens, stop, progress)?),
            None => None,
        };
        progress.finish();
        summaries.push(match &policy {
            Some(policy) => SplitSummary::compare(&split.name, &split.describes, &base, policy, config.score, experiment.train.seed)?,
            None => SplitSummary::of_base(&split.name, &split.describes, &base, config.score, experiment.train.seed),
        });
        scores.push((split.name, base, policy));
    }
    Ok(Evaluation { table: Table::new(Table::title_of(experiment, registry), summaries), completions, scores })
}
