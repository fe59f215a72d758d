//! Where models are: what the user's word for a model or an adapter means.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::repository::{self, Extent};
use crate::error::{Error, Result};
use crate::hub::{Hub, RepoId, RepoKind, cache_dir};

struct Known {
    name: &'static str,
    summary: &'static str,
    format: &'static str,
    megabytes: u32,
    fetch: &'static str,
}

/// Models with a name of their own, which `reprpo model fetch` downloads.
const KNOWN: [Known; 2] = [
    Known {
        name: "smollm2-135m-instruct",
        summary: "SmolLM2 135M Instruct: a small chat model of the Llama architecture",
        format: "GGUF, Q4_1",
        megabytes: 98,
        fetch: "`reprpo model fetch smollm2-135m-instruct` fetches it",
    },
    Known {
        name: "gemma3-270m",
        summary: "Gemma 3 270M: a small base model of the Gemma 3 architecture",
        format: "GGUF, Q4_K_M",
        megabytes: 253,
        fetch: "`reprpo model fetch gemma3-270m` fetches it",
    },
];

/// A model of the built-in list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownModel {
    /// What `--model` takes.
    pub name: &'static str,
    /// What it is, for people.
    pub summary: &'static str,
    /// File format and number type.
    pub format: &'static str,
    /// Size on disk, in units of 10⁶ bytes.
    pub megabytes: u32,
    /// Its file, where it is on this machine.
    pub path: Option<PathBuf>,
    /// A sentence with the command that fetches it.
    pub fetch: &'static str,
}

/// The built-in list.
pub fn known_models() -> Vec<KnownModel> {
    let places = Places::of_environment();
    let described = |k: &Known| KnownModel {
        name: k.name,
        summary: k.summary,
        format: k.format,
        megabytes: k.megabytes,
        path: places.fetched(k),
        fetch: k.fetch,
    };
    KNOWN.iter().map(described).collect()
}

/// What a user's word for a model means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// A folder, or a `.gguf` file.
    pub path: PathBuf,
    /// The repository of the hub that it comes from, at the commit that it is of.
    pub repository: Option<RepoId>,
    /// The path of a file within that repository, where the word names one.
    file: Option<String>,
}

impl Located {
    /// A word that means the very same model for ever, where it is the hub's; otherwise `given`.
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

/// Finds a model: a folder or a `.gguf` file; a name of the [built-in list](known_models); or a
/// repository of the hub, `org/name`, `org/name@revision` or `org/name/FILE.gguf`, which is
/// downloaded unless it is in the cache.
///
/// # Errors
/// Where it is none of these: says where was looked, and the names there are.
pub fn locate(model: &str, extent: Extent) -> Result<Located> {
    Places::of_environment().locate(model, extent)
}

/// Finds an adapter in PEFT's format: a folder, or a repository of the hub.
///
/// # Errors
/// Fails if the repository does not exist or does not contain an adapter. A path that is neither a
/// folder nor the id of a repository is returned unchanged.
pub fn locate_adapter(adapter: &Path) -> Result<PathBuf> {
    let id = adapter
        .to_str()
        .filter(|text| !is_path(text) && !adapter.exists())
        .and_then(|text| RepoId::parse(RepoKind::Model, text));
    match id {
        Some(id) => repository::adapter(&Hub::of_environment()?.open(&id)?),
        None => Ok(adapter.to_owned()),
    }
}

/// Fetches what a run needs of a model on the hub: configuration, tokenizer, chat template and
/// weights. `model` is `org/name`, `org/name@revision` or `org/name/FILE.gguf`; `None` if it has
/// another form.
///
/// Unlike [`locate`], it does not look for a folder or a file of that name on this machine.
///
/// # Errors
/// Fails if the hub does not have the model, does not give it to this user, or cannot be reached,
/// and if the repository contains no model that can be read.
pub fn fetch_repository(model: &str) -> Result<Option<Located>> {
    in_repository(model).map(|(id, file)| of_hub(&id, file, Extent::Whole)).transpose()
}

/// Fetches an adapter in PEFT's format from the hub. `adapter` is `org/name` or
/// `org/name@revision`.
///
/// # Errors
/// Fails if `adapter` has another form, if the hub does not have it, does not give it to this user,
/// or cannot be reached, and if the repository contains no adapter.
pub fn fetch_adapter(adapter: &str) -> Result<Located> {
    let hub = Hub::of_environment()?;
    let snapshot = hub.open(&RepoId::read(RepoKind::Model, adapter)?)?;
    Ok(Located {
        path: repository::adapter(&snapshot)?,
        repository: Some(snapshot.pinned()),
        file: None,
    })
}

/// A model of the hub, fetched if the cache does not have it.
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
        if let Some(known) = KNOWN.iter().find(|k| k.name == model) {
            let found = self.fetched(known).ok_or_else(|| {
                Error::new(format!(
                    "the model `{model}` is not on this machine yet: there is no \
                    .gguf file in `{}`",
                    self.folder_of(known).display()
                ))
                .hint(known.fetch)
            });
            return found.map(Located::from);
        }
        let names = KNOWN.map(|k| k.name);
        if let Some((id, file)) = in_repository(model) {
            return of_hub(&id, file, extent);
        }
        if is_path(model) {
            return Err(Error::new(format!("there is no model at `{model}`")).hint(format!(
                "give a folder with config.json, a .gguf file, a repository of the \
                    hub as `org/name`, or one of: {}",
                names.join(", ")
            )));
        }
        Err(Error::unknown("model", model, names).hint(
            "or give a folder with config.json, a \
            .gguf file, or a repository of the hub as `org/name`",
        ))
    }

    fn folder_of(&self, known: &Known) -> PathBuf {
        self.cache.join("models").join(known.name)
    }

    fn fetched(&self, known: &Known) -> Option<PathBuf> {
        super::gguf_files(&self.folder_of(known)).into_iter().next()
    }
}

