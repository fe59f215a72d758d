//! Interrupted runs that are resumed, and runs that are used from another folder. The tests create
//! the model and the pairs.

use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use assert_cmd::Command;
use reprpo_core::weights::write_safetensors;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{metrics, stderr, transcript};

pub(crate) const WORDS: i64 = 62;
const HIDDEN: i64 = 16;

/// A folder with a tiny Llama model in `model` and eight pairs in `pairs.jsonl`.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        let tree = Self(tempfile::tempdir().expect("a folder"));
        model(&tree.path("model"), 0, "");
        tree.pairs("pairs.jsonl", 0);
        tree
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes eight pairs. A different `shift` gives different words but the same lengths.
    fn pairs(&self, name: &str, shift: i64) {
        let word = |i: i64| format!("w{}", (i * 7 + shift * 13) % WORDS);
        let text = |from: i64| (from..from + 3).map(word).collect::<Vec<_>>().join(" ");
        let line = |i: i64| {
            json!({ "prompt": text(i * 9) + " ", "chosen": text(i * 9 + 3),
                "rejected": text(i * 9 + 6) })
            .to_string()
                + "\n"
        };
        std::fs::write(self.path(name), (0..8).map(line).collect::<String>()).expect("pairs");
    }

    fn command(&self, folder: &str, args: &[&str]) -> Command {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .env("OMP_NUM_THREADS", "1")
            .env_remove("REPRPO_DATA")
            .current_dir(self.path(folder))
            .args(args);
        command
    }

    pub(crate) fn reprpo(&self, folder: &str, args: &[&str]) -> Output {
        self.command(folder, args).output().expect("the command runs")
    }

    /// Returns the arguments of a run on the model and pairs of this tree.
    pub(crate) fn run_args<'a>(&self, out: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec![
            "run",
            "--model",
            "./model",
            "--dataset",
            "pairs.jsonl",
            "--out",
            out,
            "--dtype",
            "f32",
            "--device",
            "cpu",
        ];
        for set in [
            "train.batch=2",
            "train.accumulate=1",
            "train.warmup=0",
            "train.lr=5e-3",
            "eval.completions=0",
        ] {
            args.extend(["--set", set]);
        }
        args.extend(extra);
        args
    }

    /// Trains until the run ends and checks that it succeeds.
    pub(crate) fn run(&self, out: &str, extra: &[&str]) -> Output {
        let output = self.reprpo("", &self.run_args(out, extra));
        assert!(output.status.success(), "{}", transcript(&output));
        output
    }

    /// Starts a long run and kills it as soon as it has written a checkpoint.
    fn killed(&self, out: &str, extra: &[&str]) {
        let long = ["--set", "train.epochs=100", "--set", "train.checkpoint_every=1"];
        self.killed_when(out, &[&long, extra].concat(), |run| {
            run.join("checkpoints/latest").is_file()
        });
    }

    /// Starts a run and kills it as soon as `when` returns true for its folder.
    pub(crate) fn killed_when(&self, out: &str, extra: &[&str], when: impl Fn(&Path) -> bool) {
        kill(started(self.0.path(), &self.run_args(out, extra), || when(&self.path(out))));
        assert!(!self.path(out).join("adapter").exists(), "the run ended before it was killed");
    }

    fn config(&self, run: &str) -> String {
        std::fs::read_to_string(self.path(run).join("config.toml")).expect("a configuration")
    }

    fn edit(&self, run: &str, from: &str, to: &str) {
        let config = self.config(run);
        assert!(config.contains(from), "{from}\n{config}");
        std::fs::write(self.path(run).join("config.toml"), config.replace(from, to))
            .expect("the file is written");
    }
}

/// Starts the command in `folder` and waits until `when` returns true.
pub(crate) fn started(folder: &Path, args: &[&str], when: impl Fn() -> bool) -> Child {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("reprpo"));
    command
        .env("OMP_NUM_THREADS", "1")
        .env_remove("REPRPO_DATA")
        .current_dir(folder)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("the command runs");
    while !when() {
        assert!(child.try_wait().expect("a state").is_none(), "the command ended too early");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child
}

pub(crate) fn kill(mut child: Child) {
    child.kill().expect("the command is killed");
    child.wait().expect("the command ends");
}

