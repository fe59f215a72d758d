//! Evaluations on several shifts: `--shift`, `--suite` and suite files.

use std::path::Path;
use std::process::Output;

use local_hub::{LocalHub, Traits};
use serde_json::{Value, json};

use crate::resume::Tree;
use crate::{golden, json, jsonl, reprpo, reprpo_command, stderr, transcript};

const PREFIX: &str = "w1 w2 ";

/// Writes `n` pairs whose words depend on `shift`.
fn pairs(folder: &Path, name: &str, shift: i64, n: i64) {
    let word = |i: i64| format!("w{}", (i * 5 + shift * 11) % 62);
    let row = |i: i64| {
        json!({ "prompt": format!("{PREFIX}{} ", word(i)), "chosen": word(2 * i + 1),
            "rejected": word(3 * i + 4) })
    };
    jsonl(folder, name, &(0..n).map(row).collect::<Vec<_>>());
}

/// A tree with the tiny model, the training pairs and two other files.
fn tree() -> Tree {
    let tree = Tree::new();
    std::fs::create_dir(tree.path("more")).expect("a folder");
    pairs(&tree.path(""), "law.jsonl", 1, 7);
    pairs(&tree.path("more"), "verse.jsonl", 2, 9);
    tree
}

/// The name, the number of pairs and the data of each row of the table.
fn rows(summary: &Value) -> Vec<(String, u64)> {
    let splits = summary["splits"].as_array().expect("rows");
    splits
        .iter()
        .map(|row| {
            (row["split"].as_str().expect("a name").to_owned(), row["n"].as_u64().expect("n"))
        })
        .collect()
}

fn expected(rows: &[(&str, u64)]) -> Vec<(String, u64)> {
    rows.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

fn summary(run: &Path) -> Value {
    let text = std::fs::read(run.join("eval/summary.json")).expect("a summary");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn each_shift_is_a_row_of_the_table() {
    let tree = tree();
    let shifts = ["--shift", "law.jsonl", "--shift", "poem=more/verse.jsonl#train[2:6]"];
    tree.run("run", &shifts);
    let run = tree.path("run");
    assert_eq!(rows(&summary(&run)), expected(&[("train", 8), ("law", 7), ("poem", 4)]));
    let text = std::fs::read_to_string(run.join("eval/pairs.jsonl")).expect("pairs");
    let poem: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|line| line["split"] == "poem")
        .collect();
    assert_eq!(poem.iter().map(|line| &line["index"]).collect::<Vec<_>>(), [2, 3, 4, 5]);
    // The run can be evaluated from another folder, because its paths are relative to it.
    let output = tree.reprpo("more", &["eval", "../run", "--json"]);
    assert_eq!(rows(&json(&output)[0]), rows(&summary(&run)));
    // The scores are those of the file on its own.
    let output = tree.reprpo("", &["eval", "run", "--dataset", "law.jsonl", "--json"]);
    let alone = json(&output);
    let of = |summary: &Value, name: &str| {
        let splits = summary["splits"].as_array().expect("rows").clone();
        splits.into_iter().find(|row| row["split"] == name).expect("a row")
    };
    assert_eq!(
        of(&summary(&run), "law")["change"]["accuracy"]["value"],
        of(&alone[0], "train")["change"]["accuracy"]["value"]
    );
}

#[test]
fn shifts_with_the_same_name_form_one_row() {
    let tree = tree();
    tree.run("run", &["--shift", "both=law.jsonl", "--shift", "both=more/verse.jsonl"]);
    let run = tree.path("run");
    assert_eq!(rows(&summary(&run)), expected(&[("train", 8), ("both", 16)]));
    let text = std::fs::read_to_string(run.join("eval/pairs.jsonl")).expect("pairs");
    let indices: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|line| line["split"] == "both")
        .map(|line| line["index"].as_u64().expect("an index"))
        .collect();
    assert_eq!(indices, (0..16).collect::<Vec<_>>());
}

fn error(tree: &Tree, args: &[&str]) -> String {
    let output = tree.reprpo("", &tree.run_args("failed", args));
    assert_eq!(output.status.code(), Some(1), "{}", transcript(&output));
    assert!(!tree.path("failed").exists(), "the run must fail before it writes");
    stderr(&output)
}

