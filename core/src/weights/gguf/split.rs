//! Opens models that llama.cpp's gguf-split has split into several files, such as
//! `NAME-00001-of-00003.gguf`.
//!
//! Each part is a valid GGUF file with some of the tensors. The first part contains the metadata of
//! the whole model.

use std::path::{Path, PathBuf};

use super::part::Part;
use crate::error::{Error, Result};

/// Maximum number of parts. Part numbers in file names have five digits.
const MAX_PARTS: u64 = 99_999;

/// Opens a file. If it is a part of a split model, opens all parts and returns them in order.
///
/// # Errors
/// Fails in the same cases as [`Part::open`], and if a part is missing or belongs to a different
/// model.
pub fn open(path: &Path) -> Result<Vec<Part>> {
    let given = Part::open(path)?;
    let count = given.metadata.unsigned("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![given]);
    }
    let number = number_of(&given, path)?;
    let wrong = |what: String| {
        Error::new(format!("`{}` is part {number} of {count} of a model, {what}", path.display()))
    };
    if count > MAX_PARTS || number > count {
        return Err(wrong("which is not valid".into())
            .hint(format!("valid: up to {MAX_PARTS} parts, counted from 1")));
    }
    let Some(name) = PartName::of(path).filter(|n| n.number == number && n.count == count) else {
        return Err(wrong("but its name does not match".into())
            .hint(format!("rename it to `NAME-{number:05}-of-{count:05}.gguf`")));
    };
    let missing: Vec<String> = (1..=count)
        .map(|n| name.part(n))
        .filter(|p| !p.is_file())
        .map(|p| format!("`{}`", p.display()))
        .collect();
    if !missing.is_empty() {
        let named = missing.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        let more = if missing.len() > 4 {
            format!(" and {} more", missing.len() - 4)
        } else {
            String::new()
        };
        return Err(wrong(format!(
            "but {} missing: {named}{more}",
            if missing.len() == 1 { "one part is" } else { "some parts are" }
        ))
        .hint("put all parts into one folder with their original names"));
    }
    let mut given = Some(given);
    let mut parts = Vec::new();
    for n in 1..=count {
        let at = name.part(n);
        let part = match given.take_if(|_| n == number) {
            Some(part) => part,
            None => Part::open(&at)?,
        };
        let found = (number_of(&part, &at)?, part.metadata.unsigned("split.count")?.unwrap_or(1));
        if found != (n, count) {
            return Err(Error::new(format!(
                "`{}` is part {} of {} according to its metadata, but part {n} of {count} \
                according to its name",
                at.display(),
                found.0,
                found.1
            ))
            .hint("download the parts again; some were renamed or belong to different models"));
        }
        parts.push(part);
    }
    let there: usize = parts.iter().map(|p| p.tensors.len()).sum();
    if let Some(total) = parts[0].metadata.unsigned("split.tensors.count")?
        && total != there as u64
    {
        return Err(wrong(format!(
            "but the parts contain {there} tensors in total instead of {total}"
        ))
        .hint("download the parts again; they belong to different models"));
    }
    Ok(parts)
}

/// True if the file is part 2 or a later part of a split model, and part 1 exists.
pub fn is_later_part(path: &Path) -> bool {
    PartName::of(path).is_some_and(|n| n.number > 1 && n.part(1).is_file())
}

/// Returns the paths of all parts if `path` is named like a part of a split model. Otherwise,
/// returns only `path`.
pub fn names(path: &Path) -> Vec<PathBuf> {
    match PartName::of(path).filter(|n| n.count <= MAX_PARTS && (1..=n.count).contains(&n.number)) {
        Some(name) => (1..=name.count).map(|n| name.part(n)).collect(),
        None => vec![path.to_owned()],
    }
}

/// Returns the number of a part, counted from 1 as in file names. The metadata counts from 0.
fn number_of(part: &Part, path: &Path) -> Result<u64> {
    let number =
        part.metadata.unsigned("split.no")?.ok_or_else(|| part.metadata.missing("split.no"))?;
    number.checked_add(1).ok_or_else(|| {
        Error::new(format!("`split.no` in `{}` is {number}, which is too large", path.display()))
    })
}

/// The components of a part's path, such as `FOLDER/NAME-00002-of-00003.gguf`.
struct PartName {
    folder: PathBuf,
    name: String,
    number: u64,
    count: u64,
}

impl PartName {
    fn of(path: &Path) -> Option<Self> {
        let (rest, count) =
            path.file_name()?.to_str()?.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let five = |digits: &str| {
            (digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()))
                .then(|| digits.parse().ok())
                .flatten()
        };
        Some(Self {
            folder: path.parent()?.to_owned(),
            name: name.to_owned(),
            number: five(number)?,
            count: five(count)?,
        })
    }

    fn part(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{}-{number:05}-of-{:05}.gguf", self.name, self.count))
    }
}
