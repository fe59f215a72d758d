//! The record of a training step, and those who record it: one file for each place where records
//! go.

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
