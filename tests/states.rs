//! The activations that `reprpo states` writes.

use std::collections::HashMap;
use std::path::Path;

use reprpo_core::weights::read_safetensors;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::{golden, isolated_command, stderr, stdout};

struct Written {
    index: Value,
    tensors: HashMap<String, Tensor>,
}

impl Written {
    fn read(folder: &Path) -> Self {
        let index: Value = serde_json::from_str(
            &std::fs::read_to_string(folder.join("index.json")).expect("an index"),
        )
        .expect("JSON");
        let files: Vec<_> = index["pairs"]
            .as_array()
            .expect("pairs")
            .iter()
            .map(|p| p["file"].as_str().expect("a file").to_owned())
            .collect();
        assert!(files.iter().all(|file| *file == files[0]), "all states must be in one file");
        Self {
            index,
            tensors: read_safetensors(&folder.join(&files[0]))
                .expect("states")
                .into_iter()
                .collect(),
        }
    }
}

#[test]
fn pooled_states_are_the_means_over_the_completions_tokens() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (model, pairs) = (golden.join("models/llama"), golden.join("trl/pairs.jsonl"));
    let states = |out: &str, extra: &[&str]| {
        let mut command = isolated_command(
            dir.path(),
            &["states", "--device", "cpu", "--dtype", "f32", "--max-pairs", "5", "--out", out],
        );
        command
            .arg("--model")
            .arg(&model)
            .arg("--dataset")
            .arg(&pairs)
            .args(extra)
            .output()
            .expect("the command runs")
    };
    assert_eq!(stdout(&states("pooled", &["--layers", "1,2"])).trim(), "pooled");
    stdout(&states("tokens", &["--layers", "1,2", "--per-token"]));
    let (pooled, tokens) =
        (Written::read(&dir.path().join("pooled")), Written::read(&dir.path().join("tokens")));
    let listed = |written: &Written| written.index["pairs"].as_array().expect("pairs").len();
    assert_eq!(
        (listed(&pooled), listed(&tokens), pooled.index["taps"].as_array().map(Vec::len)),
        (5, 5, Some(2))
    );
    for (short, long) in pooled.index["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .zip(tokens.index["pairs"].as_array().unwrap())
    {
        assert_eq!(short["index"], long["index"]);
        for side in ["chosen", "rejected"] {
            let [start, len, prompt] = ["start", "tokens", "prompt"]
                .map(|field| long[side][field].as_i64().expect("a number"));
            for tap in ["hidden_states.1", "hidden_states.2"] {
                let name = format!("{tap}.{side}");
                let own = tokens.tensors[&name].narrow(0, start + prompt, len - prompt);
                let off = own.mean_dim(0, false, Kind::Float)
                    - pooled.tensors[&name].get(short["row"].as_i64().expect("a row"));
                assert!(off.abs().max().double_value(&[]) < 1e-5, "{name}");
            }
        }
        let ids = |side: &str| {
            tokens.tensors[&format!("ids.{side}")].narrow(
                0,
                long[side]["start"].as_i64().unwrap(),
                long[side]["prompt"].as_i64().unwrap(),
            )
        };
        assert_eq!(ids("chosen"), ids("rejected"), "both sides must have the same prompt");
    }
    let again = states("pooled", &["--layers", "1,2"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("`pooled` already exists"), "{}", stderr(&again));
    let refused = states("none", &["--layers", "9"]);
    assert!(
        refused.status.code() == Some(1) && !dir.path().join("none").exists(),
        "{}",
        stderr(&refused)
    );
    assert_eq!(
        std::fs::read_dir(dir.path())
            .expect("a folder")
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(".states"))
            .count(),
        0
    );
}

#[test]
fn the_states_of_a_run_come_from_its_adapter() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let mut run = isolated_command(
        dir.path(),
        &[
            "run",
            "--device",
            "cpu",
            "--no-eval",
            "--out",
            "run",
            "--set",
            "train.max_pairs=8",
            "--set",
            "train.lr=0.01",
            "--set",
            "train.warmup=0",
        ],
    );
    run.arg("--model")
        .arg(golden.join("models/llama"))
        .arg("--dataset")
        .arg(golden.join("trl/pairs.jsonl"));
    stdout(&run.output().expect("the command runs"));
    let states = |out: &str, extra: &[&str]| {
        let mut command = isolated_command(
            dir.path(),
            &[
                "states",
                "run",
                "--device",
                "cpu",
                "--layers",
                "-1",
                "--max-pairs",
                "3",
                "--out",
                out,
            ],
        );
        stdout(&command.args(extra).output().expect("the command runs"));
        Written::read(&dir.path().join(out)).tensors["hidden_states.3.chosen"].shallow_clone()
    };
    let (trained, base) = (states("trained", &[]), states("base", &["--base"]));
    assert!((trained - base).abs().max().double_value(&[]) > 1e-3);
}
