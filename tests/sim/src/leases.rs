//! Every way in which leases are tried, as a Markdown table.

use std::collections::BTreeMap;
use std::sync::Mutex;

use sim::{Figures, Outcome, Row, Scenario};

use crate::many::{Seeds, run_all};

/// Seeds of a control at most.
const CONTROLS_MAX: u64 = 40;

/// What came of a row's runs.
#[derive(Default)]
struct Totals {
    runs: u64,
    violations: BTreeMap<String, u64>,
    first: Option<(u64, String)>,
    all: Figures,
    /// The longest wait and the median, as far apart as they were in any run.
    ratio: f64,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.runs += 1;
        if let Some(violation) = outcome.violation {
            let name = violation.invariant.to_string();
            *self.violations.entry(name.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
            if self.first.as_ref().is_none_or(|(first, _)| seed < *first) {
                self.first = Some((seed, violation.what));
            }
        }
        let Some(figures) = outcome.leases else { return };
        let times = if figures.totals.len() > 10 { &figures.totals } else { &figures.waits };
        if let (Some(median), Some(most)) = (times.get(times.len() / 2), times.last()) {
            self.ratio = self.ratio.max(*most as f64 / (*median).max(1) as f64);
        }
        let all = &mut self.all;
        all.stops += figures.stops;
        all.kills += figures.kills;
        all.beliefs += figures.beliefs;
        all.shared += figures.shared;
        all.deeds = (all.deeds.0 + figures.deeds.0, all.deeds.1 + figures.deeds.1);
        all.lost += figures.lost;
        all.stale_looks += figures.stale_looks;
        all.shortened = all.shortened.max(figures.shortened);
        all.off = (all.off.0.min(figures.off.0), all.off.1.max(figures.off.1));
        all.waits.extend(figures.waits);
    }

    fn failed(&self) -> u64 {
        self.violations.values().sum()
    }
}

fn run(row: Row, control: bool, seeds: &Seeds, jobs: usize) -> Totals {
    let totals = Mutex::new(Totals::default());
    run_all(seeds, Scenario::Leases { row, control }, jobs, &|seed, outcome| {
        totals.lock().expect("nobody panics with it").add(seed, outcome);
    });
    let mut totals = totals.into_inner().expect("nobody panics with it");
    totals.all.waits.sort_unstable();
    totals
}

/// Runs them and prints the table. Gives whether it is as it must be.
pub(crate) fn print(seeds: &Seeds, jobs: usize, only: &str) -> bool {
    std::panic::set_hook(Box::new(|_| ()));
    println!(
        "| row | runs | violations | stopped, killed | changes | lost and told | looks too old | wait p50 s | p99 s | \
         longest s | longest / median | shorter by ms | agreed time off, ms | controls | caught |"
    );
    println!("|---|{}", "---:|".repeat(14));
    let (mut good, mut notes) = (true, Vec::new());
    for row in Row::ALL.into_iter().filter(|row| row.name().contains(only)) {
        let held = run(row, false, seeds, jobs);
        // What must fail is shown by fewer.
        let few = Seeds { from: seeds.from, to: seeds.to.min(seeds.from + CONTROLS_MAX) };
        let control = if row.has_control() { run(row, true, &few, jobs) } else { Totals::default() };
        let all = &held.all;
        let wait = |part: f64| {
            let at = (all.waits.len() as f64 * part) as usize;
            all.waits.get(at.min(all.waits.len().saturating_sub(1))).map_or(0.0, |wait| *wait as f64 / 1e9)
        };
        println!(
            "| {} | {} | {} | {}, {} | {} | {} | {} | {:.3} | {:.3} | {:.3} | {} | {:.0} | {:.0} to {:.0} | {} | \
             {} |",
            row.name(),
            held.runs,
            held.failed(),
            all.stops,
            all.kills,
            all.deeds.1,
            all.lost,
            all.stale_looks,
            wait(0.5),
            wait(0.99),
            wait(1.0),
            if row == Row::Crowd { format!("{:.1}", held.ratio) } else { "·".to_owned() },
            all.shortened as f64 / 1e6,
            all.off.0 as f64 / 1e6,
            all.off.1 as f64 / 1e6,
            control.runs,
            control.failed(),
        );
        good &= held.failed() == 0 && (control.runs == 0 || control.failed() * 8 >= control.runs);
        notes.extend(
            held.first.map(|(seed, what)| format!("- {what}\n  cargo xtask sim {seed} --scenario {}", row.name())),
        );
        notes.extend(
            control.first.map(|(seed, what)| format!("- {what}\n  as it must: {seed} --scenario {}+1", row.name())),
        );
    }
    notes.iter().for_each(|note| println!("{note}"));
    good
}
