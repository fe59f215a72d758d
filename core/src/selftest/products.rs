//! Checks matrix products with frozen weights against float64 on the CPU.
//!
//! On the CPU, float32 products with a single row have a separate implementation. Only decoding
//! uses it.

use tch::{Device, Kind, Tensor};

use super::report::{Difference, Row};
use super::{Section, Selftest, kind_name};
use crate::api::Frozen;
use crate::error::Result;

/// Number of outputs and inputs of each weight matrix. Some sizes are multiples of the width of a
/// vector register and some are not. The last matrix is large enough for its product to be split
/// across cores.
const SIZES: [(i64, i64); 6] = [(1, 1), (37, 50), (64, 63), (576, 1536), (1536, 576), (4099, 577)];

/// Compares matrix products of all sizes with the reference.
///
/// # Errors
/// Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let kinds = [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)];
    test.begin(Section::Products, 2 * kinds.len());
    for (kind, tolerance) in kinds {
        for (name, rows, trained) in
            [("one row", 1, false), ("many rows and their gradient", 33, true)]
        {
            let name = format!("{name}, {}", kind_name(kind));
            test.check(Section::Products, &name, |test| {
                let of =
                    |size: &(i64, i64)| product(rows, *size, kind, test.device, trained, tolerance);
                let all = SIZES.iter().map(of).collect::<Result<Vec<_>>>()?;
                Ok(Difference::worst_of(all.into_iter().flatten())
                    .map(|worst| Row::of(Section::Products, &name, worst))
                    .into_iter()
                    .collect())
            })?;
        }
    }
    Ok(())
}

/// Compares y = xWᵀ + b with the reference and, if `trained` is true, also the gradient of x.
fn product(
    rows: i64,
    (outputs, inputs): (i64, i64),
    kind: Kind,
    device: Device,
    trained: bool,
    tolerance: f64,
) -> Result<Vec<Difference>> {
    tch::manual_seed(outputs * 10_000 + inputs);
    // Round the inputs of the reference to the tested precision, so that only the computation
    // differs.
    let random = |shape: &[i64]| {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind).to_kind(Kind::Double)
    };
    let (x, weight, bias, dy) = (
        random(&[rows, inputs]),
        random(&[outputs, inputs]),
        random(&[outputs]),
        random(&[rows, outputs]),
    );
    let computed = |kind: Kind, device: Device| -> Result<Vec<Tensor>> {
        let on = |t: &Tensor| t.to_kind(kind).to_device(device);
        let x = on(&x).set_requires_grad(trained);
        let y = Frozen::new(on(&weight), Some(on(&bias))).forward(&x)?;
        let mut all = vec![y.detach()];
        if trained {
            (y * on(&dy)).sum(kind).f_backward()?;
            all.push(x.grad());
        }
        Ok(all)
    };
    let size = format!("{outputs} × {inputs}");
    let names =
        [format!("product of size {size}"), format!("gradient of a product of size {size}")];
    let pairs = computed(kind, device)?.into_iter().zip(computed(Kind::Double, Device::Cpu)?);
    Ok(pairs
        .zip(names)
        .map(|((ours, exact), name)| Difference::new(name, relative(&ours, &exact), tolerance))
        .collect())
}

/// Returns the largest difference between two tensors, relative to the largest absolute entry of
/// `exact`. Returns NaN if a tensor contains a NaN.
pub fn relative(ours: &Tensor, exact: &Tensor) -> f64 {
    off(ours, exact) / exact.abs().max().double_value(&[]).max(f64::MIN_POSITIVE)
}

/// Returns the largest difference between two tensors. Returns infinity if the shapes differ, and
/// NaN if a tensor contains a NaN.
pub fn off(ours: &Tensor, exact: &Tensor) -> f64 {
    if ours.size() != exact.size() {
        return f64::INFINITY;
    }
    let wide = |t: &Tensor| t.detach().to_device(Device::Cpu).to_kind(Kind::Double);
    (wide(ours) - wide(exact)).abs().max().double_value(&[])
}
