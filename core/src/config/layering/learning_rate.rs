//! The default learning rate, which depends on the chosen plugins.

use crate::registry::{AdapterEntry, InterventionEntry};

/// Returns the default of `train.lr` and the names of the plugins that determine it. The default is
/// the product of the intervention's learning rate and the adapter's factor. `engine` is the
/// learning rate for interventions that do not declare one.
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
