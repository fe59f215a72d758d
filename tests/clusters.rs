//! Clusters of dependent pairs, overlap with the training data, and the metrics of an evaluation.

use serde_json::{Value, json};

use crate::resume::{Tree, WORDS};
use crate::{json, json_lines, jsonl, stderr, transcript};

/// Some words that depend on `from`.
fn words(from: i64, n: i64) -> String {
    (0..n).map(|i| format!("w{}", (from * 5 + i * 7) % WORDS)).collect::<Vec<_>>().join(" ")
}

/// 40 pairs with ten prompts. The pairs of a prompt have the same chosen completion, so their
/// margins are similar.
fn repeated() -> Vec<Value> {
    (0..40)
        .map(|i| {
            let prompt = i / 4;
            json!({ "prompt": format!("{} ", words(prompt, 3)),
                "chosen": words(prompt + 3, 1 + prompt % 4), "rejected": words(i + 5, 1),
                "id": i, "topic": words(prompt % 9, 2) })
        })
        .collect()
}

fn tree() -> Tree {
    let tree = Tree::new();
    jsonl(&tree.path(""), "pairs.jsonl", &repeated());
    tree
}

const EVAL: [&str; 11] = [
    "eval",
    "--model",
    "./model",
    "--dataset",
    "pairs.jsonl",
    "--dtype",
    "f32",
    "--device",
    "cpu",
    "--set",
    "eval.completions=0",
];

fn eval(tree: &Tree, extra: &[&str]) -> Value {
    json(&tree.reprpo("", &[&EVAL[..], &["--json"], extra].concat()))[0]["splits"][0].clone()
}

#[test]
fn repeated_prompts_give_wider_intervals_than_independent_pairs() {
    let tree = tree();
    let width = |split: &Value| {
        let margin = &split["base"]["margin"];
        margin["high"].as_f64().expect("an interval") - margin["low"].as_f64().expect("one")
    };
    let prompts = eval(&tree, &[]);
    let single = eval(&tree, &["--cluster", "id"]);
    assert_eq!((&prompts["n"], &prompts["clusters"]), (&json!(40), &json!(10)));
    assert_eq!(prompts["largest_cluster"], 4);
    assert_eq!((&single["clusters"], &single["largest_cluster"]), (&json!(40), &json!(1)));
    assert_eq!(prompts["base"]["margin"]["value"], single["base"]["margin"]["value"]);
    assert!(width(&prompts) > 1.3 * width(&single), "{prompts}\n{single}");
    // The same pairs with distinct prompts are independent, too.
    let distinct: Vec<Value> = repeated()
        .into_iter()
        .enumerate()
        .map(|(i, mut row)| {
            row["prompt"] = json!(format!("{} {} ", words(i as i64, 2), words(i as i64 / 9, 2)));
            row
        })
        .collect();
    jsonl(&tree.path(""), "pairs.jsonl", &distinct);
    assert_eq!(eval(&tree, &[])["clusters"], 40);
}

#[test]
fn a_column_names_the_clusters_of_a_run() {
    let tree = tree();
    tree.run("run", &["--cluster", "topic", "--set", "train.epochs=1"]);
    let read = |run: &str| std::fs::read_to_string(tree.path(run).join("eval/pairs.jsonl"));
    let lines: Vec<Value> = read("run")
        .expect("scores")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines[0]["cluster"], repeated()[0]["topic"]);
    assert_eq!(lines[39]["cluster"], repeated()[39]["topic"]);
    // The evaluation of the run uses the same column.
    let again = json(&tree.reprpo("", &["eval", "run", "--json", "--device", "cpu"]));
    assert_eq!(again[0]["splits"][0]["clusters"], 9);
    let score = ["score", "--model", "./model", "--data", "pairs.jsonl", "--device", "cpu"];
    let scored = json_lines(&tree.reprpo("", &[&score[..], &["--json"]].concat()));
    let cluster = scored[0]["cluster"].as_str().expect("a cluster");
    assert!(cluster.len() == 16 && cluster.bytes().all(|b| b.is_ascii_hexdigit()), "{cluster}");
    assert_eq!(
        (&scored[3]["cluster"], scored[4]["cluster"] == scored[3]["cluster"]),
        (&scored[0]["cluster"], false)
    );
    let found = json(&tree.reprpo("", &["data", "inspect", "pairs.jsonl", "--json"]));
    let split = &found["splits"][0];
    assert_eq!((&split["clusters"], &split["largest_cluster"]), (&json!(10), &json!(4)));
}

