//! The `reprpo` command as a library, so that a custom binary can include its own plugins and
//! defaults:
//!
//! ```ignore
//! use my_methods as _;
//! fn main() -> std::process::ExitCode {
//!     reprpo_cli::main(include_str!("defaults.toml"))
//! }
//! ```

mod allocator;
mod args;
mod commands;
mod engine;
mod idle_threads;
mod interrupt;
mod printer;
mod progress;
mod ranks;
mod study_view;
mod text_generator;
mod trained;
mod transfer;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;

use clap::FromArgMatches;
use reprpo_core::error::{Fault, quoted};
use reprpo_core::ffi::end_process;
use reprpo_core::guard::faults;
use reprpo_core::hub;
use reprpo_core::panics;
use reprpo_core::plugin;
use reprpo_core::registry::Registry;
use reprpo_core::world::World;
use reprpo_core::{Error, Result};

use args::{Cli, Command};
use printer::Printer;

/// The context that every command receives.
struct App<'a> {
    /// The built-in and the loaded plugins.
    registry: &'a Registry,
    /// The default configuration of this binary, as TOML.
    defaults: &'a str,
    printer: &'a Printer,
    /// True if `--offline` was given.
    offline: bool,
    /// The ranks that execute this command together.
    world: Arc<World>,
}

/// Parses the command-line arguments of this process and runs the command. `defaults` is the
/// default configuration of the binary, as TOML.
///
/// The exit code is 0 on success, 1 if the input is not valid, 2 for usage errors and internal
/// errors, and 130 if the process was interrupted.
pub fn main(defaults: &str) -> ExitCode {
    let mut registry = match Registry::builtin() {
        Ok(registry) => registry,
        Err(e) => return fail(&Printer::default(), &e),
    };
    let checked =
        |matches| args::check_resume(&matches, || args::command(&registry)).map(|()| matches);
    let matches = match args::command(&registry).try_get_matches().and_then(checked) {
        Ok(matches) => matches,
        Err(e) => {
            // Parse again with the installed plugins, so that the help lists their names too.
            install(&mut registry);
            let e = args::command(&registry).try_get_matches().err().unwrap_or(e);
            // If the output cannot be written, there is no other way to report the error.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => {
            return fail(
                &Printer::default(),
                &Error::internal("cannot read the values of the parsed command line").because(e),
            );
        }
    };
    idle_threads::let_sleep(&cli.command);
    let printer = Printer::new(&cli.global);
    log(&cli.global, &printer);
    let world = match ranks::join(&cli.command) {
        Ok(world) => world,
        Err(e) => return fail(&printer, &e),
    };
    let printer = printer.of_rank(&world);
    let offline = cli.global.offline;
    if offline {
        hub::stay_offline();
    }
    transfer::show(&printer);
    let work = || {
        // `reprpo plugin` must not load installed plugins. The command may check one of them, and a
        // name cannot be registered twice.
        if !matches!(cli.command, Command::Plugin(_)) {
            install(&mut registry);
        }
        for plugin in cli.plugins()? {
            plugin.load(&mut registry)?;
        }
        let outcome = dispatch(
            cli.command,
            &App {
                registry: &registry,
                defaults,
                printer: &printer,
                offline,
                world: Arc::clone(&world),
            },
        );
        match (outcome, faults::check()) {
            (Ok(()), fault) => fault,
            (Err(e), Ok(())) => Err(e),
            (Err(e), Err(fault)) => Err(e.hint(format!("another error occurred: {fault}"))),
        }
    };
    let outcome = guarded(work);
    world.leave(outcome.as_ref().err());
    let code = outcome.map_or_else(|e| report(&printer, &e), |()| 0);
    if world.size() > 1 {
        end_process(code);
    }
    ExitCode::from(code)
}

/// Loads the libraries in the plugin folder. A library that cannot be loaded is skipped with a
/// warning, because the command may not need it.
fn install(registry: &mut Registry) {
    for path in plugin::installed() {
        if let Err(e) = plugin::load(&path).and_then(|loaded| registry.add_plugin(loaded)) {
            tracing::warn!(
                "skipped a plugin: {e}; run `reprpo plugin check {}` for details",
                quoted(&path)
            );
            registry.refuse(path);
        }
    }
}

