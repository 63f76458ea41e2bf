//! What was done from which mount, and when: recorded by the workers, checked when a round is over.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::io::Errno;

use super::check::{Deed, Moment, Operation, Thing, check};

/// A mount as its workers see it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) mount: usize,
    pub(crate) path: PathBuf,
    /// Odd while it is down or on its way there; another number each time it is up again.
    generation: AtomicU64,
}

impl Door {
    pub(crate) fn new(mount: usize, path: &Path) -> Door {
        Door { mount, path: path.to_owned(), generation: AtomicU64::new(0) }
    }

    pub(crate) fn close(&self) {
        assert!(self.generation.fetch_add(1, Ordering::SeqCst).is_multiple_of(2), "it was open");
    }

    pub(crate) fn open(&self) {
        assert!(!self.generation.fetch_add(1, Ordering::SeqCst).is_multiple_of(2), "it was closed");
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.generation().is_multiple_of(2)
    }
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum No {
    Exists,
    Missing,
    /// Anything else: it may have been done, or may be yet.
    Unknown,
}

/// An answer, and when it was asked for and given.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) result: Result<T, No>,
    began: Moment,
    ended: Moment,
}

impl<T> Answer<T> {
    fn is_known(&self) -> bool {
        !matches!(self.result, Err(No::Unknown))
    }
}

/// A time in which a mount may lose what it did not sync.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Episode {
    pub(crate) mount: usize,
    pub(crate) began: Moment,
    pub(crate) ended: Moment,
}

/// An error that a worker was given.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) mount: usize,
    pub(crate) began: Moment,
    pub(crate) ended: Moment,
    pub(crate) text: String,
}

/// The clock, and what concerns no single thing.
#[derive(Debug)]
pub(crate) struct Book {
    start: Instant,
    syncs: Mutex<Vec<Operation<()>>>,
    troubles: Mutex<Vec<Trouble>>,
    /// What no fault excuses.
    broken: Mutex<Vec<String>>,
}

impl Book {
    pub(crate) fn new(start: Instant) -> Book {
        Book { start, syncs: Mutex::default(), troubles: Mutex::default(), broken: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::try_from(self.start.elapsed().as_nanos()).expect("a run of less than centuries")
    }

    /// Does something on a mount, and says when.
    pub(crate) fn ask<T>(&self, door: &Door, what: &str, action: impl FnOnce() -> io::Result<T>) -> Answer<T> {
        let (generation, began) = (door.generation(), self.now());
        let result = action();
        let ended = self.now();
        let steady = door.is_open() && door.generation() == generation;
        let result = result.map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::EXIST | Errno::NOTEMPTY) if steady => No::Exists,
            Some(Errno::NOENT) if steady => No::Missing,
            _ => {
                if steady {
                    let text = format!("{what}: {error}");
                    self.troubles.lock().expect("lock").push(Trouble { mount: door.mount, began, ended, text });
                }
                No::Unknown
            }
        });
        Answer { result, began, ended }
    }

    /// Syncs; an answer of success is written down.
    pub(crate) fn sync(&self, door: &Door, what: &str, action: impl FnOnce() -> io::Result<()>) -> Result<(), No> {
        let answer = self.ask(door, what, action);
        if answer.result.is_ok() {
            let (began, ended) = (answer.began, Some(answer.ended));
            let sync = Operation { mount: door.mount, began, ended, episode: None, deed: Deed::Sync };
            self.syncs.lock().expect("lock").push(sync);
        }
        answer.result
    }

    pub(crate) fn broken(&self, text: String) {
        eprintln!("    {text}");
        self.broken.lock().expect("lock").push(text);
    }

    pub(crate) fn all_broken(&self) -> Vec<String> {
        self.broken.lock().expect("lock").clone()
    }

    pub(crate) fn syncs(&self) -> usize {
        self.syncs.lock().expect("lock").len()
    }

    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        self.troubles.lock().expect("lock").clone()
    }
}

/// The history of one thing.
#[derive(Debug)]
pub(crate) struct History<T: Thing> {
    pub(crate) name: String,
    operations: Mutex<Vec<Operation<T::Call>>>,
    /// Which of them no sync of something else covers before this moment: what is written to a file that is open.
    open: Mutex<BTreeMap<usize, Option<Moment>>>,
}

impl<T: Thing> History<T> {
    pub(crate) fn new(name: String) -> History<T> {
        History { name, operations: Mutex::default(), open: Mutex::default() }
    }

    /// Writes down a call that was answered, or one that may have happened or not.
    pub(crate) fn add<A>(&self, door: &Door, answer: &Answer<A>, call: T::Call) {
        let known = answer.is_known();
        // What looks and got no answer says nothing.
        if known || !T::looks(&call) {
            self.push(door.mount, answer.began, known.then_some(answer.ended), call);
        }
    }

