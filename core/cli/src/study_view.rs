//! Shows the state of a study on stderr.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use reprpo_core::study::runner::{Monitor, Running, View};

use crate::printer::line;
use crate::progress::{shown, time};

/// The bars of a terminal: one for the study, and one for each run in progress.
#[derive(Default)]
pub struct Bars {
    all: Option<MultiProgress>,
    study: Option<ProgressBar>,
    runs: Vec<(String, ProgressBar)>,
}

/// Width of the name of a run on a terminal, in characters.
const NAME: usize = 32;

impl Bars {
    fn bar(&mut self, template: &str) -> ProgressBar {
        let all = self
            .all
            .get_or_insert_with(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        let bar = all.add(ProgressBar::no_length());
        // The templates are valid, so the fallback is never used.
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸ "));
        bar
    }
}

impl Monitor for Bars {
    fn update(&mut self, view: &View) {
        if self.study.is_none() {
            let bar = self.bar("study {bar:12.cyan} {pos}/{len}  {msg}");
            bar.enable_steady_tick(Duration::from_millis(250));
            self.study = Some(bar);
        }
        if let Some(study) = &self.study {
            study.set_length(view.total as u64);
            study.set_position((view.finished + view.failed) as u64);
            study.set_message(counts(view));
        }
        self.runs.retain(|(name, bar)| {
            let runs = view.running.iter().any(|running| running.name == *name);
            if !runs {
                bar.finish_and_clear();
            }
            runs
        });
        for running in &view.running {
            if !self.runs.iter().any(|(name, _)| *name == running.name) {
                let bar = self.bar("  {prefix} {msg}");
                bar.set_prefix(cut(&running.name));
                self.runs.push((running.name.clone(), bar));
            }
            if let Some((_, bar)) = self.runs.iter().find(|(name, _)| *name == running.name) {
                bar.set_message(progress(running));
            }
        }
    }

    fn message(&mut self, text: &str) {
        match &self.all {
            Some(all) => all.suspend(|| line(text)),
            None => line(text),
        }
    }

    fn finish(&mut self) {
        self.runs.drain(..).for_each(|(_, bar)| bar.finish_and_clear());
        if let Some(bar) = self.study.take() {
            bar.finish_and_clear();
        }
        self.all = None;
    }
}

impl Drop for Bars {
    /// Clears the bars. Otherwise, an error message would follow them on the same line.
    fn drop(&mut self) {
        self.finish();
    }
}

/// Shows the state as lines, for output to a file or a pipe.
pub struct Lines {
    quiet: bool,
    silenced: bool,
    last: Option<Instant>,
}

/// Minimum time between two lines about runs in progress.
const PAUSE: Duration = Duration::from_secs(30);

impl Lines {
    /// Creates a view. If `quiet` is true, only messages about failed runs are shown. If `silenced`
    /// is true, the runs in progress are not shown.
    pub fn new(quiet: bool, silenced: bool) -> Self {
        Self { quiet, silenced, last: None }
    }
}

impl Monitor for Lines {
    fn update(&mut self, view: &View) {
        let last = *self.last.get_or_insert_with(Instant::now);
        if self.quiet || self.silenced || last.elapsed() < PAUSE || view.running.is_empty() {
            return;
        }
        self.last = Some(Instant::now());
        line(&format!("{} of {}: {}", view.finished + view.failed, view.total, counts(view)));
        for running in &view.running {
            line(&format!("  {}  {}", running.name, progress(running)));
        }
    }

    fn message(&mut self, text: &str) {
        if !self.quiet || text.contains("error: ") {
            line(text);
        }
    }

    fn finish(&mut self) {}
}

/// The numbers of runs and the time left.
fn counts(view: &View) -> String {
    let failed = match view.failed {
        0 => String::new(),
        n => format!(", {n} failed"),
    };
    let left = view.left.map_or_else(String::new, |left| format!(", {} left", time(left)));
    format!(
        "{} done{failed}, {} running, {} remaining{left}",
        view.finished,
        view.running.len(),
        view.remaining()
    )
}

/// The progress of a run.
fn progress(running: &Running) -> String {
    let of = running.total.map_or_else(String::new, |total| format!("/{total}"));
    let fields: Vec<(&str, f64)> =
        running.fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let parts = match running.stage.is_empty() {
        true => vec!["starting".to_owned()],
        false => vec![format!("{} {}{of}", running.stage, running.done), shown(&fields)],
    };
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
}

/// A name in a column of fixed width. Long names keep their end, which distinguishes them.
fn cut(name: &str) -> String {
    let length = name.chars().count();
    match length > NAME {
        true => format!("…{}", name.chars().skip(length - NAME + 1).collect::<String>()),
        false => format!("{name:<NAME$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_has_the_numbers_of_runs_and_the_latest_step() {
        let running = Running {
            name: "dpo-lr=0.0001-seed=1".into(),
            stage: "train".into(),
            done: 3,
            total: Some(40),
            fields: vec![("loss".into(), 0.5)],
        };
        assert_eq!(progress(&running), "train 3/40  loss 0.5000");
        assert_eq!(progress(&Running::default()), "starting");
        let view = View {
            finished: 4,
            failed: 1,
            total: 24,
            running: vec![running],
            left: Some(Duration::from_secs(100)),
        };
        assert_eq!(counts(&view), "4 done, 1 failed, 1 running, 18 remaining, 1 min 40 s left");
        assert_eq!(cut(&"ab".repeat(20)).chars().count(), NAME);
        assert!(cut(&format!("{}end", "x".repeat(40))).ends_with("xend"));
    }
}
