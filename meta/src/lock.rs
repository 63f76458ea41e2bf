//! Locks: who may have which, who waits, and what becomes of the locks of those who went.
//!
//! An owner is a holder's ([`crate::lease`]): its locks last as long as the holder, which any batch in its
//! name keeps. One that was silent for a lease's term is fenced as soon as its locks are in somebody's way.
//!
//! Whoever waits stands in the file's queue and asks again. It goes behind those who came before and whom its
//! lock would keep waiting, unless they wait for itself, which would be for ever. Who waits for whom is known
//! across files and clients, so a wait that would close a circle of `fcntl` locks is refused (`EDEADLK`).

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet};

use base::Time;

use crate::access::{Context, READ};
use crate::content::need_write;
use crate::filelocks::{FILE_LOCKS_MAX, FileLocks, Lock, LockHow, LockKind, LockMode, LockOwner, LockRequest};
use crate::filelocks::{LockSeen, Locked};
use crate::inode::Inode;
use crate::lease::HolderId;
use crate::op::{Denied, Ino, Reply};
use crate::read::Look as _;
use crate::state::State;
use crate::table::Shared;

/// Most locks of one holder, and places in queues, on all files together.
pub const HOLDER_LOCKS_MAX: usize = 2048;
/// Most of them that the holders with one key have together.
const PRINCIPAL_LOCKS_MAX: usize = 16_384;
/// How many owners are asked for whom they wait, before it is given up to look for a circle.
const SEARCH_MAX: usize = 128;

/// Where whose locks are. Follows from the locks, so it is neither digested nor written down.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(crate) struct LockIndex {
    /// How many locks, and places in the queue, a holder has with a file.
    files: OrdMap<(HolderId, Ino), usize>,
    /// With which files an owner waits.
    waits: OrdSet<(LockOwner, Ino)>,
}

impl LockIndex {
    pub(crate) fn of<'a>(rows: impl Iterator<Item = (&'a Ino, &'a Shared<FileLocks>)>) -> LockIndex {
        let mut index = LockIndex::default();
        rows.for_each(|(ino, locks)| index.add(*ino, locks));
        index
    }

    fn add(&mut self, ino: Ino, locks: &FileLocks) {
        let waiting = locks.queue.iter().map(|waiter| &waiter.lock);
        for lock in locks.locks.iter().chain(waiting.clone()) {
            *self.files.entry((lock.owner.0, ino)).or_default() += 1;
        }
        self.waits.extend(waiting.map(|lock| (lock.owner, ino)));
    }

    fn remove(&mut self, ino: Ino, locks: &FileLocks) {
        let waiting = locks.queue.iter().map(|waiter| &waiter.lock);
        for lock in locks.locks.iter().chain(waiting.clone()) {
            self.files.remove(&(lock.owner.0, ino));
        }
        for lock in waiting {
            self.waits.remove(&(lock.owner, ino));
        }
    }

    fn files_of(&self, id: &HolderId) -> impl Iterator<Item = (Ino, usize)> {
        self.files.range((*id, Ino(0))..=(*id, Ino(u64::MAX))).map(|((_, ino), count)| (*ino, *count))
    }
}

impl State {
    /// Takes a lock, waits for it, or gives it back.
    pub(crate) fn lock(&mut self, cx: &Context<'_>, request: &LockRequest) -> Result<Reply, Denied> {
        let holder = cx.holder()?;
        let inode = self.inode(request.ino)?;
        if !request.is_sound() || self.holders.get(&holder).is_none() {
            return Err(Denied::Invalid);
        }
        let (ino, lock) = (request.ino, request.lock_of(holder));
        let mut locks = self.locks_on(ino);
        if request.how == LockHow::Leave {
            if locks.leave(&lock) {
                self.set_locks(ino, locks);
            }
            return Ok(Reply::Unit);
        }
        if request.mode != LockMode::Unlock {
            need_rights(cx, inode, request)?;
            self.fence_silent(&lock, ino);
            locks = self.locks_on(ino);
            let taken = locks.in_the_way(&lock).next().is_some();
            let behind = || locks.ahead_of(&lock, cx.now).any(|ahead| !self.reaches(&ahead.owner, &lock.owner, cx.now));
            match request.how {
                LockHow::Try if taken => return Err(Denied::Locked),
                LockHow::Wait if taken || behind() => return self.wait(cx, ino, locks, &lock),
                LockHow::Queue => return Ok(Reply::Locked(self.stand_logged(ino, locks, &lock, cx.now))),
                _ => {}
            }
        }
        locks.take(&lock);
        locks.leave(&lock);
        self.need_room(&holder, ino, &locks)?;
        self.set_locks(ino, locks);
        Ok(Reply::Locked(Locked::Granted))
    }

