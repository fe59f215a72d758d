//! The forms of `--dataset`: a name, `NAME:TEXT`, a file that a plugin opens, `-`, or a repository
//! of the hub.

use std::path::Path;

use crate::error::{Error, Result, quoted};
use crate::hub::{RepoId, RepoKind};
use crate::registry::{DatasetEntry, Registry};

/// The data set that a text means, and the field and value that the text carries with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Meant {
    pub name: &'static str,
    pub argument: Option<(&'static str, String)>,
}

/// Which data set `given` means.
///
/// # Errors
/// A name that does not exist, text for a data set that takes none, a file that is missing or of an
/// ending that no data set opens.
pub(super) fn meant(given: &str, registry: &Registry) -> Result<Meant> {
    if let Ok(entry) = registry.dataset(given) {
        return Ok(Meant { name: entry.about.name, argument: None });
    }
    if let Some((name, text)) = given.split_once(':')
        && let Ok(entry) = registry.dataset(name)
    {
        return match entry.argument {
            Some(field) => {
                Ok(Meant { name: entry.about.name, argument: Some((field, text.to_owned())) })
            }
            None => Err(Error::new(format!(
                "dataset `{name}` takes nothing after a colon, but was given `{text}`"
            ))
            .hint(format!(
                "write `--dataset {name}`; its fields are set with `--set dataset.FIELD=VALUE`"
            ))),
        };
    }
    if given == "-" {
        return stdin(registry);
    }
    let path = Path::new(given);
    if let Some(meant) = repository(given, path, registry)? {
        return Ok(meant);
    }
    let looks_like_a_file =
        given.contains(['/', '\\']) || path.extension().is_some() || path.exists();
    if looks_like_a_file { file(given, path, registry) } else { Err(no_such(given, registry)) }
}

/// The data set that reads standard input.
fn stdin(registry: &Registry) -> Result<Meant> {
    let takers: Vec<_> = registry
        .all::<DatasetEntry>()
        .filter(|entry| entry.stdin)
        .filter_map(|entry| Some((entry, entry.argument?)))
        .collect();
    match takers[..] {
        [] => Err(Error::new("no dataset reads standard input (`-`)").hint(openable(registry))),
        [(one, field)] => {
            Ok(Meant { name: one.about.name, argument: Some((field, "-".to_owned())) })
        }
        _ => Err(several(
            &takers.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(),
            "-",
            "read standard input",
        )),
    }
}

/// The data set that takes a text which can only be a repository of the hub.
fn repository(given: &str, path: &Path, registry: &Registry) -> Result<Option<Meant>> {
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
        [one] => Ok(one.argument.map(|field| Meant {
            name: one.about.name,
            argument: Some((field, given.to_owned())),
        })),
        _ => Err(several(&takers, given, "take repositories")),
    }
}

/// Whoever installs a plugin should not find that data are read by another than before.
fn several(takers: &[&DatasetEntry], given: &str, what: &str) -> Error {
    let names: Vec<&str> = takers.iter().map(|entry| entry.about.name).collect();
    let command = |name: &&str| format!("`--dataset {}`", quoted(format!("{name}:{given}")));
    let commands: Vec<String> = names.iter().map(command).collect();
    Error::new(format!("several datasets {what} like `{given}`: {}", names.join(", ")))
        .hint(format!("say which: {}", commands.join(" or ")))
}

fn file(given: &str, path: &Path, registry: &Registry) -> Result<Meant> {
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
            return Err(Error::new(format!("no dataset opens files like `{given}`"))
                .hint(openable(registry)));
        }
        [one] => *one,
        openers => {
            return Err(several(
                &openers.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(),
                given,
                "open files",
            ));
        }
    };
    if !path.exists() {
        return Err(Error::new(format!("there is no file `{given}`"))
            .hint("a relative path starts at the folder that the command runs in"));
    }
    Ok(Meant { name: entry.about.name, argument: Some((field, given.to_owned())) })
}

/// True if a file's name ends in a dot and the ending, in upper or lower case. The ending may have
/// a dot itself, as `jsonl.gz` does.
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
        "no dataset of this program opens files".to_owned()
    } else {
        format!("files of preference pairs end in {}", all.join(", "))
    }
}
