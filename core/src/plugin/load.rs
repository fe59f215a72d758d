//! Loads plugin libraries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use sha2::{Digest, Sha256};
use tracing::level_filters::LevelFilter;

use super::abi::{Fingerprint, PluginDecl, SYMBOL};
use super::guest;
use super::host::Host;
use crate::error::{Context, Error, Result};
use crate::files::hex;
use crate::guard::faults;
use crate::hub;
use crate::registry::PluginLibrary;

/// The libraries that have been loaded, by canonical path. Loading a library again returns the
/// existing entry.
static LOADED: Mutex<BTreeMap<PathBuf, PluginLibrary>> = Mutex::new(BTreeMap::new());

/// Loads the plugin library at `path`. It is never unloaded.
///
/// # Errors
/// Fails if the file is missing, is not a plugin library, or was built for a different build of
/// reprpo. If the builds differ, the error lists the differences.
pub fn load(path: &Path) -> Result<PluginLibrary> {
    let refused = || format!("`{}` cannot be used as a plugin", path.display());
    let file = path.canonicalize().map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::new(refused()).because(if missing {
            Error::new("the file does not exist")
        } else {
            Error::new("it cannot be read").because(e)
        });
        if missing {
            error.hint(
                "run `cargo build --release` in the plugin's folder, which creates \
                    `target/release/lib….so`",
            )
        } else {
            error
        }
    })?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = loaded.get(&file) {
        return Ok(known.clone());
    }
    let plugin = open(&file).within(refused)?;
    tracing::info!("plugin {} {} from `{}`", plugin.name, plugin.version, file.display());
    loaded.insert(file, plugin.clone());
    Ok(plugin)
}

fn open(file: &Path) -> Result<PluginLibrary> {
    let bytes = std::fs::read(file).within(|| "it cannot be read".to_owned())?;
    let sha256 = hex(&Sha256::digest(&bytes));
    drop(bytes);
    let decl = declaration(file)?;
    decl.recognise().map_err(|e| {
        e.hint("rebuild the plugin with the sources that this reprpo was built from")
    })?;
    // SAFETY: `recognise` succeeded, so the other fields can be read.
    let (theirs, (name, version)) = unsafe { (decl.fingerprint(), decl.crate_name()) };
    let ours = Fingerprint::ours();
    if theirs != ours {
        return Err(another_build(&name, &version, &ours, &theirs));
    }

    let leaked = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let (label, log_name) = (leaked(format!("`{}`", file.display())), leaked(name.clone()));
    let mut registrations = guest::Registrations::default();
    let host = Host {
        label: label.as_ptr(),
        label_len: label.len(),
        name: log_name.as_ptr(),
        name_len: log_name.len(),
        level: LevelFilter::current().into_level().map_or(0, |level| guest::number(&level)),
        log: take_log,
        fault: take_fault,
        offline: hub::is_offline().into(),
        fetched: show_fetched,
        sink: (&raw mut registrations).cast(),
        entry: guest::take_entry,
        recipe: guest::take_recipe,
    };
    // SAFETY: the fingerprints are equal, and `host` and its sink outlive the call.
    unsafe { (decl.register)(&raw const host) };
    let guest::Registrations { entries, recipes } = registrations;
    if entries.is_empty() && recipes.is_empty() {
        return Err(Error::new("it does not register any plugins or recipes").hint(
            "put `#[intervention(…)]`, or the attribute of its kind, on the struct of the method; \
                if the method is in another crate, add `use that_crate as _;`",
        ));
    }
    Ok(PluginLibrary { path: file.to_owned(), name, version, sha256, entries, recipes })
}

/// Opens the library and returns the value of its symbol `REPRPO_PLUGIN`. The library stays loaded.
fn declaration(file: &Path) -> Result<&'static PluginDecl> {
    // `RTLD_NOW` makes a library with undefined symbols fail here, and not in the middle of a run.
    // SAFETY: this runs the initialisers of the library. The user trusts the file, because
    // the user named it or put it into the plugin folder.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| {
        // Report the message of the system's loader. libloading's own error contains it as the
        // source.
        let reason =
            std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
        let missing = reason.contains("undefined symbol");
        let error = Error::new("the system cannot load it").because(Error::new(reason));
        if missing {
            error.hint(
                "a symbol that it needs is missing; rebuild it with the libtorch that \
                    `reprpo doctor` shows",
            )
        } else {
            error
        }
    })?;
    // SAFETY: `recognise` checks the first fields before any other field is read.
    let symbol =
        unsafe { library.get::<*const PluginDecl>(SYMBOL) }.map(|symbol| *symbol).map_err(|_| {
            Error::new(
                "it is a library, but not a reprpo plugin: it does not export `REPRPO_PLUGIN`",
            )
            .hint(
                "add `export_plugin!();` to the plugin's crate, and `crate-type = \
                    [\"cdylib\", \"rlib\"]` to its Cargo.toml",
            )
        });
    // The library must never be unloaded: its initialisers have run, and there may be pointers into
    // its memory.
    std::mem::forget(library);
    let symbol = symbol?;
    if symbol.is_null() || !symbol.is_aligned() {
        return Err(Error::new("its `REPRPO_PLUGIN` was not exported by `export_plugin!`"));
    }
    // SAFETY: the pointer refers to a static of the library, which is never unloaded.
    Ok(unsafe { &*symbol })
}

fn another_build(name: &str, version: &str, ours: &Fingerprint, theirs: &Fingerprint) -> Error {
    let differences = ours.differences(theirs);
    let what = differences
        .iter()
        .map(|(part, ours, theirs)| format!("{part} {theirs} instead of {ours}"))
        .collect::<Vec<_>>()
        .join("; ");
    let compiler = differences.iter().any(|(part, ..)| part == "rustc");
    let remedy = if compiler {
        "build the plugin and reprpo with the same compiler"
    } else {
        "run `cargo build --release` in the plugin's folder, with the sources that this reprpo was \
            built from"
    };
    Error::new(format!("`{name}` {version} was built for a different build of reprpo: {what}"))
        .because(
            Error::new(format!("the plugin was built with {theirs}"))
                .because(Error::new(format!("this reprpo was built with {ours}"))),
        )
        .hint(remedy)
}

extern "C" fn take_log(level: u32, text: *const u8, len: usize) {
    let text = received(text, len);
    // The logging macros need a level that is known at compile time.
    match level {
        1 => tracing::error!("{text}"),
        2 => tracing::warn!("{text}"),
        3 => tracing::info!("{text}"),
        4 => tracing::debug!("{text}"),
        _ => tracing::trace!("{text}"),
    }
}

extern "C" fn show_fetched(file: *const u8, len: usize, done: u64, size: u64) -> u32 {
    hub::show(&received(file, len), done, size).into()
}

extern "C" fn take_fault(message: *const u8, len: usize, cause: *const u8, cause_len: usize) {
    faults::of_plugin(&received(message, len), &received(cause, cause_len));
}

/// Copies a string that a plugin passed.
fn received(text: *const u8, len: usize) -> String {
    if text.is_null() || len == 0 {
        return String::new();
    }
    // SAFETY: the plugin's fingerprint matched, and its string is valid during the call.
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(text, len) }).into_owned()
}
