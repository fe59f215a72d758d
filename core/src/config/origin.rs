//! Origins of values, in the words in which a person gave them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The defaults of the plugin of that name.
    Plugin(String),
    /// The recipe of that name.
    Recipe(String),
    /// A saved adapter, in this folder or repository of the hub.
    Adapter(PathBuf),
    /// A configuration file.
    File(PathBuf),
    /// An environment variable, by name.
    Environment(String),
    /// A flag, with its dashes.
    Flag(String),
    /// The base model that a saved adapter names in this configuration file.
    Base(PathBuf),
    /// `--set`.
    Set,
    /// It follows from the other choices.
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
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Base(path) => write!(f, "`base_model_name_or_path` in file {}", path.display()),
            Origin::Set => f.write_str("--set"),
            Origin::Chosen => f.write_str("what is chosen below"),
        }
    }
}

/// The origin of every leaf, by its path (`train.lr`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where the value at `path` came from; for a part of a value, where the whole came from.
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
