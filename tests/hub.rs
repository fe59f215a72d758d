//! Models, adapters and data sets of the hub, through the command and a hub of the tests' own.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use local_hub::{Fault, LocalHub, TOKEN, Traits};
use serde_json::Value;

use crate::plugins::{BARE, library};
use crate::{golden, transcript};

/// A hub with the tiny Llama model, a LoRA of it and its pairs; and an empty home.
struct There {
    hub: LocalHub,
    home: tempfile::TempDir,
    model: String,
    data: String,
}

/// The files of a folder, as the hub takes them.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry"));
    entries
        .map(|e| {
            (e.file_name().into_string().expect("UTF-8"), std::fs::read(e.path()).expect("a file"))
        })
        .collect()
}

impl There {
    fn new() -> Self {
        let golden = golden::own();
        let hub = LocalHub::start();
        let push = |repo: &str, files: &[(String, Vec<u8>)]| {
            hub.push(
                repo,
                "main",
                &files
                    .iter()
                    .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
                    .collect::<Vec<_>>(),
            )
        };
        let model = push("models/org/tiny", &files(&golden.join("models/llama")));
        push("models/org/adapter", &files(&golden.join("trl/trajectory_init")));
        let pairs = std::fs::read(golden.join("trl/pairs.jsonl")).expect("pairs");
        let data = push(
            "datasets/org/pairs",
            &[
                ("data/train.jsonl".to_owned(), pairs.clone()),
                ("data/test.jsonl".to_owned(), pairs),
            ],
        );
        Self { hub, home: tempfile::tempdir().expect("a folder"), model, data }
    }

    fn reprpo(&self, args: &[&str]) -> Command {
        self.command(Command::cargo_bin("reprpo").expect("the binary"), args)
    }

    fn command(&self, mut command: Command, args: &[&str]) -> Command {
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"];
        let others = [
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
        ];
        for variable in token.iter().chain(&others) {
            command.env_remove(variable);
        }
        command
            .env("OMP_NUM_THREADS", "1")
            .env("HF_ENDPOINT", self.hub.endpoint())
            .env("HF_HOME", self.home.path().join("hf"));
        command
            .env("REPRPO_CACHE", self.home.path().join("reprpo"))
            .current_dir(self.home.path())
            .args(args);
        command
    }

    /// A short run of the hub's model on the hub's pairs.
    fn run(&self, out: &str, extra: &[&str]) -> Output {
        let sets = ["train.max_pairs=4", "train.batch=2", "eval.max_pairs=2"];
        let mut args = vec!["run", "--dtype", "f32", "--device", "cpu", "--out", out];
        args.extend(sets.iter().flat_map(|set| ["--set", set]).chain(extra.iter().copied()));
        self.reprpo(&args).output().expect("it runs")
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.home.path().join(path)).expect(path)
    }
}

#[test]
fn a_model_an_adapter_and_a_data_set_of_the_hub_make_a_run_that_names_their_commits() {
    let there = There::new();
    let output = there.run(
        "first",
        &["--model", "org/tiny", "--dataset", "org/pairs", "--init-adapter", "org/adapter"],
    );
    assert!(output.status.success(), "{}", transcript(&output));
    let (model, data) = (&there.model, &there.data);
    assert!(
        transcript(&output).contains(&format!("pairs@{}, tiny@{}", &data[..7], &model[..7])),
        "{}",
        transcript(&output)
    );
    let config: toml::Table = toml::from_str(&there.text("first/config.toml")).expect("TOML");
    assert_eq!(config["model"].as_str(), Some(format!("org/tiny@{model}").as_str()));
    assert_eq!(config["dataset"]["repo"].as_str(), Some(format!("org/pairs@{data}").as_str()));
    let adapter: Value =
        serde_json::from_str(&there.text("first/adapter/adapter_config.json")).expect("JSON");
    assert_eq!(
        (adapter["base_model_name_or_path"].as_str(), adapter["revision"].as_str()),
        (Some("org/tiny"), Some(model.as_str()))
    );

    // The same again, from the cache alone and from what the run wrote.
    there.hub.requests();
    let output = there.run("second", &["--config", "first/config.toml", "--offline"]);
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(there.hub.requests().is_empty(), "offline nothing is asked");
    let metrics = |run: &str| -> Vec<f64> {
        let losses = |line: &str| {
            serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64().expect("a loss")
        };
        there.text(&format!("{run}/metrics.jsonl")).lines().map(losses).collect()
    };
    assert_eq!(metrics("first"), metrics("second"));

    // A run is evaluated, and an adapter of the hub speaks, on the model that they name.
    let output = there.reprpo(&["eval", "first", "--offline", "--json"]).output().expect("it runs");
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(there.hub.requests().is_empty());
}

