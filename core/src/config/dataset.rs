//! Interprets the value of `--dataset`: a name, `NAME:TEXT`, a file that a plugin opens, `-` for
//! standard input, or a Hugging Face repository.

use std::path::Path;

use crate::error::{Error, Result, quoted};
use crate::hub::{RepoId, RepoKind};
use crate::registry::{DatasetEntry, Registry};

/// The selected data set. If the value of `--dataset` also sets a field of the data set, `argument`
/// contains the name and the value of that field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DatasetChoice {
    pub name: &'static str,
    pub argument: Option<(&'static str, String)>,
}

/// Finds the data set that `given` selects.
///
/// # Errors
/// Fails if the data set does not exist, if `given` is `NAME:TEXT` but the data set does not take a
/// text, or if a file is missing or has an unsupported extension.
pub(super) fn parse(given: &str, registry: &Registry) -> Result<DatasetChoice> {
    if let Ok(entry) = registry.dataset(given) {
        return Ok(DatasetChoice { name: entry.about.name, argument: None });
    }
    if let Some((name, text)) = given.split_once(':')
        && let Ok(entry) = registry.dataset(name)
    {
        return match entry.argument {
            Some(field) => Ok(DatasetChoice {
                name: entry.about.name,
                argument: Some((field, text.to_owned())),
            }),
            None => Err(Error::new(format!(
                "dataset `{name}` does not take a value after a colon, but was given `{text}`"
            ))
            .hint(format!(
                "write `--dataset {name}`, and set its fields with `--set dataset.FIELD=VALUE`"
            ))),
        };
    }
    if given == "-" {
        return stdin(registry);
    }
    let path = Path::new(given);
    if let Some(choice) = repository(given, path, registry)? {
        return Ok(choice);
    }
    let looks_like_a_file =
        given.contains(['/', '\\']) || path.extension().is_some() || path.exists();
    if looks_like_a_file { file(given, path, registry) } else { Err(no_such(given, registry)) }
}

/// Selects the data set type that can read standard input.
fn stdin(registry: &Registry) -> Result<DatasetChoice> {
    let takers: Vec<_> = registry
        .all::<DatasetEntry>()
        .filter(|entry| entry.stdin)
        .filter_map(|entry| Some((entry, entry.argument?)))
        .collect();
    match takers[..] {
        [] => Err(Error::new("no dataset can read standard input (`-`)").hint(openable(registry))),
        [(one, field)] => {
            Ok(DatasetChoice { name: one.about.name, argument: Some((field, "-".to_owned())) })
        }
        _ => Err(several(&takers.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), "-")),
    }
}

/// Returns the choice of data set for the Hugging Face repository `given`. Returns `None` if
/// `given` is not a repository id, or if it could also be the path of a file.
fn repository(given: &str, path: &Path, registry: &Registry) -> Result<Option<DatasetChoice>> {
    let is_file = registry
        .all::<DatasetEntry>()
        .flat_map(|entry| entry.extensions)
        .any(|ending| has_ending(path, ending));
    if path.exists() || is_file || RepoId::parse(RepoKind::Dataset, given).is_none() {
        return Ok(None);
    }
    let takers: Vec<_> =
        registry.all::<DatasetEntry>().filter(|entry| entry.repositories).collect();
    match takers[..] {
        [] => Ok(None),
        [one] => Ok(one.argument.map(|field| DatasetChoice {
            name: one.about.name,
            argument: Some((field, given.to_owned())),
        })),
        _ => Err(several(&takers, given)),
    }
}

/// Creates the error for a file that several data set types can read. There is no order
/// of precedence, because installing a plugin must not change how existing data is read.
fn several(takers: &[&DatasetEntry], given: &str) -> Error {
    let names: Vec<&str> = takers.iter().map(|entry| entry.about.name).collect();
    let command = |name: &&str| format!("`--dataset {}`", quoted(format!("{name}:{given}")));
    let commands: Vec<String> = names.iter().map(command).collect();
    Error::new(format!("several datasets can read `{given}`: {}", names.join(", ")))
        .hint(format!("choose one with {}", commands.join(" or ")))
}

fn file(given: &str, path: &Path, registry: &Registry) -> Result<DatasetChoice> {
    if path.is_dir() {
        return Err(Error::new(format!("`{given}` is a folder, not a file of preference pairs"))
            .hint(openable(registry)));
    }
    let fits = |ending: &&str| has_ending(path, ending);
    let openers = registry
        .all::<DatasetEntry>()
        .filter_map(|entry| Some((entry, entry.argument?)))
        .filter(|(entry, _)| entry.extensions.iter().any(fits));
    let (entry, field) = match openers.collect::<Vec<_>>().as_slice() {
        [] => {
            return Err(
                Error::new(format!("no dataset can open `{given}`")).hint(openable(registry))
            );
        }
        [one] => *one,
        openers => {
            return Err(several(
                &openers.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(),
                given,
            ));
        }
    };
    if !path.exists() {
        return Err(Error::new(format!("there is no file `{given}`"))
            .hint("check the path; relative paths are resolved against the current folder"));
    }
    Ok(DatasetChoice { name: entry.about.name, argument: Some((field, given.to_owned())) })
}

/// True if a file's name ends with a dot followed by `ending`, ignoring case. `ending` may itself
/// contain a dot, for example `jsonl.gz`.
fn has_ending(path: &Path, ending: &str) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    name.strip_suffix(ending).is_some_and(|head| head.ends_with('.'))
}

fn no_such(given: &str, registry: &Registry) -> Error {
    let name = given.split_once(':').map_or(given, |(name, _)| name);
    let names = registry.all::<DatasetEntry>().map(|e| e.about.name);
    Error::unknown("dataset", name, names).hint(openable(registry))
}

fn openable(registry: &Registry) -> String {
    let mut all: Vec<String> = registry
        .all::<DatasetEntry>()
        .flat_map(|entry| entry.extensions)
        .map(|e| format!(".{e}"))
        .collect();
    all.sort();
    all.dedup();
    if all.is_empty() {
        "no installed data set plugin reads files".to_owned()
    } else {
        format!("supported file extensions: {}", all.join(", "))
    }
}
