//! The token ids of pairs, and the reports of `score`, `eval` and `run` about dropped and truncated
//! pairs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use reprpo_core::weights::{Extent, locate};
use serde_json::{Value, json};

use crate::{golden, json_lines as lines, jsonl, logp_sums, reprpo_in as reprpo, stderr, stdout};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Each folder contains a tokenizer with its chat template, and rows with the ids that TRL's
/// trainer produces for them.
#[test]
fn pairs_have_the_same_ids_as_in_trl() {
    for root in golden::roots() {
        assert_same_ids_as_in_trl(&root);
    }
}

fn assert_same_ids_as_in_trl(golden: &Path) {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut compared, mut empty_prompts) = (0, 0);
    for folder in ["plain", "bos", "think", "moved_system", "tools", "switch", "smollm2"] {
        let tokenizer = match folder {
            "smollm2" => {
                locate("smollm2-135m-instruct", Extent::Tokenizer).map(|found| found.path).ok()
            }
            _ => Some(golden.join("trl_tokens").join(folder)),
        };
        let Some(tokenizer) = tokenizer else {
            eprintln!("skipped: the model smollm2-135m-instruct has not been downloaded");
            continue;
        };
        let text =
            std::fs::read_to_string(golden.join("trl_tokens").join(folder).join("rows.jsonl"))
                .expect("rows");
        // All rows of a data file must have the same format.
        let mut shapes: BTreeMap<(bool, bool), Vec<Value>> = BTreeMap::new();
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).expect("JSON");
            shapes
                .entry((row["chosen"].is_string(), row.get("prompt").is_some()))
                .or_default()
                .push(row);
        }
        for rows in shapes.values() {
            let file = jsonl(dir.path(), "rows.jsonl", rows);
            let found = lines(&reprpo(
                dir.path(),
                &["data", "tokens", utf8(&file), "--model", utf8(&tokenizer), "--json"],
            ));
            assert_eq!(found.len(), rows.len());
            for (i, (mut found, row)) in found.into_iter().zip(rows).enumerate() {
                assert_eq!(found["index"], i);
                if row["expect"]["prompt_ids"] == json!([]) {
                    // The first token of a completion needs a preceding token: the BOS, or the EOS
                    // if there is no BOS.
                    assert_eq!(found["prompt_ids"].as_array().map(Vec::len), Some(1));
                    found["prompt_ids"] = json!([]);
                    empty_prompts += 1;
                }
                for ids in ["prompt_ids", "chosen_ids", "rejected_ids"] {
                    assert_eq!(found[ids], row["expect"][ids], "{folder}: {ids} of {row}");
                }
                compared += 1;
            }
        }
    }
    assert!(
        compared >= 50 && empty_prompts >= 1,
        "{compared} rows, {empty_prompts} without a prompt"
    );
}

/// Writes a tokenizer whose tokens are single letters. It adds a BOS and merges a space with `B`.
fn tokenizer(folder: &Path) -> PathBuf {
    let letters = ('a'..='z')
        .chain('A'..='Z')
        .map(String::from)
        .chain(["Ġ", ":", ".", "ĠB"].map(String::from));
    let vocabulary: BTreeMap<String, usize> =
        ["<s>".to_owned(), "</s>".to_owned()].into_iter().chain(letters).zip(0..).collect();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true})
    };
    let (begin, text) = (
        json!({"SpecialToken": {"id": "<s>", "type_id": 0}}),
        json!({"Sequence": {"id": "A", "type_id": 0}}),
    );
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    let json = json!({
        "version": "1.0", "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "pre_tokenizer": bytes, "decoder": bytes,
        "post_processor": {
            "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text,
            {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["Ġ B"]},
    });
    let dir = folder.join("tokenizer");
    std::fs::create_dir_all(&dir).expect("a folder");
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).expect("the file is written");
    std::fs::write(
        dir.join("tokenizer_config.json"),
        r#"{"bos_token": "<s>", "eos_token": "</s>"}"#,
    )
    .expect("the file is written");
    dir
}

