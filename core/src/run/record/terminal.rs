//! Shows progress and messages on the terminal.

use std::cell::RefCell;

use super::recorder::{Note, Recorder};
use super::step::StepRecord;
use super::validation::ValidationRecord;
use crate::error::Result;
use crate::report::Progress;

/// Shows the steps as a progress bar, and messages as lines.
pub struct Terminal<'a, 'p> {
    progress: &'a RefCell<&'p mut dyn Progress>,
    /// Accuracy of the latest validation.
    accuracy: Option<f64>,
}

impl<'a, 'p> Terminal<'a, 'p> {
    /// Creates a recorder that writes to `progress`. Other parts of the run write there too.
    pub fn new(progress: &'a RefCell<&'p mut dyn Progress>) -> Self {
        Self { progress, accuracy: None }
    }
}

impl Recorder for Terminal<'_, '_> {
    fn begin(&mut self, first: usize, steps: usize) -> Result<()> {
        let mut progress = self.progress.borrow_mut();
        progress.stage("train", Some(steps as u64));
        progress.skip(first as u64);
        Ok(())
    }

    fn step(&mut self, record: &StepRecord) -> Result<()> {
        // The progress bar has no room for both the accuracy and the margin. The accuracy on
        // held-out pairs is more informative than the margin on one batch.
        let margin = || record.metric("rewards/margins").map(|margin| ("margin", margin));
        let preference = self.accuracy.map(|accuracy| ("val acc", accuracy)).or_else(margin);
        let fields: Vec<_> =
            [Some(("loss", record.loss)), preference, Some(("pairs/s", record.pairs_per_second))]
                .into_iter()
                .flatten()
                .collect();
        let mut progress = self.progress.borrow_mut();
        progress.advance(1, &fields);
        if record.step == record.steps {
            progress.finish();
        }
        Ok(())
    }

    fn validation(&mut self, record: &ValidationRecord) -> Result<()> {
        self.accuracy = Some(record.accuracy);
        if record.last {
            self.progress.borrow_mut().finish();
        }
        Ok(())
    }

    fn note(&mut self, note: Note<'_>) -> Result<()> {
        if let Note::Message(text) = note {
            self.progress.borrow_mut().message(text);
        }
        Ok(())
    }
}