#[test]
fn the_doctor_says_which_hub_is_asked_by_whom() {
    let there = There::new();
    let doctor = |variable: (&str, &str)| {
        transcript(
            &there.reprpo(&["doctor"]).env(variable.0, variable.1).output().expect("it runs"),
        )
    };
    assert!(
        doctor(("HF_HUB_OFFLINE", "1"))
            .contains(&format!("{}, offline, no token", there.hub.endpoint()))
    );
    let text = doctor(("HF_TOKEN", TOKEN));
    assert!(text.contains("token of `HF_TOKEN`") && !text.contains(TOKEN), "{text}");
    assert!(doctor(("HF_TOKEN", "not a token")).contains("does not contain a valid token"));
    assert!(
        doctor(("SSL_CERT_FILE", "/nowhere"))
            .contains("the certificates that `SSL_CERT_FILE` names cannot be used")
    );
    assert!(there.hub.requests().is_empty());
}

#[test]
fn data_are_looked_at_with_the_tokenizer_alone() {
    let there = There::new();
    let output = there
        .reprpo(&["data", "inspect", "org/pairs", "--model", "org/tiny"])
        .output()
        .expect("it runs");
    assert!(
        output.status.success() && transcript(&output).contains("in tokens of org/tiny"),
        "{}",
        transcript(&output)
    );
    let fetched: Vec<String> = there.hub.requests().into_iter().map(|r| r.path).collect();
    assert!(
        fetched.iter().any(|path| path.ends_with("tokenizer.json"))
            && !fetched.iter().any(|path| path.ends_with("safetensors")),
        "{fetched:?}"
    );
}

#[test]
fn an_adapter_of_the_hub_speaks() {
    let there = There::new();
    let args = [
        "generate",
        "org/adapter",
        "--model",
        "org/tiny",
        "--plain",
        "--prompt",
        "a b",
        "--max-new-tokens",
        "2",
        "--json",
    ];
    let output = there.reprpo(&args).output().expect("it runs");
    assert!(output.status.success(), "{}", transcript(&output));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(listed[0]["by"], "trained");
}

#[test]
fn the_token_is_in_nothing_that_is_printed_or_written() {
    let there = There::new();
    there.hub.describe("models/org/tiny", Traits { private: true, ..Traits::default() });
    let refused = there.run("refused", &["--model", "org/tiny", "--dataset", "org/pairs"]);
    assert_eq!(refused.status.code(), Some(1), "{}", transcript(&refused));
    assert!(
        transcript(&refused).contains("the model `org/tiny` was not found")
            && transcript(&refused).contains("HF_TOKEN")
            && !there.home.path().join("refused").exists()
    );

    let args = [
        "run",
        "--model",
        "org/tiny",
        "--dataset",
        "org/pairs",
        "--out",
        "out",
        "--set",
        "train.max_pairs=2",
        "--no-eval",
        "-vv",
    ];
    let output = there
        .reprpo(&args)
        .env("HF_TOKEN", TOKEN)
        .env("REPRPO_LOG", "trace")
        .env("RUST_LOG", "trace")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(
        transcript(&output).len() > 2000 && !transcript(&output).contains(TOKEN),
        "the log is there, and the token is not in it"
    );
    let mut folders = vec![there.home.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry")) {
            if entry.file_type().expect("a type").is_dir() {
                folders.push(entry.path());
            } else if let Ok(bytes) = std::fs::read(entry.path()) {
                assert!(
                    !bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()),
                    "{}",
                    entry.path().display()
                );
            }
        }
    }
}

