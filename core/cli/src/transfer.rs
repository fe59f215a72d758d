//! Shows the progress of downloads on stderr.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use reprpo_core::hub;
use reprpo_core::report::Progress;
use reprpo_downloads::{Report, Step};

use crate::interrupt;
use crate::printer::Printer;

const MEGABYTE: u64 = 1_000_000;

/// Shows the progress of all hub downloads that start after this call, and stops them when a signal
/// asks the process to end.
pub fn show(printer: &Printer) {
    let shown = Mutex::new(HubDownloads { progress: printer.progress(), file: None });
    hub::watch(Box::new(move |file, done, size| {
        shown.lock().unwrap_or_else(PoisonError::into_inner).at(file, done, size);
        !interrupt::stop_requested()
    }));
}

/// Progress display for downloads from the hub.
struct HubDownloads {
    progress: Box<dyn Progress>,
    file: Option<CurrentFile>,
}

struct CurrentFile {
    name: String,
    /// Number of megabytes that the display shows.
    megabytes: u64,
    /// Number of bytes that an earlier, interrupted download left on disk.
    before: u64,
    began: Instant,
}

impl HubDownloads {
    /// Shows that `done` of the `size` bytes of `file` have been downloaded.
    fn at(&mut self, file: &str, done: u64, size: u64) {
        // Small files need no progress bar.
        if size < MEGABYTE {
            return;
        }
        if self.file.as_ref().is_none_or(|current| current.name != file) {
            self.progress.stage(&format!("fetch {file}, MB"), Some(size.div_ceil(MEGABYTE)));
            self.progress.skip(done / MEGABYTE);
            self.file = Some(CurrentFile {
                name: file.to_owned(),
                megabytes: done / MEGABYTE,
                before: done,
                began: Instant::now(),
            });
        }
        let Some(current) = &mut self.file else { return };
        let megabytes = if done == size { size.div_ceil(MEGABYTE) } else { done / MEGABYTE };
        let rate = done.saturating_sub(current.before) as f64
            / MEGABYTE as f64
            / current.began.elapsed().as_secs_f64().max(1e-3);
        if megabytes > current.megabytes {
            self.progress.advance(megabytes - current.megabytes, &[("MB/s", rate)]);
            current.megabytes = megabytes;
        }
        if done == size {
            self.progress.finish();
        }
    }
}

/// Progress display for a download from the package index.
pub struct Download<'a> {
    printer: &'a Printer,
    progress: Box<dyn Progress>,
    /// Size of the current download in bytes; 0 if the current step is not shown.
    total: u64,
    done: u64,
    began: Instant,
}

impl<'a> Download<'a> {
    /// Creates a display that shows nothing until the first step begins.
    pub fn new(printer: &'a Printer) -> Self {
        Self { printer, progress: printer.progress(), total: 0, done: 0, began: Instant::now() }
    }
}

impl Report for Download<'_> {
    fn line(&mut self, text: &str) {
        self.printer.note(text);
    }

    fn begin(&mut self, step: Step, file: &str, total: u64) {
        // Checking and unpacking a model takes about a second, so only the download is shown.
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
        // Round up once the download is complete, because the last megabyte is rarely full.
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