#[test]
fn tokens_are_listed_pair_by_pair_with_the_index_of_their_row() {
    let dir = tempfile::tempdir().expect("a folder");
    let tokenizer = tokenizer(dir.path());
    let rows = [
        json!({"prompt": "Say: ", "chosen": "B", "rejected": "ab"}),
        json!({"prompt": "Say:", "chosen": null, "rejected": "c"}),
        json!({"prompt": "Say:", "chosen": "", "rejected": "d"}),
    ];
    jsonl(dir.path(), "pairs.jsonl", &rows);
    let args = [
        "data",
        "tokens",
        "pairs.jsonl",
        "--model",
        utf8(&tokenizer),
        "--set",
        "dataset.bad_rows=skip",
    ];
    let run = |more: &[&str]| reprpo(dir.path(), &[&args[..], more].concat());
    let output = run(&[]);
    let want = "0  <s>Say:  chosen ⟨ B</s>⟩  rejected ⟨ ab</s>⟩\n2  <s>Say:  chosen ⟨</s>⟩  \
        rejected ⟨d</s>⟩\n";
    assert_eq!(stdout(&output), want);
    let log = stderr(&output);
    assert!(
        log.contains("than before a completion: 1. ")
            && log.contains("Cut from the prompt: \" \"\n"),
        "{log}"
    );
    assert!(log.contains("pairs with an empty completion: 1\n"), "{log}");
    let colours = stdout(&run(&["--color", "always"]));
    assert!(
        colours.contains("\x1b[2m<s>Say:\x1b[0m") && colours.contains("\x1b[32m⟨ B</s>⟩\x1b[0m"),
        "{colours:?}"
    );

    let ids = lines(&run(&["--json"]));
    let (say, bos) = ([46, 2, 26, 55], 0);
    assert_eq!(
        ids[0],
        json!({"split": "train", "index": 0, "prompt_ids": [bos, say[0], say[1], say[2], say[3]],
            "chosen_ids": [57, 1], "rejected_ids": [54, 2, 3, 1]})
    );
    assert_eq!((&ids[1]["index"], &ids[1]["chosen_ids"], ids.len()), (&json!(2), &json!([1]), 2));
    let bare = lines(&run(&["--json", "--no-special-tokens", "--no-eos"]));
    assert_eq!((&bare[0]["prompt_ids"], &bare[0]["chosen_ids"]), (&json!(say), &json!([57])));
    assert_eq!(
        bare[1],
        json!({"split": "train", "index": 2, "dropped": "empty_chosen",
            "reason": "the chosen completion is empty"})
    );
    // There is no limit unless a flag sets one.
    let cut = lines(&run(&["--json", "--max-length", "7"]));
    assert_eq!(
        (&cut[0]["rejected_ids"], &cut[0]["truncated"]),
        (&json!([54, 2]), &json!("2 tokens removed from the rejected completion"))
    );
    let inspected: Value = serde_json::from_str(&stdout(&reprpo(
        dir.path(),
        &[&["data", "inspect"], &args[2..], &["--json"]].concat(),
    )))
    .expect("JSON");
    let used = &inspected["splits"][0]["used"];
    assert_eq!((&used["prefix_mismatches"], &used["left_out"]), (&json!(1), &json!(" ")));
    assert_eq!(
        inspected["splits"][0]["examples"][0]["chosen"]["ids"],
        json!([bos, say[0], say[1], say[2], say[3], 57, 1])
    );
}

/// Copies a small model and gives it another tokenizer: `plain`, or `bos`, which adds a BOS to
/// plain text.
fn with_tokenizer(golden: &Path, model: &str, tokenizer: &str, folder: &Path) -> PathBuf {
    let made = folder.join(format!("{model}_{tokenizer}"));
    std::fs::create_dir_all(&made).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join("models").join(model).join(file), made.join(file))
            .expect("the file is copied");
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(golden.join("trl_tokens").join(tokenizer).join(file), made.join(file))
            .expect("the file is copied");
    }
    made
}

