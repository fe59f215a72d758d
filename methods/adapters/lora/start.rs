//! Initial values of A and B that come from the frozen weights.
//!
//! PEFT subtracts their product from the frozen weights. Here, the weights stay as they are, and
//! the change is s·(BA − B₀A₀), so that the model without the adapter is the base model.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tch;

/// Initial values of A and B.
#[choice]
pub enum LoraInit {
    /// A is random, and B is 0.
    #[default]
    Zero,
    /// The r largest singular values of W with their vectors (PiSSA).
    Pissa,
    /// The first r columns of Q and rows of R, where W = QR (OLoRA).
    Olora,
}

/// Initial values whose product is subtracted from BA.
pub struct Start {
    /// Matrix A₀ `[r in]`.
    pub a: Tensor,
    /// Matrix B₀ `[out r]`.
    pub b: Tensor,
}

impl LoraInit {
    /// Computes the initial values for a module, in the dtype `kind`. Returns `None` if there is
    /// nothing to subtract.
    ///
    /// # Errors
    /// Fails if r is greater than one of the widths of the module, or if the decomposition fails.
    pub fn of(self, frozen: &Frozen, r: i64, scale: f64, kind: Kind) -> Result<Option<Start>> {
        if self == Self::Zero {
            return Ok(None);
        }
        let most = frozen.inputs().min(frozen.outputs());
        if r > most {
            let name = if self == Self::Pissa { "pissa" } else { "olora" };
            return Err(Error::new(format!(
                "`adapter.r` is {r}, but with `adapter.init = \"{name}\"` it must be at most \
                    {most}, the smaller width of the module"
            )));
        }
        let _guard = tch::no_grad_guard();
        let weight = frozen.dense()?.f_to_kind(kind)?;
        let (b, a) = if self == Self::Pissa {
            let (v, s, u) = weight.f_svd(true, true)?;
            let root = (s.f_narrow(0, 0, r)? / scale).f_sqrt()?;
            (v.f_narrow(1, 0, r)? * &root, (u.f_narrow(1, 0, r)? * root).f_tr()?)
        } else {
            let (q, upper) = Tensor::f_linalg_qr(&weight, "reduced")?;
            (q.f_narrow(1, 0, r)?, upper.f_narrow(0, 0, r)?)
        };
        Ok(Some(Start { a: a.f_contiguous()?, b: b.f_contiguous()? }))
    }
}

impl Start {
    /// Returns matrices `[2r in]` and `[out 2r]` whose product is BA − B₀A₀.
    ///
    /// They are A − A₀ above A₀, and B beside B − B₀. The product is exactly 0 at the start, and
    /// it stays accurate in half precision, because no large numbers cancel.
    pub fn difference(&self, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((Tensor::f_cat(&[&(a - &self.a), &self.a], 0)?, Tensor::f_cat(&[b, &(b - &self.b)], 1)?))
    }

    /// Returns matrices with the same product in PEFT's form: A above A₀, and B beside −B₀.
    pub fn stacked(&self, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((Tensor::f_cat(&[a, &self.a], 0)?, Tensor::f_cat(&[b, &-&self.b], 1)?))
    }
}
