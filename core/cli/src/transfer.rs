//! Progress of downloads, on stderr.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use reprpo_core::hub;
use reprpo_core::report::Progress;
use reprpo_downloads::{Report, Step};

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
            self.file = Some(Under {
                name: file.to_owned(),
                megabytes: done / MEGABYTE,
                before: done,
                began: Instant::now(),
            });
        }
        let Some(under) = &mut self.file else { return };
        let megabytes = if done == size { size.div_ceil(MEGABYTE) } else { done / MEGABYTE };
        let rate = done.saturating_sub(under.before) as f64
            / MEGABYTE as f64
            / under.began.elapsed().as_secs_f64().max(1e-3);
        if megabytes > under.megabytes {
            self.progress.advance(megabytes - under.megabytes, &[("MB/s", rate)]);
            under.megabytes = megabytes;
        }
        if done == size {
            self.progress.finish();
        }
    }
}

/// Shows a download from the package index.
pub struct Download<'a> {
    printer: &'a Printer,
    progress: Box<dyn Progress>,
    /// Bytes of the step; 0 if the step is not shown.
    total: u64,
    done: u64,
    began: Instant,
}

impl<'a> Download<'a> {
    /// Nothing is shown yet.
    pub fn new(printer: &'a Printer) -> Self {
        Self { printer, progress: printer.progress(), total: 0, done: 0, began: Instant::now() }
    }
}

impl Report for Download<'_> {
    fn line(&mut self, text: &str) {
        self.printer.note(text);
    }

    fn begin(&mut self, step: Step, file: &str, total: u64) {
        // Checking and unpacking a model take a second.
        let shown = step == Step::Fetch && total >= MEGABYTE;
        (self.total, self.done, self.began) = (if shown { total } else { 0 }, 0, Instant::now());
        if shown {
            self.progress.stage(&format!("fetch {file}, MB"), Some(total.div_ceil(MEGABYTE)));
        }
    }

    fn advance(&mut self, bytes: u64) {
        let before = self.done;
        self.done += bytes;
        if self.total == 0 {
            return;
        }
        // The last megabyte is rarely whole.
        let whole = |bytes: u64| {
            if bytes == self.total { bytes.div_ceil(MEGABYTE) } else { bytes / MEGABYTE }
        };
        let megabytes = whole(self.done) - whole(before);
        if megabytes > 0 {
            let rate =
                self.done as f64 / MEGABYTE as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
            self.progress.advance(megabytes, &[("MB/s", rate)]);
        }
    }

    fn end(&mut self) {
        self.progress.finish();
    }
}
