//! What the tests share: where the reference values and the real model are.
//!
//! They are not part of the repository. Where they are missing a test says so and skips, except in
//! continuous integration, which must not skip.

pub mod gguf;
pub mod warnings;

use std::path::{Path, PathBuf};

use crate::weights::Extent;

/// The folder of reference values: `$REPRPO_SHARED`, else `shared` beside the workspace.
pub fn shared() -> Option<PathBuf> {
    let found = match std::env::var_os("REPRPO_SHARED") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    };
    present(found, "the reference values (`$REPRPO_SHARED`)")
}

/// SmolLM2-135M-Instruct as GGUF, where it has been fetched.
pub fn smollm2() -> Option<PathBuf> {
    let found = crate::weights::locate("smollm2-135m-instruct", Extent::Whole)
        .map(|found| found.path)
        .unwrap_or_default();
    present(found, "the model smollm2-135m-instruct (`cargo xtask model`)")
}

/// Seconds that `work` keeps this thread computing: unlike the time that passes, no matter what
/// else the machine does.
pub fn seconds_of<T>(work: impl FnOnce() -> T) -> (T, f64) {
    // Nanoseconds on a processor, where the system says so.
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

/// Gemma 3 270M as GGUF, where it has been fetched.
pub fn gemma3() -> Option<PathBuf> {
    let found = crate::weights::locate("gemma3-270m", Extent::Whole)
        .ok()
        .map(|found| found.path)
        .filter(|path| path.is_file());
    // Of a size that continuous integration does not fetch.
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
