//! Compares adapters in a complete model with values computed by PEFT: logits, gradients, merged
//! weights and files.

use std::collections::BTreeSet;
use std::path::Path;

use crate::golden::{error, own, roots};
use reprpo_core::model::pass::Request;
use reprpo_core::model::peft::{self, Saved};
use reprpo_core::model::stream::Stream;
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::{AdapterEntry, Registry};
use reprpo_core::weights::{ModelFiles, read_safetensors};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Map, Value};
use reprpo_plugin::tch::{self, Device};
use reprpo_plugin::testkit::random;

fn logits(model: &Model, adapted: Option<&Adapted>, stream: &Stream) -> Result<Tensor> {
    let reached = model.forward(stream, Request { adapted, hidden: true, ..Request::default() })?;
    model.logits(&reached.hidden.expect("the hidden states were requested"))
}

fn assert_agrees_with_peft(name: &str) {
    for root in roots() {
        assert_agrees_with_peft_in(&root, name);
    }
}

/// An adapter whose outputs and gradients agree with PEFT's.
struct Compared {
    model: Model,
    adapter: Box<dyn Adapter>,
    adapted: Adapted,
    stream: Stream,
    entry: &'static AdapterEntry,
    /// PEFT's logits.
    expected: Tensor,
    /// Largest error of the logits, the gradients and the merged logits.
    errors: [f64; 3],
}

/// Compares the logits, gradients and merged weights of a saved adapter with those of PEFT.
fn compared_with_peft(golden: &Path, name: &str) -> Compared {
    let (dir, files) =
        (golden.join("peft").join(name), ModelFiles::open(&golden.join("models/llama")).unwrap());
    let model = Model::load(&files, Kind::Float, Device::Cpu).unwrap();
    let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
    let (ids, mask) = (&io["input_ids"], &io["attention_mask"]);
    let stream = Stream::from_padded(ids, mask, Device::Cpu).unwrap();
    let real = mask.reshape([-1]).nonzero().squeeze_dim(1);
    let rows = |name: &str| io[name].reshape([-1, model.info().vocab]).index_select(0, &real);

    let saved = Saved::read(&dir, &Registry::builtin().unwrap()).unwrap();
    let adapter = saved.entry.build(&Value::Object(saved.config).to_string()).unwrap();
    let adapted = Adapted::attach(&*adapter, &model, model.info().layers, 0).unwrap();
    let start = logits(&model, Some(&adapted), &stream).unwrap();
    assert!(error(&logits(&model, None, &stream).unwrap(), &rows("base_logits")) < 1e-4);
    // With an odd number of reflections or with Gram–Schmidt, HRA cannot start as the identity.
    assert_eq!(
        error(&start, &rows("base_logits")) < 1e-4,
        !["hra_odd_all", "hra_gs"].contains(&name)
    );
    adapted.restore(&saved.values).unwrap();

    let ours = logits(&model, Some(&adapted), &stream).unwrap();
    assert!(
        error(&ours, &rows("logits")) < 1e-4,
        "{name}: logits off by {}",
        error(&ours, &rows("logits"))
    );

    // Our stream does not contain padding, so no mask is needed to get the same loss as PEFT.
    let loss = ours.square().sum(Kind::Float) / (real.size()[0] * model.info().vocab) as f64;
    assert!(error(&loss.reshape(io["loss"].size()), &io["loss"]) < 1e-4);
    loss.backward();
    let (parameters, mut worst) = (adapted.parameters(), 0.0f64);
    assert_eq!(parameters.len(), io.keys().filter(|k| k.starts_with("grad.")).count());
    for (key, tensor) in parameters {
        // The expected gradients are stored under PEFT's parameter names. Some of these names end
        // with `.weight`, which PEFT omits in adapter files.
        let reference = ["", ".weight"]
            .iter()
            .find_map(|end| io.get(&format!("grad.base_model.model.{key}{end}")));
        let off = error(&tensor.grad(), reference.expect("PEFT's gradient"));
        worst = worst.max(off);
        assert!(off < 1e-3, "adapter {name}: the gradient of {key} is off by {off}");
    }

    let _guard = tch::no_grad_guard();
    let mut tensors = files.load(Kind::Float, Device::Cpu).unwrap();
    for module in adapted.names() {
        let (frozen, adapter) = (model.frozen(module).unwrap(), adapted.get(module).unwrap());
        let x = random(&[5, frozen.inputs()]).to_kind(Kind::Float);
        let merged = adapter.merge(&frozen).unwrap();
        let off =
            error(&merged.forward(&x).unwrap(), &adapter.forward(&x, &frozen, false).unwrap());
        assert!(off < 1e-4, "adapter {name}: the merged {module} is off by {off}");
        tensors.insert(format!("{module}.weight"), merged.dense().unwrap());
    }
    let merged = Model::from_tensors(files.config(), tensors, Kind::Float, Device::Cpu).unwrap();
    let merged = error(&logits(&merged, None, &stream).unwrap(), &rows("merged_logits"));
    assert!(merged < 1e-4, "adapter {name}: the merged logits are off by {merged}");
    let expected = rows("logits");
    let errors = [error(&ours, &expected), worst, merged];
    println!("adapter {name}: errors of the logits, gradients and merged logits: {errors:?}");
    Compared { model, adapter, adapted, stream, entry: saved.entry, expected, errors }
}

