//! Tests of studies: `reprpo sweep STUDY.toml` on tiny models.

mod external;
mod interruption;
mod mistakes;
mod slurm;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::resume::{WORDS, model};
use crate::{isolated_command, jsonl, metrics, stderr, transcript};

/// A folder with a tiny model, and with the data and the files of a study.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        model(&place.path("model"), 0, "");
        for (name, shift) in [("pairs.jsonl", 0), ("oos.jsonl", 17)] {
            let rows: Vec<Value> = (0..24).map(|i| row(i, shift)).collect();
            jsonl(place.0.path(), name, &rows);
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("the file is written");
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        isolated_command(self.0.path(), args)
    }

    pub(crate) fn reprpo(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the command runs")
    }

    /// Runs a command that must succeed.
    pub(crate) fn succeeds(&self, args: &[&str]) -> Output {
        let output = self.reprpo(args);
        assert!(output.status.success(), "{args:?}: {}", transcript(&output));
        output
    }

    pub(crate) fn study(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.path(name).join("study.json")).expect("a record");
        serde_json::from_str(&text).expect("JSON")
    }

    pub(crate) fn runs(&self, name: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.path(name).join("runs")).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

fn row(i: i64, shift: i64) -> Value {
    let words = |from: i64, n: i64| {
        (0..n)
            .map(|k| format!("w{}", (from * 31 + k * 7 + shift) % WORDS))
            .collect::<Vec<_>>()
            .join(" ")
    };
    json!({ "prompt": format!("w{} w{} {} ", i % WORDS, (i * 5 + 1) % WORDS, words(i, 2)),
        "chosen": words(i + 3, 2 + i % 3), "rejected": words(2 * i + 5, 3) })
}

/// The part of a study file that all tests share: a few steps on 20 pairs.
pub(crate) const BASE: &str = r#"
[base]
model = "./model"
dataset = "pairs.jsonl"
"dataset.oos" = "oos.jsonl"
device = "cpu"
dtype = "f32"
adapter = "lora"
"train.max_pairs" = 20
"train.batch" = 2
"train.accumulate" = 2
"train.warmup" = 0
"eval.max_pairs" = 8
"#;

/// Two methods, two learning rates and two seeds.
const METHODS: &str = r#"
[methods.dpo]
intervention = "dpo"
[methods.states]
intervention = "prefvec"
"tap.layers" = "1"
"#;

/// The validation at which the adapter of a run was measured, read without the study's own code.
fn validated(run: &Path) -> f64 {
    let lines = metrics(run);
    let last = lines.iter().rfind(|line| line.get("eval_log_sigmoid").is_some());
    last.expect("a validation")["eval_log_sigmoid"].as_f64().expect("a number")
}

fn trials<'v>(study: &'v Value, method: &str, phase: &str) -> Vec<&'v Value> {
    let all = study["trials"].as_array().expect("trials");
    all.iter().filter(|t| t["method"] == method && t["phase"] == phase).collect()
}

