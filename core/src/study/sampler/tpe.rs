//! The tree-structured Parzen estimator.
//!
//! Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011). The points are
//! divided into the best ones and the others. Densities l(x) and g(x) are estimated from the two
//! groups. Of several candidates drawn from l, the one with the largest l(x) / g(x) is proposed.
//! The densities are mixtures of one product kernel per point and a uniform distribution, so they
//! include the interaction of the fields (Falkner et al., "BOHB", 2018).
//!
//! The crate `optimizer` has the same estimator. Version 1.0.1 recognises a field by its range, so
//! it mixes up two fields with equal ranges. Its joint variant iterates over hash maps, so it makes
//! other proposals in each process, and an interrupted search could not continue in the same way.

use std::f64::consts::PI;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, Normal};

use super::random::uniform;
use super::{Proposal, Sampler, Settings};
use crate::error::Result;
use crate::study::space::{Dimension, Point, Values};

/// Number of candidates that are drawn for each proposal.
const CANDIDATES: usize = 24;
/// Width of a kernel for one point in one dimension, as a share of the range.
const WIDTH: f64 = 0.2;
/// The smallest width of a kernel.
const LEAST_WIDTH: f64 = 0.02;
/// The probability of a list's other values in the kernel of a point.
const OTHER_VALUES: f64 = 0.2;

/// The estimator.
pub(super) struct Tpe {
    space: Vec<Dimension>,
    trials: usize,
    seed: u64,
    batch: usize,
    startup: usize,
    /// The points that were proposed, with their scores. A score is `None` until it is known, and
    /// for a run without a score.
    points: Vec<(Point, Option<f64>)>,
    told: usize,
}

impl Tpe {
    pub fn new(space: &[Dimension], trials: usize, settings: &Settings) -> Self {
        let Settings { seed, batch, startup, .. } = *settings;
        let (points, told) = (Vec::new(), 0);
        Self { space: space.to_vec(), trials, seed, batch, startup, points, told }
    }

    fn propose(&self) -> Option<Point> {
        // Each proposal has its own generator, so that it does not depend on how many numbers the
        // earlier ones drew.
        let index = self.points.len() as u64;
        let mix = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ mix);
        let new = |point: &Point| self.points.iter().all(|(known, _)| known != point);
        let known = self.points.iter().filter(|(_, score)| score.is_some()).count();
        if self.points.len() < self.startup || known < 2 {
            return (0..200).map(|_| uniform(&self.space, &mut rng)).find(new);
        }
        let (good, bad) = self.groups();
        let best = (0..CANDIDATES)
            .map(|_| good.draw(&mut rng))
            // Compare the values that would run, which are rounded.
            .filter_map(|unit| {
                let point: Point = self
                    .space
                    .iter()
                    .zip(&unit)
                    .map(|(d, unit)| (d.field.clone(), d.value(*unit)))
                    .collect();
                let unit = units(&self.space, &point);
                new(&point).then(|| (good.log_density(&unit) - bad.log_density(&unit), point))
            })
            .reduce(|a, b| if b.0 > a.0 { b } else { a });
        // In a small space, all candidates may be known points.
        best.map(|(_, point)| point)
            .or_else(|| (0..1000).map(|_| uniform(&self.space, &mut rng)).find(new))
    }

    /// The densities of the best points and of the others. A point without a score counts as one of
    /// the others, so that a batch does not propose the same place several times.
    fn groups(&self) -> (Density<'_>, Density<'_>) {
        let mut order: Vec<&(Point, Option<f64>)> = self.points.iter().collect();
        let score = |point: &&(Point, Option<f64>)| point.1.unwrap_or(f64::NEG_INFINITY);
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let known = order.iter().filter(|(_, score)| score.is_some()).count();
        let best = ((known as f64).sqrt() / 2.0).ceil().max(1.0) as usize;
        let density = |points: &[&(Point, Option<f64>)]| Density {
            space: &self.space,
            points: points.iter().map(|(point, _)| units(&self.space, point)).collect(),
        };
        (density(&order[..best]), density(&order[best..]))
    }
}

/// The position of a point in the unit cube.
fn units(space: &[Dimension], point: &Point) -> Vec<f64> {
    space.iter().zip(point).map(|(d, (_, value))| d.unit(value).unwrap_or(0.5)).collect()
}

/// A mixture of one kernel per point and the uniform distribution, all with the same weight.
struct Density<'a> {
    space: &'a [Dimension],
    /// `[points dimensions]`, in the unit cube.
    points: Vec<Vec<f64>>,
}

impl Density<'_> {
    /// The width of the kernels, by Scott's rule.
    fn width(&self) -> f64 {
        let (n, d) = (self.points.len().max(1) as f64, self.space.len() as f64);
        (WIDTH * n.powf(-1.0 / (d + 4.0))).max(LEAST_WIDTH)
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let component = rng.random_range(0..=self.points.len());
        let center = self.points.get(component);
        let width = self.width();
        let mut coordinate = |dimension: usize, d: &Dimension| {
            let Some(center) = center.map(|point| point[dimension]) else {
                return rng.random::<f64>();
            };
            match &d.values {
                Values::List(_) if rng.random::<f64>() < OTHER_VALUES => rng.random::<f64>(),
                Values::List(_) => center,
                Values::Range { .. } => {
                    // A normal number within the range: at least about half of them are.
                    let normal = |rng: &mut ChaCha8Rng| {
                        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
                        (-2.0 * u.ln()).sqrt() * (2.0 * PI * v).cos()
                    };
                    (0..100)
                        .map(|_| center + width * normal(rng))
                        .find(|x| (0.0..=1.0).contains(x))
                        .unwrap_or(center)
                }
            }
        };
        self.space.iter().enumerate().map(|(i, d)| coordinate(i, d)).collect()
    }

    fn log_density(&self, at: &[f64]) -> f64 {
        let width = self.width();
        let normal = Normal::standard();
        let kernel = |point: &Vec<f64>| -> f64 {
            let factor = |((d, x), center): ((&Dimension, &f64), &f64)| match &d.values {
                Values::List(list) => {
                    let share = OTHER_VALUES / list.len() as f64;
                    // The density is relative to the uniform distribution over the list.
                    (share + if x == center { 1.0 - OTHER_VALUES } else { 0.0 }) * list.len() as f64
                }
                Values::Range { .. } => {
                    let z = (x - center) / width;
                    let within = normal.cdf((1.0 - center) / width) - normal.cdf(-center / width);
                    (-0.5 * z * z).exp() / ((2.0 * PI).sqrt() * width * within)
                }
            };
            self.space.iter().zip(at).zip(point).map(factor).product()
        };
        let sum: f64 = 1.0 + self.points.iter().map(kernel).sum::<f64>();
        (sum / (self.points.len() + 1) as f64).ln()
    }
}

impl Sampler for Tpe {
    fn ask(&mut self) -> Result<Vec<Proposal>> {
        let mut proposals = Vec::new();
        // The random points at the beginning do not depend on scores, so they run together.
        let batch = match self.points.is_empty() {
            true => self.batch.max(self.startup),
            false => self.batch,
        };
        while proposals.len() < batch && self.points.len() < self.trials {
            let Some(point) = self.propose() else { break };
            self.points.push((point.clone(), None));
            proposals.push(Proposal::full(point));
        }
        Ok(proposals)
    }

    fn tell(&mut self, scores: &[Option<f64>]) -> Result<()> {
        for ((_, known), score) in self.points[self.told..].iter_mut().zip(scores) {
            *known = *score;
        }
        self.told = self.points.len();
        Ok(())
    }
}
