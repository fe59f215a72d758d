//! Successive halving: many runs with few steps, and more steps for the best of them.
//!
//! Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
//! Optimization" (2016), and Li et al., "Hyperband" (2018), for the factor η. Rung k of K has n/ηᵏ
//! runs, each with the share η^(k+1−K) of the full resource. All rungs have about the same cost.

use super::{Proposal, Sampler};
use crate::error::Result;
use crate::study::space::Point;

/// The points that are still in the search, and the rungs to come.
pub(super) struct Halving {
    points: Vec<Point>,
    rungs: std::vec::IntoIter<(usize, f64)>,
}

/// Returns the number of runs and the share of the resource of each rung. The last rung has the
/// full resource. There are fewer rungs than `most` if the points do not suffice.
pub(super) fn rungs(points: usize, factor: usize, most: usize) -> Vec<(usize, f64)> {
    let mut sizes = vec![points];
    while sizes.len() < most {
        let next = sizes.last().map_or(0, |n| n / factor);
        if next == 0 {
            break;
        }
        sizes.push(next);
    }
    let last = sizes.len() as i32 - 1;
    let share = |rung: usize| (factor as f64).powi(rung as i32 - last);
    sizes.into_iter().enumerate().map(|(rung, n)| (n, share(rung))).collect()
}

impl Halving {
    pub fn new(points: Vec<Point>, factor: usize, most: usize) -> Self {
        let rungs = rungs(points.len(), factor, most).into_iter();
        Self { points, rungs }
    }
}

impl Sampler for Halving {
    fn ask(&mut self) -> Result<Vec<Proposal>> {
        let Some((count, share)) = self.rungs.next() else { return Ok(Vec::new()) };
        self.points.truncate(count);
        Ok(self.points.iter().map(|point| Proposal { point: point.clone(), share }).collect())
    }

    fn tell(&mut self, scores: &[Option<f64>]) -> Result<()> {
        let mut order: Vec<usize> = (0..self.points.len()).collect();
        let score = |i: &usize| scores.get(*i).copied().flatten().unwrap_or(f64::NEG_INFINITY);
        // The sort is stable, so the earlier of two equal points stays first.
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        // A run without a score must not reach the next rung.
        order.retain(|i| scores.get(*i).copied().flatten().is_some());
        self.points = order.into_iter().map(|i| self.points[i].clone()).collect();
        Ok(())
    }
}
