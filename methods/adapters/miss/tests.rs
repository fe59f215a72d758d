use super::super::fixture::{attach, disturb, module, off, refused, rows};
use super::*;

fn config(variant: Variant, r: u32) -> Miss {
    Miss { r, variant, mini_r: 2, ..Miss::default() }
}

/// Returns the changed weights, computed entry by entry.
fn changed(variant: Variant, block: &Tensor, weight: &Tensor) -> Tensor {
    let (outputs, inputs) = (weight.size()[0], weight.size()[1]);
    let (w, m) = (|o, i| weight.double_value(&[o, i]), |at: &[i64]| block.double_value(at));
    let r = block.size()[if variant == Variant::Bat { 1 } else { 0 }];
    let entry = |o: i64, i: i64| match variant {
        Variant::Balance => w(o, i) + m(&[i % r, o]),
        Variant::Mini => w(o, i) + m(&[i % r, o % 2]),
        Variant::Bat => {
            let start = i - i % r;
            let product: f64 = (0..r).map(|k| w(o, start + k) * m(&[o / r, k, i % r])).sum();
            w(o, i) + product + m(&[o / r, o % r, i % r])
        }
    };
    let entries: Vec<f64> = (0..outputs)
        .flat_map(|o| (0..inputs).map(move |i| (o, i)))
        .map(|(o, i)| entry(o, i))
        .collect();
    Tensor::from_slice(&entries).reshape([outputs, inputs])
}

#[test]
fn miss_starts_as_the_identity_and_adds_its_block_to_the_blocks_of_the_weights() {
    // 3 and 5 do not divide 8, so the last block of the input is padded.
    for (variant, r, size) in [
        (Variant::Balance, 4, vec![4, 6]),
        (Variant::Balance, 3, vec![3, 6]),
        (Variant::Balance, 8, vec![8, 6]),
        (Variant::Mini, 4, vec![4, 2]),
        (Variant::Mini, 5, vec![5, 2]),
        (Variant::Bat, 2, vec![3, 2, 2]),
        (Variant::Bat, 1, vec![6, 1, 1]),
    ] {
        let module = module("self_attn.q_proj", 8, 6);
        let adapted = attach(&*config(variant, r).build().unwrap(), &module).unwrap();
        let (x, frozen) = (rows(3, 8), &module.1);
        assert!(
            off(&adapted.forward(&x, frozen, true).unwrap(), &frozen.forward(&x).unwrap()) == 0.0
        );
        let [block] = &adapted.parameters()[..] else { panic!("one tensor") };
        assert_eq!(block.tensor.size(), size);
        assert_eq!(block.axis, (variant == Variant::Balance).then_some(Axis::Output(1)));
        disturb(&adapted.parameters());
        let weight = changed(variant, &block.tensor, &frozen.dense().unwrap());
        let expected = x.matmul(&weight.tr()) + frozen.bias().unwrap();
        let what = format!("{variant:?}, r = {r}");
        assert!(off(&adapted.forward(&x, frozen, false).unwrap(), &expected) < 1e-12, "{what}");
        assert!(off(&adapted.merge(frozen).unwrap().dense().unwrap(), &weight) < 1e-12, "{what}");
    }
}

#[test]
fn dropout_acts_only_in_training() {
    let module = module("self_attn.q_proj", 8, 4);
    let config = Miss { miss_dropout: 0.5, ..config(Variant::Balance, 3) };
    let adapted = attach(&config, &module).unwrap();
    disturb(&adapted.parameters());
    let x = rows(64, 8);
    let quiet = adapted.forward(&x, &module.1, false).unwrap();
    assert!(off(&quiet, &adapted.forward(&x, &module.1, false).unwrap()) == 0.0);
    assert!(off(&quiet, &adapted.forward(&x, &module.1, true).unwrap()) > 1e-3);
}

