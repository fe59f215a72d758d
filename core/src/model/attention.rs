//! Attention over a stream of tokens. Only this module decides which tokens a token attends to.
//!
//! A token attends to itself and to all earlier tokens of its sequence. The sequence consists of
//! the token's segment and of the segments that this segment continues. With a window of w tokens,
//! a token only attends to the last w of these tokens, including itself. All three strategies
//! compute the same attention up to rounding. Their speed depends on the device and the shapes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::stream::Layout;
use crate::error::Result;
use crate::ffi;

/// How attention over a stream is split into kernel calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One kernel call per segment, over its own keys and its ancestors' keys. No work is wasted.
    Segments,
    /// One masked kernel call per tree. There are fewer calls, but masked products between siblings
    /// are wasted work.
    Trees,
    /// Two kernel calls in total, one for roots and one for continuations. Each call gathers its
    /// segments into a padded rectangle and scatters the results back.
    Padded,
}

impl Strategy {
    /// The strategy that is usually fastest on `device`. A GPU spends most of the time on kernel
    /// launches, and a CPU on arithmetic.
    pub fn for_device(device: Device) -> Self {
        if device.is_cuda() { Strategy::Padded } else { Strategy::Segments }
    }
}

/// The implementation of softmax(scores)v; `attn_implementation` in transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// libtorch's fused scaled dot product attention.
    #[default]
    Sdpa,
    /// Separate operations, in the same order as transformers' eager attention. This is slower and
    /// keeps all attention weights in memory, but it reproduces transformers' results almost bit
    /// for bit.
    Eager,
}

/// How attention scores are computed from the products of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Factor by which the products are multiplied.
    pub scale: f64,
    /// Soft cap c in c·tanh(score / c); `None` for no cap.
    pub cap: Option<f64>,
    /// True if the eager kernel must compute scores in float32 even if the model has a lower
    /// precision. The fused kernel always uses float32.
    pub upcast: bool,
}

impl Scores {
    /// Scores that are multiplied by `scale`, without a cap or upcast.
    pub fn scaled_by(scale: f64) -> Self {
        Self { scale, cap: None, upcast: false }
    }
}

/// How a model computes attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionOptions {
    /// How the stream is split into kernel calls.
    pub strategy: Strategy,
    /// The implementation of each call.
    pub kernel: Kernel,
    /// True if only deterministic CUDA kernels may be used.
    pub deterministic: bool,
}

/// The kernels that libtorch may use for scaled dot product attention on a CUDA device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaKernels {
    /// FlashAttention, which does not support masks.
    pub flash: bool,
    /// xFormers' memory-efficient attention.
    pub memory_efficient: bool,
    /// cuDNN's attention.
    pub cudnn: bool,
    /// Plain matrix products and a softmax.
    pub math: bool,
}

impl CudaKernels {
    /// The kernels that may be used on `device`; `None` if it is not a CUDA device.
    ///
    /// cuDNN is not allowed with `deterministic` algorithms. It is the only kernel whose backward
    /// pass libtorch cannot make deterministic. The memory-efficient kernel is not allowed if
    /// attention is both `windowed` and `differentiated`, because its backward pass ignores the
    /// window.
    pub fn allowed(
        deterministic: bool,
        windowed: bool,
        differentiated: bool,
        device: Device,
    ) -> Option<Self> {
        let kernels = Self {
            flash: true,
            memory_efficient: !(windowed && differentiated),
            cudnn: !deterministic,
            math: true,
        };
        device.is_cuda().then_some(kernels)
    }
}

/// The masks and indices for one stream. They are built once and used by every layer.
#[derive(Debug)]
pub struct Attention {
    calls: Vec<Call>,
    options: AttentionOptions,
    /// True if a sliding window hides earlier tokens of the same sequence.
    windowed: bool,
    /// Number of tokens to which a token attends at most, including itself.
    window: i64,
    /// The layout for our own kernel, which does not support a cache.
    segments: Option<ffi::Segments>,
    tokens: i64,
}

