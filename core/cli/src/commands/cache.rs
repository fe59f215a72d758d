//! `reprpo cache`.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use reprpo_core::Result;
use reprpo_core::hub::cache_dir;
use reprpo_core::reference::{self, Collection};
use reprpo_core::report::{Align, Grid, size};
use serde_json::{Value, json};

use crate::App;
use crate::args::{CacheArgs, CacheCommand, ClearArgs};

pub fn run(args: &CacheArgs, app: &App<'_>) -> Result<()> {
    match &args.command {
        None => list(args.json, app),
        Some(CacheCommand::Clear(args)) => clear(args, app),
    }
}

fn list(json: bool, app: &App<'_>) -> Result<()> {
    let cache = cache_dir();
    let all = reference::collections(&cache);
    if json {
        return app.printer.json(&described(&cache, &all));
    }
    if all.is_empty() {
        app.printer.note(&format!("no values are cached in `{}`", folder(&cache)));
        return Ok(());
    }
    app.printer.data(&table(&all))?;
    app.printer.note(&format!("in `{}`", folder(&cache)));
    Ok(())
}

fn clear(args: &ClearArgs, app: &App<'_>) -> Result<()> {
    let cache = cache_dir();
    let removed = reference::clear(&cache, args.key.as_deref())?;
    if args.json {
        return app.printer.json(&described(&cache, &removed));
    }
    app.printer.note(&format!("removed {} from `{}`", size(bytes(&removed)), folder(&cache)));
    Ok(())
}

fn folder(cache: &Path) -> String {
    reference::folder(cache).display().to_string()
}

fn bytes(all: &[Collection]) -> u64 {
    all.iter().map(|collection| collection.bytes).sum()
}

fn described(cache: &Path, all: &[Collection]) -> Value {
    json!({ "folder": reference::folder(cache), "bytes": bytes(all), "collections": all })
}

/// One row per collection, and a row with the totals.
fn table(all: &[Collection]) -> String {
    let mut grid = Grid::new([
        ("key", Align::Left),
        ("values", Align::Left),
        ("model", Align::Left),
        ("dtype", Align::Left),
        ("device", Align::Left),
        ("pairs", Align::Right),
        ("size", Align::Right),
        ("last used", Align::Right),
    ]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for one in all {
        grid.row([
            one.key.clone(),
            one.values.clone(),
            one.model.clone(),
            one.dtype.clone(),
            one.device.clone(),
            one.pairs.to_string(),
            size(one.bytes),
            ago(now.saturating_sub(one.last_used)),
        ]);
    }
    let pairs: usize = all.iter().map(|collection| collection.pairs).sum();
    let total = ["total", "", "", "", "", &pairs.to_string(), &size(bytes(all)), ""];
    grid.row(total.map(str::to_owned));
    grid.plain()
}

/// A duration in its largest unit.
fn ago(seconds: u64) -> String {
    let (n, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_its_largest_unit() {
        let shown = [5, 60, 7199, 7200, 86400, 900_000].map(ago);
        let expected =
            ["just now", "1 minute ago", "1 hour ago", "2 hours ago", "1 day ago", "10 days ago"];
        assert_eq!(shown, expected);
    }
}
