//! Histograms as text, drawn side by side on the same scale.

use super::{Bin, Lengths};

/// Length of the longest bar in characters.
const BAR: usize = 11;

/// Block characters, filled to 1/8, 2/8, … 8/8 of their width.
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// Draws the histograms of `columns` side by side, with one line per bin. Empty bins at the start
/// are left out. Three columns with counts of up to a million fit into 80 characters.
pub fn histogram(unit: &str, columns: &[(&str, &Lengths)]) -> String {
    let bins = columns
        .iter()
        .map(|(_, l)| l.histogram.as_slice())
        .max_by_key(|bins| bins.len())
        .unwrap_or_default();
    let count = |lengths: &Lengths, i: usize| lengths.histogram.get(i).map_or(0, |bin| bin.count);
    let empty = |i: &usize| columns.iter().all(|(_, l)| count(l, *i) == 0);
    let first = (0..bins.len()).find(|i| !empty(i)).unwrap_or_default();
    let most = columns
        .iter()
        .flat_map(|(_, l)| &l.histogram)
        .map(|bin| bin.count)
        .max()
        .unwrap_or_default()
        .max(1);
    let (label, number) = (
        bins.iter().map(|b| range(b).chars().count()).max().unwrap_or_default().max(unit.len()),
        most.to_string().len(),
    );
    let heads: String = columns
        .iter()
        .map(|(name, _)| format!("  {name:<width$}", width = BAR + 1 + number))
        .collect();
    let mut text = format!("{}\n", format!("{unit:>label$}{heads}").trim_end());
    for (i, bin) in bins.iter().enumerate().skip(first) {
        let mut line = format!("{:>label$}", range(bin));
        for (_, lengths) in columns {
            let n = count(lengths, i);
            let shown = if n == 0 { "·".to_owned() } else { n.to_string() };
            line += &format!("  {:<BAR$} {shown:>number$}", bar(n, most));
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn range(bin: &Bin) -> String {
    if bin.from == bin.to { bin.from.to_string() } else { format!("{}–{}", bin.from, bin.to) }
}

/// Draws a bar of a length proportional to `n`. The count `most` gives the longest bar. Only the
/// count 0 gives an empty bar.
fn bar(n: usize, most: usize) -> String {
    if n == 0 {
        return String::new();
    }
    let eighths = ((n as f64 / most as f64 * (BAR * 8) as f64).round() as usize).max(1);
    let rest = eighths % 8;
    "█".repeat(eighths / 8) + &if rest > 0 { EIGHTHS[rest - 1].to_string() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_share_a_scale_and_small_counts_are_visible() {
        let (a, b) = (Lengths::of([vec![5; 100], vec![9]].concat()), Lengths::of(vec![3; 50]));
        let text = histogram("tokens", &[("prompt", &a), ("chosen", &b)]);
        assert_eq!(
            text,
            "tokens  prompt           chosen\n   2–3                ·  █████▌       50\n   4–7  \
                ███████████ 100                ·\n  8–15  ▏             1                ·\n"
        );
    }

    #[test]
    fn empty_histograms_do_not_panic() {
        assert_eq!(histogram("tokens", &[("prompt", &Lengths::of(vec![]))]).lines().count(), 2);
        assert_eq!(histogram("tokens", &[]), "tokens\n");
    }
}
