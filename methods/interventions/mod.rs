//! Training objectives on preference pairs.
//!
//! `LEARNING_RATE` of each was chosen on training pairs with SmolLM2-135M-Instruct and LoRA: synthetic ones, and those of a
//! GENIES distribution. Losses on states take more than losses on log-probabilities, which the engine's default fits.

mod dpo;
mod mse;
mod none;
mod original;
mod prefvec;
mod projbp;
mod projection;
mod projgrad;
mod ranges;
mod rank;
mod rewards;
mod rr;
mod sft;
mod vectors;

#[cfg(test)]
mod equal_states_tests;
#[cfg(test)]
mod original_golden_tests;
#[cfg(test)]
mod transform_tests;
