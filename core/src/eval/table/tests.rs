use super::*;
use crate::config::Score;
use crate::eval::statistics::{Change, Clusters, CompletionScore, Overlap, PairScore};
use crate::statistics::NoInterval;

fn estimate(value: f64, low: f64, high: f64) -> Option<Metric> {
    Some(Metric { value, low: Some(low), high: Some(high), no_interval: None })
}

fn without(reason: NoInterval) -> Option<Metric> {
    Some(Metric { value: 5.0, low: None, high: None, no_interval: Some(reason) })
}

fn split(name: &str, data: &str, change: Option<Change>) -> SplitSummary {
    SplitSummary {
        split: name.into(),
        data: data.into(),
        n: 100,
        clusters: Some(33),
        largest_cluster: Some(4),
        prompts: Some(33),
        not_finite: 0,
        dropped: 0,
        truncated: 0,
        overlap: None,
        best_of: None,
        base_accuracy: estimate(0.5, 0.4, 0.6),
        change,
        base: None,
        trained: None,
    }
}

fn change() -> Change {
    Change {
        accuracy: estimate(0.62, 0.5, 0.7),
        ratio: None,
        points: estimate(12.0, -0.01, 24.0),
        margin_gain: estimate(-3.456, -4.0, -3.0),
        perplexity_ratio: estimate(0.934, 0.9, 1.0),
        loss_change: estimate(0.07, 0.0, 0.1),
        kl: None,
    }
}

#[test]
fn rows_are_sorted_by_distribution_and_numbers_align() {
    let table = Table::new(
        "a × b on c, m",
        vec![
            split("rnd[:9]", "x", Some(change())),
            split("oos", "easy|hard", Some(change())),
            split("train", "math", Some(change())),
        ],
    );
    assert!(table.forgetting.is_some());
    let lines: Vec<String> = table.plain().lines().map(str::to_owned).collect();
    assert_eq!(
        lines[..6],
        [
            "a × b on c, m",
            "",
            "split    data         n  clusters  base acc    acc  ratio    points (95 % CI)  \
                margin gain  ppl ratio",
            "train    math       100        33     0.500  0.620      –  +12.0 [0.0, +24.0]        \
                -3.46       0.93",
            "oos      easy|hard  100        33     0.500  0.620      –  +12.0 [0.0, +24.0]        \
                -3.46       0.93",
            "rnd[:9]  x          100        33     0.500  0.620      –  +12.0 [0.0, +24.0]        \
                -3.46       0.93",
        ]
    );
    assert!(table.markdown().contains("| oos     | easy\\|hard | 100 |"), "{}", table.markdown());
}

#[test]
fn a_perplexity_ratio_below_a_half_is_marked_and_explained() {
    let ratio =
        |r: Option<f64>| Change { perplexity_ratio: r.and_then(|r| estimate(r, r, r)), ..change() };
    let table = |ratios: &[Option<f64>]| {
        Table::new("t", ratios.iter().map(|r| split("s", "d", Some(ratio(*r)))).collect())
    };
    let marked = table(&[Some(0.31), Some(1.05), None]);
    for text in [marked.plain(), marked.markdown()] {
        assert!(text.contains("0.31*") && text.contains("1.05") && text.contains("–*"), "{text}");
        assert!(text.contains("*: ppl ratio below 0.5 or unknown"), "{text}");
    }
    // Ratios with and without a mark must end in the same column.
    let ends: Vec<usize> = marked
        .plain()
        .lines()
        .filter_map(|l| Some(l.find("0.31").or(l.find("1.05"))? + 4))
        .collect();
    assert!(ends.len() == 2 && ends[0] == ends[1], "{}", marked.plain());
    let fine = table(&[Some(0.5), Some(1.05)]).plain();
    assert!(!fine.contains('*'), "{fine}");
}

