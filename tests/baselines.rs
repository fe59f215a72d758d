//! Baselines that edit or read hidden states without training, compared with transformers and
//! scikit-learn.

use std::path::Path;

use reprpo_core::weights::read_safetensors;
use serde_json::Value;

use crate::resume::Tree;
use crate::{golden, metrics, reprpo, stderr};

/// Executes `reprpo` and requires success.
fn ok(args: &[&str]) -> String {
    let output = reprpo(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `intervention` on the golden model and pairs with the given settings, into `out`.
fn run(out: &Path, intervention: &str, set: &[&str]) {
    let golden = golden::own();
    let (model, pairs) = (golden.join("models/llama"), golden.join("trl/pairs.jsonl"));
    let [model, pairs, out] = [&*model, &pairs, out].map(|path| path.to_str().expect("UTF-8"));
    let mut args = vec!["run", "--intervention", intervention, "--model", model];
    args.extend(["--dataset", pairs, "--out", out, "--dtype", "f32", "--device", "cpu"]);
    args.extend(["--set", "train.max_length=512", "--set", "eval.overlap=keep"]);
    args.extend(set.iter().flat_map(|set| ["--set", set]));
    ok(&args);
}

/// The lines of `eval/pairs.jsonl`, in the order of the data.
fn pairs(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("pairs.jsonl")).expect("pairs");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The values `field` of both completions of each pair under the trained model.
fn trained(folder: &Path, field: &str) -> Vec<[f64; 2]> {
    let of = |pair: &Value, side: &str| pair["trained"][side][field].as_f64().expect("a number");
    pairs(folder).iter().map(|pair| [of(pair, "chosen"), of(pair, "rejected")]).collect()
}

/// The rows of the table that the run wrote.
fn summary(out: &Path) -> Value {
    let text = std::fs::read_to_string(out.join("eval/summary.json")).expect("a summary");
    serde_json::from_str::<Value>(&text).expect("JSON")["splits"].take()
}

/// The rows of the table of an evaluation in another process.
fn evaluated(out: &Path) -> Value {
    let out = out.to_str().expect("UTF-8");
    let text = ok(&["eval", out, "--json", "--dtype", "f32"]);
    serde_json::from_str::<Value>(&text).expect("JSON")[0]["splits"].take()
}

fn worst(ours: &[[f64; 2]], theirs: &[[f64; 2]]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let both = ours.as_flattened().iter().zip(theirs.as_flattened());
    both.map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_steered_model_scores_text_as_transformers_does_with_the_same_edit() {
    let io = read_safetensors(&golden::own().join("baselines.safetensors")).expect("values");
    let dir = tempfile::tempdir().expect("a folder");
    for (name, set) in [
        ("add", &["intervention.coefficient=2"][..]),
        ("pca", &["intervention.direction=pca", "intervention.coefficient=-1.5"]),
        ("ablate", &["intervention.edit=ablate", "intervention.coefficient=0.75"]),
    ] {
        let out = dir.path().join(name);
        let mut all = vec!["intervention.layers=1"];
        all.extend(set);
        run(&out, "steer", &all);
        let theirs: Vec<f64> =
            Vec::try_from(io[&format!("logp.{name}")].reshape([-1]).to_kind(tch::Kind::Double))
                .expect("numbers");
        let off = worst(&trained(&out.join("eval"), "logp_sum"), theirs.as_chunks().0);
        println!("steer {name}: log-probabilities are off by {off:.1e}");
        assert!(off < 1e-5, "{name}: off by {off}");
        // The saved adapter contains the edit, so an evaluation in another process has it.
        assert_eq!(evaluated(&out), summary(&out));
    }
}

#[test]
fn mms_scores_pairs_by_the_heads_whose_probes_are_best() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("mms");
    run(&out, "mms", &["intervention.heads=4"]);
    let io = read_safetensors(&golden::own().join("baselines.safetensors")).expect("values");
    let statistics = read_safetensors(&out.join("statistics.safetensors")).expect("statistics");
    let heads = Vec::<i64>::try_from(&statistics["heads"]).expect("heads");
    assert_eq!(heads.len(), 4);
    // The states are those that transformers computes, and the score is that of the definition.
    let differences = &io["heads.chosen"] - &io["heads.rejected"];
    let mut score = tch::Tensor::zeros([24], (tch::Kind::Float, tch::Device::Cpu));
    for head in &heads {
        let d = differences.select(1, *head);
        let v = d.mean_dim(0, true, tch::Kind::Float);
        score += tch::Tensor::cosine_similarity(&d, &v, 1, 1e-8) / 4.0;
    }
    let score = Vec::<f64>::try_from((score + 1.0) * 0.5).expect("numbers");
    let theirs: Vec<[f64; 2]> = score.iter().map(|score| [*score, 1.0 - score]).collect();
    let ours = trained(&out.join("eval"), "preference");
    let off = worst(&ours, &theirs);
    println!("mms: scores are off by {off:.1e}");
    assert!(off < 1e-5, "{off}");

    // The accuracy is that of the score, and the same in another process.
    let right = ours.iter().filter(|[chosen, rejected]| chosen > rejected).count() as f64;
    let rows = summary(&out);
    assert_eq!(rows[0]["change"]["accuracy"]["value"], right / 24.0);
    assert_eq!(rows[0]["change"]["margin_gain"]["value"], 0.0);
    assert_eq!(evaluated(&out), rows);
    let table = std::fs::read_to_string(out.join("eval/table.md")).expect("the table");
    assert!(table.contains("the accuracy is that of the method's own score"), "{table}");

    std::fs::remove_file(out.join("statistics.safetensors")).expect("removed");
    let output = reprpo(&["eval", out.to_str().expect("UTF-8")]);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("statistics.safetensors"), "{message}");
}

#[test]
fn preventative_steering_acts_in_training_and_leaves_no_edit() {
    let dir = tempfile::tempdir().expect("a folder");
    let set = ["train.epochs=1", "train.batch=4", "train.accumulate=1", "eval.completions=0"];
    let train = |name: &str, intervention: &str, more: &[&str]| {
        let out = dir.path().join(name);
        run(&out, intervention, &[&set[..], more].concat());
        let losses: Vec<f64> =
            metrics(&out).iter().map(|step| step["loss"].as_f64().expect("a loss")).collect();
        (losses, out)
    };
    let (plain, _) = train("sft", "sft", &[]);
    let (steered, out) = train("preventative", "preventative", &["intervention.layers=1"]);
    let (none, _) = train("zero", "preventative", &["intervention.coefficient=0"]);
    assert_eq!(plain.len(), 6);
    assert_eq!(none, plain, "without a vector, the method is sft");
    assert!((steered[0] - plain[0]).abs() > 1e-3, "{steered:?} {plain:?}");
    assert!(!out.join("adapter/edits.safetensors").exists());
    assert!(out.join("statistics.safetensors").exists());
    let log = std::fs::read_to_string(out.join("log.txt")).expect("the log");
    assert!(log.contains("edits of the residual stream: block 1 during training"), "{log}");
    // The evaluation at the end of the run was without the edit, as this one is.
    assert_eq!(evaluated(&out), summary(&out));

    // With checkpointing, the blocks run again in the backward pass, and with the edit.
    let (again, _) = train(
        "checkpointing",
        "preventative",
        &["intervention.layers=1", "train.checkpointing=true"],
    );
    for (a, b) in steered.iter().zip(&again) {
        assert!((a - b).abs() < 1e-5, "{steered:?} {again:?}");
    }
}

#[test]
fn a_run_with_edits_is_not_merged_and_not_continued() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("steer");
    run(&out, "steer", &["intervention.layers=1", "eval.enabled=false"]);
    let [adapter, merged] =
        [out.join("adapter"), dir.path().join("merged")].map(|p| p.display().to_string());
    let output = reprpo(&["export", "--merge", &out.display().to_string(), "--out", &merged]);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("edits of the residual stream"), "{message}");
    let model = golden::own().join("models/llama").display().to_string();
    let pairs = golden::own().join("trl/pairs.jsonl").display().to_string();
    let next = dir.path().join("next").display().to_string();
    let output = reprpo(&[
        "run",
        "--model",
        &model,
        "--dataset",
        &pairs,
        "--init-adapter",
        &adapter,
        "--out",
        &next,
    ]);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("edits.safetensors"), "{message}");
    assert!(!Path::new(&next).exists());
}

