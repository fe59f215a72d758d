use reprpo_plugin::tch::Device;

use super::*;

fn attached(r: u32) -> (Box<dyn AdaptedLinear>, Frozen) {
    let info = LinearInfo { name: "model.layers.0.self_attn.q_proj".to_owned(), layer: Some(0), inputs: 6, outputs: 4 };
    let frozen = Frozen { weight: Tensor::randn([4, 6], (Kind::Double, Device::Cpu)), bias: Some(Tensor::randn([4], (Kind::Double, Device::Cpu))) };
    let mut init = Init::new(0, &info.name, Kind::Double, Device::Cpu);
    let adapted =
        Hra::build(HraConfig { r, ..HraConfig::default() }).unwrap().attach(&LinearSite { info: &info, frozen: &frozen, shared: &[] }, &mut init).unwrap();
    (adapted, frozen)
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn an_even_rank_starts_as_the_identity_and_an_odd_one_does_not() {
    let x = Tensor::randn([3, 6], (Kind::Double, Device::Cpu));
    for (r, identity) in [(2, true), (8, true), (1, false), (5, false)] {
        let (adapted, frozen) = attached(r);
        let change = off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap());
        assert_eq!(change < 1e-12, identity, "r = {r}: {change}");
        let u = &adapted.parameters()[0].tensor;
        assert!(u.is_leaf() && u.requires_grad() && u.size() == [6, i64::from(r)]);
    }
}

#[test]
fn merged_weights_compute_the_same_and_keep_their_rows_lengths() {
    let (adapted, frozen) = attached(5);
    let x = Tensor::randn([3, 6], (Kind::Double, Device::Cpu));
    let merged = adapted.merge(&frozen).unwrap();
    let lengths = |w: &Tensor| w.norm_scalaropt_dim(2.0, 1, false);
    assert!(off(&lengths(&merged.weight), &lengths(&frozen.weight)) < 1e-12);
    assert!(off(&merged.forward(&x).unwrap(), &adapted.forward(&x, &frozen, false).unwrap()) < 1e-12);
    let half = Frozen { weight: frozen.weight.to_kind(Kind::BFloat16), bias: None };
    assert_eq!(adapted.merge(&half).unwrap().weight.kind(), Kind::BFloat16);
}

#[test]
fn what_it_cannot_honour_is_refused() {
    assert!(Hra::build(HraConfig { r: 0, ..HraConfig::default() }).is_err());
    assert!(Hra::from_peft(r#"{"r": 4, "target_modules": ["q_proj"], "apply_GS": true}"#).is_err());
    assert_eq!(Hra::from_peft(r#"{"r": 4, "target_modules": ["q_proj"], "apply_GS": false}"#).unwrap().r, 4);
}
