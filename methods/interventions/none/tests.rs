use super::*;
use reprpo_plugin::testkit::STEP;

#[test]
fn none_needs_nothing_and_has_no_loss() {
    assert_eq!(Untrained {}.needs(), Needs { evaluate_only: true, ..Needs::default() });
    assert_eq!(Untrained {}.needs().describe(), "nothing");
    assert!(Untrained {}.loss(&Pairs::new(1, Vec::new(), None, None), STEP).is_err());
}
