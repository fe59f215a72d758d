//! Preference directions at the places that an adapter changes, and what a method does to gradients with them.

use tch::Tensor;

use super::batch::PairBatch;
use crate::api::{Axis, Directions, Intervention, Needs, Pooling, Site};
use crate::error::{Error, Result};
use crate::model::Adapted;

/// The places, and d = pool(y⁺) − pool(y⁻) there.
#[derive(Debug, Default)]
pub struct Directed {
    whose: Directions,
    sites: Vec<Site>,
    /// Of the latest batch `[b w]`, one a site.
    batch: Vec<Tensor>,
    /// The weighted sum over the optimiser step's pairs so far `[w]`, one a site.
    step: Vec<Tensor>,
}

impl Directed {
    /// The places of `adapted` that a method with these needs looks at.
    pub fn new(needs: &Needs, adapted: &Adapted) -> Self {
        let mut sites: Vec<Site> = Vec::new();
        for changed in adapted.changed() {
            let has = |wanted: fn(&Axis) -> bool| needs.parameter_grads && changed.parameters.iter().any(|p| p.axis.as_ref().is_some_and(wanted));
            if has(|a| matches!(a, Axis::Input(_))) {
                sites.push(changed.input.clone());
            }
            if (needs.output_grads || has(|a| matches!(a, Axis::Output(_)))) && !sites.contains(&changed.output) {
                sites.push(changed.output);
            }
        }
        Self { whose: needs.directions, sites, ..Self::default() }
    }

    /// The places to read in the pass of `whose` model: none in that of the other.
    pub fn sites(&self, whose: Directions) -> &[Site] {
        if whose == self.whose { &self.sites } else { &[] }
    }

    /// Takes in what was read at [`sites`](Self::sites), `[n w]` each. `weight` is what a pair counts in the step.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn directions(&mut self, whose: Directions, states: &[Tensor], batch: &PairBatch, weight: f64) -> Result<()> {
        if whose != self.whose || self.sites.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let of = |s: &Tensor| -> Result<Tensor> { Ok(batch.pool(s, Pooling::Completion, false)?.f_sub(&batch.pool(s, Pooling::Completion, true)?)?) };
        self.batch = states.iter().map(of).collect::<Result<_>>()?;
        let sums: Vec<Tensor> = self.batch.iter().map(|d| Ok(d.f_sum_dim_intlist(0, false, None::<tch::Kind>)? * weight)).collect::<Result<_>>()?;
        self.step = if self.step.is_empty() { sums } else { self.step.iter().zip(sums).map(|(a, b)| Ok(a.f_add(&b)?)).collect::<Result<_>>()? };
        Ok(())
    }

    fn at(&self, site: &Site, values: &[Tensor]) -> Result<Tensor> {
        let found = self.sites.iter().position(|s| s == site).and_then(|i| values.get(i)).map(Tensor::shallow_clone);
        found.ok_or_else(|| Error::internal(format!("there is no direction at `{site}`")).hint("set `directions: Reference` in the method's `Needs`"))
    }

    /// d of each pair of the latest batch at `site`, `[b w]`.
    ///
    /// # Errors
    /// A place that was not read.
    pub fn of_batch(&self, site: &Site) -> Result<Tensor> {
        self.at(site, &self.batch)
    }

    /// Hands every gradient whose parameter has an axis to the method, with the direction in that axis' space.
    ///
    /// # Errors
    /// What the method says.
    pub fn map_gradients(&self, method: &dyn Intervention, adapted: &Adapted) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for changed in adapted.changed() {
            for parameter in &changed.parameters {
                let (Some(axis), mut grad) = (parameter.axis, parameter.tensor.grad()) else { continue };
                if !grad.defined() {
                    continue;
                }
                let site = if matches!(axis, Axis::Input(_)) { &changed.input } else { &changed.output };
                let direction = self.at(site, &self.step)?.f_to_kind(grad.kind())?;
                let mapped = method.parameter_grad(&grad, axis, &direction)?;
                if mapped.size() != grad.size() {
                    return Err(Error::internal(format!(
                        "the method made a gradient {:?} of the one of `{}`, {:?}",
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

    /// Begins a new optimiser step.
    pub fn reset(&mut self) {
        self.step.clear();
        self.batch.clear();
    }
}
