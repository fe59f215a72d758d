//! `reprpo generate` and `reprpo chat`, and the sample completions of runs and evaluations.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use reprpo_core::weights::{Extent, ModelFiles, locate};
use serde_json::Value;

use crate::{golden, stdout};

fn reprpo(args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("reprpo"))
        .env("NO_COLOR", "1")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .expect("the command reads stdin");
    child.wait_with_output().expect("the command ends")
}

#[test]
fn greedy_text_equals_that_of_transformers() {
    let read = |root: PathBuf| {
        let text = std::fs::read(root.join("smollm2/chats.json")).expect("chats");
        serde_json::from_slice::<Vec<Value>>(&text).expect("JSON")
    };
    let chats: Vec<Value> = golden::roots().into_iter().flat_map(read).collect();
    let single = |chat: &&Value| {
        chat["messages"].as_array().is_some_and(|m| m.len() == 1) && chat["greedy_text"].is_string()
    };
    let chats: Vec<&Value> = chats.iter().filter(single).collect();
    assert!(chats.len() >= 2);
    let mut args = vec![
        "generate",
        "--model",
        "smollm2-135m-instruct",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--max-new-tokens",
        "64",
        "--json",
    ];
    for chat in &chats {
        args.extend(["--prompt", chat["messages"][0]["content"].as_str().expect("a text")]);
    }
    let answers: Value = serde_json::from_str(&stdout(&reprpo(&args, ""))).expect("JSON");
    let tokenizer = ModelFiles::tokenizer_of(
        &locate("smollm2-135m-instruct", Extent::Tokenizer)
            .expect("the model has generated text")
            .path,
    )
    .expect("a tokenizer");
    for (chat, answer) in chats.iter().zip(answers.as_array().expect("a list")) {
        assert_eq!(answer["text"], chat["greedy_text"]);
        assert_eq!(
            answer["tokens"].as_u64(),
            chat["greedy_ids"].as_array().map(|ids| ids.len() as u64)
        );
        // The two rates are separate, because a prompt is processed at once and a completion token
        // by token.
        let prompt =
            tokenizer.encode(chat["text_generation"].as_str().expect("a text")).expect("ids");
        assert_eq!(answer["prompt_tokens"].as_u64(), Some(prompt.len() as u64));
        assert!(
            ["tokens_per_second", "prompt_tokens_per_second"]
                .iter()
                .all(|rate| answer[rate].as_f64().is_some_and(|r| r > 0.0)),
            "{answer}"
        );
    }
}

#[test]
fn compare_shows_the_base_and_the_trained_model() {
    let golden = golden::own();
    let (model, dir) =
        (golden.join("models/llama").display().to_string(), tempfile::tempdir().expect("a folder"));
    let (out, pairs) = (
        dir.path().join("run").display().to_string(),
        golden.join("trl/pairs.jsonl").display().to_string(),
    );
    let train = [
        "run",
        "--no-eval",
        "--intervention",
        "sft",
        "--model",
        &model,
        "--dataset",
        &pairs,
        "--out",
        &out,
    ];
    stdout(&reprpo(
        &[
            &train[..],
            &[
                "--set",
                "train.lr=3e-2",
                "--set",
                "train.warmup=0",
                "--set",
                "adapter.target_modules=all-linear",
            ],
        ]
        .concat(),
        "",
    ));
    let prompt = ["--plain", "--prompt", "a", "--max-new-tokens", "12"];
    let both: Value = serde_json::from_str(&stdout(&reprpo(
        &[&["generate", &out, "--compare", "--json"], &prompt[..]].concat(),
        "",
    )))
    .expect("JSON");
    let text_of = |by: &str| {
        both.as_array().expect("a list").iter().find(|a| a["by"] == by).expect(by)["text"].clone()
    };
    assert_ne!(text_of("base"), text_of("trained"));
    let alone: Value = serde_json::from_str(&stdout(&reprpo(
        &[&["generate", "--model", &model, "--json"], &prompt[..]].concat(),
        "",
    )))
    .expect("JSON");
    assert_eq!(alone[0]["text"], text_of("base"));
    // The same seed gives the same text, and another seed another text.
    let drawn = |seed: &str| {
        stdout(&reprpo(
            &[
                &["generate", &out, "--temperature", "1.5", "--top-p", "0.95", "--seed", seed],
                &prompt[..],
            ]
            .concat(),
            "",
        ))
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));

    let refused = |args: &[&str]| {
        let output = reprpo(
            &[&["generate", "--model", &model, "--plain", "--prompt", "a"], args].concat(),
            "",
        );
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(
        refused(&["--top-p", "0"])
            .contains("`top-p` is 0, but must be greater than 0 and at most 1")
    );
    assert!(refused(&["--temperature", "-1"]).contains("`temperature` is -1"));
}

