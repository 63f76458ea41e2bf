//! One filesystem being measured: what every part needs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::rows::{Choice, Row};
use super::target::Target;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// MiB of the big file.
    pub(crate) big_mib: usize,
    /// Random reads of it.
    pub(crate) reads: usize,
    /// Small files.
    pub(crate) files: usize,
    /// Appends and mails, each synced.
    pub(crate) syncs: usize,
    /// Files of the tree.
    pub(crate) tree: usize,
    /// Files of the git repository.
    pub(crate) git_files: usize,
    /// Its commits.
    pub(crate) git_commits: usize,
}

/// What is made once and used on every filesystem.
pub(crate) struct Inputs {
    /// The tree, packed.
    pub(crate) tar: PathBuf,
    /// The git repository, bare.
    pub(crate) repository: PathBuf,
}

/// A filesystem and what was measured on it so far.
pub(crate) struct Run<'a> {
    pub(crate) sizes: Sizes,
    pub(crate) inputs: &'a Inputs,
    target: Target,
    choice: &'a Choice,
    figures: Vec<(Row, f64)>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(target: Target, sizes: Sizes, inputs: &'a Inputs, choice: &'a Choice) -> Run<'a> {
        Run { sizes, inputs, target, choice, figures: Vec::new() }
    }

    /// A new, empty folder to work in.
    pub(crate) fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.target.root().join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Whether one of these rows is wanted. What only others need may be left out.
    pub(crate) fn wants(&self, rows: &[Row]) -> bool {
        self.choice.wants(rows)
    }

    /// Does something, of which this is the amount, and notes the rate if the row is wanted.
    pub(crate) fn time<T>(
        &mut self,
        row: Row,
        amount: usize,
        work: impl FnOnce() -> io::Result<T>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        let value = work().with_context(|| row.title())?;
        let rate = amount as f64 / start.elapsed().as_secs_f64();
        if self.wants(&[row]) {
            eprintln!("    {}: {rate:.1}", row.title());
            self.figures.push((row, rate));
        }
        Ok(value)
    }

    /// Makes everything cold that can be made so.
    pub(crate) fn cool(&mut self) -> anyhow::Result<()> {
        self.target.cool()
    }

    /// Has everything done so far be safe, so that what comes next has the processors and the disk for
    /// itself.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        sync_all(&self.target.root()).context("sync")
    }

    /// What was measured since this was last asked.
    pub(crate) fn take_figures(&mut self) -> Vec<(Row, f64)> {
        std::mem::take(&mut self.figures)
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        self.target.stop();
    }
}

/// Returns when everything done in and below a folder is safe: `fsync` of the folder, which sends a
/// mount's log, then `sync`, for filesystems whose `fsync` of a folder does not reach what is below it.
/// All of them keep their data on this machine.
pub(crate) fn sync_all(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    rustix::fs::sync();
    Ok(())
}

/// Runs a program to its end, which must be a good one.
pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
