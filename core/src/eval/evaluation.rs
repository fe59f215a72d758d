//! Evaluates the base model and the trained model on the splits of a data set.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value, json};

use super::completions::completions;
use super::samples::SampleCompletions;
use super::statistics::{PairScore, SplitSummary};
use super::table::Table;
use super::{score_pairs, score_reference};
use crate::api::{Dataset, SplitInfo};
use crate::config::{EvalConfig, Experiment};
use crate::data;
use crate::error::{Context, Error, Fault, Result};
use crate::model::Adapted;
use crate::reference::ReferenceCache;
use crate::registry::Registry;
use crate::report::Progress;
use crate::session::Session;
use crate::text::{Cut, DroppedPair, SkipReason, Tokenised};

/// A split to score, with its tokenised pairs.
#[derive(Debug)]
pub struct EvalSplit {
    /// The name and the description of the split. The name may be an expression such as
    /// `train[750:]`.
    pub info: SplitInfo,
    /// The tokenised pairs.
    pub data: Tokenised,
}

impl EvalSplit {
    /// Describes in one line how many pairs will be scored, dropped and truncated.
    pub fn describe(&self) -> String {
        let data = &self.data;
        let reasons: Vec<String> =
            data.reasons().iter().map(|(why, n)| format!("; dropped {n}: {why}")).collect();
        format!(
            "pairs to score in `{}`: {}, {} dropped, {} truncated{}",
            self.info.name,
            data.pairs.len(),
            data.dropped(),
            data.truncated(),
            reasons.concat()
        )
    }
}

/// Scores of the pairs of one split.
#[derive(Debug)]
pub struct SplitScores {
    /// Name of the split.
    pub split: String,
    /// Maximum total number of tokens in a prompt and its completion.
    pub max_length: usize,
    /// Scores from the base model.
    pub base: Vec<PairScore>,
    /// Scores from the trained model, if there is one.
    pub trained: Option<Vec<PairScore>>,
    /// How each scored pair was truncated.
    pub cuts: Vec<Cut>,
    /// Position of each scored pair among all pairs of the split, including dropped pairs.
    pub order: Vec<usize>,
    /// Pairs without a score.
    pub dropped: Vec<DroppedPair>,
}

/// A pair of [`SplitScores`].
#[derive(Clone, Copy, Debug)]
pub enum ScoreRow<'a> {
    /// A scored pair: the score from the base model, the score from the trained model (if there is
    /// one), and how the pair was truncated.
    Scored(&'a PairScore, Option<&'a PairScore>, Cut),
    /// A pair without a score.
    Dropped(DroppedPair),
}

impl SplitScores {
    /// Combines the tokenised pairs of a split with their scores.
    pub fn new(
        split: &str,
        max_length: usize,
        data: &Tokenised,
        base: Vec<PairScore>,
        trained: Option<Vec<PairScore>>,
    ) -> Self {
        let order = data.pairs.iter().map(|pair| pair.index).collect();
        Self {
            split: split.to_owned(),
            max_length,
            base,
            trained,
            cuts: data.cuts.clone(),
            order,
            dropped: data.dropped.clone(),
        }
    }

    /// Returns all pairs in the order of the data set, including the dropped pairs.
    pub fn rows(&self) -> Vec<ScoreRow<'_>> {
        let trained = |i: usize| self.trained.as_ref().map(|scores| &scores[i]);
        let scored = self
            .base
            .iter()
            .enumerate()
            .map(|(i, base)| (self.order[i], ScoreRow::Scored(base, trained(i), self.cuts[i])));
        let mut rows: Vec<(usize, ScoreRow<'_>)> =
            scored.chain(self.dropped.iter().map(|d| (d.index, ScoreRow::Dropped(*d)))).collect();
        rows.sort_by_key(|(order, _)| *order);
        rows.into_iter().map(|(_, row)| row).collect()
    }

    /// Number of pairs that were truncated.
    pub fn truncated(&self) -> usize {
        self.cuts.iter().filter(|cut| cut.any()).count()
    }
}

