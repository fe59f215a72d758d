//! What the program around the hub settles for the whole process: whether there is a network, and
//! who is shown how far a file is.
//!
//! A plugin's library has a copy of this crate, whose process-wide values are its own; its host
//! hands it these.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static OFFLINE: AtomicBool = AtomicBool::new(false);
static WATCHER: OnceLock<Watcher> = OnceLock::new();

/// Is shown a file's name, how many of its bytes are there, and how many it has; says whether to go
/// on.
pub type Watcher = Box<dyn Fn(&str, u64, u64) -> bool + Send + Sync>;

/// From here on nothing is fetched in this process.
pub fn stay_offline() {
    OFFLINE.store(true, Ordering::Relaxed);
}

/// True if [`stay_offline`] was called.
pub fn is_offline() -> bool {
    OFFLINE.load(Ordering::Relaxed)
}

/// Shows every file that is fetched from here on to `watcher`. The first one stays.
pub fn watch(watcher: Watcher) {
    // A second one would be of a second command in one process: the first shows as well.
    let _ = WATCHER.set(watcher);
}

/// Shows a file to whoever watches; `false`: it is not to be fetched further.
pub(crate) fn show(file: &str, done: u64, size: u64) -> bool {
    WATCHER.get().is_none_or(|watcher| watcher(file, done, size))
}
