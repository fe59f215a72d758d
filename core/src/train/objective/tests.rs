//! Tests that a method receives what its `Needs` request.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::api::{Around, ModelInfo, Tap, Transform};
use crate::config::TrainConfig;
use crate::conformance::{self, Bench, Case};
use crate::error::Fault;
use crate::testing::ranks::on_ranks;
use crate::train::{accumulate, validate};

/// The only step of a run.
const FIRST: StepInfo = StepInfo { step: 0, steps: 1, seed: 0 };

/// A method with the given needs. The closure computes its loss.
struct Probe<F>(Needs, F);

impl<F: FnMut(&Pairs) -> Result<Tensor> + Send> Intervention for Probe<F> {
    fn needs(&self) -> Needs {
        self.0
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        Ok(Loss::new((self.1)(pairs)?))
    }
}

/// Preference pairs, and a model with an adapter whose parameters differ from their initial values.
struct Fixture {
    bench: Bench,
    pairs: Vec<TokenPair>,
}

impl Fixture {
    fn new() -> Self {
        let bench = Bench::new(&Case::of_stand_ins(), 0).expect("a bench");
        bench.disturb();
        Self { bench, pairs: conformance::pairs() }
    }

    fn batch(&self, spec: BatchSpec) -> PairBatch {
        PairBatch::of(&self.pairs.iter().collect::<Vec<_>>(), spec, &self.bench.model)
            .expect("a batch")
    }

    /// Computes the loss over all pairs with `of`. Checks that a parameter of the adapter receives
    /// a gradient.
    fn loss(
        &self,
        needs: Needs,
        taps: Taps,
        of: impl FnMut(&Pairs) -> Result<Tensor> + Send + 'static,
    ) -> Result<f64> {
        let Bench { model, adapted, .. } = &self.bench;
        let mut objective =
            Objective::new(Box::new(Probe(needs, of)), taps, Reference::default(), adapted)?;
        let batch = objective.batch(&self.pairs.iter().collect::<Vec<_>>(), model)?;
        let value =
            objective.loss(model, adapted, &batch, FIRST, TrainPass::of_weight(1.0))?.loss.value;
        value.backward();
        let has_gradient = |(_, p): &(String, Tensor)| {
            p.grad().defined() && p.grad().abs().max().double_value(&[]) > 0.0
        };
        assert!(adapted.parameters().iter().any(has_gradient), "no gradient");
        Ok(value.double_value(&[]))
    }

    /// Returns log p for every token of the vocabulary, at the scored positions of a batch. `on`
    /// enables the adapter.
    fn log_softmax(&self, batch: &PairBatch, on: bool) -> Tensor {
        let _guard = tch::no_grad_guard();
        let request = Request {
            adapted: on.then_some(&self.bench.adapted),
            hidden: true,
            ..Request::default()
        };
        let hidden = self
            .bench
            .model
            .forward(&batch.stream, request)
            .expect("a pass")
            .hidden
            .expect("a hidden state");
        self.bench
            .model
            .logits(&hidden)
            .expect("logits")
            .index_select(0, &batch.predicted.rows)
            .log_softmax(-1, None::<Kind>)
    }
}

/// Builds taps that read the states at `sites` without transforming them.
fn untransformed(fixture: &Fixture, sites: &[Site]) -> Taps {
    let tap = Places(sites.to_vec());
    let needs = Needs { states: States::Pooled, ..Needs::NONE };
    Taps::build(&tap, &needs, &fixture.bench.model, &TrainConfig::default(), |_, _| {
        Ok(Box::new(Identity))
    })
    .expect("taps")
}

struct Places(Vec<Site>);

impl Tap for Places {
    fn sites(&self, _: &ModelInfo) -> Result<Vec<Site>> {
        Ok(self.0.clone())
    }

    fn pooling(&self) -> Pooling {
        Pooling::Completion
    }
}

struct Identity;

impl Transform for Identity {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h.shallow_clone())
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        true
    }
}

