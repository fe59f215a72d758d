//! The frozen weights of a linear module. [`Frozen`] hides how the weights are stored.

use tch::{Device, Kind, Tensor};

use super::{Rows, Weight};
use crate::error::{Error, Result};

/// A frozen linear module, which computes y = xWᵀ + b.
#[derive(Debug)]
pub struct Frozen {
    /// The weights W `[out in]`.
    weight: Weight,
    /// The bias b `[out]`.
    bias: Option<Tensor>,
}

impl Frozen {
    /// Creates a module from weights W `[out in]` and a bias b `[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Dense(weight), bias }
    }

    /// Creates a module from weights that may consist of the blocks of a file.
    pub(crate) fn from_weight(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> i64 {
        self.weight.size()[1]
    }

    /// Number of outputs.
    pub fn outputs(&self) -> i64 {
        self.weight.size()[0]
    }

    /// The dtype of the weights and of the module's computations.
    pub fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.weight.device()
    }

    /// The bias b `[out]`; `None` if the module has none.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Computes y = xWᵀ + b `[n out]` from x `[n in]`.
    ///
    /// # Errors
    /// Fails if the shapes or dtypes do not match, or if memory runs out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.forward(x, self.bias.as_ref())
    }

    /// Computes xWᵀ `[n out]`, without the bias, from x `[n in]`.
    ///
    /// # Errors
    /// Fails if the shapes or dtypes do not match, or if memory runs out.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.forward(x, None)
    }

    /// The weights W `[out in]` as one matrix. The matrix may share the module's memory, so do not
    /// write to the matrix. With `quantize_base`, each call decodes the weights again, so do not
    /// keep the matrix.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn dense(&self) -> Result<Tensor> {
        self.weight.dense()
    }

    /// The Euclidean length of each row of W, `[out]`, computed in `kind`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn row_norms(&self, kind: Kind) -> Result<Tensor> {
        Ok(self.squared_row_norms(kind)?.f_sqrt()?)
    }

    /// The squared Euclidean length of each row of W, `[out]`, computed in `kind`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn squared_row_norms(&self, kind: Kind) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        Ok(self.dense()?.f_to_kind(kind)?.f_square()?.f_sum_dim_intlist(
            [1].as_slice(),
            false,
            None::<Kind>,
        )?)
    }

    /// Returns the module with `weight` `[out in]` as its weights. `weight` is converted to the
    /// dtype of the module.
    #[must_use]
    pub fn with_weight(&self, weight: Tensor) -> Self {
        Self {
            weight: Weight::Dense(weight.to_kind(self.kind())),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// Returns the module with `bias` `[out]` as its bias. `bias` is converted to the dtype of the
    /// module.
    #[must_use]
    pub fn with_bias(self, bias: &Tensor) -> Self {
        Self { bias: Some(bias.to_kind(self.kind())), ..self }
    }

    /// Returns the module with its weights and bias converted to the dtype `kind`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        let converted = |t: &Tensor| t.f_to_kind(kind);
        Ok(Self {
            weight: Weight::Dense(converted(&self.weight.dense()?)?),
            bias: self.bias.as_ref().map(converted).transpose()?,
        })
    }

    /// Returns a module that only computes the outputs selected by `rows`.
    ///
    /// # Errors
    /// Fails if the number of outputs is not the product of `groups` and `width` in `rows`.
    pub fn part(&self, rows: Rows) -> Result<Self> {
        Ok(Self {
            weight: self.weight.part(rows)?,
            bias: self.bias.as_ref().map(|b| rows.of(b, 0)).transpose()?,
        })
    }

    /// The weights.
    pub(crate) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Returns a module that shares the memory of this module.
    pub(crate) fn shared(&self) -> Self {
        Self { weight: self.weight.shared(), bias: self.bias.as_ref().map(Tensor::shallow_clone) }
    }

    /// Returns a copy with dense weights that does not share memory with this module.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub(crate) fn copied(&self) -> Result<Self> {
        let copied = |t: &Tensor| -> Result<Tensor> {
            let mut copy = t.f_empty_like()?;
            copy.f_copy_(t)?;
            Ok(copy)
        };
        Ok(Self {
            weight: Weight::Dense(match &self.weight {
                Weight::Dense(t) => copied(t)?,
                Weight::Stored(matrix) => matrix.dense()?,
            }),
            bias: self.bias.as_ref().map(copied).transpose()?,
        })
    }

    /// Replaces the weights and biases of the outputs selected by `rows` with the weights and
    /// biases of `part`.
    ///
    /// # Errors
    /// Fails if the shapes do not match, or if the weights are not dense.
    pub(crate) fn put(&mut self, rows: Rows, part: &Self) -> Result<()> {
        let Weight::Dense(weight) = &self.weight else {
            return Err(Error::internal("cannot write to weights that are stored in blocks"));
        };
        rows.put(weight, &part.weight.dense()?)?;
        let Some(bias) = &part.bias else { return Ok(()) };
        // An adapter may add a bias to a part of a module that has none.
        let all = match self.bias.take() {
            Some(all) => all,
            None => weight.f_select(1, 0)?.f_zeros_like()?,
        };
        rows.put(&all, bias)?;
        self.bias = Some(all);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_a_part_with_a_bias_adds_a_bias_to_the_module() {
        let rows = Rows { groups: 2, start: 1, len: 1, width: 2 };
        let [old, new] = [0.0, 1.0].map(|v| Tensor::full([4, 3], v, (Kind::Float, Device::Cpu)));
        let base = Frozen::new(old, None);
        let mut module = base.copied().unwrap();
        module
            .put(rows, &Frozen::new(new.narrow(0, 0, 2), Some(new.select(1, 0).narrow(0, 0, 2))))
            .unwrap();
        let expected = Tensor::from_slice(&[0f32, 1.0, 0.0, 1.0]);
        assert_eq!(
            (module.dense().unwrap().select(1, 2), module.bias().unwrap()),
            (expected.shallow_clone(), &expected)
        );
        assert_eq!(base.dense().unwrap().sum(Kind::Float).double_value(&[]), 0.0);
    }

    #[test]
    fn sizes_products_and_norms_agree_with_the_weight_matrix() {
        let weight = Tensor::from_slice(&[3.0f32, 4.0, 0.0, 0.0, 0.0, -2.0]).reshape([2, 3]);
        let frozen = Frozen::new(weight.shallow_clone(), Some(Tensor::from_slice(&[1.0f32, 2.0])));
        assert_eq!((frozen.inputs(), frozen.outputs(), frozen.kind()), (3, 2, Kind::Float));
        assert_eq!(
            Vec::<f64>::try_from(frozen.row_norms(Kind::Double).unwrap()).unwrap(),
            [5.0, 2.0]
        );
        let x = Tensor::from_slice(&[1.0f32, 1.0, 1.0]).reshape([1, 3]);
        assert_eq!(frozen.product(&x).unwrap(), x.matmul(&weight.tr()));
        assert_eq!(
            frozen.forward(&x).unwrap(),
            frozen.product(&x).unwrap() + frozen.bias().unwrap()
        );
        let half = frozen
            .to_kind(Kind::BFloat16)
            .unwrap()
            .with_weight(weight)
            .with_bias(&Tensor::from_slice(&[0.5f32, 0.5]));
        assert_eq!((half.kind(), half.bias().unwrap().kind()), (Kind::BFloat16, Kind::BFloat16));
    }
}