#[test]
fn what_the_hub_refuses_ends_the_command_with_what_to_do() {
    let there = There::new();
    there.hub.describe("models/org/tiny", Traits { gated: true, ..Traits::default() });
    let told = |args: &[&str]| {
        let output = there.reprpo(args).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{}", transcript(&output));
        assert!(output.stdout.is_empty());
        transcript(&output)
    };
    let generate = |model: &str| told(&["generate", "--model", model, "--plain", "--prompt", "a"]);
    let text = generate("org/tiny");
    assert!(
        text.contains("is gated")
            && text.contains(&format!("accept the terms at {}/org/tiny", there.hub.endpoint())),
        "{text}"
    );
    let text = generate("org/adapter");
    assert!(
        text.contains("does not contain a supported model")
            && text.contains("--init-adapter org/adapter"),
        "{text}"
    );
    assert!(generate("org/tiny@v9").contains("has no revision `v9`"));
    assert!(
        told(&["generate", "--model", "org/other", "--offline", "--prompt", "a"])
            .contains("this run is offline")
    );
    let text = told(&["data", "inspect", "org/none", "--offline"]);
    assert!(text.contains("the data set `org/none` is not in the cache"), "{text}");
    there.hub.push(
        "models/org/new",
        "main",
        &[("config.json", br#"{"model_type": "llama9"}"#), ("model.safetensors", b"large")],
    );
    there.hub.requests();
    let text = generate("org/new");
    assert!(
        text.contains("unknown architecture `llama9`")
            && text.contains("did you mean `llama`")
            && text.contains("`org/new`"),
        "{text}"
    );
    assert!(
        !there.hub.requests().iter().any(|r| r.path.ends_with("safetensors")),
        "its weights are not fetched first"
    );
    there.hub.push(
        "models/org/quants",
        "main",
        &[("x-Q4_0.gguf", b"GGUF"), ("x-Q8_0.gguf", b"GGUF")],
    );
    let text = generate("org/quants");
    assert!(text.contains("2 GGUF files") && text.contains("`org/quants/x-Q4_0.gguf`"), "{text}");
    assert!(
        generate("org/quants/x-Q8_0.gguf").contains("x-Q8_0.gguf"),
        "a GGUF of the hub is fetched, and this one is damaged"
    );
}

#[test]
fn a_transfer_that_broke_is_gone_on_with_by_the_next_command() {
    let there = There::new();
    let args =
        ["generate", "--model", "org/tiny", "--plain", "--prompt", "a", "--max-new-tokens", "1"];
    // Something comes, and then nothing any more.
    there.hub.fail(&[vec![Fault::Cut(100)], vec![Fault::Cut(0); 20]].concat());
    let output = there.reprpo(&args).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        transcript(&output).contains("run the same command again to resume the download"),
        "{}",
        transcript(&output)
    );
    there.hub.fail(&[]);
    there.hub.requests();
    let output = there.reprpo(&args).output().expect("it runs");
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(there.hub.requests().iter().any(|r| r.range.is_some()), "it began anew");
}

#[test]
fn a_data_set_that_is_loaded_fetches_as_its_host_does() {
    let there = There::new();
    // Large enough to be shown, and with no data besides.
    let row = format!(
        "{{\"prompt\": \"{}\", \"chosen\": \"c\", \"rejected\": \"r\"}}\n",
        "p".repeat(1000)
    );
    there.hub.push("datasets/org/large", "main", &[("train.jsonl", row.repeat(2500).as_bytes())]);
    let library = library("builtins").display().to_string();
    let bare = |args: &[&str]| {
        let args = [&["data", "inspect", "hub:org/large", "--plugin", &library][..], args].concat();
        let mut command = there.command(Command::new(&*BARE), &args);
        command.env("REPRPO_PLUGIN_DIR", there.home.path()).output().expect("it runs")
    };
    let output = bare(&["--offline"]);
    assert_eq!(output.status.code(), Some(1), "{}", transcript(&output));
    assert!(
        transcript(&output).contains("this run is offline") && there.hub.requests().is_empty(),
        "{}",
        transcript(&output)
    );
    let output = bare(&[]);
    assert!(
        output.status.success() && transcript(&output).contains("2500 pairs"),
        "{}",
        transcript(&output)
    );
    assert!(transcript(&output).contains("fetch train.jsonl, MB 3/3"), "{}", transcript(&output));
    let fetched = there.hub.requests().len();
    let output = bare(&["--offline"]);
    assert!(
        output.status.success() && fetched > 0 && there.hub.requests().is_empty(),
        "{}",
        transcript(&output)
    );
}
