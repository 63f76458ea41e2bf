//! `cargo xtask`: what is done to the project rather than by it.

mod accept;
mod bench;
mod ci;
mod model;
mod mutations;
mod programs;
mod soak;
mod steps;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// The project's chores.
///
/// Before a change is handed in:   cargo xtask ci
/// While working on one crate:     cargo test -p bft
/// The house rules alone:          cargo test -p tests --test tidy
/// One end-to-end test:            cargo test -p tests --test mount git
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Everything a change must pass: formatting, lints, build, all tests. Under 25 minutes on two
    /// cores from a cold clone.
    Ci,
    /// Measurements, printed as a table with ratios.
    #[command(subcommand)]
    Bench(Bench),
    /// Simulated clusters under faults and liars, by the seed.
    Sim {
        /// Arguments of the simulator; `--help` shows them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The consensus core under a model checker: every order of events, within bounds.
    Model(model::Options),
    /// Bugs on purpose, each of which the simulator must find: `tests/sim/mutations`.
    Mutations(mutations::Options),
    /// The large runs: 20,000 files, a 5 GiB file, a build on the mount, nodes killed meanwhile.
    Accept(accept::Options),
    /// Databases, a C build, editors, rsync, tar, dbench and fsx on a mount, some of it while the program or
    /// the mount is killed.
    Programs(programs::Options),
    /// Two mounts on hosts of their own that are killed, stopped and cut off while they work on the same
    /// files; all they saw is checked. As root.
    Soak(soak::Options),
}

#[derive(Subcommand)]
enum Bench {
    /// The mount beside a plain folder and a passthrough FUSE filesystem, in one run.
    Fs(bench::fs::Options),
    /// What goes over the network when a large file changes a little. As root.
    Bytes(bench::bytes::Options),
    /// Consensus: operations per second, latency and cost of four replicas over loopback TLS.
    #[command(disable_help_flag = true)]
    Bft {
        /// Arguments of the measuring program; `--help` shows them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Consensus: how long nobody is served when the primary is killed under load, many times.
    #[command(disable_help_flag = true)]
    Failover {
        /// Arguments of the measuring program; `--help` shows them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Consensus: how long a replica takes to start again, by what it has to read.
    #[command(disable_help_flag = true)]
    Restart {
        /// Arguments of the measuring program; `--help` shows them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Ci => ci::run(),
        Chore::Bench(Bench::Fs(options)) => bench::fs::run(&options),
        Chore::Bench(Bench::Bytes(options)) => bench::bytes::run(&options),
        Chore::Bench(Bench::Bft { arguments }) => bench::bft(&[], &arguments),
        Chore::Bench(Bench::Failover { arguments }) => bench::bft(&["failover"], &arguments),
        Chore::Bench(Bench::Restart { arguments }) => bench::bft(&["restart"], &arguments),
        Chore::Sim { arguments } => sim(&arguments),
        Chore::Model(options) => model::run(&options),
        Chore::Mutations(options) => mutations::run(&options),
        Chore::Accept(options) => accept::run(&options),
        Chore::Programs(options) => programs::run(&options),
        Chore::Soak(options) => soak::run(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the simulator, in release: it is as fast as the cores it runs.
fn sim(arguments: &[String]) -> anyhow::Result<bool> {
    let mut command = cargo(&["run", "--release", "--quiet", "--package", "sim", "--"]);
    Ok(command.args(arguments).status().context("cargo run")?.success())
}

/// The root of the project.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned()
}

/// Where cargo puts what it builds, unless a setting of cargo's says otherwise.
fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    std::path::absolute(&target).unwrap_or(target)
}

/// A cargo command at the root of the project.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}
