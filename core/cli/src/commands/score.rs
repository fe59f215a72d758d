//! `reprpo score`.

use reprpo_core::Result;
use reprpo_core::config::Layering;
use reprpo_core::report::{Align, Grid};
use serde_json::json;

use crate::App;
use crate::args::{self, ScoreArgs};
use crate::{engine, interrupt};

pub fn run(args: &ScoreArgs, app: &App<'_>) -> Result<()> {
    let mut layers = Layering::new(app.registry);
    layers.defaults(app.defaults)?;
    args::environment(&mut layers);
    let data = Some(args.data.clone());
    args.model.apply(&mut layers);
    let flags = [("--load-adapter", "init_adapter", &args.load_adapter), ("--data", "dataset", &data), ("--max-length", "train.max_length", &args.max_length)];
    args::apply(&mut layers, &flags);
    args::columns(&mut layers, args.columns.as_deref())?;
    args::scored(&mut layers, args.split.as_deref());
    layers.start_from_adapter();
    let experiment = layers.resolve()?.experiment;
    let stop = interrupt::watch()?;
    let scores = engine::score(&experiment, !args.no_eos, &stop, app.printer.progress().as_mut(), app)?;
    if args.json {
        return app.printer.data(&scores.iter().map(|s| format!("{}\n", json!(s))).collect::<String>());
    }
    let mut grid = Grid::new(["pair", "logp chosen", "tokens", "logp rejected", "tokens", "margin"].map(|c| (c, Align::Right)));
    for s in &scores {
        let margin = s.chosen.logp_sum - s.rejected.logp_sum;
        let logp = |v: f64| format!("{v:.3}");
        grid.row([
            s.index.to_string(),
            logp(s.chosen.logp_sum),
            s.chosen.tokens.to_string(),
            logp(s.rejected.logp_sum),
            s.rejected.tokens.to_string(),
            format!("{margin:+.3}"),
        ]);
    }
    app.printer.data(&grid.plain())
}
