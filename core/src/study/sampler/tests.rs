//! Tests of the samplers on functions whose best point is known.

use serde_json::{Value, json};

use super::*;
use crate::config::Origin;
use crate::study::space::Values;

fn range(field: &str, low: f64, high: f64, log: bool) -> Dimension {
    let values = Values::Range { low, high, log, integer: false };
    Dimension { field: field.into(), values, origin: Origin::Set }
}

fn list(field: &str, values: impl IntoIterator<Item = Value>) -> Dimension {
    let values = Values::List(values.into_iter().collect());
    Dimension { field: field.into(), values, origin: Origin::Set }
}

/// Runs a search on a function of a point and of the share of the resource. Returns all proposals
/// with their scores, in order.
fn search(
    settings: &Settings,
    space: &[Dimension],
    score: impl Fn(&Point, f64) -> Option<f64>,
) -> Vec<(Proposal, Option<f64>)> {
    let mut sampler = settings.sampler("m", space, None).unwrap();
    let mut all = Vec::new();
    loop {
        let proposals = sampler.ask().unwrap();
        if proposals.is_empty() {
            return all;
        }
        let scores: Vec<_> = proposals.iter().map(|p| score(&p.point, p.share)).collect();
        sampler.tell(&scores).unwrap();
        all.extend(proposals.into_iter().zip(scores));
    }
}

fn number(point: &Point, field: &str) -> f64 {
    point.iter().find(|(name, _)| name == field).unwrap().1.as_f64().unwrap()
}

/// A function of three fields whose largest value, 0, is at lr = 2e-4, β = 0.3 and the adapter
/// `large`.
fn peak(point: &Point) -> f64 {
    let rate = (number(point, "lr") / 2e-4).ln() / (100.0_f64).ln();
    let beta = number(point, "beta") - 0.3;
    let adapter = if point[2].1 == json!("large") { 0.0 } else { 0.3 };
    -(4.0 * rate * rate + 4.0 * beta * beta + adapter)
}

fn peak_space() -> Vec<Dimension> {
    let adapters = ["small", "large", "other"].map(|name| json!(name));
    vec![range("lr", 1e-5, 1e-2, true), range("beta", 0.0, 1.0, false), list("adapter", adapters)]
}

fn best(kind: Kind, seed: u64) -> f64 {
    let settings = Settings { sampler: kind, trials: Some(40), seed, ..Settings::default() };
    let found = search(&settings, &peak_space(), |point, _| Some(peak(point)));
    assert_eq!(found.len(), 40);
    found.iter().filter_map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max)
}

/// A paired t test over 20 seeds. The critical value of t with 19 degrees of freedom at a one-sided
/// level of 0.01 is 2.539. The estimator was adjusted with seeds below 20, so other seeds are used.
#[test]
fn tpe_finds_significantly_better_points_than_random_search() {
    let differences: Vec<f64> =
        (1000..1020).map(|seed| best(Kind::Tpe, seed) - best(Kind::Random, seed)).collect();
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = mean / (variance / n).sqrt();
    println!("t = {t:.2}, mean difference {mean:.4}");
    assert!(t > 2.539, "t = {t:.2}, mean difference {mean:.4}");
}

