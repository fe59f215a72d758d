//! Builds the tarball with the binary and a launcher. The launcher takes libtorch from the folder
//! `$LIBTORCH` or from an installed Python package `torch`.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::{Entry, Release, read_folder, write_whole};
use crate::paths;
use crate::version::LIBTORCH_VERSION;

/// Size limit in bytes. The tarball must be smaller.
const LIMIT: usize = 40_000_000;

/// Folder with the files that are in the tarball, but not in the wheel.
const SOURCES: &str = "core/xtask/tarball";

/// The files in `docs` that are included in the tarball.
const GUIDES: [&str; 3] = ["adapters-elsewhere.md", "clusters.md", "slurm.sh"];

/// Returns the name of the tarball, such as `reprpo-0.1.0-x86_64-linux.tar.gz`.
pub fn file_name(release: &Release) -> String {
    format!("reprpo-{}-x86_64-linux.tar.gz", release.metadata.version)
}

/// Returns the files of the tarball, all under one top-level folder.
pub fn entries(release: &Release) -> Result<Vec<Entry>> {
    let sources = paths::checkout().join(SOURCES);
    let folder = format!("reprpo-{}", release.metadata.version);
    let minor = release.minor.to_string();
    // Reads the launcher or the README, and replaces its placeholders.
    let filled = |name: &str| -> Result<String> {
        let text = super::read(&sources.join(name))?;
        Ok(text
            .replace("@VERSION@", &release.metadata.version)
            .replace("@TORCH@", LIBTORCH_VERSION)
            .replace("@GLIBC@", &minor))
    };
    let mut entries = vec![
        Entry::program(format!("{folder}/reprpo"), filled("reprpo.sh")?),
        Entry::program(format!("{folder}/lib/reprpo"), release.binary.clone()),
        Entry::file(format!("{folder}/README.md"), filled("README.md")?),
    ];
    for (name, bytes) in read_folder(&sources.join("examples"), &["jsonl", "toml"])? {
        entries.push(Entry::file(format!("{folder}/examples/{name}"), bytes));
    }
    // Keep these files under `docs`, because clusters.md refers to `docs/slurm.sh`.
    for (name, bytes) in read_folder(&paths::checkout().join("docs"), &["md", "sh"])? {
        if GUIDES.contains(&name.as_str()) {
            entries.push(Entry {
                path: format!("{folder}/docs/{name}"),
                executable: name.ends_with(".sh"),
                bytes,
            });
        }
    }
    entries.extend(
        release
            .licences
            .iter()
            .map(|(name, bytes)| Entry::file(format!("{folder}/licenses/{name}"), bytes.clone())),
    );
    Ok(entries)
}

/// Writes the tarball. The output is reproducible: it depends only on `entries`.
///
/// # Errors
/// Fails if the tarball would be 40 MB or larger, or if it cannot be written.
pub fn write(file: &Path, entries: &[Entry]) -> Result<()> {
    let bytes = pack(entries).with_context(|| format!("cannot pack `{}`", file.display()))?;
    check_size(file, bytes.len())?;
    write_whole(file, &bytes)
}

fn check_size(file: &Path, size: usize) -> Result<()> {
    ensure!(
        size < LIMIT,
        "`{}` must be smaller than {} MB, got {:.1} MB",
        file.display(),
        LIMIT / 1_000_000,
        size as f64 / 1e6
    );
    Ok(())
}

fn pack(entries: &[Entry]) -> Result<Vec<u8>> {
    // Leave the file name and the timestamp out of the gzip header.
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let mut tar = Builder::new(gzip);
    for entry in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_size(entry.bytes.len() as u64);
        header.set_mode(entry.mode());
        header.set_uid(0);
        header.set_gid(0);
        // Use the year 1980, like the Python wheel, because some tools warn about files from 1970.
        header.set_mtime(315_532_800);
        tar.append_data(&mut header, &entry.path, entry.bytes.as_slice())?;
    }
    let mut gzip = tar.into_inner()?;
    gzip.flush()?;
    Ok(gzip.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::super::tests::release;
    use super::*;

    #[test]
    fn all_files_are_in_one_folder_and_only_programs_are_executable() {
        let entries = entries(&release()).unwrap();
        assert!(entries.iter().all(|entry| entry.path.starts_with("reprpo-0.1.0/")));
        let programs: Vec<&str> = entries
            .iter()
            .filter(|entry| entry.executable)
            .map(|entry| entry.path.as_str())
            .collect();
        assert_eq!(
            programs,
            ["reprpo-0.1.0/reprpo", "reprpo-0.1.0/lib/reprpo", "reprpo-0.1.0/docs/slurm.sh"]
        );
        for guide in GUIDES {
            assert!(
                entries.iter().any(|entry| entry.path == format!("reprpo-0.1.0/docs/{guide}")),
                "{guide}"
            );
        }
        assert!(entries.iter().any(|entry| entry.path == "reprpo-0.1.0/examples/pairs.jsonl"));
        assert!(entries.iter().any(|entry| entry.path == "reprpo-0.1.0/licenses/THIRD-PARTY.txt"));
    }

    #[test]
    fn every_placeholder_is_replaced() {
        for entry in
            entries(&release()).unwrap().iter().filter(|entry| !entry.path.contains("/lib/"))
        {
            let text = String::from_utf8_lossy(&entry.bytes).into_owned();
            for mark in ["@VERSION@", "@TORCH@", "@GLIBC@"] {
                assert!(!text.contains(mark), "{} contains {mark}", entry.path);
            }
        }
    }

    #[test]
    fn packing_is_reproducible_and_unpacking_restores_the_files() {
        let entries = entries(&release()).unwrap();
        let bytes = pack(&entries).unwrap();
        assert_eq!(bytes, pack(&entries).unwrap());
        let mut archive = tar::Archive::new(GzDecoder::new(bytes.as_slice()));
        let unpacked = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            Entry { path, bytes, executable: entry.header().mode().unwrap() == 0o755 }
        });
        assert_eq!(unpacked.collect::<Vec<_>>(), entries);
    }

    #[test]
    fn a_tarball_above_the_limit_is_an_error() {
        assert!(check_size(Path::new("a.tar.gz"), LIMIT - 1).is_ok());
        let error = check_size(Path::new("a.tar.gz"), LIMIT).unwrap_err().to_string();
        assert!(error.contains("`a.tar.gz` must be smaller than 40 MB, got 40.0 MB"), "{error}");
    }
}
