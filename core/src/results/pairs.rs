//! The scores of pairs, from `eval/pairs.jsonl`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::config::Score;
use crate::error::{Context, Error, Result};
use crate::eval::SplitRole;
use crate::eval::statistics::{CompletionScore, PairScore};
use crate::statistics::{self, credit};

/// The scores of a pair by the base model and by the trained model.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRecord {
    /// Name of the pair's cluster; `None` in runs of versions that did not record it.
    pub cluster: Option<String>,
    /// Scores of the base model.
    pub base: PairScore,
    /// Scores of the trained model.
    pub trained: PairScore,
    /// KL divergence of the policy from the reference on the completions, in nats per token, if it
    /// was recorded.
    pub kl: Option<f64>,
}

/// The scores of the pairs of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredSplit {
    /// Name of the split.
    pub name: String,
    /// Description of the data.
    pub data: String,
    /// The scored pairs, by row number.
    pub pairs: Vec<PairRecord>,
    /// Row numbers of the pairs that were excluded because they also occur in the training data.
    pub excluded: BTreeSet<usize>,
    /// Number of other pairs without a score.
    pub dropped: usize,
}

impl ScoredSplit {
    /// Excludes more pairs.
    pub(super) fn exclude(&mut self, pairs: &BTreeSet<usize>) {
        self.pairs.retain(|pair| !pairs.contains(&pair.index()));
        self.excluded.extend(pairs);
    }
}

impl PairRecord {
    /// Row number of the pair in its split.
    pub fn index(&self) -> usize {
        self.base.index
    }

    /// The scores and lengths for one model.
    pub fn scored(&self, trained: bool, by: Score) -> statistics::ScoredPair {
        let pair = if trained { &self.trained } else { &self.base };
        statistics::ScoredPair {
            chosen: pair.chosen.score(by),
            rejected: pair.rejected.score(by),
            chosen_tokens: pair.chosen.tokens,
            rejected_tokens: pair.rejected.tokens,
        }
    }

    /// 1 if the model ranks the pair correctly, ½ for a tie, and 0 otherwise.
    pub fn credit(&self, trained: bool, by: Score) -> f64 {
        let scored = self.scored(trained, by);
        credit(scored.chosen, scored.rejected)
    }

    /// θ, the increase of log p(chosen) − log p(rejected), in nats.
    pub fn margin_gain(&self) -> f64 {
        let margin = |p: &PairScore| p.chosen.logp_sum - p.rejected.logp_sum;
        margin(&self.trained) - margin(&self.base)
    }

    /// log ppl_base(y⁺) − log ppl_π(y⁺), in nats.
    pub fn log_perplexity_ratio(&self) -> f64 {
        self.trained.chosen.mean() - self.base.chosen.mean()
    }

    /// True if all scores are finite.
    pub fn is_finite(&self) -> bool {
        self.margin_gain().is_finite() && self.log_perplexity_ratio().is_finite()
    }
}

/// Reads the scores of all splits. `describe` contains the descriptions of the splits' data.
///
/// # Errors
/// Fails if the file cannot be read, or if a line is damaged or has no score of a trained model.
pub(super) fn read(folder: &Path, describe: &BTreeMap<String, String>) -> Result<Vec<ScoredSplit>> {
    let path = folder.join("eval").join("pairs.jsonl");
    let text =
        std::fs::read_to_string(&path).within(|| format!("cannot read `{}`", path.display()))?;
    let mut splits: Vec<ScoredSplit> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let damaged = || Error::new(format!("line {} of `{}` is damaged", i + 1, path.display()));
        let line: Value = serde_json::from_str(line).map_err(|e| damaged().because(e))?;
        let name = line["split"].as_str().ok_or_else(damaged)?;
        let at = match splits.iter().position(|s| s.name == name) {
            Some(at) => at,
            None => {
                splits.push(ScoredSplit {
                    name: name.to_owned(),
                    data: describe.get(name).cloned().unwrap_or_default(),
                    pairs: Vec::new(),
                    excluded: BTreeSet::new(),
                    dropped: 0,
                });
                splits.len() - 1
            }
        };
        let split = &mut splits[at];
        if line.get("overlap").is_some_and(|v| !v.is_null()) && line.get("base").is_none() {
            split.excluded.extend(line["index"].as_u64().map(|index| index as usize));
            continue;
        }
        if line.get("base").is_none() {
            split.dropped += 1;
            continue;
        }
        if line["trained"].is_null() {
            return Err(Error::new(format!(
                "line {} of `{}` has no score of a trained model",
                i + 1,
                path.display()
            )));
        }
        let both = || Some((pair(&line["base"])?, pair(&line["trained"])?));
        let (base, trained) = both().ok_or_else(damaged)?;
        split.pairs.push(PairRecord {
            cluster: line["cluster"].as_str().map(str::to_owned),
            base,
            trained,
            kl: line["trained"]["kl"].as_f64().or_else(|| line["kl"].as_f64()),
        });
    }
    splits.iter_mut().for_each(|s| s.pairs.sort_by_key(PairRecord::index));
    splits.retain(|s| !s.pairs.is_empty());
    splits.sort_by_key(|s| SplitRole::of(&s.name));
    Ok(splits)
}

/// Parses the scores of a pair. A score that is not finite is null in JSON.
fn pair(value: &Value) -> Option<PairScore> {
    let completion = |side: &str| -> Option<CompletionScore> {
        let score = &value[side];
        let logp_sum = match score.get("logp_sum")? {
            Value::Null => f64::NAN,
            sum => sum.as_f64()?,
        };
        let tokens = score["tokens"].as_u64()? as usize;
        let preference = score.get("preference").map(|own| own.as_f64().unwrap_or(f64::NAN));
        Some(CompletionScore { preference, ..CompletionScore::new(logp_sum, tokens) })
    };
    Some(PairScore {
        index: value["index"].as_u64()? as usize,
        chosen: completion("chosen")?,
        rejected: completion("rejected")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pair_is_ranked_by_the_score_of_the_method_if_there_is_one() {
        let by_logp = json!({ "index": 3, "chosen": { "logp_sum": -9.0, "tokens": 3 },
            "rejected": { "logp_sum": -4.0, "tokens": 2 } });
        let mut own = by_logp.clone();
        own["chosen"]["preference"] = 0.7.into();
        own["rejected"]["preference"] = 0.3.into();
        let mut undefined = own.clone();
        undefined["chosen"]["preference"] = Value::Null;
        let credit = |value: &Value| {
            let (base, trained) = (pair(&by_logp).unwrap(), pair(value).unwrap());
            let record = PairRecord { cluster: None, base, trained, kl: None };
            assert_eq!(record.credit(false, Score::Mean), 0.0);
            record.credit(true, Score::Mean)
        };
        assert_eq!((credit(&by_logp), credit(&own), credit(&undefined)), (0.0, 1.0, 0.0));
    }
}
