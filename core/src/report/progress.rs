//! How a long computation tells how far it is. Whoever shows it decides how; the engine only says.

/// Listens to a computation.
pub trait Progress: Send {
    /// A new stage begins; `total` steps, where that is known.
    fn stage(&mut self, name: &str, total: Option<u64>);
    /// `by` steps of the stage were done before it began here, as when a run is taken up again.
    fn skip(&mut self, by: u64);
    /// `by` steps are done; `fields` are what is worth showing now, as `loss`.
    fn advance(&mut self, by: u64, fields: &[(&str, f64)]);
    /// A line for the reader, now.
    fn message(&mut self, text: &str);
    /// The stage is over.
    fn finish(&mut self);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&mut self, _: &str, _: Option<u64>) {}
    fn skip(&mut self, _: u64) {}
    fn advance(&mut self, _: u64, _: &[(&str, f64)]) {}
    fn message(&mut self, _: &str) {}
    fn finish(&mut self) {}
}
