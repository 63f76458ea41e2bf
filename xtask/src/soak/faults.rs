//! What goes wrong in a round of `cargo xtask soak`.

use std::fmt;
use std::time::Duration;

use rustix::process::Signal;
use tests::random::Random;
use tests::{Cluster, Mount};

use super::check::MOUNTS;
use super::history::{Book, Door, Episode};

/// A mount that was away for so long may have been cut off: it uses its lease for 40 s after it was last
/// heard, at least.
const MAY_LOSE: Duration = Duration::from_secs(35);
/// For so long after it is back a mount may not know that it was cut off.
const LEARNS: Duration = Duration::from_secs(20);

/// What happens to one mount, or to both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Nothing,
    /// `kill -9`, and started again after so long.
    Kill(usize, Duration),
    KillBoth,
    /// SIGSTOP, and SIGCONT after so long.
    Stop(usize, Duration),
    /// Its cable is out for so long.
    Cut(usize, Duration),
    /// `kill -9` while its cable is out.
    CutAndKill(usize, Duration),
    /// Its cable goes out and in every second or so.
    Flap(usize, Duration),
}

impl Fault {
    /// One for round `number`: every kind in turn, on either mount, for any time that fits.
    pub(crate) fn pick(number: usize, random: &mut Random) -> Fault {
        let mount = random.below(MOUNTS as u64) as usize;
        let mut seconds = |from: u64, to: u64| Duration::from_secs(from + random.below(to - from + 1));
        let kinds = [
            Fault::Kill(mount, Duration::ZERO),
            Fault::Stop(mount, seconds(62, 90)),
            Fault::Cut(mount, seconds(3, 15)),
            Fault::Kill(mount, seconds(62, 80)),
            Fault::Cut(mount, seconds(62, 90)),
            Fault::Stop(mount, seconds(1, 15)),
            Fault::KillBoth,
            Fault::Flap(mount, seconds(10, 20)),
            Fault::Stop(mount, seconds(38, 62)),
            Fault::CutAndKill(mount, seconds(5, 70)),
            Fault::Cut(mount, seconds(38, 62)),
            Fault::Nothing,
        ];
        kinds[number % kinds.len()]
    }

    /// Whether a mount may be cut off and go on without having been told.
    pub(crate) fn is_long_and_silent(self) -> bool {
        matches!(self, Fault::Stop(_, time) | Fault::Cut(_, time) if time >= MAY_LOSE)
    }

    /// Has it happen, and everything mended again. Gives the times in which a mount may lose what it had
    /// not sent.
    pub(crate) fn strike(
        self,
        book: &Book,
        cluster: &Cluster,
        mounts: &mut [Option<Mount>],
        doors: &[Door],
    ) -> Vec<Episode> {
        let began = book.now();
        let sleep = std::thread::sleep;
        let mut killed = Vec::new();
        let mut kill = |mount: usize| killed.push(kill(book, &mut mounts[mount], &doors[mount]));
        match self {
            Fault::Nothing => {}
            Fault::Kill(mount, time) => {
                kill(mount);
                sleep(time);
            }
            Fault::KillBoth => (0..MOUNTS).for_each(kill),
            Fault::Stop(mount, time) => {
                let process = mounts[mount].as_mut().expect("it is up").process();
                process.signal(Signal::STOP);
                sleep(time);
                process.signal(Signal::CONT);
                return maybe_lost(book, mount, time, began);
            }
            Fault::Cut(mount, time) => {
                cluster.net().cut(mount);
                sleep(time);
                cluster.net().mend(mount);
                return maybe_lost(book, mount, time, began);
            }
            Fault::CutAndKill(mount, time) => {
                cluster.net().cut(mount);
                sleep(time);
                kill(mount);
                cluster.net().mend(mount);
            }
            Fault::Flap(mount, time) => {
                let mut random = Random::new(began);
                while u128::from(book.now() - began) < time.as_nanos() {
                    cluster.net().cut(mount);
                    sleep(Duration::from_millis(random.below(1500)));
                    cluster.net().mend(mount);
                    sleep(Duration::from_millis(random.below(1500)));
                }
            }
        }
        for episode in &killed {
            mounts[episode.mount] = Some(cluster.mount_at(episode.mount, &[]));
            doors[episode.mount].open();
        }
        // While its cable was out it may have been cut off already.
        let began_earlier = |episode: Episode| Episode { began, ..episode };
        killed.into_iter().map(began_earlier).collect()
    }
}

fn kill(book: &Book, mount: &mut Option<Mount>, door: &Door) -> Episode {
    let began = book.now();
    door.close();
    let mut killed = mount.take().expect("it is up");
    killed.process().kill();
    let ended = book.now();
    drop(killed);
    Episode { mount: door.mount, began, ended }
}

fn maybe_lost(book: &Book, mount: usize, away: Duration, began: u64) -> Vec<Episode> {
    let ended = book.now() + LEARNS.as_nanos() as u64;
    (away >= MAY_LOSE).then_some(Episode { mount, began, ended }).into_iter().collect()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Nothing => write!(f, "nothing goes wrong"),
            Fault::Kill(mount, time) => write!(f, "mount {mount} killed, back after {} s", time.as_secs()),
            Fault::KillBoth => write!(f, "both mounts killed"),
            Fault::Stop(mount, time) => write!(f, "mount {mount} stopped for {} s", time.as_secs()),
            Fault::Cut(mount, time) => write!(f, "mount {mount} cut off for {} s", time.as_secs()),
            Fault::CutAndKill(mount, time) => write!(f, "mount {mount} cut off, killed after {} s", time.as_secs()),
            Fault::Flap(mount, time) => write!(f, "the link of mount {mount} comes and goes for {} s", time.as_secs()),
        }
    }
}
