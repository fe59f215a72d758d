//! An adapter: a trainable change of the model's frozen linear modules.

use reprpo_plugin::prelude::*;

/// What `--adapter my-method` names.
// `reprpo list` and `reprpo explain my-method` show these texts.
#[adapter(
    name = "my-method",
    summary = "a change of each weight at its full rank",
    reference = "where it comes from: paper and section",
    explain = "y = (W + D)x + b    D [out in]\n\nD starts at 0, so the model starts unchanged. \
        Merged: W + D.",
    peft_type = "MY_METHOD"
)]
// Every field is on the command line as `--set adapter.FIELD=…`, and its comment is its help. A
// field without `#[default(…)]` has the default of its type.
pub struct MyMethod {
    /// The linear modules that are adapted: ends of names (`qkv_proj.q_proj`: a part of a fused
    /// one), a regular expression for whole names, or `all-linear`.
    #[default(["q_proj", "v_proj"].into())]
    pub target_modules: Targets,
    /// The blocks that are adapted, from 0; all where it is not given.
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for MyMethod {
    fn build(self) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self))
    }

    // The way back from the `adapter_config.json` of a run; what `peft_config` below adds to it is
    // read here.
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
    // Called once a module. Random values come from `init` alone, so that a seed gives the same
    // bytes everywhere.
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(MyMethodLinear(init.zeros(&[site.info.outputs, site.info.inputs]))))
    }
}

/// One module's change: D `[out in]`.
struct MyMethodLinear(Tensor);

impl AdaptedLinear for MyMethodLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, _train: bool) -> Result<Tensor> {
        // Your formula goes here: x is `[n in]`, one row a token, in the model's precision;
        // parameters are float32.
        Ok(base.forward(x)? + x.f_matmul(&self.0.to_kind(x.kind()).tr())?)
    }
    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("d", &self.0).along(Axis::Input(1))]
    }
    // And here: the frozen weights that compute the same.
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
    fn it_keeps_what_every_plugin_promises() {
        reprpo_plugin::testkit::registered();
    }

    #[test]
    fn forward_and_merge_are_the_formula() {
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