/// One kernel call.
#[derive(Debug)]
enum Call {
    /// The only call for a stream that continues a cache. All queries of the stream attend to the
    /// cached keys and to the keys of the stream. `mask` is `None` for a single query that attends
    /// to all keys.
    Cached { mask: Option<Tensor> },
    /// Attention for the next `len` rows of the stream. The keys are the rows of the calls
    /// `ancestors`, followed by the same `len` rows.
    Rows { len: i64, ancestors: Vec<usize>, mask: Option<Tensor> },
    /// A padded rectangle of s segments. `queries` `[s lq]` and `keys` `[s lk]` contain row indices
    /// of the stream. `real` contains the indices in the flattened result that are not padding, and
    /// `rows` the corresponding rows of the stream. `shape` is (s, lq, lk).
    Rectangle {
        queries: Tensor,
        keys: Tensor,
        mask: Option<Tensor>,
        real: Tensor,
        rows: Tensor,
        shape: (i64, i64, i64),
    },
}

impl Attention {
    /// Prepares attention over `layout`. A token attends to the last `window` tokens, including
    /// itself. If `window` is `None`, it attends to its whole sequence so far.
    ///
    /// # Errors
    /// Fails if a mask does not fit into memory.
    pub fn new(
        layout: &Layout,
        options: AttentionOptions,
        window: Option<i64>,
        device: Device,
    ) -> Result<Self> {
        // No sequence is longer than the cache and the stream together.
        let longest = (layout.past() + layout.tokens()).max(1);
        let windowed = window.is_some();
        let window = window.map_or(longest, |w| usize::try_from(w).unwrap_or(0).clamp(1, longest));
        let calls = match options.strategy {
            _ if layout.past() > 0 => vec![Self::cached(layout, window, device)?],
            Strategy::Segments => Self::segments(layout, window, device)?,
            Strategy::Trees => Self::trees(layout, window, device)?,
            Strategy::Padded => Self::padded(layout, window, device)?,
        };
        let segments = (layout.past() == 0).then(|| {
            let mut segments = ffi::Segments::default();
            for (i, segment) in layout.segments().iter().enumerate() {
                let chain = layout.chain(i);
                segments.push(segment.len, &chain[..chain.len() - 1]);
            }
            segments
        });
        let (window, tokens) = (window as i64, layout.tokens() as i64);
        Ok(Self { calls, options, windowed, window, segments, tokens })
    }

    fn cached(layout: &Layout, window: usize, device: Device) -> Result<Call> {
        let (n, past) = (layout.tokens() as i64, layout.past() as i64);
        if n == 1 && past < window as i64 {
            return Ok(Call::Cached { mask: None });
        }
        let sees = Tensor::f_ones([n, past + n], (Kind::Bool, device))?
            .f_tril(past)?
            .f_triu(past - window as i64 + 1)?;
        Ok(Call::Cached { mask: Some(sees) })
    }

    fn segments(layout: &Layout, window: usize, device: Device) -> Result<Vec<Call>> {
        (0..layout.segments().len())
            .map(|i| {
                let segment = layout.segments()[i];
                let chain = layout.chain(i);
                let ancestors = chain[..chain.len() - 1].to_vec();
                let before = layout.offset(i) as i64;
                let len = segment.len as i64;
                // The mask `[len, before + len]` is lower triangular, shifted right by the number
                // of tokens before the segment. `f_triu` clears the diagonals outside the window. A
                // root that fits into the window does not need a mask, because the causal flag is
                // enough.
                let mask = if before == 0 && segment.len <= window {
                    None
                } else {
                    let sees = Tensor::f_ones([len, before + len], (Kind::Bool, device))?
                        .f_tril(before)?;
                    Some(sees.f_triu(before - window as i64 + 1)?)
                };
                Ok(Call::Rows { len, ancestors, mask })
            })
            .collect()
    }

