//! Logistic regression on the states of chosen and rejected completions.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tch;

/// The largest number of Newton steps. The objective is strictly convex and small, so about ten
/// are needed.
const MOST_STEPS: usize = 200;
/// The length of the gradient, relative to the number of states, at which the fit ends.
const TOLERANCE: f64 = 1e-10;

/// A linear probe whose output is positive for chosen completions.
pub struct Probe {
    /// The weights `[w]`, float64.
    pub weights: Tensor,
    /// The intercept.
    pub intercept: f64,
}

impl Probe {
    /// Minimises ½‖w‖² + Σ log(1 + exp(−y(wᵀx + b))) over the states x `[n w]` of both sides, with
    /// the label y = 1 for chosen and −1 for rejected completions. This is the objective of
    /// scikit-learn's LogisticRegression with its default C = 1.
    ///
    /// # Errors
    /// Fails if a state is not finite, or if the fit does not converge.
    pub fn fit(states: &Sides) -> Result<Self> {
        let (x, y) = labelled(states)?;
        if !bool::try_from(x.f_isfinite()?.f_all()?)? {
            return Err(Error::new("a state is not finite"));
        }
        // The last entry of `w` is the intercept, which is not penalised.
        let (n, width) = (x.size()[0], x.size()[1]);
        let x = Tensor::f_cat(&[&x, &x.f_new_ones([n, 1], (Kind::Double, x.device()))?], 1)?;
        let penalised = x.f_new_ones([width + 1], (Kind::Double, x.device()))?;
        let _ = penalised.f_get(width)?.f_zero_()?;
        let objective = |w: &Tensor| -> Result<f64> {
            let losses = (-(&y * x.f_mv(w)?)).f_softplus()?.f_sum(Kind::Double)?;
            let penalty = (w.f_square()? * &penalised).f_sum(Kind::Double)? * 0.5;
            Ok(f64::try_from(losses + penalty)?)
        };
        let mut w = x.f_new_zeros([width + 1], (Kind::Double, x.device()))?;
        let mut value = objective(&w)?;
        for _ in 0..MOST_STEPS {
            let wrong = (-(&y * x.f_mv(&w)?)).f_sigmoid()?;
            let gradient = &w * &penalised - x.tr().f_mv(&(&y * &wrong))?;
            if f64::try_from(gradient.f_norm()?)? <= TOLERANCE * n as f64 {
                let intercept = f64::try_from(w.f_get(width)?)?;
                return Ok(Self { weights: w.f_narrow(0, 0, width)?, intercept });
            }
            let right: Tensor = 1.0 - &wrong;
            let curvature = &wrong * &right;
            // The small constant keeps the matrix regular if all curvatures vanish.
            let hessian = x.tr().f_matmul(&(&x * curvature.f_unsqueeze(1)?))?
                + Tensor::f_diag(&(&penalised + 1e-12), 0)?;
            let step = Tensor::f_linalg_solve(&hessian, &gradient, true)?;
            // Halve the step until the objective falls.
            let mut scale = 1.0;
            let (next, next_value) = loop {
                let next = &w - &step * scale;
                let next_value = objective(&next)?;
                if next_value < value || scale < 1e-10 {
                    break (next, next_value);
                }
                scale *= 0.5;
            };
            if next_value >= value {
                // The objective cannot fall any further in float64.
                let intercept = f64::try_from(w.f_get(width)?)?;
                return Ok(Self { weights: w.f_narrow(0, 0, width)?, intercept });
            }
            (w, value) = (next, next_value);
        }
        Err(Error::new(format!("the fit did not converge in {MOST_STEPS} steps")))
    }

    /// The part of the completions whose side the probe finds.
    ///
    /// # Errors
    /// Fails if the widths do not match.
    pub fn accuracy(&self, states: &Sides) -> Result<f64> {
        let (x, y) = labelled(states)?;
        let positive = (x.f_mv(&self.weights)? + self.intercept).f_gt(0.0)?;
        let right = positive.f_eq_tensor(&y.f_gt(0.0)?)?;
        Ok(f64::try_from(right.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?)?)
    }
}

/// The states of both sides, `[n w]`, with their labels, `[n]`.
fn labelled(states: &Sides) -> Result<(Tensor, Tensor)> {
    let x = Tensor::f_cat(&[&states.chosen, &states.rejected], 0)?.f_to_kind(Kind::Double)?;
    let ones = |t: &Tensor| Tensor::f_ones([t.size()[0]], (Kind::Double, tch::Device::Cpu));
    let y = Tensor::f_cat(&[ones(&states.chosen)?, -ones(&states.rejected)?], 0)?;
    Ok((x, y))
}
