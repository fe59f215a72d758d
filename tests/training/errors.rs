//! Tests errors and warnings about the settings and the data of a run.

use super::*;

#[test]
fn a_data_file_that_cannot_be_used_is_named_with_its_line() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let good = r#"{"prompt": "x", "chosen": "y", "rejected": "z"}"#;
    for (name, text, expected) in [
        ("empty.jsonl", String::new(), "`empty.jsonl` has no pairs"),
        ("foreign.jsonl", "hello".to_owned(), "cannot read line 1 of `foreign.jsonl`"),
        ("columns.jsonl", r#"{"question": "x"}"#.to_owned(), "there is no column `chosen`"),
        (
            "line.jsonl",
            format!("{good}\n{good}\n{{\"prompt\": \n{good}\n"),
            "cannot read line 3 of `line.jsonl`",
        ),
        (
            "foreign.parquet",
            "this is not a table".to_owned(),
            "`foreign.parquet` is not a complete parquet file",
        ),
        ("columns.csv", "a,b".to_owned(), "there is no column `chosen`"),
        ("table.xlsx", "a,b".to_owned(), "no dataset can open `table.xlsx`"),
    ] {
        std::fs::write(dir.path().join(name), text).expect("the file is written");
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .current_dir(dir.path())
            .args(["run", "--dataset", name, "--out", "run", "--model"])
            .arg(std::path::absolute(golden.join("models/llama")).expect("a path"));
        let output = command.output().expect("the command runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!out.exists(), "{name}");
    }
}

#[test]
fn a_run_that_cannot_learn_warns() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, warmup, warns) in
        [("warm", "train.warmup=0.03", true), ("cold", "train.warmup=0", false)]
    {
        let output =
            run(&golden, &dir.path().join(name), &["--set", "train.max_pairs=8", "--set", warmup]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.contains("warning: nothing will be learned") == warns,
            "{name}: {text}"
        );
    }
}

#[test]
fn an_unknown_evaluation_split_is_reported_before_training() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut command = Command::cargo_bin("reprpo").expect("the binary");
    command
        .args(["run", "--set", "eval.splits=[\"tset\"]", "--model"])
        .arg(golden.join("models/llama"))
        .arg("--out")
        .arg(&out);
    let output = command.output().expect("the command runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("unknown split `tset`") && text.contains("did you mean `test`"),
        "{text}"
    );
    assert!(!out.exists());
}

#[test]
fn an_unusable_setting_is_named_and_no_run_folder_is_created() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (out, phi3) = (dir.path().join("run"), golden.join("models/phi3").display().to_string());
    for (extra, expected) in [
        (vec!["--device", "cuda:77"], "the device `cuda:77` is not available"),
        (vec!["--device", "gpu"], "`device` is `gpu`"),
        (vec!["--model", "/no/such/model"], "/no/such/model"),
        (vec!["--intervention", "prefvec", "--layers", "99"], "layer `99`"),
        (vec!["--set", "train.max_length=5"], "no usable pairs"),
        (vec!["--set", "adapter.target_modules=[\"q_pro\"]"], "unknown target module `q_pro`"),
        (
            vec!["--model", &phi3, "--set", "adapter.target_modules=[\"qkv_proj.qproj\"]"],
            "did you mean `qkv_proj.q_proj`?",
        ),
        (
            vec![
                "--model",
                &phi3,
                "--set",
                "adapter.target_modules=[\"qkv_proj.q_proj\", \"v_proj\"]",
            ],
            "qkv_proj` and its part `q_proj`",
        ),
        (vec!["--set", "adapter.rr=8"], "has no field `rr`"),
        (vec!["--init-adapter", "/no/such/adapter"], "/no/such/adapter"),
        (vec!["--set", "adapter.rank_pattern={\"q_porj\"=4}"], "did you mean `q_proj`?"),
        (
            vec!["--set", "adapter.target_modules=q_proj"],
            "did you mean `adapter.target_modules=[\"q_proj\"]` or \
                `adapter.target_modules=.*q_proj`?",
        ),
        (
            vec!["--set", "adapter.target_modules=q_proj,v_proj"],
            "`adapter.target_modules=[\"q_proj\", \"v_proj\"]`",
        ),
        (
            vec!["--adapter", "hra", "--set", "adapter.layers_to_transform=[0, 7]"],
            "`adapter.layers_to_transform` contains 7",
        ),
    ] {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .args(["run", "--no-eval"])
            .arg("--dataset")
            .arg(golden.join("trl/pairs.jsonl"))
            .arg("--out")
            .arg(&out);
        if !extra.contains(&"--model") {
            command.arg("--model").arg(golden.join("models/llama"));
        }
        let output = command.args(&extra).output().expect("the command runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{extra:?}: {text}");
        assert!(text.contains(expected), "{extra:?}: {text}");
        assert!(!out.exists(), "{extra:?}");
    }
}
