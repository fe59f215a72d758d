//! Connects a plugin's copy of this crate to the host program.

use std::sync::OnceLock;

use crate::error::Error;

/// The host of this plugin. Only set in a plugin's copy of this crate, not in the host program.
static HOST: OnceLock<HostSide> = OnceLock::new();

/// The values that the host passes to a loaded plugin.
pub(crate) struct HostSide {
    label: &'static str,
    fault: extern "C" fn(*const u8, usize, *const u8, usize),
}

impl HostSide {
    /// Path of this plugin library, in backticks, for error messages.
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Reports a fault to the host.
    pub fn fault(&self, error: &Error) {
        let message = error.message();
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        (self.fault)(message.as_ptr(), message.len(), cause.as_ptr(), cause.len());
    }
}

/// Returns the host if this code runs in a plugin.
pub(crate) fn host() -> Option<&'static HostSide> {
    HOST.get()
}

/// Stores the values from the host. Returns false, and does nothing, if a host has already been
/// stored.
pub(crate) fn keep(
    label: &'static str,
    fault: extern "C" fn(*const u8, usize, *const u8, usize),
) -> bool {
    HOST.set(HostSide { label, fault }).is_ok()
}
