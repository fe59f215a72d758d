//! The way from a plugin's copy of this crate to its host.

use std::sync::OnceLock;

use crate::error::Error;

/// The host, in a plugin's copy of this crate; nothing in a program's.
static HOST: OnceLock<HostSide> = OnceLock::new();

/// What a plugin keeps of its host.
pub(crate) struct HostSide {
    label: &'static str,
    fault: extern "C" fn(*const u8, usize, *const u8, usize),
}

impl HostSide {
    /// Where the host found this library.
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Sends a fault that no error could tell of.
    pub fn fault(&self, error: &Error) {
        let message = error.message();
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        (self.fault)(message.as_ptr(), message.len(), cause.as_ptr(), cause.len());
    }
}

/// The host of this plugin, where this is the code of one.
pub(crate) fn host() -> Option<&'static HostSide> {
    HOST.get()
}

/// Keeps the host, once. Returns false if there was one already.
pub(crate) fn keep(
    label: &'static str,
    fault: extern "C" fn(*const u8, usize, *const u8, usize),
) -> bool {
    HOST.set(HostSide { label, fault }).is_ok()
}
