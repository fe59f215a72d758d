//! The data set plugin `hub`, which loads preference pairs from the Hugging Face hub.

mod layout;
mod part;

use std::rc::Rc;

use reprpo_plugin::hub::{Hub, RepoId, RepoKind, Snapshot, short};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json;

use self::layout::Layout;
use self::part::Part;
use crate::files::{Format, Source};

/// Preference pairs from a repository on the hub: `--dataset org/name`.
#[dataset(
    name = "hub",
    summary = "preference pairs from a data set on the Hugging Face hub",
    reference = "Hugging Face hub, dataset cards and data files configuration; TRL, dataset \
        formats",
    explain = "\
`--dataset org/name` trains on the split `train` of that data set, and evaluates on `test` if
there is one. Set other splits with `--set dataset.train=train_prefs --set
dataset.test=test_prefs`. For a data set with several configurations, choose one with `--set
dataset.config_name=NAME`. The shift can be in another data set: `--set
dataset.oos=org/other:CONFIG:test`.

The files of each split are found as in Hugging Face's `datasets`: from the header of the README
or, if it does not list them, from the names of the files. For formats that are not supported here
(arrow, scripts), the hub's automatic conversion to parquet is used instead.

Files are downloaded when they are needed, into the cache of the Hugging Face libraries
(`HF_HOME`). `HF_TOKEN` gives access to private and gated data sets, `--offline` only uses the
cache, and `HF_ENDPOINT` sets another hub. The configuration of a run records the commit, so that
the run uses the same pairs when it is resumed.

Columns and rows are as in the dataset `file`.",
    example(repo = "trl-lib/ultrafeedback_binarized"),
    argument = "repo",
    repositories = true
)]
pub struct OfHub {
    /// The data set, as `org/name`, or `org/name@revision` for a branch, a tag or a commit.
    /// Required; `--dataset org/name` sets it.
    pub repo: String,
    /// Configuration of the data set (called a subset on the hub). If unset, the only configuration
    /// is used, or the default one.
    pub config_name: Option<String>,
    /// Split to train on.
    #[default("train")]
    pub train: String,
    /// Held-out in-distribution split. The default, `test`, is ignored if the data set has no split
    /// of that name.
    #[default(Some(TEST.to_owned()))]
    pub test: Option<String>,
    /// Out-of-distribution split: `SPLIT`, `CONFIG:SPLIT`, or `org/name:CONFIG:SPLIT` for a split
    /// of another data set.
    pub oos: Option<String>,
    /// Split of unrelated pairs, in the same form as `oos`.
    pub rnd: Option<String>,
    /// Format of the rows.
    #[serde(flatten)]
    pub format: Format,
}

/// Default name of the split with held-out pairs.
const TEST: &str = "test";

impl DatasetPlugin for OfHub {
    fn build(self) -> Result<Box<dyn Dataset>> {
        open(&self, &Hub::of_environment()?)
    }
}

fn open(config: &OfHub, hub: &Hub) -> Result<Box<dyn Dataset>> {
    if config.repo.is_empty() {
        return Err(Error::new("`dataset.repo` is not set").hint("use `--dataset org/name`"));
    }
    let home = RepoId::read(RepoKind::Dataset, &config.repo)?;
    let named = [
        ("train", Some(&config.train)),
        ("test", config.test.as_ref()),
        ("oos", config.oos.as_ref()),
        ("rnd", config.rnd.as_ref()),
    ];
    let parts = named.into_iter().filter_map(|(split, text)| Some((split, text?)));
    let parts = parts
        .map(|(split, text)| Ok((split, Part::read(text, &home, config.config_name.as_deref())?)))
        .collect::<Result<Vec<_>>>()?;
    let mut opened = Opened { hub, snapshots: Vec::new() };
    let mut splits = Vec::new();
    for (split, part) in &parts {
        let found =
            opened.files(part).map_err(|e| e.within(format!("cannot load the `{split}` pairs")))?;
        let Some((files, snapshot)) = found else {
            if *split == "test" && part.split == TEST {
                continue;
            }
            return Err(opened.no_split(part)?.within(format!("cannot load the `{split}` pairs")));
        };
        let source =
            |file: &String| Source::open(&snapshot.get(file)?, config.format.reading()?, &[]);
        let sources = files
            .iter()
            .map(source)
            .collect::<Result<Vec<_>>>()
            .within(|| format!("cannot load the `{split}` pairs"))?;
        // Read the first pair, so that an invalid file is reported before the model is loaded.
        sources
            .first()
            .map(|s| s.pairs()?.first().map(drop))
            .transpose()
            .within(|| format!("cannot load the `{split}` pairs"))?;
        let describes = format!("{}@{} {}", part.repo.name, short(snapshot.commit()), part.split);
        splits.push(Split { name: split, describes, sources });
    }
    let pinned = opened.pinned(config, &home, &parts);
    let pinned = serde_json::to_string(&pinned).map_err(|e| Error::internal(e.to_string()))?;
    Ok(Box::new(Splits { splits, pinned }))
}