/// The repository that a word names, and the GGUF file within it where it names one.
fn in_repository(model: &str) -> Option<(RepoId, Option<String>)> {
    if model.starts_with(['/', '.', '~']) {
        return None;
    }
    let (path, revision) =
        model.split_once('@').map_or((model, None), |(path, revision)| (path, Some(revision)));
    let mut parts = path.splitn(3, '/');
    let name = format!("{}/{}", parts.next()?, parts.next()?);
    let file = parts.next().map(str::to_owned);
    // A path such as `models/x.gguf` is a missing local file. The id of a repository has no such
    // extension.
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

/// Whether a word can only be meant as a path.
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
    fn a_known_model_is_found_in_the_cache_once_it_is_fetched() {
        let (_dir, places) = places();
        let e = places.locate("smollm2-135m-instruct", Extent::Whole).unwrap_err();
        assert_eq!(e.hints(), ["`reprpo model fetch smollm2-135m-instruct` fetches it"]);
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
    fn a_slip_in_a_name_brings_the_nearest() {
        let (_dir, places) = places();
        let e = places.locate("smolm2-135m-instruct", Extent::Whole).unwrap_err();
        assert!(e.hints()[0].contains("did you mean `smollm2-135m-instruct`"), "{e:?}");
    }

    #[test]
    fn a_path_that_is_not_there_is_spoken_of_as_a_path() {
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
    fn a_repository_is_named_with_a_revision_and_a_file_or_without() {
        let of = |model: &str| {
            in_repository(model).map(|(id, file)| (id.to_string(), file.unwrap_or_default()))
        };
        let is = |model: &str, id: &str, file: &str| {
            assert_eq!(of(model), Some((id.to_owned(), file.to_owned())), "{model}")
        };
        is("org/name", "org/name", "");
        is("org/name@v1.0", "org/name@v1.0", "");
        is("org/name-GGUF/x.Q4_K_M.gguf", "org/name-GGUF", "x.Q4_K_M.gguf");
        is("org/name/sub/x.gguf@v2", "org/name@v2", "sub/x.gguf");
        for none in [
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
            assert_eq!(of(none), None, "{none}");
        }
        let commit = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2";
        let (id, file) = in_repository("org/name/x.gguf").unwrap();
        let found = Located { path: PathBuf::new(), repository: Some(id.at(commit)), file };
        assert_eq!(in_repository(&found.pinned("")), Some((found.repository.unwrap(), found.file)));
    }
}
