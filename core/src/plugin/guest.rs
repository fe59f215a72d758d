//! What runs in a plugin's copy of this crate: it hands its entries over, and sends its log to its
//! host.

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

/// Called by the host, once both sides have shown that they are of one build.
pub(super) unsafe extern "C" fn register(host: *const Host) {
    // A panic must not cross the boundary; there is no code of the plugin's author in here that
    // could raise one.
    let _ = catch_unwind(|| {
        // SAFETY: the host's, and alive during this call.
        let host = unsafe { &*host };
        settle(host);
        for entry in inventory::iter::<Entry> {
            // SAFETY: the sink goes with the function, and `entry` lives as long as this library.
            unsafe { (host.entry)(host.sink, entry) };
        }
        for recipe in inventory::iter::<RecipeText> {
            // SAFETY: as above.
            unsafe { (host.recipe)(host.sink, recipe) };
        }
    });
}

fn settle(host: &Host) {
    // SAFETY: the host says that both live as long as the process.
    let (label, name) =
        unsafe { (words(host.label, host.label_len), words(host.name, host.name_len)) };
    let first = host_link::keep(label, host.fault);
    if first {
        panics::keep_quiet();
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
        // An author's own subscriber, set before any of this, stays.
        let _ = tracing::subscriber::set_global_default(Forward { level, name, log: host.log });
    }
}

unsafe fn words(text: *const u8, len: usize) -> &'static str {
    // SAFETY: the caller's promise.
    std::str::from_utf8(unsafe { std::slice::from_raw_parts(text, len) }).unwrap_or("a plugin")
}

/// Sends each record to the host as a line of text. Spans are the plugin's own affair.
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

/// A record's text: its message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// A level as the interface counts it.
pub(super) fn number(level: &Level) -> u32 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// The sink of [`Host::entry`] and [`Host::recipe`]: what a library hands over.
#[derive(Default)]
pub(super) struct Handed {
    pub entries: Vec<Entry>,
    pub recipes: Vec<&'static RecipeText>,
}

/// Puts an entry into a [`Handed`].
///
/// # Safety
/// `sink` is one, and `entry` holds references that live as long as the process.
pub(super) unsafe extern "C" fn take_entry(sink: *mut c_void, entry: *const Entry) {
    // SAFETY: the caller's promise.
    let (sink, entry) = unsafe { (&mut *sink.cast::<Handed>(), *entry) };
    sink.entries.push(entry);
}

/// Puts a recipe into a [`Handed`].
///
/// # Safety
/// `sink` is one, and `recipe` lives as long as the process.
pub(super) unsafe extern "C" fn take_recipe(sink: *mut c_void, recipe: *const RecipeText) {
    // SAFETY: the caller's promise.
    let (sink, recipe) = unsafe { (&mut *sink.cast::<Handed>(), &*recipe) };
    sink.recipes.push(recipe);
}
