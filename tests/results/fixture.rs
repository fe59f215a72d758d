//! Folders of runs and of a study, written without training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Number of pairs of a split, and of pairs per cluster.
pub const PAIRS: usize = 40;
pub const CLUSTER: usize = 2;

/// A run to write.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    pub intervention: &'a str,
    pub lr: f64,
    pub seed: u64,
    /// For each split, the probability in percent that the trained model ranks a pair correctly.
    pub right: BTreeMap<&'a str, usize>,
    /// Growth of the mean log-probability of the chosen tokens on all splits.
    pub log_ratio: f64,
    pub clusters: bool,
    pub max_length: usize,
    /// Loss of the last validation, if there is one.
    pub validation: Option<f64>,
}

impl Run<'_> {
    pub fn new(intervention: &str, lr: f64, seed: u64) -> Run<'_> {
        let right = BTreeMap::from([("train", 80), ("test", 70), ("oos", 60), ("rnd", 50)]);
        Run {
            intervention,
            lr,
            seed,
            right,
            log_ratio: -0.02,
            clusters: true,
            max_length: 512,
            validation: None,
        }
    }

    /// Writes the folder.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("the file is written");
        };
        write(
            "config.toml",
            format!(
                "model = \"m\"\ndtype = \"f32\"\n[intervention]\nname = \"{}\"\n[adapter]\nname = \
                 \"lora\"\n[transform]\nname = \"none\"\n[train]\nlr = {:?}\nseed = {}\n\
                 max_length = {}\n[eval]\nscore = \"mean\"\n\n[cache]\nfolder = \"/secret\"\n\n\
                 # A comment.\n[record]\n\
                 folder = \"/secret\"\nmodel = {{ sha256 = \"ab12\", of = \"a file\" }}\n\
                 data = {{}}\n",
                self.intervention, self.lr, self.seed, self.max_length
            ),
        );
        write("adapter/adapter_config.json", "{}".to_owned());
        let splits: Vec<Value> = self
            .right
            .keys()
            .map(|s| json!({ "split": s, "data": format!("{s} <data>") }))
            .collect();
        let sample = |text: &str| json!({ "text": text, "tokens": 3, "ended": true });
        write(
            "eval/summary.json",
            json!({
                "title": format!("{} × lora on <data>, model", self.intervention),
                "splits": splits,
                "completions": {
                    "split": "test", "max_new_tokens": 9, "started_from": "base",
                    "prompts": [{
                        "index": 0, "prompt": "<script>alert(1)</script>",
                        "before": sample("a & b"), "after": sample("</pre><img src=x>")
                    }]
                }
            })
            .to_string(),
        );
        let mut rows = String::new();
        for (split, percent) in &self.right {
            for i in 0..PAIRS {
                rows += &format!("{}\n", self.pair(split, i, *percent));
            }
        }
        write("eval/pairs.jsonl", rows);
        let mut metrics = String::new();
        for step in 1..=4 {
            metrics += &format!("{}\n", json!({ "step": step, "loss": 1.0 / f64::from(step) }));
        }
        if let Some(loss) = self.validation {
            let line = json!({ "step": 4, "eval_loss": loss, "eval_accuracy": 0.5 });
            metrics += &format!("{line}\n");
        }
        write("metrics.jsonl", metrics);
        folder.to_owned()
    }

    /// The base model ranks every other pair correctly. The trained model ranks `percent` of the
    /// pairs correctly, which depend on the seed.
    fn pair(&self, split: &str, i: usize, percent: usize) -> Value {
        let side = |mean: f64, tokens: usize| {
            let logp_sum = mean * tokens as f64;
            json!({ "logp_sum": logp_sum, "tokens": tokens })
        };
        let of = |chosen: f64, right: bool| {
            let rejected = if right { chosen - 0.5 } else { chosen + 0.5 };
            json!({ "index": i, "chosen": side(chosen, 4 + i % 3), "rejected": side(rejected, 5) })
        };
        let right = (i * 37 + self.seed as usize * 11) % 100 < percent;
        let mut line = json!({
            "split": split, "index": i, "base": of(-2.0, i.is_multiple_of(2)),
            "trained": of(-2.0 + self.log_ratio, right), "truncated": false,
        });
        if self.clusters {
            line["cluster"] = json!(format!("{split}-{}", i / CLUSTER));
        }
        line
    }
}

/// Writes a study with two methods, two learning rates and three final seeds, and one failed run.
pub fn study(folder: &Path, selected_on: &str) -> PathBuf {
    let (mut trials, mut tuned) = (Vec::new(), json!({}));
    for (method, better) in [("dpo", 0), ("states <b>", 30)] {
        let intervention = method.split(' ').next().expect("a name");
        tuned[method] = json!({ "train.lr": 0.001 });
        for (lr, seeds, phase) in [
            (0.0001, vec![0], "search"),
            (0.01, vec![0], "search"),
            (0.001, vec![1, 2, 3], "final"),
        ] {
            for seed in seeds {
                let name = format!("{intervention}-{lr}-{seed}");
                let mut run = Run::new(intervention, lr, seed);
                run.log_ratio = -20.0 * lr;
                run.right.insert("oos", 60 + better);
                run.write(&folder.join("runs").join(&name));
                trials.push(json!({
                    "method": method, "phase": phase, "values": { "train.lr": lr }, "seed": seed,
                    "run": format!("runs/{name}"), "state": "finished", "score": -0.5,
                    "error": null
                }));
            }
        }
    }
    trials.push(json!({
        "method": "dpo", "phase": "search", "values": { "train.lr": 0.1 }, "seed": 0,
        "run": "runs/failed", "state": "failed", "score": null, "error": "the loss is NaN"
    }));
    let study = json!({
        "name": "small", "command": ["reprpo", "sweep", "small study.toml"],
        "objective": "mean_log_sigmoid", "selected_on": selected_on,
        "methods": ["dpo", "states <b>"], "tuned": tuned, "trials": trials,
    });
    std::fs::write(folder.join("study.json"), study.to_string()).expect("the study is written");
    folder.to_owned()
}
