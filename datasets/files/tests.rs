use std::fs;
use std::path::Path;

use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
use reprpo_plugin::serde_json::json;

use super::input::packed;
use super::parquet_fixtures::{
    Column, numbered, pair_columns, write, write_all_types, write_columns, write_conversation,
    write_sharegpt,
};
use super::*;

fn open(train: &Path) -> Result<Box<dyn Dataset>> {
    Files { train: train.to_owned(), ..Files::default() }.build()
}

/// Opens an invalid file and returns the error message, with `FILE` instead of its path.
fn error(train: &Path) -> String {
    format!("{:?}", open(train).err().expect("opening the file should fail"))
        .replace(&train.display().to_string(), "FILE")
}

fn read(data: &dyn Dataset, split: &str) -> Vec<PreferencePair> {
    data.pairs(split).unwrap().collect::<Result<_>>().unwrap()
}

fn line(i: usize) -> String {
    format!(
        "{{\"prompt\": \"prompt {i}\", \"chosen\": \"chosen {i}\", \"rejected\": \"rejected \
            {i}\"}}\n"
    )
}

#[test]
fn every_format_gives_the_same_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let jsonl = dir.path().join("pairs.jsonl");
    fs::write(&jsonl, (0..5).map(line).collect::<String>()).unwrap();
    let want = read(open(&jsonl).unwrap().as_ref(), "train");
    assert_eq!(want.len(), 5);
    assert_eq!(want[3].chosen, "chosen 3".into());
    let row = |i: usize| line(i).trim_end().to_owned();
    let rows: Vec<String> = (0..5).map(row).collect();
    let cells =
        |name: &str| (0..5).map(|i| format!("\"{name} {i}\"")).collect::<Vec<_>>().join(",");
    let by_index = |name: &str| {
        (0..5).map(|i| format!("\"{i}\": \"{name} {i}\"")).collect::<Vec<_>>().join(",")
    };
    let columns = |open: &str, of: &dyn Fn(&str) -> String, close: &str| {
        let columns = ["prompt", "chosen", "rejected"]
            .map(|name| format!("\"{name}\": {open}{}{close}", of(name)));
        format!("{{{}}}", columns.join(", "))
    };
    let csv = |between: &str| {
        let rows = (0..5).map(|i| {
            format!("\"rejected {i}\"{between}prompt {i}{between}{i}{between}chosen {i}\r\n")
        });
        format!(
            "\u{feff}rejected{between}prompt{between}score{between}chosen\r\n{}",
            rows.collect::<String>()
        )
    };
    for (name, text) in [
        ("list.json", format!("\u{feff}[\n  {}\n]\n", rows.join(",\n  "))),
        ("lines.json", rows.join("\n")),
        ("sequence.json", rows.join(" ").replace(", ", ",\n  ")),
        ("wrapped.json", format!("{{\"version\": 1, \"data\": [{}]}}", rows.join(","))),
        ("columns.json", columns("[", &cells, "]")),
        ("pandas.json", columns("{", &by_index, "}")),
        ("commas.csv", csv(",")),
        ("tabs.tsv", csv("\t")),
        ("lines.jsonl", rows.join("\n")),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, &text).unwrap();
        assert_eq!(read(open(&path).unwrap().as_ref(), "train"), want, "{name}");
        let (gzip, zstd) = (packed::gzip(text.as_bytes()), packed::zstd(text.as_bytes()));
        // The concatenation of gzip files is a valid gzip file.
        let (first, second) = text.split_at(text.len() / 2);
        let several = [packed::gzip(first.as_bytes()), packed::gzip(second.as_bytes())].concat();
        for (ending, bytes) in [("gz", gzip), ("GZ", several), ("zst", zstd)] {
            let path = dir.path().join(format!("{name}.{ending}"));
            fs::write(&path, bytes).unwrap();
            assert_eq!(read(open(&path).unwrap().as_ref(), "train"), want, "{name}.{ending}");
        }
    }
    for (name, compression) in [
        ("plain.parquet", Compression::UNCOMPRESSED),
        ("snappy.PARQUET", Compression::SNAPPY),
        ("zstd.parquet", Compression::ZSTD(ZstdLevel::try_new(3).unwrap())),
        ("gzip.parquet", Compression::GZIP(GzipLevel::try_new(6).unwrap())),
    ] {
        let path = dir.path().join(name);
        write(&path, &pair_columns(5), compression);
        let data = open(&path).unwrap();
        assert_eq!(read(data.as_ref(), "train"), want, "{name}");
        assert_eq!(data.splits()[0].pairs, Some(5));
    }
}

