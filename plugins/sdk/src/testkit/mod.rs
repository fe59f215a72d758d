//! Tools for testing plugins: the conformance tests, and helpers for comparing a loss with a
//! calculation by hand.
//!
//! ```ignore
//! #[test]
//! fn the_plugins_pass_the_conformance_tests() {
//!     reprpo_plugin::testkit::registered();
//! }
//!
//! #[test]
//! fn the_loss_of_one_pair_matches_a_calculation_by_hand() {
//!     // One pair, with two tokens per completion.
//!     let reference = sides(&tensor(&[-2.0, -2.0], &[2]), &tensor(&[-3.0, -0.5], &[2]));
//!     let policy = sides(&tensor(&[-1.0, -2.0], &[2]), &tensor(&[-3.5, -0.5], &[2]));
//!     let (policy, reference) = (logprobs(&policy, 2), logprobs(&reference, 2));
//!     let pairs = Pairs::new(1, Vec::new(), Some(policy), Some(reference));
//!     let loss = Mine::default().build(&model()).unwrap().loss(&pairs, STEP).unwrap();
//!     near(loss.value.double_value(&[]), 0.25);
//! }
//! ```

mod worked_pairs;

use reprpo_core::conformance::{self, Method};
use reprpo_core::registry::{Entry, Kind, Registry};

pub use reprpo_core::conformance::{model as fixture_model, pairs as fixture_pairs};
pub use worked_pairs::*;

/// Runs the conformance tests on every plugin that is linked into this test binary. With
/// `--nocapture`, it prints one line per invariant.
///
/// # Panics
/// Panics if an invariant is violated, or if no plugin is linked in. The message lists all
/// violations.
pub fn registered() {
    let registry = Registry::builtin().unwrap_or_else(|e| panic!("{e:?}"));
    let entries: Vec<Entry> = Kind::ALL.into_iter().flat_map(|kind| registry.of(kind)).collect();
    assert!(
        !entries.is_empty(),
        "this test binary registers no plugin: put an attribute such as `#[intervention(…)]` on \
            the struct of each method; in an integration test, add `use my_crate as _;`"
    );
    let violations: Vec<String> =
        entries.into_iter().flat_map(|entry| violations(Method::default_of(entry))).collect();
    report(&violations);
}

/// Runs the conformance tests on one plugin that is linked into this test binary. `json` is its
/// configuration, a JSON object.
///
/// # Panics
/// Panics if there is no such plugin, or if an invariant is violated.
pub fn examine(kind: Kind, name: &str, json: &str) {
    let entry = Registry::builtin()
        .and_then(|registry| registry.get(kind, name))
        .unwrap_or_else(|e| panic!("{e:?}"));
    report(&violations(Method::new(entry, json.to_owned())));
}

/// Checks a method and prints each finding. Returns a description of each violation.
fn violations(method: Method) -> Vec<String> {
    let title = format!("{} ({})", method, method.entry.kind().name());
    println!("{title}");
    let shown = conformance::examine(method)
        .inspect(|finding| println!("  {}", finding.to_string().replace('\n', "\n  ")));
    shown
        .filter(|finding| finding.violation().is_some())
        .map(|finding| format!("{title}\n  {}", finding.to_string().replace('\n', "\n  ")))
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
