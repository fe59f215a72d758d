//! Finds pairs of an evaluation split that also occur in the training data.

use std::collections::HashSet;

use super::evaluation::EvalSplit;
use super::statistics::Overlap;
use crate::api::Dataset;
use crate::config::OverlapRule;
use crate::data;
use crate::error::{Error, Result};
use crate::text::Tokenised;

/// The contents of the pairs that a model was trained on.
#[derive(Debug)]
pub struct TrainingPairs {
    /// Digests of the prompts.
    prompts: HashSet<u64>,
    /// Digests of the prompts with both completions.
    pairs: HashSet<u64>,
    /// Split expression and rows of the pairs; `None` if they are in another data set than the
    /// evaluated pairs.
    source: Option<(String, HashSet<usize>)>,
}

impl TrainingPairs {
    /// Collects the contents of the training pairs `data`, which are in the split `split` of the
    /// data set that is also evaluated.
    pub fn new(split: &str, data: &Tokenised) -> Self {
        let rows = data.pairs.iter().map(|pair| pair.row).collect();
        let identities = || data.pairs.iter().map(|pair| &data.identities[pair.index]);
        Self {
            prompts: identities().map(|pair| pair.prompt).collect(),
            pairs: identities().map(|pair| pair.pair).collect(),
            source: Some((split.to_owned(), rows)),
        }
    }

    /// Declares that the evaluated pairs are in another data set, so that splits with the same name
    /// are not the training split.
    #[must_use]
    pub fn of_other_data_set(self) -> Self {
        Self { source: None, ..self }
    }

    /// Counts the pairs of a held-out split that also occur in the training data. Removes the pairs
    /// whose prompt and completions occur there, unless `rule` keeps them. Does nothing if the
    /// split contains rows of the training split that were trained on. A split of another data set
    /// that only has training pairs is a copy of the training data, so its pairs are kept.
    ///
    /// # Errors
    /// Fails if no pairs of a split of the run's own data set are left, or if the name of the split
    /// is not valid.
    pub(crate) fn compare(
        &self,
        split: &mut EvalSplit,
        dataset: &dyn Dataset,
        rule: OverlapRule,
    ) -> Result<()> {
        if self.trained_on(split, dataset)? {
            return Ok(());
        }
        let data = &split.data;
        let identity = |i: usize| &data.identities[data.pairs[i].index];
        let is_known: Vec<bool> =
            (0..data.pairs.len()).map(|i| self.pairs.contains(&identity(i).pair)).collect();
        let prompts =
            (0..data.pairs.len()).filter(|i| self.prompts.contains(&identity(*i).prompt)).count();
        let pairs = is_known.iter().filter(|known| **known).count();
        let is_copy = self.source.is_none() && pairs == data.pairs.len();
        let excluded = rule == OverlapRule::Exclude && pairs > 0 && !is_copy;
        split.overlap = Some(Overlap { prompts, pairs, excluded });
        split.known =
            data.pairs.iter().zip(&is_known).filter(|(_, k)| **k).map(|(p, _)| p.index).collect();
        if !excluded {
            return Ok(());
        }
        if pairs == data.pairs.len() {
            let e = Error::new(format!(
                "all {pairs} pairs of the split `{}` also occur in the training data",
                split.info.name
            ));
            return Err(e.hint(
                "use `--set eval.overlap=keep` to score them anyway, or leave the split out with \
                    `eval.splits`",
            ));
        }
        if let Some(instructed) = &mut split.instructed {
            let mut known = is_known.iter();
            instructed.retain(|_| known.next() != Some(&true));
        }
        let data = &mut split.data;
        let mut keep = is_known.iter().map(|known| !known);
        let all = std::mem::take(&mut data.pairs);
        let cuts = std::mem::take(&mut data.cuts);
        let prompts = std::mem::take(&mut data.prompts);
        for ((pair, cut), prompt) in all.into_iter().zip(cuts).zip(prompts) {
            if keep.next() == Some(true) {
                data.pairs.push(pair);
                data.cuts.push(cut);
                data.prompts.push(prompt);
            } else {
                split.excluded.push((pair.index, pair.row));
            }
        }
        Ok(())
    }

