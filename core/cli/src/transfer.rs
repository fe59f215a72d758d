//! How far the files are that come from the hub, on stderr.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use reprpo_core::hub;
use reprpo_core::report::Progress;

use crate::interrupt;
use crate::printer::Printer;

const MEGABYTE: u64 = 1_000_000;

/// Shows every file that is fetched from here on, until Ctrl-C.
pub fn show(printer: &Printer) {
    let shown = Mutex::new(Shown { progress: printer.progress(), file: None });
    hub::watch(Box::new(move |file, done, size| {
        shown.lock().unwrap_or_else(PoisonError::into_inner).at(file, done, size);
        !interrupt::asked()
    }));
}

struct Shown {
    progress: Box<dyn Progress>,
    file: Option<Under>,
}

/// The file under way.
struct Under {
    name: String,
    megabytes: u64,
    /// Bytes that were there before, and when that was.
    before: u64,
    began: Instant,
}

impl Shown {
    fn at(&mut self, file: &str, done: u64, size: u64) {
        // What is there at once needs no bar.
        if size < MEGABYTE {
            return;
        }
        if self.file.as_ref().is_none_or(|under| under.name != file) {
            self.progress.stage(&format!("fetch {file}, MB"), Some(size.div_ceil(MEGABYTE)));
            self.progress.skip(done / MEGABYTE);
            self.file = Some(Under { name: file.to_owned(), megabytes: done / MEGABYTE, before: done, began: Instant::now() });
        }
        let Some(under) = &mut self.file else { return };
        let megabytes = if done == size { size.div_ceil(MEGABYTE) } else { done / MEGABYTE };
        let rate = done.saturating_sub(under.before) as f64 / MEGABYTE as f64 / under.began.elapsed().as_secs_f64().max(1e-3);
        if megabytes > under.megabytes {
            self.progress.advance(megabytes - under.megabytes, &[("MB/s", rate)]);
            under.megabytes = megabytes;
        }
        if done == size {
            self.progress.finish();
        }
    }
}
