//! A slice of what `cargo xtask model` checks, in half a minute, and two things that must go wrong:
//! a checker that does not see them sees nothing.

use model::{CHECKS, Limits, Outcome, Restarts, Setup, check};

#[track_caller]
fn assert_holds(outcome: &Outcome) {
    assert!(outcome.broken.is_none(), "{outcome:#?}");
    assert!(outcome.exhaustive, "it stopped early");
}

/// Every traitor, no change of views, with vouchers and restarts at any moment.
#[test]
fn one_view_is_exhausted() {
    for traitor in CHECKS[0].traitors {
        assert_holds(&check(CHECKS[0].setup(*traitor), CHECKS[0].limits()));
    }
}

#[test]
fn two_views_are_exhausted() {
    assert_holds(&check(Setup::one_place(2, 3), Limits::default()));
}

/// To mix votes and what changes views in one step reaches nothing else.
#[test]
fn what_is_left_out_is_not_missed() {
    let mixed = |mixed| check(Setup { mixed, ..Setup::one_place(1, 0) }, Limits::default());
    let (mixed, apart) = (mixed(true), mixed(false));
    assert_holds(&mixed);
    assert_eq!(mixed.states, apart.states);
}

/// One traitor too many: agreement is lost, and seen to be.
#[test]
fn two_traitors_are_seen() {
    let setup = Setup { traitors: vec![0, 3], restarts: Restarts::Never, ..Setup::one_place(1, 0) };
    let (rule, way) = check(setup, Limits::default()).broken.expect("two of four are too many");
    assert!(["agreement", "carried"].contains(&rule), "{rule}");
    assert!(!way.is_empty(), "it is told how");
}
