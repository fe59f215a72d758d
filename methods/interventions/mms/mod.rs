//! Mass mean shift on attention heads, GENIES' strongest baseline.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tch;

use self::probe::Probe;
use super::ranges::within;
use super::steering::mean_difference;
use crate::taps::heads::heads;

mod probe;
#[cfg(test)]
mod tests;

/// Mass mean shift.
#[intervention(
    name = "mms",
    summary = "mass mean shift: score pairs by the attention heads that separate the training \
        pairs best; no training",
    reference = "Clymer et al. 2023, Generalization Analogies (GENIES); after Li et al. 2023, \
        Inference-Time Intervention",
    explain = "\
score = ½(1 + mean over the k heads of cos(a(y⁺) − a(y⁻), v))
v = mean(a(y⁺)) − mean(a(y⁻))

a(y) is the output of one attention head at the last token of the completion. Each head of the
model gets a logistic probe, as LogisticRegression of scikit-learn fits it with its defaults, on
the states of 1 − `holdout` of the training pairs, with one label per completion. The k heads
whose probes are most accurate on the other pairs are used; earlier heads win ties. v is computed
from all training pairs.

The accuracy of the evaluation is that of this score, and a pair counts if its score is above ½.
`eval/pairs.jsonl` has the score as `preference`. Everything else, such as the perplexity ratio
and the KL divergence, is that of the model, which is not changed. The accuracy before training
is that of the log-probabilities.
When to use it: to see how much of the preference can be read off the base model without any
training. On GENIES' 15 hardest shifts, it has the best mean accuracy of the published methods:
0.557, 0.564 and 0.620 for LLaMA 7B, 13B and 30B, where fine-tuned reward models have 0.521, 0.538
and 0.561.
Differences of GENIES: GENIES also calibrates the score as a probability, which does not change
the order of the completions.",
    example(heads = 8)
)]
pub struct Mms {
    /// k: number of heads, at least 1.
    #[default(16)]
    pub heads: usize,
    /// The part of the training pairs on which the probes are compared, between 0 and 1.
    #[default(0.3)]
    pub holdout: f64,
    /// Blocks whose heads are compared, e.g. `range(.3,.9)`; by default, all blocks.
    pub layers: Option<Layers>,
}

impl InterventionPlugin for Mms {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        within("heads", self.heads as f64, self.heads > 0, "at least 1")?;
        let valid = self.holdout > 0.0 && self.holdout < 1.0;
        within("holdout", self.holdout, valid, "greater than 0 and less than 1")?;
        Ok(Box::new(Scorer { config: self, found: None }))
    }
}

/// The names of the statistics.
const HEADS: &str = "heads";
const DIRECTIONS: &str = "directions";
const ACCURACIES: &str = "accuracies";

/// A configured method, with its heads and directions once they are known.
struct Scorer {
    config: Mms,
    /// Indices of the heads among the sites, and their directions, `[k head_dim]`.
    found: Option<(Vec<i64>, Tensor)>,
}

/// All heads of some blocks, at the last token.
struct LastToken(Option<Layers>);

impl Tap for LastToken {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        let all = || Layers(format!("range(0,{})", model.layers));
        heads(model, &self.0.clone().unwrap_or_else(all))
    }

    fn pooling(&self) -> Pooling {
        Pooling::Last
    }
}

impl Intervention for Scorer {
    fn needs(&self) -> Needs {
        Needs { evaluate_only: true, fit: true, preferences: true, ..Needs::default() }
    }

    fn tap(&self) -> Option<Box<dyn Tap>> {
        Some(Box::new(LastToken(self.config.layers.clone())))
    }

    fn fit(&self, states: &PairStates) -> Result<Statistics> {
        let (held_out, trained) = self.split(states)?;
        let mut accuracies = Vec::with_capacity(states.sites.len());
        let mut means = Vec::with_capacity(states.sites.len());
        for at in &states.sites {
            let of = |pairs: &Tensor| -> Result<Sides> {
                Sides::try_of(|side| Ok(at.states.get(side).f_index_select(0, pairs)?))
            };
            let probe = Probe::fit(&of(&trained)?)
                .within(|| format!("cannot fit a probe to `{}`", at.site))?;
            accuracies.push(probe.accuracy(&of(&held_out)?)?);
            means.push(mean_difference(&at.differences())?);
        }
        let mut order: Vec<usize> = (0..accuracies.len()).collect();
        order.sort_by(|a, b| accuracies[*b].total_cmp(&accuracies[*a]));
        order.truncate(self.config.heads);
        let heads: Vec<i64> = order.iter().map(|i| *i as i64).collect();
        let directions: Vec<&Tensor> = order.iter().map(|i| &means[*i]).collect();
        Ok(Statistics::new(vec![
            (HEADS.to_owned(), Tensor::f_from_slice(&heads)?),
            (DIRECTIONS.to_owned(), Tensor::f_stack(&directions, 0)?),
            (ACCURACIES.to_owned(), Tensor::f_from_slice(&accuracies)?),
        ]))
    }

    fn set_statistics(&mut self, statistics: &Statistics) -> Result<()> {
        let heads = Vec::<i64>::try_from(statistics.get(HEADS)?)?;
        self.found = Some((heads, statistics.get(DIRECTIONS)?.f_to_kind(Kind::Double)?));
        Ok(())
    }

    fn preferences(&self, states: &PairStates) -> Result<Tensor> {
        let (heads, directions) = self
            .found
            .as_ref()
            .ok_or_else(|| Error::internal("`mms` has no statistics to compute scores from"))?;
        let mut cosines = Vec::with_capacity(heads.len());
        for (i, head) in heads.iter().enumerate() {
            let at = usize::try_from(*head).ok().and_then(|head| states.sites.get(head));
            let at = at.ok_or_else(|| {
                Error::new(format!(
                    "the statistics contain the head {head}, but the model only has {} heads at \
                        the tap",
                    states.sites.len()
                ))
            })?;
            let difference = at.differences().f_to_kind(Kind::Double)?;
            let v = directions.f_get(i as i64)?.f_unsqueeze(0)?;
            cosines.push(Tensor::f_cosine_similarity(&difference, &v, 1, 1e-8)?);
        }
        let score = (Tensor::f_stack(&cosines, 0)?.f_mean_dim(0, false, Kind::Double)? + 1.0) * 0.5;
        Ok(Tensor::f_stack(&[&score, &(1.0 - &score)], 1)?)
    }

    fn loss(&mut self, _: &Pairs, _: StepInfo) -> Result<Loss> {
        Err(Error::internal("the intervention `mms` has no loss"))
    }
}

impl Scorer {
    /// Divides the pairs into those on which the probes are compared, and those on which they are
    /// fitted. The division only depends on the seed and the number of pairs. Returns their
    /// indices.
    fn split(&self, states: &PairStates) -> Result<(Tensor, Tensor)> {
        let pairs = states.pairs();
        let fitted = (pairs as f64 * (1.0 - self.config.holdout)) as i64;
        if fitted < 1 || fitted >= pairs {
            return Err(Error::new(format!(
                "`mms` needs pairs to fit its probes and other pairs to compare them, but there \
                    {} {pairs} in all",
                if pairs == 1 { "is" } else { "are" }
            ))
            .hint("train on at least 4 pairs, or change `intervention.holdout`"));
        }
        let mut init = Init::new(states.seed, "mms", Kind::Double, tch::Device::Cpu);
        let order = init.normal("split", &[pairs], 1.0).f_detach()?.f_argsort(0, false)?;
        Ok((order.f_narrow(0, fitted, pairs - fitted)?, order.f_narrow(0, 0, fitted)?))
    }
}
