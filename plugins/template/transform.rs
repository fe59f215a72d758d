//! A transform: a map from the states at a tap to the space in which a loss compares them.

use reprpo_plugin::prelude::*;

/// The transform that `--transform my-method` selects.
// `reprpo list` and `reprpo explain my-method` show the strings in this attribute.
#[transform(
    name = "my-method",
    summary = "a trainable scale of each coordinate",
    reference = "source of the method: paper and section",
    explain = "T(x) = e^s ⊙ x    s [h]\n\ns starts at 0, so that T is the identity at first. It is \
        trained together with the adapter."
)]
// Users set the fields with `--set transform.FIELD=…`; their doc comments become the help texts.
// Without `#[default(…)]`, a field defaults to the default value of its type.
pub struct MyMethod {
    /// Initial standard deviation of the logarithms of the scales, at least 0.
    pub spread: f64,
}

impl TransformPlugin for MyMethod {
    // Called once per tap. Only draw random values from `init`, so that the same seed gives the
    // same parameters on every machine.
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        if !(self.spread >= 0.0 && self.spread.is_finite()) {
            return Err(Error::new(format!(
                "`transform.spread` must be 0 or more, got {}",
                self.spread
            )));
        }
        Ok(Box::new(MyMethodMap { s: init.normal("s", &[cx.width], self.spread) }))
    }
}

/// The transform of one tap.
struct MyMethodMap {
    s: Tensor,
}

impl Transform for MyMethodMap {
    fn forward(&self, h: &Tensor, _around: &Around) -> Result<Tensor> {
        // Your formula goes here: h is `[… h]`, with one row per token or per completion. The
        // result can have a different width.
        Ok(h * self.s.exp())
    }

    // Return an empty list if nothing is trained.
    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("s", &self.s)]
    }

    // True if T(ax + by) = aT(x) + bT(y). The engine then pools states before applying T, which is
    // cheaper.
    fn linear(&self) -> bool {
        true
    }

    // True if T preserves lengths and angles.
    fn orthogonal(&self) -> bool {
        false
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_passes_the_conformance_tests() {
        reprpo_plugin::testkit::registered();
    }

    #[test]
    fn each_coordinate_has_its_own_scale() {
        let map = MyMethodMap { s: Tensor::from_slice(&[0.0, 2f64.ln()]) };
        let y = map
            .forward(&Tensor::from_slice(&[3.0, 5.0]).reshape([1, 2]), &Around::default())
            .unwrap();
        assert_eq!(Vec::<f64>::try_from(y.squeeze()).unwrap(), [3.0, 10.0]);
    }
}
