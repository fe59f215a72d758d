//! Samplers, which choose the points of a search.
//!
//! A sampler is asked for proposals and told their scores. It must be a function of its settings
//! and of the scores: a resumed study asks again from the beginning, is given the same proposals,
//! and finds their runs in its folder.

mod external;
mod grid;
mod halving;
mod random;
mod tpe;

pub use external::{Channel, Conversation, SharedConversation};
use grid::Grid;
use halving::Halving;
use random::Random;
use tpe::Tpe;

use super::space::{self, Dimension, Point};
use crate::error::{Error, Result};

/// A point that a sampler proposes.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The values of the searched fields.
    pub point: Point,
    /// The share of the full resource that the run gets, greater than 0 and at most 1. A run with
    /// less cannot become the tuned point.
    pub share: f64,
}

impl Proposal {
    fn full(point: Point) -> Self {
        Self { point, share: 1.0 }
    }
}

/// The strategy of a search. Higher scores are better.
pub trait Sampler {
    /// Returns the next proposals, or an empty list if the search is over. All of them may run at
    /// the same time. The next call comes after [`tell`](Self::tell).
    ///
    /// # Errors
    /// Fails if an external sampler fails.
    fn ask(&mut self) -> Result<Vec<Proposal>>;

    /// Receives the score of each proposal of the latest [`ask`](Self::ask), in its order. A score
    /// is `None` if the run failed or has no finite score.
    ///
    /// # Errors
    /// Fails if an external sampler fails.
    fn tell(&mut self, scores: &[Option<f64>]) -> Result<()>;
}

/// The samplers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Every combination of the lists.
    #[default]
    Grid,
    /// Independent uniform points.
    Random,
    /// The tree-structured Parzen estimator.
    Tpe,
    /// Successive halving.
    Halving,
    /// Another program, which reads requests and writes values.
    External,
}

impl Kind {
    /// All samplers.
    pub const ALL: [Self; 5] = [Self::Grid, Self::Random, Self::Tpe, Self::Halving, Self::External];

    /// The name in a study file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grid => "grid",
            Self::Random => "random",
            Self::Tpe => "tpe",
            Self::Halving => "halving",
            Self::External => "external",
        }
    }

    /// Returns the sampler with this name.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| Error::unknown("sampler", name, Self::ALL.map(Self::name)))
    }
}

/// The field that successive halving gives less of to its first runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resource {
    /// `train.epochs`, and so the number of steps. All runs have the same pairs.
    #[default]
    Epochs,
    /// `train.max_pairs`.
    Pairs,
}

impl Resource {
    const ALL: [Self; 2] = [Self::Epochs, Self::Pairs];

    /// The field.
    pub fn field(self) -> &'static str {
        match self {
            Self::Epochs => "train.epochs",
            Self::Pairs => "train.max_pairs",
        }
    }

    /// Returns the resource with the name of its field.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|resource| resource.field() == name);
        found.ok_or_else(|| Error::unknown("resource", name, Self::ALL.map(Self::field)))
    }
}

/// The settings of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The sampler.
    pub sampler: Kind,
    /// Number of points; `None` for the default of the sampler.
    pub trials: Option<usize>,
    /// Seed of the sampler, and `train.seed` of the runs of the search.
    pub seed: u64,
    /// Number of points that `tpe` and `external` choose before they receive the next scores.
    pub batch: usize,
    /// Number of random points at the beginning of `tpe`.
    pub startup: usize,
    /// The resource of successive halving.
    pub resource: Resource,
    /// Factor by which the resource grows and the number of runs falls from rung to rung.
    pub factor: usize,
    /// Number of rungs.
    pub rungs: usize,
    /// True if the tuned point is the best on the shifted set, and not on validation pairs.
    pub select_on_shift: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sampler: Kind::Grid,
            trials: None,
            seed: 0,
            batch: 1,
            startup: 8,
            resource: Resource::default(),
            factor: 3,
            rungs: 3,
            select_on_shift: false,
        }
    }
}

/// Number of points of a search that does not set `trials`.
const DEFAULT_TRIALS: usize = 16;

impl Settings {
    /// Number of points that the search starts with in a space.
    pub fn points(&self, space: &[Dimension]) -> usize {
        let all = size(space);
        match self.sampler {
            Kind::Grid => all.unwrap_or(0),
            Kind::External => self.trials.unwrap_or(DEFAULT_TRIALS),
            Kind::Halving => {
                let trials = self.trials.or(all).unwrap_or(DEFAULT_TRIALS);
                all.map_or(trials, |all| trials.min(all))
            }
            Kind::Random | Kind::Tpe => {
                let trials = self.trials.unwrap_or(DEFAULT_TRIALS);
                all.map_or(trials, |all| trials.min(all))
            }
        }
    }

    /// Number of runs of the search and their total cost, in units of a run with the full resource.
    pub fn cost(&self, space: &[Dimension]) -> (usize, f64) {
        let points = self.points(space);
        match self.sampler {
            Kind::Halving => halving::rungs(points, self.factor, self.rungs)
                .into_iter()
                .fold((0, 0.0), |(runs, cost), (n, share)| (runs + n, cost + n as f64 * share)),
            _ => (points, points as f64),
        }
    }

    /// Creates the sampler for a space.
    ///
    /// # Errors
    /// Fails if the sampler cannot search the space.
    pub fn sampler(
        &self,
        method: &str,
        space: &[Dimension],
        conversation: Option<&SharedConversation>,
    ) -> Result<Box<dyn Sampler>> {
        let points = self.points(space);
        Ok(match self.sampler {
            Kind::Grid => Box::new(Grid::new(grid_points(space)?)),
            Kind::Random => Box::new(Random::new(space, points, self.seed)),
            Kind::Tpe => Box::new(Tpe::new(space, points, self)),
            Kind::Halving => {
                let first = match space::grid(space) {
                    Some(grid) if grid.len() <= points => grid,
                    _ => random::points(space, points, self.seed),
                };
                Box::new(Halving::new(first, self.factor, self.rungs))
            }
            Kind::External => {
                let conversation = conversation.ok_or_else(|| {
                    Error::internal("an external sampler needs a conversation with a program")
                })?;
                Box::new(external::External::new(method, space, points, self.batch, conversation))
            }
        })
    }
}

/// Number of points of a space; `None` if it has a range.
fn size(space: &[Dimension]) -> Option<usize> {
    space.iter().try_fold(1_usize, |n, dimension| Some(n.saturating_mul(dimension.count()?)))
}

fn grid_points(space: &[Dimension]) -> Result<Vec<Point>> {
    let range = space.iter().find(|dimension| dimension.count().is_none());
    match (range, space::grid(space)) {
        (None, Some(points)) => Ok(points),
        (range, _) => {
            let field = range.map_or("a field", |dimension| &dimension.field);
            Err(Error::new(format!("the sampler `grid` needs a list of values for `{field}`"))
                .hint("write a list, e.g. `[1e-5, 1e-4]`, or choose `sampler = \"tpe\"`"))
        }
    }
}

#[cfg(test)]
mod tests;
