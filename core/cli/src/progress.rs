//! Shows the progress of a computation on stderr.

use std::fmt::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use reprpo_core::report::Progress;

use crate::printer::line;

/// A progress bar for a terminal.
#[derive(Default)]
pub struct Bar(Option<ProgressBar>);

impl Progress for Bar {
    fn stage(&mut self, name: &str, total: Option<u64>) {
        self.finish();
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = match total {
            // This fits into 80 columns.
            Some(_) => "{prefix} {bar:12.cyan} {pos}/{len}  {msg}  {left:.dim}",
            None => "{prefix} {spinner} {pos}  {msg}  {elapsed:.dim}",
        };
        // The templates are valid, so the fallback is never used.
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // The remaining time is unknown before the first step.
        let left = |state: &ProgressState, out: &mut dyn Write| {
            if state.pos() > 0 {
                let _ = write!(out, "{} left", time(state.eta()));
            }
        };
        bar.set_style(style.with_key("left", left).progress_chars("━╸ "));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        self.0 = Some(bar);
    }

    fn skip(&mut self, by: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(by);
            bar.reset_eta();
        }
    }

    fn advance(&mut self, by: u64, fields: &[(&str, f64)]) {
        if let Some(bar) = &self.0 {
            bar.inc(by);
            if !fields.is_empty() {
                bar.set_message(shown(fields));
            }
        }
    }

    fn message(&mut self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| line(text)),
            None => line(text),
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    /// Clears the bar. Otherwise, an error message would follow it on the same line.
    fn drop(&mut self) {
        self.finish();
    }
}

/// Shows progress as lines, for output to a file or a pipe. Prints at most one line every ten
/// seconds, and one at the end of each stage.
#[derive(Default)]
pub struct Lines {
    name: String,
    total: Option<u64>,
    skipped: u64,
    done: u64,
    began: Option<Instant>,
    last_line: Option<Instant>,
}

/// Minimum time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

impl Progress for Lines {
    fn stage(&mut self, name: &str, total: Option<u64>) {
        let now = Some(Instant::now());
        let name = name.to_owned();
        *self = Self { name, total, skipped: 0, done: 0, began: now, last_line: now };
    }

    fn skip(&mut self, by: u64) {
        self.skipped += by;
        self.done += by;
    }

    fn advance(&mut self, by: u64, fields: &[(&str, f64)]) {
        self.done += by;
        let last = self.total.is_some_and(|t| self.done >= t);
        if last || self.last_line.is_some_and(|t| t.elapsed() >= PAUSE) {
            line(&self.line(fields, self.began.map_or(Duration::ZERO, |b| b.elapsed())));
            self.last_line = Some(Instant::now());
        }
    }

    fn message(&mut self, text: &str) {
        line(text);
    }

    fn finish(&mut self) {}
}

impl Lines {
    fn line(&self, fields: &[(&str, f64)], elapsed: Duration) -> String {
        let of = self.total.map_or_else(String::new, |t| format!("/{t}"));
        let here = self.done - self.skipped;
        let left = match self.total.map_or(0, |t| t.saturating_sub(self.done)) {
            left if left > 0 && here > 0 => {
                format!(", {} left", time(elapsed.mul_f64(left as f64 / here as f64)))
            }
            _ => String::new(),
        };
        let parts = [
            format!("{} {}{of}", self.name, self.done),
            shown(fields),
            format!("{} elapsed{left}", time(elapsed)),
        ];
        parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("  ")
    }
}

pub fn time(duration: Duration) -> String {
    match duration.as_secs_f64().round() as u64 {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min {:02} s", s / 60, s % 60),
        s => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// Formats fields as text, e.g. `loss 0.5000`. The name of a rate is its unit, so it follows the
/// value, e.g. `2.81 pairs/s`.
pub fn shown(fields: &[(&str, f64)]) -> String {
    let field = |(name, value): &(&str, f64)| {
        if name.ends_with("/s") {
            format!("{value:.2} {name}")
        } else {
            format!("{name} {}", number(*value))
        }
    };
    fields.iter().map(field).collect::<Vec<_>>().join("  ")
}

/// A number with about four significant digits.
fn number(v: f64) -> String {
    match v.abs() {
        a if a != 0.0 && !(1e-3..1e5).contains(&a) => format!("{v:.2e}"),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.2}"),
        _ => format!("{v:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_four_significant_digits() {
        assert_eq!(
            [0.0, 0.71828, 12.3456, 1234.5, 1e-5, -0.25, 1e9].map(number),
            ["0.0000", "0.7183", "12.35", "1234", "1.00e-5", "-0.2500", "1.00e9"]
        );
    }

    #[test]
    fn a_line_has_the_stage_the_step_the_fields_and_the_time() {
        let lines = Lines { name: "train".into(), total: Some(40), done: 4, ..Lines::default() };
        let fields = [("loss", 0.5), ("pairs/s", 2.8125)];
        assert_eq!(
            lines.line(&fields, Duration::from_secs(9)),
            "train 4/40  loss 0.5000  2.81 pairs/s  9 s elapsed, 1 min 21 s left"
        );
        assert_eq!(lines.line(&[], Duration::ZERO), "train 4/40  0 s elapsed, 0 s left");
        let over = Lines { done: 40, ..lines };
        assert_eq!(over.line(&[], Duration::from_secs(3700)), "train 40/40  1 h 01 min elapsed");
    }

    #[test]
    fn the_remaining_time_does_not_count_skipped_steps() {
        let mut lines = Lines::default();
        lines.stage("train", Some(100));
        lines.skip(90);
        lines.advance(5, &[]);
        assert_eq!(
            lines.line(&[], Duration::from_secs(10)),
            "train 95/100  10 s elapsed, 10 s left"
        );
    }
}
