//! Training objectives on preference pairs.
//!
//! Each `learning_rate` was chosen using only training pairs, with SmolLM2-135M-Instruct and LoRA
//! on the synthetic data and on one GENIES distribution. Losses on states need a higher rate than
//! losses on log-probabilities, for which the default rate is suitable.

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
