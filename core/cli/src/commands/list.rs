//! `reprpo list`.

use reprpo_core::Result;
use reprpo_core::registry::{Entry, Kind};
use reprpo_core::report::{Align, Grid};
use serde_json::{Value, json};

use crate::App;
use crate::args::ListArgs;

pub fn run(args: &ListArgs, app: &App<'_>) -> Result<()> {
    let kinds = args.kind.map_or_else(|| Kind::ALL.to_vec(), |k| vec![k.kind()]);
    if args.json {
        let all: Vec<Value> = kinds.iter().flat_map(|k| app.registry.of(*k)).map(described).collect();
        return app.printer.json(&Value::Array(all));
    }
    let sections = kinds.iter().map(|kind| {
        let mut grid = Grid::new([kind.plural().as_str(), "from", "what it does"].map(|c| (c, Align::Left)));
        for entry in app.registry.of(*kind) {
            let about = &entry.about;
            grid.row([names(entry), format!("{} {}", about.origin, about.version), about.summary.to_owned()]);
            if !about.reference.is_empty() {
                grid.row(["", "", &format!("({})", about.reference)]);
            }
        }
        grid.plain()
    });
    let text: Vec<String> = sections.collect();
    app.printer.data(&text.join("\n"))
}

/// The name, and what else it answers to.
fn names(entry: &Entry) -> String {
    std::iter::once(entry.about.name).chain(entry.about.aliases.iter().copied()).collect::<Vec<_>>().join(", ")
}

fn described(entry: &Entry) -> Value {
    let about = &entry.about;
    json!({
        "kind": entry.kind().name(), "name": about.name, "aliases": about.aliases, "summary": about.summary,
        "reference": about.reference, "origin": about.origin, "version": about.version,
    })
}
