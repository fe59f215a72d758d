//! Where tests find the reference values, and how far from them they are.

use std::path::{Path, PathBuf};

use reprpo_plugin::tch::Tensor;

/// The folder of reference values; where it is missing a test skips, except in continuous
/// integration.
pub fn folder() -> Option<PathBuf> {
    let shared = match std::env::var_os("REPRPO_SHARED") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    };
    if shared.exists() {
        return Some(shared.join("golden"));
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "the reference values (`$REPRPO_SHARED`) must be there in continuous integration"
    );
    eprintln!("skipped: the reference values (`$REPRPO_SHARED`) not found");
    None
}

/// The largest difference, in units of max(1, largest absolute value of the reference).
pub fn error(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.size(), reference.size());
    let scale = reference.abs().max().double_value(&[]).max(1.0);
    (ours - reference).abs().max().double_value(&[]) / scale
}
