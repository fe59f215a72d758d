//! Puts the fingerprint together: compiler, target, the core's version and sources, tch and
//! libtorch.

#[path = "../libtorch_version.rs"]
#[expect(dead_code, reason = "the version alone is of use here")]
mod libtorch_version;

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

fn main() {
    let core = PathBuf::from(
        std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where this package is"),
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

/// `1.95.0 (59807616e1fa)`: the layout of Rust's types is the compiler's to choose, to the commit.
fn rustc(rustc: &str) -> String {
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line =
        |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("unknown").to_owned();
    format!("{} ({})", line("release: "), line("commit-hash: ").get(..12).unwrap_or("unknown"))
}

/// A digest of every file below `watched`, its place and its text.
fn sources(core: &Path, watched: &[PathBuf]) -> String {
    let mut files = Vec::new();
    watched.iter().for_each(|path| gather(path, &mut files));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let place = file.strip_prefix(core).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let bytes = std::fs::read(&file)
            .unwrap_or_else(|e| panic!("cannot read `{}`: {e}", file.display()));
        // A checkout may have other line ends.
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
