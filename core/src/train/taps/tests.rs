//! Tests which context a transform receives, and whether states are pooled before or after the
//! transform.

use tch::{Device, Kind};

use super::*;
use crate::api::Completions;
use crate::batch::{BatchSpec, Rows, Sharing};
use crate::error::Error;
use crate::text::TokenPair;

/// T(h) = h² + 3·previous + 5·h_last. This transform is not linear, and uses its whole context.
struct UsesContext;

impl Transform for UsesContext {
    fn forward(&self, h: &Tensor, around: &Around) -> Result<Tensor> {
        let last = around.last.as_ref().ok_or_else(|| Error::internal("pooled before"))?;
        let previous =
            around.previous.as_ref().map_or_else(|| h.zeros_like(), Tensor::shallow_clone);
        Ok(h.square() + previous * 3.0 + h.index_select(0, last) * 5.0)
    }

    fn linear(&self) -> bool {
        false
    }

    fn orthogonal(&self) -> bool {
        false
    }
}

/// T(h) = 2h. This transform is linear.
struct Double;

impl Transform for Double {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h * 2.0)
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        false
    }
}

/// All built-in poolings, and `None` for a custom pooling.
const POOLINGS: [Option<Pooling>; 5] = [
    Some(Pooling::Completion),
    Some(Pooling::All),
    Some(Pooling::Last),
    Some(Pooling::Common),
    None,
];

/// Sums the states of each sequence, weighted by their norms.
struct Weighted;

impl TokenPooling for Weighted {
    fn pool(&self, tokens: &TokenStates) -> Result<Tensor> {
        let norms = tokens.states.norm_scalaropt_dim(2.0, -1, true);
        Ok(tokens.sum_by_sequence(&(&tokens.states * norms)))
    }
}

fn taps(
    transforms: Vec<Box<dyn Transform>>,
    transform_of: &[usize],
    pooling: Option<Pooling>,
) -> Taps {
    let sites = (0..transform_of.len()).map(Site::Residual).collect();
    let token_pooling = pooling.is_none().then(|| Box::new(Weighted) as _);
    Taps {
        sites,
        pooling: pooling.unwrap_or(Pooling::All),
        token_pooling,
        transforms,
        transform_of: transform_of.to_vec(),
    }
}

fn batch() -> PairBatch {
    let pair = |index, prompt: &[i64], chosen: &[i64], rejected: &[i64]| TokenPair {
        index,
        row: index,
        prompt: prompt.to_vec(),
        chosen: chosen.to_vec(),
        rejected: rejected.to_vec(),
    };
    let pairs = [
        pair(0, &[1, 2], &[3, 4, 5], &[6]),
        pair(1, &[1, 2], &[7], &[8, 9]),
        pair(2, &[10], &[11, 12], &[13, 14, 15]),
    ];
    let holds = BatchSpec {
        logprobs: Completions::None,
        states: Completions::Both,
        sharing: Sharing::Prefixes,
    };
    PairBatch::new(&pairs.iter().collect::<Vec<_>>(), holds, Kind::Double, Device::Cpu, |_| {
        Vec::new()
    })
    .expect("a batch")
}

fn states(batch: &PairBatch, widths: &[i64]) -> Vec<Tensor> {
    tch::manual_seed(0);
    widths
        .iter()
        .map(|w| Tensor::randn([batch.stream.ids.size()[0], *w], (Kind::Double, Device::Cpu)))
        .collect()
}

/// Splits the states at `rows` into one tensor per sequence.
fn sequences(rows: &Rows, states: &Tensor, pairs: i64) -> Vec<Tensor> {
    let all = rows.gather(states).expect("rows");
    (0..pairs).map(|i| all.index_select(0, &rows.owner.eq(i).nonzero().squeeze_dim(1))).collect()
}

/// Pools the transformed states of a sequence.
fn pooled(x: &Tensor, pooling: Option<Pooling>) -> Tensor {
    match pooling {
        Some(_) => x.mean_dim(0, false, Kind::Double),
        None => (x * x.norm_scalaropt_dim(2.0, -1, true)).sum_dim_intlist(0, false, None::<Kind>),
    }
}

