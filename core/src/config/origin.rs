//! The origins of values, formatted the way the user would write them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A built-in default.
    Default,
    /// The default of the named plugin.
    Plugin(String),
    /// The named recipe.
    Recipe(String),
    /// The configuration of the saved adapter in this folder or Hugging Face repository.
    Adapter(PathBuf),
    /// A configuration file.
    File(PathBuf),
    /// A part of a study file, e.g. `[methods.dpo]`.
    Study {
        /// The study file.
        file: PathBuf,
        /// The table, as written in the file, e.g. `methods.dpo`.
        table: String,
    },
    /// The named environment variable.
    Environment(String),
    /// The named flag, including its dashes.
    Flag(String),
    /// The field `base_model_name_or_path` in this configuration file of a saved adapter.
    Base(PathBuf),
    /// The flag `--set`.
    Set,
    /// Derived from the chosen plugins and recipe.
    Chosen,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Plugin(name) => write!(f, "default of {name}"),
            Origin::Recipe(name) => write!(f, "recipe {name}"),
            Origin::Adapter(path) => write!(f, "adapter {}", path.display()),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Study { file, table } => write!(f, "`[{table}]` in {}", file.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Base(path) => write!(f, "`base_model_name_or_path` in file {}", path.display()),
            Origin::Set => f.write_str("--set"),
            Origin::Chosen => f.write_str("from the choices below"),
        }
    }
}

/// The origin of every value, by its path (`train.lr`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// The origin of the value at `path`. A part of a value has the origin of the whole value.
    pub fn get(&self, path: &str) -> Option<&Origin> {
        let mut path = path;
        loop {
            if let Some(origin) = self.0.get(path) {
                return Some(origin);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    pub(super) fn insert(&mut self, path: String, origin: Origin) {
        self.0.insert(path, origin);
    }
}