#[test]
fn the_divergence_from_the_reference_is_the_sum_over_the_vocabulary() {
    let fixture = Fixture::new();
    let needs = Needs { logprobs: Completions::Both, reference_kl: true, ..Needs::NONE };
    let sum = |pairs: &Pairs| {
        let Sides { chosen, rejected } =
            pairs.policy()?.both()?.try_map(|side| Ok::<_, Error>(side.kl()?.sum(Kind::Double)))?;
        Ok(chosen + rejected)
    };
    let ours = fixture.loss(needs, Taps::default(), sum).expect("a loss");
    let batch = fixture.batch(BatchSpec::SCORED);
    let (p, r) = (fixture.log_softmax(&batch, true), fixture.log_softmax(&batch, false));
    let per_token = (p.exp() * (&p - r)).sum_dim_intlist(-1, false, None::<Kind>);
    let side = |side| {
        batch
            .tokens_of(&per_token, side)
            .expect("tokens")
            .per_token
            .sum(Kind::Double)
            .double_value(&[])
    };
    let expected = side(Side::Chosen) + side(Side::Rejected);
    assert!(
        expected > 1e-3 && (ours - expected).abs() < 1e-9 * expected,
        "the divergence is {ours}, not {expected}"
    );
    // A method only receives the divergence if its needs include `reference_kl` and
    // log-probabilities.
    let refused = |needs| {
        fixture
            .loss(needs, Taps::default(), |pairs| {
                Ok(pairs.policy()?.chosen()?.kl()?.sum(Kind::Double))
            })
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused(Needs { logprobs: Completions::Chosen, ..Needs::NONE })
            .contains("the divergence from the reference")
    );
    assert!(
        refused(Needs { reference_kl: true, ..Needs::NONE })
            .contains("`reference_kl`, but not `logprobs`")
    );
}

#[test]
fn the_log_probabilities_of_a_whole_sequence_end_with_those_of_the_completion() {
    let fixture = Fixture::new();
    let needs =
        Needs { logprobs: Completions::Both, sequence_logprobs: Completions::Both, ..Needs::NONE };
    let lengths: Vec<Sides<[i64; 2]>> = fixture
        .pairs
        .iter()
        .map(|pair| {
            let of = |completion: &[i64]| [pair.prompt.len() as i64, completion.len() as i64];
            Sides { chosen: of(&pair.chosen), rejected: of(&pair.rejected) }
        })
        .collect();
    let check = move |pairs: &Pairs| {
        let of_sides = pairs.sequence_logprobs()?.both()?.zip(pairs.policy()?.both()?);
        for (side, (whole, own)) in of_sides {
            let (mut at, mut at_own) = (0, 0);
            for (pair, lengths) in lengths.iter().enumerate() {
                let [prompt, n] = *lengths.get(side);
                let total = prompt + n - 1;
                assert_eq!(whole.tokens.double_value(&[pair as i64]), total as f64);
                let owners = whole.owner.narrow(0, at, total);
                assert_eq!(owners, owners.full_like(pair as i64));
                let tail = whole.per_token.narrow(0, at + prompt - 1, n);
                let completion = own.per_token.narrow(0, at_own, n);
                assert!((tail - completion).abs().max().double_value(&[]) < 1e-12);
                (at, at_own) = (at + total, at_own + n);
            }
            assert_eq!(whole.per_token.size(), [at]);
        }
        Ok(pairs.sequence_logprobs()?.chosen()?.mean().mean(Kind::Double))
    };
    fixture.loss(needs, Taps::default(), check).expect("a loss");
    let refused = |needs| {
        fixture
            .loss(needs, Taps::default(), |pairs| {
                Ok(pairs.sequence_logprobs()?.chosen()?.sum().sum(Kind::Double))
            })
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused(Needs { logprobs: Completions::Both, ..Needs::NONE })
            .contains("log-probabilities of whole sequences")
    );
    assert!(
        refused(Needs { sequence_logprobs: Completions::Chosen, ..Needs::NONE })
            .contains("`sequence_logprobs`, but not `logprobs`")
    );
}

#[test]
fn a_method_that_reads_one_side_only_gets_that_side_and_a_smaller_batch() {
    let fixture = Fixture::new();
    let site = Site::Residual(1);
    for side in Side::BOTH {
        let needs = Needs {
            states: States::Pooled,
            only: Some(side),
            reference_states: true,
            ..Needs::NONE
        };
        let of = move |pairs: &Pairs| {
            let tap = &pairs.taps[0];
            assert!(tap.policy().is_err() && tap.reference().is_err());
            assert!(Side::BOTH.into_iter().all(|s| tap.policy_of(s).is_ok() == (s == side)));
            Ok((tap.policy_of(side)? - tap.reference_of(side)?).square().sum(Kind::Double))
        };
        let one = fixture
            .loss(needs, untransformed(&fixture, std::slice::from_ref(&site)), of)
            .expect("a loss");
        let both = Needs { only: None, ..needs };
        let of = move |pairs: &Pairs| {
            Ok((pairs.taps[0].policy()?.get(side) - pairs.taps[0].reference()?.get(side))
                .square()
                .sum(Kind::Double))
        };
        let whole = fixture
            .loss(both, untransformed(&fixture, std::slice::from_ref(&site)), of)
            .expect("a loss");
        assert!(
            (one - whole).abs() < 1e-12 * whole,
            "{side:?} side alone: {one}, with both sides: {whole}"
        );
    }
    let tokens = |states| {
        fixture
            .batch(BatchSpec { logprobs: Completions::None, states, sharing: Sharing::Prefixes })
            .stream
            .ids
            .size()[0]
    };
    assert!(
        tokens(Completions::Rejected) < tokens(Completions::Both)
            && tokens(Completions::Chosen) < tokens(Completions::Both)
    );
}

