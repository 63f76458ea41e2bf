//! `cargo xtask bench fs`: the same work on a plain folder, through a passthrough FUSE filesystem
//! on that folder's disk, on a Mangrove mount whose data is on that disk too, and on other filesystems
//! that are mounted already; one run, one process, one after the other.

use std::path::PathBuf;

use ::tests::janitor::when_all_is_over;
use anyhow::{Context as _, bail, ensure};
use clap::builder::PossibleValuesParser;

use super::peer::{self, Peer};
use super::report::Report;
use super::rows::{self, Choice, PARTS};
use super::run::{Inputs, Run, Sizes};
use super::target::{self, NAMES, Target};
use super::{big, git, small, sync, unpack};
use crate::root;

/// What to measure, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// MiB of the big file.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// How many random reads of it.
    #[arg(long, default_value_t = 2000)]
    reads: usize,
    /// How many files of 4 KiB.
    #[arg(long, default_value_t = 5000)]
    files: usize,
    /// How many appends, and mails; each is synced.
    #[arg(long, default_value_t = 500)]
    syncs: usize,
    /// How many files in the tree that is unpacked.
    #[arg(long, default_value_t = 20_000)]
    tree: usize,
    /// How many files in the git repository.
    #[arg(long, default_value_t = 3000)]
    git_files: usize,
    /// How many commits in it.
    #[arg(long, default_value_t = 300)]
    git_commits: usize,
    /// A sixteenth of everything, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Only these rows, or parts of several rows. What a row builds on is done, but not shown.
    #[arg(long, value_delimiter = ',', value_name = "ROW", value_parser = PossibleValuesParser::new(rows::names()))]
    only: Vec<String>,
    /// Only these filesystems: plain, passthrough, mangrove, or a peer by its name.
    #[arg(long, value_delimiter = ',')]
    on: Vec<String>,
    #[command(flatten)]
    peers: peer::Options,
    /// How often; the median is shown.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Measures this `mangrove`, and `examples/passthrough` beside it, instead of building them.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
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

impl Options {
    fn sizes(&self) -> Sizes {
        let share = if self.quick { 16 } else { 1 };
        let part = |size: usize| (size / share).max(1);
        Sizes {
            big_mib: part(self.size),
            reads: part(self.reads),
            files: part(self.files),
            syncs: part(self.syncs),
            tree: part(self.tree),
            git_files: part(self.git_files),
            git_commits: part(self.git_commits),
        }
    }

    /// The names of all columns, and of those that are measured.
    fn columns(&self, peers: &[Peer]) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let all: Vec<String> =
            NAMES.iter().map(|name| (*name).to_owned()).chain(peers.iter().map(|peer| peer.name.clone())).collect();
        for name in &self.on {
            ensure!(all.contains(name), "--on {name}: there are only {}", all.join(", "));
        }
        let measured = all.iter().filter(|name| self.on.is_empty() || self.on.contains(name)).cloned().collect();
        Ok((all, measured))
    }
}

/// Measures and prints. Gives whether every peer could do all of it.
///
/// # Errors
/// If something does not build, mount or read back right.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = ::tests::cannot_mount() {
        bail!("{why}");
    }
    super::use_release(options.binary.as_deref())?;
    let passthrough = ::tests::process::mangrove_binary().with_file_name("examples").join("passthrough");
    ensure!(passthrough.exists(), "there is no {}: build the example of the crate fuse", passthrough.display());

    let parent = options.dir.clone().unwrap_or_else(|| root().join("target"));
    let dir = tempfile::Builder::new().prefix("bench-fs-").tempdir_in(&parent);
    let dir = dir.with_context(|| format!("a folder in {}", parent.display()))?;
    when_all_is_over(&format!("rm -rf --one-file-system '{}'", dir.path().display()));
    let peers = options.peers.peers(dir.path())?;
    let (columns, measured) = options.columns(&peers)?;
    let (sizes, choice) = (options.sizes(), Choice::of(&options.only));
    let inputs = make_inputs(dir.path().to_owned(), sizes, &choice)?;

    let mut report = Report::new(&target::disk_name(dir.path()), sizes, columns);
    let mut all_well = true;
    for round in 0..options.rounds.max(1) {
        for name in &measured {
            eprintln!("round {} of {}: {name}", round + 1, options.rounds.max(1));
            let peer = peers.iter().find(|peer| peer.name == *name);
            let target = peer.map_or_else(|| Target::start(name, dir.path(), &passthrough), Target::peer)?;
            let mut run = Run::new(target, sizes, &inputs, &choice);
            for part in PARTS.into_iter().filter(|part| choice.wants_part(part)) {
                let done = measure(part, &mut run).with_context(|| format!("{name}: {part}"));
                run.take_figures().into_iter().for_each(|(row, rate)| report.add(row, name, rate));
                match done {
                    // What a peer can't do is no reason to lose what the others did.
                    Err(error) if peer.is_some() => {
                        eprintln!("error: {error:#}");
                        all_well = false;
                    }
                    done => done?,
                }
            }
            run.stop();
        }
    }
    print!("{}", if options.markdown { report.markdown() } else { report.plain() });
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report.json())).with_context(|| path.display().to_string())?;
    }
    Ok(all_well)
}

