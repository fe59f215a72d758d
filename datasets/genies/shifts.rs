//! Which distribution a shift leads to, from the lists that come with the benchmark.

use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json;

/// The benchmark's fifteen shifts come first; the longer list fills in sources that they lack.
const LISTS: [&str; 2] = ["GENIES.json", "all.json"];

/// One entry; label, category and the reference for tuned capability do not matter here.
#[derive(Deserialize)]
#[serde(crate = "reprpo_plugin::serde")]
struct Shift {
    source: String,
    target: String,
}

/// The first target that the lists name for `source`; none where no list is found or none names it.
///
/// # Errors
/// A list that cannot be read, or that is none.
pub fn target(data_dir: &Path, source: &str) -> Result<Option<String>> {
    for list in LISTS {
        for path in places(data_dir).map(|folder| folder.join(list)).filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(&path)
                .within(|| format!("cannot read `{}`", path.display()))?;
            let shifts: Vec<Shift> = serde_json::from_str(&text).map_err(|e| {
                Error::new(format!("`{}` is no list of shifts", path.display()))
                    .because(e)
                    .hint("a shift is {\"source\": …, \"target\": …}")
            })?;
            if let Some(shift) = shifts.into_iter().find(|shift| shift.source == source) {
                return Ok(Some(shift.target));
            }
        }
    }
    Ok(None)
}

/// Where the lists may lie: in or beside the data's folder, or where the benchmark's own repository
/// has them.
fn places(data_dir: &Path) -> impl Iterator<Item = PathBuf> {
    ["genies_shifts", "../genies_shifts", "distribution_shifts"]
        .into_iter()
        .map(|place| data_dir.join(place))
}
