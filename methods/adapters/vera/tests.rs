use reprpo_plugin::tch::Device;

use super::super::fixture::{DOUBLE, attached, disturb, off, refused, rows};
use super::*;

fn config() -> Vera {
    Vera { r: 5, ..Vera::default() }
}

fn shared(widths: &[(i64, i64)]) -> (Vec<LinearInfo>, Vec<Parameter>) {
    let info = |(i, &(inputs, outputs)): (usize, &(i64, i64))| LinearInfo {
        name: format!("m.{i}.q_proj"),
        layer: Some(i),
        inputs,
        outputs,
    };
    let infos: Vec<_> = widths.iter().enumerate().map(info).collect();
    let matrices = config()
        .shared(&infos.iter().collect::<Vec<_>>(), &mut Init::new(0, "", Kind::Double, Device::Cpu))
        .unwrap();
    (infos, matrices)
}

#[test]
fn vera_starts_as_the_identity_and_scales_both_sides_of_the_random_matrices() {
    let (adapted, frozen) = attached::<Vera>(config());
    let x = rows(3, 8);
    let base = frozen.forward(&x).unwrap();
    assert!(off(&adapted.forward(&x, &frozen, true).unwrap(), &base) == 0.0);
    disturb(&adapted.parameters());
    let [b, d] = &adapted.parameters()[..] else { panic!("two tensors") };
    // The shared matrices only depend on the widths and the seed, so this call returns the matrices
    // that the adapter uses.
    let (_, matrices) = shared(&[(8, 4)]);
    let expected = base
        + x.matmul(&matrices[0].tensor.tr()).multiply(&d.tensor).matmul(&matrices[1].tensor.tr())
            * &b.tensor;
    assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &expected) < 1e-12);
    assert!(off(&adapted.merge(&frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
}

#[test]
fn modules_of_all_widths_share_two_frozen_matrices() {
    let (infos, matrices) = shared(&[(8, 4), (6, 12)]);
    assert_eq!(matrices.iter().map(|p| p.tensor.size()).collect::<Vec<_>>(), [[5, 8], [12, 5]]);
    assert!(matrices.iter().all(|p| !p.tensor.requires_grad() && p.tensor.is_leaf()));
    for info in &infos {
        let frozen = Frozen::new(Tensor::zeros([info.outputs, info.inputs], DOUBLE), None);
        let mut init = Init::new(0, &info.name, Kind::Double, Device::Cpu);
        let adapted = config()
            .attach(
                &LinearSite { info, frozen: &frozen, shared: &matrices, sources: &[] },
                &mut init,
            )
            .unwrap();
        disturb(&adapted.parameters());
        let x = rows(2, info.inputs);
        let before = adapted.forward(&x, &frozen, false).unwrap();
        // Doubling the first shared matrix must double the output of the adapted module.
        let _ = matrices[0].tensor.shallow_clone().g_mul_scalar_(2.0);
        assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &(before * 2.0)) < 1e-12);
    }
}

#[test]
fn unsupported_settings_are_rejected() {
    assert!(refused::<Vera>(Vera { r: 0, ..config() }).contains("adapter.r"));
    assert!(refused::<Vera>(Vera { d_initial: 0.0, ..config() }).contains("adapter.d_initial"));
    assert!(
        refused::<Vera>(Vera { vera_dropout: 1.0, ..config() }).contains("adapter.vera_dropout")
    );
    let with = |field: &str| {
        Vera::from_peft(&format!(r#"{{"r": 4, "target_modules": ["q_proj"]{field}}}"#))
    };
    assert!(with(r#", "save_projection": true"#).is_ok());
    let e = format!("{:?}", with(r#", "save_projection": false"#).unwrap_err());
    assert!(e.contains("save_projection") && e.contains("hint: load the adapter in PEFT"), "{e}");
}
