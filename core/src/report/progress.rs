//! The interface through which a long computation reports its progress. The caller decides how to
//! display it.

/// A receiver of progress reports.
pub trait Progress: Send {
    /// Starts a new stage. `total` is its number of steps, or `None` if that is unknown.
    fn stage(&mut self, name: &str, total: Option<u64>);
    /// Marks `by` steps of the stage as already done, for example when a run is resumed. These
    /// steps are not included in the displayed speed.
    fn skip(&mut self, by: u64);
    /// Reports that `by` more steps are done. `fields` are values to show, for example the loss.
    fn advance(&mut self, by: u64, fields: &[(&str, f64)]);
    /// Shows a line of text.
    fn message(&mut self, text: &str);
    /// Ends the stage.
    fn finish(&mut self);
}

/// Ignores all progress reports.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&mut self, _: &str, _: Option<u64>) {}
    fn skip(&mut self, _: u64) {}
    fn advance(&mut self, _: u64, _: &[(&str, f64)]) {}
    fn message(&mut self, _: &str) {}
    fn finish(&mut self) {}
}
