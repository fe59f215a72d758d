//! The plan of a study: its groups of runs, and the experiment of each run.

mod groups;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::json;

use super::file::StudyFile;
use super::sampler::{Kind, Resource, Settings};
use super::space::{self, Dimension, Point, text};
use crate::config::{Assignment, Batch, Experiment, Origin, Resolved};
use crate::error::{Context, Error, Result};

pub use groups::Group;
use groups::{shortened, slug};

/// Resolves an experiment from the assignments that all runs share and those of one run. The
/// configuration files, the environment and the flags of the command override the former, and the
/// latter override everything.
pub type Resolver<'a> = dyn Fn(&[Assignment], &[Assignment]) -> Result<Resolved> + 'a;

/// `train.validate_every` of a study that does not set it: a number of steps that no run has. A run
/// then validates once, after its last step.
const AFTER_THE_LAST_STEP: u64 = 1_000_000_000;
/// The field with the seed of a run.
pub const SEED: &str = "train.seed";
/// The split that `select_on_shift` selects on.
pub const SHIFT: &str = "oos";

/// A study whose groups are known. Its runs are known as far as they do not depend on scores.
pub struct Plan {
    /// The name of the study.
    pub name: String,
    /// The study file as the user wrote it; `None` for a grid.
    pub file: Option<StudyFile>,
    /// The fields of the grid.
    pub axes: Vec<String>,
    /// The groups, which are searched independently.
    pub groups: Vec<Group>,
    /// The search; `None` if there are only final runs.
    pub search: Option<Settings>,
    /// True if all searched points have final runs, and not only the tuned one.
    pub all_points: bool,
    base: Vec<Assignment>,
}

impl Plan {
    fn halves(&self, by: Resource) -> bool {
        self.search.as_ref().is_some_and(|s| s.sampler == Kind::Halving && s.resource == by)
    }

