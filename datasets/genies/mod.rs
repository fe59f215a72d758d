//! The GENIES benchmark: training on one distribution and evaluation on others.

mod folder;
mod shifts;

use std::collections::HashSet;
use std::path::PathBuf;

use reprpo_plugin::prelude::*;
use reprpo_plugin::tracing;

use self::folder::Folder;
use crate::files::cluster::EXAMPLE_ID;
use crate::files::{Columns, Place, Reading, Row, Source, pairs};

/// Default distribution of the `rnd` split.
const UNRELATED: &str = "ranking_logic";

/// The GENIES benchmark. Trains on one distribution, and evaluates on a shifted and an unrelated
/// one: `--dataset genies:math`.
#[dataset(
    name = "genies",
    summary = "the GENIES benchmark: train on one distribution, test on a shifted one",
    reference = "Clymer, Baker, Subramani, Wang: Generalization Analogies (GENIES), 2023, \
        arXiv:2311.07723",
    explain = "\
There are four splits. `train` and `test` contain the pairs of the given distribution. `oos`
contains the test pairs of the shifted distribution, which is the target of the given one in the
benchmark's shift lists. `rnd` contains the test pairs of an unrelated distribution. For example,
`--dataset genies:math` trains on math, and `oos` is change_my_view.

The data files are `<data_dir>/<distribution>/{train,test}-*.parquet` with the columns prompt,
chosen and rejected, and example_id if `one_per_instruction` is on. This is the layout of
wassname/genies_preferences on the hub. The files can also be `train.json` and `test.json`, as in
the `distributions` folder of the benchmark. The shift lists are GENIES.json and all.json in
`<data_dir>/genies_shifts`, `<data_dir>/../genies_shifts` or `<data_dir>/distribution_shifts`. If
they do not list the distribution, there is only an `oos` split if the field `oos` is set.",
    example(distribution = "math"),
    argument = "distribution"
)]
pub struct Genies {
    /// Name of the distribution to train on, such as `math`. Required; `--dataset genies:NAME`
    /// sets it.
    pub distribution: String,
    /// Folder that contains the distributions, either directly or in a subfolder called `genies` or
    /// `distributions`. `--data-dir` sets it. Default: the environment variable `REPRPO_DATA`.
    #[schemars(extend("format" = "path"))]
    pub data_dir: Option<PathBuf>,
    /// Name of the shifted distribution, whose test pairs become the `oos` split. Default: the
    /// first target of `distribution` in the benchmark's shift lists.
    pub oos: Option<String>,
    /// Name of the unrelated distribution, whose test pairs become the `rnd` split. With `none`,
    /// there is no `rnd` split.
    #[default(Some(UNRELATED.to_owned()))]
    pub rnd: Option<String>,
    /// Use only the first pair of each instruction (one per `example_id`) in every split. By
    /// default, an instruction with k rejected responses has k pairs.
    pub one_per_instruction: bool,
    /// Column that names the cluster of a pair; pairs of the same cluster count as dependent in
    /// confidence intervals. Default: `example_id` if it exists, otherwise the prompt. `--cluster`
    /// sets it.
    pub cluster_column: Option<String>,
}

