use reprpo_plugin::tch::Device;

use super::super::fixture::{DOUBLE, attach, disturb, module, off, rows};
use super::*;

fn attached(config: Lora) -> (Box<dyn AdaptedLinear>, Frozen) {
    super::super::fixture::attached::<Lora>(config)
}

#[test]
fn lora_starts_as_the_identity_and_scales_by_alpha_over_r() {
    for (use_rslora, scale) in [(false, 3.0), (true, 6.0)] {
        let (adapted, frozen) =
            attached(Lora { r: 4, lora_alpha: 12.0, use_rslora, ..Lora::default() });
        let x = rows(3, 8);
        let base = frozen.forward(&x).unwrap();
        assert!(off(&adapted.forward(&x, &frozen, true).unwrap(), &base) == 0.0);
        let [a, b] = &adapted.parameters()[..] else { panic!("two tensors") };
        assert!(a.tensor.abs().max().double_value(&[]) <= 1.0 / 8f64.sqrt());
        b.tensor.detach().copy_(&rows(4, 4));
        let expected = base + x.matmul(&a.tensor.tr()).matmul(&b.tensor.tr()) * scale;
        assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &expected) < 1e-12);
    }
}

#[test]
fn dropout_acts_only_in_training() {
    let (adapted, frozen) = attached(Lora { r: 2, lora_dropout: 0.5, ..Lora::default() });
    let _ = adapted.parameters()[1].tensor.detach().fill_(1.0);
    let x = Tensor::ones([64, 8], (Kind::Double, Device::Cpu));
    let quiet = adapted.forward(&x, &frozen, false).unwrap();
    assert!(off(&quiet, &adapted.forward(&x, &frozen, false).unwrap()) == 0.0);
    assert!(off(&quiet, &adapted.forward(&x, &frozen, true).unwrap()) > 1e-3);
}

#[test]
fn a_merged_weight_keeps_its_kind() {
    let (adapted, frozen) = attached(Lora::default());
    let x = rows(3, 8).to_kind(Kind::BFloat16);
    let half = Frozen::new(frozen.dense().unwrap().to_kind(Kind::BFloat16), None);
    assert_eq!(adapted.merge(&half).unwrap().kind(), Kind::BFloat16);
    assert_eq!(adapted.forward(&x, &half, false).unwrap().kind(), Kind::BFloat16);
}

#[test]
fn a_bias_is_scaled_like_the_matrices_and_merged_into_the_bias_of_the_module() {
    let (adapted, frozen) =
        attached(Lora { r: 4, lora_alpha: 12.0, lora_bias: true, ..Lora::default() });
    let x = rows(3, 8);
    assert!(off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap()) == 0.0);
    disturb(&adapted.parameters());
    let [a, b, c] = &adapted.parameters()[..] else { panic!("three tensors") };
    assert_eq!((c.key.as_str(), c.tensor.size()), ("lora_B.bias", vec![4]));
    let change = x.matmul(&a.tensor.tr()).matmul(&b.tensor.tr()) + &c.tensor;
    let expected = frozen.forward(&x).unwrap() + change * 3.0;
    assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &expected) < 1e-12);
    let merged = adapted.merge(&frozen).unwrap();
    assert!(off(&merged.forward(&x).unwrap(), &expected) < 1e-12);
    let plain = Frozen::new(frozen.dense().unwrap(), None);
    assert!(adapted.merge(&plain).unwrap_err().message().contains("a module without a bias"));
    for other in [
        Lora { use_dora: true, ..Lora::default() },
        Lora { init: LoraInit::Olora, ..Lora::default() },
    ] {
        let refused = super::super::fixture::refused(Lora { lora_bias: true, ..other });
        assert!(refused.contains("`adapter.lora_bias` cannot be combined with"), "{refused}");
    }
}

fn patterns<V: JsonSchema>(pattern: &str, value: V) -> Patterns<V> {
    let mut patterns = Patterns::default();
    patterns.0.insert(pattern.to_owned(), value);
    patterns
}

