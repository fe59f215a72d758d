//! The control with swapped labels: exchanges the two completions of some training pairs.

use std::mem::swap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::text::Tokenised;

/// Swaps the chosen and the rejected completion of each pair with the probability `fraction`.
/// Returns the number of swapped pairs.
///
/// Whether a pair is swapped depends only on the seed and on its index in the split, so neither the
/// other pairs nor their order matter.
pub(super) fn swap_labels(pairs: &mut Tokenised, fraction: f64, seed: u64) -> usize {
    let mut swapped = 0;
    for (pair, cut) in pairs.pairs.iter_mut().zip(&mut pairs.cuts) {
        if is_swapped(pair.index, fraction, seed) {
            swap(&mut pair.chosen, &mut pair.rejected);
            swap(&mut cut.chosen, &mut cut.rejected);
            swapped += 1;
        }
    }
    swapped
}

fn is_swapped(index: usize, fraction: f64, seed: u64) -> bool {
    // A different seed from those that shuffle and hold out pairs.
    let mut rng =
        ChaCha8Rng::seed_from_u64(seed.wrapping_mul(0xd1b5_4a32_d192_ed03).wrapping_add(2));
    rng.set_stream(index as u64);
    rng.random::<f64>() < fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Cut, TokenPair};

    fn pairs(n: usize) -> Tokenised {
        Tokenised {
            pairs: (0..n).map(TokenPair::short).collect(),
            cuts: vec![Cut { chosen: 1, ..Cut::default() }; n],
            ..Tokenised::default()
        }
    }

    fn swapped(pairs: &Tokenised) -> Vec<usize> {
        let is_swapped = |pair: &&TokenPair| pair.chosen == [3] && pair.rejected == [2];
        pairs.pairs.iter().filter(is_swapped).map(|pair| pair.index).collect()
    }

    #[test]
    fn the_expected_fraction_of_the_pairs_is_swapped() {
        for (fraction, least, most) in [(0.0, 0, 0), (1.0, 2000, 2000), (0.5, 910, 1090)] {
            let mut all = pairs(2000);
            let n = swap_labels(&mut all, fraction, 1);
            assert!((least..=most).contains(&n), "{fraction}: {n}");
            assert_eq!(swapped(&all).len(), n);
            let cuts = all.cuts.iter().filter(|cut| cut.rejected == 1 && cut.chosen == 0);
            assert_eq!(cuts.count(), n);
        }
    }

    #[test]
    fn a_swap_depends_only_on_the_seed_and_the_index() {
        let of = |mut all: Tokenised, seed| {
            swap_labels(&mut all, 0.5, seed);
            swapped(&all)
        };
        let all = of(pairs(100), 3);
        assert_eq!(of(pairs(40), 3), all.iter().copied().filter(|i| *i < 40).collect::<Vec<_>>());
        let mut reversed = pairs(100);
        reversed.pairs.reverse();
        let mut found = of(reversed, 3);
        found.sort_unstable();
        assert_eq!(found, all);
        assert_ne!(of(pairs(100), 4), all);
    }
}
