//! The causal inner product: compares states by their effect on the logits.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tch;

/// The metric of the unembedding.
#[transform(
    name = "causal",
    summary = "the causal inner product: distances between states equal distances between their \
        logits; fixed",
    reference = "Park, Choe and Veitch 2023, The Linear Representation Hypothesis and the \
        Geometry of Large Language Models, §3 (arXiv:2311.03658)",
    explain = "\
T(x) = Cov(γ)^p x    γ a row of the unembedding matrix [vocab h], each token once; p = ½

‖T(a − b)‖² = Var_v(⟨γ_v, a⟩ − ⟨γ_v, b⟩): the distance between two states is that between their
logits, up to a constant added to all logits, which does not change probabilities. Directions that
the output head does not read have little weight. This is exact for the last hidden state; for
earlier ones it is the approximation of the logit lens. Eigenvalues below 1e-6 of the largest are
replaced by this value, which matters if p is negative. Nothing is trained. With
`--set train.share_transform=true`, T is only computed once for all taps of the residual stream."
)]
pub struct Causal {
    /// p: power of the unembedding's covariance, −1 to 1. Use 0.5 for states, and −0.5 for vectors
    /// in the space of unembeddings.
    #[default(0.5)]
    pub power: f64,
}

impl TransformPlugin for Causal {
    fn build(self, cx: &TransformCx<'_>, _init: &mut Init) -> Result<Box<dyn Transform>> {
        if !(-1.0..=1.0).contains(&self.power) {
            return Err(Error::new(format!(
                "`transform.power` must be from −1 to 1, got {}",
                self.power
            )));
        }
        let hidden = cx.unembedding.size()[1];
        if cx.width != hidden {
            let message = format!(
                "the transform `causal` needs states of the unembedding's width, {hidden}, but \
                    those at `{}` have width {}",
                cx.site, cx.width
            );
            return Err(Error::new(message).hint("use a tap of the residual stream: `--tap hs`"));
        }
        let _guard = tch::no_grad_guard();
        let kind = if cx.unembedding.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let gamma = cx.unembedding.f_to_kind(kind)?;
        let centred = &gamma - gamma.f_mean_dim(0, false, None::<Kind>)?;
        let covariance = centred.f_tr()?.f_matmul(&centred)? / gamma.size()[0] as f64;
        // The h×h matrix is small, so use float64, which is more accurate for small eigenvalues.
        let (values, directions) = covariance.f_to_kind(Kind::Double)?.f_linalg_eigh("L")?;
        let powers = values
            .f_clamp_min(1e-6 * values.f_max()?.double_value(&[]))?
            .f_pow_tensor_scalar(self.power)?;
        let map = (&directions * powers).f_matmul(&directions.f_tr()?)?;
        Ok(Box::new(Metric { map: map.f_to_kind(kind)? }))
    }
}

/// The transform of one tap.
struct Metric {
    /// Cov(γ)^p `[h h]`, symmetric.
    map: Tensor,
}

impl Transform for Metric {
    fn forward(&self, h: &Tensor, _around: &Around) -> Result<Tensor> {
        Ok(h.f_to_kind(self.map.kind())?.f_matmul(&self.map)?)
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        false
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use reprpo_plugin::tch::Device;
    use reprpo_plugin::testkit::{model, random, registered, tensor};

    use super::*;

    #[test]
    fn it_passes_the_conformance_tests() {
        registered();
    }

    fn build(power: f64, width: i64, gamma: &Tensor) -> Result<Box<dyn Transform>> {
        let cx = TransformCx {
            model: &model(),
            site: &Site::Residual(1),
            width,
            embedding: gamma,
            unembedding: gamma,
        };
        Causal { power }.build(&cx, &mut Init::new(0, "", Kind::Double, Device::Cpu))
    }

    /// The largest difference between two elements.
    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn the_transform_matches_a_calculation_by_hand() {
        // Cov(γ) = diag(1/2, 2), because adding 7 to every γ does not change the covariance.
        let gamma = tensor(&[1.0, 0.0, -1.0, 0.0, 0.0, 2.0, 0.0, -2.0], &[4, 2]) + 7.0;
        let x = tensor(&[3.0, 5.0], &[1, 2]);
        for (power, expected) in [
            (0.5, [3.0 * 0.5f64.sqrt(), 5.0 * 2f64.sqrt()]),
            (-0.5, [3.0 * 2f64.sqrt(), 5.0 * 0.5f64.sqrt()]),
            (0.0, [3.0, 5.0]),
        ] {
            let y = build(power, 2, &gamma).unwrap().forward(&x, &Around::default()).unwrap();
            assert!(difference(&y, &tensor(&expected, &[1, 2])) < 1e-12, "{power}: {y}");
        }
    }

    #[test]
    fn the_square_of_a_length_is_the_variance_of_the_logits() {
        let (gamma, x) = (random(&[40, 6]), random(&[3, 6]));
        let lengths = build(0.5, 6, &gamma)
            .unwrap()
            .forward(&x, &Around::default())
            .unwrap()
            .square()
            .sum_dim_intlist(-1, false, None::<Kind>);
        assert!(difference(&lengths, &x.matmul(&gamma.tr()).var_dim(-1, false, false)) < 1e-10);
    }

    #[test]
    fn states_of_another_width_and_powers_out_of_range_are_errors() {
        let gamma = random(&[4, 2]);
        let refused = |power, width| build(power, width, &gamma).err().unwrap().to_string();
        assert!(
            refused(0.5, 3).contains(
                "the unembedding's width, 2, but those at `hidden_states.1` have width 3"
            )
        );
        assert!(refused(1.5, 2).contains("`transform.power` must be from −1 to 1, got 1.5"));
    }
}