/// Writes a Llama model with two blocks and random weights from `seed`. If `extra` is not empty, it
/// replaces the last word of the tokenizer.
pub(crate) fn model(folder: &Path, seed: i64, extra: &str) {
    std::fs::create_dir_all(folder).expect("a folder");
    let config = json!({
        "model_type": "llama", "vocab_size": WORDS + 2, "hidden_size": HIDDEN,
        "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "max_position_embeddings": 64,
        "bos_token_id": null, "eos_token_id": 0,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("the file is written");
    tch::manual_seed(seed);
    let random = |name: &str, rows: i64, columns: i64| {
        (format!("{name}.weight"), Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)) * 0.3)
    };
    let ones =
        |name: &str| (format!("{name}.weight"), Tensor::ones([HIDDEN], (Kind::Float, Device::Cpu)));
    let mut tensors = vec![
        random("model.embed_tokens", WORDS + 2, HIDDEN),
        random("lm_head", WORDS + 2, HIDDEN),
        ones("model.norm"),
    ];
    for block in 0..2 {
        let at = format!("model.layers.{block}");
        for (name, rows, columns) in
            [("q", HIDDEN, HIDDEN), ("k", 8, HIDDEN), ("v", 8, HIDDEN), ("o", HIDDEN, HIDDEN)]
        {
            tensors.push(random(&format!("{at}.self_attn.{name}_proj"), rows, columns));
        }
        for (name, rows, columns) in
            [("gate", 32, HIDDEN), ("up", 32, HIDDEN), ("down", HIDDEN, 32)]
        {
            tensors.push(random(&format!("{at}.mlp.{name}_proj"), rows, columns));
        }
        tensors.extend([
            ones(&format!("{at}.input_layernorm")),
            ones(&format!("{at}.post_attention_layernorm")),
        ]);
    }
    write_safetensors(&folder.join("model.safetensors"), &tensors).expect("weights");
    let mut words: serde_json::Map<String, Value> =
        [("<eos>".to_owned(), json!(0)), ("<unk>".to_owned(), json!(1))].into_iter().collect();
    words.extend((0..WORDS).map(|i| (format!("w{i}"), json!(i + 2))));
    if !extra.is_empty() {
        words.shift_remove("w61");
        words.insert(extra.to_owned(), json!(63));
    }
    let special = |id: i64, text: &str| {
        json!({ "id": id, "content": text, "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
    };
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [special(0, "<eos>"), special(1, "<unk>")],
        "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "<unk>" },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())
        .expect("the file is written");
    std::fs::write(
        folder.join("tokenizer_config.json"),
        json!({ "eos_token": "<eos>" }).to_string(),
    )
    .expect("the file is written");
}

/// Checks that the command failed with exit code 1 and returns its stderr.
pub(crate) fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", transcript(output));
    stderr(output)
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").map(|e| e.expect("an entry")) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)
        } else {
            std::fs::copy(entry.path(), to).map(drop).expect("a copy")
        }
    }
}

/// Returns the metrics of each split from the JSON that an evaluation printed.
fn table(output: &Output) -> Value {
    assert!(output.status.success(), "{}", transcript(output));
    let mut json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", transcript(output)));
    json[0]["splits"].take()
}

