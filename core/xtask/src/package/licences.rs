//! Collects the licences of this project and of everything that is linked into its binary.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::metadata::{Linked, Metadata};
use crate::failure::file_error;
use crate::{paths, pins};

/// Files with this project's own licence.
const OWN: [&str; 3] = ["LICENSE", "LICENSE-APACHE", "LICENSE-MIT"];

/// How many levels of subfolders to search for licence files in a crate. A crate can bundle C
/// libraries, which have their own licence files in their subfolders.
const DEPTH: usize = 3;

/// Returns the names and contents of all licence files of a package. `zig` is the path of the zig
/// program, or `None` if the binary was not linked with it.
pub fn gather(metadata: &Metadata, zig: Option<&Path>) -> Result<Vec<(String, Vec<u8>)>> {
    let checkout = paths::checkout();
    let mut files = Vec::new();
    for name in OWN {
        let file = checkout.join(name);
        files.push((name.to_owned(), fs::read(&file).map_err(|e| file_error(&file, "read", &e))?));
    }
    let sources = metadata
        .linked
        .iter()
        .map(|linked| Ok(Source { texts: texts(&linked.folder, DEPTH)?, linked: linked.clone() }));
    let mut sources = sources.collect::<Result<Vec<_>>>()?;
    if let Some(zig) = zig {
        sources.push(of_zig(zig)?);
    }
    let notices = rust_library()?;
    files.push((
        "THIRD-PARTY.txt".to_owned(),
        third_party(&metadata.version, &sources, notices.is_some()).into_bytes(),
    ));
    files.extend(notices.map(|notices| ("RUST-LIBRARY.html".to_owned(), notices)));
    Ok(files)
}

/// Software that is part of the binary, with its licences.
struct Source {
    linked: Linked,
    /// Path and contents of each licence file.
    texts: Vec<(String, String)>,
}

/// Returns zig's name and licences. The package must include them, because the linked binary
/// contains parts of zig's compiler runtime.
fn of_zig(program: &Path) -> Result<Source> {
    let folder = program.parent().unwrap_or(Path::new(""));
    let requirement = pins::ZIG.requirement();
    let (_, version) = requirement.split_once("==").unwrap_or_default();
    let linked = Linked {
        name: "zig".into(),
        version: version.into(),
        licence: Some("MIT".into()),
        authors: Vec::new(),
        folder: folder.to_owned(),
    };
    Ok(Source { texts: texts(folder, 0)?, linked })
}

/// Returns the licence notices of Rust's standard library, or `None` if the toolchain does not
/// include them.
fn rust_library() -> Result<Option<Vec<u8>>> {
    // Run `rustc` in the checkout, so that rustup selects the toolchain of the build.
    let output = Command::new("rustc")
        .current_dir(paths::checkout())
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run `rustc`")?;
    let file = Path::new(String::from_utf8_lossy(&output.stdout).trim())
        .join("share/doc/rust/COPYRIGHT-library.html");
    Ok(fs::read(file).ok())
}

/// Returns the paths and contents of the licence files in `folder` and its subfolders.
fn texts(folder: &Path, depth: usize) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    search(folder, "", depth, &mut found)?;
    found.sort();
    Ok(found)
}

fn search(
    folder: &Path,
    below: &str,
    depth: usize,
    found: &mut Vec<(String, String)>,
) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| file_error(folder, "read", &e))? {
        let entry = entry.map_err(|e| file_error(folder, "read", &e))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            if depth > 0 {
                search(&path, &format!("{below}{name}/"), depth - 1, found)?;
            }
        } else if is_licence(below, &name) {
            let text = fs::read(&path).map_err(|e| file_error(&path, "read", &e))?;
            found.push((
                format!("{below}{name}"),
                String::from_utf8_lossy(&text).replace("\r\n", "\n").trim_end().to_owned(),
            ));
        }
    }
    Ok(())
}

/// Returns true for names such as `LICENSE-MIT`, `COPYING` and `notice.md`, and for all files in a
/// `LICENSES` folder. Source files such as `license.rs` are excluded.
fn is_licence(below: &str, name: &str) -> bool {
    const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
    const SOURCES: [&str; 12] =
        ["rs", "c", "cc", "cpp", "h", "py", "sh", "html", "json", "toml", "yml", "hbs"];
    let upper = name.to_uppercase();
    let folder = below.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_uppercase();
    let is_source = name.rsplit_once('.').is_some_and(|(_, end)| SOURCES.contains(&end));
    !is_source && (NAMES.iter().any(|start| upper.starts_with(start)) || folder == "LICENSES")
}

