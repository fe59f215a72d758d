//! Looks up the targets of distribution shifts in the benchmark's shift lists.

use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json;

/// File names of the shift lists, in search order: the fifteen shifts of the benchmark, then a
/// longer list with additional shifts.
const LISTS: [&str; 2] = ["GENIES.json", "all.json"];

/// An entry of a shift list. All other fields, such as `label` and `category`, are ignored.
#[derive(Deserialize)]
#[serde(crate = "reprpo_plugin::serde")]
struct Shift {
    source: String,
    target: String,
}

/// Returns the first target of `source` in the shift lists, or `None` if `source` is not listed.
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

/// Returns the folders to search for shift lists: `genies_shifts` in the data folder or next to it,
/// and `distribution_shifts` in the data folder, as in the benchmark's repository.
fn places(data_dir: &Path) -> impl Iterator<Item = PathBuf> {
    ["genies_shifts", "../genies_shifts", "distribution_shifts"]
        .into_iter()
        .map(|place| data_dir.join(place))
}
