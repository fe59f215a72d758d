//! Selects and downloads the files of a repository that belong to a model, a tokenizer or an
//! adapter.

use std::path::PathBuf;

use serde_json::Value;

use super::checkpoint::configuration;
use super::gguf;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::hub::Snapshot;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
/// Optional tokenizer files. `tokenizer.model` is never read. Its presence only makes one error
/// message more specific.
const TOKENIZER_EXTRAS: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
];
/// An optional file that lists the tokens that end a completion.
const GENERATION: &str = "generation_config.json";
pub const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Selects which files of a model to download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All files.
    Whole,
    /// The configuration and the tokenizer. A GGUF file contains both and is downloaded as a whole.
    Settings,
    /// The tokenizer.
    Tokenizer,
}

/// Downloads the files of a model, and returns the folder of the checkpoint or the path of the GGUF
/// file. `file` is the file that the user named within the repository, if any.
///
/// # Errors
/// Fails if the repository does not contain a supported model, if it contains several GGUF files
/// and `file` does not name one, or if a download fails.
pub fn model(snapshot: &Snapshot<'_>, file: Option<&str>, extent: Extent) -> Result<PathBuf> {
    if let Some(file) = file {
        return parts(snapshot, file);
    }
    let extras = || TOKENIZER_EXTRAS.into_iter().filter(|f| snapshot.has(f));
    if extent == Extent::Tokenizer && snapshot.has(TOKENIZER) {
        // Include config.json, because the class of the tokenizer can depend on its `model_type`.
        return snapshot
            .get_all(extras().chain([TOKENIZER]).chain(Some(CONFIG).filter(|f| snapshot.has(f))));
    }
    let ggufs: Vec<&str> =
        snapshot.files().iter().map(String::as_str).filter(|f| is_model(f)).collect();
    match (snapshot.has(CONFIG) && (snapshot.has(SINGLE) || snapshot.has(INDEX)), ggufs.as_slice())
    {
        (true, _) => {}
        (false, [only]) => return parts(snapshot, only),
        (false, []) => return Err(none(snapshot)),
        (false, several) => {
            let id = snapshot.pinned().name;
            return Err(Error::new(format!("`{id}` contains {} GGUF files", several.len())).hint(
                format!("choose one, e.g. `{id}/{}`; valid: {}", several[0], several.join(", ")),
            ));
        }
    }
    let folder = snapshot.get_all(
        extras()
            .chain([CONFIG])
            .chain([TOKENIZER, GENERATION].into_iter().filter(|f| snapshot.has(f))),
    )?;
    // Fail on an unsupported configuration before downloading gigabytes of weights.
    configuration(&folder)?;
    if extent == Extent::Settings {
        return Ok(folder);
    }
    if snapshot.has(SINGLE) {
        snapshot.get(SINGLE)?;
    } else {
        let index = read_json(&snapshot.get(INDEX)?)?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let mut shards: Vec<&str> =
            map.into_iter().flatten().filter_map(|(_, shard)| shard.as_str()).collect();
        shards.sort_unstable();
        shards.dedup();
        snapshot.get_all(shards)?;
    }
    Ok(folder)
}

/// Downloads the files of an adapter, and returns their folder. If the repository has no adapter at
/// its top, but one in a sub-folder, this adapter is used.
///
/// # Errors
/// Fails if the repository does not contain an adapter in PEFT's format, if several sub-folders
/// contain one, or if a download fails.
pub fn adapter(snapshot: &Snapshot<'_>) -> Result<PathBuf> {
    if !snapshot.has(ADAPTER[0]) {
        let folder = |file: &'_ String| {
            let (folder, name) = file.rsplit_once('/')?;
            (name == ADAPTER[0] && !folder.contains('/')).then(|| folder.to_owned())
        };
        let folders: Vec<String> = snapshot.files().iter().filter_map(folder).collect();
        let files = |folder: &str| ADAPTER.map(|name| format!("{folder}/{name}"));
        match folders.as_slice() {
            [only] if files(only).iter().all(|file| snapshot.has(file)) => {
                return Ok(snapshot.get_all(files(only))?.join(only));
            }
            [] | [_] => {}
            several => {
                return Err(Error::new(format!(
                    "`{}` contains {} adapters in sub-folders: {}",
                    snapshot.pinned().name,
                    several.len(),
                    several.join(", ")
                ))
                .hint("download the repository, and give the path of one of these folders"));
            }
        }
    }
    if let Some(missing) = ADAPTER.iter().find(|f| !snapshot.has(f)) {
        let e = Error::new(format!(
            "`{}` is not an adapter in PEFT's format: {missing} is missing",
            snapshot.pinned().name
        ));
        return Err(if snapshot.has("adapter_model.bin") {
            e.hint(
                "convert adapter_model.bin to safetensors: it is a pickle, which can run code and \
                is never read",
            )
        } else {
            e
        });
    }
    snapshot.get_all(ADAPTER)
}

