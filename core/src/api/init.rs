//! Initial values of trainable tensors.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

/// A source of random initial values. The values depend only on the seed and on the tensor's name.
///
/// Adding a module therefore does not change the values of other modules' tensors. The values are
/// the same on every device and, up to rounding, in every precision.
#[derive(Debug)]
pub struct Init {
    seed: u64,
    scope: String,
    kind: Kind,
    device: Device,
}

impl Init {
    /// Creates a source for parameters whose names begin with `scope`. The tensors have the dtype
    /// `kind` and are on `device`.
    pub fn new(seed: u64, scope: &str, kind: Kind, device: Device) -> Self {
        Self { seed, scope: scope.to_owned(), kind, device }
    }

    fn rng(&self, key: &str) -> ChaCha8Rng {
        let digest = Sha256::new()
            .chain_update(self.seed.to_le_bytes())
            .chain_update(&self.scope)
            .chain_update([0])
            .chain_update(key)
            .finalize();
        ChaCha8Rng::from_seed(digest.into())
    }

    fn leaf(&self, values: &[f64], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values)
            .reshape(shape)
            .to_kind(self.kind)
            .to_device(self.device)
            .set_requires_grad(true)
    }

    /// Creates a trainable tensor of zeros.
    pub fn zeros(&mut self, shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (self.kind, self.device)).set_requires_grad(true)
    }

    /// Creates a trainable tensor of ones.
    pub fn ones(&mut self, shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (self.kind, self.device)).set_requires_grad(true)
    }

    /// Creates a trainable tensor of independent values, uniform in [−bound, bound).
    pub fn uniform(&mut self, key: &str, shape: &[i64], bound: f64) -> Tensor {
        let mut rng = self.rng(key);
        let n = shape.iter().product::<i64>() as usize;
        let values: Vec<f64> = (0..n).map(|_| (rng.random::<f64>() * 2.0 - 1.0) * bound).collect();
        self.leaf(&values, shape)
    }

    /// Creates a trainable tensor of independent normal values with mean 0 and standard deviation
    /// `std`.
    pub fn normal(&mut self, key: &str, shape: &[i64], std: f64) -> Tensor {
        let mut rng = self.rng(key);
        let n = shape.iter().product::<i64>() as usize;
        // The Box–Muller transform converts two uniform values into two independent normal values.
        // Use both.
        let mut values = Vec::with_capacity(n + 1);
        while values.len() < n {
            let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
            let (radius, angle) = ((-2.0 * u.ln()).sqrt() * std, std::f64::consts::TAU * v);
            values.push(radius * angle.cos());
            values.push(radius * angle.sin());
        }
        values.truncate(n);
        self.leaf(&values, shape)
    }

    /// Creates a trainable tensor with the distribution of `torch.nn.init.kaiming_uniform_(a=√5)`:
    /// uniform in ±1/√fan_in.
    pub fn kaiming_uniform(&mut self, key: &str, shape: &[i64], fan_in: i64) -> Tensor {
        self.uniform(key, shape, 1.0 / (fan_in as f64).sqrt())
    }
}