impl ScoreRow<'_> {
    /// Returns JSON fields about dropping and truncation. A dropped pair has `dropped` and
    /// `reason`. A scored pair has `truncated`, and also `reason` if it was truncated.
    pub fn remarks(&self, split: &SplitScores) -> Map<String, Value> {
        let mut fields = Map::new();
        match self {
            ScoreRow::Dropped(DroppedPair { why, .. }) => {
                fields.insert("dropped".to_owned(), json!(why));
            }
            ScoreRow::Scored(_, _, cut) => {
                fields.insert("truncated".to_owned(), json!(cut.any()));
            }
        }
        if let Some(reason) = self.reason(split) {
            fields.insert("reason".to_owned(), json!(reason));
        }
        fields
    }

    /// Explains why the pair was dropped or how it was truncated. Returns `None` if the whole pair
    /// was scored.
    pub fn reason(&self, split: &SplitScores) -> Option<String> {
        match self {
            ScoreRow::Dropped(DroppedPair { why: why @ SkipReason::PromptTooLong, .. }) => {
                Some(format!("{why} in {} tokens", split.max_length))
            }
            ScoreRow::Dropped(DroppedPair { why, .. }) => Some(why.to_string()),
            ScoreRow::Scored(_, _, cut) if cut.any() => {
                Some(format!("cut to {} tokens: {cut}", split.max_length))
            }
            ScoreRow::Scored(..) => None,
        }
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
        let completions =
            self.completions.as_ref().map_or_else(String::new, |c| format!("\n{}", c.plain()));
        self.table.plain() + &completions
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
                let mut line = match row {
                    ScoreRow::Scored(base, trained, _) => {
                        json!({"split": split.split, "index": base.index, "base": base,
                            "trained": trained})
                    }
                    ScoreRow::Dropped(pair) => json!({"split": split.split, "index": pair.row}),
                };
                if let Some(fields) = line.as_object_mut() {
                    fields.extend(row.remarks(split));
                }
                rows += &format!("{line}\n");
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
/// are found before any computation starts.
///
/// # Errors
/// Fails if a split does not exist, cannot be read, or has no pair that can be scored.
pub fn read(session: &Session, experiment: &Experiment) -> Result<Vec<EvalSplit>> {
    let config = &experiment.eval;
    let splits = splits(session.dataset.as_ref(), config)?;
    splits
        .into_iter()
        .map(|info| {
            Ok(EvalSplit {
                data: session.tokenise(&info.name, &experiment.train, config.max_pairs)?,
                info,
            })
        })
        .collect()
}

/// Scores the splits from [`read`] with the base model and with `adapted`. Also generates sample
/// completions before and after training. `initial` is the adapter at the start of training. It is
/// `None` if training started from the base model.
///
/// # Errors
/// Fails if libtorch fails. Returns `Error::interrupted` when `stop` becomes true.
pub fn evaluate(
    session: &Session,
    splits: &[EvalSplit],
    [initial, adapted]: [Option<&Adapted>; 2],
    experiment: &Experiment,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Evaluation> {
    let config = &experiment.eval;
    let mut cache = ReferenceCache::new(session.reference.clone(), &experiment.cache);
    let (mut summaries, mut scores) = (Vec::new(), Vec::new());
    let completions = if config.completions > 0 {
        let infos: Vec<SplitInfo> = splits.iter().map(|split| split.info.clone()).collect();
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
    for EvalSplit { info: split, data } in splits {
        let pairs = &data.pairs;
        let passes = if adapted.is_some() { 2 } else { 1 };
        progress.stage(&format!("eval {}", split.name), Some(passes * pairs.len() as u64));
        let base = score_reference(
            &mut cache,
            &session.model,
            None,
            pairs,
            config.tokens,
            stop,
            progress,
        )?;
        let policy = match adapted {
            Some(a) => {
                Some(score_pairs(&session.model, Some(a), pairs, config.tokens, stop, progress)?)
            }
            None => None,
        };
        progress.finish();
        let summary = match &policy {
            Some(policy) => SplitSummary::compare(
                &split.name,
                &split.describes,
                &base,
                policy,
                config.score,
                experiment.train.seed,
            )?,
            None => SplitSummary::of_base(
                &split.name,
                &split.describes,
                &base,
                config.score,
                experiment.train.seed,
            ),
        };
        summaries.push(SplitSummary {
            dropped: data.dropped(),
            truncated: data.truncated(),
            ..summary
        });
        scores.push(SplitScores::new(&split.name, experiment.train.max_length, data, base, policy));
    }
    let table = Table::new(Table::title_of(experiment, registry), summaries)
        .limited_to(experiment.train.max_length);
    Ok(Evaluation { table, completions, scores })
}
