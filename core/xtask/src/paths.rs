//! Paths of the checkout and of the cache.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::failure::{at, failure};

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    // Cargo says it at run time; what was compiled in is wrong after the checkout has moved.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.ancestors().nth(2).expect("xtask lies two folders deep").to_owned()
}

/// The folder of cargo's builds.
pub fn target() -> PathBuf {
    checkout().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The folder that holds libtorch and the models of every checkout of this user.
pub fn cache() -> Result<PathBuf> {
    let folder = cache_from(|name| std::env::var_os(name)).ok_or_else(|| {
        failure(
            "there is no place for the cache, as `HOME` is not set",
            "export `REPRPO_CACHE` with a folder that you may write to",
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
    fn the_cache_is_the_first_folder_that_is_named() {
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