#[test]
fn a_study_tunes_each_method_by_validation_and_runs_the_tuned_point_with_all_seeds() {
    let place = Place::new();
    let search = "[search]\nseed = 7\n[search.fields]\n\"train.lr\" = [1e-3, 2e-2]\n";
    place.write("mine.toml", &format!("seeds = [1, 2]\n{BASE}{METHODS}{search}"));
    let plan = place.succeeds(&["sweep", "mine.toml", "--dry-run"]);
    let plan = crate::stdout(&plan);
    assert!(
        plan.contains("`mine`: at most 8 runs in `runs/mine`")
            && plan.contains("dpo: 2 runs of the search, 2 final runs, each with at most 5 steps"),
        "{plan}"
    );
    assert!(!place.path("runs").exists(), "a dry run must not write anything");

    let output = place.succeeds(&["sweep", "mine.toml"]);
    let study = place.study("runs/mine");
    assert_eq!(
        (&study["name"], &study["objective"], &study["selected_on"], &study["methods"]),
        (
            &json!("mine"),
            &json!("mean_log_sigmoid"),
            &json!("validation"),
            &json!(["dpo", "states"])
        )
    );
    assert_eq!(study["command"][1], "sweep");
    for method in ["dpo", "states"] {
        let searched = trials(&study, method, "search");
        assert_eq!(searched.len(), 2);
        let mut best = (f64::NEG_INFINITY, Value::Null);
        for trial in searched {
            let run = place.path("runs/mine").join(trial["run"].as_str().expect("a run"));
            let score = validated(&run);
            assert_eq!((trial["score"].as_f64(), &trial["seed"]), (Some(score), &json!(7)));
            // Check the objective itself: log σ of a difference is negative, and −log 2 is the
            // value without any preference.
            assert!(score < 0.0 && score > -3.0, "{score}");
            if score > best.0 {
                best = (score, trial["values"].clone());
            }
        }
        assert_eq!(study["tuned"][method], best.1);
        let finals = trials(&study, method, "final");
        let seeds: Vec<&Value> = finals.iter().map(|trial| &trial["seed"]).collect();
        assert_eq!(seeds, [&json!(1), &json!(2)]);
        for trial in finals {
            assert_eq!((&trial["values"], &trial["state"]), (&best.1, &json!("finished")));
            let run = place.path("runs/mine").join(trial["run"].as_str().expect("a run"));
            assert!(run.join("eval/summary.json").is_file());
        }
    }
    assert_eq!(place.runs("runs/mine").len(), 8);
    let summary = std::fs::read_to_string(place.path("runs/mine/summary.md")).expect("a summary");
    assert!(summary.contains("| dpo ") && !summary.contains("SHIFTED"), "{summary}");
    // Of two learning rates, the best one is always at an end of the list.
    assert!(summary.contains("warning: the tuned `train.lr` of dpo"), "{summary}");
    assert!(stderr(&output).contains("[8 of 8]"), "{}", stderr(&output));

    let again = place.succeeds(&["sweep", "mine.toml"]);
    assert!(
        stderr(&again).contains("nothing to do: 8 of 8 runs are finished"),
        "{}",
        stderr(&again)
    );
    assert_eq!(crate::stdout(&again), crate::stdout(&output));

    // The study as written to the folder is the same study.
    let copy = place.succeeds(&["sweep", "runs/mine/study.toml", "--out", "runs/mine"]);
    assert!(stderr(&copy).contains("nothing to do: 8 of 8"), "{}", stderr(&copy));

    // A run that was removed is computed again, and nothing else.
    let removed =
        place.path("runs/mine/runs").join(place.runs("runs/mine").first().expect("a run"));
    std::fs::remove_dir_all(removed).expect("removed");
    let repaired = place.succeeds(&["sweep", "mine.toml"]);
    assert!(stderr(&repaired).contains("7 of 8 runs were already finished"));
    assert_eq!(crate::stdout(&repaired), crate::stdout(&output));
}

#[test]
fn a_search_with_the_seed_of_a_final_run_shares_the_run() {
    let place = Place::new();
    let search = "[search]\nseed = 2\n[search.fields]\n\"train.lr\" = [1e-3, 2e-2]\n";
    let text = format!("final = \"all\"\nseeds = [1, 2]\n{BASE}{search}");
    place.write("all.toml", &text);
    place.succeeds(&["sweep", "all.toml"]);
    let study = place.study("runs/all");
    assert_eq!(trials(&study, "all", "final").len(), 4);
    assert_eq!(place.runs("runs/all").len(), 4, "the two runs of the search are final runs, too");
}

#[test]
fn a_selection_on_the_shifted_set_is_marked_everywhere() {
    let place = Place::new();
    let search = "[search]\n[search.fields]\n\"train.lr\" = [1e-3, 2e-2]\n";
    place.write("s.toml", &format!("{BASE}{search}"));
    let output = place.succeeds(&["sweep", "s.toml", "--select-on-shift"]);
    assert!(crate::stdout(&output).contains("SELECTED ON THE SHIFTED SET"));
    let summary = std::fs::read_to_string(place.path("runs/s/summary.md")).expect("a summary");
    assert!(summary.contains("SELECTED ON THE SHIFTED SET"), "{summary}");
    let study = place.study("runs/s");
    assert_eq!(study["selected_on"], "shift");
    // The objective, computed from the scores of the pairs.
    let trial = trials(&study, "s", "search")[0];
    let run = place.path("runs/s").join(trial["run"].as_str().expect("a run"));
    let text = std::fs::read_to_string(run.join("eval/pairs.jsonl")).expect("scores");
    let values: Vec<f64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|line| line["split"] == "oos")
        .map(|line| {
            let mean = |side: &str| {
                let score = &line["trained"][side];
                score["logp_sum"].as_f64().expect("a sum") / score["tokens"].as_f64().expect("n")
            };
            -(1.0 + (mean("rejected") - mean("chosen")).exp()).ln()
        })
        .collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let score = trial["score"].as_f64().expect("a score");
    assert!((score - mean).abs() < 1e-12, "{score} {mean}");
    let lines = metrics(&run);
    assert!(lines.iter().all(|line| line.get("eval_loss").is_none()), "no pairs are held out");
}