#[test]
fn an_input_that_changed_since_the_checkpoint_is_rejected_and_named() {
    let tree = Tree::new();
    tree.killed("run", &["--no-eval"]);
    let resume = |extra: &[&str]| tree.reprpo("", &[&["run", "--resume", "run"], extra].concat());
    let data = |shift| tree.pairs("pairs.jsonl", shift);
    let model = |seed, extra: &str| model(&tree.path("model"), seed, extra);
    type Step<'a> = Box<dyn Fn() + 'a>;
    let step = |f| -> Step<'_> { f };
    for (change, back, expected, not) in [
        (
            step(Box::new(|| data(1))),
            step(Box::new(|| data(0))),
            "`run`: the data has changed",
            "the model",
        ),
        (
            step(Box::new(|| model(1, ""))),
            step(Box::new(|| model(0, ""))),
            "`run`: the model has changed",
            "the tokenizer",
        ),
        (
            step(Box::new(|| model(0, "other"))),
            step(Box::new(|| model(0, ""))),
            "the tokenizer",
            "the model",
        ),
        (
            step(Box::new(|| tree.edit("run", "max_length = 512", "max_length = 5"))),
            step(Box::new(|| tree.edit("run", "max_length = 5\n", "max_length = 512\n"))),
            "`train.max_length`: 512 then, 5 now",
            "the model",
        ),
        (
            step(Box::new(|| tree.edit("run", "max_length = 512", "max_length = 500"))),
            step(Box::new(|| tree.edit("run", "max_length = 500\n", "max_length = 512\n"))),
            "`run`: `train.max_length` has changed",
            "the data",
        ),
        (
            step(Box::new(|| tree.edit("run", "lr = 0.005", "lr = 0.004"))),
            step(Box::new(|| tree.edit("run", "lr = 0.004", "lr = 0.005"))),
            "`train.lr`",
            "the data",
        ),
        (
            step(Box::new(|| tree.edit("run", "r = 16", "r = 8"))),
            step(Box::new(|| tree.edit("run", "r = 8", "r = 16"))),
            "`adapter.r`: 16 then, 8 now",
            "the data",
        ),
    ] {
        change();
        let text = refused(&resume(&[]));
        assert!(
            text.contains("error: cannot resume the run in `run`") && text.contains(expected),
            "{expected}: {text}"
        );
        assert!(
            !text.contains(not) && text.contains("hint: use `--inexact-resume` "),
            "{expected}: {text}"
        );
        back();
    }
    // If the number of pairs changed, the message states both numbers.
    std::fs::write(
        tree.path("pairs.jsonl"),
        "{\"prompt\": \"w1 \", \"chosen\": \"w2\", \"rejected\": \"w3\"}\n",
    )
    .expect("the file is written");
    let text = refused(&resume(&[]));
    assert!(
        text.contains("the data: 8 pairs of 112 tokens then, 1 pair of 6 tokens now"),
        "{text}"
    );
    data(0);
    // Fields that do not affect a training step can differ.
    tree.edit("run", "max_pairs = 100", "max_pairs = 3");
    tree.edit("run", "checkpoint_every = 1", "checkpoint_every = 100000");
    // A checkpoint of an earlier version has no fingerprints to compare.
    let kept = tree.path("kept");
    copy(&tree.path("run"), &kept);
    let step = std::fs::read_to_string(kept.join("checkpoints/latest")).expect("a step");
    std::fs::remove_file(kept.join(format!("checkpoints/step-{}/fingerprints.json", step.trim())))
        .expect("the file exists");
    let text = refused(&tree.reprpo("", &["run", "--resume", "kept"]));
    assert!(
        text.contains("its checkpoint has no fingerprints") && text.contains("--inexact-resume"),
        "{text}"
    );
    let output = tree.reprpo("", &["run", "--resume", "kept", "--inexact-resume"]);
    assert!(
        output.status.success() && transcript(&output).contains("warning: resumed after step"),
        "{}",
        transcript(&output)
    );

    let output = resume(&[]);
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(refused(&resume(&["--inexact-resume"])).contains("has already finished"));
}

#[test]
fn reference_values_in_the_checkpoint_of_an_earlier_version_are_ignored() {
    let tree = Tree::new();
    let args = ["--no-eval", "--set", "train.epochs=100", "--set", "train.checkpoint_every=5"];
    tree.killed_when("run", &args, |run| run.join("checkpoints/latest").is_file());
    tree.pairs("pairs.jsonl", 1);
    copy(&tree.path("run"), &tree.path("earlier"));
    let step = std::fs::read_to_string(tree.path("run/checkpoints/latest")).expect("a step");
    let file = format!("checkpoints/step-{}/reference.safetensors", step.trim());
    assert!(!tree.path("run").join(&file).exists());
    let value = ("x-0.0".to_owned(), Tensor::zeros([3], (Kind::Float, Device::Cpu)));
    write_safetensors(&tree.path("earlier").join(&file), &[value]).expect("the file is written");
    for run in ["run", "earlier"] {
        assert!(
            refused(&tree.reprpo("", &["run", "--resume", run])).contains("the data has changed")
        );
        let output = tree.reprpo("", &["run", "--resume", run, "--inexact-resume"]);
        let text = transcript(&output);
        assert!(
            output.status.success()
                && text.contains("have changed since the checkpoint: the data;"),
            "{text}"
        );
        // From here on, the adapter and the data of the run match.
        assert!(tree.reprpo("", &["eval", run]).status.success());
    }
    assert_eq!(metrics(&tree.path("run")), metrics(&tree.path("earlier")));
}

