//! Checks that the rows of a stream represent the right sequences, even if pairs share rows.

use super::*;

fn pair(index: usize, prompt: &[i64], chosen: &[i64], rejected: &[i64]) -> TokenPair {
    TokenPair {
        index,
        row: index,
        prompt: prompt.to_vec(),
        chosen: chosen.to_vec(),
        rejected: rejected.to_vec(),
    }
}

/// Three pairs. Two of them have the same prompt, and the chosen completion of one is the rejected
/// completion of the other.
fn pairs() -> Vec<TokenPair> {
    vec![
        pair(0, &[1, 2, 3], &[4, 5], &[6, 7, 8, 9]),
        pair(1, &[10, 11], &[12], &[13, 14]),
        pair(2, &[1, 2, 3], &[6, 7, 8, 9], &[15]),
    ]
}

fn batch(pairs: &[TokenPair], apart: bool) -> PairBatch {
    let refs: Vec<&TokenPair> = pairs.iter().collect();
    PairBatch::new(
        &refs,
        BatchSpec { logprobs: Completions::None, states: Completions::Both, apart },
        Kind::Double,
        Device::Cpu,
        |_| Vec::new(),
    )
    .expect("a batch")
}

/// Returns a state of width 2 for each token of the stream. Different token ids have different
/// states.
fn states(batch: &PairBatch) -> Tensor {
    let ids = batch.stream.ids.to_kind(Kind::Double);
    Tensor::stack(&[&ids * 1.0, ids.square() / 7.0], 1)
}

/// Returns the tokens of a sequence that `pooling` must average over.
fn pooled_tokens(pair: &TokenPair, pooling: Pooling, side: Side) -> Vec<i64> {
    let own = pair.completion(side);
    let whole: Vec<i64> = pair.prompt.iter().chain(own).copied().collect();
    match pooling {
        Pooling::Completion => own.to_vec(),
        Pooling::All => whole,
        Pooling::Last => vec![whole[whole.len() - 1]],
        Pooling::Common => {
            whole[..pair.prompt.len() + pair.chosen.len().min(pair.rejected.len())].to_vec()
        }
    }
}

const POOLINGS: [Pooling; 4] = [Pooling::Completion, Pooling::All, Pooling::Last, Pooling::Common];

#[test]
fn rows_are_the_tokens_that_a_pooling_averages_over() {
    let pairs = pairs();
    for apart in [false, true] {
        let batch = batch(&pairs, apart);
        for (pooling, side) in POOLINGS.into_iter().flat_map(|p| Side::BOTH.map(|side| (p, side))) {
            let rows = batch.rows(pooling, side).expect("rows");
            let integers = |t: &Tensor| Vec::<i64>::try_from(t).expect("integers");
            let (ids, owner, last) = (
                integers(&rows.gather(&batch.stream.ids).expect("ids")),
                integers(&rows.owner),
                integers(&rows.last),
            );
            let completion = Vec::<bool>::try_from(&rows.completion).expect("booleans");
            let mut at = 0;
            for (i, pair) in pairs.iter().enumerate() {
                let expected = pooled_tokens(pair, pooling, side);
                let end = at + expected.len();
                assert_eq!(
                    ids[at..end],
                    expected,
                    "{pooling:?}, {side:?}, apart = {apart}, pair {i}"
                );
                assert!(owner[at..end].iter().all(|o| *o == i as i64));
                assert!(
                    last[at..end].iter().all(|l| *l == end as i64 - 1),
                    "{pooling:?}: {last:?}"
                );
                let prompt = if matches!(pooling, Pooling::Completion | Pooling::Last) {
                    0
                } else {
                    pair.prompt.len()
                };
                assert!(
                    completion[at..end].iter().enumerate().all(|(k, c)| *c == (k >= prompt)),
                    "{pooling:?}: {completion:?}"
                );
                at = end;
            }
            assert_eq!(ids.len(), at);
        }
    }
}

#[test]
fn pooled_states_are_the_means_over_each_sequence() {
    let pairs = pairs();
    for apart in [false, true] {
        let batch = batch(&pairs, apart);
        for (pooling, side) in POOLINGS.into_iter().flat_map(|p| Side::BOTH.map(|side| (p, side))) {
            let pooled = batch.pool(&states(&batch), pooling, side).expect("pooled");
            assert_eq!(pooled.kind(), Kind::Double);
            for (i, pair) in pairs.iter().enumerate() {
                let tokens = pooled_tokens(pair, pooling, side);
                let mean = |of: &dyn Fn(f64) -> f64| {
                    tokens.iter().map(|id| of(*id as f64)).sum::<f64>() / tokens.len() as f64
                };
                let (a, b) =
                    (pooled.double_value(&[i as i64, 0]), pooled.double_value(&[i as i64, 1]));
                assert!(
                    (a - mean(&|x| x)).abs() < 1e-12 && (b - mean(&|x| x * x / 7.0)).abs() < 1e-12,
                    "{pooling:?}, {side:?}, pair {i}"
                );
            }
        }
    }
}

#[test]
fn shared_tokens_are_in_the_stream_only_once() {
    let pairs = pairs();
    let (shared, apart) = (batch(&pairs, false), batch(&pairs, true));
    assert_eq!(shared.stream.ids.size(), [5 + 2 + 4 + 1 + 2 + 1]);
    assert_eq!(apart.stream.ids.size(), [8 + 2 + 4 + 1 + 2 + 4 + 1]);
}

#[test]
fn means_have_the_kind_of_their_values_and_propagate_gradients() {
    let pairs = pairs();
    let batch = batch(&pairs, false);
    let h = states(&batch).set_requires_grad(true);
    batch.pool(&h, Pooling::Last, Side::Chosen).expect("pooled").sum(Kind::Double).backward();
    // Exactly one row per pair receives a gradient.
    let total: f64 = h.grad().sum(Kind::Double).double_value(&[]);
    assert_eq!(total, 2.0 * pairs.len() as f64);
    let rows = batch.rows(Pooling::All, Side::Chosen).expect("rows");
    assert_eq!(
        rows.mean(&rows.gather(&h.to_kind(Kind::Float)).expect("rows")).expect("a mean").kind(),
        Kind::Float
    );
}

#[test]
fn equal_completions_share_rows_even_if_only_one_is_scored() {
    let twin = [pair(0, &[1, 2], &[3, 4], &[3, 4])];
    let refs: Vec<&TokenPair> = twin.iter().collect();
    for logprobs in [Completions::None, Completions::Chosen, Completions::Both] {
        let batch = PairBatch::new(
            &refs,
            BatchSpec { logprobs, states: Completions::Both, apart: false },
            Kind::Double,
            Device::Cpu,
            |_| Vec::new(),
        )
        .expect("a batch");
        assert_eq!(batch.stream.ids.size(), [4], "{logprobs:?}");
    }
    // The batch only needs log-probabilities of the chosen completions. The two completions of
    // pair 1 are identical, and must share their rows here too.
    let two = [pair(0, &[1, 2], &[5], &[3, 4]), twin[0].clone()];
    let refs: Vec<&TokenPair> = two.iter().collect();
    let spec = BatchSpec { logprobs: Completions::Chosen, states: Completions::Both, apart: false };
    let batch =
        PairBatch::new(&refs, spec, Kind::Double, Device::Cpu, |_| Vec::new()).expect("a batch");
    assert_eq!(batch.of_pairs.chosen[1], batch.of_pairs.rejected[1]);
}
