//! Reads the pairs to evaluate: the splits of the run's data set, and the shifts of `eval.shifts`
//! and `eval.suite`.

use crate::api::{Dataset, SplitInfo};
use crate::config::{DataSource, Experiment, Shift, Suite, shifts};
use crate::data;
use crate::error::{Context, Error, Result};
use crate::eval::{self, EvalSplit, TrainingPairs, cut_row};
use crate::registry::Registry;
use crate::session::Session;
use crate::text::{DroppedPair, TokenPair, Tokenised};

/// Splits of the data set that the shifts of a suite replace.
const REPLACED: [&str; 2] = ["oos", "rnd"];
/// The split of a shift that does not name one.
const TEST: &str = "test";

/// Reads and tokenises the splits and the shifts to evaluate. A suite replaces the splits `oos` and
/// `rnd` of the data set, unless `eval.splits` is set.
///
/// # Errors
/// Fails if a split or a shift cannot be read or has no pair that can be scored, if the suite has
/// no shifts for the data set, if two rows have the same name, or if all pairs of a shift also
/// occur in the training data.
pub fn read(
    session: &Session,
    experiment: &Experiment,
    training: Option<&TrainingPairs>,
    registry: &Registry,
) -> Result<Vec<EvalSplit>> {
    let shifts = selected(experiment, registry)?;
    // Open all shifts before the pairs are tokenised, so that a missing file is reported at once.
    let opened = shifts
        .iter()
        .map(|shift| {
            let open = |source: &DataSource| {
                Opened::new(source, experiment, registry)
                    .within(|| format!("cannot open the shift `{}` (`{source}`)", shift.name))
            };
            shift.sources.iter().map(open).collect::<Result<Vec<_>>>()
        })
        .collect::<Result<Vec<_>>>()?;
    let mut own = experiment.clone();
    if own.eval.suite.is_some() && own.eval.splits.is_none() {
        let names = session.dataset.splits().into_iter().map(|split| split.name);
        own.eval.splits = Some(names.filter(|name| !REPLACED.contains(&name.as_str())).collect());
    }
    let mut splits = eval::read(session, &own, training)?;
    for (shift, sources) in shifts.iter().zip(&opened) {
        if splits.iter().any(|split| split.info.name == shift.name) {
            return Err(Error::new(format!(
                "the shift `{}` has the same name as a split",
                shift.name
            ))
            .hint("give it another name, as in `NAME=DATASET#SPLIT`"));
        }
        let within = || format!("cannot use the shift `{}`", shift.name);
        let mut read = joined(session, experiment, shift, sources).within(within)?;
        if let Some(training) = training {
            let overlap = experiment.eval.overlap;
            training.compare(&mut read, session.dataset.as_ref(), overlap).within(within)?;
        }
        splits.push(read);
    }
    Ok(splits)
}

/// The shifts of the suite, followed by the shifts of `eval.shifts`.
fn selected(experiment: &Experiment, registry: &Registry) -> Result<Vec<Shift>> {
    let mut all = match &experiment.eval.suite {
        Some(text) => Suite::find(text)?.shifts_of(&experiment.dataset, registry)?.to_vec(),
        None => Vec::new(),
    };
    for shift in shifts(&experiment.eval.shifts)? {
        if all.iter().any(|other| other.name == shift.name) {
            return Err(Error::new(format!("two shifts are called `{}`", shift.name))
                .hint("give one of them another name, as in `NAME=DATASET#SPLIT`"));
        }
        all.push(shift);
    }
    Ok(all)
}

/// A data set with the split to read.
struct Opened {
    dataset: Box<dyn Dataset>,
    info: SplitInfo,
}

impl Opened {
    fn new(source: &DataSource, experiment: &Experiment, registry: &Registry) -> Result<Self> {
        let choice = source.choice(&experiment.dataset, registry)?;
        let dataset = registry.dataset(&choice.name)?.build(&choice.json())?;
        let info = match &source.split {
            Some(split) => data::info(dataset.as_ref(), split)?,
            None => default_split(dataset.as_ref())?,
        };
        Ok(Self { dataset, info })
    }
}