    /// True if rows of the split were trained on.
    fn trained_on(&self, split: &EvalSplit, dataset: &dyn Dataset) -> Result<bool> {
        let Some((trained, rows)) = self.source.as_ref().filter(|_| !split.is_shift) else {
            return Ok(false);
        };
        let names = data::named(dataset, trained)?;
        let evaluated = data::named(dataset, &split.info.name)?;
        Ok(evaluated.iter().any(|name| names.contains(name))
            && split.data.pairs.iter().any(|pair| rows.contains(&pair.row)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PairIter, PreferencePair, SplitInfo};
    use crate::text::{Cut, TokenPair};

    struct Splits;

    impl Dataset for Splits {
        fn splits(&self) -> Vec<SplitInfo> {
            let info = |name: &&str| SplitInfo {
                name: (*name).to_owned(),
                describes: String::new(),
                pairs: Some(9),
            };
            ["train", "test"].iter().map(info).collect()
        }

        fn pairs(&self, _: &str) -> Result<PairIter<'_>> {
            Ok(Box::new(std::iter::empty()))
        }
    }

    /// Pairs with the given prompts and chosen completions. The first row has the number `row`.
    fn data(row: usize, pairs: &[(&str, &str)]) -> Tokenised {
        let token = |index| TokenPair { row: row + index, ..TokenPair::short(index) };
        Tokenised {
            pairs: (0..pairs.len()).map(token).collect(),
            cuts: vec![Cut::default(); pairs.len()],
            prompts: vec![0; pairs.len()],
            identities: pairs
                .iter()
                .map(|(prompt, chosen)| PreferencePair::new(*prompt, *chosen, "r").identity())
                .collect(),
            ..Tokenised::default()
        }
    }

    fn split(name: &str, data: Tokenised) -> EvalSplit {
        let info = SplitInfo { name: name.to_owned(), describes: String::new(), pairs: None };
        EvalSplit::new(info, data)
    }

    fn compared(name: &str, row: usize, rule: OverlapRule) -> Result<EvalSplit> {
        let training = TrainingPairs::new("train[:3]", &data(0, &[("a", "1"), ("b", "2")]));
        let mut split = split(name, data(row, &[("a", "1"), ("c", "1"), ("b", "9")]));
        training.compare(&mut split, &Splits, rule)?;
        Ok(split)
    }

    fn rows(split: &EvalSplit) -> Vec<usize> {
        split.data.pairs.iter().map(|pair| pair.row).collect()
    }

    #[test]
    fn known_pairs_are_excluded_and_known_prompts_are_counted() {
        let found = compared("test", 4, OverlapRule::Exclude).unwrap();
        assert_eq!(found.overlap, Some(Overlap { prompts: 2, pairs: 1, excluded: true }));
        assert_eq!((rows(&found), found.excluded), (vec![5, 6], vec![(0, 4)]));
        assert_eq!((found.data.cuts.len(), found.data.prompts.len()), (2, 2));
        let kept = compared("test", 4, OverlapRule::Keep).unwrap();
        assert_eq!(kept.overlap, Some(Overlap { prompts: 2, pairs: 1, excluded: false }));
        assert_eq!((rows(&kept).len(), kept.known.contains(&0)), (3, true));
    }

    #[test]
    fn the_training_pairs_themselves_are_never_excluded() {
        let found = compared("train[1:]", 1, OverlapRule::Exclude).unwrap();
        assert_eq!((found.overlap, rows(&found).len()), (None, 3));
        // Other rows of the training split are held out.
        let held_out = compared("train[5:]", 5, OverlapRule::Exclude).unwrap();
        assert_eq!(rows(&held_out), [6, 7]);
    }

    #[test]
    fn a_split_without_new_pairs_is_refused() {
        let training = TrainingPairs::new("train", &data(0, &[("a", "1")]));
        let copy = || split("test", data(0, &[("a", "1")]));
        let e = training.compare(&mut copy(), &Splits, OverlapRule::Exclude).unwrap_err();
        assert_eq!(e.message(), "all 1 pairs of the split `test` also occur in the training data");
        // In another data set, it is a copy of the training data.
        let mut kept = copy();
        training.of_other_data_set().compare(&mut kept, &Splits, OverlapRule::Exclude).unwrap();
        assert_eq!(kept.overlap, Some(Overlap { prompts: 1, pairs: 1, excluded: false }));
        assert_eq!(rows(&kept), [0]);
    }
}
