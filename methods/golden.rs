//! Reference values for tests, and the comparison with them.

use std::path::{Path, PathBuf};

use reprpo_plugin::tch::Tensor;

/// Returns the folder of reference values, or `None` if it does not exist; tests are then skipped.
/// Panics in continuous integration if the folder is missing.
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

/// Largest absolute difference, divided by max(1, largest absolute value of the reference).
pub fn error(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.size(), reference.size());
    let scale = reference.abs().max().double_value(&[]).max(1.0);
    (ours - reference).abs().max().double_value(&[]) / scale
}
