use reprpo_plugin::tch::Device;

use super::*;

fn attached(config: LoraConfig) -> (Box<dyn AdaptedLinear>, Frozen) {
    let info = LinearInfo { name: "model.layers.0.self_attn.q_proj".to_owned(), layer: Some(0), inputs: 6, outputs: 4 };
    let frozen = Frozen { weight: Tensor::randn([4, 6], (Kind::Double, Device::Cpu)), bias: Some(Tensor::randn([4], (Kind::Double, Device::Cpu))) };
    let mut init = Init::new(0, &info.name, Kind::Double, Device::Cpu);
    let adapted = Lora::build(config).unwrap().attach(&LinearSite { info: &info, frozen: &frozen, shared: &[] }, &mut init).unwrap();
    (adapted, frozen)
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn it_starts_as_the_identity_and_scales_by_alpha_over_r() {
    for (use_rslora, scale) in [(false, 3.0), (true, 6.0)] {
        let (adapted, frozen) = attached(LoraConfig { r: 4, lora_alpha: 12.0, use_rslora, ..LoraConfig::default() });
        let x = Tensor::randn([3, 6], (Kind::Double, Device::Cpu));
        let base = frozen.forward(&x).unwrap();
        assert!(off(&adapted.forward(&x, &frozen, true).unwrap(), &base) == 0.0);
        let [a, b] = &adapted.parameters()[..] else { panic!("two tensors") };
        assert!(a.tensor.abs().max().double_value(&[]) <= 1.0 / 6f64.sqrt());
        b.tensor.detach().copy_(&Tensor::randn([4, 4], (Kind::Double, Device::Cpu)));
        let expected = base + x.matmul(&a.tensor.tr()).matmul(&b.tensor.tr()) * scale;
        assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &expected) < 1e-12);
    }
}

#[test]
fn dropout_acts_in_training_alone() {
    let (adapted, frozen) = attached(LoraConfig { r: 2, lora_dropout: 0.5, ..LoraConfig::default() });
    let _ = adapted.parameters()[1].tensor.detach().fill_(1.0);
    let x = Tensor::ones([64, 6], (Kind::Double, Device::Cpu));
    let quiet = adapted.forward(&x, &frozen, false).unwrap();
    assert!(off(&quiet, &adapted.forward(&x, &frozen, false).unwrap()) == 0.0);
    assert!(off(&quiet, &adapted.forward(&x, &frozen, true).unwrap()) > 1e-3);
}

#[test]
fn a_merged_weight_keeps_its_kind() {
    let (adapted, frozen) = attached(LoraConfig::default());
    let x = Tensor::randn([3, 6], (Kind::BFloat16, Device::Cpu));
    let half = Frozen { weight: frozen.weight.to_kind(Kind::BFloat16), bias: None };
    assert_eq!(adapted.merge(&half).unwrap().weight.kind(), Kind::BFloat16);
    assert_eq!(adapted.forward(&x, &half, false).unwrap().kind(), Kind::BFloat16);
}

#[test]
fn values_out_of_range_are_named() {
    let rejects = |c: LoraConfig, field: &str| assert!(Lora::build(c).err().unwrap().to_string().contains(field));
    rejects(LoraConfig { r: 0, ..LoraConfig::default() }, "adapter.r");
    rejects(LoraConfig { lora_alpha: 0.0, ..LoraConfig::default() }, "adapter.lora_alpha");
    rejects(LoraConfig { lora_alpha: f64::NAN, ..LoraConfig::default() }, "adapter.lora_alpha");
    rejects(LoraConfig { lora_dropout: 1.0, ..LoraConfig::default() }, "adapter.lora_dropout");
    rejects(LoraConfig { lora_dropout: -0.1, ..LoraConfig::default() }, "adapter.lora_dropout");
}

#[test]
fn what_it_cannot_honour_on_disk_is_refused() {
    let with = |field: &str| Lora::from_peft(&format!(r#"{{"r": 4, "lora_alpha": 8, "target_modules": "all-linear"{field}}}"#));
    assert_eq!(with("").unwrap().target_modules, Targets::Pattern("all-linear".to_owned()));
    assert!(with(r#", "init_lora_weights": "gaussian", "rank_pattern": {}"#).is_ok());
    for bad in ["\"use_dora\": true", "\"rank_pattern\": {\"q_proj\": 2}", "\"init_lora_weights\": \"pissa\"", "\"fan_in_fan_out\": true"] {
        assert!(with(&format!(", {bad}")).is_err(), "{bad}");
    }
    assert!(Lora::from_peft(r#"{"r": 4, "target_modules": ["q_proj"]}"#).is_err());
}