/// Also compares the file that is written. Returns the largest errors.
fn assert_agrees_with_peft_in(golden: &Path, name: &str) -> [f64; 3] {
    let Compared { model, adapter, adapted, stream, entry, expected, errors } =
        compared_with_peft(golden, name);
    let _guard = tch::no_grad_guard();
    let dir = golden.join("peft").join(name);
    let folder = tempfile::tempdir().unwrap();
    peft::write(folder.path(), entry, &*adapter, &adapted, &model, &"llama".into()).unwrap();
    let file = "adapter_model.safetensors";
    assert!(
        std::fs::read(folder.path().join(file)).unwrap() == std::fs::read(dir.join(file)).unwrap(),
        "adapter {name}: the file differs from PEFT's file"
    );
    let fields = |dir: &Path| -> BTreeSet<String> {
        let config: Map<String, Value> =
            serde_json::from_slice(&std::fs::read(dir.join("adapter_config.json")).unwrap())
                .unwrap();
        config.into_iter().map(|(field, _)| field).collect()
    };
    let stray: Vec<String> = fields(folder.path()).difference(&fields(&dir)).cloned().collect();
    assert!(stray.is_empty(), "adapter {name}: PEFT does not know the fields {stray:?}");
    let again = Saved::read(folder.path(), &Registry::builtin().unwrap()).unwrap();
    assert_eq!(again.entry.about.name, entry.about.name);
    let fresh = again.entry.build(&Value::Object(again.config).to_string()).unwrap();
    let fresh = Adapted::attach(&*fresh, &model, model.info().layers, 1).unwrap();
    fresh.restore(&again.values).unwrap();
    assert!(error(&logits(&model, Some(&fresh), &stream).unwrap(), &expected) < 1e-4);
    errors
}

/// The values in the shared folder only have some of the adapters.
fn assert_agrees_closely_with_peft(name: &str) {
    for root in roots().into_iter().filter(|root| root.join("peft").join(name).exists()) {
        let errors = assert_agrees_with_peft_in(&root, name);
        assert!(errors.iter().all(|off| *off < 1e-5), "adapter {name}: {errors:?}");
    }
}

#[test]
fn lora_agrees_with_peft() {
    assert_agrees_with_peft("lora");
}

#[test]
fn lora_on_every_module_agrees_with_peft() {
    assert_agrees_with_peft("lora_all");
}

#[test]
fn rslora_agrees_with_peft() {
    assert_agrees_with_peft("rslora");
}

#[test]
fn hra_agrees_with_peft() {
    assert_agrees_with_peft("hra");
}

#[test]
fn hra_with_an_odd_rank_agrees_with_peft() {
    assert_agrees_with_peft("hra_odd_all");
}

#[test]
fn dora_agrees_with_peft() {
    assert_agrees_with_peft("dora");
}

#[test]
fn hra_with_gram_schmidt_agrees_with_peft() {
    assert_agrees_with_peft("hra_gs");
}

#[test]
fn oft_agrees_with_peft() {
    assert_agrees_with_peft("oft");
}

#[test]
fn oft_with_the_power_series_agrees_with_peft() {
    assert_agrees_with_peft("oft_neumann");
}

#[test]
fn boft_agrees_with_peft() {
    // This file was written by PEFT without its CUDA extension. The saved configuration requests
    // two butterfly factors, but PEFT only trained one.
    assert_agrees_with_peft("boft");
}

#[test]
fn ia3_agrees_with_peft() {
    assert_agrees_with_peft("ia3");
}

#[test]
fn vera_agrees_with_peft() {
    assert_agrees_with_peft("vera");
}

#[test]
fn shira_agrees_with_peft() {
    assert_agrees_closely_with_peft("shira");
}

