//! The parts of training: the objective on a batch, the gradient of an optimiser step, the
//! optimiser and the learning-rate schedule.

mod directions;
mod objective;
mod operations;
mod optimiser;
mod order;
mod phases;
mod reference;
mod schedule;
mod start;
mod step;
mod steps;
mod taps;

pub use objective::{Evaluated, Objective, TrainPass};
pub use operations::{GradientPlan, Operations, Shape, Work};
pub use optimiser::{AdamW, Group};
pub use phases::{Phase, PhaseClock, PhaseTimes};
pub use reference::Reference;
pub use schedule::learning_rate;
pub use start::leave_flat_start;
pub use step::{Accumulated, LeftOut, accumulate, validate};
pub use steps::Steps;
pub use taps::Taps;
