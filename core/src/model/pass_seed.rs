//! The seeds of the random numbers in a training pass.

use sha2::{Digest, Sha256};

/// The seed of a training pass over one micro-batch.
///
/// Every module draws its random numbers, such as a dropout mask, from a seed of its own. They do
/// not depend on the numbers of other modules, so a block that runs again draws the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassSeed {
    step: i64,
    micro_batch: usize,
}

impl PassSeed {
    /// Creates the seed of a pass from the seed of the optimiser step, and from the index of the
    /// micro-batch in the step.
    pub fn new(step: i64, micro_batch: usize) -> Self {
        Self { step, micro_batch }
    }

    /// Sets libtorch's generators, on all devices, to the seed of `drawer`. This is the name of a
    /// module or of another part of the pass that draws random numbers next.
    pub fn start(self, drawer: &str) {
        tch::manual_seed(self.of(drawer));
    }

    /// The seed of `drawer`. libtorch's generator on the CPU only uses the lower 32 bits, so all
    /// bits must depend on all inputs.
    fn of(self, drawer: &str) -> i64 {
        let digest = Sha256::new()
            .chain_update(self.step.to_le_bytes())
            .chain_update((self.micro_batch as u64).to_le_bytes())
            .chain_update(drawer)
            .finalize();
        digest[..8].iter().fold(0, |seed, byte| seed << 8 | i64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_seed_depends_on_the_step_the_micro_batch_and_the_module() {
        let mut seeds = HashSet::new();
        for (step, micro_batch) in [(0, 0), (0, 1), (1, 0), (256, 0)] {
            for drawer in ["layers.0.q_proj", "layers.0.v_proj", ""] {
                let seed = PassSeed::new(step, micro_batch);
                assert_eq!(seed.of(drawer), PassSeed::new(step, micro_batch).of(drawer));
                assert!(seeds.insert(seed.of(drawer) as u32), "{seed:?} {drawer}");
            }
        }
    }
}
