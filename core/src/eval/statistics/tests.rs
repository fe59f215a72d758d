use super::*;
use crate::config::Score;
use crate::statistics::NoInterval;

fn pair(index: usize, chosen: (f64, usize), rejected: (f64, usize)) -> PairScore {
    let of = |(logp_sum, tokens)| CompletionScore::new(logp_sum, tokens);
    PairScore { index, chosen: of(chosen), rejected: of(rejected) }
}

fn value(e: Option<Metric>) -> f64 {
    e.expect("a metric").value
}

fn single(n: usize) -> Clusters {
    Clusters::of_single_pairs(n)
}

fn compare(base: &[PairScore], policy: &[PairScore]) -> SplitSummary {
    SplitSummary::compare("test", "math", base, policy, &single(base.len()), Score::Mean)
        .expect("same pairs")
}

/// Four pairs. Mean log-probabilities per token of y⁺ and y⁻: −2 and −3 (correct), −4 and −2
/// (incorrect), −1 and −1 (a tie), −3 and −2 (incorrect).
fn base() -> Vec<PairScore> {
    vec![
        pair(0, (-4.0, 2), (-9.0, 3)),
        pair(1, (-8.0, 2), (-4.0, 2)),
        pair(2, (-3.0, 3), (-2.0, 2)),
        pair(3, (-6.0, 2), (-4.0, 2)),
    ]
}

/// All four pairs are correct. The log perplexity of y⁺ falls by 0.5, 3, 0.5 and 2.
fn policy() -> Vec<PairScore> {
    vec![
        pair(0, (-3.0, 2), (-9.0, 3)),
        pair(1, (-2.0, 2), (-5.0, 2)),
        pair(2, (-1.5, 3), (-4.0, 2)),
        pair(3, (-2.0, 2), (-4.0, 2)),
    ]
}

/// 40 pairs whose base score is correct in the first 24, and whose trained score in the first 32.
fn many() -> [Vec<PairScore>; 2] {
    [24, 32].map(|right| {
        (0..40).map(|i| pair(i, (if i < right { -1.0 } else { -3.0 }, 1), (-2.0, 1))).collect()
    })
}

#[test]
fn the_figures_equal_values_computed_by_hand() {
    let s = compare(&base(), &policy());
    let c = s.change.expect("two models");
    assert_eq!((s.n, s.clusters, s.largest_cluster, s.not_finite), (4, Some(4), Some(1), 0));
    assert_eq!(value(s.base_accuracy), 1.5 / 4.0);
    assert_eq!(value(c.accuracy), 1.0);
    assert!((value(c.ratio) - 4.0 / 1.5).abs() < 1e-12);
    assert_eq!(value(c.points), 62.5);
    // θ of the four pairs: (−3+9)−(−4+9)=1, (−2+5)−(−8+4)=7, (−1.5+4)−(−3+2)=3.5 and
    // (−2+4)−(−6+4)=4. Their sum is 15.5.
    assert_eq!(value(c.margin_gain), 15.5 / 4.0);
    assert!((value(c.perplexity_ratio) - (6.0_f64 / 4.0).exp()).abs() < 1e-12);
    assert!((value(c.loss_change) + 6.0 / 4.0).abs() < 1e-12);
    let [before, after] = [s.base, s.trained].map(|m| m.expect("two models"));
    // Margins: 5, −4, −1 and −2; 6, 3, 2.5 and 2.
    assert_eq!((value(before.margin), value(after.margin)), (-0.5, 13.5 / 4.0));
    assert_eq!((value(before.chosen_loss), value(after.chosen_loss)), (2.5, 1.0));
}

#[test]
fn log_sigmoid_and_calibration_use_the_difference_of_the_scores() {
    let s = compare(&base(), &policy());
    let before = s.base.expect("a model");
    // Score differences 1, −2, 0 and −1; numpy: mean(-log1p(exp(-x))).
    assert!((value(before.mean_log_sigmoid) + 1.111649641659841).abs() < 1e-12);
    assert_eq!(mean_log_sigmoid(&base(), Score::Mean), Some(value(before.mean_log_sigmoid)));
    assert_eq!(before.calibration.expect("finite").not_counted, 8);
    // The chosen completion is shorter in pair 0 and longer in pair 2.
    let lengths = before.accuracy_by_length;
    assert_eq!(
        (lengths.rejected_longer.accuracy, lengths.chosen_longer.accuracy),
        (Some(1.0), Some(0.5))
    );
    assert_eq!((lengths.equal.pairs, lengths.equal.accuracy), (2, Some(0.0)));
    let extreme = [pair(0, (-1e6, 1), (-1.0, 1))];
    assert_eq!(mean_log_sigmoid(&extreme, Score::Mean), Some(-999_999.0));
}

#[test]
fn a_broken_score_leaves_the_objective_undefined() {
    let mut broken = policy();
    broken[1].chosen.logp_sum = f64::NAN;
    assert_eq!(mean_log_sigmoid(&broken, Score::Mean), None);
    let after = compare(&base(), &broken).trained.expect("two models");
    assert!(after.mean_log_sigmoid.is_none() && after.calibration.is_none());
    assert_eq!(mean_log_sigmoid(&[], Score::Mean), None);
}

