//! The default learning rate, which depends on the chosen plugins.

use crate::registry::{AdapterEntry, InterventionEntry};

/// The default of `train.lr` and the names of the plugins that determine it. It is the
/// intervention's rate, or `engine` if the intervention has none, times the adapter's factor.
pub(crate) fn default_learning_rate(
    engine: f64,
    intervention: &InterventionEntry,
    adapter: &AdapterEntry,
) -> (f64, Vec<&'static str>) {
    let (mut rate, mut of) = (engine, Vec::new());
    if let Some(own) = intervention.learning_rate {
        rate = own;
        of.push(intervention.about.name);
    }
    let factor = adapter.learning_rate_factor;
    if factor != 1.0 {
        // Round to six digits, so that 2e-3 times 3 is shown as 0.006.
        rate = format!("{:.5e}", rate * factor).parse().unwrap_or(rate * factor);
        of.push(adapter.about.name);
    }
    (rate, of)
}
