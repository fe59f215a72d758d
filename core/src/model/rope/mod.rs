//! Rotary position embeddings, computed in the same way as in transformers.
//!
//! Reference: Su et al. 2021 (RoFormer) §3.4. [`parameters`] reads the rotary settings of a
//! configuration, and [`frequencies`] computes the frequencies from them.

mod frequencies;
mod parameters;

use tch::{Kind, Tensor};

use super::stream::Stream;
use crate::error::{Error, Result};
use crate::ffi::fused_rotation;
use frequencies::Frequencies;
pub use parameters::{RopeFields, RopeParameters};

/// The rotary position embedding of one type of layer.
#[derive(Debug)]
pub struct Rope {
    frequencies: Frequencies,
    /// Factor for cos and sin. It is 1, except in rope types that sharpen attention in long
    /// contexts.
    attention_factor: f64,
    /// True if cached keys must be recomputed when the frequencies change.
    recomputes: bool,
    /// True if heads are rotated in float32 even if the model has a lower precision.
    unrounded: bool,
}

impl Rope {
    /// Creates a rotary position embedding for heads with `head_dim` dimensions.
    ///
    /// # Errors
    /// Fails if the rope type is unknown, or if one of its parameters is missing or out of range.
    pub fn new(head_dim: i64, parameters: &RopeParameters) -> Result<Self> {
        let (frequencies, attention_factor) = frequencies::of(head_dim, parameters)?;
        Ok(Self { frequencies, attention_factor, recomputes: false, unrounded: false })
    }

    /// Requires that cached keys are recomputed when a longer sequence has different frequencies.
    /// By default, cached keys keep their first rotation, as in most architectures.
    #[must_use]
    pub fn recomputing(mut self) -> Self {
        self.recomputes = true;
        self
    }

    /// Keeps cos and sin in float32, and also rotates heads in float32.
    #[must_use]
    pub fn unrounded(mut self) -> Self {
        self.unrounded = true;
        self
    }

    /// True if cached keys must be recomputed when a longer sequence has different frequencies.
    pub fn recomputes(&self) -> bool {
        self.recomputes
    }

    /// Returns the smallest length with the same frequencies as the length `tokens`. Two sequences
    /// can share the states of a prefix only if this function returns the same value for both
    /// lengths.
    pub fn representative_length(&self, tokens: usize) -> usize {
        self.frequencies.representative(tokens)
    }

    /// Computes cos and sin for every position of the stream, with dtype `kind`. The angles are
    /// float64 in a float64 model. Otherwise, they are float32, as in transformers. The frequencies
    /// depend only on the length of the sequence.
    ///
    /// # Errors
    /// Fails if a segment belongs to sequences with different frequencies, or if memory runs out.
    pub fn tables(&self, stream: &Stream, kind: Kind) -> Result<Tables> {
        let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let device = stream.positions.device();
        let mut lengths: Vec<usize> = Vec::new();
        let mut of_row: Vec<i64> = Vec::new();
        for (segment, sequences) in
            stream.layout.segments().iter().zip(stream.layout.sequence_lengths())
        {
            let length = self.representative_length(sequences.longest);
            if self.representative_length(sequences.shortest) != length {
                return Err(Error::internal(format!(
                    "sequences of {} and {} tokens share a prefix, but have different rotary \
                        frequencies",
                    sequences.shortest, sequences.longest
                )));
            }
            let at = lengths.iter().position(|l| *l == length).unwrap_or_else(|| {
                lengths.push(length);
                lengths.len() - 1
            });
            of_row.extend(std::iter::repeat_n(at as i64, segment.len));
        }
        let frequencies = |tokens: usize| {
            Tensor::from_slice(&self.frequencies.for_length(tokens))
                .f_to_kind(wide)?
                .f_to_device(device)
        };
        let positions = stream.positions.f_to_kind(wide)?;
        let angles = if let [length] = lengths[..] {
            positions.f_outer(&frequencies(length)?)?
        } else {
            let sets = lengths.iter().map(|l| frequencies(*l)).collect::<Result<Vec<_>, _>>()?;
            let of_row = Tensor::f_stack(&sets, 0)?
                .f_index_select(0, &Tensor::from_slice(&of_row).f_to_device(device)?)?;
            positions.f_unsqueeze(1)?.f_mul(&of_row)?
        };
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?.f_unsqueeze(1)?;
        let scaled = |t: Tensor| {
            if self.attention_factor == 1.0 { Ok(t) } else { t.f_mul_scalar(self.attention_factor) }
        };
        let kind = if self.unrounded { wide } else { kind };
        Ok(Tables {
            cos: scaled(angles.f_cos()?)?.f_to_kind(kind)?,
            sin: scaled(angles.f_sin()?)?.f_to_kind(kind)?,
        })
    }
}

