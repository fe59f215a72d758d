//! The registry: every plugin of this program, by kind and name.
//!
//! The attribute above a plugin's struct puts an [`Entry`] into `inventory`'s list; the entry holds
//! function pointers that were made where the plugin's types are known, so that everything past
//! this point speaks of plugins by name and in JSON text.

mod about;
mod entry;
mod kind;
mod library;
mod recipe;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use about::{About, Misfit};
pub use entry::{
    AdapterEntry, DatasetEntry, Entry, InterventionEntry, TapEntry, TransformEntry, TypedEntry,
};
pub use kind::Kind;
pub use library::PluginLibrary;
pub use recipe::{Recipe, RecipeText};

use crate::error::{Error, Fault, Result};

/// The plugins of this program, linked in and loaded, and their recipes.
#[derive(Debug)]
pub struct Registry {
    entries: BTreeMap<(Kind, &'static str), Registered<Entry>>,
    recipes: BTreeMap<String, Registered<Recipe>>,
    loaded: Vec<PluginLibrary>,
    refused: Vec<PathBuf>,
}

/// What is registered, and the number of the loaded file that it came from; none: it is linked in.
#[derive(Clone, Debug)]
struct Registered<T> {
    what: T,
    file: Option<usize>,
}

impl Registry {
    /// Everything that is linked into this program.
    ///
    /// # Errors
    /// Two plugins of one kind, or two recipes, under one name or alias; a name that no command
    /// line should need to quote; a recipe that cannot be read.
    pub fn builtin() -> Result<Self> {
        let mut registry = Self::empty();
        registry
            .add(inventory::iter::<Entry>.into_iter().copied(), inventory::iter::<RecipeText>, None)
            .map_err(|e| e.blamed_on(Fault::Internal))?;
        Ok(registry)
    }

    fn empty() -> Self {
        Self {
            entries: BTreeMap::new(),
            recipes: BTreeMap::new(),
            loaded: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// These plugins alone, without recipes.
    ///
    /// # Errors
    /// As [`builtin`](Self::builtin).
    pub fn holding(entries: impl IntoIterator<Item = Entry>) -> Result<Self> {
        let mut registry = Self::empty();
        registry.add(entries, [], None)?;
        Ok(registry)
    }

    /// Adds what a library registers: all of it, or nothing. One that is there already changes
    /// nothing.
    ///
    /// # Errors
    /// A name that is taken; names both sides.
    pub fn add_plugin(&mut self, plugin: PluginLibrary) -> Result<()> {
        if self.loaded.iter().any(|known| known.path == plugin.path) {
            return Ok(());
        }
        let (entries, recipes) = (plugin.entries.clone(), plugin.recipes.clone());
        self.loaded.push(plugin);
        let before = (self.entries.clone(), self.recipes.clone());
        self.add(entries, recipes, Some(self.loaded.len() - 1)).map_err(|e| {
            (self.entries, self.recipes) = before;
            let path = self
                .loaded
                .pop()
                .map_or_else(String::new, |plugin| plugin.path.display().to_string());
            e.within(format!("`{path}` cannot be used as a plugin"))
        })
    }

    /// Remembers a file of the plugin folder that could not be used, for the error of a name that
    /// is not found.
    pub fn refuse(&mut self, path: PathBuf) {
        self.refused.push(path);
    }

    /// The libraries that were loaded, in their order.
    pub fn loaded(&self) -> &[PluginLibrary] {
        &self.loaded
    }

    /// The library that a plugin came from; none: it is linked in.
    pub fn file_of(&self, entry: Entry) -> Option<&PluginLibrary> {
        self.entries
            .get(&(entry.kind(), entry.about().name))
            .and_then(|registered| self.file(registered))
    }

    /// The library that a recipe came from; none: it is linked in.
    pub fn file_of_recipe(&self, name: &str) -> Option<&PluginLibrary> {
        self.recipes.get(name).and_then(|registered| self.file(registered))
    }

    fn file<T>(&self, registered: &Registered<T>) -> Option<&PluginLibrary> {
        registered.file.and_then(|number| self.loaded.get(number))
    }

    fn add(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
        recipes: impl IntoIterator<Item = &'static RecipeText>,
        file: Option<usize>,
    ) -> Result<()> {
        for entry in entries {
            self.add_entry(entry, file)?;
        }
        for text in recipes {
            let recipe = Recipe::read(text)?;
            let ours = self.origin(recipe.origin, recipe.version, file);
            if let Some(old) =
                self.recipes.insert(recipe.name.clone(), Registered { what: recipe, file })
            {
                let theirs = self.origin(old.what.origin, old.what.version, old.file);
                return Err(Error::new(format!(
                    "two recipes are called `{}`: one of {theirs}, one of {ours}",
                    old.what.name
                )));
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, entry: Entry, file: Option<usize>) -> Result<()> {
        let about = entry.about();
        let ours = self.origin(about.origin, about.version, file);
        for name in std::iter::once(&about.name).chain(about.aliases) {
            if name.is_empty()
                || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            {
                return Err(Error::new(format!(
                    "{} `{name}` of {ours} has a name with other than a-z, 0-9 and -",
                    entry.kind().name()
                )));
            }
            if let Some(old) =
                self.entries.insert((entry.kind(), name), Registered { what: entry, file })
            {
                let theirs =
                    self.origin(old.what.about().origin, old.what.about().version, old.file);
                return Err(Error::new(format!(
                    "two {} are called `{name}`: one of {theirs}, one of {ours}",
                    entry.kind().plural()
                )));
            }
        }
        Ok(())
    }

    /// A crate and where it is: ``twist 0.1.0 in `libtwist.so` ``.
    fn origin(&self, crate_name: &str, version: &str, file: Option<usize>) -> String {
        match file.and_then(|number| self.loaded.get(number)) {
            Some(loaded) => format!("{crate_name} {version} in `{}`", loaded.path.display()),
            None => format!("{crate_name} {version}, which is built in"),
        }
    }

    /// All plugins of a kind, by name, each once.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = Entry> {
        self.entries
            .iter()
            .filter(move |((k, name), e)| *k == kind && *name == e.what.about().name)
            .map(|(_, e)| e.what)
    }

    /// All plugins of the kind of `E`, by name, each once.
    pub fn all<E: TypedEntry>(&self) -> impl Iterator<Item = &'static E> {
        self.of(E::KIND).filter_map(E::of_entry)
    }

    /// The plugin of that kind and name (or alias).
    ///
    /// # Errors
    /// Fails if there is none; names all, and the nearest.
    pub fn get(&self, kind: Kind, name: &str) -> Result<Entry> {
        let found = self.entries.iter().find(|((k, n), _)| *k == kind && *n == name);
        found.map(|(_, e)| e.what).ok_or_else(|| self.unknown(kind, name))
    }

    fn typed<E: TypedEntry>(&self, name: &str) -> Result<&'static E> {
        let named = self.entries.iter().filter(|((_, n), _)| *n == name);
        named.map(|(_, e)| e.what).find_map(E::of_entry).ok_or_else(|| self.unknown(E::KIND, name))
    }

    /// The intervention of that name (or alias).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn intervention(&self, name: &str) -> Result<&'static InterventionEntry> {
        self.typed(name)
    }

