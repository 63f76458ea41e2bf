//! `cargo xtask ci`: everything a change must pass.
//!
//! One profile (dev) and one set of packages (the workspace) for building and testing, so that
//! nothing is compiled twice; only the lints need a pass of their own.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::steps::Steps;
use crate::{cargo, target, tools};

/// What is linted, built and tested: the same each time, so that nothing is compiled twice.
const EVERYTHING: [&str; 4] = ["--workspace", "--locked", "--features", "tests/rooms"];

/// Runs all steps, also after one has failed. Gives whether all passed.
pub(crate) fn run() -> anyhow::Result<bool> {
    let mut steps = Steps::default();
    steps.run("system programs", tools::check);
    steps.run("formatting", || succeed(&mut cargo(&["fmt", "--all", "--check"]), "run: cargo fmt"));
    let mut clippy = cargo(&["clippy", "--all-targets"]);
    clippy.args(EVERYTHING).args(["--", "-D", "warnings"]);
    steps.run("lints", || succeed(&mut clippy, "mend what clippy says above"));
    let mut build = cargo(&["build", "--all-targets"]);
    if steps.run("build", || succeed(build.args(EVERYTHING), "mend what the compiler says above")) {
        steps.run("tests", all_tests);
        let mut floors = Command::new(target().join("debug/bench_bft"));
        floors.arg("floors").env("MANGROVE_BIN", target().join("debug/mangrove"));
        steps.run("cost of an operation", || succeed(&mut floors, "see `cargo xtask bench bft floors --help`"));
    } else {
        steps.run("tests", || bail!("not run, because the build failed"));
    }
    Ok(steps.finish())
}

fn succeed(command: &mut Command, otherwise: &str) -> anyhow::Result<String> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if status.success() { Ok(String::new()) } else { bail!("{status}; {otherwise}") }
}

/// How many tests ended how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Counts {
    /// Adds what a line of the test runner says, if it is a result.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let count = |word: &str| {
            let part = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(word));
            part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
        self.ignored += count(" ignored");
    }
}

/// Unit tests, paper tests, house rules and end-to-end tests, with the test runner's own lines.
fn all_tests() -> anyhow::Result<String> {
    let mut command = cargo(&["test", "--no-fail-fast"]);
    command.args(EVERYTHING);
    command.env("MANGROVE_BIN", target().join("debug/mangrove")).env("MANGROVE_TEST_NO_SKIPS", "1");
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo test")?;
    let stdout = child.stdout.take().expect("its output was asked for");
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("reading the test runner's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.add(&line);
    }
    let status = child.wait().context("cargo test")?;
    let Counts { passed, failed, ignored } = counts;
    let note = format!("{passed} tests passed, {failed} failed, {ignored} ignored");
    if status.success() && failed == 0 && passed > 0 {
        Ok(note)
    } else {
        bail!("{note}; the runner ended with {status}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut counts = Counts::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "running 5 tests",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 15, failed: 2, ignored: 1 });
    }
}
