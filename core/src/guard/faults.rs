//! Faults of a method where it has no way to return an error: in `Drop`, or in a function that
//! gives a plain value.
//!
//! The engine goes on with a harmless value until it next asks [`check`]; the command asks once
//! more when it is done, so that none is lost.

use std::sync::{Mutex, PoisonError};

use super::host_link;
use crate::error::{Error, Fault, Result};

static FAULTS: Mutex<Vec<Error>> = Mutex::new(Vec::new());

/// Keeps a fault for [`check`]; a plugin's goes to its host.
pub(crate) fn report(error: Error) {
    if let Some(host) = host_link::host() {
        host.fault(&error);
    } else {
        tracing::debug!("{error:?}");
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).push(error);
    }
}

/// A fault that a plugin reported.
pub(crate) fn of_plugin(message: &str, cause: &str) {
    let error = Error::new(message).blamed_on(Fault::Input);
    report(if cause.is_empty() { error } else { error.because(Error::new(cause)) });
}

/// Whether a method has failed where it could not say so.
///
/// # Errors
/// The first fault since the last time this was asked; the others are in the log.
pub fn check() -> Result<()> {
    let mut faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults.drain(..).next().unwrap_or_else(|| Error::internal("a fault was lost")))
    }
}
