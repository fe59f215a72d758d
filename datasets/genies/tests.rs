use std::fs;
use std::path::Path;

use ::parquet::basic::Compression;

use super::*;
use crate::files::parquet_fixtures::{Column, pair_columns, write};

#[path = "../../tests/golden.rs"]
mod golden;

fn open(data_dir: &Path, distribution: &str) -> Result<Box<dyn Dataset>> {
    Genies {
        distribution: distribution.to_owned(),
        data_dir: Some(data_dir.to_owned()),
        ..Genies::default()
    }
    .build()
}

fn error(result: Result<Box<dyn Dataset>>) -> String {
    format!("{:?}", result.err().expect("opening the data set should fail"))
}

fn table(data: &dyn Dataset) -> Vec<(String, String, Option<usize>)> {
    data.splits().into_iter().map(|s| (s.name, s.describes, s.pairs)).collect()
}

fn entry(
    name: &str,
    describes: &str,
    pairs: impl Into<Option<usize>>,
) -> (String, String, Option<usize>) {
    (name.to_owned(), describes.to_owned(), pairs.into())
}

fn read(data: &dyn Dataset, split: &str) -> Vec<PreferencePair> {
    data.pairs(split).unwrap().collect::<Result<_>>().unwrap()
}

/// Writes a data folder with the distributions `cats`, `dogs` and `ranking_logic`, and with shift
/// lists. `GENIES.json` lists the shift from cats to dogs. `all.json` also lists the shift from
/// dogs to cats.
fn data_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["cats", "dogs", "ranking_logic"] {
        let folder = dir.path().join("genies").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (split, rows) in [("train", 6), ("test", 4)] {
            let mut columns = pair_columns(rows);
            columns.push(Column::Int("example_id", (0..rows as i32).map(|i| i / 2).collect()));
            write(
                &folder.join(format!("{split}-00000-of-00001.parquet")),
                &columns,
                Compression::SNAPPY,
            );
        }
    }
    let lists = dir.path().join("genies_shifts");
    fs::create_dir_all(&lists).unwrap();
    fs::write(
        lists.join("GENIES.json"),
        r#"[{"source": "cats", "target": "dogs", "label": "extreme"}]"#,
    )
    .unwrap();
    fs::write(
        lists.join("all.json"),
        r#"[{"source": "cats", "target": "birds"}, {"source": "dogs", "target": "cats"}]"#,
    )
    .unwrap();
    dir
}

#[test]
fn every_split_of_a_shift_has_its_pairs_in_the_order_of_the_files() {
    let dir = data_folder();
    let want = [
        entry("train", "cats (train)", 6),
        entry("test", "cats (test)", 4),
        entry("oos", "dogs (test)", 4),
        entry("rnd", "ranking_logic (test)", 4),
    ];
    for data_dir in [dir.path().to_owned(), dir.path().join("genies")] {
        let data = open(&data_dir, "cats").unwrap();
        assert_eq!(table(data.as_ref()), want);
        for split in data.splits() {
            let prompts: Vec<_> =
                read(data.as_ref(), &split.name).into_iter().map(|p| p.prompt).collect();
            let expected: Vec<_> =
                (0..split.pairs.expect("parquet files state the number of pairs"))
                    .map(|i| Text::from(format!("prompt {i}")))
                    .collect();
            assert_eq!(prompts, expected, "{}", split.name);
        }
    }
}

#[test]
fn math_shifts_to_change_my_view() {
    let Some(shared) = golden::shared("genies") else { return };
    let want = [
        entry("train", "math (train)", 1800),
        entry("test", "math (test)", 750),
        entry("oos", "change_my_view (test)", 250),
        entry("rnd", "ranking_logic (test)", 750),
    ];
    for data_dir in [shared.clone(), shared.join("genies")] {
        let data = open(&data_dir, "math").unwrap();
        assert_eq!(table(data.as_ref()), want);
        for split in data.splits() {
            assert_eq!(Some(read(data.as_ref(), &split.name).len()), split.pairs, "{}", split.name);
        }
    }
}

