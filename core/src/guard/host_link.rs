//! The connection from a plugin's copy of this crate to its host.

use std::sync::OnceLock;

use crate::error::Error;

/// The host, in a plugin's copy of this crate. It is never set in the program itself.
static HOST: OnceLock<HostSide> = OnceLock::new();

/// The values that a plugin receives from its host and stores.
pub(crate) struct HostSide {
    label: &'static str,
    fault: extern "C" fn(*const u8, usize, *const u8, usize),
}

impl HostSide {
    /// Path of this library, in backticks, for error messages.
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Reports a fault from a function that cannot return an error.
    pub fn fault(&self, error: &Error) {
        let message = error.message();
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        (self.fault)(message.as_ptr(), message.len(), cause.as_ptr(), cause.len());
    }
}

/// The host, if this code runs in a plugin.
pub(crate) fn host() -> Option<&'static HostSide> {
    HOST.get()
}

/// Stores the host. Returns false and does nothing if a host is already stored.
pub(crate) fn keep(
    label: &'static str,
    fault: extern "C" fn(*const u8, usize, *const u8, usize),
) -> bool {
    HOST.set(HostSide { label, fault }).is_ok()
}
