//! `cargo xtask accept`: a user's real files, in real amounts. Takes up to an hour, so it is not
//! part of `ci`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure};
use tests::cluster::NODES;
use tests::work::{self, CHORE};
use tests::{Cluster, Process, Up, run_ok, tree, wait_until};

use crate::steps::Steps;
use crate::{bench, root, target, tools};

/// How much of what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many files the copied tree has.
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// Copies this folder instead of a made-up tree (a cargo registry's sources, say).
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// The git repository to clone onto the mount.
    #[arg(long, value_name = "DIR", default_value_os_t = root())]
    repository: PathBuf,
    /// MiB of the big file.
    #[arg(long, default_value_t = 5 * 1024)]
    size: u64,
    /// Small amounts of everything, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Only one half: mount (one process) or faults (separate processes, some of them killed).
    #[arg(long, value_parser = ["mount", "faults"])]
    only: Option<String>,
    /// Where the data goes; it needs four times the big file's size.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Options {
    fn files(&self) -> usize {
        if self.quick { self.files.min(500) } else { self.files }
    }

    fn size_mib(&self) -> u64 {
        if self.quick { self.size.min(64) } else { self.size }
    }

    fn includes(&self, half: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == half)
    }
}

/// Runs everything and prints a table. Gives whether all passed.
///
/// # Errors
/// If the command does not build.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = tests::cannot_mount() {
        bail!("{why}");
    }
    let mut steps = Steps::default();
    steps.run("system programs", tools::check);
    let built = steps.run("build", || bench::build_release().map(|()| String::new()));
    if built {
        tests::process::use_mangrove(&target().join("release/mangrove"));
        let source = tempfile::tempdir()?;
        let source = prepare(&mut steps, options, source.path())?;
        if options.includes("mount") {
            on_a_mount(&mut steps, options, &source);
        }
        if options.includes("faults") {
            with_faults(&mut steps, options, &source);
        }
    }
    Ok(steps.finish())
}

/// The tree that is copied: given, or made up in `spare`.
fn prepare(steps: &mut Steps, options: &Options, spare: &Path) -> anyhow::Result<PathBuf> {
    if let Some(tree) = &options.tree {
        return Ok(fs::canonicalize(tree)?);
    }
    let source = spare.join("source");
    steps.run("a tree is made up", || {
        fs::create_dir(&source)?;
        tree::make(&source, &tree::plan(options.files(), 1));
        Ok(format!("{} files", options.files()))
    });
    Ok(source)
}

fn copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    command
}

fn same(from: &Path, to: &Path) -> anyhow::Result<String> {
    let want = tree::read(from);
    tree::assert_same(&want, &tree::read(to));
    Ok(format!("{} entries", want.len()))
}

fn on_a_mount(steps: &mut Steps, options: &Options, source: &Path) {
    let mut started = None;
    steps.run("up mounts", || {
        note(|| started = Some(options.dir.as_ref().map_or_else(Up::start, |dir| Up::start_in(dir))))
    });
    let Some(mut up) = started else { return };
    let mnt = up.mountpoint();
    let (copied, big, size) = (mnt.join("copy"), mnt.join("big"), options.size_mib());
    let transactions = if options.quick { 20 } else { 500 };
    steps.run("cp -a of the tree", || run_note(&mut copy(source, &copied)));
    steps.run("the copy is the same", || same(source, &copied));
    steps.run("git clone and fsck", || clone(&options.repository, &mnt));
    steps.run("a git repository grows", || note(|| work::git_repository(&mnt, options.files() / 10)));
    steps.run("a crate is built there", || build(&mnt));
    steps.run("SQLite under two writers", || note(|| work::sqlite_database(&mnt, transactions)));
    steps.run(&format!("a file of {size} MiB is written"), || note(|| work::write_big_file(&big, size, 9)));
    steps.run("it reads back at random", || note(|| work::check_big_file(&big, size, 9, 2_000)));
    steps.run("fio verifies crc32c", || note(|| work::fio_verify(&mnt, if options.quick { 32 } else { 1024 })));
    steps.run("up stops and starts", || {
        up.stop();
        up.forget_cache();
        up.again();
        Ok(String::new())
    });
    steps.run("the copy is the same still", || same(source, &copied));
    steps.run("the big file too", || note(|| work::check_big_file(&big, size, 9, 2_000)));
    steps.run("the database too", || note(|| work::check_sqlite(&mnt.join("wal.db"), 2 * transactions * 20)));
    steps.run("everything can be removed", || {
        fs::remove_dir_all(&copied)?;
        fs::remove_file(&big)?;
        Ok(String::new())
    });
    steps.run("up stops", || note(|| up.stop()));
}

