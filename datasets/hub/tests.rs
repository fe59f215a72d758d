use local_hub::{LocalHub, Traits};
use reprpo_plugin::hub::Settings;

use super::*;
use crate::files::parquet_fixtures::{pair_columns, write};

const REPO: &str = "datasets/org/pairs";

fn rows(from: usize, to: usize) -> String {
    (from..to)
        .map(|i| format!("{{\"prompt\": \"p{i}\", \"chosen\": \"good\", \"rejected\": \"bad\"}}\n"))
        .collect()
}

/// A local hub, and a folder for the cache.
struct TestHub {
    dir: tempfile::TempDir,
    hub: LocalHub,
}

impl TestHub {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), hub: LocalHub::start() }
    }

    fn push(&self, repo: &str, branch: &str, files: &[(&str, &str)]) -> String {
        self.hub.push(
            repo,
            branch,
            &files.iter().map(|(name, text)| (*name, text.as_bytes())).collect::<Vec<_>>(),
        )
    }

    fn settings(&self) -> Settings {
        let (cache, listings) = (self.dir.path().join("cache"), self.dir.path().join("listings"));
        Settings {
            endpoint: self.hub.endpoint(),
            cache,
            listings,
            offline: false,
            token: None,
            authorities: None,
        }
    }

    fn open(&self, config: &OfHub) -> Result<Box<dyn Dataset>> {
        open(config, &Hub::new(self.settings()).unwrap())
    }

    fn error(&self, config: &OfHub) -> String {
        format!("{:?}", self.open(config).err().expect("opening the data set should fail"))
    }
}

fn pairs() -> OfHub {
    OfHub { repo: "org/pairs".into(), ..OfHub::default() }
}

fn prompts(data: &dyn Dataset, split: &str) -> Vec<String> {
    let prompt = |pair: PreferencePair| {
        if let Text::Plain(text) = pair.prompt { text } else { panic!("not plain text") }
    };
    data.pairs(split).unwrap().map(|pair| prompt(pair.unwrap())).collect()
}

#[test]
fn splits_are_files_of_the_repository_in_order() {
    let test_hub = TestHub::new();
    let commit = test_hub.push(
        REPO,
        "main",
        &[
            ("README.md", ""),
            ("data/train-00000-of-00002.jsonl", &rows(0, 3)),
            ("data/train-00001-of-00002.jsonl", &rows(3, 5)),
            ("data/test-00000-of-00001.jsonl", &rows(9, 10)),
        ],
    );
    let data = test_hub.open(&pairs()).unwrap();
    let described: Vec<_> =
        data.splits().into_iter().map(|s| format!("{}: {}", s.name, s.describes)).collect();
    assert_eq!(
        described,
        [
            format!("train: org/pairs@{} train", &commit[..7]),
            format!("test: org/pairs@{} test", &commit[..7])
        ]
    );
    assert_eq!(prompts(data.as_ref(), "train"), ["p0", "p1", "p2", "p3", "p4"]);
    let places: Vec<usize> = data.rows("train").unwrap().map(|row| row.unwrap().0).collect();
    assert_eq!(places, [0, 1, 2, 3, 4], "row numbers must not restart at each file of the split");
    assert_eq!(prompts(data.as_ref(), "test"), ["p9"]);
    assert!(data.pairs("oos").is_err());
}

#[test]
fn the_number_of_pairs_in_parquet_is_known() {
    let test_hub = TestHub::new();
    let path = test_hub.dir.path().join("x.parquet");
    write(&path, &pair_columns(7), ::parquet::basic::Compression::SNAPPY);
    test_hub.hub.push(
        REPO,
        "main",
        &[("data/train-00000-of-00001.parquet", &std::fs::read(path).unwrap())],
    );
    let data = test_hub.open(&pairs()).unwrap();
    assert_eq!(
        (data.splits().len(), data.splits()[0].pairs),
        (1, Some(7)),
        "the default test split should be ignored if it does not exist"
    );
}

