//! Parts that several tests use: the folders of reference values and of the real models.
//!
//! The real models are not part of the repository. A test that needs a missing one says so and
//! skips, except in continuous integration, which must have SmolLM2.

pub mod gguf;
#[path = "../../tests/golden.rs"]
pub mod golden;
pub mod warnings;

use std::path::PathBuf;

use crate::weights::Extent;

/// SmolLM2-135M-Instruct as GGUF, where it has been fetched.
pub fn smollm2() -> Option<PathBuf> {
    let found = crate::weights::locate("smollm2-135m-instruct", Extent::Whole)
        .map(|found| found.path)
        .unwrap_or_default();
    if found.exists() {
        return Some(found);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "continuous integration needs the model smollm2-135m-instruct"
    );
    eprintln!("skipped: the model smollm2-135m-instruct (`cargo xtask model`) not found");
    None
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
    // It is too large for continuous integration. The small `models/gemma3_text` stands in for it.
    if found.is_none() {
        eprintln!("skipped: the model gemma3-270m (`cargo xtask model gemma3-270m`) not found");
    }
    found
}
