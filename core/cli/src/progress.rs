//! How far a computation is, on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reprpo_core::report::Progress;

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn stage(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self, _: u64, _: &[(&str, f64)]) {}
    fn message(&mut self, _: &str) {}
    fn finish(&mut self) {}
}

/// A bar that moves, for a terminal.
#[derive(Default)]
pub struct Bar(Option<ProgressBar>);

impl Progress for Bar {
    fn stage(&mut self, name: &str, total: Option<u64>) {
        self.finish();
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = match total {
            Some(_) => "{prefix:<12} {bar:24.cyan} {pos}/{len}  {msg}  {per_sec:.dim}  {eta:.dim}",
            None => "{prefix:<12} {spinner} {pos}  {msg}  {elapsed:.dim}",
        };
        // The templates are right; were one not, the plain bar would do.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸ "));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        self.0 = Some(bar);
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
            Some(bar) => bar.suspend(|| anstream::eprintln!("{text}")),
            None => anstream::eprintln!("{text}"),
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    /// An error leaves no half bar above it.
    fn drop(&mut self) {
        self.finish();
    }
}

/// A line now and then, for a file or a pipe.
#[derive(Default)]
pub struct Lines {
    name: String,
    total: Option<u64>,
    done: u64,
    told: u64,
    began: Option<Instant>,
    last: Option<Instant>,
}

/// The longest silence of a computation.
const SILENCE: Duration = Duration::from_secs(10);

impl Progress for Lines {
    fn stage(&mut self, name: &str, total: Option<u64>) {
        let now = Some(Instant::now());
        *self = Self { name: name.to_owned(), total, done: 0, told: 0, began: now, last: now };
    }

    fn advance(&mut self, by: u64, fields: &[(&str, f64)]) {
        self.done += by;
        let tenth = self.total.is_some_and(|t| self.done * 10 / t.max(1) > self.told * 10 / t.max(1));
        let long = self.last.is_some_and(|l| l.elapsed() >= SILENCE);
        if tenth || long {
            anstream::eprintln!("{}", self.line(fields));
            self.told = self.done;
            self.last = Some(Instant::now());
        }
    }

    fn message(&mut self, text: &str) {
        anstream::eprintln!("{text}");
    }

    fn finish(&mut self) {}
}

impl Lines {
    fn line(&self, fields: &[(&str, f64)]) -> String {
        let of = self.total.map_or_else(String::new, |t| format!("/{t}"));
        let seconds = self.began.map_or(0.0, |b| b.elapsed().as_secs_f64());
        format!("{} {}{of}  {}  {seconds:.0} s", self.name, self.done, shown(fields)).replace("    ", "  ")
    }
}

fn shown(fields: &[(&str, f64)]) -> String {
    fields.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect::<Vec<_>>().join("  ")
}

/// Four figures, whatever the size.
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
    fn numbers_keep_to_a_few_figures() {
        assert_eq!([0.0, 0.71828, 12.3456, 1234.5, 1e-5, -0.25, 1e9].map(number), ["0.0000", "0.7183", "12.35", "1234", "1.00e-5", "-0.2500", "1.00e9"]);
    }

    #[test]
    fn a_line_says_stage_place_and_fields() {
        let lines = Lines { name: "train".into(), total: Some(40), done: 4, ..Lines::default() };
        assert_eq!(lines.line(&[("loss", 0.5)]), "train 4/40  loss 0.5000  0 s");
        assert_eq!(lines.line(&[]), "train 4/40  0 s");
    }
}
