//! The log of a run.

use std::fs::File;
use std::io::Write;

use super::recorder::{Note, Recorder};
use super::validation::ValidationRecord;
use crate::error::{Context, Result};

/// Writes `log.txt`. The file is locked until this recorder is dropped, which keeps other processes
/// out of the run's folder.
#[derive(Debug)]
pub struct LogFile(File);

impl LogFile {
    /// Appends to an open file.
    pub fn new(log: File) -> Self {
        Self(log)
    }
}

impl Recorder for LogFile {
    fn validation(&mut self, record: &ValidationRecord) -> Result<()> {
        self.note(Note::Detail(&record.to_text()))
    }

    fn note(&mut self, note: Note<'_>) -> Result<()> {
        let (Note::Message(text) | Note::Detail(text)) = note;
        writeln!(self.0, "{text}").within(|| "cannot write `log.txt`".to_owned())
    }
}