#[test]
fn the_same_command_starts_a_run_and_continues_it_wherever_it_was_killed() {
    let tree = Tree::new();
    let long = ["--set", "train.epochs=60", "--set", "train.checkpoint_every=3"];
    let auto = |out: &str, extra: &[&str]| {
        tree.reprpo(
            "",
            &[tree.run_args(out, &long), vec!["--resume", "auto"], extra.to_vec()].concat(),
        )
    };
    tree.run("whole", &long);
    // `a` was killed in its first steps, `b` between two checkpoints. `d` is `b` without its
    // checkpoints, `c` does not exist, and `e` is an empty folder.
    tree.killed_when("a", &long, |run| run.join("checkpoints/latest").is_file());
    tree.killed_when("b", &long, |run| {
        std::fs::read_to_string(run.join("metrics.jsonl"))
            .is_ok_and(|text| text.lines().count() > 40)
    });
    copy(&tree.path("b"), &tree.path("d"));
    std::fs::remove_dir_all(tree.path("d/checkpoints")).expect("the file exists");
    // Leftovers of an unfinished checkpoint and of an unfinished file.
    std::fs::create_dir_all(tree.path("a/checkpoints/step-99")).expect("a folder");
    std::fs::write(tree.path("a/.tmpAbc"), "x").expect("the file is written");
    std::fs::create_dir(tree.path("e")).expect("a folder");
    let bytes = |run: &str| {
        std::fs::read(tree.path(run).join("adapter/adapter_model.safetensors")).expect("an adapter")
    };
    for (run, expected) in [
        ("a", "resuming from the last checkpoint"),
        ("b", "resuming from the last checkpoint"),
        ("c", "loading"),
        ("d", "starting over, because the run was stopped before its first checkpoint"),
        ("e", "loading"),
    ] {
        let output = auto(run, &[]);
        let text = transcript(&output);
        assert!(output.status.success() && text.contains(expected), "{run}: {text}");
        assert_eq!(metrics(&tree.path(run)), metrics(&tree.path("whole")), "{run}");
        assert!(bytes(run) == bytes("whole"), "{run}");
        assert!(
            !tree.path(run).join(".tmpAbc").exists()
                && !tree.path(run).join("checkpoints").exists(),
            "{run}"
        );
    }
    // A job that is queued again after the run has finished changes nothing and prints the same
    // output.
    let first = auto("f", &[]);
    let before = std::fs::metadata(tree.path("f/eval/summary.json"))
        .expect("a summary")
        .modified()
        .expect("a time");
    let again = auto("f", &[]);
    assert!(
        again.status.success() && transcript(&again).contains("already finished: `f`"),
        "{}",
        transcript(&again)
    );
    assert_eq!(String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&first.stdout));
    assert_eq!(
        std::fs::metadata(tree.path("f/eval/summary.json"))
            .expect("a summary")
            .modified()
            .expect("a time"),
        before
    );
    // A run that was killed during its evaluation is evaluated but not trained again.
    let summary = std::fs::read(tree.path("f/eval/summary.json")).expect("a summary");
    std::fs::remove_dir_all(tree.path("f/eval")).expect("the file exists");
    let output = auto("f", &["--json"]);
    assert!(
        output.status.success() && transcript(&output).contains("already trained, evaluating it"),
        "{}",
        transcript(&output)
    );
    assert!(summary == std::fs::read(tree.path("f/eval/summary.json")).expect("a summary"));
}

