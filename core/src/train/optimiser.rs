//! AdamW with a state that can be saved and restored, and gradient clipping by global norm.
//!
//! Reference: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2. The
//! operations are in the same order as in torch.optim.AdamW.

use indexmap::IndexMap;
use tch::Tensor;

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// Parameters that share one learning rate.
#[derive(Debug)]
pub struct Group {
    /// The trainable tensors and their names, in a fixed order.
    pub parameters: Vec<(String, Tensor)>,
    /// Factor by which the scheduled learning rate is multiplied.
    pub scale: f64,
}

/// The AdamW optimiser and its state.
#[derive(Debug)]
pub struct AdamW {
    groups: Vec<Group>,
    moments: Vec<[Tensor; 2]>,
    steps: usize,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
}

impl AdamW {
    /// Creates an optimiser at step 0, with zero moments.
    pub fn new(groups: Vec<Group>, config: &TrainConfig) -> Self {
        let moments = groups
            .iter()
            .flat_map(|g| &g.parameters)
            .map(|(_, p)| [p.zeros_like(), p.zeros_like()])
            .collect();
        Self {
            groups,
            moments,
            steps: 0,
            betas: (config.beta1, config.beta2),
            eps: config.eps,
            weight_decay: config.weight_decay,
        }
    }

    fn parameters(&self) -> impl Iterator<Item = &(String, Tensor)> {
        self.groups.iter().flat_map(|g| &g.parameters)
    }

