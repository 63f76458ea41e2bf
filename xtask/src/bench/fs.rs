//! `cargo xtask bench fs`: the same work on a plain folder, through a passthrough FUSE filesystem
//! on that folder's disk, and on a Mangrove mount whose data is on that disk too; one run, one
//! process, one after the other.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::report::Report;
use super::target::{self, Target};
use super::work::{self, Sizes};
use crate::root;

/// What to measure, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// MiB of the big file.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// How many files of 4 KiB.
    #[arg(long, default_value_t = 5000)]
    files: usize,
    /// How many files in the tree that is unpacked.
    #[arg(long, default_value_t = 20_000)]
    tree: usize,
    /// A sixteenth of everything, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Only these parts: big, small, unpack.
    #[arg(long, value_delimiter = ',', value_parser = ["big", "small", "unpack"])]
    only: Vec<String>,
    /// Only these filesystems: plain, passthrough, mangrove.
    #[arg(long, value_delimiter = ',', value_parser = target::NAMES)]
    on: Vec<String>,
    /// How often; the median is shown.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// The folder, and so the disk, to work in.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Writes the figures to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Prints a Markdown table instead of a plain one.
    #[arg(long)]
    markdown: bool,
}

/// Measures and prints.
///
/// # Errors
/// If something does not build, mount or read back right.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = tests::cannot_mount() {
        bail!("{why}");
    }
    super::build_release()?;
    tests::process::use_mangrove(&root().join("target/release/mangrove"));

    let parent = options.dir.clone().unwrap_or_else(|| root().join("target"));
    let dir = tempfile::Builder::new().prefix("bench-fs-").tempdir_in(&parent);
    let dir = dir.with_context(|| format!("a folder in {}", parent.display()))?;
    let share = if options.quick { 16 } else { 1 };
    let sizes = Sizes {
        big_mib: (options.size / share).max(1),
        files: (options.files / share).max(1),
        tree: (options.tree / share).max(1),
    };
    let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|item| item == name);
    let tar = dir.path().join("tree.tar");
    work::write_tar(&tar, sizes.tree).context("writing the tree's tar")?;

    let mut report = Report::new(&target::disk_name(dir.path()), sizes);
    for round in 0..options.rounds.max(1) {
        for name in target::NAMES.into_iter().filter(|name| wanted(&options.on, name)) {
            eprintln!("round {} of {}: {name}", round + 1, options.rounds.max(1));
            let mut target = Target::start(name, dir.path())?;
            let mut parts: Vec<(&str, work::Part)> = Vec::new();
            parts.extend(wanted(&options.only, "big").then_some(("big", work::big as work::Part)));
            parts.extend(wanted(&options.only, "small").then_some(("small", work::small as work::Part)));
            parts.extend(wanted(&options.only, "unpack").then_some(("unpack", work::unpack as work::Part)));
            for (part, measure) in parts {
                let figures = measure(&mut target, sizes, &tar).with_context(|| format!("{name}: {part}"))?;
                figures.into_iter().for_each(|(what, rate)| report.add(what, name, rate));
            }
            target.stop();
        }
    }
    print!("{}", if options.markdown { report.markdown() } else { report.plain() });
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report.json())).with_context(|| path.display().to_string())?;
    }
    Ok(true)
}
