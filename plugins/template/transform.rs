//! A transform: a map of the states at a tap into the space where a loss compares them.

use reprpo_plugin::prelude::*;

/// What `--transform my-method` names.
// `reprpo list` and `reprpo explain my-method` show these texts.
#[transform(
    name = "my-method",
    summary = "a trainable scale of each coordinate",
    reference = "where it comes from: paper and section",
    explain = "T(x) = e^s ⊙ x    s [h]\n\ns starts at 0, so states are compared as they are, and \
        is trained with the adapter."
)]
// Every field is on the command line as `--set transform.FIELD=…`, and its comment is its help. A
// field without `#[default(…)]` has the default of its type.
pub struct MyMethod {
    /// How much the scales differ at the start, as the standard deviation of their logarithm, 0 or
    /// more.
    pub spread: f64,
}

impl TransformPlugin for MyMethod {
    // Called once a tap. Random values come from `init` alone, so that a seed gives the same bytes
    // everywhere.
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        if !(self.spread >= 0.0 && self.spread.is_finite()) {
            return Err(Error::new(format!(
                "`transform.spread` is {}, but has to be 0 or more",
                self.spread
            )));
        }
        Ok(Box::new(MyMethodMap { s: init.normal("s", &[cx.width], self.spread) }))
    }
}

/// The map of one tap.
struct MyMethodMap {
    s: Tensor,
}

impl Transform for MyMethodMap {
    fn forward(&self, h: &Tensor, _around: &Around) -> Result<Tensor> {
        // Your formula goes here: h is `[… h]`, one row a token or a completion; the result may
        // have another width.
        Ok(h * self.s.exp())
    }

    // None where nothing is trained.
    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("s", &self.s)]
    }

    // T(ax + by) = aT(x) + bT(y)? Then states are pooled before they are mapped, which is cheaper.
    fn linear(&self) -> bool {
        true
    }

    // Does T keep lengths and angles?
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
    fn it_keeps_what_every_plugin_promises() {
        reprpo_plugin::testkit::registered();
    }

    #[test]
    fn each_coordinate_has_a_scale_of_its_own() {
        let map = MyMethodMap { s: Tensor::from_slice(&[0.0, 2f64.ln()]) };
        let y = map
            .forward(&Tensor::from_slice(&[3.0, 5.0]).reshape([1, 2]), &Around::default())
            .unwrap();
        assert_eq!(Vec::<f64>::try_from(y.squeeze()).unwrap(), [3.0, 10.0]);
    }
}
