//! The log of what was done here and replicas have not heard of, and its parts as they are sent.

use std::collections::BTreeSet;
use std::time::Duration;

use base::{PublicKey, Time};
use meta::{Answer, BATCH_MAX, Batch, Call, Ino, Log, Op, Reply, THROWN_AGE};
use tokio::time::Instant;

use super::Local;
use crate::backend::Ready;

/// What a part of the log may take, bytes.
const PART_BYTES: usize = 96 << 10;

/// Something done here.
pub(super) struct Logged {
    pub(super) call: Call,
    pub(super) at: Time,
    /// How long it is, encoded.
    pub(super) len: usize,
    /// What is to be stored before replicas hear of it.
    pub(super) ready: Option<Ready>,
    /// The inode that it made.
    pub(super) made: Option<Ino>,
}

/// The beginning of a log.
pub(in crate::leased) struct Part {
    pub(in crate::leased) batch: Batch,
    pub(in crate::leased) epoch: u64,
    /// What is to be stored before it is sent.
    pub(in crate::leased) ready: Vec<Ready>,
}

impl Local {
    /// Whether the log is to be sent, or more inode numbers asked for.
    pub(in crate::leased) fn is_due(&self, after: Duration, most: usize) -> bool {
        self.log.len() >= most || self.oldest.is_some_and(|oldest| oldest.elapsed() >= after)
    }

