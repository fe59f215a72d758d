//! Collects faults: panics in method functions that cannot return an error, such as `drop`.
//!
//! After a fault, the engine continues with a harmless value until it next calls [`check`]. Each
//! command calls [`check`] once more before it ends, so that no fault is lost.

use std::sync::{Mutex, PoisonError};

use super::host_link;
use crate::error::{Error, Fault, Result};

static FAULTS: Mutex<Vec<Error>> = Mutex::new(Vec::new());

/// Stores a fault for [`check`]. In a plugin, sends it to the host instead.
pub(crate) fn report(error: Error) {
    if let Some(host) = host_link::host() {
        host.fault(&error);
    } else {
        tracing::debug!("{error:?}");
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).push(error);
    }
}

/// Stores a fault that a plugin sent to this host.
pub(crate) fn of_plugin(message: &str, cause: &str) {
    let error = Error::new(message).blamed_on(Fault::Input);
    report(if cause.is_empty() { error } else { error.because(Error::new(cause)) });
}

/// Checks whether a fault was reported since the last call.
///
/// # Errors
/// Fails with the first fault since the last call. Any further faults are only logged.
pub fn check() -> Result<()> {
    let mut faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults.drain(..).next().unwrap_or_else(|| Error::internal("a fault was lost")))
    }
}
