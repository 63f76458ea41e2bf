//! The locks of one file: who has which, and who waits.
//!
//! As `fcntl(2)` and `flock(2)` have them on Linux: a byte of a file is locked for an owner by one lock of a
//! kind at most, what an owner locks anew takes the place of what it had there, and kinds know nothing of
//! each other.

use core::time::Duration;

use base::{Time, canonical_enum, canonical_struct};

use crate::lease::HolderId;
use crate::op::Ino;

/// The last byte that a lock can be on: of a lock to the end of the file, however long that gets.
pub const LOCK_END: u64 = i64::MAX as u64;
/// For how long somebody who waits keeps its place without asking again, agreed time.
pub const WAIT_TERM: Duration = Duration::from_secs(10);
/// How often it is noted that somebody who waits still asks.
const ASKED_AGAIN: Duration = Duration::from_secs(3);
/// Most locks on one file.
pub const FILE_LOCKS_MAX: usize = 512;
/// Most that wait for one file's locks.
pub const FILE_WAITERS_MAX: usize = 64;

/// Which locks keep each other out: only those of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// Of `fcntl`: of a process, or of an open file (OFD).
    Posix,
    /// Of `flock`: of an open file, on all of it.
    Flock,
    /// What a mount takes itself to append to a file that others may append to.
    Append,
}
canonical_enum!(LockKind { 0 => Posix, 1 => Flock, 2 => Append });

/// What a lock allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockMode {
    /// Others may have shared ones there.
    Shared,
    /// Nobody else may have any there.
    Exclusive,
    /// There is to be none.
    Unlock,
}
canonical_enum!(LockMode { 0 => Shared, 1 => Exclusive, 2 => Unlock });

/// What to do if others are in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockHow {
    /// Refuse with [`Denied::Locked`](crate::Denied::Locked). Does not mind those who wait, as Linux does not.
    Try,
    /// Stand in the queue, behind those who came before, until asked again.
    Wait,
    /// Stand in the queue in any case: what a log says of one that had to wait.
    Queue,
    /// Leave the queue.
    Leave,
}
canonical_enum!(LockHow { 0 => Try, 1 => Wait, 2 => Queue, 3 => Leave });

/// A lock that is asked for, or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// On which regular file.
    pub ino: Ino,
    /// Of which kind.
    pub kind: LockKind,
    /// Whose, among those of the batch's holder.
    pub owner: u64,
    /// The first byte.
    pub start: u64,
    /// The last byte, at most [`LOCK_END`].
    pub end: u64,
    /// Which.
    pub mode: LockMode,
    /// The process that asks, for `F_GETLK`.
    pub pid: u32,
    /// What if it can't be had.
    pub how: LockHow,
}
canonical_struct!(LockRequest { ino, kind, owner, start, end, mode, pid, how });

/// What became of a lock that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// It is the owner's; or it is given back.
    Granted,
    /// Others are in the way; the owner has its place in the queue.
    Waiting {
        /// Since now: a log has to say so.
        noted: bool,
    },
    /// Whoever is in the way waits for this owner; it does not wait any more.
    Deadlock,
}
canonical_enum!(Locked { 0 => Granted, 1 => Waiting { noted }, 2 => Deadlock });

/// A lock in somebody's way, as `F_GETLK` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockSeen {
    /// Shared or exclusive.
    pub mode: LockMode,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// The process that has it; 0 if it is another holder's: its numbers mean nothing here.
    pub pid: u32,
}
canonical_struct!(LockSeen { mode, start, end, pid });

/// Who has a lock or waits for one: locks of one owner are never in each other's way.
pub type LockOwner = (HolderId, LockKind, u64);

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Whose, and of which kind.
    pub owner: LockOwner,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// Shared or exclusive.
    pub mode: LockMode,
    /// Which process took it.
    pub pid: u32,
}
canonical_struct!(Lock { owner, start, end, mode, pid });

/// Somebody who waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) lock: Lock,
    /// When it asked last, to within [`ASKED_AGAIN`].
    asked: Time,
}
canonical_struct!(Waiter { lock, asked });

/// All locks of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileLocks {
    /// By owner and place.
    pub(crate) locks: Vec<Lock>,
    /// Who waits, in the order in which they came.
    pub(crate) queue: Vec<Waiter>,
}
canonical_struct!(FileLocks { locks, queue });

impl LockRequest {
    /// The lock it asks for, as this holder's. A kind that is not about bytes is about all of them.
    #[must_use]
    pub fn lock_of(&self, holder: HolderId) -> Lock {
        let whole = self.kind != LockKind::Posix;
        let (start, end) = if whole { (0, LOCK_END) } else { (self.start, self.end) };
        Lock { owner: (holder, self.kind, self.owner), start, end, mode: self.mode, pid: self.pid }
    }

    /// Whether there can be such a lock.
    pub(crate) fn is_sound(&self) -> bool {
        self.start <= self.end && self.end <= LOCK_END
    }
}

impl Lock {
    /// Whether one of the two has to wait for the other.
    pub(crate) fn conflicts(&self, other: &Lock) -> bool {
        self.owner != other.owner
            && self.owner.1 == other.owner.1
            && self.start <= other.end
            && other.start <= self.end
            && (self.mode == LockMode::Exclusive || other.mode == LockMode::Exclusive)
    }
}

