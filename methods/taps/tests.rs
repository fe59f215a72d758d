use std::path::Path;

use reprpo_core::model::Model;
use reprpo_core::model::pass::Request;
use reprpo_core::model::stream::Stream;
use reprpo_core::weights::{ModelFiles, read_safetensors};
use reprpo_plugin::tch::{self, Device};

use super::hs::Hs;
use super::side_in::SideIn;
use super::side_out::SideOut;
use super::*;
use crate::golden;

fn model(writers: bool) -> ModelInfo {
    let names: &[&str] = if writers {
        &[
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ]
    } else {
        &["mixer.in_proj"]
    };
    let linear = |k: usize, name: &&str| LinearInfo {
        name: format!("model.layers.{k}.{name}"),
        layer: Some(k),
        inputs: 8,
        outputs: 8,
    };
    ModelInfo {
        architecture: "llama".to_owned(),
        layers: 10,
        hidden: 8,
        heads: 2,
        head_dim: 4,
        vocab: 16,
        linears: (0..10).flat_map(|k| names.iter().map(move |n| linear(k, n))).collect(),
        parts: Vec::new(),
    }
}

#[test]
fn hidden_states_count_the_embeddings_and_the_final_norm() {
    let sites = |layers: &str| {
        Hs { layers: Layers(layers.to_owned()), ..Hs::default() }
            .build()
            .unwrap()
            .sites(&model(true))
    };
    assert_eq!(sites("0,-1").unwrap(), [Site::Residual(0), Site::Residual(10)]);
    assert_eq!(sites("range(.3,-2)").unwrap(), [3, 4, 5, 6, 7, 8].map(Site::Residual));
    assert!(sites("11").is_err());
    assert_eq!(Hs::default().layers, Layers("range(.3,-2)".to_owned()));
}

#[test]
fn side_in_reads_both_modules_that_write_to_the_residual_stream() {
    let tap = SideIn {
        layers: Layers("1,-1".to_owned()),
        pooling: super::pooling::Pooling::Last,
        modules: None,
    }
    .build()
    .unwrap();
    let names: Vec<String> = tap.sites(&model(true)).unwrap().iter().map(Site::to_string).collect();
    assert_eq!(
        names,
        [
            "in.model.layers.1.self_attn.o_proj",
            "in.model.layers.1.mlp.down_proj",
            "in.model.layers.9.self_attn.o_proj",
            "in.model.layers.9.mlp.down_proj"
        ]
    );
    assert_eq!(tap.pooling(), Pooling::Last);
    assert!(
        tap.sites(&model(false))
            .unwrap_err()
            .to_string()
            .contains("has none of the modules that the tap reads (o_proj, down_proj)")
    );
}

#[test]
fn side_out_reads_all_five_modules_that_read_the_residual_stream() {
    let tap = SideOut { layers: Layers("4".to_owned()), ..SideOut::default() }.build().unwrap();
    let names: Vec<String> = tap.sites(&model(true)).unwrap().iter().map(Site::to_string).collect();
    let readers = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
    ];
    assert_eq!(names, readers.map(|r| format!("out.model.layers.4.{r}")));
    assert!(
        tap.sites(&model(false))
            .unwrap_err()
            .to_string()
            .contains("has none of the modules that the tap reads (q_proj")
    );
}

#[test]
fn modules_selects_what_a_side_tap_reads() {
    let of = |modules: &[&str]| {
        let modules = Some(modules.iter().map(|m| (*m).to_owned()).collect());
        SideOut { layers: Layers("0,-1".to_owned()), modules, ..SideOut::default() }
            .build()
            .unwrap()
            .sites(&model(true))
    };
    let names: Vec<String> = of(&["down_proj"]).unwrap().iter().map(Site::to_string).collect();
    assert_eq!(names, ["out.model.layers.0.mlp.down_proj", "out.model.layers.9.mlp.down_proj"]);
    let e = format!("{:?}", of(&["v_porj"]).unwrap_err());
    assert!(
        e.contains("cannot apply `tap.modules` of `side-out` to block 0")
            && e.contains("did you mean `v_proj`?"),
        "{e}"
    );
    assert!(of(&[]).unwrap_err().to_string().contains("`tap.modules` is empty"));
}

#[test]
fn every_tap_reads_the_same_states_as_in_transformers() {
    let _guard = tch::no_grad_guard();
    for root in golden::roots() {
        assert_same_states_as_in_transformers(&root.join("models/llama"));
    }
}

fn assert_same_states_as_in_transformers(dir: &Path) {
    let model = Model::load(&ModelFiles::open(dir).unwrap(), Kind::Float, Device::Cpu).unwrap();
    let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
    let mask = &io["attention_mask"];
    let stream = Stream::from_padded(&io["input_ids"], mask, Device::Cpu).unwrap();
    let real = mask.flatten(0, -1).nonzero().squeeze_dim(1);
    let blocks = model.info().layers;
    let (layers, states) =
        (Layers(format!("range(0,{blocks})")), Layers(format!("range(0,{})", blocks + 1)));
    let taps = [
        (SideOut { layers: layers.clone(), ..SideOut::default() }.build().unwrap(), 5 * blocks),
        (SideIn { layers, ..SideIn::default() }.build().unwrap(), 2 * blocks),
        (Hs { layers: states, ..Hs::default() }.build().unwrap(), blocks + 1),
    ];
    for (tap, places) in taps {
        let sites = tap.sites(model.info()).unwrap();
        assert_eq!(sites.len(), places);
        let reached =
            model.forward(&stream, Request { sites: &sites, ..Request::default() }).unwrap();
        for (site, ours) in sites.iter().zip(&reached.states) {
            let reference = io[&site.to_string()].flatten(0, 1).index_select(0, &real);
            assert_eq!(ours.size()[1], model.info().width(site).unwrap());
            let off = (ours - &reference).abs().max().double_value(&[])
                / reference.abs().max().double_value(&[]).max(1.0);
            assert!(off < 1e-4, "{site}: {off:e}");
        }
    }
}

#[test]
fn each_head_is_a_range_of_columns_before_the_output_projection() {
    let sites = |layers: &str| super::heads::heads(&model(true), &Layers(layers.to_owned()));
    let names: Vec<String> = sites("1,2").unwrap().iter().map(Site::to_string).collect();
    assert_eq!(
        names,
        [(1, "0..4"), (1, "4..8"), (2, "0..4"), (2, "4..8")]
            .map(|(k, columns)| format!("in.model.layers.{k}.self_attn.o_proj[{columns}]"))
    );
    assert!(sites("10").is_err());
    assert!(super::heads::heads(&model(false), &Layers("1".to_owned())).is_err());
    let odd = ModelInfo { heads: 3, ..model(true) };
    let e = format!("{:?}", super::heads::heads(&odd, &Layers("1".to_owned())).unwrap_err());
    assert!(e.contains("8 columns, but the model has 3 heads of width 4"), "{e}");
}
