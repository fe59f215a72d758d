//! Tests `reprpo sweep`.

use super::*;

#[test]
fn a_sweep_runs_every_combination_and_resumes_where_it_stopped() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let sweep = |out: &str, extra: &[&str]| {
        let mut command = Command::cargo_bin("reprpo").expect("the binary");
        command.env("OMP_NUM_THREADS", "1").current_dir(&dir).args([
            "sweep",
            "--json",
            "--no-eval",
            "--set",
            "train.epochs=2",
            "--set",
            "train.lr=2e-3",
            "--out",
            out,
        ]);
        command
            .arg("--model")
            .arg(golden.join("models/llama"))
            .arg("--dataset")
            .arg(golden.join("trl/pairs.jsonl"))
            .args(extra)
            .output()
            .expect("the command runs")
    };
    let over = ["--over", "intervention=dpo,prefvec", "--over", "adapter=lora,hra"];
    let output = sweep("grid", &over);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(rows.len(), 4);
    for row in &rows {
        let loss = row["loss"].as_array().expect("two losses");
        assert!(loss[1].as_f64() < loss[0].as_f64(), "{row}");
    }
    assert!(
        dir.path().join("grid/prefvec-hra/adapter/adapter_model.safetensors").is_file()
            && dir.path().join("grid/summary.md").is_file()
    );

    std::fs::remove_dir_all(dir.path().join("grid/dpo-hra")).expect("the file exists");
    let again = sweep("grid", &over);
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success(), "{text}");
    assert!(text.contains("3 of 4 runs were already finished"), "{text}");
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&again.stdout).expect("JSON"), rows);

    // Sweeps generate sample completions only if `eval.completions` is set.
    let config = |run: &str| {
        std::fs::read_to_string(dir.path().join(run).join("config.toml")).expect("a configuration")
    };
    assert!(config("grid/dpo-lora").contains("\ncompletions = 0\n"), "{}", config("grid/dpo-lora"));
    assert!(
        sweep("completions", &["--over", "adapter=lora", "--set", "eval.completions=2"])
            .status
            .success()
    );
    assert!(
        config("completions/lora").contains("\ncompletions = 2\n"),
        "{}",
        config("completions/lora")
    );

    // An error in the last combination is found before the first one runs.
    let mistake = sweep("mistake", &["--over", "intervention=dpo,prefvek"]);
    assert_eq!(mistake.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&mistake.stderr).contains("did you mean `prefvec`?")
            && !dir.path().join("mistake").exists()
    );
}
