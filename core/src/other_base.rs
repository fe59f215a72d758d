//! Warns if an adapter is used with a base model that it was not trained on.

use std::path::{Path, PathBuf};

use crate::config::Record;
use crate::error::Result;
use crate::fingerprint::{self, Fingerprint};
use crate::hub::{RepoId, RepoKind};
use crate::model::peft::Base;
use crate::weights::{Located, ModelFiles, locate_adapter};

/// Finds the run that wrote the adapter in a folder. Returns the path of the run's `config.toml`
/// and the run's record, or `None` if no run wrote the adapter.
///
/// # Errors
/// Fails if the `config.toml` next to the adapter's folder cannot be read.
pub fn run_of(adapter: &Path) -> Result<Option<(PathBuf, Record)>> {
    let adapter = if adapter.as_os_str().is_empty() { Path::new(".") } else { adapter };
    let Ok(adapter) = std::path::absolute(adapter) else { return Ok(None) };
    let config =
        adapter.parent().map(|run| run.join("config.toml")).filter(|config| config.is_file());
    let is_of_run = adapter.file_name().is_some_and(|name| name == "adapter");
    let Some(config) = config.filter(|_| is_of_run) else { return Ok(None) };
    Ok(Record::read(&config)?.map(|record| (config, record)))
}

/// Resolves `name` relative to the adapter's folder. `name` is the path of the adapter's base
/// model. Returns `None` if the path is absolute or does not exist.
pub fn beside(adapter: &Path, name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let found = adapter.join(path);
    (path.is_relative() && found.exists()).then_some(found)
}

/// Returns a warning if the adapter was trained on a different base model than `given`. Returns
/// `None` if the models are the same, or if the adapter does not name its base model. `source` is
/// the location of `given`, and `found` is its fingerprint.
///
/// # Errors
/// Fails if the configuration of the adapter, or of the run that wrote it, cannot be read.
pub fn warning(
    adapter: &Path,
    given: &str,
    source: &Located,
    found: &Fingerprint,
) -> Result<Option<String>> {
    let dir = locate_adapter(adapter)?;
    let Some(base) = Base::of_adapter(&dir)? else { return Ok(None) };
    let differ = match run_of(&dir)? {
        Some((_, record)) if record.model() == found => Difference::None,
        // The fingerprint of a hub model is computed from the commit. The fingerprint of a local
        // model is computed from the files. Only fingerprints of the same kind can be compared.
        Some(_) if base.revision.is_some() == source.repository.is_some() => Difference::Certain,
        _ => differ(&dir, &base, given, source, found),
    };
    let named = match &base.revision {
        Some(revision) => format!("{}@{revision}", base.name),
        None => base.name,
    };
    let which = match differ {
        Difference::None => return Ok(None),
        Difference::Certain => "which is a different model",
        Difference::Likely => "which may be a different model",
    };
    Ok(Some(format!(
        "the adapter in `{}` was made for the base model `{named}`, but is used on `{given}`, \
            {which}",
        adapter.display()
    )))
}

/// How certain it is that two models differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    None,
    Likely,
    Certain,
}

fn differ(
    dir: &Path,
    base: &Base,
    given: &str,
    source: &Located,
    found: &Fingerprint,
) -> Difference {
    use Difference::{Certain, Likely, None};
    let named = beside(dir, &base.name)
        .or_else(|| Some(PathBuf::from(&base.name)).filter(|path| path.exists()));
    if let Some(named) = named {
        let same_place = named
            .canonicalize()
            .ok()
            .is_some_and(|named| source.path.canonicalize().is_ok_and(|used| used == named));
        // A copy in another folder is the same model.
        let same_model = || {
            ModelFiles::open(&named)
                .is_ok_and(|files| fingerprint::of_model(&named.clone().into(), &files) == *found)
        };
        return match source.repository {
            _ if same_place || same_model() => None,
            Some(_) => Likely,
            Option::None => Certain,
        };
    }
    if base.name == given && source.repository.is_none() {
        return None;
    }
    if let Some(used) = &source.repository {
        let is_commit = |revision: &str| {
            RepoId::parse(RepoKind::Model, &format!("a/b@{revision}"))
                .is_some_and(|id| id.is_commit())
        };
        let other_commit = base
            .revision
            .as_ref()
            .is_some_and(|revision| is_commit(revision) && *revision != used.revision);
        return match (base.name.eq_ignore_ascii_case(&used.name), other_commit) {
            (true, false) => None,
            (true, true) => Certain,
            (false, _) => Likely,
        };
    }
    // The named base model is not on this machine, so only the names can be compared.
    let last =
        |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or(path).to_lowercase();
    let cached = format!("models--{}", base.name.replace('/', "--")).to_lowercase();
    if last(&base.name) == last(given)
        || source.path.to_string_lossy().to_lowercase().contains(&cached)
    {
        None
    } else {
        Likely
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_model_that_is_not_available_is_compared_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let found = fingerprint::of_pairs(&[]);
        let of = |named: &str, given: &str| {
            differ(dir.path(), &named.into(), given, &PathBuf::from(given).into(), &found)
        };
        assert!(Difference::None == of("org/Model-1B", "/models/model-1b"));
        assert!(Difference::None == of("/gone/model", "/here/model/"));
        assert!(Difference::None == of("org/model", "/cache/models--org--model/snapshots/x"));
        assert!(Difference::None != of("org/model", "/here/other"));
        assert!(Difference::None != of("/gone/model", "org/other"));
        assert!(Difference::None == of("known", "known"));
    }

    #[test]
    fn a_folder_and_a_repository_cannot_be_compared_with_certainty() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("base")).unwrap();
        let mut source: Located = PathBuf::from("snapshot").into();
        source.repository = RepoId::parse(RepoKind::Model, "org/base");
        let differ =
            differ(dir.path(), &"base".into(), "org/base", &source, &fingerprint::of_pairs(&[]));
        assert_eq!(differ, Difference::Likely);
    }

    #[test]
    fn an_adapter_from_another_program_has_no_run() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run_of(&dir.path().join("adapter")).unwrap().is_none());
        std::fs::write(dir.path().join("config.toml"), "model = \"x\"\n").unwrap();
        assert!(run_of(&dir.path().join("adapter")).unwrap().is_none());
        assert!(
            warning(dir.path(), "x", &PathBuf::from("x").into(), &fingerprint::of_pairs(&[]))
                .is_err()
        );
        std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
        assert!(
            warning(dir.path(), "x", &PathBuf::from("x").into(), &fingerprint::of_pairs(&[]))
                .unwrap()
                .is_none()
        );
    }
}