    /// The adapter of that name (or alias).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn adapter(&self, name: &str) -> Result<&'static AdapterEntry> {
        self.typed(name)
    }

    /// The transform of that name (or alias).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn transform(&self, name: &str) -> Result<&'static TransformEntry> {
        self.typed(name)
    }

    /// The tap of that name (or alias).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn tap(&self, name: &str) -> Result<&'static TapEntry> {
        self.typed(name)
    }

    /// The data set of that name (or alias).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn dataset(&self, name: &str) -> Result<&'static DatasetEntry> {
        self.typed(name)
    }

    fn unknown(&self, kind: Kind, name: &str) -> Error {
        let unknown = Error::unknown(kind.name(), name, self.of(kind).map(|e| e.about().name));
        self.with_searched(
            unknown.hint(format!("`reprpo list {}` says what each does", kind.plural())),
        )
    }

    /// Says in which plugin files a name was looked for.
    fn with_searched(&self, error: Error) -> Error {
        let listed = |paths: Vec<&PathBuf>| {
            paths.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
        };
        let error = match &self.loaded[..] {
            [] => error.hint("no plugin file was searched: `--plugin FILE` names one"),
            loaded => error.hint(format!(
                "plugin files searched: {}",
                listed(loaded.iter().map(|l| &l.path).collect())
            )),
        };
        if self.refused.is_empty() {
            return error;
        }
        error.hint(format!(
            "not searched, as they cannot be used: {}; `reprpo plugin check FILE` says why",
            listed(self.refused.iter().collect())
        ))
    }

    /// All recipes, by name.
    pub fn recipes(&self) -> impl Iterator<Item = &Recipe> {
        self.recipes.values().map(|r| &r.what)
    }

    /// The recipe of that name.
    ///
    /// # Errors
    /// Where there is none: names all, and the nearest.
    pub fn recipe(&self, name: &str) -> Result<&Recipe> {
        let found = self.recipes.get(name).map(|r| &r.what);
        found.ok_or_else(|| {
            self.with_searched(
                Error::unknown("recipe", name, self.recipes.keys())
                    .hint("`reprpo list recipes` says what each does"),
            )
        })
    }

    /// Every plugin of that name, of whatever kind, and the recipe of that name.
    ///
    /// # Errors
    /// Where there is neither.
    pub fn find(&self, name: &str) -> Result<(Vec<Entry>, Option<&Recipe>)> {
        let hits: Vec<_> =
            Kind::ALL.into_iter().filter_map(|kind| self.get(kind, name).ok()).collect();
        let recipe = self.recipes.get(name).map(|r| &r.what);
        if hits.is_empty() && recipe.is_none() {
            let names =
                self.entries.keys().map(|(_, n)| *n).chain(self.recipes.keys().map(String::as_str));
            return Err(self.with_searched(Error::unknown("method", name, names)));
        }
        Ok((hits, recipe))
    }
}
