//! Training objectives on preference pairs.

mod dpo;
mod prefvec;
mod projbp;
mod projection;
mod projgrad;
mod rewards;