#[test]
fn without_a_trained_model_there_are_no_columns_of_changes() {
    let text = Table::new("m", vec![split("test", "math", None)]).plain();
    assert_eq!(
        text,
        "m\n\nsplit  data    n  clusters  base acc\ntest   math  100        33     0.500\n\nacc: \
            fraction of pairs whose chosen completion scores higher, with ties counted as one \
            half\n"
    );
}

#[test]
fn a_missing_interval_is_explained_once_per_reason() {
    let few = || Some(Change { points: without(NoInterval::FewClusters), ..change() });
    let table = Table::new(
        "t",
        vec![
            split("train", "d", few()),
            split("test", "d", few()),
            split("oos", "d", Some(Change { points: without(NoInterval::OneCluster), ..change() })),
            split("rnd", "d", Some(change())),
        ],
    );
    let text = table.plain();
    for line in [
        "95 % CI: over clusters of dependent pairs, for this one training; another seed can give \
            other results",
        "no interval for train, test: fewer than 8 effective clusters",
        "no interval for oos: all pairs are in one cluster",
    ] {
        assert!(text.lines().any(|found| found == line), "{text}");
    }
    assert_eq!(text.matches("  +5.0  ").count(), 3, "{text}");
    assert_eq!(table.forgetting, change().loss_change);
}

#[test]
fn intervals_of_older_versions_are_marked() {
    let old = SplitSummary { clusters: None, ..split("test", "d", Some(change())) };
    let text = Table::new("t", vec![old]).plain();
    assert!(text.contains("the intervals are from an older version"), "{text}");
}

#[test]
fn the_overlap_with_the_training_data_is_shown() {
    let of = |overlap| {
        let split = SplitSummary { overlap: Some(overlap), ..split("oos", "d", Some(change())) };
        Table::new("t", vec![split]).plain()
    };
    let text = of(Overlap { prompts: 5, pairs: 2, excluded: true });
    let line = "oos: pairs with a prompt of the training data: 5, also with both completions: 2 \
        (not scored)";
    assert!(text.lines().any(|found| found == line), "{text}");
    let kept = of(Overlap { prompts: 5, pairs: 2, excluded: false });
    assert!(kept.contains("both completions: 2 (scored, because `eval.overlap` is `keep`)"));
    let copy = of(Overlap { prompts: 100, pairs: 100, excluded: false });
    assert!(copy.contains("completions: 100 (scored, because there are no other pairs)"));
    assert!(!of(Overlap::default()).contains("training data"));
}

#[test]
fn prompts_in_several_clusters_cause_a_warning() {
    let of = |prompts| {
        let split = SplitSummary { prompts, ..split("oos", "d", Some(change())) };
        Table::new("t", vec![split]).plain()
    };
    assert!(of(Some(20)).contains(
        "oos: pairs with the same prompt are in different clusters (20 prompts, 33 clusters); to"
    ));
    assert!([Some(33), Some(34), None].into_iter().all(|n| !of(n).contains("same prompt")));
}

#[test]
fn the_details_compare_both_models() {
    let scores = |chosen: f64| -> Vec<PairScore> {
        let of = |logp_sum, tokens| CompletionScore::new(logp_sum, tokens);
        (0..20)
            .map(|index| PairScore { index, chosen: of(chosen, 2), rejected: of(-2.0, 1) })
            .collect()
    };
    let (base, trained) = (scores(-6.0), scores(-2.0));
    let clusters = Clusters::of_single_pairs(20);
    let split = SplitSummary::compare("rnd", "d", &base, &trained, &clusters, Score::Mean).unwrap();
    let table = Table::new("t", vec![split]);
    let text = table.details();
    // Score differences of −1 and 1, margins of −4 and 0, log σ(−1) and log σ(1).
    let row = "rnd    -4.00 → 0.00  -1.3133 → -0.3133      0.731 → 0.269       0.000 → 1.000";
    assert!(text.lines().any(|line| line.starts_with(row)), "{text}");
    assert!(text.contains("forgetting: -2.000 nats per token"), "{text}");
    assert!(table.markdown().contains("log σ"), "{}", table.markdown());
}
