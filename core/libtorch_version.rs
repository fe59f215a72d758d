//! The required version of libtorch, and the version of an installed libtorch.
//!
//! The crate `xtask` and the build scripts of `core` and `core/fingerprint` include this file as a
//! module, because they cannot depend on each other.

use std::path::{Path, PathBuf};

/// The libtorch release that tch 0.24 was generated for.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// Path of the header that defines the version of libtorch. torch-sys reads the version from the
/// file `build-version` instead, but wheels do not contain this file.
pub fn version_header(root: &Path) -> PathBuf {
    root.join("include/torch/headeronly/version.h")
}

/// The version of the libtorch in `root`, without a local part such as `+cu130`. `None` if `root`
/// does not contain a libtorch.
pub fn libtorch_version(root: &Path) -> Option<String> {
    let header =
        std::fs::read_to_string(version_header(root)).ok().and_then(|text| parse_header(&text));
    let version = header.or_else(|| std::fs::read_to_string(root.join("build-version")).ok())?;
    Some(version.trim().split('+').next().unwrap_or_default().to_owned())
}

fn parse_header(text: &str) -> Option<String> {
    let part = |name: &str| {
        let prefix = format!("#define TORCH_VERSION_{name} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .map(|value| value.trim().to_owned())
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}
