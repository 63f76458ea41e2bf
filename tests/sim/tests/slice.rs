//! A slice of what the simulator can do, in a minute: fresh seeds, seeds that failed once, liars and
//! their controls, and that a seed is a run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sim::{BEHAVIOURS, Outcome, Row, Scenario, run};

/// Runs these on two threads; gives the outcomes in order.
fn run_all(runs: &[(u64, Scenario)]) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((seed, scenario)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = run(*seed, *scenario, false);
            outcomes.lock().unwrap().push((*seed, scenario.to_string(), outcome));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    let place = |seed: u64, name: &str| {
        runs.iter().position(|(other, scenario)| *other == seed && scenario.to_string() == name).unwrap()
    };
    outcomes.sort_by_key(|(seed, name, _)| place(*seed, name));
    outcomes.into_iter().map(|(_, _, outcome)| outcome).collect()
}

/// A line of `tests/sim/regressions.txt`: a seed and a scenario, and whether what is wrong with it is
/// not mended yet.
fn regressions() -> Vec<(u64, Scenario, bool)> {
    let text = include_str!("../regressions.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let regression = |line: &str| {
        let mut words = line.split_whitespace();
        let seed = words.next().unwrap().parse().expect("a seed");
        let scenario = Scenario::parse(words.next().expect("a scenario")).expect("a scenario that there is");
        (seed, scenario, words.next() == Some("open"))
    };
    lines.map(regression).collect()
}

fn is_open(seed: u64, scenario: Scenario) -> bool {
    let known = regressions().into_iter().filter(|(_, _, open)| *open);
    known.map(|(seed, scenario, _)| (seed, scenario.to_string())).any(|known| known == (seed, scenario.to_string()))
}

/// Fails with the line that replays the first failure, unless that is known and open.
#[track_caller]
fn assert_held(runs: &[(u64, Scenario)]) {
    for ((seed, scenario), outcome) in runs.iter().zip(run_all(runs)) {
        if let Some(violation) = outcome.violation.filter(|_| !is_open(*seed, *scenario)) {
            panic!("{}: {}\n  cargo xtask sim {seed} --scenario {scenario}", violation.invariant, violation.what);
        }
    }
}

fn faults(seeds: core::ops::Range<u64>) -> Vec<(u64, Scenario)> {
    seeds.map(|seed| (seed, Scenario::Faults)).collect()
}

#[test]
fn two_hundred_seeds() {
    assert_held(&faults(0..200));
}

#[test]
fn a_seed_is_a_run() {
    let runs = faults(0..12);
    let hashes = |runs| run_all(runs).into_iter().map(|outcome| outcome.hash).collect::<Vec<_>>();
    let (first, second) = (hashes(&runs), hashes(&runs));
    assert_eq!(first, second);
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]), "another seed is another run");
}

#[test]
fn every_behaviour_is_tolerated() {
    let liars = |behaviour| Scenario::Liars { behaviour, control: false };
    let runs: Vec<_> = (0..).zip(BEHAVIOURS.iter().map(liars)).collect();
    assert_held(&runs);
}

/// One liar too many is always seen: checkers that see nothing would see nothing here.
#[test]
fn one_liar_too_many_is_seen() {
    let liars = |behaviour| Scenario::Liars { behaviour, control: true };
    // Those whose every run takes its full time for want of progress are left to the matrix.
    let quick = BEHAVIOURS.iter().filter(|behaviour| !behaviour.hushes());
    let runs: Vec<_> = quick.map(liars).map(|scenario| (7, scenario)).collect();
    let caught = run_all(&runs).iter().filter(|outcome| outcome.violation.is_some()).count();
    assert!(caught * 100 >= runs.len() * 95, "{caught} of {}", runs.len());
}

#[test]
fn leases_hold_whatever_happens_to_clocks_and_mounts() {
    let leases = |seed| Row::ALL.map(|row| (seed, Scenario::Leases { row, control: false }));
    let runs: Vec<_> = (0..3).flat_map(leases).collect();
    assert_held(&runs);
}

/// Clocks, or replicas, that are worse than is assumed: what that does to leases is seen.
#[test]
fn leases_that_can_not_hold_are_seen_not_to() {
    for row in Row::ALL.into_iter().filter(|row| row.has_control()) {
        let is_seen = |seed| run(seed, Scenario::Leases { row, control: true }, false).violation.is_some();
        assert!((0..24).any(is_seen), "{}", row.name());
    }
}

#[test]
fn a_run_with_leases_is_its_seed() {
    let runs = [0, 1].map(|seed| (seed, Scenario::Leases { row: Row::Stopped, control: false }));
    let all =
        |outcomes: Vec<Outcome>| outcomes.into_iter().map(|outcome| (outcome.hash, outcome.leases)).collect::<Vec<_>>();
    let (first, second) = (all(run_all(&runs)), all(run_all(&runs)));
    assert_eq!(first, second);
    assert_ne!(first[0], first[1]);
}

#[test]
fn what_failed_once_holds_now() {
    let runs: Vec<_> = regressions().into_iter().map(|(seed, scenario, _)| (seed, scenario)).collect();
    assert_held(&runs);
}