/// Returns the contents of `THIRD-PARTY.txt`. Each licence text occurs once, below the list of
/// crates that it applies to. `has_notices` is true if the package also contains the notices of
/// Rust's standard library.
fn third_party(version: &str, sources: &[Source], has_notices: bool) -> String {
    let notices = if has_notices { "notices in RUST-LIBRARY.html" } else { "by the Rust project" };
    let mut out = format!(
        "Third-party software in reprpo {version}\n\n\
        The binary contains code from the packages below. Their licence texts follow the list.\n\n\
        It also contains code from Rust's standard library (MIT OR Apache-2.0; {notices}), code\n\
        from the headers of PyTorch (BSD-3-Clause), start-up code of the GNU C library, and\n\
        parts of GCC's libraries. Exceptions for linked programs apply to the last two\n\
        (LGPL-2.1-or-later with its linking exception; GPL-3.0-or-later WITH\n\
        GCC-exception-3.1).\n\n"
    );
    let mut users: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for Source { linked, texts } in sources {
        let Linked { name, version, licence, authors, .. } = linked;
        let _ = write!(
            out,
            "{name} {version}: {}",
            licence.as_deref().unwrap_or("see its licence file")
        );
        if texts.is_empty() {
            let authors = if authors.is_empty() {
                String::new()
            } else {
                format!("; authors: {}", authors.join(", "))
            };
            let _ = write!(out, " (the package does not include a licence file{authors})");
        }
        out.push('\n');
        for (file, text) in texts {
            users.entry(text).or_default().push(format!("{name} {version} ({file})"));
        }
    }
    for (text, users) in &users {
        let _ = write!(out, "\n{}\n{}\n\n{text}\n", "=".repeat(100), users.join("\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, texts: &[(&str, &str)]) -> Source {
        let linked = Linked {
            name: name.into(),
            version: "1.0.0".into(),
            licence: Some("MIT".into()),
            authors: vec!["Ada".into()],
            folder: "x".into(),
        };
        Source {
            linked,
            texts: texts.iter().map(|(file, text)| ((*file).into(), (*text).into())).collect(),
        }
    }

    #[test]
    fn a_text_shared_by_several_packages_occurs_once() {
        let text = third_party(
            "0.1.0",
            &[
                source("a", &[("LICENSE", "the text")]),
                source("b", &[("LICENSE-MIT", "the text")]),
                source("c", &[]),
            ],
            true,
        );
        assert_eq!(text.matches("the text").count(), 1);
        assert!(text.contains("a 1.0.0 (LICENSE)\nb 1.0.0 (LICENSE-MIT)\n\nthe text"), "{text}");
        assert!(
            text.contains(
                "c 1.0.0: MIT (the package does not include a licence file; authors: Ada)"
            ),
            "{text}"
        );
    }

    #[test]
    fn licence_files_are_recognised_by_their_names() {
        for (below, name) in [
            ("", "LICENSE"),
            ("", "license-mit"),
            ("", "COPYING.txt"),
            ("zstd/", "LICENSE"),
            ("LICENSES/", "MIT.txt"),
            ("", "NOTICE.md"),
        ] {
            assert!(is_licence(below, name), "{below}{name}");
        }
        for (below, name) in
            [("src/", "license.rs"), ("", "README.md"), ("src/", "lib.rs"), ("", "licenses.html")]
        {
            assert!(!is_licence(below, name), "{below}{name}");
        }
    }

    #[test]
    fn texts_are_found_in_the_folders_of_bundled_libraries() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("oniguruma")).unwrap();
        fs::write(folder.path().join("LICENSE"), "ours\r\nand more\n\n").unwrap();
        fs::write(folder.path().join("oniguruma/COPYING"), "theirs").unwrap();
        assert_eq!(
            texts(folder.path(), 1).unwrap(),
            [
                ("LICENSE".to_owned(), "ours\nand more".to_owned()),
                ("oniguruma/COPYING".to_owned(), "theirs".to_owned())
            ]
        );
    }
}
