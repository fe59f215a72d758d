//! What the person who waits sees: plain lines, and bars where there is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One line to stderr; stdout is left to what the commands print themselves.
pub fn line(text: &str) {
    eprintln!("{text}");
}

/// A bar over `total` bytes. It draws nothing where stderr is no terminal, and clears itself at the end.
pub fn bar(doing: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("  {msg:10} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}").expect("the template is constant");
    ProgressBar::new(total).with_style(style).with_message(doing.to_owned())
}

/// A duration as a person says it: `0.4 s`, `48 s`, `3 min 12 s`.
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
    fn durations_read_as_said() {
        assert_eq!(duration(Duration::from_millis(440)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(48)), "48 s");
        assert_eq!(duration(Duration::from_secs(192)), "3 min 12 s");
    }
}
