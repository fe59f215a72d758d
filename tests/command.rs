//! The command line: its output on stdout and stderr, and its exit codes.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::{json, reprpo, reprpo_command, stderr, stdout};

fn in_folder(args: &[&str], folder: &Path, environment: &[(&str, &str)]) -> Output {
    reprpo_command(args)
        .envs(environment.iter().copied())
        .current_dir(folder)
        .output()
        .expect("the command runs")
}

#[test]
fn a_call_without_arguments_prints_the_help_and_is_a_usage_error() {
    let output = reprpo(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: reprpo"));
}

#[test]
fn help_goes_to_stdout_and_has_headings_and_examples() {
    let long = stdout(&reprpo(&["run", "--help"]));
    let topics = [
        "Model:",
        "Method:",
        "Data:",
        "Training:",
        "Evaluation:",
        "Output:",
        "Plugins and configuration:",
        "General:",
    ];
    // Headings are the lines that are not indented.
    let headings: Vec<&str> =
        long.lines().filter(|line| topics.contains(line) || *line == "Options:").collect();
    assert_eq!(headings, topics, "{long}");
    assert!(long.contains("\nExamples:\n"), "{long}");
    assert!(!stdout(&reprpo(&["run", "-h"])).contains("Examples:"));
}

#[test]
fn the_help_lists_the_commands_by_topic() {
    let help = stdout(&reprpo(&["--help"]));
    let (_, commands) = help.split_once("\nCommands:\n").expect("a list of commands");
    let names: Vec<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        names.join(" "),
        "doctor selftest bench list explain model cache run sweep reproduce config compare report \
            eval score generate chat states export data new plugin help"
    );
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    let output = reprpo(&["run", "--intervantion", "x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--intervention"));
}

#[test]
fn the_schema_is_json() {
    let schema = json(&reprpo(&["config", "schema"]));
    assert_eq!(schema["title"], "Experiment");
    assert!(schema["properties"]["train"].is_object());
}

#[test]
fn doctor_finds_a_working_libtorch() {
    let checks = json(&reprpo(&["doctor", "--json"]));
    assert_eq!((&checks[0]["name"], &checks[0]["state"]), (&"libtorch".into(), &"good".into()));
    assert!(stdout(&reprpo(&["doctor"])).starts_with("✔ libtorch"));
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn waiting_threads_sleep_unless_the_user_chose_otherwise() {
    let doctor = |variables: &[(&str, &str)]| {
        let mut command = reprpo_command(&["doctor"]);
        for name in ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"] {
            command.env_remove(name);
        }
        let output = command.envs(variables.iter().copied()).output();
        stdout(&output.expect("the command runs"))
    };
    for (variables, expected) in [
        (&[][..], "a waiting thread sleeps after 1000 turns (GOMP_SPINCOUNT)"),
        (&[("GOMP_SPINCOUNT", "7")], "a waiting thread sleeps after 7 turns"),
        (&[("OMP_WAIT_POLICY", "active")], "waiting threads are active (OMP_WAIT_POLICY)"),
        (&[("OMP_NUM_THREADS", "1")], "waiting threads follow OpenMP's defaults"),
    ] {
        let text = doctor(variables);
        assert!(text.contains(expected), "{variables:?}: {text}");
    }
}

#[test]
fn a_reader_that_closes_stdout_early_causes_no_error() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("reprpo"))
        .args(["config", "schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn eval_names_the_files_that_a_folder_must_contain() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = in_folder(&["eval", "."], folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "error: there is neither a run nor an adapter in `.`\n\nhint: give a folder with a \
            `config.toml` (a run) or an `adapter_config.json` (an adapter)\n"
    );
}

#[test]
fn resume_names_the_file_that_a_run_must_contain() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = in_folder(&["run", "--resume", "."], folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with(
            "error: there is no run in `.`, because the folder has no `config.toml`\n\nhint: "
        ),
        "{}",
        stderr(&output)
    );
    for flags in [["--seed", "1"], ["--model", "x"], ["--set", "train.lr=1"]] {
        assert_eq!(
            reprpo(&[&["run", "--resume", "."], &flags[..]].concat()).status.code(),
            Some(2),
            "{flags:?}"
        );
    }
}

