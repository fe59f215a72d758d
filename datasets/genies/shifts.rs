//! Looks up the targets of distribution shifts in the lists that come with the benchmark.

use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json;

/// Files of the lists, in search order: the fifteen shifts of the benchmark, then a longer list
/// with more sources.
const LISTS: [&str; 2] = ["GENIES.json", "all.json"];

/// An entry of a list. Other fields, such as label and category, are ignored.
#[derive(Deserialize)]
#[serde(crate = "reprpo_plugin::serde")]
struct Shift {
    source: String,
    target: String,
}

/// Returns the first target that the lists give for `source`, or `None` if they do not list it.
///
/// # Errors
/// Fails if a list cannot be read or parsed.
pub fn target(data_dir: &Path, source: &str) -> Result<Option<String>> {
    for list in LISTS {
        for path in places(data_dir).map(|folder| folder.join(list)).filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(&path)
                .within(|| format!("cannot read `{}`", path.display()))?;
            let shifts: Vec<Shift> = serde_json::from_str(&text).map_err(|e| {
                Error::new(format!("`{}` is not a list of shifts", path.display()))
                    .because(e)
                    .hint("write each shift as {\"source\": …, \"target\": …}")
            })?;
            if let Some(shift) = shifts.into_iter().find(|shift| shift.source == source) {
                return Ok(Some(shift.target));
            }
        }
    }
    Ok(None)
}

/// Folders that can contain the lists: `genies_shifts` in or next to the data folder, or
/// `distribution_shifts` as in the benchmark's repository.
fn places(data_dir: &Path) -> impl Iterator<Item = PathBuf> {
    ["genies_shifts", "../genies_shifts", "distribution_shifts"]
        .into_iter()
        .map(|place| data_dir.join(place))
}
