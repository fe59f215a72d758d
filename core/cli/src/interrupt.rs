//! Ctrl-C: the first asks the computation to stop where it can be taken up again, the second stops the process.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reprpo_core::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that turns true when the user or the system asks the process to end.
///
/// # Errors
/// Where the system takes no handler.
pub fn watch() -> Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag still down, and raises it.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&asked))
            .and_then(|_| flag::register(signal, Arc::clone(&asked)))
            .map_err(|e| Error::internal("cannot listen for Ctrl-C").because(e))?;
    }
    Ok(asked)
}
