//! Finds the distributions of the benchmark and their files. Each distribution is a folder that
//! contains its `train` and `test` files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;

/// A folder with one subfolder per distribution.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    names: BTreeSet<String>,
}

impl Folder {
    /// Lists the distributions in `data_dir`. If `data_dir` has a subfolder `genies` or
    /// `distributions`, lists the distributions in this subfolder.
    ///
    /// # Errors
    /// Fails if the folder cannot be read, or if it has no distributions.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let inner = ["genies", "distributions"]
            .map(|name| data_dir.join(name))
            .into_iter()
            .find(|path| path.is_dir());
        let path = inner.unwrap_or_else(|| data_dir.to_owned());
        let mut names = BTreeSet::new();
        for entry in path
            .read_dir()
            .within(|| format!("cannot read the data folder `{}`", path.display()))?
        {
            let entry =
                entry.within(|| format!("cannot read the data folder `{}`", path.display()))?;
            // Skip names that are not UTF-8, because a configuration cannot contain them.
            if let Ok(name) = entry.file_name().into_string()
                && entry.path().is_dir()
                && ["train", "test"]
                    .iter()
                    .any(|split| shards(&entry.path(), split).is_ok_and(|found| !found.is_empty()))
            {
                names.insert(name);
            }
        }
        if names.is_empty() {
            return Err(Error::new(format!(
                "`{}` does not contain GENIES distributions",
                path.display()
            ))
            .hint(
                "it should contain <distribution>/train-*.parquet and \
                    <distribution>/test-*.parquet, or train.json and test.json",
            ));
        }
        Ok(Self { path, names })
    }

    /// Returns true if the distribution exists.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Returns all names, separated by commas.
    pub fn list(&self) -> String {
        self.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Checks that the distribution exists.
    ///
    /// # Errors
    /// Fails if the distribution does not exist. The error suggests the closest name and lists all
    /// names.
    pub fn check(&self, name: &str) -> Result<()> {
        if self.has(name) {
            Ok(())
        } else {
            Err(Error::unknown("distribution", name, &self.names)
                .within(format!("`{name}` is not in `{}`", self.path.display())))
        }
    }

    /// Returns the files of a split of a distribution, in order.
    ///
    /// # Errors
    /// Fails if there are no files, or if a file is missing according to the total in the file
    /// names (`-of-00003`).
    pub fn files(&self, name: &str, split: &str) -> Result<Vec<PathBuf>> {
        let folder = self.path.join(name);
        let found = shards(&folder, split)?;
        let Some(last) = found.last() else {
            return Err(Error::new(format!(
                "there is no `{}`",
                folder.join(format!("{split}-*.parquet")).display()
            ))
            .hint("download the distribution again"));
        };
        let total = last
            .file_stem()
            .and_then(|stem| stem.to_str()?.rsplit_once("-of-")?.1.parse::<usize>().ok());
        if let Some(total) = total.filter(|total| *total != found.len()) {
            return Err(Error::new(format!(
                "`{}` contains {} of {total} files of the `{split}` split",
                folder.display(),
                found.len()
            ))
            .hint("download the missing files"));
        }
        Ok(found)
    }
}

/// Lists the files of a split, sorted by name. `folder` is the folder of the distribution.
fn shards(folder: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let doing = || format!("cannot read the folder `{}`", folder.display());
    let mut found = Vec::new();
    for entry in folder.read_dir().within(doing)? {
        let path = entry.within(doing)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name
            .strip_prefix(split)
            .is_some_and(|rest| rest.starts_with('-') && rest.ends_with(".parquet"))
        {
            found.push(path);
        }
    }
    found.sort();
    // The benchmark's original files are JSON.
    let json = folder.join(format!("{split}.json"));
    if found.is_empty() && json.is_file() {
        found.push(json);
    }
    Ok(found)
}
