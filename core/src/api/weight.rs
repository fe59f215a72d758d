//! A frozen matrix: a tensor, blocks of a file, or rows that are divided among the ranks.

use std::fmt::Debug;

use tch::{Device, Kind, Tensor};

use super::{Rows, linear};
use crate::error::Result;
use crate::ffi::{attach_backward, float_product};

/// A matrix that is kept in another form than a tensor. Each use computes the tensor again.
pub(crate) trait Encoded: Debug + Send {
    /// Numbers of rows and columns.
    fn size(&self) -> [i64; 2];

    /// The dtype of the numbers.
    fn kind(&self) -> Kind;

    /// The device of the numbers.
    fn device(&self) -> Device;

    /// Number of bytes that this process keeps.
    fn kept(&self) -> usize;

    /// The name of the form, and the bytes of each row, uint8 `[rows bytes]`. Two matrices of the
    /// same form, dtype and size are equal if their bytes are. `None` if this process does not have
    /// all bytes.
    fn encoded(&self) -> Option<(&'static str, &Tensor)>;

    /// The matrix as a tensor.
    ///
    /// # Errors
    /// Fails if memory runs out, or if another rank has ended.
    fn dense(&self) -> Result<Tensor>;

    /// The rows `ids`, int64 `[n]`.
    ///
    /// # Errors
    /// Fails if a row does not exist, if memory runs out, or if another rank has ended.
    fn rows(&self, ids: &Tensor) -> Result<Tensor>;

    /// A matrix that shares the memory of this one.
    fn shared(&self) -> Box<dyn Encoded>;

    /// The matrix that consists of the rows `rows`, in the same form.
    ///
    /// # Errors
    /// Fails if the number of rows is not the product of `groups` and `width` in `rows`.
    fn part(&self, rows: Rows) -> Result<Box<dyn Encoded>>;
}

/// A frozen matrix W `[out in]`.
#[derive(Debug)]
pub(crate) enum Weight {
    /// A tensor.
    Dense(Tensor),
    /// Another form, from which each use computes the tensor again.
    Stored(Box<dyn Encoded>),
}

impl Weight {
    /// The sizes `[out in]`.
    pub fn size(&self) -> [i64; 2] {
        match self {
            Self::Dense(t) => {
                let size = t.size();
                [size[0], size[1]]
            }
            Self::Stored(matrix) => matrix.size(),
        }
    }

    /// The dtype of the numbers.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dense(t) => t.kind(),
            Self::Stored(matrix) => matrix.kind(),
        }
    }

    /// The device of the matrix.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(t) => t.device(),
            Self::Stored(matrix) => matrix.device(),
        }
    }

    /// The matrix as a tensor, which shares the memory of a dense matrix.
    pub fn dense(&self) -> Result<Tensor> {
        match self {
            Self::Dense(t) => Ok(t.shallow_clone()),
            Self::Stored(matrix) => matrix.dense(),
        }
    }

    /// A matrix that shares the memory of this one.
    pub fn shared(&self) -> Self {
        match self {
            Self::Dense(t) => Self::Dense(t.shallow_clone()),
            Self::Stored(matrix) => Self::Stored(matrix.shared()),
        }
    }

    /// The matrix that consists of the rows `rows`.
    pub fn part(&self, rows: Rows) -> Result<Self> {
        Ok(match self {
            Self::Dense(t) => Self::Dense(rows.of(t, 0)?),
            Self::Stored(matrix) => Self::Stored(matrix.part(rows)?),
        })
    }

    /// The rows `ids` of the matrix, `[n in]`. `ids` is int64 `[n]`.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(t) => Ok(Tensor::f_embedding(t, ids, -1, false, false)?),
            Self::Stored(matrix) => matrix.rows(ids),
        }
    }

    /// True if both matrices have the same numbers.
    pub fn equal(&self, other: &Self) -> Result<bool> {
        if let (Self::Stored(one), Self::Stored(other)) = (self, other)
            && let (Some((form, bytes)), Some((other_form, other_bytes))) =
                (one.encoded(), other.encoded())
            && form == other_form
            && one.kind() == other.kind()
            && one.size() == other.size()
            && bytes.f_equal(other_bytes)?
        {
            return Ok(true);
        }
        Ok(self.dense()?.f_equal(&other.dense()?)?)
    }

    /// Computes y = xWᵀ + b `[... out]` from x `[... in]`.
    pub fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        if x.dim() != 2 {
            let [outputs, inputs] = self.size();
            let mut size = x.size();
            size.pop();
            size.push(outputs);
            return Ok(self.forward(&x.f_reshape([-1, inputs])?, bias)?.f_reshape(size)?);
        }
        match self {
            Self::Dense(t) => linear(x, t, bias),
            Self::Stored(matrix) => Product::of(x, matrix.as_ref()).forward(x, bias),
        }
    }
}

