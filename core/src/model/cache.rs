//! The key-value cache. With the cache, generation only computes the new tokens of a sequence.

use tch::{Kind, Tensor};

use crate::error::Result;

/// The keys and values of one sequence, for each layer. Each tensor has the shape `[n kv_heads d]`.
/// Rotary positions have already been applied to the keys.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<Option<[Buffer; 2]>>,
    tokens: usize,
}

/// A tensor with spare rows, so that appending a token only copies the new token.
#[derive(Debug)]
struct Buffer {
    rows: Tensor,
}

impl Buffer {
    fn new(like: &Tensor) -> Result<Self> {
        let size = like.size();
        Ok(Self { rows: Tensor::f_zeros([0, size[1], size[2]], (like.kind(), like.device()))? })
    }

    /// Writes `new` after the first `filled` rows. Returns all rows that are now filled.
    fn extended(&mut self, filled: i64, new: &Tensor) -> Result<Tensor> {
        let (size, n) = (new.size(), new.size()[0]);
        let room = self.rows.size()[0];
        if filled + n > room {
            let larger = Tensor::f_zeros(
                [(2 * room).max(filled + n).max(64), size[1], size[2]],
                (new.kind(), new.device()),
            )?;
            larger.f_narrow(0, 0, filled)?.f_copy_(&self.rows.f_narrow(0, 0, filled)?)?;
            self.rows = larger;
        }
        self.rows.f_narrow(0, filled, n)?.f_copy_(new)?;
        Ok(self.rows.f_narrow(0, 0, filled + n)?)
    }
}

impl Cache {
    /// Number of tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Allocated memory in bytes, including spare rows.
    pub fn bytes(&self) -> usize {
        let size = |b: &Buffer| b.rows.numel() * if b.rows.kind() == Kind::Float { 4 } else { 2 };
        self.layers.iter().flatten().flatten().map(size).sum()
    }

    /// Appends the keys and values of new tokens, each of shape `[n kv_heads d]`, to the cache of a
    /// layer. Returns the keys and values of all tokens.
    ///
    /// The new tokens are only counted when [`advance`](Self::advance) is called. Until then, a
    /// second call overwrites them, so that a layer may run more than once.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub(super) fn extended(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        if layer >= self.layers.len() {
            self.layers.resize_with(layer + 1, || None);
        }
        let slot = &mut self.layers[layer];
        let [keys, values] = match slot {
            Some(slot) => slot,
            None => slot.insert([Buffer::new(k)?, Buffer::new(v)?]),
        };
        let filled = self.tokens as i64;
        Ok((keys.extended(filled, k)?, values.extended(filled, v)?))
    }

    /// Adds `tokens` to the token count, after every layer has appended its keys and values.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_layer_that_runs_twice_caches_its_keys_once() {
        let mut cache = Cache::default();
        let token = |x: f64| Tensor::full([1, 2, 4], x, (Kind::Float, Device::Cpu));
        for x in [1.0, 2.0] {
            let first = cache.extended(0, &token(x), &token(-x)).unwrap();
            assert_eq!(cache.extended(0, &token(x), &token(-x)).unwrap(), first);
            let _ = cache.extended(1, &token(x), &token(x)).unwrap();
            cache.advance(1);
        }
        assert_eq!(cache.tokens(), 2);
        let (keys, values) = cache.extended(0, &token(3.0), &token(-3.0)).unwrap();
        assert_eq!(Vec::<f32>::try_from(keys.select(2, 0).select(1, 0)).unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(values, -keys);
    }
}
