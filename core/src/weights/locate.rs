//! Resolves model and adapter arguments, such as the value of `--model`: a local path, a built-in
//! model name, or a hub repository.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::repository::{self, Extent};
use crate::error::{Error, Result};
use crate::hub::{Hub, RepoId, RepoKind, cache_dir};

struct BuiltinModel {
    name: &'static str,
    summary: &'static str,
    format: &'static str,
    megabytes: u32,
    fetch: &'static str,
}

/// The models that `reprpo model fetch` downloads by name.
const BUILTIN: [BuiltinModel; 2] = [
    BuiltinModel {
        name: "smollm2-135m-instruct",
        summary: "SmolLM2 135M Instruct: a small chat model of the Llama architecture",
        format: "GGUF, Q4_1",
        megabytes: 98,
        fetch: "run `reprpo model fetch smollm2-135m-instruct`",
    },
    BuiltinModel {
        name: "gemma3-270m",
        summary: "Gemma 3 270M: a small base model of the Gemma 3 architecture",
        format: "GGUF, Q4_K_M",
        megabytes: 253,
        fetch: "run `reprpo model fetch gemma3-270m`",
    },
];

/// A model in the built-in list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownModel {
    /// Name of the model, which `--model` accepts.
    pub name: &'static str,
    /// Description for users.
    pub summary: &'static str,
    /// File format and quantisation, e.g. `GGUF, Q4_1`.
    pub format: &'static str,
    /// Size on disk in megabytes (10⁶ bytes).
    pub megabytes: u32,
    /// Path of the file; `None` if the model has not been fetched.
    pub path: Option<PathBuf>,
    /// Hint with the command that fetches the model.
    pub fetch: &'static str,
}

/// Lists the built-in models, including those that have not been fetched.
pub fn known_models() -> Vec<KnownModel> {
    let places = Places::of_environment();
    let described = |k: &BuiltinModel| KnownModel {
        name: k.name,
        summary: k.summary,
        format: k.format,
        megabytes: k.megabytes,
        path: places.fetched(k),
        fetch: k.fetch,
    };
    BUILTIN.iter().map(described).collect()
}

/// The result of looking up a model or an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Path of a folder or a `.gguf` file.
    pub path: PathBuf,
    /// Source repository on the hub, with the commit hash as its revision; `None` for a local path
    /// or a built-in model.
    pub repository: Option<RepoId>,
    /// Path of the GGUF file within the repository, if the user named one.
    file: Option<String>,
}

impl Located {
    /// Returns an identifier that pins the model to its commit on the hub. A model that does not
    /// come from the hub has no commit, so the result is `given`.
    pub fn pinned(&self, given: &str) -> String {
        match (&self.repository, &self.file) {
            (Some(repo), Some(file)) => format!("{}/{file}@{}", repo.name, repo.revision),
            (Some(repo), None) => repo.to_string(),
            (None, _) => given.to_owned(),
        }
    }
}

impl From<PathBuf> for Located {
    fn from(path: PathBuf) -> Self {
        Self { path, repository: None, file: None }
    }
}

/// Finds a model. `model` is a folder, a `.gguf` file, the name of a [built-in
/// model](known_models), or a repository on the hub as `org/name`, `org/name@revision` or
/// `org/name/FILE.gguf`. A repository is downloaded unless it is in the cache.
///
/// # Errors
/// Fails if the model does not exist or cannot be downloaded. The error for an unknown name lists
/// the valid ones.
pub fn locate(model: &str, extent: Extent) -> Result<Located> {
    Places::of_environment().locate(model, extent)
}

/// Finds an adapter in PEFT's format. `adapter` is a folder or a repository on the hub. A path that
/// is neither an existing folder nor a valid repository id is returned unchanged.
///
/// PEFT saves an adapter in a sub-folder, unless its name is `default`. So a folder or repository
/// without an adapter may have one in a sub-folder.
///
/// # Errors
/// Fails if the repository does not exist, cannot be downloaded, or does not contain an adapter, or
/// if several sub-folders contain one.
pub fn locate_adapter(adapter: &Path) -> Result<PathBuf> {
    let id = adapter
        .to_str()
        .filter(|text| !is_path(text) && !adapter.exists())
        .and_then(|text| RepoId::parse(RepoKind::Model, text));
    match id {
        Some(id) => repository::adapter(&Hub::of_environment()?.open(&id)?),
        None => in_sub_folder(adapter),
    }
}

