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

fn batch(pairs: &[TokenPair], sharing: Sharing) -> PairBatch {
    let refs: Vec<&TokenPair> = pairs.iter().collect();
    PairBatch::new(
        &refs,
        BatchSpec { logprobs: Completions::None, states: Completions::Both, sharing },
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

const SHARING: [Sharing; 4] =
    [Sharing::Prefixes, Sharing::SamePrompt, Sharing::WithinPair, Sharing::Nothing];
const POOLINGS: [Pooling; 4] = [Pooling::Completion, Pooling::All, Pooling::Last, Pooling::Common];

#[test]
fn rows_are_the_tokens_that_a_pooling_averages_over() {
    let pairs = pairs();
    for sharing in SHARING {
        let batch = batch(&pairs, sharing);
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
                    "pair {i}: pooling {pooling:?}, side {side:?}, sharing {sharing:?}"
                );
                assert!(owner[at..end].iter().all(|o| *o == i as i64));
                assert!(
                    last[at..end].iter().all(|l| *l == end as i64 - 1),
                    "pooling {pooling:?}: last tokens {last:?}"
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
    for sharing in SHARING {
        let batch = batch(&pairs, sharing);
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
    let (shared, apart) = (batch(&pairs, Sharing::SamePrompt), batch(&pairs, Sharing::WithinPair));
    assert_eq!(shared.stream.ids.size(), [5 + 2 + 4 + 1 + 2 + 1]);
    assert_eq!(apart.stream.ids.size(), [8 + 2 + 4 + 1 + 2 + 4 + 1]);
}

#[test]
fn means_have_the_kind_of_their_values_and_propagate_gradients() {
    let pairs = pairs();
    let batch = batch(&pairs, Sharing::Prefixes);
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
            BatchSpec { logprobs, states: Completions::Both, sharing: Sharing::Prefixes },
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
    let spec = BatchSpec {
        logprobs: Completions::Chosen,
        states: Completions::Both,
        sharing: Sharing::Prefixes,
    };
    let batch =
        PairBatch::new(&refs, spec, Kind::Double, Device::Cpu, |_| Vec::new()).expect("a batch");
    assert_eq!(batch.of_pairs.chosen[1], batch.of_pairs.rejected[1]);
}

/// Pairs with every kind of common beginning: two prompts, two completions, a prompt and a
/// completion, and a completion that begins with another completion.
fn overlapping_pairs() -> Vec<TokenPair> {
    let range = |from: i64, to: i64| (from..to).collect::<Vec<_>>();
    let long = range(0, 30);
    vec![
        pair(0, &long[..12], &long[12..25], &long[12..]),
        pair(1, &long[..12], &[&long[12..20], &[50, 51]].concat(), &[60]),
        pair(2, &long[..20], &long[20..28], &[70, 71]),
        pair(3, &[&long[..9], &[80, 81]].concat(), &[82], &[83]),
        pair(4, &[90], &[91], &[91, 92]),
        pair(5, &long[..12], &[60], &[61]),
    ]
}

#[test]
fn common_beginnings_are_in_the_stream_only_once() {
    let pairs = overlapping_pairs();
    let tokens = |sharing| batch(&pairs, sharing).stream.layout.tokens();
    let shared = 9 + 11 + 8;
    // After the first 9 numbers: 80 to 83, then 9 to 11 and 60, then 9 to 11 and 61. The numbers 9
    // to 11 are repeated, because 3 are fewer than `MIN_SHARED`.
    let after_9 = (2 + 1 + 1) + (3 + 1) + (3 + 1);
    // After the first 20 numbers: 20 to 24, where a completion ends, then 50 and 51, 70 and 71, and
    // 28 and 29. The numbers 20 to 24 are repeated, because 5 are fewer than `MIN_SHARED`.
    let after_20 = 5 + 2 + 2 + 2;
    // The short prompt of pair 4 and its two completions.
    let short = 1 + 1 + 2;
    assert_eq!(tokens(Sharing::Prefixes), shared + after_9 + after_20 + short);
    let total: usize =
        pairs.iter().map(|p| 2 * p.prompt.len() + p.chosen.len() + p.rejected.len()).sum();
    assert_eq!(tokens(Sharing::Nothing), total);
    let prompts: usize = pairs.iter().map(|p| p.prompt.len()).sum();
    assert_eq!(tokens(Sharing::WithinPair), total - prompts);
}

#[test]
fn each_scored_token_is_predicted_by_the_token_before_it() {
    let pairs = overlapping_pairs();
    let refs: Vec<&TokenPair> = pairs.iter().collect();
    for sharing in SHARING {
        let spec = BatchSpec { sharing, ..BatchSpec::SCORED };
        let batch = PairBatch::new(&refs, spec, Kind::Double, Device::Cpu, |_| Vec::new())
            .expect("a batch");
        let ids = &batch.predicted.ids;
        let (before, positions) = (
            batch.stream.ids.index_select(0, &batch.predicted.rows),
            batch.stream.positions.index_select(0, &batch.predicted.rows),
        );
        let integers = |t: &Tensor| Vec::<i64>::try_from(t).expect("integers");
        for (i, pair) in pairs.iter().enumerate() {
            for side in Side::BOTH {
                let scored = Tensor::from_slice(batch.scored(i, side).expect("scored tokens"));
                let own = pair.completion(side);
                let whole = [&pair.prompt[..], own].concat();
                let start = pair.prompt.len() - 1;
                let of = |t: &Tensor| integers(&t.index_select(0, &scored));
                assert_eq!(of(ids), own, "pair {i}, sharing {sharing:?}");
                assert_eq!(
                    of(&before),
                    whole[start..whole.len() - 1],
                    "pair {i}, sharing {sharing:?}"
                );
                let expected: Vec<i64> = (0..own.len()).map(|k| (start + k) as i64).collect();
                assert_eq!(of(&positions), expected, "pair {i}, sharing {sharing:?}");
            }
        }
    }
    let scored = |sharing| {
        let spec = BatchSpec { sharing, ..BatchSpec::SCORED };
        let batch = PairBatch::new(&refs, spec, Kind::Double, Device::Cpu, |_| Vec::new())
            .expect("a batch");
        batch.predicted.ids.size()[0]
    };
    assert!(scored(Sharing::Prefixes) < scored(Sharing::WithinPair));
}

#[test]
fn sequences_with_different_rotations_share_nothing() {
    let pairs = [pair(0, &(0..10).collect::<Vec<_>>(), &[1], &[2, 3])];
    let refs: Vec<&TokenPair> = pairs.iter().collect();
    let tokens = |rotation_of: &dyn Fn(usize) -> Vec<usize>| {
        let batch =
            PairBatch::new(&refs, BatchSpec::SCORED, Kind::Double, Device::Cpu, rotation_of);
        batch.expect("a batch").stream.layout.tokens()
    };
    assert_eq!((tokens(&|_| vec![]), tokens(&|n| vec![n])), (13, 23));
}
