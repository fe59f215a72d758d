//! `reprpo data inspect`, and how the other commands handle data files.

use std::path::Path;
use std::process::Output;

use crate::{golden, isolated_command, json, reprpo_in as reprpo, stderr, stdout};

const PAIRS: &str = concat!(
    r#"{"prompt": "How many legs has a spider?\n", "chosen": "Eight.", "rejected": "Six."}"#,
    "\n",
    r#"{"prompt": "How many legs has a spider?\n", "chosen": "Eight.", "rejected": "Six."}"#,
    "\n",
    r#"{"prompt": "How many legs has a crab?\n", "chosen": "Ten.", "rejected": "Ten."}"#,
    "\n",
    r#"{"prompt": "How many legs has a dog?\n", "#,
    r#""chosen": "Four \u001b[31m legs, as a cat has and a horse has too.", "rejected": "Two."}"#,
    "\n",
);

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("pairs.jsonl"), PAIRS).expect("the file is written");
    folder
}

#[test]
fn inspect_counts_characters_without_a_model_and_says_so() {
    let folder = folder();
    let output = reprpo(folder.path(), &["data", "inspect", "pairs.jsonl"]);
    let text = stdout(&output);
    assert!(
        stderr(&output).starts_with(
            "lengths are in characters, because the model `smollm2-135m-instruct` is not on this \
                machine"
        ),
        "{}",
        stderr(&output)
    );
    for part in [
        "pairs.jsonl, in characters\n",
        "4 pairs, plain text, 3 different prompts",
        "warning: repeated pairs: 1\n",
        "warning: pairs whose completions are identical: 1\n",
        "characters       p50",
        "⟨Eight.⟩",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    // A model that the command names must exist.
    let output = reprpo(
        folder.path(),
        &["data", "inspect", "pairs.jsonl", "--model", "smollm2-135m-instruct"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not on this machine yet"), "{}", stderr(&output));
}

#[test]
fn inspect_with_a_tokenizer_shows_the_tokens_that_a_run_would_use() {
    let golden = golden::own();
    let (folder, tokenizer) = (folder(), golden.join("tokenizer"));
    let tokenizer = tokenizer.to_str().expect("UTF-8");
    let args = [
        "data",
        "inspect",
        "pairs.jsonl",
        "--model",
        tokenizer,
        "--max-length",
        "32",
        "--examples",
        "4",
    ];
    let text = stdout(&reprpo(folder.path(), &args));
    for part in [
        "4 used, 1 of them cut to 32 tokens",
        "prompt tokens, ⟨",
        "⟨Eight.<|im_end|>⟩",
        "spider?⏎",
        "Four \\u{1b}[31m",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 80 || line.contains(tokenizer)),
        "{text}"
    );
    let found = json(&reprpo(folder.path(), &[&args[..], &["--json"]].concat()));
    let train = &found["splits"][0];
    assert_eq!(
        (&found["unit"], &train["pairs"], &train["identical"], &train["used"]["truncated"]),
        (&"tokens".into(), &4.into(), &1.into(), &1.into())
    );
    let chosen = &train["examples"][0]["chosen"];
    assert_eq!(chosen["ids"].as_array().map(Vec::len), chosen["mask"].as_array().map(Vec::len));
    let counts = train["prompt"]["histogram"]
        .as_array()
        .expect("bins")
        .iter()
        .map(|bin| bin["count"].as_u64().expect("a count"));
    assert_eq!(counts.sum::<u64>(), 4);
}

#[test]
fn flags_select_the_part_of_a_split_and_the_columns() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: String = (0..10).map(|i| format!("\"q, {i}\",good {i},bad {i}\n")).collect();
    std::fs::write(folder.path().join("pairs.csv"), format!("question,best,worst\n{rows}"))
        .expect("the file is written");
    let columns = "prompt=question, chosen=best,rejected=worst";
    let inspect = |split: &str| {
        reprpo(
            folder.path(),
            &[
                "data",
                "inspect",
                "pairs.csv",
                "--columns",
                columns,
                "--split",
                split,
                "--json",
                "--examples",
                "1",
            ],
        )
    };
    let found = json(&inspect("train[50%:]+train[:1]"));
    assert_eq!(
        (&found["splits"][0]["pairs"], &found["splits"][0]["examples"][0]["prompt"]),
        (&6.into(), &"q, 5".into())
    );
    for (split, why) in [
        (
            "train[x:]",
            "error: invalid split `train[x:]`\n  because `x` is not a number of pairs or \
                a percentage\n\nhint: valid: `train`",
        ),
        ("trian[:3]", "error: unknown split `trian`\n\nhint: did you mean `train`?"),
        ("train[10:]", "error: split `train[10:]` contains an empty range"),
    ] {
        let output = inspect(split);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
    let wrong = |columns: &str| {
        stderr(&reprpo(folder.path(), &["data", "inspect", "pairs.csv", "--columns", columns]))
    };
    assert!(
        wrong("promt=question")
            .starts_with("error: unknown part of a pair `promt`\n\nhint: did you mean `prompt`?")
    );
    assert!(wrong("prompt").starts_with(
        "error: `--columns` must be a list of `PART=COLUMN`, got `prompt`\n\n\
            hint: write `--columns prompt=question"
    ));
    assert!(wrong("prompt=x").contains("there is no column `chosen`"));
}

/// Invalid data is reported before the model is located or loaded.
#[test]
fn unusable_data_fails_before_the_model_is_loaded() {
    let folder = folder();
    let here = folder.path();
    std::fs::write(here.join("empty.jsonl"), "\n").expect("the file is written");
    std::fs::write(
        here.join("silent.jsonl"),
        r#"{"prompt": "p", "chosen": null, "rejected": "r"}"#,
    )
    .expect("the file is written");
    for (file, why) in [
        ("empty.jsonl", "`empty.jsonl` has no pairs"),
        ("silent.jsonl", "line 1 of `silent.jsonl`\n  because `chosen` is null, not text"),
    ] {
        let output = reprpo(here, &["run", "--model", "smollm2-135m-instruct", "--dataset", file]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
        assert!(!here.join("runs").exists());
    }
}

#[test]
fn a_run_trains_on_the_selected_part_and_counts_pairs_without_effect() {
    let golden = golden::own();
    let folder = folder();
    let (model, out) = (golden.join("models/llama"), folder.path().join("out"));
    let (model, out) = (model.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
    let train = [
        "--split",
        "train[1:]",
        "--set",
        "eval.splits=[\"train[:1]\"]",
        // The first pair also occurs among the others.
        "--set",
        "eval.overlap=keep",
        "--set",
        "train.batch=1",
        "--set",
        "train.accumulate=1",
    ];
    let common = [
        "run",
        "--dtype",
        "f32",
        "--device",
        "cpu",
        "--model",
        model,
        "--dataset",
        "pairs.jsonl",
        "--out",
        out,
    ];
    let output = reprpo(folder.path(), &[&common[..], &train[..]].concat());
    let log = stderr(&output);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("3 pairs to train on, 0 dropped, 0 truncated\n"), "{log}");
    assert!(
        log.contains(
            "warning: pairs with no effect because both completions have the same tokens: 1\n"
        ),
        "{log}"
    );
    let scored =
        std::fs::read_to_string(folder.path().join("out/eval/pairs.jsonl")).expect("scores");
    assert_eq!(scored.lines().count(), 1);
    assert!(scored.contains("\"split\":\"train[:1]\""), "{scored}");
}

/// Runs the command in a folder with `input` as its standard input.
fn piped(folder: &Path, args: &[&str], input: &[u8]) -> Output {
    isolated_command(folder, args).write_stdin(input).output().expect("the command runs")
}

#[test]
fn standard_input_is_read_like_a_file() {
    let folder = folder();
    let list = format!("[{}]", PAIRS.trim_end().replace('\n', ","));
    for text in [PAIRS, &list, &format!("{{\"data\": {list}}}")] {
        let output = piped(folder.path(), &["data", "inspect", "-", "--json"], text.as_bytes());
        assert_eq!(json(&output)["splits"][0]["pairs"], 4, "{text}");
    }
    let output =
        piped(folder.path(), &["data", "inspect", "-"], b"prompt,chosen,rejected\na,b,c\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot read line 1 of `-`"), "{}", stderr(&output));
    let output = piped(folder.path(), &["data", "inspect", "-"], b"");
    assert!(
        output.status.code() == Some(1) && stderr(&output).contains("`-` has no pairs"),
        "{}",
        stderr(&output)
    );
    let output = piped(
        folder.path(),
        &["data", "inspect", "-", "--set", "dataset.test=-"],
        PAIRS.as_bytes(),
    );
    assert!(
        stderr(&output).contains("is used for several splits: train, test"),
        "{}",
        stderr(&output)
    );
}

/// A run stores the hash of the piped data but not the data.
#[test]
fn a_run_on_standard_input_can_only_be_used_again_with_the_same_pairs() {
    let golden = golden::own();
    let folder = folder();
    let model = golden.join("models/llama");
    let model = model.to_str().expect("UTF-8");
    let pairs =
        PAIRS.replace("\"Ten.\", \"rejected\": \"Ten.\"", "\"Ten.\", \"rejected\": \"Two.\"");
    let run = [
        "run",
        "--dataset",
        "-",
        "--model",
        model,
        "--out",
        "a run",
        "--set",
        "eval.completions=0",
    ];
    let output = piped(folder.path(), &run, pairs.as_bytes());
    assert!(output.status.success(), "{}", stderr(&output));
    let eval = |input: &str, more: &[&str]| {
        piped(folder.path(), &[&["eval", "a run"], more].concat(), input.as_bytes())
    };
    let again = eval(&pairs, &[]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(stdout(&again), stdout(&output), "the same pairs must give the same table");
    for (input, why) in
        [("", "which is now empty"), (PAIRS, "which now contains different pairs: SHA-256 ")]
    {
        let other = eval(input, &[]);
        assert_eq!(other.status.code(), Some(1));
        let text = stderr(&other);
        assert!(
            text.contains(&format!("the run's pairs came from standard input, {why}"))
                && text.contains("pipe in the same pairs again"),
            "{text}"
        );
    }
    assert!(
        eval("", &["--dataset", "pairs.jsonl"]).status.success(),
        "a flag can select other pairs"
    );
    assert!(eval(PAIRS, &["--set", "dataset.stdin=none"]).status.success());
    // The commands in hints can be pasted even if a path contains spaces.
    let there = piped(folder.path(), &run, pairs.as_bytes());
    assert!(stderr(&there).contains("with `--resume 'a run'`"), "{}", stderr(&there));
    let ended = piped(folder.path(), &["run", "--resume", "a run"], pairs.as_bytes());
    let text = stderr(&ended);
    assert!(
        text.contains(
            "evaluate it again with `reprpo eval 'a run'`, or train its adapter further with \
                `reprpo run --init-adapter 'a run/adapter'`"
        ),
        "{text}"
    );
}

/// Runs `reprpo data inspect --json` on a file with additional arguments.
fn inspect(path: &Path, more: &[&str]) -> Output {
    let folder = folder();
    reprpo(
        folder.path(),
        &[&["data", "inspect", path.to_str().expect("UTF-8"), "--json"], more].concat(),
    )
}

/// The files have the columns, types and numbers that other programs write.
#[test]
fn files_of_other_programs_are_read() {
    let data = golden::own().join("data");
    let read = |file: &str, more: &[&str]| inspect(&data.join(file), more);
    let pairs = |file: &str, more: &[&str]| json(&read(file, more))["splits"][0]["pairs"].clone();
    for name in ["large_text", "nested", "plain", "score", "timestamp", "types"] {
        assert_eq!(pairs(&format!("{name}.parquet"), &[]), 6, "{name}");
    }
    assert_eq!(pairs("nan.jsonl", &[]), 2);
    assert_eq!(pairs("surrogate_pair.jsonl", &[]), 1);
    let text = stderr(&read("surrogate_half.jsonl", &[]));
    assert!(
        text.contains("line 2 of")
            && text.contains(r"`chosen` contains the lone surrogate `\ud83d`"),
        "{text}"
    );
    assert_eq!(pairs("surrogate_half.jsonl", &["--set", "dataset.bad_rows=skip"]), 2);
    assert_eq!(json(&read("sharegpt.jsonl", &[]))["splits"][0]["conversations"], 1);
}

/// The files were written by other programs and attached to public bug reports.
#[test]
fn files_from_bug_reports_are_read() {
    let Some(shared) = golden::shared("cases/22-parquet-extra-fields") else { return };
    let read = |file: &str, more: &[&str]| inspect(&shared.join("cases").join(file), more);
    for name in ["full", "largelist", "plain", "score", "timestamp", "types"] {
        let output = read(&format!("22-parquet-extra-fields/{name}.parquet"), &[]);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
    }
    assert_eq!(json(&read("08-nan-field/pairs.jsonl", &[]))["splits"][0]["pairs"], 2);
    assert_eq!(json(&read("08-nan-field/big.jsonl", &[]))["splits"][0]["pairs"], 1);
    assert_eq!(json(&read("07-surrogate/paired.jsonl", &[]))["splits"][0]["pairs"], 1);
    let text = stderr(&read("07-surrogate/three.jsonl", &[]));
    assert!(
        text.contains("line 2 of")
            && text.contains(r"`chosen` contains the lone surrogate `\ud83d`"),
        "{text}"
    );
    let found = json(&read("07-surrogate/three.jsonl", &["--set", "dataset.bad_rows=skip"]));
    assert_eq!(found["splits"][0]["pairs"], 2);
    assert_eq!(
        json(&read("46-hub-dataset-offline/sharegpt.jsonl", &[]))["splits"][0]["conversations"],
        1
    );
}
