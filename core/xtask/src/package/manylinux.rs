//! Determines the oldest manylinux platform on which a binary runs. The platform follows from the
//! libraries and symbol versions that the binary requires.
//!
//! The tag `manylinux_2_NN` (PEP 600) promises that a wheel runs on every system with glibc 2.NN or
//! later. The libstdc++ and libgcc of such a system can be as old as that glibc, so the binary must
//! not require newer versions of them either.

use anyhow::{Result, anyhow, bail};

use super::elf::Dynamic;
use crate::failure::failure;

/// Libraries that every manylinux platform provides. This list omits the graphics libraries.
const SYSTEM: [&str; 10] = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libstdc++.so.6",
    "libutil.so.1",
];

/// The torch libraries that a packaged binary is allowed to need. They are part of every build of
/// torch, even of the CPU-only build.
const TORCH: [&str; 2] = ["libc10.so", "libtorch_cpu.so"];

/// A manylinux platform: a glibc version, and the newest symbol versions in the oldest distribution
/// with this glibc.
struct Platform {
    /// The N of glibc 2.N.
    minor: u32,
    /// The N of `GLIBCXX_3.4.N`.
    glibcxx: u32,
    /// The N of `CXXABI_1.3.N`.
    cxxabi: u32,
    /// The N of `GCC_N.0.0`.
    gcc: u32,
}

/// The known platforms. The versions are from CentOS 7, Debian 9, RHEL 8, Debian 11, RHEL 9, Ubuntu
/// 22.04 and Ubuntu 24.04, in this order.
const PLATFORMS: [Platform; 7] = [
    Platform { minor: 17, glibcxx: 19, cxxabi: 7, gcc: 4 },
    Platform { minor: 24, glibcxx: 22, cxxabi: 10, gcc: 4 },
    Platform { minor: 28, glibcxx: 25, cxxabi: 11, gcc: 7 },
    Platform { minor: 31, glibcxx: 28, cxxabi: 12, gcc: 7 },
    Platform { minor: 34, glibcxx: 29, cxxabi: 13, gcc: 7 },
    Platform { minor: 35, glibcxx: 30, cxxabi: 13, gcc: 12 },
    Platform { minor: 39, glibcxx: 33, cxxabi: 15, gcc: 14 },
];

/// Returns the minor version of the oldest glibc that the binary supports: the NN of its tag
/// `manylinux_2_NN`.
///
/// # Errors
/// Fails if the binary needs a library that is part of neither manylinux nor torch, or a symbol
/// version that no known platform provides.
pub fn minor(dynamic: &Dynamic) -> Result<u32> {
    for library in &dynamic.needed {
        if !SYSTEM.contains(&library.as_str()) && !TORCH.contains(&library.as_str()) {
            return Err(failure(
                format!(
                    "the binary needs `{library}`, which belongs neither to manylinux nor to the \
                        build of torch for the CPU"
                ),
                "link this library statically, or open it at run time",
            ));
        }
    }
    dynamic.required.iter().try_fold(PLATFORMS[0].minor, |oldest, required| {
        let minor = minor_of(&required.version).ok_or_else(|| {
            anyhow!(
                "the binary requires `{}` of `{}`, which no known manylinux platform provides \
                    (symbols: `{}`)",
                required.version,
                required.library,
                required.symbols.join("`, `")
            )
        })?;
        Ok(oldest.max(minor))
    })
}

/// Checks that the binary runs on the platform `manylinux_2_<limit>`.
///
/// # Errors
/// Fails if the binary requires newer symbol versions. The error lists them with their symbols.
pub fn check_at_most(dynamic: &Dynamic, limit: u32) -> Result<()> {
    let newer = dynamic
        .required
        .iter()
        .filter(|required| minor_of(&required.version).is_none_or(|minor| minor > limit));
    let newer: Vec<String> = newer
        .map(|required| {
            format!(
                "  {} from {}, for the symbols {}",
                required.version,
                required.library,
                required.symbols.join(", ")
            )
        })
        .collect();
    if newer.is_empty() {
        return Ok(());
    }
    bail!(
        "the binary requires symbol versions newer than manylinux_2_{limit}:\n{}",
        newer.join("\n")
    )
}

