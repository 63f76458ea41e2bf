//! `cargo xtask programs`: programs that people keep their work in, on a mount, and what becomes of their
//! files when they or the mount are killed.

mod build;
mod copies;
mod databases;
mod load;
mod postgres;

use std::path::{Path, PathBuf};

use ::tests::cluster::Cluster;
use ::tests::janitor::when_all_is_over;
use ::tests::work::{self, CHORE};
use ::tests::{Mount, run_ok};
use anyhow::bail;

use crate::steps::Steps;
use crate::{bench, tools};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these; otherwise all.
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Program>,
    /// Small amounts of everything, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Operations of fsx: so many with and so many without mmap.
    #[arg(long, default_value_t = 1_000_000)]
    operations: u64,
    /// The seed of fsx.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The Debian source package that is built there: one with `configure` and `make`.
    #[arg(long, default_value = "coreutils")]
    package: String,
    /// Tests this `mangrove` instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where the data goes.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Program {
    Git,
    Sqlite,
    Postgres,
    Build,
    Rsync,
    Tar,
    Editors,
    Dbench,
    Fsx,
}

impl Program {
    /// What it needs: programs, and the packages that have them.
    fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Program::Git => &[("git", "git")],
            Program::Sqlite => &[("sqlite3", "sqlite3")],
            Program::Postgres => &[("psql", "postgresql"), ("setpriv", "util-linux")],
            Program::Build => &[("gcc", "gcc"), ("make", "make"), ("xz", "xz-utils"), ("tar", "tar")],
            Program::Rsync => &[("rsync", "rsync")],
            Program::Tar => &[("tar", "tar")],
            Program::Editors => &[("vim", "vim"), ("emacs", "emacs-nox")],
            Program::Dbench => &[("dbench", "dbench")],
            Program::Fsx => &[("cargo", "cargo")],
        }
    }
}

/// A cluster of separate processes with two mounts.
struct Place {
    cluster: Cluster,
    /// `None` while it is down.
    one: Option<Mount>,
    two: Mount,
}

impl Place {
    fn new(parent: &Path) -> Place {
        let cluster = Cluster::start_in(parent, None);
        let (one, two) = (cluster.mount("one"), cluster.mount("two"));
        for mount in [&one, &two] {
            when_all_is_over(&format!("umount -l '{}'", mount.path().display()));
        }
        Place { cluster, one: Some(one), two }
    }

    fn mnt(&self) -> PathBuf {
        self.one.as_ref().expect("it is up").path().to_owned()
    }

    /// `kill -9` of the first mount.
    fn kill(&mut self) {
        let mut mount = self.one.take().expect("it is up");
        mount.process().kill();
    }

    fn again(&mut self) {
        self.one = Some(self.cluster.mount("one"));
    }
}

/// Runs everything and prints a table. Gives whether all passed.
///
/// # Errors
/// If the command does not build.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = ::tests::cannot_mount() {
        bail!("{why}");
    }
    let all = <Program as clap::ValueEnum>::value_variants();
    let programs = if options.only.is_empty() { all } else { &options.only[..] };
    let needed: Vec<_> = programs.iter().flat_map(|program| program.needs()).copied().collect();
    println!("{}", tools::check_for(&needed)?);
    bench::use_release(options.binary.as_deref())?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = tempfile::Builder::new().prefix("mangrove-programs-").tempdir_in(parent)?;
    when_all_is_over(&format!("rm -rf --one-file-system '{}'", work.path().display()));

    let mut steps = Steps::default();
    let mut place = None;
    steps.run("a cluster of eight processes and two mounts", || {
        place = Some(Place::new(work.path()));
        Ok(String::new())
    });
    if let Some(mut place) = place {
        programs.iter().for_each(|program| one(*program, &mut steps, options, &mut place));
        steps.run("the mounts stop", || {
            place.one.take().expect("it is up").stop();
            place.two.stop();
            Ok(String::new())
        });
    }
    Ok(steps.finish())
}

fn one(program: Program, steps: &mut Steps, options: &Options, place: &mut Place) {
    let amount = |large: usize, small: usize| if options.quick { small } else { large };
    match program {
        Program::Git => {
            let files = amount(2_000, 200);
            steps.run("git: add, commit, repack, clone, fsck", || {
                work::git_repository(&place.mnt(), files);
                Ok(format!("{files} files"))
            });
        }
        Program::Sqlite => databases::sqlite(steps, place, amount(300, 20)),
        Program::Postgres => postgres::postgresql(steps, place, amount(20, 5) as u64),
        Program::Build => build::run(steps, place, if options.quick { "hello" } else { &options.package }),
        Program::Rsync => copies::rsync(steps, place, amount(5_000, 300)),
        Program::Tar => copies::tar(steps, place, amount(5_000, 300)),
        Program::Editors => copies::editors(steps, place),
        Program::Dbench => load::dbench(steps, place, amount(60, 5)),
        Program::Fsx => {
            let operations = if options.quick { options.operations.min(2_000) } else { options.operations };
            load::fsx(steps, place, operations, options.seed);
        }
    }
    if place.one.is_none() {
        steps.run("the mount is started again", || {
            place.again();
            Ok(String::new())
        });
    }
}

/// Runs a shell line that must succeed.
#[track_caller]
fn shell(dir: &Path, line: &str) -> String {
    let mut command = std::process::Command::new("sh");
    run_ok(command.args(["-ec", line]).current_dir(dir), CHORE)
}
