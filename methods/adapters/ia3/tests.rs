use super::super::fixture::{attach, disturb, module, off, refused, rows};
use super::*;

#[test]
fn ia3_scales_outputs_with_their_bias_and_inputs_of_feed_forward_modules() {
    for (name, key_size) in [("self_attn.k_proj", [4, 1]), ("mlp.down_proj", [1, 8])] {
        let module = module(name, 8, 4);
        let adapted = attach(&*Ia3::default().build().unwrap(), &module).unwrap();
        let (x, frozen) = (rows(3, 8), &module.1);
        assert!(
            off(&adapted.forward(&x, frozen, true).unwrap(), &frozen.forward(&x).unwrap()) == 0.0
        );
        let l = &adapted.parameters()[0].tensor;
        assert_eq!(l.size(), key_size);
        disturb(&adapted.parameters());
        let scale = l.reshape([-1]);
        let expected = if name.ends_with("down_proj") {
            frozen.forward(&(&x * &scale)).unwrap()
        } else {
            frozen.forward(&x).unwrap() * &scale
        };
        assert!(off(&adapted.forward(&x, frozen, false).unwrap(), &expected) < 1e-12);
        assert!(off(&adapted.merge(frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
    }
}

#[test]
fn a_scale_near_one_survives_half_precision() {
    let (info, frozen) = module("self_attn.k_proj", 8, 4);
    let half = Frozen::new(frozen.dense().unwrap().to_kind(Kind::BFloat16), None);
    let adapted = Ia3::default()
        .build()
        .unwrap()
        .attach(
            &LinearSite { info: &info, frozen: &half, shared: &[], sources: &[] },
            &mut Init::new(0, "", Kind::Float, half.device()),
        )
        .unwrap();
    // In bf16, 1.003 rounds to 1, so multiplying in bf16 would not change the output. Multiplying
    // in float32 must change at least one entry of the output.
    let _ = adapted.parameters()[0].tensor.detach().fill_(1.003);
    let x = rows(64, 8).to_kind(Kind::BFloat16);
    let (ours, base) = (adapted.forward(&x, &half, false).unwrap(), half.forward(&x).unwrap());
    assert_eq!(ours.kind(), Kind::BFloat16);
    assert!(off(&ours.to_kind(Kind::Float), &base.to_kind(Kind::Float)) > 0.0);
}

#[test]
fn a_feed_forward_module_must_be_a_target() {
    let bad = Ia3 {
        feedforward_modules: Targets::Suffixes(vec!["up_proj".to_owned()]),
        ..Ia3::default()
    };
    assert!(refused::<Ia3>(bad).contains("`adapter.feedforward_modules` has `up_proj`"));
    let read =
        Ia3::from_peft(r#"{"target_modules": ["k_proj"], "feedforward_modules": ".*_proj"}"#)
            .unwrap();
    assert_eq!(read.feedforward_modules, Targets::Pattern(".*_proj".to_owned()));
    assert!(Ia3::from_peft(r#"{"target_modules": ["k_proj"], "fan_in_fan_out": true}"#).is_ok());
}
