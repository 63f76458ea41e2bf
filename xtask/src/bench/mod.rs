//! `cargo xtask bench`: measurements that a reader can repeat.

mod big;
pub(crate) mod bytes;
pub(crate) mod fs;
mod git;
mod peer;
mod report;
mod rows;
mod run;
mod small;
mod sync;
mod target;
mod unpack;

use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::{cargo, target};

/// Builds in release what is measured: the command and the passthrough filesystem, in one go, so
/// that what they share is compiled once.
///
/// # Errors
/// If the build fails.
pub(crate) fn build_release() -> anyhow::Result<()> {
    let programs = ["--package", "mangrove", "--package", "fuse", "--bin", "mangrove", "--example", "passthrough"];
    let status = cargo(&["build", "--release"]).args(programs).status().context("cargo build")?;
    ensure!(status.success(), "cargo build --release failed");
    Ok(())
}

/// Chooses the `mangrove` that is run: this one, or one that is built now.
///
/// # Errors
/// If the build fails.
pub(crate) fn use_release(binary: Option<&Path>) -> anyhow::Result<()> {
    if binary.is_none() {
        build_release()?;
    }
    tests::process::use_mangrove(binary.unwrap_or(&target().join("release/mangrove")));
    Ok(())
}

/// Runs the consensus measurement, a program of the tests crate.
///
/// # Errors
/// If it does not build or run.
pub(crate) fn bft(what: &[&str], arguments: &[String]) -> anyhow::Result<bool> {
    let program = ["--package", "tests", "--features", "rooms", "--bin", "bench_bft", "--"];
    let mut command = cargo(&["run", "--release", "--quiet"]);
    command.args(program).args(what);
    Ok(command.args(arguments).status().context("cargo run")?.success())
}