/// Needs of a method that reads log-probabilities and pooled states of the reference.
fn needs_of_kept() -> Needs {
    Needs {
        logprobs: Completions::Both,
        reference_logprobs: true,
        states: States::Pooled,
        reference_states: true,
        ..Needs::NONE
    }
}

/// The values of the reference for all pairs, in a row, and whether its outputs are kept.
fn reference_values(prepared: &[&[&TokenPair]], equal: bool, needs: Needs) -> (Vec<f64>, bool) {
    let fixture = Fixture::new();
    let Bench { model, adapted, .. } = &fixture.bench;
    let (send, receive) = std::sync::mpsc::channel();
    let probe = move |pairs: &Pairs| {
        let mut values = Vec::new();
        for side in needs.logprobs.sides() {
            let reference = pairs.reference()?;
            let tokens = match side {
                Side::Chosen => reference.chosen()?,
                Side::Rejected => reference.rejected()?,
            };
            values.push(tokens.per_token.shallow_clone());
        }
        for tap in &pairs.taps {
            let states = tap.reference()?;
            values.extend([&states.chosen, &states.rejected].map(|t| t.flatten(0, -1)));
        }
        let _ = send.send(Vec::<f64>::try_from(Tensor::cat(&values, 0))?);
        Ok(pairs.policy()?.chosen()?.sum().mean(None::<Kind>))
    };
    let taps = untransformed(&fixture, &[Site::Residual(1), Site::Block(1)]);
    let mut objective =
        Objective::new(Box::new(Probe(needs, probe)), taps, Reference::default(), adapted)
            .expect("an objective");
    for block in prepared {
        objective.prepare(model, &[block]).expect("values");
    }
    objective.reference().set_equals_policy(equal);
    let batch = objective.batch(&fixture.pairs.iter().collect::<Vec<_>>(), model).expect("a batch");
    let plan = GradientPlan::new(model, adapted).expect("a plan");
    let work = |objective: &Objective| {
        objective.work(model, adapted, &batch, &plan).expect("a count").operations.total()
    };
    let before = work(&objective);
    let step = StepInfo { step: 0, steps: 1, seed: 0 };
    objective.loss(model, adapted, &batch, step, TrainPass::of_weight(1.0)).expect("a loss");
    objective.reference().set_equals_policy(false);
    (receive.recv().expect("values"), before < work(&objective) + 1.0)
}

#[test]
fn values_that_were_prepared_in_blocks_equal_those_of_the_batch() {
    let pairs = conformance::pairs();
    let pairs: Vec<&TokenPair> = pairs.iter().collect();
    let (expected, is_kept) = reference_values(&[], false, needs_of_kept());
    assert!(!is_kept);
    for blocks in [
        vec![&pairs[..]],
        vec![&pairs[..2], &pairs[2..]],
        pairs.iter().map(std::slice::from_ref).collect(),
    ] {
        let (found, is_kept) = reference_values(&blocks, false, needs_of_kept());
        assert!(is_kept, "the step ran the reference again");
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-12, "{off}");
        // While the policy equals the reference, the values belong to the batch of the policy.
        let (of_batch, is_kept) = reference_values(&blocks, true, needs_of_kept());
        assert!(!is_kept && of_batch == expected);
    }
}

#[test]
fn prepared_values_of_both_sides_serve_a_method_that_needs_one() {
    let pairs = conformance::pairs();
    let pairs: Vec<&TokenPair> = pairs.iter().collect();
    let needs = Needs { logprobs: Completions::Chosen, ..needs_of_kept() };
    let (expected, _) = reference_values(&[], false, needs);
    let (found, is_kept) = reference_values(&[&pairs[..3], &pairs[3..]], false, needs);
    let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(is_kept && off < 1e-12, "{off}");
}

#[test]
fn token_states_of_the_policy_do_not_require_those_of_the_reference() {
    let fixture = Fixture::new();
    let needs = Needs { states: States::PerToken, ..Needs::NONE };
    let of = |pairs: &Pairs| {
        assert!(pairs.taps[0].tokens().is_err());
        let tokens = &pairs.taps[0].policy_tokens()?.rejected;
        assert_eq!(tokens.states.size()[0], tokens.owner.size()[0]);
        Ok(tokens.states.square().sum(Kind::Double))
    };
    assert!(
        fixture.loss(needs, untransformed(&fixture, &[Site::Residual(1)]), of).expect("a loss")
            > 0.0
    );
}

