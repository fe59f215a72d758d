use super::super::fixture::{DOUBLE, attach, attached, disturb, module, off, refused, rows};
use super::*;

fn config(boft_block_size: u32, boft_n_butterfly_factor: u32) -> Boft {
    Boft { boft_block_size, boft_n_butterfly_factor, ..Boft::default() }
}

/// Builds P_i as a matrix from its definition: if P_i moves entry c to position j, then row j has a
/// 1 in column c.
fn permutation(inputs: i64, b: i64, i: u32) -> Tensor {
    if i == 0 {
        return Tensor::eye(inputs, DOUBLE);
    }
    let (group, half) = (b * 2i64.pow(i), b / 2);
    let p = Tensor::zeros([inputs, inputs], DOUBLE);
    for start in (0..inputs).step_by(group as usize) {
        let halves = group / half;
        let order: Vec<i64> = (0..halves).step_by(2).chain((1..halves).step_by(2)).collect();
        for (to, from) in order.into_iter().enumerate() {
            for e in 0..half {
                let _ = p.get(start + to as i64 * half + e).get(start + from * half + e).fill_(1.0);
            }
        }
    }
    p
}

/// Returns B_{m−1}⋯B₀ as a matrix.
fn product(r: &Tensor) -> Tensor {
    let (m, k, b) = (r.size()[0], r.size()[1], r.size()[2]);
    (0..m).fold(Tensor::eye(k * b, DOUBLE), |product, i| {
        let skew = (r.get(i) - r.get(i).transpose(1, 2)) * 0.5;
        let eye = Tensor::eye(b, DOUBLE);
        let blocks: Vec<_> =
            (0..k).map(|j| (&eye - skew.get(j)).matmul(&(&eye + skew.get(j)).inverse())).collect();
        let p = permutation(k * b, b, i as u32);
        p.matmul(&Tensor::block_diag(&blocks)).matmul(&p.tr()).matmul(&product)
    })
}

#[test]
fn boft_starts_as_the_identity() {
    let (adapted, frozen) = attached::<Boft>(config(2, 2));
    let x = rows(3, 8);
    assert!(
        off(&adapted.forward(&x, &frozen, true).unwrap(), &frozen.forward(&x).unwrap()) < 1e-14
    );
}

#[test]
fn the_factors_are_products_of_permuted_blocks() {
    for (inputs, block, factors) in
        [(8, 4, 1), (6, 3, 1), (8, 2, 2), (8, 2, 3), (24, 4, 2), (32, 4, 4)]
    {
        let module = module("self_attn.q_proj", inputs, 4);
        let adapted = attach(&*config(block, factors).build().unwrap(), &module).unwrap();
        disturb(&adapted.parameters());
        let [r, s] = &adapted.parameters()[..] else { panic!("two tensors") };
        let (x, frozen) = (rows(3, inputs), &module.1);
        let turned = x.matmul(&product(&r.tensor)).matmul(&frozen.dense().unwrap().tr());
        let expected = turned * s.tensor.squeeze() + frozen.bias().unwrap();
        assert!(off(&adapted.forward(&x, frozen, false).unwrap(), &expected) < 1e-12);
        assert!(off(&adapted.merge(frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
    }
}

#[test]
fn unsupported_settings_are_rejected() {
    assert!(refused::<Boft>(Boft { boft_block_num: 2, ..config(4, 1) }).contains("boft_block_num"));
    assert!(refused::<Boft>(config(4, 0)).contains("boft_n_butterfly_factor"));
    let on_module = |c: Boft| {
        format!("{:?}", attach(&*c.build().unwrap(), &module("mlp.up_proj", 12, 4)).err().unwrap())
    };
    assert!(on_module(config(5, 1)).contains("`adapter.boft_block_size` is 5"));
    assert!(on_module(config(3, 2)).contains("boft_n_butterfly_factor"));
    assert!(on_module(config(2, 3)).contains("boft_n_butterfly_factor"));
    assert!(
        on_module(Boft { boft_block_num: 7, ..config(0, 1) })
            .contains("`adapter.boft_block_num` is 7")
    );
    let with = |field: &str| {
        Boft::from_peft(&format!(
            r#"{{"boft_block_size": 8, "boft_block_num": 0, "target_modules": ["q_proj"]{field}}}"#
        ))
    };
    assert_eq!(with(r#", "boft_dropout": 0.0"#).unwrap().boft_n_butterfly_factor, 1);
    // Dropout only acts in training.
    assert_eq!(with(r#", "boft_dropout": 0.1"#).unwrap().boft_n_butterfly_factor, 1);
}
