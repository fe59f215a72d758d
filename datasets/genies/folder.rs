//! The benchmark's folder, with one folder per distribution that has the files of its splits.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;

/// A folder of distributions.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    names: BTreeSet<String>,
}

impl Folder {
    /// Lists the distributions in `data_dir`, or in its subfolder `genies` or `distributions` if
    /// it has one.
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
            // A name that is not Unicode cannot be given on the command line.
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
            return Err(Error::new(format!("`{}` has no GENIES distributions", path.display()))
                .hint(
                    "it should hold <distribution>/train-*.parquet and \
                    <distribution>/test-*.parquet, or train.json and test.json",
                ));
        }
        Ok(Self { path, names })
    }

    /// Returns true if there is a distribution `name`.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// All names, separated by commas.
    pub fn list(&self) -> String {
        self.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Checks that there is a distribution `name`.
    ///
    /// # Errors
    /// Fails if there is none, and names the nearest one and all others.
    pub fn check(&self, name: &str) -> Result<()> {
        if self.has(name) {
            Ok(())
        } else {
            Err(Error::unknown("distribution", name, &self.names)
                .within(format!("`{name}` is not in `{}`", self.path.display())))
        }
    }

    /// The files of a split of a distribution, in order.
    ///
    /// # Errors
    /// Fails if there are no files, or fewer than their names say.
    pub fn files(&self, name: &str, split: &str) -> Result<Vec<PathBuf>> {
        let folder = self.path.join(name);
        let found = shards(&folder, split)?;
        let Some(last) = found.last() else {
            return Err(Error::new(format!(
                "there is no `{}`",
                folder.join(format!("{split}-*.parquet")).display()
            ))
            .hint("fetch the distribution again"));
        };
        let said = last
            .file_stem()
            .and_then(|stem| stem.to_str()?.rsplit_once("-of-")?.1.parse::<usize>().ok());
        if said.is_some_and(|said| said != found.len()) {
            let said = said.unwrap_or_default();
            return Err(Error::new(format!(
                "`{}` has {} of the {said} files of its `{split}` split",
                folder.display(),
                found.len()
            ))
            .hint("fetch the missing ones"));
        }
        Ok(found)
    }
}

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
    // The benchmark's JSON files, which may not have been converted to parquet.
    let own = folder.join(format!("{split}.json"));
    if found.is_empty() && own.is_file() {
        found.push(own);
    }
    Ok(found)
}
