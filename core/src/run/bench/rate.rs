//! The speed of the machine's matrix products at the shapes of a model.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tch::{Cuda, Device, Tensor};

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
    /// Operations per second.
    pub rate: f64,
}

/// The rate of each shape.
pub type Rates = BTreeMap<Shape, Measurement>;

/// Measures `at::linear` with the weights of the model, in its dtype and on its device. The head
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
            let rate = rate(&weight(model, shape)?, rows)?;
            Ok((*shape, Measurement { rows, rate }))
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

/// Returns the operations per second of products of `rows` rows with `weight` `[out in]`.
fn rate(weight: &Tensor, rows: i64) -> Result<f64> {
    let (outputs, inputs) = weight.size2()?;
    let x = Tensor::f_randn([rows, inputs], (weight.kind(), weight.device()))?;
    let product = || x.f_linear(weight, None::<&Tensor>);
    let wait = || {
        if let Device::Cuda(index) = weight.device() {
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
    Ok(2.0 * (rows * inputs * outputs * products) as f64 / begin.elapsed().as_secs_f64())
}
