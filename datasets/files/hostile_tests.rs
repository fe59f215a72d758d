//! Tests with truncated, malicious and unusual files. An invalid file must fail with an error that
//! locates the problem. Reading must not use much memory.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

const GOOD: &str = r#"{"prompt": "p", "chosen": "c", "rejected": "r"}"#;

/// Writes a file and reads it. Returns the number of pairs before the first error and the error
/// message, with `FILE` instead of the path.
fn read_with(name: &str, bytes: &[u8], config: Files) -> (usize, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    read_path(&path, config)
}

fn read_path(path: &Path, config: Files) -> (usize, String) {
    let message = |e: Error| format!("{e:?}").replace(&path.display().to_string(), "FILE");
    // `build` only reads the first pair, so open the source directly.
    let source = match Source::open(path, config.format.reading().unwrap(), &[])
        .and_then(|source| source.pairs())
    {
        Ok(pairs) => pairs,
        Err(e) => return (0, message(e)),
    };
    let (mut good, mut error) = (0, String::new());
    for pair in source {
        match pair {
            Ok(_) => good += 1,
            Err(e) => error += &message(e),
        }
    }
    (good, error)
}

fn read(name: &str, text: &str) -> (usize, String) {
    read_with(name, text.as_bytes(), Files::default())
}

#[test]
fn blank_lines_line_ends_and_a_byte_order_mark_do_not_matter() {
    assert_eq!(read("x.jsonl", &format!("\u{feff}{GOOD}\r\n\n  \n{GOOD}")), (2, String::new()));
    assert_eq!(
        read("x.json", &format!("\u{feff}\r\n[{GOOD}\r\n,\r\n{GOOD}]\r\n")),
        (2, String::new())
    );
    assert_eq!(
        read("x.csv", "\u{feff}prompt,chosen,rejected\r\na,b,c\r\n\r\nd,e,f"),
        (2, String::new())
    );
}

#[test]
fn an_error_names_the_file_and_the_line_and_is_the_last_item() {
    let (good, error) = read(
        "x.jsonl",
        &format!("{GOOD}\n\n{{\"prompt\": \"p\", \"chosen\": 1, \"rejected\": \"r\"}}\n{GOOD}"),
    );
    assert_eq!(good, 1);
    assert!(
        error.starts_with(
            "cannot read line 3 of `FILE`\n  because `chosen` is a number, not text\n"
        ),
        "{error}"
    );
    let (good, error) = read("x.json", &format!("[\n{GOOD},\n\n{{\"prompt\": 1}}]"));
    assert!(
        good == 1
            && error.starts_with(
                "cannot read line 4 of `FILE`\n  because there is no column `chosen`\n"
            ),
        "{error}"
    );
    let (good, error) = read("x.csv", "prompt,chosen,rejected\n\"a\nb\",c,r\na,b\n");
    assert!(
        good == 1
            && error.starts_with(
                "cannot read line 4 of `FILE`\n  because the row has 2 fields, but the \
                    header has 3\n"
            ),
        "{error}"
    );
}

#[test]
fn an_error_in_json_names_its_place() {
    let (_, error) = read("x.jsonl", &format!("{GOOD}\n{{\"prompt\": \"p\", }}"));
    assert_eq!(
        error,
        "cannot read line 2 of `FILE`\n  because it is not JSON: trailing comma, at byte 17"
    );
    assert!(read("x.jsonl", "[1, 2]").1.contains("it is a list, not an object"));
    for (text, why) in [
        (
            format!("[{GOOD}, {GOOD}"),
            "line 1 of `FILE`\n  because it is not JSON: the list is not closed; the file may be \
                truncated",
        ),
        (
            format!("[{GOOD}\n{GOOD}]"),
            "line 2 of `FILE`\n  because it is not JSON: missing comma between two rows",
        ),
        (
            format!("[{GOOD},]"),
            "line 1 of `FILE`\n  because it is not JSON: missing row after a comma",
        ),
        (
            format!("[{GOOD}] x"),
            "line 1 of `FILE`\n  because it is not JSON: there is text after the `]` that closes \
                the list",
        ),
        (
            format!("[{GOOD},\n{}", &GOOD[..20]),
            "line 2 of `FILE`\n  because it is not JSON: EOF while parsing a string, at byte 20",
        ),
        (format!("[{GOOD}, 7]"), "line 1 of `FILE`\n  because it is a number, not an object"),
        ("hello".to_owned(), "line 1 of `FILE`\n  because it begins with neither `[` nor `{`"),
        (
            r#"{"chosen": ["a"], "rejected": ["b", "c"]}"#.to_owned(),
            "`rejected` has 2 values, but the previous columns have 1",
        ),
    ] {
        let (_, error) = read("x.json", &text);
        assert!(error.contains(why), "{text}\n{error}");
    }
}

