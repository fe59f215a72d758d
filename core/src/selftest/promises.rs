//! Runs the conformance tests of every plugin in float64 on the CPU. A comparison between devices
//! cannot find an error that all devices share. These tests can.

use std::sync::atomic::Ordering;

use super::report::{Outcome, Row};
use super::{Section, Selftest, cannot_write};
use crate::conformance::{Finding, Verdict, examine, examine_quickly};
use crate::error::{Error, Result};
use crate::registry::{Kind, Registry};

/// Checks the plugins of `registry`.
///
/// # Errors
/// Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>, registry: &Registry) -> Result<()> {
    let entries: Vec<_> = Kind::ALL.into_iter().flat_map(|kind| registry.of(kind)).collect();
    test.begin(Section::Promises, entries.len());
    for entry in entries {
        let name = format!("{} {}", entry.kind().name(), entry.about().name);
        test.check(Section::Promises, &name, |test| {
            let (mut held, mut rows) = (0, Vec::new());
            let findings: Box<dyn Iterator<Item = Finding>> = if test.options.full {
                Box::new(examine(entry))
            } else {
                Box::new(examine_quickly(entry))
            };
            for finding in findings {
                if test.stop.load(Ordering::Relaxed) {
                    return Err(Error::interrupted("interrupted"));
                }
                match &finding.verdict {
                    Verdict::Holds => held += 1,
                    Verdict::DoesNotApply(_) => {}
                    Verdict::Violated(how) => {
                        let how = format!(
                            "{}: {}",
                            finding.statement,
                            how.lines().map(str::trim).collect::<Vec<_>>().join(", ")
                        );
                        if cannot_write(&Error::new(&how)) {
                            return Err(Error::new(how));
                        }
                        rows.push(Row::new(Section::Promises, &name, Outcome::Failed, how));
                    }
                }
            }
            if rows.is_empty() {
                rows.push(Row::new(
                    Section::Promises,
                    &name,
                    Outcome::Ok,
                    format!("{held} invariants hold (computed in f64 on the CPU)"),
                ));
            }
            Ok(rows)
        })?;
    }
    Ok(())
}
