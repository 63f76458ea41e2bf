//! `cargo xtask model`: the consensus core under the model checker; and, with bugs in it, whether
//! the checker finds them.
//!
//! A bug is a file in `tests/model/bugs`, of the same kind as the simulator's mutations, built from
//! the same kind of copy. Its `scenarios` say nothing: every bug is put to the same checks.

use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;

use crate::cargo;
use crate::mutations::copy;
use crate::mutations::mutation::Mutation;

/// Where the bugs are.
const FOLDER: &str = "tests/model/bugs";
/// What the checker is built from.
const CRATES: [&str; 3] = ["base", "bft", "tests/model"];

/// What is checked.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Looks for each seeded bug in place of checking the core as it is.
    #[arg(long)]
    bugs: bool,
    /// Only checks or bugs whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only with this replica as the traitor.
    #[arg(long, conflicts_with = "bugs")]
    traitor: Option<u16>,
    /// Shows how each bug comes about, step by step.
    #[arg(long, requires = "bugs")]
    trace: bool,
}

/// Checks the core, or looks for bugs. Gives whether all rules hold, or all bugs are found.
///
/// # Errors
/// If something can't be built or run.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    if options.bugs {
        return bugs(options);
    }
    let mut command = cargo(&["run", "--release", "--quiet", "--package", "model", "--", "--only", &options.only]);
    if let Some(traitor) = options.traitor {
        command.args(["--traitor", &traitor.to_string()]);
    }
    Ok(command.status().context("cargo run")?.success())
}

fn bugs(options: &Options) -> anyhow::Result<bool> {
    let place = crate::target().join("model-bugs");
    let tree = copy::read(&crate::root(), &CRATES)?;
    let bugs = Mutation::all(&crate::root().join(FOLDER))?;
    let mut all = true;
    for bug in bugs.iter().filter(|bug| bug.name.contains(&options.only)) {
        copy::lay_out(&bug.applied_to(&tree)?, &place.join("tree"))?;
        let program = copy::build(&place.join("tree"), &place.join("build"), "model").context(bug.name.clone())?;
        let began = Instant::now();
        let output = Command::new(program).arg("--find").output().context("the checker")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let mut lines = said.lines();
        let verdict = lines.next().unwrap_or("it said nothing");
        println!("{:28} {:5.1} s  {verdict}", bug.name, began.elapsed().as_secs_f64());
        if options.trace {
            lines.for_each(|line| println!("{line}"));
        }
        all &= output.status.success();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_fits() {
        let tree = copy::read(&crate::root(), &CRATES).unwrap();
        for bug in Mutation::all(&crate::root().join(FOLDER)).unwrap() {
            bug.applied_to(&tree).unwrap();
        }
    }
}