#[test]
fn text_that_is_not_utf8_is_an_error() {
    let line = b"{\"prompt\": \"\xff\"}";
    let (good, error) =
        read_with("x.jsonl", &[GOOD.as_bytes(), b"\n", line].concat(), Files::default());
    assert_eq!(good, 1);
    assert!(
        error.starts_with(
            "cannot read line 2 of `FILE`\n  because it is not UTF-8: byte 13 is invalid"
        ),
        "{error}"
    );
    let (_, error) = read_with("x.json", &[b"[", &line[..], b"]"].concat(), Files::default());
    assert!(
        error.starts_with("cannot read line 1 of `FILE`\n  because it is not UTF-8"),
        "{error}"
    );
    let (good, error) =
        read_with("x.csv", b"prompt,chosen,rejected\na,b,c\na,\xff,c\n", Files::default());
    assert!(
        good == 1
            && error.starts_with(
                "cannot read line 3 of `FILE`\n  because `chosen` is not text\n  because it is \
                not UTF-8"
            ),
        "{error}"
    );
    let utf16: Vec<u8> = "\u{feff}prompt".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for name in ["x.jsonl", "x.json", "x.csv"] {
        assert!(!read_with(name, &utf16, Files::default()).1.is_empty(), "{name}");
    }
}

#[test]
fn an_empty_completion_is_only_an_error_in_csv() {
    let empty = r#"{"prompt": "p", "chosen": "", "rejected": "r"}"#;
    let silent = concat!(
        r#"{"prompt": [{"role": "user", "content": "p"}], "#,
        r#""chosen": [{"role": "assistant", "content": ""}], "#,
        r#""rejected": [{"role": "assistant", "content": "x"}]}"#
    );
    assert_eq!(read("x.jsonl", &format!("{GOOD}\n{empty}\n{GOOD}")), (3, String::new()));
    assert_eq!(read("x.jsonl", silent), (1, String::new()));
    let null = r#"{"prompt": "p", "chosen": null, "rejected": "r"}"#;
    assert!(read("x.jsonl", null).1.contains("`chosen` is null, not text"));
    let (good, error) = read("x.csv", "prompt,chosen,rejected\na,b,c\np,,r\n");
    assert_eq!(
        (good, error.as_str()),
        (
            1,
            "cannot read line 3 of `FILE`\n  because `chosen` is empty\n  hint: use `--set \
                dataset.bad_rows=skip` to skip such rows"
        )
    );
    let skip = || Files {
        format: Format { bad_rows: BadRows::Skip, ..Format::default() },
        ..Files::default()
    };
    assert_eq!(
        read_with("x.csv", b"prompt,chosen,rejected\na,b,c\np,,r\nd,e,f\n", skip()),
        (2, String::new())
    );
    assert_eq!(
        read_with("x.jsonl", format!("{GOOD}\n{null}\n{GOOD}").as_bytes(), skip()),
        (2, String::new())
    );
    let (good, error) = read_with("x.jsonl", format!("{GOOD}\n{null}\n{{").as_bytes(), skip());
    assert!(
        good == 1 && error.contains("line 3 of `FILE`\n  because it is not JSON"),
        "a line that is not JSON is still an error: {error}"
    );
}

#[test]
fn the_error_for_a_file_whose_rows_are_all_skipped_gives_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    fs::write(&path, "{}\n{}\n").unwrap();
    let config = Files {
        train: path,
        format: Format { bad_rows: BadRows::Skip, ..Format::default() },
        ..Files::default()
    };
    let e = format!("{:?}", config.build().err().unwrap());
    assert!(
        e.contains("has no pairs\n  because cannot read line 1 of")
            && e.contains("2 rows were skipped"),
        "{e}"
    );
}

