//! Every way of lying beside every invariant, as a Markdown table.

use std::sync::Mutex;

use sim::{BEHAVIOURS, Behaviour, Invariant, Outcome, Scenario};

use crate::many::{Seeds, run_all};

/// Control runs that must fail, in a hundred.
const CAUGHT_MIN: u64 = 95;

/// What came of a behaviour's runs.
#[derive(Default)]
struct Row {
    runs: u64,
    /// Violations of each invariant.
    violations: [u64; Invariant::ALL.len()],
    first: Option<(u64, String)>,
}

impl Row {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.runs += 1;
        let Some(violation) = &outcome.violation else { return };
        let index = Invariant::ALL.iter().position(|invariant| *invariant == violation.invariant);
        self.violations[index.expect("one of all")] += 1;
        if self.first.as_ref().is_none_or(|(first, _)| seed < *first) {
            self.first = Some((seed, format!("{}: {}", violation.invariant, violation.what)));
        }
    }

    fn failed(&self) -> u64 {
        self.violations.iter().sum()
    }
}

fn run(behaviour: &'static Behaviour, control: bool, seeds: &Seeds, jobs: usize) -> Row {
    let row = Mutex::new(Row::default());
    run_all(seeds, Scenario::Liars { behaviour, control }, jobs, &|seed, outcome| {
        row.lock().expect("nobody panics with it").add(seed, &outcome);
    });
    row.into_inner().expect("nobody panics with it")
}

/// Runs all behaviours and prints the table. Gives whether it is as it must be: no violation with as
/// many liars as are tolerated, and almost always one with one more.
pub(crate) fn print(seeds: &Seeds, jobs: usize, only: &str) -> bool {
    std::panic::set_hook(Box::new(|_| ()));
    println!("| behaviour | fault | f liars: runs | {} | f + 1: runs | caught | by |", heads());
    println!("|---|---|---:|{}---:|---:|---|", "---:|".repeat(Invariant::ALL.len()));
    let (mut good, mut notes, mut count, mut runs) = (true, Vec::new(), 0, 0);
    for behaviour in BEHAVIOURS.iter().filter(|behaviour| behaviour.name.contains(only)) {
        let (held, control) = (run(behaviour, false, seeds, jobs), run(behaviour, true, seeds, jobs));
        let cell = |(index, violations): (usize, &u64)| {
            let applies =
                behaviour.applies.contains(&Invariant::ALL[index]) || Invariant::ALL[index] == Invariant::Asserts;
            if *violations == 0 && !applies { "·".to_owned() } else { violations.to_string() }
        };
        let cells: Vec<_> = held.violations.iter().enumerate().map(cell).collect();
        let by = Invariant::ALL.iter().zip(control.violations).filter(|(_, count)| *count > 0);
        let by: Vec<_> = by.map(|(invariant, count)| format!("{} {count}", short(*invariant))).collect();
        println!(
            "| {}{} | {} | {} | {} | {} | {:.0} % | {} |",
            behaviour.name,
            if behaviour.hushes() { " †" } else { "" },
            behaviour.row,
            held.runs,
            cells.join(" | "),
            control.runs,
            control.failed() as f64 * 100.0 / control.runs.max(1) as f64,
            by.join(", "),
        );
        good &= held.failed() == 0 && control.failed() * 100 >= CAUGHT_MIN * control.runs;
        notes.extend(held.first.map(|(seed, what)| (behaviour.name, seed, what)));
        (count, runs) = (count + 1, runs + held.runs + control.runs);
    }
    println!(
        "\n{count} behaviours, {runs} runs. Columns I1 to I7 and A (our own assertions) count violations with f liars;"
    );
    println!("a dot: not what the behaviour aims at, checked all the same, and never violated.");
    println!("†: in the control runs the liars also fall silent in the end, or they could do no harm.");
    for (name, seed, what) in notes {
        println!("- {what}\n  replay it: cargo xtask sim {seed} --scenario {name}");
    }
    good
}

fn short(invariant: Invariant) -> String {
    let text = invariant.to_string();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn heads() -> String {
    Invariant::ALL.iter().map(|invariant| short(*invariant)).collect::<Vec<_>>().join(" | ")
}
