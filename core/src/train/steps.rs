//! Divides a run into steps and selects the pairs for each step.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::learning_rate;
use super::order::Order;
use crate::config::TrainConfig;
use crate::text::TokenPair;

/// The steps of a run and their pairs.
pub struct Steps<'a> {
    train: &'a TrainConfig,
    /// Number of training pairs.
    pub pairs: usize,
    /// Number of pairs per step. The last step of an epoch may have fewer.
    step_pairs: usize,
    /// Number of steps per epoch.
    per_epoch: usize,
    /// Number of steps in the run.
    pub count: usize,
    order: Order,
    /// The epoch of the last call to [`pairs_of`](Self::pairs_of), and its order.
    current: RefCell<Option<(usize, Vec<usize>)>>,
}

impl<'a> Steps<'a> {
    /// Plans a run on the training set `pairs`.
    pub fn new(pairs: &[TokenPair], train: &'a TrainConfig) -> Self {
        let order = Order::new(pairs, train);
        let pairs = pairs.len();
        let step_pairs = train.step_pairs();
        let per_epoch = pairs.div_ceil(step_pairs);
        let steps = ((per_epoch as f64 * train.epochs).ceil() as usize).max(1);
        let current = RefCell::default();
        Self { train, pairs, step_pairs, per_epoch, count: steps, order, current }
    }

    /// Returns the pairs of step `step`, counted from 0.
    pub fn pairs_of<'p>(&self, step: usize, pairs: &'p [TokenPair]) -> Vec<&'p TokenPair> {
        let epoch = step / self.per_epoch;
        let mut current = self.current.borrow_mut();
        let (_, order) = match current.take() {
            Some((known, order)) if known == epoch => current.insert((epoch, order)),
            _ => current.insert((epoch, self.order.of_epoch(epoch))),
        };
        let within = (step % self.per_epoch) * self.step_pairs;
        order[within..(within + self.step_pairs).min(self.pairs)]
            .iter()
            .map(|i| &pairs[*i])
            .collect()
    }

    /// The indices of all pairs that the steps from step `first` on use.
    pub fn used_from(&self, first: usize, pairs: &[TokenPair]) -> BTreeSet<usize> {
        if first.next_multiple_of(self.per_epoch) + self.per_epoch <= self.count {
            // These steps contain a whole epoch.
            return pairs.iter().map(|pair| pair.index).collect();
        }
        let used = (first..self.count).flat_map(|step| self.pairs_of(step, pairs));
        used.map(|pair| pair.index).collect()
    }

    /// Total number of pairs in the first `steps` steps. A pair is counted again in every epoch.
    pub fn pairs_in(&self, steps: usize) -> usize {
        (0..steps)
            .map(|step| self.step_pairs.min(self.pairs - (step % self.per_epoch) * self.step_pairs))
            .sum()
    }

    /// Returns the seed for random numbers in a step, such as dropout masks. The seed only depends
    /// on the run's seed and the step. A resumed run therefore uses the same numbers as an
    /// uninterrupted one.
    pub fn seed(&self, step: usize) -> i64 {
        (self.train.seed as i64).wrapping_mul(1_000_003).wrapping_add(step as i64)
    }

    /// Number of epochs completed after step `step`, including the fraction of the current epoch.
    /// As in the Trainer of transformers, the fraction counts batches. The last step of an epoch
    /// may have fewer batches than the others.
    pub fn epoch(&self, step: usize) -> f64 {
        let batches = self.pairs.div_ceil(self.train.batch.pairs());
        let seen =
            ((step % self.per_epoch + 1) * self.train.accumulate * self.train.ranks).min(batches);
        (step / self.per_epoch) as f64 + seen as f64 / batches as f64
    }

    /// Returns a warning if the learning rate is 0 at every step.
    pub fn warning(&self) -> Option<String> {
        let nothing =
            (0..self.count).all(|step| learning_rate(self.train, step, self.count) == 0.0);
        nothing.then(|| {
            format!(
                "warning: nothing will be learned: the warm-up starts at a learning rate of 0 and \
                    lasts the whole run (steps: {}, pairs per step: {}); set `train.warmup=0`",
                self.count, self.step_pairs
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Batch;

    /// The expected values were logged by the Trainer of transformers 5.23 with the same
    /// `per_device_train_batch_size`, `gradient_accumulation_steps` and `num_train_epochs`.
    #[test]
    fn the_epoch_is_the_fraction_of_batches_processed() {
        let logged = |pairs: usize, batch: usize, accumulate: usize, steps: usize| -> Vec<f64> {
            let train =
                TrainConfig { batch: Batch::Pairs(batch), accumulate, ..TrainConfig::default() };
            let pairs: Vec<TokenPair> = (0..pairs).map(TokenPair::short).collect();
            (0..steps).map(|step| Steps::new(&pairs, &train).epoch(step)).collect()
        };
        assert_eq!(logged(10, 2, 2, 5), [0.4, 0.8, 1.0, 1.4, 1.8]);
        // The last batch of an epoch may be smaller, but it counts as a whole batch.
        assert_eq!(logged(9, 2, 2, 3), [0.4, 0.8, 1.0]);
        assert_eq!(logged(8, 2, 2, 4), [0.5, 1.0, 1.5, 2.0]);
        // There are fewer pairs than in a full step.
        assert_eq!(logged(3, 2, 4, 2), [1.0, 2.0]);
        assert_eq!(logged(5, 1, 1, 6), [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]);
    }

    #[test]
    fn every_epoch_has_every_pair_once() {
        let train = TrainConfig {
            batch: Batch::Pairs(2),
            accumulate: 2,
            epochs: 2.5,
            ..TrainConfig::default()
        };
        let pairs: Vec<TokenPair> = (0..10).map(TokenPair::short).collect();
        let steps = Steps::new(&pairs, &train);
        assert_eq!((steps.count, steps.pairs_in(steps.count), steps.pairs_in(2)), (8, 28, 8));
        for epoch in 0..2 {
            let steps = (0..3).flat_map(|step| steps.pairs_of(epoch * 3 + step, &pairs));
            let mut seen: Vec<usize> = steps.map(|pair| pair.index).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
    }
}
