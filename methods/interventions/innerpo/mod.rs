//! DPO with an inner term: the margin between the states of both completions must grow, measured by
//! that of the reference.

mod original;
mod switches;

use reprpo_plugin::prelude::*;

use super::dpo::Dpo;
use super::original::Variant;
use super::vectors::{EPS, NO_DIRECTION, dot, norm, safe};
use original::{Align, OuterLoss};

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

/// DPO with an inner term on states.
#[intervention(
    name = "innerpo",
    summary = "DPO, and an inner term that makes the margin between chosen and rejected states \
        grow along the reference's preference direction",
    reference = "wassname, repr-preference-optimization, branch topk, commit 54c1dc5 (InnerDPO, \
        topk and topkl), with margins as multiples of the preference vector's length",
    explain = "\
L = ℓ_dpo + α·inner    inner = (τ − min(x, τ))², mean over taps
innerdpo: x = ⟨p⁺ − p⁻, v̂⟩/s − 1    d = r⁺ − r⁻    s = ‖d‖ + ε    v̂ = d/s
topk:     x = ⟨(p⁺ − p⁻)_K, d_K⟩/‖d_K‖² − 1    K = the `topk_n` largest |d_j|, at most a quarter
topkl:    the same for p/s and d/s of all taps side by side, with one K per pair
sigmoid:  inner = −log σ(β·mean of min(x, τ) over taps), β = inner_beta
symlog:   inner = −mean of symlog(1 + min(x, τ)) over taps, symlog(c) = sign(c)·log(1 + |c|)

p± are the pooled and transformed states of the policy at a tap, and r± those of the reference.
ℓ_dpo is the loss of `dpo`, with the fields `dpo.…`. x is the growth of the margin of the states
in units of the reference's margin: 0 at the first step, and 1 if it has doubled. Beyond τ there
is no reward, so τ is a trust region. The adapter gets no gradient through r±, s and v̂, but T
does: this keeps T from lowering the loss by stretching the states. A pair is left out at a tap
where d is 0 up to rounding, and of the whole loss if that holds at every tap.
token_constraint subtracts ½·relu(δ⁻ − sg δ⁺)/s from x: a penalty if the rejected tokens' states
move further than the chosen ones'. δ± is the mean over completion tokens of ‖h_π − h_r‖ after T.
Use it to train outputs and states together; compare it with `dpo`, which is α = 0, and with
`prefvec`, which moves each completion instead of their difference. Use topk if few coordinates
carry the preference. Evidence: we know of no published results.
original: what the branch computes, to reproduce its numbers, with the fields `original_…`. It
pools over the completion without its last token, the end of the sequence. ℓ is the mean of log
p(token) over the completion without its first token; θ and X are the margins of ℓ and x:
innerdpo: ℓ_o + α·ℓ_i
  simper: ℓ_o = e^{ℓ⁻} − e^{ℓ⁺}, ℓ_i = symlog(⟨p⁺ − p⁻, v̂⟩)
  ipo: ℓ_o = (θ − 1/(2β))², ℓ_i = (X − 1/(2β))²    dpo: ℓ_o = −log σ(βθ), ℓ_i = −log σ(βX)
