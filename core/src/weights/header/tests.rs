use std::path::Path;

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::testing;
use crate::weights::{ModelFiles, SafetensorsFile, read_safetensors, write_safetensors};

/// Returns the bytes of a safetensors file: the header, followed by `data` bytes that are all 0.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    SafetensorsFile::open(&path)
}

fn refused(bytes: &[u8]) -> String {
    let (e, seconds) =
        testing::seconds_of(|| open(bytes).expect_err("an invalid file must be refused"));
    assert!(seconds < 1.0, "{seconds} s");
    let text = format!("{e:?}");
    assert!(text.contains("x.safetensors"), "{text}");
    text
}

fn entry(name: &str, dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

fn header_of(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

#[test]
fn unusual_but_valid_files_are_read() {
    let two = header_of(&[
        r#""__metadata__":{"format":"pt","note":"é"}"#.into(),
        entry("b", "F32", "[2,2]", 8, 24),
        entry("a", "I64", "[]", 0, 8),
    ]);
    assert_eq!(
        open(&file(&format!("{two}   "), 24)).unwrap().names().collect::<Vec<_>>(),
        ["a", "b"],
        "tensors are sorted by data offset"
    );
    assert_eq!(open(&file("{}", 0)).unwrap().names().count(), 0);
    let zero = header_of(&[entry("none", "F32", "[0,7]", 4, 4), entry("all", "U8", "[4]", 0, 4)]);
    assert_eq!(open(&file(&zero, 4)).unwrap().read("none").unwrap().size(), [0, 7]);
}

#[test]
fn an_invalid_header_is_refused() {
    for (len, expected) in [
        (9u64, "has a header of 9 bytes, but only 4 bytes follow"),
        (u64::MAX, "has a header of 18446744073709551615"),
        (1 << 62, "has a header of"),
    ] {
        let text = refused(&[&len.to_le_bytes()[..], b"{}  "].concat());
        assert!(text.contains(expected), "{text}");
    }
    assert!(refused(b"{}").contains("it must have at least 8 bytes, got 2"));
    for header in [
        "",
        "x",
        "[]",
        "7",
        "{",
        r#"{"a":7}"#,
        r#"{"a":{}}"#,
        r#"{"a":{"dtype":"F32"}}"#,
        "{}{}",
        "\u{0}",
    ] {
        assert!(refused(&file(header, 0)).contains("its header is"), "{header}");
    }
    let mut bytes = file(&header_of(&[entry("aa", "F32", "[1]", 0, 4)]), 4);
    bytes[10] = 0xff;
    assert!(refused(&bytes).contains("its header is"), "a name that is not UTF-8 must be refused");
}

#[test]
fn errors_name_the_invalid_tensor() {
    let one = |dtype: &str, shape: &str, from, to| {
        refused(&file(
            &header_of(&[entry("good", "F32", "[2]", 0, 8), entry("bad", dtype, shape, from, to)]),
            16,
        ))
    };
    for (text, expected) in [
        (
            one("F32", "[2]", 8, 1 << 40),
            "tensor `bad` ends at byte 1099511627776, but there are only 16 bytes of data",
        ),
        (one("F32", "[2]", u64::MAX - 7, u64::MAX), "tensor `bad` ends at byte 184467"),
        (one("F32", "[3]", 8, 16), "takes 12 bytes, but its offsets are 8 and 16"),
        (one("F32", "[2]", 16, 8), "its offsets are 16 and 8"),
        (one("F32", "[4294967296,4294967296,4294967296]", 8, 16), "which is too large"),
        (one("F32", "[18446744073709551615]", 8, 16), "which is too large"),
        (one("F32", "[1,1,1,1,1,1,1,1,2]", 8, 16), "more than 8 dimensions"),
        (one("F32", "[-1]", 8, 16), "invalid at tensor `bad`"),
        (one("F32", "[1.5]", 8, 16), "invalid at tensor `bad`"),
        (one("F32", "\"2\"", 8, 16), "invalid at tensor `bad`"),
        (one("F99", "[2]", 8, 16), "unsupported type F99"),
        (one("F32", "[2]", 0, 8), "tensors `bad` and `good` overlap"),
        (one("F32", "[1]", 12, 16), "4 bytes before tensor `bad` do not belong to any tensor"),
        (one("F32", "[1]", 8, 12), "last 4 bytes do not belong to any tensor"),
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let twice = refused(&file(
        &header_of(&[entry("a", "F32", "[1]", 0, 4), entry("a", "F32", "[1]", 0, 4)]),
        4,
    ));
    assert!(twice.contains("duplicate tensor `a`"), "{twice}");
}

#[test]
fn a_malicious_header_uses_little_time_and_memory() {
    let deep = format!("{}{}", r#"{"a":"#, "[".repeat(1 << 20));
    assert!(refused(&file(&deep, 0)).contains("tensor `a`"));
    let wide = format!(
        r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#,
        "1,".repeat(1 << 20)
    );
    assert!(refused(&file(&wide, 4)).contains("more than 8 dimensions"));
    let long = format!(r#"{{"{}":7}}"#, "a".repeat(1 << 20));
    assert!(refused(&file(&long, 4)).len() < 1000, "a long name is shortened in the message");
    let mut many = String::from("{");
    (0..140_000).for_each(|i| {
        many.push_str(&format!(
            "{}{}",
            if i == 0 { "" } else { "," },
            entry(&i.to_string(), "U8", "[0]", 0, 0)
        ))
    });
    assert!(refused(&file(&(many + "}"), 0)).contains("more than 131072 tensors"));
}

#[test]
fn a_tensor_of_several_slabs_is_read_correctly_in_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let x = Tensor::arange(5_000_001, (Kind::Float, Device::Cpu)) / 77.0 - 1000.0;
    let all: Vec<(String, Tensor)> =
        [Kind::Float, Kind::BFloat16, Kind::Half].map(|k| (format!("{k:?}"), x.to_kind(k))).into();
    write_safetensors(&path, &all).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    for (name, tensor) in &all {
        assert!(file.read(name).unwrap().equal(tensor), "{name}");
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            assert!(
                file.read_as(name, kind, Device::Cpu).unwrap().equal(&tensor.to_kind(kind)),
                "{name} as {kind:?}"
            );
        }
    }
}

#[test]
fn an_invalid_index_or_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_safetensors(&at("m.safetensors"), &[("a".into(), Tensor::from(1f32))]).unwrap();
    std::fs::write(at("config.json"), "{}").unwrap();
    let with = |index: &str| {
        std::fs::write(at("model.safetensors.index.json"), index).unwrap();
        format!("{:?}", ModelFiles::open(dir.path()).unwrap_err())
    };
    for (index, expected) in [
        ("", "not valid JSON"),
        ("7", "no `weight_map`"),
        (r#"{"weight_map": ["m.safetensors"]}"#, "no `weight_map`"),
        (r#"{"weight_map": {"a": null}}"#, "does not specify a file for tensor `a`"),
        (r#"{"weight_map": {"a": "../m.safetensors"}}"#, "must refer to a file in the same folder"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "must refer to a file in the same folder"),
        (r#"{"weight_map": {"a": ".."}}"#, "must refer to a file in the same folder"),
        (r#"{"weight_map": {"a": ""}}"#, "must refer to a file in the same folder"),
        (r#"{"weight_map": {"a": "config.json"}}"#, "not a valid safetensors file"),
        (r#"{"weight_map": {"a": "n.safetensors"}}"#, "is missing"),
        (r#"{"weight_map": {"b": "m.safetensors"}}"#, "does not contain tensor `b`"),
    ] {
        let text = with(index);
        assert!(text.contains(expected), "{index}: {text}");
    }
    std::fs::File::create(at("config.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(with("{}").contains("is too large ("));
    std::fs::remove_file(at("config.json")).unwrap();
    std::fs::create_dir(at("config.json")).unwrap();
    assert!(with("{}").contains("is not a file"));
}

/// Reads every tensor of the file. A file that cannot be opened is ignored.
fn use_all(path: &Path) {
    if let Ok(all) = read_safetensors(path) {
        assert!(all.values().all(Tensor::defined));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_corrupted_file_never_causes_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let header = header_of(&[
            r#""__metadata__":{"format":"pt"}"#.into(),
            entry("a", "F32", "[2,3]", 0, 24),
            entry("b", "BF16", "[4]", 24, 32),
        ]);
        let mut bytes = file(&header, 32);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        use_all(&path);
    }
}