/// Returns the only sub-folder of `folder` with an adapter. Returns `folder` itself if it has an
/// adapter or the configuration of a run, or if no sub-folder has an adapter.
fn in_sub_folder(folder: &Path) -> Result<PathBuf> {
    let has = |file: &str| folder.join(file).is_file();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(folder.to_owned()) };
    if has(repository::ADAPTER[0]) || has("config.toml") {
        return Ok(folder.to_owned());
    }
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(repository::ADAPTER[0]).is_file())
        .collect();
    found.sort();
    match found.as_slice() {
        [] => Ok(folder.to_owned()),
        [only] => Ok(only.clone()),
        several => {
            let names = several.iter().map(|path| path.display().to_string());
            Err(Error::new(format!(
                "`{}` contains {} adapters in sub-folders",
                folder.display(),
                several.len()
            ))
            .hint(format!("choose one: {}", names.collect::<Vec<_>>().join(", "))))
        }
    }
}

/// Fetches the files of a model on the hub that a run needs: configuration, tokenizer, chat
/// template and weights. `model` is `org/name`, `org/name@revision` or `org/name/FILE.gguf`.
/// Returns `None` if `model` does not have one of these forms.
///
/// Unlike [`locate`], this function ignores local folders and files with the same name.
///
/// # Errors
/// Fails if the hub cannot be reached, if the model does not exist or this user cannot access it,
/// or if the repository does not contain a supported model.
pub fn fetch_repository(model: &str) -> Result<Option<Located>> {
    in_repository(model).map(|(id, file)| of_hub(&id, file, Extent::Whole)).transpose()
}

/// Fetches an adapter in PEFT's format from the hub. `adapter` is `org/name` or
/// `org/name@revision`.
///
/// # Errors
/// Fails if `adapter` is not a valid repository id, if the hub cannot be reached, if the repository
/// does not exist or this user cannot access it, or if it does not contain an adapter.
pub fn fetch_adapter(adapter: &str) -> Result<Located> {
    let hub = Hub::of_environment()?;
    let snapshot = hub.open(&RepoId::read(RepoKind::Model, adapter)?)?;
    Ok(Located {
        path: repository::adapter(&snapshot)?,
        repository: Some(snapshot.pinned()),
        file: None,
    })
}

/// Finds a model on the hub. Files that are not in the cache are downloaded.
fn of_hub(id: &RepoId, file: Option<String>, extent: Extent) -> Result<Located> {
    let hub = Hub::of_environment()?;
    let snapshot = hub.open(id)?;
    let path = repository::model(&snapshot, file.as_deref(), extent)?;
    Ok(Located { path, repository: Some(snapshot.pinned()), file })
}

struct Places {
    cache: PathBuf,
}

impl Places {
    fn of_environment() -> Self {
        Self { cache: cache_dir() }
    }

    fn locate(&self, model: &str, extent: Extent) -> Result<Located> {
        let path = Path::new(model);
        if path.is_dir() || path.is_file() {
            return Ok(path.to_owned().into());
        }
        if let Some(known) = BUILTIN.iter().find(|k| k.name == model) {
            let found = self.fetched(known).ok_or_else(|| {
                Error::new(format!(
                    "the model `{model}` is not on this machine yet: there is no .gguf file in \
                    `{}`",
                    self.folder_of(known).display()
                ))
                .hint(known.fetch)
            });
            return found.map(Located::from);
        }
        let names = BUILTIN.map(|k| k.name);
        if let Some((id, file)) = in_repository(model) {
            return of_hub(&id, file, extent);
        }
        if is_path(model) {
            return Err(Error::new(format!("no model found at `{model}`")).hint(format!(
                "give a folder with config.json, a .gguf file, a repository on the \
                    hub as `org/name`, or one of: {}",
                names.join(", ")
            )));
        }
        Err(Error::unknown("model", model, names).hint(
            "or give a folder with config.json, a \
            .gguf file, or a repository on the hub as `org/name`",
        ))
    }

    fn folder_of(&self, model: &BuiltinModel) -> PathBuf {
        self.cache.join("models").join(model.name)
    }

