//! Tests runs that start from a saved adapter.

use super::*;

/// The reference of a run that starts from a saved adapter is that adapter, as in TRL, or with
/// `train.reference=base` the base model.
#[test]
fn a_run_that_starts_from_an_adapter_uses_it_as_the_reference() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let first = dir.path().join("first");
    let output = run(&golden, &first, &["--set", "train.epochs=2", "--seed", "3"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let adapter = first.join("adapter");
    let margin = |out: &str, extra: &[&str]| {
        let out = dir.path().join(out);
        let output = run(
            &golden,
            &out,
            &[&["--init-adapter", adapter.to_str().expect("UTF-8")], extra].concat(),
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (number(&metrics(&out)[0], "rewards/margins"), number(&metrics(&out)[0], "loss"))
    };
    let (start, loss) = margin("start", &[]);
    assert!(start.abs() < 1e-5 && (loss - std::f64::consts::LN_2).abs() < 1e-5, "{start} {loss}");
    let (base, loss) = margin("base", &["--set", "train.reference=base"]);
    assert!(base > 0.01 && loss < std::f64::consts::LN_2, "{base} {loss}");
    // Training the adapter leaves the reference unchanged.
    let (_, end) = margin("again", &["--set", "train.epochs=3"]);
    assert!((end - std::f64::consts::LN_2).abs() < 1e-5, "{end}");
    let lines = metrics(&dir.path().join("again"));
    assert!(number(&lines[lines.len() - 1], "rewards/margins") > 0.0);
}

/// The settings of a saved adapter apply to the new run. A different value for one of them is an
/// error, except for dropout, and `config show` prints the values that the run uses.
#[test]
fn a_run_that_starts_from_an_adapter_keeps_its_settings() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let first = dir.path().join("first");
    let output = run(&golden, &first, &["--set", "adapter.r=4"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let adapter = first.join("adapter").display().to_string();
    let second = |out: &str, extra: &[&str]| {
        run(
            &golden,
            &dir.path().join(out),
            &[&["--init-adapter", adapter.as_str()], extra].concat(),
        )
    };
    for (extra, expected) in [
        (vec!["--adapter", "hra"], "`adapter.name` is `hra` (flag --adapter), but the adapter in"),
        (vec!["--set", "adapter.r=2"], "`adapter.r` is `2` (--set), but the adapter in"),
        (
            vec!["--set", "adapter.target_modules=all-linear"],
            "`adapter.target_modules` is `all-linear` (--set)",
        ),
    ] {
        let output = second("refused", &extra);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{extra:?}: {text}");
        assert!(text.contains(expected), "{extra:?}: {text}");
    }
    let shown = |extra: &[&str]| {
        json(&reprpo(
            &[&["config", "show", "--json", "--init-adapter", adapter.as_str()], extra].concat(),
        ))["adapter"]
            .clone()
    };
    for (out, extra, dropout) in
        [("plain", vec![], 0.0), ("dropout", vec!["--set", "adapter.lora_dropout=0.5"], 0.5)]
    {
        let output = second(out, &extra);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let kept: toml::Table = toml::from_str(
            &std::fs::read_to_string(dir.path().join(out).join("config.toml")).expect("a file"),
        )
        .expect("TOML");
        let shown = shown(&extra);
        assert_eq!((&shown["r"], &shown["lora_dropout"]), (&4.into(), &dropout.into()));
        assert_eq!(
            (kept["adapter"]["r"].as_integer(), kept["adapter"]["lora_dropout"].as_float()),
            (Some(4), Some(dropout))
        );
        let margin = number(&metrics(&dir.path().join(out))[0], "rewards/margins");
        assert_eq!(margin.abs() < 1e-6, dropout == 0.0, "{out}: {margin}");
    }
    // An evaluation uses the run's adapter with its saved settings.
    let judged = |extra: &[&str]| {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .env("OMP_NUM_THREADS", "1")
            .args(["eval", "--device", "cpu"])
            .arg(&first)
            .args(extra)
            .output()
            .expect("the command runs")
    };
    let output = judged(&["--set", "adapter.r=2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("`adapter.r` is `2` (--set)"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = judged(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Like PEFT, the command skips names in a saved adapter that match nothing; it also prints a
/// warning.
#[test]
fn a_saved_adapter_is_used_without_the_names_that_match_nothing() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let (from, to) = (golden.join("peft/lora"), dir.path().join("lora"));
    std::fs::create_dir(&to).expect("a folder");
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors"))
        .expect("the file is copied");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["rank_pattern"] = serde_json::json!({ "q_porj": 2 });
    config["target_modules"].as_array_mut().expect("a list").push("w_pack".into());
    std::fs::write(to.join("adapter_config.json"), config.to_string())
        .expect("the file is written");
    let score = |adapter: &Path| {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command
            .env("OMP_NUM_THREADS", "1")
            .args(["score", "--json", "--device", "cpu", "--dtype", "f32"]);
        command
            .arg("--model")
            .arg(golden.join("models/llama"))
            .arg("--data")
            .arg(golden.join("trl/pairs.jsonl"));
        let output = command.arg("--load-adapter").arg(adapter).output().expect("the command runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        (output.stdout, text)
    };
    let ((plain, quiet), (same, warned)) = (score(&from), score(&to));
    assert_eq!(plain, same);
    assert!(!quiet.contains("WARN"), "{quiet}");
    for expected in [
        "unknown target module `w_pack`; this part of the saved adapter is ignored",
        "`q_porj` in `adapter.rank_pattern` matches none",
    ] {
        assert!(warned.contains(expected), "{warned}");
    }
}

/// PEFT saves full modules next to the tensors of the method. They act in the policy and in the
/// reference, are not trained, and are saved again.
#[test]
fn saved_modules_are_kept_when_training_continues() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let init = golden.join("peft_modules/saved");
    let train = |out: &str, extra: &[&str]| {
        let out = dir.path().join(out);
        let start = ["--init-adapter", init.to_str().expect("UTF-8")];
        let output = run(&golden, &out, &[&start, extra].concat());
        let text = stderr(&output);
        assert!(output.status.success(), "{text}");
        assert!(
            text.contains("the saved adapter replaces 9 tensors of the base model, such as"),
            "{text}"
        );
        out
    };
    let out = train("again", &[]);
    let first = number(&metrics(&out)[0], "rewards/margins");
    assert!(first.abs() < 1e-5, "{first}");
    let file = "adapter_model.safetensors";
    let read = |path: PathBuf| reprpo_core::weights::read_safetensors(&path).expect("tensors");
    let (before, after) = (read(init.join(file)), read(out.join("adapter").join(file)));
    assert_eq!(before.len(), after.len());
    for (name, tensor) in &before {
        assert_eq!(tensor.equal(&after[name]), !name.contains(".lora_"), "{name}");
    }
    let base = train("base", &["--set", "train.reference=base"]);
    assert!(number(&metrics(&base)[0], "rewards/margins").abs() > 1e-3);
    // The blocks run again in the backward pass.
    let checkpointing = train("checkpointing", &["--set", "train.checkpointing=true"]);
    let bytes = |out: &Path| std::fs::read(out.join("adapter").join(file)).expect("a file");
    assert!(bytes(&out) == bytes(&checkpointing));
}
