//! The headers of CUDA and NCCL that the process group of NCCL is compiled with.
//!
//! The build script of `core` includes this file as a module.

use std::path::{Path, PathBuf};

/// The version of NCCL that libtorch 2.11.0 is built with. Its options contain a structure of
/// `nccl.h`, whose layout depends on the version.
const NCCL: [u32; 3] = [2, 28, 9];

/// The major version of CUDA that libtorch 2.11.0 is built with.
const CUDA: u32 = 13;

/// Searches for the headers in the folders of `NCCL_INCLUDE` and `CUDA_HOME`, next to a torch that
/// pip installed, and in the system. Returns the folders that the compiler needs. `include` is the
/// folder of libtorch's headers.
///
/// # Errors
/// Returns the reason, in one line, if a header is missing or has the wrong version.
pub fn find(include: &Path) -> Result<Vec<PathBuf>, String> {
    println!("cargo:rerun-if-env-changed=NCCL_INCLUDE");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let include = include.canonicalize().unwrap_or_else(|_| include.to_owned());
    let site = include.ancestors().nth(2).map(|site| site.join("nvidia"));
    let of_site = |name: &str| site.as_ref().map(|site| site.join(name));
    let nccl = [
        variable("NCCL_INCLUDE"),
        of_site("nccl/include"),
        Some("/usr/include".into()),
        Some("/usr/local/cuda/include".into()),
    ];
    let cuda = [
        variable("CUDA_HOME").map(|home| home.join("include")),
        of_site("cu13/include"),
        Some("/usr/local/cuda/include".into()),
    ];
    search(nccl.into_iter().flatten(), cuda.into_iter().flatten())
}

fn search(
    nccl: impl IntoIterator<Item = PathBuf>,
    cuda: impl IntoIterator<Item = PathBuf>,
) -> Result<Vec<PathBuf>, String> {
    let nccl = first(nccl, "nccl.h", |folder| {
        let of_nccl = |part: &str| define(&folder.join("nccl.h"), &format!("NCCL_{part}"));
        let found = [of_nccl("MAJOR"), of_nccl("MINOR"), of_nccl("PATCH")];
        let text = |version: [u32; 3]| version.map(|part| part.to_string()).join(".");
        if found == NCCL {
            return Ok(());
        }
        Err(format!("NCCL {} instead of {}", text(found), text(NCCL)))
    })?;
    let cuda = first(cuda, "cuda_runtime_api.h", |folder| {
        let major = define(&folder.join("cuda_runtime_api.h"), "CUDART_VERSION") / 1000;
        if major != CUDA {
            return Err(format!("CUDA {major} instead of {CUDA}"));
        }
        // These two come from other packages than the header above.
        let has = |name: &str| [folder, &folder.join("cccl")].iter().any(|f| f.join(name).exists());
        match ["crt/host_defines.h", "nv/target"].into_iter().find(|name| !has(name)) {
            Some(name) => Err(format!("CUDA without `{name}`")),
            None => Ok(()),
        }
    })?;
    let cccl = cuda.join("cccl");
    Ok([nccl, cuda, cccl].into_iter().filter(|folder| folder.is_dir()).collect())
}

/// The first folder that contains `header` and passes `check`. If there is none, returns why the
/// first folder with the header does not pass.
fn first(
    folders: impl IntoIterator<Item = PathBuf>,
    header: &str,
    check: impl Fn(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let mut why = None;
    for folder in folders.into_iter().filter(|folder| folder.join(header).is_file()) {
        match check(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) => {
                why.get_or_insert(format!("`{}` has {e}", folder.display()));
            }
        }
    }
    Err(why.unwrap_or_else(|| format!("`{header}` was not found")))
}

/// The number that a header defines for `name`; 0 if it defines none.
fn define(header: &Path, name: &str) -> u32 {
    let text = std::fs::read_to_string(header).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("#define ")?.trim_start().strip_prefix(name))
        .find_map(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a folder with headers of the given contents.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn nccl(minor: u32) -> tempfile::TempDir {
        let text = "#define NCCL_MAJOR 2\n#define NCCL_MINOR MINOR\n#define NCCL_PATCH 9\n";
        folder(&[("nccl.h", &text.replace(" MINOR", &format!(" {minor}")))])
    }

    const RUNTIME: (&str, &str) = ("cuda_runtime_api.h", "#define CUDART_VERSION  13000\n");

    fn found(nccl: &[&tempfile::TempDir], cuda: &[&tempfile::TempDir]) -> Result<usize, String> {
        let paths = |folders: &[&tempfile::TempDir]| -> Vec<PathBuf> {
            folders.iter().map(|folder| folder.path().to_owned()).collect()
        };
        search(paths(nccl), paths(cuda)).map(|folders| folders.len())
    }

    #[test]
    fn only_headers_of_the_versions_of_libtorch_are_used() {
        let (old, right) = (nccl(27), nccl(28));
        let cuda = folder(&[RUNTIME, ("crt/host_defines.h", ""), ("nv/target", "")]);
        let toolkit = folder(&[RUNTIME, ("crt/host_defines.h", ""), ("cccl/nv/target", "")]);
        assert_eq!(found(&[&right], &[&cuda]), Ok(2));
        assert_eq!(found(&[&old, &right], &[&toolkit]), Ok(3));
        let e = found(&[&old], &[&cuda]).unwrap_err();
        assert!(e.ends_with("has NCCL 2.27.9 instead of 2.28.9"), "{e}");
        let old_cuda = folder(&[("cuda_runtime_api.h", "#define CUDART_VERSION 12040\n")]);
        let e = found(&[&right], &[&old_cuda]).unwrap_err();
        assert!(e.ends_with("has CUDA 12 instead of 13"), "{e}");
        assert_eq!(found(&[&right], &[&old_cuda, &cuda]), Ok(2));
    }

    #[test]
    fn missing_headers_are_named() {
        let (right, empty) = (nccl(28), folder(&[]));
        assert_eq!(found(&[&empty], &[]).unwrap_err(), "`nccl.h` was not found");
        assert_eq!(found(&[&right], &[&empty]).unwrap_err(), "`cuda_runtime_api.h` was not found");
        let e = found(&[&right], &[&folder(&[RUNTIME])]).unwrap_err();
        assert!(e.ends_with("has CUDA without `crt/host_defines.h`"), "{e}");
    }
}
