//! Tests that training learns: every method, architecture and part of a fused module.

use super::*;

#[test]
fn the_loss_of_every_method_falls() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let original = &["--set", "intervention.variant=original"][..];
    // With a logarithm, the retain term starts at its minimum and outweighs the reroute term unless
    // α is small.
    let logarithm_only =
        &["--set", "intervention.variant=original", "--set", "intervention.alpha=0"][..];
    let reroute = &[
        "--set",
        "intervention.transform_in=reroute",
        "--set",
        "intervention.log=true",
        "--set",
        "intervention.alpha=0.01",
        "--set",
        "tap.pooling=common",
        "--transform",
        "ortho",
    ][..];
    let unbounded = &["--set", "intervention.loss_type=unbounded"][..];
    let several = &[
        "--set",
        "intervention.loss_type=[\"sigmoid\", \"sft\"]",
        "--set",
        "intervention.loss_weights=[1, 0.5]",
    ][..];
    for (i, (name, extra)) in [
        ("dpo", unbounded),
        ("dpo", several),
        ("mse", &[]),
        ("mse", reroute),
        ("mse", logarithm_only),
        ("rank", &[]),
        ("rank", original),
        ("prefvec", original),
        ("rr", &[]),
        ("sft", &[]),
        ("cpo", &[]),
        ("simpo", &[]),
        ("orpo", &[]),
        ("dpo", &["--set", "intervention.loss_type=simper"]),
        ("innerpo", &[]),
        ("innerpo", &["--set", "intervention.mode=topkl"]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.path().join(i.to_string());
        let args = [
            "--intervention",
            name,
            "--set",
            "train.epochs=4",
            "--set",
            "train.batch=8",
            "--set",
            "train.accumulate=1",
            "--set",
            "train.shuffle=false",
        ];
        let output = run(&golden, &out, &[&args[..], extra].concat());
        assert!(
            output.status.success(),
            "{name} {extra:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = metrics(&out);
        // The first and the last epoch contain the same pairs.
        let sum = |lines: &[Value]| lines.iter().map(|l| number(l, "loss")).sum::<f64>();
        let (first, last) = (sum(&lines[..3]), sum(&lines[lines.len() - 3..]));
        assert!(last < first, "{name} {extra:?}: {first} then {last}");
    }
}

#[test]
fn a_pair_with_equal_completions_is_excluded_from_the_loss_and_counted() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        format!(
            "{}\n",
            serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        )
    };
    let plain = [
        pair("Name a fruit that is red.", " An apple is red.", " The sky."),
        pair("How many legs has a spider?", " It has eight legs.", " It has four legs."),
        pair("What is two plus three?", " Five.", " Seven, I think."),
    ]
    .concat();
    let equal = pair("Where do fish live?", " In water.", " In water.");
    // These two completions are identical up to the 36th token.
    let cut = pair(
        "Name a fruit that is red.",
        " An apple is red, and so is a cherry when it is ripe.",
        " An apple is red, and so is a cherry when it is blue.",
    );
    for method in ["mse", "rank", "prefvec", "innerpo"] {
        let losses = |name: &str, text: &str, extra: &[&str]| {
            let (data, out) = (
                dir.path().join(format!("{method}-{name}.jsonl")),
                dir.path().join(format!("{method}-{name}")),
            );
            std::fs::write(&data, text).expect("the file is written");
            let settings = [
                // Adam takes steps of this size even if a gradient is only a rounding error, so a
                // larger learning rate would separate the runs.
                "train.lr=5e-4",
                "train.epochs=4",
                "train.shuffle=false",
                "train.schedule=constant",
            ]
            .map(|s| ["--set", s])
            .concat();
            let data = data.to_str().expect("UTF-8");
            let args = ["--dataset", data, "--layers", "1,2", "--intervention", method];
            let output = run(&golden, &out, &[&args[..], &settings, extra].concat());
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{method}, {name}: {text}");
            let log = std::fs::read_to_string(out.join("log.txt")).expect("a log");
            (metrics(&out).iter().map(|l| number(l, "loss")).collect::<Vec<_>>(), text, log)
        };
        let (without, quiet, _) = losses("plain", &plain, &[]);
        assert!(!quiet.contains("left out of the loss"), "{method}: {quiet}");
        let short = ["--set", "train.max_length=36"];
        for (name, text, extra) in [
            ("equal", format!("{plain}{equal}"), &[][..]),
            ("cut", format!("{cut}{plain}"), &short),
        ] {
            let (with, text, log) = losses(name, &text, extra);
            for (a, b) in with.iter().zip(&without) {
                // The tolerance allows for rounding in float32, which depends on the size of the
                // batch.
                assert!((a - b).abs() < 1e-3, "{method}, {name}: {with:?} {without:?}");
            }
            for text in [text, log] {
                assert!(
                    text.contains(
                        "warning: 4 of the 16 pairs seen were left out of the loss: \
                        each has no preference direction"
                    ),
                    "{method}, {name}: {text}"
                );
            }
        }
    }
}

