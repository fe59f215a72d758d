//! Preference directions at the inputs and outputs of adapted modules, for methods that modify
//! gradients.

use tch::{Device, Kind, Tensor};

use crate::api::{
    Axis, Directions, Intervention, Needs, ParameterGrad, Pooling, ROUNDING, Sides, Site, StepInfo,
    precision,
};
use crate::batch::PairBatch;
use crate::error::{Error, Result};
use crate::model::Adapted;
use crate::world::World;

/// Accumulates preference directions at each site. The direction of a pair is the difference
/// between the pooled states of its completions: d = pool(y⁺) − pool(y⁻).
#[derive(Debug, Default)]
pub struct ModuleDirections {
    whose: Directions,
    sites: Vec<Site>,
    /// Directions of the most recent batch, `[b w]` for each site.
    batch: Vec<Tensor>,
    /// For each site, the sums over all pairs in the current optimiser step.
    step: Vec<Sum>,
    /// Number of pairs in the sums, including pairs without a direction.
    pairs: usize,
}

/// The sums of a step so far.
#[derive(Debug)]
pub struct StepDirections {
    step: Vec<Sum>,
    pairs: usize,
}

/// Sums over pairs at one site.
#[derive(Debug)]
struct Sum {
    /// Σ weight·d over the pairs of the step, `[w]`.
    directions: Tensor,
    /// Σ weight·‖d‖, a scalar.
    lengths: Tensor,
    /// Number of pairs with a direction, as a scalar tensor.
    directed: Tensor,
}

impl Sum {
    fn add(self, other: Self) -> Result<Self> {
        Ok(Self {
            directions: self.directions.f_add(&other.directions)?,
            lengths: self.lengths.f_add(&other.lengths)?,
            directed: self.directed.f_add(&other.directed)?,
        })
    }

    /// Returns the mean direction `[w]` over the pairs that have one. `pairs` is the total number
    /// of pairs. The mean is 0 if no pair has a direction, or if the directions cancel out up to
    /// rounding.
    fn mean(&self, pairs: usize) -> Result<Tensor> {
        let mean = self.directions.f_mul(
            &(self.directed.f_clamp_min(1.0)?.f_reciprocal()? * pairs as f64)
                .f_to_kind(self.directions.kind())?,
        )?;
        let left = self
            .directions
            .f_norm()?
            .f_gt_tensor(&(&self.lengths * (ROUNDING * precision(self.directions.kind()))))?;
        Ok(mean.f_where_self(&left, &mean.f_zeros_like()?)?)
    }
}

impl ModuleDirections {
    /// Selects the sites of `adapted` at which the method uses directions, according to its
    /// `needs`.
    pub fn new(needs: &Needs, adapted: &Adapted) -> Self {
        let mut sites: Vec<Site> = Vec::new();
        for changed in adapted.changed() {
            let has = |wanted: fn(&Axis) -> bool| {
                needs.parameter_grads
                    && changed.parameters.iter().any(|p| p.axis.as_ref().is_some_and(wanted))
            };
            if has(|a| matches!(a, Axis::Input(_))) {
                sites.push(changed.input.clone());
            }
            if (needs.output_grads || has(|a| matches!(a, Axis::Output(_))))
                && !sites.contains(&changed.output)
            {
                sites.push(changed.output);
            }
        }
        Self { whose: needs.directions, sites, ..Self::default() }
    }

    /// Returns the sites to read in the forward pass of the policy or of the reference, as `whose`
    /// says. The list is empty if the method does not take its directions from this model.
    pub fn sites(&self, whose: Directions) -> &[Site] {
        if whose == self.whose { &self.sites } else { &[] }
    }