#[test]
fn patterns_set_the_rank_and_alpha_of_some_modules() {
    let config = Lora {
        r: 4,
        lora_alpha: 4.0,
        rank_pattern: patterns("mlp.*", 2),
        alpha_pattern: patterns("down_proj", 10.0),
        ..Lora::default()
    };
    for (name, r, scale) in
        [("self_attn.q_proj", 4, 1.0), ("mlp.up_proj", 2, 2.0), ("mlp.down_proj", 2, 5.0)]
    {
        let module = module(name, 8, 4);
        let adapted = attach(&*config.clone().build().unwrap(), &module).unwrap();
        disturb(&adapted.parameters());
        let [a, b] = &adapted.parameters()[..] else { panic!("two tensors") };
        assert_eq!(a.tensor.size(), [r, 8], "{name}");
        let expected = &module.1.dense().unwrap() + b.tensor.matmul(&a.tensor) * scale;
        assert!(
            off(&adapted.merge(&module.1).unwrap().dense().unwrap(), &expected) < 1e-12,
            "{name}"
        );
    }
    let again = Lora::from_peft(&format!(
        r#"{{"target_modules": "all-linear", {}"#,
        &config.peft_config()[1..]
    ))
    .unwrap();
    assert_eq!(
        (again.rank_pattern, again.alpha_pattern),
        (config.rank_pattern, config.alpha_pattern)
    );
}

fn dora(lora_dropout: f64) -> Lora {
    Lora { r: 2, lora_alpha: 6.0, use_dora: true, lora_dropout, ..Lora::default() }
}

/// Returns m ⊙ (W + s·BA)/‖W + s·BA‖, computed from the definition.
fn recomposed(adapted: &dyn AdaptedLinear, frozen: &Frozen) -> Tensor {
    let [a, b, m] = &adapted.parameters()[..] else { panic!("three tensors") };
    let full = &frozen.dense().unwrap() + b.tensor.matmul(&a.tensor) * 3.0;
    let lengths = full.norm_scalaropt_dim(2.0, 1, true).detach();
    full / lengths * m.tensor.unsqueeze(1)
}