/// The split `test`, or the only split of a data set.
fn default_split(dataset: &dyn Dataset) -> Result<SplitInfo> {
    let mut splits = dataset.splits();
    if let Some(test) = splits.iter().position(|split| split.name == TEST) {
        return Ok(splits.swap_remove(test));
    }
    match splits.len() {
        1 => Ok(splits.swap_remove(0)),
        _ => {
            let names: Vec<String> = splits.into_iter().map(|split| split.name).collect();
            Err(Error::new("the data set has several splits, but none is called `test`")
                .hint(format!("choose a split with `DATASET#SPLIT`; valid: {}", names.join(", "))))
        }
    }
}

/// Tokenises the sources of a shift and joins their pairs. `eval.max_pairs` limits each source. The
/// rows of the second source are numbered after those of the first one, and so on.
fn joined(
    session: &Session,
    experiment: &Experiment,
    shift: &Shift,
    sources: &[Opened],
) -> Result<EvalSplit> {
    let (train, config) = (&experiment.train, &experiment.eval);
    let mut all = Tokenised::default();
    let mut instructed = config.instruction.as_ref().map(|_| Vec::new());
    let (mut pairs, mut rows, mut cut_rows) = (0, 0, Vec::new());
    for Opened { dataset, info } in sources {
        let found = session.tokenise_of(dataset.as_ref(), &info.name, train, config.max_pairs)?;
        if found.pairs.is_empty() {
            return Err(Error::new(format!("`{}` has no usable pairs", info.describes)));
        }
        let placed =
            |pair: TokenPair| TokenPair { index: pair.index + pairs, row: pair.row + rows, ..pair };
        if let (Some(text), Some(instructed)) = (&config.instruction, &mut instructed) {
            let with = session.instructed(dataset.as_ref(), &info.name, train, &found, text)?;
            instructed.extend(with.into_iter().map(placed));
        }
        let read = found
            .pairs
            .iter()
            .map(|pair| (pair.index, pair.row))
            .chain(found.dropped.iter().map(|dropped| (dropped.index, dropped.row)));
        let (last_pair, last_row) =
            read.fold((0, 0), |(a, b), (index, row)| (a.max(index), b.max(row)));
        cut_rows.extend(cut_row(&found, config.max_pairs).map(|row| row + rows));
        all.findings.merge(&found.findings);
        all.cuts.extend(found.cuts);
        all.prompts.extend(found.prompts);
        all.identities.extend(found.identities);
        all.dropped.extend(found.dropped.into_iter().map(|dropped| DroppedPair {
            index: dropped.index + pairs,
            row: dropped.row + rows,
            ..dropped
        }));
        all.pairs.extend(found.pairs.into_iter().map(placed));
        (pairs, rows) = (pairs + last_pair + 1, rows + last_row + 1);
    }
    let describes: Vec<&str> =
        sources.iter().map(|source| source.info.describes.as_str()).collect();
    let info = SplitInfo {
        name: shift.name.clone(),
        describes: describes.join(" + "),
        pairs: sources.iter().map(|source| source.info.pairs).sum(),
    };
    Ok(EvalSplit { instructed, is_shift: true, cut_rows, ..EvalSplit::new(info, all) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PairIter;

    struct Named(&'static [&'static str]);

    impl Dataset for Named {
        fn splits(&self) -> Vec<SplitInfo> {
            let info = |name: &&str| SplitInfo {
                name: (*name).to_owned(),
                describes: String::new(),
                pairs: None,
            };
            self.0.iter().map(info).collect()
        }

        fn pairs(&self, _: &str) -> Result<PairIter<'_>> {
            Ok(Box::new(std::iter::empty()))
        }
    }

    #[test]
    fn the_default_split_of_a_shift_is_test_or_the_only_split() {
        let name = |names| default_split(&Named(names)).map(|split| split.name);
        assert_eq!(name(&["train", "test", "oos"]).unwrap(), "test");
        assert_eq!(name(&["train"]).unwrap(), "train");
        let e = name(&["train", "oos"]).unwrap_err();
        assert!(format!("{e:?}").contains("valid: train, oos"), "{e:?}");
    }
}