    /// The folder of the runs, in the folder of the study.
    pub fn runs(&self) -> &'static str {
        if self.file.is_some() { "runs" } else { "" }
    }

    /// All fields that differ between runs.
    pub fn varied(&self) -> BTreeSet<String> {
        let groups = self.groups.iter();
        let mut fields: BTreeSet<String> = groups
            .flat_map(|group| {
                let settings = group.settings.iter().map(Assignment::field);
                settings.chain(group.space.iter().map(|dimension| dimension.field.clone()))
            })
            .collect();
        if self.search.is_some() || self.groups.iter().any(|g| g.seeds != [None]) {
            fields.insert(SEED.to_owned());
        }
        fields
    }

    /// True if the points are selected by validation.
    pub fn selects_on_validation(&self) -> bool {
        self.search.as_ref().is_some_and(|search| !search.select_on_shift)
    }

    /// The largest possible number of runs.
    pub fn most_runs(&self) -> usize {
        let of = |group: &Group| {
            let searched = self.search.as_ref().filter(|_| !group.space.is_empty());
            let (search, points) = searched.map_or((0, 1), |search| {
                let points = if self.all_points { search.points(&group.space) } else { 1 };
                (search.cost(&group.space).0, points)
            });
            search + points * group.seeds.len()
        };
        self.groups.iter().map(of).sum()
    }

    /// Resolves the experiment of a run.
    ///
    /// # Errors
    /// Fails if a field does not exist or a value is not valid.
    pub fn experiment(
        &self,
        group: &Group,
        point: &Point,
        share: f64,
        seed: Option<u64>,
        resolver: &Resolver<'_>,
    ) -> Result<Experiment> {
        let mut base = Vec::new();
        if self.selects_on_validation() {
            let every = json!(AFTER_THE_LAST_STEP);
            base.push(Assignment::new("train.validate_every", every, Origin::Chosen));
        }
        base.extend(self.base.clone());
        let mut over = group.settings.clone();
        over.extend(space::assignments(&group.space, point));
        let seed_origin =
            self.file.as_ref().map_or(Origin::Flag("--over".into()), |f| origin(f, "seeds"));
        over.extend(seed.map(|seed| Assignment::new(SEED, json!(seed), seed_origin)));
        let name = self.run_name(group, point, share, seed);
        let resolved =
            resolver(&base, &over).within(|| format!("the run `{name}` is not valid"))?;
        let configured =
            !matches!(resolved.origins.get("eval.completions"), None | Some(Origin::Default));
        let mut experiment = resolved.experiment;
        if !configured {
            // Sample completions would take as long as a short run.
            experiment.eval.completions = 0;
        }
        experiment.out = None;
        let within = |e: Error| e.within(format!("the run `{name}` is not valid"));
        self.check(group, &experiment).map_err(within)?;
        if share < 1.0 {
            self.shorten(&mut experiment, share).map_err(within)?;
        }
        Ok(experiment)
    }

    /// Checks that the runs of a searched group have a score.
    fn check(&self, group: &Group, experiment: &Experiment) -> Result<()> {
        let Some(search) = self.search.as_ref().filter(|_| !group.space.is_empty()) else {
            return Ok(());
        };
        if search.select_on_shift {
            let eval = &experiment.eval;
            // A suite replaces the shifted set of the data set.
            let scored = eval
                .splits
                .as_ref()
                .map_or(eval.suite.is_none(), |all| all.iter().any(|split| split == SHIFT));
            if !eval.enabled || !scored {
                return Err(Error::new(format!(
                    "the search selects on the shifted set, but the runs do not score `{SHIFT}`"
                ))
                .hint(format!(
                    "remove `--no-eval`, `eval.splits` and `eval.suite`, or add `{SHIFT}` to \
                        `eval.splits`"
                )));
            }
        } else if experiment.train.validate_every.is_none() {
            return Err(Error::new(
                "the search selects by validation, but the runs do not validate",
            )
            .hint("remove `train.validate_every`; the study then validates at the last step"));
        }
        Ok(())
    }

    /// Gives a run a share of the full resource.
    fn shorten(&self, experiment: &mut Experiment, share: f64) -> Result<()> {
        let Some(search) = &self.search else { return Ok(()) };
        match search.resource {
            Resource::Epochs => experiment.train.epochs *= share,
            Resource::Pairs => {
                let full = experiment.train.max_pairs.ok_or_else(|| {
                    Error::new("successive halving by `train.max_pairs` needs its full value")
                        .hint("set `train.max_pairs` in `[base]`")
                })?;
                experiment.train.max_pairs = Some(((full as f64 * share).round() as usize).max(1));
            }
        }
        // Short runs only serve the selection.
        match search.select_on_shift {
            true => {
                experiment.eval.splits = Some(vec![SHIFT.to_owned()]);
                experiment.eval.shifts.clear();
                experiment.eval.suite = None;
            }
            false => experiment.eval.enabled = false,
        }
        Ok(())
    }

    /// The name of a run, which is the name of its folder.
    pub fn run_name(&self, group: &Group, point: &Point, share: f64, seed: Option<u64>) -> String {
        let number = seed.map(|seed| seed.to_string());
        let has_place = group.pattern.contains(&None);
        let mut parts: Vec<String> = group
            .pattern
            .iter()
            .filter_map(|part| part.clone().or_else(|| number.clone()))
            .collect();
        if parts.is_empty() {
            parts.push(group.name.clone());
        }
        for (field, value) in point {
            let short = field.rsplit('.').next().unwrap_or(field);
            let twice = point.iter().filter(|(f, _)| f.rsplit('.').next() == Some(short)).count();
            let field = if twice > 1 { field } else { short };
            parts.push(format!("{field}={}", slug(&text(value))));
        }
        if share < 1.0 {
            parts.push(format!("share={share:.4}"));
        }
        if let Some(seed) = number.filter(|_| !has_place) {
            parts.push(format!("seed={seed}"));
        }
        shortened(&parts.join("-"))
    }

    /// Resolves the experiments that do not depend on scores, and returns one of each group. A
    /// mistake in any combination is therefore found before the first run.
    ///
    /// # Errors
    /// Fails if an experiment is not valid. The error names the run.
    pub fn resolve_all(&self, resolver: &Resolver<'_>) -> Result<Vec<Experiment>> {
        let mut first = Vec::new();
        for group in &self.groups {
            for seed in group.seeds.iter().flatten() {
                if i64::try_from(*seed).is_err() {
                    return Err(Error::new(format!("the seed {seed} is too large"))
                        .hint("seeds are at most 9223372036854775807"));
                }
            }
            let seed = group.seeds.first().copied().flatten();
            let mut of_group = None;
            for point in self.probes(group)? {
                let experiment = self.experiment(group, &point, 1.0, seed, resolver)?;
                if self.halves(Resource::Pairs) || self.halves(Resource::Epochs) {
                    self.shorten(&mut experiment.clone(), 0.5)?;
                }
                of_group.get_or_insert(experiment);
            }
            first.extend(of_group);
        }
        Ok(first)
    }

    /// Points that together contain every value that a search of the group may choose, as far as
    /// they can be listed.
    fn probes(&self, group: &Group) -> Result<Vec<Point>> {
        let Some(search) = self.search.as_ref().filter(|_| !group.space.is_empty()) else {
            return Ok(vec![Point::new()]);
        };
        if search.sampler == Kind::Grid {
            // This fails if a field has no list.
            search.sampler(&group.name, &group.space, None)?;
            return Ok(space::grid(&group.space).unwrap_or_default());
        }
        let first =
            |d: &Dimension| (d.field.clone(), d.probes().first().cloned().unwrap_or_default());
        let start: Point = group.space.iter().map(first).collect();
        let mut points = vec![start.clone()];
        for (i, dimension) in group.space.iter().enumerate() {
            for value in dimension.probes().into_iter().skip(1) {
                let mut point = start.clone();
                point[i].1 = value;
                points.push(point);
            }
        }
        Ok(points)
    }
}

/// The largest number of steps of a run, if the configuration determines it.
pub fn most_steps(experiment: &Experiment) -> Option<usize> {
    let train = &experiment.train;
    let pairs = train.max_pairs?;
    match train.batch {
        Batch::Auto => None,
        Batch::Pairs(_) => {
            let per_epoch = pairs.div_ceil(train.step_pairs());
            Some(((per_epoch as f64 * train.epochs).ceil() as usize).max(1))
        }
    }
}

fn origin(file: &StudyFile, table: &str) -> Origin {
    Origin::Study { file: PathBuf::from(&file.path), table: table.to_owned() }
}

#[cfg(test)]
mod tests;
