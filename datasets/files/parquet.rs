//! Reads parquet files row by row. Arrow would be faster, but preference data is too small to
//! justify the dependency.

use std::collections::HashSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::{Compression, ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, reader::RowIter};
use parquet::schema::types::{Type, TypePtr};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Map, Number, Value};
use reprpo_plugin::tracing;

use super::flaws::{Flaw, LostValue, Step};
use super::place::Place;
use super::row::{Columns, Row};
use super::{input, pages, sharegpt};

/// A parquet file whose footer and columns have been checked.
#[derive(Clone, Debug)]
pub struct Table {
    path: PathBuf,
    wanted: Vec<String>,
    texts: Columns,
    rows: usize,
    /// True if a column of the pair contains lists of answers.
    has_answers: bool,
}

impl Table {
    /// Reads the footer and checks that the file has the columns of a pair and the `extra` columns.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, is not a complete parquet file, or lacks a column.
    pub fn open(path: &Path, columns: &Columns, extra: &[&str]) -> Result<Self> {
        let reader = footer(path)?;
        let cannot = || format!("cannot use `{}`", path.display());
        let prompt =
            columns.find(root(&reader).get_fields().iter().map(|f| f.name())).within(cannot)?;
        let there: Vec<&str> = root(&reader).get_fields().iter().map(|f| f.name()).collect();
        let template_columns = template_columns(&reader, columns).within(cannot)?;
        let cluster = columns.cluster_column(there.iter().copied()).within(cannot)?;
        // `example_id` is optional, so ignore it if its type is not supported.
        let cluster = cluster.filter(|name| columns.cluster.is_some() || is_read(&reader, name));
        let pair = prompt.into_iter().chain([columns.chosen.as_str(), columns.rejected.as_str()]);
        let wanted = pair
            .chain(template_columns)
            .chain(extra.iter().copied())
            .chain(cluster)
            .chain(sharegpt::columns(|name| there.contains(&name), columns));
        let mut known = HashSet::new();
        let wanted: Vec<String> =
            wanted.filter(|name| known.insert(*name)).map(str::to_owned).collect();
        let left_out = projection(&reader, &wanted, columns).within(cannot)?.1;
        if !left_out.is_empty() {
            let fields =
                left_out.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                "skipping fields of `{}` whose types JSON cannot represent: {fields}",
                path.display()
            );
        }
        let mut rows = 0;
        for group in reader.metadata().row_groups() {
            let counted = usize::try_from(group.num_rows()).ok();
            // A column without lists has one value per row. If the numbers of values and rows
            // differ, the file is damaged.
            let agrees = group.columns().iter().all(|c| {
                c.column_descr().max_rep_level() > 0
                    || Some(c.num_values()) == Some(group.num_rows())
            });
            for chunk in group.columns().iter().filter(|c| {
                c.column_path().parts().first().is_some_and(|name| wanted.contains(name))
            }) {
                check_compression(chunk.compression()).within(cannot)?;
                let (start, length) = guarded(path, || Ok(chunk.byte_range()))?;
                let file =
                    File::open(path).within(|| format!("cannot open `{}`", path.display()))?;
                let found = pages::too_large(file, start, start.saturating_add(length))
                    .within(|| format!("cannot read `{}`", path.display()))?;
                if let Some(size) = found {
                    return Err(damaged(
                        path,
                        format!(
                            "one of its pages declares a decompressed size of {size} bytes, but \
                            the limit is {}",
                            pages::LARGEST
                        ),
                    ));
                }
            }
            rows += counted.filter(|_| agrees).ok_or_else(|| {
                damaged(path, "the row counts in the footer and in the columns differ")
            })?;
        }
        let has_answers = [&columns.chosen, &columns.rejected].iter().any(|name| {
            root(&reader)
                .get_fields()
                .iter()
                .any(|f| f.name() == name.as_str() && is_list_of_answers(f))
        });
        Ok(Self { path: path.to_owned(), wanted, texts: columns.clone(), rows, has_answers })
    }

    /// Number of pairs according to the footer; `None` if a row may have several pairs.
    pub fn pairs(&self) -> Option<usize> {
        (!self.has_answers).then_some(self.rows)
    }

    /// Returns the rows in order. If a row cannot be decoded, the iterator yields an error and
    /// ends.
    ///
    /// # Errors
    /// Fails if the file was removed or changed after it was opened.
    pub fn read(&self) -> Result<impl Iterator<Item = Result<(Place, Row)>> + use<>> {
        let reader = footer(&self.path)?;
        let (projection, _) = projection(&reader, &self.wanted, &self.texts)
            .within(|| format!("cannot use `{}`", self.path.display()))?;
        let mut rows = guarded(&self.path, || {
            RowIter::from_file_into(Box::new(reader)).project(Some(projection))
        })?;
        let (path, mut count, mut ended) = (self.path.clone(), 0, false);
        Ok(std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let row = guarded(&path, || rows.next().transpose())
                .transpose()?
                .and_then(|row| json_row(row).map_err(|e| damaged(&path, e)));
            ended = row.is_err();
            count += 1;
            Some(row.map(|row| (Place::Row(count), row)))
        }))
    }
}

