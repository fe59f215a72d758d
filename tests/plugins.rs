//! Plugins as libraries: they work like built-in ones, and a plugin that fails affects nothing
//! else.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

use crate::golden;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The libraries of `tests/plugins`, built once.
static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = root().join("target/plugins");
    let mut cargo = cargo(&root().join("tests/plugins"));
    let output = cargo
        .args(["build", "--workspace", "--locked", "--message-format", "short"])
        .arg("--target-dir")
        .arg(&target)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("debug")
});

/// The command without any method, which only a whole `cargo test` builds by itself.
pub static BARE: LazyLock<PathBuf> = LazyLock::new(|| {
    let output = cargo(root())
        .args(["build", "--locked", "--example", "bare"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    root().join("target/debug/examples/bare").with_extension(std::env::consts::EXE_EXTENSION)
});

/// Cargo as a person starts it in `folder`: without what the cargo that runs these tests has set
/// for them.
fn cargo(folder: &Path) -> Command {
    const SET: [&str; 6] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_TMPDIR",
    ];
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if SET.iter().any(|prefix| name.starts_with(prefix)) || name == "LD_LIBRARY_PATH" {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(folder);
    cargo
}

pub fn library(name: &str) -> PathBuf {
    LIBRARIES.join(format!(
        "{}{name}{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ))
}

fn faults() -> String {
    library("faults").display().to_string()
}

/// A library of one file, compiled without any crate.
fn compiled(file: &str, folder: &Path) -> String {
    let out = folder.join(file).with_extension(std::env::consts::DLL_EXTENSION);
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(&out)
        .arg(root().join("tests/plugins").join(file));
    let output = rustc.output().expect("rustc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out.display().to_string()
}

fn command(program: &Path, folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REPRPO_") {
            command.env_remove(name);
        }
    }
    // Nobody's own plugins.
    command
        .env("REPRPO_PLUGIN_DIR", folder.join("no-plugins"))
        .env("NO_COLOR", "1")
        .env("OMP_NUM_THREADS", "1");
    command.current_dir(folder).args(args).output().expect("it runs")
}

fn reprpo(folder: &Path, args: &[&str]) -> Output {
    command(assert_cmd::cargo::cargo_bin!("reprpo"), folder, args)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The error of a command that fails by what it was given.
fn error(folder: &Path, args: &[&str]) -> String {
    let output = reprpo(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", told(&output));
    told(&output)
}

/// A short run on the tiny Llama model and its pairs.
fn run(program: &Path, folder: &Path, out: &str, args: &[&str]) -> Output {
    let golden = golden::own();
    let (model, pairs) = (
        golden.join("models/llama").display().to_string(),
        golden.join("trl/pairs.jsonl").display().to_string(),
    );
    let mut all = vec![
        "run",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--no-eval",
        "--model",
        &model,
        "--out",
        out,
        "--set",
        "train.max_pairs=8",
    ];
    if !args.contains(&"--dataset") {
        all.extend(["--dataset", &pairs]);
    }
    all.extend(args);
    command(program, folder, &all)
}

#[test]
fn a_method_that_is_loaded_gives_the_bytes_of_the_same_one_built_in() {
    let dir = tempfile::tempdir().expect("a folder");
    let builtins = library("builtins").display().to_string();
    // One of each kind, and between them every stage of a step: hooks, gradients, a trained
    // transform, dropout.
    let runs: &[&[&str]] = &[
        &[
            "--intervention",
            "prefvec",
            "--adapter",
            "hra",
            "--transform",
            "ortho",
            "--tap",
            "side-in",
            "--layers",
            "1",
        ],
        &["--intervention", "projbp", "--adapter", "lora", "--set", "adapter.lora_dropout=0.2"],
        &["--intervention", "projgrad", "--adapter", "oft"],
        &["--recipe", "reprpo_side", "--layers", "1", "--dataset", "synthetic"],
    ];
    for (i, args) in runs.iter().enumerate() {
        let (linked, loaded) = (format!("linked{i}"), format!("loaded{i}"));
        let ours = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), &linked, args);
        assert!(ours.status.success(), "{}", told(&ours));
        let theirs =
            run(&BARE, dir.path(), &loaded, &[args, &["--plugin", &builtins][..]].concat());
        assert!(theirs.status.success(), "{}", told(&theirs));
        for file in
            ["metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
        {
            let read = |run: &str| std::fs::read(dir.path().join(run).join(file)).expect(file);
            assert!(read(&linked) == read(&loaded), "{args:?}: `{file}` differs");
        }
    }
    // Without them it knows nothing.
    let output = command(&BARE, dir.path(), &["list", "interventions", "--json"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]");
}

#[test]
fn what_is_no_plugin_of_this_build_is_refused_before_it_is_called() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = dir.path().join("text.so");
    std::fs::write(&text, "no library\n".repeat(1000)).expect("a file");
    let load = |file: &str| error(dir.path(), &["list", "--plugin", file]);

    let e = load("missing.so");
    assert!(
        e.contains("`missing.so` cannot be used as a plugin")
            && e.contains("the file does not exist")
            && e.contains("cargo build --release"),
        "{e}"
    );
    assert!(load(text.to_str().expect("UTF-8")).contains("the system cannot load it"));
    let e = load(&compiled("incomplete.rs", dir.path()));
    assert!(
        e.contains("reprpo_function_that_nobody_has") && e.contains("rebuild it with the libtorch"),
        "{e}"
    );
    let e = load(&compiled("no_plugin.rs", dir.path()));
    assert!(
        e.contains("not a reprpo plugin: it does not export `REPRPO_PLUGIN`")
            && e.contains("export_plugin!();"),
        "{e}"
    );

    let e = load(&compiled("another_build.rs", dir.path()));
    for part in [
        "`oldtwist` 0.0.1 was built for another build of reprpo",
        "tch 0.22.0 instead of 0.24.0",
        "the plugin was built with rustc 1.80.0",
        "this reprpo was built with rustc",
        "hint: build the plugin",
    ] {
        assert!(e.contains(part), "{part}\n{e}");
    }
}

#[test]
fn a_method_that_fails_is_named_and_ends_its_run_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let faults = faults();
    let table: &[(&[&str], &[&str])] = &[
        (
            &["--intervention", "panics-in-build"],
            &[
                "`build` of intervention `panics-in-build` of `",
                "the build gave up (faults/src/lib.rs:",
            ],
        ),
        (
            &["--intervention", "panics-in-needs"],
            &["`needs` of intervention `panics-in-needs`", "no idea what it needs"],
        ),
        (
            &["--intervention", "panics-in-loss"],
            &["step 1 failed", "`loss` of intervention `panics-in-loss`", "the loss gave up"],
        ),
        (
            &["--intervention", "panics-in-torch"],
            &[
                "`loss` of intervention `panics-in-torch`",
                "libtorch: mat1 and mat2 shapes cannot be multiplied",
            ],
        ),
        (
            &["--intervention", "panics-in-hook"],
            &["`output_grad` of intervention `panics-in-hook`", "the hook gave up"],
        ),
        (
            &["--intervention", "hook-of-another-shape"],
            &[
                "step 1 failed, with intervention `hook-of-another-shape`",
                "a gradient hook must return a gradient of (",
                "but returned ([], Float)",
            ],
        ),
        (
            &["--intervention", "loss-is-nan"],
            &["step 1 failed, with intervention `loss-is-nan`", "the loss is NaN"],
        ),
        (
            &["--intervention", "loss-is-no-number"],
            &["intervention `loss-is-no-number`", "the shape [4], but has to be one number"],
        ),
        (
            &["--intervention", "loss-has-no-gradient"],
            &["intervention `loss-has-no-gradient`", "has no gradient"],
        ),
        (
            &["--intervention", "reads-what-it-did-not-ask-for"],
            &[
                "failed in `loss`",
                "which its `Needs` do not request",
                "hint: set `logprobs: Both` in its `Needs`",
            ],
        ),
        (
            &["--intervention", "logs", "--set", "intervention.unusd=1"],
            &["intervention `logs` has no field `unusd`", "did you mean `intervention.unused`?"],
        ),
        (
            &["--adapter", "panics-in-forward"],
            &["`forward` of adapter `panics-in-forward`", "the module gave up"],
        ),
        (
            &["--dataset", "panics-in-pairs"],
            &["`pairs` of dataset `panics-in-pairs`", "the file gave up"],
        ),
    ];
    for (args, parts) in table {
        let output = run(
            assert_cmd::cargo::cargo_bin!("reprpo"),
            dir.path(),
            "out",
            &[args, &["--plugin", &faults][..]].concat(),
        );
        let told = told(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {told}");
        parts
            .iter()
            .for_each(|part| assert!(told.contains(part), "{args:?}: no `{part}` in\n{told}"));
        assert!(!told.contains("frame #") && !told.contains("stack backtrace"), "{told}");
        assert!(!dir.path().join("out").exists(), "{args:?} left a folder");
    }
}

#[test]
fn a_panic_in_drop_is_told_after_the_run_that_it_could_not_stop() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = ["--plugin", &faults(), "--intervention", "panics-in-drop"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "out", &args);
    let told = told(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("`drop` of intervention `panics-in-drop`")
            && told.contains("the end gave up"),
        "{told}"
    );
    assert!(dir.path().join("out/adapter/adapter_model.safetensors").is_file());
}

#[test]
fn a_plugin_logs_through_its_host() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = ["--plugin", &faults(), "--intervention", "logs"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "out", &args);
    assert!(
        told(&output).contains("WARN faults: the loss is asked for pairs=4"),
        "{}",
        told(&output)
    );
}

#[test]
fn two_plugins_of_one_name_are_both_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, second) = (faults(), dir.path().join("again.so"));
    std::fs::copy(&first, &second).expect("a copy");
    let e = error(
        dir.path(),
        &["list", "--plugin", &first, "--plugin", second.to_str().expect("UTF-8")],
    );
    assert!(
        e.contains(" are called `")
            && e.contains(&format!("one of faults 0.1.0 in `{first}`"))
            && e.contains("/again.so`"),
        "{e}"
    );

    let e = error(dir.path(), &["list", "--plugin", &library("builtins").display().to_string()]);
    assert!(
        e.contains(" 0.1.0, which is built in, one of reprpo-") && e.contains("libbuiltins.so`"),
        "{e}"
    );
    // The same file twice is one plugin.
    assert!(reprpo(dir.path(), &["list", "--plugin", &first, "--plugin", &first]).status.success());
}