/// The repositories opened so far. Each repository is only looked up once.
struct Opened<'h> {
    hub: &'h Hub,
    snapshots: Vec<(RepoId, Snapshot<'h>)>,
}

impl<'h> Opened<'h> {
    fn at(&mut self, repo: &RepoId) -> Result<usize> {
        match self.snapshots.iter().position(|(id, _)| id == repo) {
            Some(i) => Ok(i),
            None => {
                self.snapshots.push((repo.clone(), self.hub.open(repo)?));
                Ok(self.snapshots.len() - 1)
            }
        }
    }

    /// Returns the files of a split and the repository that contains them, or `None` if the split
    /// does not exist.
    fn files(&mut self, part: &Part) -> Result<Option<(Vec<String>, &Snapshot<'h>)>> {
        let (i, layout) = self.layout(part)?;
        layout.check(&part.split, &part.repo.to_string())?;
        Ok(layout
            .splits
            .into_iter()
            .find(|(name, _)| *name == part.split)
            .map(|(_, files)| (files, &self.snapshots[i].1)))
    }

    /// Returns the splits of a configuration, and the index of their repository in `snapshots`.
    fn layout(&mut self, part: &Part) -> Result<(usize, Layout)> {
        let own = self.at(&part.repo)?;
        // A run that uses the hub's parquet conversion records the commit of the conversion. When
        // such a run is resumed, `part.repo` is already the conversion.
        if layout::is_conversion(self.snapshots[own].1.files()) {
            return Ok((own, Layout::converted(&self.snapshots[own].1, part.config.as_deref())?));
        }
        let layout = Layout::of(&self.snapshots[own].1, part.config.as_deref())?;
        if let Some(layout) = layout.filter(Layout::is_read) {
            return Ok((own, layout));
        }
        let none = || {
            Error::new(format!("the data set `{}` has no files of a supported format", part.repo))
                .hint(format!("supported: {}", crate::files::EXTENSIONS.join(", ")))
        };
        if !part.repo.is_main() {
            return Err(none().hint("omit the revision: the hub only converts `main` to parquet"));
        }
        let converted = self.at(&part.repo.at(layout::CONVERTED)).map_err(|e| none().because(e))?;
        Ok((converted, Layout::converted(&self.snapshots[converted].1, part.config.as_deref())?))
    }

    fn no_split(&mut self, part: &Part) -> Result<Error> {
        let (_, layout) = self.layout(part)?;
        Ok(Error::unknown(
            &format!("split of `{}`", part.repo),
            &part.split,
            layout.splits.iter().map(|(name, _)| name),
        ))
    }

    /// Returns `config` with every repository pinned to the commit that was opened.
    fn pinned(&self, config: &OfHub, home: &RepoId, parts: &[(&str, Part)]) -> OfHub {
        let opened = |repo: &RepoId| {
            self.snapshots.iter().find(|(id, _)| id == repo).map(|(_, snapshot)| snapshot.pinned())
        };
        // If the hub's parquet conversion was used, pin the repository to the commit of the
        // conversion.
        let at = |repo: &RepoId| {
            opened(&repo.at(layout::CONVERTED))
                .or_else(|| opened(repo))
                .unwrap_or_else(|| repo.clone())
        };
        let text = |split: &str| {
            parts
                .iter()
                .find(|(name, _)| *name == split)
                .map(|(_, part)| part.text(home, at(&part.repo)))
        };
        OfHub { repo: at(home).to_string(), oos: text("oos"), rnd: text("rnd"), ..config.clone() }
    }
}

struct Split {
    name: &'static str,
    describes: String,
    sources: Vec<Source>,
}

struct Splits {
    splits: Vec<Split>,
    pinned: String,
}

impl Dataset for Splits {
    fn splits(&self) -> Vec<SplitInfo> {
        let info = |split: &Split| SplitInfo {
            name: split.name.to_owned(),
            describes: split.describes.clone(),
            pairs: split.sources.iter().map(Source::count).sum(),
        };
        self.splits.iter().map(info).collect()
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        Ok(Box::new(self.rows(split)?.map(|row| row.map(|(_, pair)| pair))))
    }

    fn rows(&self, split: &str) -> Result<RowIter<'_>> {
        let found = self.splits.iter().find(|s| s.name == split);
        let found = found
            .ok_or_else(|| Error::unknown("split", split, self.splits.iter().map(|s| s.name)))?;
        let read = Rc::default();
        let pairs = found.sources.iter().flat_map(move |source| -> RowIter<'_> {
            match source.pairs_after(&read) {
                Ok(pairs) => Box::new(pairs),
                Err(e) => Box::new(std::iter::once(Err(e))),
            }
        });
        Ok(Box::new(pairs))
    }

    fn pinned(&self) -> Option<String> {
        Some(self.pinned.clone())
    }
}

#[cfg(test)]
mod tests;
