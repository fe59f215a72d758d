//! Process-wide settings for downloads from the hub: the offline mode and the progress callback.
//!
//! A plugin library contains its own copy of this crate, including these statics. When a plugin
//! library is loaded, the host copies its settings to the plugin.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static OFFLINE: AtomicBool = AtomicBool::new(false);
static CALLBACK: OnceLock<ProgressCallback> = OnceLock::new();

/// Callback that receives the progress of a download: the file name, the number of downloaded bytes
/// and the total number of bytes. The callback returns false to stop the download.
pub type ProgressCallback = Box<dyn Fn(&str, u64, u64) -> bool + Send + Sync>;

/// Disables all further downloads in this process.
pub fn stay_offline() {
    OFFLINE.store(true, Ordering::Relaxed);
}

/// True if [`stay_offline`] was called.
pub fn is_offline() -> bool {
    OFFLINE.load(Ordering::Relaxed)
}

/// Sets the callback for download progress. Only the first call has an effect.
pub fn watch(callback: ProgressCallback) {
    // A second call can only occur if a second command runs in the same process. The first callback
    // then also shows the downloads of the second command.
    let _ = CALLBACK.set(callback);
}

/// Passes the progress of a file to the callback. Returns false if the download must be stopped.
pub(crate) fn show(file: &str, done: u64, size: u64) -> bool {
    CALLBACK.get().is_none_or(|callback| callback(file, done, size))
}
