//! `cargo xtask mutations`: bugs on purpose, each of which the simulator must find.
//!
//! A bug is a file in `tests/sim/mutations` ([`mutation`]). For each the simulator is built from a
//! copy of the project ([`copy`]) that has it, and run seed after seed until it says that something
//! is wrong ([`hunt`]). The same runs must show nothing wrong without the bug.

pub(crate) mod copy;
mod hunt;
pub(crate) mod mutation;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use copy::Tree;
use hunt::{Found, Run};
use mutation::Mutation;

/// Where mutations are.
const FOLDER: &str = "tests/sim/mutations";
/// The crates that the simulator is built from, itself included.
const CRATES: [&str; 8] = ["base", "bft", "meta", "chunk", "dht", "proto", "client", "tests/sim"];
/// A few that are found at once: one of agreement, one of durability, one of progress.
const SLICE: [&str; 3] = ["executes-when-prepared", "prepared-not-persisted", "no-vouchers"];

/// What is looked for, and how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these mutations.
    names: Vec<String>,
    /// Processor time for each, minutes.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Runs at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only the few that are found at once.
    #[arg(long, conflicts_with = "names")]
    slice: bool,
    /// Prints the table as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Prints the table as JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Mutates the project in this folder: another checkout of it.
    #[arg(long, value_name = "DIR", default_value_os_t = crate::root())]
    tree: PathBuf,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|wanted| wanted == name);
        named && (!self.slice || SLICE.contains(&name))
    }
}

/// What became of a mutation.
enum Fate {
    Caught(Found),
    Survived,
    /// It does not fit, or does not build, or its runs fail without it, too.
    Broken(String),
}

struct Row {
    mutation: Mutation,
    fate: Fate,
    cpu: Duration,
}

/// The simulator without a bug, and what is known to hold there.
struct Control {
    sim: PathBuf,
    held: BTreeSet<Run>,
}

/// Runs all that is wanted and prints the table. Gives whether every mutation was caught.
///
/// # Errors
/// If the project can't be copied or does not build as it is.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let mut mutations = Mutation::all(&options.tree.join(FOLDER))?;
    for name in options.names.iter().map(String::as_str).chain(SLICE) {
        ensure!(mutations.iter().any(|mutation| mutation.name == name), "no mutation is called {name}");
    }
    mutations.retain(|mutation| options.wants(&mutation.name));
    let place = crate::target().join("mutations");
    let tree = copy::read(&options.tree, &CRATES)?;
    eprintln!("building the simulator without a bug, in {}", place.display());
    let mut control = Control { sim: place.join("control"), held: BTreeSet::new() };
    std::fs::copy(build(&tree, &place)?, &control.sim).context("the simulator without a bug")?;
    let mut rows = Vec::new();
    for (index, mutation) in mutations.iter().enumerate() {
        eprint!("{:3} of {}  {:32} ", index + 1, mutations.len(), mutation.name);
        let built = mutation.applied_to(&tree).and_then(|tree| build(&tree, &place));
        let judged = built.and_then(|sim| control.judge(mutation, &sim, options));
        let (fate, cpu) = judged.unwrap_or_else(|error| (Fate::Broken(format!("{error:#}")), Duration::ZERO));
        let row = Row { mutation: mutation.clone(), fate, cpu };
        eprintln!("{}  {}", row.cells()[1..].join("  "), row.note());
        rows.push(row);
    }
    print(&rows, options)?;
    Ok(rows.iter().all(|row| matches!(row.fate, Fate::Caught(_))))
}

fn build(tree: &Tree, place: &Path) -> anyhow::Result<PathBuf> {
    copy::lay_out(tree, &place.join("tree"))?;
    copy::build(&place.join("tree"), &place.join("build"), "sim")
}

impl Control {
    /// Looks for a mutation's harm, and that there is none without it.
    fn judge(&mut self, mutation: &Mutation, sim: &Path, options: &Options) -> anyhow::Result<(Fate, Duration)> {
        let budget = Duration::try_from_secs_f64(options.minutes * 60.0)?;
        let trip = hunt::go(sim, hunt::seeds(&mutation.scenarios), budget, options.jobs)?;
        let Some(found) = trip.found else { return Ok((Fate::Survived, trip.cpu)) };
        let runs: BTreeSet<Run> = trip.held.into_iter().chain([found.run.clone()]).collect();
        let new: Vec<Run> = runs.difference(&self.held).cloned().collect();
        let same = hunt::go(&self.sim, new.into_iter(), Duration::MAX, options.jobs)?;
        self.held.extend(same.held);
        if let Some(Found { by, what, run: (seed, scenario), .. }) = same.found {
            bail!("without it, too, {by} is violated: cargo xtask sim {seed} --scenario {scenario}: {what}");
        }
        Ok((Fate::Caught(found), trip.cpu))
    }
}

const HEADS: [&str; 5] = ["mutation", "caught by", "with", "runs", "CPU s"];

impl Row {
    fn cells(&self) -> [String; 5] {
        let (by, run, runs) = match &self.fate {
            Fate::Caught(Found { by, run: (seed, scenario), runs, .. }) => {
                (by.clone(), format!("{seed} {scenario}"), runs.to_string())
            }
            Fate::Survived => ("SURVIVED".to_owned(), self.mutation.scenarios.join(" "), String::new()),
            Fate::Broken(_) => ("BROKEN".to_owned(), String::new(), String::new()),
        };
        [self.mutation.name.clone(), by, run, runs, format!("{:.1}", self.cpu.as_secs_f64())]
    }

    /// What was seen, or what is wrong with the mutation.
    fn note(&self) -> String {
        let text = match &self.fate {
            Fate::Caught(found) => &found.what,
            Fate::Survived => &self.mutation.why,
            Fate::Broken(why) => return why.clone(),
        };
        text.chars().take(100).collect()
    }

    fn json(&self) -> serde_json::Value {
        let [name, by, run, runs, cpu] = self.cells();
        let (why, note) = (&self.mutation.why, self.note());
        serde_json::json!({
            "mutation": name, "why": why, "caught_by": by, "with": run, "runs": runs, "cpu_s": cpu, "note": note,
        })
    }
}

fn print(rows: &[Row], options: &Options) -> anyhow::Result<()> {
    let caught = rows.iter().filter(|row| matches!(row.fate, Fate::Caught(_))).count();
    let summary = format!("{caught} of {} caught", rows.len());
    if options.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        eprintln!("{summary}");
        return Ok(());
    }
    let lines = || std::iter::once(HEADS.map(str::to_owned)).chain(rows.iter().map(Row::cells));
    if options.markdown {
        println!("| {} | what it is |", HEADS.join(" | "));
        println!("|---|---|---|---:|---:|---|");
        rows.iter().for_each(|row| println!("| {} | {} |", row.cells().join(" | "), row.mutation.why));
    } else {
        let width = |column: usize| lines().map(|cells| cells[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
        for cells in lines() {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    println!("\n{summary}");
    for row in rows.iter().filter(|row| !matches!(row.fate, Fate::Caught(_))) {
        println!("- {}: {}", row.mutation.name, row.note());
    }
    Ok(())
}
