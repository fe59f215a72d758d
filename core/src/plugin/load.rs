//! Opens a plugin's library, and takes from it what fits.

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

/// By path: a library that is asked for again is the one that is there.
static LOADED: Mutex<BTreeMap<PathBuf, PluginLibrary>> = Mutex::new(BTreeMap::new());

/// Loads the library in `path`. It is never unloaded.
///
/// # Errors
/// A file that is missing, no library, no plugin, or of another build than this program; names both
/// builds.
pub fn load(path: &Path) -> Result<PluginLibrary> {
    let refused = || format!("`{}` cannot be used as a plugin", path.display());
    let file = path.canonicalize().map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::new(refused()).because(if missing {
            Error::new(
                "there is no such \
            file",
            )
        } else {
            Error::new("it cannot be read").because(e)
        });
        if missing {
            error.hint(
                "`cargo build --release` in the plugin's folder makes \
            `target/release/lib…`, and says where",
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
        e.hint("build the plugin again, against the sources that this reprpo was built from")
    })?;
    // SAFETY: it is one of ours.
    let (theirs, (name, version)) = unsafe { (decl.fingerprint(), decl.crate_name()) };
    let ours = Fingerprint::ours();
    if theirs != ours {
        return Err(another_build(&name, &version, &ours, &theirs));
    }

    let leaked = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let (label, name_there) = (leaked(format!("`{}`", file.display())), leaked(name.clone()));
    let mut handed = guest::Handed::default();
    let host = Host {
        label: label.as_ptr(),
        label_len: label.len(),
        name: name_there.as_ptr(),
        name_len: name_there.len(),
        level: LevelFilter::current().into_level().map_or(0, |level| guest::number(&level)),
        log: take_log,
        fault: take_fault,
        offline: hub::is_offline().into(),
        fetched: show_fetched,
        sink: (&raw mut handed).cast(),
        entry: guest::take_entry,
        recipe: guest::take_recipe,
    };
    // SAFETY: both are of one build; `host` and its sink live during the call.
    unsafe { (decl.register)(&raw const host) };
    let guest::Handed { entries, recipes } = handed;
    if entries.is_empty() && recipes.is_empty() {
        return Err(Error::new("it registers nothing").hint(
            "write `#[intervention(…)]`, or the attribute of its kind, above the struct of \
                the method, and name the crates that it is in",
        ));
    }
    Ok(PluginLibrary { path: file.to_owned(), name, version, sha256, entries, recipes })
}

/// The symbol of the library in `file`, which stays loaded.
fn declaration(file: &Path) -> Result<&'static PluginDecl> {
    // SAFETY: runs the library's initialisers: the user named the file, or put it into the plugin
    // folder. A library that refers to what is not there is refused at once and not when a step
    // first needs it.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| {
        // libloading's own words leave the loader's out.
        let said = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
        let missing = said.contains("undefined symbol");
        let error = Error::new("the system cannot load it").because(Error::new(said));
        if missing {
            error.hint(
                "it needs something that is not here: build it again, against the \
            libtorch that `reprpo doctor` shows",
            )
        } else {
            error
        }
    })?;
    // SAFETY: what lies there is judged by its first bytes before anything else of it is read.
    let symbol =
        unsafe { library.get::<*const PluginDecl>(SYMBOL) }.map(|symbol| *symbol).map_err(|_| {
            Error::new("it is a library, but no reprpo plugin: it has no `REPRPO_PLUGIN`").hint(
                "a plugin's crate says `export_plugin!();`, and `crate-type = \
                [\"cdylib\", \"rlib\"]` in its Cargo.toml",
            )
        });
    // Its initialisers have run, and from here on there may be pointers into it.
    std::mem::forget(library);
    let symbol = symbol?;
    if symbol.is_null() || !symbol.is_aligned() {
        return Err(Error::new("its `REPRPO_PLUGIN` is not what `export_plugin!` makes"));
    }
    // SAFETY: a static of the library, which is never unloaded.
    Ok(unsafe { &*symbol })
}

fn another_build(name: &str, version: &str, ours: &Fingerprint, theirs: &Fingerprint) -> Error {
    let differences = ours.differences(theirs);
    let what = differences
        .iter()
        .map(|(part, ours, theirs)| format!("{part} {theirs} there, {ours} here"))
        .collect::<Vec<_>>()
        .join("; ");
    let compiler = differences.iter().any(|(part, ..)| part == "rustc");
    let remedy = if compiler {
        "build the plugin with the compiler that built this reprpo, or build both with one"
    } else {
        "build the plugin again, against the sources that this reprpo was built from: `cargo \
            build --release` in its folder"
    };
    Error::new(format!("`{name}` {version} is of another build: {what}"))
        .because(
            Error::new(format!("the plugin is {theirs}"))
                .because(Error::new(format!("this reprpo is {ours}"))),
        )
        .hint(remedy)
}

extern "C" fn take_log(level: u32, text: *const u8, len: usize) {
    let text = received(text, len);
    // A macro's level is a constant.
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

/// Text of a plugin.
fn received(text: *const u8, len: usize) -> String {
    if text.is_null() || len == 0 {
        return String::new();
    }
    // SAFETY: a plugin of this very build passes a string of its own that outlives the call.
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(text, len) }).into_owned()
}