impl Waiter {
    /// Whether it still asks.
    pub(crate) fn is_waiting(&self, now: Time) -> bool {
        self.asked.after(WAIT_TERM) >= now
    }
}

impl FileLocks {
    /// How many locks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    /// Whether nobody has or wants any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty() && self.queue.is_empty()
    }

    /// Makes the bytes of `lock` its owner's in its mode, whatever that had there before, and nobody's if that
    /// is [`LockMode::Unlock`]. Whether others are in the way is not asked here.
    pub fn take(&mut self, lock: &Lock) {
        let (mine, others) = core::mem::take(&mut self.locks).into_iter().partition(|had| had.owner == lock.owner);
        let (mut pieces, mine): (Vec<Lock>, Vec<Lock>) = (Vec::new(), mine);
        for had in mine {
            if had.start < lock.start {
                pieces.push(Lock { end: had.end.min(lock.start - 1), ..had });
            }
            if had.end > lock.end {
                pieces.push(Lock { start: had.start.max(lock.end + 1), ..had });
            }
        }
        if lock.mode != LockMode::Unlock {
            pieces.push(*lock);
        }
        pieces.sort_unstable_by_key(|piece| piece.start);
        let mut joined: Vec<Lock> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match joined.last_mut() {
                Some(last) if last.mode == piece.mode && last.end + 1 == piece.start => last.end = piece.end,
                _ => joined.push(piece),
            }
        }
        self.locks = others;
        let at = self.locks.partition_point(|other| other.owner < lock.owner);
        self.locks.splice(at..at, joined);
    }

    /// The locks that are in the way of `lock`.
    pub(crate) fn in_the_way<'a>(&'a self, lock: &'a Lock) -> impl Iterator<Item = &'a Lock> {
        self.locks.iter().filter(move |had| had.conflicts(lock))
    }

    /// Those who came before `lock` and want what it is in the way of.
    pub(crate) fn ahead_of<'a>(&'a self, lock: &'a Lock, now: Time) -> impl Iterator<Item = &'a Lock> {
        let before = self.queue.iter().take_while(move |waiter| !is_same(&waiter.lock, lock));
        before.filter(move |waiter| waiter.is_waiting(now)).map(|waiter| &waiter.lock).filter(|had| had.conflicts(lock))
    }

    /// Gives `lock` a place in the queue, or notes that it is still wanted. Whether anything changed; `None` if
    /// there is no room.
    pub(crate) fn wait(&mut self, lock: &Lock, now: Time) -> Option<bool> {
        if let Some(waiter) = self.queue.iter_mut().find(|waiter| is_same(&waiter.lock, lock)) {
            let again = now.since(waiter.asked) >= ASKED_AGAIN;
            if again {
                waiter.asked = now;
            }
            return Some(again);
        }
        self.queue.retain(|waiter| waiter.is_waiting(now));
        if self.queue.len() >= FILE_WAITERS_MAX {
            return None;
        }
        self.queue.push(Waiter { lock: *lock, asked: now });
        Some(true)
    }

    /// Takes `lock` out of the queue; says whether it was there.
    pub(crate) fn leave(&mut self, lock: &Lock) -> bool {
        let before = self.queue.len();
        self.queue.retain(|waiter| !is_same(&waiter.lock, lock));
        self.queue.len() < before
    }
}

/// Whether both are the same wish: which process asks does not matter.
fn is_same(one: &Lock, other: &Lock) -> bool {
    Lock { pid: 0, ..*one } == Lock { pid: 0, ..*other }
}

#[cfg(test)]
mod tests {
    use base::SecretKey;

    use super::*;

    fn lock(owner: u64, start: u64, end: u64, mode: LockMode) -> Lock {
        let holder = (SecretKey::from_seed(&[1; 32]).public(), 1);
        Lock { owner: (holder, LockKind::Posix, owner), start, end, mode, pid: 0 }
    }

    fn ranges(locks: &FileLocks) -> Vec<(u64, u64, u64, LockMode)> {
        locks.locks.iter().map(|lock| (lock.owner.2, lock.start, lock.end, lock.mode)).collect()
    }

    #[test]
    fn ranges_are_split_and_joined() {
        use LockMode::{Exclusive, Shared, Unlock};
        let mut locks = FileLocks::default();
        locks.take(&lock(1, 0, LOCK_END, Shared));
        locks.take(&lock(1, 10, 19, Exclusive));
        locks.take(&lock(2, 5, 5, Shared));
        let split = [(1, 0, 9, Shared), (1, 10, 19, Exclusive), (1, 20, LOCK_END, Shared), (2, 5, 5, Shared)];
        assert_eq!(ranges(&locks), split);
        locks.take(&lock(1, 10, 19, Shared));
        assert_eq!(ranges(&locks), [(1, 0, LOCK_END, Shared), (2, 5, 5, Shared)], "joined");
        locks.take(&lock(1, 0, 0, Unlock));
        locks.take(&lock(1, LOCK_END, LOCK_END, Unlock));
        assert_eq!(ranges(&locks)[0], (1, 1, LOCK_END - 1, Shared), "both ends");
        locks.take(&lock(1, 0, LOCK_END, Unlock));
        assert_eq!(ranges(&locks), [(2, 5, 5, Shared)]);
    }
}
