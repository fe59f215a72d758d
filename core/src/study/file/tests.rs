//! Tests of study files, in particular of those with mistakes.

use serde_json::json;

use super::*;

fn read(text: &str) -> Result<StudyFile> {
    let table: Table = toml::from_str(text).expect("TOML");
    StudyFile::read(Path::new("studies/mine.toml"), text, &table)
}

const STUDY: &str = r#"
seeds = [1, 2]
[base]
model = "m"
"train.max_pairs" = 300
eval.max_pairs = 20
[base.train]
epochs = 2
[grid]
dataset = ["a", "b"]
[methods.other]
intervention = "other"
search = false
[methods.plain]
intervention = "plain"
[methods.plain.search]
"train.lr" = [1e-5, 1e-4]
[search]
sampler = "tpe"
trials = 7
[search.fields]
"train.lr" = { low = 1e-5, high = 1e-3, log = true }
"train.batch" = { low = 1, high = 8 }
adapter = ["small", "large"]
"#;

#[test]
fn a_study_file_is_read() {
    let study = read(STUDY).unwrap();
    assert_eq!((study.name.as_str(), &study.seeds[..]), ("mine", &[1, 2][..]));
    let base: Vec<_> = study.base.iter().map(|a| (a.field(), a.value())).collect();
    for expected in [
        ("model", json!("m")),
        ("train.max_pairs", json!(300)),
        ("eval.max_pairs", json!(20)),
        ("train.epochs", json!(2)),
    ] {
        assert!(base.contains(&(expected.0.to_owned(), expected.1)), "{base:?}");
    }
    // Methods and fields keep the order of the file.
    let names: Vec<&str> = study.methods.iter().map(|method| method.name.as_str()).collect();
    assert_eq!(names, ["other", "plain"]);
    assert_eq!([study.methods[0].searched, study.methods[1].searched], [false, true]);
    assert_eq!(study.methods[1].fields[0].count(), Some(2));
    let fields: Vec<&str> = study.fields.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(fields, ["train.lr", "train.batch", "adapter"]);
    assert_eq!(
        study.fields[1].values,
        Values::Range { low: 1.0, high: 8.0, log: false, integer: true }
    );
    let search = study.search.unwrap();
    assert_eq!((search.sampler, search.trials, search.seed), (Kind::Tpe, Some(7), 0));
    assert_eq!(study.grid[0].values, [json!("a"), json!("b")]);
}

#[test]
fn a_mistake_is_reported_with_the_file_the_key_and_the_nearest_name() {
    for (text, expected) in [
        ("[serch]", "unknown key `serch`\n  hint: did you mean `search`?"),
        ("[base]\n[train]\nlr = 1", "unknown key `train`"),
        ("[base]\n[train]\nlr = 1", "write fields of the experiment in `[base]`"),
        ("seeds = 3\n[base]", "`seeds` must be a list of whole numbers, got 3"),
        ("seeds = [1, -1]\n[base]", "`seeds` must be a whole number, at least 0, got -1"),
        ("seeds = [1, 1]\n[base]", "`seeds` contains 1 twice"),
        ("final = \"both\"\n[base]", "`final` must be `tuned` or `all`, got \"both\""),
        ("final = \"all\"\n[base]", "`final = \"all\"` needs a `[search]`"),
        ("name = \"a/b\"\n[base]", "`name` must be the name of a folder, got \"a/b\""),
        ("[methods]\nplain = 3", "`methods.plain` must be a table of fields, got 3"),
        ("[methods.a.search]\n\"train.lr\" = [1]", "but the study has no `[search]`"),
        ("[search]\nsampler = \"tpr\"", "unknown sampler `tpr`\n  hint: did you mean `tpe`?"),
        ("[search]\ntrials = 0", "`trials` must be a whole number, at least 1, got 0"),
        ("[search]\n\"train.lr\" = [1]", "write the searched fields in `[search.fields]`"),
        ("[search]\nresource = \"train.steps\"", "unknown resource `train.steps`"),
        ("[search.fields]\n\"train.lr\" = 3", "must be a list of values or a range, got 3"),
        ("[search.fields]\n\"a.b\" = { low = 1 }", "`high` is missing"),
        ("[search.fields]\n\"a.b\" = { low = 2, high = 1 }", "`low` is 2, which is above `high`"),
        (
            "[search.fields]\n\"a.b\" = { low = 0, high = 1, log = true }",
            "`low` must be greater than 0 with `log = true`, got 0",
        ),
        ("[search.fields]\n\"a.b\" = { low = 0, high = 1, step = 1 }", "unknown key `step`"),
        ("[grid]\nmodel = \"x\"", "`grid.\"model\"` must be a list of values, got \"x\""),
    ] {
        let e = format!("{:?}", read(text).expect_err(text));
        assert!(
            e.starts_with("in the study `studies/mine.toml`") && e.contains(expected),
            "{text}: {e}"
        );
    }
}

#[test]
fn a_file_without_tables_of_a_study_is_a_grid() {
    let is = |text: &str| is_study(&toml::from_str(text).unwrap());
    assert!(is(STUDY) && is("[base]\nmodel = \"m\""));
    assert!(!is("adapter = [\"small\"]\n\"train.lr\" = [1e-4]") && !is("train.lr = [1]"));
}
