//! `cargo xtask sim`: runs simulated clusters by the seed, alone or by the thousand.

mod leases;
mod many;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sim::Scenario;

use crate::many::{Seeds, Sweep};

/// Simulated clusters: replicas, clients, disks, clocks and a network in one thread, from one seed.
///
/// One seed, with everything that happens:   cargo xtask sim 17
/// Many seeds:                               cargo xtask sim --seeds 0..10000
/// Every way of lying:                       cargo xtask sim --matrix --seeds 100
/// Leases under faults:                      cargo xtask sim --leases --seeds 200
#[derive(Parser)]
#[command(name = "sim", bin_name = "cargo xtask sim", verbatim_doc_comment)]
struct Arguments {
    /// The seed to replay, with a line for everything that happens.
    #[arg(conflicts_with_all = ["seeds", "matrix", "leases"])]
    #[arg(required_unless_present_any = ["seeds", "matrix", "leases"])]
    seed: Option<u64>,
    /// The seeds to run: `A..B`, or `N` for `0..N`.
    #[arg(long)]
    seeds: Option<Seeds>,
    /// What is run: `faults`; the name of a behaviour, or that name and `+1` for one liar too many;
    /// or a setting: `far-apart`, `one-door`, `starved`; or what goes wrong with leases: `lease-clocks`,
    /// `lease-time`, `lease-stopped` (these also with `+1`: worse than may be assumed), `lease-lag`, `lease-hostile`,
    /// `lease-crowd`, `lease-crashed`.
    #[arg(long, default_value = "faults", value_parser = scenario)]
    scenario: Scenario,
    /// Runs every behaviour, with as many liars as are tolerated and with one more, and prints a table.
    #[arg(long)]
    matrix: bool,
    /// Runs everything that goes wrong with leases, and prints a table.
    #[arg(long, conflicts_with = "matrix")]
    leases: bool,
    /// Only behaviours, or what goes wrong with leases, whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Prints no trace, only what came of it.
    #[arg(long)]
    quiet: bool,
    /// Seeds run at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Goes on where an earlier run stopped that was given the same file, and notes there how far it gets.
    #[arg(long)]
    resume: Option<PathBuf>,
}

fn scenario(text: &str) -> Result<Scenario, String> {
    Scenario::parse(text).ok_or_else(|| format!("no behaviour or setting is called {text}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let passed = match (arguments.seed, arguments.matrix) {
        (Some(seed), _) => Ok(replay(seed, arguments.scenario, arguments.quiet)),
        (None, _) if arguments.leases => {
            Ok(leases::print(&arguments.seeds.unwrap_or(Seeds { from: 0, to: 20 }), arguments.jobs, &arguments.only))
        }
        (None, true) => {
            Ok(table::print(&arguments.seeds.unwrap_or(Seeds { from: 0, to: 20 }), arguments.jobs, &arguments.only))
        }
        (None, false) => Sweep {
            seeds: arguments.seeds.expect("one of the three is there"),
            scenario: arguments.scenario,
            jobs: arguments.jobs.max(1),
            resume: arguments.resume,
        }
        .run(),
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one seed aloud. Gives whether all that must hold held.
fn replay(seed: u64, scenario: Scenario, quiet: bool) -> bool {
    let outcome = sim::run(seed, scenario, !quiet);
    println!("{:#?}", outcome.stats);
    if let Some(leases) = &outcome.leases {
        let sim::Figures { starts, stops, kills, beliefs, shared, deeds, lost, stale_looks, shortened, off, .. } =
            leases;
        println!(
            "{starts} starts, {stops} stops, {kills} kills, {beliefs} beliefs ({shared} shared), changes {deeds:?}, \
             {lost} lost"
        );
        println!("{stale_looks} looks too old, leases shorter by {shortened} ns, agreed time off {off:?} ns");
    }
    println!("trace {:016x}", outcome.hash);
    match &outcome.violation {
        None => println!("seed {seed} ({scenario}): everything held"),
        Some(violation) => println!("seed {seed} ({scenario}): {} violated: {}", violation.invariant, violation.what),
    }
    outcome.violation.is_none()
}
