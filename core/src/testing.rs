//! Helpers for tests: the folders of reference values, the paths of real models, and a clock.
//!
//! The real models are not part of the repository. A test whose model is missing prints a message
//! and is skipped. In continuous integration, a missing SmolLM2 fails the test instead.

pub mod blocks;
pub mod gguf;
#[path = "../../tests/golden.rs"]
pub mod golden;
pub mod ranks;
pub mod warnings;

use std::path::PathBuf;

use crate::weights::Extent;

/// Path of SmolLM2-135M-Instruct as GGUF; `None` if it has not been fetched.
pub fn smollm2() -> Option<PathBuf> {
    let found = crate::weights::locate("smollm2-135m-instruct", Extent::Whole)
        .map(|found| found.path)
        .unwrap_or_default();
    if found.exists() {
        return Some(found);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "the model smollm2-135m-instruct must be present in continuous integration"
    );
    eprintln!("skipped: the model smollm2-135m-instruct (`cargo xtask model`) was not found");
    None
}

/// Runs `work` and returns its result and the processor time of this thread in seconds. Unlike
/// elapsed time, processor time does not depend on the load of the machine.
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
    // The model is too large for continuous integration. There, the tiny model `models/gemma3_text`
    // covers the architecture.
    if found.is_none() {
        eprintln!("skipped: the model gemma3-270m (`cargo xtask model gemma3-270m`) was not found");
    }
    found
}