#[test]
fn every_distribution_of_the_benchmark_can_be_read() {
    let Some(shared) = golden::shared("genies") else { return };
    let mut distributions = 0;
    for entry in
        shared.join("genies").read_dir().unwrap().map(|e| e.unwrap()).filter(|e| e.path().is_dir())
    {
        let data = open(&shared, &entry.file_name().into_string().unwrap()).unwrap();
        for split in data.splits() {
            assert_eq!(
                Some(read(data.as_ref(), &split.name).len()),
                split.pairs,
                "{}",
                split.describes
            );
        }
        distributions += 1;
    }
    assert_eq!(distributions, 66);
}

#[test]
fn the_pairs_of_math_are_in_the_benchmarks_order() {
    let Some(shared) = golden::shared("genies") else { return };
    let pairs = read(open(&shared, "math").unwrap().as_ref(), "train");
    let (Text::Plain(prompt), Text::Plain(chosen), Text::Plain(rejected)) =
        (&pairs[0].prompt, &pairs[0].chosen, &pairs[0].rejected)
    else {
        panic!("GENIES is plain text")
    };
    assert!(prompt.ends_with("find $x + y + z.$\n\n### Response:\n"), "{prompt}");
    assert!(
        chosen.contains("\\boxed{22}") && !rejected.contains("\\boxed{22}"),
        "{chosen}\n{rejected}"
    );
    // The second pair has the same prompt and chosen completion as the first, but a different
    // rejected completion.
    assert_eq!((&pairs[1].prompt, &pairs[1].chosen), (&pairs[0].prompt, &pairs[0].chosen));
    assert_ne!(pairs[1].rejected, pairs[0].rejected);
}

#[test]
fn one_pair_per_instruction_leaves_600_of_math() {
    let Some(shared) = golden::shared("genies") else { return };
    let config = Genies {
        distribution: "math".into(),
        data_dir: Some(shared),
        one_per_instruction: true,
        ..Genies::default()
    };
    let data = config.build().unwrap();
    assert_eq!(data.splits()[0].pairs, None);
    let pairs = read(data.as_ref(), "train");
    let prompts: HashSet<_> = pairs.iter().map(|p| &p.prompt).collect();
    assert_eq!((pairs.len(), prompts.len()), (600, 600));
}

#[test]
fn the_list_of_the_benchmark_takes_precedence_over_the_longer_list() {
    let dir = data_folder();
    assert_eq!(
        table(open(dir.path(), "cats").unwrap().as_ref())[2],
        entry("oos", "dogs (test)", 4)
    );
    assert_eq!(
        table(open(dir.path(), "dogs").unwrap().as_ref())[2],
        entry("oos", "cats (test)", 4)
    );
}

#[test]
fn without_a_listed_shift_there_is_only_an_oos_split_if_it_is_set() {
    let dir = data_folder();
    let data = open(dir.path(), "ranking_logic").unwrap();
    assert_eq!(
        table(data.as_ref()),
        [entry("train", "ranking_logic (train)", 6), entry("test", "ranking_logic (test)", 4)]
    );
    let config = Genies {
        distribution: "ranking_logic".into(),
        data_dir: Some(dir.path().to_owned()),
        oos: Some("cats".into()),
        rnd: Some("cats".into()),
        ..Genies::default()
    };
    assert_eq!(table(config.build().unwrap().as_ref())[2..], [entry("oos", "cats (test)", 4)]);
}

#[test]
fn the_pairs_of_an_instruction_are_a_cluster() {
    let dir = data_folder();
    let config = |cluster_column: Option<&str>| Genies {
        distribution: "cats".into(),
        data_dir: Some(dir.path().to_owned()),
        cluster_column: cluster_column.map(str::to_owned),
        ..Genies::default()
    };
    let clusters = |column| -> Vec<Option<String>> {
        let data = config(column).build().unwrap();
        read(data.as_ref(), "train").into_iter().map(|pair| pair.cluster).collect()
    };
    let names = ["0", "0", "1", "1", "2", "2"].map(|name| Some(name.to_owned()));
    assert_eq!(clusters(None), names);
    assert_eq!(clusters(Some("chosen"))[1].as_deref(), Some("chosen 1"));
    let e = error(config(Some("example_ids")).build());
    assert!(e.contains("there is no column `example_ids` for the clusters"), "{e}");
    assert!(e.contains("did you mean `example_id`? set it with `--cluster example_id`"), "{e}");
}

