//! Ctrl-C: the first asks the computation to stop where it can be taken up again, the second stops the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use reprpo_core::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether somebody asked the process to end, since [`watch`] was called.
pub fn asked() -> bool {
    ASKED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// A flag that turns true when the user or the system asks the process to end.
///
/// # Errors
/// Where the system takes no handler.
pub fn watch() -> Result<Arc<AtomicBool>> {
    let asked = Arc::clone(ASKED.get_or_init(Arc::default));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag still down, and raises it.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&asked))
            .and_then(|_| flag::register(signal, Arc::clone(&asked)))
            .map_err(|e| Error::internal("cannot listen for Ctrl-C").because(e))?;
    }
    Ok(asked)
}
