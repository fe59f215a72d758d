//! A data set: splits of preference pairs.

use reprpo_plugin::prelude::*;

/// The data set that `--dataset my-method` selects.
// `reprpo list` and `reprpo explain my-method` show the strings in this attribute. To read a file,
// add a field `file: PathBuf` to the struct, and add `argument = "file"` and
// `extensions = &["tsv"]` to the attribute. `--dataset pairs.tsv` then sets the field. To read a
// repository on the hub, add `repositories = true`, and fetch its files with `reprpo_plugin::hub`.
#[dataset(
    name = "my-method",
    summary = "correct sums preferred over wrong ones; the out-of-distribution split has products",
    reference = "source of the data: paper or project",
    explain = "train, test: What is 3 plus 4? 7, not 8\noos:         What is 3 times 4? 12, not 13"
)]
// Users set the fields with `--set dataset.FIELD=…`; their doc comments become the help texts.
// Without `#[default(…)]`, a field defaults to the default value of its type.
pub struct MyMethod {
    /// The largest number in a question, 2 to 1000.
    #[default(20)]
    pub largest: u32,
}

impl DatasetPlugin for MyMethod {
    fn build(self) -> Result<Box<dyn Dataset>> {
        if !(2..=1000).contains(&self.largest) {
            return Err(Error::new(format!(
                "`dataset.largest` must be from 2 to 1000, got {}",
                self.largest
            )));
        }
        Ok(Box::new(self))
    }
}

impl Dataset for MyMethod {
    // The model is trained on `train` and evaluated on all splits. `oos` is the out-of-distribution
    // split.
    fn splits(&self) -> Vec<SplitInfo> {
        let split = |name: &str, describes: &str| SplitInfo {
            name: name.to_owned(),
            describes: describes.to_owned(),
            pairs: None,
        };
        vec![split("train", "sums (train)"), split("test", "sums (test)"), split("oos", "products")]
    }

    // If a split skips rows of a file, implement `rows` as well. `rows` returns each pair with the
    // index of its row. Output files contain this `index`.
    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        let (word, value, test): (_, fn(u32, u32) -> u32, _) = match split {
            "train" => ("plus", |a, b| a + b, Some(false)),
            "test" => ("plus", |a, b| a + b, Some(true)),
            "oos" => ("times", |a, b| a * b, None),
            other => return Err(Error::unknown("split", other, ["train", "test", "oos"])),
        };
        // A fifth of the sums is reserved for `test`. The questions are ordered so that small and
        // large numbers are mixed.
        let n = self.largest;
        let questions = (0..n * n).map(move |i| (1 + i % n, 1 + (i / n + 7 * i) % n));
        let wanted =
            questions.filter(move |(a, b)| test.is_none_or(|test| test == ((a + 2 * b) % 5 == 0)));
        // Replace this example with your own pairs. Each pair has a prompt and two completions that
        // continue it. If you read a file, return an `Err` for each invalid line.
        Ok(Box::new(wanted.map(move |(a, b)| {
            let right = value(a, b);
            Ok(PreferencePair::new(
                format!("What is {a} {word} {b}?\nAnswer:"),
                format!(" {right}"),
                format!(" {}", right + 1),
            ))
        })))
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
    fn test_questions_are_not_in_train() {
        let data = MyMethod { largest: 10 };
        let [train, test, oos] = ["train", "test", "oos"]
            .map(|split| data.pairs(split).unwrap().collect::<Result<Vec<_>>>().unwrap());
        assert_eq!((train.len(), test.len(), oos.len()), (80, 20, 100));
        assert!(test.iter().all(|pair| !train.contains(pair)));
        assert_eq!(oos[0], PreferencePair::new("What is 1 times 1?\nAnswer:", " 1", " 2"));
    }
}
