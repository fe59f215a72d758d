//! Preference pairs from CSV files.

use std::path::PathBuf;

use csv::{Position, ReaderBuilder, StringRecord};
use reprpo_plugin::prelude::*;

/// Preference pairs from a CSV file, e.g. `--dataset csv-pairs:pairs.csv`.
#[dataset(
    name = "csv-pairs",
    summary = "preference pairs from a CSV file, split into train and test",
    reference = "RFC 4180; the columns are those of TRL's preference format with explicit prompts",
    explain = "\
Each row of the file is a pair. Columns other than these three are ignored. A quoted field may
contain delimiters and line breaks; write a quote in it as two quotes. The pairs of the split
`test` are spread evenly over the file. An empty field is an error.

  reprpo run --dataset csv-pairs:pairs.csv --set dataset.delimiter=';' --set dataset.chosen=good",
    argument = "file",
    extensions = &["csv"],
)]
pub struct CsvPairs {
    /// The file, in UTF-8, whose first line has the names of the columns. Required;
    /// `--dataset csv-pairs:FILE` sets it.
    pub file: PathBuf,
    /// Column of the prompts.
    #[default("prompt")]
    pub prompt: String,
    /// Column of the chosen completions.
    #[default("chosen")]
    pub chosen: String,
    /// Column of the rejected completions.
    #[default("rejected")]
    pub rejected: String,
    /// The delimiter between fields, an ASCII character such as `,`, `;` or a tab.
    #[default(',')]
    pub delimiter: char,
    /// Share of the pairs that form the split `test`, 0 or more and below 1. With 0, there is no
    /// such split.
    #[default(0.2)]
    pub test: f64,
}

impl DatasetPlugin for CsvPairs {
    fn build(self) -> Result<Box<dyn Dataset>> {
        if !self.delimiter.is_ascii() {
            return Err(Error::new(format!(
                "`dataset.delimiter` must be an ASCII character, got `{}`",
                self.delimiter
            )));
        }
        if !(0.0..1.0).contains(&self.test) {
            return Err(Error::new(format!(
                "`dataset.test` must be 0 or more and below 1, got {}",
                self.test
            )));
        }
        // Read the first pair, so that a missing file, a missing column or an invalid first row is
        // reported before the model is loaded.
        self.read()?
            .next()
            .ok_or_else(|| Error::new(format!("`{}` has no pairs", self.file.display())))??;
        Ok(Box::new(self))
    }
}

impl CsvPairs {
    /// Reads all pairs in order. Errors name the file and the line.
    fn read(&self) -> Result<impl Iterator<Item = Result<PreferencePair>> + use<>> {
        let file = self.file.display().to_string();
        let opened = ReaderBuilder::new().delimiter(self.delimiter as u8).from_path(&self.file);
        let mut reader =
            opened.map_err(|e| Error::new(format!("cannot open `{file}`")).because(e))?;
        let header = reader
            .headers()
            .map_err(|e| Error::new(format!("cannot read the first line of `{file}`")).because(e))?
            .clone();
        let place = |name: &str| {
            let found = header.iter().position(|column| column == name);
            found.ok_or_else(|| {
                Error::unknown("column", name, header.iter())
                    .within(format!("`{file}` cannot be used"))
            })
        };
        let columns = [place(&self.prompt)?, place(&self.chosen)?, place(&self.rejected)?];
        let pair = move |record: &StringRecord| -> Result<PreferencePair> {
            let text = |column: usize| match &record[column] {
                "" => Err(Error::new(format!("`{}` is empty", &header[column]))),
                text => Ok(Text::from(text)),
            };
            Ok(PreferencePair::new(text(columns[0])?, text(columns[1])?, text(columns[2])?))
        };
        Ok(reader.into_records().map(move |record| {
            let at = |place: Option<&Position>| {
                format!("cannot read line {} of `{file}`", place.map_or(0, Position::line))
            };
            match record {
                Ok(record) => pair(&record).within(|| at(record.position())),
                Err(e) => Err(Error::new(at(e.position())).because(e)),
            }
        }))
    }
}

impl Dataset for CsvPairs {
    fn splits(&self) -> Vec<SplitInfo> {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let split = |split: &str| SplitInfo {
            name: split.to_owned(),
            describes: format!("{name} ({split})"),
            pairs: None,
        };
        if self.test > 0.0 { vec![split("train"), split("test")] } else { vec![split("train")] }
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        Ok(Box::new(self.rows(split)?.map(|row| row.map(|(_, pair)| pair))))
    }

    // A split only has some of the rows, so the index of a pair in the split differs from the index
    // of its row in the file.
    fn rows(&self, split: &str) -> Result<RowIter<'_>> {
        if !self.splits().iter().any(|s| s.name == split) {
            return Err(Error::unknown("split", split, self.splits().iter().map(|s| &s.name)));
        }
        // The first i pairs of the file contain ⌊i·test⌋ pairs of the split `test`. So pair i
        // belongs to `test` if this number increases at i.
        let tests_before = |i: usize| (i as f64 * self.test).floor();
        let is_test = move |i: usize| tests_before(i + 1) > tests_before(i);
        let test = split == "test";
        Ok(Box::new(
            self.read()?
                .enumerate()
                .filter(move |(i, pair)| pair.is_err() || is_test(*i) == test)
                .map(|(i, pair)| Ok((i, pair?))),
        ))
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_passes_the_conformance_tests() {
        reprpo_plugin::testkit::registered();
    }

    #[test]
    fn a_file_is_split_and_errors_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pairs.csv");
        let open = |text: &str| {
            std::fs::write(&file, text).unwrap();
            CsvPairs {
                file: file.clone(),
                chosen: "good".to_owned(),
                delimiter: ';',
                ..CsvPairs::default()
            }
            .build()
        };
        let data =
            open(&format!("good;id;rejected;prompt\n{}", "\"a;\"\"b\"\"\";7;r;p\n".repeat(10)))
                .unwrap();
        let [train, test] = ["train", "test"]
            .map(|split| data.pairs(split).unwrap().collect::<Result<Vec<_>>>().unwrap());
        assert_eq!((train.len(), test.len()), (8, 2));
        assert_eq!(
            data.rows("test").unwrap().map(|row| row.unwrap().0).collect::<Vec<_>>(),
            [4, 9]
        );
        assert_eq!(
            (&test[0].chosen, &test[0].rejected),
            (&Text::from("a;\"b\""), &Text::from("r"))
        );
        let error = |text: &str| format!("{:?}", open(text).err().unwrap());
        assert!(error("prompt;good;rejected\np;;r\n").contains("cannot read line 2 of `"));
        assert!(
            error("prompt;goood;rejected\n").contains("did you mean `goood`?")
                && error("good;prompt;rejected\n").contains("has no pairs")
        );
    }
}
