//! Proposes independent uniform points, all at once.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Proposal, Sampler};
use crate::error::Result;
use crate::study::space::{Dimension, Point};

/// Independent uniform points.
pub(super) struct Random(Vec<Point>);

impl Random {
    pub fn new(space: &[Dimension], count: usize, seed: u64) -> Self {
        Self(points(space, count, seed))
    }
}

/// Draws `count` different points. A point that repeats an earlier one is drawn again, so that a
/// small space is not searched twice at the same place.
pub(super) fn points(space: &[Dimension], count: usize, seed: u64) -> Vec<Point> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut points: Vec<Point> = Vec::new();
    // The limit is only reached if the space has fewer points than `count`.
    for _ in 0..count.saturating_mul(200) {
        if points.len() == count {
            break;
        }
        let point = uniform(space, &mut rng);
        if !points.contains(&point) {
            points.push(point);
        }
    }
    points
}

/// Draws one point.
pub(super) fn uniform(space: &[Dimension], rng: &mut ChaCha8Rng) -> Point {
    space.iter().map(|d| (d.field.clone(), d.value(rng.random::<f64>()))).collect()
}

impl Sampler for Random {
    fn ask(&mut self) -> Result<Vec<Proposal>> {
        Ok(std::mem::take(&mut self.0).into_iter().map(Proposal::full).collect())
    }

    fn tell(&mut self, _: &[Option<f64>]) -> Result<()> {
        Ok(())
    }
}
