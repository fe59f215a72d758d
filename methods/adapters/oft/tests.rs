use super::super::fixture::{attached, disturb, off, refused, rows};
use super::*;

fn config(oft_block_size: u32) -> Oft {
    Oft { oft_block_size, use_cayley_neumann: false, ..Oft::default() }
}

fn norms(w: &Tensor) -> Tensor {
    w.norm_scalaropt_dim(2.0, 1, false)
}

#[test]
fn oft_starts_as_the_identity_and_remains_a_rotation() {
    for use_cayley_neumann in [false, true] {
        let (adapted, frozen) = attached::<Oft>(Oft { use_cayley_neumann, ..config(4) });
        let x = rows(3, 8);
        assert!(
            off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap()) < 1e-14
        );
        disturb(&adapted.parameters());
        let merged = adapted.merge(&frozen).unwrap();
        assert!(
            off(&merged.forward(&x).unwrap(), &adapted.forward(&x, &frozen, false).unwrap())
                < 1e-12
        );
        assert!(off(&merged.dense().unwrap(), &frozen.dense().unwrap()) > 1e-2);
        // The truncated series is only approximately a rotation.
        assert!(
            off(&norms(&merged.dense().unwrap()), &norms(&frozen.dense().unwrap()))
                < if use_cayley_neumann { 0.3 } else { 1e-12 }
        );
    }
}

#[test]
fn the_number_of_blocks_can_replace_their_size() {
    let size = |c: Oft| attached::<Oft>(c).0.parameters()[0].tensor.size();
    assert_eq!(size(config(4)), [2, 6]);
    assert_eq!(size(Oft { r: 2, ..config(0) }), [2, 6]);
    assert_eq!(size(Oft { block_share: true, ..config(2) }), [1, 1]);
}

#[test]
fn shared_blocks_have_the_same_rotation() {
    let (adapted, frozen) = attached::<Oft>(Oft { block_share: true, ..config(4) });
    disturb(&adapted.parameters());
    let (separate, _) = attached::<Oft>(config(4));
    separate.parameters()[0]
        .tensor
        .detach()
        .copy_(&adapted.parameters()[0].tensor.expand([2, 6], false));
    let x = rows(3, 8);
    assert!(
        off(
            &adapted.forward(&x, &frozen, false).unwrap(),
            &separate.forward(&x, &frozen, false).unwrap()
        ) < 1e-14
    );
    assert!(
        off(
            &adapted.merge(&frozen).unwrap().dense().unwrap(),
            &separate.merge(&frozen).unwrap().dense().unwrap()
        ) < 1e-14
    );
}

#[test]
fn the_series_counts_its_terms_like_peft() {
    let q = &Tensor::from_slice(&[0.0, 0.1, -0.1, 0.0]).reshape([1, 2, 2]);
    let power = |n: i64| q.matrix_power(n);
    let i = power(0);
    assert!(off(&series(q, 2).unwrap(), &(&i + q * 2.0)) < 1e-15);
    let cubic = &i + q * 2.0 + power(2) * 2.0 + power(3);
    assert!(off(&series(q, 3).unwrap(), &cubic) < 1e-15);
    assert!(off(&series(q, 4).unwrap(), &cubic) < 1e-15);
    assert!(
        off(&series(q, 6).unwrap(), &(i + (q + power(2) + power(3) + power(4)) * 2.0 + power(5)))
            < 1e-15
    );
    // With more terms, the series approaches (I + Q)(I − Q)⁻¹, which is the exact Cayley map of −Q.
    assert!(off(&series(q, 20).unwrap(), &cayley(&-q).unwrap()) < 1e-12);
}

#[test]
fn unsupported_settings_are_rejected() {
    assert!(refused::<Oft>(Oft { r: 2, ..config(4) }).contains("adapter.oft_block_size"));
    assert!(refused::<Oft>(config(0)).contains("adapter.r"));
    assert!(
        refused::<Oft>(Oft { num_cayley_neumann_terms: 1, ..Oft::default() })
            .contains("num_cayley_neumann_terms")
    );
    let module = super::super::fixture::module("mlp.up_proj", 6, 4);
    let e = super::super::fixture::attach(&*config(4).build().unwrap(), &module).err().unwrap();
    assert!(
        format!("{e:?}").contains("`adapter.oft_block_size` is 4")
            && format!("{e:?}").contains("1, 2, 3, 6"),
        "{e:?}"
    );
    let with = |field: &str| {
        Oft::from_peft(&format!(
            r#"{{"r": 0, "oft_block_size": 8, "target_modules": ["q_proj"]{field}}}"#
        ))
    };
    assert!(
        with(r#", "coft": false, "eps": 6e-5, "layers_to_transform": 1"#)
            .unwrap()
            .layers_to_transform
            == Some(vec![1])
    );
    assert!(with(r#", "coft": true"#).unwrap_err().to_string().contains("coft"));
}
