//! The `reprpo` command as a library, so that a custom binary can ship its own plugins and its own defaults:
//!
//! ```ignore
//! use my_methods as _;
//! fn main() -> std::process::ExitCode {
//!     reprpo_cli::main(include_str!("defaults.toml"))
//! }
//! ```

mod args;
mod commands;
mod engine;
mod interrupt;
mod printer;
mod progress;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::FromArgMatches;
use reprpo_core::error::Fault;
use reprpo_core::registry::Registry;
use reprpo_core::{Error, Result};

use args::{Cli, Command};
use printer::Printer;

/// What every command is given.
struct App<'a> {
    /// The plugins of this binary.
    registry: &'a Registry,
    /// The binary's own defaults, as TOML.
    defaults: &'a str,
    /// All output.
    printer: &'a Printer,
}

/// Runs the command on the process's arguments. `defaults` are the binary's own, as TOML.
///
/// Exit codes: 0, 1 for what the user gave, 2 for usage and the unexpected, 130 when interrupted.
pub fn main(defaults: &str) -> ExitCode {
    let registry = match Registry::builtin() {
        Ok(registry) => registry,
        Err(e) => return fail(&Printer::default(), &e),
    };
    let matches = match args::command(&registry).try_get_matches() {
        Ok(matches) => matches,
        Err(e) => {
            // Nobody listens: nothing left to do.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return fail(&Printer::default(), &Error::internal("the command line was read and then not understood").because(e)),
    };
    let printer = Printer::new(&cli.global);
    log(&cli.global, &printer);
    match guarded(|| dispatch(cli.command, &App { registry: &registry, defaults, printer: &printer })) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&printer, &e),
    }
}

fn dispatch(command: Command, app: &App<'_>) -> Result<()> {
    match command {
        Command::Run(args) => commands::run::run(&args, app),
        Command::Sweep(args) => commands::sweep::run(&args, app),
        Command::Eval(args) => commands::eval::run(&args, app),
        Command::Score(args) => commands::score::run(&args, app),
        Command::List(args) => commands::list::run(&args, app),
        Command::Explain(args) => commands::explain::run(&args, app),
        Command::Config(args) => commands::config::run(&args, app),
        Command::Doctor(args) => commands::doctor::run(&args, app),
    }
}

fn fail(printer: &Printer, error: &Error) -> ExitCode {
    if broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    printer.error(error);
    ExitCode::from(match error.fault() {
        Fault::Input => 1,
        Fault::Internal => 2,
        Fault::Interrupted => 130,
    })
}

/// Whether the reader of stdout has gone, as `head` does when it has enough.
fn broken_pipe(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        source = e.source();
    }
    false
}

/// The last panic, kept quiet: one in a plugin is caught and told as an error of that plugin.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs `work`; a panic in it becomes an internal error.
fn guarded(work: impl FnOnce() -> Result<()>) -> Result<()> {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("no message").lines().next().unwrap_or_default().to_owned();
        let place = info.location().map_or_else(String::new, |l| format!(" ({}:{})", l.file(), l.line()));
        tracing::debug!("panic: {text}{place}\n{}", std::backtrace::Backtrace::force_capture());
        if let Ok(mut last) = PANIC.lock() {
            *last = Some(format!("{text}{place}"));
        }
    }));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    outcome.unwrap_or_else(|_| {
        let text = PANIC.lock().ok().and_then(|mut last| last.take()).unwrap_or_else(|| "a panic without a message".to_owned());
        Err(Error::internal(format!("internal: {text}"))
            .hint("this is a defect of reprpo: please report it with the command, and with what `REPRPO_LOG=debug` prints"))
    })
}

fn log(global: &args::Global, printer: &Printer) {
    use tracing_subscriber::EnvFilter;
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let asked = std::env::var("REPRPO_LOG").ok().filter(|f| !f.is_empty());
    let filter = EnvFilter::try_new(asked.as_deref().unwrap_or(level)).unwrap_or_else(|e| {
        printer.note(&format!("warning: `REPRPO_LOG` is no filter, logging at {level}: {e}"));
        EnvFilter::new(level)
    });
    let ansi = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).without_time().with_target(false).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_internal_error() {
        let e = guarded(|| panic!("three\nlines\nof text")).expect_err("an error");
        assert!(e.message().starts_with("internal: three (") && !e.message().contains("lines"), "{}", e.message());
        assert_eq!(e.fault(), Fault::Internal);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(broken_pipe(&Error::new("cannot write").because(gone).within("listing")));
        assert!(!broken_pipe(&Error::new("cannot write")));
    }
}
