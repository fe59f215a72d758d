//! The values in the memory of this process, which later runs of a sweep reuse.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Values;

/// The values of all runs of this process.
static SHARED: Mutex<Memory> = Mutex::new(Memory::new());

/// Values by key. If they exceed the limit, those that were not used for the longest time are
/// removed.
#[derive(Debug)]
pub(super) struct Memory {
    values: Option<HashMap<String, Entry>>,
    /// The key of each entry, by the time of its last use.
    order: BTreeMap<u64, String>,
    time: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    values: Arc<Values>,
    used: u64,
}

impl Memory {
    pub(super) const fn new() -> Self {
        Self { values: None, order: BTreeMap::new(), time: 0, bytes: 0 }
    }

    /// The values of all runs of this process.
    pub(super) fn shared() -> MutexGuard<'static, Self> {
        // A panic in another thread cannot leave a value half-written.
        SHARED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds values, and marks them as used.
    pub(super) fn get(&mut self, key: &str) -> Option<Arc<Values>> {
        let entry = self.values.as_mut()?.get_mut(key)?;
        self.order.remove(&entry.used);
        self.time += 1;
        entry.used = self.time;
        self.order.insert(self.time, key.to_owned());
        Some(Arc::clone(&entry.values))
    }

    /// Adds values, and then removes old values until at most `most` bytes are left. Values that
    /// have more bytes are not added.
    pub(super) fn insert(&mut self, key: &str, values: Arc<Values>, most: u64) {
        self.remove(key);
        if values.bytes() as u64 > most {
            return;
        }
        self.time += 1;
        self.bytes += values.bytes();
        self.order.insert(self.time, key.to_owned());
        let entry = Entry { values, used: self.time };
        self.values.get_or_insert_default().insert(key.to_owned(), entry);
        while self.bytes as u64 > most {
            let Some((_, oldest)) = self.order.first_key_value() else { return };
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.values.as_mut().and_then(|values| values.remove(key)) {
            self.order.remove(&entry.used);
            self.bytes -= entry.values.bytes();
        }
    }
}

/// Number of bytes of reference values that this process keeps for later runs and evaluations.
pub fn cached_bytes() -> usize {
    Memory::shared().bytes
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::api::Sides;

    fn values(bytes: usize) -> Arc<Values> {
        let mut values = Values { kind: Kind::Float, sides: Sides::default() };
        values.sides.chosen.bytes = vec![0; bytes];
        Arc::new(values)
    }

    #[test]
    fn the_values_that_were_used_least_recently_are_removed_first() {
        let mut memory = Memory::new();
        for key in ["a", "b", "c"] {
            memory.insert(key, values(10), 30);
        }
        assert!(memory.get("a").is_some());
        memory.insert("d", values(10), 30);
        assert!(memory.get("b").is_none());
        assert!(["a", "c", "d"].iter().all(|key| memory.get(key).is_some()));
        assert_eq!(memory.bytes, 30);
        // The same key replaces its values.
        memory.insert("d", values(4), 30);
        assert_eq!(memory.bytes, 24);
        // Values that are larger than the limit are not kept, and do not replace others.
        memory.insert("e", values(31), 30);
        assert_eq!((memory.bytes, memory.order.len()), (24, 3));
        memory.insert("f", values(30), 30);
        assert_eq!((memory.bytes, memory.order.len()), (30, 1));
    }
}