#[test]
fn the_example_is_the_cluster_if_there_is_one() {
    let tree = tree();
    let rows: Vec<Value> = repeated()
        .into_iter()
        .map(|mut row| {
            row["example_id"] = json!(row["id"].as_i64().expect("a number") / 2);
            row
        })
        .collect();
    jsonl(&tree.path(""), "pairs.jsonl", &rows);
    assert_eq!(eval(&tree, &[])["clusters"], 20);
    let text = crate::stdout(&tree.reprpo("", &EVAL));
    let warning = "pairs with the same prompt are in different clusters (10 prompts, 20 clusters)";
    assert!(text.contains(warning), "{text}");
    assert_eq!(eval(&tree, &["--cluster", "prompt"])["clusters"], 10);
}

#[test]
fn an_unknown_cluster_column_is_an_error_that_names_the_nearest_one() {
    let tree = tree();
    let csv = "prompt,chosen,rejected,topic\na,w1,w2,sky\n";
    std::fs::write(tree.path("pairs.csv"), csv).expect("the file is written");
    let run = tree.run_args("run", &["--cluster", "topics"]);
    let score = ["score", "--model", "./model", "--data", "pairs.csv", "--cluster", "topics"];
    for args in [run, [&EVAL[..], &["--cluster", "topics"]].concat(), score.to_vec()] {
        let output = tree.reprpo("", &args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("there is no column `topics` for the clusters")
                && text.contains("did you mean `topic`? set it with `--cluster topic`")
                && text.contains("existing columns: prompt, chosen, rejected"),
            "{text}"
        );
    }
    assert!(!tree.path("run").exists());
    let synthetic = tree.reprpo("", &["data", "inspect", "synthetic", "--cluster", "topic"]);
    assert_eq!(synthetic.status.code(), Some(1));
    assert!(stderr(&synthetic).contains("cluster_column"), "{}", stderr(&synthetic));
}

/// Ten pairs to train on in `pairs.jsonl`. Of the twelve pairs in `test.jsonl`, two are the same
/// and one more has the same prompt.
fn overlapping() -> Tree {
    let tree = Tree::new();
    let pair = |i: i64, chosen: i64| {
        json!({ "prompt": format!("{} ", words(i, 3)), "chosen": words(chosen, 2),
            "rejected": words(i + 9, 2) })
    };
    let train: Vec<Value> = (0..10).map(|i| pair(i, i + 3)).collect();
    let new = (20..29).map(|i| pair(i, i + 3));
    let test: Vec<Value> = [pair(4, 7), pair(5, 40), pair(6, 9)].into_iter().chain(new).collect();
    jsonl(&tree.path(""), "pairs.jsonl", &train);
    jsonl(&tree.path(""), "test.jsonl", &test);
    tree
}

