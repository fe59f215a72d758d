//! JSON lines, read one at a time: a file larger than memory is no problem, and a line that is none is found early.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Value};

use super::row::{self, Row};

/// No pair of texts is longer than this; a file without line breaks would otherwise be read whole into memory.
const LONGEST_LINE: usize = 16 << 20;

/// The rows of a file of JSON lines. Blank lines are skipped; after an error it ends.
pub struct Rows {
    path: PathBuf,
    reader: BufReader<File>,
    line: usize,
    longest: usize,
    ended: bool,
}

impl Rows {
    /// Opens the file.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).within(|| format!("cannot open `{}`", path.display()))?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), line: 0, longest: LONGEST_LINE, ended: false })
    }

    /// Where the row that came last stands.
    pub fn place(&self) -> String {
        format!("cannot read line {} of `{}`", self.line, self.path.display())
    }

    fn step(&mut self) -> Result<Option<Row>> {
        loop {
            let mut bytes = Vec::new();
            self.line += 1;
            let longest = self.longest;
            let read = (&mut self.reader).take(longest as u64 + 1).read_until(b'\n', &mut bytes).within(|| self.place())?;
            if read == 0 {
                return Ok(None);
            }
            if read > longest {
                return Err(Error::new(format!("it is longer than {} MiB", longest >> 20))
                    .hint("a file of JSON lines has one object on every line")
                    .within(self.place()));
            }
            let text = std::str::from_utf8(&bytes).map_err(|e| not_utf8(&e).within(self.place()))?;
            let text = if self.line == 1 { text.trim_start_matches('\u{feff}') } else { text };
            if !text.trim().is_empty() {
                return parse(text).within(|| self.place()).map(Some);
            }
        }
    }
}

fn not_utf8(e: &std::str::Utf8Error) -> Error {
    Error::new(format!("it is not UTF-8: byte {} does not belong", e.valid_up_to() + 1)).hint("save the file as UTF-8")
}

fn parse(text: &str) -> Result<Row> {
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(Error::new(format!("it is {}, not an object", row::kind(&other))).hint(r#"a row is {"prompt": "…", "chosen": "…", "rejected": "…"}"#)),
        Err(e) => {
            // serde_json counts lines within the text it was given, which is one.
            let message = e.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(head, _)| head);
            Err(Error::new(format!("it is not JSON: {message}, at byte {}", e.column())))
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.step().transpose();
        self.ended = !matches!(row, Some(Ok(_)));
        row
    }
}

/// The pairs of a file of JSON lines.
///
/// # Errors
/// Where the file cannot be opened; each pair where its line is not right.
pub fn pairs(path: &Path) -> Result<PairIter<'static>> {
    let mut rows = Rows::open(path)?;
    Ok(Box::new(std::iter::from_fn(move || {
        let row = rows.next()?;
        let pair = row.and_then(|row| row::pair(row).within(|| rows.place()));
        rows.ended |= pair.is_err();
        Some(pair)
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"prompt": "p", "chosen": "c", "rejected": "r"}"#;

    fn read(bytes: &[u8]) -> (usize, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let (mut good, mut error) = (0, String::new());
        for pair in pairs(&path).unwrap() {
            match pair {
                Ok(_) => good += 1,
                Err(e) => error += &format!("{e:?}").replace(&path.display().to_string(), "FILE"),
            }
        }
        (good, error)
    }

    #[test]
    fn blank_lines_line_ends_and_a_byte_order_mark_do_not_matter() {
        assert_eq!(read(format!("\u{feff}{GOOD}\r\n\n  \n{GOOD}").as_bytes()), (2, String::new()));
    }

    #[test]
    fn an_error_names_file_and_line_and_is_the_last_item() {
        let (good, error) = read(format!("{GOOD}\n\n{{\"prompt\": \"p\", \"chosen\": 1, \"rejected\": \"r\"}}\n{GOOD}").as_bytes());
        assert_eq!(good, 1);
        assert!(error.starts_with("cannot read line 3 of `FILE`\n  because `chosen` is a number, not text\n"), "{error}");
    }

    #[test]
    fn what_is_not_json_says_where_it_stops_being_it() {
        let (_, error) = read(format!("{GOOD}\n{{\"prompt\": \"p\", }}").as_bytes());
        assert_eq!(error, "cannot read line 2 of `FILE`\n  because it is not JSON: trailing comma, at byte 17");
        let (_, error) = read(b"[1, 2]");
        assert!(error.contains("it is a list, not an object"), "{error}");
    }

    #[test]
    fn what_is_not_utf8_says_so() {
        let (good, error) = read(&[GOOD.as_bytes(), b"\n{\"prompt\": \"\xff\"}"].concat());
        assert_eq!(good, 1);
        assert!(error.starts_with("cannot read line 2 of `FILE`\n  because it is not UTF-8: byte 13 does not belong"), "{error}");
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let (_, error) = read("[".repeat(100_000).as_bytes());
        assert!(error.contains("recursion limit"), "{error}");
    }

    #[test]
    fn a_line_without_end_is_not_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.jsonl");
        std::fs::write(&path, GOOD.repeat(100)).unwrap();
        let mut rows = Rows::open(&path).unwrap();
        rows.longest = 100;
        let error = rows.next().unwrap().unwrap_err();
        assert!(format!("{error:?}").contains("line 1"), "{error:?}");
        assert!(rows.next().is_none());
    }
}
