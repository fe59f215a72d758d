//! Holds out pairs of the training split for validation. Pairs with the same prompt are either all
//! trained on or all held out, and so are pairs of the same cluster.

use std::collections::HashMap;
use std::hash::Hash;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::text::{TokenPair, Tokenised};

/// By default, one in this many pairs is held out.
const ONE_IN: usize = 10;
/// Maximum number of pairs that are held out by default.
const MAX_DEFAULT: usize = 64;

fn default_count(pairs: usize) -> usize {
    (pairs / ONE_IN).clamp(1, MAX_DEFAULT)
}

/// Reads the pairs of `train.split`. Returns the pairs to train on and the held-out pairs.
/// `train.max_pairs` only limits the pairs to train on.
///
/// # Errors
/// Fails in the same cases as [`Session::tokenise`], or if the requested number of pairs cannot be
/// held out.
pub fn read(session: &Session, train: &TrainConfig) -> Result<(Tokenised, Vec<TokenPair>)> {
    let most = train.max_pairs.map(|most| {
        most.saturating_add(train.validation_pairs.unwrap_or_else(|| default_count(most)))
    });
    divide(session.tokenise(&train.split, train, most)?, train)
}

/// Divides the usable pairs of a split into pairs to train on and held-out pairs.
fn divide(all: Tokenised, train: &TrainConfig) -> Result<(Tokenised, Vec<TokenPair>)> {
    let n = all.pairs.len();
    let wanted = train
        .validation_pairs
        .unwrap_or_else(|| default_count(train.max_pairs.map_or(n, |most| most.min(n))));
    if wanted >= n {
        let limit = train
            .max_pairs
            .map_or_else(String::new, |most| format!(" with `train.max_pairs` = {most}"));
        let e = Error::new(format!(
            "cannot hold out {wanted} of the {n} usable pairs of `{}`{limit}: no pairs would be \
                left to train on",
            train.split
        ));
        return Err(e.hint("lower `train.validation_pairs`, or remove `train.validate_every`"));
    }
    let mut groups = groups(&all);
    // Use a different seed from the one that shuffles the pairs during training.
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(
        train.seed.wrapping_mul(0xd1b5_4a32_d192_ed03).wrapping_add(1),
    ));
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    let chosen = match (choose(&sizes, wanted), train.validation_pairs) {
        _ if groups.len() == 1 => {
            let e = Error::new(format!(
                "cannot hold out pairs of `{}`: all {n} usable pairs have the same prompt, and \
                    pairs with the same prompt must stay together",
                train.split
            ));
            return Err(e.hint("remove `train.validate_every`"));
        }
        (Ok(chosen), _) => chosen,
        (Err(possible), Some(wanted)) => {
            let possible = if possible == 0 {
                sizes.iter().copied().min().unwrap_or_default()
            } else {
                possible
            };
            let e = Error::new(format!(
                "cannot hold out exactly {wanted} pairs of `{}`: pairs with the same prompt stay \
                    together, and no set of prompts has that many pairs",
                train.split
            ));
            return Err(e.hint(format!("set `train.validation_pairs={possible}`")));
        }
        // Every prompt has more than `wanted` pairs. Hold out the prompt with the fewest pairs.
        (Err(0), None) => (0..sizes.len()).min_by_key(|group| sizes[*group]).into_iter().collect(),
        (Err(possible), None) => choose(&sizes, possible).unwrap_or_default(),
    };
    let mut is_held_out = vec![false; n];
    for pair in chosen.into_iter().flat_map(|group| &groups[group]) {
        is_held_out[*pair] = true;
    }
    let Tokenised { pairs, cuts, prompts, identities, dropped, findings } = all;
    let (mut training, mut held_out) =
        (Tokenised { identities, dropped, findings, ..Tokenised::default() }, Vec::new());
    for (((pair, cut), prompt), is_held_out) in
        pairs.into_iter().zip(cuts).zip(prompts).zip(is_held_out)
    {
        if is_held_out {
            held_out.push(pair);
        } else if train.max_pairs.is_none_or(|most| training.pairs.len() < most) {
            training.pairs.push(pair);
            training.cuts.push(cut);
            training.prompts.push(prompt);
        }
    }
    Ok((training, held_out))
}

