//! Checks the scores and the decoding of tiny models of every architecture.
//!
//! Scores are compared with values from transformers. This also finds errors that the CPU and the
//! GPU have in common. Decoding with a cache is compared with one pass over the whole sequence.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::report::{Difference, Row};
use super::trial::calm;
use super::{Section, Selftest, kind_name};
use crate::error::{Error, Result};
use crate::eval::score_pairs;
use crate::model::Model;
use crate::model::attention::{Kernel, Strategy};
use crate::model::cache::Cache;
use crate::model::pass::Request;
use crate::model::stream::StreamBuilder;
use crate::model::tiny::Case;
use crate::report::Silent;

/// Tolerance for a sum of log-probabilities in float32, relative to the larger of 1 nat and the
/// absolute value of the sum.
const SCORES: f64 = 1e-4;
/// Number of prompt tokens, and number of tokens that are decoded one by one after the prompt.
const DECODED: (usize, usize) = (7, 25);

/// Checks the scores and the decoding of every tiny model.
///
/// # Errors
/// Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let all = test.options.full;
    let cases: Vec<Case> = test
        .workshop
        .fixture()
        .cases()
        .iter()
        .filter(|case| all || case.rope == "default")
        .cloned()
        .collect();
    test.begin(Section::Models, 2 * cases.len());
    for case in &cases {
        let rope = if case.rope == "default" {
            String::new()
        } else {
            format!(", {} positions", case.rope)
        };
        let name = format!("{}{rope}", case.architecture);
        test.check(Section::Models, &name, |test| {
            Ok(Difference::worst_of(scores(test, case)?)
                .map(|worst| Row::of(Section::Models, &name, worst))
                .into_iter()
                .collect())
        })?;
        let name = format!("{name}, decoding");
        test.check(Section::Models, &name, |test| {
            let kinds = [(Kind::Float, 1e-4), (Kind::BFloat16, 5e-2)];
            let all = kinds
                .map(|(kind, tolerance)| decoding(test, case, kind, tolerance))
                .into_iter()
                .collect::<Result<Vec<_>>>()?;
            Ok(all
                .into_iter()
                .map(|difference| Row::of(Section::Models, &name, difference))
                .collect())
        })?;
    }
    Ok(())
}

/// Compares the scores of each attention strategy with scores computed by transformers.
fn scores(test: &Selftest<'_>, case: &Case) -> Result<Vec<Difference>> {
    let pairs = test.workshop.fixture().pairs();
    let mut model = test.workshop.fixture().model(case, Kind::Float, test.device)?;
    let mut all = Vec::new();
    for strategy in [Strategy::Segments, Strategy::Trees, Strategy::Padded] {
        model.set_attention(strategy);
        let scores = score_pairs(&model, None, &pairs, usize::MAX, test.stop, &mut Silent)?;
        if scores.len() != case.scores.len() {
            return Err(Error::internal(format!(
                "{} pairs were scored instead of {}",
                scores.len(),
                case.scores.len()
            )));
        }
        for (ours, [chosen, rejected]) in scores.iter().zip(&case.scores) {
            for (ours, exact) in [(&ours.chosen, chosen), (&ours.rejected, rejected)] {
                let off = (ours.logp_sum - exact).abs() / exact.abs().max(1.0);
                all.push(Difference::new(
                    format!("f32: scores, {}", format!("{strategy:?}").to_lowercase()),
                    off,
                    SCORES,
                ));
            }
        }
    }
    Ok(all)
}

/// Decodes tokens one by one after a prompt, with a cache. Compares the logits with a single pass
/// in float32 on the CPU.
fn decoding(test: &Selftest<'_>, case: &Case, kind: Kind, tolerance: f64) -> Result<Difference> {
    let _guard = tch::no_grad_guard();
    let fixture = test.workshop.fixture();
    let model = |kind: Kind, device: Device| {
        let tensors = calm(fixture.tensors(&case.architecture, Kind::Float)?)
            .into_iter()
            .map(|(name, t)| Ok((name, t.f_to_kind(kind)?.f_to_device(device)?)));
        Model::from_tensors(&case.config, tensors.collect::<Result<_>>()?, kind, device)
    };
    let mut plain = model(Kind::Float, Device::Cpu)?;
    plain.set_attention_kernel(Kernel::Eager);
    let ids: Vec<i64> = (0..(DECODED.0 + DECODED.1) as i64)
        .map(|i| (i * i * 7 + 3 * i) % plain.info().vocab)
        .collect();
    let exact = logits(&plain, &ids, 0, None)?;

    let model = model(kind, test.device)?;
    let cache = RefCell::new(Cache::default());
    let mut decoded = Vec::new();
    let mut start = 0;
    for len in std::iter::once(DECODED.0).chain(std::iter::repeat_n(1, DECODED.1)) {
        // With some rotary embeddings, the rotation of every token depends on the length of the
        // sequence. Logits of a shorter sequence then differ from those of the whole sequence, so
        // test a single pass instead.
        if model.outgrows_cache(start, start + len)
            || model.rotation_of(start + len) != model.rotation_of(ids.len())
        {
            let ours = logits(&model, &ids, 0, None)?;
            return Ok(Difference::new(
                format!("{}: logits of one pass", kind_name(kind)),
                distance(&ours, &exact),
                tolerance,
            ));
        }
        decoded.push(logits(&model, &ids[start..start + len], start, Some(&cache))?);
        start += len;
    }
    let ours = Tensor::f_cat(&decoded, 0)?;
    Ok(Difference::new(
        format!("{}: logits of {} tokens decoded one by one", kind_name(kind), DECODED.1),
        distance(&ours, &exact),
        tolerance,
    ))
}

/// The Euclidean norm of the difference between two tensors, relative to the norm of the second. A
/// maximum over all logits would depend on a few outliers in bf16.
fn distance(ours: &Tensor, exact: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Double);
    let (ours, exact) = (wide(ours), wide(exact));
    (ours - &exact).norm().double_value(&[]) / exact.norm().double_value(&[])
}

/// Computes the logits `[n vocab]` of `n` tokens that follow `past` earlier tokens.
fn logits(
    model: &Model,
    ids: &[i64],
    past: usize,
    cache: Option<&RefCell<Cache>>,
) -> Result<Tensor> {
    let mut builder =
        if past > 0 { StreamBuilder::continuing(past) } else { StreamBuilder::default() };
    builder.push(ids, None)?;
    let reached = model.forward(
        &builder.finish(model.device())?,
        Request { hidden: true, cache, ..Request::default() },
    )?;
    model.logits(&reached.hidden.ok_or_else(|| Error::internal("no last hidden state"))?)
}
