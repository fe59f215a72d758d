//! Scores of pairs from the method itself instead of the log-probabilities.

use std::sync::atomic::AtomicBool;

use tch::{Device, Kind};

use super::scoring::by_block;
use crate::api::Intervention;
use crate::error::{Error, Result};
use crate::model::{Adapted, Model};
use crate::reference::FitSites;
use crate::report::Progress;
use crate::text::TokenPair;

/// A method that scores pairs itself, with the statistics of its training data.
pub struct Preferences {
    method: Box<dyn Intervention>,
    sites: FitSites,
    seed: u64,
}

impl Preferences {
    /// Uses the scores of `method`, which reads states at `sites`.
    pub fn new(method: Box<dyn Intervention>, sites: FitSites, seed: u64) -> Self {
        Self { method, sites, seed }
    }

    /// Returns the method's scores of the chosen and the rejected completion of each pair. The
    /// states are those of the model with the adapter `adapted`.
    ///
    /// # Errors
    /// Fails if the method returns an error, or numbers of a wrong shape. Returns
    /// `Error::interrupted` when `stop` becomes true.
    pub fn of(
        &self,
        model: &Model,
        adapted: Option<&Adapted>,
        pairs: &[TokenPair],
        tokens: usize,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<Vec<[f64; 2]>> {
        by_block(model, adapted, pairs, tokens, stop, progress, |block| {
            let _guard = tch::no_grad_guard();
            let states = self.sites.states(model, adapted, block, self.seed)?;
            let found = self.method.preferences(&states)?;
            let expected = [block.len() as i64, 2];
            if found.size() != expected {
                return Err(Error::internal(format!(
                    "the method returned preferences of shape {:?}, but must return {expected:?}",
                    found.size()
                )));
            }
            let found = found.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
            let numbers = Vec::<f64>::try_from(found.f_reshape([-1])?)?;
            Ok(numbers.as_chunks::<2>().0.to_vec())
        })
    }
}