/// Returns the names of the file's columns that are passed to the chat template.
///
/// # Errors
/// Fails if the file has a column for images, audio or video. Such a column is accepted if the
/// statistics in the footer show that all values are null.
fn template_columns(
    reader: &SerializedFileReader<File>,
    columns: &Columns,
) -> Result<Vec<&'static str>> {
    let fields = root(reader).get_fields();
    let there = |name: &&str| {
        fields.iter().any(|f| f.name() == *name) && !columns.names().any(|column| column == *name)
    };
    for name in Message::OTHER_MODALITIES.into_iter().filter(there) {
        let chunks = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
        let mut chunks = chunks
            .filter(|chunk| chunk.column_path().parts().first().is_some_and(|part| part == name));
        let null =
            |nulls: u64, values: i64| i64::try_from(nulls).is_ok_and(|nulls| nulls == values);
        if !chunks.all(|chunk| {
            chunk
                .statistics()
                .and_then(|s| s.null_count_opt())
                .is_some_and(|nulls| null(nulls, chunk.num_values()))
        }) {
            return Err(Message::not_text(name));
        }
    }
    Ok(TemplateArgs::COLUMNS.into_iter().filter(there).collect())
}

/// True if values of the column can be read.
fn is_read(reader: &SerializedFileReader<File>, column: &str) -> bool {
    let field = root(reader).get_fields().iter().find(|field| field.name() == column);
    field.is_some_and(|field| plain(field, column, &mut Vec::new()).is_some())
}

fn root(reader: &SerializedFileReader<File>) -> &Type {
    reader.metadata().file_metadata().schema_descr().root_schema()
}

fn footer(path: &Path) -> Result<SerializedFileReader<File>> {
    let mut file = File::open(path).within(|| format!("cannot open `{}`", path.display()))?;
    input::head(&mut file, path)?;
    guarded(path, || SerializedFileReader::new(file))
}

fn check_compression(compression: Compression) -> Result<()> {
    match compression {
        Compression::UNCOMPRESSED
        | Compression::SNAPPY
        | Compression::ZSTD(_)
        | Compression::GZIP(_) => Ok(()),
        other => {
            let name = other.to_string();
            let name = name.split('(').next().unwrap_or_default();
            Err(Error::new(format!(
                "its columns are compressed with {name}, which is not supported"
            ))
            .hint("rewrite the file with zstd, snappy or gzip compression, or without compression"))
        }
    }
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(format!("`{}` is not a complete parquet file", path.display()))
        .because(Error::new(why.to_string()))
        .hint("copy or download the file again; it may be truncated")
}

/// Calls the parquet reader and converts panics to errors. A damaged file can make the reader
/// panic.
fn guarded<T>(path: &Path, f: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => done.map_err(|e| damaged(path, e)),
        Err(_) => Err(damaged(path, "its contents are inconsistent")),
    }
}

/// Restricts the schema to the wanted columns, so that only these are decoded. Fields whose types
/// JSON cannot represent are removed. Returns the schema, and the names of the removed fields.
fn projection(
    reader: &SerializedFileReader<File>,
    wanted: &[String],
    texts: &Columns,
) -> Result<(Type, Vec<String>)> {
    let root = root(reader);
    let mut left_out = Vec::new();
    let fields = wanted.iter().map(|column| {
        let field = root.get_fields().iter().find(|f| f.name() == column);
        let field = field.ok_or_else(|| Error::new(format!("there is no column `{column}`")))?;
        if texts.names().any(|name| name == column) && !holds_text(field) {
            let is = if field.is_primitive() {
                format!("of type {}", type_name(field))
            } else {
                "nested".to_owned()
            };
            return Err(Error::new(format!("column `{column}` is {is}, not text"))
                .hint("write it as a string, or as a list of {role, content}"));
        }
        let none = || {
            Error::new(format!(
                "column `{column}` is of type {}, which is not supported",
                type_name(field)
            ))
        };
        plain(field, column, &mut left_out).ok_or_else(none)
    });
    let fields: Vec<TypePtr> = fields.collect::<Result<_>>()?;
    let root = Type::group_type_builder(root.name())
        .with_fields(fields)
        .build()
        .map_err(|e| Error::internal(e.to_string()))?;
    Ok((root, left_out))
}