#[test]
fn rows_of_different_kinds_do_not_mix() {
    let turn = |role: &str, text: &str| format!(r#"[{{"role": "{role}", "content": "{text}"}}]"#);
    let chat = format!(
        r#"{{"prompt": {}, "chosen": {}, "rejected": {}}}"#,
        turn("user", "p"),
        turn("assistant", "c"),
        turn("assistant", "r")
    );
    let (good, error) = read("x.jsonl", &format!("{GOOD}\n{chat}"));
    assert!(
        good == 1
            && error.contains(
                "line 2 of `FILE`\n  because it contains a list of messages, but earlier rows \
                contain plain text"
            ),
        "{error}"
    );
    let (_, error) =
        read("x.jsonl", &format!("{GOOD}\n{}", r#"{"chosen": "a b", "rejected": "a c"}"#));
    assert!(
        error
            .contains("line 2 of `FILE`\n  because it has no column `prompt`, unlike earlier rows"),
        "{error}"
    );
    let (_, error) = read(
        "x.jsonl",
        &format!("{GOOD}\n{}", r#"{"prompt": "p", "choosen": "a", "rejected": "b"}"#),
    );
    assert!(
        error.contains(
            "line 2 of `FILE`\n  because there is no column `chosen`\n  hint: did you mean \
            `choosen`?"
        ),
        "{error}"
    );
    // Later rows can have additional columns.
    assert_eq!(
        read(
            "x.jsonl",
            &format!("{GOOD}\n{}", r#"{"id": 3, "prompt": "p", "chosen": "a", "rejected": "b"}"#)
        )
        .0,
        2
    );
}

#[test]
fn an_invalid_csv_header_is_an_error() {
    assert!(
        read("x.csv", "prompt,chosen,chosen\n")
            .1
            .contains("line 1 of `FILE`\n  because the header contains the column `chosen` twice")
    );
    assert!(
        read("x.csv", "prompt;chosen;rejected\na;b;c\n")
            .1
            .contains("if `;` separates the fields, use ")
    );
    assert!(
        read("x.csv", "").1.contains("line 1 of `FILE`\n  because there is no column `chosen`")
    );
    assert_eq!(read("x.csv", "prompt,chosen,rejected\n"), (0, String::new()));
}

/// Each file is sparse, so it takes no disk space. Reading the whole row would take 2 GiB of
/// memory.
#[test]
fn a_row_of_two_gigabytes_is_refused_immediately() {
    let dir = tempfile::tempdir().unwrap();
    for (name, begin) in [
        ("x.jsonl", "{\"prompt\": \""),
        ("x.json", "[{\"prompt\": \""),
        ("y.json", "{\"data\": [\""),
        ("x.csv", "prompt,chosen,rejected\n\""),
        ("y.csv", "prompt,chosen,"),
    ] {
        let path = dir.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(begin.as_bytes()).unwrap();
        file.set_len(2 << 30).unwrap();
        let began = Instant::now();
        let (good, error) = read_path(
            &path,
            Files { format: Format { max_row_mib: 1, ..Format::default() }, ..Files::default() },
        );
        assert_eq!(good, 0, "{name}");
        assert!(
            error.contains("it is longer than 1 MiB\n") && error.contains("dataset.max_row_mib"),
            "{name}: {error}"
        );
        assert!(began.elapsed() < Duration::from_secs(5), "{name} took {:?}", began.elapsed());
    }
}

#[test]
fn too_many_values_and_too_deep_nesting_are_errors() {
    let (_, error) = read("x.jsonl", &format!("{{\"prompt\": [{}0]}}", "0,".repeat(1 << 21)));
    assert!(error.contains("it has more than 500000 values"), "{error}");
    for name in ["x.jsonl", "x.json"] {
        let (_, error) = read(name, &format!("[{}", "{\"a\":[".repeat(50_000)));
        assert!(error.contains("recursion limit"), "{name}: {error}");
    }
}

/// The parquet crate would allocate as much memory as the page header declares, so a size above the
/// limit must be rejected first.
#[test]
fn a_page_that_declares_gigabytes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    let long = |name| parquet_fixtures::Column::Text(name, vec!["ab".repeat(40_000)]);
    parquet_fixtures::write(
        &path,
        &["prompt", "chosen", "rejected"].map(long),
        ::parquet::basic::Compression::SNAPPY,
    );
    let mut bytes = fs::read(&path).unwrap();
    // In the first page's header, the size is a varint of three bytes. Replace it with the largest
    // 32-bit size.
    let size = (5..40)
        .find(|at| {
            bytes[*at] == 0x15
                && bytes[at + 1] >= 0x80
                && bytes[at + 2] >= 0x80
                && bytes[at + 3] < 0x80
        })
        .unwrap();
    bytes.splice(size + 1..size + 4, [0xfe, 0xff, 0xff, 0xff, 0x0f]);
    fs::write(&path, &bytes).unwrap();
    let (_, error) = read_path(&path, Files::default());
    assert!(
        error.contains(
            "one of its pages declares a decompressed size of 2147483647 bytes, but the limit is \
            134217728"
        ),
        "{error}"
    );
}

/// Each file is smaller than 4 MiB and decompresses to a row of 256 MiB.
#[test]
fn a_packed_row_that_is_too_long_is_refused_immediately() {
    use std::io::{self, Read};
    let dir = tempfile::tempdir().unwrap();
    let long =
        || io::Cursor::new(b"{\"prompt\": \"".to_vec()).chain(io::repeat(b' ').take(256 << 20));
    let (gzip, zstd) = (dir.path().join("x.jsonl.gz"), dir.path().join("x.jsonl.zst"));
    let mut packed =
        flate2::write::GzEncoder::new(File::create(&gzip).unwrap(), flate2::Compression::fast());
    io::copy(&mut long(), &mut packed).unwrap();
    packed.finish().unwrap();
    let mut packed = ::zstd::Encoder::new(File::create(&zstd).unwrap(), 1).unwrap();
    io::copy(&mut long(), &mut packed).unwrap();
    packed.finish().unwrap();
    for path in [gzip, zstd] {
        let size = path.metadata().unwrap().len();
        assert!(size < 4 << 20, "{size} bytes in {}", path.display());
        for name in ["", "x.json", "x.csv"] {
            let ending = path.extension().unwrap().to_str().unwrap();
            let other = if name.is_empty() {
                path.clone()
            } else {
                dir.path().join(format!("{name}.{ending}"))
            };
            if !name.is_empty() {
                fs::copy(&path, &other).unwrap();
            }
            let began = Instant::now();
            let (good, error) = read_path(
                &other,
                Files {
                    format: Format { max_row_mib: 1, ..Format::default() },
                    ..Files::default()
                },
            );
            assert!(
                good == 0 && error.contains("it is longer than 1 MiB\n"),
                "{}: {error}",
                other.display()
            );
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "{} took {:?}",
                other.display(),
                began.elapsed()
            );
        }
    }
}

#[test]
fn a_packed_file_that_is_cut_off_or_not_packed_is_an_error() {
    let text = [GOOD; 3].join("\n");
    for (name, packed) in [
        ("x.jsonl.gz", input::packed::gzip(text.as_bytes())),
        ("x.jsonl.zst", input::packed::zstd(text.as_bytes())),
    ] {
        for length in 0..packed.len() {
            let (_, error) = read_with(name, &packed[..length], Files::default());
            // An empty file is valid zstd data that decompresses to nothing.
            let reported =
                error.contains("data cannot be decompressed: ") && error.contains("`FILE`");
            assert!(
                reported || (length == 0 && name.ends_with("zst")),
                "{name}, cut to {length} bytes: {error}"
            );
        }
        let (good, error) = read_with(name, text.as_bytes(), Files::default());
        assert!(good == 0 && error.contains("data cannot be decompressed: "), "{name}: {error}");
    }
}

#[test]
fn a_git_lfs_pointer_is_recognised_in_every_format() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid \
        sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    for name in ["x.parquet", "x.jsonl", "x.json", "x.csv", "x.tsv", "x.jsonl.gz", "x.json.zst"] {
        let (good, error) = read(name, pointer);
        assert!(
            good == 0
                && error.starts_with(
                    "`FILE` is a Git LFS pointer, not the file itself\n  hint: fetch the file \
                    itself: `git -C "
                ),
            "{name}: {error}"
        );
        assert!(error.ends_with(" lfs pull`"), "{error}");
    }
}

const SHAREGPT: &str = concat!(
    r#"{"conversations": [{"from": "human", "value": "Sky?"}], "#,
    r#""chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "g"}}"#
);
const PYTHON: &str = concat!(
    r#"{"prompt": "p", "chosen": "c", "rejected": "r", "score": NaN, "#,
    r#""x": [-Infinity, 1e400, 123456789012345678901234567890], "t": "\ud83d"}"#
);

#[test]
fn values_that_only_python_accepts_are_an_error_only_in_fields_that_are_used() {
    let skip = || Files {
        format: Format { bad_rows: BadRows::Skip, ..Format::default() },
        ..Files::default()
    };
    let rows = |row: &str| {
        [
            ("x.jsonl", format!("{PYTHON}\n{row}\n{GOOD}")),
            ("x.json", format!("[{PYTHON},\n{row},\n{GOOD}]")),
        ]
    };
    for (row, why) in [
        (
            r#"{"prompt": "p", "chosen": NaN, "rejected": "r"}"#,
            "`chosen` is NaN, which is neither text nor a JSON number",
        ),
        (
            r#"{"prompt": "p", "chosen": "c", "rejected": Infinity}"#,
            "`rejected` is Infinity, which is neither text nor a JSON number",
        ),
        (
            r#"{"prompt": "Smile", "chosen": " ok \ud83d end", "rejected": " no"}"#,
            "`chosen` contains the lone surrogate `\\ud83d`, which is not a character",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "\uDE00"}], "chosen": [], "rejected": []}"#,
            "`prompt[0].content` contains the lone surrogate `\\uDE00`, which is not a character",
        ),
        (
            r#"{"prompt": "p", "chosen": "c", "rejected": "r", "tools": [{"n": NaN}]}"#,
            "`tools[0].n` is NaN",
        ),
        (r#"{"prompt": "p", "responses": {"a": 1, "b": NaN}}"#, "`responses.b` is NaN"),
        (
            concat!(
                r#"{"conversations": [{"from": "human", "value": "\ud800"}], "#,
                r#""chosen": "c", "rejected": "r"}"#
            ),
            "`conversations[0].value` contains the lone surrogate `\\ud800`",
        ),
    ] {
        for (name, text) in rows(row) {
            let (good, error) = read(name, &text);
            assert!(
                good == 1
                    && error.starts_with(&format!("cannot read line 2 of `FILE`\n  because {why}")),
                "{name}: {error}"
            );
            assert!(
                error.contains("use `--set dataset.bad_rows=skip` to skip such rows"),
                "{error}"
            );
            assert_eq!(
                read_with(name, text.as_bytes(), skip()),
                (2, String::new()),
                "{name}: {row}"
            );
        }
    }
    // Chat templates rarely read a `score` field of a message, so NaN is allowed there.
    let scored = concat!(
        r#"{"prompt": [{"role": "user", "content": "p", "score": NaN}], "#,
        r#""chosen": [{"role": "assistant", "content": "c"}], "#,
        r#""rejected": [{"role": "assistant", "content": "r"}]}"#
    );
    assert_eq!(read("x.jsonl", scored), (1, String::new()));
    for whole in [
        concat!(
            r#"{"data": [{"prompt": "p", "chosen": "c", "rejected": "r", "s": NaN}, "#,
            r#"{"prompt": "p", "chosen": NaN, "rejected": "r"}]}"#
        ),
        r#"{"prompt": ["p", "p"], "chosen": ["c", NaN], "rejected": ["r", "r"], "s": [NaN, 1]}"#,
        concat!(
            r#"{"prompt": {"0": "p", "1": "p"}, "chosen": {"0": "c", "1": NaN}, "#,
            r#""rejected": {"0": "r", "1": "r"}}"#
        ),
    ] {
        let (good, error) = read("x.json", whole);
        assert!(
            good == 1
                && error.starts_with("cannot read row 2 of `FILE`\n  because `chosen` is NaN"),
            "{whole}\n{error}"
        );
        assert_eq!(read_with("x.json", whole.as_bytes(), skip()), (1, String::new()));
    }
}