/// Downloads a GGUF file and, if it is split, all of its parts.
fn parts(snapshot: &Snapshot<'_>, file: &str) -> Result<PathBuf> {
    let parts = gguf::names(file.as_ref());
    snapshot.get_all(parts.iter().map(|part| part.to_string_lossy()))?;
    snapshot.get(file)
}

/// True if `file` is a whole GGUF model or the first part of a split model. False for later parts,
/// and for the vision projectors of multimodal models (`mmproj`).
fn is_model(file: &str) -> bool {
    let first = gguf::names(file.as_ref()).first().is_some_and(|first| first.as_os_str() == file);
    first && file.ends_with(".gguf") && !file.rsplit('/').next().unwrap_or(file).contains("mmproj")
}

fn none(snapshot: &Snapshot<'_>) -> Error {
    let id = snapshot.pinned().name;
    let e = Error::new(format!(
        "`{id}` does not contain a supported model: it has neither {CONFIG} with safetensors nor a \
        GGUF file"
    ));
    if snapshot
        .files()
        .iter()
        .any(|f| f.ends_with(".bin") || f.ends_with(".pth") || f.ends_with(".pt"))
    {
        e.hint(
            "use a repository with safetensors: the weights are a pickle, which can run code and \
            is never read",
        )
    } else if snapshot.has(ADAPTER[0]) {
        e.hint(format!(
            "use this adapter with `reprpo run --init-adapter {id}` or `reprpo generate {id}`"
        ))
    } else {
        e
    }
}

#[cfg(test)]
mod tests {
    use local_hub::LocalHub;
    use serde_json::json;

    use super::*;
    use crate::hub::{Hub, RepoId, RepoKind, Settings};

    /// Creates a repository with the given files and calls `take` with its snapshot. Returns the
    /// result of `take` as a path relative to the snapshot, and the names of the downloaded files.
    fn fetched(
        files: &[(&str, &str)],
        take: impl Fn(&Snapshot<'_>) -> Result<PathBuf>,
    ) -> Result<(PathBuf, Vec<String>)> {
        let (dir, hub) = (tempfile::tempdir().unwrap(), LocalHub::start());
        hub.push(
            "models/org/name",
            "main",
            &files.iter().map(|(name, text)| (*name, text.as_bytes())).collect::<Vec<_>>(),
        );
        let (cache, listings) = (dir.path().join("cache"), dir.path().join("listings"));
        let client = Hub::new(Settings {
            endpoint: hub.endpoint(),
            cache,
            listings,
            offline: false,
            token: None,
            authorities: None,
        })
        .unwrap();
        let snapshot = client.open(&RepoId::read(RepoKind::Model, "org/name").unwrap()).unwrap();
        let path = take(&snapshot)?;
        let mut there: Vec<String> = snapshot
            .files()
            .iter()
            .filter(|f| snapshot.folder().join(f).is_file())
            .cloned()
            .collect();
        there.sort();
        Ok((path.strip_prefix(snapshot.folder()).unwrap().to_owned(), there))
    }

    fn whole(files: &[(&str, &str)]) -> Result<(PathBuf, Vec<String>)> {
        fetched(files, |s| model(s, None, Extent::Whole))
    }

    #[test]
    fn only_the_needed_files_of_a_checkpoint_are_downloaded() {
        let files = [
            ("README.md", "x"),
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            ("tokenizer_config.json", "{}"),
            ("added_tokens.json", "{}"),
            ("generation_config.json", "{}"),
            ("model.safetensors", "w"),
            ("pytorch_model.bin", "p"),
            ("onnx/model.onnx", "o"),
        ];
        let (path, there) = whole(&files).unwrap();
        assert_eq!(
            (path, there),
            (
                PathBuf::new(),
                [
                    "added_tokens.json",
                    "config.json",
                    "generation_config.json",
                    "model.safetensors",
                    "tokenizer.json",
                    "tokenizer_config.json"
                ]
                .map(str::to_owned)
                .to_vec()
            )
        );
        let (_, there) = fetched(&files, |s| model(s, None, Extent::Settings)).unwrap();
        assert_eq!(
            there,
            [
                "added_tokens.json",
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
        let (_, there) = fetched(&files, |s| model(s, None, Extent::Tokenizer)).unwrap();
        assert_eq!(
            there,
            ["added_tokens.json", "config.json", "tokenizer.json", "tokenizer_config.json"]
        );
    }

    #[test]
    fn the_index_decides_which_shards_are_downloaded() {
        let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors",
            "c": "model-1.safetensors"}})
        .to_string();
        let files = [
            ("config.json", "{}"),
            (INDEX, &index),
            ("model-1.safetensors", "1"),
            ("model-2.safetensors", "2"),
            ("other.safetensors", "3"),
        ];
        let (_, there) = whole(&files).unwrap();
        assert_eq!(there, ["config.json", "model-1.safetensors", "model-2.safetensors", INDEX]);
        let away = json!({"weight_map": {"a": "../../x.safetensors"}}).to_string();
        let e = whole(&[("config.json", "{}"), (INDEX, &away)]).unwrap_err();
        assert!(format!("{e:?}").contains("has no file `../../x.safetensors`"), "{e:?}");
    }

