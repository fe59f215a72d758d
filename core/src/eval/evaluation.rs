//! Evaluates the base model and the trained model on the splits of a data set.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::completions::completions;
use super::samples::SampleCompletions;
use super::split_scores::SplitScores;
use super::statistics::{BestOf, Clusters, Overlap, PairScore, SplitSummary};
use super::table::Table;
use super::{Preferences, TrainingPairs, score_pairs, score_reference, score_with_kl};
use crate::api::{Dataset, SplitInfo};
use crate::config::{EvalConfig, Experiment};
use crate::data;
use crate::error::{Context, Error, Fault, Result};
use crate::model::Adapted;
use crate::reference::ReferenceCache;
use crate::registry::Registry;
use crate::report::Progress;
use crate::session::Session;
use crate::text::{TokenPair, Tokenised};

/// A split to score, with its tokenised pairs.
#[derive(Debug)]
pub struct EvalSplit {
    /// The name and the description of the split. The name may be an expression such as
    /// `train[750:]`.
    pub info: SplitInfo,
    /// The tokenised pairs to score.
    pub data: Tokenised,
    /// The same pairs with `eval.instruction` in their prompts, which the trained model scores;
    /// `None` if there is no instruction.
    pub instructed: Option<Vec<TokenPair>>,
    /// True if the pairs come from `eval.shifts` or from a suite instead of the run's data set.
    pub is_shift: bool,
    /// Overlap with the training data. `None` for the training data itself, and if the training
    /// data is unknown.
    pub overlap: Option<Overlap>,
    /// Indices of the pairs that also occur in the training data; see [`TokenPair::index`].
    pub known: HashSet<usize>,
    /// Index and row number of each pair that is not scored because it also occurs in the training
    /// data.
    pub excluded: Vec<(usize, usize)>,
    /// Rows that may have more pairs than were read, because `eval.max_pairs` was reached.
    pub cut_rows: Vec<usize>,
}

impl EvalSplit {
    /// All pairs of a split, which are not compared with training data.
    pub fn new(info: SplitInfo, data: Tokenised) -> Self {
        Self {
            info,
            data,
            instructed: None,
            is_shift: false,
            overlap: None,
            known: HashSet::new(),
            excluded: Vec::new(),
            cut_rows: Vec::new(),
        }
    }

    /// The rows of which some pairs are not scored: dropped and excluded pairs, and
    /// [`cut_rows`](Self::cut_rows).
    fn incomplete_rows(&self) -> HashSet<usize> {
        let dropped = self.data.dropped.iter().map(|pair| pair.row);
        let excluded = self.excluded.iter().map(|(_, row)| *row);
        dropped.chain(excluded).chain(self.cut_rows.iter().copied()).collect()
    }

    /// Number of distinct prompts of the pairs to score.
    fn prompts(&self) -> usize {
        let data = &self.data;
        let prompts = data.pairs.iter().map(|pair| data.identities[pair.index].prompt);
        prompts.collect::<HashSet<_>>().len()
    }

    /// The clusters of the pairs to score.
    fn clusters(&self) -> Clusters {
        let data = &self.data;
        Clusters::new(data.pairs.iter().map(|pair| data.identities[pair.index].cluster.as_str()))
    }

    /// True if some pairs are dropped, truncated or excluded.
    pub fn is_reduced(&self) -> bool {
        self.data.dropped() + self.data.truncated() + self.excluded.len() > 0
    }

    /// Describes in one line how many pairs will be scored, dropped and truncated.
    pub fn describe(&self) -> String {
        let data = &self.data;
        let known = match self.excluded.len() {
            0 => String::new(),
            n => format!("; {n} not scored because they also occur in the training data"),
        };
        let reasons: Vec<String> =
            data.reasons().iter().map(|(why, n)| format!("; dropped {n}: {why}")).collect();
        format!(
            "pairs to score in `{}`: {}, {} dropped, {} truncated{}{known}",
            self.info.name,
            data.pairs.len(),
            data.dropped(),
            data.truncated(),
            reasons.concat()
        )
    }
}

/// The result of an evaluation.
#[derive(Debug)]
pub struct Evaluation {
    /// The table, with one row per split.
    pub table: Table,
    /// Sample completions before and after training, if they were generated.
    pub completions: Option<SampleCompletions>,
    /// Scores of the pairs of each split.
    pub scores: Vec<SplitScores>,
}

impl Evaluation {
    /// Formats the table and the completions for a terminal.
    pub fn plain(&self) -> String {
        self.table.plain() + &self.plain_completions()
    }