    /// Scales the gradients down if their global norm exceeds `clip`. A `clip` of 0 disables this.
    /// Returns the norm before scaling.
    ///
    /// # Errors
    /// Fails if no parameter has a gradient, or if memory runs out.
    pub fn clip(&self, clip: f64) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let norms: Vec<Tensor> = self
            .parameters()
            .map(|(_, p)| p.grad())
            .filter(Tensor::defined)
            .map(|g| g.norm())
            .collect();
        if norms.is_empty() {
            return Err(Error::internal("no trainable parameter has a gradient"));
        }
        let norm = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
        let factor = clip / (norm + 1e-6);
        if clip > 0.0 && factor < 1.0 {
            for (_, p) in self.parameters() {
                let mut grad = p.grad();
                if grad.defined() {
                    let _ = grad.f_mul_scalar_(factor)?;
                }
            }
        }
        Ok(norm)
    }

    /// Names of the parameters without a gradient.
    pub fn without_gradient(&self) -> Vec<&str> {
        self.parameters().filter(|(_, p)| !p.grad().defined()).map(|(n, _)| n.as_str()).collect()
    }

    /// Updates the parameters with the learning rate `lr`, and sets their gradients to zero.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let (b1, b2) = self.betas;
        let (c1, c2) = (1.0 - b1.powi(self.steps as i32), 1.0 - b2.powi(self.steps as i32));
        let scaled =
            self.groups.iter().flat_map(|g| g.parameters.iter().map(|(_, p)| (lr * g.scale, p)));
        for ((lr, parameter), [m, v]) in scaled.zip(&mut self.moments) {
            let grad = parameter.grad();
            if !grad.defined() {
                continue;
            }
            let mut parameter = parameter.shallow_clone();
            if self.weight_decay > 0.0 {
                let _ = parameter.f_mul_scalar_(1.0 - lr * self.weight_decay)?;
            }
            let _ = m.f_lerp_(&grad, 1.0 - b1)?;
            let _ = v.f_mul_scalar_(b2)?.f_add_(&grad.f_square()?.f_mul_scalar(1.0 - b2)?)?;
            let denominator = v.f_sqrt()?.f_div_scalar(c2.sqrt())?.f_add_scalar(self.eps)?;
            let _ = parameter.f_sub_(&m.f_div(&denominator)?.f_mul_scalar(lr / c1)?)?;
            parameter.zero_grad();
        }
        Ok(())
    }

    /// Returns the state of the optimiser for a checkpoint: the first moments as `m.NAME`, the
    /// second moments as `v.NAME`, and the number of steps as `steps`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state: Vec<_> = self
            .parameters()
            .zip(&self.moments)
            .flat_map(|((name, _), [m, v])| {
                [(format!("m.{name}"), m.shallow_clone()), (format!("v.{name}"), v.shallow_clone())]
            })
            .collect();
        state.push(("steps".to_owned(), Tensor::from_slice(&[self.steps as i64])));
        state
    }

    /// Restores a state that was returned by [`state`](Self::state).
    ///
    /// # Errors
    /// Fails if a parameter is missing from the state or has a different shape.
    pub fn restore(&mut self, mut state: IndexMap<String, Tensor>) -> Result<()> {
        let mut take = |name: &str| {
            state.swap_remove(name).ok_or_else(|| {
                Error::new(format!(
                    "`{name}` is missing from the optimiser state in the checkpoint"
                ))
            })
        };
        let _guard = tch::no_grad_guard();
        self.steps = take("steps")?.f_int64_value(&[0])? as usize;
        let names: Vec<String> = self.parameters().map(|(n, _)| n.clone()).collect();
        for (name, moments) in names.iter().zip(&mut self.moments) {
            for (prefix, moment) in ["m", "v"].iter().zip(moments) {
                let saved = take(&format!("{prefix}.{name}"))?;
                if saved.size() != moment.size() {
                    return Err(Error::new(format!(
                        "`{prefix}.{name}` has shape {:?} in the checkpoint, but {:?} in this run",
                        saved.size(),
                        moment.size()
                    )));
                }
                moment.f_copy_(&saved)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn config() -> TrainConfig {
        TrainConfig { weight_decay: 0.1, ..TrainConfig::default() }
    }

    fn leaf() -> Tensor {
        Tensor::from_slice(&[1.0f32, -2.0]).set_requires_grad(true)
    }

    #[test]
    fn steps_match_those_of_torch() {
        let p = leaf();
        let mut reference = tch::COptimizer::adamw(1e-2, 0.9, 0.999, 0.1, 1e-8, false).unwrap();
        let q = leaf();
        reference.add_parameters(&q, 0).unwrap();
        let mut ours = AdamW::new(
            vec![Group { parameters: vec![("p".into(), p.shallow_clone())], scale: 1.0 }],
            &config(),
        );
        for _ in 0..5 {
            (p.square() * 3.0).sum(Kind::Float).backward();
            ours.step(1e-2).unwrap();
            reference.zero_grad().unwrap();
            (q.square() * 3.0).sum(Kind::Float).backward();
            reference.step().unwrap();
        }
        assert!((p - q).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn a_restored_optimiser_takes_the_same_steps_as_the_saved_one() {
        let run = |steps: usize, interrupt: bool| {
            let p = leaf();
            let group =
                || vec![Group { parameters: vec![("p".into(), p.shallow_clone())], scale: 1.0 }];
            let mut optimiser = AdamW::new(group(), &config());
            for i in 0..steps {
                if interrupt && i == 2 {
                    let state = optimiser.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
                    optimiser = AdamW::new(group(), &config());
                    optimiser.restore(state).unwrap();
                }
                p.square().sum(Kind::Float).backward();
                optimiser.step(1e-2).unwrap();
            }
            p
        };
        assert_eq!(run(5, true), run(5, false));
    }

    #[test]
    fn gradients_are_scaled_to_the_clipping_norm() {
        let p = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let optimiser = AdamW::new(
            vec![Group { parameters: vec![("p".into(), p.shallow_clone())], scale: 1.0 }],
            &config(),
        );
        (&p * Tensor::from_slice(&[3.0f32, 4.0])).sum(Kind::Float).backward();
        assert!((optimiser.clip(1.0).unwrap() - 5.0).abs() < 1e-6);
        assert!((p.grad().norm().double_value(&[]) - 1.0).abs() < 1e-5);
    }
}