/// A product with a stored matrix W. The autograd graph keeps the stored form of W, and its
/// backward pass computes the tensor again.
struct Product {
    matrix: Box<dyn Encoded>,
    /// True if the input x is stored by columns. libtorch then computes the gradient of x in the
    /// same layout, and the order of the additions depends on it.
    by_columns: bool,
}

impl Product {
    fn of(x: &Tensor, matrix: &dyn Encoded) -> Self {
        let (sizes, strides) = (x.size(), x.stride());
        Self { matrix: matrix.shared(), by_columns: strides[0] == 1 && strides[1] == sizes[0] }
    }

    fn shared(&self) -> Self {
        Self { matrix: self.matrix.shared(), by_columns: self.by_columns }
    }

    /// Computes xWᵀ + b.
    fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let y = without_gradient(|| linear(x, &self.matrix.dense()?, bias))?;
        self.attached(y, x, bias)
    }

    /// Makes y = xWᵀ + b a function of x and b in the autograd graph.
    fn attached(&self, y: Tensor, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let back = self.shared();
        let gradient = move |input, g: &Tensor| match input {
            0 => back.backward(g),
            // The bias was added to each row.
            _ => Ok(g.f_sum_dim_intlist([0].as_slice(), false, None::<Kind>)?),
        };
        let inputs: Vec<&Tensor> = [Some(x), bias].into_iter().flatten().collect();
        attach_backward(&y, &inputs, Box::new(gradient))?;
        Ok(y)
    }

    /// Computes gW, the gradient of x, from the gradient g of y.
    fn backward(&self, g: &Tensor) -> Result<Tensor> {
        let gradient = without_gradient(|| {
            let weight = self.matrix.dense()?;
            if let Some(gradient) = float_product(g, &weight.f_tr()?, None)? {
                return Ok(gradient);
            }
            Ok(if self.by_columns {
                weight.f_tr()?.f_mm(&g.f_tr()?)?.f_tr()?
            } else {
                g.f_mm(&weight)?
            })
        })?;
        let back = self.shared();
        // The gradient of gW is a product with Wᵀ. libtorch's own second derivative does not use
        // the fast product of a single row.
        let second = move |_, g: &Tensor| -> Result<Tensor> {
            let weight = back.matrix.dense()?;
            let y = without_gradient(|| match float_product(g, &weight, None)? {
                Some(y) => Ok(y),
                None => Ok(g.f_linear(&weight, None::<&Tensor>)?),
            })?;
            back.attached(y, g, None)
        };
        attach_backward(&gradient, &[g], Box::new(second))?;
        Ok(gradient)
    }
}

