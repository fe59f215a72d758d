//! The record of a training step, and the recorders that write it: one file for each destination.

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
