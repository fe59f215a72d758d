//! Plugin libraries: they work like built-in plugins, and the failure of one affects nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

use crate::golden;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Folder of the libraries of `tests/plugins`, which are built on first use.
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

/// Path of the command without built-in methods. A filtered `cargo test` does not build it, so it
/// is built here.
pub static BARE: LazyLock<PathBuf> = LazyLock::new(|| {
    let output = cargo(root())
        .args(["build", "--locked", "--example", "bare"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    root().join("target/debug/examples/bare").with_extension(std::env::consts::EXE_EXTENSION)
});

/// Returns cargo in `folder`, without the variables that cargo has set for these tests.
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

/// Compiles a library from one file without any crate and returns its path.
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
    // Ignores the plugins that the user has installed.
    command
        .env("REPRPO_PLUGIN_DIR", folder.join("no-plugins"))
        .env("NO_COLOR", "1")
        .env("OMP_NUM_THREADS", "1");
    command.current_dir(folder).args(args).output().expect("the command runs")
}

fn reprpo(folder: &Path, args: &[&str]) -> Output {
    command(assert_cmd::cargo::cargo_bin!("reprpo"), folder, args)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that the command fails with exit code 1 and returns stderr.
fn error(folder: &Path, args: &[&str]) -> String {
    let output = reprpo(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
    stderr(&output)
}

/// Trains the tiny Llama model on a few of its pairs.
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
fn a_method_from_a_plugin_gives_the_same_bytes_as_the_built_in_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let builtins = library("builtins").display().to_string();
    // One plugin of each kind. Together they use every stage of a step: hooks, gradients, a trained
    // transform and dropout.
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
        assert!(ours.status.success(), "{}", stderr(&ours));
        let theirs =
            run(&BARE, dir.path(), &loaded, &[args, &["--plugin", &builtins][..]].concat());
        assert!(theirs.status.success(), "{}", stderr(&theirs));
        for file in
            ["metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
        {
            let read = |run: &str| std::fs::read(dir.path().join(run).join(file)).expect(file);
            assert!(read(&linked) == read(&loaded), "{args:?}: `{file}` differs");
        }
    }
    // Without plugins, this command has no methods.
    let output = command(&BARE, dir.path(), &["list", "interventions", "--json"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]");
}

#[test]
fn a_file_that_is_not_a_plugin_of_this_build_is_rejected_before_it_is_called() {
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
        "`oldtwist` 0.0.1 was built for a different build of reprpo",
        "tch 0.22.0 instead of 0.24.0",
        "the plugin was built with rustc 1.80.0",
        "this reprpo was built with rustc",
        "hint: build the plugin",
    ] {
        assert!(e.contains(part), "{part}\n{e}");
    }
}

#[test]
fn a_method_that_fails_is_named_and_ends_only_its_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let faults = faults();
    let table: &[(&[&str], &[&str])] = &[
        (
            &["--intervention", "panics-in-build"],
            &[
                "`build` of intervention `panics-in-build` of `",
                "a panic in build (faults/src/lib.rs:",
            ],
        ),
        (
            &["--intervention", "panics-in-needs"],
            &["`needs` of intervention `panics-in-needs`", "a panic in needs"],
        ),
        (
            &["--intervention", "panics-in-loss"],
            &["step 1 failed", "`loss` of intervention `panics-in-loss`", "a panic in loss"],
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
            &["`output_grad` of intervention `panics-in-hook`", "a panic in the hook"],
        ),
        (
            &["--intervention", "hook-changes-shape"],
            &[
                "step 1 failed (intervention `hook-changes-shape`",
                "a gradient hook must return a tensor of shape and dtype (",
                "but returned ([], Float)",
            ],
        ),
        (
            &["--intervention", "loss-is-nan"],
            &["step 1 failed (intervention `loss-is-nan`", "the loss is NaN"],
        ),
        (
            &["--intervention", "loss-is-not-scalar"],
            &["intervention `loss-is-not-scalar`", "the shape [4], but must be a single number"],
        ),
        (
            &["--intervention", "loss-has-no-gradient"],
            &["intervention `loss-has-no-gradient`", "has no gradient"],
        ),
        (
            &["--intervention", "reads-unrequested-values"],
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
            &["`forward` of adapter `panics-in-forward`", "a panic in forward"],
        ),
        (
            &["--dataset", "panics-in-pairs"],
            &["`pairs` of dataset `panics-in-pairs`", "a panic in pairs"],
        ),
    ];
    for (args, parts) in table {
        let output = run(
            assert_cmd::cargo::cargo_bin!("reprpo"),
            dir.path(),
            "out",
            &[args, &["--plugin", &faults][..]].concat(),
        );
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        parts
            .iter()
            .for_each(|part| assert!(stderr.contains(part), "{args:?}: no `{part}` in\n{stderr}"));
        assert!(!stderr.contains("frame #") && !stderr.contains("stack backtrace"), "{stderr}");
        assert!(!dir.path().join("out").exists(), "{args:?} left a folder");
    }
}

#[test]
fn a_panic_in_drop_is_reported_after_a_run_that_it_did_not_stop() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = ["--plugin", &faults(), "--intervention", "panics-in-drop"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "out", &args);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("`drop` of intervention `panics-in-drop`")
            && stderr.contains("a panic in drop"),
        "{stderr}"
    );
    assert!(dir.path().join("out/adapter/adapter_model.safetensors").is_file());
}

