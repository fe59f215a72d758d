//! Training objectives on preference pairs.

mod dpo;
mod mse;
mod original;
mod prefvec;
mod ranges;
mod rewards;
mod vectors;

#[cfg(test)]
mod worked_pairs;
