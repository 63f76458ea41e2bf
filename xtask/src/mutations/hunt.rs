//! Seed after seed in a simulator with a bug in it, until the simulator says that something is wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;

/// Processor time after which a single run is ended, seconds.
const RUN_MAX: u64 = 60;
/// Memory of a single run, KiB.
const MEMORY_MAX: u64 = 6 << 20;

/// One run of the simulator.
pub(crate) type Run = (u64, String);

/// What came of a run that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What was violated; `crash` if the simulator did not live to say.
    pub(crate) by: String,
    /// In its words.
    pub(crate) what: String,
    /// Where.
    pub(crate) run: Run,
    /// Runs up to this one.
    pub(crate) runs: u64,
}

/// What a hunt has come to.
#[derive(Debug, Default)]
pub(crate) struct Trip {
    /// The first run that did not end well.
    pub(crate) found: Option<Found>,
    /// Runs that showed nothing.
    pub(crate) held: BTreeSet<Run>,
    /// Processor time of them all.
    pub(crate) cpu: Duration,
    started: u64,
    broken: Option<anyhow::Error>,
}

/// Seeds from 0 on, each in every scenario.
pub(crate) fn seeds(scenarios: &[String]) -> impl Iterator<Item = Run> + Send + '_ {
    (0..).flat_map(move |seed| scenarios.iter().map(move |scenario| (seed, scenario.clone())))
}

/// Makes runs, `jobs` at a time, until one does not end well, or there are no more, or they have used
/// that much processor time.
///
/// # Errors
/// If the simulator can't be run.
pub(crate) fn go(
    sim: &Path,
    runs: impl Iterator<Item = Run> + Send,
    budget: Duration,
    jobs: usize,
) -> anyhow::Result<Trip> {
    let start = children_cpu();
    let state = Mutex::new((Trip::default(), runs));
    let next = || {
        let (trip, runs) = &mut *state.lock().expect("nobody panics with it");
        if trip.found.is_some() || trip.broken.is_some() || children_cpu() - start >= budget {
            return None;
        }
        trip.started += 1;
        runs.next().map(|run| (trip.started, run))
    };
    let work = || {
        while let Some((number, run)) = next() {
            let verdict = run_one(sim, &run);
            let (trip, _) = &mut *state.lock().expect("nobody panics with it");
            match verdict {
                Ok(None) => drop(trip.held.insert(run)),
                Ok(Some((by, what))) => {
                    let found = Found { by, what, run, runs: number };
                    // Of two at a time, the one that a single thread would have come to first.
                    let first = trip.found.take().filter(|first| first.runs < found.runs);
                    trip.found = Some(first.unwrap_or(found));
                }
                Err(error) => trip.broken = Some(error),
            }
        }
    };
    std::thread::scope(|scope| {
        (0..jobs.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let (mut trip, _) = state.into_inner().expect("nobody panics with it");
    trip.cpu = children_cpu() - start;
    trip.broken.take().map_or(Ok(trip), Err)
}

/// One run; what was wrong with it, if anything was.
///
/// # Errors
/// If the simulator can't be started, or knows no such scenario.
fn run_one(sim: &Path, (seed, scenario): &Run) -> anyhow::Result<Option<(String, String)>> {
    let mut command = Command::new("sh");
    let limits = format!("ulimit -t {RUN_MAX} && ulimit -v {MEMORY_MAX} && exec \"$0\" \"$@\"");
    command.args(["-c", &limits]).arg(sim).args([&seed.to_string(), "--quiet", "--scenario", scenario]);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", sim.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.code() != Some(2), "{} does not understand: {complained}", sim.display());
    if output.status.success() {
        return Ok(None);
    }
    let verdict = said.lines().find_map(|line| {
        let (by, what) = line.strip_prefix(&format!("seed {seed} ({scenario}): "))?.split_once(" violated: ")?;
        Some((by.split(' ').next().unwrap_or(by).to_owned(), what.to_owned()))
    });
    let crash = || ("crash".to_owned(), format!("{}: {}", output.status, complained.lines().next().unwrap_or("")));
    Ok(Some(verdict.unwrap_or_else(crash)))
}

/// Processor time of all processes that were started here and have ended.
fn children_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // Linux reports 100 ticks a second to user space on every architecture we build for.
    Duration::from_millis((ticks(13) + ticks(14)) * 10)
}
