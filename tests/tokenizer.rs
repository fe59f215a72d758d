//! Tokenizers that are described by several files, and tokens that the model does not have.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{golden, jsonl, logp_sums, reprpo, stderr, stdout};

/// Runs a command, checks that it succeeds, and returns stdout and stderr.
fn output_of(args: &[&str]) -> (String, String) {
    let output = reprpo(args);
    (stdout(&output), stderr(&output))
}

/// The name of a JSON file and a function that edits it.
type Edit<'a> = (&'a str, &'a dyn Fn(&mut Value));

/// Copies the small model `base` into a new folder in `dir`, applies the edits to the copy and
/// returns its path.
fn copy(golden: &Path, base: &str, dir: &Path, edits: &[Edit<'_>]) -> String {
    let from = golden.join("models").join(base);
    let to = dir.join(format!("{base}-{}", std::fs::read_dir(dir).expect("a folder").count()));
    std::fs::create_dir(&to).expect("a folder");
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        if let Ok(bytes) = std::fs::read(from.join(file)) {
            std::fs::write(to.join(file), bytes).expect("the file is written");
        }
    }
    for (file, edit) in edits {
        let path = to.join(file);
        let mut value: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        edit(&mut value);
        std::fs::write(&path, value.to_string()).expect("the file is written");
    }
    to.display().to_string()
}

fn flags(content: &str, strips: bool) -> Value {
    json!({ "content": content, "single_word": false, "lstrip": strips, "rstrip": strips,
        "normalized": false, "special": true })
}

fn pairs(dir: &Path, name: &str, rows: &[[&str; 3]]) -> PathBuf {
    let row = |[prompt, chosen, rejected]: &[&str; 3]| {
        json!({ "prompt": prompt, "chosen": chosen,
        "rejected": rejected })
    };
    jsonl(dir, name, &rows.iter().map(row).collect::<Vec<_>>())
}

/// Returns Σ log p of the chosen and the rejected completion of the first pair.
fn score(model: &str, data: &Path) -> [f64; 2] {
    let data = data.display().to_string();
    logp_sums(&reprpo(&[
        "score", "--model", model, "--data", &data, "--device", "cpu", "--dtype", "f32", "--json",
    ]))[0]
}

fn assert_near(found: [f64; 2], expected: [f64; 2]) {
    assert!(
        found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3),
        "{found:?} instead of {expected:?}"
    );
}

/// Returns the value `name` of `scores.json`, which transformers computed for models that these
/// tests write.
fn expected(golden: &Path, name: &str) -> Value {
    let text = std::fs::read(golden.join("scores.json")).expect("scores");
    serde_json::from_slice::<Value>(&text).expect("JSON")[name].clone()
}

fn expected_scores(golden: &Path, name: &str) -> [f64; 2] {
    serde_json::from_value(expected(golden, name)).expect("two scores")
}

#[test]
fn flags_in_tokenizer_config_override_those_in_tokenizer_json() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let decoder: serde_json::Map<String, Value> =
        special.iter().enumerate().map(|(i, t)| (i.to_string(), flags(t, true))).collect();
    let model = copy(
        &golden,
        "llama",
        dir.path(),
        &[("tokenizer_config.json", &|c| c["added_tokens_decoder"] = decoder.clone().into())],
    );
    let data = pairs(
        dir.path(),
        "pairs.jsonl",
        &[["A <|im_start|> b  <|im_end|>\n\n c", " <|im_end|>  x", "y <|im_start|>\n z"]],
    );
    assert_near(score(&model, &data), expected_scores(&golden, "flags"));
}

