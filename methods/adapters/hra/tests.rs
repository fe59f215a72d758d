use super::super::fixture::{DOUBLE, attach, disturb, module, off, rows};
use super::*;

fn attached(r: u32) -> (Box<dyn AdaptedLinear>, Frozen) {
    super::super::fixture::attached::<Hra>(Hra { r, ..Hra::default() })
}

#[test]
fn only_an_even_rank_starts_as_the_identity() {
    let x = rows(3, 8);
    for (r, identity) in [(2, true), (8, true), (1, false), (5, false)] {
        let (adapted, frozen) = attached(r);
        let change =
            off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap());
        assert_eq!(change < 1e-12, identity, "r = {r}: {change}");
        let u = &adapted.parameters()[0].tensor;
        assert!(u.is_leaf() && u.requires_grad() && u.size() == [8, i64::from(r)]);
    }
}

#[test]
fn merged_weights_compute_the_same_and_keep_the_norms_of_their_rows() {
    let (adapted, frozen) = attached(5);
    let x = rows(3, 8);
    let merged = adapted.merge(&frozen).unwrap();
    let norms = |w: &Tensor| w.norm_scalaropt_dim(2.0, 1, false);
    assert!(off(&norms(&merged.dense().unwrap()), &norms(&frozen.dense().unwrap())) < 1e-12);
    assert!(
        off(&merged.forward(&x).unwrap(), &adapted.forward(&x, &frozen, false).unwrap()) < 1e-12
    );
    let half = Frozen::new(frozen.dense().unwrap().to_kind(Kind::BFloat16), None);
    assert_eq!(adapted.merge(&half).unwrap().kind(), Kind::BFloat16);
}

#[test]
fn unsupported_settings_are_rejected() {
    assert!(Hra { r: 0, ..Hra::default() }.build().is_err());
    let wide = Hra { r: 9, apply_gs: true, ..Hra::default() }.build().unwrap();
    assert!(
        attach(&*wide, &module("mlp.up_proj", 8, 4)).err().unwrap().to_string().contains("got 9")
    );
    assert!(
        Hra::from_peft(r#"{"r": 4, "target_modules": ["q_proj"], "apply_GS": true}"#)
            .unwrap()
            .apply_gs
    );
    assert_eq!(
        Hra::from_peft(r#"{"r": 4, "target_modules": ["q_proj"], "apply_GS": false}"#).unwrap().r,
        4
    );
}

/// Gram–Schmidt orthonormalisation, one column at a time.
fn gram_schmidt(u: &Tensor) -> Tensor {
    let mut columns: Vec<Tensor> = Vec::new();
    for i in 0..u.size()[1] {
        let v = columns.iter().fold(u.select(1, i), |v, q| &v - q * q.dot(&v));
        columns.push(&v / v.norm());
    }
    Tensor::stack(&columns, 1)
}

#[test]
fn with_gram_schmidt_the_spanned_space_is_reflected() {
    for r in [1, 2, 5] {
        let module = module("self_attn.q_proj", 8, 4);
        let adapted =
            attach(&*Hra { r, apply_gs: true, ..Hra::default() }.build().unwrap(), &module)
                .unwrap();
        let (x, frozen) = (rows(3, 8), &module.1);
        assert!(
            off(&adapted.forward(&x, frozen, true).unwrap(), &frozen.forward(&x).unwrap()) > 1e-2,
            "with Gram–Schmidt, the initial adapter must change the output"
        );
        disturb(&adapted.parameters());
        let u = &adapted.parameters()[0].tensor;
        let q = gram_schmidt(u);
        let expected =
            frozen.forward(&x.matmul(&(Tensor::eye(8, DOUBLE) - q.matmul(&q.tr()) * 2.0))).unwrap();
        let ours = adapted.forward(&x, frozen, true).unwrap();
        assert!(off(&ours, &expected) < 1e-12);
        assert!(off(&adapted.merge(frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
        let gradient = |y: &Tensor| {
            Tensor::run_backward(&[y.square().sum(Kind::Double)], &[u], false, false).remove(0)
        };
        assert!(off(&gradient(&ours), &gradient(&expected)) < 1e-9);
    }
}
