//! The interface of a recorder, and the list of all recorders of a run.

use super::step::StepRecord;
use super::validation::ValidationRecord;
use crate::error::Result;
use crate::eval::Evaluation;

/// A line of text about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// A message on the terminal and in the log.
    Message(&'a str),
    /// A message that is only written to the log.
    Detail(&'a str),
}

/// Records a run. Each implementation is in its own file in this folder.
pub trait Recorder {
    /// Records the start of training. `steps` is the total number of steps, and `first` is the
    /// number of finished steps.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn begin(&mut self, _first: usize, _steps: usize) -> Result<()> {
        Ok(())
    }

    /// Records a finished step.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn step(&mut self, _record: &StepRecord) -> Result<()> {
        Ok(())
    }

    /// Records a validation.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn validation(&mut self, _record: &ValidationRecord) -> Result<()> {
        Ok(())
    }

    /// Records a line of text.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn note(&mut self, _note: Note<'_>) -> Result<()> {
        Ok(())
    }

    /// Records the evaluation after training.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn evaluation(&mut self, _evaluation: &Evaluation) -> Result<()> {
        Ok(())
    }

    /// Records the end of the run.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// All recorders of a run. Without recorders, nothing is written or shown.
#[derive(Default)]
pub struct Recorders<'a>(Vec<Box<dyn Recorder + 'a>>);

impl<'a> Recorders<'a> {
    /// Adds a recorder.
    pub fn add(&mut self, recorder: impl Recorder + 'a) {
        self.0.push(Box::new(recorder));
    }

    fn each(&mut self, record: impl Fn(&mut dyn Recorder) -> Result<()>) -> Result<()> {
        self.0.iter_mut().try_for_each(|recorder| record(recorder.as_mut()))
    }

    /// Records text for the terminal and the log.
    ///
    /// # Errors
    /// Fails if a recorder fails.
    pub fn message(&mut self, text: &str) -> Result<()> {
        self.note(Note::Message(text))
    }

    /// Records text for the log.
    ///
    /// # Errors
    /// Fails if a recorder fails.
    pub fn detail(&mut self, text: &str) -> Result<()> {
        self.note(Note::Detail(text))
    }
}

impl Recorder for Recorders<'_> {
    fn begin(&mut self, first: usize, steps: usize) -> Result<()> {
        self.each(|r| r.begin(first, steps))
    }

    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.each(|r| r.step(record))
    }

    fn validation(&mut self, record: &ValidationRecord) -> Result<()> {
        self.each(|r| r.validation(record))
    }

    fn note(&mut self, note: Note<'_>) -> Result<()> {
        self.each(|r| r.note(note))
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.each(|r| r.evaluation(evaluation))
    }

    fn close(&mut self) -> Result<()> {
        self.each(|r| r.close())
    }
}