impl DatasetPlugin for Genies {
    fn build(self) -> Result<Box<dyn Dataset>> {
        let data_dir = self.data_dir.or_else(|| {
            std::env::var_os("REPRPO_DATA").filter(|dir| !dir.is_empty()).map(PathBuf::from)
        });
        let data_dir = data_dir.ok_or_else(|| {
            Error::new("the GENIES data folder is not set")
                .hint("set it with `--data-dir DIR` or the environment variable `REPRPO_DATA`")
        })?;
        let folder = Folder::open(&data_dir)?;
        let source = self.distribution;
        if source.is_empty() {
            return Err(Error::new("no training distribution given")
                .hint(format!("use `--dataset genies:NAME`; valid: {}", folder.list())));
        }
        folder.check(&source)?;

        let mut wanted = vec![("train", source.clone(), "train"), ("test", source.clone(), "test")];
        let oos = match self.oos {
            Some(name) => {
                folder.check(&name)?;
                Some(name)
            }
            None => match shifts::target(&data_dir, &source)? {
                Some(name) if !folder.has(&name) => {
                    tracing::warn!(
                        "skipping the oos split: the shifted distribution of `{source}` is \
                            `{name}`, which is not in `{}`",
                        data_dir.display()
                    );
                    None
                }
                None => {
                    tracing::info!("skipping the oos split: no shift is listed for `{source}`");
                    None
                }
                listed => listed,
            },
        };
        wanted.extend(oos.clone().map(|name| ("oos", name, "test")));
        match self.rnd {
            // A folder of custom distributions may lack the default distribution.
            Some(name) if name == UNRELATED && !folder.has(&name) => {
                tracing::info!(
                    "skipping the rnd split: `{name}` is not in `{}`",
                    data_dir.display()
                )
            }
            Some(name) if name == source || Some(&name) == oos.as_ref() => {
                tracing::info!("skipping the rnd split: `{name}` is already used for train or oos")
            }
            Some(name) => {
                folder.check(&name)?;
                wanted.push(("rnd", name, "test"));
            }
            None => {}
        }

        let extra: &[&str] = if self.one_per_instruction { &[INSTRUCTION] } else { &[] };
        let columns = Columns { cluster: self.cluster_column.clone(), ..Columns::default() };
        let reading = Reading { columns, ..Reading::default() };
        let opened = wanted.into_iter().map(|(name, distribution, part)| {
            let sources = folder
                .files(&distribution, part)?
                .iter()
                .map(|path| Source::open(path, reading.clone(), extra))
                .collect::<Result<_>>()?;
            Ok(Split { name, describes: format!("{distribution} ({part})"), sources })
        });
        Ok(Box::new(Splits {
            splits: opened.collect::<Result<_>>()?,
            one_per_instruction: self.one_per_instruction,
        }))
    }
}

/// Column with the id of the instruction. Several pairs can have the same id.
const INSTRUCTION: &str = EXAMPLE_ID;

struct Split {
    name: &'static str,
    describes: String,
    sources: Vec<Source>,
}

struct Splits {
    splits: Vec<Split>,
    one_per_instruction: bool,
}

impl Dataset for Splits {
    fn splits(&self) -> Vec<SplitInfo> {
        let info = |split: &Split| SplitInfo {
            name: split.name.to_owned(),
            describes: split.describes.clone(),
            pairs: if self.one_per_instruction {
                None
            } else {
                split.sources.iter().map(Source::count).sum()
            },
        };
        self.splits.iter().map(info).collect()
    }

    fn files(&self, split: &str) -> Vec<PathBuf> {
        self.splits
            .iter()
            .filter(|s| s.name == split)
            .flat_map(|s| &s.sources)
            .map(|source| source.path().to_owned())
            .collect()
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        Ok(Box::new(self.rows(split)?.map(|row| row.map(|(_, pair)| pair))))
    }

    fn rows(&self, split: &str) -> Result<RowIter<'_>> {
        let found = self.splits.iter().find(|s| s.name == split);
        let sources = &found
            .ok_or_else(|| Error::unknown("split", split, self.splits.iter().map(|s| s.name)))?
            .sources;
        let each = sources
            .iter()
            .map(|source| Ok(source.rows()?.map(move |row| (source, row))))
            .collect::<Result<Vec<_>>>()?;
        let (firsts, mut seen) = (self.one_per_instruction, HashSet::new());
        let mut of = move |source: &Source, (place, row): (Place, Row)| {
            let within = || place.reading(source.path());
            // In the benchmark's JSON files, each row is one instruction. In parquet files, the
            // rows of an instruction have the same `example_id`.
            if firsts && !row.contains_key("responses") {
                let id = row.get(INSTRUCTION).filter(|id| !id.is_null()).map(ToString::to_string);
                let id = id
                    .ok_or_else(|| Error::new(format!("there is no `{INSTRUCTION}`")))
                    .within(within)?;
                if !seen.insert(id) {
                    return Ok(Vec::new());
                }
            }
            let mut pairs = pairs(row, source.columns()).within(within)?;
            pairs.truncate(if firsts { 1 } else { usize::MAX });
            Ok(pairs)
        };
        Ok(Box::new(each.into_iter().flatten().enumerate().flat_map(move |(at, (source, row))| {
            match row.and_then(|row| of(source, row)) {
                Ok(pairs) => pairs.into_iter().map(|pair| Ok((at, pair))).collect(),
                Err(e) => vec![Err(e)],
            }
        })))
    }
}

#[cfg(test)]
mod tests;
