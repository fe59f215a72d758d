//! Parquet files made for a test.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// One column's name and values.
pub enum Column<'a> {
    Text(&'a str, Vec<String>),
    Int(&'a str, Vec<i32>),
}

impl Column<'_> {
    fn declared(&self) -> String {
        match self {
            Column::Text(name, _) => format!("optional binary {name} (STRING);"),
            Column::Int(name, _) => format!("required int32 {name};"),
        }
    }
}

/// Texts `name 0`, `name 1`, … under `name`.
pub fn numbered(name: &str, rows: usize) -> Column<'_> {
    Column::Text(name, (0..rows).map(|i| format!("{name} {i}")).collect())
}

/// The three columns of a pair.
pub fn pair_columns(rows: usize) -> Vec<Column<'static>> {
    ["prompt", "chosen", "rejected"].map(|name| numbered(name, rows)).into()
}

/// Writes them as one row group.
pub fn write(path: &Path, columns: &[Column<'_>], compression: Compression) {
    let schema = format!("message schema {{ {} }}", columns.iter().map(Column::declared).collect::<String>());
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let mut target = group.next_column().unwrap().unwrap();
        match column {
            Column::Text(_, texts) => {
                let values: Vec<ByteArray> = texts.iter().map(|t| t.as_str().into()).collect();
                target.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; values.len()]), None).unwrap();
            }
            Column::Int(_, values) => {
                target.typed::<Int32Type>().write_batch(values, None, None).unwrap();
            }
        }
        target.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// Writes a file with one conversational pair: each column a list of `{role, content}`. Beside it are columns of text.
pub fn write_conversation(path: &Path, beside: &[(&str, &str)]) {
    let list = |name: &str| {
        format!(
            "optional group {name} (LIST) {{ repeated group list {{ optional group element {{ optional binary content (STRING); optional binary role (STRING); }} }} }}"
        )
    };
    let texts: String = beside.iter().map(|(name, _)| format!("optional binary {name} (STRING);")).collect();
    let schema = format!("message schema {{ {}{texts} }}", ["prompt", "chosen", "rejected"].map(list).concat());
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (content, role) in [("Who?", "user"), ("You.", "assistant"), ("Me.", "assistant")] {
        for leaf in [content, role] {
            let mut target = group.next_column().unwrap().unwrap();
            target.typed::<ByteArrayType>().write_batch(&[leaf.into()], Some(&[4]), Some(&[0])).unwrap();
            target.close().unwrap();
        }
    }
    for (_, text) in beside {
        let mut target = group.next_column().unwrap().unwrap();
        target.typed::<ByteArrayType>().write_batch(&[(*text).into()], Some(&[1]), None).unwrap();
        target.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}
