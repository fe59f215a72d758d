//! The connection of `reprpo run --worker` to the study that started it.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reprpo_core::report::Progress;
use reprpo_core::{Error, Result};
use serde_json::{Map, Value, json};

/// Sets `stop` when stdin is closed. This also happens if the study is killed, so that its workers
/// do not go on without it.
///
/// # Errors
/// Fails if the thread that reads stdin cannot be started.
pub fn stop_with_stdin(stop: Arc<AtomicBool>) -> Result<()> {
    let read = move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 64];
        loop {
            match stdin.read(&mut buffer) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    thread.map(drop).map_err(|e| Error::internal("cannot start a thread").because(e))
}

/// Minimum time between two reports of steps.
const PAUSE: Duration = Duration::from_millis(200);

/// Writes the progress as JSON lines to stdout.
#[derive(Default)]
pub struct Reports {
    done: u64,
    total: Option<u64>,
    last: Option<Instant>,
}

impl Progress for Reports {
    fn stage(&mut self, name: &str, total: Option<u64>) {
        (self.done, self.total, self.last) = (0, total, None);
        send(&json!({ "stage": name, "total": total, "done": 0 }));
    }

    fn skip(&mut self, by: u64) {
        self.done += by;
    }

    fn advance(&mut self, by: u64, fields: &[(&str, f64)]) {
        self.done += by;
        let last = self.total == Some(self.done);
        if last || self.last.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.last = Some(Instant::now());
            let fields: Map<String, Value> =
                fields.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            send(&json!({ "done": self.done, "fields": fields }));
        }
    }

    /// Sends warnings only. The other messages are in the log of the run.
    fn message(&mut self, text: &str) {
        if text.starts_with("warning") {
            send(&json!({ "message": text }));
        }
    }

    fn finish(&mut self) {}
}

/// Writes a line to stdout. If the study has ended, nobody reads it.
fn send(event: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{event}").and_then(|()| out.flush());
}
