//! Prepares text from data sets and models for safe display on a terminal.

/// Marks line breaks with `⏎` and escapes control characters, which a terminal would interpret.
pub fn visible(text: &str) -> String {
    let shown: String = text
        .chars()
        .map(|c| match c {
            '\n' => "⏎\n".to_owned(),
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        })
        .collect();
    // Mark a trailing line break, but do not add an empty line after it.
    shown.strip_suffix('\n').map(str::to_owned).unwrap_or(shown)
}

/// Wraps text like [`wrapped`]. If there are too many lines, keeps the first `first` and the last
/// `last` lines. A line between them gives the number of omitted lines.
pub fn shortened(text: &str, room: usize, (first, last): (usize, usize)) -> Vec<String> {
    let mut lines = wrapped(text, room);
    if lines.len() > first + last + 1 {
        let left_out = lines.len() - first - last;
        lines.splice(first..lines.len() - last, [format!("… {left_out} lines …")]);
    }
    lines
}

/// Wraps text into lines of at most `room` characters.
pub fn wrapped(text: &str, room: usize) -> Vec<String> {
    text.lines().flat_map(|line| pieces(line, room)).collect()
}

/// Splits one line into pieces of at most `room` characters. A piece ends after its last space,
/// unless that space is in the first half of the piece.
fn pieces(line: &str, room: usize) -> Vec<String> {
    let mut left: Vec<char> = line.chars().collect();
    let mut all = Vec::new();
    while left.len() > room {
        let blank =
            left[room / 2..room].iter().rposition(|c| *c == ' ').map(|at| room / 2 + at + 1);
        let rest = left.split_off(blank.unwrap_or(room));
        all.push(left.into_iter().collect());
        left = rest;
    }
    all.push(left.into_iter().collect());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(visible("a\n\u{1b}[31mb\r\tc"), "a⏎\n\\u{1b}[31mb\\r\\tc");
        assert_eq!(visible("a\n\n"), "a⏎\n⏎");
    }

    #[test]
    fn long_texts_are_shortened_in_the_middle_and_lines_are_wrapped() {
        let text: String = (0..30).map(|i| format!("{i}\n")).collect();
        let lines = shortened(&text, 66, (6, 4));
        assert_eq!((lines.len(), lines[6].as_str(), lines[7].as_str()), (11, "… 20 lines …", "26"));
        assert!(wrapped(&"x".repeat(200), 66).iter().all(|l| l.len() <= 66));
        assert_eq!(pieces("one two three four", 10), ["one two ", "three four"]);
        assert_eq!(
            pieces(&"x".repeat(25), 10).iter().map(String::len).collect::<Vec<_>>(),
            [10, 10, 5]
        );
    }
}