#[test]
fn nonlinear_transforms_get_the_previous_tap_and_the_last_token_and_run_before_pooling() {
    let batch = batch();
    // Taps 1 and 2 have different widths, and taps 2 and 3 have the same width.
    let h = states(&batch, &[4, 4, 6, 6]);
    for (pooling, side) in POOLINGS.into_iter().flat_map(|p| Side::BOTH.map(|side| (p, side))) {
        let taps = taps(vec![Box::new(UsesContext)], &[0; 4], pooling);
        assert!(!taps.pool_first());
        let rows = batch.rows(pooling.unwrap_or(Pooling::All), side).expect("rows");
        for (tap, previous) in [(0, None), (1, Some(0)), (2, None), (3, Some(2))] {
            let ours = taps.pooled(tap, &h, &batch, side).expect("states");
            let here = sequences(&rows, &h[tap], 3);
            let before: Option<Vec<Tensor>> = previous.map(|p: usize| sequences(&rows, &h[p], 3));
            for (i, x) in here.iter().enumerate() {
                let around =
                    before.as_ref().map_or_else(|| x.zeros_like(), |b| b[i].shallow_clone());
                let expected = pooled(&(x.square() + around * 3.0 + x.get(-1) * 5.0), pooling);
                let off = (ours.get(i as i64) - expected).abs().max().double_value(&[]);
                assert!(
                    off < 1e-12,
                    "pooling {pooling:?}, side {side:?}, tap {tap}, pair {i}: error {off}"
                );
            }
        }
    }
}

#[test]
fn each_tap_uses_its_own_transform() {
    let batch = batch();
    let h = states(&batch, &[4, 4]);
    let taps =
        taps(vec![Box::new(UsesContext), Box::new(Double)], &[1, 0], Some(Pooling::Completion));
    // `UsesContext` is not linear, so all taps must apply their transforms before pooling.
    assert!(!taps.pool_first());
    let rows = batch.rows(Pooling::Completion, Side::Chosen).expect("rows");
    let plain = rows.mean(&rows.gather(&h[0]).expect("rows")).expect("a mean");
    assert!(
        (taps.pooled(0, &h, &batch, Side::Chosen).expect("states") - plain * 2.0)
            .abs()
            .max()
            .double_value(&[])
            < 1e-12
    );
}

#[test]
fn linear_transforms_give_the_same_result_before_and_after_pooling() {
    let batch = batch();
    let h = states(&batch, &[4]);
    for pooling in POOLINGS {
        let linear = taps(vec![Box::new(Double)], &[0], pooling);
        assert_eq!(linear.pool_first(), pooling.is_some(), "{pooling:?}");
        let rows = batch.rows(pooling.unwrap_or(Pooling::All), Side::Rejected).expect("rows");
        let expected: Vec<Tensor> =
            sequences(&rows, &h[0], 3).iter().map(|x| pooled(&(x * 2.0), pooling)).collect();
        let off = (linear.pooled(0, &h, &batch, Side::Rejected).expect("states")
            - Tensor::stack(&expected, 0))
        .abs()
        .max()
        .double_value(&[]);
        assert!(off < 1e-12, "{pooling:?}: {off}");
    }
}

#[test]
fn token_states_cover_prompt_and_completion() {
    let batch = batch();
    let h = states(&batch, &[4, 4]);
    let taps = taps(vec![Box::new(Double)], &[0, 0], Some(Pooling::Last));
    let tokens = taps.tokens(1, &h, &batch, Side::Chosen).expect("tokens");
    assert_eq!(tokens.states.size(), [5 + 3 + 3, 4]);
    let rows = batch.rows(Pooling::All, Side::Chosen).expect("rows");
    assert!(
        (&tokens.states - rows.gather(&h[1]).expect("rows") * 2.0).abs().max().double_value(&[])
            == 0.0
    );
    assert_eq!(
        Vec::<bool>::try_from(&tokens.completion).expect("truths"),
        [false, false, true, true, true, false, false, true, false, true, true]
    );
}
