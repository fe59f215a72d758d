//! Models, adapters and data sets of a local hub, used through the command.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use local_hub::{Fault, LocalHub, TOKEN, Traits};
use serde_json::Value;

use crate::plugins::{BARE, library};
use crate::{golden, transcript};

/// A hub with the tiny Llama model, a LoRA adapter for it and its pairs, and an empty home folder.
struct Fixture {
    hub: LocalHub,
    home: tempfile::TempDir,
    model: String,
    data: String,
}

/// Returns the names and contents of the files in a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry"));
    entries
        .map(|e| {
            (e.file_name().into_string().expect("UTF-8"), std::fs::read(e.path()).expect("a file"))
        })
        .collect()
}

impl Fixture {
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

    /// Trains the model briefly; `extra` selects the model and the data.
    fn run(&self, out: &str, extra: &[&str]) -> Output {
        // All splits contain the same pairs.
        let sets = ["train.max_pairs=4", "train.batch=2", "eval.max_pairs=2", "eval.overlap=keep"];
        let mut args = vec!["run", "--dtype", "f32", "--device", "cpu", "--out", out];
        args.extend(sets.iter().flat_map(|set| ["--set", set]).chain(extra.iter().copied()));
        self.reprpo(&args).output().expect("the command runs")
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.home.path().join(path)).expect(path)
    }
}

