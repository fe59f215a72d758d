//! `reprpo compare` and `reprpo report` on recorded runs.

mod browser;
mod fixture;
mod markup;

use serde_json::Value;

use crate::{json, reprpo, reprpo_in, stderr, stdout};
use fixture::{PAIRS, Run, study};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn near(found: &Value, wanted: f64) -> bool {
    found.as_f64().is_some_and(|v| (v - wanted).abs() < 1e-9)
}

/// The metrics of a method on a split.
fn figures<'a>(summary: &'a Value, method: &str, split: &str) -> &'a Value {
    let methods = summary["methods"].as_array().expect("methods");
    let of = methods.iter().find(|m| m["method"] == method).unwrap_or_else(|| panic!("{method}"));
    let splits = of["splits"].as_array().expect("splits");
    splits.iter().find(|s| s["split"] == split).expect("a split")
}

#[test]
fn a_study_is_compared_at_its_tuned_points_over_all_seeds() {
    let at = folder();
    study(at.path(), "validation");
    let summary = json(&reprpo_in(at.path(), &["compare", ".", "--json"]));
    assert_eq!(summary["methods"][0]["seeds"], serde_json::json!([1, 2, 3]));
    assert_eq!(summary["tests"]["baseline"], "dpo");
    // 37 has no factor in common with 100, so the share of pairs that are right is known.
    let right = |percent: usize, seed: usize| {
        (0..PAIRS).filter(|i| (i * 37 + seed * 11) % 100 < percent).count() as f64 / PAIRS as f64
    };
    let mean = |percent| (1..=3).map(|seed| right(percent, seed)).sum::<f64>() / 3.0;
    for (method, percent) in [("dpo", 60), ("states <b>", 90)] {
        let oos = figures(&summary, method, "oos");
        assert!(near(&oos["accuracy"]["mean"], mean(percent)), "{oos}");
        assert!(near(&oos["points"]["mean"], 100.0 * (mean(percent) - 0.5)), "{oos}");
        assert!(near(&oos["perplexity_ratio"]["mean"], (-0.02f64).exp()), "{oos}");
        assert_eq!(oos["points"]["clusters"], PAIRS / fixture::CLUSTER);
        let (low, high) = (oos["points"]["low"].as_f64(), oos["points"]["high"].as_f64());
        assert!(low < oos["points"]["mean"].as_f64() && high > oos["points"]["mean"].as_f64());
    }
    // One test for each of the three held-out splits; Holm's correction covers all of them.
    let tests = summary["tests"]["tests"].as_array().expect("tests");
    let splits: Vec<&str> = tests.iter().filter_map(|t| t["split"].as_str()).collect();
    assert_eq!(splits, ["test", "oos", "rnd"]);
    let oos = &tests[1];
    assert!(near(&oos["difference"]["mean"], 100.0 * (mean(90) - mean(60))), "{oos}");
    assert!(oos["p_holm"].as_f64() >= oos["p"].as_f64() && oos["p_holm"].as_f64() < Some(0.05));
    assert_eq!(summary["left_out"][0]["reason"], "failed: the loss is NaN");
}

#[test]
fn the_comparison_at_equal_ratio_interpolates_and_never_extrapolates() {
    let at = folder();
    study(at.path(), "validation");
    // The log ratio is −20·lr, so it is −0.002, −0.02 and −0.2 at the three learning rates.
    let at_ratio = |ratio: &str| {
        let args = ["compare", ".", "--json", "--match-perplexity", ratio];
        json(&reprpo_in(at.path(), &args))["curves"]["matched"][1].clone()
    };
    let found = at_ratio("0.95");
    assert_eq!(found["learning_rates"], serde_json::json!([0.001, 0.01]), "{found}");
    let points = |percent: usize, seeds: &[usize]| {
        let right = |seed: &usize| {
            (0..PAIRS).filter(|i| (i * 37 + seed * 11) % 100 < percent).count() as f64
        };
        let mean = seeds.iter().map(right).sum::<f64>() / (seeds.len() * PAIRS) as f64;
        100.0 * (mean - 0.5)
    };
    let (before, after) = (points(90, &[1, 2, 3]), points(90, &[0]));
    let share = (0.95f64.ln() + 0.02) / (-0.2 + 0.02);
    let gains = found["gains"].as_array().expect("gains");
    let oos = gains.iter().find(|g| g["split"] == "oos").expect("the shift");
    assert!(near(&oos["points"], before + share * (after - before)), "{oos}");
    let outside = at_ratio("0.5");
    assert!(outside["gains"].as_array().is_some_and(Vec::is_empty), "{outside}");
    assert!(outside["remark"].as_str().is_some_and(|r| r.starts_with("not bracketed")));
}

