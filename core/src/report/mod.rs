//! What a person or a program reads of a run: tables and progress.

mod completions;
pub mod grid;
mod histogram;
pub mod lines;
pub mod progress;
pub mod table;

pub use completions::{Sample, SampleCompletions, SampledPrompt, StartedFrom};
pub use grid::{Align, Grid};
pub use histogram::histogram;
pub use progress::Progress;
pub use table::{PERPLEXITY_NOTE, Table, perplexity_mark};
