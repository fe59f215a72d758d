//! Lets the threads of OpenMP sleep soon after they run out of work.
//!
//! By default, a thread of GNU OpenMP that waits for the others spins for several milliseconds. If
//! another program needs the same cores, two waiting programs take turns at spinning, and both
//! become several times slower. Sleeping after some microseconds avoids this, and costs 2 to 4 per
//! cent of the speed on an idle machine.

use super::args::Command;

/// The variable with the number of turns that a waiting thread of GNU OpenMP spins.
const VARIABLE: &str = "GOMP_SPINCOUNT";
/// With this number of turns, a thread waits for about 20 microseconds.
const TURNS: &str = "1000";

/// Starts this program again with the setting if the command computes and the user has not chosen a
/// setting. OpenMP reads its variables when it is loaded, which is before `main`. Returns if the
/// setting is not needed, or if the program cannot be started again.
pub fn let_sleep(command: &Command) {
    let chosen = [VARIABLE, "OMP_WAIT_POLICY"].iter().any(|name| std::env::var_os(name).is_some());
    let single = std::env::var("OMP_NUM_THREADS").is_ok_and(|threads| threads.trim() == "1");
    if !chosen && !single && computes(command) {
        start_again();
    }
}

/// True if the command may compute for more than a moment.
fn computes(command: &Command) -> bool {
    match command {
        Command::Doctor(_)
        | Command::Selftest(_)
        | Command::Bench(_)
        | Command::Run(_)
        | Command::Sweep(_)
        | Command::Reproduce(_)
        | Command::Eval(_)
        | Command::Score(_)
        | Command::Generate(_)
        | Command::Chat(_)
        | Command::States(_)
        | Command::Export(_) => true,
        Command::List(_)
        | Command::Explain(_)
        | Command::Model(_)
        | Command::Cache(_)
        | Command::Compare(_)
        | Command::Report(_)
        | Command::Config(_)
        | Command::Data(_)
        | Command::New(_)
        | Command::Plugin(_) => false,
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn start_again() {
    use std::os::unix::process::CommandExt;

    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let Ok(program) = std::env::current_exe() else { return };
    // `exec` only returns if it fails. The program then continues without the setting.
    let _error =
        std::process::Command::new(program).arg0(name).args(arguments).env(VARIABLE, TURNS).exec();
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn start_again() {}