fn score(folder: &Path, model: &Path, data: &Path, more: &[&str]) -> Output {
    reprpo(
        folder,
        &[
            &[
                "score",
                "--device",
                "cpu",
                "--dtype",
                "f32",
                "--model",
                utf8(model),
                "--data",
                utf8(data),
            ],
            more,
        ]
        .concat(),
    )
}

/// Returns the scores of all pairs, chosen before rejected.
fn logps(output: &Output) -> Vec<f64> {
    logp_sums(output).concat()
}

fn assert_near(found: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(found.len(), want.len());
    assert!(
        found.iter().zip(want).all(|(a, b)| (a - b).abs() < tolerance),
        "{found:?} instead of {want:?}"
    );
}

/// Counterpart of `plain` in `tests/golden/scores.json` for the models in `shared/golden`.
const SCORES: [(&str, &str, [f64; 4]); 16] = [
    ("gemma3_text", "plain", [-42.753752, -30.187537, -23.898395, -35.707408]),
    ("gemma3_text", "bos", [-42.788607, -30.125724, -23.999531, -35.567203]),
    ("gpt_neox", "plain", [-37.887355, -28.234001, -22.449965, -30.663142]),
    ("gpt_neox", "bos", [-37.982335, -29.636383, -20.858334, -28.882792]),
    ("llama", "plain", [-37.039681, -29.610431, -20.866783, -30.327418]),
    ("llama", "bos", [-35.626291, -30.080607, -20.571534, -29.857569]),
    ("llama_tied_rope3", "plain", [-36.495336, -29.604342, -22.245665, -31.155449]),
    ("llama_tied_rope3", "bos", [-35.253977, -29.853256, -22.282405, -31.131026]),
    ("mistral", "plain", [-37.382442, -29.909167, -20.866783, -29.969283]),
    ("mistral", "bos", [-36.148972, -30.282709, -20.072629, -29.386895]),
    ("phi3", "plain", [-45.748395, -29.032376, -19.708488, -34.55826]),
    ("phi3", "bos", [-45.431637, -30.90576, -20.216778, -33.875461]),
    ("qwen2", "plain", [-38.974571, -31.73192, -23.484086, -26.905519]),
    ("qwen2", "bos", [-37.33286, -30.912041, -24.415381, -27.4386]),
    ("qwen3", "plain", [-40.451506, -30.745364, -24.496831, -29.930561]),
    ("qwen3", "bos", [-40.843947, -30.956645, -25.506192, -29.081053]),
];

#[test]
fn plain_text_has_the_same_scores_as_in_transformers() {
    let golden = golden::own();
    let text = std::fs::read(golden.join("scores.json")).expect("scores");
    let scores: Value = serde_json::from_slice(&text).expect("JSON");
    let own: Vec<(String, String, [f64; 4])> =
        serde_json::from_value(scores["plain"].clone()).expect("rows");
    assert_scores_of_transformers(
        &golden,
        &own.iter()
            .map(|(model, tokenizer, want)| (&**model, &**tokenizer, *want))
            .collect::<Vec<_>>(),
    );
    if let Some(shared) = golden::shared("golden/models") {
        assert_scores_of_transformers(&shared.join("golden"), &SCORES);
    }
}