/// PEFT on Windows stores the places as float32.
#[test]
fn shira_reads_places_in_float32_and_rejects_places_that_do_not_exist() {
    let Compared { model, adapter, stream, expected, .. } = compared_with_peft(&own(), "shira");
    let saved = Saved::read(&own().join("peft/shira"), &Registry::builtin().unwrap()).unwrap();
    let _guard = tch::no_grad_guard();
    let fresh = Adapted::attach(&*adapter, &model, model.info().layers, 1).unwrap();
    let float = saved.values.iter().map(|(key, t)| (key.clone(), t.to_kind(Kind::Float)));
    fresh.restore(&float.collect()).unwrap();
    assert!(error(&logits(&model, Some(&fresh), &stream).unwrap(), &expected) < 1e-5);
    let key = "model.layers.1.self_attn.v_proj.shira_indices";
    let _ = saved.values[key].get(0).get(0).fill_(16);
    let e = format!("{:?}", fresh.restore(&saved.values).unwrap_err());
    assert!(
        e.contains("cannot restore the adapter of `model.layers.1.self_attn.v_proj`")
            && e.contains("the row 16, but the module only has rows 0 to 15"),
        "{e}"
    );
}

#[test]
fn road_with_each_variant_agrees_with_peft() {
    assert_agrees_closely_with_peft("road_1");
    assert_agrees_closely_with_peft("road_2");
    assert_agrees_closely_with_peft("road_4");
}

#[test]
fn delora_agrees_with_peft() {
    assert_agrees_closely_with_peft("delora");
}

#[test]
fn miss_with_each_variant_and_with_padding_agrees_with_peft() {
    assert_agrees_closely_with_peft("miss");
    assert_agrees_closely_with_peft("miss_bat");
    assert_agrees_closely_with_peft("miss_odd");
    assert_agrees_closely_with_peft("miss_mini");
}

/// PEFT subtracts the initial product from the weights of the base model. The file that it saves
/// without a conversion only fits these weights.
///
/// The singular vectors of a matrix in float32 differ in the last digits between processors and
/// numbers of threads. PEFT wrote the file with one thread, so the bound of pissa is wider.
#[test]
fn pissa_and_olora_agree_with_peft() {
    for (name, bound) in [("pissa", 5e-5), ("olora", 1e-5)] {
        let Compared { model, adapter, adapted, stream, entry, expected, errors } =
            compared_with_peft(&own(), name);
        assert!(errors.iter().all(|off| *off < bound), "adapter {name}: {errors:?}");
        let _guard = tch::no_grad_guard();
        let folder = tempfile::tempdir().unwrap();
        peft::write(folder.path(), entry, &*adapter, &adapted, &model, &"llama".into()).unwrap();
        let registry = Registry::builtin().unwrap();
        let [ours, theirs] =
            [folder.path().to_owned(), own().join("peft").join(name).join("converted")]
                .map(|dir| Saved::read(&dir, &registry).unwrap());
        assert!(
            ["r", "lora_alpha", "use_rslora", "init", "target_modules"]
                .iter()
                .all(|field| ours.config[*field] == theirs.config[*field]),
            "{:?} {:?}",
            ours.config,
            theirs.config
        );
        assert_eq!(ours.config["init"], "zero");
        // The singular vectors and the columns of Q are only determined up to their signs, so
        // compare products.
        let mut worst = 0.0f64;
        for (key, a) in ours.values.iter().filter(|(key, _)| key.ends_with("lora_A.weight")) {
            let other = key.replace("lora_A", "lora_B");
            let (their_a, b) = (&theirs.values[key], &ours.values[&other]);
            assert_eq!((a.size(), b.size()), (their_a.size(), theirs.values[&other].size()));
            worst = worst.max(error(&b.matmul(a), &theirs.values[&other].matmul(their_a)));
        }
        assert!(worst < bound, "{name}: the converted weights are off by {worst}");
        for saved in [ours, theirs] {
            let plain = saved.entry.build(&Value::Object(saved.config).to_string()).unwrap();
            let plain = Adapted::attach(&*plain, &model, model.info().layers, 1).unwrap();
            plain.restore(&saved.values).unwrap();
            let off = error(&logits(&model, Some(&plain), &stream).unwrap(), &expected);
            println!("adapter {name}: converted: weights {worst:.1e}, logits {off:.1e}");
            assert!(off < bound, "{name}: the logits of the converted adapter are off by {off}");
        }
    }
}

