//! Training: from pairs to a trained adapter.

pub mod batch;
mod checkpoint;
mod closing;
mod directions;
mod fingerprints;
mod folder;
mod objective;
mod optimiser;
mod prior;
mod reference;
mod run;
mod schedule;
mod start;
mod step;
mod transforms;

pub use objective::{Evaluated, Objective, Taps};
pub use optimiser::{AdamW, Group};
pub use prior::{Prior, clear};
pub use run::{Start, judge, run};
pub use schedule::learning_rate;
pub use start::leave_flat_start;
pub use step::{Accumulated, LeftOut, accumulate};