#[test]
fn a_command_that_continues_a_run_must_have_the_same_configuration() {
    let tree = Tree::new();
    tree.killed("run", &["--no-eval"]);
    tree.pairs("others.jsonl", 1);
    let long = [
        "--no-eval",
        "--set",
        "train.epochs=100",
        "--set",
        "train.checkpoint_every=1",
        "--resume",
        "auto",
    ];
    let auto =
        |extra: &[&str]| tree.reprpo("", &[&tree.run_args("run", &long)[..], extra].concat());
    for (extra, expected) in [
        (
            vec!["--set", "train.lr=1e-3"],
            "`train.lr` is 0.005 in the run and 0.001 in this command",
        ),
        (vec!["--seed", "1"], "`train.seed` is 0 in the run and 1 in this command"),
        (vec!["--set", "dataset.train=others.jsonl"], "`dataset.train` is `"),
        (vec!["--set", "eval.max_pairs=3"], "`eval.max_pairs`"),
        (vec!["--adapter", "hra"], "`adapter.name`"),
    ] {
        let text = refused(&auto(&extra));
        assert!(
            text.starts_with(
                "error: the run in `run` was started with a different configuration: "
            ) && text.contains(expected),
            "{extra:?}: {text}"
        );
    }
    // The contents of the data file are compared, not only its name.
    tree.pairs("pairs.jsonl", 1);
    assert!(refused(&auto(&[])).contains("the data has changed since its checkpoint was written"));
    tree.pairs("pairs.jsonl", 0);

    let text = refused(&tree.reprpo(
        "",
        &["run", "--model", "./model", "--dataset", "pairs.jsonl", "--resume", "auto"],
    ));
    assert!(
        text.contains("`--resume auto` needs the folder of the run") && text.contains("--out DIR"),
        "{text}"
    );
    std::fs::create_dir(tree.path("mine")).expect("a folder");
    std::fs::write(tree.path("mine/thesis.txt"), "x").expect("the file is written");
    let text = refused(&tree.reprpo("", &tree.run_args("mine", &["--resume", "auto"])));
    assert!(
        text.contains("`mine` is not the folder of a run: it contains `thesis.txt`")
            && tree.path("mine/thesis.txt").is_file(),
        "{text}"
    );
    // Even in a run without a checkpoint, files that do not belong to the run are kept.
    copy(&tree.path("run"), &tree.path("begun"));
    std::fs::remove_dir_all(tree.path("begun/checkpoints")).expect("the file exists");
    std::fs::write(tree.path("begun/thesis.txt"), "x").expect("the file is written");
    let text = refused(&tree.reprpo("", &tree.run_args("begun", &long)));
    assert!(
        text.contains("`thesis.txt`, which does not belong to a run")
            && tree.path("begun/metrics.jsonl").is_file(),
        "{text}"
    );
    // `--resume DIR` reads the whole configuration from the folder, so it rejects flags that would
    // change the configuration.
    let output = tree.reprpo("", &["run", "--resume", "run", "--seed", "1"]);
    assert!(
        output.status.code() == Some(2) && transcript(&output).contains("--seed"),
        "{}",
        transcript(&output)
    );
}

#[cfg(unix)]
#[test]
fn two_processes_cannot_write_into_the_same_run() {
    let tree = Tree::new();
    let long = ["--no-eval", "--set", "train.epochs=100000", "--set", "train.checkpoint_every=1"];
    let child = started(&tree.path(""), &tree.run_args("run", &long), || {
        tree.path("run/checkpoints/latest").is_file()
    });
    let outputs = [
        tree.reprpo("", &["run", "--resume", "run"]),
        tree.reprpo("", &[tree.run_args("run", &long), vec!["--resume", "auto"]].concat()),
    ];
    kill(child);
    for output in &outputs {
        assert!(
            refused(output).contains("another process is writing to `run`"),
            "{}",
            transcript(output)
        );
    }
}

const EVAL: [&str; 4] = ["--json", "--quiet", "--set", "eval.completions=0"];

