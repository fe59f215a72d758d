//! All output of the command: results go to stdout, everything else to stderr. No other file prints
//! directly.

use std::io::{IsTerminal, Write};

use anstream::ColorChoice;
use reprpo_core::report::{Progress, Silent};
use reprpo_core::study::runner::Monitor;
use reprpo_core::world::World;
use reprpo_core::{Error, Result};

use crate::args::{Color, Global};
use crate::{progress, study_view};

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[1;36m";
const PLAIN: &str = "\x1b[0m";

/// Prints a line to stderr. Errors are ignored, because a closed terminal must not end a run.
pub fn line(text: &str) {
    let _ = anstream::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Prints results, notes, errors and progress, according to the global flags.
#[derive(Debug, Default)]
pub struct Printer {
    quiet: bool,
    verbose: bool,
    /// True on all ranks but the first, which print only errors and warnings.
    silent: bool,
}

impl Printer {
    /// Creates a printer from the global flags, and applies `--color` to the whole process.
    pub fn new(global: &Global) -> Self {
        let choice = match global.color {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        };
        choice.write_global();
        Self { quiet: global.quiet, verbose: global.verbose > 0, silent: false }
    }

    /// The printer of a rank. Only rank 0 prints results and progress.
    pub fn of_rank(self, world: &World) -> Self {
        match world.is_first() {
            true => self,
            false => Self { quiet: true, silent: true, ..self },
        }
    }

    /// Prints data to stdout. A newline is added unless `text` ends with one.
    ///
    /// # Errors
    /// Fails if stdout cannot be written to.
    pub fn data(&self, text: &str) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let mut out = anstream::stdout().lock();
        write!(out, "{text}{end}")
            .and_then(|()| out.flush())
            .map_err(|e| Error::internal("cannot write to stdout").because(e))
    }

    /// Prints part of a line to stdout and flushes it.
    ///
    /// # Errors
    /// Fails if stdout cannot be written to.
    pub fn piece(&self, text: &str) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        let mut out = anstream::stdout().lock();
        write!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(|e| Error::internal("cannot write to stdout").because(e))
    }

    /// Prints a value as indented JSON to stdout.
    ///
    /// # Errors
    /// Fails if stdout cannot be written to.
    pub fn json(&self, value: &serde_json::Value) -> Result<()> {
        self.data(&format!("{value:#}"))
    }

    /// Prints a line to stderr, unless `--quiet` was given.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            line(text);
        }
    }

    /// Prints an error with its causes and, after a blank line, its hints.
    pub fn error(&self, error: &Error) {
        let mut text = format!("{RED}error{PLAIN}: {error}\n");
        let mut source = std::error::Error::source(error);
        while let Some(e) = source {
            text.push_str(&format!("  because {e}\n"));
            source = e.source();
        }
        let hints = error.hints();
        if !hints.is_empty() {
            text.push('\n');
        }
        for hint in hints {
            text.push_str(&format!("{CYAN}hint{PLAIN}: {hint}\n"));
        }
        // If stderr is closed, the error cannot be reported anywhere else.
        let _ = anstream::stderr().lock().write_all(text.as_bytes());
    }

    /// Returns the view of a study. It follows the same rules as [`progress`](Self::progress), but
    /// `--quiet` keeps the messages about failed runs.
    pub fn monitor(&self) -> Box<dyn Monitor> {
        let silenced = std::env::var_os("REPRPO_NO_PROGRESS").is_some_and(|v| !v.is_empty());
        let bars = std::io::stderr().is_terminal() && !self.verbose && !self.quiet && !silenced;
        match bars {
            true => Box::new(study_view::Bars::default()),
            false => Box::new(study_view::Lines::new(self.quiet, silenced)),
        }
    }

    /// Returns the progress display: a bar if stderr is a terminal and `--verbose` is not set, and
    /// lines otherwise. `--quiet` and `REPRPO_NO_PROGRESS` disable the display.
    pub fn progress(&self) -> Box<dyn Progress> {
        let silenced = std::env::var_os("REPRPO_NO_PROGRESS").is_some_and(|v| !v.is_empty());
        match () {
            () if self.quiet || silenced => Box::new(Silent),
            // A bar and log lines would overwrite each other.
            () if std::io::stderr().is_terminal() && !self.verbose => {
                Box::new(progress::Bar::default())
            }
            () => Box::new(progress::Lines::default()),
        }
    }
}