/// Compares scores with those of transformers. A row of `scores` has a model, a tokenizer, and the
/// scores of two pairs, chosen before rejected. transformers processed `tokenizer(prompt +
/// completion + eos)` in float32 and scored the tokens after the ids that the prompt and both texts
/// have in common.
fn assert_scores_of_transformers(golden: &Path, scores: &[(&str, &str, [f64; 4])]) {
    assert_eq!(scores.len(), 16);
    let dir = tempfile::tempdir().expect("a folder");
    let rows = [
        json!({"prompt": "The sky is", "chosen": " blue", "rejected": " green"}),
        json!({"prompt": "Answer: ", "chosen": "B", "rejected": "the sea"}),
    ];
    let file = jsonl(dir.path(), "pairs.jsonl", &rows);
    for (name, tokenizer, want) in scores {
        let model = with_tokenizer(golden, name, tokenizer, dir.path());
        assert_near(&logps(&score(dir.path(), &model, &file, &["--json"])), want, 1e-4);
        if (*name, *tokenizer) == ("llama", "bos") {
            let bare = logps(&score(dir.path(), &model, &file, &["--json", "--no-special-tokens"]));
            assert_near(&bare, &scores[4].2, 1e-4);
            let prompt = [
                "generate",
                "--device",
                "cpu",
                "--dtype",
                "f32",
                "--max-new-tokens",
                "1",
                "--plain",
                "--prompt",
                "The sky is",
                "--json",
            ];
            let generated: Value = serde_json::from_str(&stdout(&reprpo(
                dir.path(),
                &[&prompt[..], &["--model", utf8(&model)]].concat(),
            )))
            .expect("JSON");
            let ids = lines(&reprpo(
                dir.path(),
                &["data", "tokens", utf8(&file), "--model", utf8(&model), "--json"],
            ));
            assert_eq!(
                generated[0]["prompt_tokens"].as_u64(),
                ids[0]["prompt_ids"].as_array().map(|ids| ids.len() as u64)
            );
        }
    }
}

#[test]
fn scores_without_special_tokens_and_eos_equal_the_reference_values() {
    let Ok(model) = locate("smollm2-135m-instruct", Extent::Whole) else {
        eprintln!("skipped: the model smollm2-135m-instruct has not been downloaded");
        return;
    };
    for root in golden::roots() {
        assert_scores_of_smollm2(&root, &model.path);
    }
}

fn assert_scores_of_smollm2(golden: &Path, model: &Path) {
    let dir = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(golden.join("smollm2/pair_logps.json")).expect("pairs");
    let pairs = serde_json::from_str::<Value>(&text).expect("JSON")["pairs"]
        .as_array()
        .expect("pairs")[..8]
        .to_vec();
    let file = jsonl(dir.path(), "pairs.jsonl", &pairs);
    let found =
        logps(&score(dir.path(), model, &file, &["--json", "--no-special-tokens", "--no-eos"]));
    let want: Vec<f64> = pairs
        .iter()
        .flat_map(|p| {
            ["chosen_logp_sum", "rejected_logp_sum"].map(|key| p[key].as_f64().expect("a number"))
        })
        .collect();
    assert_near(&found, &want, 1e-2);
}

#[test]
fn dropped_and_truncated_pairs_are_listed_with_a_reason() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden.join("models/llama");
    let rows = [
        json!({"prompt": "a b c d e f g h i j k l m n o p", "chosen": " x", "rejected": " y"}),
        json!({"prompt": 1, "chosen": " x", "rejected": " y"}),
        json!({"prompt": "a", "chosen": " x", "rejected": " one two three four five six"}),
    ];
    let file = jsonl(dir.path(), "pairs.jsonl", &rows);
    let ten = ["--max-length", "10", "--set", "dataset.bad_rows=skip"];
    let output = score(dir.path(), &model, &file, &[&ten[..], &["--json"]].concat());
    let found = lines(&output);
    let reason = "the prompt leaves no room for a completion in 10 tokens";
    assert_eq!(
        found[0],
        json!({"index": 0, "split": "train", "cluster": found[0]["cluster"],
            "dropped": "prompt_too_long", "reason": reason})
    );
    assert_eq!(
        (&found[1]["index"], &found[1]["truncated"], found.len()),
        (&json!(2), &json!(true), 2)
    );
    assert!(
        found[1]["reason"].as_str().is_some_and(|why| why.starts_with("cut to 10 tokens: ")
            && why.ends_with(" removed from the rejected completion")
            && !why.contains(',')),
        "{}",
        found[1]
    );
    let log = stderr(&output);
    assert!(
        log.contains("pairs are limited to 10 tokens (`train.max_length`, flag --max-length)\n"),
        "{log}"
    );
    assert!(
        log.contains(
            "pairs to score in `train`: 1, 1 dropped, 1 truncated; \
            dropped 1: the prompt leaves no room"
        ),
        "{log}"
    );
    let table = stdout(&score(dir.path(), &model, &file, &ten));
    assert!(
        table.contains("dropped: the prompt leaves no room")
            && table.contains("cut to 10 tokens: "),
        "{table}"
    );
    assert!(
        table
            .ends_with("\ntrain: pairs dropped: 1, truncated: 1; pairs are limited to 10 tokens\n"),
        "{table}"
    );

    let base = [
        "eval",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--model",
        utf8(&model),
        "--dataset",
        utf8(&file),
        "--set",
        "eval.completions=0",
    ];
    let output = reprpo(dir.path(), &[&base[..], &ten].concat());
    assert!(
        stdout(&output)
            .ends_with("\ntrain: pairs dropped: 1, truncated: 1; pairs are limited to 10 tokens\n"),
        "{}",
        stdout(&output)
    );
    assert!(stderr(&output).contains("pairs are limited to 10 tokens"), "{}", stderr(&output));
    let found: Value = serde_json::from_str(&stdout(&reprpo(
        dir.path(),
        &[&base[..], &ten, &["--json"]].concat(),
    )))
    .expect("JSON");
    assert_eq!(
        (
            &found[0]["max_length"],
            &found[0]["splits"][0]["dropped"],
            &found[0]["splits"][0]["truncated"]
        ),
        (&json!(10), &json!(1), &json!(1))
    );
    let whole =
        stderr(&reprpo(dir.path(), &[&base[..], &["--set", "dataset.bad_rows=skip"]].concat()));
    assert!(whole.contains("pairs are scored in full, without a length limit\n"), "{whole}");
}