#[test]
fn a_chat_has_one_line_per_turn_and_ends_at_an_empty_line() {
    let args = [
        "chat",
        "--model",
        "smollm2-135m-instruct",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--max-new-tokens",
        "16",
    ];
    let output = reprpo(&args, "Hello\nWhat is the capital of France?\n\nignored\n");
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0], "Hello! How can I assist you today?");
    assert!(lines[1].contains("Paris"), "{text}");
}

/// Runs the command and returns its output as JSON.
fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&reprpo(args, ""))).expect("JSON")
}

/// Returns the distinct prompts of a file of pairs in their order.
fn prompts(pairs: &std::path::Path) -> Vec<String> {
    let mut prompts = Vec::new();
    for line in std::fs::read_to_string(pairs).expect("pairs").lines() {
        let pair: Value = serde_json::from_str(line).expect("JSON");
        let prompt = pair["prompt"].as_str().expect("a text").to_owned();
        if !prompts.contains(&prompt) {
            prompts.push(prompt);
        }
    }
    prompts
}

#[test]
fn a_run_reports_completions_before_and_after_training() {
    let golden = golden::own();
    let (model, dir) =
        (golden.join("models/llama").display().to_string(), tempfile::tempdir().expect("a folder"));
    let (pairs, at) =
        (golden.join("trl/pairs.jsonl"), |name: &str| dir.path().join(name).display().to_string());
    let data = pairs.display().to_string();
    let run = |out: &str, extra: &[&str]| {
        let out = at(out);
        let settings = [
            "--set",
            "train.lr=3e-2",
            "--set",
            "train.warmup=0",
            "--set",
            "eval.max_pairs=12",
            "--set",
            "eval.completion_tokens=9",
        ];
        let args = [
            "run",
            "--intervention",
            "sft",
            "--model",
            &model,
            "--dataset",
            &data,
            "--dtype",
            "f32",
            "--device",
            "cpu",
            "--out",
            &out,
        ];
        stdout(&reprpo(
            &[&args[..], &settings, &["--set", "adapter.target_modules=all-linear"], extra]
                .concat(),
            "",
        ))
    };
    let text_of = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let first = text_of(&run("first", &["--json"]));
    let completions = &first["completions"];
    assert_eq!(first["run"], at("first"));
    assert_eq!(
        (&completions["started_from"], &completions["max_new_tokens"]),
        (&"base".into(), &9.into())
    );
    let answered = completions["prompts"].as_array().expect("a list");
    let used: Vec<&str> = answered.iter().filter_map(|a| a["prompt"].as_str()).collect();
    assert_eq!(used, prompts(&pairs)[..2], "the first distinct prompts must be used in order");
    for answer in answered {
        let prompt = answer["prompt"].as_str().expect("a text");
        // `reprpo generate` gives the same texts for the base model and for the run.
        let plain = [
            "--plain",
            "--max-new-tokens",
            "9",
            "--dtype",
            "f32",
            "--device",
            "cpu",
            "--json",
            "--prompt",
            prompt,
        ];
        let (before, after) = (
            json(&[&["generate", "--model", &model], &plain[..]].concat()),
            json(&[&["generate", &at("first")], &plain[..]].concat()),
        );
        assert_eq!(
            (&answer["before"]["text"], &answer["after"]["text"]),
            (&before[0]["text"], &after[0]["text"])
        );
        assert_eq!(
            (&answer["before"]["tokens"], &answer["after"]["tokens"]),
            (&before[0]["tokens"], &after[0]["tokens"])
        );
        assert_ne!(answer["before"], answer["after"]);
    }
    let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).expect(file);
    assert_eq!(text_of(&read("first/eval/summary.json"))["completions"], *completions);
    // An evaluation of the run generates the same completions.
    let evaluated = json(&["eval", &at("first"), "--dtype", "f32", "--device", "cpu", "--json"]);
    assert_eq!(evaluated[0]["completions"], *completions);

    // Completions do not affect training, and the rest of the report is the same without them.
    let text = run("silent", &["--set", "eval.completions=0"]);
    let bytes = |name: &str| {
        std::fs::read(dir.path().join(name).join("adapter/adapter_model.safetensors"))
            .expect("an adapter")
    };
    assert_eq!(bytes("first"), bytes("silent"));
    assert!(
        !text.contains("before: ")
            && text_of(&read("silent/eval/summary.json"))["completions"].is_null(),
        "{text}"
    );
    assert_eq!(text_of(&read("silent/eval/summary.json"))["splits"], first["splits"]);

    // A run that starts from an adapter reports the completions of that adapter as `before`.
    let init = dir.path().join("first/adapter").display().to_string();
    let text = run("second", &["--init-adapter", &init, "--set", "eval.completions=1"]);
    let second = text_of(&read("second/eval/summary.json"))["completions"].clone();
    assert_eq!(
        (&second["started_from"], second["prompts"].as_array().map(Vec::len)),
        (&"init_adapter".into(), Some(1))
    );
    assert_eq!(second["prompts"][0]["before"], completions["prompts"][0]["after"]);
    for shown in [
        "ppl ratio: below 1",
        "\n\ngreedy completions of prompts from ",
        "\nprompt  ",
        "\nbefore  ",
        "\nafter   ",
    ] {
        assert!(text.contains(shown), "{shown}\n{text}");
    }
    let file = read("second/eval/table.md");
    assert!(
        file.contains("\n\n    prompt  ")
            && file.contains("\n    before  ")
            && file.contains("\n    after   "),
        "{file}"
    );
}