#[test]
fn a_run_finds_its_model_and_data_from_any_folder_and_after_its_tree_was_moved() {
    let tree = Tree::new();
    std::fs::create_dir_all(tree.path("tree/runs")).expect("folders");
    copy(&tree.path("model"), &tree.path("tree/model"));
    copy(&tree.path("model"), &tree.path("away/model"));
    std::fs::copy(tree.path("pairs.jsonl"), tree.path("tree/pairs.jsonl")).expect("a copy");
    let output = tree.reprpo("tree", &tree.run_args("runs/a", &[]));
    assert!(output.status.success(), "{}", transcript(&output));
    let config = tree.config("tree/runs/a");
    assert!(
        config.contains("\nmodel = \"../../model\"\n")
            && config.contains("\ntrain = \"../../pairs.jsonl\"\n"),
        "{config}"
    );
    let summary: Value = serde_json::from_slice(
        &std::fs::read(tree.path("tree/runs/a/eval/summary.json")).expect("a summary"),
    )
    .expect("JSON");
    let same = |output: &Output| assert_eq!(table(output), summary["splits"]);
    // Other folders, one of which contains a different model at the same relative path.
    std::fs::create_dir_all(tree.path("other")).expect("a folder");
    model(&tree.path("other/model"), 3, "");
    tree.pairs("other/pairs.jsonl", 3);
    same(&tree.reprpo("", &[&["eval", "tree/runs/a"], &EVAL[..]].concat()));
    same(&tree.reprpo("other", &[&["eval", "../tree/runs/a"], &EVAL[..]].concat()));
    let data = tree.path("tree/pairs.jsonl").display().to_string();
    let adapter = |runs: &str| {
        tree.reprpo(
            "other",
            &[&["eval", &format!("{runs}/a/adapter"), "--dataset", &data], &EVAL[..]].concat(),
        )
    };
    same(&adapter("../tree/runs"));
    // The run folder was copied without its tree.
    copy(&tree.path("tree/runs/a"), &tree.path("lone/deep/a"));
    same(&tree.reprpo("other", &[&["eval", "../lone/deep/a"], &EVAL[..]].concat()));
    // After the tree was moved, its runs can be evaluated, and their configuration can start a new
    // run.
    tree.reprpo(
        "tree",
        &[tree.run_args("runs/b", &["--no-eval"]), vec!["--set", "train.epochs=0.5"]].concat(),
    );
    std::fs::rename(tree.path("tree"), tree.path("moved")).expect("moved");
    let data = tree.path("moved/pairs.jsonl").display().to_string();
    same(&tree.reprpo("other", &[&["eval", "../moved/runs/a"], &EVAL[..]].concat()));
    same(&tree.reprpo(
        "other",
        &[&["eval", "../moved/runs/a/adapter", "--dataset", &data], &EVAL[..]].concat(),
    ));
    let output = tree.reprpo(
        "other",
        &["run", "--config", "../moved/runs/a/config.toml", "--out", "again", "--no-eval"],
    );
    assert!(output.status.success(), "{}", transcript(&output));
    assert_eq!(metrics(&tree.path("other/again")), metrics(&tree.path("moved/runs/a")));

    // The model and data found at the new place are compared with the run's record.
    let eval =
        |extra: &[&str]| tree.reprpo("", &[&["eval", "moved/runs/a"], &EVAL[..], extra].concat());
    std::fs::copy(tree.path("other/pairs.jsonl"), tree.path("moved/pairs.jsonl")).expect("a copy");
    let text = refused(&eval(&[]));
    assert!(
        text.starts_with(
            "error: the data does not match the fingerprint in `moved/runs/a/config.toml`"
        ),
        "{text}"
    );
    assert!(
        text.contains("the `train` pairs: `pairs.jsonl` of")
            && text.contains("`dataset.train` is `"),
        "{text}"
    );
    let output = eval(&["--dataset", "moved/pairs.jsonl"]);
    assert_ne!(table(&output), summary["splits"], "the data given by `--dataset` must be used");
    tree.pairs("moved/pairs.jsonl", 0);
    model(&tree.path("moved/model"), 3, "");
    for args in
        [vec!["generate", "--prompt", "w1"], vec!["export", "--merge", "--out", "x"], vec!["eval"]]
    {
        let text = refused(&tree.reprpo("", &[&args[..], &["moved/runs/a"]].concat()));
        assert!(
            text.contains("does not match the fingerprint in `moved/runs/a/config.toml`"),
            "{args:?}: {text}"
        );
    }
    // A model given by a flag is used, with a warning if the adapter was trained on a different
    // one.
    let generate = |base: &str, target: &str| {
        transcript(&tree.reprpo(
            "",
            &[
                "generate",
                target,
                "--model",
                base,
                "--prompt",
                "w1 w2",
                "--max-new-tokens",
                "2",
                "--plain",
            ],
        ))
    };
    for target in ["moved/runs/a", "moved/runs/a/adapter"] {
        assert!(
            generate("moved/model", target).contains("which is a different model"),
            "{}",
            generate("moved/model", target)
        );
        assert!(
            !generate("away/model", target).contains("warning"),
            "{}",
            generate("away/model", target)
        );
    }
    let score = |base: &str| {
        transcript(&tree.reprpo(
            "",
            &[
                "score",
                "--model",
                base,
                "--load-adapter",
                "moved/runs/a/adapter",
                "--data",
                "pairs.jsonl",
            ],
        ))
    };
    assert!(
        score("other/model").contains("which is a different model")
            && !score("away/model").contains("warning"),
        "{}",
        score("away/model")
    );
    let output = tree.reprpo(
        "",
        &tree.run_args(
            "further",
            &["--init-adapter", "moved/runs/a/adapter", "--set", "model=moved/model"],
        ),
    );
    assert!(
        output.status.success()
            && transcript(&output).contains(
                "warning: the adapter in `moved/runs/a/adapter` was made for the base model"
            ),
        "{}",
        transcript(&output)
    );

    // If a path does not exist, the error names the file or flag that the path came from.
    std::fs::remove_dir_all(tree.path("moved/model")).expect("the file exists");
    std::fs::remove_file(tree.path("moved/pairs.jsonl")).expect("the file exists");
    let text = refused(&tree.reprpo("", &["generate", "moved/runs/a", "--prompt", "w1"]));
    assert!(
        text.starts_with("error: `model` is `")
            && text.contains(
                "/moved/model` (file moved/runs/a/config.toml), but this value cannot be used"
            ),
        "{text}"
    );
    let text = refused(&eval(&[]));
    assert!(
        text.contains("`dataset.train` is `")
            && text.contains("(file moved/runs/a/config.toml), but this path does not exist"),
        "{text}"
    );
    let text = refused(&tree.reprpo("", &["run", "--model", "./none", "--out", "x"]));
    assert!(text.contains("`model` is `./none` (flag --model)"), "{text}");
}

