//! Writes parquet files for tests.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Type};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType,
    FloatType, Int32Type, Int64Type, Int96, Int96Type,
};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::SchemaDescriptor;

/// Name and values of a column.
pub enum Column<'a> {
    Text(&'a str, Vec<String>),
    Int(&'a str, Vec<i32>),
}

impl Column<'_> {
    fn declaration(&self) -> String {
        match self {
            Column::Text(name, _) => format!("optional binary {name} (STRING);"),
            Column::Int(name, _) => format!("required int32 {name};"),
        }
    }
}

/// Returns a string column called `name` with the values `name 0`, `name 1`, ….
pub fn numbered(name: &str, rows: usize) -> Column<'_> {
    Column::Text(name, (0..rows).map(|i| format!("{name} {i}")).collect())
}

/// Returns string columns for the prompt, the chosen completion and the rejected completion.
pub fn pair_columns(rows: usize) -> Vec<Column<'static>> {
    ["prompt", "chosen", "rejected"].map(|name| numbered(name, rows)).into()
}

/// Writes the columns to a file with one row group.
pub fn write(path: &Path, columns: &[Column<'_>], compression: Compression) {
    let schema = format!(
        "message schema {{ {} }}",
        columns.iter().map(Column::declaration).collect::<String>()
    );
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let mut target = group.next_column().unwrap().unwrap();
        match column {
            Column::Text(_, texts) => {
                let values: Vec<ByteArray> = texts.iter().map(|t| t.as_str().into()).collect();
                target
                    .typed::<ByteArrayType>()
                    .write_batch(&values, Some(&vec![1; values.len()]), None)
                    .unwrap();
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

/// Writes a file with one conversational pair. Prompt and completions are lists of
/// `{role, content}`. `extra` contains the names and values of additional string columns.
pub fn write_conversation(path: &Path, extra: &[(&str, &str)]) {
    let list = |name: &str| {
        format!(
            "optional group {name} (LIST) {{ repeated group list {{ optional group element {{ \
                optional binary content (STRING); optional binary role (STRING); }} }} }}"
        )
    };
    let texts: String =
        extra.iter().map(|(name, _)| format!("optional binary {name} (STRING);")).collect();
    let schema = format!(
        "message schema {{ {}{texts} }}",
        ["prompt", "chosen", "rejected"].map(list).concat()
    );
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (content, role) in [("Who?", "user"), ("You.", "assistant"), ("Me.", "assistant")] {
        for leaf in [content, role] {
            let mut target = group.next_column().unwrap().unwrap();
            target
                .typed::<ByteArrayType>()
                .write_batch(&[leaf.into()], Some(&[4]), Some(&[0]))
                .unwrap();
            target.close().unwrap();
        }
    }
    for (_, text) in extra {
        let mut target = group.next_column().unwrap().unwrap();
        target.typed::<ByteArrayType>().write_batch(&[(*text).into()], Some(&[1]), None).unwrap();
        target.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// Writes a file with one row. The value of each string column is its path. All other columns get
/// an arbitrary value.
pub fn write_columns(path: &Path, columns: &str) {
    write_row(path, columns, &|leaf| leaf.to_owned());
}

/// Writes a file with one row in ShareGPT's format: a system prompt, a prompt with one message, and
/// the two completions.
pub fn write_sharegpt(path: &Path, [prompt, chosen, rejected, system]: [&str; 4]) {
    let message = "optional binary from (STRING); optional binary value (STRING);";
    let columns = format!(
        "optional group conversations (LIST) {{ repeated group list {{ optional group element {{ \
            {message} }} }} }}
         optional group chosen {{ {message} }} optional group rejected {{ {message} }} optional \
         binary system (STRING);"
    );
    write_row(path, &columns, &|leaf| {
        let text = match leaf {
            "conversations.from" => "human",
            "conversations.value" => prompt,
            "chosen.value" => chosen,
            "rejected.value" => rejected,
            "system" => system,
            _ => "gpt",
        };
        text.to_owned()
    });
}

/// Writes a file with one conversational pair. The file also has columns and message fields of
/// every parquet type.
pub fn write_all_types(path: &Path) {
    let types = "optional double score; optional float half; optional int64 at (TIMESTAMP(MICROS, \
        true)); optional int64 ns (TIMESTAMP(NANOS, false));
        optional int64 ms (TIMESTAMP_MILLIS); optional int32 day (DATE); optional int32 time \
        (TIME(MILLIS, true)); optional int64 us (TIME_MICROS);
        optional int32 d32 (DECIMAL(5, 2)); optional int64 d64 (DECIMAL(10, 2)); optional binary \
        db (DECIMAL(20, 2));
        optional fixed_len_byte_array(16) df (DECIMAL(30, 2)); optional fixed_len_byte_array(12) \
        span (INTERVAL); optional int96 old;
        optional binary raw; optional binary bson (BSON); optional boolean flag; optional int32 \
        tiny (INTEGER(8, true)); optional int32 none (UNKNOWN);
        optional fixed_len_byte_array(16) id (UUID); optional fixed_len_byte_array(2) f16 \
        (FLOAT16); repeated int32 bare;
        optional group table (MAP) \
        { repeated group key_value { required binary key (STRING); optional int32 value; } }
        optional group times (MAP) \
        { repeated group key_value { required binary key (STRING); optional int32 value (DATE); } }
        optional group lists (LIST) \
        { repeated group list { optional group element (LIST) \
        { repeated group list { optional double element; } } } }
        optional group days (LIST) { repeated group list { optional int32 element (DATE); } }
        optional group deep \
        { optional group deeper { optional int32 day (DATE); } optional binary text (STRING); }";
    let list = |name: &str| {
        format!(
            "optional group {name} (LIST) {{ repeated group list {{ optional group element {{ \
                {types} optional binary content (STRING); optional binary role (STRING); }} }} }}"
        )
    };
    let columns = format!("{types} {} {} {}", list("prompt"), list("chosen"), list("rejected"));
    write_row(path, &columns, &|leaf| {
        let text = match leaf {
            "prompt.role" => "user",
            "prompt.content" => "Who?",
            "chosen.content" => "You.",
            "rejected.content" => "Me.",
            _ if leaf.ends_with(".role") => "assistant",
            other => other,
        };
        text.to_owned()
    });
}

/// Writes a file with one row and one value in every column. `text` returns the value of a string
/// column. The argument of `text` is the path of the column, for example `chosen.content`.
fn write_row(path: &Path, columns: &str, text: &dyn Fn(&str) -> String) {
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {columns} }}")).unwrap());
    let leaves = SchemaDescriptor::new(schema.clone());
    let mut writer =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for leaf in leaves.columns() {
        let mut target = group.next_column().unwrap().unwrap();
        let (definition, repetition) = ([leaf.max_def_level()], [0]);
        let levels = (
            (leaf.max_def_level() > 0).then_some(&definition[..]),
            (leaf.max_rep_level() > 0).then_some(&repetition[..]),
        );
        let name: Vec<&str> = leaf
            .path()
            .parts()
            .iter()
            .map(String::as_str)
            .filter(|part| !["list", "element"].contains(part))
            .collect();
        let is_text = leaf.converted_type() == ConvertedType::UTF8;
        let bytes: ByteArray = if is_text {
            text(&name.join(".")).as_str().into()
        } else {
            vec![0xff, 0xfe, 1].into()
        };
        let length = usize::try_from(leaf.type_length()).unwrap_or_default();
        match leaf.physical_type() {
            Type::BOOLEAN => target.typed::<BoolType>().write_batch(&[true], levels.0, levels.1),
            Type::INT32 => target.typed::<Int32Type>().write_batch(&[7], levels.0, levels.1),
            Type::INT64 => target.typed::<Int64Type>().write_batch(&[i64::MAX], levels.0, levels.1),
            Type::INT96 => target.typed::<Int96Type>().write_batch(
                &[Int96::from(vec![1, 2, 3])],
                levels.0,
                levels.1,
            ),
            Type::FLOAT => target.typed::<FloatType>().write_batch(&[f32::NAN], levels.0, levels.1),
            Type::DOUBLE => target.typed::<DoubleType>().write_batch(&[0.5], levels.0, levels.1),
            Type::BYTE_ARRAY => {
                target.typed::<ByteArrayType>().write_batch(&[bytes], levels.0, levels.1)
            }
            Type::FIXED_LEN_BYTE_ARRAY => {
                let value: FixedLenByteArray = ByteArray::from(vec![1; length]).into();
                target.typed::<FixedLenByteArrayType>().write_batch(&[value], levels.0, levels.1)
            }
        }
        .unwrap();
        target.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}
