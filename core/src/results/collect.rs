//! Finds the runs in the folders that a user names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::recorded::RecordedRun;
use super::study_file::{StudyFile, TrialState};
use crate::error::{Context, Error, Result};

/// A run that could not be used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// Folder of the run.
    pub run: PathBuf,
    /// The reason.
    pub reason: String,
}

/// A run with its place in a study.
#[derive(Clone, Debug)]
pub struct Member {
    /// The run.
    pub run: RecordedRun,
    /// Its place in a study; `None` for a single run.
    pub place: Option<Place>,
}

/// The place of a run in a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Position of the study in [`Collection::studies`].
    pub study: usize,
    /// Name of the method.
    pub method: String,
    /// The searched fields and their values.
    pub values: BTreeMap<String, Value>,
    /// True for a final run at the tuned values.
    pub is_final: bool,
}

/// The runs of all folders.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// The studies, with their folders.
    pub studies: Vec<(PathBuf, StudyFile)>,
    /// The finished runs.
    pub members: Vec<Member>,
    /// The other runs.
    pub left_out: Vec<LeftOut>,
}

/// Reads the runs in `targets`. A target is the folder of a run, the folder of a study, or a folder
/// that contains folders of runs.
///
/// # Errors
/// Fails if a target contains no runs, if a `study.json` is damaged, or if no run is finished.
pub fn collect(targets: &[PathBuf]) -> Result<Collection> {
    let mut all = Collection::default();
    for target in targets {
        if let Some(study) = StudyFile::read(target)? {
            all.add_study(target, study);
        } else if target.join("config.toml").is_file() {
            all.add_run(target, None);
        } else {
            let runs = folders(target)?;
            if runs.is_empty() {
                return Err(Error::new(format!("there is no run in `{}`", target.display())).hint(
                    "give the folder of a run or of a study, or a folder that contains runs",
                ));
            }
            runs.iter().for_each(|run| all.add_run(run, None));
        }
    }
    if all.members.is_empty() {
        let reasons = all.left_out.iter().map(|l| format!("`{}`: {}", l.run.display(), l.reason));
        let mut e = Error::new("none of the runs is finished");
        for reason in reasons.take(5) {
            e = e.hint(reason);
        }
        return Err(e);
    }
    Ok(all)
}

impl Collection {
    /// The runs at these positions.
    pub fn runs(&self, positions: &[usize]) -> Vec<&RecordedRun> {
        positions.iter().map(|&at| &self.members[at].run).collect()
    }

    /// Excludes the pairs that one run excluded, because they occur in its training data, from all
    /// runs. Runs that hold out other pairs for validation have different training data.
    pub(super) fn exclude_overlap(&mut self) {
        let mut excluded: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for split in self.members.iter().flat_map(|m| &m.run.splits) {
            excluded.entry(split.name.clone()).or_default().extend(&split.excluded);
        }
        for split in self.members.iter_mut().flat_map(|m| &mut m.run.splits) {
            if let Some(pairs) = excluded.get(&split.name) {
                split.exclude(pairs);
            }
        }
    }

    fn add_study(&mut self, folder: &Path, study: StudyFile) {
        let at = self.studies.len();
        for trial in &study.trials {
            let run = folder.join(&trial.run);
            if trial.state == TrialState::Finished {
                let place = Place {
                    study: at,
                    method: trial.method.clone(),
                    values: trial.values.clone(),
                    is_final: trial.is_final(),
                };
                self.add_run(&run, Some(place));
            } else {
                let error = trial.error.as_ref().map_or_else(String::new, |e| format!(": {e}"));
                self.left_out
                    .push(LeftOut { run, reason: format!("{}{error}", trial.state.name()) });
            }
        }
        self.studies.push((folder.to_owned(), study));
    }

    /// Adds a run. A folder that is named twice is added once; its final place in a study wins.
    fn add_run(&mut self, folder: &Path, place: Option<Place>) {
        if let Some(known) = self.members.iter_mut().find(|m| m.run.folder == folder) {
            if place.as_ref().is_some_and(|p| p.is_final) || known.place.is_none() {
                known.place = place;
            }
            return;
        }
        match RecordedRun::read(folder) {
            Ok(run) => self.members.push(Member { run, place }),
            Err(e) => self.left_out.push(LeftOut { run: folder.to_owned(), reason: e.in_a_line() }),
        }
    }
}

/// Returns the run folders in `folder` and in its folder `runs`, sorted by name.
fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for parent in [folder.to_owned(), folder.join("runs")] {
        if parent != folder && !parent.is_dir() {
            continue;
        }
        let entries = parent
            .read_dir()
            .within(|| format!("cannot read the folder `{}`", parent.display()))?;
        found.extend(
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.join("config.toml").is_file()),
        );
    }
    found.sort();
    Ok(found)
}
