//! Runs that validate on held-out pairs during training.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::resume::{Tree, WORDS, kill, refused, started};
use crate::{jsonl, metrics, stderr, transcript};

/// Creates a tree whose `pairs.jsonl` contains `n` pairs with distinct prompts.
fn tree(n: i64) -> Tree {
    let tree = Tree::new();
    jsonl(&tree.path(""), "pairs.jsonl", &rows(n));
    tree
}

fn rows(n: i64) -> Vec<Value> {
    let words = |from: i64, n: i64| {
        (0..n).map(|i| format!("w{}", (from * 31 + i * 7) % WORDS)).collect::<Vec<_>>().join(" ")
    };
    let prompt = |i: i64| format!("w{} w{} {} ", i % WORDS, i / WORDS, words(i, 2));
    (0..n)
        .map(|i| {
            json!({ "prompt": prompt(i), "chosen": words(i + 3, 2 + i % 3),
        "rejected": words(2 * i + 5, 3) })
        })
        .collect()
}

fn sets<'a>(fields: &[&'a str]) -> Vec<&'a str> {
    fields.iter().flat_map(|field| ["--set", *field]).collect()
}

/// Reads `validation.json` of the run.
fn outcome(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("validation.json")).expect("an outcome"))
        .expect("JSON")
}

fn is_validation(line: &Value) -> bool {
    line.get("eval_loss").is_some()
}

fn step(line: &Value) -> u64 {
    line["step"].as_u64().expect("a step")
}

/// Returns the names and contents of the adapter and transform files.
fn trained(run: &Path) -> Vec<(String, Vec<u8>)> {
    let tensors = ["adapter/adapter_model.safetensors", "transform/transform.safetensors"];
    tensors
        .iter()
        .filter_map(|file| Some(((*file).to_owned(), std::fs::read(run.join(file)).ok()?)))
        .collect()
}

#[test]
fn a_run_validates_at_every_interval_and_after_the_last_step() {
    let tree = tree(40);
    let output = tree.run("run", &sets(&["train.validate_every=4"]));
    let text = transcript(&output);
    assert!(
        text.contains("36 pairs to train on, 0 dropped, 0 truncated")
            && text.contains("4 more pairs of `train` are held out for validation"),
        "{text}"
    );
    let run = tree.path("run");
    let lines = metrics(&run);
    let steps = |validation: bool| {
        lines.iter().filter(|line| is_validation(line) == validation).map(step).collect::<Vec<_>>()
    };
    assert_eq!(steps(false), (1..=18).collect::<Vec<_>>());
    assert_eq!(steps(true), [4, 8, 12, 16, 18]);
    // A validation line comes after the line of its training step.
    assert!(
        lines.windows(2).all(|pair| !is_validation(&pair[1]) || step(&pair[0]) == step(&pair[1]))
    );
    let last = lines.last().expect("a line");
    for name in [
        "eval_loss",
        "eval_accuracy",
        "eval_margin",
        "eval_log_sigmoid",
        "eval_rewards/accuracies",
        "eval_rewards/margins",
        "eval_logps/chosen",
        "eval_entropy",
    ] {
        assert!(last[name].is_f64(), "{name}: {last}");
    }
    assert!(
        ["loss", "lr", "grad_norm", "rewards/margins"].iter().all(|name| last.get(name).is_none()),
        "{last}"
    );
    // DPO's rewards are β = 0.1 times the change of the log-probabilities.
    let number = |name: &str| last[name].as_f64().expect("a number");
    assert!((number("eval_rewards/margins") - 0.1 * number("eval_margin")).abs() < 1e-4, "{last}");
    let log = std::fs::read_to_string(run.join("log.txt")).expect("a log");
    assert_eq!(log.matches("validation after step ").count(), 5, "{log}");
    let outcome = outcome(&run);
    assert_eq!(
        (&outcome["pairs"], &outcome["adapter_step"], &outcome["stopped_early"]),
        (&json!(4), &json!(18), &json!(false)),
        "{outcome}"
    );
    assert_eq!(outcome["rows"].as_array().map(Vec::len), Some(4));
    assert!(
        text.matches("the loss on 4 held-out pairs was best after step").count() == 2,
        "the line must appear after training and among the last lines: {text}"
    );
}