    fn fetched(&self, model: &BuiltinModel) -> Option<PathBuf> {
        super::gguf_files(&self.folder_of(model)).into_iter().next()
    }
}

/// Parses `org/name`, `org/name@revision` or `org/name/FILE.gguf` into the repository's id and the
/// path of the GGUF file, if there is one. Returns `None` if `model` has none of these forms.
fn in_repository(model: &str) -> Option<(RepoId, Option<String>)> {
    if model.starts_with(['/', '.', '~']) {
        return None;
    }
    let (path, revision) =
        model.split_once('@').map_or((model, None), |(path, revision)| (path, Some(revision)));
    let mut parts = path.splitn(3, '/');
    let name = format!("{}/{}", parts.next()?, parts.next()?);
    let file = parts.next().map(str::to_owned);
    // Treat `models/x.gguf` as the path of a missing local file: repository ids do not end in
    // `.gguf`.
    let fits = match &file {
        Some(file) => file.ends_with(".gguf"),
        None => !is_path(path),
    };
    let id = RepoId::parse(
        RepoKind::Model,
        &revision.map_or(name.clone(), |revision| format!("{name}@{revision}")),
    )?;
    fits.then_some((id, file))
}

/// Returns true if `model` can only be a path, not a built-in name or a repository id.
fn is_path(model: &str) -> bool {
    [".gguf", ".safetensors", ".bin", ".json", "/"].iter().any(|end| model.ends_with(end))
        || model.starts_with(['/', '.', '~'])
        || model.matches('/').count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { cache: dir.path().join("cache") };
        (dir, places)
    }

    #[test]
    fn a_built_in_model_is_found_in_the_cache_after_it_was_fetched() {
        let (_dir, places) = places();
        let e = places.locate("smollm2-135m-instruct", Extent::Whole).unwrap_err();
        assert_eq!(e.hints(), ["run `reprpo model fetch smollm2-135m-instruct`"]);
        let file = places.cache.join("models/smollm2-135m-instruct/x.gguf");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        let found = places.locate("smollm2-135m-instruct", Extent::Whole).unwrap();
        assert_eq!(
            (found.pinned("smollm2-135m-instruct").as_str(), found.path),
            ("smollm2-135m-instruct", file)
        );
    }

    #[test]
    fn an_unknown_name_is_an_error_that_suggests_the_nearest_one() {
        let (_dir, places) = places();
        let e = places.locate("smolm2-135m-instruct", Extent::Whole).unwrap_err();
        assert!(e.hints()[0].contains("did you mean `smollm2-135m-instruct`"), "{e:?}");
    }

    #[test]
    fn a_missing_path_is_an_error_about_paths() {
        let (_dir, places) = places();
        for model in [
            "./nothing",
            "x/y.gguf",
            "/no/such/folder",
            "a/b/c",
            "../x",
            "",
            "~/models/x",
            "org/name/config.json",
        ] {
            let e = places.locate(model, Extent::Whole).unwrap_err();
            assert!(format!("{e:?}").contains("config.json"), "{e:?}");
        }
    }

    #[test]
    fn a_repository_can_have_a_revision_and_a_file() {
        let parsed = |model: &str| {
            in_repository(model).map(|(id, file)| (id.to_string(), file.unwrap_or_default()))
        };
        let is = |model: &str, id: &str, file: &str| {
            assert_eq!(parsed(model), Some((id.to_owned(), file.to_owned())), "{model}")
        };
        is("org/name", "org/name", "");
        is("org/name@v1.0", "org/name@v1.0", "");
        is("org/name-GGUF/x.Q4_K_M.gguf", "org/name-GGUF", "x.Q4_K_M.gguf");
        is("org/name/sub/x.gguf@v2", "org/name@v2", "sub/x.gguf");
        for other in [
            "name",
            "x/y.gguf",
            "./org/name",
            "/org/name",
            "org/name/",
            "a/b/c",
            "org/name/x.bin",
            "~/name",
            "org/na me",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
        let commit = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2";
        let (id, file) = in_repository("org/name/x.gguf").unwrap();
        let found = Located { path: PathBuf::new(), repository: Some(id.at(commit)), file };
        assert_eq!(in_repository(&found.pinned("")), Some((found.repository.unwrap(), found.file)));
    }
}