/// A model that cannot be read causes an error that names the model, exit code 1, and no run
/// folder.
#[test]
fn a_model_that_cannot_be_read_is_named_and_no_run_folder_is_created() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let cache = here.join("cache");
    let cache = cache.to_str().expect("UTF-8");
    std::fs::write(here.join("foreign.gguf"), "this is not a model").expect("the file is written");
    std::fs::write(here.join("empty.gguf"), "").expect("the file is written");
    std::fs::write(here.join("cut.gguf"), b"GGUF\x03\0\0\0\x01\0\0").expect("the file is written");
    std::fs::write(here.join("strange.gguf"), gguf_with_tensor_type(1234))
        .expect("the file is written");
    for (model, files) in [
        ("no-config", vec![]),
        ("empty-config", vec![("config.json", "{}")]),
        ("broken-config", vec![("config.json", "{x")]),
    ] {
        std::fs::create_dir(here.join(model)).expect("the folder is created");
        for (name, text) in files {
            std::fs::write(here.join(model).join(name), text).expect("the file is written");
        }
    }
    for (model, expected) in [
        ("smollm2-135m-instruct", "is not on this machine yet"),
        ("smollm2-135m-instruc", "did you mean `smollm2-135m-instruct`?"),
        ("org/name", "the model `org/name` is not in the cache"),
        ("none/such.gguf", "no model found at `none/such.gguf`"),
        ("foreign.gguf", "`foreign.gguf` is not a GGUF file"),
        ("empty.gguf", "`empty.gguf` is empty"),
        ("cut.gguf", "it ends inside a number of 8 bytes"),
        ("strange.gguf", "1234"),
        ("no-config", "`no-config/config.json` is missing"),
        ("empty-config", "contains neither model.safetensors"),
        ("broken-config", "`broken-config/config.json` is not valid JSON"),
    ] {
        let output = in_folder(
            &["run", "--model", model],
            here,
            &[("REPRPO_CACHE", cache), ("HF_HUB_CACHE", cache), ("HF_HUB_OFFLINE", "1")],
        );
        assert_eq!(output.status.code(), Some(1), "{model}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{model}: {}", stderr(&output));
        assert!(!here.join("runs").exists(), "{model}");
    }
}