#[test]
fn successive_halving_gives_the_full_steps_only_to_the_best() {
    let place = Place::new();
    let search = "[search]\nsampler = \"halving\"\n[search.fields]\n\"train.lr\" = \
        [1e-4, 3e-4, 1e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 4e-2]\n";
    place.write("h.toml", &format!("{BASE}\"train.epochs\" = 9\n{search}"));
    place.succeeds(&["sweep", "h.toml"]);
    let study = place.study("runs/h");
    let searched = trials(&study, "h", "search");
    let steps: Vec<usize> = searched
        .iter()
        .map(|trial| {
            let run = place.path("runs/h").join(trial["run"].as_str().expect("a run"));
            metrics(&run).iter().filter(|line| line.get("loss").is_some()).count()
        })
        .collect();
    assert_eq!(steps, [[5; 9].as_slice(), &[15; 3], &[45]].concat());
    let states: Vec<&str> = searched.iter().map(|t| t["state"].as_str().expect("text")).collect();
    assert_eq!(states, [["pruned"; 12].as_slice(), &["finished"]].concat());
    assert_eq!(study["tuned"]["h"], searched[12]["values"]);
}

#[test]
fn several_jobs_compute_the_same_bytes_and_each_base_value_once() {
    let place = Place::new();
    place.write("j.toml", &format!("seeds = [1, 2, 3]\n{BASE}{METHODS}"));
    place.succeeds(&["sweep", "j.toml", "--out", "one"]);
    place.succeeds(&["sweep", "j.toml", "--out", "three", "--jobs", "3", "--threads", "1"]);
    assert_same_results(&place, "one", "three");
    // Without validation, all runs have the same pairs. Count the pairs that each run computed.
    let computed = |out: &str| -> usize {
        let of = |name: &String| {
            let log = place.path(out).join("runs").join(name).join("log.txt");
            let text = std::fs::read_to_string(log).expect("a log");
            let line =
                text.lines().find(|l| l.contains("values of the reference: ")).map(str::to_owned);
            let line = line.unwrap_or_else(|| panic!("no values of the reference: {text}"));
            let (_, rest) = line.split_once("reference: ").expect("a number");
            rest.split(' ').next().expect("a number").parse::<usize>().expect("a number")
        };
        place.runs(out).iter().map(of).sum()
    };
    // Each of the two methods needs other values of the reference. In one process, the first run of
    // each method computes them.
    assert_eq!(computed("three"), computed("one"));
    assert_eq!(computed("one"), 40);
    let threads: BTreeSet<Option<u64>> = place.study("three")["trials"]
        .as_array()
        .expect("trials")
        .iter()
        .map(|trial| trial["threads"].as_u64())
        .collect();
    assert_eq!(threads, BTreeSet::from([Some(1)]));
}

#[test]
fn the_documented_study_file_is_valid() {
    let place = Place::new();
    for page in ["docs/studies.md", "docs/guide.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let text = std::fs::read_to_string(path).expect("a page");
        let mut blocks =
            text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let block = blocks.find(|block| block.contains("[methods."));
        let text = block.expect("a study").replace("\"smollm2-135m-instruct\"", "\"./model\"");
        place.write("study.toml", &text);
        let plan = crate::stdout(&place.succeeds(&["sweep", "study.toml", "--dry-run"]));
        assert!(plan.contains("held-out training pairs") && plan.contains("dpo"), "{plan}");
    }
}

/// Checks that the runs of two studies have the same metrics and evaluations.
pub(crate) fn assert_same_results(place: &Place, one: &str, other: &str) {
    assert_eq!(place.runs(one), place.runs(other));
    for run in place.runs(one) {
        for file in ["metrics.jsonl", "eval/summary.json", "adapter/adapter_model.safetensors"] {
            let read =
                |out: &str| std::fs::read(place.path(out).join("runs").join(&run).join(file)).ok();
            assert!(read(one).is_some(), "{one}/runs/{run}/{file} is missing");
            assert!(read(one) == read(other), "{run}/{file} differs");
        }
    }
}