#[test]
fn seeded_noise_perturbs_a_flat_start_and_is_logged() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let output = run(
            &golden,
            &out,
            &[&["--set", "train.epochs=10", "--set", "train.schedule=constant"], extra].concat(),
        );
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        (
            std::fs::read(out.join("adapter/adapter_model.safetensors")).expect("an adapter"),
            metrics(&out),
            text,
        )
    };
    for adapter in ["lora", "hra"] {
        let rr = ["--intervention", "rr", "--adapter", adapter];
        let ((bytes, lines, text), (again, ..)) =
            (of(&format!("{adapter}-a"), &rr), of(&format!("{adapter}-b"), &rr));
        assert!(
            text.contains(
                "the loss is flat at the reference, so training starts from a perturbed adapter: \
            noise with standard deviation 0.01 "
            ),
            "{text}"
        );
        assert_eq!(bytes, again);
        // The rejected states turn away from the reference; without the noise they would not move.
        let reroute = |l: &Value| number(l, "rr/reroute");
        assert!(
            reroute(&lines[0]) > 0.9 && reroute(&lines[lines.len() - 1]) < 0.7,
            "{adapter}: {} then {}",
            lines[0],
            lines[lines.len() - 1]
        );
        let (other, ..) = of(&format!("{adapter}-c"), &[&rr[..], &["--seed", "5"]].concat());
        assert_ne!(bytes, other);
    }
    assert!(!of("dpo", &["--intervention", "dpo"]).2.contains("flat"));
}

#[test]
fn a_run_that_learned_nothing_warns_in_its_last_lines() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let last = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let output = run(&golden, &out, extra);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let log = std::fs::read_to_string(out.join("log.txt")).expect("a log");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // The last line on the terminal names the run's folder; the log does not contain this line.
        let lines = |text: &str, skip: usize| {
            text.lines().rev().skip(skip).take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(&text, 1), lines(&log, 0));
        lines(&log, 0)
    };
    let unmoved = last(
        "unmoved",
        &["--intervention", "dpo", "--set", "train.lr=1e-12", "--set", "train.epochs=3"],
    );
    assert!(
        unmoved[0].starts_with("warning: the margin did not move: `rewards/margins` was "),
        "{unmoved:?}"
    );
    // The retain term of the original variant starts at its minimum, so the loss can only rise.
    let rising = last(
        "rising",
        &[
            "--intervention",
            "mse",
            "--set",
            "intervention.variant=original",
            "--set",
            "train.epochs=3",
        ],
    );
    assert!(
        rising.iter().any(|l| l.starts_with("warning: the loss did not decrease: ")),
        "{rising:?}"
    );
    let learned = last("learned", &["--intervention", "dpo", "--set", "train.epochs=3"]);
    assert!(!learned.iter().any(|l| l.contains("warning")), "{learned:?}");
}