/// The method, adapter and settings of each run. A model this small has none of the default layers,
/// so the layers are set.
const METHODS: [&[&str]; 8] = [
    &["--intervention", "dpo", "--adapter", "lora", "--set", "adapter.lora_dropout=0.4"],
    &[
        "--intervention",
        "prefvec",
        "--adapter",
        "hra",
        "--transform",
        "ortho",
        "--set",
        "tap.layers=1,2",
    ],
    &["--intervention", "projgrad", "--adapter", "lora", "--set", "tap.layers=1"],
    &["--intervention", "rr", "--adapter", "lora", "--set", "tap.layers=1"],
    &["--intervention", "projbp", "--adapter", "lora", "--set", "tap.layers=1"],
    &["--intervention", "mse", "--adapter", "ia3", "--set", "tap.layers=1"],
    &[
        "--intervention",
        "rank",
        "--adapter",
        "oft",
        "--set",
        "adapter.oft_block_size=8",
        "--transform",
        "svd",
        "--set",
        "tap.layers=2",
    ],
    &["--intervention", "sft", "--adapter", "vera", "--set", "adapter.r=4"],
];

#[test]
fn validations_do_not_change_what_is_trained() {
    let tree = tree(40);
    for (i, method) in METHODS.into_iter().enumerate() {
        let base = [method, &["--no-eval", "--set", "train.epochs=2"]].concat();
        let name = format!("with-{i}");
        tree.run(&name, &[&base[..], &sets(&["train.validate_every=1"])].concat());
        let with = tree.path(&name);
        let held_out: BTreeSet<u64> = outcome(&with)["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        let rest: Vec<Value> = rows(40)
            .into_iter()
            .enumerate()
            .filter(|(row, _)| !held_out.contains(&(*row as u64)))
            .map(|(_, row)| row)
            .collect();
        assert_eq!(rest.len(), 36);
        jsonl(&tree.path(""), "rest.jsonl", &rest);
        let name = format!("without-{i}");
        tree.run(&name, &[&base[..], &sets(&["dataset.train=rest.jsonl"])].concat());
        let without = tree.path(&name);
        assert!(trained(&with) == trained(&without), "{method:?}");
        let steps: Vec<Value> =
            metrics(&with).into_iter().filter(|line| !is_validation(line)).collect();
        assert_eq!(steps, metrics(&without), "{method:?}");
    }
}

/// Settings under which the loss on the held-out pairs both rises and falls.
const UNSTEADY: [&str; 3] = ["train.lr=0.15", "train.schedule=constant", "train.epochs=3"];

#[test]
fn keep_best_saves_the_state_with_the_lowest_validation_loss() {
    let tree = tree(40);
    for (i, method) in METHODS.into_iter().take(2).enumerate() {
        let run_at = |rate: &str, name: &str, fields: &[&str]| {
            let rate = format!("train.lr={rate}");
            let output = tree.run(
                name,
                &[
                    method,
                    &["--no-eval"],
                    &sets(&UNSTEADY),
                    &sets(&[&rate, "train.validate_every=3"]),
                    &sets(fields),
                ]
                .concat(),
            );
            (tree.path(name), transcript(&output))
        };
        let steps = |outcome: &Value| {
            ["best_step", "last_step"].map(|name| outcome[name].as_u64().expect("a step"))
        };
        // Rounding errors, which depend on the processor, decide where such a run ends. Use the
        // first learning rate with which the last step is not the best.
        let found = ["0.15", "3", "0.4", "1", "0.05"].into_iter().find_map(|rate| {
            let (kept, text) = run_at(rate, &format!("kept-{i}-{rate}"), &["train.keep_best=true"]);
            let [at, last] = steps(&outcome(&kept));
            (at < last).then_some((rate, kept, text))
        });
        let (rate, kept, text) = found.expect("a run whose last step is not the best");
        let run = |name: &str, fields: &[&str]| run_at(rate, name, fields);
        let best = outcome(&kept);
        let [at, last] = steps(&best);
        assert!(best["adapter_step"] == best["best_step"], "{best}");
        assert!(
            text.contains(&format!("the adapter is from step {at} (`train.keep_best`)")),
            "{text}"
        );
        assert!(!kept.join("checkpoints").exists());
        // The best step has the lowest loss; if several are equal, it is the first of them.
        let losses: Vec<(u64, f64)> = metrics(&kept)
            .iter()
            .filter(|line| is_validation(line))
            .map(|line| (step(line), line["eval_loss"].as_f64().expect("a loss")))
            .collect();
        let lowest = losses.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
        assert_eq!(
            losses.iter().find(|(_, loss)| *loss == lowest).map(|(step, _)| *step),
            Some(at)
        );
        // A run that ends at that step has the same adapter. An epoch has 18 steps.
        let epochs = format!("train.epochs={}", at as f64 / 18.0);
        let (short, _) = run(&format!("short-{i}"), &[&epochs]);
        assert_eq!(outcome(&short)["last_step"], best["best_step"]);
        assert!(trained(&kept) == trained(&short), "{method:?}");
        // Without `keep_best`, the run saves its last state.
        let (ends, text) = run(&format!("ends-{i}"), &[]);
        assert!(trained(&ends) != trained(&kept) && outcome(&ends)["adapter_step"] == json!(last));
        assert!(text.contains(&format!("the adapter is from the last step, {last}: ")), "{text}");
    }
}

#[test]
fn a_run_whose_patience_runs_out_stops_and_counts_as_finished() {
    let tree = tree(40);
    let fields = [
        &UNSTEADY[..],
        &[
            "train.schedule=linear",
            "train.validate_every=2",
            "train.epochs=20",
            "train.checkpoint_every=5",
        ],
    ]
    .concat();
    let patient = [&fields[..], &["train.patience=3", "train.keep_best=true"]].concat();
    let output = tree.run("run", &sets(&patient));
    let (run, text) = (tree.path("run"), transcript(&output));
    let outcome = outcome(&run);
    let number = |name: &str| outcome[name].as_u64().expect("a number");
    let (last, best) = (number("last_step"), number("best_step"));
    assert!(outcome["stopped_early"] == json!(true) && last == best + 6 && last < 360, "{outcome}");
    let expected = format!(
        "stopped early after step {last} of 360: the loss did not improve in 3 validations in a \
            row (`train.patience`)"
    );
    assert!(
        text.contains(&expected)
            && text
                .trim_end()
                .lines()
                .any(|line| line.contains(&format!("the adapter is from step {best}"))),
        "{text}"
    );
    assert!(run.join("eval/summary.json").is_file() && !run.join("checkpoints").exists());
    // The learning rate still falls over all 360 steps, so the steps equal those of the whole run.
    tree.run("whole", &[&sets(&fields)[..], &["--no-eval"]].concat());
    let (stopped, whole) = (metrics(&run), metrics(&tree.path("whole")));
    assert_eq!(stopped, whole[..stopped.len()]);
    // The run is finished, so repeating the command changes nothing.
    let again = tree
        .reprpo("", &[&tree.run_args("run", &sets(&patient))[..], &["--resume", "auto"]].concat());
    assert!(
        again.status.success() && transcript(&again).contains("already finished: `run`"),
        "{}",
        transcript(&again)
    );
}

#[test]
fn a_resumed_run_validates_like_an_uninterrupted_one() {
    let tree = tree(40);
    let fields = [
        "train.validate_every=3",
        "train.checkpoint_every=4",
        "train.keep_best=true",
        "train.patience=40",
    ];
    let args = [&sets(&UNSTEADY)[..], &sets(&fields), &sets(&["train.epochs=15"]), &["--no-eval"]]
        .concat();
    tree.run("whole", &args);
    let whole = tree.path("whole");
    for (i, lines) in [6, 60, 150].into_iter().enumerate() {
        let name = format!("killed-{i}");
        let long_enough = |run: &Path| {
            std::fs::read_to_string(run.join("metrics.jsonl"))
                .is_ok_and(|text| text.lines().count() >= lines)
        };
        tree.killed_when(&name, &args, |run| {
            long_enough(run) && run.join("checkpoints/latest").is_file()
        });
        let output =
            tree.reprpo("", &[&tree.run_args(&name, &args)[..], &["--resume", "auto"]].concat());
        assert!(
            output.status.success()
                && transcript(&output).contains("resuming from the last checkpoint"),
            "{}",
            transcript(&output)
        );
        let run = tree.path(&name);
        assert_eq!(metrics(&run), metrics(&whole), "{name}");
        assert!(trained(&run) == trained(&whole), "{name}");
        assert_eq!(outcome(&run), outcome(&whole), "{name}");
        assert!(!run.join("checkpoints").exists());
    }
}

#[cfg(unix)]
#[test]
fn a_run_stopped_during_a_validation_resumes_with_that_validation() {
    let tree = tree(160);
    // Validations take nearly all of the time, so the signal most likely arrives during one.
    let fields = [
        "train.validate_every=1",
        "train.validation_pairs=150",
        "train.keep_best=true",
        "train.epochs=6",
    ];
    let args = [&sets(&fields)[..], &["--no-eval"]].concat();
    tree.run("whole", &args);
    for (i, lines) in [1, 4, 11].into_iter().enumerate() {
        let name = format!("stopped-{i}");
        let metrics_of = tree.path(&name).join("metrics.jsonl");
        let long_enough =
            || std::fs::read_to_string(&metrics_of).is_ok_and(|text| text.lines().count() >= lines);
        let mut child = started(&tree.path(""), &tree.run_args(&name, &args), long_enough);
        assert!(
            std::process::Command::new("kill")
                .args(["-TERM", &child.id().to_string()])
                .status()
                .expect("kill")
                .success()
        );
        assert_eq!(child.wait().expect("the command ends").code(), Some(130));
        let output = tree.reprpo("", &["run", "--resume", &name]);
        assert!(output.status.success(), "{}", transcript(&output));
        assert_eq!(metrics(&tree.path(&name)), metrics(&tree.path("whole")), "{name}");
        assert!(trained(&tree.path(&name)) == trained(&tree.path("whole")), "{name}");
    }
}

#[test]
fn a_run_cannot_be_resumed_with_other_held_out_pairs() {
    let tree = tree(40);
    let args = [
        &sets(&["train.validate_every=5", "train.checkpoint_every=1", "train.epochs=100"])[..],
        &["--no-eval"],
    ]
    .concat();
    let child = started(&tree.path(""), &tree.run_args("run", &args), || {
        tree.path("run/checkpoints/latest").is_file()
    });
    kill(child);
    // The choice of held-out pairs does not depend on their completions.
    let mut changed = rows(40);
    tree.run(
        "short",
        &[&sets(&["train.validate_every=5", "train.epochs=0.1"])[..], &["--no-eval"]].concat(),
    );
    let held_out = outcome(&tree.path("short"))["rows"][0].as_u64().expect("a row") as usize;
    changed[held_out]["chosen"] = json!("w1 w2 w3");
    jsonl(&tree.path(""), "pairs.jsonl", &changed);
    let text = refused(&tree.reprpo("", &["run", "--resume", "run"]));
    assert!(
        text.contains("the held-out data has changed since its checkpoint was written"),
        "{text}"
    );
    jsonl(&tree.path(""), "pairs.jsonl", &rows(40));
    let config = std::fs::read_to_string(tree.path("run/config.toml")).expect("a configuration");
    std::fs::write(
        tree.path("run/config.toml"),
        config.replace("validate_every = 5", "validate_every = 4"),
    )
    .expect("the file is written");
    let text = refused(&tree.reprpo("", &["run", "--resume", "run"]));
    assert!(text.contains("`train.validate_every`: 5 then, 4 now"), "{text}");
    let output = tree.reprpo("", &["run", "--resume", "run", "--inexact-resume"]);
    assert!(
        output.status.success() && transcript(&output).contains("warning: resumed after step"),
        "{}",
        transcript(&output)
    );
}

#[test]
fn a_number_of_pairs_that_cannot_be_held_out_is_rejected() {
    let tree = tree(10);
    let run = |fields: &[&str]| refused(&tree.reprpo("", &tree.run_args("run", &sets(fields))));
    let text = run(&["train.keep_best=true"]);
    assert!(
        text.contains(
            "`train.keep_best` is true (--set), but must be false unless \
        `train.validate_every` is set"
        ),
        "{text}"
    );
    let text = run(&["train.validate_every=1", "train.validation_pairs=10"]);
    assert!(
        text.contains(
            "cannot hold out 10 of the 10 usable pairs of `train`: no pairs would be left to train \
                on"
        ),
        "{text}"
    );
    let twins: Vec<Value> = rows(5)
        .into_iter()
        .flat_map(|row| {
            [row.clone(), json!({ "prompt": row["prompt"], "chosen": "w1", "rejected": "w2" })]
        })
        .collect();
    jsonl(&tree.path(""), "pairs.jsonl", &twins);
    let text = run(&["train.validate_every=1", "train.validation_pairs=3"]);
    assert!(
        text.contains("cannot hold out exactly 3 pairs of `train`")
            && text.contains("hint: set `train.validation_pairs=2`"),
        "{text}"
    );
    assert!(!tree.path("run").exists());
}

#[test]
fn a_sweep_validates_only_the_runs_that_train() {
    let tree = tree(40);
    let args = [
        "sweep",
        "--model",
        "./model",
        "--dataset",
        "pairs.jsonl",
        "--over",
        "intervention=none,mse",
        "--out",
        "grid",
        "--no-eval",
        "--device",
        "cpu",
    ];
    let output = tree.reprpo(
        "",
        &[
            &args[..],
            &sets(&[
                "train.validate_every=2",
                "train.keep_best=true",
                "train.max_pairs=20",
                "tap.layers=1",
            ]),
        ]
        .concat(),
    );
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(
        stderr(&output)
            .contains("nothing is trained or validated, because the method has no training steps"),
        "{}",
        stderr(&output)
    );
    assert!(!tree.path("grid/none/validation.json").exists());
    let outcome = outcome(&tree.path("grid/mse"));
    assert_eq!(outcome["pairs"], json!(2));
    // The validation uses log-probabilities even if the method does not.
    let lines = metrics(&tree.path("grid/mse"));
    assert_eq!(
        lines.iter().filter(|line| line.get("loss").is_some()).count(),
        3,
        "20 pairs with 8 pairs per step"
    );
    assert!(lines.last().is_some_and(|line| line["eval_accuracy"].is_f64()
        && line["eval_margin"].is_f64()
        && line.get("eval_logps/chosen").is_none()));
}

#[test]
fn the_best_step_can_be_chosen_by_the_mean_log_sigmoid() {
    let tree = tree(40);
    tree.run("run", &sets(&["train.validate_every=4", "train.best_metric=log_sigmoid"]));
    let run = tree.path("run");
    let values: Vec<f64> =
        metrics(&run).iter().filter_map(|line| line["eval_log_sigmoid"].as_f64()).collect();
    let best = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let outcome = outcome(&run);
    assert_eq!(outcome["metric"], "log_sigmoid");
    assert!((outcome["best_value"].as_f64().expect("a value") - best).abs() < 1e-12, "{outcome}");
    assert!(values.len() == 5 && values.iter().all(|value| *value < 0.0), "{values:?}");
}