#[test]
fn a_plugin_writes_to_the_log_of_its_host() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = ["--plugin", &faults(), "--intervention", "logs"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "out", &args);
    assert!(
        stderr(&output).contains("WARN faults: the loss is computed pairs=4"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_error_about_two_plugins_with_one_name_names_both() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, second) = (faults(), dir.path().join("again.so"));
    std::fs::copy(&first, &second).expect("a copy");
    let e = error(
        dir.path(),
        &["list", "--plugin", &first, "--plugin", second.to_str().expect("UTF-8")],
    );
    assert!(
        e.contains(" are called `")
            && e.contains(&format!("one from faults 0.1.0 in `{first}`"))
            && e.contains("/again.so`"),
        "{e}"
    );

    let e = error(dir.path(), &["list", "--plugin", &library("builtins").display().to_string()]);
    assert!(
        e.contains(" 0.1.0, which is built in, one from reprpo-") && e.contains("libbuiltins.so`"),
        "{e}"
    );
    // The same file given twice counts as one plugin.
    assert!(reprpo(dir.path(), &["list", "--plugin", &first, "--plugin", &first]).status.success());
}

#[test]
fn a_run_records_its_plugin_and_rejects_another_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let library = dir.path().join("mine.so");
    std::fs::copy(faults(), &library).expect("a copy");
    let args =
        ["--plugin", "mine.so", "--intervention", "logs", "--set", "train.checkpoint_every=1"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "out", &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let config =
        std::fs::read_to_string(dir.path().join("out/config.toml")).expect("a configuration");
    let table: toml::Table = toml::from_str(&config).expect("TOML");
    let recorded = &table["plugins"][0];
    assert_eq!(recorded["version"].as_str(), Some("0.1.0"));
    // The path is relative to the run's folder, because both are below the same folder.
    assert_eq!(recorded["path"].as_str(), Some("../mine.so"));
    assert_eq!(recorded["sha256"].as_str().map(str::len), Some(64));
    // The configuration file loads the plugin that it lists.
    let shown = reprpo(dir.path(), &["config", "show", "--config", "out/config.toml", "--json"]);
    assert!(shown.status.success(), "{}", stderr(&shown));
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["intervention"]["name"], "logs");

    let other = config.replace(recorded["sha256"].as_str().expect("a digest"), &"0".repeat(64));
    std::fs::write(dir.path().join("other.toml"), other).expect("a file");
    let e = error(dir.path(), &["config", "show", "--config", "other.toml"]);
    assert!(
        e.contains("does not match the digest in the configuration")
            && e.contains("remove `sha256` from the configuration"),
        "{e}"
    );
}

