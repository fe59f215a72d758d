//! Builds the wheel, a zip archive with the binary, its Python launcher and the metadata for pip
//! (PEP 427).

use std::io::{Cursor, Write};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::{Entry, Release, write_whole};
use crate::version::LIBTORCH_VERSION;

/// Returns the name of the wheel, such as `reprpo-0.1.0-py3-none-manylinux_2_28_x86_64.whl`.
pub fn file_name(release: &Release) -> String {
    format!("reprpo-{}-{}.whl", release.metadata.version, tag(release))
}

fn tag(release: &Release) -> String {
    format!("py3-none-manylinux_2_{}_x86_64", release.minor)
}

/// Returns the files of the wheel. `sources` are the Python files of the package `reprpo`.
pub fn entries(
    release: &Release,
    sources: Vec<(String, Vec<u8>)>,
    readme: &str,
) -> Result<Vec<Entry>> {
    let info = format!("reprpo-{}.dist-info", release.metadata.version);
    let mut entries: Vec<Entry> = sources
        .into_iter()
        .map(|(name, bytes)| Entry::file(format!("reprpo/{name}"), bytes))
        .collect();
    entries.push(Entry::program("reprpo/bin/reprpo", release.binary.clone()));
    entries.push(Entry::file(format!("{info}/METADATA"), description(release, readme)));
    let wheel = format!(
        "Wheel-Version: 1.0\nGenerator: reprpo xtask\nRoot-Is-Purelib: false\nTag: {}\n",
        tag(release)
    );
    entries.push(Entry::file(format!("{info}/WHEEL"), wheel));
    entries.push(Entry::file(
        format!("{info}/entry_points.txt"),
        "[console_scripts]\nreprpo = reprpo._launch:main\n",
    ));
    entries.extend(
        release
            .licences
            .iter()
            .map(|(name, bytes)| Entry::file(format!("{info}/licenses/{name}"), bytes.clone())),
    );
    // RECORD comes last, because it contains the hashes of all other files. It lists itself without
    // a hash.
    let file = format!("{info}/RECORD");
    entries.push(Entry::file(&file, record(&entries, &file)));
    Ok(entries)
}

/// Returns the contents of METADATA (PEP 566, PEP 639).
fn description(release: &Release, readme: &str) -> String {
    let mut out = format!(
        "Metadata-Version: 2.4\nName: reprpo\nVersion: {}\nSummary: {}\nLicense-Expression: MIT \
            OR Apache-2.0\n",
        release.metadata.version, release.metadata.description
    );
    for (name, _) in &release.licences {
        out += &format!("License-File: {name}\n");
    }
    out += &format!(
        "Project-URL: Repository, {}\nRequires-Python: >=3.9\nRequires-Dist: \
            torch=={LIBTORCH_VERSION}\n\
        Requires-Dist: tomli; python_version < \"3.11\"\nDescription-Content-Type: \
        text/markdown\n\n{readme}",
        release.metadata.repository
    );
    out
}

/// Returns the contents of RECORD: the path, SHA-256 and size of each file, one file per line.
fn record(entries: &[Entry], record: &str) -> String {
    let line = |entry: &Entry| {
        format!(
            "{},sha256={},{}\n",
            entry.path,
            BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&entry.bytes)),
            entry.bytes.len()
        )
    };
    entries.iter().map(line).chain([format!("{record},,\n")]).collect()
}

/// Writes the wheel. The output is reproducible: it depends only on `entries`.
pub fn write(file: &Path, entries: &[Entry]) -> Result<()> {
    write_whole(file, &pack(entries).with_context(|| format!("cannot pack `{}`", file.display()))?)
}

fn pack(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for entry in entries {
        // Use a fixed timestamp. `DEFAULT` is 1980-01-01, the earliest date in the zip format.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(9))
            .last_modified_time(DateTime::DEFAULT)
            .unix_permissions(entry.mode());
        zip.start_file(&entry.path, options)?;
        zip.write_all(&entry.bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use zip::ZipArchive;

    use super::super::tests::release;
    use super::super::{paths, read_folder};
    use super::*;

    fn small() -> Vec<Entry> {
        entries(&release(), vec![("__init__.py".into(), b"import this\n".to_vec())], "# reprpo\n")
            .unwrap()
    }

    fn text(name: &str) -> String {
        let entry = small().into_iter().find(|entry| entry.path.ends_with(name)).unwrap();
        String::from_utf8(entry.bytes).unwrap()
    }

    #[test]
    fn the_file_name_contains_the_tag() {
        assert_eq!(file_name(&release()), "reprpo-0.1.0-py3-none-manylinux_2_28_x86_64.whl");
        assert!(text("/WHEEL").contains("\nTag: py3-none-manylinux_2_28_x86_64\n"));
    }

    #[test]
    fn the_record_has_a_hash_for_every_file_but_itself() {
        let record = text("/RECORD");
        // The hash of `import this\n`, calculated with Python's hashlib and base64.
        assert!(
            record.starts_with(
                "reprpo/__init__.py,sha256=VvvoBSwTxCko1JddDyMEtAavWAPtaH2S5TXkcjpy9W4,12\n"
            ),
            "{record}"
        );
        let lines: Vec<&str> = record.lines().collect();
        assert_eq!(lines.len(), small().len());
        assert_eq!(lines.last(), Some(&"reprpo-0.1.0.dist-info/RECORD,,"));
    }

    #[test]
    fn the_metadata_requires_this_torch_and_names_the_licences() {
        let text = text("/METADATA");
        assert!(text.contains(&format!("\nRequires-Dist: torch=={LIBTORCH_VERSION}\n")), "{text}");
        assert!(
            text.contains("\nLicense-File: LICENSE-MIT\nLicense-File: THIRD-PARTY.txt\n"),
            "{text}"
        );
        assert!(text.ends_with("\n\n# reprpo\n"), "{text}");
    }

    #[test]
    fn packing_is_reproducible_and_keeps_the_program_executable() {
        let bytes = pack(&small()).unwrap();
        assert_eq!(bytes, pack(&small()).unwrap());
        let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
        let mut binary = archive.by_name("reprpo/bin/reprpo").unwrap();
        assert_eq!(binary.unix_mode().unwrap() & 0o777, 0o755);
        let mut content = Vec::new();
        binary.read_to_end(&mut content).unwrap();
        assert_eq!(content, release().binary);
        drop(binary);
        assert_eq!(
            archive.by_name("reprpo/__init__.py").unwrap().unix_mode().unwrap() & 0o777,
            0o644
        );
    }

    #[test]
    fn the_python_package_has_the_versions_of_this_workspace() {
        let sources = read_folder(&paths::checkout().join("python/reprpo"), &["py"]).unwrap();
        let names: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["__init__.py", "__main__.py", "_launch.py", "_version.py"]);
        let version = String::from_utf8(sources[3].1.clone()).unwrap();
        assert!(
            version.contains(&format!("__version__ = \"{}\"", env!("CARGO_PKG_VERSION"))),
            "{version}"
        );
        assert!(version.contains(&format!("TORCH = \"{LIBTORCH_VERSION}\"")), "{version}");
    }
}
