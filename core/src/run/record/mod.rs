//! The record of a training step, and the recorders. Each recorder has its own file and writes to
//! one destination.

mod jsonl;
mod log_file;
mod recorder;
mod step;
mod terminal;
mod validation;

pub use jsonl::JsonLines;
pub use log_file::LogFile;
pub use recorder::{Note, Recorder, Recorders};
pub use step::{LEFT_OUT, StepRecord};
pub use terminal::Terminal;
pub use validation::ValidationRecord;