/// Both completions are longer than 512 tokens and differ only in their length, so truncating them
/// to 512 tokens would make their scores equal.
#[test]
fn long_completions_are_scored_in_full_or_reported_as_truncated() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden.join("models/llama");
    let text = |words: usize| " word and then another".repeat(words);
    let file = jsonl(
        dir.path(),
        "pairs.jsonl",
        &[json!({"prompt": "Tell me.", "chosen": text(80), "rejected": text(100)})],
    );
    let whole = lines(&score(dir.path(), &model, &file, &["--json"]));
    assert_eq!((&whole[0]["truncated"], whole[0].get("reason")), (&json!(false), None));
    assert!(
        whole[0]["chosen"]["tokens"].as_u64().is_some_and(|n| n > 512)
            && whole[0]["chosen"] != whole[0]["rejected"],
        "{}",
        whole[0]
    );
    // These completions are longer than the model's context.
    let file = jsonl(
        dir.path(),
        "pairs.jsonl",
        &[json!({"prompt": "Tell me.", "chosen": text(400), "rejected": text(500)})],
    );
    let output = score(dir.path(), &model, &file, &["--json", "--max-length", "2048"]);
    assert_eq!(lines(&output)[0]["truncated"], true);
    assert!(
        stderr(&output).contains(
            "pairs are limited to 2048 tokens (`train.max_length`, flag \
            --max-length)\npairs to score in `train`: 1, 0 dropped, 1 truncated\n"
        ),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output)
            .contains("are identical after cutting, so that their scores are equal: 1\n"),
        "{}",
        stderr(&output)
    );
    let output = score(dir.path(), &model, &file, &["--json"]);
    assert_eq!(lines(&output)[0]["truncated"], false);
    assert!(
        stderr(&output).contains(
            "warning: pairs that are longer than the model's context of 2048 tokens: 1\n"
        ),
        "{}",
        stderr(&output)
    );
    let file = jsonl(
        dir.path(),
        "pairs.jsonl",
        &[json!({"prompt": text(400), "chosen": " yes", "rejected": " no"})],
    );
    let dropped = lines(&score(dir.path(), &model, &file, &["--json", "--max-length", "2048"]));
    assert_eq!(
        (&dropped[0]["dropped"], dropped.len()),
        (&json!("prompt_too_long"), 1),
        "every row must be reported, even if no pair can be scored"
    );
    for command in ["inspect", "tokens"] {
        let output = reprpo(
            dir.path(),
            &["data", command, utf8(&file), "--model", utf8(&model), "--max-length", "6000"],
        );
        let text =
            (stdout(&output) + &stderr(&output)).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains(
                "warning: prompts that are longer than the model's context of 2048 tokens: 1"
            ),
            "{text}"
        );
    }
    let prompt = text(400);
    let generate = [
        "generate",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--max-new-tokens",
        "1",
        "--plain",
        "--model",
        utf8(&model),
        "--prompt",
        &prompt,
    ];
    let log = stderr(&reprpo(dir.path(), &generate));
    assert!(
        log.contains("warning: the prompt has ")
            && log.contains(" tokens, more than the model's context of 2048\n"),
        "{log}"
    );
}

