//! Checks the documented example of a method. The example is resolved through the layered
//! configuration, like flags on the command line.

use super::training::trained;
use super::{Case, Method, Verdict, fixture, stand_ins};
use crate::config::{Example, Layering};
use crate::error::{Context, Result};
use crate::registry::{Entry, Kind, Registry};

/// Returns the method, configured as in its documented example.
pub(super) fn with_example(entry: Entry) -> Result<Method> {
    let registry = Registry::holding(
        stand_ins::ALL.into_iter().filter(|e| e.kind() != entry.kind()).chain([entry]),
    )?;
    let mut layering = Layering::new(&registry);
    let chosen = stand_ins::ALL.map(|e| {
        format!(
            "{} = {:?}\n",
            e.kind().name(),
            if e.kind() == entry.kind() { entry } else { e }.about().name
        )
    });
    layering.defaults(&format!("model = \"fixture\"\n{}", chosen.concat()))?;
    Example::of(entry)?.apply(&mut layering)?;
    let experiment = layering.resolve()?.experiment;
    let choice = match entry.kind() {
        Kind::Intervention => experiment.intervention,
        Kind::Adapter => experiment.adapter,
        Kind::Transform => experiment.transform,
        Kind::Tap => experiment.tap,
        Kind::Dataset => experiment.dataset,
    };
    Ok(Method::new(entry, choice.json()))
}

/// Checks that the example in the output of `reprpo explain` works. Interventions, adapters and
/// transforms are trained for one step. Taps must select at least one site. Data sets are opened if
/// their data is available.
pub(super) fn example(method: &Method) -> Result<Verdict> {
    let command = Example::of(method.entry)?.command();
    let within = || format!("`{command}`");
    let json = with_example(method.entry).within(within)?.json;
    let train = |case: Case| trained(&case, 0, 1, 1e-3, false).map(drop).within(within);
    match method.entry {
        Entry::Intervention(entry) => train(Method::new(entry, json).into())?,
        Entry::Adapter(entry) => train(Method::new(entry, json).into())?,
        Entry::Transform(entry) => train(Method::new(entry, json).into())?,
        Entry::Tap(entry) => {
            let sites = entry
                .build(&json)
                .and_then(|tap| tap.sites(&fixture::info(fixture::DEEP)?))
                .within(within)?;
            if sites.is_empty() {
                return Ok(Verdict::Violated(format!("`{command}` selects no sites")));
            }
        }
        Entry::Dataset(entry) => {
            if entry.build(&json).is_err_and(|e| !e.is_panic()) {
                return Ok(Verdict::DoesNotApply(
                    "the fields are valid, but the data is not available",
                ));
            }
        }
    }
    Ok(Verdict::Holds)
}
