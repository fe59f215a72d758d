//! Helpers for tests: paths to the reference values and to real models, and a clock.
//!
//! The files are not part of the repository. If they are missing, a test prints a message and is
//! skipped, but in continuous integration it fails.

pub mod gguf;
pub mod warnings;

use std::path::{Path, PathBuf};

use crate::weights::Extent;

/// The folder of reference values: `$REPRPO_SHARED`, or `shared` beside the workspace. `None` if it
/// does not exist.
pub fn shared() -> Option<PathBuf> {
    let found = match std::env::var_os("REPRPO_SHARED") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    };
    present(found, "the reference values (`$REPRPO_SHARED`)")
}

/// Path of SmolLM2-135M-Instruct as GGUF; `None` if it has not been fetched.
pub fn smollm2() -> Option<PathBuf> {
    let found = crate::weights::locate("smollm2-135m-instruct", Extent::Whole)
        .map(|found| found.path)
        .unwrap_or_default();
    present(found, "the model smollm2-135m-instruct (`cargo xtask model`)")
}

/// Runs `work` and returns its result with the processor time of this thread in seconds. Unlike
/// elapsed time, it does not depend on the load of the machine.
pub fn seconds_of<T>(work: impl FnOnce() -> T) -> (T, f64) {
    // Linux provides the processor time in nanoseconds.
    let computed = || {
        Some(
            std::fs::read_to_string("/proc/thread-self/schedstat")
                .ok()?
                .split(' ')
                .next()?
                .parse::<f64>()
                .ok()?
                / 1e9,
        )
    };
    let (start, before) = (std::time::Instant::now(), computed());
    let done = work();
    let seconds = computed()
        .zip(before)
        .map_or_else(|| start.elapsed().as_secs_f64(), |(after, before)| after - before);
    (done, seconds)
}

/// Path of Gemma 3 270M as GGUF; `None` if it has not been fetched.
pub fn gemma3() -> Option<PathBuf> {
    let found = crate::weights::locate("gemma3-270m", Extent::Whole)
        .ok()
        .map(|found| found.path)
        .filter(|path| path.is_file());
    // The model is too large for continuous integration, so tests may be skipped there as well.
    if found.is_none() {
        eprintln!("skipped: the model gemma3-270m (`cargo xtask model gemma3-270m`) not found");
    }
    found
}

fn present(path: PathBuf, what: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{what} must be there in continuous integration"
    );
    eprintln!("skipped: {what} not found");
    None
}
