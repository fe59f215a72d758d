//! Training: from pairs to a trained adapter.

pub mod batch;
mod checkpoint;
mod folder;
mod objective;
mod optimiser;
mod run;
mod schedule;

pub use objective::{Evaluated, Objective};
pub use optimiser::{AdamW, Group};
pub use run::{Start, run};
pub use schedule::learning_rate;