/// Returns a GGUF file with one tensor of the type `number`, which the format does not define.
fn gguf_with_tensor_type(number: u32) -> Vec<u8> {
    let name = b"token_embd.weight";
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend((name.len() as u64).to_le_bytes());
    file.extend(name);
    file.extend(1u32.to_le_bytes());
    file.extend(32u64.to_le_bytes());
    file.extend(number.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.resize(4096, 0);
    file
}

#[test]
fn known_models_are_listed_with_their_path_and_the_command_that_fetches_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().to_str().expect("UTF-8");
    let list = |args: &[&str]| in_folder(args, folder.path(), &[("REPRPO_CACHE", cache)]);
    let listed = json(&list(&["list", "models", "--json"]));
    assert_eq!((&listed[0]["kind"], &listed[0]["fetched"]), (&"model".into(), &false.into()));
    let text = stdout(&list(&["list", "models", "--long"]));
    for part in ["not downloaded", "reprpo model fetch", "org/name"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(stdout(&list(&["list", "models"])).contains(" (not downloaded)\n"));
    assert!(stdout(&list(&["doctor"])).contains("none of the"));
    let name = listed[0]["name"].as_str().expect("a name");
    std::fs::create_dir_all(folder.path().join("models").join(name))
        .expect("the folder is created");
    std::fs::write(folder.path().join("models").join(name).join("x.gguf"), "")
        .expect("the file is written");
    assert_eq!(json(&list(&["list", "models", "--json"]))[0]["fetched"], true);
    assert!(stdout(&list(&["list", "--long"])).contains(&format!("in `{cache}")));
}

#[test]
fn a_value_of_the_wrong_type_is_reported_in_plain_words() {
    for (set, expected) in [
        ("train.lr=abc", "expected a number"),
        ("train.batch=1.5", "expected a whole number or `auto`"),
        ("train.accumulate=1.5", "expected a whole number"),
        ("train.shuffle=3", "expected true or false"),
    ] {
        let output = reprpo(&["config", "show", "--set", set]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let output = reprpo(&["config", "show", "--set", "eval.completion_tokens=0"]);
    assert!(
        stderr(&output).starts_with(
            "error: `eval.completion_tokens` is 0 (--set), but must \
        be 1 or more; set `eval.completions=0`"
        ),
        "{}",
        stderr(&output)
    );
    let output = reprpo(&["config", "show", "--seed", "-1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("`train.seed` is not valid (flag --seed)"),
        "{}",
        stderr(&output)
    );
}

/// No source file of `core` contains the name of a method as a string literal: the core finds
/// methods only through the registry.
#[test]
fn the_core_does_not_mention_any_method() {
    // Names of plugins that are also ordinary words.
    const ORDINARY: [&str; 4] = ["none", "file", "hub", "rank"];
    let listed = json(&reprpo(&["list", "--json"]));
    let names: Vec<String> = listed
        .as_array()
        .expect("a list")
        .iter()
        // Models are not plugins: the core contains the list of known models.
        .filter(|e| e["kind"] != "model")
        .flat_map(|e| std::iter::once(&e["name"]).chain(e["aliases"].as_array().expect("a list")))
        .filter_map(Value::as_str)
        .filter(|n| !ORDINARY.contains(n))
        .map(|n| format!("\"{n}\""))
        .collect();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("core")];
    while let Some(folder) = folders.pop() {
        for path in
            std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path())
        {
            if path.is_dir() {
                // `xtask` calls the command, and its demo must choose a method.
                if path.file_name().is_none_or(|n| n != "xtask") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                // Unit tests may name the methods that they test.
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                for name in &names {
                    assert!(!code.contains(name), "{} names {name}", path.display());
                }
            }
        }
    }
}

/// Tests that need the built-in methods and data sets.
mod with_built_ins {
    use super::*;

    #[test]
    fn every_kind_is_listed() {
        let (short, long) = (stdout(&reprpo(&["list"])), stdout(&reprpo(&["list", "--long"])));
        for word in [
            "interventions",
            "dpo",
            "prefvec",
            "adapters",
            "lora",
            "hra",
            "transforms",
            "none",
            "ortho",
            "taps",
            "hs",
            "side-in",
            "side-out",
            "recipes",
            "reprpo_hra",
            "datasets",
            "genies",
            "synthetic",
            "models",
        ] {
            assert!(short.contains(word), "{word}\n{short}");
            assert!(long.contains(word), "{word}\n{long}");
        }
        for args in [&["list", "adapters"][..], &["list", "adapters", "--long"]] {
            assert!(!stdout(&reprpo(args)).contains("dpo"));
        }
    }

    #[test]
    fn the_short_list_has_one_line_per_name_without_details() {
        let text = stdout(&reprpo(&["list"]));
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let listed = json(&reprpo(&["list", "--json"]));
        let names: Vec<&str> = listed
            .as_array()
            .expect("a list")
            .iter()
            .map(|entry| entry["name"].as_str().expect("a name"))
            .collect();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("  "))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(lines, names, "{text}");
        for (part, why) in [
            ("needs log-probabilities", "needs"),
            ("Rafailov", "a reference"),
            ("reprpo-methods", "a crate"),
        ] {
            assert!(!text.contains(part), "the short list must not contain {why}\n{text}");
            assert!(stdout(&reprpo(&["list", "--long"])).contains(part), "{why}");
        }
    }

    #[test]
    fn explain_prints_needs_fields_reference_and_an_example() {
        let text = stdout(&reprpo(&["explain", "dpo"]));
        for part in [
            "dpo (intervention): ",
            "Needs: log-probabilities of both completions",
            "beta",
            "Reference: ",
            "Example:   reprpo run --intervention dpo",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(json(&reprpo(&["explain", "dpo", "--json"]))[0]["kind"], "intervention");
        for (name, example) in [
            ("file", "reprpo run --dataset file:pairs.jsonl --set dataset.test=held_out.jsonl"),
            (
                "projbp",
                "reprpo run --intervention projbp --set intervention.sign=neg --set \
                    intervention.dpo.beta=0.3",
            ),
            ("sft", "reprpo run --intervention sft"),
            (
                "weight-steering",
                "reprpo run --adapter weight-steering --set adapter.plus=runs/plus --set \
                    adapter.minus=runs/minus --set adapter.coefficient=2.0 --intervention none",
            ),
        ] {
            assert_eq!(json(&reprpo(&["explain", name, "--json"]))[0]["example"], example);
        }
        for (name, needs) in [
            ("mse", "pooled states at the taps; the reference's states, once per pair"),
            ("rr", "states of every token at the taps; the reference's states, at every step"),
            ("sft", "log-probabilities of the chosen completion\n"),
            ("simpo", "log-probabilities of both completions\n"),
            (
                "orpo",
                "log-probabilities of both completions; log-probabilities of the whole chosen \
                    sequence; a fixed size of the micro-batches\n",
            ),
            ("none", "nothing\n"),
        ] {
            let text = stdout(&reprpo(&["explain", name]));
            assert!(text.contains(&format!("\nNeeds: {needs}")), "{text}");
        }
    }

    #[test]
    fn explain_says_whether_the_change_of_an_adapter_can_be_multiplied() {
        for (name, accepts, line) in [
            ("lora", true, "\nCoefficient: any finite number (`--coefficient`)\n"),
            (
                "oft",
                false,
                "\nCoefficient: only 0 and 1, because `oft` multiplies the weights by rotations, \
                    and a multiple of its change does not have this form\n",
            ),
        ] {
            let text = stdout(&reprpo(&["explain", name]));
            assert!(text.contains(line), "{text}");
            assert_eq!(
                json(&reprpo(&["explain", name, "--json"]))[0]["accepts_coefficient"],
                accepts
            );
        }
        let sft = json(&reprpo(&["explain", "sft", "--json"]));
        assert!(
            sft[0]["accepts_coefficient"].is_null() && sft[0].get("accepts_coefficient").is_some()
        );
    }

    #[test]
    fn an_unknown_name_exits_with_1_and_suggests_the_nearest_name() {
        let output = reprpo(&["run", "--intervention", "prefvek"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).starts_with(
                "error: unknown intervention `prefvek`\n\nhint: did \
            you mean `prefvec`?\nhint: valid: cpo"
            ),
            "{}",
            stderr(&output)
        );
        assert_eq!(reprpo(&["explain", "prefvek"]).status.code(), Some(1));
    }

    #[test]
    fn the_origin_of_every_value_is_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("x.toml"), "[train]\nbatch = 8\n")
            .expect("the file is written");
        let args = [
            "config",
            "show",
            "--origin",
            "--json",
            "--config",
            "x.toml",
            "--adapter",
            "hra",
            "--set",
            "train.epochs=2",
        ];
        let shown = json(&in_folder(&args, folder.path(), &[("REPRPO_TRAIN__LR", "3e-5")]));
        let origin = |path: &str| shown[path]["origin"].as_str().unwrap_or_default().to_owned();
        assert_eq!(origin("train.batch"), "file x.toml");
        assert_eq!(origin("train.lr"), "environment REPRPO_TRAIN__LR");
        assert_eq!(origin("adapter.name"), "flag --adapter");
        assert_eq!(origin("train.epochs"), "--set");
        assert_eq!(origin("intervention.beta"), "default of dpo");
        assert_eq!(origin("train.seed"), "default");
        assert_eq!(shown["train.lr"]["value"], 3e-5);
    }

    #[test]
    fn the_default_learning_rate_names_the_methods_that_it_comes_from() {
        let lr = |extra: &[&str]| {
            let shown = json(&reprpo(&[&["config", "show", "--origin", "--json"], extra].concat()));
            (
                shown["train.lr"]["value"].as_f64().expect("a number"),
                shown["train.lr"]["origin"].as_str().unwrap_or_default().to_owned(),
            )
        };
        assert_eq!(
            lr(&["--intervention", "dpo", "--adapter", "lora"]),
            (5e-4, "default".to_owned())
        );
        assert_eq!(
            lr(&["--intervention", "prefvec", "--adapter", "lora"]),
            (2e-3, "default of prefvec".to_owned())
        );
        let (both, origin) = lr(&["--intervention", "prefvec", "--adapter", "hra"]);
        assert!(both > 2e-3 && origin == "default of prefvec × hra", "{both} {origin}");
        // A recipe's learning rate takes precedence over the default of its methods.
        assert_eq!(lr(&["--recipe", "reprpo_side"]), (6e-5, "recipe reprpo_side".to_owned()));
        let text = stdout(&reprpo(&["explain", "mse"]));
        assert!(
            text.contains(
                "Learning rate: the default of `train.lr` is 0.005 times the factor of the adapter"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_output_of_config_show_is_a_configuration_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let args = [
            "config",
            "show",
            "--intervention",
            "prefvec",
            "--set",
            "eval.max_pairs=none",
            "--seed",
            "7",
        ];
        let first = stdout(&in_folder(&args, folder.path(), &[]));
        std::fs::write(folder.path().join("x.toml"), &first).expect("the file is written");
        assert_eq!(
            stdout(&in_folder(&["config", "show", "--config", "x.toml"], folder.path(), &[])),
            first
        );
    }

    #[test]
    fn a_run_does_not_write_into_an_existing_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let output = in_folder(&["run", "--out", "."], folder.path(), &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output)
                .starts_with("error: `.` already exists\n\nhint: choose a different `--out`"),
            "{}",
            stderr(&output)
        );
    }

    #[test]
    fn a_data_set_without_files_rejects_a_data_folder() {
        let output = reprpo(&["config", "show", "--dataset", "synthetic", "--data-dir", "x"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).starts_with(
                "error: dataset `synthetic` has no field `data_dir` (flag --data-dir)"
            ),
            "{}",
            stderr(&output)
        );
    }

    #[test]
    fn recipes_are_listed_explained_and_resolved() {
        let listed = json(&reprpo(&["list", "recipes", "--json"]));
        let names: Vec<&str> = listed
            .as_array()
            .expect("a list")
            .iter()
            .map(|r| r["name"].as_str().expect("a name"))
            .collect();
        assert_eq!(
            names,
            ["dpo", "genies_mms", "repeng", "reprpo_hra", "reprpo_ortho", "reprpo_side"]
        );
        assert!(stdout(&reprpo(&["list", "recipes", "--long"])).contains("`--recipe NAME`"));
        for name in names {
            let text = stdout(&reprpo(&["explain", name]));
            // The other recipes are baselines without training.
            let trains = !["genies_mms", "repeng"].contains(&name);
            for part in [
                format!("{name} (recipe): ").as_str(),
                if trains { "max_pairs = 5400" } else { "[intervention]" },
                "Published: ",
                "Reference: ",
                &format!("Example:   reprpo run --recipe {name}"),
            ] {
                assert!(text.contains(part), "{part}\n{text}");
            }
        }
        // A method and a recipe can have the same name.
        let both = json(&reprpo(&["explain", "dpo", "--json"]));
        assert_eq!(
            (&both[0]["kind"], &both[1]["kind"], &both[1]["sets"]["train"]["lr"]),
            (&"intervention".into(), &"recipe".into(), &6e-5.into())
        );

        let shown = json(&reprpo(&[
            "config",
            "show",
            "--recipe",
            "dpo",
            "--set",
            "train.clip=1",
            "--origin",
            "--json",
        ]));
        let of = |path: &str| {
            (
                shown[path]["value"].clone(),
                shown[path]["origin"].as_str().unwrap_or_default().to_owned(),
            )
        };
        assert_eq!(of("recipe"), ("dpo".into(), "flag --recipe".to_owned()));
        assert_eq!(of("adapter.r"), (64.into(), "recipe dpo".to_owned()));
        assert_eq!(of("train.schedule"), ("constant".into(), "recipe dpo".to_owned()));
        assert_eq!(of("train.clip").1, "--set");
        let output = reprpo(&["run", "--recipe", "reprpo_hrra"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).starts_with(
                "error: unknown recipe `reprpo_hrra`\n\nhint: did you mean `reprpo_hra`?"
            ),
            "{}",
            stderr(&output)
        );
    }

    #[test]
    fn transforms_and_taps_explain_themselves() {
        for (name, parts) in [
            (
                "ether",
                &["ether (transform): ", "I − 2ûûᵀ", "plus_two_sided", "reduce", "Reference: "][..],
            ),
            ("svd", &["T(x) = x − x·V diag(w) Vᵀ", "soft", "quantile", "unembedding"]),
            ("suppressed", &["pinv(W)", "threshold", "0.1", "rising"]),
            ("side-out", &["side-out (tap): ", "out.gate_proj", "modules", "list of text | none"]),
            ("side-in", &["in.o_proj", "modules"]),
        ] {
            let text = stdout(&reprpo(&["explain", name]));
            for part in parts {
                assert!(text.contains(part), "{part}\n{text}");
            }
        }
    }
}
