//! Compares every attention strategy and kernel, forward and backward, with plain matrix products
//! in float64 on the CPU.
//!
//! The reference builds its own masks from the layout, so that the comparison also finds errors in
//! the program's masks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use tch::{Device, Kind, Tensor};

use super::products::off;
use super::report::{Difference, Row};
use super::{Section, Selftest, kind_name};
use crate::error::Result;
use crate::ffi;
use crate::model::attention::{Attention, AttentionOptions, Kernel, Scores, Strategy};
use crate::model::stream::{Layout, StreamBuilder};

/// The number of tokens of each segment, and the index of the segment that it continues, if any.
type Segments = &'static [(usize, Option<usize>)];

/// The layout of a batch, or one sequence with a cache.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Segments(&'static str, Segments),
    Behind { past: usize, tokens: usize },
}

/// Pairs that share prompts and have very different lengths, so that the padded strategy adds a lot
/// of padding.
const PAIRS: Shape = Shape::Segments(
    "pairs",
    &[
        (9, None),
        (5, Some(0)),
        (31, Some(0)),
        (1, None),
        (17, Some(3)),
        (2, Some(3)),
        (2, Some(3)),
        (70, None),
        (64, Some(7)),
        (1, Some(7)),
    ],
);
/// A prefix that two prompts share, and sequences without a prompt.
const CHAINS: Shape = Shape::Segments(
    "chains",
    &[
        (12, None),
        (20, Some(0)),
        (7, Some(1)),
        (8, Some(1)),
        (3, Some(0)),
        (40, Some(4)),
        (25, None),
        (1, None),
    ],
);

/// Number of attention heads, number of key-value heads, and width of a head.
#[derive(Clone, Copy, Debug)]
struct Heads(i64, i64, i64);

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} heads and {} key-value heads of width {}", self.0, self.1, self.2)
    }
}

/// A test case: the layout of the tokens, the sliding window, the heads, and the cap of the scores.
#[derive(Clone, Copy, Debug)]
struct Problem {
    shape: Shape,
    window: Option<i64>,
    heads: Heads,
    cap: Option<f64>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape {
            Shape::Segments(name, _) => write!(f, "{name}")?,
            Shape::Behind { past, tokens } => {
                write!(f, "{tokens} tokens after {past} cached ones")?
            }
        }
        if let Some(window) = self.window {
            write!(f, ", window {window}")?;
        }
        if let Some(cap) = self.cap {
            write!(f, ", capped at {cap}")?;
        }
        write!(f, ", {}", self.heads)
    }
}

/// The test cases without a cache. They cover four head configurations: one from SmolLM2, one with
/// a single key-value head, one with wide heads as in Gemma, and one with capped scores.
fn problems() -> Vec<Problem> {
    let mut problems = Vec::new();
    for shape in [PAIRS, CHAINS] {
        for window in [None, Some(1), Some(6), Some(33)] {
            for (heads, cap) in [
                (Heads(9, 3, 64), None),
                (Heads(4, 1, 12), None),
                (Heads(2, 2, 256), None),
                (Heads(4, 2, 64), Some(3.0)),
            ] {
                problems.push(Problem { shape, window, heads, cap });
            }
        }
    }
    problems
}

/// The test cases with a cache, as in decoding.
fn cached_problems() -> Vec<Problem> {
    let shapes = [(40, 1), (1, 1), (40, 7)].map(|(past, tokens)| Shape::Behind { past, tokens });
    let windows = [None, Some(6)];
    shapes
        .into_iter()
        .flat_map(|shape| {
            windows.map(|window| Problem { shape, window, heads: Heads(9, 3, 64), cap: None })
        })
        .collect()
}

