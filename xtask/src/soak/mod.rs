//! `cargo xtask soak`: two mounts on hosts of their own work on the same files while they are killed,
//! stopped and cut off; everything they saw is checked against one filesystem on one machine.
//!
//! `work` has what is done, `faults` what goes wrong, `things` what is expected, and `check` looks for an
//! order that explains it all.

mod check;
mod faults;
mod history;
mod lock;
mod things;
mod work;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tests::janitor::when_all_is_over;
use tests::random::Random;
use tests::{Cluster, Mount, Net};

use self::check::MOUNTS;
use self::faults::Fault;
use self::history::{Door, Episode, Trouble};
use self::lock::Lock;
use self::work::Round;
use crate::bench;
use crate::steps::Steps;

/// A worker may wait for somebody's lease to run out, and for what waits in front of it.
const EXCUSED: Duration = Duration::from_secs(90);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// For how long; a round that has begun is finished.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Chooses the faults and what the workers do (how these fall together in time is chance).
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The round to begin with: each has another fault.
    #[arg(long, default_value_t = 0)]
    from: usize,
    /// Workers on each mount.
    #[arg(long, default_value_t = 4)]
    workers: u64,
    /// Seconds of work before a fault, and after it; in fewer there are hardly any leases.
    #[arg(long, default_value_t = 15)]
    calm: u64,
    /// How workers keep out of each other's way.
    #[arg(long, value_enum, default_value_t = Lock::Mkdir)]
    lock: Lock,
    /// Tests this `mangrove` instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where the data goes.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs rounds until the time is over. Gives whether all was right.
///
/// # Errors
/// If this is not root, or the command does not build.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = tests::cannot_mount() {
        bail!("{why}");
    }
    ensure!(rustix::process::geteuid().is_root(), "only root can make network namespaces; run it as root");
    for program in ["ip", "nsenter"] {
        ensure!(
            tests::process::on_path(program),
            "{program} is missing; as root: apt-get install -y iproute2 util-linux"
        );
    }
    bench::use_release(options.binary.as_deref())?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = tempfile::Builder::new().prefix("mangrove-soak-").tempdir_in(parent)?;
    when_all_is_over(&format!("rm -rf --one-file-system '{}'", work.path().display()));
    let cluster = Cluster::start_in(work.path(), Some(Net::new(MOUNTS)));
    let mut mounts: Vec<_> = (0..MOUNTS).map(|client| Some(cluster.mount_at(client, &[]))).collect();
    let paths = mounts.iter().flatten().map(|mount| mount.path().to_owned());
    let doors: Vec<_> = paths.enumerate().map(|(mount, path)| Door::new(mount, &path)).collect();
    doors.iter().for_each(|door| when_all_is_over(&format!("umount -l '{}'", door.path.display())));

    println!("seed {}", options.seed);
    let (start, mut steps) = (Instant::now(), Steps::default());
    for number in options.from.. {
        if start.elapsed() >= Duration::from_secs(60 * options.minutes) {
            break;
        }
        let mut random = Random::new(options.seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let fault = Fault::pick(number, &mut random);
        let all_well = steps.run(&format!("round {number}: {fault}"), || {
            round(options, number, fault, &cluster, &mut mounts, &doors, &mut random)
        });
        if !all_well && mounts.iter().any(Option::is_none) {
            break;
        }
    }
    steps.run("both mounts stop", || {
        mounts.iter_mut().filter_map(Option::take).for_each(Mount::stop);
        Ok(String::new())
    });
    Ok(steps.finish())
}

/// One round: everybody works, something goes wrong, everybody works on, all is looked at and checked.
fn round(
    options: &Options,
    number: usize,
    fault: Fault,
    cluster: &Cluster,
    mounts: &mut [Option<Mount>],
    doors: &[Door],
    random: &mut Random,
) -> anyhow::Result<String> {
    let round = Round::new(number, Instant::now(), options.lock, fault.is_long_and_silent());
    round.lay_out(doors, number % MOUNTS)?;
    let calm = Duration::from_secs(options.calm);
    let (mut episodes, mut struck) = (Vec::new(), (0, 0));
    std::thread::scope(|scope| {
        for worker in 0..options.workers {
            for door in doors {
                let (round, seed) = (&round, random.next_u64());
                scope.spawn(move || round.work(door, worker, seed));
            }
        }
        std::thread::sleep(calm);
        let began = round.book.now();
        round.visit();
        // The workers must end also when the fault can't be mended.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            episodes = fault.strike(&round.book, cluster, mounts, doors);
        }));
        struck = (began, round.book.now());
        std::thread::sleep(if result.is_ok() { calm } else { Duration::ZERO });
        round.finish();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    doors.iter().for_each(|door| round.look_at_all(door));
    verdict(options, number, &round, &episodes, struck)
}

/// What came of a round.
fn verdict(
    options: &Options,
    number: usize,
    round: &Round,
    episodes: &[Episode],
    struck: (u64, u64),
) -> anyhow::Result<String> {
    let excused = |trouble: &&Trouble| {
        let until = struck.1 + EXCUSED.as_nanos() as u64;
        episodes.iter().any(|episode| episode.mount == trouble.mount)
            && trouble.ended >= struck.0
            && trouble.began <= until
    };
    let troubles = round.book.troubles();
    let (excused, others): (Vec<_>, Vec<_>) = troubles.iter().partition(excused);
    let mut wrong = round.check(episodes);
    wrong.extend(others.iter().map(|trouble| {
        let seconds = |moment: u64| moment as f64 / 1e9;
        let Trouble { mount, began, ended, text } = trouble;
        format!("mount {mount}, {:.3} - {:.3}: {text}", seconds(*began), seconds(*ended))
    }));
    let (operations, syncs) = (round.operations(), round.book.syncs());
    let note = format!("{operations} operations, {syncs} syncs, {} errors of a mount that was away", excused.len());
    if wrong.is_empty() {
        return Ok(note);
    }
    let file = std::env::temp_dir().join(format!("mangrove-soak-{}-{number}.txt", options.seed));
    let faulty = format!("struck {:.3} - {:.3}, episodes {episodes:?}", struck.0 as f64 / 1e9, struck.1 as f64 / 1e9);
    fs::write(&file, format!("{faulty}\n\n{}\n", wrong.join("\n\n")))?;
    let first = wrong[0].lines().take(12).collect::<Vec<_>>().join("\n    ");
    bail!("{} wrong; see {}; {note}\n    {faulty}\n    {first}", wrong.len(), file.display())
}
