//! Handles signals that ask the process to end. After the first signal, the computation stops at a
//! point from which it can be resumed. If another signal arrives more than [`PATIENCE`] after the
//! first one, the process ends immediately.
//!
//! A terminal sends SIGHUP when it is closed, and a batch system sends SIGUSR1 or SIGUSR2 before a
//! job's time is over (`sbatch --signal`). All three are handled like SIGINT and SIGTERM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use reprpo_core::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;

/// Signals within this time after the first one count as the same request. A batch system and a
/// terminal may both send a signal. Some launchers signal each process and then the whole process
/// group.
const PATIENCE: Duration = Duration::from_secs(2);

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// True if a signal has asked the process to end since [`watch`] was called.
pub fn stop_requested() -> bool {
    STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Starts listening for signals, and returns a flag that becomes true when a signal asks the
/// process to end. Further calls return the same flag.
///
/// # Errors
/// Fails if the signal handlers or the thread that serves them cannot be set up.
pub fn watch() -> Result<Arc<AtomicBool>> {
    if let Some(stop) = STOP.get() {
        return Ok(Arc::clone(stop));
    }
    let stop = Arc::clone(STOP.get_or_init(Arc::default));
    // `nohup` starts a process with SIGHUP ignored. Keep ignoring SIGHUP, so that the process
    // outlives its terminal.
    let hang_up = Some(SIGHUP).filter(|signal| !ignored(*signal));
    let failed = |e: std::io::Error| Error::internal("cannot listen for signals").because(e);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().chain(hang_up))
        .map_err(failed)?;
    let flag = Arc::clone(&stop);
    let listen = move || {
        let mut first = None;
        for _ in signals.forever() {
            match first {
                None => {
                    first = Some(Instant::now());
                    flag.store(true, Ordering::Relaxed);
                }
                // No cleanup is needed, because an incomplete checkpoint is never used.
                Some(at) if at.elapsed() > PATIENCE => exit(130),
                Some(_) => {}
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
    Ok(stop)
}

/// True if the process was started with `signal` ignored.
fn ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, sigaction only writes the current action to `action`. All zeros
    // are a valid value of `action`.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