#[test]
fn log_probabilities_of_one_completion_equal_those_of_a_pass_over_both() {
    let fixture = Fixture::new();
    let of = |pairs: &Pairs| Ok(pairs.policy()?.rejected()?.sum().sum(Kind::Double));
    let loss = |logprobs| {
        fixture
            .loss(Needs { logprobs, reference_logprobs: true, ..Needs::NONE }, Taps::default(), of)
            .expect("a loss")
    };
    let (one, both) = (loss(Completions::Rejected), loss(Completions::Both));
    assert!(
        (one - both).abs() < 1e-12 * both.abs(),
        "rejected completion alone: {one}, with both completions: {both}"
    );
}

/// A method that updates a running mean each time its loss is computed.
struct Running(f64);

impl Intervention for Running {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Both, ..Needs::NONE }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let mean = pairs.policy()?.chosen()?.sum().mean(Kind::Double);
        self.0 = 0.5 * self.0 + mean.double_value(&[]);
        Ok(Loss::new(mean * self.0))
    }
}

#[test]
fn a_validation_does_not_change_the_method_or_the_gradients() {
    let info = StepInfo { step: 0, steps: 2, seed: 0 };
    // Computes the gradients after two steps, optionally with a validation in between.
    let gradients = |validates: bool| {
        let fixture = Fixture::new();
        let Bench { model, adapted, .. } = &fixture.bench;
        let mut objective =
            Objective::new(Box::new(Running(1.0)), Taps::default(), Reference::default(), adapted)
                .expect("an objective");
        let (seen, held_out): (Vec<&TokenPair>, Vec<&TokenPair>) =
            fixture.pairs.iter().partition(|pair| pair.index % 2 == 0);
        accumulate(&mut objective, model, adapted, &seen, 2, info, 0).expect("a step");
        if validates {
            let validated = objective.with_method(Box::new(Running(1.0)), |objective| {
                validate(objective, model, adapted, &held_out, 2, info, &AtomicBool::new(false))
            });
            assert!(validated.expect("a validation").loss.is_finite());
        }
        accumulate(&mut objective, model, adapted, &seen, 2, info, 0).expect("a step");
        adapted.parameters().into_iter().map(|(_, p)| p.grad().copy()).collect::<Vec<_>>()
    };
    assert_eq!(gradients(true), gradients(false));
    // Validation uses a separate instance of the method, so its result does not depend on previous
    // training.
    let fixture = Fixture::new();
    let Bench { model, adapted, .. } = &fixture.bench;
    let mut objective =
        Objective::new(Box::new(Running(9.0)), Taps::default(), Reference::default(), adapted)
            .expect("an objective");
    let all: Vec<&TokenPair> = fixture.pairs.iter().collect();
    let mut validated = |stop| {
        objective.with_method(Box::new(Running(1.0)), |objective| {
            validate(objective, model, adapted, &all, 2, info, &AtomicBool::new(stop))
        })
    };
    let mut loss = || validated(false).expect("a validation").loss.to_bits();
    assert_eq!(loss(), loss());
    assert_eq!(validated(true).expect_err("an error").fault(), Fault::Interrupted);
    assert!(adapted.parameters().iter().all(|(_, p)| !p.grad().defined()));
}

#[test]
fn ranks_with_other_parameters_end_before_the_update() {
    let errors = on_ranks(2, |world| {
        let fixture = Fixture::new();
        let Bench { model, adapted, .. } = &fixture.bench;
        let mut objective =
            Objective::new(Box::new(Running(1.0)), Taps::default(), Reference::default(), adapted)
                .expect("an objective");
        let pairs: Vec<&TokenPair> = fixture.pairs.iter().collect();
        let mut step = |step| {
            let info = StepInfo { step, steps: 9, seed: 0 };
            accumulate(&mut objective, model, adapted, &pairs, 2, info, 0)
        };
        step(6).expect("a step");
        if world.rank() == 1 {
            let (_, mut parameter) = adapted.parameters().remove(0);
            let _guard = tch::no_grad_guard();
            let _ =
                parameter.f_mul_(&Tensor::from(1.0 + f64::from(f32::EPSILON))).expect("a change");
        }
        step(7).map(drop).expect_err("an error").to_string()
    });
    for e in errors.into_iter().flatten() {
        assert!(
            e.starts_with(
                "rank 1 has diverged: its trained parameters differ from those of rank 0 \
                after 7 steps"
            ),
            "{e}"
        );
    }
}
