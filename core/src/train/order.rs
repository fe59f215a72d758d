//! The order of the training pairs in an epoch.

use std::collections::{HashMap, VecDeque};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::config::TrainConfig;
use crate::text::TokenPair;

/// Orders the pairs of each epoch.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    shuffle: bool,
    /// Number of pairs in a micro-batch.
    batch: usize,
    /// The indices of pairs that should be in one micro-batch. Groups are in the order of their
    /// first pair.
    groups: Vec<Vec<usize>>,
}

impl Order {
    /// Prepares the order of `pairs`. With `train.group_by_prompt`, the pairs with the same prompt
    /// are a group. Otherwise, each pair is its own group.
    pub fn new(pairs: &[TokenPair], train: &TrainConfig) -> Self {
        let groups = if train.group_by_prompt {
            by_prompt(pairs)
        } else {
            (0..pairs.len()).map(|i| vec![i]).collect()
        };
        Self { seed: train.seed, shuffle: train.shuffle, batch: train.batch.pairs(), groups }
    }

    /// Returns the indices of all pairs in the order of epoch `epoch`. If `train.shuffle` is true,
    /// they are shuffled with a seed that depends on the run's seed and the epoch. Otherwise, they
    /// stay in the order of the data set, except that groups stay together.
    pub fn of_epoch(&self, epoch: usize) -> Vec<usize> {
        let mut groups = self.groups.clone();
        if self.shuffle {
            let mut random = ChaCha8Rng::seed_from_u64(
                self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(epoch as u64),
            );
            groups.shuffle(&mut random);
            groups.iter_mut().for_each(|group| group.shuffle(&mut random));
        }
        if groups.iter().all(|group| group.len() == 1) {
            return groups.concat();
        }
        pack(&groups, self.batch).concat()
    }
}

/// Groups the pairs that have the same prompt.
fn by_prompt(pairs: &[TokenPair]) -> Vec<Vec<usize>> {
    let mut known: HashMap<&[i64], usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, pair) in pairs.iter().enumerate() {
        let group = *known.entry(&pair.prompt).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(i);
    }
    groups
}

/// Packs groups into batches of `size` pairs. Only the last batch may be smaller.
///
/// Each batch takes the first remaining group that fits into its free space, until it is full. If
/// no group fits, it takes a part of the first remaining group.
fn pack(groups: &[Vec<usize>], size: usize) -> Vec<Vec<usize>> {
    // For each length up to `size`, the remaining pieces of this length with their positions. A
    // piece is a group, or a part of a group that is larger than a batch.
    let mut pieces: Vec<VecDeque<(usize, &[usize])>> = vec![VecDeque::new(); size + 1];
    for (position, piece) in groups.iter().flat_map(|group| group.chunks(size)).enumerate() {
        pieces[piece.len()].push_back((position, piece));
    }
    let total: usize = groups.iter().map(Vec::len).sum();
    let first = |pieces: &[VecDeque<(usize, &[usize])>], longest: usize| {
        (1..=longest)
            .filter_map(|len| pieces[len].front().map(|(position, _)| (*position, len)))
            .min()
            .map(|(_, len)| len)
    };
    let mut batches = Vec::new();
    for begin in (0..total).step_by(size) {
        let mut batch = Vec::new();
        let mut free = size.min(total - begin);
        while free > 0 {
            let fits = first(&pieces, free);
            let Some(len) = fits.or_else(|| first(&pieces, size)) else { break };
            let Some((position, piece)) = pieces[len].pop_front() else { break };
            let (now, later) = piece.split_at(len.min(free));
            batch.extend_from_slice(now);
            if !later.is_empty() {
                // Pieces of one length stay ordered by position.
                let queue = &mut pieces[later.len()];
                let at = queue.partition_point(|(other, _)| *other < position);
                queue.insert(at, (position, later));
            }
            free -= now.len();
        }
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Batch;

    /// A pair for each number. Pairs with the same number have the same prompt.
    fn pairs(prompts: &[i64]) -> Vec<TokenPair> {
        let pair =
            |(i, prompt): (usize, &i64)| TokenPair { prompt: vec![*prompt], ..TokenPair::short(i) };
        prompts.iter().enumerate().map(pair).collect()
    }

    fn train(shuffle: bool, group_by_prompt: bool, batch: usize) -> TrainConfig {
        TrainConfig {
            shuffle,
            group_by_prompt,
            batch: Batch::Pairs(batch),
            ..TrainConfig::default()
        }
    }

    #[test]
    fn without_shuffling_groups_follow_the_order_of_their_first_pair() {
        let order = |prompts: &[i64], batch| {
            Order::new(&pairs(prompts), &train(false, true, batch)).of_epoch(0)
        };
        assert_eq!(order(&[7, 8, 7, 8, 9, 9], 2), [0, 2, 1, 3, 4, 5]);
        // The group of three does not fit next to the group of two, but the single pair does.
        assert_eq!(order(&[7, 7, 8, 8, 8, 9], 3), [0, 1, 5, 2, 3, 4]);
        // Nothing fits next to the group of two, so a part of the next group fills the batch.
        assert_eq!(order(&[7, 7, 8, 8, 9, 9], 3), [0, 1, 2, 3, 4, 5]);
        // A group that is larger than a batch is divided.
        assert_eq!(order(&[7, 8, 7, 7, 7, 7], 2), [0, 2, 3, 4, 5, 1]);
    }

    #[test]
    fn every_epoch_has_every_pair_once_and_shuffles_again() {
        let prompts: Vec<i64> = (0..53).map(|i| i * i % 11).collect();
        for grouped in [false, true] {
            for batch in [1, 3, 4, 60] {
                let order = Order::new(&pairs(&prompts), &train(true, grouped, batch));
                let epochs = [0, 1].map(|epoch| order.of_epoch(epoch));
                assert_ne!(epochs[0], epochs[1]);
                assert_eq!(epochs[0], order.of_epoch(0));
                for mut epoch in epochs {
                    epoch.sort_unstable();
                    assert_eq!(epoch, (0..53).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn groups_that_fit_are_in_one_batch() {
        // 20 prompts with two pairs each, and batches of four.
        let prompts: Vec<i64> = (0..40).map(|i| i % 20).collect();
        let grouped = Order::new(&pairs(&prompts), &train(true, true, 4)).of_epoch(3);
        for batch in grouped.chunks(4) {
            let mut seen: Vec<i64> = batch.iter().map(|i| prompts[*i]).collect();
            seen.sort_unstable();
            assert!(seen[0] == seen[1] && seen[2] == seen[3], "{seen:?}");
        }
    }
}
