//! The registry: all plugins of this program, by kind and name.
//!
//! The attribute on a plugin's struct submits an [`Entry`] to `inventory`. Only the functions of
//! the entry know the plugin's type. All other code uses the plugin's name, and passes the
//! configuration as JSON text.

mod about;
mod entry;
mod kind;
mod library;
mod recipe;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use about::{About, FieldError};
pub use entry::{
    AdapterEntry, DatasetEntry, Entry, InterventionEntry, TapEntry, TransformEntry, TypedEntry,
};
pub use kind::Kind;
pub use library::PluginLibrary;
pub use recipe::{Recipe, RecipeText};

use crate::api::ModelInfo;
use crate::error::{Error, Fault, Result};

/// The plugins and recipes of this program, whether linked in or loaded from libraries.
#[derive(Debug)]
pub struct Registry {
    entries: BTreeMap<(Kind, &'static str), Registration<Entry>>,
    recipes: BTreeMap<String, Registration<Recipe>>,
    loaded: Vec<PluginLibrary>,
    refused: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
struct Registration<T> {
    value: T,
    /// Index of the library in [`Registry::loaded`]; `None` if `value` is linked in.
    file: Option<usize>,
}

impl Registry {
    /// Creates a registry of all plugins and recipes that are linked into this program.
    ///
    /// # Errors
    /// Fails if two plugins of the same kind, or two recipes, have the same name or alias, if a
    /// name has invalid characters, or if a recipe cannot be parsed.
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

    /// Creates a registry that only contains the given plugins, without recipes.
    ///
    /// # Errors
    /// Fails in the same cases as [`builtin`](Self::builtin).
    pub fn holding(entries: impl IntoIterator<Item = Entry>) -> Result<Self> {
        let mut registry = Self::empty();
        registry.add(entries, [], None)?;
        Ok(registry)
    }

    /// Adds the plugins and recipes of a library. If this fails, nothing is added. Does nothing if
    /// the library has already been added.
    ///
    /// # Errors
    /// Fails if a name is invalid or already in use. The error for a name in use gives the origins
    /// of both plugins.
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

    /// Records that a file in the plugin folder could not be loaded. Errors about unknown names
    /// mention the file.
    pub fn refuse(&mut self, path: PathBuf) {
        self.refused.push(path);
    }

    /// The loaded libraries, in the order in which they were added.
    pub fn loaded(&self) -> &[PluginLibrary] {
        &self.loaded
    }

    /// The library that a plugin came from; `None` if the plugin is linked in.
    pub fn file_of(&self, entry: Entry) -> Option<&PluginLibrary> {
        self.entries
            .get(&(entry.kind(), entry.about().name))
            .and_then(|registration| self.file(registration))
    }

    /// The library that a recipe came from; `None` if the recipe is linked in.
    pub fn file_of_recipe(&self, name: &str) -> Option<&PluginLibrary> {
        self.recipes.get(name).and_then(|registration| self.file(registration))
    }

    fn file<T>(&self, registration: &Registration<T>) -> Option<&PluginLibrary> {
        registration.file.and_then(|number| self.loaded.get(number))
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
                self.recipes.insert(recipe.name.clone(), Registration { value: recipe, file })
            {
                let theirs = self.origin(old.value.origin, old.value.version, old.file);
                return Err(Error::new(format!(
                    "two recipes are called `{}`: one from {theirs}, one from {ours}",
                    old.value.name
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
                    "invalid {} name `{name}` in {ours}: names must only contain a-z, 0-9 and -",
                    entry.kind().name()
                )));
            }
            if let Some(old) =
                self.entries.insert((entry.kind(), name), Registration { value: entry, file })
            {
                let theirs =
                    self.origin(old.value.about().origin, old.value.about().version, old.file);
                return Err(Error::new(format!(
                    "two {} are called `{name}`: one from {theirs}, one from {ours}",
                    entry.kind().plural()
                )));
            }
        }
        Ok(())
    }

    /// Describes the origin of a plugin or recipe, e.g. ``twist 0.1.0 in `libtwist.so` ``.
    fn origin(&self, crate_name: &str, version: &str, file: Option<usize>) -> String {
        match file.and_then(|number| self.loaded.get(number)) {
            Some(loaded) => format!("{crate_name} {version} in `{}`", loaded.path.display()),
            None => format!("{crate_name} {version}, which is built in"),
        }
    }

    /// All plugins of a kind, sorted by name. Aliases are not listed separately.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = Entry> {
        self.entries
            .iter()
            .filter(move |((k, name), e)| *k == kind && *name == e.value.about().name)
            .map(|(_, e)| e.value)
    }

