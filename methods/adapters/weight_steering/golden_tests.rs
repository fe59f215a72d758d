//! Compares the adapter with weights that PEFT merged and PyTorch combined.

use std::path::Path;

use reprpo_core::config::{Choice, Experiment};
use reprpo_core::model::pass::Request;
use reprpo_core::model::peft::{self, Saved};
use reprpo_core::model::stream::Stream;
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::Registry;
use reprpo_core::run::AdapterChoice;
use reprpo_core::weights::{ModelFiles, read_safetensors};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Map, Value, json};
use reprpo_plugin::tch::{self, Device};

use crate::golden::{error, own};

fn logits(model: &Model, adapted: Option<&Adapted>, stream: &Stream) -> Tensor {
    let request = Request { adapted, hidden: true, ..Request::default() };
    model.logits(&model.forward(stream, request).unwrap().hidden.unwrap()).unwrap()
}

/// Reads the cases from the metadata of a safetensors file.
fn cases(file: &Path) -> Map<String, Value> {
    let bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    serde_json::from_str(header["__metadata__"]["cases"].as_str().unwrap()).unwrap()
}

/// The adapter of an experiment that combines the adapters in these folders.
fn steering(config: Value) -> Result<AdapterChoice> {
    let config = config.as_object().unwrap().clone();
    let adapter = Choice { name: "weight-steering".to_owned(), config };
    let experiment = Experiment { adapter, ..Experiment::default() };
    AdapterChoice::new(&experiment, None, &Registry::builtin().unwrap())
}

#[test]
fn combined_adapters_agree_with_weights_that_peft_merged() {
    let _guard = tch::no_grad_guard();
    let file = own().join("weight_steering.safetensors");
    let (io, cases) = (read_safetensors(&file).unwrap(), cases(&file));
    assert_eq!(cases.len(), 3);
    let files = ModelFiles::open(&own().join("models/llama")).unwrap();
    let mut model = Model::load(&files, Kind::Float, Device::Cpu).unwrap();
    let (mask, layers) = (&io["attention_mask"], model.info().layers);
    let stream = Stream::from_padded(&io["input_ids"], mask, Device::Cpu).unwrap();
    let real = mask.reshape([-1]).nonzero().squeeze_dim(1);
    let base = logits(&model, None, &stream);
    for (name, case) in &cases {
        let expected = io[name].reshape([-1, model.info().vocab]).index_select(0, &real);
        let folder = |side: &str| case[side].as_str().map(|of| own().join("peft").join(of));
        let choice = steering(json!({
            "plus": folder("plus"),
            "minus": folder("minus"),
            "coefficient": case["coefficient"],
        }));
        let choice = choice.unwrap();
        let adapted = choice.attach(&model, layers, 0).unwrap();
        assert!(adapted.parameters().is_empty());
        let ours = logits(&model, Some(&adapted), &stream);
        let off = error(&ours, &expected);
        assert!(error(&base, &expected) > 1e-2, "{name} hardly changes the model");

        // The saved adapter does not need the folders.
        let (saved_in, entry) = (tempfile::tempdir().unwrap(), choice.entry);
        let adapter = choice.adapter.as_ref();
        peft::write(saved_in.path(), entry, adapter, &adapted, &model, &"llama".into()).unwrap();
        let saved = Saved::read(saved_in.path(), &Registry::builtin().unwrap()).unwrap();
        assert_eq!(
            (&saved.config["plus"], &saved.config["coefficient"]),
            (&Value::Null, &json!(1.0))
        );
        let again = entry.build(&Value::Object(saved.config).to_string()).unwrap();
        let again = Adapted::attach(&*again, &model, layers, 1).unwrap();
        again.restore(&saved.values).unwrap();
        assert!(logits(&model, Some(&again), &stream).equal(&ours), "{name}: loaded differs");

        let merged = model.merge(&adapted).unwrap();
        let merged_off = error(&logits(&model, None, &stream), &expected);
        model.unmerge(merged);
        println!("{name}: logits off by {off:.1e}, merged by {merged_off:.1e}");
        assert!(off < 1e-5 && merged_off < 1e-5, "{name}: {off:e} {merged_off:e}");
    }
}

#[test]
fn a_folder_without_an_adapter_is_an_error_that_names_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("unfinished");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("config.toml"), "").unwrap();
    let lora = own().join("peft/lora");
    for (config, expected) in [
        (json!({}), "`adapter.plus` is not set"),
        (json!({ "minus": lora }), "`adapter.plus` is not set"),
        (json!({ "plus": lora, "minus": dir.path().join("none") }), "does not exist"),
        (json!({ "plus": run }), "has no trained adapter yet"),
        (json!({ "plus": dir.path() }), "adapter_config.json"),
    ] {
        let e = format!("{:?}", steering(config.clone()).err().unwrap());
        assert!(e.contains(expected), "{config}: {e}");
    }
}