fn type_name(field: &Type) -> String {
    match (field.is_primitive(), field.get_basic_info().converted_type()) {
        (true, ConvertedType::NONE) => field.get_physical_type().to_string(),
        (false, ConvertedType::NONE) => "struct".to_owned(),
        (_, other) => other.to_string(),
    }
}

fn holds_text(field: &TypePtr) -> bool {
    let converted = field.get_basic_info().converted_type();
    if field.is_primitive() {
        let text = matches!(
            converted,
            ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
        );
        return text && field.get_physical_type() == Physical::BYTE_ARRAY;
    }
    // A struct with the fields `role` and `content`, or `from` and `value` as in ShareGPT, is a
    // conversation with a single message.
    let has = |name: &str| field.get_fields().iter().any(|f| f.name() == name);
    converted == ConvertedType::LIST
        || (has("from") && has("value"))
        || (has("role") && has("content"))
}

/// True if a column contains lists of texts or lists of lists, and not lists of messages.
fn is_list_of_answers(field: &TypePtr) -> bool {
    if field.is_primitive() || field.get_basic_info().converted_type() != ConvertedType::LIST {
        return false;
    }
    // The group of a list has one repeated field. In files of today, it is a group with one field,
    // the element; in older files, it is the element.
    let Some(repeated) = field.get_fields().first() else { return false };
    let element = match repeated.is_primitive() {
        true => repeated,
        false if repeated.get_fields().len() == 1 => &repeated.get_fields()[0],
        false => repeated,
    };
    element.is_primitive() || element.get_basic_info().converted_type() == ConvertedType::LIST
}

/// Removes the fields of a column whose types JSON cannot represent, and adds their names to
/// `left_out`. Returns `None` if no field is left.
fn plain(field: &TypePtr, place: &str, left_out: &mut Vec<String>) -> Option<TypePtr> {
    let info = field.get_basic_info();
    if field.is_primitive() {
        let kept = is_plain(field);
        if !kept {
            left_out.push(place.to_owned());
        }
        return kept.then(|| field.clone());
    }
    // Parquet wraps the elements of lists and maps in groups with fixed names, such as `list`.
    // These names are not part of a field's path.
    let within_a_list = matches!(
        info.converted_type(),
        ConvertedType::LIST | ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE
    );
    let inner = field.get_fields();
    let fields: Vec<TypePtr> = inner
        .iter()
        .filter_map(|f| match (within_a_list, f.is_primitive()) {
            (true, false) => {
                let deeper: Vec<TypePtr> =
                    f.get_fields().iter().filter_map(|f| plain_below(f, place, left_out)).collect();
                rebuilt(f, deeper)
            }
            (true, true) => plain(f, place, left_out),
            (false, _) => plain(f, &format!("{place}.{}", f.name()), left_out),
        })
        .collect();
    // A map cannot be read without its keys or its values, so omit it entirely.
    if within_a_list
        && info.converted_type() != ConvertedType::LIST
        && leaves(&fields) != leaves(inner)
    {
        left_out.push(place.to_owned());
        return None;
    }
    rebuilt(field, fields)
}

/// Applies [`plain`] to a field in the inner group of a list or a map. Standard names such as
/// `element`, `key` and `value` are left out of the path.
fn plain_below(field: &TypePtr, place: &str, left_out: &mut Vec<String>) -> Option<TypePtr> {
    let named =
        !matches!(field.name(), "element" | "item" | "array" | "key" | "value" | "array_element");
    if named {
        plain(field, &format!("{place}.{}", field.name()), left_out)
    } else {
        plain(field, place, left_out)
    }
}

/// Counts the leaf columns.
fn leaves(fields: &[TypePtr]) -> usize {
    fields.iter().map(|f| if f.is_primitive() { 1 } else { leaves(f.get_fields()) }).sum()
}

