//! `reprpo report`.

use reprpo_core::error::Context;
use reprpo_core::files::write_whole;
use reprpo_core::{Error, Result, page};
use serde_json::json;

use super::compare::comparison;
use crate::App;
use crate::args::ReportArgs;

pub fn run(args: &ReportArgs, app: &App<'_>) -> Result<()> {
    let summary = comparison(&args.comparison, app)?;
    let out = match (&args.out, args.comparison.targets.first()) {
        (Some(out), _) => out.clone(),
        (None, Some(first)) => first.join("report.html"),
        (None, None) => return Err(Error::internal("there are no runs to report on")),
    };
    let mut command: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(program) = command.first_mut() {
        // The path of the program is of no use on another machine.
        *program = "reprpo".to_owned();
    }
    write_whole(&out, page::render(&summary, &command).as_bytes())
        .within(|| format!("cannot write the report `{}`", out.display()))?;
    if args.json {
        return app.printer.json(&json!({ "report": out }));
    }
    app.printer.data(&format!("the report is in `{}`", out.display()))
}
