use super::super::fixture::{attach, disturb, module, off, refused, rows};
use super::*;

const VARIANTS: [(Variant, i64); 3] =
    [(Variant::Road1, 4), (Variant::Road2, 8), (Variant::Road4, 16)];

fn config(variant: Variant) -> Road {
    Road { variant, group_size: 4, ..Road::default() }
}

/// Returns R u, computed entry by entry for groups of 4 outputs.
fn rotated(variant: Variant, theta: &[f64], alpha: &[f64], u: &[f64]) -> Vec<f64> {
    (0..u.len())
        .map(|j| {
            let (group, at) = (j / 4, j % 4);
            // Indices of the parameters of c₁ and of c₂.
            let (first, second) = match variant {
                Variant::Road1 => (2 * group + at % 2, 2 * group + at % 2),
                Variant::Road2 => (j, j),
                Variant::Road4 => (8 * group + at, 8 * group + 4 + at),
            };
            let partner = if at < 2 { -u[j + 2] } else { u[j - 2] };
            alpha[first] * theta[first].cos() * u[j] + alpha[second] * theta[second].sin() * partner
        })
        .collect()
}

#[test]
fn road_starts_as_the_identity_and_rotates_pairs_of_outputs() {
    for (variant, entries) in VARIANTS {
        let module = module("self_attn.q_proj", 6, 8);
        let adapted = attach(&*config(variant).build().unwrap(), &module).unwrap();
        let (x, frozen) = (rows(1, 6), &module.1);
        let base = frozen.forward(&x).unwrap();
        assert!(off(&adapted.forward(&x, frozen, true).unwrap(), &base) == 0.0);
        disturb(&adapted.parameters());
        let [theta, alpha] = &adapted.parameters()[..] else { panic!("two tensors") };
        assert_eq!((theta.tensor.size(), alpha.tensor.size()), (vec![entries], vec![entries]));
        let axis = (variant == Variant::Road2).then_some(Axis::Output(0));
        assert_eq!((theta.axis, alpha.axis), (axis, axis));
        let values = |t: &Tensor| Vec::<f64>::try_from(t.reshape([-1])).unwrap();
        let expected =
            rotated(variant, &values(&theta.tensor), &values(&alpha.tensor), &values(&base));
        let expected = Tensor::from_slice(&expected).reshape([1, 8]);
        assert!(off(&adapted.forward(&x, frozen, false).unwrap(), &expected) < 1e-12);
        assert!(off(&adapted.merge(frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
    }
}

/// Fuses adapters on the first and the last part of a module whose rows are [4 4 8] in two groups.
fn fused(group_size: u32, variant: Variant) -> Option<Fused> {
    let config = Road { variant, group_size, ..Road::default() };
    let whole = module("self_attn.qkv_proj", 6, 32);
    let part = |name: &str, start, len| PartInfo {
        linear: module(&format!("self_attn.qkv_proj.{name}"), 6, 2 * len).0,
        holder: whole.0.name.clone(),
        rows: Rows { groups: 2, start, len, width: 16 },
    };
    let infos = [part("q_proj", 0, 4), part("v_proj", 8, 8)];
    let parts = infos
        .iter()
        .map(|info| {
            let module = (info.linear.clone(), whole.1.part(info.rows).unwrap());
            let adapted = attach(&*config.clone().build().unwrap(), &module).unwrap();
            disturb(&adapted.parameters());
            AdaptedPart { info, parameters: adapted.parameters() }
        })
        .collect();
    let site = FusedSite {
        module: LinearSite { info: &whole.0, frozen: &whole.1, shared: &[], sources: &[] },
        parts,
    };
    config.fuse(&[site]).unwrap()
}

#[test]
fn parts_are_only_fused_if_they_consist_of_whole_groups() {
    for (variant, _) in VARIANTS {
        assert!(fused(4, variant).is_some() && fused(8, variant).is_none());
        let whole = &fused(4, variant).unwrap().modules[0];
        let x = rows(3, 6);
        let frozen = module("self_attn.qkv_proj", 6, 32).1;
        let (y, base) = (whole.forward(&x, &frozen, false).unwrap(), frozen.forward(&x).unwrap());
        // Rows 4 to 7 and 20 to 23 belong to the part without an adapter.
        for (start, len, adapted) in
            [(0, 4, true), (4, 4, false), (8, 12, true), (20, 4, false), (24, 8, true)]
        {
            let change = off(&y.narrow(1, start, len), &base.narrow(1, start, len));
            assert_eq!(change > 0.0, adapted, "rows {start} to {}: {change}", start + len - 1);
        }
    }
}

#[test]
fn unsupported_settings_are_rejected() {
    for group_size in [0, 3] {
        let bad = Road { group_size, ..Road::default() };
        assert!(refused::<Road>(bad).contains("`adapter.group_size` must be an even number"));
    }
    let config = Road { group_size: 8, ..Road::default() };
    let e = format!("{:?}", attach(&config, &module("self_attn.q_proj", 8, 12)).err().unwrap());
    assert!(e.contains("`adapter.group_size` is 8, which does not divide"), "{e}");
    let read =
        |fields: &str| Road::from_peft(&format!(r#"{{"target_modules": ["q_proj"]{fields}}}"#));
    let plain = read("").unwrap();
    assert_eq!((plain.variant, plain.group_size), (Variant::Road1, 64));
    assert_eq!(read(r#", "variant": "road_4""#).unwrap().variant, Variant::Road4);
    assert!(read(r#", "variant": "road_3""#).unwrap_err().to_string().contains("`variant`"));
}