#[test]
fn a_run_keeps_which_plugin_it_used_and_asks_for_that_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let library = dir.path().join("mine.so");
    std::fs::copy(faults(), &library).expect("a copy");
    let args =
        ["--plugin", "mine.so", "--intervention", "logs", "--set", "train.checkpoint_every=1"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "out", &args);
    assert!(output.status.success(), "{}", told(&output));
    let config =
        std::fs::read_to_string(dir.path().join("out/config.toml")).expect("a configuration");
    let table: toml::Table = toml::from_str(&config).expect("TOML");
    let kept = &table["plugins"][0];
    assert_eq!(kept["version"].as_str(), Some("0.1.0"));
    // The path is relative to the run's folder, because the library lies in the same tree.
    assert_eq!(kept["path"].as_str(), Some("../mine.so"));
    assert_eq!(kept["sha256"].as_str().map(str::len), Some(64));
    // The configuration brings its plugin along.
    let shown = reprpo(dir.path(), &["config", "show", "--config", "out/config.toml", "--json"]);
    assert!(shown.status.success(), "{}", told(&shown));
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["intervention"]["name"], "logs");

    let other = config.replace(kept["sha256"].as_str().expect("a digest"), &"0".repeat(64));
    std::fs::write(dir.path().join("other.toml"), other).expect("a file");
    let e = error(dir.path(), &["config", "show", "--config", "other.toml"]);
    assert!(
        e.contains("is not the one that the configuration names")
            && e.contains("remove `sha256` from the configuration"),
        "{e}"
    );
}

