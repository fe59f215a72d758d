//! Checks that a repeated run writes the same bytes.

use super::methods::{self, Subject};
use super::report::{Outcome, Row};
use super::trial::{Trial, Way};
use super::{Section, Selftest, Threads};
use crate::config::plugin_fields;
use crate::error::Result;
use crate::registry::Kind;

/// Repeats runs and compares their files. `--full` covers all plugins and architectures. Without
/// `--full`, the check covers the program's defaults, one plugin of each kind and one architecture.
/// Only the run with the defaults uses multiple threads.
///
/// # Errors
/// Fails if a model cannot be written. Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let mut subjects = vec![defaults_with_dropout(test)?];
    let mut kinds = Vec::new();
    for subject in methods::subjects(test)? {
        let kind = subject.name.split(' ').next().unwrap_or_default().to_owned();
        if test.options.full || !kinds.contains(&kind) {
            kinds.push(kind);
            subjects.push(subject);
        }
    }
    test.begin(Section::Determinism, subjects.len());
    for (i, Subject { name, trial }) in subjects.into_iter().enumerate() {
        test.check(Section::Determinism, &name, |test| {
            let _threads = (i == 0).then(|| Threads::set(test.threads));
            ["f32", "bf16"].into_iter().map(|dtype| repeated(test, &name, &trial, dtype)).collect()
        })?;
    }
    Ok(())
}

/// Runs the trial twice and compares the files.
fn repeated(test: &Selftest<'_>, name: &str, trial: &Trial, dtype: &'static str) -> Result<Row> {
    let way = Way::usual(test.device, dtype);
    let (one, two) =
        (test.workshop.train(trial, way, test.stop)?, test.workshop.train(trial, way, test.stop)?);
    let differs = |file: &&String| one.files.get(*file) != two.files.get(*file);
    let (outcome, compared) = match one.files.keys().chain(two.files.keys()).find(differs) {
        Some(file) => {
            (Outcome::Failed, format!("{dtype}: `{file}` has different bytes in the second run"))
        }
        None if one.losses.is_empty() => (Outcome::Skipped, "the method trains nothing".to_owned()),
        None => (Outcome::Ok, format!("{dtype}: {} files, identical bytes", one.files.len())),
    };
    Ok(Row::new(Section::Determinism, name, outcome, compared))
}

/// A run with the program's default plugins. Uses dropout if the default adapter supports dropout.
fn defaults_with_dropout(test: &Selftest<'_>) -> Result<Subject> {
    let mut trial = test.workshop.trial(Vec::new());
    let adapter = test.workshop.experiment(&trial, Way::PLAIN)?.adapter.name;
    let fields = plugin_fields(test.workshop.registry().get(Kind::Adapter, &adapter)?.about())?;
    let dropout =
        fields.iter().find(|field| field.name.contains("dropout") && field.default.is_number());
    let name = if dropout.is_some() { "defaults with dropout" } else { "defaults" };
    trial.set.extend(dropout.map(|field| format!("adapter.{}=0.2", field.name)));
    Ok(Subject { name: name.to_owned(), trial })
}