#[test]
fn a_configuration_and_a_shift_from_another_data_set_can_be_chosen() {
    let test_hub = TestHub::new();
    test_hub.push(
        REPO,
        "main",
        &[
            ("math/train.jsonl", &rows(0, 2)),
            ("math/test.jsonl", &rows(2, 3)),
            ("law/test.jsonl", &rows(4, 5)),
        ],
    );
    test_hub.hub.describe(
        REPO,
        Traits {
            card: concat!(
                r#"{"configs": [{"config_name": "math", "data_dir": "math"}, "#,
                r#"{"config_name": "law", "data_dir": "law"}]}"#
            )
            .into(),
            ..Traits::default()
        },
    );
    let other = test_hub.push("datasets/org/other", "v1", &[("validation.jsonl", &rows(7, 8))]);
    let e = test_hub.error(&pairs());
    assert!(e.contains("2 configurations") && e.contains("math, law"), "{e}");
    let config = OfHub {
        config_name: Some("math".into()),
        oos: Some("law:test".into()),
        rnd: Some("org/other@v1:validation".into()),
        ..pairs()
    };
    let data = test_hub.open(&config).unwrap();
    let all: Vec<_> =
        ["train", "test", "oos", "rnd"].iter().flat_map(|s| prompts(data.as_ref(), s)).collect();
    assert_eq!(all, ["p0", "p1", "p2", "p4", "p7"]);

    // Push new commits to both repositories. The recorded configuration must still open the same
    // pairs.
    let pinned: OfHub = serde_json::from_str(&data.pinned().unwrap()).unwrap();
    assert_eq!(pinned.rnd, Some(format!("org/other@{other}:validation")));
    test_hub.push(
        REPO,
        "main",
        &[("math/train.jsonl", &rows(50, 51)), ("law/test.jsonl", &rows(50, 51))],
    );
    test_hub.push("datasets/org/other", "v1", &[("validation.jsonl", &rows(50, 51))]);
    assert_eq!(prompts(test_hub.open(&config).unwrap().as_ref(), "train"), ["p50"]);
    let again = test_hub.open(&pinned).unwrap();
    assert_eq!(
        ["train", "test", "oos", "rnd"]
            .iter()
            .flat_map(|s| prompts(again.as_ref(), s))
            .collect::<Vec<_>>(),
        all
    );
}

#[test]
fn the_hubs_conversion_is_used_for_formats_that_are_not_supported() {
    let test_hub = TestHub::new();
    let path = test_hub.dir.path().join("x.parquet");
    write(&path, &pair_columns(3), ::parquet::basic::Compression::SNAPPY);
    test_hub.push(REPO, "main", &[("train.arrow", "columns"), ("test.arrow", "columns")]);
    let e = test_hub.error(&pairs());
    assert!(
        e.contains("no files of a supported format")
            && e.contains("revision `refs/convert/parquet`")
            && e.contains("parquet"),
        "{e}"
    );
    let parquet = std::fs::read(path).unwrap();
    let commit = test_hub.hub.push(
        REPO,
        layout::CONVERTED,
        &[
            ("default/train_prefs/0000.parquet", &parquet),
            ("default/partial-test/0000.parquet", &parquet),
        ],
    );
    let config = OfHub { train: "train_prefs".into(), ..pairs() };
    let data = test_hub.open(&config).unwrap();
    assert_eq!(
        (prompts(data.as_ref(), "train").len(), prompts(data.as_ref(), "test").len()),
        (3, 3)
    );
    // Push a new commit to the branch. The recorded configuration must still give the same
    // pairs.
    let pinned: OfHub = serde_json::from_str(&data.pinned().unwrap()).unwrap();
    assert_eq!(pinned.repo, format!("org/pairs@{commit}"));
    test_hub.push(REPO, layout::CONVERTED, &[("other/x/0000.parquet", "")]);
    assert_eq!(prompts(test_hub.open(&pinned).unwrap().as_ref(), "train").len(), 3);
    let e = test_hub.error(&OfHub { repo: "org/pairs@v1".into(), ..pairs() });
    assert!(e.contains("revision `v1`"), "{e}");
}

#[test]
fn errors_name_the_data_set_or_the_split() {
    let test_hub = TestHub::new();
    test_hub.push(
        REPO,
        "main",
        &[("train.jsonl", &rows(0, 2)), ("test.jsonl", "{\"question\": 1}\n")],
    );
    assert!(test_hub.error(&OfHub::default()).contains("`--dataset org/name`"));
    assert!(
        test_hub
            .error(&OfHub { repo: "pairs".into(), ..pairs() })
            .contains("`pairs` is not a valid")
    );
    assert!(
        test_hub
            .error(&OfHub { repo: "org/none".into(), ..pairs() })
            .contains("the data set `org/none` was not found")
    );
    let e = test_hub.error(&OfHub { train: "trian".into(), ..pairs() });
    assert!(e.contains("the `train` pairs") && e.contains("did you mean `train`"), "{e}");
    let e = test_hub.error(&pairs());
    assert!(
        e.contains("cannot load the `test` pairs")
            && e.contains("chosen")
            && e.contains("test.jsonl"),
        "the error should name the missing column and the file: {e}"
    );
    assert!(test_hub.open(&OfHub { test: None, ..pairs() }).is_ok());
}