#[test]
fn plugins_are_found_in_the_folder_the_environment_and_the_configuration() {
    let dir = tempfile::tempdir().expect("a folder");
    let installed = dir.path().join("installed");
    std::fs::create_dir(&installed).expect("a folder");
    let library = installed.join("faults.so");
    std::fs::copy(faults(), &library).expect("a copy");
    let with = |environment: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("reprpo"));
        command
            .env_remove("REPRPO_PLUGINS")
            .env("REPRPO_PLUGIN_DIR", dir.path().join("no-plugins"))
            .env("NO_COLOR", "1");
        command
            .envs(environment.iter().copied())
            .current_dir(dir.path())
            .args(args)
            .output()
            .expect("it runs")
    };
    let there = |environment: &[(&str, &str)], args: &[&str]| {
        let output = with(environment, args);
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("panics-in-loss")
    };
    let (folder, file) = (installed.display().to_string(), library.display().to_string());
    assert!(!there(&[], &["list"]));
    assert!(there(&[("REPRPO_PLUGIN_DIR", &folder)], &["list"]));
    assert!(there(&[("REPRPO_PLUGIN_DIR", &folder)], &["run", "--help"]));
    assert!(there(&[("REPRPO_PLUGINS", &file)], &["list"]));
    std::fs::write(
        dir.path().join("c.toml"),
        format!("plugins = [{file:?}]\nintervention = \"panics-in-loss\"\n"),
    )
    .expect("a file");
    assert!(there(&[], &["config", "show", "--config", "c.toml"]));

    // What cannot be used is passed over in the folder, and named where a name is not found.
    std::fs::write(installed.join("broken.so"), "x").expect("a file");
    let output = with(&[("REPRPO_PLUGIN_DIR", &folder)], &["run", "--intervention", "twist"]);
    let told = told(&output);
    assert_eq!(output.status.code(), Some(1));
    for part in [
        "skipped a plugin: `",
        "unknown intervention `twist`",
        &format!("plugin files searched: `{file}`"),
        "broken.so`; run `reprpo plugin check FILE` for the reason",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
}