#[test]
fn a_row_in_the_json_of_genies_has_a_pair_for_each_worse_response() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.json");
    let rows = json!([
        {"prompt": "p", "responses": {"a": 1, "b": 0, "c": 0}},
        {"prompt": "q", "responses": {"d": 0, "e": 1}},
    ]);
    fs::write(&path, rows.to_string()).unwrap();
    let pair =
        |prompt: &str, chosen: &str, rejected: &str| PreferencePair::new(prompt, chosen, rejected);
    assert_eq!(
        read(open(&path).unwrap().as_ref(), "train"),
        [pair("p", "a", "b"), pair("p", "a", "c"), pair("q", "e", "d")]
    );
}

#[test]
fn columns_and_delimiter_can_be_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.csv");
    fs::write(&path, "question;best;worst\n\"a; b\";c;\"r\nr\"\n").unwrap();
    let format = || Format {
        prompt_column: Some("question".into()),
        chosen_column: "best".into(),
        rejected_column: "worst".into(),
        delimiter: Some(';'),
        ..Format::default()
    };
    let build = |format| Files { train: path.clone(), format, ..Files::default() }.build();
    let pairs = read(build(format()).unwrap().as_ref(), "train");
    assert_eq!(pairs, [PreferencePair::new("a; b", "c", "r\nr")]);
    let wrong = |format: Format| format!("{:?}", build(format).err().unwrap());
    assert!(
        wrong(Format { delimiter: Some('é'), ..format() })
            .starts_with("`delimiter` must be one ASCII character, got `é`\n")
    );
    assert!(
        wrong(Format { rejected_column: "best".into(), ..format() })
            .starts_with("the column `best` is used twice\n")
    );
    assert_eq!(
        wrong(Format { max_row_mib: 0, ..format() }),
        "`max_row_mib` must be between 1 and 1024, got 0"
    );
    let e = wrong(Format { delimiter: None, ..format() });
    assert!(e.contains("if `;` separates the fields, use `--set 'dataset.delimiter=;'`"), "{e}");
}

#[test]
fn in_parquet_without_a_prompt_column_the_common_beginning_is_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    let text = |name: &'static str, text: &str| Column::Text(name, vec![text.to_owned()]);
    write(
        &path,
        &[text("chosen", "Sky? Blue"), text("rejected", "Sky? Green")],
        Compression::SNAPPY,
    );
    let pairs = read(open(&path).unwrap().as_ref(), "train");
    assert_eq!(pairs, [PreferencePair::new("Sky?", " Blue", " Green")]);
}

#[test]
fn conversations_are_read_from_parquet_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let (parquet, jsonl) = (dir.path().join("pairs.parquet"), dir.path().join("pairs.jsonl"));
    write_conversation(&parquet, &[]);
    let turn =
        |role: &str, content: &str| format!(r#"[{{"role": "{role}", "content": "{content}"}}]"#);
    let row = format!(
        r#"{{"prompt": {}, "chosen": {}, "rejected": {}}}"#,
        turn("user", "Who?"),
        turn("assistant", "You."),
        turn("assistant", "Me.")
    );
    fs::write(&jsonl, row).unwrap();
    let pairs = read(open(&parquet).unwrap().as_ref(), "train");
    assert_eq!(pairs[0].prompt, Text::Messages(vec![Message::new("user", "Who?")]));
    assert_eq!(pairs, read(open(&jsonl).unwrap().as_ref(), "train"));
}

