//! The pooled states that a method sees before the first step, and in an evaluation.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Kind, Tensor};

use super::{Quantity, ReferenceCache, Values, compute};
use crate::api::{ModelInfo, PairStates, Pooling, Side, Sides, Site, SiteStates, Tap};
use crate::error::{Error, Result};
use crate::model::{Adapted, Model};
use crate::text::TokenPair;

/// The sites of a tap, with a pooling that only depends on the positions of the tokens.
#[derive(Clone, Debug)]
pub struct FitSites {
    sites: Vec<Site>,
    pooling: Pooling,
}

impl FitSites {
    /// Reads the sites of `tap`.
    ///
    /// # Errors
    /// Fails if the model does not have a site, if the tap has no sites, or if its pooling depends
    /// on the values of the states.
    pub fn new(tap: &dyn Tap, model: &ModelInfo) -> Result<Self> {
        if tap.token_pooling().is_some() {
            return Err(Error::new(
                "the method computes statistics of pooled states, but the pooling of the tap \
                    depends on the values of the states",
            )
            .hint("set `tap.pooling=completion`, or another pooling of positions"));
        }
        let sites = tap.sites(model)?;
        if sites.is_empty() {
            return Err(Error::new(
                "the method computes statistics of states, but its tap selects no sites",
            ));
        }
        for site in &sites {
            model.width(site)?;
        }
        Ok(Self { sites, pooling: tap.pooling() })
    }

    fn quantities(&self) -> Vec<Quantity> {
        self.sites.iter().map(|site| Quantity::State(site.clone(), self.pooling)).collect()
    }

    /// Computes the states of some pairs in one forward pass, with the adapter `adapted` or without
    /// an adapter.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn states<P: Borrow<TokenPair>>(
        &self,
        model: &Model,
        adapted: Option<&Adapted>,
        pairs: &[P],
        seed: u64,
    ) -> Result<PairStates> {
        let mut rows = Collected::new(self, model);
        let values = compute(model, adapted, pairs, &self.quantities())?;
        let values: Vec<Arc<Values>> = values.into_iter().map(Arc::new).collect();
        rows.extend(&values, 0..pairs.len())?;
        rows.finish(self, seed)
    }

    /// Computes the states of the pairs in `blocks` that `is_used` selects, or reads them from the
    /// cache. The blocks are divided among the ranks, and every rank gets all states. `advance` is
    /// called with the number of pairs of each finished round.
    ///
    /// # Errors
    /// Fails if memory runs out, or if another rank has ended. Returns `Error::interrupted` if
    /// `stop` became true.
    pub fn gather(
        &self,
        pass: ReferencePass<'_>,
        blocks: &[&[&TokenPair]],
        is_used: impl Fn(&TokenPair) -> bool,
        seed: u64,
        stop: &AtomicBool,
        mut advance: impl FnMut(usize),
    ) -> Result<PairStates> {
        let ReferencePass { model, adapted, cache } = pass;
        let (world, quantities) = (model.world(), self.quantities());
        let mut rows = Collected::new(self, model);
        for round in blocks.chunks(world.size()) {
            if world.any(stop.load(Ordering::Relaxed))? {
                return Err(Error::interrupted("interrupted before the first step"));
            }
            let mine = match round.get(world.rank()) {
                Some(block) => Some(cache.values(model, adapted, block, &quantities)?),
                // The other ranks need this one to gather the weights.
                None if model.is_sharded() => {
                    cache.values(model, adapted, round[0], &quantities)?;
                    None
                }
                None => None,
            };
            let mut bytes = Vec::new();
            if world.size() > 1 {
                mine.iter().flatten().for_each(|values| values.write(&mut bytes));
            }
            let all = if world.size() > 1 { world.gather_bytes(&bytes)? } else { Vec::new() };
            for (rank, block) in round.iter().enumerate() {
                let used = (0..block.len()).filter(|i| is_used(block[*i]));
                if rank == world.rank() {
                    rows.extend(mine.as_deref().unwrap_or_default(), used)?;
                    continue;
                }
                let mut bytes = &all[rank][..];
                let values = quantities
                    .iter()
                    .map(|quantity| Values::read(&mut bytes, quantity, block).map(Arc::new))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| Error::internal("a rank sent values of other pairs"))?;
                rows.extend(&values, used)?;
            }
            advance(round.iter().map(|block| block.len()).sum());
        }
        rows.finish(self, seed)
    }
}

/// The model whose states are read, and the cache of its values.
pub struct ReferencePass<'a> {
    /// The model.
    pub model: &'a Model,
    /// The adapter; `None` for the base model.
    pub adapted: Option<&'a Adapted>,
    /// The cache of this model and adapter.
    pub cache: &'a mut ReferenceCache,
}

/// The bytes of the states at each site, one pair after the other.
struct Collected {
    kind: Kind,
    pairs: i64,
    bytes: Vec<Sides<Vec<u8>>>,
}

impl Collected {
    fn new(sites: &FitSites, model: &Model) -> Self {
        let kind = if model.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        Self { kind, pairs: 0, bytes: sites.sites.iter().map(|_| Sides::default()).collect() }
    }

    /// Adds the pairs number `pairs` of a block.
    fn extend(&mut self, values: &[Arc<Values>], pairs: impl Iterator<Item = usize>) -> Result<()> {
        for pair in pairs {
            for (values, bytes) in values.iter().zip(&mut self.bytes) {
                self.kind = values.kind();
                for side in Side::BOTH {
                    bytes.get_mut(side).extend_from_slice(values.row(pair, side)?);
                }
            }
            self.pairs += 1;
        }
        Ok(())
    }

    fn finish(self, sites: &FitSites, seed: u64) -> Result<PairStates> {
        let Self { kind, pairs, bytes } = self;
        if pairs == 0 {
            return Err(Error::internal("there are no pairs whose states could be read"));
        }
        let tensor = |bytes: &[u8]| -> Result<Tensor> {
            let width = bytes.len() / pairs as usize / kind.elt_size_in_bytes();
            Ok(Tensor::f_from_data_size(bytes, &[pairs, width as i64], kind)?)
        };
        let sites = sites.sites.iter().zip(bytes).map(|(site, Sides { chosen, rejected })| {
            let states = Sides { chosen: tensor(&chosen)?, rejected: tensor(&rejected)? };
            Ok(SiteStates { site: site.clone(), states })
        });
        Ok(PairStates { sites: sites.collect::<Result<_>>()?, seed })
    }
}
