//! Builds pairs with given values for tests. All values are float64.

use std::cell::Cell;

use crate::prelude::*;
use crate::tch::{self, Device};

/// The first of ten steps.
pub const STEP: StepInfo = StepInfo { step: 0, steps: 10, seed: 0 };

/// A float64 tensor of the given shape.
pub fn tensor(values: &[f64], shape: &[i64]) -> Tensor {
    Tensor::from_slice(values).reshape(shape)
}

/// Returns normally distributed float64 values. Each call returns different values. Each thread has
/// its own sequence of values, which is the same in every run. libtorch's global generator is not
/// used, because tests in other threads would change its values.
pub fn random(shape: &[i64]) -> Tensor {
    thread_local!(static DRAWN: Cell<u64> = const { Cell::new(0) });
    seeded(DRAWN.replace(DRAWN.get() + 1), shape)
}

/// Returns normally distributed float64 values that only depend on the seed and the shape.
pub fn seeded(seed: u64, shape: &[i64]) -> Tensor {
    Init::new(seed, "testkit", Kind::Double, Device::Cpu).normal("random", shape, 1.0).detach()
}

/// Returns normally distributed float64 values for both sides.
pub fn random_sides(shape: &[i64]) -> Sides {
    Sides { chosen: random(shape), rejected: random(shape) }
}

/// Combines two tensors into [`Sides`], without copying them.
pub fn sides(chosen: &Tensor, rejected: &Tensor) -> Sides {
    Sides { chosen: chosen.shallow_clone(), rejected: rejected.shallow_clone() }
}

/// Applies `f` to both sides.
pub fn map(of: &Sides, f: impl Fn(&Tensor) -> Tensor) -> Sides {
    Sides { chosen: f(&of.chosen), rejected: f(&of.rejected) }
}

/// Creates the token log-probabilities of several completions. `lengths` contains the number of
/// tokens of each completion. `per_token` contains the values of all completions, concatenated.
pub fn tokens(per_token: &Tensor, lengths: &[i64]) -> TokenLogprobs {
    let counts = Tensor::from_slice(lengths);
    let owner = Tensor::arange(lengths.len() as i64, (Kind::Int64, Device::Cpu))
        .repeat_interleave_self_tensor(&counts, 0, None);
    TokenLogprobs::new(per_token.shallow_clone(), owner, counts.to_kind(per_token.kind()))
}

/// Creates the log-probabilities of completions that all have `length` tokens. For each side,
/// `per_token` contains the values of all completions, concatenated.
pub fn logprobs(per_token: &Sides, length: i64) -> Logprobs {
    let of = |t: &Tensor| tokens(t, &vec![length; (t.size()[0] / length) as usize]);
    Logprobs::new(of(&per_token.chosen), Some(of(&per_token.rejected)))
}

/// Creates the pooled states of one tap.
pub fn tap(policy: &Sides, reference: &Sides) -> TapStates {
    TapStates::new(
        Site::Residual(1),
        map(policy, Tensor::shallow_clone),
        Some(map(reference, Tensor::shallow_clone)),
    )
}

/// Creates the token states of b sequences with t tokens each. `states` has the shape `[b t h]`.
/// `completion` has the shape `[b t]`, and is nonzero for completion tokens and zero for prompt
/// tokens.
///
/// # Panics
/// Panics if `states` does not have three dimensions.
pub fn token_states(states: &Tensor, completion: &Tensor) -> TokenStates {
    let (b, t, h) = states.size3().expect("[b t h]");
    TokenStates {
        states: states.reshape([b * t, h]),
        owner: Tensor::arange(b, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(t, 0, None),
        completion: completion.reshape([-1]).to_kind(Kind::Bool),
        sequences: b,
    }
}

/// Creates the token states and the pooled states of one tap. The tensors in `policy` and
/// `reference` have the shape `[b t h]`. The first `prompt` tokens of each sequence are prompt
/// tokens. The pooled states are means over all tokens.
pub fn tap_of_tokens(policy: &Sides, reference: &Sides, prompt: i64) -> TapStates {
    let side = |x: &Tensor| {
        let all = x.ones_like().select(2, 0);
        let completion = all.cumsum(1, Kind::Int64).gt(prompt);
        token_states(x, &completion)
    };
    let both = |x: &Sides| Sides { chosen: side(&x.chosen), rejected: side(&x.rejected) };
    let pooled = |x: &Sides| map(x, |x| x.mean_dim(1, false, None::<Kind>));
    TapStates::new(Site::Residual(1), pooled(policy), Some(pooled(reference)))
        .with_tokens(both(policy), Some(both(reference)))
}

/// Returns the value of the metric `name` of a loss.
///
/// # Panics
/// Panics if the loss has no such metric.
pub fn logged(loss: &Loss, name: &str) -> f64 {
    loss.metrics
        .iter()
        .find(|(n, _)| n == name)
        .unwrap_or_else(|| panic!("no metric {name}"))
        .1
        .double_value(&[])
}

/// Asserts that two numbers agree to about ten digits.
///
/// # Panics
/// Panics if `a` and `b` differ by more.
pub fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-10 * b.abs().max(1.0), "{a} {b}");
}

/// Asserts that the gradient of `loss` agrees with central finite differences for every element of
/// `leaves`.
///
/// # Panics
/// Panics if an element differs.
pub fn gradients_are_those_of_finite_differences(leaves: &[&Tensor], loss: impl Fn() -> Tensor) {
    for leaf in leaves {
        let _ = leaf.set_requires_grad(true);
    }
    loss().backward();
    let _guard = tch::no_grad_guard();
    for leaf in leaves {
        let (grad, flat) = (leaf.grad().reshape([-1]), leaf.detach().view([-1]));
        for i in 0..flat.size()[0] {
            let (mut element, step) = (flat.get(i), 1e-6);
            element += step;
            let above = loss().double_value(&[]);
            element -= 2.0 * step;
            let below = loss().double_value(&[]);
            element += step;
            let (numeric, exact) = ((above - below) / (2.0 * step), grad.double_value(&[i]));
            assert!((numeric - exact).abs() < 1e-7 * exact.abs().max(1.0), "{numeric} {exact}");
        }
    }
}

/// A minimal model, for methods that ignore the model.
pub fn model() -> ModelInfo {
    ModelInfo {
        architecture: "llama".to_owned(),
        layers: 1,
        hidden: 1,
        heads: 1,
        head_dim: 1,
        vocab: 1,
        linears: Vec::new(),
        parts: Vec::new(),
    }
}