#[test]
fn the_best_of_27_is_found_at_a_third_of_the_cost() {
    let space = [
        list("a", (0..3).map(|v| json!(v))),
        list("b", (0..3).map(|v| json!(v))),
        list("c", (0..3).map(|v| json!(v))),
    ];
    let settings = Settings { sampler: Kind::Halving, ..Settings::default() };
    for seed in 0..50_u64 {
        // Each point approaches its own final score. With a third of the resource, it is a third of
        // the way from a common start, with noise that shrinks with the resource.
        let index =
            |point: &Point| point.iter().fold(0, |sum, (_, v)| 3 * sum + v.as_u64().unwrap());
        let hash = |i: u64| {
            let mixed = (i + 31 * seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
            (mixed.wrapping_mul(0xd1b5_4a32_d192_ed03) >> 11) as f64 / (1_u64 << 53) as f64
        };
        let last = |i: u64| if i == seed % 27 { -0.1 } else { -0.2 - 0.4 * hash(i) };
        let score = |point: &Point, share: f64| {
            let i = index(point);
            let noise = 0.05 * (hash(100 * i + (share * 9.0) as u64) - 0.5) * (1.0 - share);
            Some(-0.69 + (last(i) + 0.69) * share.sqrt() + noise)
        };
        let runs = search(&settings, &space, score);
        let cost: f64 = runs.iter().map(|(proposal, _)| proposal.share).sum();
        assert!(cost <= 27.0 / 3.0 + 1e-9, "the search cost {cost} full runs");
        assert_eq!(settings.cost(&space).0, runs.len());
        assert!((settings.cost(&space).1 - cost).abs() < 1e-9);
        let full = runs.iter().filter(|(proposal, _)| proposal.share == 1.0);
        let found = full.max_by(|a, b| a.1.unwrap().total_cmp(&b.1.unwrap())).unwrap();
        assert_eq!(index(&found.0.point), seed % 27, "seed {seed}");
    }
}

#[test]
fn a_failed_run_never_reaches_the_next_rung() {
    let space = [list("a", (0..9).map(|v| json!(v)))];
    let settings = Settings { sampler: Kind::Halving, ..Settings::default() };
    let runs =
        search(&settings, &space, |point, _| Some(number(point, "a")).filter(|value| *value < 8.0));
    let shares: Vec<f64> = runs.iter().map(|(p, _)| p.share).collect();
    assert_eq!((shares.len(), shares[0], shares[12]), (13, 1.0 / 9.0, 1.0));
    assert_eq!(runs[12].0.point[0].1, json!(7));
    assert!(search(&settings, &space, |_, _| None).len() == 9);
}

#[test]
fn a_search_with_the_same_scores_makes_the_same_proposals() {
    for sampler in [Kind::Random, Kind::Tpe, Kind::Halving] {
        for batch in [1, 4] {
            let settings =
                Settings { sampler, batch, trials: Some(14), seed: 3, ..Settings::default() };
            let run = || search(&settings, &peak_space(), |point, _| Some(peak(point)));
            assert_eq!(run(), run(), "{}", sampler.name());
            let other = Settings { seed: 4, ..settings.clone() };
            assert_ne!(search(&other, &peak_space(), |point, _| Some(peak(point))), run());
        }
    }
}

#[test]
fn fields_with_the_same_range_are_searched_separately() {
    let space = [range("a", 0.0, 1.0, false), range("b", 0.0, 1.0, false)];
    let settings =
        Settings { sampler: Kind::Tpe, trials: Some(60), seed: 1, ..Settings::default() };
    let runs = search(&settings, &space, |point, _| {
        Some(-(number(point, "a") - 0.1).abs() - (number(point, "b") - 0.9).abs())
    });
    let late = &runs[30..];
    let mean =
        |field| late.iter().map(|(p, _)| number(&p.point, field)).sum::<f64>() / late.len() as f64;
    assert!(mean("a") < 0.35 && mean("b") > 0.65, "{} {}", mean("a"), mean("b"));
}

#[test]
fn a_small_space_is_searched_once_and_completely() {
    let space = [list("a", (0..4).map(|v| json!(v)))];
    for sampler in [Kind::Grid, Kind::Random, Kind::Tpe] {
        let settings = Settings { sampler, trials: Some(50), ..Settings::default() };
        let mut values: Vec<i64> = search(&settings, &space, |_, _| Some(0.0))
            .iter()
            .map(|(p, _)| p.point[0].1.as_i64().unwrap())
            .collect();
        values.sort_unstable();
        assert_eq!(values, [0, 1, 2, 3], "{}", sampler.name());
    }
    let e = Settings::default().sampler("m", &peak_space(), None).err().unwrap();
    assert!(e.message().contains("the sampler `grid` needs a list of values for `lr`"), "{e}");
}

#[test]
fn a_search_goes_on_without_the_scores_of_failed_runs() {
    let settings =
        Settings { sampler: Kind::Tpe, trials: Some(20), batch: 3, ..Settings::default() };
    let runs = search(&settings, &peak_space(), |point, _| {
        Some(peak(point)).filter(|_| number(point, "beta") < 0.5)
    });
    assert_eq!(runs.len(), 20);
}

#[test]
fn an_external_program_chooses_the_points_once() {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    struct Program {
        sent: Rc<RefCell<Vec<Value>>>,
        answers: VecDeque<&'static str>,
    }
    impl Channel for Program {
        fn send(&mut self, message: &Value) -> Result<()> {
            self.sent.borrow_mut().push(message.clone());
            Ok(())
        }
        fn receive(&mut self) -> Result<Option<String>> {
            Ok(self.answers.pop_front().map(str::to_owned))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let space = [range("lr", 0.0, 1.0, false), list("n", [json!(1.0), json!(2.0)])];
    let settings = Settings { sampler: Kind::External, trials: Some(3), ..Settings::default() };
    let run = |answers: &[&'static str]| {
        let sent = Rc::new(RefCell::new(Vec::new()));
        let program =
            Program { sent: Rc::clone(&sent), answers: answers.iter().copied().collect() };
        let conversation = Conversation::open(Box::new(program), folder.path()).unwrap();
        let mut sampler = settings.sampler("m", &space, Some(&conversation)).unwrap();
        let mut points = Vec::new();
        let outcome = loop {
            let proposals = match sampler.ask() {
                Err(e) => break Err(e),
                Ok(proposals) if proposals.is_empty() => break Ok(()),
                Ok(proposals) => proposals,
            };
            points.extend(proposals.iter().map(|p| number(&p.point, "lr")));
            sampler.tell(&[Some(-0.5)]).unwrap();
        };
        (outcome, points, sent.take())
    };
    for (answer, expected) in [
        ("lr=3", "the line is not a JSON document"),
        ("{\"values\": {\"lr\": 0.5}}", "it has no value for `n`"),
        ("{\"values\": {\"lr\": 0.5, \"m\": 1}}", "unknown searched field `m`"),
        ("{\"values\": {\"lr\": 1.5, \"n\": 1}}", "`lr` must be one of"),
        ("{}", "it has neither `values` nor"),
    ] {
        let e = format!("{:?}", run(&[answer]).0.unwrap_err());
        assert!(e.contains(expected), "{answer}: {e}");
    }
    let (outcome, points, sent) = run(&["{\"values\": {\"lr\": 0.25, \"n\": 2}}"]);
    assert!(outcome.unwrap_err().message().contains("ended before it answered trial 1 of `m`"));
    assert_eq!(points, [0.25]);
    assert_eq!(
        sent[1],
        json!({"type": "tell", "method": "m", "trial": 0, "values": {"lr": 0.25, "n": 2.0},
            "score": -0.5, "resumed": false})
    );
    // The next process reports the first trial, and asks only for the others.
    let (outcome, points, sent) =
        run(&["{\"values\": {\"lr\": 0.75, \"n\": 1}}", "{\"stop\": true}"]);
    outcome.unwrap();
    assert_eq!(points, [0.25, 0.75]);
    let kinds: Vec<_> = sent.iter().map(|m| (m["type"].as_str().unwrap(), &m["trial"])).collect();
    assert_eq!(
        kinds,
        [("tell", &json!(0)), ("ask", &json!(1)), ("tell", &json!(1)), ("ask", &json!(2))]
    );
    assert_eq!(sent[0]["resumed"], json!(true));
}