#[test]
fn a_token_without_an_embedding_is_an_error_only_in_a_text_that_contains_it() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let add = |content: &'static str| {
        move |t: &mut Value| {
            let mut token = flags(content, false);
            token["id"] = 384.into();
            t["added_tokens"].as_array_mut().expect("a list").push(token);
        }
    };
    let row = ["The sky is", " blue and wide.", " green 123 today."];
    let data = pairs(dir.path(), "without.jsonl", &[row]);
    let soft =
        copy(&golden, "gemma3_text", dir.path(), &[("tokenizer.json", &add("<image_soft_token>"))]);
    assert_near(score(&soft, &data), expected_scores(&golden, "sky.gemma3_text"));
    let pad = copy(
        &golden,
        "llama",
        dir.path(),
        &[
            ("tokenizer.json", &add("[PAD]")),
            ("tokenizer_config.json", &|c| c["pad_token"] = "[PAD]".into()),
        ],
    );
    assert_near(score(&pad, &data), expected_scores(&golden, "sky.llama"));

    let with =
        pairs(dir.path(), "with.jsonl", &[row, ["A [PAD] b", " c", " d"]]).display().to_string();
    let rejected = pairs(dir.path(), "rejected.jsonl", &[row, ["A b", " c", " [PAD] d"]])
        .display()
        .to_string();
    let out = dir.path().join("run").display().to_string();
    let cpu = ["--device", "cpu"];
    let message = "the token `[PAD]` has the id 384, but the model's embedding has 384 rows";
    for (args, place) in [
        (vec!["score", "--model", &pad, "--data", &with], "the prompt of pair 1"),
        (vec!["score", "--model", &pad, "--data", &rejected], "the rejected completion of pair 1"),
        (vec!["eval", "--model", &pad, "--dataset", &with], "the prompt of pair 1"),
        (vec!["run", "--model", &pad, "--dataset", &with, "--out", &out], "the prompt of pair 1"),
        (vec!["generate", "--model", &pad, "--prompt", "a [PAD]"], "the prompt"),
        (vec!["generate", "--model", &pad, "--plain", "--prompt", "a [PAD]"], "the prompt"),
    ] {
        let output = reprpo(&[&args[..], &cpu].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(message) && text.contains(place), "{args:?}: {text}");
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn completions_stop_at_every_end_token_that_the_model_names() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let tokens = |model: &str, limit: &str| {
        let args = [
            "generate",
            "--model",
            model,
            "--prompt",
            "Name a river.",
            "--max-new-tokens",
            limit,
            "--device",
            "cpu",
            "--dtype",
            "f32",
            "--json",
        ];
        let (text, log) = output_of(&args);
        (serde_json::from_str::<Value>(&text).expect("JSON")[0]["tokens"].as_u64(), log)
    };
    let ends = |ids: Value| move |c: &mut Value| c["eos_token_id"] = ids.clone();
    let none = copy(&golden, "llama", dir.path(), &[]);
    assert_eq!(tokens(&none, "12").0, Some(12));
    // The fifth generated token differs from the first four, so as an end token it ends the text at
    // length 5.
    let river: Vec<i64> = serde_json::from_value(expected(&golden, "river")).expect("ids");
    let fifth = river[4];
    assert!(!river[..4].contains(&fifth));
    for (file, ids) in [
        ("generation_config.json", json!([2, fifth])),
        ("config.json", json!([2, fifth])),
        ("generation_config.json", json!(fifth)),
    ] {
        let model = copy(&golden, "llama", dir.path(), &[(file, &ends(ids.clone()))]);
        assert_eq!(tokens(&model, "12").0, Some(5), "{file} {ids}");
    }
    let wrong =
        copy(&golden, "llama", dir.path(), &[("generation_config.json", &ends(json!(["</s>"])))]);
    let output = reprpo(&["generate", "--model", &wrong, "--prompt", "a", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("`eos_token_id` in generation_config.json is `\"</s>\"`"),
        "{output:?}"
    );
}

#[test]
fn a_model_without_an_end_token_causes_a_warning() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let renamed = |t: &mut Value| {
        let text = t.to_string().replace("<|im_end|>", "<end>").replace("<|endoftext|>", "<pad>");
        *t = serde_json::from_str(&text).expect("JSON");
    };
    let without = |c: &mut Value| c["eos_token_id"] = Value::Null;
    let edits: [Edit<'_>; 4] = [
        ("tokenizer.json", &renamed),
        ("tokenizer_config.json", &|c| *c = json!({ "tokenizer_class": "TokenizersBackend" })),
        ("config.json", &without),
        ("generation_config.json", &without),
    ];
    let warning = "warning: neither the model nor its tokenizer defines a stop token, so \
        every completion has 3 tokens";
    let generate = |model: &str| {
        output_of(&[
            "generate",
            "--model",
            model,
            "--plain",
            "--prompt",
            "a",
            "--max-new-tokens",
            "3",
            "--device",
            "cpu",
        ])
        .1
    };
    let log = generate(&copy(&golden, "llama", dir.path(), &edits));
    assert!(log.contains(warning), "{log}");
    let log = generate(&golden.join("models/llama").display().to_string());
    assert!(!log.contains("names a token"), "{log}");
    // The completions of an evaluation cause the same warning.
    let model = copy(&golden, "llama", dir.path(), &edits);
    let data = pairs(dir.path(), "pairs.jsonl", &[["Is it so? ", "Yes, it is.", "No, never."]])
        .display()
        .to_string();
    let (_, log) = output_of(&[
        "eval",
        "--model",
        &model,
        "--dataset",
        &data,
        "--device",
        "cpu",
        "--set",
        "eval.completion_tokens=3",
    ]);
    assert!(log.contains(warning), "{log}");
}

#[test]
fn the_progress_of_completions_reaches_its_total() {
    let golden = golden::own();
    let (model, data) = (
        golden.join("models/llama").display().to_string(),
        golden.join("trl/pairs.jsonl").display().to_string(),
    );
    // The fourth token of one completion ends in the middle of a character, so the last text of the
    // completion comes after its last token.
    let sets = [
        "--set",
        "eval.completion_tokens=4",
        "--set",
        "eval.completions=8",
        "--set",
        "eval.splits=[\"train[:6]\"]",
    ];
    let (_, log) = output_of(
        &[&["eval", "--model", &model, "--dataset", &data, "--device", "cpu"][..], &sets].concat(),
    );
    let last = log
        .lines()
        .rfind(|line| line.starts_with("completions "))
        .expect("a line of progress")
        .to_owned();
    let place = last.split_whitespace().nth(1).expect("a place");
    let (completed, total) = place.split_once('/').expect("a total");
    assert_eq!(completed, total, "{log}");
}
