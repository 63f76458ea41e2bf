//! The locks of this client's owners, and the files on which it lost some.

use std::collections::{BTreeMap, BTreeSet};

use base::PublicKey;
use meta::{
    Answer, Call, Denied, FileLocks, HOLDER_LOCKS_MAX, Ino, LockKind, LockMode, LockRequest, Locked, Op, Reply,
};

/// How many locks are taken here without asking replicas at most, so that they never refuse a log for it.
const LOCAL_MAX: usize = HOLDER_LOCKS_MAX / 2;
/// The same for what is left when locks are cut into pieces.
const PIECES_MAX: usize = LOCAL_MAX + LOCAL_MAX / 2;

/// What is known of them.
#[derive(Default)]
pub(super) struct Owned {
    files: BTreeMap<Ino, FileLocks>,
    count: usize,
    /// Files on which locks were lost: until nobody here relies on them, nothing is done to these.
    lost: BTreeSet<Ino>,
}

impl Owned {
    /// Whether there are any locks.
    pub(super) fn any(&self) -> bool {
        !self.files.is_empty()
    }

    /// The files with locks.
    pub(super) fn files(&self) -> Vec<Ino> {
        self.files.keys().copied().collect()
    }

    /// Whether it matters to these locks who does this: then it must be refused if they are lost.
    pub(super) fn concerns(&self, op: &Op) -> bool {
        match op {
            Op::Lock(_) | Op::GetLock(_) => true,
            Op::Commit(commit) => self.files.contains_key(&commit.ino) || self.lost.contains(&commit.ino),
            _ => false,
        }
    }

    /// Why an operation must not be done at all.
    pub(super) fn refuse(&self, op: &Op) -> Option<Denied> {
        let ino = match op {
            Op::Lock(request) | Op::GetLock(request) => request.ino,
            Op::Commit(commit) => commit.ino,
            _ => return None,
        };
        self.lost.contains(&ino).then_some(Denied::Fenced)
    }

    /// Why a lock can't be taken here.
    pub(super) fn refuse_here(&self, op: &Op) -> Option<Denied> {
        let most = match op {
            Op::Lock(LockRequest { mode: LockMode::Unlock, .. }) => PIECES_MAX,
            Op::Lock(_) => LOCAL_MAX,
            _ => return None,
        };
        (self.count >= most).then_some(Denied::NoLocks)
    }

    /// Takes note of what became of a lock.
    pub(super) fn note(&mut self, op: &Op, answer: &Answer, me: &(PublicKey, u64)) {
        let (request, locked) = match (op, answer) {
            (Op::Lock(request), Answer::Done(Reply::Locked(locked))) => (request, locked),
            // The file is gone, and its locks with it.
            (Op::Lock(request), Answer::Denied(Denied::Stale)) => {
                self.count -= self.files.remove(&request.ino).map_or(0, |locks| locks.len());
                return;
            }
            _ => return,
        };
        let mut lock = request.lock_of(*me);
        match locked {
            Locked::Granted => {}
            // It was given up for the place in the queue.
            _ if request.kind == LockKind::Flock => lock.mode = LockMode::Unlock,
            _ => return,
        }
        let locks = self.files.entry(request.ino).or_default();
        let before = locks.len();
        locks.take(&lock);
        self.count = self.count + locks.len() - before;
        if locks.is_empty() {
            self.files.remove(&request.ino);
        }
    }

    /// All of them are lost.
    pub(super) fn lose(&mut self) -> Owned {
        let mut lost = core::mem::take(&mut self.lost);
        if self.any() {
            tracing::error!(files = self.files.len(), "locks are lost: this client was cut off for too long");
        }
        lost.extend(self.files.keys());
        Owned { lost, ..Owned::default() }
    }

    /// Whether locks on this file were lost, and somebody here may rely on them still.
    pub(super) fn is_lost(&self, ino: Ino) -> bool {
        self.lost.contains(&ino)
    }

    /// Nobody here relies on the locks on this file any more.
    pub(super) fn forget_lost(&mut self, ino: Ino) {
        self.lost.remove(&ino);
    }
}

/// Whether these begin with a lock and a look at the same file: both are refused for the same lease.
pub(super) fn is_lock_and_look(run: &[Call]) -> bool {
    match run {
        [first, second, ..] => {
            matches!((&first.op, &second.op), (Op::Lock(lock), Op::Open { ino, .. }) if lock.ino == *ino)
        }
        _ => false,
    }
}
