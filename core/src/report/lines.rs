//! Text that somebody else wrote, as lines that a terminal can show.

/// With the ends of lines to be seen, and nothing that a terminal would obey.
pub fn visible(text: &str) -> String {
    let shown: String = text
        .chars()
        .map(|c| match c {
            '\n' => "⏎\n".to_owned(),
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        })
        .collect();
    // The last line's end is to be seen, but no empty line behind it.
    shown.strip_suffix('\n').map(str::to_owned).unwrap_or(shown)
}

/// The text's lines, none of more than `room` characters, and of many the first and the last so
/// many.
pub fn shortened(text: &str, room: usize, (first, last): (usize, usize)) -> Vec<String> {
    let mut lines = wrapped(text, room);
    if lines.len() > first + last + 1 {
        let left_out = lines.len() - first - last;
        lines.splice(first..lines.len() - last, [format!("… {left_out} lines …")]);
    }
    lines
}

/// The text's lines, none of more than `room` characters.
pub fn wrapped(text: &str, room: usize) -> Vec<String> {
    text.lines().flat_map(|line| pieces(line, room)).collect()
}

/// A line in pieces of at most `room` characters, which end behind a blank where there is one in
/// the second half.
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
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(visible("a\n\u{1b}[31mb\r\tc"), "a⏎\n\\u{1b}[31mb\\r\\tc");
        assert_eq!(visible("a\n\n"), "a⏎\n⏎");
    }

    #[test]
    fn long_texts_are_shortened_in_the_middle_and_no_line_is_too_long() {
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
