//! A linear module and helpers for the tests of adapters.

use reprpo_plugin::prelude::*;
use reprpo_plugin::registry::AdapterEntry;
use reprpo_plugin::serde_json::{Map, Value, json};
use reprpo_plugin::tch::{self, Device};
use reprpo_plugin::testkit::random;

pub const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Returns a float64 linear module called `name`, with a bias and random weights.
pub fn module(name: &str, inputs: i64, outputs: i64) -> (LinearInfo, Frozen) {
    let info =
        LinearInfo { name: format!("model.layers.0.{name}"), layer: Some(0), inputs, outputs };
    (info, Frozen::new(random(&[outputs, inputs]), Some(random(&[outputs]))))
}

/// Attaches `adapter` to a module.
pub fn attach(
    adapter: &dyn Adapter,
    (info, frozen): &(LinearInfo, Frozen),
) -> Result<Box<dyn AdaptedLinear>> {
    let shared = adapter.shared(&[info], &mut Init::new(0, "", Kind::Double, Device::Cpu))?;
    adapter.attach(
        &LinearSite { info, frozen, shared: &shared, sources: &[] },
        &mut Init::new(0, &info.name, Kind::Double, Device::Cpu),
    )
}

/// Attaches an adapter to a `q_proj` with 8 inputs and 4 outputs.
pub fn attached<P: AdapterPlugin>(config: P) -> (Box<dyn AdaptedLinear>, Frozen) {
    let module = module("self_attn.q_proj", 8, 4);
    (attach(&*config.build().unwrap(), &module).unwrap(), module.1)
}

/// Returns the default configuration of an adapter. An adapter that is made of other adapters gets
/// targets, because it is attached without the others in tests of all adapters.
pub fn defaults(entry: &AdapterEntry) -> Map<String, Value> {
    let mut config = entry.about.defaults().unwrap();
    if entry.needs_sources() {
        config.insert("target_modules".to_owned(), json!(["q_proj", "v_proj"]));
    }
    config
}

/// Adds noise to every parameter, so that the adapter is no longer in its initial state.
pub fn disturb(parameters: &[Parameter]) {
    let _guard = tch::no_grad_guard();
    for p in parameters {
        let _ = p
            .tensor
            .shallow_clone()
            .f_add_(&(random(&p.tensor.size()) * 0.2).to_kind(p.tensor.kind()))
            .unwrap();
    }
}

/// Returns `n` random rows of width `h` in float64.
pub fn rows(n: i64, h: i64) -> Tensor {
    random(&[n, h])
}

/// Returns the largest absolute difference between `a` and `b`.
pub fn off(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Builds an adapter from an invalid configuration, and returns the error message.
///
/// # Panics
/// Panics if building succeeds.
pub fn refused<P: AdapterPlugin>(config: P) -> String {
    format!("{:?}", config.build().err().expect("`build` must fail"))
}
