//! Tests of the names and numbers of the runs of a study.

use std::path::Path;

use super::*;

fn plan(text: &str, axes: &[(&str, &[&str])]) -> Result<Plan> {
    let table: toml::Table = toml::from_str(text).expect("TOML");
    let file = StudyFile::read(Path::new("mine.toml"), text, &table).expect("a study");
    Plan::of_study(file, &owned(axes))
}

fn owned(axes: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let values = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
    axes.iter().map(|(field, of)| ((*field).to_owned(), values(of))).collect()
}

fn names(plan: &Plan) -> Vec<String> {
    let runs = plan.groups.iter().flat_map(|group| {
        group.seeds.iter().map(|seed| plan.run_name(group, &Point::new(), 1.0, *seed))
    });
    runs.collect()
}

#[test]
fn the_groups_are_the_methods_times_the_grid() {
    let text = "seeds = [1, 2]\n[grid]\ndataset = [\"a:b\", \"c\"]\n[methods.x]\n[methods.y]";
    let study = plan(text, &[]).unwrap();
    assert_eq!(
        names(&study),
        [
            "x-a_b-seed=1",
            "x-a_b-seed=2",
            "x-c-seed=1",
            "x-c-seed=2",
            "y-a_b-seed=1",
            "y-a_b-seed=2",
            "y-c-seed=1",
            "y-c-seed=2",
        ]
    );
    assert_eq!((study.most_runs(), study.runs()), (8, "runs"));
    // A flag replaces the values of the file.
    let other = plan(text, &[("dataset", &["d"]), (SEED, &["7"])]).unwrap();
    assert_eq!(names(&other), ["x-d-seed=7", "y-d-seed=7"]);
    assert!(plan(text, &[(SEED, &["x"])]).is_err());
}

#[test]
fn a_grid_names_its_runs_by_their_values() {
    let grid = |axes: &[(&str, &[&str])]| Plan::of_grid("sweep-1", &owned(axes)).unwrap();
    let plain = grid(&[("intervention", &["p", "q"]), ("adapter", &["small", "large"])]);
    assert_eq!(names(&plain), ["p-small", "p-large", "q-small", "q-large"]);
    assert_eq!(plain.runs(), "");
    let seeded = grid(&[(SEED, &["3", "4"]), ("model", &["./a b"])]);
    assert_eq!(names(&seeded), ["3-._a_b", "4-._a_b"]);
    assert_eq!(seeded.groups.len(), 1, "seeds do not make groups");
}

#[test]
fn a_search_counts_its_runs() {
    let text = |sampler: &str| {
        format!(
            "seeds = [1, 2]\n[methods.x]\n[methods.other]\nsearch = false\n[search]\nsampler = \
                \"{sampler}\"\ntrials = 9\n[search.fields]\n\"train.lr\" = [{}]",
            (1..=27).map(|i| i.to_string()).collect::<Vec<_>>().join(", ")
        )
    };
    let most = |sampler: &str| plan(&text(sampler), &[]).unwrap().most_runs();
    assert_eq!(most("grid"), 27 + 2 + 2);
    assert_eq!(most("tpe"), 9 + 2 + 2);
    assert_eq!(most("halving"), 9 + 3 + 1 + 2 + 2);
    let study = plan(&text("grid"), &[]).unwrap();
    let point = vec![("train.lr".to_owned(), json!(1e-5)), ("eval.lr".to_owned(), json!("a/b"))];
    assert_eq!(
        study.run_name(&study.groups[0], &point, 1.0, Some(2)),
        "x-train.lr=0.00001-eval.lr=a_b-seed=2"
    );
    assert_eq!(
        study.run_name(&study.groups[0], &point[..1].to_vec(), 1.0 / 3.0, Some(0)),
        "x-lr=0.00001-share=0.3333-seed=0"
    );
    assert!(
        study
            .run_name(&study.groups[0], &vec![("a".into(), json!("x".repeat(300)))], 1.0, None)
            .len()
            <= 120
    );
}

#[test]
fn a_field_has_only_one_source() {
    let search = "[search.fields]\n\"train.lr\" = [1e-4]";
    for (text, expected) in [
        (format!("[methods.x]\n\"train.lr\" = 1\n{search}"), "but `x` also sets it"),
        (format!("[grid]\n\"train.lr\" = [1]\n{search}"), "but `1` also sets it"),
        ("[grid]\n\"train.seed\" = [1]".to_owned(), "cannot be a field of `[grid]`"),
        ("[search.fields]\n\"train.seed\" = [1]".to_owned(), "cannot be a searched field"),
        ("[methods.x]\n[search]".to_owned(), "the search has no fields to vary"),
        ("[grid]\nmodel = [\"a b\", \"a/b\"]".to_owned(), "have the same name, `a_b`"),
    ] {
        let e = plan(&text, &[]).err().unwrap();
        assert!(e.message().contains(expected), "{text}: {e}");
    }
}