    /// Computes the directions of a batch and adds them to the sums of the optimiser step. `states`
    /// contains one tensor `[n w]` for each of the [`sites`](Self::sites), and `weight` is the
    /// weight of each pair in the step.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn read(
        &mut self,
        whose: Directions,
        states: &[Tensor],
        batch: &PairBatch,
        weight: f64,
    ) -> Result<()> {
        if whose != self.whose || self.sites.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let mut step = std::mem::take(&mut self.step).into_iter();
        let (mut batch_directions, mut sums) = (Vec::new(), Vec::new());
        for s in states {
            let sides = Sides::try_of(|side| batch.pool(s, Pooling::Completion, side))?;
            // If the two states only differ by rounding errors, the pair has no meaningful
            // direction. Use 0 instead.
            let (d, differ) = (sides.chosen.f_sub(&sides.rejected)?, sides.differ());
            let d = d.f_where_self(&differ.f_unsqueeze(1)?, &d.f_zeros_like()?)?;
            let sum = Sum {
                directions: d.f_sum_dim_intlist(0, false, None::<Kind>)? * weight,
                lengths: d.f_norm_scalaropt_dim(2.0, 1, false)?.f_sum(d.kind())? * weight,
                directed: differ.f_sum(Kind::Double)?,
            };
            sums.push(match step.next() {
                Some(before) => before.add(sum)?,
                None => sum,
            });
            batch_directions.push(d);
        }
        (self.batch, self.step) = (batch_directions, sums);
        self.pairs += batch.len();
        Ok(())
    }

    /// Removes the sums of the step so far, so that [`restore_sums`](Self::restore_sums) can undo
    /// the effect of a batch.
    pub fn take_sums(&mut self) -> StepDirections {
        StepDirections { step: std::mem::take(&mut self.step), pairs: self.pairs }
    }

    /// Restores the sums.
    pub fn restore_sums(&mut self, StepDirections { step, pairs }: StepDirections) {
        (self.step, self.pairs) = (step, pairs);
    }

    /// Adds the sums of all ranks, which are on `device`.
    ///
    /// # Errors
    /// Fails if another rank has ended.
    pub fn reduce(&mut self, world: &World, device: Device) -> Result<()> {
        if world.size() == 1 || self.sites.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        // A rank without a micro-batch has no sums, and does not know the widths.
        let widths: Vec<i64> = self.step.iter().map(|sum| sum.directions.numel() as i64).collect();
        let of_all = world.gather((self.pairs, widths))?;
        self.pairs = of_all.iter().map(|(pairs, _)| pairs).sum();
        let widths = of_all.into_iter().map(|(_, widths)| widths).find(|widths| !widths.is_empty());
        let Some(widths) = widths else { return Ok(()) };
        let kind = self.step.first().map_or(Kind::Float, |sum| sum.directions.kind());
        let mut parts = Vec::new();
        for (i, width) in widths.iter().enumerate() {
            match self.step.get(i) {
                Some(sum) => parts.extend([
                    sum.directions.f_to_kind(Kind::Double)?,
                    sum.lengths.f_to_kind(Kind::Double)?.f_reshape([1])?,
                    sum.directed.f_reshape([1])?,
                ]),
                None => parts.push(Tensor::f_zeros([width + 2], (Kind::Double, device))?),
            }
        }
        let flat = Tensor::f_cat(&parts, 0)?;
        world.sum(&flat)?;
        // A rank without sums has no gradients of its own, but maps the gradients of all ranks.
        let (mut at, mut sums) = (0, Vec::new());
        for width in widths {
            sums.push(Sum {
                directions: flat.f_narrow(0, at, width)?.f_to_kind(kind)?,
                lengths: flat.f_narrow(0, at + width, 1)?.f_reshape([0_i64; 0])?.f_to_kind(kind)?,
                directed: flat.f_narrow(0, at + width + 1, 1)?.f_reshape([0_i64; 0])?,
            });
            at += width + 2;
        }
        self.step = sums;
        Ok(())
    }

    fn at<'v, T>(&self, site: &Site, values: &'v [T]) -> Result<&'v T> {
        let found = self.sites.iter().position(|s| s == site).and_then(|i| values.get(i));
        found.ok_or_else(|| {
            Error::internal(format!("no direction was computed at `{site}`"))
                .hint("set `directions: Reference` in the method's `Needs`")
        })
    }

    /// Returns the directions d of the most recent batch at `site`, `[b w]` with one row per pair.
    ///
    /// # Errors
    /// Fails if the site was not read.
    pub fn of_batch(&self, site: &Site) -> Result<Tensor> {
        Ok(self.at(site, &self.batch)?.shallow_clone())
    }

    /// Lets the method modify the gradient of each parameter with an [`Axis`]. The method also
    /// receives the mean direction of the step at the module's input or output, depending on the
    /// axis.
    ///
    /// # Errors
    /// Fails if the method fails or returns a gradient of the wrong shape.
    pub fn map_gradients(
        &self,
        method: &dyn Intervention,
        adapted: &Adapted,
        step: StepInfo,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for changed in adapted.changed() {
            for parameter in &changed.parameters {
                let (Some(axis), mut grad) = (parameter.axis, parameter.tensor.grad()) else {
                    continue;
                };
                if !grad.defined() {
                    continue;
                }
                let site =
                    if matches!(axis, Axis::Input(_)) { &changed.input } else { &changed.output };
                let direction =
                    self.at(site, &self.step)?.mean(self.pairs)?.f_to_kind(grad.kind())?;
                let at = ParameterGrad { site, axis, direction: &direction, step };
                let mapped = method.parameter_grad(&grad, at)?;
                if mapped.size() != grad.size() {
                    return Err(Error::internal(format!(
                        "the method returned a gradient of shape {:?} for `{}`, expected {:?}",
                        mapped.size(),
                        parameter.key,
                        grad.size()
                    )));
                }
                grad.f_copy_(&mapped)?;
            }
        }
        Ok(())
    }

    /// Clears the directions and the sums before a new optimiser step.
    pub fn reset(&mut self) {
        self.step.clear();
        self.batch.clear();
        self.pairs = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(directions: &[[f64; 2]], directed: f64, weight: f64) -> Sum {
        let of = |d: &[f64; 2]| Tensor::from_slice(d) * weight;
        let lengths: f64 = directions.iter().map(|d| d[0].hypot(d[1]) * weight).sum();
        let total = directions.iter().map(of).reduce(|a, b| a + b).expect("one or more");
        Sum { directions: total, lengths: Tensor::from(lengths), directed: Tensor::from(directed) }
    }

    fn values(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t).expect("numbers")
    }

    #[test]
    fn the_mean_direction_is_taken_over_the_pairs_that_have_one() {
        let all = sum(&[[3.0, 0.0], [1.0, 2.0]], 2.0, 0.5);
        assert_eq!(values(&all.mean(2).expect("a mean")), [2.0, 1.0]);
        // Adding two pairs without a direction does not change the mean.
        let some = sum(&[[3.0, 0.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], 2.0, 0.25);
        assert_eq!(values(&some.mean(4).expect("a mean")), [2.0, 1.0]);
        assert_eq!(values(&sum(&[[0.0, 0.0]], 0.0, 1.0).mean(1).expect("a mean")), [0.0, 0.0]);
    }

    #[test]
    fn directions_that_cancel_up_to_rounding_have_the_mean_zero() {
        let cancelled = sum(&[[0.3, 1.0], [-0.3, -1.0 + 1e-16]], 2.0, 0.5);
        assert_eq!(values(&cancelled.mean(2).expect("a mean")), [0.0, 0.0]);
    }
}
