//! `reprpo plugin`.

use std::path::Path;

use reprpo_core::conformance::{Finding, Verdict, examine};
use reprpo_core::guard::faults;
use reprpo_core::hub;
use reprpo_core::plugin::{self, Fingerprint};
use reprpo_core::registry::{Entry, PluginLibrary, Registry};
use reprpo_core::{Error, Result};
use serde_json::{Value, json};

use crate::App;
use crate::args::{CheckArgs, PluginArgs, PluginCommand};

pub fn run(args: &PluginArgs, app: &App<'_>) -> Result<()> {
    match &args.command {
        PluginCommand::Check(args) => check(args, app),
    }
}

/// Loads a library, runs the conformance checks on everything that it registers, and prints the
/// results.
///
/// # Errors
/// Fails if the library is not compatible with this build, or if a check fails.
fn check(args: &CheckArgs, app: &App<'_>) -> Result<()> {
    // Go offline first, because the library copies this setting when it is loaded.
    hub::stay_offline();
    let loaded = match load_compatible(&args.file) {
        Ok(loaded) => loaded,
        Err(e) if args.json => {
            app.printer
                .json(&json!({ "file": args.file, "fits": false, "error": format!("{e:?}"),
                "ours": build(&Fingerprint::ours()) }))?;
            return Err(e);
        }
        Err(e) => return Err(e),
    };
    if !args.json {
        app.printer.data(&summary(&loaded))?;
    }
    let mut progress = app.printer.progress();
    let (mut described, mut violated) = (Vec::new(), Vec::new());
    for &entry in &loaded.entries {
        let (kind, name) = (entry.kind().name(), entry.about().name);
        if !args.json {
            app.printer.data(&format!("\n{kind} `{name}`: {}", entry.about().summary))?;
        }
        progress.stage(&format!("check {name}"), None);
        let mut findings = Vec::new();
        for finding in examine(entry) {
            let finding = with_faults(finding);
            progress.advance(1, &[]);
            if let Some(how) = finding.violation() {
                violated.push(format!("{kind} `{name}`: {}: {how}", finding.statement));
            }
            findings.push(finding);
        }
        progress.finish();
        if args.json {
            described.push(as_json(entry, &findings));
        } else {
            app.printer.data(&findings.iter().map(line).collect::<String>())?;
        }
    }
    if args.json {
        app.printer.json(&json!({
            "file": loaded.path, "fits": true, "crate": loaded.name, "version": loaded.version,
            "sha256": loaded.sha256,
            "ours": build(&Fingerprint::ours()), "registers": described,
            "recipes": loaded.recipes.len(), "violations": violated.len(),
        }))?;
    } else if violated.is_empty() {
        app.printer
            .data("\nthe library is compatible with this build of reprpo and passes all checks")?;
    }
    match &violated[..] {
        [] => Ok(()),
        [first, ..] => {
            Err(Error::new(format!("{} of the library failed", counted(violated.len())))
                .because(Error::new(first.lines().next().unwrap_or_default()))
                .hint("call `reprpo_plugin::testkit` in the crate's tests to run the same checks"))
        }
    }
}

/// Loads the library. Fails if it is not compatible with this build, or if a name that it registers
/// is already taken.
fn load_compatible(file: &Path) -> Result<PluginLibrary> {
    let loaded = plugin::load(file)?;
    Registry::builtin()?.add_plugin(loaded.clone())?;
    Ok(loaded)
}

/// Changes the verdict to `Violated` if a fault was recorded. A fault is an error in a callback
/// that cannot return errors.
fn with_faults(mut finding: Finding) -> Finding {
    if let Err(e) = faults::check() {
        finding.verdict = Verdict::Violated(format!("{e:?}"));
    }
    finding
}

fn counted(n: usize) -> String {
    if n == 1 { "one check".to_owned() } else { format!("{n} checks") }
}

fn summary(loaded: &PluginLibrary) -> String {
    let mut text = format!(
        "{} {} in `{}`\nsha256 {}\n",
        loaded.name,
        loaded.version,
        loaded.path.display(),
        loaded.sha256
    );
    text.push_str(&format!("fits: {}\n", Fingerprint::ours()));
    if !loaded.recipes.is_empty() {
        text.push_str(&format!("recipes: {}\n", loaded.recipes.len()));
    }
    text
}

fn line(finding: &Finding) -> String {
    let statement = finding.statement;
    match &finding.verdict {
        Verdict::Holds => format!("  \x1b[32m✔\x1b[0m {statement}\n"),
        Verdict::DoesNotApply(why) => format!("  – {statement}: {why}\n"),
        Verdict::Violated(how) => {
            format!("  \x1b[31m✖\x1b[0m {statement}\n      {}\n", how.replace('\n', "\n      "))
        }
    }
}

fn as_json(entry: Entry, findings: &[Finding]) -> Value {
    let findings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let (outcome, why) = match &finding.verdict {
                Verdict::Holds => ("holds", None),
                Verdict::DoesNotApply(why) => ("does not apply", Some((*why).to_owned())),
                Verdict::Violated(how) => ("violated", Some(how.clone())),
            };
            json!({ "statement": finding.statement, "outcome": outcome, "why": why,
                "seconds": finding.elapsed.as_secs_f64() })
        })
        .collect();
    json!({ "kind": entry.kind().name(), "name": entry.about().name,
        "summary": entry.about().summary, "findings": findings })
}

fn build(fingerprint: &Fingerprint) -> Value {
    Value::Object(
        fingerprint.parts().into_iter().map(|(key, value)| (key, Value::String(value))).collect(),
    )
}
