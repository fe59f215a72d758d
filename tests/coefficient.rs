//! `--coefficient` of `reprpo eval`, `generate` and `export`.

use std::path::Path;

use reprpo_core::weights::read_safetensors;
use serde_json::{Value, json};
use tch::Tensor;
use tempfile::TempDir;

use crate::{golden, json, reprpo_in, stderr, stdout};

/// Trains an adapter in the folder `name`.
fn train(dir: &Path, name: &str, extra: &[&str]) {
    let golden = golden::own();
    let (model, pairs) = (
        golden.join("models/llama").display().to_string(),
        golden.join("trl/pairs.jsonl").display().to_string(),
    );
    let args = ["run", "--no-eval", "--intervention", "sft", "--out", name, "--adapter", name];
    let on = ["--model", &model, "--dataset", &pairs, "--device", "cpu", "--dtype", "f32"];
    let sets = ["--set", "train.lr=3e-2", "--set", "train.warmup=0"];
    stdout(&reprpo_in(dir, &[&args[..], &on, &sets, extra].concat()));
}

fn trained() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    train(dir.path(), "lora", &["--set", "adapter.target_modules=all-linear"]);
    train(dir.path(), "hra", &["--set", "train.max_pairs=4"]);
    dir
}

const EVAL: [&str; 5] = ["eval", "lora", "--set", "eval.max_pairs=12", "--json"];

#[test]
fn eval_and_generate_multiply_the_change_of_an_adapter() {
    let dir = trained();
    let here = dir.path();
    let eval = |extra: &[&str]| json(&reprpo_in(here, &[&EVAL[..], extra].concat()));
    let (plain, scaled) = (eval(&[]), eval(&["--coefficient", "-1,0,1,2"]));
    let by = |c: usize| &scaled[c]["splits"][0];
    assert_eq!(scaled.as_array().map(Vec::len), Some(4));
    for (found, c) in scaled.as_array().expect("a list").iter().zip([-1.0, 0.0, 1.0, 2.0]) {
        assert_eq!(found["coefficient"], c);
        let title = found["title"].as_str().expect("a title");
        assert!(title.ends_with(&format!(", coefficient {c}")), "{title}");
    }
    // Without a coefficient, the table is the one of the coefficient 1.
    assert_eq!(
        (&plain[0]["coefficient"], &plain[0]["splits"]),
        (&json!(1.0), &scaled[2]["splits"])
    );
    assert!(!plain[0]["title"].as_str().expect("a title").contains("coefficient"));
    let off = by(1);
    assert_eq!(off["change"]["accuracy"], off["base_accuracy"]);
    let of = |split: &Value, metric: &str| split["change"][metric]["value"].as_f64();
    assert_eq!((of(off, "margin_gain"), of(off, "perplexity_ratio")), (Some(0.0), Some(1.0)));
    let ratio = |c: usize| of(by(c), "perplexity_ratio").expect("a ratio");
    // SFT makes the chosen text likelier, and its opposite makes it less likely.
    assert!(ratio(0) < 1.0 && ratio(2) > 1.0, "{} {}", ratio(0), ratio(2));
    assert!(by(3) != by(2));

    let text = stdout(&reprpo_in(here, &["eval", "lora", "--coefficient", "0.5,2"]));
    assert!(text.contains(", coefficient 0.5\n") && text.contains(", coefficient 2\n"), "{text}");

    let model = golden::own().join("models/llama").display().to_string();
    let prompt = ["--plain", "--prompt", "a", "--max-new-tokens", "12", "--json"];
    let generate =
        |args: &[&str]| json(&reprpo_in(here, &[&["generate"], args, &prompt].concat()))[0].clone();
    let (base, plain) = (generate(&["--model", &model]), generate(&["lora"]));
    let [opposite, off, on] = ["-1", "-0", "1"].map(|c| generate(&["lora", "--coefficient", c]));
    assert_eq!((&off["text"], &on["text"]), (&base["text"], &plain["text"]));
    assert!(opposite["text"] != base["text"] && opposite["text"] != plain["text"]);
    assert_eq!(
        [&base, &plain, &opposite, &off].map(|answer| answer["coefficient"].clone()),
        [Value::Null, json!(1.0), json!(-1.0), json!(0.0)]
    );
    let compared = ["generate", "lora", "--compare", "--plain", "--prompt", "a"];
    let text = stdout(&reprpo_in(here, &[&compared[..], &["--coefficient", "-1"]].concat()));
    assert!(text.contains("\nbase: ") && text.contains("\ntrained (coefficient -1): "), "{text}");

    // The merged weights are W + c·ΔW.
    let weights = |c: &str| {
        let out = format!("merged{c}");
        let args = ["export", "lora", "--merge", "--out", &out, "--coefficient", c];
        stdout(&reprpo_in(here, &args));
        read_safetensors(&here.join(out).join("model.safetensors")).expect("weights")
    };
    let [minus, zero, plus] = ["-1", "0", "1"].map(weights);
    let mut changed = 0;
    for (name, w) in &zero {
        let largest = |t: Tensor| t.abs().max().double_value(&[]);
        assert!(largest(&minus[name] + &plus[name] - w * 2.0) < 1e-5, "{name}");
        changed += usize::from(largest(&plus[name] - w) > 1e-3);
    }
    assert!(changed > 0);
}

#[test]
fn a_coefficient_that_has_no_meaning_is_refused() {
    let dir = trained();
    let refused = |args: &[&str], code: i32| {
        let output = reprpo_in(dir.path(), args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
        stderr(&output)
    };
    let prompt = ["--plain", "--prompt", "a"];
    // The targets are checked before the first one is evaluated.
    for args in [
        &["eval", "lora", "hra", "--coefficient", "0,0.5"][..],
        &[&["generate", "hra", "--coefficient", "0.5"], &prompt[..]].concat(),
        &["export", "hra", "--merge", "--out", "merged", "--coefficient", "0.5"],
    ] {
        let text = refused(args, 1);
        for part in ["by the coefficient 0.5", "`hra` multiplies the weights by", "hint: only"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
    assert!(!dir.path().join("merged").exists());
    for off_or_on in ["0", "1"] {
        let args = ["generate", "hra", "--coefficient", off_or_on];
        stdout(&reprpo_in(dir.path(), &[&args[..], &prompt].concat()));
    }
    for (value, part) in [
        ("NaN", "a coefficient must be a finite number"),
        ("-inf", "a coefficient must be a finite number"),
        ("strong", "a coefficient must be a number, such as 0.5 or -1"),
    ] {
        for command in ["eval", "generate"] {
            let args = [command, "lora", "--coefficient", value];
            let text =
                refused(&[&args[..], &prompt[usize::from(command == "eval") * 3..]].concat(), 2);
            assert!(text.contains(part) && text.contains(value), "{text}");
        }
    }
    let list = [&["generate", "lora", "--coefficient", "-1,1"], &prompt[..]].concat();
    assert!(refused(&list, 2).contains("`reprpo eval` takes a list"));
    // Without an adapter, there is no change to multiply.
    for command in ["eval", "generate"] {
        let base = [command, "--model", "smollm2-135m-instruct", "--coefficient", "2"];
        let text = refused(&[&base[..], &prompt[usize::from(command == "eval") * 3..]].concat(), 2);
        assert!(text.contains("RUN_OR_ADAPTER"), "{text}");
    }
}