/// Replaces each byte of a file in turn, and truncates the file at each byte. Reading the changed
/// file must return pairs or an error. It must never panic or loop.
#[test]
fn a_file_with_any_byte_changed_does_not_panic() {
    let rows: Vec<&str> = vec![GOOD; 3];
    let genies = r#"[{"prompt": "p", "responses": {"a": 1, "b": 0}}]"#;
    for (name, text) in [
        ("x.jsonl", rows.join("\n")),
        ("x.json", format!("[{}]", rows.join(","))),
        ("y.json", genies.to_owned()),
        ("z.json", r#"{"prompt": ["p"], "chosen": ["c"], "rejected": ["r"]}"#.to_owned()),
        ("x.csv", "prompt,chosen,rejected\n\"a\nb\",c,r\nd,e,f\n".to_owned()),
        ("python.jsonl", format!("{PYTHON}\n{GOOD}")),
        ("sharegpt.jsonl", SHAREGPT.to_owned()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        for at in 0..text.len() {
            for byte in [0, b'"', b'{', b']', b',', b'\n', 0xff] {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = byte;
                fs::write(&path, &bytes).unwrap();
                assert!(read_path(&path, Files::default()).0 <= 4);
            }
            fs::write(&path, &text.as_bytes()[..at]).unwrap();
            assert!(read_path(&path, Files::default()).0 <= 4);
        }
    }
}
