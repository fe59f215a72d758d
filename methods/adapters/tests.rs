//! Invariants of all adapters, tested on one module or one block.

use reprpo_plugin::api::PeftFile;
use reprpo_plugin::registry::{AdapterEntry, Registry};
use reprpo_plugin::serde_json::{self, Value};
use reprpo_plugin::tch::Device;
use reprpo_plugin::testkit::random;

use super::fixture::{defaults, disturb, off};
use super::*;

/// Input and output widths of the modules. They are multiples of the default block sizes of all
/// adapters.
const INPUTS: i64 = 64;
const OUTPUTS: i64 = 32;

/// Adapters with tensors that are saved with a module, but not trained.
const FIXED: [(&str, &str); 4] = [
    ("delora", "delora_w_norm"),
    ("shira", "shira_indices"),
    ("weight-steering", "weight_delta"),
    ("weight-steering", "bias_delta"),
];

fn model() -> ModelInfo {
    let names = [
        ("self_attn.q_proj", OUTPUTS),
        ("self_attn.k_proj", OUTPUTS),
        ("self_attn.v_proj", OUTPUTS),
        ("mlp.down_proj", OUTPUTS),
    ];
    let linears = (0..2)
        .flat_map(|k| {
            names.iter().map(move |&(name, outputs)| LinearInfo {
                name: format!("model.layers.{k}.{name}"),
                layer: Some(k),
                inputs: INPUTS,
                outputs,
            })
        })
        .collect();
    ModelInfo {
        architecture: "llama".to_owned(),
        layers: 2,
        hidden: INPUTS,
        heads: 4,
        head_dim: 16,
        vocab: 8,
        linears,
        parts: Vec::new(),
    }
}

/// An adapted module or block.
enum Place {
    Linear(Box<dyn AdaptedLinear>, Frozen),
    Block(Box<dyn AdaptedResidual>),
}

impl Place {
    fn parameters(&self) -> Vec<Parameter> {
        match self {
            Place::Linear(adapted, _) => adapted.parameters(),
            Place::Block(adapted) => adapted.parameters(),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Place::Linear(adapted, frozen) => {
                adapted.forward(x, &frozen.to_kind(x.kind()).unwrap(), false).unwrap()
            }
            Place::Block(adapted) => {
                let n = x.size()[0];
                let from_start = Tensor::arange(n, (Kind::Int64, Device::Cpu));
                adapted
                    .forward(x, &PromptPlaces { from_end: (n - 1) - &from_start, from_start })
                    .unwrap()
            }
        }
    }
}

/// Builds the adapter with its default settings.
fn adapter(entry: &AdapterEntry) -> Box<dyn Adapter> {
    entry.build(&Value::Object(defaults(entry)).to_string()).unwrap()
}

/// Attaches the adapter to the first module or block that it targets.
fn attached(entry: &AdapterEntry, seed: u64, kind: Kind) -> Place {
    let (adapter, model) = (adapter(entry), model());
    let init = |scope: &str| Init::new(seed, scope, kind, Device::Cpu);
    if let Some(block) = adapter.blocks(&model).unwrap().first() {
        return Place::Block(
            adapter
                .attach_block(*block, &model, &mut init(&Site::Block(*block).to_string()))
                .unwrap(),
        );
    }
    let targets = adapter.targets().resolve(&model).unwrap();
    let shared = adapter.shared(&targets, &mut init("")).unwrap();
    let info = targets[0];
    let frozen = Frozen::new(
        random(&[info.outputs, info.inputs]).to_kind(kind),
        Some(random(&[info.outputs]).to_kind(kind)),
    );
    let adapted = adapter
        .attach(
            &LinearSite { info, frozen: &frozen, shared: &shared, sources: &[] },
            &mut init(&info.name),
        )
        .unwrap();
    Place::Linear(adapted, frozen)
}

