//! Paths of the checkout and of the cache.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::failure::{at, failure};

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    // Prefer the variable that cargo sets at run time: the compile-time path is outdated if the
    // checkout has been moved.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.ancestors().nth(2).expect("xtask is two folders deep").to_owned()
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    checkout().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Creates the cache folder and returns its path. The folder contains libtorch and the models, and
/// is shared by all of the user's checkouts.
pub fn cache() -> Result<PathBuf> {
    let folder = cache_from(|name| std::env::var_os(name)).ok_or_else(|| {
        failure(
            "cannot determine the cache folder, because `HOME` is not set",
            "set the environment variable `REPRPO_CACHE` to a folder that you can write to",
        )
    })?;
    fs::create_dir_all(&folder).map_err(|e| at(&folder, "create", e))?;
    std::path::absolute(&folder).map_err(|e| at(&folder, "find", e))
}

fn cache_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("REPRPO_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("reprpo")))
        .or_else(|| Some(folder("HOME")?.join(".cache/reprpo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_with(set: &[(&str, &str)]) -> Option<PathBuf> {
        cache_from(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_first_variable_that_is_set_determines_the_cache() {
        assert_eq!(cache_with(&[("HOME", "/h")]), Some("/h/.cache/reprpo".into()));
        assert_eq!(
            cache_with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
            Some("/x/reprpo".into())
        );
        assert_eq!(
            cache_with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("REPRPO_CACHE", "/r")]),
            Some("/r".into())
        );
        assert_eq!(
            cache_with(&[("HOME", "/h"), ("REPRPO_CACHE", "")]),
            Some("/h/.cache/reprpo".into())
        );
        assert_eq!(cache_with(&[]), None);
    }
}
