//! What the next process must know if this one dies: which files hold what is not synced, and which of the
//! kernel's requests were done.
//!
//! A file in memory that the supervisor keeps open, of slots of 32 bytes: what it is, and three numbers.
//! A slot is written with one system call, so a process that is killed leaves it old or new. First comes a
//! ring of the requests that were done last, then what is not synced, each in a slot that is free again
//! once it is.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::wire::abi::UNIQUE_RESEND;

const SLOT_BYTES: usize = 32;
/// Requests that are remembered: more than can be under way.
const DONE_SLOTS: u64 = 4096;

const FREE: u64 = 0;
const DONE: u64 = 1;
const UNSYNCED: u64 = 2;

/// Something that is not synced: an inode, and the handle through which it was changed (0: none).
pub(crate) type Mark = (u64, u64);

/// The ledger of a supervised mount.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    state: Mutex<State>,
    /// Requests that processes before this did, and the inode that each is about.
    done_before: HashMap<u64, u64>,
}

#[derive(Debug, Default)]
struct State {
    marks: HashMap<Mark, Place>,
    free: Vec<u64>,
    /// The slots in use end here.
    end: u64,
    next_done: u64,
    changes: u64,
}

/// Where a mark is, and which change it is of.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u64,
    change: u64,
}

/// An empty ledger.
///
/// # Errors
/// If the system has no memory for it.
pub(crate) fn create() -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create("mangrove-ledger", rustix::fs::MemfdFlags::CLOEXEC)
}

impl Ledger {
    /// Opens the ledger that a process before this may have written, and gives what that one had not synced.
    pub(crate) fn open(descriptor: OwnedFd) -> std::io::Result<(Ledger, Vec<Mark>)> {
        let file = File::from(descriptor);
        let bytes = file.metadata()?.len() / SLOT_BYTES as u64 * SLOT_BYTES as u64;
        let mut content = vec![0; bytes as usize];
        file.read_exact_at(&mut content, 0)?;
        let mut state = State { end: DONE_SLOTS.max(bytes / SLOT_BYTES as u64), ..State::default() };
        let mut done_before = HashMap::new();
        for (slot, words) in content.chunks_exact(SLOT_BYTES).enumerate() {
            let slot = slot as u64;
            let word = |index: usize| {
                let word = words[8 * index..].first_chunk().expect("a slot has four words");
                u64::from_ne_bytes(*word)
            };
            match word(0) {
                DONE => drop(done_before.insert(word(1), word(2))),
                UNSYNCED => drop(state.marks.insert((word(1), word(2)), Place { slot, change: 0 })),
                _ if slot >= DONE_SLOTS => state.free.push(slot),
                _ => {}
            }
        }
        let unsynced = state.marks.keys().copied().collect();
        Ok((Ledger { file, state: Mutex::new(state), done_before }, unsynced))
    }

    fn put(&self, slot: u64, words: [u64; 3]) {
        let mut bytes = [0; SLOT_BYTES];
        for (word, place) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        if let Err(error) = self.file.write_all_at(&bytes, slot * SLOT_BYTES as u64) {
            tracing::warn!(%error, "the ledger: a crash now could lose data in silence");
        }
    }

    /// Notes that something was changed and is not synced. To be called before that is answered.
    pub(crate) fn mark(&self, mark: Mark) {
        let state = &mut *self.state.lock();
        state.changes += 1;
        if let Some(place) = state.marks.get_mut(&mark) {
            place.change = state.changes;
            return;
        }
        let slot = state.free.pop().unwrap_or_else(|| {
            state.end += 1;
            state.end - 1
        });
        self.put(slot, [UNSYNCED, mark.0, mark.1]);
        state.marks.insert(mark, Place { slot, change: state.changes });
    }

    /// What is not synced, of `inode` or of all, with the change that each is of.
    pub(crate) fn unsynced(&self, inode: Option<u64>) -> Vec<(Mark, u64)> {
        let state = self.state.lock();
        let wanted = |mark: &Mark| inode.is_none_or(|inode| inode == mark.0);
        state.marks.iter().filter(|(mark, _)| wanted(mark)).map(|(mark, place)| (*mark, place.change)).collect()
    }

    /// Notes that something is synced, unless it was changed again.
    pub(crate) fn synced(&self, synced: impl IntoIterator<Item = (Mark, u64)>) {
        let state = &mut *self.state.lock();
        for (mark, change) in synced {
            if state.marks.get(&mark).is_some_and(|place| place.change == change) {
                let place = state.marks.remove(&mark).expect("looked at just now");
                self.put(place.slot, [FREE; 3]);
                state.free.push(place.slot);
            }
        }
    }

    /// Notes that a request was done, and the inode that it made or moved. To be called before it is answered.
    pub(crate) fn note_done(&self, unique: u64, inode: u64) {
        let slot = {
            let state = &mut *self.state.lock();
            state.next_done = (state.next_done + 1) % DONE_SLOTS;
            state.next_done
        };
        self.put(slot, [DONE, unique & !UNIQUE_RESEND, inode]);
    }

    /// Which inode a request is about that a process before this did.
    pub(crate) fn done_before(&self, unique: u64) -> Option<u64> {
        self.done_before.get(&(unique & !UNIQUE_RESEND)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_finds_what_is_not_synced_and_what_was_done() {
        let memory = create().unwrap();
        let (ledger, before) = Ledger::open(memory.try_clone().unwrap()).unwrap();
        assert_eq!(before, []);
        ledger.mark((7, 1));
        ledger.mark((8, 0));
        ledger.mark((9, 2));
        let seven = ledger.unsynced(Some(7));
        assert_eq!(seven.len(), 1);
        ledger.synced(seven.clone());
        let nine = ledger.unsynced(Some(9));
        ledger.mark((9, 2));
        ledger.synced(nine);
        ledger.note_done(40, 8);
        drop(ledger);

        let (ledger, mut before) = Ledger::open(memory.try_clone().unwrap()).unwrap();
        before.sort_unstable();
        assert_eq!(before, [(8, 0), (9, 2)], "what was changed again after it was synced is not synced");
        assert_eq!(ledger.done_before(40 | UNIQUE_RESEND), Some(8));
        assert_eq!(ledger.done_before(42), None);
        ledger.mark((10, 3));
        ledger.synced(ledger.unsynced(None));
        let size = memory.try_clone().map(File::from).unwrap().metadata().unwrap().len();
        assert_eq!(size, (DONE_SLOTS + 3) * SLOT_BYTES as u64, "slots are used again");
        assert_eq!(Ledger::open(memory).unwrap().1, []);
    }
}
