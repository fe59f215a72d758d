//! Parquet, by row and without arrow: preference pairs are few and short, and nothing here is worth its weight.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::{ConvertedType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, reader::RowIter};
use parquet::schema::types::{Type, TypePtr};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Map, Value};

use super::pages;
use super::place::Place;
use super::row::{Columns, Row};

/// A parquet file whose footer has been read and whose columns fit.
#[derive(Clone, Debug)]
pub struct Table {
    path: PathBuf,
    wanted: Vec<String>,
    texts: Columns,
    rows: usize,
}

impl Table {
    /// Reads the footer; `extra` are columns that are wanted besides a pair's.
    ///
    /// # Errors
    /// Where the file cannot be opened, is no whole parquet file, or lacks a column.
    pub fn open(path: &Path, columns: &Columns, extra: &[&str]) -> Result<Self> {
        let reader = footer(path)?;
        let cannot = || format!("cannot use `{}`", path.display());
        let prompt = columns.find(root(&reader).get_fields().iter().map(|f| f.name())).within(cannot)?;
        let beside = beside(&reader, columns).within(cannot)?;
        let wanted = prompt.into_iter().chain([columns.chosen.as_str(), columns.rejected.as_str()]).chain(beside).chain(extra.iter().copied());
        let wanted: Vec<String> = wanted.map(str::to_owned).collect();
        projection(&reader, &wanted, columns).within(cannot)?;
        let mut rows = 0;
        for group in reader.metadata().row_groups() {
            let counted = usize::try_from(group.num_rows()).ok();
            // Texts are flat columns: a chunk that holds another number of values than its group has rows was damaged.
            let agrees = group.columns().iter().all(|c| c.column_descr().max_rep_level() > 0 || Some(c.num_values()) == Some(group.num_rows()));
            for chunk in group.columns().iter().filter(|c| c.column_path().parts().first().is_some_and(|name| wanted.contains(name))) {
                let (start, length) = guarded(path, || Ok(chunk.byte_range()))?;
                let file = File::open(path).within(|| format!("cannot open `{}`", path.display()))?;
                let found = pages::too_large(file, start, start.saturating_add(length)).within(|| format!("cannot read `{}`", path.display()))?;
                if let Some(size) = found {
                    return Err(damaged(path, format!("a page of it says that it unpacks to {size} bytes, and {} are read", pages::LARGEST)));
                }
            }
            rows += counted.filter(|_| agrees).ok_or_else(|| damaged(path, "its footer counts rows that its columns do not have"))?;
        }
        Ok(Self { path: path.to_owned(), wanted, texts: columns.clone(), rows })
    }

    /// How many rows the footer counts.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The rows in order; after an error it ends.
    ///
    /// # Errors
    /// Where the file has gone since it was opened; each row where its bytes do not decode.
    pub fn read(&self) -> Result<impl Iterator<Item = Result<(Place, Row)>> + use<>> {
        let reader = footer(&self.path)?;
        let projection = projection(&reader, &self.wanted, &self.texts).within(|| format!("cannot use `{}`", self.path.display()))?;
        let mut rows = guarded(&self.path, || RowIter::from_file_into(Box::new(reader)).project(Some(projection)))?;
        let (path, mut count, mut ended) = (self.path.clone(), 0, false);
        Ok(std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let row = guarded(&path, || rows.next().transpose()).transpose()?.and_then(|row| json_row(row).map_err(|e| damaged(&path, e)));
            ended = row.is_err();
            count += 1;
            Some(row.map(|row| (Place::Row(count), row)))
        }))
    }
}

/// The columns with tools and template variables, if they are there.
///
/// # Errors
/// Fails if a column holds images, audio or video: they are not read, so the column counts if any value is not null.
fn beside(reader: &SerializedFileReader<File>, columns: &Columns) -> Result<Vec<&'static str>> {
    let fields = root(reader).get_fields();
    let there = |name: &&str| fields.iter().any(|f| f.name() == *name) && !columns.names().any(|column| column == *name);
    for name in Message::OTHER_MODALITIES.into_iter().filter(there) {
        let chunks = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
        let mut chunks = chunks.filter(|chunk| chunk.column_path().parts().first().is_some_and(|part| part == name));
        let null = |nulls: u64, values: i64| i64::try_from(nulls).is_ok_and(|nulls| nulls == values);
        if !chunks.all(|chunk| chunk.statistics().and_then(|s| s.null_count_opt()).is_some_and(|nulls| null(nulls, chunk.num_values()))) {
            return Err(Message::not_text(name));
        }
    }
    Ok(TemplateArgs::COLUMNS.into_iter().filter(there).collect())
}

fn root(reader: &SerializedFileReader<File>) -> &Type {
    reader.metadata().file_metadata().schema_descr().root_schema()
}

fn footer(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).within(|| format!("cannot open `{}`", path.display()))?;
    guarded(path, || SerializedFileReader::new(file))
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(format!("`{}` is no whole parquet file", path.display()))
        .because(Error::new(why.to_string()))
        .hint("it may have been cut short while it was copied; fetch it again")
}

/// The reader asserts in places what a damaged file can break.
fn guarded<T>(path: &Path, f: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => done.map_err(|e| damaged(path, e)),
        Err(_) => Err(damaged(path, "its bytes contradict each other")),
    }
}

/// The schema with the wanted columns alone, so that no other is decoded.
fn projection(reader: &SerializedFileReader<File>, wanted: &[String], texts: &Columns) -> Result<Type> {
    let root = root(reader);
    let fields = wanted.iter().map(|column| {
        let field = root.get_fields().iter().find(|f| f.name() == column);
        let field = field.ok_or_else(|| Error::new(format!("there is no column `{column}`")))?;
        if texts.names().any(|name| name == column) && !holds_text(field) {
            let is = if field.is_primitive() { format!("of type {}", field.get_physical_type()) } else { "nested".to_owned() };
            return Err(Error::new(format!("column `{column}` is {is}, not text")).hint("a text is a string, or a list of {role, content}"));
        }
        Ok(field.clone())
    });
    let fields: Vec<TypePtr> = fields.collect::<Result<_>>()?;
    Type::group_type_builder(root.name()).with_fields(fields).build().map_err(|e| Error::internal(e.to_string()))
}

fn holds_text(field: &TypePtr) -> bool {
    if field.is_primitive() { field.get_physical_type() == Physical::BYTE_ARRAY } else { field.get_basic_info().converted_type() == ConvertedType::LIST }
}

fn json_row(row: parquet::record::Row) -> Result<Row, String> {
    row.into_columns().into_iter().map(|(name, field)| Ok((name, json(field)?))).collect()
}

fn json(field: Field) -> Result<Value, String> {
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
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).map_err(|_| "a text is not UTF-8".to_owned())?.into(),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        Field::Group(row) => json_row(row)?.into_iter().collect::<Map<_, _>>().into(),
        other => return Err(format!("`{other}` is neither text nor a whole number")),
    })
}
