//! The functions between an MLP's projections, by the names that configurations give them.

use tch::Tensor;

use crate::error::{Error, Result};

/// A function of each number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// x·Φ(x)
    Gelu,
    /// x·Φ(x) with Φ by its approximation through tanh.
    GeluTanh,
    /// max(x, 0)
    Relu,
}

/// The names in configurations. Some functions have several.
const NAMES: [(&str, Activation); 8] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("relu", Activation::Relu),
];

impl Activation {
    /// The one of that name, which stands in `field` of the configuration.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn named(field: &str, name: &str) -> Result<Self> {
        let known = NAMES.iter().find(|(n, _)| *n == name);
        known.map(|(_, a)| *a).ok_or_else(|| Error::unknown(field, name, NAMES.map(|(n, _)| n)))
    }

    /// y of x, of any shape.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.f_silu()?,
            Self::Gelu => x.f_gelu("none")?,
            Self::GeluTanh => x.f_gelu("tanh")?,
            Self::Relu => x.f_relu()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_the_function_that_it_says() {
        // Of −1, 0.5 and 2, by `ACT2FN` of transformers' formulas in float64.
        let expected = |name| match Activation::named("hidden_act", name).unwrap() {
            Activation::Silu => [-0.268_941_421, 0.311_229_666, 1.761_594_156],
            Activation::Gelu => [-0.158_655_254, 0.345_731_231, 1.954_499_736],
            Activation::GeluTanh => [-0.158_808_010, 0.345_714_011, 1.954_597_694],
            Activation::Relu => [0.0, 0.5, 2.0],
        };
        let x = Tensor::from_slice(&[-1.0f64, 0.5, 2.0]);
        for (name, activation) in NAMES {
            let y = activation.forward(&x).unwrap();
            assert!(
                (y - Tensor::from_slice(&expected(name))).abs().max().double_value(&[]) < 1e-8,
                "{name}"
            );
        }
    }

    #[test]
    fn a_function_we_do_not_know_is_named_with_those_we_do() {
        let e = format!("{:?}", Activation::named("hidden_act", "silou").unwrap_err());
        assert!(
            e.contains("unknown hidden_act `silou`")
                && e.contains("did you mean `silu`?")
                && e.contains("gelu_pytorch_tanh"),
            "{e}"
        );
    }
}
