//! Judging a model by preference pairs, against the base model.

pub mod statistics;