#[test]
fn a_parquet_conversation_can_have_tools_but_not_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    write_conversation(
        &path,
        &[
            ("chat_template_kwargs", r#"{"enable_thinking": false}"#),
            ("id", "7"),
            ("tools", r#"[{"name": "f"}]"#),
        ],
    );
    let pairs = read(open(&path).unwrap().as_ref(), "train");
    let tools = json!([{"name": "f"}]);
    assert_eq!(
        pairs[0].template_args,
        TemplateArgs::new(tools, json!({"enable_thinking": false})).unwrap()
    );
    write_conversation(&path, &[("images", "cat.png")]);
    assert!(
        error(&path).contains("`images` contains something other than text"),
        "{}",
        error(&path)
    );
}

#[test]
fn each_split_is_a_file_and_the_splits_are_listed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, line(0)).unwrap();
        path
    };
    let config = Files {
        train: file("a.jsonl"),
        oos: Some(file("b.jsonl")),
        rnd: Some(file("c.jsonl")),
        ..Files::default()
    };
    let data = config.build().unwrap();
    let splits: Vec<_> = data.splits().into_iter().map(|s| (s.name, s.describes)).collect();
    assert_eq!(
        splits,
        [("train", "a.jsonl"), ("oos", "b.jsonl"), ("rnd", "c.jsonl")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    let error = format!("{:?}", data.pairs("ooz").err().unwrap());
    assert_eq!(
        error,
        "unknown split `ooz`\n  hint: did you mean `oos`?\n  hint: valid: oos, rnd, train"
    );
}

#[test]
fn an_unusable_file_is_an_error_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    assert!(error(&dir.path().join("none.jsonl")).contains("cannot open `FILE`"));
    assert!(error(&at("empty.jsonl", "\n\n")).contains("`FILE` has no pairs"));
    assert!(
        error(&at("pairs.jsnl", &line(0)))
            .contains("unknown file extension `jsnl`\n  hint: did you mean `jsonl`?")
    );
    assert!(
        error(&at("short.jsonl", "{\"prompt\": \"p\"}"))
            .contains("cannot read line 1 of `FILE`\n  because there is no column `chosen`")
    );
    assert!(error(&at("text.parquet", "text")).contains("`FILE` is not a complete parquet file"));
    fs::create_dir(dir.path().join("folder.jsonl")).unwrap();
    assert!(error(&dir.path().join("folder.jsonl")).contains("is a folder"));
    let nothing = format!("{:?}", Files::default().build().err().unwrap());
    assert!(nothing.starts_with("no training file given"), "{nothing}");
}

#[test]
fn the_error_for_a_column_missing_from_parquet_names_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    let mut columns = pair_columns(2);
    columns[1] = numbered("choosen", 2);
    write(&path, &columns, Compression::SNAPPY);
    let got = error(&path);
    assert!(
        got.contains(
            "there is no column `chosen`\n  hint: did you mean `choosen`? set it with `--columns \
                chosen=choosen`\n  hint: existing columns: prompt, choosen, rejected"
        ),
        "{got}"
    );
    columns[1] = Column::Int("chosen", vec![1, 2]);
    write(&path, &columns, Compression::SNAPPY);
    assert!(error(&path).contains("column `chosen` is of type INT32, not text"));
    write(&path, &pair_columns(0), Compression::SNAPPY);
    assert!(error(&path).contains("has no pairs"));
}

#[test]
fn a_parquet_file_cut_off_anywhere_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    write(&path, &pair_columns(20), Compression::SNAPPY);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(error(&path).contains("`FILE` is not a complete parquet file"), "cut at {length}");
    }
}

/// A file with a changed byte may still be valid. Reading the file must never panic, and must never
/// return more rows than the footer declares.
#[test]
fn a_parquet_file_with_any_byte_changed_does_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    write(&path, &pair_columns(20), Compression::SNAPPY);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(&path, &bytes).unwrap();
            if let Ok(data) = open(&path) {
                let pairs = data.pairs("train").map(Iterator::count).unwrap_or_default();
                assert!(pairs <= 21, "byte {at}, xor {flip:#x}: got {pairs} pairs");
            }
        }
    }
}

#[test]
fn an_unknown_field_in_the_configuration_is_an_error() {
    let got = reprpo_plugin::serde_json::from_str::<Files>(r#"{"tests": "a.jsonl"}"#)
        .unwrap_err()
        .to_string();
    assert!(got.contains("unknown field `tests`"), "{got}");
}

/// Row numbers include skipped rows, so that users can find the row in the file.
#[test]
fn a_pair_has_the_number_of_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    fs::write(&path, format!("{}\n{{\"prompt\": 1}}\n{}{{}}\n{}", line(0), line(2), line(4)))
        .unwrap();
    let format = Format { bad_rows: BadRows::Skip, ..Format::default() };
    let data = Files { train: path, format, ..Files::default() }.build().unwrap();
    let rows: Vec<(usize, PreferencePair)> =
        data.rows("train").unwrap().collect::<Result<_>>().unwrap();
    assert_eq!(rows.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [0, 2, 4]);
    assert!(rows.iter().all(|(row, pair)| pair.prompt == Text::from(format!("prompt {row}"))));
    assert_eq!(
        rows.into_iter().map(|(_, pair)| pair).collect::<Vec<_>>(),
        read(data.as_ref(), "train")
    );
}

