//! For a plugin's own tests: everything that the engine expects of a method, and pairs to work a
//! loss out by hand.
//!
//! ```ignore
//! #[test]
//! fn every_plugin_here_keeps_its_promises() {
//!     reprpo_plugin::testkit::registered();
//! }
//!
//! #[test]
//! fn a_case_worked_out_by_hand() {
//!     // One pair of two tokens a completion.
//!     let reference = sides(&tensor(&[-2.0, -2.0], &[2]), &tensor(&[-3.0, -0.5], &[2]));
//!     let policy = sides(&tensor(&[-1.0, -2.0], &[2]), &tensor(&[-3.5, -0.5], &[2]));
//!     let pairs = Pairs::new(1, Vec::new(), Some(logprobs(&policy, 2)), Some(logprobs(&reference, 2)));
//!     let loss = Mine::default().build(&model()).unwrap().loss(&pairs, STEP).unwrap();
//!     near(loss.value.double_value(&[]), 0.25);
//! }
//! ```

mod worked_pairs;

use reprpo_core::conformance::{self, Method};
use reprpo_core::registry::{Entry, Kind, Registry};

pub use reprpo_core::conformance::{model as fixture_model, pairs as fixture_pairs};
pub use worked_pairs::*;

/// Holds every plugin that this test binary registers to all that concerns its kind. With
/// `--nocapture` a line says of each statement what came of it.
///
/// # Panics
/// Where statements are violated, with all of them, and where nothing is registered.
pub fn registered() {
    let registry = Registry::builtin().unwrap_or_else(|e| panic!("{e:?}"));
    let entries: Vec<Entry> = Kind::ALL.into_iter().flat_map(|kind| registry.of(kind)).collect();
    assert!(
        !entries.is_empty(),
        "this test binary registers no plugin: write `#[intervention(…)]`, or the attribute of \
            its kind, above each, and `use my_crate as _;` in a test of another crate"
    );
    let violations: Vec<String> =
        entries.into_iter().flat_map(|entry| violations(Method::default_of(entry))).collect();
    report(&violations);
}

/// Holds one plugin of this test binary, with the fields of the JSON object `json` set, to all that
/// concerns its kind.
///
/// # Panics
/// Where there is no such plugin, or a statement is violated.
pub fn examine(kind: Kind, name: &str, json: &str) {
    let entry = Registry::builtin()
        .and_then(|registry| registry.get(kind, name))
        .unwrap_or_else(|e| panic!("{e:?}"));
    report(&violations(Method::new(entry, json.to_owned())));
}

/// What is wrong with it, one text a statement; says the rest as it goes.
fn violations(method: Method) -> Vec<String> {
    let who = format!("{} ({})", method, method.entry.kind().name());
    println!("{who}");
    let shown = conformance::examine(method)
        .inspect(|finding| println!("  {}", finding.to_string().replace('\n', "\n  ")));
    shown
        .filter(|finding| finding.violation().is_some())
        .map(|finding| format!("{who}\n  {}", finding.to_string().replace('\n', "\n  ")))
        .collect()
}

fn report(violations: &[String]) {
    assert!(
        violations.is_empty(),
        "violations ({}):\n\n{}\n",
        violations.len(),
        violations.join("\n")
    );
}
