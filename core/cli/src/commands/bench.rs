//! `reprpo bench`.

use reprpo_core::Result;
use reprpo_core::run::bench::bench;

use crate::App;
use crate::args::BenchArgs;
use crate::interrupt;

pub fn run(args: &BenchArgs, app: &App<'_>) -> Result<()> {
    let experiment = args.resolve(app)?.experiment;
    let stop = interrupt::watch()?;
    let report =
        bench(&experiment, args.options(), app.registry, &stop, app.printer.progress().as_mut())?;
    if (report.pairs as u64) < args.pairs {
        app.printer.note(&format!(
            "only {} pairs of `{}` can be measured",
            report.pairs, experiment.train.split
        ));
    }
    if args.json { app.printer.json(&report.json()) } else { app.printer.data(&report.plain()) }
}