fn make_inputs(dir: PathBuf, sizes: Sizes, choice: &Choice) -> anyhow::Result<Inputs> {
    let inputs = Inputs { tar: dir.join("tree.tar"), repository: dir.join("repository.git") };
    if choice.wants_part("unpack") {
        unpack::write_tar(&inputs.tar, sizes.tree).context("writing the tree's tar")?;
    }
    if choice.wants_part("git") {
        git::make(&inputs.repository, sizes.git_files, sizes.git_commits).context("making the git repository")?;
    }
    Ok(inputs)
}

fn measure(part: &str, run: &mut Run<'_>) -> anyhow::Result<()> {
    run.settle()?;
    match part {
        "big" => big::measure(run),
        "small" => small::files(run),
        "names" => small::names(run),
        "sync" => sync::measure(run),
        "unpack" => unpack::measure(run),
        "git" => git::measure(run),
        _ => bail!("there is no part {part}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::rows::Row;
    use super::*;

    const SIZES: Sizes = Sizes { big_mib: 1, reads: 8, files: 10, syncs: 3, tree: 30, git_files: 30, git_commits: 3 };

    /// What these parts measure on a plain folder, which is left as it was.
    fn measured(parts: &[&str], choice: &Choice) -> Vec<(Row, f64)> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let inputs = make_inputs(dir.path().to_owned(), SIZES, choice).expect("inputs");
        let target = Target::start("plain", dir.path(), dir.path()).expect("a folder");
        let mut run = Run::new(target, SIZES, &inputs, choice);
        parts.iter().for_each(|part| measure(part, &mut run).expect("it runs"));
        assert!(std::fs::read_dir(dir.path().join("plain")).expect("the folder").next().is_none(), "it is empty again");
        let figures = run.take_figures();
        run.stop();
        figures
    }

    #[test]
    fn every_row_is_measured_once() {
        let figures = measured(&PARTS, &Choice::of(&[]));
        assert!(figures.iter().all(|(_, rate)| rate.is_finite() && *rate > 0.0), "{figures:?}");
        for row in Row::value_variants() {
            assert_eq!(figures.iter().filter(|(measured, _)| measured == row).count(), 1, "{row:?}");
        }
    }

    /// Rows that need nothing cold: others drop the whole machine's caches.
    #[test]
    fn a_chosen_row_is_measured_without_the_others() {
        for (name, row) in [
            ("write", Row::Write),
            ("stat-third", Row::StatThird),
            ("small-third", Row::SmallThird),
            ("mkdir", Row::Mkdir),
            ("rename", Row::Rename),
            ("mail", Row::Mail),
            ("remove-tree", Row::RemoveTree),
            ("unpack-and-sync", Row::UnpackAndSync),
            ("status-warm", Row::StatusWarm),
        ] {
            let figures = measured(&[row.part()], &Choice::of(&[name.to_owned()]));
            assert_eq!(figures.into_iter().map(|(row, _)| row).collect::<Vec<_>>(), [row]);
        }
    }
}
