//! Programs made to wear filesystems out: dbench, and fsx, which checks every byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::tests::process::Process;
use ::tests::{run_ok, tree};
use anyhow::{Context as _, ensure};

use super::Place;
use crate::steps::Steps;
use crate::{cargo, root};

/// fsx in Rust, from crates.io.
const FSX: &str = "fsx@0.3.2";
/// A million operations on two cores that do other things, too.
const LONG: Duration = Duration::from_secs(3 * 3600);

/// fsx does not unmap what it read through a map, and a process may have 65,530 maps: after so many
/// operations it begins again, with the next seed.
const RUN: u64 = 50_000;

/// Everything that it can do on Linux. `mmap` is how often it maps; `synced` whether it syncs what it
/// wrote so. The file is small and seldom closed or synced, because every version of it that gets
/// stored stays: blocks are not reclaimed yet.
fn settings(mmap: u32, synced: bool) -> String {
    format!(
        "flen = 262144\nnomsyncafterwrite = {}\n[opsize]\nmax = 65536\n[weights]\nclose_open = 0.3\nread = 10\n\
         write = 10\nmapread = {mmap}\nmapwrite = {mmap}\ninvalidate = {}\ntruncate = 2\nfsync = 0.1\n\
         fdatasync = 0.1\nposix_fallocate = 1\npunch_hole = 2\nsendfile = 2\nposix_fadvise = 1\n\
         copy_file_range = 2\n",
        !synced,
        f64::from(mmap) / 10.0,
    )
}

pub(super) fn fsx(steps: &mut Steps, place: &Place, operations: u64, seed: u64) {
    let mut program = None;
    steps.run("fsx is installed", || {
        program = Some(install()?);
        Ok(FSX.to_owned())
    });
    let Some(program) = program else { return };
    let kinds = [
        ("fsx without mmap", settings(0, true), operations),
        ("fsx with mmap", settings(10, false), operations),
        ("fsx with mmap, each written map synced", settings(10, true), operations / 20),
    ];
    for (name, settings, operations) in kinds {
        steps.run(name, || {
            fs::write(place.cluster.outside().join("fsx.toml"), settings)?;
            let seeds = seed..seed + operations.div_ceil(RUN);
            for seed in seeds.clone() {
                run_fsx(&program, place, operations.min(RUN), seed)?;
            }
            // What it saw is there for the other mount, too.
            let [one, two] = [place.mnt().join("fsx"), place.two.path().join("fsx")];
            ensure!(fs::read(one)? == fs::read(two)?, "the mounts differ");
            Ok(format!("{operations} operations, seeds {seeds:?}"))
        });
    }
}

fn run_fsx(program: &Path, place: &Place, operations: u64, seed: u64) -> anyhow::Result<()> {
    let outside = place.cluster.outside();
    let file = place.mnt().join("fsx");
    let mut command = Command::new(program);
    command.arg("-f").arg(outside.join("fsx.toml"));
    command.args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]).arg(outside).arg(&file);
    let mut process = Process::start("fsx", &mut command, &outside.join("fsx.log"));
    let status = process.wait_end(LONG);
    let log = process.log();
    let end: Vec<_> = log.lines().rev().take(40).collect();
    ensure!(status.success(), "seed {seed}: {status}: {}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// Installs it below the target folder, once.
fn install() -> anyhow::Result<PathBuf> {
    let tools = root().join("target/tools");
    let program = tools.join("bin/fsx");
    if !program.is_file() {
        let status = cargo(&["install", "--quiet", "--locked", FSX, "--root"]).arg(&tools).status();
        ensure!(status.context("cargo install")?.success(), "cargo install {FSX} failed");
    }
    Ok(program)
}

/// Two at once, one on each mount, in folders beside each other; then both see the same.
pub(super) fn dbench(steps: &mut Steps, place: &Place, seconds: usize) {
    steps.run("dbench on both mounts at once", || {
        let run = |name: &str, mount: &Path| {
            let dir = mount.join(name);
            fs::create_dir(&dir).expect("mkdir");
            let mut command = Command::new("dbench");
            command.args(["-t", &seconds.to_string(), "--skip-cleanup", "-D"]).arg(dir).arg("4");
            Process::start(name, &mut command, &place.cluster.outside().join(format!("{name}.log")))
        };
        let (one, two) = (place.mnt(), place.two.path().to_owned());
        let mut both = [run("dbench-one", &one), run("dbench-two", &two)];
        let mut rates = Vec::new();
        for process in &mut both {
            let status = process.wait_end(LONG);
            let log = process.log();
            let rate = log.lines().find_map(|line| line.strip_prefix("Throughput ")?.split(" MB").next());
            ensure!(status.success(), "{status}: {log}");
            rates.push(format!("{} MB/s", rate.with_context(|| log.clone())?));
        }
        for name in ["dbench-one", "dbench-two"] {
            tree::assert_same(&tree::read(&one.join(name)), &tree::read(&two.join(name)));
            run_ok(Command::new("rm").arg("-rf").arg(two.join(name)), LONG);
        }
        Ok(rates.join(" and "))
    });
}
