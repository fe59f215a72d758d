use super::*;
use crate::golden::{error, own};
use reprpo_core::weights::read_safetensors;

fn states() -> PairStates {
    let io = read_safetensors(&own().join("baselines.safetensors")).unwrap();
    let heads = io["heads.chosen"].size()[1];
    let at = |head: i64| SiteStates {
        site: Site::Input("o_proj".to_owned()).columns(head * 8..(head + 1) * 8),
        states: Sides::of(|side| io[&format!("heads.{}", side.name())].select(1, head)),
    };
    PairStates { sites: (0..heads).map(at).collect(), seed: 0 }
}

#[test]
fn probes_agree_with_scikit_learn() {
    let io = read_safetensors(&own().join("baselines.safetensors")).unwrap();
    for (head, at) in states().sites.iter().enumerate() {
        let some =
            |from: i64, pairs: i64| Sides::of(|side| at.states.get(side).narrow(0, from, pairs));
        let probe = Probe::fit(&some(0, 16)).unwrap();
        let off = error(&probe.weights, &io["probe.weights"].get(head as i64));
        assert!(off < 1e-6, "the weights of head {head} are off by {off}");
        let intercept = io["probe.intercepts"].double_value(&[head as i64]);
        assert!((probe.intercept - intercept).abs() < 1e-6, "{} {intercept}", probe.intercept);
        let accuracy = io["probe.accuracies"].double_value(&[head as i64]);
        assert_eq!(probe.accuracy(&some(16, 8)).unwrap(), accuracy);
    }
}

#[test]
fn a_probe_of_separable_states_converges_and_one_of_equal_states_is_0() {
    let far = |sign: f64| Tensor::from_slice(&[1e4, 2e4, 1e4, 3e4]).reshape([2, 2]) * sign;
    let probe = Probe::fit(&Sides { chosen: far(1.0), rejected: far(-1.0) }).unwrap();
    assert!(probe.weights.isfinite().all().int64_value(&[]) == 1);
    let equal = Probe::fit(&Sides { chosen: far(1.0), rejected: far(1.0) }).unwrap();
    assert!(equal.weights.abs().max().double_value(&[]) < 1e-9);
    let e = Probe::fit(&Sides { chosen: far(f64::NAN), rejected: far(1.0) }).err().unwrap();
    assert!(format!("{e:?}").contains("not finite"));
}

#[test]
fn the_score_is_the_mean_cosine_of_the_best_heads() {
    let states = states();
    let mut scorer = Scorer { config: Mms { heads: 3, ..Mms::default() }, found: None };
    let statistics = scorer.fit(&states).unwrap();
    scorer.set_statistics(&statistics).unwrap();
    let accuracies = Vec::<f64>::try_from(statistics.get(ACCURACIES).unwrap()).unwrap();
    let heads = Vec::<i64>::try_from(statistics.get(HEADS).unwrap()).unwrap();
    assert_eq!(heads.len(), 3);
    let worst_used = heads.iter().map(|h| accuracies[*h as usize]).fold(1.0, f64::min);
    let better = |(i, a): (usize, &f64)| *a > worst_used && !heads.contains(&(i as i64));
    assert!(!accuracies.iter().enumerate().any(better), "{accuracies:?} {heads:?}");

    let scores = scorer.preferences(&states).unwrap();
    assert_eq!(scores.size(), [24, 2]);
    assert!(
        error(
            &scores.sum_dim_intlist(1, false, Kind::Double),
            &Tensor::ones([24], (Kind::Double, tch::Device::Cpu))
        ) < 1e-12
    );
    let pair = 5;
    let mean: f64 = heads
        .iter()
        .map(|head| {
            let d = states.sites[*head as usize].differences().to_kind(Kind::Double);
            let (v, own) = (d.mean_dim(0, false, Kind::Double), d.get(pair));
            (own.dot(&v) / (own.norm() * v.norm())).double_value(&[])
        })
        .sum::<f64>()
        / 3.0;
    assert!((scores.double_value(&[pair, 0]) - 0.5 * (1.0 + mean)).abs() < 1e-12);
}

#[test]
fn too_few_pairs_and_values_out_of_range_are_rejected() {
    let mut states = states();
    for at in &mut states.sites {
        at.states = Sides::of(|side| at.states.get(side).narrow(0, 0, 1));
    }
    let scorer = Scorer { config: Mms::default(), found: None };
    let e = format!("{:?}", scorer.fit(&states).unwrap_err());
    assert!(e.contains("there is 1 in all") && e.contains("at least 4 pairs"), "{e}");
    assert!(scorer.preferences(&states).is_err());
    let model = reprpo_plugin::testkit::model();
    assert!(Mms { heads: 0, ..Mms::default() }.build(&model).is_err());
    assert!(Mms { holdout: 1.0, ..Mms::default() }.build(&model).is_err());
}
