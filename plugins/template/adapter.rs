//! An adapter: a trainable change to the model's frozen linear modules.

use reprpo_plugin::prelude::*;

/// The adapter that `--adapter my-method` selects.
// `reprpo list` and `reprpo explain my-method` show the strings in this attribute.
#[adapter(
    name = "my-method",
    summary = "a full-rank change to each weight matrix",
    reference = "source of the method: paper and section",
    explain = "y = (W + D)x + b    D [out in]\n\nD starts at 0, so the model is unchanged at \
        first. The merged weight is W + D.",
    peft_type = "MY_METHOD"
)]
// Users set the fields with `--set adapter.FIELD=…`; their doc comments become the help texts.
// Without `#[default(…)]`, a field defaults to the default value of its type.
pub struct MyMethod {
    /// The linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`.
    #[default(["q_proj", "v_proj"].into())]
    pub target_modules: Targets,
    /// The blocks to adapt, counted from 0. By default, all blocks are adapted.
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for MyMethod {
    fn build(self) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self))
    }

    // Reads the configuration from the `adapter_config.json` of a saved adapter, including the
    // fields that `peft_config` below adds to it.
    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft.get("layers_to_transform")?,
        })
    }
}

impl Adapter for MyMethod {
    fn peft_config(&self) -> String {
        "{}".to_owned()
    }

    // Called once per module. Only draw random values from `init`, so that the same seed gives
    // the same parameters on every machine.
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(MyMethodLinear(init.zeros(&[site.info.outputs, site.info.inputs]))))
    }
}

/// The change D `[out in]` to one module.
struct MyMethodLinear(Tensor);

impl AdaptedLinear for MyMethodLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, _train: bool) -> Result<Tensor> {
        // Your formula goes here: x is `[n in]`, with one row per token, in the model's precision.
        // Parameters are float32.
        Ok(base.forward(x)? + x.f_matmul(&self.0.to_kind(x.kind()).tr())?)
    }
    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("d", &self.0).along(Axis::Input(1))]
    }
    // Your formula goes here too: return a frozen module that computes the same outputs.
    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        Ok(base.with_weight(base.dense()?.to_kind(self.0.kind()).f_add(&self.0)?))
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
    fn forward_and_merge_agree_with_the_formula() {
        let square = |values: [f64; 4]| Tensor::from_slice(&values).reshape([2, 2]);
        let (adapted, base) = (
            MyMethodLinear(square([1.0, 2.0, 3.0, 4.0])),
            Frozen::new(square([1.0, 0.0, 0.0, 1.0]), None),
        );
        let x = Tensor::from_slice(&[1.0, 10.0]).reshape([1, 2]);
        for y in [
            adapted.forward(&x, &base, true).unwrap(),
            adapted.merge(&base).unwrap().forward(&x).unwrap(),
        ] {
            assert_eq!(Vec::<f64>::try_from(y.squeeze()).unwrap(), [1.0 + 21.0, 10.0 + 43.0]);
        }
    }
}
