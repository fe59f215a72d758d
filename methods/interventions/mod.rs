//! Training objectives on preference pairs.

mod dpo;
mod original;
mod prefvec;
mod ranges;
mod rewards;
mod vectors;

#[cfg(test)]
mod worked_pairs;