#[test]
fn the_first_pair_of_each_instruction_is_kept() {
    let dir = data_folder();
    let config = Genies {
        distribution: "cats".into(),
        data_dir: Some(dir.path().to_owned()),
        one_per_instruction: true,
        ..Genies::default()
    };
    let data = config.build().unwrap();
    let prompts: Vec<_> = read(data.as_ref(), "train").into_iter().map(|p| p.prompt).collect();
    assert_eq!(prompts, ["prompt 0", "prompt 2", "prompt 4"].map(Text::from));
}

#[test]
fn the_json_of_the_benchmark_is_read_if_there_is_no_parquet() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("distributions/cats");
    fs::create_dir_all(&folder).unwrap();
    for split in ["train", "test"] {
        let rows = concat!(
            r#"[{"prompt": "p", "responses": {"a": 1, "b": 0, "c": 0}}, "#,
            r#"{"prompt": "q", "responses": {"a": 1, "b": 0}}]"#
        );
        fs::write(folder.join(format!("{split}.json")), rows).unwrap();
    }
    assert_eq!(
        table(open(dir.path(), "cats").unwrap().as_ref()),
        [entry("train", "cats (train)", None), entry("test", "cats (test)", None)]
    );
    assert_eq!(read(open(dir.path(), "cats").unwrap().as_ref(), "train").len(), 3);
    let config = Genies {
        distribution: "cats".into(),
        data_dir: Some(dir.path().to_owned()),
        one_per_instruction: true,
        ..Genies::default()
    };
    assert_eq!(read(config.build().unwrap().as_ref(), "test").len(), 2);
}

#[test]
fn the_error_for_an_unknown_distribution_names_the_nearest_one_and_all_others() {
    let dir = data_folder();
    let got = error(open(dir.path(), "cat"));
    assert!(
        got.contains(
            "unknown distribution `cat`\n  hint: did you mean `cats`?\n  hint: valid: cats, dogs, \
            ranking_logic"
        ),
        "{got}"
    );
    assert!(error(open(dir.path(), "")).contains(
        "no training distribution given\n  hint: use `--dataset genies:NAME`; valid: cats, \
            dogs"
    ));
    assert!(error(open(dir.path(), "../genies/cats")).contains("unknown distribution"));
    let config = Genies {
        distribution: "cats".into(),
        data_dir: Some(dir.path().to_owned()),
        oos: Some("dog".into()),
        ..Genies::default()
    };
    assert!(error(config.build()).contains("did you mean `dogs`?"));
}

#[test]
fn the_error_for_a_folder_without_distributions_names_the_expected_files() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(open(dir.path(), "math")).contains(
        "does not contain GENIES distributions\n  hint: it should contain \
            <distribution>/train-*.parquet"
    ));
    assert!(error(open(&dir.path().join("none"), "math")).contains("cannot read the data folder"));
}

#[test]
fn the_error_names_a_missing_or_damaged_file() {
    let dir = data_folder();
    let file = dir.path().join("genies/cats/test-00000-of-00001.parquet");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(
        error(open(dir.path(), "cats"))
            .contains(&format!("`{}` is not a complete parquet file", file.display()))
    );
    fs::rename(&file, file.with_file_name("test-00000-of-00002.parquet")).unwrap();
    assert!(error(open(dir.path(), "cats")).contains("contains 1 of 2 files of the `test` split"));
    fs::remove_file(file.with_file_name("test-00000-of-00002.parquet")).unwrap();
    assert!(error(open(dir.path(), "cats")).contains("test-*.parquet"));
    let list = dir.path().join("genies_shifts/GENIES.json");
    fs::write(&list, "{}").unwrap();
    assert!(
        error(open(dir.path(), "dogs"))
            .contains(&format!("`{}` is not a list of shifts", list.display()))
    );
}

#[test]
fn a_missing_column_is_an_error_when_the_data_set_is_opened() {
    let dir = data_folder();
    let file = dir.path().join("genies/cats/train-00000-of-00001.parquet");
    write(&file, &pair_columns(3), Compression::SNAPPY);
    assert!(open(dir.path(), "cats").is_ok());
    let config = Genies {
        distribution: "cats".into(),
        data_dir: Some(dir.path().to_owned()),
        one_per_instruction: true,
        ..Genies::default()
    };
    let got = error(config.build());
    assert!(
        got.contains(&format!(
            "cannot use `{}`\n  because there is no column `example_id`",
            file.display()
        )),
        "{got}"
    );
}
