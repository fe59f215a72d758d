//! The default learning rate, which depends on the chosen plugins.

use crate::registry::{Entry, LearningRate};

/// The default of `train.lr`, which is the intervention's rate or else the `engine`'s, times the
/// adapter's factor. Also gives the names of the plugins that it comes from.
pub(crate) fn default_learning_rate(engine: f64, intervention: Option<&Entry>, adapter: Option<&Entry>) -> (f64, Vec<&'static str>) {
    let (mut rate, mut of) = (engine, Vec::new());
    if let Some((entry, LearningRate::Rate(own))) = intervention.map(|entry| (entry, entry.learning_rate)) {
        rate = own;
        of.push(entry.about.name);
    }
    if let Some((entry, LearningRate::Factor(factor))) = adapter.map(|entry| (entry, entry.learning_rate))
        && factor != 1.0
    {
        // Rounded to six digits, so that 2e-3 times 3 is shown as 0.006.
        rate = format!("{:.5e}", rate * factor).parse().unwrap_or(rate * factor);
        of.push(entry.about.name);
    }
    (rate, of)
}