#[test]
fn mistakes_in_shifts_are_reported_before_training() {
    let tree = tree();
    for (args, message) in [
        (&["--shift", "missing.jsonl"][..], "cannot open the shift `missing` (`missing.jsonl`)"),
        (&["--shift", "law.jsonl#tset"], "unknown split `tset`"),
        (&["--shift", "train=law.jsonl"], "the shift `train` has the same name as a split"),
        (&["--shift", "law.jsonl?x=1"], "unknown field `x`"),
        (&["--shift", "law.jsonl", "--shift", "more/../law.jsonl"], "two shifts are called `law`"),
        (&["--shift", "#test"], "the data set is empty"),
        (&["--suite", "genies-probign"], "did you mean `genies-probing`?"),
        (&["--suite", "missing.toml"], "cannot read the suite `missing.toml`"),
    ] {
        let text = error(&tree, args);
        assert!(text.contains(message), "{args:?}: {text}");
    }
    let text = error(&tree, &["--suite", "genies-probing"]);
    assert!(
        text.contains("the suite `genies-probing` has no shifts for the training data")
            && text.contains("it has shifts for: genies:us_history_textbook"),
        "{text}"
    );
}

#[test]
fn a_suite_file_selects_the_shifts_of_the_training_data() {
    let tree = tree();
    let suite = r#"
[suite]
name = "mine"
summary = "two shifts"
[[train]]
dataset = "other.jsonl"
shifts = ["missing.jsonl"]
[[train]]
dataset = "pairs.jsonl"
shifts = ["law.jsonl", "rnd=more/verse.jsonl"]
"#;
    std::fs::write(tree.path("mine.toml"), suite).expect("a suite");
    tree.run("run", &["--suite", "mine.toml", "--set", "dataset.rnd=law.jsonl"]);
    let table = summary(&tree.path("run"));
    assert_eq!(rows(&table), expected(&[("train", 8), ("law", 7), ("rnd", 9)]));
    assert!(table["splits"][2]["data"].as_str().expect("text").contains("verse"), "{table}");
    let output = tree.reprpo("", &["eval", "run", "--suite", "mine.toml", "--json"]);
    assert_eq!(rows(&json(&output)[0]), rows(&table));
    // The paths in the suite file are relative to its folder.
    let output = tree.reprpo("more", &["eval", "../run", "--json"]);
    assert_eq!(rows(&json(&output)[0]), rows(&table));
}

#[test]
fn the_list_of_suites_has_every_shift() {
    let all = json(&reprpo(&["list", "suites", "--json"]));
    let pairs = |name: &str| {
        let suites = all.as_array().expect("a list");
        let suite = suites.iter().find(|suite| suite["name"] == name).expect(name);
        suite["pairs"].as_array().expect("pairs").clone()
    };
    let shifts = |name: &str| {
        pairs(name).into_iter().filter(|pair| pair["shift"] != "rnd").collect::<Vec<Value>>()
    };
    assert_eq!((shifts("genies-probing").len(), shifts("genies-all").len()), (15, 56));
    let innerpo = pairs("innerpo");
    let trained: std::collections::BTreeSet<&str> =
        innerpo.iter().map(|pair| pair["train"].as_str().expect("text")).collect();
    let columns: std::collections::BTreeSet<&str> =
        innerpo.iter().map(|pair| pair["shift"].as_str().expect("text")).collect();
    assert_eq!((trained.len(), columns.len()), (22, 6));
    for text in [&["list"][..], &["list", "suites", "--long"]] {
        assert!(crate::stdout(&reprpo(text)).contains("innerpo"), "{text:?}");
    }
}