#[test]
fn a_run_checks_every_pair_that_it_will_score_before_it_starts() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let here = dir.path();
    let model = golden.join("models/llama");
    let good = json!({"prompt": "a: ", "chosen": "a: the sea is wide", "rejected": "a: a hill"});
    jsonl(here, "pairs.jsonl", &vec![good.clone(); 4]);
    jsonl(here, "test.jsonl", &[good.clone(), good.clone(), json!({"prompt": "p", "chosen": "c"})]);
    let run = [
        "run",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--model",
        utf8(&model),
        "--dataset",
        "pairs.jsonl",
        "--out",
        "out",
    ];
    let more = [
        "--set",
        "train.max_length=9",
        "--set",
        "eval.completions=0",
        "--set",
        "dataset.test=test.jsonl",
        // The files contain the same pair.
        "--set",
        "eval.overlap=keep",
    ];
    let output = reprpo(here, &[&run[..], &more].concat());
    assert_eq!(output.status.code(), Some(1));
    let log = stderr(&output);
    assert!(
        log.contains(
            "cannot use the split `test`\n  because cannot read line 3 of \
        `test.jsonl`\n  because there is no column `rejected`"
        ),
        "{log}"
    );
    assert!(!here.join("out").exists(), "the run must not start");

    jsonl(
        here,
        "test.jsonl",
        &[good, json!({"prompt": "a b c d e f g h i j", "chosen": " c", "rejected": " r"})],
    );
    let log = stderr(&reprpo(here, &[&run[..], &more].concat()));
    assert_eq!(log.matches("than before a completion: 5. ").count(), 1, "{log}");
    assert!(log.contains("repeat the prompt, so that the model reads it twice: 5\n"), "{log}");
    assert!(
        log.contains(
            "pairs to score in `test`: 1, 1 dropped, 1 truncated; \
            dropped 1: the prompt leaves no room"
        ),
        "{log}"
    );
    let scored = std::fs::read_to_string(here.join("out/eval/pairs.jsonl")).expect("scores");
    let test: Vec<Value> = scored
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .filter(|l: &Value| l["split"] == "test")
        .collect();
    assert_eq!(
        (&test[0]["truncated"], &test[1]["dropped"], &test[1]["index"]),
        (&json!(true), &json!("prompt_too_long"), &json!(1))
    );
    // `eval` uses the length limit of the run.
    let output = reprpo(here, &["eval", "out", "--device", "cpu", "--dtype", "f32"]);
    assert!(
        stderr(&output).contains("pairs are limited to 9 tokens (`train.max_length`, file "),
        "{}",
        stderr(&output)
    );
    assert!(
        stdout(&output)
            .contains("test: pairs dropped: 1, truncated: 1; pairs are limited to 9 tokens\n"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn the_help_states_the_limits() {
    let dir = tempfile::tempdir().expect("a folder");
    let help = |command: &[&str]| {
        stdout(&reprpo(dir.path(), &[command, &["--help"]].concat()))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(help(&["score"]).contains("Defaults to no limit"));
    assert!(help(&["eval"]).contains("Defaults to the run's `train.max_length`, or to no limit"));
    assert!(help(&["data", "inspect"]).contains("Defaults to 512"));
    assert!(help(&["data", "tokens"]).contains("Defaults to no limit"));
    // `score` has the flags that the hints of the data sets mention.
    let score = help(&["score"]);
    assert!(
        ["--set", "--data-dir", "--columns", "--no-special-tokens", "--max-length"]
            .iter()
            .all(|flag| score.contains(flag)),
        "{score}"
    );
}
