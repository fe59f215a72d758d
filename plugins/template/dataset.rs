//! A data set: splits of preference pairs.

use reprpo_plugin::prelude::*;

/// What `--dataset my-method` names.
// `reprpo list` and `reprpo explain my-method` show these texts. To read a file, add a field
// `file: PathBuf`, and `argument = "file"` and `extensions = &["tsv"]` here: then
// `--dataset pairs.tsv` fills it. For a repository of the hub add `repositories = true`, and fetch
// its files with `reprpo_plugin::hub`.
#[dataset(
    name = "my-method",
    summary = "right sums against sums that are off by one; the shift is to products",
    reference = "where it comes from: paper or project",
    explain = "train, test: What is 3 plus 4? 7, not 8\noos:         What is 3 times 4? 12, not 13"
)]
// Every field is on the command line as `--set dataset.FIELD=…`, and its comment is its help. A
// field without `#[default(…)]` has the default of its type.
pub struct MyMethod {
    /// The largest number that is calculated with, 2 to 1000.
    #[default(20)]
    pub largest: u32,
}

impl DatasetPlugin for MyMethod {
    fn build(self) -> Result<Box<dyn Dataset>> {
        if !(2..=1000).contains(&self.largest) {
            return Err(Error::new(format!(
                "`dataset.largest` is {}, but has to be 2 to 1000",
                self.largest
            )));
        }
        Ok(Box::new(self))
    }
}

impl Dataset for MyMethod {
    // `train` is trained on; all are evaluated, and `oos` is the shifted distribution.
    fn splits(&self) -> Vec<SplitInfo> {
        let split = |name: &str, describes: &str| SplitInfo {
            name: name.to_owned(),
            describes: describes.to_owned(),
            pairs: None,
        };
        vec![split("train", "sums (train)"), split("test", "sums (test)"), split("oos", "products")]
    }

    // Also implement `rows` if a split skips rows of a file: it returns each pair with its row,
    // which `index` shows.
    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        let (word, value, test): (_, fn(u32, u32) -> u32, _) = match split {
            "train" => ("plus", |a, b| a + b, Some(false)),
            "test" => ("plus", |a, b| a + b, Some(true)),
            "oos" => ("times", |a, b| a * b, None),
            other => return Err(Error::unknown("split", other, ["train", "test", "oos"])),
        };
        // A fifth of the sums is kept from training; the order mixes small and large numbers.
        let n = self.largest;
        let questions = (0..n * n).map(move |i| (1 + i % n, 1 + (i / n + 7 * i) % n));
        let wanted =
            questions.filter(move |(a, b)| test.is_none_or(|test| test == ((a + 2 * b) % 5 == 0)));
        // Your pairs go here: a prompt and two completions that follow it. An `Err` says what is
        // wrong with a file's line.
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
    fn it_keeps_what_every_plugin_promises() {
        reprpo_plugin::testkit::registered();
    }

    #[test]
    fn no_question_of_the_test_is_in_training() {
        let data = MyMethod { largest: 10 };
        let [train, test, oos] = ["train", "test", "oos"]
            .map(|split| data.pairs(split).unwrap().collect::<Result<Vec<_>>>().unwrap());
        assert_eq!((train.len(), test.len(), oos.len()), (80, 20, 100));
        assert!(test.iter().all(|pair| !train.contains(pair)));
        assert_eq!(oos[0], PreferencePair::new("What is 1 times 1?\nAnswer:", " 1", " 2"));
    }
}