    fn trees(layout: &Layout, window: usize, device: Device) -> Result<Vec<Call>> {
        let mut first = 0;
        let mut calls = Vec::new();
        for tree in layout.trees() {
            let start = tree[0].start;
            let len = tree.iter().map(|s| s.len).sum::<usize>();
            let mask = if tree.len() == 1 && len <= window {
                None
            } else {
                let mut sees = vec![false; len * len];
                for (i, segment) in tree.iter().enumerate() {
                    let before = layout.offset(first + i);
                    for ancestor in layout.chain(first + i) {
                        let (other, offset) =
                            (layout.segments()[ancestor], layout.offset(ancestor));
                        for (q, row) in segment.rows().enumerate() {
                            // Number of the ancestor's tokens before this token's window.
                            let passed = (before + q + 1).saturating_sub(window + offset);
                            for key in other.rows().skip(passed).take_while(|key| *key <= row) {
                                sees[(row - start) * len + (key - start)] = true;
                            }
                        }
                    }
                }
                Some(
                    Tensor::from_slice(&sees)
                        .f_reshape([len as i64, len as i64])?
                        .f_to_device(device)?,
                )
            };
            calls.push(Call::Rows { len: len as i64, ancestors: Vec::new(), mask });
            first += tree.len();
        }
        Ok(calls)
    }

    fn padded(layout: &Layout, window: usize, device: Device) -> Result<Vec<Call>> {
        let (roots, children): (Vec<usize>, Vec<usize>) =
            (0..layout.segments().len()).partition(|i| layout.segments()[*i].continues.is_none());
        [roots, children]
            .into_iter()
            .filter(|group| !group.is_empty())
            .map(|group| Self::rectangle(layout, &group, window, device))
            .collect()
    }

    fn rectangle(layout: &Layout, group: &[usize], window: usize, device: Device) -> Result<Call> {
        let keys_of: Vec<Vec<i64>> = group
            .iter()
            .map(|i| {
                layout
                    .chain(*i)
                    .into_iter()
                    .flat_map(|a| layout.segments()[a].rows())
                    .map(|r| r as i64)
                    .collect()
            })
            .collect();
        let lq = group.iter().map(|i| layout.segments()[*i].len).max().unwrap_or(0);
        let lk = keys_of.iter().map(Vec::len).max().unwrap_or(0);
        let (mut queries, mut keys) = (vec![0i64; group.len() * lq], vec![0i64; group.len() * lk]);
        let (mut real, mut rows) = (Vec::new(), Vec::new());
        // Right-padded roots that fit into the window do not need a mask: with causal attention, a
        // token never attends to the padding on its right.
        let causal = layout.segments()[group[0]].continues.is_none() && lq <= window;
        let mut sees = if causal { Vec::new() } else { vec![false; group.len() * lq * lk] };
        for (s, (i, key_rows)) in group.iter().zip(&keys_of).enumerate() {
            let segment = layout.segments()[*i];
            keys[s * lk..s * lk + key_rows.len()].copy_from_slice(key_rows);
            let before = key_rows.len() - segment.len;
            for (q, row) in segment.rows().enumerate() {
                queries[s * lq + q] = row as i64;
                real.push((s * lq + q) as i64);
                rows.push(row as i64);
                if !causal {
                    let (at, last) = ((s * lq + q) * lk, before + q);
                    sees[at + (last + 1).saturating_sub(window)..=at + last].fill(true);
                }
            }
            if !causal {
                // The output of a padded query is discarded. It still attends to one key, because
                // the gradient of a row that attends to nothing would be NaN.
                for q in segment.len..lq {
                    sees[(s * lq + q) * lk] = true;
                }
            }
        }
        let shape = (group.len() as i64, lq as i64, lk as i64);
        let tensor = |v: &[i64]| Tensor::from_slice(v).f_to_device(device);
        Ok(Call::Rectangle {
            queries: tensor(&queries)?,
            keys: tensor(&keys)?,
            mask: if causal {
                None
            } else {
                Some(
                    Tensor::from_slice(&sees)
                        .f_reshape([shape.0, 1, shape.1, shape.2])?
                        .f_to_device(device)?,
                )
            },
            real: tensor(&real)?,
            rows: tensor(&rows)?,
            shape,
        })
    }