/// Returns the glibc minor version of the oldest platform that provides the symbol version
/// `version`, such as `GLIBC_2.28` or `GLIBCXX_3.4.25`.
fn minor_of(version: &str) -> Option<u32> {
    let (family, number) = version.rsplit_once('_')?;
    let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
    let mut part = || parts.next().unwrap_or(Some(0));
    let (major, second, third) = (part(), part(), part());
    let first = |has: &dyn Fn(&Platform) -> bool| {
        PLATFORMS.iter().find(|platform| has(platform)).map(|platform| platform.minor)
    };
    match (family, major, second) {
        ("GLIBC", Some(2), Some(minor)) => Some(minor),
        ("GLIBCXX", Some(3), Some(4)) => {
            third.and_then(|n| first(&|platform| platform.glibcxx >= n))
        }
        ("CXXABI", Some(1), Some(3)) => third.and_then(|n| first(&|platform| platform.cxxabi >= n)),
        ("GCC", Some(n), _) => first(&|platform| platform.gcc >= n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::elf::Required;
    use super::*;

    fn binary(needed: &[&str], versions: &[&str]) -> Dynamic {
        let required = |version: &&str| Required {
            library: "libx.so".into(),
            version: (*version).into(),
            symbols: vec!["f".into(), "g".into()],
        };
        Dynamic {
            needed: needed.iter().map(|name| (*name).into()).collect(),
            required: versions.iter().map(required).collect(),
            ..Dynamic::default()
        }
    }

    #[test]
    fn the_newest_version_determines_the_platform() {
        assert_eq!(
            minor(&binary(&["libc.so.6"], &["GLIBC_2.2.5", "GLIBC_2.28", "GLIBC_2.3.4"])).unwrap(),
            28
        );
        assert_eq!(minor(&binary(&[], &["GLIBC_2.34", "GLIBCXX_3.4.21"])).unwrap(), 34);
        assert_eq!(minor(&binary(&[], &["GLIBC_2.2.5"])).unwrap(), 17);
    }

    #[test]
    fn versions_of_libstdcxx_and_libgcc_matter_too() {
        assert_eq!(
            minor(&binary(
                &[],
                &["GLIBCXX_3.4", "GLIBCXX_3.4.19", "CXXABI_1.3", "GCC_4.2.0", "GCC_3.3"]
            ))
            .unwrap(),
            17
        );
        assert_eq!(
            minor(&binary(&[], &["GLIBC_2.17", "GLIBCXX_3.4.25", "CXXABI_1.3.11"])).unwrap(),
            28
        );
        assert_eq!(minor(&binary(&[], &["GLIBC_2.17", "GLIBCXX_3.4.26"])).unwrap(), 31);
        assert_eq!(minor(&binary(&[], &["CXXABI_1.3.13"])).unwrap(), 34);
        assert_eq!(minor(&binary(&[], &["GCC_12.0.0"])).unwrap(), 35);
    }

    #[test]
    fn the_error_for_an_unknown_version_names_the_symbols() {
        for version in ["GLIBC_PRIVATE", "GLIBCXX_3.4.99", "OPENSSL_3.0.0", "GLIBC_ABI_DT_RELR"] {
            let error = minor(&binary(&[], &[version])).unwrap_err().to_string();
            assert!(error.contains(version) && error.contains("`f`, `g`"), "{error}");
        }
    }

    #[test]
    fn a_library_outside_the_platform_and_torch_is_an_error() {
        assert!(
            minor(&binary(&["libtorch_cpu.so", "libc10.so", "libstdc++.so.6", "libm.so.6"], &[]))
                .is_ok()
        );
        for library in ["libtorch_cuda.so", "libssl.so.3", "libc++.so.1"] {
            assert!(minor(&binary(&[library], &[])).unwrap_err().to_string().contains(library));
        }
    }

    #[test]
    fn the_error_lists_the_versions_above_the_limit() {
        let binary = binary(&[], &["GLIBC_2.28", "GLIBC_2.34", "GLIBCXX_3.4.26"]);
        assert!(check_at_most(&binary, 34).is_ok());
        let error = check_at_most(&binary, 28).unwrap_err().to_string();
        assert!(
            error.contains("GLIBC_2.34 from libx.so, for the symbols f, g")
                && error.contains("GLIBCXX_3.4.26")
                && !error.contains("GLIBC_2.28 from"),
            "{error}"
        );
    }
}
