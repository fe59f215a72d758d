//! The way that a user's settings take to a method: through the layers of the configuration, to the JSON it is made from.

use super::training::trained;
use super::{Case, Method, Outcome, fixture, stand_ins};
use crate::config::{Example, Layering};
use crate::error::{Context, Error, Result};
use crate::registry::{Kind, Make, Registry};

/// The method as its documented example makes it.
pub(super) fn of_example(method: &Method) -> Result<Method> {
    let entry = method.entry;
    let registry = Registry::holding(stand_ins::ALL.into_iter().filter(|e| e.kind() != entry.kind()).chain([entry]))?;
    let mut layering = Layering::new(&registry);
    let chosen = stand_ins::ALL.map(|e| format!("{} = {:?}\n", e.kind().name(), if e.kind() == entry.kind() { entry.about.name } else { e.about.name }));
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

/// Whether the example that `reprpo explain` shows can be set, and then does what its kind does.
pub(super) fn example(method: &Method) -> Result<Outcome> {
    let command = Example::of(method.entry)?.command();
    let within = || format!("`{command}`");
    let method = of_example(method).within(within)?;
    match &method.entry.make {
        Make::Intervention(_) | Make::Adapter { .. } | Make::Transform(_) => {
            trained(&Case::of(&method)?, 0, 1, 1e-3, false).within(within)?;
        }
        Make::Tap(build) => {
            let sites = build(&method.json).and_then(|tap| tap.sites(&fixture::info(fixture::DEEP)?)).within(within)?;
            if sites.is_empty() {
                return Ok(Outcome::Violated(format!("`{command}` reads nothing")));
            }
        }
        Make::Dataset { build, .. } => {
            if build(&method.json).is_err_and(|e| !panicked(&e)) {
                return Ok(Outcome::DoesNotApply("its fields fit, but what it opens is not here"));
            }
        }
    }
    Ok(Outcome::Holds)
}

/// Whether the error is a panic that was caught.
pub(super) fn panicked(e: &Error) -> bool {
    format!("{e:?}").lines().any(|line| line.ends_with(" panicked"))
}