/// Groups the pairs so that no prompt and no cluster occurs in two groups. Returns the indices of
/// the pairs in each group, in ascending order. Two prompts are considered equal if they have the
/// same text, or the same tokens after truncation.
fn groups(all: &Tokenised) -> Vec<Vec<usize>> {
    let mut parent: Vec<usize> = (0..all.pairs.len()).collect();
    join(&mut parent, all.prompts.iter());
    join(&mut parent, all.pairs.iter().map(|pair| &pair.prompt));
    join(&mut parent, all.pairs.iter().map(|pair| &all.identities[pair.index].cluster));
    let mut group_of = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for pair in 0..parent.len() {
        let root = root(&mut parent, pair);
        let group = *group_of.entry(root).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(pair);
    }
    groups
}

/// Merges the groups of all pairs whose keys are equal.
fn join<K: Hash + Eq>(parent: &mut [usize], keys: impl Iterator<Item = K>) {
    let mut first = HashMap::new();
    for (pair, key) in keys.enumerate() {
        let before = *first.entry(key).or_insert(pair);
        let (a, b) = (root(parent, before), root(parent, pair));
        parent[a.max(b)] = a.min(b);
    }
}

/// The representative of the group that contains `pair`.
fn root(parent: &mut [usize], mut pair: usize) -> usize {
    while parent[pair] != pair {
        parent[pair] = parent[parent[pair]];
        pair = parent[pair];
    }
    pair
}

