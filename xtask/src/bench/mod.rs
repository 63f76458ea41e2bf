//! `cargo xtask bench`: measurements that a reader can repeat.

pub(crate) mod fs;
mod report;
mod target;
mod work;

use anyhow::{Context as _, ensure};

use crate::cargo;

/// Builds in release, which is what is measured.
///
/// # Errors
/// If the build fails.
pub(crate) fn build_release(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = cargo(&["build", "--release"]);
    let status = command.args(arguments).status().context("cargo build")?;
    ensure!(status.success(), "cargo build --release {} failed", arguments.join(" "));
    Ok(())
}

/// Runs the consensus measurement, a program of the tests crate.
///
/// # Errors
/// If it does not build or run.
pub(crate) fn bft(arguments: &[String]) -> anyhow::Result<bool> {
    let program = ["--package", "tests", "--features", "rooms", "--bin", "bench_bft", "--"];
    let mut command = cargo(&["run", "--release", "--quiet"]);
    command.args(program);
    Ok(command.args(arguments).status().context("cargo run")?.success())
}