#[test]
fn dora_trains_row_norms_separately_from_directions() {
    let (adapted, frozen) = attached(dora(0.0));
    let x = rows(3, 8);
    assert!(
        off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap()) < 1e-14
    );
    disturb(&adapted.parameters());
    let expected = x.matmul(&recomposed(&*adapted, &frozen).tr()) + frozen.bias().unwrap();
    let ours = adapted.forward(&x, &frozen, true).unwrap();
    assert!(off(&ours, &expected) < 1e-12);
    assert!(off(&adapted.merge(&frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
    // The gradient treats the row norms as constants.
    let gradients = |y: &Tensor| {
        let leaves: Vec<_> = adapted.parameters().into_iter().map(|p| p.tensor).collect();
        Tensor::run_backward(&[y.square().sum(Kind::Double)], &leaves, false, false)
    };
    for (ours, expected) in gradients(&ours).iter().zip(&gradients(&expected)) {
        assert!(off(ours, expected) < 1e-10);
    }
}

#[test]
fn dora_applies_dropout_only_to_the_input_of_the_change() {
    let (adapted, frozen) = attached(dora(0.5));
    let x = rows(64, 8);
    // Initially m/‖W‖ is 1 and BA is 0, so the adapter adds nothing, even with dropout.
    assert!(
        off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap()) < 1e-14
    );
    disturb(&adapted.parameters());
    let quiet = adapted.forward(&x, &frozen, false).unwrap();
    assert!(off(&quiet, &adapted.forward(&x, &frozen, true).unwrap()) > 1e-3);
}

#[test]
fn a_row_of_zeros_stays_finite_with_dora() {
    let mut module = module("self_attn.q_proj", 8, 4);
    let _ = module.1.dense().unwrap().get(2).zero_();
    module.1 = Frozen::new(module.1.dense().unwrap(), None);
    let adapted = attach(&*dora(0.0).build().unwrap(), &module).unwrap();
    let y = adapted.forward(&Tensor::ones([1, 8], DOUBLE), &module.1, true).unwrap();
    assert!(y.isfinite().all().int64_value(&[]) == 1 && y.double_value(&[0, 2]) == 0.0);
}

#[test]
fn an_error_names_the_field_that_is_out_of_range() {
    let rejects =
        |c: Lora, field: &str| assert!(c.build().err().unwrap().to_string().contains(field));
    rejects(Lora { r: 0, ..Lora::default() }, "adapter.r");
    rejects(Lora { lora_alpha: 0.0, ..Lora::default() }, "adapter.lora_alpha");
    rejects(Lora { lora_alpha: f64::NAN, ..Lora::default() }, "adapter.lora_alpha");
    rejects(Lora { lora_dropout: 1.0, ..Lora::default() }, "adapter.lora_dropout");
    rejects(Lora { lora_dropout: -0.1, ..Lora::default() }, "adapter.lora_dropout");
    rejects(
        Lora { rank_pattern: patterns("q_proj", 0), ..Lora::default() },
        "adapter.rank_pattern",
    );
    rejects(
        Lora { alpha_pattern: patterns("q_proj", -1.0), ..Lora::default() },
        "adapter.alpha_pattern",
    );
}

#[test]
fn unsupported_settings_of_a_saved_adapter_are_rejected() {
    let with = |field: &str| {
        Lora::from_peft(&format!(
            r#"{{"r": 4, "lora_alpha": 8, "target_modules": "all-linear"{field}}}"#
        ))
    };
    assert_eq!(with("").unwrap().target_modules, Targets::Pattern("all-linear".to_owned()));
    assert!(with(r#", "init_lora_weights": "gaussian", "rank_pattern": {}"#).is_ok());
    // The flag describes how the base model stores its weights and does not affect the adapter.
    assert!(with(r#", "fan_in_fan_out": true"#).is_ok());
    for (start, init) in [
        ("true", LoraInit::Zero),
        ("\"eva\"", LoraInit::Zero),
        ("\"pissa\"", LoraInit::Pissa),
        ("\"olora\"", LoraInit::Olora),
    ] {
        assert_eq!(with(&format!(r#", "init_lora_weights": {start}"#)).unwrap().init, init);
    }
    for bad in ["\"pissa_niter_16\"", "\"corda\"", "\"loftq\"", "3"] {
        let e = with(&format!(r#", "init_lora_weights": {bad}"#)).unwrap_err().to_string();
        assert!(e.contains(&format!("`init_lora_weights` = {bad}")), "{e}");
    }
    assert!(with(r#", "lora_bias": true"#).unwrap().lora_bias);
    assert!(with(r#", "layer_replication": [[0, 2]]"#).is_err());
    assert!(Lora::from_peft(r#"{"r": 4, "target_modules": ["q_proj"]}"#).is_err());
}

const STARTS: [LoraInit; 2] = [LoraInit::Pissa, LoraInit::Olora];

fn started(init: LoraInit) -> Lora {
    Lora { r: 2, lora_alpha: 6.0, init, ..Lora::default() }
}

#[test]
fn pissa_and_olora_start_as_the_identity_with_factors_of_the_weights() {
    for init in STARTS {
        let (adapted, frozen) = attached(started(init));
        let (x, weight) = (rows(3, 8), frozen.dense().unwrap());
        let y = adapted.forward(&x, &frozen, true).unwrap();
        assert!(off(&y, &frozen.forward(&x).unwrap()) == 0.0);
        let [a, b] = &adapted.parameters()[..] else { panic!("two tensors") };
        let (a, b) = (&a.tensor, &b.tensor);
        assert_eq!((a.size(), b.size()), (vec![2, 8], vec![4, 2]));
        let singular = |m: &Tensor| m.svd(true, true).1;
        match init {
            // The best approximation of rank 2 leaves the other singular values.
            LoraInit::Pissa => {
                let rest = singular(&(&weight - b.matmul(a) * 3.0));
                assert!(off(&rest.narrow(0, 0, 2), &singular(&weight).narrow(0, 2, 2)) < 1e-12);
                // A and B share the singular values equally.
                assert!(off(&a.matmul(&a.tr()), &b.tr().matmul(b)) < 1e-12);
            }
            // B has orthonormal columns, which span the first 2 columns of W.
            _ => {
                assert!(off(&b.tr().matmul(b), &Tensor::eye(2, DOUBLE)) < 1e-12);
                assert!(off(&b.tr().matmul(&weight), a) < 1e-12);
                let span = b.matmul(&b.tr()).matmul(&weight.narrow(1, 0, 2));
                assert!(off(&span, &weight.narrow(1, 0, 2)) < 1e-12);
            }
        }
    }
}

/// PEFT adds s·BAx to the output of W − s·B₀A₀.
#[test]
fn pissa_and_olora_compute_the_same_outputs_and_gradients_as_peft() {
    for init in STARTS {
        let (adapted, frozen) = attached(started(init));
        let [a, b] = &adapted.parameters()[..] else { panic!("two tensors") };
        let (a, b) = (&a.tensor, &b.tensor);
        let changed_weight = frozen.dense().unwrap() - b.matmul(a).detach() * 3.0;
        disturb(&adapted.parameters());
        let x = rows(5, 8);
        let expected = x.matmul(&changed_weight.tr())
            + frozen.bias().unwrap()
            + x.matmul(&a.tr()).matmul(&b.tr()) * 3.0;
        let ours = adapted.forward(&x, &frozen, true).unwrap();
        assert!(off(&ours, &expected) < 1e-12);
        assert!(off(&adapted.merge(&frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
        let gradients = |y: &Tensor| {
            Tensor::run_backward(&[y.square().sum(Kind::Double)], &[a, b], false, false)
        };
        for (ours, expected) in gradients(&ours).iter().zip(&gradients(&expected)) {
            assert!(off(ours, expected) < 1e-10);
        }
    }
}

#[test]
fn pissa_and_olora_are_saved_as_lora_of_twice_the_rank() {
    for init in STARTS {
        for (use_rslora, use_dora) in [(false, false), (true, false), (false, true)] {
            let config = Lora {
                use_rslora,
                use_dora,
                rank_pattern: patterns("k_proj", 3),
                alpha_pattern: patterns("v_proj", 5.0),
                ..started(init)
            };
            let saved = config.saved_form().unwrap();
            let fields: Value = reprpo_plugin::serde_json::from_str(&saved.peft_config()).unwrap();
            assert_eq!(fields["init_lora_weights"], json!(true));
            assert_eq!((&fields["r"], &fields["rank_pattern"]["k_proj"]), (&json!(4), &json!(6)));
            for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] {
                let module = module(name, 8, 4);
                let adapted = attach(&config, &module).unwrap();
                disturb(&adapted.parameters());
                let x = rows(3, 8);
                let (converted, frozen) = (adapted.saved_form().unwrap().unwrap(), &module.1);
                let y = converted.forward(&x, frozen, false).unwrap();
                assert!(off(&y, &adapted.forward(&x, frozen, false).unwrap()) < 1e-12);
                // The saved configuration must scale the saved tensors in the same way.
                let fresh = attach(&*saved, &module).unwrap();
                for (to, from) in fresh.parameters().iter().zip(converted.parameters()) {
                    assert_eq!((&to.key, to.tensor.size()), (&from.key, from.tensor.size()));
                    to.tensor.detach().copy_(&from.tensor);
                }
                assert!(off(&fresh.forward(&x, frozen, false).unwrap(), &y) < 1e-12);
            }
        }
    }
    assert!(Lora::default().saved_form().is_none());
    assert!(attached(Lora::default()).0.saved_form().unwrap().is_none());
}

#[test]
fn pissa_and_olora_keep_small_changes_in_half_precision() {
    for init in STARTS {
        let module = module("self_attn.q_proj", 64, 32);
        let adapted = attach(&Lora { r: 8, ..started(init) }, &module).unwrap();
        let _guard = reprpo_plugin::tch::no_grad_guard();
        for p in adapted.parameters() {
            let _ = p
                .tensor
                .shallow_clone()
                .g_add_(&(rows(1, p.tensor.numel() as i64) * 1e-3).reshape(p.tensor.size()));
        }
        let (x, frozen) = (rows(5, 64), &module.1);
        let change = adapted.forward(&x, frozen, false).unwrap() - frozen.forward(&x).unwrap();
        // Zero weights isolate the change.
        let x = x.to_kind(Kind::BFloat16);
        let zero = Frozen::new(Tensor::zeros([32, 64], (Kind::BFloat16, frozen.device())), None);
        let half = adapted.forward(&x, &zero, false).unwrap().to_kind(Kind::Double);
        let scale = change.abs().max().double_value(&[]);
        assert!(off(&half, &change) < 0.03 * scale, "{} of {scale}", off(&half, &change));
    }
}

#[test]
fn the_rank_of_pissa_and_olora_is_limited_by_the_widths() {
    for init in STARTS {
        let config = Lora { r: 5, ..started(init) };
        let e = attach(&config, &module("self_attn.q_proj", 8, 4)).err().unwrap().to_string();
        assert!(e.contains("`adapter.r` is 5") && e.contains("at most 4"), "{e}");
    }
}
