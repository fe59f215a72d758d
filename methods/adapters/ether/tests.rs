use super::super::fixture::{DOUBLE, attach, attached, disturb, module, off, refused, rows};
use super::*;

fn config(plus: bool, two_sided: bool) -> Ether {
    Ether { blocks: 2, plus, two_sided, ..Ether::default() }
}

/// Builds the block-diagonal matrix H from its definition.
fn matrix(u: &Tensor, w: Option<&Tensor>, k: i64) -> Tensor {
    let outer = |v: Tensor| {
        let v = &v / v.norm();
        v.outer(&v)
    };
    let part = |v: &Tensor, i: i64| v.reshape([k, -1]).get(i);
    let blocks: Vec<_> = (0..k)
        .map(|i| {
            let eye = Tensor::eye(u.size()[0] / k, DOUBLE);
            match w {
                None => eye - outer(part(u, i)) * 2.0,
                Some(w) => eye - outer(part(u, i)) + outer(part(w, i)),
            }
        })
        .collect();
    Tensor::block_diag(&blocks)
}

#[test]
fn every_form_equals_the_product_with_its_matrices() {
    for (plus, two_sided) in [(false, false), (false, true), (true, false), (true, true)] {
        let (adapted, frozen) = attached::<Ether>(config(plus, two_sided));
        disturb(&adapted.parameters());
        let of =
            |key: &str| adapted.parameters().into_iter().find(|p| p.key == key).map(|p| p.tensor);
        let h = matrix(&of("ether_u").unwrap(), of("ether_w").as_ref(), 2);
        let out = of("ether_out_u")
            .map_or_else(|| Tensor::eye(4, DOUBLE), |u| matrix(&u, of("ether_out_w").as_ref(), 2));
        let x = rows(3, 8);
        let expected = x.matmul(&out.matmul(&frozen.dense().unwrap()).matmul(&h).tr())
            + frozen.bias().unwrap();
        assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &expected) < 1e-12);
        assert!(off(&adapted.merge(&frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
    }
}

#[test]
fn only_the_relaxed_form_starts_as_the_identity() {
    let x = rows(3, 8);
    for (plus, two_sided) in [(true, false), (true, true), (false, false), (false, true)] {
        let (adapted, frozen) = attached::<Ether>(config(plus, two_sided));
        let change =
            off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap());
        assert_eq!(change < 1e-12, plus, "{change}");
        let parameters = adapted.parameters();
        assert_eq!(parameters.len(), (1 + usize::from(plus)) * (1 + usize::from(two_sided)));
        // With `plus`, u and w start with the same values. They are separate tensors, and both are
        // trained.
        adapted.forward(&x, &frozen, true).unwrap().square().sum(Kind::Double).backward();
        let trained = |t: &Tensor| t.is_leaf() && t.grad().abs().max().double_value(&[]) > 1e-6;
        assert!(parameters.iter().all(|p| trained(&p.tensor)));
    }
}

#[test]
fn unsupported_settings_are_rejected() {
    assert!(refused::<Ether>(Ether { blocks: 0, ..Ether::default() }).contains("adapter.blocks"));
    let ether =
        |two_sided: bool| Ether { blocks: 4, two_sided, ..Ether::default() }.build().unwrap();
    let module = module("mlp.up_proj", 8, 6);
    assert!(attach(&*ether(false), &module).is_ok());
    let e = format!("{:?}", attach(&*ether(true), &module).err().unwrap());
    assert!(e.contains("`adapter.blocks` is 4") && e.contains("1, 2, 3, 6"), "{e}");
    assert!(Ether::from_peft(r#"{"blocks": 4, "target_modules": ["q_proj"]}"#).is_err());
}
