//! What every built-in transform promises.

use reprpo_core::registry::{Kind as PluginKind, Make, Registry};
use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::{self, Device};

const WIDTH: i64 = 6;

fn build(name: &str, json: &str) -> Result<Box<dyn Transform>> {
    let Make::Transform(build) = Registry::builtin()?.get(PluginKind::Transform, name)?.make else { panic!("`{name}` is no transform") };
    let site = Site::Residual(1);
    let matrix = values(&[11, WIDTH]);
    build(
        json,
        &TransformCx { site: &site, width: WIDTH, embedding: &matrix, unembedding: &matrix },
        &mut Init::new(0, "hidden_states.1", Kind::Double, Device::Cpu),
    )
}

const ALL: [(&str, &str); 6] =
    [("none", "{}"), ("hra", r#"{"r": 4}"#), ("hra", "{}"), ("ortho", "{}"), ("ortho", r#"{"map": "cayley"}"#), ("ortho", r#"{"map": "matrix_exp"}"#)];

fn values(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu))
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn they_are_linear_and_keep_lengths_and_angles() {
    let _guard = tch::no_grad_guard();
    for (name, json) in ALL {
        let t = build(name, json).unwrap();
        // Off the start, where hra is the identity.
        for mut p in t.parameters() {
            p.tensor += values(&p.tensor.size()) * 0.3;
        }
        assert!(t.linear() && t.orthogonal());
        let (x, y) = (values(&[2, 5, WIDTH]), values(&[2, 5, WIDTH]));
        let (tx, ty) = (t.forward(&x, &Around::default()).unwrap(), t.forward(&y, &Around::default()).unwrap());
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum_dim_intlist(-1, false, None::<Kind>);
        assert!(off(&dot(&tx, &ty), &dot(&x, &y)) < 1e-11, "{name} {json}");
        assert!(off(&t.forward(&(&x * 2.0 - &y), &Around::default()).unwrap(), &(&tx * 2.0 - &ty)) < 1e-11, "{name} {json}");
    }
}

#[test]
fn hra_starts_as_the_identity_and_ortho_as_a_rotation_of_its_own() {
    let x = values(&[3, WIDTH]);
    for (name, json) in ALL {
        let change = off(&build(name, json).unwrap().forward(&x, &Around::default()).unwrap(), &x);
        assert_eq!(change < 1e-12, name != "ortho", "{name} {json}: {change}");
    }
    assert!(build("hra", r#"{"r": 3}"#).err().unwrap().to_string().contains("transform.r"));
    assert!(build("hra", r#"{"r": 0}"#).is_err());
    assert!(build("ortho", r#"{"map": "other"}"#).is_err());
}

#[test]
fn gradients_are_those_of_finite_differences() {
    tch::manual_seed(1);
    for (name, json) in ALL {
        let t = build(name, json).unwrap();
        let (x, weight) = (values(&[3, WIDTH]).set_requires_grad(true), values(&[3, WIDTH]));
        let loss = || (t.forward(&x, &Around::default()).unwrap() * &weight).sum(Kind::Double);
        loss().backward();
        let _guard = tch::no_grad_guard();
        for tensor in t.parameters().into_iter().map(|p| p.tensor).chain([x.shallow_clone()]) {
            let (grad, direction, step) = (tensor.grad(), values(&tensor.size()), 1e-6);
            let mut moved = tensor.detach();
            moved += &direction * step;
            let above = loss().double_value(&[]);
            moved -= &direction * (2.0 * step);
            let below = loss().double_value(&[]);
            moved += &direction * step;
            let (numeric, exact) = ((above - below) / (2.0 * step), (grad * direction).sum(Kind::Double).double_value(&[]));
            assert!((numeric - exact).abs() < 1e-6 * exact.abs().max(1.0), "{name} {json}: {numeric} {exact}");
        }
    }
}
