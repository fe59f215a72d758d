//! `reprpo doctor`.

use reprpo_core::doctor::{State, checks};
use reprpo_core::{Error, Result};
use serde_json::json;

use crate::App;
use crate::args::DoctorArgs;

pub fn run(args: &DoctorArgs, app: &App<'_>) -> Result<()> {
    let checks = checks();
    if args.json {
        app.printer.json(&json!(checks))?;
    } else {
        let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for check in &checks {
            let mark = match check.state {
                State::Good => "\x1b[32m✔\x1b[0m",
                State::Absent => "–",
                State::Limited => "\x1b[33m!\x1b[0m",
                State::Broken => "\x1b[31m✖\x1b[0m",
            };
            text.push_str(&format!("{mark} {:<width$}  {}\n", check.name, check.found));
            if let Some(hint) = &check.hint {
                text.push_str(&format!("  {:<width$}  hint: {hint}\n", ""));
            }
        }
        app.printer.data(&text)?;
    }
    match checks.iter().find(|c| c.state == State::Broken) {
        Some(broken) => {
            Err(Error::internal(format!("{} does not work on this machine", broken.name)))
        }
        None => Ok(()),
    }
}