#[test]
fn the_edits_of_a_run_are_multiplied_and_exported_as_a_control_vector() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("steer");
    run(&out, "steer", &["intervention.layers=1", "intervention.coefficient=2"]);
    let folder = out.to_str().expect("UTF-8");
    let text = ok(&["eval", folder, "--json", "--dtype", "f32", "--coefficient", "0,1"]);
    let both: Value = serde_json::from_str(&text).expect("JSON");
    let gain = |i: usize| both[i]["splits"][0]["change"]["margin_gain"]["value"].as_f64();
    assert_eq!(gain(0), Some(0.0));
    assert_eq!(both[1]["splits"], summary(&out));
    assert!(gain(1).expect("a gain").abs() > 1e-3);

    let file = dir.path().join("vector.gguf");
    let path = file.to_str().expect("UTF-8");
    ok(&["export", folder, "--control-vector", "--coefficient", "-1", "--out", path]);
    let bytes = std::fs::read(&file).expect("the file");
    let edit = read_safetensors(&out.join("adapter/edits.safetensors")).expect("edits");
    let vector = Vec::<f32>::try_from(&edit["edits.0.blocks.1.bias"]).expect("a vector");
    let expected: Vec<u8> = vector.iter().flat_map(|x| (-x).to_le_bytes()).collect();
    assert!(bytes.ends_with(&expected));
    let contains = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(contains("controlvector.model_hint") && contains("direction.1"));

    let output = reprpo(&["export", folder, "--control-vector", "--out", path]);
    assert_eq!(output.status.code(), Some(1), "an existing file must not be replaced");
}

#[test]
fn a_resumed_run_has_the_same_statistics_and_refuses_others() {
    let tree = Tree::new();
    let args = ["--intervention", "preventative", "--no-eval", "--set", "train.epochs=30"];
    let more = ["--set", "train.checkpoint_every=1", "--set", "intervention.layers=1"];
    let args = [&args[..], &more].concat();
    tree.run("whole", &args);
    tree.killed_when("part", &args, |run| run.join("checkpoints/latest").is_file());
    let file = |run: &str, name: &str| std::fs::read(tree.path(run).join(name)).expect("a file");
    let saved = file("part", "statistics.safetensors");
    assert!(saved == file("whole", "statistics.safetensors"));

    let mut other = saved.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    let path = tree.path("part/statistics.safetensors");
    std::fs::write(&path, &other).expect("written");
    let resume = || tree.reprpo("", &["run", "--resume", "part"]);
    let message = stderr(&resume());
    assert!(message.contains("the statistics"), "{message}");
    std::fs::remove_file(&path).expect("removed");
    let message = stderr(&resume());
    assert!(message.contains("statistics.safetensors"), "{message}");

    std::fs::write(&path, &saved).expect("written");
    let output = resume();
    assert!(output.status.success(), "{}", stderr(&output));
    for name in ["adapter/adapter_model.safetensors", "metrics.jsonl"] {
        assert!(file("part", name) == file("whole", name), "{name} differs");
    }
}
