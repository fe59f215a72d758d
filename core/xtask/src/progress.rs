//! Shows progress on stderr: lines of text and, on a terminal, progress bars.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use reprpo_downloads::{Report, Step};

/// Prints a line to stderr. Stdout is reserved for the output of commands.
pub fn line(text: &str) {
    eprintln!("{text}");
}

/// Shows downloads as lines and, on a terminal, as bars.
#[derive(Default)]
pub struct Terminal {
    bar: Option<ProgressBar>,
}

impl Report for Terminal {
    fn line(&mut self, text: &str) {
        line(text);
    }

    fn begin(&mut self, step: Step, file: &str, total: u64) {
        let doing = match step {
            Step::Fetch => "fetching",
            Step::Check => "checking",
            Step::Unpack => "unpacking",
        };
        // Checking a file is fast, so only show a bar and do not print a line.
        if step != Step::Check {
            line(&format!("  {doing} {file}"));
        }
        let style = ProgressStyle::with_template(
            "  {msg:10} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
        )
        .expect("the template is constant");
        self.bar = Some(ProgressBar::new(total).with_style(style).with_message(doing));
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Formats a duration: `0.4 s`, `48 s`, `3 min 12 s`.
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 10..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_precision_of_a_duration_depends_on_its_length() {
        assert_eq!(duration(Duration::from_millis(440)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(48)), "48 s");
        assert_eq!(duration(Duration::from_secs(192)), "3 min 12 s");
    }
}
