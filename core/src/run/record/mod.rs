//! Records of training steps and validations, and the recorders that write them. Each recorder has
//! one destination, such as the terminal or a log file.

mod jsonl;
mod log_file;
mod recorder;
mod step;
mod tensorboard;
mod terminal;
mod validation;

pub use jsonl::JsonLines;
pub use log_file::LogFile;
pub use recorder::{Note, Recorder, Recorders};
pub use step::{LEFT_OUT, StepRecord};
pub use tensorboard::TensorBoard;
pub use terminal::Terminal;
pub use validation::ValidationRecord;