    /// A lock that is in the way of this one, if one is.
    pub(crate) fn get_lock(&mut self, cx: &Context<'_>, request: &LockRequest) -> Result<Reply, Denied> {
        let inode = self.inode(request.ino)?;
        if !request.is_sound() {
            return Err(Denied::Invalid);
        }
        need_rights(cx, inode, &LockRequest { mode: LockMode::Shared, ..*request })?;
        // Without a name as a holder it has no locks itself.
        let holder = (*cx.key, cx.by.unwrap_or(u64::MAX));
        let lock = request.lock_of(holder);
        self.fence_silent(&lock, request.ino);
        let locks = self.locks_on(request.ino);
        let found = locks.in_the_way(&lock).min_by_key(|had| had.start);
        let seen = |had: &Lock| {
            let pid = if had.owner.0 == holder { had.pid } else { 0 };
            LockSeen { mode: had.mode, start: had.start, end: had.end, pid }
        };
        Ok(Reply::Conflict(found.map(seen)))
    }

    /// Makes the signer's holder with this number known, if it is not, to have locks without leases.
    pub(crate) fn enroll(&mut self, cx: &Context<'_>, number: u64, instead: u64) -> Result<Reply, Denied> {
        let id = (*cx.key, number);
        if let Some(taken) = self.begin_anew(cx, &id, instead) {
            return Ok(taken);
        }
        if self.holders.get(&id).is_none() {
            self.enlist(&id)?;
        }
        let (lease, names) = (self.lease(&id), vec![self.principals.row_name(&id.0), self.holders.row_name(&id)]);
        let epoch = self.holder(&id).epoch;
        Ok(Reply::Held { epoch, lease, rows: self.rows_named(names) })
    }

    /// The owner waits, unless somebody in its way waits for it.
    fn wait(&mut self, cx: &Context<'_>, ino: Ino, mut locks: FileLocks, lock: &Lock) -> Result<Reply, Denied> {
        let circle = |had: &Lock| self.waits_for(&had.owner, &lock.owner, cx.now);
        if lock.owner.1 == LockKind::Posix && locks.in_the_way(lock).any(circle) {
            if locks.leave(lock) {
                self.set_locks(ino, locks);
            }
            return Ok(Reply::Locked(Locked::Deadlock));
        }
        self.stand(ino, locks, lock, cx.now).map(Reply::Locked)
    }

    /// Gives a lock its place in the queue. What the owner has by `flock` it loses, as on Linux: a change of
    /// that is giving back and taking anew, or two who share it and each want it alone would wait for ever.
    fn stand(&mut self, ino: Ino, mut locks: FileLocks, lock: &Lock, now: Time) -> Result<Locked, Denied> {
        let had = locks.len();
        if lock.owner.1 == LockKind::Flock {
            locks.take(&Lock { mode: LockMode::Unlock, ..*lock });
        }
        let noted = locks.wait(lock, now).ok_or(Denied::NoLocks)?;
        self.need_room(&lock.owner.0, ino, &locks)?;
        if noted || locks.len() < had {
            self.set_locks(ino, locks);
        }
        Ok(Locked::Waiting { noted })
    }

    /// The same, as a log says. It may be that others took the last place meanwhile; what was given up for it
    /// is given up all the same.
    fn stand_logged(&mut self, ino: Ino, mut locks: FileLocks, lock: &Lock, now: Time) -> Locked {
        if let Ok(stood) = self.stand(ino, locks.clone(), lock, now) {
            return stood;
        }
        if lock.owner.1 == LockKind::Flock {
            locks.take(&Lock { mode: LockMode::Unlock, ..*lock });
            self.set_locks(ino, locks);
        }
        Locked::Waiting { noted: false }
    }

    /// Fences whose locks are in the way and who shows no sign of life.
    fn fence_silent(&mut self, lock: &Lock, ino: Ino) {
        let locks = self.locks_on(ino);
        for had in locks.in_the_way(lock) {
            let id = had.owner.0;
            // A holder's own copy does not know the others.
            if id != lock.owner.0 && self.holders.get(&id).is_some() && self.is_over(&id) {
                self.fence(&id);
            }
        }
    }