    /// Writes down what is written to a file that stays open; its number is for [`History::close`].
    pub(crate) fn add_open<A>(&self, door: &Door, answer: &Answer<A>, call: T::Call) -> usize {
        let ended = answer.is_known().then_some(answer.ended);
        let number = self.push(door.mount, answer.began, ended, call);
        self.open.lock().expect("lock").insert(number, None);
        number
    }

    /// What was written is committed: from then on whoever syncs something syncs it, too. Said twice, the first holds.
    pub(crate) fn close<A>(&self, number: usize, answer: &Answer<A>) {
        self.open.lock().expect("lock").entry(number).or_default().get_or_insert(answer.ended);
    }

    /// Writes down what may happen at any time after something was asked, or never.
    pub(crate) fn add_possible<A>(&self, door: &Door, after: &Answer<A>, call: T::Call) {
        self.push(door.mount, after.began, None, call);
    }

    fn push(&self, mount: usize, began: Moment, ended: Option<Moment>, call: T::Call) -> usize {
        let operation = Operation { mount, began, ended, episode: None, deed: Deed::Call(call) };
        let mut operations = self.operations.lock().expect("lock");
        operations.push(operation);
        operations.len() - 1
    }

    pub(crate) fn len(&self) -> usize {
        self.operations.lock().expect("lock").len()
    }

    /// Checks it all, with what was synced and what may have been lost meanwhile.
    ///
    /// # Errors
    /// What can't be explained.
    pub(crate) fn check(&self, book: &Book, episodes: &[Episode]) -> Result<(), String> {
        let mut all = self.operations.lock().expect("lock").clone();
        let syncs = book.syncs.lock().expect("lock").clone();
        let open = self.open.lock().expect("lock");
        for (number, operation) in all.iter_mut().enumerate() {
            let done = open.get(&number).copied().unwrap_or(operation.ended);
            operation.episode = may_be_lost(operation, done, &syncs, episodes);
        }
        for (number, episode) in numbered(episodes) {
            let Episode { mount, began, ended } = *episode;
            let end = Deed::End(number);
            all.push(Operation { mount, began, ended: Some(ended), episode: None, deed: end });
            let within =
                |sync: &&Operation<()>| sync.mount == mount && sync.ended >= Some(began) && sync.began <= ended;
            all.extend(syncs.iter().filter(within).map(|sync| {
                let Operation { mount, began, ended, .. } = *sync;
                Operation { mount, began, ended, episode: None, deed: Deed::Sync }
            }));
        }
        all.sort_by_key(|operation| operation.began);
        check::<T>(&all).map_err(|text| format!("{}: {text}", self.name))
    }
}

/// The episodes with their numbers; each mount counts its own.
fn numbered(episodes: &[Episode]) -> impl Iterator<Item = (usize, &Episode)> {
    let before = |index: usize, mount: usize| episodes[..index].iter().filter(|other| other.mount == mount).count();
    episodes.iter().enumerate().map(move |(index, episode)| (before(index, episode.mount), episode))
}

/// The episode in which an operation may get lost: the first to come, if no sync since it was done covers it before.
fn may_be_lost<C>(
    operation: &Operation<C>,
    done: Option<Moment>,
    syncs: &[Operation<()>],
    episodes: &[Episode],
) -> Option<usize> {
    let comes = |episode: &Episode| episode.mount == operation.mount && episode.ended >= operation.began;
    let (number, episode) = numbered(episodes).find(|(_, episode)| comes(episode))?;
    let covers = |sync: &&Operation<()>| {
        let after = done.is_some_and(|done| sync.began >= done);
        sync.mount == operation.mount && after && sync.ended <= Some(episode.began)
    };
    syncs.iter().find(covers).is_none().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(began: Moment, ended: Moment) -> Operation<()> {
        Operation { mount: 0, began, ended: Some(ended), episode: None, deed: Deed::Sync }
    }

    #[test]
    fn what_a_sync_covers_is_not_lost() {
        let episodes = [Episode { mount: 1, began: 0, ended: 9 }, Episode { mount: 0, began: 10, ended: 20 }];
        let lost = |began, ended, syncs: &[Operation<()>]| {
            may_be_lost(&operation(began, ended), Some(ended), syncs, &episodes)
        };
        assert_eq!(lost(1, 2, &[]), Some(0), "each mount counts its own");
        assert_eq!(lost(1, 2, &[operation(3, 4)]), None);
        assert_eq!(lost(1, 5, &[operation(3, 7)]), Some(0), "the sync began too early");
        assert_eq!(lost(1, 2, &[operation(9, 11)]), Some(0), "and this one ended too late to be sure");
        let open = |done| may_be_lost(&operation(1, 2), done, &[operation(3, 4)], &episodes);
        assert_eq!((open(None), open(Some(4)), open(Some(3))), (Some(0), Some(0), None), "a file that was open then");
        assert_eq!(lost(21, 22, &[]), None);
    }
}
