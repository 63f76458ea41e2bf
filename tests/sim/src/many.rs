//! Many seeds: on several cores, with progress, and to be gone on with later.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sim::{Outcome, Scenario};

/// Seeds between two notes of progress.
const BLOCK: u64 = 512;
/// Failures after which a sweep stops.
const FAILURES_MAX: usize = 20;

/// A range of seeds; the last one is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seeds {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seeds, String> {
        let number = |part: &str| part.trim().parse::<u64>().map_err(|error| format!("{part}: {error}"));
        let seeds = match text.split_once("..") {
            Some((from, to)) => Seeds { from: number(from)?, to: number(to)? },
            None => Seeds { from: 0, to: number(text)? },
        };
        if seeds.from < seeds.to { Ok(seeds) } else { Err("no seeds in that range".into()) }
    }
}

/// Runs seeds on `jobs` threads; hands each outcome to `take`, in no particular order.
pub(crate) fn run_all(seeds: &Seeds, scenario: Scenario, jobs: usize, take: &(dyn Fn(u64, Outcome) + Sync)) {
    let next = AtomicU64::new(seeds.from);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.to {
                return;
            }
            take(seed, sim::run(seed, scenario, false));
        }
    };
    std::thread::scope(|scope| {
        (0..jobs).for_each(|_| {
            scope.spawn(work);
        });
    });
}

/// A run over many seeds.
pub(crate) struct Sweep {
    pub(crate) seeds: Seeds,
    pub(crate) scenario: Scenario,
    pub(crate) jobs: usize,
    pub(crate) resume: Option<PathBuf>,
}

/// What a sweep has seen.
#[derive(Default)]
struct Totals {
    seeds: u64,
    failures: Vec<(u64, String)>,
    simulated: Duration,
    kinds: BTreeMap<&'static str, u64>,
    sums: BTreeMap<&'static str, u64>,
    done_max: Duration,
    settled_max: Duration,
}

impl Sweep {
    /// Runs it. Gives whether everything held.
    ///
    /// # Errors
    /// If the file of `--resume` can't be read or written.
    pub(crate) fn run(self) -> anyhow::Result<bool> {
        std::panic::set_hook(Box::new(|_| ()));
        let mut from = self.seeds.from;
        if let Some(file) = self.resume.as_ref().filter(|file| file.exists()) {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            from = text.trim().parse().with_context(|| format!("{} holds no seed", file.display()))?;
            println!("going on at seed {from}");
        }
        let (start, totals) = (Instant::now(), Mutex::new(Totals::default()));
        while from < self.seeds.to {
            let block = Seeds { from, to: self.seeds.to.min(from + BLOCK) };
            run_all(&block, self.scenario, self.jobs, &|seed, outcome| {
                let mut totals = totals.lock().expect("nobody panics with it");
                totals.add(seed, self.scenario, outcome);
            });
            from = block.to;
            if let Some(file) = &self.resume {
                std::fs::write(file, format!("{from}\n"))
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
            let totals = totals.lock().expect("nobody panics with it");
            totals.progress(from, self.seeds.to, start.elapsed());
            if totals.failures.len() >= FAILURES_MAX {
                break;
            }
        }
        let totals = totals.into_inner().expect("nobody panics with it");
        totals.print(start.elapsed());
        println!("stopped before seed {from} of {}..{}", self.seeds.from, self.seeds.to);
        Ok(totals.failures.is_empty())
    }
}

impl Totals {
    fn add(&mut self, seed: u64, scenario: Scenario, outcome: Outcome) {
        self.seeds += 1;
        let stats = outcome.stats;
        self.simulated += stats.simulated;
        for kind in sim::kinds(seed, scenario) {
            *self.kinds.entry(kind).or_default() += 1;
        }
        let sums = [
            ("events", stats.events),
            ("messages between replicas", stats.messages),
            ("messages turned away", stats.forged),
            ("requests", stats.requests),
            ("requests answered", stats.done),
            ("requests refused", stats.failed),
            ("batches", stats.batches),
            ("syncs", stats.syncs),
            ("snapshots", stats.snapshots),
            ("crashes", stats.crashes),
            ("crashes that tore a write", stats.torn),
            ("losses of all power", stats.power_losses),
            ("cuts", stats.cuts),
            ("disks lost", stats.disks_lost),
            ("checkpoints salvaged", stats.salvaged),
            ("replicas that vote again", stats.rejoined),
            ("states fetched", stats.transfers),
            ("clocks set", stats.jumps),
            ("pauses", stats.pauses),
            ("parcels lost", stats.parcels[0]),
            ("parcels repeated", stats.parcels[1]),
            ("parcels held up", stats.parcels[2]),
            ("parcels swallowed by cuts", stats.parcels[3]),
            ("views entered", stats.view),
        ];
        sums.into_iter().for_each(|(what, count)| *self.sums.entry(what).or_default() += count);
        self.done_max = self.done_max.max(stats.settled.done.unwrap_or_default());
        self.settled_max = self.settled_max.max(stats.settled.all.unwrap_or_default());
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {} violated: {}", violation.invariant, violation.what);
            let line = format!("cargo xtask sim {seed} --scenario {scenario}");
            println!("  replay it: {line}");
            self.failures.push((seed, line));
        }
    }

    fn progress(&self, at: u64, end: u64, took: Duration) {
        let (seeds, seconds) = (self.seeds as f64, took.as_secs_f64());
        println!(
            "at {at} of {end}: {} failed, {:.0} seeds/s, {:.1} h simulated, {:.0} times as fast as real time",
            self.failures.len(),
            seeds / seconds,
            self.simulated.as_secs_f64() / 3600.0,
            self.simulated.as_secs_f64() / seconds,
        );
    }

    fn print(&self, took: Duration) {
        println!("\nof {} seeds had:", self.seeds);
        for (kind, count) in &self.kinds {
            println!("  {kind:28} {count:>9}  {:>5.1} %", *count as f64 * 100.0 / self.seeds.max(1) as f64);
        }
        println!("in all:");
        for (what, count) in &self.sums {
            println!("  {what:28} {count:>12}  {:>10.1} a seed", *count as f64 / self.seeds.max(1) as f64);
        }
        println!(
            "after the faults stopped, everything was done within {:.1?}, all settled within {:.1?}",
            self.done_max, self.settled_max
        );
        println!("{} seeds in {:.1} s, {} failed", self.seeds, took.as_secs_f64(), self.failures.len());
        self.failures.iter().for_each(|(_, line)| println!("  {line}"));
    }
}