#[test]
fn every_format_marks_a_study_that_selected_on_the_shift() {
    let at = folder();
    study(at.path(), "shift");
    let mark = "selected its values on the shifted data";
    for format in [&[][..], &["--markdown"], &["--csv"], &["--json"]] {
        let text = stdout(&reprpo_in(at.path(), &[&["compare", "."], format].concat()));
        assert!(text.contains(mark), "{format:?}\n{text}");
    }
    stdout(&reprpo_in(at.path(), &["report", "."]));
    let page = std::fs::read_to_string(at.path().join("report.html")).expect("a page");
    assert!(page.contains(mark) && page.contains("selected on the shift</span>"));
    let unmarked = folder();
    study(unmarked.path(), "validation");
    assert!(!stdout(&reprpo_in(unmarked.path(), &["compare", "."])).contains(mark));
}

#[test]
fn single_runs_are_grouped_by_method_and_tuned_by_validation() {
    let at = folder();
    for (lr, loss) in [(1e-4, 0.4), (1e-3, 0.2)] {
        for seed in 1..=3 {
            for intervention in ["sft", "dpo"] {
                let mut run = Run::new(intervention, lr, seed);
                run.validation = Some(loss);
                run.write(&at.path().join(format!("runs/{intervention}-{lr}-{seed}")));
            }
        }
    }
    let damaged = at.path().join("runs/damaged");
    Run::new("dpo", 1e-3, 4).write(&damaged);
    std::fs::write(damaged.join("eval/pairs.jsonl"), "{\"split\": \"te").expect("a file");
    let output = reprpo_in(at.path(), &["compare", "runs", "--json"]);
    let summary = json(&output);
    let methods: Vec<(&str, &str)> = summary["methods"]
        .as_array()
        .expect("methods")
        .iter()
        .map(|m| {
            (m["method"].as_str().expect("a name"), m["values"]["train.lr"].as_str().expect("lr"))
        })
        .collect();
    assert_eq!(methods, [("dpo × lora", "1e-3"), ("sft × lora", "1e-3")]);
    assert_eq!(summary["methods"][0]["tuned"], "validation");
    assert!(stderr(&output).contains("left out") && stderr(&output).contains("is damaged"));
    // Without validations, nothing selects a point, so every learning rate has its own row.
    let plain = folder();
    for lr in [1e-4, 1e-3] {
        Run::new("dpo", lr, 1).write(&plain.path().join(format!("dpo-{lr}")));
    }
    let text = stdout(&reprpo_in(plain.path(), &["compare", "."]));
    assert!(text.contains("dpo × lora, train.lr=1e-4") && text.contains("has one seed"), "{text}");
}

#[test]
fn runs_with_other_settings_are_refused_and_the_field_is_named() {
    let at = folder();
    Run::new("dpo", 1e-3, 1).write(&at.path().join("a"));
    let mut other = Run::new("sft", 1e-3, 1);
    other.max_length = 256;
    other.write(&at.path().join("b"));
    let output = reprpo_in(at.path(), &["compare", "a", "b"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("`train.max_length` is `512` and `256`"), "{text}");
    let mut fewer = Run::new("sft", 1e-3, 1);
    fewer.right.remove("rnd");
    fewer.write(&at.path().join("c"));
    let text = stderr(&reprpo_in(at.path(), &["compare", "a", "c"]));
    assert!(text.contains("split `rnd`"), "{text}");
    let text = stderr(&reprpo_in(at.path(), &["compare", "a", "--baseline", "dpi"]));
    assert!(text.contains("unknown baseline `dpi`"), "{text}");
}

#[test]
fn runs_without_clusters_have_no_intervals() {
    let at = folder();
    for (i, intervention) in ["dpo", "sft"].iter().enumerate() {
        for seed in 1..=2 {
            let mut run = Run::new(intervention, 1e-3, seed);
            run.clusters = false;
            run.write(&at.path().join(format!("{i}-{seed}")));
        }
    }
    let summary = json(&reprpo_in(at.path(), &["compare", ".", "--json"]));
    let oos = figures(&summary, "dpo × lora", "oos");
    assert!(oos["points"]["low"].is_null() && oos["points"]["mean"].is_number());
    let remark = oos["points"]["remark"].as_str().expect("a reason");
    assert!(remark.contains("do not record clusters"), "{remark}");
    assert!(summary["tests"]["tests"][0]["p"].is_null());
    let text = stdout(&reprpo_in(at.path(), &["compare", "."]));
    assert!(text.contains(remark), "{text}");
}

#[test]
fn a_pair_that_one_run_excludes_is_excluded_from_all_runs() {
    let at = folder();
    for seed in 1..=2 {
        let run = Run::new("dpo", 1e-3, seed).write(&at.path().join(seed.to_string()));
        if seed == 2 {
            let pairs = run.join("eval/pairs.jsonl");
            let text = std::fs::read_to_string(&pairs).expect("pairs");
            let known = text.lines().map(|line| {
                let pair: Value = serde_json::from_str(line).expect("JSON");
                if pair["split"] == "oos" && pair["index"] == 3 {
                    r#"{"split":"oos","index":3,"cluster":"oos-1","overlap":"pair"}"#.to_owned()
                } else {
                    line.to_owned()
                }
            });
            let text = known.collect::<Vec<_>>().join("\n");
            std::fs::write(&pairs, text).expect("pairs");
        }
    }
    let summary = json(&reprpo_in(at.path(), &["compare", ".", "--json"]));
    assert_eq!(figures(&summary, "dpo × lora", "oos")["points"]["pairs"], PAIRS - 1);
    assert_eq!(figures(&summary, "dpo × lora", "test")["points"]["pairs"], PAIRS);
    let notes = summary["notes"].to_string();
    assert!(notes.contains("excluded from all runs: 1"), "{notes}");
}

#[test]
fn the_tuned_capability_gives_the_elicitation() {
    let at = folder();
    Run::new("dpo", 1e-3, 1).write(&at.path().join("a"));
    // Trained on the shifted distribution: its test pairs are the pairs of the shift.
    let tuned = at.path().join("tuned");
    Run::new("dpo", 1e-3, 1).write(&tuned);
    let pairs = std::fs::read_to_string(at.path().join("a/eval/pairs.jsonl")).expect("pairs");
    let test: String = pairs
        .lines()
        .filter(|line| line.contains("\"split\":\"oos\""))
        .map(|line| line.replace("\"split\":\"oos\"", "\"split\":\"test\"") + "\n")
        .collect();
    std::fs::write(tuned.join("eval/pairs.jsonl"), test).expect("pairs");
    let summary = json(&reprpo_in(at.path(), &["compare", "a", "--tuned", "tuned", "--json"]));
    let oos = figures(&summary, "dpo × lora", "oos");
    assert!(near(&oos["elicitation"], 1.0), "{oos}");
    let accuracy = oos["accuracy"]["mean"].as_f64().expect("an accuracy");
    assert!(near(&oos["differential_elicitation"], (accuracy - 0.5) / accuracy), "{oos}");
}

#[test]
fn csv_has_the_same_number_of_cells_in_every_line() {
    let at = folder();
    study(at.path(), "validation");
    let text = stdout(&reprpo_in(at.path(), &["compare", ".", "--csv"]));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 50, "{text}");
    assert!(lines.iter().all(|line| line.split(',').count() == 10 || line.contains('"')), "{text}");
    assert!(lines.iter().any(|line| line.starts_with("tests,states <b>,,3,oos,p_holm,")), "{text}");
}

