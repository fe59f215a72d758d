//! Training objectives on preference pairs.

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