#[test]
fn the_sum_favours_short_completions() {
    // With the sum as score, pair 2 is incorrect (−3 vs −2) instead of a tie.
    let s = SplitSummary::of_base("test", "", &base(), &single(4), Score::Sum);
    assert_eq!(value(s.base_accuracy), 0.25);
    assert_eq!((s.change, s.trained), (None, None));
}

#[test]
fn intervals_of_single_pairs_equal_those_of_scipy() {
    let [base, policy] = many();
    let c = compare(&base, &policy).change.expect("two models");
    let close = |m: Option<Metric>, low: f64, high: f64| {
        let (l, h) = m.expect("a metric").interval().expect("an interval");
        assert!((l - low).abs() < 1e-7 && (h - high).abs() < 1e-7, "{l} {h}");
    };
    // scipy.stats.t.interval of the 40 values 100·(acc − base acc) and of θ.
    close(c.points, 7.0444094902, 32.9555905098);
    close(c.margin_gain, 0.1408881898, 0.6591118102);
    // The same interval of the log ratio, then exp.
    close(c.perplexity_ratio, 1.1512959142, 1.9330746345);
    // t.ppf(0.975, 39)·sem/(p(1−p)) around logit(0.8).
    close(c.accuracy, 0.6402777716, 0.8998914248);
    // scipy.stats.t.interval of 4/3 + (now − 4/3·before)/0.6.
    close(c.ratio, 1.0545734095, 1.6120932571);
}

#[test]
fn repeated_prompts_make_the_interval_wider() {
    let [base, policy] = many();
    let names: Vec<String> = (0..40).map(|i| format!("{}", i / 4)).collect();
    let clusters = Clusters::new(names.iter().map(String::as_str));
    let clustered = SplitSummary::compare("test", "", &base, &policy, &clusters, Score::Mean)
        .expect("same pairs");
    assert_eq!((clustered.clusters, clustered.largest_cluster), (Some(10), Some(4)));
    let width = |s: &SplitSummary| {
        let (low, high) = s.change.as_ref().unwrap().points.unwrap().interval().unwrap();
        high - low
    };
    let single = compare(&base, &policy);
    assert!(width(&clustered) > 1.5 * width(&single));
    assert_eq!(
        clustered.change.unwrap().points.unwrap().value,
        single.change.unwrap().points.unwrap().value
    );
}

#[test]
fn without_an_interval_there_is_a_reason() {
    let reason = |m: Option<Metric>| {
        let m = m.expect("a metric");
        assert_eq!(m.interval(), None);
        m.no_interval
    };
    let c = compare(&base(), &policy()).change.expect("two models");
    assert_eq!(reason(c.points), Some(NoInterval::FewClusters));
    assert_eq!(reason(c.accuracy), Some(NoInterval::NoVariation));
    let [base, policy] = many();
    let one = Clusters::new(std::iter::repeat_n("p", 40));
    let s = SplitSummary::compare("test", "", &base, &policy, &one, Score::Mean).unwrap();
    assert_eq!(reason(s.change.expect("two models").ratio), Some(NoInterval::OneCluster));
}

#[test]
fn there_is_no_ratio_if_the_base_model_is_never_correct() {
    let wrong: Vec<PairScore> = (0..3).map(|i| pair(i, (-3.0, 1), (-1.0, 1))).collect();
    let right: Vec<PairScore> = (0..3).map(|i| pair(i, (-1.0, 1), (-3.0, 1))).collect();
    let c = compare(&wrong, &right).change.expect("two models");
    assert_eq!(c.ratio, None);
    assert_eq!(value(c.points), 100.0);
}

#[test]
fn a_score_that_is_not_finite_counts_as_incorrect_and_is_reported() {
    let mut broken = policy();
    broken[1].chosen.logp_sum = f64::NAN;
    broken[2].rejected.tokens = 0;
    broken[2].rejected.logp_sum = 0.0;
    let s = compare(&base(), &broken);
    let c = s.change.expect("two models");
    assert_eq!(s.not_finite, 2);
    assert_eq!(value(c.accuracy), 0.5);
    assert_eq!(value(c.margin_gain), 2.5);
}

#[test]
fn without_pairs_there_are_no_figures() {
    let s = compare(&[], &[]);
    let c = s.change.expect("two models");
    assert_eq!((s.n, s.clusters, s.base_accuracy, c.points), (0, Some(0), None, None));
    assert_eq!((c.ratio, c.perplexity_ratio), (None, None));
}

#[test]
fn scores_of_different_pairs_are_refused() {
    let refused = |policy: &[PairScore], clusters: usize| {
        SplitSummary::compare("oos", "", &base(), policy, &single(clusters), Score::Mean)
            .unwrap_err()
    };
    for e in [refused(&policy()[1..], 4), refused(&policy(), 3)] {
        assert_eq!(
            e.message(),
            "the base model and the trained model scored different pairs of split `oos`"
        );
    }
}

#[test]
fn a_summary_of_an_older_version_can_be_read() {
    let estimate = r#"{"value": 0.5, "low": 0.4, "high": 0.6}"#;
    let old = format!(
        r#"{{"split": "test", "data": "math", "n": 9, "not_finite": 0, "base_accuracy": {estimate},
            "change": {{"accuracy": {estimate}, "ratio": null, "points": null,
            "margin_gain": null, "perplexity_ratio": null}}}}"#
    );
    let s: SplitSummary = serde_json::from_str(&old).expect("a summary");
    assert_eq!((s.clusters, s.base_accuracy.unwrap().interval()), (None, Some((0.4, 0.6))));
}