    /// Computes softmax(scores)v, where each token attends to the tokens that its layout and window
    /// allow.
    ///
    /// q is `[n heads d]`; k and v are `[n kv_heads d]`, where kv_heads divides heads. Returns `[n
    /// heads·d]`.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: Scores) -> Result<Tensor> {
        let (heads, d) = (q.size()[1], q.size()[2]);
        if let (Kernel::Sdpa, None, Some(segments)) =
            (self.options.kernel, scores.cap, &self.segments)
            && let Some(out) = ffi::attention(q, k, v, segments, scores.scale, self.window)?
        {
            return Ok(out.f_flatten(1, 2)?);
        }
        let group = heads / k.size()[1];
        // The backward pass uses the kernel that is chosen here.
        let differentiated = [q, k, v].iter().any(|t| t.requires_grad());
        if let Some(CudaKernels { flash, memory_efficient, cudnn, math }) = CudaKernels::allowed(
            self.options.deterministic,
            self.windowed,
            differentiated,
            q.device(),
        ) {
            ffi::set_attention_kernels(flash, memory_efficient, cudnn, math)?;
        }
        // The fused kernel cannot cap scores.
        let kernel =
            |q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, causal: bool| match (
                self.options.kernel,
                scores.cap,
            ) {
                (Kernel::Sdpa, None) => Tensor::f_scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    mask,
                    0.0,
                    causal,
                    scores.scale,
                    false,
                ),
                _ => eager(q, k, v, mask, causal, scores),
            };
        // [len heads d] → [1 heads len d]
        let lead = |t: Tensor| t.f_transpose(0, 1).and_then(|t| t.f_unsqueeze(0));
        if let [Call::Cached { mask: None }] = &self.calls[..] {
            // Pass the query heads that share a key head as separate queries of one head.
            // Otherwise, all cached keys would have to be repeated.
            let q = q.f_reshape([1, heads / group, group, d])?;
            return Ok(kernel(
                &q,
                &lead(k.shallow_clone())?,
                &lead(v.shallow_clone())?,
                None,
                false,
            )?
            .f_reshape([1, heads * d])?);
        }
        let (k, v) = (repeat_heads(k, group)?, repeat_heads(v, group)?);
        if let [Call::Cached { mask }] = &self.calls[..] {
            let out =
                kernel(&lead(q.shallow_clone())?, &lead(k)?, &lead(v)?, mask.as_ref(), false)?;
            return Ok(out
                .f_squeeze_dim(0)?
                .f_transpose(0, 1)?
                .f_reshape([self.tokens, heads * d])?);
        }
        match self.options.strategy {
            Strategy::Segments | Strategy::Trees => {
                let lens: Vec<i64> = self
                    .calls
                    .iter()
                    .map(|call| if let Call::Rows { len, .. } = call { *len } else { 0 })
                    .collect();
                // Split the tensor instead of slicing it. The gradient of a split is a single
                // concatenation, but the gradient of each slice is as large as the whole stream.
                let split = |t: &Tensor| t.f_split_with_sizes(&lens[..], 0);
                let (q, k, v) = (split(q)?, split(&k)?, split(&v)?);
                let mut parts = Vec::with_capacity(self.calls.len());
                for (i, call) in self.calls.iter().enumerate() {
                    let Call::Rows { len, ancestors, mask } = call else { continue };
                    let keys = |t: &[Tensor]| match &ancestors[..] {
                        [] => Ok(t[i].shallow_clone()),
                        _ => {
                            let all: Vec<_> =
                                ancestors.iter().chain([&i]).map(|part| &t[*part]).collect();
                            Tensor::f_cat(&all, 0)
                        }
                    };
                    let out = kernel(
                        &lead(q[i].shallow_clone())?,
                        &lead(keys(&k)?)?,
                        &lead(keys(&v)?)?,
                        mask.as_ref(),
                        mask.is_none(),
                    )?;
                    parts.push(
                        out.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_reshape([*len, heads * d])?,
                    );
                }
                Ok(Tensor::f_cat(&parts, 0)?)
            }
            Strategy::Padded => {
                let (mut parts, mut rows) = (Vec::new(), Vec::new());
                for call in &self.calls {
                    let Call::Rectangle { queries, keys, mask, real, rows: at, shape } = call
                    else {
                        continue;
                    };
                    let (s, lq, lk) = shape;
                    let pick = |t: &Tensor, index: &Tensor, len: i64| {
                        t.f_index_select(0, index)
                            .and_then(|t| t.f_view([*s, len, heads, d]))
                            .and_then(|t| t.f_transpose(1, 2))
                    };
                    let out = kernel(
                        &pick(q, queries, *lq)?,
                        &pick(&k, keys, *lk)?,
                        &pick(&v, keys, *lk)?,
                        mask.as_ref(),
                        mask.is_none(),
                    )?;
                    parts.push(
                        out.f_transpose(1, 2)?
                            .f_reshape([s * lq, heads * d])?
                            .f_index_select(0, real)?,
                    );
                    rows.push(at.shallow_clone());
                }
                let out = Tensor::f_zeros([self.tokens, heads * d], (q.kind(), q.device()))?;
                Ok(out.f_index_copy(0, &Tensor::f_cat(&rows, 0)?, &Tensor::f_cat(&parts, 0)?)?)
            }
        }
    }
}