    /// All plugins whose entries have the type `E`, sorted by name. Aliases are not listed
    /// separately.
    pub fn all<E: TypedEntry>(&self) -> impl Iterator<Item = &'static E> {
        self.of(E::KIND).filter_map(E::of_entry)
    }

    /// Names of the interventions that take no steps, with their default settings, on `model`.
    /// Those that need no states either come first. Builds all interventions.
    pub fn without_steps(&self, model: &ModelInfo) -> Vec<&'static str> {
        let mut found: Vec<(bool, &'static str)> = self
            .all::<InterventionEntry>()
            .filter_map(|entry| {
                let needs = entry.build("{}", model).ok()?.needs();
                needs.evaluate_only.then_some((needs.fit, entry.about.name))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name).collect()
    }

    /// Looks up a plugin by kind and name or alias.
    ///
    /// # Errors
    /// Fails if the name is unknown. The error lists all valid names and suggests the nearest one.
    pub fn get(&self, kind: Kind, name: &str) -> Result<Entry> {
        let found = self.entries.iter().find(|((k, n), _)| *k == kind && *n == name);
        found.map(|(_, e)| e.value).ok_or_else(|| self.unknown(kind, name))
    }

    fn typed<E: TypedEntry>(&self, name: &str) -> Result<&'static E> {
        let named = self.entries.iter().filter(|((_, n), _)| *n == name);
        named.map(|(_, e)| e.value).find_map(E::of_entry).ok_or_else(|| self.unknown(E::KIND, name))
    }

    /// Looks up an intervention by name or alias.
    ///
    /// # Errors
    /// Fails in the same cases as [`get`](Self::get).
    pub fn intervention(&self, name: &str) -> Result<&'static InterventionEntry> {
        self.typed(name)
    }

    /// Looks up an adapter by name or alias.
    ///
    /// # Errors
    /// Fails in the same cases as [`get`](Self::get).
    pub fn adapter(&self, name: &str) -> Result<&'static AdapterEntry> {
        self.typed(name)
    }

    /// Looks up a transform by name or alias.
    ///
    /// # Errors
    /// Fails in the same cases as [`get`](Self::get).
    pub fn transform(&self, name: &str) -> Result<&'static TransformEntry> {
        self.typed(name)
    }

    /// Looks up a tap by name or alias.
    ///
    /// # Errors
    /// Fails in the same cases as [`get`](Self::get).
    pub fn tap(&self, name: &str) -> Result<&'static TapEntry> {
        self.typed(name)
    }

    /// Looks up a data set by name or alias.
    ///
    /// # Errors
    /// Fails in the same cases as [`get`](Self::get).
    pub fn dataset(&self, name: &str) -> Result<&'static DatasetEntry> {
        self.typed(name)
    }

    fn unknown(&self, kind: Kind, name: &str) -> Error {
        let unknown = Error::unknown(kind.name(), name, self.of(kind).map(|e| e.about().name));
        self.with_searched(
            unknown.hint(format!("run `reprpo list {}` for a description of each", kind.plural())),
        )
    }

    /// Adds two hints: one lists the searched plugin files, and one lists the files that could not
    /// be loaded.
    fn with_searched(&self, error: Error) -> Error {
        let listed = |paths: Vec<&PathBuf>| {
            paths.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
        };
        let error = match &self.loaded[..] {
            [] => error.hint("no plugin libraries are loaded; load one with `--plugin FILE`"),
            loaded => error.hint(format!(
                "plugin files searched: {}",
                listed(loaded.iter().map(|l| &l.path).collect())
            )),
        };
        if self.refused.is_empty() {
            return error;
        }
        error.hint(format!(
            "not searched because they cannot be loaded: {}; run `reprpo plugin check FILE` for \
                the reason",
            listed(self.refused.iter().collect())
        ))
    }

    /// All recipes, sorted by name.
    pub fn recipes(&self) -> impl Iterator<Item = &Recipe> {
        self.recipes.values().map(|r| &r.value)
    }

    /// Looks up a recipe by name.
    ///
    /// # Errors
    /// Fails if the name is unknown. The error lists all valid names and suggests the nearest one.
    pub fn recipe(&self, name: &str) -> Result<&Recipe> {
        let found = self.recipes.get(name).map(|r| &r.value);
        found.ok_or_else(|| {
            self.with_searched(
                Error::unknown("recipe", name, self.recipes.keys())
                    .hint("run `reprpo list recipes` for a description of each"),
            )
        })
    }

    /// Looks up all plugins and the recipe with the given name. Plugins of different kinds may have
    /// the same name.
    ///
    /// # Errors
    /// Fails if no plugin and no recipe has this name.
    pub fn find(&self, name: &str) -> Result<(Vec<Entry>, Option<&Recipe>)> {
        let hits: Vec<_> =
            Kind::ALL.into_iter().filter_map(|kind| self.get(kind, name).ok()).collect();
        let recipe = self.recipes.get(name).map(|r| &r.value);
        if hits.is_empty() && recipe.is_none() {
            let names =
                self.entries.keys().map(|(_, n)| *n).chain(self.recipes.keys().map(String::as_str));
            return Err(self.with_searched(Error::unknown("method", name, names)));
        }
        Ok((hits, recipe))
    }
}