#[test]
fn errors_in_a_run_of_an_earlier_version_name_the_base_of_its_relative_paths() {
    let tree = Tree::new();
    tree.run("runs/a", &["--no-eval"]);
    let config = tree.config("runs/a");
    let (old, _) = config.split_once("\n# Written by").expect("a record");
    let old = old.replace("../../model", "./model").replace("../../pairs", "pairs");
    std::fs::write(tree.path("runs/a/config.toml"), old).expect("the file is written");
    let output = tree.reprpo("", &[&["eval", "runs/a"], &EVAL[..]].concat());
    assert!(
        output.status.success()
            && transcript(&output).contains("`runs/a/config.toml` has no `record` section"),
        "{}",
        transcript(&output)
    );
    let text = refused(&tree.reprpo("runs", &[&["eval", "a"], &EVAL[..]].concat()));
    assert!(text.contains("`dataset.train` is `pairs.jsonl` (file a/config.toml)"), "{text}");
    assert!(
        text.contains("hint: relative paths are resolved against the current folder, which is `"),
        "{text}"
    );
    let text = refused(&tree.reprpo("runs", &["generate", "a", "--prompt", "w1"]));
    assert!(
        text.contains("`model` is `./model` (file a/config.toml), but this value cannot be used"),
        "{text}"
    );
}