/// Computes softmax(scores)v from q `[s heads lq d]` and k, v `[s heads lk d]`. Returns `[s heads
/// lq d]`. Without a mask, a query attends to all keys. If `causal` is true, it only attends to
/// keys up to its own position.
fn eager(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
    options: Scores,
) -> Result<Tensor, tch::TchError> {
    let wide = if q.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let (q, k) = if options.upcast {
        (q.f_to_kind(wide)?, k.f_to_kind(wide)?)
    } else {
        (q.shallow_clone(), k.shallow_clone())
    };
    let sees = match mask {
        Some(mask) => Some(mask.shallow_clone()),
        None if causal => {
            Some(Tensor::f_ones([q.size()[2], k.size()[2]], (Kind::Bool, q.device()))?.f_tril(0)?)
        }
        None => None,
    };
    let scores = q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(options.scale)?;
    let scores = match options.cap {
        Some(cap) => scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?,
        None => scores,
    };
    let scores = match sees {
        Some(sees) => scores.f_masked_fill(&sees.f_logical_not()?, f64::NEG_INFINITY)?,
        None => scores,
    };
    scores.f_softmax(-1, wide)?.f_to_kind(v.kind())?.f_matmul(v)
}

/// Repeats each head `group` times: `[n kv d]` → `[n kv·group d]`.
fn repeat_heads(t: &Tensor, group: i64) -> Result<Tensor> {
    if group == 1 {
        return Ok(t.shallow_clone());
    }
    let (n, kv, d) = t.size3()?;
    Ok(t.f_unsqueeze(2)?.f_expand([n, kv, group, d], false)?.f_reshape([n, kv * group, d])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Init;
    use crate::model::stream::{Stream, StreamBuilder};

    fn stream() -> Stream {
        let mut b = StreamBuilder::default();
        let p = b.push(&[0; 5], None).unwrap();
        let c = b.push(&[0; 3], Some(p)).unwrap();
        b.push(&[0; 4], Some(p)).unwrap();
        b.push(&[0; 2], Some(c)).unwrap();
        b.push(&[0; 6], None).unwrap();
        b.finish(Device::Cpu).unwrap()
    }

    /// Always returns the same values. They do not come from libtorch's generator, because tests in
    /// other threads share it.
    fn qkv(n: i64) -> [Tensor; 3] {
        let mut init = Init::new(0, "qkv", Kind::Double, Device::Cpu);
        [("q", 4), ("k", 2), ("v", 2)].map(|(key, heads)| init.normal(key, &[n, heads, 8], 1.0))
    }

    /// A reference implementation that follows the definition of attention, one sequence at a time.
    fn attend_by_definition(
        layout: &Layout,
        [q, k, v]: &[Tensor; 3],
        window: Option<i64>,
        cap: Option<f64>,
    ) -> Tensor {
        let out = Tensor::zeros([q.size()[0], 4 * 8], (Kind::Double, Device::Cpu));
        for i in 0..layout.segments().len() {
            let keys: Vec<i64> = layout
                .chain(i)
                .into_iter()
                .flat_map(|a| layout.segments()[a].rows())
                .map(|r| r as i64)
                .collect();
            for row in layout.segments()[i].rows() {
                let mut keys: Vec<i64> =
                    keys.iter().copied().filter(|k| *k <= row as i64).collect();
                keys.drain(
                    ..keys.len() - window.map_or(keys.len(), |w| keys.len().min(w as usize)),
                );
                let index = Tensor::from_slice(&keys);
                for head in 0..4 {
                    let (kk, vv) = (
                        k.index_select(0, &index).select(1, head / 2),
                        v.index_select(0, &index).select(1, head / 2),
                    );
                    let scores = kk.matmul(&q.get(row as i64).get(head)) * 0.3;
                    let scores = if let Some(c) = cap { (scores / c).tanh() * c } else { scores };
                    let weights = scores.softmax(0, Kind::Double);
                    out.get(row as i64).narrow(0, head * 8, 8).copy_(&weights.matmul(&vv));
                }
            }
        }
        out
    }

    #[test]
    fn backward_passes_on_cuda_keep_windows_and_are_deterministic_if_required() {
        let choices = [false, true];
        for (deterministic, windowed, differentiated) in choices.into_iter().flat_map(|d| {
            choices.into_iter().flat_map(move |w| choices.into_iter().map(move |g| (d, w, g)))
        }) {
            assert_eq!(
                CudaKernels::allowed(deterministic, windowed, differentiated, Device::Cpu),
                None
            );
            let kernels =
                CudaKernels::allowed(deterministic, windowed, differentiated, Device::Cuda(0))
                    .unwrap();
            assert!(
                !(kernels.memory_efficient && windowed && differentiated),
                "the memory-efficient kernel ignores the window in its backward pass"
            );
            assert!(
                !(kernels.cudnn && deterministic),
                "the backward pass of cuDNN is not deterministic"
            );
            // The math kernel must always be enabled, because no other kernel supports every case.
            assert!(kernels.math);
            // A kernel must only be disabled in the cases above.
            assert_eq!(kernels.memory_efficient, !(windowed && differentiated));
            assert!(kernels.flash && kernels.cudnn != deterministic);
        }
    }

    #[test]
    fn every_strategy_matches_the_definition_forward_and_backward() {
        let s = stream();
        let n = s.layout.tokens() as i64;
        let weight = Tensor::randn([n, 32], (Kind::Double, Device::Cpu));
        let strategies = [Strategy::Segments, Strategy::Trees, Strategy::Padded];
        let ways: Vec<_> = strategies
            .into_iter()
            .flat_map(|strategy| [(strategy, Kernel::Sdpa), (strategy, Kernel::Eager)])
            .collect();
        // These windows cover all cases: shorter than a segment, extending into its ancestors, as
        // long as a root, and longer than every sequence.
        let windows = [None, Some(1), Some(3), Some(5), Some(6), Some(100)];
        for (window, cap) in
            windows.into_iter().map(|w| (w, None)).chain([(None, Some(0.5)), (Some(4), Some(0.5))])
        {
            let expected = {
                let _guard = tch::no_grad_guard();
                attend_by_definition(&s.layout, &qkv(n), window, cap)
            };
            let mut gradients: Vec<Vec<Tensor>> = Vec::new();
            for (strategy, kernel) in &ways {
                let [q, k, v] = qkv(n);
                let options =
                    AttentionOptions { strategy: *strategy, kernel: *kernel, deterministic: true };
                let out = Attention::new(&s.layout, options, window, Device::Cpu)
                    .unwrap()
                    .attend(&q, &k, &v, Scores { cap, ..Scores::scaled_by(0.3) })
                    .unwrap();
                let worst = (&out - &expected).abs().max().double_value(&[]);
                assert!(
                    worst < 1e-12,
                    "{options:?}, window {window:?}, cap {cap:?}: difference {worst}"
                );
                (out * &weight).sum(Kind::Double).backward();
                gradients.push([q, k, v].iter().map(Tensor::grad).collect());
            }
            for other in &gradients[1..] {
                for (a, b) in gradients[0].iter().zip(other) {
                    assert!(
                        (a - b).abs().max().double_value(&[]) < 1e-12,
                        "window {window:?}, cap {cap:?}"
                    );
                }
            }
        }
    }

    /// A stream with segments of several blocks, deep chains and segments of one token.
    fn long_stream() -> Stream {
        let mut b = StreamBuilder::default();
        let p = b.push(&[0; 300], None).unwrap();
        let c = b.push(&[0; 130], Some(p)).unwrap();
        b.push(&[0; 1], Some(p)).unwrap();
        b.push(&[0; 17], Some(c)).unwrap();
        b.push(&[0; 1], None).unwrap();
        b.finish(Device::Cpu).unwrap()
    }

    #[test]
    fn our_kernel_equals_eager_attention_in_float64() {
        let s = long_stream();
        let n = s.layout.tokens() as i64;
        tch::manual_seed(4);
        let exact = [6, 2, 2].map(|h| Tensor::randn([n, h, 24], (Kind::Double, Device::Cpu)));
        let weight = Tensor::randn([n, 6 * 24], (Kind::Double, Device::Cpu));
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 2e-2)] {
            for window in [None, Some(1), Some(40), Some(200)] {
                let run = |kind: Kind, kernel: Kernel, qkv: &[Tensor; 3]| {
                    let qkv =
                        qkv.each_ref().map(|t| t.to_kind(kind).copy().set_requires_grad(true));
                    let options = AttentionOptions {
                        strategy: Strategy::Segments,
                        kernel,
                        deterministic: true,
                    };
                    let attention =
                        Attention::new(&s.layout, options, window, Device::Cpu).unwrap();
                    let [q, k, v] = &qkv;
                    let out = attention.attend(q, k, v, Scores::scaled_by(0.3)).unwrap();
                    (&out * weight.to_kind(kind)).sum(Kind::Double).backward();
                    let gradients = qkv.each_ref().map(Tensor::grad);
                    std::iter::once(out.detach()).chain(gradients).collect::<Vec<_>>()
                };
                let rounded = exact.each_ref().map(|t| t.to_kind(kind).to_kind(Kind::Double));
                let expected = run(Kind::Double, Kernel::Eager, &rounded);
                let ours = run(kind, Kernel::Sdpa, &rounded);
                for (name, (a, b)) in ["out", "gradient of q", "gradient of k", "gradient of v"]
                    .into_iter()
                    .zip(ours.iter().zip(&expected))
                {
                    let off = (a.to_kind(Kind::Double) - b).abs().max().double_value(&[]);
                    let off = off / b.abs().max().double_value(&[]).max(0.1);
                    assert!(
                        off < tolerance,
                        "{name}, {kind:?}, window {window:?}: relative error {off:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn attention_with_a_cache_equals_attention_over_the_whole_sequence() {
        let whole = |n: usize| {
            let mut b = StreamBuilder::default();
            b.push(&vec![0; n], None).unwrap();
            b.finish(Device::Cpu).unwrap()
        };
        let _guard = tch::no_grad_guard();
        let (n, [q, k, v]) = (9, qkv(9));
        for (window, cap) in [None, Some(1), Some(3), Some(8), Some(9), Some(100)]
            .into_iter()
            .flat_map(|w| [(w, None), (w, Some(0.5))])
        {
            let expected = attend_by_definition(
                &whole(n).layout,
                &[q.shallow_clone(), k.shallow_clone(), v.shallow_clone()],
                window,
                cap,
            );
            // A single new token has a separate code path, so test it as well as several new
            // tokens.
            for (kernel, new) in [Kernel::Sdpa, Kernel::Eager]
                .into_iter()
                .flat_map(|kernel| [(kernel, 1), (kernel, 4)])
            {
                let mut b = StreamBuilder::continuing(n - new);
                b.push(&vec![0; new], None).unwrap();
                let layout = b.finish(Device::Cpu).unwrap().layout;
                let options =
                    AttentionOptions { strategy: Strategy::Segments, kernel, deterministic: true };
                let last = |t: &Tensor| t.narrow(0, (n - new) as i64, new as i64);
                let found = Attention::new(&layout, options, window, Device::Cpu)
                    .unwrap()
                    .attend(&last(&q), &k, &v, Scores { cap, ..Scores::scaled_by(0.3) })
                    .unwrap();
                let worst = (found - last(&expected)).abs().max().double_value(&[]);
                assert!(
                    worst < 1e-12,
                    "{options:?}, {new} new tokens, window {window:?}, cap {cap:?}: \
                        difference {worst}"
                );
            }
        }
    }
}