/// As in training, the text of a conversation is generated at the start of the answer.
#[test]
fn a_conversation_is_answered_before_and_after_training() {
    let golden = golden::own();
    let (model, dir) =
        (golden.join("models/llama").display().to_string(), tempfile::tempdir().expect("a folder"));
    let (data, out) =
        (dir.path().join("chats.jsonl"), dir.path().join("run").display().to_string());
    let turn =
        |role: &str, content: &str| serde_json::json!([{ "role": role, "content": content }]);
    let pair = |question: &str, answer: &str| {
        format!(
            "{}\n",
            serde_json::json!({ "prompt": turn("user", question), "chosen": turn("assistant",
                answer), "rejected": turn("assistant", "no") })
        )
    };
    // The repeated prompt is used once.
    std::fs::write(
        &data,
        pair("Is it\nflat?", "Round.") + &pair("Is it\nflat?", "No.") + &pair("How many?", "Two."),
    )
    .expect("the file is written");
    let base = ["--dtype", "f32", "--device", "cpu"];
    let args = [
        "run",
        "--json",
        "--intervention",
        "none",
        "--model",
        &model,
        "--dataset",
        &data.display().to_string(),
        "--out",
        &out,
    ];
    let completions = json(
        &[&args[..], &base, &["--set", "eval.completion_tokens=7", "--set", "eval.completions=5"]]
            .concat(),
    )["completions"]
        .clone();
    let answered = completions["prompts"].as_array().expect("a list");
    assert_eq!(answered.iter().map(|a| &a["index"]).collect::<Vec<_>>(), [0, 2]);
    for (answer, question) in answered.iter().zip(["Is it\nflat?", "How many?"]) {
        assert_eq!(answer["prompt"], turn("user", question));
        let alone = json(
            &[
                &[
                    "generate",
                    "--model",
                    &model,
                    "--max-new-tokens",
                    "7",
                    "--json",
                    "--prompt",
                    question,
                ],
                &base[..],
            ]
            .concat(),
        );
        assert_eq!(answer["before"]["text"], alone[0]["text"]);
        // A method that trains nothing does not change the answers.
        assert_eq!(answer["before"], answer["after"]);
    }
    // The evaluation of a base model has only one completion per prompt.
    let args = [
        "eval",
        "--model",
        &model,
        "--dataset",
        &data.display().to_string(),
        "--set",
        "eval.completions=1",
        "--set",
        "eval.completion_tokens=7",
    ];
    let text = stdout(&reprpo(&[&args[..], &base].concat(), ""));
    assert!(
        text.contains("\nprompt  Is it⏎\n        flat?\nmodel   ") && !text.contains("before"),
        "{text}"
    );
}