/// The benchmark's own lists contain the shifts of the suites.
#[test]
fn the_suites_of_genies_equal_the_lists_of_the_benchmark() {
    let Some(shared) = golden::shared("genies_shifts") else { return };
    let all = json(&reprpo(&["list", "suites", "--json"]));
    for (name, file) in [("genies-probing", "GENIES.json"), ("genies-all", "all.json")] {
        let text = std::fs::read(shared.join("genies_shifts").join(file)).expect("a list");
        let list: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
        let mut listed: Vec<(String, String)> = list
            .iter()
            .map(|shift| {
                let of = |field: &str| format!("genies:{}", shift[field].as_str().expect("text"));
                (of("source"), of("target"))
            })
            .collect();
        listed.sort();
        listed.dedup();
        let suite = all.as_array().expect("a list").iter().find(|suite| suite["name"] == name);
        let mut found: Vec<(String, String)> = suite.expect(name)["pairs"]
            .as_array()
            .expect("pairs")
            .iter()
            .filter(|pair| pair["shift"] != "rnd")
            .map(|pair| {
                let text = |value: &Value| value.as_str().expect("text").to_owned();
                (text(&pair["train"]), text(&pair["sources"][0]))
            })
            .collect();
        found.sort();
        assert_eq!(found, listed, "{name}");
    }
}

#[test]
fn rows_with_several_answers_have_an_accuracy_over_rows() {
    let tree = tree();
    let row = |i: i64| {
        let answers: Vec<String> = (0..2 + i % 3).map(|k| format!("w{}", 7 * i + k + 3)).collect();
        json!({ "prompt": format!("{PREFIX}w{i} "), "chosen": format!("w{}", 5 * i + 1),
            "rejected": answers })
    };
    jsonl(&tree.path(""), "best.jsonl", &(0..6).map(row).collect::<Vec<_>>());
    let output = tree.run("run", &["--shift", "best.jsonl", "--set", "eval.max_pairs=none"]);
    let table = summary(&tree.path("run"));
    let best = &table["splits"][1];
    assert_eq!((&best["split"], &best["n"]), (&json!("best"), &json!(18)));
    assert_eq!(best["best_of"]["rows"], json!(6), "{best}");
    assert!(table["splits"][0].get("best_of").is_none(), "{table}");
    // The accuracy over rows follows from the scores of the pairs.
    let text = std::fs::read_to_string(tree.path("run").join("eval/pairs.jsonl")).expect("pairs");
    let pairs: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|line| line["split"] == "best")
        .collect();
    for model in ["base", "trained"] {
        let mean = |pair: &Value, side: &str| {
            pair[model][side]["logp_sum"].as_f64().expect("a number")
                / pair[model][side]["tokens"].as_f64().expect("a number")
        };
        let is_right = |row: u64| {
            let mut of_row = pairs.iter().filter(|pair| pair["index"] == row);
            of_row.all(|pair| mean(pair, "chosen") > mean(pair, "rejected"))
        };
        let expected = (0..6).filter(|row| is_right(*row)).count() as f64 / 6.0;
        let found = best["best_of"][model]["value"].as_f64().expect("a number");
        assert!((found - expected).abs() < 1e-12, "{model}: {found} {expected}");
    }
    assert!(
        crate::stdout(&output).contains("best: chosen above every rejected answer in ")
            && crate::stdout(&output).contains(" of 6 rows with 2 to 4 pairs"),
        "{}",
        transcript(&output)
    );
    // A row of which only some pairs are scored does not count.
    let args = ["eval", "run", "--shift", "best.jsonl", "--set", "eval.max_pairs=6", "--json"];
    let cut = json(&tree.reprpo("", &args));
    assert_eq!(cut[0]["splits"][1]["best_of"]["rows"], json!(2), "{cut}");
}

/// A hub with the repositories of the suite `innerpo`, each with a few pairs.
fn hub() -> LocalHub {
    let hub = LocalHub::start();
    let folder = tempfile::tempdir().expect("a folder");
    let rows = |shift: i64| {
        pairs(folder.path(), "rows.jsonl", shift, 5);
        std::fs::read(folder.path().join("rows.jsonl")).expect("pairs")
    };
    let push = |repo: &str, configs: &[&str]| {
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            for (j, split) in ["train", "test"].iter().enumerate() {
                files.push((format!("{config}/{split}.jsonl"), rows((2 * i + j) as i64)));
            }
        }
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let repo = format!("datasets/{repo}");
        hub.push(&repo, "main", &files);
        let named = |name: &&str| json!({"config_name": name, "data_dir": name});
        let configs: Vec<Value> = configs.iter().map(named).collect();
        describe(&hub, &repo, json!({ "configs": configs }));
    };
    push("wassname/genies_preferences", &["math", "change_my_view", "math_fiction"]);
    push("wassname/ethics_expression_preferences", &["justice", "utilitarianism"]);
    let medical = "datasets/wassname/medical-dpo-V2";
    hub.push(medical, "main", &[("data.jsonl", &rows(9))]);
    let files = json!([{"split": "data", "path": "data.jsonl"}]);
    let configs = json!([{"config_name": "default", "data_files": files}]);
    describe(&hub, medical, json!({ "configs": configs }));
    hub
}

