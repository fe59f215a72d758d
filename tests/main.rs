//! The whole program as its users run it.

mod command;
mod invariants;
mod training;
