use reprpo_plugin::tch::Device;

use super::super::fixture::{DOUBLE, disturb, off, refused, rows};
use super::*;

fn model() -> ModelInfo {
    ModelInfo {
        architecture: "llama".to_owned(),
        layers: 4,
        hidden: 6,
        heads: 1,
        head_dim: 6,
        vocab: 9,
        linears: Vec::new(),
        parts: Vec::new(),
    }
}

fn edit(r: u32, positions: &str) -> Box<dyn AdaptedResidual> {
    let config = LoReft { r, positions: positions.to_owned(), ..LoReft::default() };
    config
        .build()
        .unwrap()
        .attach_block(1, &model(), &mut Init::new(0, "blocks.1", Kind::Double, Device::Cpu))
        .unwrap()
}

/// Positions of a prompt of 4 tokens with a completion of 2 tokens, followed by a prompt of 1
/// token.
fn places() -> PromptPlaces {
    PromptPlaces {
        from_start: Tensor::from_slice(&[0i64, 1, 2, 3, -1, -1, 0]),
        from_end: Tensor::from_slice(&[3i64, 2, 1, 0, -1, -1, 0]),
    }
}

#[test]
fn loreft_starts_as_the_identity_and_replaces_the_state_within_the_subspace() {
    let edit = edit(3, "all");
    let h = rows(7, 6);
    assert!(off(&edit.forward(&h, &places()).unwrap(), &h) < 1e-14);
    disturb(&edit.parameters());
    let [v, w, b] = &edit.parameters()[..] else { panic!("three tensors") };
    let r = orthonormal(&v.tensor).unwrap();
    assert!(off(&r.matmul(&r.tr()), &Tensor::eye(3, DOUBLE)) < 1e-14);
    let changed = edit.forward(&h, &places()).unwrap();
    let wanted = h.matmul(&w.tensor.tr()) + &b.tensor;
    assert!(off(&changed, &(&h + (&wanted - h.matmul(&r.tr())).matmul(&r))) < 1e-12);
    assert!(off(&changed.matmul(&r.tr()), &wanted) < 1e-12);
}

#[test]
fn every_parameter_has_an_initial_gradient() {
    let edit = edit(2, "f1+l2");
    edit.forward(&rows(7, 6), &places()).unwrap().square().sum(Kind::Double).backward();
    for p in edit.parameters() {
        assert!(
            p.tensor.is_leaf() && p.tensor.grad().abs().max().double_value(&[]) > 1e-6,
            "{}",
            p.key
        );
    }
}

#[test]
fn only_the_selected_tokens_change() {
    let h = rows(7, 6);
    for (positions, chosen) in [
        ("f1", vec![0, 6]),
        ("l2", vec![2, 3, 6]),
        ("f1+l1", vec![0, 3, 6]),
        ("l3 + f3", vec![0, 1, 2, 3, 6]),
        ("all", vec![0, 1, 2, 3, 4, 5, 6]),
    ] {
        let edit = edit(2, positions);
        disturb(&edit.parameters());
        let moved = (edit.forward(&h, &places()).unwrap() - &h)
            .abs()
            .amax([1].as_slice(), false)
            .gt(1e-9)
            .nonzero()
            .squeeze_dim(1);
        assert_eq!(Vec::<i64>::try_from(moved).unwrap(), chosen, "{positions}");
    }
}

#[test]
fn the_rows_of_r_change_continuously_where_lapack_would_flip_a_sign() {
    // The rows of R are computed by a QR decomposition. In LAPACK, the sign of a column of Q
    // depends on the sign of the first entry of the input's column.
    let at = |first: f64| {
        orthonormal(&Tensor::from_slice(&[first, 1.0, 0.5, 0.3, -0.2, 1.0]).reshape([2, 3]))
            .unwrap()
    };
    assert!(off(&at(1e-9), &at(-1e-9)) < 1e-8);
}

#[test]
fn a_state_in_half_precision_keeps_its_dtype() {
    let h = rows(7, 6).to_kind(Kind::BFloat16);
    assert_eq!(edit(2, "l2").forward(&h, &places()).unwrap().kind(), Kind::BFloat16);
}

#[test]
fn unsupported_settings_are_rejected() {
    assert!(refused::<LoReft>(LoReft { r: 0, ..LoReft::default() }).contains("adapter.r"));
    for bad in ["", "f", "f0", "f1+f2", "x3", "first", "-1", "f1,l1", "é"] {
        assert!(
            refused::<LoReft>(LoReft { positions: bad.to_owned(), ..LoReft::default() })
                .contains("adapter.positions"),
            "{bad}"
        );
    }
    let wide = LoReft { r: 7, ..LoReft::default() }.build().unwrap();
    let mut init = Init::new(0, "", Kind::Double, Device::Cpu);
    assert!(wide.attach_block(0, &model(), &mut init).err().unwrap().to_string().contains("got 7"));
    let outside = LoReft { layers: Layers("4".to_owned()), ..LoReft::default() }.build().unwrap();
    assert!(outside.blocks(&model()).is_err());
}

#[test]
fn a_saved_adapter_lists_its_blocks() {
    let with = |field: &str| {
        LoReft::from_peft(&format!(
            r#"{{"r": 4, "layers": "0.33,0.66", "positions": "l1"{field}}}"#
        ))
        .unwrap()
        .layers
    };
    assert_eq!(with("").0, "0.33,0.66");
    assert_eq!(with(r#", "layers_to_transform": [0, 2]"#).0, "0,2");
}