#[test]
fn a_resumed_run_finds_its_initial_adapter_and_data_folder() {
    let tree = Tree::new();
    tree.run("first", &["--no-eval"]);
    std::fs::create_dir_all(tree.path("data/sums")).expect("a folder");
    let rows = |shift: i64| {
        let row = |i: i64| {
            json!({ "prompt": format!("w{i} "), "responses": { format!("w{}",
            i + shift): 1, format!("w{}", i + shift + 1): 0 } })
        };
        Value::Array((0..8).map(row).collect()).to_string()
    };
    for (split, shift) in [("train", 3), ("test", 6)] {
        std::fs::write(tree.path(&format!("data/sums/{split}.json")), rows(shift))
            .expect("the file is written");
    }
    let long = ["--set", "train.epochs=100", "--set", "train.checkpoint_every=1"];
    let args = [
        "--set",
        "dataset=genies:sums",
        "--data-dir",
        "data",
        "--init-adapter",
        "first/adapter",
        "--no-eval",
    ];
    tree.killed_when("runs/a", &[&long, &args[..]].concat(), |run| {
        run.join("checkpoints/latest").is_file()
    });
    let config = tree.config("runs/a");
    for kept in ["data_dir = \"../../data\"", "init_adapter = \"../../first/adapter\""] {
        assert!(config.contains(kept), "{kept}\n{config}");
    }
    std::fs::create_dir(tree.path("elsewhere")).expect("a folder");
    tree.edit("runs/a", "checkpoint_every = 1\n", "checkpoint_every = 100000\n");
    std::fs::write(tree.path("data/sums/train.json"), rows(4)).expect("the file is written");
    let resume = || tree.reprpo("elsewhere", &["run", "--resume", "../runs/a"]);
    assert!(refused(&resume()).contains("the data has changed"));
    std::fs::write(tree.path("data/sums/train.json"), rows(3)).expect("the file is written");
    // The reference is the adapter that training started from.
    let adapter =
        std::fs::read(tree.path("first/adapter/adapter_model.safetensors")).expect("an adapter");
    tree.run("second", &["--no-eval", "--seed", "5"]);
    std::fs::copy(
        tree.path("second/adapter/adapter_model.safetensors"),
        tree.path("first/adapter/adapter_model.safetensors"),
    )
    .expect("a copy");
    let text = refused(&resume());
    assert!(text.contains("the reference, the initial values have changed since"), "{text}");
    std::fs::write(tree.path("first/adapter/adapter_model.safetensors"), adapter)
        .expect("the file is written");
    let output = resume();
    assert!(output.status.success(), "{}", transcript(&output));
    // The evaluation rejects test pairs that changed.
    let output = tree.reprpo("elsewhere", &[&["eval", "../runs/a"], &EVAL[..]].concat());
    assert!(output.status.success(), "{}", transcript(&output));
    std::fs::write(tree.path("data/sums/test.json"), rows(5)).expect("the file is written");
    let text = refused(&tree.reprpo("elsewhere", &[&["eval", "../runs/a"], &EVAL[..]].concat()));
    assert!(text.contains("the `test` pairs: `test.json`"), "{text}");
}

#[test]
fn a_sweep_does_not_reuse_runs_with_another_configuration() {
    let tree = Tree::new();
    let sweep = |lr: &str| {
        let args = [
            "sweep",
            "--model",
            "./model",
            "--dataset",
            "pairs.jsonl",
            "--over",
            "adapter=lora,hra",
            "--out",
            "grid",
            "--no-eval",
        ];
        tree.reprpo("", &[&args[..], &["--device", "cpu", "--set", lr]].concat())
    };
    assert!(sweep("train.lr=1e-3").status.success());
    let output = sweep("train.lr=1e-3");
    assert!(
        output.status.success()
            && transcript(&output).contains("nothing to do: 2 of 2 runs are finished"),
        "{}",
        transcript(&output)
    );
    let text = refused(&sweep("train.lr=2e-3"));
    assert!(
        text.contains("`train.lr` is 0.001 in the run and 0.002 in this command")
            && text.contains("the run in `grid/lora` was started with a different configuration"),
        "{text}"
    );
}

/// Reproduces a public bug report: the pairs change between the interruption and `--resume`.
#[test]
fn changed_data_of_the_same_length_is_rejected() {
    let golden = crate::golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data.jsonl");
    let pairs = std::fs::read_to_string(golden.join("trl/pairs.jsonl")).expect("pairs");
    let other = pairs.replace("nectar", "pollen");
    assert!(other != pairs && other.len() == pairs.len());
    std::fs::write(&data, pairs).expect("the file is written");
    let model = golden.join("models/llama").canonicalize().expect("a path").display().to_string();
    let run = [
        "run",
        "--no-eval",
        "--dataset",
        "data.jsonl",
        "--out",
        "run",
        "--device",
        "cpu",
        "--model",
        &model,
    ];
    let long = ["--set", "train.epochs=100", "--set", "train.checkpoint_every=1"];
    kill(started(dir.path(), &[&run[..], &long].concat(), || {
        dir.path().join("run/checkpoints/latest").is_file()
    }));
    std::fs::remove_file(&data).expect("the file exists");
    std::fs::write(&data, other).expect("the file is written");
    let output = Command::cargo_bin("reprpo")
        .expect("the binary")
        .current_dir(dir.path())
        .args(["run", "--resume", "run"])
        .output()
        .expect("the command runs");
    assert!(
        refused(&output).contains("the data has changed since its checkpoint was written"),
        "{}",
        transcript(&output)
    );
}
