//! Assembles the fingerprint of a build: the compiler, the target, the panic strategy, the version
//! and the sources of the core, and the versions of tch and libtorch.

#[path = "../libtorch_version.rs"]
#[expect(dead_code, reason = "only the version is needed here")]
mod libtorch_version;

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

fn main() {
    let core = PathBuf::from(
        std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets `CARGO_MANIFEST_DIR`"),
    )
    .join("..");
    let watched = ["src", "csrc", "Cargo.toml"].map(|name| core.join(name));
    for path in &watched {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=tch-version");
    println!("cargo:rerun-if-changed=../libtorch_version.rs");
    println!("cargo:rustc-env=REPRPO_FINGERPRINT={}", fingerprint(&core, &watched));
}

fn fingerprint(core: &Path, watched: &[PathBuf]) -> String {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    [
        ("rustc", rustc(&variable("RUSTC"))),
        ("target", variable("TARGET")),
        ("panic", variable("CARGO_CFG_PANIC")),
        ("core", variable("CARGO_PKG_VERSION")),
        ("sources", sources(core, watched)),
        ("tch", include_str!("tch-version").to_owned()),
        ("libtorch", libtorch_version::LIBTORCH_VERSION.to_owned()),
    ]
    .map(|(key, value)| format!("{key}={value}"))
    .join(";")
}

/// Release and commit of the compiler, e.g. `1.95.0 (59807616e1fa)`. Builds of the same release
/// from different commits may lay out types differently.
fn rustc(rustc: &str) -> String {
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line =
        |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("unknown").to_owned();
    format!("{} ({})", line("release: "), line("commit-hash: ").get(..12).unwrap_or("unknown"))
}

/// A digest of the paths and contents of all files below `watched`.
fn sources(core: &Path, watched: &[PathBuf]) -> String {
    let mut files = Vec::new();
    watched.iter().for_each(|path| gather(path, &mut files));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let place = file.strip_prefix(core).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let bytes = std::fs::read(&file)
            .unwrap_or_else(|e| panic!("cannot read `{}`: {e}", file.display()));
        // Line endings may differ between checkouts.
        let text: Vec<u8> = bytes.into_iter().filter(|b| *b != b'\r').collect();
        hash.update(place.as_bytes());
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(&text);
    }
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn gather(path: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(path) else { return files.push(path.to_owned()) };
    entries.flatten().for_each(|entry| gather(&entry.path(), files));
}
