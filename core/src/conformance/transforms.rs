//! Invariants that apply only to transforms.

use std::collections::HashSet;

use tch::{Device, Kind, Tensor};

use super::measure::{difference, largest};
use super::{Invariant, Method, Verdict, fixture};
use crate::api::{Around, Init, Site, Transform, TransformCx};
use crate::error::Result;
use crate::registry::TransformEntry;

/// Invariants for transforms, in addition to [`TRAINING`](super::TRAINING).
pub const TRANSFORMS: &[Invariant<Method<&'static TransformEntry>>] = &[
    Invariant {
        name: "the parameters are trainable leaf tensors with unique names",
        check: naming,
    },
    Invariant { name: "the transform is determined by its seed", check: seeded },
    Invariant { name: "the transform is linear if it claims to be", check: linear },
    Invariant {
        name: "the transform preserves lengths and angles if it claims to",
        check: orthogonal,
    },
];

const ROWS: i64 = 6;

/// Builds the transform for a site in the middle of the model. Returns the transform and the width
/// of the states at the site.
fn build(method: &Method<&'static TransformEntry>, seed: u64) -> Result<(Box<dyn Transform>, i64)> {
    let model = fixture::model(Kind::Double)?;
    let site = Site::Residual(2);
    let width = model.info().width(&site)?;
    let [embedding, unembedding] = &model.embeddings()?;
    let cx = TransformCx { model: model.info(), site: &site, width, embedding, unembedding };
    Ok((
        method.entry.build(
            &method.json,
            &cx,
            &mut Init::new(seed, "transform", Kind::Double, model.device()),
        )?,
        width,
    ))
}

/// Builds the transform and adds noise to its parameters, because some transforms are initialised
/// as the identity.
fn disturbed(method: &Method<&'static TransformEntry>) -> Result<(Box<dyn Transform>, i64)> {
    let (transform, width) = build(method, 0)?;
    let _guard = tch::no_grad_guard();
    for p in transform.parameters() {
        let _ = p.tensor.shallow_clone().f_add_(&(noise(&p.key, &p.tensor.size()) * 0.3))?;
    }
    Ok((transform, width))
}

fn noise(key: &str, shape: &[i64]) -> Tensor {
    Init::new(3, "noise", Kind::Double, Device::Cpu).normal(key, shape, 1.0).detach()
}

/// Applies the transform to `x`. The rows of `x` are the tokens of two sequences. The states at the
/// previous tap are fixed random numbers.
fn apply(transform: &dyn Transform, x: &Tensor) -> Result<Tensor> {
    let around = Around {
        previous: Some(noise("previous", &x.size())),
        last: Some(Tensor::from_slice(&[1i64, 1, 5, 5, 5, 5])),
    };
    transform.forward(x, &around)
}

fn tensors(transform: &dyn Transform) -> Vec<Tensor> {
    transform.parameters().into_iter().map(|p| p.tensor).collect()
}

fn naming(method: &Method<&'static TransformEntry>) -> Result<Verdict> {
    let (transform, _) = build(method, 0)?;
    let mut seen = HashSet::new();
    for p in transform.parameters() {
        if p.key.is_empty() || !seen.insert(p.key.clone()) {
            return Ok(Verdict::Violated(format!("the name `{}` is empty or not unique", p.key)));
        }
        if !p.tensor.is_leaf() || !p.tensor.requires_grad() {
            return Ok(Verdict::Violated(format!("`{}` is not a trainable leaf tensor", p.key)));
        }
    }
    Ok(Verdict::Holds)
}

fn seeded(method: &Method<&'static TransformEntry>) -> Result<Verdict> {
    let run = |before: i64| {
        // The result must not depend on the state of libtorch's generator.
        tch::manual_seed(before);
        build(method, 1)
    };
    let ((one, width), (two, _)) = (run(101)?, run(102)?);
    let (a, b) = (tensors(one.as_ref()), tensors(two.as_ref()));
    if a.len() != b.len() || a.iter().zip(&b).any(|(a, b)| a != b) {
        return Ok(Verdict::Violated(
            "two transforms with the same seed have different parameters".to_owned(),
        ));
    }
    let x = noise("x", &[ROWS, width]);
    let same = apply(one.as_ref(), &x)? == apply(two.as_ref(), &x)?;
    Ok(Verdict::unless(
        (!same).then(|| "two transforms with the same seed compute different values".to_owned()),
    ))
}

fn linear(method: &Method<&'static TransformEntry>) -> Result<Verdict> {
    let _guard = tch::no_grad_guard();
    let (transform, width) = disturbed(method)?;
    if !transform.linear() {
        return Ok(Verdict::DoesNotApply("the transform does not claim to be linear"));
    }
    let (x, y) = (noise("x", &[ROWS, width]), noise("y", &[ROWS, width]));
    let (tx, ty) = (apply(transform.as_ref(), &x)?, apply(transform.as_ref(), &y)?);
    let mixed = apply(transform.as_ref(), &(&x * 2.0 - &y * 3.0))?;
    let off = largest(&(mixed - (&tx * 2.0 - ty * 3.0)));
    // The engine transforms pooled states without context, so a linear transform must give the same
    // result with and without context.
    let pooled = transform.forward(&x, &Around::default())?;
    Ok(match Verdict::within("T(2x − 3y)", off, 1e-9) {
        Verdict::Holds => {
            Verdict::within("T(x) without context", difference(&[pooled], &[tx]), 1e-9)
        }
        violated => violated,
    })
}

fn orthogonal(method: &Method<&'static TransformEntry>) -> Result<Verdict> {
    let _guard = tch::no_grad_guard();
    for (transform, width) in [build(method, 0)?, disturbed(method)?] {
        if !transform.orthogonal() {
            return Ok(Verdict::DoesNotApply(
                "the transform does not claim to preserve lengths and angles",
            ));
        }
        let x = noise("x", &[ROWS, width]);
        let y = apply(transform.as_ref(), &x)?;
        // The inner products determine the lengths of the rows and the angles between them.
        let off = largest(&(y.matmul(&y.tr()) - x.matmul(&x.tr())));
        let outcome = Verdict::within("an inner product", off, 1e-9);
        if outcome != Verdict::Holds {
            return Ok(outcome);
        }
    }
    Ok(Verdict::Holds)
}
