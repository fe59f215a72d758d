//! `reprpo selftest`.

use reprpo_core::Result;
use reprpo_core::selftest;

use crate::App;
use crate::args::SelftestArgs;
use crate::interrupt;

pub fn run(args: &SelftestArgs, app: &App<'_>) -> Result<()> {
    let stop = interrupt::watch()?;
    let report = selftest::run(
        &args.options(),
        app.defaults,
        app.registry,
        &stop,
        app.printer.progress().as_mut(),
    )?;
    if args.json {
        app.printer.json(&report.json())?;
    } else {
        app.printer.data(&report.plain())?;
    }
    report.verdict()
}