    /// Formats the table, the table of further metrics and the completions for a terminal.
    pub fn plain_with_details(&self) -> String {
        format!("{}\n{}{}", self.table.plain(), self.table.details(), self.plain_completions())
    }

    fn plain_completions(&self) -> String {
        self.completions.as_ref().map_or_else(String::new, |c| format!("\n{}", c.plain()))
    }

    /// Formats the table and the completions as Markdown, for `eval/table.md`.
    pub fn markdown(&self) -> String {
        let completions =
            self.completions.as_ref().map_or_else(String::new, |c| format!("\n{}", c.markdown()));
        self.table.markdown() + &completions
    }

    /// Converts the table and the completions to JSON, for `eval/summary.json`. `completions` is
    /// null if none were generated.
    pub fn json(&self) -> Value {
        let mut value = self.table.json();
        value["completions"] = json!(self.completions);
        value
    }

    /// Reads the table and the completions that [`write`](Self::write) saved in `dir`. The scores
    /// are not read.
    ///
    /// # Errors
    /// Fails if `summary.json` is missing or does not have the expected format.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("summary.json");
        let within = || format!("cannot read `{}`", path.display());
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).within(within)?)
            .map_err(|e| Error::new(within()).because(e))?;
        let completions = json.get_mut("completions").map(Value::take).unwrap_or_default();
        let completions =
            serde_json::from_value(completions).map_err(|e| Error::new(within()).because(e))?;
        let table = serde_json::from_value(json).map_err(|e| Error::new(within()).because(e))?;
        Ok(Self { table, completions, scores: Vec::new() })
    }

    /// Writes `summary.json`, `table.md` and `pairs.jsonl` (one line per pair) to `dir`.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)
            .within(|| format!("cannot create the folder `{}`", dir.display()))?;
        let mut rows = String::new();
        for split in &self.scores {
            for row in split.rows() {
                rows += &format!("{}\n", row.comparison(split));
            }
        }
        crate::files::write_whole(&dir.join("pairs.jsonl"), rows.as_bytes())?;
        crate::files::write_whole(&dir.join("table.md"), self.markdown().as_bytes())?;
        crate::files::write_whole(
            &dir.join("summary.json"),
            format!("{:#}\n", self.json()).as_bytes(),
        )
    }
}

/// Returns the splits in `eval.splits`. A split can be an expression such as `train[750:]`. If the
/// setting is missing, returns all splits of the data set.
///
/// # Errors
/// Fails if a listed split does not exist, or if an expression is not valid or selects an empty
/// range.
pub fn splits(dataset: &dyn Dataset, config: &EvalConfig) -> Result<Vec<SplitInfo>> {
    match &config.splits {
        None => Ok(dataset.splits()),
        Some(some) => some.iter().map(|split| data::info(dataset, split)).collect(),
    }
}

/// Reads and tokenises the splits to evaluate. This is a separate step so that errors in the data
/// are found before any computation starts. If the pairs that the model was trained on are known,
/// pairs of held-out splits that also occur there are counted, and excluded as `eval.overlap` says.
///
/// # Errors
/// Fails if a split does not exist, cannot be read, or has no pair that can be scored.
pub fn read(
    session: &Session,
    experiment: &Experiment,
    training: Option<&TrainingPairs>,
) -> Result<Vec<EvalSplit>> {
    let config = &experiment.eval;
    let splits = splits(session.dataset.as_ref(), config)?;
    splits
        .into_iter()
        .map(|info| {
            let (dataset, train) = (session.dataset.as_ref(), &experiment.train);
            let data = session.tokenise(&info.name, train, config.max_pairs)?;
            let instructed = config
                .instruction
                .as_ref()
                .map(|text| session.instructed(dataset, &info.name, train, &data, text));
            let mut split =
                EvalSplit { instructed: instructed.transpose()?, ..EvalSplit::new(info, data) };
            split.cut_rows.extend(cut_row(&split.data, config.max_pairs));
            if let Some(training) = training {
                training.compare(&mut split, dataset, config.overlap)?;
            }
            Ok(split)
        })
        .collect()
}

/// The row of the last pair, if reading stopped there because `max_pairs` was reached.
pub(crate) fn cut_row(data: &Tokenised, max_pairs: Option<usize>) -> Option<usize> {
    let last = data.pairs.last().map(|pair| pair.row);
    last.filter(|_| max_pairs.is_some_and(|most| data.pairs.len() >= most))
}

