//! `reprpo selftest` with the built-in plugins.

use serde_json::Value;

use crate::{isolated_command, json, stderr, stdout};

/// Returns the rows of a self-test's JSON report.
fn rows(report: &Value) -> &Vec<Value> {
    report["rows"].as_array().expect("rows")
}

#[test]
fn a_self_test_needs_no_files_and_every_plugin_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let sections = ["doctor", "products", "methods"];
    let mut args = vec!["selftest", "--device", "cpu", "--json", "--quiet"];
    args.extend(sections.iter().flat_map(|section| ["--only", section]));
    let output = isolated_command(folder.path(), &args).output().expect("the command runs");
    let report = json(&output);
    assert_eq!(
        (&report["ok"], &report["device"], &report["full"]),
        (&Value::Bool(true), &Value::from("cpu"), &Value::Bool(false))
    );
    for row in rows(&report) {
        assert!(sections.contains(&row["section"].as_str().expect("a section")), "{row}");
        let known =
            ["ok", "skipped", "measured"].contains(&row["outcome"].as_str().expect("an outcome"));
        assert!(known && row["seconds"].as_f64().expect("a number") >= 0.0, "{row}");
        if let Some(worst) = row["worst"].as_f64() {
            assert!(worst <= row["tolerance"].as_f64().expect("a tolerance"), "{row}");
        }
    }
    let listed =
        isolated_command(folder.path(), &["list", "--json"]).output().expect("the command runs");
    let listed: Vec<Value> = serde_json::from_str(&stdout(&listed)).expect("JSON");
    for entry in listed.iter().filter(|entry| {
        ["intervention", "adapter", "transform", "tap"]
            .contains(&entry["kind"].as_str().unwrap_or_default())
    }) {
        let name = format!(
            "{} {}",
            entry["kind"].as_str().expect("a kind"),
            entry["name"].as_str().expect("a name")
        );
        assert!(rows(&report).iter().any(|row| row["name"] == name.as_str()), "no row for {name}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("the folder")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_attention_and_model_checks_pass_and_are_printed_as_a_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = ["selftest", "--device", "cpu", "--only", "attention", "--only", "models"];
    let text = stdout(&isolated_command(folder.path(), &args).output().expect("the command runs"));
    assert!(
        text.starts_with("check")
            && text.contains("attention: padded × sdpa, f32")
            && text.contains("models: gemma2, decoding"),
        "{text}"
    );
    assert!(text.lines().last().expect("a line").starts_with("passed on cpu: "), "{text}");
}

#[test]
fn an_unknown_device_or_section_is_rejected() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |args: &[&str], code: i32| {
        let output = isolated_command(folder.path(), args).output().expect("the command runs");
        assert_eq!(output.status.code(), Some(code));
        stderr(&output)
    };
    assert!(refused(&["selftest", "--device", "gpu"], 1).contains("unknown device `gpu`"));
    assert!(refused(&["selftest", "--only", "atention"], 2).contains("'attention'"));
}
