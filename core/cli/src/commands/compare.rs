//! `reprpo compare`.

use reprpo_core::results::{self, Request, Summary, summarise};
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::{CompareArgs, ComparisonArgs};

pub fn run(args: &CompareArgs, app: &App<'_>) -> Result<()> {
    let summary = comparison(&args.comparison, app)?;
    if args.json {
        let json = serde_json::to_value(&summary).map_err(|e| Error::internal(e.to_string()))?;
        return app.printer.json(&json);
    }
    app.printer.data(&match (args.markdown, args.csv) {
        (true, _) => results::markdown(&summary),
        (_, true) => results::csv(&summary),
        _ => results::plain(&summary),
    })
}

/// Compares the runs. Warnings also go to stderr, because the output may go to a file.
pub fn comparison(args: &ComparisonArgs, app: &App<'_>) -> Result<Summary> {
    let summary = summarise(&Request {
        targets: args.targets.clone(),
        baseline: args.baseline.clone(),
        preferred_baseline: default_intervention(app),
        match_perplexity: args.match_perplexity,
        match_split: args.match_split.clone(),
        tuned_on_target: args.tuned.clone(),
    })?;
    for run in &summary.left_out {
        app.printer.note(&format!("left out `{}`: {}", run.run.display(), run.reason));
    }
    Ok(summary)
}

/// The default intervention of this binary, which is the baseline unless the user names one.
fn default_intervention(app: &App<'_>) -> Option<String> {
    let defaults: toml::Table = toml::from_str(app.defaults).ok()?;
    defaults.get("intervention")?.as_str().map(str::to_owned)
}
