//! The scores of all pairs of a split, and the reasons why pairs have no score.

use serde_json::{Map, Value, json};

use std::collections::HashSet;

use super::evaluation::EvalSplit;
use super::statistics::PairScore;
use crate::text::{Cut, DroppedPair, SkipReason};

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
    /// Name of the cluster of each pair, including dropped pairs.
    pub clusters: Vec<String>,
    /// Position and row number of each pair that was not scored because it also occurs in the
    /// training data.
    pub excluded: Vec<(usize, usize)>,
    /// Positions of the pairs of a held-out split that also occur in the training data.
    pub known: HashSet<usize>,
    /// KL(trained ‖ base) per token of the chosen completion of each scored pair, in nats; `None`
    /// if it was not computed.
    pub kl: Option<Vec<f64>>,
}

/// A pair of [`SplitScores`].
#[derive(Clone, Copy, Debug)]
pub struct ScoreRow<'a> {
    /// Row number of the pair in the files of the split.
    pub index: usize,
    /// Name of the pair's cluster.
    pub cluster: &'a str,
    /// True for a pair of a held-out split that also occurs in the training data.
    pub is_known: bool,
    /// The scores, or the reason why there are none.
    pub outcome: PairOutcome<'a>,
}

/// The scores of a pair, or the reason why it has none.
#[derive(Clone, Copy, Debug)]
pub enum PairOutcome<'a> {
    /// The pair was scored.
    Scored {
        /// Score from the base model.
        base: &'a PairScore,
        /// Score from the trained model, if there is one.
        trained: Option<&'a PairScore>,
        /// KL(trained ‖ base) per token of the chosen completion, in nats, if it was computed.
        kl: Option<f64>,
        /// How the pair was truncated.
        cut: Cut,
    },
    /// The pair was not scored, because it cannot be tokenised or is too long.
    Dropped(SkipReason),
    /// The pair was not scored, because it also occurs in the training data.
    Excluded,
}

impl SplitScores {
    /// Combines the tokenised pairs of a split with their scores.
    pub fn new(
        split: &EvalSplit,
        max_length: usize,
        base: Vec<PairScore>,
        trained: Option<Vec<PairScore>>,
    ) -> Self {
        let data = &split.data;
        Self {
            split: split.info.name.clone(),
            max_length,
            base,
            trained,
            cuts: data.cuts.clone(),
            order: data.pairs.iter().map(|pair| pair.index).collect(),
            dropped: data.dropped.clone(),
            clusters: data.identities.iter().map(|pair| pair.cluster.clone()).collect(),
            excluded: split.excluded.clone(),
            known: split.known.clone(),
            kl: None,
        }
    }

    /// Returns all pairs in the order of the data set, including the dropped pairs.
    pub fn rows(&self) -> Vec<ScoreRow<'_>> {
        let trained = |i: usize| self.trained.as_ref().map(|scores| &scores[i]);
        let scored = self.base.iter().enumerate().map(|(i, base)| {
            let kl = self.kl.as_ref().map(|kl| kl[i]);
            let outcome = PairOutcome::Scored { base, trained: trained(i), kl, cut: self.cuts[i] };
            (self.order[i], base.index, outcome)
        });
        let dropped = self.dropped.iter().map(|d| (d.index, d.row, PairOutcome::Dropped(d.why)));
        let excluded =
            self.excluded.iter().map(|(order, row)| (*order, *row, PairOutcome::Excluded));
        let mut rows: Vec<_> = scored.chain(dropped).chain(excluded).collect();
        rows.sort_by_key(|(order, ..)| *order);
        rows.into_iter()
            .map(|(order, index, outcome)| ScoreRow {
                index,
                cluster: &self.clusters[order],
                is_known: self.known.contains(&order),
                outcome,
            })
            .collect()
    }

    /// Number of pairs that were truncated.
    pub fn truncated(&self) -> usize {
        self.cuts.iter().filter(|cut| cut.any()).count()
    }
}

impl ScoreRow<'_> {
    /// Returns the scores of both models as JSON, for `eval/pairs.jsonl`.
    pub fn comparison(&self, split: &SplitScores) -> Value {
        let mut fields = self.named(split);
        if let PairOutcome::Scored { base, trained, kl, .. } = self.outcome {
            fields.insert("base".to_owned(), json!(base));
            fields.insert("trained".to_owned(), json!(trained));
            fields.extend(kl.map(|kl| ("kl".to_owned(), json!(kl))));
        }
        fields.extend(self.remarks(split));
        Value::Object(fields)
    }

    /// Returns the scores of the base model as JSON, for `reprpo score --json`.
    pub fn score(&self, split: &SplitScores) -> Value {
        let mut fields = self.named(split);
        if let PairOutcome::Scored { base, .. } = self.outcome {
            fields.insert("chosen".to_owned(), json!(base.chosen));
            fields.insert("rejected".to_owned(), json!(base.rejected));
        }
        fields.extend(self.remarks(split));
        Value::Object(fields)
    }

    fn named(&self, split: &SplitScores) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("split".to_owned(), json!(split.split));
        fields.insert("index".to_owned(), json!(self.index));
        fields.insert("cluster".to_owned(), json!(self.cluster));
        fields
    }

    /// Returns JSON fields about overlap, dropping and truncation. A pair that also occurs in the
    /// training data has `overlap`, and also `reason` if it was therefore not scored. A dropped
    /// pair has `dropped` and `reason`. A scored pair has `truncated`, and also `reason` if it was
    /// truncated.
    fn remarks(&self, split: &SplitScores) -> Map<String, Value> {
        let mut fields = Map::new();
        if self.is_known {
            fields.insert("overlap".to_owned(), json!("pair"));
        }
        match self.outcome {
            PairOutcome::Excluded => {}
            PairOutcome::Dropped(why) => {
                fields.insert("dropped".to_owned(), json!(why));
            }
            PairOutcome::Scored { cut, .. } => {
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
        match self.outcome {
            PairOutcome::Dropped(why @ SkipReason::PromptTooLong) => {
                Some(format!("{why} in {} tokens", split.max_length))
            }
            PairOutcome::Dropped(why) => Some(why.to_string()),
            PairOutcome::Excluded => Some("occurs in the training data".to_owned()),
            PairOutcome::Scored { cut, .. } if cut.any() => {
                Some(format!("cut to {} tokens: {cut}", split.max_length))
            }
            PairOutcome::Scored { .. } => None,
        }
    }
}
