//! Finds the files of each split in a data set repository, following the rules of Hugging Face's
//! `datasets` library.
//!
//! The rules are in the hub's documentation, "Data files configuration" and "File names and
//! splits".

use std::collections::HashSet;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use reprpo_plugin::hub::Snapshot;
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::Value;

use crate::files::extension;

/// Branch that contains the hub's automatic conversion to parquet.
pub const CONVERTED: &str = "refs/convert/parquet";

/// Words in a path that identify a split, in search order.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The files of each split in one configuration of the data set.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Name and files of each split.
    pub splits: Vec<(String, Vec<String>)>,
    /// Split and path of each missing file.
    pub missing: Vec<(String, String)>,
}

impl Layout {
    /// Reads the layout from the data set card, or derives it from the file names if the card does
    /// not define configurations. Returns `None` if no file has a supported format.
    pub fn of(snapshot: &Snapshot<'_>, config: Option<&str>) -> Result<Option<Self>> {
        Self::read(snapshot.files(), snapshot.card(), config)
    }

    fn read(files: &[String], card: &Value, config: Option<&str>) -> Result<Option<Self>> {
        let configs: Vec<&Value> =
            card.get("configs").and_then(Value::as_array).into_iter().flatten().collect();
        // YAML parses a name such as `2024` as a number.
        let name = |c: &Value| match c.get("config_name") {
            Some(Value::String(name)) => name.clone(),
            Some(Value::Number(name)) => name.to_string(),
            _ => "default".to_owned(),
        };
        if configs.is_empty() {
            // If the card does not define configurations, the name of a top-level folder can be
            // used as the configuration.
            let within = |file: &&String| {
                config.is_none_or(|c| c == "default" || file.starts_with(&format!("{c}/")))
            };
            let named = Self::by_names(files.iter().filter(within));
            return match config {
                Some(given) if named.is_none() && Self::by_names(files.iter()).is_some() => {
                    let mut folders: Vec<&str> =
                        files.iter().filter_map(|f| Some(f.split_once('/')?.0)).collect();
                    folders.dedup();
                    Err(Error::unknown("config_name", given, folders))
                }
                _ => Ok(named),
            };
        }
        let names: Vec<String> = configs.iter().map(|c| name(c)).collect();
        let is_default = |c: &Value| c.get("default").and_then(Value::as_bool) == Some(true);
        let chosen = match config {
            Some(given) => names
                .iter()
                .position(|n| n == given)
                .ok_or_else(|| Error::unknown("config_name", given, &names))?,
            None if configs.len() == 1 => 0,
            None => configs
                .iter()
                .position(|c| is_default(c))
                .or_else(|| names.iter().position(|n| n == "default"))
                .ok_or_else(|| {
                    Error::new(format!(
                        "the data set has {} configurations, and none of them is the default",
                        names.len()
                    ))
                    .hint(format!(
                        "choose one with `--set dataset.config_name=NAME`: {}",
                        names.join(", ")
                    ))
                })?,
        };
        let chosen = configs[chosen];
        let folder =
            chosen.get("data_dir").and_then(Value::as_str).unwrap_or_default().trim_matches('/');
        let prefix =
            if folder.is_empty() || folder == "." { String::new() } else { format!("{folder}/") };
        let Some(stated) = chosen.get("data_files") else {
            return Ok(Self::by_names(files.iter().filter(|f| f.starts_with(&prefix))));
        };
        let (mut splits, mut missing) = (Vec::new(), Vec::new());
        for (split, patterns) in stated_splits(stated) {
            let patterns: Vec<String> = patterns
                .iter()
                .map(|p| format!("{prefix}{}", p.trim_start_matches("./")))
                .collect();
            let globs = patterns.iter().map(|p| glob(p)).collect::<Result<Vec<_>>>()?;
            let held: Vec<String> =
                files.iter().filter(|f| globs.iter().any(|g| g.is_match(f))).cloned().collect();
            // A glob pattern may match no files, but a path without wildcards must exist.
            let named =
                patterns.iter().filter(|p| !p.contains(['*', '?', '[', '{']) && !files.contains(p));
            missing.extend(named.map(|file| (split.clone(), file.clone())));
            for file in
                lost_parts(&held, files).into_iter().filter(|f| globs.iter().any(|g| g.is_match(f)))
            {
                if !missing.iter().any(|(of, other)| *of == split && *other == file) {
                    missing.push((split.clone(), file));
                }
            }
            if !held.is_empty() {
                splits.push((split, held));
            }
        }
        Ok((!splits.is_empty() || !missing.is_empty()).then_some(Self { splits, missing }))
    }