fn dispatch(command: Command, app: &App<'_>) -> Result<()> {
    match command {
        Command::Run(args) => commands::run::run(&args, app),
        Command::Sweep(args) => commands::sweep::run(&args, app),
        Command::Compare(args) => commands::compare::run(&args, app),
        Command::Report(args) => commands::report::run(&args, app),
        Command::Eval(args) => commands::eval::run(&args, app),
        Command::Score(args) => commands::score::run(&args, app),
        Command::States(args) => commands::states::run(&args, app),
        Command::Export(args) => commands::export::run(&args, app),
        Command::Generate(args) => commands::generate::run(&args, app),
        Command::Chat(args) => commands::chat::run(&args, app),
        Command::List(args) => commands::list::run(&args, app),
        Command::Explain(args) => commands::explain::run(&args, app),
        Command::Reproduce(args) => commands::reproduce::run(&args, app),
        Command::Config(args) => commands::config::run(&args, app),
        Command::Data(args) => commands::data::run(&args, app),
        Command::Cache(args) => commands::cache::run(&args, app),
        Command::Model(args) => commands::model::run(&args, app),
        Command::New(args) => commands::new::run(&args, app),
        Command::Plugin(args) => commands::plugin::run(&args, app),
        Command::Doctor(args) => commands::doctor::run(&args, app),
        Command::Selftest(args) => commands::selftest::run(&args, app),
        Command::Bench(args) => commands::bench::run(&args, app),
    }
}

fn fail(printer: &Printer, error: &Error) -> ExitCode {
    ExitCode::from(report(printer, error))
}

/// Prints an error, and returns the exit code of the process.
fn report(printer: &Printer, error: &Error) -> u8 {
    if broken_pipe(error) {
        return 0;
    }
    printer.error(error);
    match error.fault() {
        Fault::Input => 1,
        Fault::Internal => 2,
        Fault::Interrupted => 130,
    }
}

/// True if the error was caused by a closed pipe, for example when `head` has read enough lines.
fn broken_pipe(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if e.downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
        {
            return true;
        }
        source = e.source();
    }
    false
}

/// Runs `work` and converts a panic to an internal error. A panic because of missing memory is the
/// fault of the input.
fn guarded(work: impl FnOnce() -> Result<()>) -> Result<()> {
    panics::install_hook();
    let outcome = catch_unwind(AssertUnwindSafe(work));
    outcome.unwrap_or_else(|payload| {
        let e = Error::panicked("reprpo", payload.as_ref());
        if let Some(memory) = e.out_of_memory() {
            return Err(Error::new(format!("memory ran out: {memory}")).because(e));
        }
        Err(e.hint(
            "this is a bug in reprpo: please report it together with the command and its output \
                with `REPRPO_LOG=debug`",
        ))
    })
}

fn log(global: &args::Global, printer: &Printer) {
    use tracing_subscriber::EnvFilter;
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let custom = std::env::var("REPRPO_LOG").ok().filter(|f| !f.is_empty());
    let filter = EnvFilter::try_new(custom.as_deref().unwrap_or(level)).unwrap_or_else(|e| {
        printer.note(&format!(
            "warning: `REPRPO_LOG` is not a valid filter, so the level is {level}: {e}"
        ));
        EnvFilter::new(level)
    });
    let ansi = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .without_time()
        .with_target(false)
        .log_internal_errors(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_internal_error() {
        let e = guarded(|| panic!("three\nlines\nof text")).expect_err("an error");
        let text = format!("{e:?}");
        assert!(
            text.starts_with("reprpo panicked\n  because three (core/cli/src/lib.rs:")
                && !text.contains("lines"),
            "{text}"
        );
        assert_eq!(e.fault(), Fault::Internal);
    }

    #[test]
    fn a_broken_pipe_is_not_a_failure() {
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(broken_pipe(&Error::new("cannot write").because(gone).within("listing")));
        assert!(!broken_pipe(&Error::new("cannot write")));
    }
}
