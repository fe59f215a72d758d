//! Adapters: trainable changes of frozen linear modules, on disk as PEFT has them.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::{LinearInfo, ModelInfo, Plugin};
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

/// A frozen linear module as an adapter sees it: y = xWᵀ + b.
#[derive(Debug)]
pub struct Frozen {
    /// W `[out in]`.
    pub weight: Tensor,
    /// b `[out]`.
    pub bias: Option<Tensor>,
}

impl Frozen {
    /// y of x `[n in]`.
    ///
    /// # Errors
    /// Where shapes or kinds do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

/// The module that an adapter is attached to.
#[derive(Debug)]
pub struct LinearSite<'a> {
    /// Its name and widths.
    pub info: &'a LinearInfo,
    /// Its frozen weights.
    pub frozen: &'a Frozen,
}

/// A trainable tensor, with the name it has on disk.
#[derive(Debug)]
pub struct Parameter {
    /// PEFT's key below the module's name, as `lora_A.weight`.
    pub key: String,
    /// A leaf that requires a gradient; shares its memory with the adapter's own.
    pub tensor: Tensor,
}

impl Parameter {
    /// Shares `tensor` under the name `key`.
    pub fn new(key: &str, tensor: &Tensor) -> Self {
        Self { key: key.to_owned(), tensor: tensor.shallow_clone() }
    }
}

/// Random initial values that depend on the seed and on the tensor's own name alone: adding a module, moving to
/// another device or computing in another precision changes no other tensor.
#[derive(Debug)]
pub struct Init {
    seed: u64,
    scope: String,
    kind: Kind,
    device: Device,
}

impl Init {
    /// Values for parameters below `scope`, in `kind` on `device`.
    pub fn new(seed: u64, scope: &str, kind: Kind, device: Device) -> Self {
        Self { seed, scope: scope.to_owned(), kind, device }
    }

    fn rng(&self, key: &str) -> ChaCha8Rng {
        let digest = Sha256::new().chain_update(self.seed.to_le_bytes()).chain_update(&self.scope).chain_update([0]).chain_update(key).finalize();
        ChaCha8Rng::from_seed(digest.into())
    }

    fn leaf(&self, values: &[f64], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).reshape(shape).to_kind(self.kind).to_device(self.device).set_requires_grad(true)
    }

    /// A leaf of zeros.
    pub fn zeros(&mut self, shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (self.kind, self.device)).set_requires_grad(true)
    }

    /// A leaf of ones.
    pub fn ones(&mut self, shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (self.kind, self.device)).set_requires_grad(true)
    }

    /// A leaf of independent values, uniform in [−bound, bound).
    pub fn uniform(&mut self, key: &str, shape: &[i64], bound: f64) -> Tensor {
        let mut rng = self.rng(key);
        let n = shape.iter().product::<i64>() as usize;
        let values: Vec<f64> = (0..n).map(|_| (rng.random::<f64>() * 2.0 - 1.0) * bound).collect();
        self.leaf(&values, shape)
    }

    /// A leaf of independent normal values.
    pub fn normal(&mut self, key: &str, shape: &[i64], std: f64) -> Tensor {
        let mut rng = self.rng(key);
        let n = shape.iter().product::<i64>() as usize;
        // Box–Muller, both values of a pair used.
        let mut values = Vec::with_capacity(n + 1);
        while values.len() < n {
            let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
            let (radius, angle) = ((-2.0 * u.ln()).sqrt() * std, std::f64::consts::TAU * v);
            values.push(radius * angle.cos());
            values.push(radius * angle.sin());
        }
        values.truncate(n);
        self.leaf(&values, shape)
    }

    /// A leaf as `torch.nn.init.kaiming_uniform_(a=√5)` fills it: uniform in ±1/√fan_in.
    pub fn kaiming_uniform(&mut self, key: &str, shape: &[i64], fan_in: i64) -> Tensor {
        self.uniform(key, shape, 1.0 / (fan_in as f64).sqrt())
    }
}

/// One linear module with its adapter.
pub trait AdaptedLinear: Send {
    /// y of x `[n in]`, base and adapter together. Parameters are float32 whatever x is; a lower precision casts them.
    ///
    /// # Errors
    /// Where shapes or kinds do not fit.
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor>;

    /// What is trained, in a fixed order.
    fn parameters(&self) -> Vec<Parameter>;

    /// W' `[out in]` of a linear module without adapter that computes the same, in the kind of `weight`.
    ///
    /// # Errors
    /// Where the adapter cannot be expressed as one.
    fn merge(&self, weight: &Tensor) -> Result<Tensor>;
}

/// A kind of adapter, configured.
pub trait Adapter: Send {
    /// The modules it changes.
    fn targets(&self) -> Targets;

    /// The blocks it changes; `None`: all.
    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        None
    }

    /// The adapter of one module.
    ///
    /// # Errors
    /// A configuration that does not fit the module.
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>>;

    /// The method's own fields of PEFT's `adapter_config.json`, as a JSON object. The engine adds `peft_type`,
    /// `target_modules` and what all methods share.
    fn peft_config(&self) -> String;
}

/// An `adapter_config.json` while a method reads it.
#[derive(Debug)]
pub struct PeftConfig(serde_json::Map<String, serde_json::Value>);

impl PeftConfig {
    /// Of its text.
    ///
    /// # Errors
    /// Text that is no JSON object.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).map(Self).map_err(|e| Error::new("the adapter_config.json is no JSON object").because(e))
    }

    /// The field's value; `None` where it is absent or null.
    ///
    /// # Errors
    /// A value of another type.
    pub fn get<T: serde::de::DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        match self.0.get(field) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(v) => serde_json::from_value(v.clone()).map(Some).map_err(|e| Error::new(format!("`{field}` of the adapter_config.json is `{v}`")).because(e)),
        }
    }

    /// The field's value.
    ///
    /// # Errors
    /// Where it is absent, or of another type.
    pub fn need<T: serde::de::DeserializeOwned>(&self, field: &str) -> Result<T> {
        self.get(field)?.ok_or_else(|| Error::new(format!("the adapter_config.json has no `{field}`")))
    }

    /// Fields that change what the adapter computes in a way that is not supported have to be absent, null, false,
    /// empty or `none`.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn must_be_off(&self, fields: &[&str]) -> Result<()> {
        use serde_json::Value;
        for field in fields {
            let off = match self.0.get(*field) {
                None | Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::String(s)) => s.is_empty() || s == "none",
                Some(Value::Array(a)) => a.is_empty(),
                Some(Value::Object(o)) => o.is_empty(),
                Some(_) => false,
            };
            if !off {
                return Err(Error::new(format!("the adapter_config.json has `{field}` = {}, which is not supported", self.0[*field])));
            }
        }
        Ok(())
    }
}

/// How an [`Adapter`] is made from its configuration.
pub trait AdapterPlugin: Plugin {
    /// `peft_type` of its `adapter_config.json`.
    const PEFT_TYPE: &'static str;

    /// Checks the configuration and makes the adapter.
    ///
    /// # Errors
    /// A value out of range.
    fn build(config: Self::Config) -> Result<Box<dyn Adapter>>;

    /// The configuration that an `adapter_config.json` stands for.
    ///
    /// # Errors
    /// A field that this method does not know how to honour.
    fn from_peft(json: &str) -> Result<Self::Config>;
}