#[test]
fn a_listing_says_which_file_a_method_comes_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let faults = faults();
    let output = reprpo(dir.path(), &["list", "--json", "--plugin", &faults]);
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let find = |name: &str| {
        listed
            .as_array()
            .expect("a list")
            .iter()
            .find(|e| e["name"] == name)
            .unwrap_or_else(|| panic!("no {name}"))
            .clone()
    };
    let loaded = find("logs");
    assert_eq!(
        (&loaded["file"], &loaded["origin"], &loaded["version"]),
        (&faults.as_str().into(), &"faults".into(), &"0.1.0".into())
    );
    assert_eq!(loaded["needs"], "log-probabilities of both completions");
    assert_eq!(find("dpo")["file"], Value::Null);
    let output = reprpo(dir.path(), &["list", "interventions", "--long", "--plugin", &faults]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("faults 0.1.0, libfaults.so")
            && text.contains("reprpo-methods 0.1.0, built in")
            && text.contains("plugin files"),
        "{text}"
    );
}

/// Cargo in `folder`, which has to succeed.
fn build(folder: &Path, args: &[&str]) {
    let mut cargo = cargo(folder);
    // The crate says itself where libtorch is.
    let output = cargo.env_remove("LIBTORCH").args(args).output().expect("cargo runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "cargo {args:?}: {text}");
    assert!(!text.contains("warning"), "{text}");
}

/// What someone does who has read one page: from an empty folder to a run with a method of their
/// own.
#[test]
fn a_stranger_writes_a_method_and_runs_it() {
    let dir = tempfile::tempdir().expect("a folder outside the repository");
    let made = |kind: &str, name: &str| {
        let output = reprpo(dir.path(), &["new", kind, name]);
        assert!(output.status.success(), "{}", told(&output));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            told.contains(&format!(
                "reprpo run --plugin target/release/lib{name}.so --{kind} {name}"
            )),
            "{told}"
        );
        dir.path().join(name)
    };
    let change = |file: &Path, from: &str, to: &str| {
        let text = std::fs::read_to_string(file).expect("a file");
        assert!(text.contains(from), "`{from}` is not in\n{text}");
        std::fs::write(file, text.replace(from, to)).expect("a file");
    };

    let twist = made("intervention", "twist");
    // Another loss, and the test's number that goes with it.
    change(
        &twist.join("src/lib.rs"),
        "let value = (&moved * self.lambda - (&margin * self.beta).log_sigmoid())",
        "let value = (&moved * self.lambda + (&margin * -self.beta + 1.5).relu())",
    );
    change(&twist.join("src/lib.rs"), "(-1f64).exp().ln_1p() + 3.0 * 2.0", "0.5 + 3.0 * 2.0");
    build(&twist, &["test"]);
    build(&twist, &["build", "--release"]);
    let library = twist.join("target/release/libtwist.so");
    let checked = reprpo(dir.path(), &["plugin", "check", &library.display().to_string()]);
    assert!(
        checked.status.success(),
        "{}{}",
        String::from_utf8_lossy(&checked.stdout),
        told(&checked)
    );
    let args = [
        "--plugin",
        &library.display().to_string(),
        "--intervention",
        "twist",
        "--adapter",
        "hra",
        "--layers",
        "1",
    ];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "first", &args);
    assert!(output.status.success(), "{}", told(&output));
    let metrics = std::fs::read_to_string(dir.path().join("first/metrics.jsonl")).expect("metrics");
    assert!(metrics.lines().count() == 1 && metrics.contains("twist/margin"), "{metrics}");

    let bend = made("adapter", "bend");
    build(&bend, &["test"]);
    build(&bend, &["build", "--release"]);
    let library = bend.join("target/release/libbend.so").display().to_string();
    let args =
        ["--plugin", &library, "--adapter", "bend", "--set", "adapter.target_modules=all-linear"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "second", &args);
    assert!(output.status.success(), "{}", told(&output));
    // Its adapter is one that can be judged, with the plugin that the run names.
    let judged = reprpo(dir.path(), &["eval", "second", "--set", "eval.max_pairs=2"]);
    assert!(judged.status.success(), "{}", told(&judged));
}

