//! Divides pairs into blocks. A block is computed as one batch.

use std::borrow::Borrow;

use crate::fingerprint::Parts;
use crate::text::TokenPair;

/// Maximum number of tokens of a block in training. It equals the default of `eval.tokens`, so that
/// training and evaluation have the same blocks.
pub const BLOCK_TOKENS: usize = 2048;

/// One in this many prompts begins a new block, if the current block is at least half full.
const ONE_IN: u8 = 2;

/// Divides pairs into consecutive blocks of at most `tokens` tokens. A pair with more tokens is a
/// block of its own.
///
/// A block that is at least half full can end before any pair with a new prompt. Whether it does is
/// decided by a digest of that prompt. The ends of the blocks therefore do not depend on pairs that
/// are far away: a selection such as `train[750:]`, or a pair that is dropped, only changes the
/// blocks in its neighbourhood.
pub fn blocks<P: Borrow<TokenPair>>(pairs: &[P], tokens: usize) -> impl Iterator<Item = &[P]> {
    let mut rest = pairs;
    std::iter::from_fn(move || {
        let (now, later) = rest.split_at(first_block(rest, tokens));
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

/// Number of pairs in the first block of `pairs`.
fn first_block<P: Borrow<TokenPair>>(pairs: &[P], most: usize) -> usize {
    let mut total: usize = 0;
    for (i, pair) in pairs.iter().enumerate() {
        let pair: &TokenPair = pair.borrow();
        let next = pair.prompt.len() + pair.chosen.len() + pair.rejected.len();
        let ends = || {
            let is_half_full = total >= most.div_ceil(2);
            total + next > most || (is_half_full && begins_block(pair, pairs[i - 1].borrow()))
        };
        if i > 0 && ends() {
            return i;
        }
        total += next;
    }
    pairs.len()
}

/// True if a block that is at least half full ends before `pair`. `before` is the previous pair.
fn begins_block(pair: &TokenPair, before: &TokenPair) -> bool {
    if pair.prompt == before.prompt {
        return false;
    }
    let mut parts = Parts::new("prompt");
    parts.ids(&pair.prompt);
    parts.digest()[0].is_multiple_of(ONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EvalConfig;

    fn pair(index: usize, prompt: i64, tokens: usize) -> TokenPair {
        TokenPair { prompt: vec![prompt], chosen: vec![1; tokens - 2], ..TokenPair::short(index) }
    }

    fn ranges(pairs: &[TokenPair], tokens: usize) -> Vec<(usize, usize)> {
        blocks(pairs, tokens).map(|block| (block[0].index, block[block.len() - 1].index)).collect()
    }

    #[test]
    fn blocks_contain_all_pairs_and_are_bounded() {
        let pairs: Vec<TokenPair> = (0..200).map(|i| pair(i, i as i64, 3 + i * 7 % 40)).collect();
        let size = |block: &[TokenPair]| -> usize {
            block.iter().map(|p| p.prompt.len() + p.chosen.len() + p.rejected.len()).sum()
        };
        for most in [1, 20, 100, 1000, usize::MAX] {
            let all: Vec<&[TokenPair]> = blocks(&pairs, most).collect();
            assert_eq!(all.concat(), pairs, "{most}");
            assert!(all.iter().all(|block| block.len() == 1 || size(block) <= most), "{most}");
        }
        assert_eq!(blocks(&pairs, 1).count(), 200);
        assert_eq!(blocks(&pairs, usize::MAX).count(), 1);
        assert_eq!(blocks::<TokenPair>(&[], 100).count(), 0);
    }

    #[test]
    fn a_selection_only_changes_the_blocks_at_its_ends() {
        let pairs: Vec<TokenPair> = (0..400).map(|i| pair(i, i as i64, 10)).collect();
        let all = ranges(&pairs, 100);
        let first = ranges(&pairs[..150], 100);
        assert_eq!(first[..first.len() - 1], all[..first.len() - 1]);
        let second = ranges(&pairs[155..], 100);
        let common = second.iter().filter(|range| all.contains(range)).count();
        assert!(common + 8 > second.len(), "{common} of {} blocks are equal", second.len());
    }

    #[test]
    fn pairs_with_the_same_prompt_stay_together_until_the_block_is_full() {
        // Ten tokens per pair, four pairs per prompt.
        let pairs: Vec<TokenPair> = (0..400).map(|i| pair(i, i as i64 / 4, 10)).collect();
        for (first, _) in ranges(&pairs, 120) {
            // 12 pairs fit into a block, so every block can end at a new prompt.
            assert_eq!(first % 4, 0);
        }
    }

    #[test]
    fn training_and_evaluation_have_the_same_blocks_by_default() {
        assert_eq!(EvalConfig::default().tokens, BLOCK_TOKENS);
    }
}
