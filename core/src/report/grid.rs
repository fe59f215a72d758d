//! Rows and columns as text: aligned for a terminal, or as Markdown. One code for both, so that they say the same.

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table of text.
#[derive(Clone, Debug)]
pub struct Grid {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// A table with these columns and no row yet.
    pub fn new<S: Into<String>>(columns: impl IntoIterator<Item = (S, Align)>) -> Self {
        Self { columns: columns.into_iter().map(|(name, align)| (name.into(), align)).collect(), rows: Vec::new() }
    }

    /// Adds a row; what is missing at its end stays empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// For a terminal: two spaces between columns, no rules.
    pub fn plain(&self) -> String {
        let mut text = String::new();
        for row in std::iter::once(self.header()).chain(self.rows.iter().cloned()) {
            let line: Vec<String> = self.padded(&row, |c| c.to_owned());
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// For a file: a Markdown table whose source is aligned too.
    pub fn markdown(&self) -> String {
        let escape = |cell: &str| cell.replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.padded(&self.header(), escape));
        let rules = self.columns.iter().zip(self.widths(escape)).map(|((_, align), w)| match align {
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
        let width = |i: usize| self.rows.iter().map(|r| &r[i]).chain([&self.columns[i].0]).map(|c| shown(c).chars().count()).max().unwrap_or(0);
        // Markdown's rule needs three characters.
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
