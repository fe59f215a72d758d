//! The age of this process.

use std::fs::read_to_string;
use std::time::Duration;

/// Linux reports times of processes in hundredths of a second.
const TICKS: f64 = 100.0;

/// Returns the time since this process started, including the loading of its libraries. `None` if
/// the system does not report it.
pub fn age() -> Option<Duration> {
    let uptime = read_to_string("/proc/uptime").ok()?;
    age_of(&read_to_string("/proc/self/stat").ok()?, &uptime)
}

fn age_of(stat: &str, uptime: &str) -> Option<Duration> {
    // The name of the program may contain spaces. It ends at the last parenthesis. The start time
    // is the twentieth field after that parenthesis.
    let (_, fields) = stat.rsplit_once(") ")?;
    let start: f64 = fields.split(' ').nth(19)?.parse().ok()?;
    let now: f64 = uptime.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(now - start / TICKS).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_the_difference_of_uptime_and_start() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1250 0 0";
        assert_eq!(age_of(stat, "20.75 3.5\n"), Some(Duration::from_millis(8250)));
        assert_eq!(age_of("7 (a) S 1", "20.75 3.5"), None);
    }
}
