//! The comparison of the methods of recorded runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::collect::{Collection, LeftOut, collect};
use super::comparability;
use super::curves::{self, Curves};
use super::figures::{self, Capabilities, Figures};
use super::methods::{self, Method, Row, Tuned};
use super::paired::{self, PairedTests};
use super::pairs::ScoredSplit;
use super::recorded::RecordedRun;
use super::study_file::SelectedOn;
use crate::error::{Error, Result};
use crate::eval::SplitRole;
use crate::statistics::{AccuracyByLength, Calibration, accuracy_by_length};

/// The options of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Folders of runs and studies.
    pub targets: Vec<PathBuf>,
    /// Name of the baseline.
    pub baseline: Option<String>,
    /// Name of the intervention that is the baseline if no name is given.
    pub preferred_baseline: Option<String>,
    /// The perplexity ratio at which methods are compared.
    pub match_perplexity: f64,
    /// The split whose chosen text gives this ratio; by default the test data.
    pub match_split: Option<String>,
    /// Folders of runs that were trained on the shifted distribution itself.
    pub tuned_on_target: Vec<PathBuf>,
}

/// A scored split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitInfo {
    /// Name of the split.
    pub split: String,
    /// Description of the data.
    pub data: String,
    /// Relation to the training data.
    pub role: SplitRole,
    /// Number of scored pairs.
    pub pairs: usize,
    /// Number of clusters; `None` if the runs do not record clusters.
    pub clusters: Option<usize>,
    /// Number of pairs that were excluded because they also occur in the training data.
    pub overlap: usize,
    /// Number of other pairs without a score.
    pub dropped: usize,
    /// Accuracy of the base model.
    pub base_accuracy: Option<f64>,
    /// Accuracy of the base model by the lengths of the completions.
    pub base_by_length: AccuracyByLength,
    /// Calibration of the base model.
    pub base_calibration: Option<Calibration>,
    /// Accuracy after training on the shifted distribution itself, if it is known.
    pub tuned_capability: Option<f64>,
}

/// A study that was compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StudyInfo {
    /// Name of the study.
    pub name: String,
    /// Folder of the study.
    pub folder: String,
    /// The command that made it.
    pub command: Vec<String>,
    /// Name of the objective.
    pub objective: Option<String>,
    /// The data on which the values were selected.
    pub selected_on: SelectedOn,
}

/// The comparison of the methods.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Title: the data and the model.
    pub title: String,
    /// Warnings that every output must show.
    pub warnings: Vec<String>,
    /// The studies.
    pub studies: Vec<StudyInfo>,
    /// The scored splits.
    pub splits: Vec<SplitInfo>,
    /// The methods at their tuned points, with the metrics on each split.
    pub methods: Vec<Figures>,
    /// The paired tests.
    pub tests: PairedTests,
    /// The comparison along the strength of the training.
    pub curves: Curves,
    /// Explanations of the numbers.
    pub notes: Vec<String>,
    /// Runs that were not used.
    pub left_out: Vec<LeftOut>,
    /// The runs.
    #[serde(skip)]
    pub collection: Collection,
    /// The methods with their points.
    #[serde(skip)]
    pub groups: Vec<Method>,
    /// The rows of [`Summary::methods`].
    #[serde(skip)]
    pub rows: Vec<Row>,
}

impl Summary {
    /// The runs of a row.
    pub fn runs_of(&self, row: &Row) -> Vec<&RecordedRun> {
        self.collection.runs(&row.runs)
    }
}