/// cos and sin for every position of a stream, each `[n 1 r]`. r is the number of rotated
/// dimensions per head; the remaining dimensions are not rotated.
#[derive(Debug)]
pub struct Tables {
    cos: Tensor,
    sin: Tensor,
}

impl Tables {
    /// Rotates x `[n heads d]` by the position of each row. Only the first r dimensions of each
    /// head are rotated; dimension i is paired with dimension i + r/2.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (rotary_dims, d) = (self.cos.size()[2], x.size()[2]);
        if rotary_dims == d {
            return self.rotate_all(x);
        }
        let (rotated, rest) =
            (x.f_narrow(2, 0, rotary_dims)?, x.f_narrow(2, rotary_dims, d - rotary_dims)?);
        Ok(Tensor::f_cat(&[self.rotate_all(&rotated)?, rest], -1)?)
    }

    fn rotate_all(&self, x: &Tensor) -> Result<Tensor> {
        let fused = fused_rotation(x, &self.cos, &self.sin)?;
        fused.map_or_else(|| self.plain(x), Ok)
    }

    /// Rotates all dimensions of x with libtorch's operations.
    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.size()[2] / 2;
        let swapped =
            Tensor::f_cat(&[x.f_narrow(2, half, half)?.f_neg()?, x.f_narrow(2, 0, half)?], -1)?;
        Ok(x.f_mul(&self.cos)?.f_add(&swapped.f_mul(&self.sin)?)?.f_to_kind(x.kind())?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tch::Device;

    use super::*;
    use crate::model::stream::StreamBuilder;

    fn rope(config: &Value) -> Rope {
        Rope::new(8, &RopeParameters::partial(config, &RopeFields::COMMON).unwrap()).unwrap()
    }

    /// Rotates x `[1 1 8]` to position `p`.
    fn at(rope: &Rope, p: usize, x: &Tensor) -> Tensor {
        let mut builder = StreamBuilder::default();
        builder.push(&vec![0; p + 1], None).unwrap();
        let stream = builder.finish(Device::Cpu).unwrap();
        let all = x.expand([p as i64 + 1, 1, 8], false);
        rope.tables(&stream, Kind::Double).unwrap().rotate(&all).unwrap().narrow(0, p as i64, 1)
    }

    fn two() -> [Tensor; 2] {
        tch::manual_seed(1);
        [(); 2].map(|()| Tensor::randn([1, 1, 8], (Kind::Double, Device::Cpu)))
    }

    #[test]
    fn rotation_keeps_norms_and_products_only_depend_on_the_distance() {
        let (rope, [a, b]) = (rope(&json!({})), two());
        let product =
            |p, q| (at(&rope, p, &a) * at(&rope, q, &b)).sum(Kind::Double).double_value(&[]);
        assert!((product(3, 7) - product(103, 107)).abs() < 1e-9);
        assert!((at(&rope, 9, &a).norm() - a.norm()).abs().double_value(&[]) < 1e-12);
    }

    #[test]
    fn a_partial_rotation_does_not_change_the_end_of_each_head() {
        let (rope, [a, _]) = (rope(&json!({ "partial_rotary_factor": 0.5 })), two());
        let rotated = at(&rope, 5, &a);
        assert!(rotated.narrow(2, 4, 4).equal(&a.narrow(2, 4, 4)));
        assert!((rotated.narrow(2, 0, 4) - a.narrow(2, 0, 4)).abs().max().double_value(&[]) > 0.1);
    }

    #[test]
    fn the_attention_factor_scales_the_rotated_vectors() {
        let yarn = json!({ "rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 64, "attention_factor": 1.5 });
        let (rope, [a, _]) = (rope(&json!({ "rope_scaling": yarn })), two());
        assert!((at(&rope, 9, &a).norm() - a.norm() * 1.5).abs().double_value(&[]) < 1e-12);
    }
}
