//! Process-wide settings of the hub's client: the offline mode, and the callback for the progress
//! of downloads.
//!
//! The library of a plugin contains its own copy of this crate and of these values. The host passes
//! the values to the plugin when it loads the library.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static OFFLINE: AtomicBool = AtomicBool::new(false);
static CALLBACK: OnceLock<ProgressCallback> = OnceLock::new();

/// Callback for the progress of a download. The arguments are the file's name, the number of bytes
/// downloaded and the total number of bytes. Returns false to stop the download.
pub type ProgressCallback = Box<dyn Fn(&str, u64, u64) -> bool + Send + Sync>;

/// Disables all downloads in this process from now on.
pub fn stay_offline() {
    OFFLINE.store(true, Ordering::Relaxed);
}

/// True if [`stay_offline`] was called.
pub fn is_offline() -> bool {
    OFFLINE.load(Ordering::Relaxed)
}

/// Reports the progress of all later downloads to `callback`. Only the first call has an effect.
pub fn watch(callback: ProgressCallback) {
    // A second call only happens if a second command runs in the same process. The first callback
    // can show the downloads of both.
    let _ = CALLBACK.set(callback);
}

/// Reports the progress of a file to the callback. Returns false if the download must stop.
pub(crate) fn show(file: &str, done: u64, size: u64) -> bool {
    CALLBACK.get().is_none_or(|callback| callback(file, done, size))
}
