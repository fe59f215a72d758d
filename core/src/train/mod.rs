//! The parts of training: the objective over a batch, the gradient of a step, the optimiser and the
//! schedule.

mod directions;
mod objective;
mod optimiser;
mod reference;
mod schedule;
mod start;
mod step;
mod steps;
mod taps;

pub use objective::{Evaluated, Objective};
pub use optimiser::{AdamW, Group};
pub use reference::Reference;
pub use schedule::learning_rate;
pub use start::leave_flat_start;
pub use step::{Accumulated, LeftOut, accumulate, validate};
pub use steps::Steps;
pub use taps::Taps;
