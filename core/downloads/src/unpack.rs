//! Unpacks files from a wheel, which is a zip archive.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::{Cause, Failure, Report, Result, Step};

/// Unpacks files of `wheel` into `folder`. `place` maps the path of a file in the wheel to its path
/// in `folder`, or to `None` to skip the file.
///
/// Returns the number of files that were written.
///
/// # Errors
/// Fails if the wheel is not a zip archive, if it contains a path that leads outside `folder`, or
/// if a file cannot be written.
pub fn unpack(
    wheel: &Path,
    folder: &Path,
    place: impl Fn(&str) -> Option<PathBuf>,
    report: &mut dyn Report,
) -> Result<usize> {
    let file = File::open(wheel).map_err(|e| Failure::at(wheel, "read", &e))?;
    let broken = |e: ZipError| {
        Failure::new(Cause::Index, format!("cannot unpack `{}`: {e}", wheel.display()))
    };
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;

    let mut wanted = Vec::new();
    let mut total = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(broken)?;
        if entry.is_dir() {
            continue;
        }
        let outside = || {
            Failure::new(
                Cause::Index,
                format!(
                    "`{}` contains a path that leads outside the target folder: `{}`",
                    wheel.display(),
                    String::from_utf8_lossy(entry.name_raw())
                ),
            )
        };
        let name = entry.enclosed_name().ok_or_else(outside)?;
        if let Some(to) = name.to_str().and_then(&place) {
            total += entry.size();
            wanted.push((index, folder.join(to)));
        }
    }

    report.begin(Step::Unpack, &wheel.file_name().unwrap_or_default().to_string_lossy(), total);
    let mut block = vec![0; 1 << 18];
    for (index, to) in &wanted {
        let writing = |e: io::Error| Failure::at(to, "write", &e);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|e| Failure::at(parent, "create", &e))?;
        }
        let mut entry = archive.by_index(*index).map_err(broken)?;
        let mut out = File::create(to).map_err(writing)?;
        loop {
            let read = entry.read(&mut block).map_err(|e| broken(ZipError::Io(e)))?;
            if read == 0 {
                break;
            }
            out.write_all(&block[..read]).map_err(writing)?;
            report.advance(read as u64);
        }
        out.flush().map_err(writing)?;
    }
    report.end();
    Ok(wanted.len())
}

#[cfg(test)]
pub(crate) mod tests {
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::report::tests::Recorder;

    /// Writes a zip archive of these files.
    pub fn write_wheel(path: &Path, files: &[(&str, &str)]) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        for (name, text) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
    }

    fn wheel(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
        let path = folder.join("a.whl");
        write_wheel(&path, files);
        path
    }

    #[test]
    fn only_wanted_files_are_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let wheel =
            wheel(folder.path(), &[("torch/lib/libc10.so", "elf"), ("torch/nn.py", "python")]);
        let out = folder.path().join("out");
        let place = |name: &str| Some(Path::new("lib").join(name.strip_prefix("torch/lib/")?));
        let mut report = Recorder::default();
        assert_eq!(unpack(&wheel, &out, place, &mut report).unwrap(), 1);
        assert_eq!(fs::read_to_string(out.join("lib/libc10.so")).unwrap(), "elf");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        assert_eq!(report.steps, [(Step::Unpack, "a.whl".to_owned())]);
    }

    #[test]
    fn a_path_that_leads_outside_the_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(folder.path(), &[("../outside", "x")]);
        let error = unpack(
            &wheel,
            &folder.path().join("out"),
            |name| Some(name.into()),
            &mut Recorder::default(),
        )
        .unwrap_err();
        assert!(error.message().contains("`../outside`"), "{error}");
        assert!(!folder.path().join("outside").exists());
    }

    #[test]
    fn the_error_names_a_broken_wheel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.whl");
        fs::write(&path, "not a zip").unwrap();
        let error = unpack(&path, folder.path(), |_| None, &mut Recorder::default()).unwrap_err();
        assert!(error.to_string().contains("broken.whl"));
    }
}