#[test]
fn plugins_are_found_in_the_folder_the_variable_and_the_configuration() {
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
            .expect("the command runs")
    };
    let is_listed = |environment: &[(&str, &str)], args: &[&str]| {
        let output = with(environment, args);
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("panics-in-loss")
    };
    let (folder, file) = (installed.display().to_string(), library.display().to_string());
    assert!(!is_listed(&[], &["list"]));
    assert!(is_listed(&[("REPRPO_PLUGIN_DIR", &folder)], &["list"]));
    assert!(is_listed(&[("REPRPO_PLUGIN_DIR", &folder)], &["run", "--help"]));
    assert!(is_listed(&[("REPRPO_PLUGINS", &file)], &["list"]));
    std::fs::write(
        dir.path().join("c.toml"),
        format!("plugins = [{file:?}]\nintervention = \"panics-in-loss\"\n"),
    )
    .expect("a file");
    assert!(is_listed(&[], &["config", "show", "--config", "c.toml"]));

    // A file in the plugin folder that cannot be used is skipped, and the error about an unknown
    // name mentions it.
    std::fs::write(installed.join("broken.so"), "x").expect("a file");
    let output = with(&[("REPRPO_PLUGIN_DIR", &folder)], &["run", "--intervention", "twist"]);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    for part in [
        "skipped a plugin: `",
        "unknown intervention `twist`",
        &format!("plugin files searched: `{file}`"),
        "broken.so`; run `reprpo plugin check FILE` for the reason",
    ] {
        assert!(stderr.contains(part), "{part}\n{stderr}");
    }
}

#[test]
fn the_list_names_the_file_that_a_method_comes_from() {
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

/// Runs cargo in `folder` and checks that it succeeds without warnings.
fn build(folder: &Path, args: &[&str]) {
    let mut cargo = cargo(folder);
    // The crate's own configuration says where libtorch is.
    let output = cargo.env_remove("LIBTORCH").args(args).output().expect("cargo runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "cargo {args:?}: {text}");
    assert!(!text.contains("warning"), "{text}");
}

/// Follows the steps of the plugin guide: from an empty folder to a run with a new method.
#[test]
fn a_new_method_can_be_written_and_trained_outside_the_repository() {
    let dir = tempfile::tempdir().expect("a folder outside the repository");
    let new_crate = |kind: &str, name: &str| {
        let output = reprpo(dir.path(), &["new", kind, name]);
        assert!(output.status.success(), "{}", stderr(&output));
        let stderr = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            stderr.contains(&format!(
                "reprpo run --plugin target/release/lib{name}.so --{kind} {name}"
            )),
            "{stderr}"
        );
        dir.path().join(name)
    };
    let change = |file: &Path, from: &str, to: &str| {
        let text = std::fs::read_to_string(file).expect("a file");
        assert!(text.contains(from), "`{from}` is not in\n{text}");
        std::fs::write(file, text.replace(from, to)).expect("a file");
    };

    let twist = new_crate("intervention", "twist");
    // Changes the loss, and the value that the crate's test expects.
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
        stderr(&checked)
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
    assert!(output.status.success(), "{}", stderr(&output));
    let metrics = std::fs::read_to_string(dir.path().join("first/metrics.jsonl")).expect("metrics");
    assert!(metrics.lines().count() == 1 && metrics.contains("twist/margin"), "{metrics}");

    let bend = new_crate("adapter", "bend");
    build(&bend, &["test"]);
    build(&bend, &["build", "--release"]);
    let library = bend.join("target/release/libbend.so").display().to_string();
    let args =
        ["--plugin", &library, "--adapter", "bend", "--set", "adapter.target_modules=all-linear"];
    let output = run(assert_cmd::cargo::cargo_bin!("reprpo"), dir.path(), "second", &args);
    assert!(output.status.success(), "{}", stderr(&output));
    // The adapter can be evaluated with the plugin that the run records.
    let judged = reprpo(dir.path(), &["eval", "second", "--set", "eval.max_pairs=2"]);
    assert!(judged.status.success(), "{}", stderr(&judged));
}

#[test]
fn a_new_crate_of_every_kind_works_without_changes() {
    let dir = tempfile::tempdir().expect("a folder outside the repository");
    for kind in ["transform", "tap", "dataset"] {
        let name = format!("my-{kind}");
        let output = reprpo(dir.path(), &["new", kind, &name]);
        assert!(output.status.success(), "{}", stderr(&output));
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
        assert!(output.status.success(), "{kind}: {}", stderr(&output));
    }
}

#[test]
fn an_invalid_new_crate_is_rejected_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, part) in [
        ("dpo", "the intervention `dpo` is already defined"),
        ("Twist", "is not a valid name for a plugin"),
        ("serde", "a plugin depends on"),
    ] {
        assert!(error(dir.path(), &["new", "intervention", name]).contains(part), "{name}");
    }
    std::fs::create_dir(dir.path().join("mine")).expect("a folder");
    assert!(error(dir.path(), &["new", "tap", "mine"]).contains("`mine` already exists"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
}