#[test]
fn pairs_of_the_training_data_are_not_scored() {
    let tree = overlapping();
    let output = tree.run("run", &["--set", "dataset.test=test.jsonl"]);
    let text = transcript(&output);
    let line = "test: pairs with a prompt of the training data: 3, also with both completions: 2 \
        (not scored)";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("2 not scored because they also occur in the training data"), "{text}");
    let summary = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
    let read =
        |name: &str| std::fs::read_to_string(tree.path("run/eval").join(name)).expect("a file");
    let splits = summary(&read("summary.json"))["splits"].clone();
    assert_eq!((&splits[0]["n"], &splits[0]["overlap"]), (&json!(10), &Value::Null));
    let overlap = json!({ "prompts": 3, "pairs": 2, "excluded": true });
    assert_eq!((&splits[1]["n"], &splits[1]["overlap"]), (&json!(10), &overlap));
    assert!(read("table.md").contains(line));
    let lines = read("pairs.jsonl");
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|line: &Value| line["split"] == "test")
        .collect();
    assert_eq!(lines.len(), 12);
    assert_eq!((&lines[0]["overlap"], lines[0].get("base")), (&json!("pair"), None));
    assert!(lines[1].get("overlap").is_none() && lines[1]["base"].is_object(), "{}", lines[1]);

    // A later evaluation reads the training data of the run, also for other data.
    let eval = ["eval", "run", "--json", "--device", "cpu", "--dtype", "f32"];
    let again = |extra: &[&str]| json(&tree.reprpo("", &[&eval[..], extra].concat()))[0].clone();
    assert_eq!(again(&[])["splits"], splits);
    let kept = again(&["--set", "eval.overlap=keep"]);
    assert_eq!(
        (&kept["splits"][1]["n"], &kept["splits"][1]["overlap"]["pairs"]),
        (&json!(12), &json!(2))
    );
    let other = again(&["--dataset", "test.jsonl", "--set", "dataset.test=none"]);
    let other = &other["splits"][0];
    assert_eq!(
        (&other["split"], &other["n"], &other["overlap"]),
        (&json!("train"), &json!(10), &overlap)
    );
}

#[test]
fn a_split_that_equals_the_training_data_is_refused() {
    let tree = overlapping();
    let args = tree.run_args("run", &["--set", "dataset.test=pairs.jsonl"]);
    let output = tree.reprpo("", &args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("all 10 pairs of the split `test` also occur in the training data")
            && text.contains("use `--set eval.overlap=keep`"),
        "{text}"
    );
    assert!(!tree.path("run").exists(), "the run must not start");
}

#[test]
fn the_long_table_has_the_metrics_of_both_models() {
    let tree = tree();
    let sets = ["--set", "eval.kl=true", "--set", "train.epochs=1"];
    tree.run("run", &sets);
    let table = std::fs::read_to_string(tree.path("run/eval/table.md")).expect("a table");
    assert!(
        table.contains(" KL |") && table.contains("log σ") && table.contains("clusters"),
        "{table}"
    );
    let eval = ["eval", "run", "--device", "cpu", "--dtype", "f32"];
    let short = crate::stdout(&tree.reprpo("", &eval));
    let long = crate::stdout(&tree.reprpo("", &[&eval[..], &["--long"]].concat()));
    assert!(!short.contains("log σ") && long.contains("log σ") && long.contains("KL"), "{long}");
    let split = json(&tree.reprpo("", &[&eval[..], &["--json"]].concat()))[0]["splits"][0].clone();
    let number = |value: &Value| value["value"].as_f64().expect("a number");
    let change = &split["change"];
    assert!(number(&change["kl"]) > 0.0, "{change}");
    let loss = number(&split["trained"]["chosen_loss"]) - number(&split["base"]["chosen_loss"]);
    assert!((number(&change["loss_change"]) - loss).abs() < 1e-9, "{change}");
    assert!((-number(&change["perplexity_ratio"]).ln() - loss).abs() < 1e-9, "{change}");
    let scores = std::fs::read_to_string(tree.path("run/eval/pairs.jsonl")).expect("scores");
    let kl: Vec<f64> = scores
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["kl"].as_f64().expect("KL"))
        .collect();
    let mean = kl.iter().sum::<f64>() / kl.len() as f64;
    assert!((number(&change["kl"]) - mean).abs() < 1e-9, "{mean} {change}");
}