topk, topkl: mean (τ − ρ)² + mean relu(1 − ρ) + 2·mean relu(ρ − τ), without an outer loss
dpo: simper as above    ipo: relu(½ − βθ)²    dpo: −log σ(βθ), with sums over tokens
Its mse and rank are `original_version = \"later\"` of these methods. Its defects: simper, its
default, pushes the states against the preference direction. topk divides by each component of a
unit vector, so signs flip. topkl normalises p and d separately, so size does not count. Its
options use_mallows and, on states, use_wpo do not exist here: most of their forms depend on the
padding of a batch, which reprpo does not have.",
    example(mode = "topk", topk_n = 50, alpha = 0.2)
)]
pub struct InnerPo {
    /// Objective to use: this project's or the original one.
    pub variant: Variant,
    /// The margin of the states.
    pub mode: Mode,
    /// α: weight of the inner term, at least 0; 0.1 if it is not set. Not read by topk, topkl and
    /// dpo of `original`.
    pub alpha: Option<f64>,
    /// Function of the margin in mode `innerdpo`; `ratio` if it is not set.
    pub inner: Option<Inner>,
    /// β of `inner = "sigmoid"`, greater than 0; 1 if it is not set.
    pub inner_beta: Option<f64>,
    /// τ: the growth of the margin beyond which there is no reward, as a multiple of the
    /// reference's margin, greater than 0; 1 if it is not set.
    pub tau: Option<f64>,
    /// Number of coordinates in `topk` and `topkl`, at least 1; 100 if it is not set. At most a
    /// quarter of the coordinates is used.
    pub topk_n: Option<usize>,
    /// Subtracts ½·relu(δ⁻ − sg δ⁺)/s from the margin in mode `innerdpo`.
    pub token_constraint: bool,
    /// Treatment of the rejected completion's states.
    pub rejected: Rejected,
    /// The outer loss: fields of `dpo`.
    pub dpo: Dpo,
    /// Loss function of `original` in the modes `innerdpo` and `dpo`. If it is not set, `simper`
    /// for `innerdpo` and `ipo` for `dpo`.
    pub original_dpo_loss: Option<OuterLoss>,
    /// β of `ipo` and `dpo` in `original`, greater than 0. If it is not set, 0.4 in mode
    /// `innerdpo` and 0.2 in mode `dpo`.
    pub original_beta: Option<f64>,
    /// Margin x of `original` with `ipo` and `dpo`; `pars_rat` if it is not set.
    pub original_align_method: Option<Align>,
    /// τ of `original`, at least 0. In mode `innerdpo`, 0 means no limit and is used if it is not
    /// set; `topk` and `topkl` use 2 if it is not set.
    pub original_trust_region: Option<f64>,
    /// Takes max(x, τ) instead of min(x, τ) in `original`.
    pub original_clamp_bottom: bool,
    /// Weighs x in `original` by the share of p⁺ − p⁻ along d.
    pub original_inner_weights: bool,
    /// Subtracts ½·relu(δ⁻ − δ⁺) from x in `original`.
    pub original_token_constraint: bool,
    /// Stops the gradient of the policy's rejected states in `original`; there, it is named
    /// detach_ref.
    pub original_detach_rejected: bool,
    /// Order of the norms in `original`, 1 or 2; 2 if it is not set.
    pub original_p: Option<i64>,
    /// ε of `original`, greater than 0; 1e-4 if it is not set.
    pub original_eps: Option<f64>,
    /// Leaves out tokens whose states are more than three standard deviations longer than the mean
    /// of their sequence in `original`.
    pub original_filter_sinks: bool,
    /// e of the loss `dpo` in `original`, at least 0 and less than 1; 0 if it is not set. As
    /// implemented, the inner term is −log σ(βX) − e·log σ(−βX).
    pub original_label_smoothing: Option<f64>,
    /// Weighs each pair in mode `dpo` of `original` by how likely the policy is to generate its
    /// completions.
    pub original_policy_weights: bool,
}

/// The margins of states.
#[choice]
pub enum Mode {
    /// The whole state.
    #[default]
    Innerdpo,
    /// The coordinates with the largest preference, at each tap.
    Topk,
    /// The coordinates with the largest preference at all taps together.
    Topkl,
    /// No states; only for `variant = "original"`.
    Dpo,
}

/// Functions of the margin x.
#[choice]
pub enum Inner {
    /// (τ − min(x, τ))²
    #[default]
    Ratio,
    /// −log σ(β·mean of min(x, τ))
    Sigmoid,
    /// −symlog(1 + min(x, τ))
    Symlog,
}

/// The ways to treat the rejected completion's states.
#[choice]
pub enum Rejected {
    /// They are trained.
    #[default]
    Train,
    /// Their gradient is stopped, so that only the chosen states move.
    Detach,
}

impl InterventionPlugin for InnerPo {
    fn build(self, model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        self.check()?;
        self.dpo.clone().build(model)?;
        Ok(Box::new(self))
    }
}

impl Intervention for InnerPo {
    fn needs(&self) -> Needs {
        match self.variant {
            Variant::Default => Needs {
                states: if self.token_constraint { States::PerToken } else { States::Pooled },
                reference_states: true,
                ..self.dpo.needs()
            },
            Variant::Original => self.original_needs(),
        }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        match self.variant {
            Variant::Default => self.inner_and_outer(pairs),
            Variant::Original => self.original_of_batch(pairs),
        }
    }
}

