use super::hs::{Hs, HsConfig};
use super::side_in::{SideIn, SideInConfig};
use super::*;

fn model(writers: bool) -> ModelInfo {
    let names: &[&str] = if writers { &["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"] } else { &["attention.dense"] };
    let linear = |k: usize, name: &&str| LinearInfo { name: format!("model.layers.{k}.{name}"), layer: Some(k), inputs: 8, outputs: 8 };
    ModelInfo {
        architecture: "llama".to_owned(),
        layers: 10,
        hidden: 8,
        heads: 2,
        head_dim: 4,
        vocab: 16,
        linears: (0..10).flat_map(|k| names.iter().map(move |n| linear(k, n))).collect(),
    }
}

#[test]
fn hidden_states_count_the_embeddings_and_the_final_norm() {
    let sites = |layers: &str| Hs::build(HsConfig { layers: Layers(layers.to_owned()), ..HsConfig::default() }).unwrap().sites(&model(true));
    assert_eq!(sites("0,-1").unwrap(), [Site::Residual(0), Site::Residual(10)]);
    assert_eq!(sites("range(.3,-2)").unwrap(), [3, 4, 5, 6, 7, 8].map(Site::Residual));
    assert!(sites("11").is_err());
    assert_eq!(HsConfig::default().layers, Layers("range(.3,-2)".to_owned()));
}

#[test]
fn side_in_reads_both_writers_of_each_block() {
    let tap = SideIn::build(SideInConfig { layers: Layers("1,-1".to_owned()), pooling: Pooling::Last }).unwrap();
    let names: Vec<String> = tap.sites(&model(true)).unwrap().iter().map(Site::to_string).collect();
    assert_eq!(
        names,
        ["in.model.layers.1.self_attn.o_proj", "in.model.layers.1.mlp.down_proj", "in.model.layers.9.self_attn.o_proj", "in.model.layers.9.mlp.down_proj"]
    );
    assert_eq!(tap.pooling(), Pooling::Last);
    assert!(tap.sites(&model(false)).unwrap_err().to_string().contains("neither o_proj nor down_proj"));
}
