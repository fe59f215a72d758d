//! Models that llama.cpp's gguf-split cut into several files: `NAME-00001-of-00003.gguf` and on.
//!
//! Every part is a GGUF file of its own with some of the tensors; the first one has the metadata of
//! all.

use std::path::{Path, PathBuf};

use super::part::Part;
use crate::error::{Error, Result};

const MOST_PARTS: u64 = 99_999;

/// Opens a file, and where it is a part of a model the other parts too: in their order, the first
/// one first.
///
/// # Errors
/// As [`Part::open`]; parts that are missing, or that do not belong together.
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
    if count > MOST_PARTS || number > count {
        return Err(wrong("which cannot be".into())
            .hint(format!("valid: up to {MOST_PARTS} parts, counted from 1")));
    }
    let Some(name) = PartName::of(path).filter(|n| n.number == number && n.count == count) else {
        return Err(wrong("and its name does not say so".into()).hint(format!(
            "the parts are found by their names: `NAME-{number:05}-of-{count:05}.gguf`"
        )));
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
            "of which {} missing: {named}{more}",
            if missing.len() == 1 { "one is" } else { "some are" }
        ))
        .hint("put all parts into one folder, under the names that they came with"));
    }
    let mut given = Some(given);
    let mut parts = Vec::new();
    for n in 1..=count {
        let at = name.part(n);
        let part = match given.take_if(|_| n == number) {
            Some(part) => part,
            None => Part::open(&at)?,
        };
        let says = (number_of(&part, &at)?, part.metadata.unsigned("split.count")?.unwrap_or(1));
        if says != (n, count) {
            return Err(Error::new(format!(
                "`{}` says that it is part {} of {}, and its name says part {n} of {count}",
                at.display(),
                says.0,
                says.1
            ))
            .hint("the parts are of different models, or were renamed: fetch them again"));
        }
        parts.push(part);
    }
    let there: usize = parts.iter().map(|p| p.tensors.len()).sum();
    if let Some(total) = parts[0].metadata.unsigned("split.tensors.count")?
        && total != there as u64
    {
        return Err(wrong(format!("whose parts have {there} tensors together instead of {total}"))
            .hint("the parts are of different models: fetch them again"));
    }
    Ok(parts)
}

/// Whether a file's name is that of a part that is not the first.
pub fn is_later_part(path: &Path) -> bool {
    PartName::of(path).is_some_and(|n| n.number > 1 && n.part(1).is_file())
}

/// The names of all parts of the model that a file's name says it is a part of; of any other, its
/// own.
pub fn names(path: &Path) -> Vec<PathBuf> {
    match PartName::of(path).filter(|n| n.count <= MOST_PARTS && (1..=n.count).contains(&n.number))
    {
        Some(name) => (1..=name.count).map(|n| name.part(n)).collect(),
        None => vec![path.to_owned()],
    }
}

/// The part's number as its metadata has it, counted from 1 as the names count.
fn number_of(part: &Part, path: &Path) -> Result<u64> {
    let number =
        part.metadata.unsigned("split.no")?.ok_or_else(|| part.metadata.missing("split.no"))?;
    number.checked_add(1).ok_or_else(|| {
        Error::new(format!("`split.no` in `{}` is {number}, which no part has", path.display()))
    })
}

/// `…/NAME-00002-of-00003.gguf`
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