    /// Checks that all files of a split exist.
    ///
    /// # Errors
    /// Fails if a file is missing. The error contains the path of the first missing file.
    pub fn check(&self, split: &str, data_set: &str) -> Result<()> {
        let missing: Vec<&str> = self
            .missing
            .iter()
            .filter(|(of, _)| of == split)
            .map(|(_, file)| file.as_str())
            .collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let (more, are) = match missing.len() - 1 {
            0 => (String::new(), "is"),
            1 => (" and 1 more file".to_owned(), "are"),
            n => (format!(" and {n} more files"), "are"),
        };
        Err(Error::new(format!(
            "`{first}`{more} {are} missing from the split `{split}` of `{data_set}`"
        ))
        .hint(
            "download the whole data set: the cache may have been filled by a tool that only \
                downloaded some of its files",
        ))
    }

    /// Assigns files to splits by the split names or keywords in their paths. If no path contains a
    /// split name or keyword, all files belong to `train`.
    fn by_names<'a>(files: impl Iterator<Item = &'a String>) -> Option<Self> {
        let hidden = |f: &str| f.split('/').any(|part| part.starts_with(['.', '_']));
        let about = |f: &str| {
            ["dataset_infos.json", "dataset_info.json", "state.json"]
                .contains(&f.rsplit('/').next().unwrap_or(f))
        };
        let files: Vec<&String> = files.filter(|f| is_read(f) && !hidden(f) && !about(f)).collect();
        let by = |split_of: &dyn Fn(&str) -> Option<String>| -> Option<Self> {
            let mut splits: Vec<(String, Vec<String>)> = Vec::new();
            for file in &files {
                let Some(split) = split_of(file) else { continue };
                match splits.iter_mut().find(|(name, _)| *name == split) {
                    Some((_, held)) => held.push((*file).clone()),
                    None => splits.push((split, vec![(*file).clone()])),
                }
            }
            let lost = |(split, held): &(String, Vec<String>)| {
                let split = split.clone();
                lost_parts(held, held).into_iter().map(move |file| (split.clone(), file))
            };
            let missing = splits.iter().flat_map(lost).collect();
            (!splits.is_empty()).then_some(Self { splits, missing })
        };
        let name = |file: &str| file.rsplit('/').next().unwrap_or(file).to_owned();
        let folder = |file: &str| {
            file.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned())
        };
        by(&|file| shard_of(&name(file)))
            .or_else(|| by(&|file| keyword(&name(file))))
            .or_else(|| by(&|file| keyword(&folder(file))))
            .or_else(|| by(&|_| Some("train".to_owned())))
    }

    /// Reads the layout of the hub's parquet conversion, in which the files have names such as
    /// `CONFIG/SPLIT/0000.parquet`.
    pub fn converted(snapshot: &Snapshot<'_>, config: Option<&str>) -> Result<Self> {
        Self::of_conversion(snapshot.files(), config)
    }

    fn of_conversion(files: &[String], config: Option<&str>) -> Result<Self> {
        let parts: Vec<(&str, &str, &String)> = files
            .iter()
            .filter(|f| f.ends_with(".parquet"))
            .filter_map(|f| {
                let (config, rest) = f.split_once('/')?;
                Some((config, rest.split_once('/')?.0, f))
            })
            .collect();
        let mut configs: Vec<&str> = parts.iter().map(|(config, ..)| *config).collect();
        configs.dedup();
        let chosen = match (config, configs.as_slice()) {
            (Some(given), _) => *configs
                .iter()
                .find(|c| **c == given)
                .ok_or_else(|| Error::unknown("config_name", given, &configs))?,
            (None, [only]) => only,
            (None, _) if configs.contains(&"default") => "default",
            (None, _) => {
                return Err(Error::new(format!(
                    "the data set has {} configurations, and none of them is the default",
                    configs.len()
                ))
                .hint(format!(
                    "choose one with `--set dataset.config_name=NAME`: {}",
                    configs.join(", ")
                )));
            }
        };
        let mut splits: Vec<(String, Vec<String>)> = Vec::new();
        let mut missing = Vec::new();
        for (_, split, file) in parts.into_iter().filter(|(config, ..)| *config == chosen) {
            // The hub adds this prefix if it only converted the first part of a large split.
            let split = split.strip_prefix("partial-").unwrap_or(split).to_owned();
            match splits.iter_mut().find(|(name, _)| *name == split) {
                Some((_, held)) => held.push(file.clone()),
                None => splits.push((split, vec![file.clone()])),
            }
        }
        for (split, held) in &splits {
            // The files are numbered from 0. Their names do not contain the total number of files,
            // so only gaps can be detected.
            let numbered = held.iter().filter_map(|f| {
                f.rsplit('/').next()?.strip_suffix(".parquet")?.parse::<usize>().ok()
            });
            if let Some((lost, at)) = numbered.enumerate().find(|(i, n)| i != n)
                && let Some((folder, _)) = held[lost].rsplit_once('/')
                && lost < at
            {
                missing.push((split.clone(), format!("{folder}/{lost:04}.parquet")));
            }
        }
        Ok(Self { splits, missing })
    }

    /// Returns true if all files have a supported format.
    pub fn is_read(&self) -> bool {
        let missing = self.missing.iter().map(|(_, file)| file);
        self.splits.iter().flat_map(|(_, files)| files).chain(missing).all(|f| is_read(f))
    }
}

