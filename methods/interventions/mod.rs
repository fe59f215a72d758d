//! Training objectives on preference pairs.

mod dpo;
mod prefvec;
mod rewards;