#[test]
fn offline_the_pairs_are_read_from_the_cache() {
    let test_hub = TestHub::new();
    test_hub.push(
        REPO,
        "main",
        &[("math/train.jsonl", &rows(0, 2)), ("law/train.jsonl", &rows(4, 5))],
    );
    test_hub.hub.describe(
        REPO,
        Traits {
            card: concat!(
                r#"{"configs": [{"config_name": "m", "data_files": "math/*"}, "#,
                r#"{"config_name": "l", "data_files": "law/*"}]}"#
            )
            .into(),
            ..Traits::default()
        },
    );
    let config = OfHub { config_name: Some("m".into()), ..pairs() };
    test_hub.open(&config).unwrap();
    let offline = Hub::new(Settings { offline: true, ..test_hub.settings() }).unwrap();
    assert_eq!(
        prompts(open(&config, &offline).unwrap().as_ref(), "train"),
        ["p0", "p1"],
        "the data set card should be cached as well"
    );
    let e = format!(
        "{:?}",
        open(&OfHub { config_name: Some("l".into()), ..pairs() }, &offline).err().unwrap()
    );
    assert!(e.contains("`law/train.jsonl` of `org/pairs` is not in the cache"), "{e}");
}

/// Fills the cache as another tool would: with the files of one commit, but without the hub's file
/// listing. Returns an offline hub that uses this cache.
fn staged(test_hub: &TestHub, name: &str, files: &[(&str, &str)]) -> Hub {
    let commit = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2";
    let folder =
        test_hub.dir.path().join("cache").join(format!("datasets--{}", name.replace('/', "--")));
    for (file, text) in files.iter().chain([&("../../refs/main", commit)]) {
        let path = folder.join("snapshots").join(commit).join(file);
        std::fs::create_dir_all(folder.join("snapshots").join(commit)).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Hub::new(Settings { offline: true, ..test_hub.settings() }).unwrap()
}

#[test]
fn in_a_cache_that_another_tool_filled_the_readme_assigns_files_to_splits() {
    let test_hub = TestHub::new();
    let card = "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: \
        train\n    path: prefs_v2.jsonl\n---\n# Pairs\n";
    let hub = staged(
        &test_hub,
        "acme/named",
        &[("README.md", card), ("prefs_v2.jsonl", &rows(0, 1)), ("raw.jsonl", &rows(5, 7))],
    );
    let named = OfHub { repo: "acme/named".into(), ..OfHub::default() };
    assert_eq!(prompts(open(&named, &hub).unwrap().as_ref(), "train"), ["p0"]);
    // The data set card lists a file for the test split, but this file is missing. Opening the data
    // set must fail, although the user did not set a test split.
    let two =
        card.replace("---\n# Pairs", "  - split: test\n    path: held_out.jsonl\n---\n# Pairs");
    let hub =
        staged(&test_hub, "acme/two", &[("README.md", &two), ("prefs_v2.jsonl", &rows(0, 1))]);
    let config = OfHub { repo: "acme/two".into(), ..OfHub::default() };
    let e = format!("{:?}", open(&config, &hub).err().unwrap());
    assert!(e.contains("`held_out.jsonl` is missing from the split `test` of `acme/two`"), "{e}");
    assert_eq!(
        prompts(open(&OfHub { test: None, ..config }, &hub).unwrap().as_ref(), "train"),
        ["p0"]
    );
    let hub = staged(
        &test_hub,
        "acme/broken",
        &[("README.md", "---\nconfigs:\n- a: [\n---\n"), ("x.jsonl", &rows(0, 1))],
    );
    let e = format!(
        "{:?}",
        open(&OfHub { repo: "acme/broken".into(), ..OfHub::default() }, &hub).err().unwrap()
    );
    assert!(
        e.contains(
            "README.md`\n  because `configs` in the front matter of `README.md` cannot be parsed \
            as YAML"
        ),
        "{e}"
    );
}

#[test]
fn in_a_cache_that_another_tool_filled_a_missing_part_is_an_error() {
    let test_hub = TestHub::new();
    let part = |n: usize| format!("data/train-{n:05}-of-00002.jsonl");
    let hub =
        staged(&test_hub, "acme/pairs", &[("README.md", "# Pairs\n"), (&part(0), &rows(0, 6))]);
    let config = OfHub { repo: "acme/pairs".into(), ..OfHub::default() };
    let e = format!("{:?}", open(&config, &hub).err().unwrap());
    assert!(
        e.starts_with(
            "cannot load the `train` pairs\n  because `data/train-00001-of-00002.jsonl` is \
            missing from the split `train` of `acme/pairs`\n"
        ),
        "{e}"
    );
    staged(&test_hub, "acme/pairs", &[(&part(1), &rows(6, 10))]);
    assert_eq!(prompts(open(&config, &hub).unwrap().as_ref(), "train").len(), 10);
}

#[test]
fn packed_files_and_json_from_python_are_also_read_from_the_hub() {
    let test_hub = TestHub::new();
    let text = rows(0, 2)
        + "{\"prompt\": \"p2\", \"chosen\": \"good\", \"rejected\": \"bad\", \"score\": NaN}\n";
    let packed = crate::files::input::packed::gzip(text.as_bytes());
    test_hub.hub.push(REPO, "main", &[("train.jsonl.gz", &packed)]);
    assert_eq!(prompts(test_hub.open(&pairs()).unwrap().as_ref(), "train"), ["p0", "p1", "p2"]);
}