/// A row of a GENIES JSON file can contain several pairs.
#[test]
fn all_pairs_of_a_row_have_its_row_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.json");
    let rows = json!([
        {"prompt": "p", "responses": {"a": 1, "b": 0, "c": 0}},
        {"prompt": "q", "responses": {"a": 1, "b": 0}},
    ]);
    fs::write(&path, rows.to_string()).unwrap();
    let data = open(&path).unwrap();
    let rows: Vec<usize> = data.rows("train").unwrap().map(|row| row.unwrap().0).collect();
    assert_eq!(rows, [0, 0, 1]);
}

#[test]
fn only_one_split_can_be_standard_input_and_a_file_needs_no_record() {
    // Reading actual standard input is covered by the integration tests in `tests`.
    let two = Files { train: "-".into(), test: Some("-".into()), ..Files::default() };
    let e = format!("{:?}", two.build().err().unwrap());
    assert!(e.starts_with("standard input (`-`) is used for several splits: train, test\n"), "{e}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    fs::write(&path, line(0)).unwrap();
    let file = Files { train: path, stdin: Some("0".into()), ..Files::default() }.build().unwrap();
    assert_eq!(file.pinned(), None);
}

#[test]
fn sharegpt_conversations_are_read_from_json_and_parquet() {
    let dir = tempfile::tempdir().unwrap();
    let (jsonl, parquet) = (dir.path().join("pairs.jsonl"), dir.path().join("pairs.parquet"));
    let row = json!({
        "conversations": [{"from": "human", "value": "Sky?"}],
        "chosen": {"from": "gpt", "value": "blue"},
        "rejected": {"from": "gpt", "value": "green"},
        "system": "Be brief.",
    });
    fs::write(&jsonl, row.to_string()).unwrap();
    write_sharegpt(&parquet, ["Sky?", "blue", "green", "Be brief."]);
    let messages = |turns: &[(&str, &str)]| {
        Text::Messages(turns.iter().map(|(role, text)| Message::new(*role, *text)).collect())
    };
    let prompt = messages(&[("system", "Be brief."), ("user", "Sky?")]);
    let want = PreferencePair::new(
        prompt,
        messages(&[("assistant", "blue")]),
        messages(&[("assistant", "green")]),
    );
    for path in [jsonl, parquet] {
        assert_eq!(
            read(open(&path).unwrap().as_ref(), "train"),
            std::slice::from_ref(&want),
            "{}",
            path.display()
        );
    }
}

#[test]
fn parquet_columns_and_fields_that_are_not_needed_can_have_any_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    write_all_types(&path);
    let pairs = read(open(&path).unwrap().as_ref(), "train");
    let roles: Vec<_> = [&pairs[0].prompt, &pairs[0].chosen, &pairs[0].rejected]
        .into_iter()
        .map(|text| match text {
            Text::Messages(messages) => {
                messages.iter().map(|m| format!("{}: {}", m.role(), m.text())).collect::<Vec<_>>()
            }
            Text::Plain(text) => panic!("{text}"),
        })
        .collect();
    assert_eq!(roles, [["user: Who?"], ["assistant: You."], ["assistant: Me."]]);
}

#[test]
fn the_error_names_a_parquet_column_of_the_wrong_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    write_columns(
        &path,
        "optional binary chosen (DECIMAL(5, 2)); optional binary prompt (STRING); optional binary \
            rejected (STRING);",
    );
    let got = error(&path);
    assert!(got.contains("column `chosen` is of type DECIMAL, not text"), "{got}");
    write_columns(
        &path,
        "optional group chosen { optional binary text (STRING); } optional binary prompt \
            (STRING); optional binary rejected (STRING);",
    );
    let got = error(&path);
    assert!(got.contains("column `chosen` is nested, not text"), "{got}");
}

#[test]
fn the_number_of_pairs_is_unknown_if_a_column_contains_lists_of_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    let count = || Source::open(&path, Reading::default(), &[]).unwrap().count();
    write_columns(
        &path,
        "optional binary prompt (STRING); optional binary chosen (STRING); optional group rejected \
            (LIST) { repeated group list { optional binary element (STRING); } }",
    );
    assert_eq!(count(), None);
    let source = Source::open(&path, Reading::default(), &[]).unwrap();
    let pairs: Vec<_> = source.pairs().unwrap().map(|pair| pair.unwrap().1).collect();
    assert_eq!(pairs, [PreferencePair::new("prompt", "chosen", "rejected")]);
    write_conversation(&path, &[]);
    assert_eq!(count(), Some(1), "a list of messages is one completion");
    write(&path, &pair_columns(3), Compression::UNCOMPRESSED);
    assert_eq!(count(), Some(3));
}