/// Calls `compute` without recording a graph.
fn without_gradient(compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    compute()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Frozen;
    use crate::testing::blocks::random_blocks;
    use crate::weights::{FORMATS, Format, StoredMatrix};

    const ROWS: i64 = 24;
    const COLUMNS: i64 = 512;

    fn matrix(format: &'static Format, kind: Kind) -> Box<dyn Encoded> {
        let bytes = random_blocks(format, (ROWS * COLUMNS) as usize, 1);
        let bytes = Tensor::from_slice(&bytes).reshape([ROWS, -1]);
        Box::new(StoredMatrix::new(format, bytes, COLUMNS, kind))
    }

    /// A leaf of random numbers with the gradient that `weight` and `bias` give it, and that of the
    /// bias.
    fn gradients(weight: &Weight, x: &Tensor, with_bias: bool) -> [Tensor; 4] {
        let x = x.detach().set_requires_grad(true);
        let bias = Tensor::arange(ROWS, (x.kind(), Device::Cpu)).set_requires_grad(true);
        let y = weight.forward(&x, Some(&bias).filter(|_| with_bias)).unwrap();
        let factors = Tensor::arange(y.numel() as i64, (Kind::Float, Device::Cpu)).sin();
        // The square makes the second derivative differ from 0.
        let loss = (y.square() * factors.to_kind(x.kind()).view_as(&y)).sum(Kind::Float);
        let first = Tensor::run_backward(&[&loss], &[&x], true, true).remove(0);
        let second = Tensor::run_backward(&[first.square().sum(Kind::Float)], &[&x], true, false);
        loss.backward();
        let of_bias = if with_bias { bias.grad() } else { bias.detach() };
        [y.detach(), first.detach(), second[0].shallow_clone(), of_bias]
    }

    #[test]
    fn products_and_their_derivatives_equal_those_of_the_dense_matrix_in_every_type() {
        tch::manual_seed(3);
        for format in &FORMATS {
            for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
                let stored = Weight::Stored(matrix(format, kind));
                let dense = Weight::Dense(stored.dense().unwrap());
                let random = |size: &[i64]| Tensor::randn(size, (kind, Device::Cpu));
                for (x, layout) in [
                    (random(&[7, COLUMNS]), "by rows"),
                    (random(&[COLUMNS, 7]).tr(), "by columns"),
                    (random(&[1, COLUMNS]), "one row"),
                    (random(&[7, 2 * COLUMNS]).narrow(1, 3, COLUMNS), "a part of the rows"),
                    (random(&[2, 3, COLUMNS]), "two dimensions of rows"),
                ] {
                    for bias in [false, true] {
                        let ours = gradients(&stored, &x, bias);
                        let expected = gradients(&dense, &x, bias);
                        let place = format!("{} as {kind:?}, {layout}, {bias}", format.name);
                        for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
                            assert!(a.equal(b), "{place}: tensor {i}\n{a}\n{b}");
                            assert!(bool::try_from(b.isfinite().all()).unwrap(), "{place}");
                        }
                        let of = |w: &Weight| without_gradient(|| w.forward(&x, None)).unwrap();
                        assert!(of(&stored).equal(&of(&dense)), "{place}: without a gradient");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_and_parts_equal_those_of_the_dense_matrix() {
        let ids = Tensor::from_slice(&[3i64, 0, 23, 3]);
        for format in &FORMATS {
            let stored = Weight::Stored(matrix(format, Kind::BFloat16));
            let dense = Weight::Dense(stored.dense().unwrap());
            assert_eq!((stored.size(), stored.kind()), (dense.size(), dense.kind()));
            assert!(stored.rows(&ids).unwrap().equal(&dense.rows(&ids).unwrap()));
            for groups in [1, 4] {
                let width = ROWS / groups;
                let rows = Rows { groups, start: 1, len: 2, width };
                let of = |w: &Weight| w.part(rows).unwrap().dense().unwrap();
                assert!(of(&stored).equal(&of(&dense)), "{}", format.name);
            }
            assert!(stored.equal(&dense).unwrap() && stored.equal(&stored).unwrap());
        }
    }

    #[test]
    fn only_a_copy_of_a_stored_module_can_be_written_to() {
        let format = FORMATS.iter().find(|f| f.name == "Q4_0").unwrap();
        let module = Frozen::from_weight(Weight::Stored(matrix(format, Kind::Float)), None);
        let part = Rows { groups: 1, start: 0, len: 2, width: ROWS };
        assert!(module.shared().put(part, &module.part(part).unwrap()).is_err());
        let mut copy = module.copied().unwrap();
        copy.put(part, &module.part(part).unwrap()).unwrap();
        assert!(copy.dense().unwrap().equal(&module.dense().unwrap()));
    }
}
