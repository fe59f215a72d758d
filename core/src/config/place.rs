//! Makes paths absolute, resolves symbolic links, and converts paths for a run's configuration.

use std::path::{Component, Path, PathBuf};

/// Converts `path` for the configuration of the run in the folder `run`. The result is relative to
/// `run` if `path` and `run` are inside the current folder `here`, or if `path` is inside the
/// parent folder of `run`. Otherwise, the result is absolute.
pub(super) fn stored(path: &Path, run: &Path, here: &Path) -> String {
    let target = resolve_parent(path);
    let shared =
        |tree: &Path| tree.parent().is_some() && run.starts_with(tree) && target.starts_with(tree);
    if !(shared(here) || run.parent().is_some_and(shared)) {
        return absolute(path).to_string_lossy().into_owned();
    }
    relative(&target, run)
}

/// The relative path from `folder` to `target`, which must be absolute paths. The result begins
/// with `.` or `..`, so that it cannot be mistaken for the name of a model or a repository.
fn relative(target: &Path, folder: &Path) -> String {
    let (target, folder): (Vec<_>, Vec<_>) =
        (target.components().collect(), folder.components().collect());
    let same = target.iter().zip(&folder).take_while(|(a, b)| a == b).count();
    let up = folder.len() - same;
    let mut path = PathBuf::from(if up == 0 { "." } else { "" });
    path.extend((0..up).map(|_| ".."));
    path.extend(&target[same..]);
    path.to_string_lossy().into_owned()
}

/// Makes a path absolute, and resolves all symbolic links except in the last component. The user
/// may have chosen that link on purpose.
fn resolve_parent(path: &Path) -> PathBuf {
    let path = absolute(path);
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.canonicalize().unwrap_or_else(|_| lexical(&path)),
    }
}

/// Makes a path absolute, and resolves all symbolic links.
pub(super) fn physical(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    path.canonicalize().unwrap_or_else(|_| lexical(&absolute(path)))
}

/// Makes a path absolute without resolving symbolic links.
pub(super) fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Removes `.` and `..` from a path without accessing the file system.
pub(super) fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !matches!(out.components().next_back(), None | Some(Component::ParentDir)) {
                    out.pop();
                }
            }
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_the_tree_of_the_run_are_stored_relative_and_others_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let tree = root.join("tree");
        for folder in ["tree/runs/a", "tree/models/x", "other"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let run = tree.join("runs/a");
        let of = |path: &str, here: &Path| stored(&root.join(path), &run, here);
        assert_eq!(of("tree/models/x", &tree), "../../models/x");
        assert_eq!(of("tree/models/../models/x", &tree), "../../models/x");
        assert_eq!(
            of("tree/runs/pairs.jsonl", Path::new("/")),
            "../pairs.jsonl",
            "next to the run"
        );
        assert_eq!(of("tree/runs/a/x", Path::new("/")), "./x");
        assert_eq!(of("tree/runs/a", &tree), ".");
        assert_eq!(of("other/y", &tree), root.join("other/y").to_string_lossy());
        assert_eq!(
            of("tree/models/x", Path::new("/")),
            tree.join("models/x").to_string_lossy(),
            "the root is in every tree"
        );
        assert_eq!(
            of("tree/models/x", &root.join("other")),
            tree.join("models/x").to_string_lossy()
        );
    }
}
