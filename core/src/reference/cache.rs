//! Finds the values of a block in memory or on disk, and computes those that are missing.

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::sync::Arc;

use super::disk::Folder;
use super::memory::Memory;
use super::source::Source;
use super::{Quantity, Values, compute};
use crate::config::{CacheConfig, CacheMode};
use crate::error::{Error, Result};
use crate::fingerprint::{Parts, pair_digest};
use crate::hub::cache_dir;
use crate::model::{Adapted, Model};
use crate::text::TokenPair;

/// The number of pairs whose values were computed and reused. A pair counts once for each call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pairs with at least one value that was computed.
    pub computed: usize,
    /// Pairs whose values were all in memory.
    pub from_memory: usize,
    /// Pairs whose values were all in memory or on disk, and at least one of them on disk.
    pub from_disk: usize,
}

impl Usage {
    /// Number of pairs whose values were all found.
    pub fn reused(&self) -> usize {
        self.from_memory + self.from_disk
    }
}

/// The values of one reference. By default, nothing is shared with other runs.
#[derive(Debug, Default)]
pub struct ReferenceCache {
    shared: Option<Shared>,
    usage: Usage,
}

/// The places that are shared with other runs.
#[derive(Debug)]
struct Shared {
    source: Source,
    most_bytes: u64,
    folder: Option<Folder>,
}

/// The place where a value was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Memory,
    Disk,
}

impl ReferenceCache {
    /// Creates the cache of the reference `source`. It shares its values with other runs in the
    /// places that `config` selects.
    pub fn new(source: Source, config: &CacheConfig) -> Self {
        let folder = match config.reference {
            CacheMode::Off => return Self::default(),
            CacheMode::Memory => None,
            CacheMode::Disk => {
                let own = || Folder::within(&cache_dir());
                Some(Folder::new(config.folder.clone().unwrap_or_else(own), config.bytes()))
            }
        };
        let shared = Shared { source, most_bytes: config.bytes(), folder };
        Self { shared: Some(shared), usage: Usage::default() }
    }

    /// The numbers of pairs that were computed and reused so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Returns the values of the pairs of a block, one for each quantity. Computes the values that
    /// are not cached. The reference is `model` with the adapter `adapted`, and must be the one
    /// that this cache was created for.
    ///
    /// # Errors
    /// Fails if the model does not have a site, or if memory runs out.
    pub fn values<P: Borrow<TokenPair>>(
        &mut self,
        model: &Model,
        adapted: Option<&Adapted>,
        pairs: &[P],
        quantities: &[Quantity],
    ) -> Result<Vec<Arc<Values>>> {
        // The ranks of a sharded model must run the same passes, but may find different values.
        let Some(shared) = self.shared.as_mut().filter(|_| !model.is_sharded()) else {
            self.usage.computed += pairs.len();
            let computed = compute(model, adapted, pairs, quantities)?;
            return Ok(computed.into_iter().map(Arc::new).collect());
        };
        if shared.source.is_adapted() != adapted.is_some() {
            return Err(Error::internal("the cached values belong to a different reference"));
        }
        let block = block_digest(pairs);
        let mut found: Vec<Option<(Arc<Values>, Place)>> =
            quantities.iter().map(|quantity| shared.find(quantity, &block, pairs)).collect();
        let mut missing = missing_of(quantities, &found);
        // If another process is computing this block, wait for its values instead of computing them
        // a second time.
        let turn = match &shared.folder {
            Some(folder) if !missing.is_empty() => folder.turn(&block),
            _ => None,
        };
        if turn.is_some() {
            for (quantity, place) in quantities.iter().zip(&mut found) {
                if place.is_none() {
                    *place = shared.find(quantity, &block, pairs);
                }
            }
            missing = missing_of(quantities, &found);
        }
        if missing.is_empty() {
            match found.iter().flatten().map(|(_, place)| *place).max() {
                Some(Place::Disk) => self.usage.from_disk += pairs.len(),
                _ => self.usage.from_memory += pairs.len(),
            }
        } else {
            self.usage.computed += pairs.len();
            let mut computed = compute(model, adapted, pairs, &missing)?.into_iter();
            for (quantity, place) in quantities.iter().zip(&mut found) {
                if place.is_none() {
                    let values = computed.next().ok_or_else(|| Error::internal("no values"))?;
                    let values = Arc::new(values);
                    shared.add(quantity, &block, pairs.len(), &values);
                    *place = Some((values, Place::Memory));
                }
            }
        }
        drop(turn);
        Ok(found.into_iter().flatten().map(|(values, _)| values).collect())
    }
}

/// The quantities whose values were not found.
fn missing_of(quantities: &[Quantity], found: &[Option<(Arc<Values>, Place)>]) -> Vec<Quantity> {
    let pairs = quantities.iter().zip(found);
    pairs.filter(|(_, found)| found.is_none()).map(|(quantity, _)| quantity.clone()).collect()
}

impl Shared {
    fn key(&self, quantity: &Quantity, block: &str) -> String {
        let mut parts = Parts::new("values of a block");
        parts.add(self.source.digest.as_bytes());
        parts.add(format!("{quantity:?}").as_bytes());
        parts.add(block.as_bytes());
        parts.hex()
    }

    fn find<P: Borrow<TokenPair>>(
        &mut self,
        quantity: &Quantity,
        block: &str,
        pairs: &[P],
    ) -> Option<(Arc<Values>, Place)> {
        let key = self.key(quantity, block);
        if let Some(values) = Memory::shared().get(&key) {
            return Some((values, Place::Memory));
        }
        let values = Arc::new(self.folder.as_mut()?.read(&self.source, quantity, &key, pairs)?);
        Memory::shared().insert(&key, Arc::clone(&values), self.most_bytes);
        Some((values, Place::Disk))
    }

    fn add(&mut self, quantity: &Quantity, block: &str, pairs: usize, values: &Arc<Values>) {
        let key = self.key(quantity, block);
        Memory::shared().insert(&key, Arc::clone(values), self.most_bytes);
        if let Some(folder) = &mut self.folder {
            folder.write(&self.source, quantity, &key, pairs, values);
        }
    }
}

/// A digest of the tokens of all pairs of a block, in their order.
fn block_digest<P: Borrow<TokenPair>>(pairs: &[P]) -> String {
    let mut parts = Parts::new("block");
    pairs.iter().for_each(|pair| parts.add(pair_digest(pair.borrow()).as_bytes()));
    parts.hex()
}
