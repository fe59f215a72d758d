//! Values that a method computes from the states of the training data before the first step, and
//! edits of the residual stream.

use tch::{Kind, Tensor};

use super::{Side, Sides, Site};
use crate::error::{Error, Result};

/// The pooled states of both completions of some pairs at one site.
#[derive(Debug)]
pub struct SiteStates {
    /// The site.
    pub site: Site,
    /// The states, `[pairs w]` for each side. They are float32, or float64 for a float64 model, and
    /// lie on the CPU.
    pub states: Sides<Tensor>,
}

impl SiteStates {
    /// The pooled states of the chosen completions minus those of the rejected ones, `[pairs w]`.
    pub fn differences(&self) -> Tensor {
        self.states.get(Side::Chosen) - self.states.get(Side::Rejected)
    }
}

/// The states of some pairs at the sites of the method's tap, without an adapter, for
/// [`Intervention::fit`](super::Intervention::fit), or of the model that is evaluated, for
/// [`Intervention::preferences`](super::Intervention::preferences). No transform is applied.
#[derive(Debug)]
pub struct PairStates {
    /// The states at each site, in the order of the tap. There is at least one site.
    pub sites: Vec<SiteStates>,
    /// The seed of the run, `train.seed`.
    pub seed: u64,
}

impl PairStates {
    /// Number of pairs.
    pub fn pairs(&self) -> i64 {
        self.sites.first().map_or(0, |at| at.states.get(Side::Chosen).size()[0])
    }
}

/// Named tensors that a method computed from the training data. They are stored in the run's
/// folder.
#[derive(Debug, Default)]
pub struct Statistics {
    tensors: Vec<(String, Tensor)>,
}

impl Statistics {
    /// Creates statistics from names and values.
    pub fn new(tensors: Vec<(String, Tensor)>) -> Self {
        Self { tensors }
    }

    /// Returns the value called `name`.
    ///
    /// # Errors
    /// Fails if there is no such value.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.iter().find(|(own, _)| own == name).map(|(_, value)| value).ok_or_else(|| {
            Error::unknown("statistic", name, self.tensors.iter().map(|(name, _)| name))
        })
    }

    /// All names and values, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = &(String, Tensor)> {
        self.tensors.iter()
    }
}

/// The time at which an edit acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditTime {
    /// Only in the training passes. The trained model is evaluated and saved without the edit.
    Training,
    /// Only after training: in every evaluation, and wherever the saved adapter is used.
    Afterwards,
}

/// An edit of the output h of a block, at all tokens: h ← h + b + (hAᵀ)B.
#[derive(Debug)]
pub struct BlockEdit {
    /// Index of the block, counted from 0.
    pub block: usize,
    /// When the edit acts.
    pub time: EditTime,
    /// The vector b `[hidden]`; `None` to add nothing.
    pub bias: Option<Tensor>,
    /// The matrices A `[r hidden]` and B `[r hidden]`; `None` if the edit does not depend on h.
    pub low_rank: Option<[Tensor; 2]>,
}

impl BlockEdit {
    /// Returns the same edit, which uses the memory of this one.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            block: self.block,
            time: self.time,
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            low_rank: self.low_rank.as_ref().map(|both| both.each_ref().map(Tensor::shallow_clone)),
        }
    }

    /// Adds the vector `v`, of shape `[hidden]`.
    pub fn add(block: usize, time: EditTime, v: &Tensor) -> Self {
        Self { block, time, bias: Some(v.shallow_clone()), low_rank: None }
    }

    /// Subtracts the projection of h on the direction `v` `[hidden]`, multiplied by `c`. With c =
    /// 1, the result is orthogonal to v.
    ///
    /// # Errors
    /// Fails if `v` has no direction, because its length is 0 or not finite.
    pub fn ablate(block: usize, time: EditTime, v: &Tensor, c: f64) -> Result<Self> {
        let v = v.f_to_kind(Kind::Double)?;
        let length = f64::try_from(v.f_norm()?)?;
        if !(length.is_finite() && length > 0.0) {
            return Err(Error::new(format!(
                "the direction at the output of block {block} has the length {length}, so it \
                    cannot be removed from the states"
            )));
        }
        let unit = (v / length).f_unsqueeze(0)?;
        let up = &unit * -c;
        Ok(Self { block, time, bias: None, low_rank: Some([unit, up]) })
    }
}