#[test]
fn a_run_on_hub_repositories_records_their_commits() {
    let fixture = Fixture::new();
    let output = fixture.run(
        "first",
        &["--model", "org/tiny", "--dataset", "org/pairs", "--init-adapter", "org/adapter"],
    );
    assert!(output.status.success(), "{}", transcript(&output));
    let (model, data) = (&fixture.model, &fixture.data);
    assert!(
        transcript(&output).contains(&format!("pairs@{}, tiny@{}", &data[..7], &model[..7])),
        "{}",
        transcript(&output)
    );
    let config: toml::Table = toml::from_str(&fixture.text("first/config.toml")).expect("TOML");
    assert_eq!(config["model"].as_str(), Some(format!("org/tiny@{model}").as_str()));
    assert_eq!(config["dataset"]["repo"].as_str(), Some(format!("org/pairs@{data}").as_str()));
    let adapter: Value =
        serde_json::from_str(&fixture.text("first/adapter/adapter_config.json")).expect("JSON");
    assert_eq!(
        (adapter["base_model_name_or_path"].as_str(), adapter["revision"].as_str()),
        (Some("org/tiny"), Some(model.as_str()))
    );

    // Repeats the run from the cache and the configuration that the first run wrote.
    fixture.hub.requests();
    let output = fixture.run("second", &["--config", "first/config.toml", "--offline"]);
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(fixture.hub.requests().is_empty(), "an offline run must not send requests");
    let metrics = |run: &str| -> Vec<f64> {
        let losses = |line: &str| {
            serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64().expect("a loss")
        };
        fixture.text(&format!("{run}/metrics.jsonl")).lines().map(losses).collect()
    };
    assert_eq!(metrics("first"), metrics("second"));

    // The evaluation finds the cached model and data through the run's configuration.
    let output = fixture
        .reprpo(&["eval", "first", "--offline", "--json"])
        .output()
        .expect("the command runs");
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn doctor_reports_the_hub_the_token_and_the_certificates() {
    let fixture = Fixture::new();
    let doctor = |variable: (&str, &str)| {
        transcript(
            &fixture
                .reprpo(&["doctor"])
                .env(variable.0, variable.1)
                .output()
                .expect("the command runs"),
        )
    };
    assert!(
        doctor(("HF_HUB_OFFLINE", "1"))
            .contains(&format!("{}, offline, no token", fixture.hub.endpoint()))
    );
    let text = doctor(("HF_TOKEN", TOKEN));
    assert!(text.contains("token from `HF_TOKEN`") && !text.contains(TOKEN), "{text}");
    assert!(doctor(("HF_TOKEN", "not a token")).contains("does not contain a valid access token"));
    assert!(
        doctor(("SSL_CERT_FILE", "/nowhere"))
            .contains("cannot use the certificates from `SSL_CERT_FILE`")
    );
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn inspecting_data_fetches_only_the_tokenizer() {
    let fixture = Fixture::new();
    let output = fixture
        .reprpo(&["data", "inspect", "org/pairs", "--model", "org/tiny"])
        .output()
        .expect("the command runs");
    assert!(
        output.status.success() && transcript(&output).contains("in tokens of org/tiny"),
        "{}",
        transcript(&output)
    );
    let fetched: Vec<String> = fixture.hub.requests().into_iter().map(|r| r.path).collect();
    assert!(
        fetched.iter().any(|path| path.ends_with("tokenizer.json"))
            && !fetched.iter().any(|path| path.ends_with("safetensors")),
        "{fetched:?}"
    );
}

#[test]
fn generate_accepts_an_adapter_of_the_hub() {
    let fixture = Fixture::new();
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
    let output = fixture.reprpo(&args).output().expect("the command runs");
    assert!(output.status.success(), "{}", transcript(&output));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(listed[0]["by"], "trained");
}

#[test]
fn the_token_is_never_printed_or_written() {
    let fixture = Fixture::new();
    fixture.hub.describe("models/org/tiny", Traits { private: true, ..Traits::default() });
    let refused = fixture.run("refused", &["--model", "org/tiny", "--dataset", "org/pairs"]);
    assert_eq!(refused.status.code(), Some(1), "{}", transcript(&refused));
    assert!(
        transcript(&refused).contains("the model `org/tiny` was not found")
            && transcript(&refused).contains("HF_TOKEN")
            && !fixture.home.path().join("refused").exists()
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
    let output = fixture
        .reprpo(&args)
        .env("HF_TOKEN", TOKEN)
        .env("REPRPO_LOG", "trace")
        .env("RUST_LOG", "trace")
        .output()
        .expect("the command runs");
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(
        transcript(&output).len() > 2000 && !transcript(&output).contains(TOKEN),
        "the log must be long and must not contain the token"
    );
    let mut folders = vec![fixture.home.path().to_owned()];
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
fn an_error_of_the_hub_is_reported_with_a_hint() {
    let fixture = Fixture::new();
    fixture.hub.describe("models/org/tiny", Traits { gated: true, ..Traits::default() });
    let error = |args: &[&str]| {
        let output = fixture.reprpo(args).output().expect("the command runs");
        assert_eq!(output.status.code(), Some(1), "{}", transcript(&output));
        assert!(output.stdout.is_empty());
        transcript(&output)
    };
    let generate = |model: &str| error(&["generate", "--model", model, "--plain", "--prompt", "a"]);
    let text = generate("org/tiny");
    assert!(
        text.contains("is gated")
            && text.contains(&format!("accept the terms at {}/org/tiny", fixture.hub.endpoint())),
        "{text}"
    );
    let text = generate("org/adapter");
    assert!(
        text.contains("does not contain a supported model")
            && text.contains("--init-adapter org/adapter"),
        "{text}"
    );
    assert!(
        generate("org/tiny@v9").contains("revision `v9` of the model `org/tiny` was not found")
    );
    assert!(
        error(&["generate", "--model", "org/other", "--offline", "--prompt", "a"])
            .contains("this run is offline")
    );
    let text = error(&["data", "inspect", "org/none", "--offline"]);
    assert!(text.contains("the data set `org/none` is not in the cache"), "{text}");
    fixture.hub.push(
        "models/org/new",
        "main",
        &[("config.json", br#"{"model_type": "llama9"}"#), ("model.safetensors", b"large")],
    );
    fixture.hub.requests();
    let text = generate("org/new");
    assert!(
        text.contains("unknown architecture `llama9`")
            && text.contains("did you mean `llama`")
            && text.contains("`org/new`"),
        "{text}"
    );
    assert!(
        !fixture.hub.requests().iter().any(|r| r.path.ends_with("safetensors")),
        "the architecture must be checked before the weights are fetched"
    );
    fixture.hub.push(
        "models/org/quants",
        "main",
        &[("x-Q4_0.gguf", b"GGUF"), ("x-Q8_0.gguf", b"GGUF")],
    );
    let text = generate("org/quants");
    assert!(text.contains("2 GGUF files") && text.contains("`org/quants/x-Q4_0.gguf`"), "{text}");
    assert!(
        generate("org/quants/x-Q8_0.gguf").contains("x-Q8_0.gguf"),
        "a GGUF file must be fetched, and an error must name this invalid one"
    );
}

#[test]
fn the_next_command_resumes_an_interrupted_download() {
    let fixture = Fixture::new();
    let args =
        ["generate", "--model", "org/tiny", "--plain", "--prompt", "a", "--max-new-tokens", "1"];
    // The first connection closes after 100 bytes, and all later ones before the first byte.
    fixture.hub.fail(&[vec![Fault::Cut(100)], vec![Fault::Cut(0); 20]].concat());
    let output = fixture.reprpo(&args).output().expect("the command runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        transcript(&output).contains("run the same command again to resume the download"),
        "{}",
        transcript(&output)
    );
    fixture.hub.fail(&[]);
    fixture.hub.requests();
    let output = fixture.reprpo(&args).output().expect("the command runs");
    assert!(output.status.success(), "{}", transcript(&output));
    assert!(
        fixture.hub.requests().iter().any(|r| r.range.is_some()),
        "the download must resume instead of starting again"
    );
}

#[test]
fn a_data_set_plugin_uses_the_cache_and_offline_mode_of_its_host() {
    let fixture = Fixture::new();
    // Large enough for a progress line, and the repository's only file.
    let row = format!(
        "{{\"prompt\": \"{}\", \"chosen\": \"c\", \"rejected\": \"r\"}}\n",
        "p".repeat(1000)
    );
    fixture.hub.push("datasets/org/large", "main", &[("train.jsonl", row.repeat(2500).as_bytes())]);
    let library = library("builtins").display().to_string();
    let bare = |args: &[&str]| {
        let args = [&["data", "inspect", "hub:org/large", "--plugin", &library][..], args].concat();
        let mut command = fixture.command(Command::new(&*BARE), &args);
        command.env("REPRPO_PLUGIN_DIR", fixture.home.path()).output().expect("the command runs")
    };
    let output = bare(&["--offline"]);
    assert_eq!(output.status.code(), Some(1), "{}", transcript(&output));
    assert!(
        transcript(&output).contains("this run is offline") && fixture.hub.requests().is_empty(),
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
    let fetched = fixture.hub.requests().len();
    let output = bare(&["--offline"]);
    assert!(
        output.status.success() && fetched > 0 && fixture.hub.requests().is_empty(),
        "{}",
        transcript(&output)
    );
}