/// Tests every built-in adapter with its default settings.
#[test]
fn an_adapter_is_restored_from_its_file_and_a_file_that_does_not_fit_is_rejected() {
    let golden = own();
    let model = Model::load(
        &ModelFiles::open(&golden.join("models/llama")).unwrap(),
        Kind::Float,
        Device::Cpu,
    )
    .unwrap();
    let io = read_safetensors(&golden.join("peft/lora/io.safetensors")).unwrap();
    let stream = Stream::from_padded(&io["input_ids"], &io["attention_mask"], Device::Cpu).unwrap();
    let base = logits(&model, None, &stream).unwrap();
    let registry = Registry::builtin().unwrap();
    for entry in registry.all::<AdapterEntry>() {
        let name = entry.about.name;
        let config = super::fixture::defaults(entry);
        let adapter = entry.build(&Value::Object(config).to_string()).unwrap();
        let adapted = Adapted::attach(&*adapter, &model, model.info().layers, 0).unwrap();
        super::fixture::disturb(&adapted.changed().flat_map(|c| c.parameters).collect::<Vec<_>>());
        let changed = logits(&model, Some(&adapted), &stream).unwrap();
        assert!(error(&changed, &base) > 1e-3, "{name} changes nothing");
        assert!(
            logits(&model, None, &stream).unwrap().equal(&base),
            "adapter {name} changed the base model"
        );

        let folder = tempfile::tempdir().unwrap();
        peft::write(folder.path(), entry, &*adapter, &adapted, &model, &"llama".into()).unwrap();
        let saved = Saved::read(folder.path(), &registry).unwrap();
        assert_eq!(saved.entry.about.name, name);
        let fresh = Adapted::attach(
            &*entry.build(&Value::Object(saved.config).to_string()).unwrap(),
            &model,
            model.info().layers,
            1,
        )
        .unwrap();
        let values = || saved.values.iter().map(|(n, t)| (n.clone(), t.shallow_clone()));
        for missing in saved.values.keys() {
            let e = fresh.restore(&values().filter(|(n, _)| n != missing).collect()).unwrap_err();
            assert!(e.to_string().contains(missing), "{name}: {e}");
        }
        let stray = (
            "model.layers.9.self_attn.q_proj.stray".to_owned(),
            Tensor::zeros([1], (Kind::Float, Device::Cpu)),
        );
        assert!(
            fresh
                .restore(&values().chain([stray]).collect())
                .unwrap_err()
                .to_string()
                .contains("does not belong to any target of the adapter")
        );
        fresh.restore(&values().collect()).unwrap();
        assert!(
            logits(&model, Some(&fresh), &stream).unwrap().equal(&changed),
            "the restored adapter {name} differs from the saved adapter"
        );
    }
}

/// PEFT cannot adapt the residual stream and therefore provides no expected values. The restored
/// adapter is compared with the saved one instead.
#[test]
fn an_adapter_on_blocks_can_be_saved_and_restored_but_not_merged() {
    let golden = own();
    let mut model = Model::load(
        &ModelFiles::open(&golden.join("models/llama")).unwrap(),
        Kind::Float,
        Device::Cpu,
    )
    .unwrap();
    let io = read_safetensors(&golden.join("peft/lora/io.safetensors")).unwrap();
    let stream = Stream::from_padded(&io["input_ids"], &io["attention_mask"], Device::Cpu).unwrap();
    let registry = Registry::builtin().unwrap();
    let entry = registry.adapter("loreft").unwrap();
    let adapter = entry.build(r#"{"r": 2, "layers": "0,-1", "positions": "f1+l2"}"#).unwrap();
    let layers = model.info().layers;
    let base = logits(&model, None, &stream).unwrap();
    // The adapter targets the first and the last block. If a run does not compute the last block,
    // only the first block is adapted and saved.
    for (blocks, written) in [(layers, Value::Null), (layers - 1, vec![0].into())] {
        let adapted = Adapted::attach(&*adapter, &model, blocks, 0).unwrap();
        assert!(
            error(&logits(&model, Some(&adapted), &stream).unwrap(), &base) < 1e-5,
            "the adapter must start as the identity"
        );
        super::fixture::disturb(&adapted.changed().flat_map(|c| c.parameters).collect::<Vec<_>>());
        let changed = logits(&model, Some(&adapted), &stream).unwrap();
        assert!(error(&changed, &base) > 1e-3);
        let folder = tempfile::tempdir().unwrap();
        peft::write(folder.path(), entry, &*adapter, &adapted, &model, &"llama".into()).unwrap();
        let config: Value = reprpo_plugin::serde_json::from_str(
            &std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap(),
        )
        .unwrap();
        assert_eq!(
            (&config["peft_type"], &config["layers_to_transform"]),
            (&Value::from("LOREFT"), &written)
        );
        let saved = Saved::read(folder.path(), &registry).unwrap();
        assert!(saved.values.keys().all(|k| k.starts_with("blocks.")));
        let fresh = Adapted::attach(
            &*entry.build(&Value::Object(saved.config).to_string()).unwrap(),
            &model,
            layers,
            1,
        )
        .unwrap();
        fresh.restore(&saved.values).unwrap();
        assert!(error(&logits(&model, Some(&fresh), &stream).unwrap(), &changed) == 0.0);
        assert!(model.merge(&adapted).unwrap_err().to_string().contains("residual stream"));
        assert!(error(&logits(&model, None, &stream).unwrap(), &base) == 0.0);
    }
}
