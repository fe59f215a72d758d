//! The speed of the machine's matrix products at the shapes of a model.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tch::{Cuda, Device, Tensor};

use crate::api::linear;
use crate::error::{Error, Result};
use crate::model::{Model, logits_at_once};
use crate::train::Shape;

/// Each shape is measured for at least this long.
const LEAST: Duration = Duration::from_millis(200);

/// The rate of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// Number of rows.
    pub rows: i64,
    /// Operations per second of `at::linear`.
    pub rate: f64,
    /// Operations per second of the engine's own product.
    pub product: f64,
}

/// The rate of each shape.
pub type Rates = BTreeMap<Shape, Measurement>;

/// Measures `at::linear` and the engine's product with the weights of the model, in its dtype and
/// on its device. They only differ where the product of libtorch is slow on the processor. The head
/// has `scored` rows, and all other shapes have `rows` rows.
///
/// # Errors
/// Fails if memory runs out.
pub fn measure<'s>(
    model: &Model,
    shapes: impl Iterator<Item = &'s Shape>,
    rows: i64,
    scored: i64,
) -> Result<Rates> {
    let _guard = tch::no_grad_guard();
    let logits = logits_at_once(model.device());
    shapes
        .map(|shape| {
            let row = shape.outputs * model.kind().elt_size_in_bytes() as i64;
            // The engine computes logits in chunks.
            let rows = if shape.head { scored.min((logits / row).max(1)) } else { rows };
            let weight = weight(model, shape)?;
            let x = Tensor::f_randn([rows, shape.inputs], (weight.kind(), weight.device()))?;
            let operations = (2 * rows * shape.inputs * shape.outputs) as f64;
            let libtorch = per_second(&x, || Ok(x.f_linear(&weight, None::<&Tensor>)?))?;
            let own = per_second(&x, || linear(&x, &weight, None))?;
            let [rate, product] = [libtorch, own].map(|times| times * operations);
            Ok((*shape, Measurement { rows, rate, product }))
        })
        .collect()
}

/// The weight of the first module with this shape, `[out in]`.
fn weight(model: &Model, shape: &Shape) -> Result<Tensor> {
    if shape.head {
        let [_, head] = model.embeddings()?;
        return Ok(head);
    }
    let mut linears = model.info().linears.iter();
    let module = linears.find(|l| (l.inputs, l.outputs) == (shape.inputs, shape.outputs));
    let module = module.ok_or_else(|| Error::internal("the model has no module of a shape"))?;
    model.frozen(&module.name)?.dense()
}

/// Returns how often `product` can be computed per second. It reads `x`.
fn per_second(x: &Tensor, product: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let wait = || {
        if let Device::Cuda(index) = x.device() {
            Cuda::synchronize(index as i64);
        }
    };
    drop(product()?);
    wait();
    let (begin, mut products) = (Instant::now(), 0);
    while products < 3 || begin.elapsed() < LEAST {
        // Waiting for each product would leave the GPU idle in between.
        for _ in 0..3 {
            drop(product()?);
        }
        wait();
        products += 3;
    }
    Ok(f64::from(products) / begin.elapsed().as_secs_f64())
}
