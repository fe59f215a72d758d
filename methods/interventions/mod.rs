//! Training objectives on preference pairs.
//!
//! The default `learning_rate` of each method was chosen using only training pairs, with
//! SmolLM2-135M-Instruct and LoRA on the synthetic data and on one GENIES distribution. Losses on
//! states need a higher learning rate. For losses on log-probabilities, the general default is
//! suitable.

mod cpo;
mod direction;
mod dpo;
mod innerpo;
mod mms;
mod mse;
mod none;
mod original;
mod orpo;
mod prefvec;
mod preventative;
mod projbp;
mod projection;
mod projgrad;
mod ranges;
mod rank;
mod rewards;
mod rr;
mod sft;
mod simpo;
mod steer;
mod steering;
mod vectors;

#[cfg(test)]
mod equal_states_tests;
#[cfg(test)]
mod original_golden_tests;
#[cfg(test)]
mod reference_free_tests;
#[cfg(test)]
mod transform_tests;
#[cfg(test)]
mod trl_policy;
