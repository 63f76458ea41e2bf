//! `cargo xtask model`: checks the core, and prints what came of it.

use std::process::ExitCode;

use clap::Parser;
use model::{CHECKS, Check, FOR_BUGS, Outcome, check};

/// The shipped core under a model checker.
#[derive(Parser)]
#[command(name = "model", bin_name = "cargo xtask model")]
struct Arguments {
    /// Only checks whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only with this traitor.
    #[arg(long)]
    traitor: Option<u16>,
    /// The core has a seeded bug: stops, well, at the first rule broken, and fails if none is.
    #[arg(long)]
    find: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // An assertion of the core that fails is a finding, and is told with the way there.
    std::panic::set_hook(Box::new(|_| ()));
    if arguments.find { find() } else { all(&arguments) }
}

fn all(arguments: &Arguments) -> ExitCode {
    println!("| check | traitor | states | depth | core runs | seconds | verdict |\n|---|--:|--:|--:|--:|--:|---|");
    let mut code = ExitCode::SUCCESS;
    for check in CHECKS.iter().filter(|check| check.name.contains(&arguments.only)) {
        let chosen = |traitor: &u16| arguments.traitor.is_none_or(|only| only == *traitor);
        for traitor in check.traitors.iter().copied().filter(chosen) {
            let outcome = run(check, traitor);
            let Outcome { states, depth, took, runs, .. } = outcome;
            let verdict = match (&outcome.broken, outcome.exhaustive) {
                (Some((rule, _)), _) => format!("broken: {rule}"),
                (None, true) => "holds, exhaustive".to_owned(),
                (None, false) => "holds as far as seen".to_owned(),
            };
            let name = check.name;
            println!("| {name} | {traitor} | {states} | {depth} | {runs} | {:.1} | {verdict} |", took.as_secs_f64());
            if let Some((_, way)) = outcome.broken {
                way.iter().for_each(|line| println!("    {line}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn find() -> ExitCode {
    for check in FOR_BUGS {
        for traitor in check.traitors {
            let Outcome { broken: Some((rule, way)), states, took, .. } = run(check, *traitor) else { continue };
            let (name, seconds) = (check.name, took.as_secs_f64());
            println!("{rule}, in {name}, traitor {traitor}: {states} states, {seconds:.1} s");
            way.iter().for_each(|line| println!("    {line}"));
            return ExitCode::SUCCESS;
        }
    }
    println!("not found");
    ExitCode::FAILURE
}

fn run(what: &Check, traitor: u16) -> Outcome {
    check(what.setup(traitor), what.limits())
}