/// Reads the runs and compares their methods.
///
/// # Errors
/// Fails if a target contains no finished run, if the runs did not score the same pairs with the
/// same settings, or if a name in the request is unknown.
pub fn summarise(request: &Request) -> Result<Summary> {
    let mut collection = collect(&request.targets)?;
    collection.exclude_overlap();
    comparability::check(&collection.members)?;
    let capabilities = capabilities(&request.tuned_on_target, &collection)?;
    let (groups, duplicates) = methods::group(&collection);
    let rows = methods::rows(&groups, &collection);
    let figures: Vec<Figures> = rows
        .iter()
        .map(|row| figures::of_row(row, &collection.runs(&row.runs), &capabilities))
        .collect();
    let baseline = paired::baseline(
        &rows,
        request.baseline.as_deref(),
        request.preferred_baseline.as_deref(),
    )?;
    let tests = paired::tests(&rows, &collection, baseline)?;
    let curves =
        curves::of(&groups, &collection, request.match_perplexity, request.match_split.as_deref())?;
    let first: Vec<&RecordedRun> = collection.members.iter().map(|m| &m.run).take(1).collect();
    let splits = first
        .iter()
        .flat_map(|run| &run.splits)
        .map(|split| split_info(split, &first, &capabilities))
        .collect();
    let studies: Vec<StudyInfo> = collection
        .studies
        .iter()
        .map(|(folder, study)| StudyInfo {
            name: study.name.clone(),
            folder: folder.display().to_string(),
            command: study.command.clone(),
            objective: study.objective.clone(),
            selected_on: study.selected_on,
        })
        .collect();
    let mut left_out = collection.left_out.clone();
    left_out.extend(duplicates);
    Ok(Summary {
        title: title(&collection),
        warnings: warnings(&studies, &figures),
        notes: notes(&figures, &curves, &collection),
        studies,
        splits,
        methods: figures,
        tests,
        curves,
        left_out,
        groups,
        rows,
        collection,
    })
}

fn split_info(split: &ScoredSplit, runs: &[&RecordedRun], tuned: &Capabilities) -> SplitInfo {
    let by = runs[0].score();
    let clusters: Option<BTreeSet<&String>> =
        split.pairs.iter().map(|p| p.cluster.as_ref()).collect();
    let scored: Vec<_> = split.pairs.iter().map(|p| p.scored(false, by)).collect();
    SplitInfo {
        split: split.name.clone(),
        data: split.data.clone(),
        role: SplitRole::of(&split.name),
        pairs: split.pairs.len(),
        clusters: clusters.map(|c| c.len()),
        overlap: split.excluded.len(),
        dropped: split.dropped,
        base_accuracy: figures::base_accuracy(&split.name, runs),
        base_by_length: accuracy_by_length(&scored),
        base_calibration: figures::calibration(&split.name, runs, false, by),
        tuned_capability: tuned.get(&split.name).copied(),
    }
}

/// The data and the model, which all runs share.
fn title(all: &Collection) -> String {
    let of_run = all.members.first().map(|m| m.run.title.as_str()).unwrap_or_default();
    match of_run.split_once(" on ") {
        Some((_, rest)) => rest.to_owned(),
        None => of_run.to_owned(),
    }
}

fn warnings(studies: &[StudyInfo], figures: &[Figures]) -> Vec<String> {
    let mut lines = Vec::new();
    for study in studies.iter().filter(|s| s.selected_on == SelectedOn::Shift) {
        lines.push(format!(
            "the study `{}` selected its values on the shifted data, so the results on the shifted \
                data are too optimistic and do not measure generalisation",
            study.name
        ));
    }
    let single = figures.iter().filter(|f| f.seeds.len() == 1).count();
    if single > 0 && !figures.is_empty() {
        let who = if single == figures.len() { "every method" } else { "some methods" };
        lines.push(
            format!("{who} has one seed, so the intervals do not cover other seeds")
                .replace("some methods has", "some methods have"),
        );
    }
    lines
}