#[test]
fn every_kind_of_new_crate_works_at_once() {
    let dir = tempfile::tempdir().expect("a folder outside the repository");
    for kind in ["transform", "tap", "dataset"] {
        let name = format!("my-{kind}");
        let output = reprpo(dir.path(), &["new", kind, &name]);
        assert!(output.status.success(), "{}", told(&output));
        build(&dir.path().join(&name), &["test"]);
        build(&dir.path().join(&name), &["build"]);
        let library = dir
            .path()
            .join(&name)
            .join(format!("target/debug/libmy_{kind}.so"))
            .display()
            .to_string();
        let mut args = vec!["--plugin", &library, "--intervention", "prefvec", &"--x", &name];
        let flag = format!("--{kind}");
        args[4] = &flag;
        if kind != "tap" {
            args.extend(["--layers", "1"]);
        }
        let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), kind, &args);
        assert!(output.status.success(), "{kind}: {}", told(&output));
    }
}

#[test]
fn a_new_crate_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, part) in [
        ("dpo", "the intervention `dpo` already exists"),
        ("Twist", "is not a valid name for a plugin"),
        ("serde", "a plugin depends on"),
    ] {
        assert!(error(dir.path(), &["new", "intervention", name]).contains(part), "{name}");
    }
    std::fs::create_dir(dir.path().join("there")).expect("a folder");
    assert!(error(dir.path(), &["new", "tap", "there"]).contains("`there` already exists"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
}
