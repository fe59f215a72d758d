//! Runs that are repeated must write the same bytes.

use super::methods::{self, Subject};
use super::report::{Outcome, Row};
use super::trial::Way;
use super::{Section, Selftest};
use crate::config::plugin_fields;
use crate::error::Result;
use crate::registry::Kind;

/// Repeats runs: all of them in a full test, else the defaults of the program and one with each
/// kind of plugin.
///
/// # Errors
/// Fails if a model cannot be written, or if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let mut subjects = vec![dropout(test)?];
    let mut kinds = Vec::new();
    for subject in methods::subjects(test)? {
        let kind = subject.name.split(' ').next().unwrap_or_default().to_owned();
        if test.options.full || !kinds.contains(&kind) {
            kinds.push(kind);
            subjects.push(subject);
        }
    }
    test.begin(Section::Determinism, subjects.len());
    for Subject { name, trial } in subjects {
        test.check(Section::Determinism, &name, |test| {
            let mut rows = Vec::new();
            for dtype in ["f32", "bf16"] {
                let way = Way::usual(test.device, dtype);
                let (one, two) = (
                    test.workshop.train(&trial, way, test.stop)?,
                    test.workshop.train(&trial, way, test.stop)?,
                );
                let files = one.files.len().max(two.files.len());
                let differing: Vec<&str> = one
                    .files
                    .keys()
                    .chain(two.files.keys())
                    .filter(|file| one.files.get(*file) != two.files.get(*file))
                    .map(String::as_str)
                    .collect();
                let (outcome, compared) = match &differing[..] {
                    [] => (Outcome::Ok, format!("{dtype}: {files} files, identical bytes")),
                    [first, ..] => (
                        Outcome::Failed,
                        format!("{dtype}: `{first}` has other bytes in the second run"),
                    ),
                };
                rows.push(Row::new(Section::Determinism, &name, outcome, compared));
            }
            Ok(rows)
        })?;
    }
    Ok(())
}

/// The defaults of the program, with dropout where the adapter has it.
fn dropout(test: &Selftest<'_>) -> Result<Subject> {
    let mut trial = test.workshop.trial(Vec::new());
    let adapter = test.workshop.experiment(&trial, Way::PLAIN)?.adapter.name;
    let fields = plugin_fields(test.workshop.registry().get(Kind::Adapter, &adapter)?.about())?;
    let dropout =
        fields.iter().find(|field| field.name.contains("dropout") && field.default.is_number());
    let name = if dropout.is_some() { "defaults with dropout" } else { "defaults" };
    trial.set.extend(dropout.map(|field| format!("adapter.{}=0.2", field.name)));
    Ok(Subject { name: name.to_owned(), trial })
}