fn note(work: impl FnOnce()) -> anyhow::Result<String> {
    work();
    Ok(String::new())
}

fn run_note(command: &mut Command) -> anyhow::Result<String> {
    run_ok(command, CHORE);
    Ok(String::new())
}

fn clone(repository: &Path, mnt: &Path) -> anyhow::Result<String> {
    let target = mnt.join("cloned");
    run_ok(work::git(mnt).args(["clone", "--quiet", "--no-local"]).arg(repository).arg(&target), CHORE);
    run_ok(work::git(&target).args(["fsck", "--full"]), CHORE);
    let commits = run_ok(work::git(&target).args(["rev-list", "--count", "HEAD"]), CHORE);
    Ok(format!("{} commits", commits.trim()))
}

/// Builds and tests this project's smallest crate from a copy on the mount, with its target folder
/// there too.
fn build(mnt: &Path) -> anyhow::Result<String> {
    let target = mnt.join("project");
    run_ok(work::git(mnt).args(["clone", "--quiet", "--no-local"]).arg(root()).arg(&target), CHORE);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&target).args(["test", "--quiet", "--package", "base"]);
    cargo.env("CARGO_TARGET_DIR", target.join("target")).env_remove("CARGO_MANIFEST_DIR");
    run_ok(&mut cargo, CHORE);
    Ok("cargo test -p base".to_owned())
}

fn with_faults(steps: &mut Steps, options: &Options, source: &Path) {
    let mut started = None;
    steps.run("a cluster of eight processes starts", || {
        let cluster = Cluster::start();
        let mount = cluster.mount("mnt");
        started = Some((cluster, mount));
        Ok(String::new())
    });
    let Some((mut cluster, mount)) = started else { return };
    let copied = mount.path().join("copy");
    steps.run("cp -a while a backup and a storage node are killed", || {
        copy_under_fire(&mut cluster, source, &copied, options.files() / 5)
    });
    steps.run("the copy is the same", || same(source, &copied));
    steps.run("the killed nodes return", || {
        cluster.start_nodes([2, 5]);
        let level = cluster.status().executed(0);
        let status = cluster.wait_status("the backup catches up", tests::process::START, |status| {
            let behind = status.node(2).replica.as_ref().is_some_and(|replica| replica.behind.is_some());
            status.executed(2) >= level || behind
        });
        Ok(format!("executed {} of {level}", status.executed(2)))
    });
    let fsynced: Vec<_> =
        (0..200).map(|index| (format!("fsynced-{index}"), tests::random::noise(index, 0, 9_999))).collect();
    steps.run("200 files are fsynced and all nodes killed", || {
        for (name, content) in &fsynced {
            let mut file = File::create(mount.path().join(name))?;
            file.write_all(content)?;
            file.sync_all()?;
        }
        cluster.kill_nodes(0..NODES);
        Ok(String::new())
    });
    drop(mount);
    steps.run("all nodes return, and nothing is missing", || {
        cluster.start_nodes(0..NODES);
        let mount = cluster.mount_uncached("again");
        for (name, content) in &fsynced {
            ensure!(fs::read(mount.path().join(name))? == *content, "{name} is not what was fsynced");
        }
        let note = same(source, &mount.path().join("copy"))?;
        mount.stop();
        Ok(note)
    });
}

fn copy_under_fire(cluster: &mut Cluster, source: &Path, target: &Path, kill_at: usize) -> anyhow::Result<String> {
    let log = cluster.outside().join("cp.log");
    let mut copy = Process::start("cp", &mut copy(source, target), &log);
    wait_until("a fifth is copied", CHORE, || (count_files(target) >= kill_at).then_some(()));
    ensure!(copy.is_running(), "the copy was over before anything was killed; use more --files");
    cluster.kill_nodes([2, 5]);
    let status = copy.wait_end(CHORE);
    ensure!(status.success(), "cp ended with {status}: {}", copy.log());
    Ok(format!("killed after {kill_at} files"))
}

fn count_files(root: &Path) -> usize {
    let Ok(list) = fs::read_dir(root) else { return 0 };
    list.flatten().map(|item| if item.path().is_dir() { count_files(&item.path()) } else { 1 }).sum()
}