/// The models that are evaluated, besides the base model.
#[derive(Clone, Copy, Default)]
pub struct Models<'a> {
    /// The adapter at the start of training; `None` if training started from the base model.
    pub initial: Option<&'a Adapted>,
    /// The trained adapter; `None` to evaluate only the base model.
    pub adapted: Option<&'a Adapted>,
    /// The scores of the method itself, which replace the log-probabilities of the trained model.
    pub preferences: Option<&'a Preferences>,
}

/// Scores the splits from [`read`] with the base model and with the trained one. Also generates
/// sample completions before and after training.
///
/// # Errors
/// Fails if libtorch fails. Returns `Error::interrupted` when `stop` becomes true.
pub fn evaluate(
    session: &Session,
    splits: &[EvalSplit],
    Models { initial, adapted, preferences }: Models<'_>,
    experiment: &Experiment,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Evaluation> {
    let config = &experiment.eval;
    let mut cache = ReferenceCache::new(session.reference.clone(), &experiment.cache);
    let (mut summaries, mut scores) = (Vec::new(), Vec::new());
    let completions = if config.completions > 0 {
        let own = splits.iter().filter(|split| !split.is_shift);
        let infos: Vec<SplitInfo> = own.map(|split| split.info.clone()).collect();
        match completions(session, &infos, [initial, adapted], experiment, stop, progress) {
            Err(e) if e.fault() != Fault::Interrupted => {
                // Only people read the completions. If generating them fails, for example because
                // of an unusual tokenizer, the evaluation continues without them.
                progress.finish();
                progress.message(&format!(
                    "warning: cannot generate sample completions: {}",
                    e.in_a_line()
                ));
                None
            }
            made => made?,
        }
    } else {
        None
    };
    for split in splits {
        let EvalSplit { info, data, instructed, .. } = split;
        let (pairs, clusters) = (&data.pairs, split.clusters());
        let passes = 1
            + u64::from(adapted.is_some() || instructed.is_some())
            + u64::from(preferences.is_some());
        progress.stage(&format!("eval {}", info.name), Some(passes * pairs.len() as u64));
        let (model, tokens) = (&session.model, config.tokens);
        let base = score_reference(&mut cache, model, None, pairs, tokens, stop, progress)?;
        let (mut policy, kl): (Option<Vec<PairScore>>, Option<Vec<f64>>) =
            match (adapted, instructed) {
                (None, None) => (None, None),
                // The divergence between two different prompts is not defined.
                (adapted, Some(pairs)) => {
                    (Some(score_pairs(model, adapted, pairs, tokens, stop, progress)?), None)
                }
                (Some(a), None) if config.kl => {
                    let scored = score_with_kl(model, a, pairs, tokens, stop, progress)?;
                    let (scores, kl) = scored.iter().map(|pair| (pair.score, pair.kl)).unzip();
                    (Some(scores), Some(kl))
                }
                (a, None) => (Some(score_pairs(model, a, pairs, tokens, stop, progress)?), None),
            };
        if let (Some(preferences), Some(policy)) = (preferences, &mut policy) {
            let pairs = instructed.as_ref().unwrap_or(pairs);
            let own = preferences.of(model, adapted, pairs, tokens, stop, progress)?;
            for (score, [chosen, rejected]) in policy.iter_mut().zip(own) {
                score.chosen.preference = Some(chosen);
                score.rejected.preference = Some(rejected);
            }
        }
        progress.finish();
        let (name, describes, score) = (&info.name, &info.describes, config.score);
        let mut summary = match &policy {
            Some(policy) => {
                SplitSummary::compare(name, describes, &base, policy, &clusters, score)?
            }
            None => SplitSummary::of_base(name, describes, &base, &clusters, score),
        };
        if let (Some(change), Some(kl)) = (&mut summary.change, &kl) {
            let finite = |kl: &f64| Some(*kl).filter(|kl| kl.is_finite());
            change.kl = clusters.mean(kl.iter().map(finite));
        }
        summaries.push(SplitSummary {
            dropped: data.dropped(),
            truncated: data.truncated(),
            overlap: split.overlap,
            prompts: Some(split.prompts()),
            best_of: BestOf::of(
                &base,
                policy.as_deref(),
                &clusters,
                &split.incomplete_rows(),
                config.score,
            ),
            ..summary
        });
        let split = SplitScores::new(split, experiment.train.max_length, base, policy);
        scores.push(SplitScores { kl, ..split });
    }
    let mut title = Table::title_of(experiment, registry);
    if preferences.is_some() {
        title += " (the accuracy is that of the method's own score)";
    }
    let table = Table::new(title, summaries).limited_to(experiment.train.max_length);
    Ok(Evaluation { table, completions, scores })
}