/// Fuses adapters on the first and the last part of a module whose rows are [4 4 8] in two groups.
/// Returns the greatest difference to the adapters of the parts, or `None` if there is no
/// conversion.
fn fused(config: &Miss) -> Option<f64> {
    let whole = module("self_attn.qkv_proj", 8, 32);
    let part = |name: &str, start, len| PartInfo {
        linear: module(&format!("self_attn.qkv_proj.{name}"), 8, 2 * len).0,
        holder: whole.0.name.clone(),
        rows: Rows { groups: 2, start, len, width: 16 },
    };
    let infos = [part("q_proj", 0, 4), part("v_proj", 8, 8)];
    let frozen = infos.each_ref().map(|info| whole.1.part(info.rows).unwrap());
    let adapted: Vec<_> = infos
        .iter()
        .zip(&frozen)
        .map(|(info, frozen)| {
            let site = LinearSite { info: &info.linear, frozen, shared: &[], sources: &[] };
            let mut init = Init::new(0, "", Kind::Double, frozen.device());
            let adapted = config.attach(&site, &mut init).unwrap();
            disturb(&adapted.parameters());
            adapted
        })
        .collect();
    let parts = infos
        .iter()
        .zip(&adapted)
        .map(|(info, a)| AdaptedPart { info, parameters: a.parameters() })
        .collect();
    let site = FusedSite {
        module: LinearSite { info: &whole.0, frozen: &whole.1, shared: &[], sources: &[] },
        parts,
    };
    let Fused { modules, .. } = config.fuse(&[site]).unwrap()?;
    let x = rows(3, 8);
    let y = modules[0].forward(&x, &whole.1, false).unwrap();
    let worst = infos.iter().zip(&frozen).zip(&adapted).map(|((info, frozen), adapted)| {
        off(&info.rows.of(&y, 1).unwrap(), &adapted.forward(&x, frozen, false).unwrap())
    });
    let others = Rows { groups: 2, start: 4, len: 4, width: 16 };
    let plain = whole.1.part(others).unwrap().forward(&x).unwrap();
    Some(worst.fold(off(&others.of(&y, 1).unwrap(), &plain), f64::max))
}

#[test]
fn parts_are_fused_unless_the_blocks_do_not_fit_the_whole_module() {
    for config in [config(Variant::Balance, 5), config(Variant::Bat, 4), config(Variant::Bat, 2)] {
        assert!(fused(&config).is_some_and(|off| off < 1e-12), "{config:?}");
    }
    for config in [config(Variant::Bat, 8), config(Variant::Mini, 4)] {
        assert!(fused(&config).is_none(), "{config:?}");
    }
}

#[test]
fn unsupported_settings_are_rejected() {
    let bad = |config: Miss, field: &str| assert!(refused::<Miss>(config).contains(field));
    bad(config(Variant::Balance, 0), "adapter.r");
    bad(Miss { mini_r: 0, ..config(Variant::Mini, 4) }, "adapter.mini_r");
    bad(Miss { miss_dropout: 1.0, ..config(Variant::Balance, 4) }, "adapter.miss_dropout");
    bad(Miss { miss_dropout: 0.1, ..config(Variant::Bat, 4) }, "adapter.miss_dropout");
    let unfit = |config: Miss| {
        attach(&config, &module("self_attn.q_proj", 8, 6)).err().unwrap().to_string()
    };
    assert!(unfit(config(Variant::Balance, 9)).contains("the module only has 8 inputs"));
    assert!(unfit(config(Variant::Bat, 4)).contains("`adapter.r` is 4, which does not divide"));
    assert!(unfit(config(Variant::Bat, 3)).contains("`adapter.r` is 3, which does not divide"));
    let mini = Miss { mini_r: 4, ..config(Variant::Mini, 4) };
    assert!(unfit(mini).contains("`adapter.mini_r` is 4, which does not divide"));
    let read = |init: &str| {
        Miss::from_peft(&format!(
            r#"{{"r": 4, "miss_dropout": 0.5, "target_modules": ["q_proj"], "init_weights": {init}}}"#
        ))
    };
    for (init, variant, dropout) in [
        ("true", Variant::Balance, 0.5),
        ("false", Variant::Balance, 0.5),
        ("\"mini\"", Variant::Mini, 0.5),
        // PEFT does not apply the dropout.
        ("\"bat\"", Variant::Bat, 0.0),
    ] {
        let config = read(init).unwrap();
        assert_eq!((config.variant, config.miss_dropout), (variant, dropout), "{init}");
    }
    assert!(read("\"bone\"").unwrap_err().to_string().contains("`init_weights` = \"bone\""));
}
