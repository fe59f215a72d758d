//! Aligned text tables for terminals and Markdown.

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Left, for text.
    Left,
    /// Right, for numbers.
    Right,
}

/// Width to which a terminal table is wrapped, in characters.
const LINE: usize = 120;

/// A table of text.
#[derive(Clone, Debug)]
pub struct Grid {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// Creates an empty table with the given columns.
    pub fn new<S: Into<String>>(columns: impl IntoIterator<Item = (S, Align)>) -> Self {
        Self {
            columns: columns.into_iter().map(|(name, align)| (name.into(), align)).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. If it has fewer cells than the table has columns, empty cells are appended.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Renders the table for a terminal, with two spaces between columns. Long text in the last
    /// column is wrapped within the column.
    pub fn plain(&self) -> String {
        let mut text = String::new();
        let widths = self.widths(str::to_owned);
        let before: usize = widths.iter().rev().skip(1).map(|w| w + 2).sum();
        let room = match self.columns.last() {
            Some((_, Align::Left)) => LINE.saturating_sub(before).max(30),
            _ => usize::MAX,
        };
        for row in std::iter::once(self.header()).chain(self.rows.iter().cloned()) {
            let mut line = self.padded(&row, str::to_owned);
            let pieces = line.pop().map_or_else(Vec::new, |last| wrapped(&last, room));
            for (i, piece) in pieces.into_iter().enumerate() {
                let head = if i == 0 {
                    line.iter().map(|c| format!("{c}  ")).collect()
                } else {
                    " ".repeat(before)
                };
                text.push_str(format!("{head}{piece}").trim_end());
                text.push('\n');
            }
        }
        text
    }

    /// Renders the table as Markdown. Cells are padded so that the columns also align in the
    /// Markdown source.
    pub fn markdown(&self) -> String {
        let escape = |cell: &str| cell.replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.padded(&self.header(), escape));
        let rules =
            self.columns.iter().zip(self.widths(escape)).map(|((_, align), w)| match align {
                Align::Left => "-".repeat(w),
                Align::Right => format!("{}:", "-".repeat(w.saturating_sub(1))),
            });
        text.push_str(&line(rules.collect()));
        for row in &self.rows {
            text.push_str(&line(self.padded(row, escape)));
        }
        text
    }

    fn header(&self) -> Vec<String> {
        self.columns.iter().map(|(name, _)| name.clone()).collect()
    }

    fn widths(&self, shown: impl Fn(&str) -> String) -> Vec<usize> {
        let width = |i: usize| {
            self.rows
                .iter()
                .map(|r| &r[i])
                .chain([&self.columns[i].0])
                .map(|c| shown(c).chars().count())
                .max()
                .unwrap_or(0)
        };
        // The delimiter row of a Markdown table needs at least three characters per column.
        (0..self.columns.len()).map(|i| width(i).max(3)).collect()
    }

    fn padded(&self, row: &[String], shown: impl Fn(&str) -> String + Copy) -> Vec<String> {
        row.iter()
            .zip(self.widths(shown))
            .zip(&self.columns)
            .map(|((cell, width), (_, align))| match align {
                Align::Left => format!("{:<width$}", shown(cell)),
                Align::Right => format!("{:>width$}", shown(cell)),
            })
            .collect()
    }
}

/// Wraps `text` at word boundaries to lines of at most `room` characters. Text that fits is
/// returned unchanged.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    if text.trim_end().chars().count() <= room {
        return vec![text.to_owned()];
    }
    let mut pieces = vec![String::new()];
    for word in text.split_whitespace() {
        match pieces.last_mut() {
            Some(piece) if piece.is_empty() => piece.push_str(word),
            Some(piece) if piece.chars().count() + 1 + word.chars().count() <= room => {
                piece.push(' ');
                piece.push_str(word);
            }
            _ => pieces.push(word.to_owned()),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_in_the_last_column_is_wrapped() {
        let mut grid = Grid::new([("name", Align::Left), ("what", Align::Left)]);
        grid.row(["a", &"word ".repeat(30)]);
        let lines: Vec<String> = grid.plain().lines().map(str::to_owned).collect();
        assert_eq!(
            (lines.len(), lines[2].as_str()),
            (3, format!("      {}", "word ".repeat(7).trim_end()).as_str())
        );
        assert!(lines.iter().all(|l| l.chars().count() <= LINE));
    }

    #[test]
    fn numbers_are_right_aligned_and_missing_cells_are_empty() {
        let mut grid = Grid::new([("split", Align::Left), ("n", Align::Right)]);
        grid.row(["test", "12"]);
        grid.row(["oos"]);
        assert_eq!(grid.plain(), "split    n\ntest    12\noos\n");
        assert_eq!(
            grid.markdown(),
            "| split |   n |\n| ----- | --: |\n| test  |  12 |\n| oos   |     |\n"
        );
    }
}