/// Chooses groups that have exactly `wanted` pairs in total, preferring the first groups. If this
/// is impossible, the error is the largest possible total below `wanted`.
fn choose(sizes: &[usize], wanted: usize) -> Result<Vec<usize>, usize> {
    let (mut left, mut taken) = (wanted, Vec::new());
    for (group, size) in sizes.iter().enumerate() {
        if *size <= left {
            left -= size;
            taken.push(group);
        }
    }
    if left == 0 {
        return Ok(taken);
    }
    // `last[sum]` is the last group of a choice with `sum` pairs. To find the other groups,
    // subtract the size of this group and look up the remaining sum.
    let mut last: Vec<Option<usize>> = vec![None; wanted + 1];
    for (group, size) in sizes.iter().enumerate() {
        for sum in (*size..=wanted).rev() {
            if last[sum].is_none() && (sum == *size || last[sum - size].is_some()) {
                last[sum] = Some(group);
            }
        }
    }
    if last[wanted].is_none() {
        return Err((1..wanted).rev().find(|sum| last[*sum].is_some()).unwrap_or(0));
    }
    let (mut sum, mut chosen) = (wanted, Vec::new());
    while let Some(group) = last[sum] {
        chosen.push(group);
        sum -= sizes[group];
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PreferencePair;
    use crate::text::Cut;

    /// Creates one pair for each prompt.
    fn pairs(prompts: &[i64]) -> Tokenised {
        let pair = |(index, prompt): (usize, &i64)| TokenPair {
            prompt: vec![1, *prompt],
            ..TokenPair::short(index)
        };
        Tokenised {
            pairs: prompts.iter().enumerate().map(pair).collect(),
            cuts: vec![Cut::default(); prompts.len()],
            prompts: prompts.iter().map(|prompt| *prompt as u64).collect(),
            identities: prompts
                .iter()
                .map(|prompt| PreferencePair::new(prompt.to_string(), "c", "r").identity())
                .collect(),
            ..Tokenised::default()
        }
    }

    fn train(validation_pairs: Option<usize>, max_pairs: Option<usize>) -> TrainConfig {
        TrainConfig {
            validation_pairs,
            max_pairs,
            validate_every: Some(1),
            ..TrainConfig::default()
        }
    }

    fn indices(pairs: &[TokenPair]) -> Vec<usize> {
        pairs.iter().map(|pair| pair.index).collect()
    }

    #[test]
    fn no_prompt_is_both_trained_on_and_held_out() {
        let prompts: Vec<i64> = (0..60).map(|i| i * 7 % 23).collect();
        for seed in 0..20 {
            let (training, held_out) =
                divide(pairs(&prompts), &TrainConfig { seed, ..train(Some(9), None) }).unwrap();
            assert_eq!((training.pairs.len(), held_out.len(), training.cuts.len()), (51, 9, 51));
            assert!(
                held_out
                    .iter()
                    .all(|held| training.pairs.iter().all(|pair| pair.prompt != held.prompt)),
                "{seed}"
            );
        }
    }

    #[test]
    fn prompts_that_only_differ_before_or_after_truncation_stay_together() {
        // Pairs 0 and 1 have the same text, and pairs 1 and 2 have the same tokens, so all three
        // pairs must be in one group.
        let mut all = pairs(&[10, 11, 11, 12]);
        all.prompts = vec![5, 5, 6, 7];
        assert_eq!(groups(&all), [vec![0, 1, 2], vec![3]]);
    }

    #[test]
    fn pairs_of_a_cluster_stay_together() {
        let mut all = pairs(&[10, 11, 12, 13]);
        all.identities[2].cluster = all.identities[0].cluster.clone();
        assert_eq!(groups(&all), [vec![0, 2], vec![1], vec![3]]);
    }

    #[test]
    fn the_seed_decides_which_pairs_are_held_out() {
        let all = || pairs(&(0..100).collect::<Vec<_>>());
        let of =
            |seed| indices(&divide(all(), &TrainConfig { seed, ..train(None, None) }).unwrap().1);
        assert_eq!((of(0), of(0).len()), (of(0), 10));
        assert_ne!(of(0), of(1));
        assert!(of(0).is_sorted() && of(0)[9] > 20, "held-out pairs: {:?}", of(0));
    }

    #[test]
    fn max_pairs_limits_the_pairs_to_train_on() {
        let sizes = |n: i64, config: &TrainConfig| {
            divide(pairs(&(0..n).collect::<Vec<_>>()), config)
                .map(|(training, held)| (training.pairs.len(), held.len()))
        };
        // With `max_pairs` = 40, 4 pairs are held out. If the split only has 40 pairs, this leaves
        // 36 to train on.
        assert_eq!(sizes(44, &train(None, Some(40))).unwrap(), (40, 4));
        assert_eq!(sizes(40, &train(None, Some(40))).unwrap(), (36, 4));
        assert_eq!(sizes(30, &train(Some(5), Some(25))).unwrap(), (25, 5));
        assert_eq!(sizes(2000, &train(None, None)).unwrap(), (1936, 64));
        assert_eq!(sizes(2, &train(None, None)).unwrap(), (1, 1));
        let e = sizes(8, &train(Some(8), None)).unwrap_err();
        assert!(
            e.message()
                .contains("cannot hold out 8 of the 8 usable pairs of `train`: no pairs would be"),
            "{e}"
        );
        assert!(sizes(1, &train(None, None)).is_err());
        // Each prompt has two pairs, so the number of held-out pairs is even. Of the 32 pairs, 29
        // are trained on, 2 are held out, and one is unused.
        let twins: Vec<i64> = (0..32).map(|i| i / 2).collect();
        let (training, held_out) = divide(pairs(&twins), &train(None, Some(29))).unwrap();
        assert_eq!((training.pairs.len(), held_out.len()), (29, 2));
    }

    #[test]
    fn an_explicit_number_of_held_out_pairs_is_met_or_rejected() {
        let of = |prompts: &[i64], n| {
            divide(pairs(prompts), &train(n, None)).map(|(_, held_out)| held_out.len())
        };
        // The prompts have 2, 2 and 3 pairs, so 2 to 5 pairs can be held out, but not 1 or 6. The
        // order of the prompts must not matter.
        let prompts = [0, 0, 1, 1, 2, 2, 2];
        assert_eq!([2, 3, 4, 5].map(|n| of(&prompts, Some(n)).unwrap()), [2, 3, 4, 5]);
        let e = of(&prompts, Some(6)).unwrap_err();
        assert!(
            e.message().starts_with("cannot hold out exactly 6 pairs of `train`")
                && e.hints()[0] == "set `train.validation_pairs=5`",
            "{e:?}"
        );
        assert!(of(&prompts, Some(1)).unwrap_err().hints()[0] == "set `train.validation_pairs=2`");
        // By default, 1 of 7 pairs would be held out, but the smallest possible number is 2.
        assert_eq!(of(&prompts, None).unwrap(), 2);
        let e = of(&[4; 9], None).unwrap_err();
        assert!(e.message().contains("all 9 usable pairs have the same prompt"), "{e}");
    }
}