#[test]
fn the_page_is_well_formed_and_needs_no_network() {
    let at = folder();
    study(at.path(), "validation");
    let output = reprpo_in(at.path(), &["report", ".", "--out", "page.html"]);
    assert!(stdout(&output).contains("page.html"));
    let page = std::fs::read_to_string(at.path().join("page.html")).expect("a page");
    let elements = markup::elements(&page).unwrap_or_else(|e| panic!("{e}"));
    let count = |name: &str| elements.iter().filter(|e| e.name == name).count();
    assert_eq!((count("script"), count("link"), count("img"), count("iframe")), (0, 0, 0, 0));
    // All texts from data are escaped.
    assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("<img"));
    for forbidden in ["http://", "https://", "url(", "@import", "src="] {
        let allowed = page.contains("&lt;img src=x") && forbidden == "src=";
        assert!(allowed || !page.contains(forbidden), "{forbidden}");
    }
    // Every plot has a title and a description; the keys of legends are hidden from screen readers.
    let plots = elements.iter().filter(|e| e.name == "svg" && e.has("role", "img"));
    for plot in plots.clone() {
        let children: Vec<&str> = plot.children.iter().map(String::as_str).collect();
        assert_eq!(children[..2], ["title", "desc"], "{plot:?}");
    }
    assert!(plots.count() >= 10);
    assert!(
        elements
            .iter()
            .all(|e| e.name != "svg" || e.has("role", "img") || e.has("aria-hidden", "true"))
    );
    // Both commands are named.
    assert!(page.contains("reprpo sweep &#39;small study.toml&#39;"), "{page}");
    assert!(page.contains("reprpo report . --out page.html"), "{page}");
    assert!(page.contains("# model: sha256 ab12") && !page.contains("secret"), "{page}");
    // The same command writes the same bytes.
    stdout(&reprpo_in(at.path(), &["report", ".", "--out", "page.html"]));
    assert_eq!(std::fs::read_to_string(at.path().join("page.html")).expect("a page"), page);
}

#[test]
fn the_page_fits_a_phone_and_a_desktop_in_a_browser() {
    let at = folder();
    study(at.path(), "validation");
    stdout(&reprpo_in(at.path(), &["report", ".", "--out", "page.html"]));
    for width in [390, 1280] {
        match browser::layout(&at.path().join("page.html"), width) {
            None => return,
            Some(found) => {
                assert!(found.scroll_width <= width, "{found:?} is wider than {width}");
                assert!(found.visible_plots >= 10, "{found:?}");
            }
        }
    }
}

#[test]
fn a_folder_without_runs_is_an_error() {
    let at = folder();
    let output = reprpo_in(at.path(), &["compare", "."]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no run in `.`"), "{}", stderr(&output));
    assert_eq!(reprpo(&["compare"]).status.code(), Some(2));
}