    #[test]
    fn a_gguf_file_is_downloaded_with_all_of_its_parts() {
        let (path, there) =
            whole(&[("README.md", ""), ("x.gguf", "g"), ("mmproj-x.gguf", "m")]).unwrap();
        assert_eq!((path, there), (PathBuf::from("x.gguf"), vec!["x.gguf".to_owned()]));
        let parts = [("q/x-00001-of-00002.gguf", "1"), ("q/x-00002-of-00002.gguf", "2")];
        let (path, there) = whole(&parts).unwrap();
        assert_eq!((path, there.len()), (PathBuf::from("q/x-00001-of-00002.gguf"), 2));
        let e = whole(&[("a.gguf", "a"), ("b.gguf", "b")]).unwrap_err();
        assert!(
            e.message().contains("2 GGUF files") && e.hints()[0].contains("`org/name/a.gguf`"),
            "{e:?}"
        );
        let (_, there) = fetched(&[("a.gguf", "a"), ("b.gguf", "b")], |s| {
            model(s, Some("b.gguf"), Extent::Whole)
        })
        .unwrap();
        assert_eq!(there, ["b.gguf"]);
        assert!(fetched(&parts, |s| model(s, Some("q/y.gguf"), Extent::Whole)).is_err());
    }

    #[test]
    fn a_repository_of_another_kind_is_an_error_with_a_hint() {
        let error = |outcome: Result<(PathBuf, Vec<String>)>| format!("{:?}", outcome.unwrap_err());
        assert!(
            error(whole(&[("config.json", "{}"), ("pytorch_model.bin", "")])).contains("pickle")
        );
        assert!(
            error(whole(&[("adapter_config.json", "{}"), ("adapter_model.safetensors", "")]))
                .contains("--init-adapter org/name")
        );
        assert!(error(whole(&[("README.md", "")])).contains("does not contain a supported model"));
        let quantised = [
            ("config.json", r#"{"quantization_config": {"quant_method": "awq"}}"#),
            ("model.safetensors", "w"),
        ];
        assert!(error(whole(&quantised)).contains("quantised with awq"));
        assert!(
            error(fetched(&[("adapter_config.json", "{}"), ("adapter_model.bin", "")], adapter))
                .contains("pickle")
        );
        assert!(error(fetched(&[("config.json", "{}")], adapter)).contains("adapter_config.json"));
        let (_, there) = fetched(
            &[
                ("adapter_config.json", "{}"),
                ("adapter_model.safetensors", "w"),
                ("optimizer.pt", ""),
            ],
            adapter,
        )
        .unwrap();
        assert_eq!(there, ADAPTER);
    }

    #[test]
    fn an_adapter_in_a_sub_folder_is_fetched_if_it_is_the_only_one() {
        let files = |folder: &str| ADAPTER.map(|file| format!("{folder}/{file}"));
        let fetched = |folders: &[&str]| {
            let files: Vec<String> = folders.iter().flat_map(|folder| files(folder)).collect();
            let files: Vec<_> = files.iter().map(|file| (file.as_str(), "{}")).collect();
            fetched(&files, adapter)
        };
        let (path, there) = fetched(&["style"]).unwrap();
        assert_eq!((path, there), (PathBuf::from("style"), files("style").to_vec()));
        let e = fetched(&["style", "tone"]).unwrap_err();
        assert!(e.message().contains("2 adapters in sub-folders: style, tone"), "{e:?}");
    }
}
