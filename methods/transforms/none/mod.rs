//! The identity.

use reprpo_plugin::prelude::*;

/// The identity.
pub struct Identity;

/// Fields of `transform` with `name = "none"`: there are none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct IdentityConfig {}

impl Plugin for Identity {
    const NAME: &'static str = "none";
    const SUMMARY: &'static str = "no transform: losses compare the activations themselves";
    const REFERENCE: &'static str = "this project";
    const EXPLAIN: &'static str = "\
T(x) = x

Nothing is trained.";
    type Config = IdentityConfig;
}

impl TransformPlugin for Identity {
    fn build(config: IdentityConfig, _: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        Ok(Box::new(config))
    }
}

impl Transform for IdentityConfig {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h.shallow_clone())
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        true
    }
}

register!(transform: Identity);