fn notes(figures: &[Figures], curves: &Curves, all: &Collection) -> Vec<String> {
    let mut lines = Vec::new();
    let search: Vec<&str> =
        figures.iter().filter(|f| f.search_runs).map(|f| f.method.as_str()).collect();
    if !search.is_empty() {
        lines.push(format!(
            "the study has no final runs, so the runs of the search are compared: {}",
            search.join("; ")
        ));
    }
    for (how, text) in [
        (Tuned::Study, "the values were selected by the study"),
        (
            Tuned::Validation,
            "the values have the lowest mean loss at the last validation of the runs",
        ),
        (
            Tuned::Unselected,
            "nothing selected a point, because the runs have no validation, so every point has a \
                row",
        ),
    ] {
        let names: Vec<&str> =
            figures.iter().filter(|f| f.tuned == how).map(|f| f.method.as_str()).collect();
        if !names.is_empty() {
            lines.push(format!("{text}: {}", names.join("; ")));
        }
    }
    lines.push(format!(
        "the perplexity ratio of the comparison at equal ratio is computed on the chosen text of \
            `{}`",
        curves.matched_on
    ));
    let mut remarks: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for of_method in figures {
        for split in &of_method.splits {
            let of_split = [&split.accuracy, &split.points, &split.margin_gain];
            for remark in of_split.into_iter().flatten().filter_map(|f| f.remark) {
                remarks
                    .entry(remark)
                    .or_default()
                    .insert(format!("{} on {}", of_method.method, split.split));
            }
        }
    }
    let total: usize = figures.iter().map(|f| f.splits.len()).sum();
    for (remark, places) in remarks {
        if places.len() == total {
            lines.push(remark.to_owned());
        } else {
            lines.push(format!("{remark}: {}", places.into_iter().collect::<Vec<_>>().join("; ")));
        }
    }
    let broken: usize = figures.iter().flat_map(|f| f.splits.iter().map(|s| s.not_finite)).sum();
    if broken > 0 {
        lines.push(format!(
            "pairs with an infinite or NaN score, which only the accuracies include: {broken}"
        ));
    }
    let first = all.members.first().map(|m| m.run.splits.as_slice()).unwrap_or_default();
    let overlap: usize = first.iter().map(|s| s.excluded.len()).sum();
    if overlap > 0 {
        lines.push(format!(
            "pairs that also occur in the training data of a run, which are excluded from all \
                runs: {overlap}"
        ));
    }
    lines
}

/// Computes the accuracy of runs that were trained on the shifted distribution itself, for every
/// shift of `all` whose pairs are the test pairs of these runs.
fn capabilities(targets: &[PathBuf], all: &Collection) -> Result<Capabilities> {
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    if targets.is_empty() {
        return Ok(Capabilities::new());
    }
    let tuned = collect(targets)?;
    let shifts: Vec<&ScoredSplit> = all
        .members
        .first()
        .map(|m| m.run.splits.as_slice())
        .unwrap_or_default()
        .iter()
        .filter(|s| SplitRole::of(&s.name) == SplitRole::Shift)
        .collect();
    for member in &tuned.members {
        let run = &member.run;
        let mut used = false;
        for test in run.splits.iter().filter(|s| SplitRole::of(&s.name) == SplitRole::Test) {
            for shift in &shifts {
                let (mut test, mut shift) = (test.clone(), (*shift).clone());
                test.exclude(&shift.excluded);
                shift.exclude(&test.excluded);
                if !test.pairs.is_empty() && comparability::pairs(&test, &shift).is_none() {
                    let sum: f64 = test.pairs.iter().map(|p| p.credit(true, run.score())).sum();
                    let accuracy = sum / test.pairs.len() as f64;
                    found.entry(shift.name.clone()).or_default().push(accuracy);
                    used = true;
                }
            }
        }
        if !used {
            return Err(Error::new(format!(
                "`{}` does not give the tuned capability: its `test` pairs are not the pairs of a \
                    shifted split",
                run.folder.display()
            ))
            .hint("give runs that were trained on the shifted distribution itself"));
        }
    }
    let mean = |v: Vec<f64>| v.iter().sum::<f64>() / v.len() as f64;
    Ok(found.into_iter().map(|(split, v)| (split, mean(v))).collect())
}
