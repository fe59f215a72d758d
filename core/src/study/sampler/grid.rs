//! Proposes every combination of the lists at once.

use super::{Proposal, Sampler};
use crate::error::Result;
use crate::study::space::Point;

/// All points of a grid.
pub(super) struct Grid(Vec<Point>);

impl Grid {
    pub fn new(points: Vec<Point>) -> Self {
        Self(points)
    }
}

impl Sampler for Grid {
    fn ask(&mut self) -> Result<Vec<Proposal>> {
        Ok(std::mem::take(&mut self.0).into_iter().map(Proposal::full).collect())
    }

    fn tell(&mut self, _: &[Option<f64>]) -> Result<()> {
        Ok(())
    }
}