    /// Refuses if there would be too many locks on the file, or of the holder.
    fn need_room(&self, holder: &HolderId, ino: Ino, after: &FileLocks) -> Result<(), Denied> {
        let before = self.locks_on(ino);
        let count = |locks: &FileLocks| locks.len() + locks.queue.len();
        if count(after) <= count(&before) {
            return Ok(());
        }
        let more = count(after) - count(&before);
        let held = |id: &HolderId| self.locked.files_of(id).map(|(_, count)| count).sum::<usize>();
        let all = || self.holders.range((holder.0, 0)..=(holder.0, u64::MAX)).map(|(id, _)| held(id)).sum::<usize>();
        let full = after.len() > FILE_LOCKS_MAX
            || held(holder) + more > HOLDER_LOCKS_MAX
            || all() + more > PRINCIPAL_LOCKS_MAX;
        if full { Err(Denied::NoLocks) } else { Ok(()) }
    }

    /// Whether `from` waits for what `to` has, or for somebody who does.
    fn waits_for(&self, from: &LockOwner, to: &LockOwner, now: Time) -> bool {
        self.search(from, to, now, false)
    }

    /// The same, where standing behind somebody in a queue is waiting, too.
    fn reaches(&self, from: &LockOwner, to: &LockOwner, now: Time) -> bool {
        self.search(from, to, now, true)
    }

    fn search(&self, from: &LockOwner, to: &LockOwner, now: Time, queues: bool) -> bool {
        let (mut seen, mut left) = (BTreeSet::from([*from]), vec![*from]);
        while let Some(owner) = left.pop() {
            if seen.len() > SEARCH_MAX {
                return false;
            }
            for (_, ino) in self.locked.waits.range((owner, Ino(0))..=(owner, Ino(u64::MAX))) {
                let Some(locks) = self.locks.get(ino) else { continue };
                for waiter in locks.queue.iter().filter(|waiter| waiter.lock.owner == owner && waiter.is_waiting(now)) {
                    let ahead = locks.ahead_of(&waiter.lock, now).filter(|_| queues);
                    for next in locks.in_the_way(&waiter.lock).chain(ahead).map(|lock| lock.owner) {
                        if next == *to {
                            return true;
                        }
                        if seen.insert(next) {
                            left.push(next);
                        }
                    }
                }
            }
        }
        false
    }

    /// Whether others than this holder's owners have a say in whether a lock can be had: only replicas know
    /// whether they are alive.
    pub(crate) fn is_disputed(&self, request: &LockRequest, me: &HolderId) -> bool {
        let Some(locks) = self.locks.get(&request.ino).filter(|_| request.mode != LockMode::Unlock) else {
            return false;
        };
        let lock = request.lock_of(*me);
        let theirs = |other: &Lock| other.owner.0 != *me && other.conflicts(&lock);
        let mut waiting = locks.queue.iter().filter(|waiter| waiter.is_waiting(self.clock.last));
        locks.locks.iter().any(theirs) || waiting.any(|waiter| theirs(&waiter.lock))
    }

    /// Ends all locks of a holder.
    pub(crate) fn release_locks(&mut self, id: &HolderId) {
        for (ino, _) in self.locked.files_of(id).collect::<Vec<_>>() {
            let mut locks = self.locks_on(ino);
            locks.locks.retain(|lock| lock.owner.0 != *id);
            locks.queue.retain(|waiter| waiter.lock.owner.0 != *id);
            self.set_locks(ino, locks);
        }
    }

    fn locks_on(&self, ino: Ino) -> FileLocks {
        self.locks.get(&ino).map_or_else(FileLocks::default, |locks| FileLocks::clone(locks))
    }

    /// Sets all locks of a file, and keeps the index.
    pub(crate) fn set_locks(&mut self, ino: Ino, locks: FileLocks) {
        if let Some(before) = self.locks.remove(&ino) {
            self.locked.remove(ino, &before);
        }
        if !locks.is_empty() {
            self.locked.add(ino, &locks);
            self.locks.insert(ino, Shared::new(locks));
        }
    }
}

/// Whoever may not open a file may not keep others from it.
fn need_rights(cx: &Context<'_>, inode: &Inode, request: &LockRequest) -> Result<(), Denied> {
    let write = need_write(cx, inode, true);
    match (request.kind, request.mode) {
        (LockKind::Posix, LockMode::Exclusive) | (LockKind::Append, _) => write,
        _ if cx.may(inode, READ) && !matches!(write, Err(Denied::IsDirectory | Denied::Invalid)) => Ok(()),
        _ => write,
    }
}