/// Rebuilds a group type with the remaining fields. Returns `None` if no fields remain.
fn rebuilt(group: &TypePtr, fields: Vec<TypePtr>) -> Option<TypePtr> {
    if fields.is_empty() {
        return None;
    }
    let info = group.get_basic_info();
    let builder = Type::group_type_builder(info.name())
        .with_converted_type(info.converted_type())
        .with_logical_type(info.logical_type_ref().cloned());
    let builder =
        if info.has_repetition() { builder.with_repetition(info.repetition()) } else { builder };
    builder.with_fields(fields).build().ok().map(TypePtr::new)
}

/// Returns true if JSON can represent the type of this column.
fn is_plain(field: &Type) -> bool {
    let info = field.get_basic_info();
    let time = matches!(
        info.logical_type_ref(),
        Some(
            LogicalType::Timestamp(_)
                | LogicalType::Time(_)
                | LogicalType::Date
                | LogicalType::Decimal(_)
        )
    );
    let half = matches!(info.logical_type_ref(), Some(LogicalType::Float16));
    use ConvertedType as C;
    let converted = info.converted_type();
    match field.get_physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::INT32 => {
            matches!(
                converted,
                C::NONE | C::INT_8 | C::INT_16 | C::INT_32 | C::UINT_8 | C::UINT_16 | C::UINT_32
            ) && !time
        }
        Physical::INT64 => matches!(converted, C::NONE | C::INT_64 | C::UINT_64) && !time,
        Physical::BYTE_ARRAY => matches!(converted, C::NONE | C::UTF8 | C::ENUM | C::JSON) && !time,
        Physical::FIXED_LEN_BYTE_ARRAY => half,
        Physical::INT96 => false,
    }
}

/// Converts the values of a row to JSON, and records those that JSON cannot represent.
struct Cells {
    path: Vec<Step>,
    flaws: Vec<Flaw>,
}

fn json_row(row: parquet::record::Row) -> Result<Row, String> {
    let mut cells = Cells { path: Vec::new(), flaws: Vec::new() };
    let row = cells.fields(row)?;
    Ok(Row::new(row, cells.flaws))
}

impl Cells {
    fn fields(&mut self, row: parquet::record::Row) -> Result<Map<String, Value>, String> {
        row.into_columns()
            .into_iter()
            .map(|(name, field)| Ok((name.clone(), self.within(Step::Key(name), field)?)))
            .collect()
    }

    fn within(&mut self, step: Step, field: Field) -> Result<Value, String> {
        self.path.push(step);
        let value = self.value(field);
        self.path.pop();
        value
    }

    fn lost(&mut self, value: LostValue) -> Value {
        self.flaws.push(Flaw { path: self.path.clone(), value });
        Value::Null
    }

    fn number(&mut self, x: f64) -> Value {
        let word = if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        Number::from_f64(x)
            .map_or_else(|| self.lost(LostValue::NotFinite(word.to_owned())), Value::Number)
    }

    fn value(&mut self, field: Field) -> Result<Value, String> {
        Ok(match field {
            Field::Null => Value::Null,
            Field::Bool(x) => x.into(),
            Field::Byte(x) => x.into(),
            Field::Short(x) => x.into(),
            Field::Int(x) => x.into(),
            Field::Long(x) => x.into(),
            Field::UByte(x) => x.into(),
            Field::UShort(x) => x.into(),
            Field::UInt(x) => x.into(),
            Field::ULong(x) => x.into(),
            Field::Float16(x) => self.number(x.into()),
            Field::Float(x) => self.number(x.into()),
            Field::Double(x) => self.number(x),
            Field::Str(text) => text.into(),
            Field::Bytes(bytes) => match String::from_utf8(bytes.data().to_vec()) {
                Ok(text) => text.into(),
                Err(_) => self.lost(LostValue::Bytes),
            },
            Field::ListInternal(list) => {
                let items = list.elements().iter().cloned().enumerate();
                items
                    .map(|(i, item)| self.within(Step::Index(i), item))
                    .collect::<Result<Vec<_>, _>>()?
                    .into()
            }
            Field::MapInternal(map) => {
                let mut entries = Map::new();
                for (key, value) in map.entries() {
                    let key = match self.value(key.clone())? {
                        Value::String(key) => key,
                        other => other.to_string(),
                    };
                    let value = self.within(Step::Key(key.clone()), value.clone())?;
                    entries.insert(key, value);
                }
                Value::Object(entries)
            }
            Field::Group(row) => Value::Object(self.fields(row)?),
            other => return Err(format!("`{other}` is of a type that is not supported")),
        })
    }
}