impl InnerPo {
    fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(0.1)
    }

    /// Number of coordinates in K, out of `width`.
    fn k(&self, width: i64) -> i64 {
        (self.topk_n.unwrap_or(100) as i64).min(width / 4).max(1)
    }

    fn inner_and_outer(&self, pairs: &Pairs) -> Result<Loss> {
        let tau = self.tau.unwrap_or(1.0);
        // The margin x at one tap, and functions of it, stacked to the shape [4 b].
        let functions = |x: &Tensor, penalty: Option<&Tensor>| {
            let bounded = x.clamp_max(tau);
            let bounded = penalty.map_or_else(|| bounded.shallow_clone(), |p| &bounded - p);
            let symlog = symlog(&(&bounded + 1.0));
            let square = (tau - &bounded).square();
            Tensor::stack(&[x.shallow_clone(), bounded, square, symlog], 0)
        };
        let margins = match self.mode {
            Mode::Innerdpo | Mode::Dpo => pairs.mean_over_counting_taps(|tap| {
                let Difference { a, d, counts } = self.difference(tap)?;
                let s = safe(&norm(&d), &counts) + EPS;
                let x = dot(&a, &d) / s.square() - 1.0;
                let penalty = match self.token_constraint {
                    true => Some(excess(tap)? * 0.5 / s),
                    false => None,
                };
                Ok((functions(&x, penalty.as_ref()), counts))
            }),
            Mode::Topk => pairs.mean_over_counting_taps(|tap| {
                let Difference { a, d, counts } = self.difference(tap)?;
                Ok((functions(&self.largest(&a, &d, &counts), None), counts))
            }),
            Mode::Topkl => self.together(pairs, functions),
        }?;
        let [x, bounded, square, symlog] = [0, 1, 2, 3].map(|i| margins.values.get(i));
        let inner = match self.inner.unwrap_or_default() {
            Inner::Ratio => square,
            Inner::Sigmoid => -(bounded * self.inner_beta.unwrap_or(1.0)).log_sigmoid(),
            Inner::Symlog => -symlog,
        };
        let outer = self.dpo.pair_losses(pairs)?;
        // WPO weighs the whole loss of a pair.
        let weighted = match &outer.weight {
            Some(weight) => &inner * weight,
            None => inner.shallow_clone(),
        };
        let value = margins.mean(&(outer.each() + weighted * self.alpha()));
        let loss = Loss::over(value, &margins, NO_DIRECTION)
            .metric("innerpo/margin", &x)
            .metric("innerpo/inner", &inner);
        Ok(outer.log(loss))
    }

    /// Returns p⁺ − p⁻ and r⁺ − r⁻ at a tap.
    fn difference(&self, tap: &TapStates) -> Result<Difference> {
        let (p, r) = (tap.policy()?, tap.reference()?);
        let a = match self.rejected {
            Rejected::Train => &p.chosen - &p.rejected,
            Rejected::Detach => &p.chosen - p.rejected.detach(),
        };
        Ok(Difference { a, d: &r.chosen - &r.rejected, counts: r.differ() })
    }

    /// Returns ⟨a_K, d_K⟩/‖d_K‖² − 1, `[b]`. K is the set of the largest |d_j| of each pair.
    fn largest(&self, a: &Tensor, d: &Tensor, counts: &Tensor) -> Tensor {
        let k = self.k(d.size().last().copied().unwrap_or_default());
        let indices = d.abs().topk(k, -1, true, true).1;
        let [a, d] = [a, d].map(|x| x.gather(-1, &indices, false));
        dot(&a, &d) / (safe(&dot(&d, &d), counts) + EPS * EPS) - 1.0
    }

    /// Returns the functions of the margin over all taps together.
    fn together(
        &self,
        pairs: &Pairs,
        functions: impl Fn(&Tensor, Option<&Tensor>) -> Tensor,
    ) -> Result<Counted> {
        let (mut a, mut d, mut counted) = (Vec::new(), Vec::new(), Vec::new());
        for tap in &pairs.taps {
            let tap = self.difference(tap)?;
            let s = (safe(&norm(&tap.d), &tap.counts) + EPS).unsqueeze(-1);
            // The coordinates of a tap without a preference direction are 0, so that K contains
            // other ones.
            let kept = tap.counts.to_kind(tap.d.kind()).unsqueeze(-1) / s;
            a.push(tap.a * &kept);
            d.push(tap.d * &kept);
            counted.push(tap.counts);
        }
        // A pair counts if it has a preference direction at any tap.
        let counts = counted.into_iter().reduce(|one, other| one.logical_or(&other));
        let Some(counts) = counts else {
            return Err(Error::internal("the method needs the pooled states of a tap"));
        };
        let x = self.largest(&Tensor::cat(&a, -1), &Tensor::cat(&d, -1), &counts);
        let kind = x.kind();
        Ok(Counted { values: functions(&x, None), counts: counts.to_kind(kind) })
    }
}

/// The states of the pairs at one tap.
struct Difference {
    /// p⁺ − p⁻, `[b h]`.
    a: Tensor,
    /// r⁺ − r⁻, `[b h]`.
    d: Tensor,
    /// False for pairs without a preference direction, `[b]`.
    counts: Tensor,
}

/// Returns relu(δ⁻ − sg δ⁺), `[b]`. δ is the mean over the completion's tokens of ‖h_π − h_r‖.
fn excess(tap: &TapStates) -> Result<Tensor> {
    let (policy, reference) = tap.tokens()?;
    let moved = policy.as_ref().zip(reference.as_ref()).map(|(policy, reference)| {
        let completion = policy.completion.to_kind(policy.states.kind());
        let distance = norm(&(&policy.states - &reference.states)) * &completion;
        policy.sum_by_sequence(&distance) / policy.sum_by_sequence(&completion)
    });
    Ok((moved.rejected - moved.chosen.detach()).relu())
}

/// sign(c)·log(1 + |c|).
fn symlog(c: &Tensor) -> Tensor {
    c.sign() * c.abs().log1p()
}
