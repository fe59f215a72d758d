//! The part of the interface that runs in a plugin's copy of this crate. It registers the plugin's
//! entries with the host, and forwards the plugin's log records to the host.

use std::ffi::c_void;
use std::fmt::Write;
use std::panic::catch_unwind;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::host::Host;
use crate::guard::host_link;
use crate::hub;
use crate::panics;
use crate::registry::{Entry, RecipeText};

/// Registers the library's entries and recipes with the host. The host only calls this function if
/// the fingerprints match.
pub(super) unsafe extern "C" fn register(host: *const Host) {
    // A panic must not cross the FFI boundary. No panic is expected, because the plugin author's
    // code does not run here.
    let _ = catch_unwind(|| {
        // SAFETY: the host passes a valid pointer that lives during this call.
        let host = unsafe { &*host };
        connect(host);
        for entry in inventory::iter::<Entry> {
            // SAFETY: `host.sink` is a valid argument for `host.entry`, and `entry` lives as long
            // as this library.
            unsafe { (host.entry)(host.sink, entry) };
        }
        for recipe in inventory::iter::<RecipeText> {
            // SAFETY: `host.sink` is a valid argument for `host.recipe`, and `recipe` lives as
            // long as this library.
            unsafe { (host.recipe)(host.sink, recipe) };
        }
    });
}

/// Connects this library to the host. Errors from callbacks, log records and download progress are
/// forwarded to the host. The offline setting is copied from the host. Only the first call has an
/// effect.
fn connect(host: &Host) {
    // SAFETY: the strings in `Host` live as long as the process.
    let (label, name) =
        unsafe { (utf8(host.label, host.label_len), utf8(host.name, host.name_len)) };
    let first = host_link::keep(label, host.fault);
    if first {
        panics::install_hook();
        let level = match host.level {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        if host.offline != 0 {
            hub::stay_offline();
        }
        let fetched = host.fetched;
        hub::watch(Box::new(move |file, done, size| {
            fetched(file.as_ptr(), file.len(), done, size) != 0
        }));
        // If the plugin has already set a subscriber, this call fails, and the plugin's subscriber
        // stays in place.
        let _ = tracing::subscriber::set_global_default(Forward { level, name, log: host.log });
    }
}

/// Converts a string that the host passed as a pointer and a length.
///
/// # Safety
/// `text` must point to `len` bytes that live as long as the process.
unsafe fn utf8(text: *const u8, len: usize) -> &'static str {
    // SAFETY: guaranteed by the caller.
    std::str::from_utf8(unsafe { std::slice::from_raw_parts(text, len) }).unwrap_or("a plugin")
}

/// Sends each log record to the host as a line of text. Spans are ignored.
struct Forward {
    level: LevelFilter,
    name: &'static str,
    log: extern "C" fn(u32, *const u8, usize),
}

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}: {}{}", self.name, line.message, line.fields);
        (self.log)(number(event.metadata().level()), text.as_ptr(), text.len());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The formatted message and fields of a log record.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// The number that the binary interface uses for a log level.
pub(super) fn number(level: &Level) -> u32 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// The entries and recipes that a library has registered. [`Host::sink`] points to this
/// struct.
#[derive(Default)]
pub(super) struct Registrations {
    pub entries: Vec<Entry>,
    pub recipes: Vec<&'static RecipeText>,
}

/// Adds an entry to [`Registrations`].
///
/// # Safety
/// `sink` must point to `Registrations`, and the references in `entry` must live as long as the
/// process.
pub(super) unsafe extern "C" fn take_entry(sink: *mut c_void, entry: *const Entry) {
    // SAFETY: guaranteed by the caller.
    let (sink, entry) = unsafe { (&mut *sink.cast::<Registrations>(), *entry) };
    sink.entries.push(entry);
}

/// Adds a recipe to [`Registrations`].
///
/// # Safety
/// `sink` must point to `Registrations`, and `recipe` must live as long as the process.
pub(super) unsafe extern "C" fn take_recipe(sink: *mut c_void, recipe: *const RecipeText) {
    // SAFETY: guaranteed by the caller.
    let (sink, recipe) = unsafe { (&mut *sink.cast::<Registrations>(), &*recipe) };
    sink.recipes.push(recipe);
}
