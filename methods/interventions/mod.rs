//! Training objectives on preference pairs.

mod dpo;
mod prefvec;
mod ranges;
mod rewards;

#[cfg(test)]
mod worked_pairs;
