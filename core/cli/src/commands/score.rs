//! `reprpo score`.

use reprpo_core::Result;
use reprpo_core::eval::{PairOutcome, SplitScores, table::dropped_and_cut};
use reprpo_core::report::{Align, Grid};

use crate::App;
use crate::args::{ScoreArgs, layers};
use crate::engine::{self, LengthLimit, PlainText};
use crate::interrupt;

pub fn run(args: &ScoreArgs, app: &App<'_>) -> Result<()> {
    let mut layers = layers::defaults(app)?;
    layers::environment(&mut layers);
    args.model.apply(&mut layers);
    args.adapter.apply(&mut layers);
    args.data.apply(&mut layers)?;
    layers.start_from_adapter();
    let resolved = layers.resolve()?;
    let stop = interrupt::watch()?;
    let text = PlainText { eos: !args.no_eos, special_tokens: !args.no_special_tokens };
    let scores = engine::score(
        &resolved.experiment,
        &LengthLimit::of(&resolved),
        text,
        &stop,
        app.printer.progress().as_mut(),
        app,
    )?;
    if args.json {
        return app.printer.data(&scores.iter().map(json_lines).collect::<String>());
    }
    app.printer.data(&table(&scores))
}

/// Formats the scores of a split as JSON Lines, with one object per pair.
fn json_lines(split: &SplitScores) -> String {
    split.rows().iter().map(|row| format!("{}\n", row.score(split))).collect()
}

/// Formats the scores as a table with one row per pair. After the table, one line per split gives
/// the numbers of dropped and truncated pairs.
fn table(scores: &[SplitScores]) -> String {
    let several = scores.len() > 1;
    let remarks = scores.iter().any(|split| split.truncated() + split.dropped.len() > 0);
    let numbers = ["pair", "logp chosen", "tokens", "logp rejected", "tokens", "margin"]
        .map(|c| (c, Align::Right));
    let (before, behind) =
        (several.then_some(("split", Align::Left)), remarks.then_some(("remark", Align::Left)));
    let mut grid = Grid::new(before.into_iter().chain(numbers).chain(behind));
    for split in scores {
        for row in split.rows() {
            let mut cells = match row.outcome {
                PairOutcome::Scored { base, .. } => {
                    let (chosen, rejected) = (base.chosen, base.rejected);
                    let logp = |v: f64| format!("{v:.3}");
                    let margin = format!("{:+.3}", chosen.logp_sum - rejected.logp_sum);
                    let (n, m) = (chosen.tokens.to_string(), rejected.tokens.to_string());
                    vec![
                        row.index.to_string(),
                        logp(chosen.logp_sum),
                        n,
                        logp(rejected.logp_sum),
                        m,
                        margin,
                    ]
                }
                PairOutcome::Dropped(_) | PairOutcome::Excluded => {
                    [&[row.index.to_string()][..], &vec!["–".to_owned(); 5]].concat()
                }
            };
            if several {
                cells.insert(0, split.split.clone());
            }
            let dropped =
                if matches!(row.outcome, PairOutcome::Dropped(_)) { "dropped: " } else { "" };
            cells.extend(row.reason(split).map(|reason| format!("{dropped}{reason}")));
            grid.row(cells);
        }
    }
    let limit = |split: &SplitScores| Some(split.max_length).filter(|tokens| *tokens != usize::MAX);
    let counts = scores.iter().filter_map(|split| {
        dropped_and_cut(&split.split, split.dropped.len(), split.truncated(), limit(split))
    });
    let counts: String = counts.map(|line| format!("{line}\n")).collect();
    if counts.is_empty() { grid.plain() } else { format!("{}\n{counts}", grid.plain()) }
}