fn for_every_adapter(check: impl Fn(&'static AdapterEntry)) {
    let registry = Registry::builtin().unwrap();
    let mut tested = 0;
    for entry in registry.all::<AdapterEntry>() {
        println!("{}", entry.about.name);
        check(entry);
        tested += 1;
    }
    assert!(tested > 0);
}

fn x(kind: Kind) -> Tensor {
    random(&[5, INPUTS]).to_kind(kind)
}

#[test]
fn every_adapter_has_an_explanation_and_describes_every_field() {
    for_every_adapter(|entry| {
        assert!(
            !entry.about.summary.is_empty()
                && !entry.about.reference.is_empty()
                && entry.about.explain.lines().count() > 2
        );
        let schema = entry.about.schema().unwrap();
        let properties = schema["properties"].as_object().unwrap();
        for field in entry.about.defaults().unwrap().keys() {
            assert!(
                properties[field]["description"].as_str().is_some_and(|d| d.len() > 10),
                "{field}"
            );
        }
    });
}

#[test]
fn every_trained_parameter_is_a_leaf_with_the_declared_axis_width() {
    for_every_adapter(|entry| {
        let place = attached(entry, 0, Kind::Double);
        disturb(&place.parameters());
        // The factors matter for rotations of the outputs, which keep the sum of squares.
        let y = place.forward(&x(Kind::Double));
        if adapter(entry).is_trainable() {
            (y.square() * random(&y.size())).sum(Kind::Double).backward();
        }
        let mut keys = Vec::new();
        let (trained, fixed): (Vec<_>, Vec<_>) =
            place.parameters().into_iter().partition(|p| p.tensor.requires_grad());
        let fixed: Vec<_> = fixed.iter().map(|p| p.key.as_str()).collect();
        assert!(
            fixed
                == FIXED
                    .iter()
                    .filter(|(of, _)| *of == entry.about.name)
                    .map(|f| f.1)
                    .collect::<Vec<_>>(),
            "{fixed:?}"
        );
        for p in trained {
            assert!(p.tensor.is_leaf() && p.tensor.kind() == Kind::Double, "{}", p.key);
            let gradient = p.tensor.grad();
            assert!(
                gradient.defined() && gradient.abs().max().double_value(&[]) > 1e-9,
                "{} has no gradient",
                p.key
            );
            if let Some(axis) = p.axis {
                let width = match (axis, &place) {
                    (Axis::Output(_), Place::Linear(..)) => OUTPUTS,
                    _ => INPUTS,
                };
                assert_eq!(p.tensor.size()[axis.dim()], width, "{}", p.key);
            }
            assert!(!keys.contains(&p.key), "{} occurs twice", p.key);
            keys.push(p.key);
        }
    });
}

#[test]
fn every_merged_module_computes_the_same_as_the_adapted_one() {
    for_every_adapter(|entry| {
        let place = attached(entry, 0, Kind::Double);
        disturb(&place.parameters());
        let Place::Linear(adapted, frozen) = &place else { return };
        let (x, before) = (x(Kind::Double), frozen.dense().unwrap().copy());
        let merged = adapted.merge(frozen).unwrap();
        assert!(off(&merged.forward(&x).unwrap(), &place.forward(&x)) < 1e-10);
        assert!(off(&merged.dense().unwrap(), &before) > 1e-3, "nothing was merged");
        assert!(frozen.dense().unwrap().equal(&before), "the frozen weights changed");
        let half = frozen.to_kind(Kind::BFloat16).unwrap();
        let merged = adapted.merge(&half).unwrap();
        assert_eq!(
            (merged.kind(), merged.bias().unwrap().kind()),
            (Kind::BFloat16, Kind::BFloat16)
        );
    });
}

#[test]
fn every_float32_adapter_works_on_a_model_in_bf16() {
    for_every_adapter(|entry| {
        let place = attached(entry, 0, Kind::Float);
        disturb(&place.parameters());
        let x = x(Kind::Float);
        let (full, half) = (place.forward(&x), place.forward(&x.to_kind(Kind::BFloat16)));
        assert_eq!(half.kind(), Kind::BFloat16);
        let off = off(&half.to_kind(Kind::Float), &full) / full.abs().max().double_value(&[]);
        assert!(off < 0.05, "off by {off}");
    });
}

#[test]
fn copying_the_parameters_copies_the_adapter() {
    for_every_adapter(|entry| {
        let (one, other) = (attached(entry, 0, Kind::Double), attached(entry, 0, Kind::Double));
        disturb(&one.parameters());
        for (from, to) in one.parameters().iter().zip(other.parameters()) {
            assert_eq!((&from.key, from.tensor.size()), (&to.key, to.tensor.size()));
            to.tensor.detach().copy_(&from.tensor);
        }
        let x = x(Kind::Double);
        let other = match (&one, other) {
            // Both adapters use the same frozen module, so that only the adapters are compared.
            (Place::Linear(_, frozen), Place::Linear(adapted, _)) => {
                Place::Linear(adapted, frozen.to_kind(Kind::Double).unwrap())
            }
            (_, other) => other,
        };
        assert!(off(&one.forward(&x), &other.forward(&x)) == 0.0);
    });
}

#[test]
fn every_adapter_reads_the_configuration_that_it_writes() {
    for_every_adapter(|entry| {
        let adapter = adapter(entry);
        let mut config: serde_json::Map<String, Value> =
            serde_json::from_str(&adapter.peft_config()).unwrap();
        // Add the fields that the host writes for every adapter.
        config
            .insert("target_modules".to_owned(), serde_json::to_value(adapter.targets()).unwrap());
        config.insert(
            "layers_to_transform".to_owned(),
            serde_json::to_value(adapter.layers_to_transform()).unwrap(),
        );
        config.insert("peft_version".to_owned(), "0.21.2".into());
        let read = |json: &str| entry.from_peft(PeftFile { json, shapes: &[] });
        let (again, warnings) = read(&Value::Object(config).to_string()).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let again: Value = serde_json::from_str(&again).unwrap();
        assert_eq!(again, Value::Object(defaults(entry)));
        assert!(read("{}").is_err(), "an empty configuration must be rejected");
    });
}

#[test]
fn an_alias_is_another_name_of_the_same_adapter() {
    let registry = Registry::builtin().unwrap();
    assert_eq!(registry.adapter("ortho").unwrap().about.name, "oft");
}
