//! All output of the command. stdout carries data, stderr the rest, and no other file prints.

use std::io::{IsTerminal, Write};

use anstream::ColorChoice;
use reprpo_core::report::{Progress, Silent};
use reprpo_core::{Error, Result};

use crate::args::{Color, Global};
use crate::progress;

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[1;36m";
const PLAIN: &str = "\x1b[0m";

/// Prints a line to stderr. Errors are ignored, because a terminal that was closed must not end a
/// run.
pub fn line(text: &str) {
    let _ = anstream::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Decides what is printed, where and in which colour.
#[derive(Debug, Default)]
pub struct Printer {
    quiet: bool,
    verbose: bool,
}

impl Printer {
    /// As the global flags ask. `--color` and `NO_COLOR` hold for the whole process.
    pub fn new(global: &Global) -> Self {
        let choice = match global.color {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        };
        choice.write_global();
        Self { quiet: global.quiet, verbose: global.verbose > 0 }
    }

    /// Data, to stdout. Ends with a newline whatever `text` does.
    ///
    /// # Errors
    /// Where stdout cannot be written to.
    pub fn data(&self, text: &str) -> Result<()> {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let mut out = anstream::stdout().lock();
        write!(out, "{text}{end}")
            .and_then(|()| out.flush())
            .map_err(|e| Error::internal("cannot write to stdout").because(e))
    }

    /// A piece of a line, to stdout, at once.
    ///
    /// # Errors
    /// Where stdout cannot be written to.
    pub fn piece(&self, text: &str) -> Result<()> {
        let mut out = anstream::stdout().lock();
        write!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(|e| Error::internal("cannot write to stdout").because(e))
    }

    /// A value as indented JSON, to stdout.
    ///
    /// # Errors
    /// Where stdout cannot be written to.
    pub fn json(&self, value: &serde_json::Value) -> Result<()> {
        self.data(&format!("{value:#}"))
    }

    /// A line about what goes on, unless `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            line(text);
        }
    }

    /// An error: what, because of what, and after a blank line what to do.
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
        // Where stderr is gone, there is nobody to tell.
        let _ = anstream::stderr().lock().write_all(text.as_bytes());
    }

    /// What shows how far a computation is: a bar on a terminal, lines elsewhere, nothing where
    /// that was asked for.
    pub fn progress(&self) -> Box<dyn Progress> {
        let silenced = std::env::var_os("REPRPO_NO_PROGRESS").is_some_and(|v| !v.is_empty());
        match () {
            () if self.quiet || silenced => Box::new(Silent),
            // A bar and log lines would write over each other.
            () if std::io::stderr().is_terminal() && !self.verbose => {
                Box::new(progress::Bar::default())
            }
            () => Box::new(progress::Lines::default()),
        }
    }
}
