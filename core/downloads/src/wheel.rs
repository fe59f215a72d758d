//! Wheels of the Python package index, pinned by their SHA-256.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::pip::Pip;
use crate::{Cause, Failure, Report, Result, Step, clear};

/// A wheel that is published on the package index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wheel {
    /// File name. It contains the version of the package, the version of Python, and the platforms.
    pub file: &'static str,
    /// Size in bytes, for the progress display.
    pub size: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: &'static str,
}

impl Wheel {
    /// The requirement in pip's notation, such as `torch==2.11.0`.
    pub fn requirement(&self) -> String {
        let mut parts = self.file.split('-');
        format!("{}=={}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }

    /// The platforms in the file name, e.g. `manylinux2014_x86_64` or `any`.
    pub fn platforms(&self) -> impl Iterator<Item = &'static str> {
        self.file.trim_end_matches(".whl").rsplit('-').next().unwrap_or_default().split('.')
    }
}

/// Downloads `wheels` into `folder`, and returns their paths in the same order. Skips wheels that
/// are already in `folder` with the right SHA-256.
///
/// The caller must hold the lock of the cache.
///
/// # Errors
/// Fails if pip is not found, if pip cannot download a wheel, if the SHA-256 of a wheel is wrong,
/// or if the folder cannot be written to.
pub fn fetch(wheels: &[Wheel], folder: &Path, report: &mut dyn Report) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).map_err(|e| Failure::at(folder, "create", &e))?;
    let mut pip = None;
    let mut paths = Vec::new();
    for wheel in wheels {
        let path = folder.join(wheel.file);
        if path.exists() && sha256(&path, report)? == wheel.sha256 {
            report.line(&format!("  {} is already downloaded", wheel.file));
            paths.push(path);
            continue;
        }
        clear(&path)?;
        let pip = match &mut pip {
            Some(pip) => pip,
            none => none.insert(Pip::find()?),
        };
        pip.download(wheel, folder, report)?;
        if !path.exists() {
            return Err(Failure::new(
                Cause::Index,
                format!("pip reported success, but `{}` is missing", path.display()),
            ));
        }
        if sha256(&path, report)? != wheel.sha256 {
            clear(&path)?;
            return Err(wrong_sum(wheel));
        }
        paths.push(path);
    }
    Ok(paths)
}

/// The error for a downloaded wheel whose SHA-256 is wrong.
pub fn wrong_sum(wheel: &Wheel) -> Failure {
    Failure::new(
        Cause::Index,
        format!(
            "`{}` is not the published file: its SHA-256 must be `{}`",
            wheel.file, wheel.sha256
        ),
    )
    .hint(
        "run this again; if it fails again, set `PIP_INDEX_URL` to another package index, \
            because the mirror that pip uses may be wrong",
    )
}

/// Computes the SHA-256 of a file, in hexadecimal digits.
pub fn sha256(path: &Path, report: &mut dyn Report) -> Result<String> {
    let reading = |e: std::io::Error| Failure::at(path, "read", &e);
    let mut file = File::open(path).map_err(reading)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    report.begin(Step::Check, &name, file.metadata().map_err(reading)?.len());
    let mut sum = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut block).map_err(reading)?;
        if read == 0 {
            break;
        }
        sum.update(&block[..read]);
        report.advance(read as u64);
    }
    report.end();
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::Recorder;

    /// The SHA-256 of `abc`.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_requirement_and_the_platforms_are_parsed_from_the_file_name() {
        let of = |file| Wheel { file, size: 0, sha256: "" };
        assert_eq!(
            of("torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl").requirement(),
            "torch==2.11.0"
        );
        let runtime = of(
            "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        );
        assert_eq!(runtime.requirement(), "nvidia_cuda_runtime==13.0.96");
        assert_eq!(
            runtime.platforms().collect::<Vec<_>>(),
            ["manylinux2014_x86_64", "manylinux_2_17_x86_64"]
        );
        assert_eq!(of("x-1-py3-none-any.whl").platforms().collect::<Vec<_>>(), ["any"]);
    }

    #[test]
    fn the_sha256_of_a_file_is_computed_from_its_contents() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        assert_eq!(sha256(file.path(), &mut Recorder::default()).unwrap(), ABC);
    }

    #[test]
    fn an_existing_wheel_is_used_without_pip() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = Wheel { file: "x-1-py3-none-any.whl", size: 3, sha256: ABC };
        fs::write(folder.path().join(wheel.file), "abc").unwrap();
        let mut report = Recorder::default();
        assert_eq!(
            fetch(&[wheel], folder.path(), &mut report).unwrap(),
            [folder.path().join(wheel.file)]
        );
        assert!(report.steps.iter().all(|(step, _)| *step == Step::Check), "{:?}", report.steps);
    }
}
