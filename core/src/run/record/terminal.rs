//! Progress and messages for someone who watches the run.

use std::cell::RefCell;

use super::recorder::{Note, Recorder};
use super::step::StepRecord;
use crate::error::Result;
use crate::report::Progress;

/// Shows the steps as a bar, and messages as lines.
pub struct Terminal<'a, 'p>(&'a RefCell<&'p mut dyn Progress>);

impl<'a, 'p> Terminal<'a, 'p> {
    /// Shows the run on `progress`, which others use as well.
    pub fn new(progress: &'a RefCell<&'p mut dyn Progress>) -> Self {
        Self(progress)
    }
}

impl Recorder for Terminal<'_, '_> {
    fn begin(&mut self, first: usize, steps: usize) -> Result<()> {
        let mut progress = self.0.borrow_mut();
        progress.stage("train", Some(steps as u64));
        progress.skip(first as u64);
        Ok(())
    }

    fn step(&mut self, record: &StepRecord) -> Result<()> {
        let margin = record.metric("rewards/margins").map(|margin| ("margin", margin));
        let fields: Vec<_> = [Some(("loss", record.loss)), margin, Some(("pairs/s", record.pairs_per_second))].into_iter().flatten().collect();
        let mut progress = self.0.borrow_mut();
        progress.advance(1, &fields);
        if record.step == record.steps {
            progress.finish();
        }
        Ok(())
    }

    fn note(&mut self, note: Note<'_>) -> Result<()> {
        if let Note::Message(text) = note {
            self.0.borrow_mut().message(text);
        }
        Ok(())
    }
}