#[test]
fn every_architecture_learns() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let llamas =
        ["llama", "llama_tied_rope3", "mistral", "phi3", "qwen2", "qwen3", "smollm3", "granite"];
    let models =
        ["gemma2", "gemma3_text", "gpt2", "gpt_neox", "olmo2", "olmo3"].into_iter().chain(llamas);
    for model in models.map(|name| golden.join("models").join(name)) {
        let name = model.file_name().expect("a name").to_str().expect("UTF-8");
        for (method, adapter) in [("dpo", "lora"), ("prefvec", "hra")] {
            let out = dir.path().join(format!("{name}-{method}"));
            let judged = ["eval.enabled=true", "eval.max_pairs=1", "eval.completion_tokens=4"]
                .map(|s| ["--set", s])
                .concat();
            learns(
                &golden,
                &out,
                &[
                    &[
                        "--intervention",
                        method,
                        "--adapter",
                        adapter,
                        "--model",
                        model.to_str().expect("UTF-8"),
                    ][..],
                    &judged,
                ]
                .concat(),
            );
            let summary: Value = serde_json::from_slice(
                &std::fs::read(out.join("eval/summary.json")).expect("a summary"),
            )
            .expect("JSON");
            let completions = &summary["completions"]["prompts"][0];
            assert!(
                ["before", "after"]
                    .iter()
                    .all(|when| completions[when]["tokens"] == 4
                        || completions[when]["ended"] == true),
                "{name}, {method}: {summary}"
            );
        }
    }
}

/// Trains for 20 steps, checks that the loss falls, and returns stderr.
fn learns(golden: &Path, out: &Path, extra: &[&str]) -> String {
    // With 20 pairs and 4 pairs per step, the first and the last five steps see the same pairs.
    let sets = [
        "train.batch=4",
        "train.accumulate=1",
        "train.epochs=4",
        "train.max_pairs=20",
        "train.shuffle=false",
    ];
    let output = run(golden, out, &[extra, &sets.map(|s| ["--set", s]).concat()].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{extra:?}: {text}");
    let lines = metrics(out);
    assert_eq!(lines.len(), 20, "{extra:?}");
    let sum = |lines: &[Value]| lines.iter().map(|l| number(l, "loss")).sum::<f64>();
    let (first, last) = (sum(&lines[..5]), sum(&lines[15..]));
    assert!(last < first, "{extra:?}: {first} then {last}");
    text
}

#[test]
fn adapters_on_parts_of_fused_modules_learn() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, part, layers) in [
        ("phi3", "qkv_proj.q_proj", "model.layers"),
        ("gpt_neox", "query_key_value.v_proj", "gpt_neox.layers"),
        ("gpt2", "c_attn.q_proj", "transformer.h"),
    ] {
        let model = golden.join("models").join(name);
        let targets = format!("adapter.target_modules=[\"{part}\"]");
        for (method, adapter) in
            [("dpo", "lora"), ("projgrad", "lora"), ("projbp", "lora"), ("prefvec", "hra")]
        {
            let out = dir.path().join(format!("{name}-{method}"));
            let text = learns(
                &golden,
                &out,
                &[
                    "--intervention",
                    method,
                    "--adapter",
                    adapter,
                    "--model",
                    model.to_str().expect("UTF-8"),
                    "--set",
                    &targets,
                ],
            );
            assert!(text.contains(" parts of modules adapted, "), "{text}");
            // The run warns at its start if PEFT cannot read the adapter.
            assert_eq!(
                text.contains("warning: PEFT cannot read this adapter"),
                adapter == "hra",
                "{text}"
            );
            let tensors = reprpo_core::weights::read_safetensors(
                &out.join("adapter/adapter_model.safetensors"),
            )
            .expect("tensors");
            let whole = part.split_once('.').expect("a part").0;
            let (at, key) =
                if adapter == "hra" { (part, "hra_u") } else { (whole, "lora_B.weight") };
            let wanted = |name: &String| {
                name.starts_with(&format!("base_model.model.{layers}.0."))
                    && name.ends_with(&format!(".{at}.{key}"))
            };
            assert!(tensors.keys().any(wanted), "{:?}", tensors.keys());
        }
    }
}