fn describe(hub: &LocalHub, repo: &str, card: Value) {
    hub.describe(repo, Traits { card: card.to_string(), ..Traits::default() });
}

fn on_hub(hub: &LocalHub, tree: &Tree, args: &[&str]) -> Output {
    let mut command = reprpo_command(args);
    for variable in ["HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"] {
        command.env_remove(variable);
    }
    command
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_HOME", tree.path("hf"))
        .env("REPRPO_CACHE", tree.path("cache"))
        .current_dir(tree.path(""))
        .output()
        .expect("the command runs")
}

#[test]
fn the_suite_innerpo_has_a_row_for_each_column() {
    let (hub, tree) = (hub(), Tree::new());
    // The flags of a tree choose its own pairs, which `--set` overrides.
    let data = ["dataset=wassname/genies_preferences", "dataset.config_name=math"];
    let data: Vec<&str> = data.iter().flat_map(|set| ["--set", *set]).collect();
    let args = tree.run_args("run", &[&data[..], &["--suite", "innerpo"]].concat());
    let output = on_hub(&hub, &tree, &args);
    assert!(output.status.success(), "{}", transcript(&output));
    assert_eq!(
        rows(&summary(&tree.path("run"))),
        expected(&[
            ("train", 5),
            ("test", 5),
            ("in_domain", 5),
            ("cross_domain", 10),
            ("moral_transfer", 10),
            ("orthogonal", 5)
        ])
    );
    // Data that the suite does not list has the columns of `others`. The run's data is pinned to a
    // commit, and the suite still knows it.
    let output = on_hub(&hub, &tree, &["eval", "run", "--json"]);
    assert_eq!(rows(&json(&output)[0]), rows(&summary(&tree.path("run"))));
    let model = ["eval", "--model", "./model", "--dtype", "f32", "--device", "cpu", "--json"];
    let data = ["--dataset", "pairs.jsonl", "--suite", "innerpo", "--set", "eval.completions=0"];
    let output = on_hub(&hub, &tree, &[&model[..], &data].concat());
    assert_eq!(
        rows(&json(&output)[0]),
        expected(&[("train", 8), ("moral_transfer", 5), ("orthogonal", 5)])
    );
}

#[test]
fn missing_data_of_a_suite_is_an_error_that_says_how_to_get_it() {
    let Some(shared) = golden::shared("genies") else { return };
    let tree = Tree::new();
    let folder = shared.display().to_string();
    let args = |extra: &[&'static str]| {
        let mut args = vec!["eval", "--model", "model", "--dtype", "f32", "--device", "cpu"];
        args.extend(extra);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut with = args(&["--dataset", "genies:math", "--suite", "genies-probing", "--json"]);
    with.extend(["--data-dir".to_owned(), folder]);
    with.extend(["--set", "eval.max_pairs=1", "--set", "eval.completions=0"].map(str::to_owned));
    let output = tree.reprpo("", &with.iter().map(String::as_str).collect::<Vec<_>>());
    let names: Vec<String> = rows(&json(&output)[0]).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["train", "test", "change_my_view", "rnd"]);

    let without = args(&["--dataset", "pairs.jsonl", "--shift", "genies:math"]);
    let output = tree.reprpo("", &without.iter().map(String::as_str).collect::<Vec<_>>());
    let text = stderr(&output);
    assert!(
        text.contains("cannot open the shift `math`") && text.contains("--data-dir DIR"),
        "{text}"
    );
}