    /// The beginning of the log, as a part to be sent.
    pub(in crate::leased) fn next_part(&mut self, me: &(PublicKey, u64)) -> Option<Part> {
        let (mut calls, mut stamps, mut ready, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let most = if self.sending > 0 { self.sending } else { BATCH_MAX };
        for logged in self.log.iter().take(most) {
            bytes += logged.len;
            if bytes > PART_BYTES && !calls.is_empty() && self.sending == 0 {
                break;
            }
            calls.push(logged.call.clone());
            stamps.push(logged.at);
            ready.extend(logged.ready.clone());
        }
        if calls.is_empty() {
            return None;
        }
        let by = self.by(me, Some(Log { part: self.parts, stamps }))?;
        Some(Part { epoch: by.epoch, batch: Batch { calls, by: Some(by) }, ready })
    }

    /// The part is about to be sent: from here on it must not change.
    pub(in crate::leased) fn note_sent(&mut self, epoch: u64, count: usize) {
        if epoch == self.epoch {
            self.sending = count;
        }
    }

    /// Takes note of an inode that was done away with here.
    pub(super) fn note_removed(&mut self, op: &Op, answer: &Answer) {
        let ino = match (op, answer) {
            (Op::ReleaseOrphan { ino }, Answer::Done(_)) => *ino,
            (_, Answer::Done(Reply::Unlinked { ino, nlink: 0 })) => *ino,
            (_, Answer::Done(Reply::Renamed { replaced: Some((ino, 0)), .. })) => *ino,
            _ => return,
        };
        if !self.copy.has_inode(ino) {
            self.removed.insert(ino, self.copy.now());
        }
    }

    /// Takes the commits of files that came and went out of the log, as far as it is sent next: nobody will miss
    /// them, and what they name need not be stored; nor are they kept in the trash, which what lived longer may be.
    /// All of a file's commits go, since each builds on the one before. Says whether there were any. `all`: those of
    /// whatever is gone, because what they name can't be stored.
    pub(in crate::leased) fn withdraw_removed(&mut self, all: bool) -> bool {
        if self.sending > 0 {
            return false;
        }
        let committed = |logged: &Logged| match &logged.call.op {
            Op::Commit(commit) => Some(commit.ino),
            _ => None,
        };
        let next = self.log.iter().take(BATCH_MAX).filter_map(committed);
        let is_gone = |ino: &Ino| self.removed.contains_key(ino) && !self.copy.has_inode(*ino);
        let gone: BTreeSet<Ino> = next.filter(is_gone).collect();
        if gone.is_empty() {
            return false;
        }
        let made = self.log.iter().filter_map(|logged| Some((logged.made?, logged.at)));
        let brief = |ino: &Ino, at: Time| self.removed.get(ino).is_some_and(|end| end.since(at) < THROWN_AGE);
        let dead: BTreeSet<Ino> = match all {
            true => gone,
            false => made.filter(|(ino, at)| gone.contains(ino) && brief(ino, *at)).map(|(ino, _)| ino).collect(),
        };
        if dead.is_empty() {
            return false;
        }
        let before = self.log.len();
        self.log.retain(|logged| {
            let kept = committed(logged).is_none_or(|ino| !dead.contains(&ino));
            if let Some(ready) = logged.ready.as_ref().filter(|_| !kept) {
                ready.give_up();
            }
            kept
        });
        self.shipped += (before - self.log.len()) as u64;
        true
    }

    /// Replicas did so many operations of a part before they refused one.
    pub(in crate::leased) fn end_of_part(&mut self, count: usize) {
        self.log.drain(..count.min(self.log.len()));
        self.shipped += count as u64;
    }

    /// Replicas have the part of so many operations.
    pub(in crate::leased) fn end_part(&mut self, epoch: u64, count: usize) {
        if epoch != self.epoch {
            return;
        }
        self.log.drain(..count);
        (self.parts, self.sending) = (self.parts + 1, 0);
        self.shipped += count as u64;
        self.oldest = (!self.log.is_empty()).then(Instant::now);
        if self.log.is_empty() {
            self.touched.clear();
            self.removed.clear();
            self.copy.forget_changes();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use base::ClusterId;
    use futures::future::BoxFuture;
    use meta::{Caller, Commit, Content, Kind, NewInode};

    use super::*;
    use crate::backend::{Unavailable, Unstored};

    /// Counts how often it is given up.
    #[derive(Default)]
    struct Blocks(AtomicUsize);

    impl Unstored for Blocks {
        fn stored(&self) -> BoxFuture<'static, Result<(), Unavailable>> {
            Box::pin(async { Ok(()) })
        }
        fn give_up(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A log of these operations, all at once, each of which has blocks to wait for; and what it made.
    fn log_of(ops: Vec<(Op, Option<Ino>)>) -> (Local, Arc<Blocks>) {
        let clock = std::sync::Arc::new(crate::leased::clock::since_boot);
        let mut local = Local::new(ClusterId([1; 16]), Some(Ino(1)), clock);
        let blocks = Arc::new(Blocks::default());
        for (op, made) in ops {
            let call = Call { caller: Caller::default(), op };
            local.log.push_back(Logged { call, at: Time::ZERO, len: 1, ready: Some(blocks.clone()), made });
        }
        (local, blocks)
    }

    fn commit(ino: u64) -> (Op, Option<Ino>) {
        (Op::Commit(Commit { opened: true, ..Commit::whole(Ino(ino), None, Content::default()) }), None)
    }

    fn create(ino: u64) -> (Op, Option<Ino>) {
        let new = NewInode { kind: Kind::File, mode: 0, umask: 0, rdev: 0, target: Default::default() };
        (Op::CreateUnnamed { parent: Ino(1), new }, Some(Ino(ino)))
    }

    fn remove(local: &mut Local, ino: u64) {
        local.note_removed(&Op::ReleaseOrphan { ino: Ino(ino) }, &Answer::Done(Reply::Unit));
    }

    #[test]
    fn only_what_was_removed_here_is_withdrawn_and_not_what_was_given_back() {
        let (mut local, blocks) = log_of(vec![create(7), commit(7), create(8), commit(8), commit(7)]);
        // The copy has neither: their directory was given back with what is to be sent of it.
        assert!(!local.withdraw_removed(true));
        assert_eq!((local.log.len(), blocks.0.load(Ordering::SeqCst)), (5, 0));

        remove(&mut local, 7);
        assert!(local.withdraw_removed(false));
        assert_eq!((local.log.len(), blocks.0.load(Ordering::SeqCst), local.shipped), (3, 2, 2));
    }

    #[test]
    fn what_the_trash_keeps_is_not_withdrawn() {
        // Replicas know of the one, and the other was there for long enough.
        let (mut local, blocks) = log_of(vec![commit(7), create(8), commit(8)]);
        let later = Time::ZERO.after(THROWN_AGE);
        local.removed.extend([(Ino(7), later), (Ino(8), later)]);
        assert!(!local.withdraw_removed(false));
        assert_eq!((local.log.len(), blocks.0.load(Ordering::SeqCst)), (3, 0));
        // Unless it can't be stored: then it would hold up all that comes after.
        assert!(local.withdraw_removed(true));
        assert_eq!((local.log.len(), blocks.0.load(Ordering::SeqCst)), (1, 2));
    }
}
