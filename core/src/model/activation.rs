//! The activation functions of MLPs, and the names that configurations use for them.

use tch::Tensor;

use crate::error::{Error, Result};

/// An elementwise activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// x·Φ(x)
    Gelu,
    /// x·Φ(x), with the tanh approximation of Φ.
    GeluTanh,
    /// max(x, 0)
    Relu,
}

/// The names that configurations use for the functions, including synonyms.
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
    /// Looks up an activation by name. `field` is the field of the configuration that contains the
    /// name.
    ///
    /// # Errors
    /// Fails if no activation has that name. The error lists the valid names.
    pub fn named(field: &str, name: &str) -> Result<Self> {
        let known = NAMES.iter().find(|(n, _)| *n == name);
        known.map(|(_, a)| *a).ok_or_else(|| Error::unknown(field, name, NAMES.map(|(n, _)| n)))
    }

    /// Applies the function to each element of x.
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
    fn every_name_computes_the_function_of_that_name() {
        // Values at −1, 0.5 and 2, computed in float64 with the formulas of transformers' `ACT2FN`.
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
    fn the_error_for_an_unknown_function_lists_the_known_ones() {
        let e = format!("{:?}", Activation::named("hidden_act", "silou").unwrap_err());
        assert!(
            e.contains("unknown hidden_act `silou`")
                && e.contains("did you mean `silu`?")
                && e.contains("gelu_pytorch_tanh"),
            "{e}"
        );
    }
}