/// Compares all combinations of strategy, kernel and precision with the reference.
///
/// # Errors
/// Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let strategies = [
        ("segments", Strategy::Segments),
        ("trees", Strategy::Trees),
        ("padded", Strategy::Padded),
    ];
    let kernels = [("sdpa", Kernel::Sdpa), ("eager", Kernel::Eager)];
    // On a GPU, libtorch chooses different kernels in deterministic mode, so test both modes there.
    let deterministic: &[bool] = if test.device.is_cuda() { &[true, false] } else { &[true] };
    test.begin(
        Section::Attention,
        2 * deterministic.len() * kernels.len() * (strategies.len() + 2),
    );
    for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 2e-2)] {
        let mut solved = HashMap::new();
        for &deterministic in deterministic {
            for (by, kernel) in kernels {
                let how = |strategy| AttentionOptions { strategy, kernel, deterministic };
                let mut ways: Vec<_> = strategies
                    .iter()
                    .map(|(name, strategy)| (*name, how(*strategy), problems(), true))
                    .collect();
                let usual = how(Strategy::for_device(test.device));
                ways.extend([
                    ("with a cache", usual, cached_problems(), false),
                    ("without gradient", usual, problems(), false),
                ]);
                for (name, how, problems, trained) in ways {
                    let any = if deterministic { "" } else { ", any kernel" };
                    let name = format!("{name} × {by}, {}{any}", kind_name(kind));
                    test.check(Section::Attention, &name, |test| {
                        ffi::set_deterministic(deterministic)?;
                        let mut all = Vec::new();
                        for problem in &problems {
                            all.extend(compared(
                                problem,
                                how,
                                kind,
                                test.device,
                                trained,
                                tolerance,
                                &mut solved,
                            )?);
                        }
                        Ok(Difference::worst_of(all)
                            .map(|worst| Row::of(Section::Attention, &name, worst))
                            .into_iter()
                            .collect())
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// Compares the output with the reference. If `trained` is true, also compares the gradients.
/// `solved` caches the reference results by problem name.
fn compared(
    problem: &Problem,
    how: AttentionOptions,
    kind: Kind,
    device: Device,
    trained: bool,
    tolerance: f64,
    solved: &mut HashMap<String, Vec<Tensor>>,
) -> Result<Vec<Difference>> {
    let Heads(heads, kv_heads, width) = problem.heads;
    let layout = layout(problem.shape, device)?;
    let (tokens, keys) = (layout.tokens() as i64, (layout.past() + layout.tokens()) as i64);
    tch::manual_seed(heads * 1000 + width);
    // Round the inputs to the tested precision, also for the reference. Then only the precision of
    // the computation differs.
    let random = |shape: &[i64]| {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind).to_kind(Kind::Double)
    };
    let inputs = [
        random(&[tokens, heads, width]),
        random(&[keys, kv_heads, width]),
        random(&[keys, kv_heads, width]),
    ];
    let weights = random(&[tokens, heads * width]);
    let scores = Scores { cap: problem.cap, ..Scores::scaled_by(1.0 / (width as f64).sqrt()) };

    let attention = Attention::new(&layout, how, problem.window, device)?;
    let ours = computed(&inputs, &weights, kind, device, trained, |q, k, v| {
        attention.attend(q, k, v, scores)
    })?;
    let exact = match solved.entry(problem.to_string()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let sees = sees(&layout, problem.window);
            entry.insert(computed(
                &inputs,
                &weights,
                Kind::Double,
                Device::Cpu,
                true,
                |q, k, v| plain(q, k, v, &sees, scores),
            )?)
        }
    };
    let names = ["output", "gradient of q", "gradient of k", "gradient of v"];
    // If a token only attends to itself, its scores have zero gradients. All gradients are
    // therefore compared relative to the largest gradient.
    let largest =
        |t: &[Tensor]| t.iter().map(|t| t.abs().max().double_value(&[])).fold(0.0, f64::max);
    let scales = [largest(&exact[..1]), largest(&exact[1..])];
    let off = |i: usize| off(&ours[i], &exact[i]) / scales[i.min(1)];
    Ok((0..ours.len())
        .map(|i| Difference::new(format!("{}, {problem}", names[i]), off(i), tolerance))
        .collect())
}

/// Computes the output and, if `trained` is true, the gradients of q, k and v. `weights` is the
/// gradient of the output.
fn computed(
    inputs: &[Tensor; 3],
    weights: &Tensor,
    kind: Kind,
    device: Device,
    trained: bool,
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let [q, k, v] =
        inputs.each_ref().map(|t| t.to_kind(kind).to_device(device).set_requires_grad(trained));
    let out = attend(&q, &k, &v)?;
    let mut all = vec![out.detach()];
    if trained {
        (out * weights.to_kind(kind).to_device(device)).sum(kind).f_backward()?;
        all.extend([q.grad(), k.grad(), v.grad()]);
    }
    Ok(all)
}

fn layout(shape: Shape, device: Device) -> Result<Layout> {
    let mut builder = match shape {
        Shape::Segments(..) => StreamBuilder::default(),
        Shape::Behind { past, .. } => StreamBuilder::continuing(past),
    };
    match shape {
        Shape::Segments(_, segments) => {
            for (len, continues) in segments {
                builder.push(&vec![0; *len], *continues)?;
            }
        }
        Shape::Behind { tokens, .. } => drop(builder.push(&vec![0; tokens], None)?),
    }
    Ok(builder.finish(device)?.layout)
}

/// Returns a mask of shape `[tokens keys]`. It is true where a token attends to a key. A token
/// attends to the keys of its sequence up to itself, or only to the last `window` of these keys.
fn sees(layout: &Layout, window: Option<i64>) -> Tensor {
    let (tokens, keys) = (layout.tokens(), layout.past() + layout.tokens());
    let window = window.map_or(keys, |w| w as usize);
    let mut sees = vec![false; tokens * keys];
    for i in 0..layout.segments().len() {
        let past = 0..layout.past();
        let sequence: Vec<usize> = past
            .chain(
                layout
                    .chain(i)
                    .into_iter()
                    .flat_map(|s| layout.segments()[s].rows())
                    .map(|row| row + layout.past()),
            )
            .collect();
        for (before, row) in layout.segments()[i].rows().enumerate() {
            let end = sequence.len() - layout.segments()[i].len + before + 1;
            for key in &sequence[end.saturating_sub(window)..end] {
                sees[row * keys + key] = true;
            }
        }
    }
    Tensor::from_slice(&sees).reshape([tokens as i64, keys as i64])
}

/// Computes softmax(scores)v for all tokens at once, with a single mask.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, sees: &Tensor, scores: Scores) -> Result<Tensor> {
    let group = q.size()[1] / k.size()[1];
    let of_heads = |t: &Tensor| t.repeat_interleave_self_int(group, 1, None).transpose(0, 1);
    let products = q.transpose(0, 1).f_matmul(&of_heads(k).transpose(1, 2))? * scores.scale;
    let products =
        scores.cap.map_or_else(|| products.shallow_clone(), |cap| (&products / cap).tanh() * cap);
    let weights = products
        .f_masked_fill(&sees.logical_not(), f64::NEG_INFINITY)?
        .f_softmax(-1, None::<Kind>)?;
    Ok(weights
        .f_matmul(&of_heads(v))?
        .f_transpose(0, 1)?
        .f_reshape([q.size()[0], q.size()[1] * q.size()[2]])?)
}
