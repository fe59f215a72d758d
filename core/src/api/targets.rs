//! Which modules an adapter changes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LinearInfo, ModelInfo};
use crate::error::{Error, Result};

/// Which linear modules get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// Names or ends of names: `q_proj` fits `model.layers.0.self_attn.q_proj`.
    Suffixes(Vec<String>),
    /// `all-linear`, or a regular expression that has to match a whole name.
    Pattern(String),
}

impl Targets {
    /// The modules it means, in the model's order.
    ///
    /// # Errors
    /// A pattern that is no regular expression, or a target that fits no module.
    pub fn resolve<'m>(&self, model: &'m ModelInfo) -> Result<Vec<&'m LinearInfo>> {
        let ends = |name: &str, suffix: &str| name == suffix || name.strip_suffix(suffix).is_some_and(|head| head.ends_with('.'));
        match self {
            Targets::Pattern(p) if p == "all-linear" => Ok(model.linears.iter().collect()),
            Targets::Pattern(p) => {
                let regex = regex::Regex::new(&format!("^(?:{p})$")).map_err(|e| {
                    Error::new(format!("target_modules `{p}` is not a regular expression"))
                        .because(e)
                        .hint("give a list of names, a regular expression or `all-linear`")
                })?;
                let hits: Vec<_> = model.linears.iter().filter(|l| regex.is_match(&l.name)).collect();
                if hits.is_empty() { Err(Self::no_module(p, model)) } else { Ok(hits) }
            }
            Targets::Suffixes(list) => {
                for suffix in list {
                    if !model.linears.iter().any(|l| ends(&l.name, suffix)) {
                        return Err(Self::no_module(suffix, model));
                    }
                }
                Ok(model.linears.iter().filter(|l| list.iter().any(|s| ends(&l.name, s))).collect())
            }
        }
    }

    fn no_module(given: &str, model: &ModelInfo) -> Error {
        Error::unknown("target module", given, model.linears.iter().map(|l| l.name.rsplit('.').next().unwrap_or(&l.name)))
    }
}