/// Returns true if all files are named as in the hub's parquet conversion.
pub fn is_conversion(files: &[String]) -> bool {
    let mut shown = files.iter().filter(|f| !f.starts_with('.')).peekable();
    let numbered = |name: &str| {
        name.strip_suffix(".parquet")
            .is_some_and(|n| n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    shown.peek().is_some()
        && shown
            .all(|f| matches!(f.split('/').collect::<Vec<_>>()[..], [_, _, name] if numbered(name)))
}

/// Parses the `data_files` field of a card and returns the glob patterns of each split. A single
/// pattern or a plain list of patterns applies to `train`.
fn stated_splits(stated: &Value) -> Vec<(String, Vec<String>)> {
    let patterns = |value: &Value| -> Vec<String> {
        match value {
            Value::String(pattern) => vec![pattern.clone()],
            Value::Array(list) => {
                list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        }
    };
    match stated {
        Value::Array(list) if list.iter().any(Value::is_object) => {
            let split =
                |v: &Value| Some((v.get("split")?.as_str()?.to_owned(), patterns(v.get("path")?)));
            list.iter().filter_map(split).collect()
        }
        Value::Object(table) => {
            table.iter().map(|(split, value)| (split.clone(), patterns(value))).collect()
        }
        other => vec![("train".to_owned(), patterns(other))],
    }
}

/// Compiles a glob pattern. `*` does not match `/`, but `**` does.
fn glob(pattern: &str) -> Result<GlobMatcher> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|g| g.compile_matcher()).map_err(|e| {
        Error::new(format!("invalid pattern `{pattern}` in the data set's card")).because(e)
    })
}

fn is_read(file: &str) -> bool {
    extension(Path::new(file)).is_some()
}

/// Splits the path of a numbered part, such as `data/train-00000-of-00002.parquet`, into its stem
/// `data/train-`, number 0, total 2 and suffix `.parquet`. Returns `None` for any other path.
fn part_of(file: &str) -> Option<(&str, usize, usize, &str)> {
    let (head, rest) = file.rsplit_once("-of-")?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let (number, count) = (head.get(head.len().checked_sub(5)?..)?, rest.get(..5)?);
    let stem = head.strip_suffix(number)?;
    let fits =
        digits(number) && digits(count) && !rest[5..].starts_with(|c: char| c.is_ascii_digit());
    fits.then(|| Some((stem, number.parse().ok()?, count.parse().ok()?, &rest[5..])))?
}

/// Returns the missing parts of every series that has a file in `held`. A part is missing if it is
/// not in `files`. The suffix of a returned path is a guess, because suffixes can differ between
/// parts.
fn lost_parts(held: &[String], files: &[String]) -> Vec<String> {
    // Ignore the suffixes, because some tools add a hash that differs between parts.
    let there: HashSet<(&str, usize, usize)> = files
        .iter()
        .filter_map(|f| part_of(f))
        .map(|(stem, n, count, _)| (stem, n, count))
        .collect();
    let (mut seen, mut lost) = (HashSet::new(), Vec::new());
    for (stem, _, count, tail) in held.iter().filter_map(|f| part_of(f)) {
        if seen.insert((stem, count)) {
            // Most data sets number the parts from 0, some from 1.
            let first = usize::from(there.contains(&(stem, count, count)));
            let missing = (first..count + first).filter(|n| !there.contains(&(stem, *n, count)));
            lost.extend(missing.map(|n| format!("{stem}{n:05}-of-{count:05}{tail}")));
        }
    }
    lost
}

/// Returns the split name of a numbered part, such as `train_prefs` for
/// `train_prefs-00000-of-00001.parquet`.
fn shard_of(name: &str) -> Option<String> {
    let (head, rest) = name.split_once("-of-")?;
    let (split, number) = head.rsplit_once('-')?;
    let five = |text: &str| text.len() >= 5 && text.bytes().take(5).all(|b| b.is_ascii_digit());
    (five(number) && number.len() == 5 && five(rest) && !split.is_empty()).then(|| split.to_owned())
}

/// Returns the first split in [`KEYWORDS`] with a keyword in `text`. The keyword must be a whole
/// word. Words are separated by punctuation, spaces or digits.
fn keyword(text: &str) -> Option<String> {
    let text = text.to_lowercase();
    let has = |word: &&str| {
        text.split(|c: char| "-._/ ".contains(c) || c.is_ascii_digit()).any(|part| part == *word)
    };
    KEYWORDS.iter().find(|(_, words)| words.iter().any(&has)).map(|(split, _)| (*split).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reprpo_plugin::serde_json::json;

    fn files(list: &[&str]) -> Vec<String> {
        list.iter().map(|f| (*f).to_owned()).collect()
    }

    fn missing(layout: &Layout) -> Vec<String> {
        layout.missing.iter().map(|(split, file)| format!("{split}: {file}")).collect()
    }

    #[test]
    fn missing_parts_are_found() {
        let of =
            |list: &[&str], card: &Value| Layout::read(&files(list), card, None).unwrap().unwrap();
        let none: [&str; 0] = [];
        let whole = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
        assert_eq!(missing(&of(&whole, &Value::Null)), none);
        assert_eq!(
            missing(&of(&whole[..1], &Value::Null)),
            ["train: data/train-00001-of-00002.parquet"]
        );
        assert_eq!(
            missing(&of(&whole[1..], &Value::Null)),
            ["train: data/train-00000-of-00002.parquet"]
        );
        // Parts can be numbered from 1 or have a hash after the numbers.
        assert_eq!(
            missing(&of(
                &["train-00001-of-00002.jsonl.gz", "train-00002-of-00002.jsonl.gz"],
                &Value::Null
            )),
            none
        );
        assert_eq!(
            missing(&of(&["train-00002-of-00002.jsonl"], &Value::Null)),
            ["train: train-00001-of-00002.jsonl"]
        );
        assert_eq!(
            missing(&of(
                &["a-train-00000-of-00002-0a1b.parquet", "a-train-00001-of-00002-2c3d.parquet"],
                &Value::Null
            )),
            none
        );
        // Missing parts of the test split are only an error if the test split is read.
        let two = of(&[whole[0], whole[1], "data/test-00000-of-00003.parquet"], &Value::Null);
        assert_eq!(
            missing(&two),
            ["test: data/test-00001-of-00003.parquet", "test: data/test-00002-of-00003.parquet"]
        );
        assert!(two.check("train", "org/x").is_ok());
        let e = format!("{:?}", two.check("test", "org/x").unwrap_err());
        assert!(
            e.starts_with(
                "`data/test-00001-of-00003.parquet` and 1 more file are missing from the split \
                `test` of `org/x`\n"
            ),
            "{e}"
        );
        // Nothing is missing. The first file is the only part of its split, and the other files are
        // not named like parts.
        assert_eq!(
            missing(&of(
                &["train-00000-of-00001.parquet", "x-of-y.parquet", "-of-00001.csv"],
                &Value::Null
            )),
            none
        );

        let card =
            |files: Value| json!({"configs": [{"config_name": "default", "data_files": files}]});
        assert_eq!(
            missing(&of(&whole[..1], &card(json!("data/train-*")))),
            ["train: data/train-00001-of-00002.parquet"]
        );
        // If the card selects a single part, the other parts are not missing.
        assert_eq!(missing(&of(&whole[..1], &card(json!(whole[0])))), none);
        assert_eq!(missing(&of(&whole, &card(json!(whole[0])))), none);
        assert_eq!(
            missing(&of(&whole[..1], &card(json!(whole)))),
            [format!("train: {}", whole[1])]
        );
        let split = card(
            json!([{"split": "train", "path": "data/*"}, {"split": "test", "path": "test.jsonl"}]),
        );
        assert_eq!(
            missing(&of(&whole, &split)),
            ["test: test.jsonl"],
            "the card names a file that does not exist"
        );

        let converted =
            |list: &[&str]| missing(&Layout::of_conversion(&files(list), None).unwrap());
        assert_eq!(converted(&["default/train/0000.parquet", "default/train/0001.parquet"]), none);
        assert_eq!(
            converted(&["default/train/0000.parquet", "default/train/0002.parquet"]),
            ["train: default/train/0001.parquet"]
        );
        assert_eq!(
            converted(&["default/train/0001.parquet"]),
            ["train: default/train/0000.parquet"]
        );
    }

    fn shown(layout: &Layout) -> Vec<String> {
        layout.splits.iter().map(|(split, files)| format!("{split}: {}", files.join(" "))).collect()
    }

    #[test]
    fn without_a_card_file_names_determine_the_splits() {
        let of = |list: &[&str]| {
            shown(&Layout::read(&files(list), &Value::Null, None).unwrap().unwrap())
        };
        assert_eq!(
            of(&[
                "README.md",
                "data/test_prefs-00000-of-00001.parquet",
                "data/train_prefs-00000-of-00002.parquet",
                "data/train_prefs-00001-of-00002-0a1b.parquet"
            ]),
            [
                "test_prefs: data/test_prefs-00000-of-00001.parquet",
                "train_prefs: data/train_prefs-00000-of-00002.parquet \
                    data/train_prefs-00001-of-00002-0a1b.parquet"
            ]
        );
        assert_eq!(
            of(&["my_dev.jsonl", "dev-1.jsonl", "training.jsonl", "eval.json"]),
            ["validation: my_dev.jsonl dev-1.jsonl", "train: training.jsonl", "test: eval.json"]
        );
        assert_eq!(
            of(&["a/test/x.csv", "a/train/x.csv", "a/train/y.csv"]),
            ["test: a/test/x.csv", "train: a/train/x.csv a/train/y.csv"]
        );
        assert_eq!(
            of(&["pairs.jsonl", "dataset_infos.json", ".hidden.json", "contest.jsonl"]),
            ["train: pairs.jsonl contest.jsonl"]
        );
        assert_eq!(
            of(&["train.jsonl.gz", "dev.csv.ZST"]),
            ["train: train.jsonl.gz", "validation: dev.csv.ZST"]
        );
        assert_eq!(
            Layout::read(&files(&["README.md", "train.arrow", "train.txt.gz"]), &Value::Null, None)
                .unwrap(),
            None
        );
    }

    #[test]
    fn without_a_card_a_folder_is_a_configuration() {
        let list = files(&["harmless/test.jsonl", "harmless/train.jsonl", "helpful/train.jsonl"]);
        let of = |config| Layout::read(&list, &Value::Null, config);
        assert_eq!(
            shown(&of(Some("harmless")).unwrap().unwrap()),
            ["test: harmless/test.jsonl", "train: harmless/train.jsonl"]
        );
        assert!(
            format!("{:?}", of(Some("harmles")).unwrap_err()).contains("did you mean `harmless`")
        );
    }

    #[test]
    fn a_card_assigns_files_to_splits() {
        let list = files(&[
            "data/test.parquet",
            "data/train-1.parquet",
            "data/train-2.parquet",
            "math/a.jsonl",
            "math/deep/b.jsonl",
        ]);
        let card = json!({"configs": [
            {"config_name": "all", "default": true, "data_files": [{"split": "train",
            "path": "data/train-*"}, {"split": "test", "path": ["data/test.parquet"]}]},
            {"config_name": "math", "data_files": "math/*"},
            {"config_name": "deep", "data_dir": "math", "data_files": {"train": "**/*.jsonl"}},
            {"config_name": "folder", "data_dir": "data"},
            {"config_name": "none", "data_files": "nothing/*"}
        ]});
        let of = |config| Layout::read(&list, &card, config);
        let text = |config| shown(&of(config).unwrap().unwrap());
        assert_eq!(
            text(None),
            ["train: data/train-1.parquet data/train-2.parquet", "test: data/test.parquet"]
        );
        assert_eq!(text(Some("math")), ["train: math/a.jsonl"]);
        assert_eq!(text(Some("deep")), ["train: math/a.jsonl math/deep/b.jsonl"]);
        assert_eq!(
            text(Some("folder")),
            ["test: data/test.parquet", "train: data/train-1.parquet data/train-2.parquet"]
        );
        assert_eq!(of(Some("none")).unwrap(), None);
        let e = format!("{:?}", of(Some("maths")).unwrap_err());
        assert!(e.contains("did you mean `math`") && e.contains("folder"), "{e}");

        let two = json!({"configs": [{"config_name": "a", "data_files": "x"}, {"config_name": "b",
            "data_files": "y"}]});
        let e = format!("{:?}", Layout::read(&list, &two, None).unwrap_err());
        assert!(e.contains("2 configurations") && e.contains("config_name=NAME`: a, b"), "{e}");
        let bad = json!({"configs": [{"config_name": "a", "data_files": "x["}]});
        assert!(Layout::read(&list, &bad, None).unwrap_err().message().contains("`x[`"));
    }

    #[test]
    fn the_hubs_conversion_has_a_folder_per_configuration_and_split() {
        let list = files(&[
            "default/partial-test/0000.parquet",
            "default/train/0000.parquet",
            "default/train/0001.parquet",
            "other/train/0000.parquet",
        ]);
        let of = |config| Layout::of_conversion(&list, config);
        assert_eq!(
            shown(&of(None).unwrap()),
            [
                "test: default/partial-test/0000.parquet",
                "train: default/train/0000.parquet default/train/0001.parquet"
            ]
        );
        assert_eq!(shown(&of(Some("other")).unwrap()), ["train: other/train/0000.parquet"]);
        assert!(
            is_conversion(&list) && is_conversion(&files(&[".gitattributes", "a/b/0000.parquet"]))
        );
        assert!(
            !is_conversion(&files(&["data/train/0000.parquet", "README.md"]))
                && !is_conversion(&files(&["data/train.parquet"]))
                && !is_conversion(&[])
        );
        assert!(of(Some("another")).is_err() && Layout::of_conversion(&list[..0], None).is_err());
    }
}
