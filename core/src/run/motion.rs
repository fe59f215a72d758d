//! Measures how far training moved the hidden states, along and across the preference vector.
//!
//! The measurement is made once, after training, so that a report needs neither the model nor the
//! data. It takes two forward passes over a few pairs.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use tch::{Kind, Tensor};

use super::states::pooled;
use crate::api::{Pooling, Site, States};
use crate::batch::passes;
use crate::config::Experiment;
use crate::error::{Error, Result};
use crate::eval::EvalSplit;
use crate::files::write_whole;
use crate::model::{Adapted, Model};
use crate::report::Progress;

/// Maximum number of pairs.
const PAIRS: usize = 32;

/// True if the run measures the motion: if `eval.states` says so, or by default if the method reads
/// states.
pub fn is_due(experiment: &Experiment, states: States) -> bool {
    experiment.eval.states.unwrap_or(states != States::None)
}

/// Measures the motion at every hidden state after the embeddings, and writes `states.json` to the
/// folder `eval`. `initial` is the adapter at the start of training, and `adapted` the trained one.
/// The pairs are the first ones of the split `test`, or of the first split if there is no `test`.
///
/// With the pooled states r± of the model at the start and p± of the trained model, d = r⁺ − r⁻ and
/// v̂ = d/‖d‖, the motion of a completion is m = (p − r)/‖d‖. Its part along v̂ is a = ⟨m, v̂⟩, and
/// the length of the rest is ‖m − a v̂‖. The results are means over pairs with ‖d‖ > 0.
///
/// # Errors
/// Fails if libtorch fails or if the file cannot be written. Returns `Error::interrupted` if `stop`
/// became true.
pub fn record(
    model: &Model,
    splits: &[EvalSplit],
    [initial, adapted]: [Option<&Adapted>; 2],
    tokens: usize,
    eval: &Path,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<()> {
    let Some(split) = splits.iter().find(|s| s.info.name == "test").or_else(|| splits.first())
    else {
        return Ok(());
    };
    let pairs = &split.data.pairs[..split.data.pairs.len().min(PAIRS)];
    let sites: Vec<Site> = (1..=model.info().layers).map(Site::Residual).collect();
    let _guard = tch::no_grad_guard();
    progress.stage("states", Some(pairs.len() as u64));
    // `[sites]` of sums over pairs: along and across, for chosen and rejected.
    let mut sums = vec![[0.0; 4]; sites.len()];
    let mut counts = vec![0usize; sites.len()];
    for pass in passes(pairs, tokens) {
        if model.stops(stop)? {
            return Err(Error::interrupted("interrupted while reading the states"));
        }
        let reference = pooled(model, initial, &sites, pass, Pooling::Completion)?;
        let policy = pooled(model, adapted, &sites, pass, Pooling::Completion)?;
        for at in 0..sites.len() {
            let (r, p) = (
                [&reference.chosen[at], &reference.rejected[at]],
                [&policy.chosen[at], &policy.rejected[at]],
            );
            let (values, count) = motion(r, p)?;
            for (sum, value) in sums[at].iter_mut().zip(values) {
                *sum += value;
            }
            counts[at] += count;
        }
        progress.advance(pass.len() as u64, &[]);
    }
    progress.finish();
    let sites: Vec<_> = sites
        .iter()
        .zip(sums)
        .zip(&counts)
        .enumerate()
        .filter(|(_, (_, count))| **count > 0)
        .map(|(i, ((site, sums), count))| {
            let [chosen_along, chosen_across, rejected_along, rejected_across] =
                sums.map(|sum| sum / *count as f64);
            json!({
                "site": site.to_string(), "layer": i + 1,
                "chosen_along": chosen_along, "chosen_across": chosen_across,
                "rejected_along": rejected_along, "rejected_across": rejected_across,
            })
        })
        .collect();
    let json = json!({ "split": split.info.name, "pairs": pairs.len(), "sites": sites });
    std::fs::create_dir_all(eval).map_err(|e| {
        Error::new(format!("cannot create the folder `{}`", eval.display())).because(e)
    })?;
    write_whole(&eval.join("states.json"), format!("{json:#}\n").as_bytes())
}

/// Sums over pairs of the motion along and across d, for chosen and rejected, and the number of
/// pairs with a direction. All tensors are `[pairs width]`.
fn motion(
    [r_chosen, r_rejected]: [&Tensor; 2],
    [p_chosen, p_rejected]: [&Tensor; 2],
) -> Result<([f64; 4], usize)> {
    let f64 = |t: &Tensor| t.f_to_kind(Kind::Double);
    let (r_chosen, r_rejected) = (f64(r_chosen)?, f64(r_rejected)?);
    let norm = |t: &Tensor| t.f_norm_scalaropt_dim(2.0, [-1i64], true);
    let d = r_chosen.f_sub(&r_rejected)?;
    let s = norm(&d)?;
    // A difference of this size is a rounding error of the pooled states.
    let has_direction = s.f_gt_tensor(&norm(&r_chosen)?.f_mul_scalar(1e-6)?)?;
    let s = s.f_where_self(&has_direction, &s.f_ones_like()?)?;
    let v = d.f_div(&s)?;
    let weight = has_direction.f_to_kind(Kind::Double)?;
    let sum = |t: &Tensor| -> Result<f64> {
        Ok(t.f_mul(&weight)?.f_sum(Kind::Double)?.f_double_value(&[])?)
    };
    let mut values = [0.0; 4];
    for (i, (r, p)) in
        [(&r_chosen, f64(p_chosen)?), (&r_rejected, f64(p_rejected)?)].into_iter().enumerate()
    {
        let m = p.f_sub(r)?.f_div(&s)?;
        let along = m.f_mul(&v)?.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Double)?;
        let across = norm(&m.f_sub(&v.f_mul(&along)?)?)?;
        (values[2 * i], values[2 * i + 1]) = (sum(&along)?, sum(&across)?);
    }
    Ok((values, sum(&weight.f_ones_like()?)? as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_motion_is_split_along_and_across_the_preference_vector() {
        let row = |values: [f32; 2]| Tensor::from_slice(&values).view([1, 2]);
        // d = (2, 0), so lengths are in units of 2.
        let (r_chosen, r_rejected) = (row([2.0, 1.0]), row([0.0, 1.0]));
        let (p_chosen, p_rejected) = (row([4.0, 1.0]), row([-1.0, 5.0]));
        let (values, count) = motion([&r_chosen, &r_rejected], [&p_chosen, &p_rejected]).unwrap();
        assert_eq!((values, count), ([1.0, 0.0, -0.5, 2.0], 1));
        // A pair without a direction is left out.
        let (values, count) = motion([&r_chosen, &r_chosen], [&p_chosen, &p_rejected]).unwrap();
        assert_eq!((values, count), ([0.0; 4], 0));
    }
}
