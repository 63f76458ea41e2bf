//! Locks on open files.
//!
//! Whoever gets a lock sees what its former owner wrote: content that replicas have and this mount does not
//! is taken over before the lock is used, and what was written here is committed before it is given back
//! (where nobody else can see the file yet, before they can). Waiting is asking again.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use meta::{
    Answer, Attr, Call, Denied, Ino, LOCK_END, LockHow, LockKind, LockMode, LockRequest, LockSeen, Locked, Op, Reply,
};
use parking_lot::Mutex;

use super::error::{FsError, Result};
use super::file::{OpenFile, Pipeline};
use super::handles::{Handle, Open};
use super::{Filesystem, Shared, unexpected};
use crate::backend::{BlockStore, LOCK_PAUSE, Metadata};

/// How often, and after what pause, giving a lock back is tried again that failed.
const RETRIES: (usize, Duration) = (600, Duration::from_secs(1));

/// A lock on an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// `fcntl`'s or `flock`'s.
    pub kind: LockKind,
    /// Whose: locks of one owner are never in each other's way.
    pub owner: u64,
    /// The first byte.
    pub start: u64,
    /// The last byte, at most [`LOCK_END`].
    pub end: u64,
    /// What it is.
    pub mode: LockMode,
    /// The process that asks.
    pub pid: u32,
}

impl FileLock {
    /// Gives back all that an owner has of a kind.
    fn none(kind: LockKind, owner: u64) -> FileLock {
        FileLock { kind, owner, start: 0, end: LOCK_END, mode: LockMode::Unlock, pid: 0 }
    }

    fn request(&self, ino: Ino, how: LockHow) -> LockRequest {
        let FileLock { kind, owner, start, end, mode, pid } = *self;
        LockRequest { ino, kind, owner, start, end, mode, pid, how }
    }
}

/// How long whoever wants a lock waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockWait {
    /// Not at all.
    No,
    /// Until it is interrupted.
    Yes,
}

/// Who has locks on a file, and through which handles they were taken.
#[derive(Debug, Default)]
pub(super) struct LockOwners {
    of: Mutex<BTreeMap<(LockKind, u64), BTreeSet<Handle>>>,
    /// How often all of them were lost.
    losses: AtomicU64,
}

impl LockOwners {
    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.of.lock().is_empty()
    }

    /// An owner has no locks any more.
    pub(super) fn forget(&self, kind: LockKind, owner: u64) {
        self.of.lock().remove(&(kind, owner));
    }
}

/// What a handle has to do with locks.
#[derive(Debug, Default)]
pub(super) struct HandleLocks {
    /// Some were taken through it.
    taken: AtomicBool,
    /// They were lost: it is of no more use.
    lost: AtomicBool,
}

impl HandleLocks {
    /// Refuses what relies on locks that were lost.
    pub(super) fn check(&self) -> Result<()> {
        if self.lost.load(Ordering::Acquire) { Err(Denied::Fenced.into()) } else { Ok(()) }
    }
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// Refuses a handle through which locks were taken that are lost, as far as that can be known now.
    ///
    /// # Errors
    /// `BadHandle`; `Denied(Fenced)` if they are lost; that nobody says whether they are.
    pub async fn need_locks(&self, handle: Handle) -> Result<()> {
        let open = self.shared.handle(handle)?;
        self.shared.need_locks(&open).await
    }

    /// How many files programs have locks on.
    #[must_use]
    pub fn locked_files(&self) -> usize {
        self.shared.open_files().iter().filter(|file| file.owners.any()).count()
    }

    /// Takes a lock through a handle. Returns the file's attributes, whose content is what is read from now on.
    /// `interrupted` ends waiting at once, and anything else after `grace`.
    ///
    /// # Errors
    /// `Denied(Locked)` if somebody else has it; `Deadlock`, `Interrupted`; `Denied(Fenced)` if locks that were
    /// taken through this handle are lost.
    pub async fn lock(
        &self,
        handle: Handle,
        lock: FileLock,
        wait: LockWait,
        interrupted: impl Future<Output = ()> + Send,
        grace: Duration,
    ) -> Result<Attr> {
        let (shared, open) = (&self.shared, self.shared.handle(handle)?);
        open.locks.check()?;
        if open.file.ino.snapshot() != 0 {
            // Nobody writes there.
            return Ok(open.file.state.lock().local_attr());
        }
        let how = if wait == LockWait::Yes { LockHow::Wait } else { LockHow::Try };
        let request = lock.request(open.file.ino, how);
        let (interrupted, mut pause) = (interrupted.shared(), LOCK_PAUSE.0);
        loop {
            let released = shared.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            let (asking, asked) = (shared.clone(), open.clone());
            let mut task = tokio::spawn(async move { asking.take_lock(handle, &asked, request).await });
            let too_long = async {
                interrupted.clone().await;
                tokio::time::sleep(grace).await;
            };
            let taken = tokio::select! {
                biased;
                taken = &mut task => taken.map_err(|failure| FsError::Unavailable(failure.to_string()))??,
                () = too_long => {
                    shared.clone().abandon(task, open, lock);
                    return Err(FsError::Interrupted);
                }
            };
            match taken {
                Locked::Granted => return Ok(open.file.state.lock().local_attr()),
                Locked::Deadlock => return Err(FsError::Deadlock),
                Locked::Waiting { .. } => {}
            }
            tokio::select! {
                () = interrupted.clone() => {
                    let leave = Op::Lock(LockRequest { how: LockHow::Leave, ..request });
                    let (shared, caller) = (shared.clone(), open.caller.clone());
                    // If that fails its place is lost when it has not asked for a while.
                    tokio::spawn(async move { shared.call_unit(&caller, leave).await });
                    return Err(FsError::Interrupted);
                }
                () = released => {}
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LOCK_PAUSE.1),
            }
        }
    }

    /// Gives a lock back, after what was written to the file is committed.
    ///
    /// # Errors
    /// Why it is not committed: then the lock is given back all the same. Or why that could not be done.
    pub async fn unlock(&self, handle: Handle, lock: FileLock) -> Result<()> {
        let open = self.shared.handle(handle)?;
        open.locks.check()?;
        let lock = FileLock { mode: LockMode::Unlock, ..lock };
        let shared = self.shared.clone();
        let unlocked = tokio::spawn(async move { shared.unlock(&open, lock).await });
        unlocked.await.map_err(|failure| FsError::Unavailable(failure.to_string()))?
    }

    /// A lock that is in the way of this one.
    ///
    /// # Errors
    /// As [`Filesystem::lock`].
    pub async fn get_lock(&self, handle: Handle, lock: FileLock) -> Result<Option<LockSeen>> {
        let open = self.shared.handle(handle)?;
        open.locks.check()?;
        if open.file.ino.snapshot() != 0 {
            return Ok(None);
        }
        let request = lock.request(open.file.ino, LockHow::Try);
        match self.shared.call(&open.caller, Op::GetLock(request)).await? {
            Reply::Conflict(seen) => Ok(seen),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether nobody else can see or change this file for now.
    #[must_use]
    pub fn is_alone(&self, ino: Ino) -> bool {
        self.shared.metadata.keeps(ino)
    }

    /// A process closed a descriptor: its `fcntl` locks on the file are given back, as POSIX has it.
    ///
    /// # Errors
    /// As [`Filesystem::unlock`].
    pub async fn close_locks(&self, handle: Handle, owner: u64) -> Result<()> {
        let open = self.shared.handle(handle)?;
        let has_some = open.file.owners.of.lock().contains_key(&(LockKind::Posix, owner));
        match has_some {
            true => self.unlock(handle, FileLock::none(LockKind::Posix, owner)).await,
            false => Ok(()),
        }
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Refuses to say what is in a file whose reader relies on locks that were lost.
    pub(super) async fn need_locks(&self, open: &Open) -> Result<()> {
        open.locks.check()?;
        if open.locks.taken.load(Ordering::Acquire) && !self.metadata.keeps_locks(open.file.ino).await? {
            return Err(Denied::Fenced.into());
        }
        open.locks.check()
    }

    /// Asks for a lock once; if it is granted, this mount has the newest content of the file then.
    pub(super) async fn take_lock(
        self: &Arc<Self>,
        handle: Handle,
        open: &Arc<Open>,
        request: LockRequest,
    ) -> Result<Locked> {
        // Before it may be granted: giving back what the owner had before is not tried again from here on.
        let owners = &open.file.owners;
        owners.of.lock().entry((request.kind, request.owner)).or_default().insert(handle);
        let losses = owners.losses.load(Ordering::SeqCst);
        let write = if open.flags.write { meta::WRITE | meta::OPENED } else { open.flags.mask() };
        let ops = [Op::Lock(request), Op::Open { ino: request.ino, mask: write }];
        let answers = self.calls(ops.map(|op| Call { caller: open.caller.clone(), op }).into()).await?;
        let [locked, opened] = <[Answer; 2]>::try_from(answers).expect("as many answers as calls");
        let locked = match locked {
            Answer::Done(Reply::Locked(locked)) => locked,
            Answer::Done(other) => return Err(unexpected(&other)),
            Answer::Denied(Denied::Fenced) => {
                let mut pipeline = open.file.pipeline.lock().await;
                self.lose_locks(&open.file, &mut pipeline);
                return Err(Denied::Fenced.into());
            }
            Answer::Denied(why) => return Err(why.into()),
        };
        if locked != Locked::Granted {
            return Ok(locked);
        }
        if request.kind != LockKind::Append {
            open.locks.taken.store(true, Ordering::SeqCst);
            if owners.losses.load(Ordering::SeqCst) != losses {
                // Whoever lost them may not have known of this one. If it is a new one, it is given back when the
                // handle is closed.
                owners.of.lock().entry((request.kind, request.owner)).or_default().insert(handle);
                open.locks.lost.store(true, Ordering::Release);
                return Err(Denied::Fenced.into());
            }
        }
        // Whoever lost the right to open the file reads on as it was.
        if let Answer::Done(Reply::Opened { attr, content }) = opened {
            open.file.refresh(attr, &content, &self.budget);
            let behind = {
                let state = open.file.state.lock();
                state.is_dirty() && attr.content_version > state.base
            };
            if behind {
                // What was written here is laid over what others wrote.
                self.commit(&open.file, Vec::new()).await?;
            }
        }
        Ok(locked)
    }

    /// Nobody waits any more for what was asked: what it may bring is given back.
    fn abandon(self: Arc<Self>, task: tokio::task::JoinHandle<Result<Locked>>, open: Arc<Open>, lock: FileLock) {
        tokio::spawn(async move {
            if !matches!(task.await, Ok(Ok(Locked::Waiting { .. } | Locked::Deadlock))) {
                let _ = self.unlock(&open, FileLock { mode: LockMode::Unlock, ..lock }).await;
            }
        });
    }

    async fn unlock(self: &Arc<Self>, open: &Arc<Open>, lock: FileLock) -> Result<()> {
        let ino = open.file.ino;
        let committed = match self.metadata.keeps(ino) {
            true => Ok(()),
            false => self.commit(&open.file, Vec::new()).await.map(drop),
        };
        if (lock.start, lock.end) == (0, LOCK_END) {
            open.file.owners.forget(lock.kind, lock.owner);
        }
        let unlocked = self.give_back(open, lock).await;
        committed.and(unlocked)
    }

    /// Gives a lock back; goes on trying in the background if replicas can't be reached.
    pub(super) async fn give_back(self: &Arc<Self>, open: &Arc<Open>, lock: FileLock) -> Result<()> {
        let given = self.try_give_back(open, lock).await;
        if let Err(error) = &given
            && error.may_pass()
        {
            tracing::warn!(ino = open.file.ino.0, %error, "a lock is not given back yet");
            tokio::spawn(give_back_later(Arc::downgrade(self), open.clone(), lock));
        }
        given
    }

    async fn try_give_back(self: &Arc<Self>, open: &Open, lock: FileLock) -> Result<()> {
        let op = Op::Lock(lock.request(open.file.ino, LockHow::Try));
        let given = self.call(&open.caller, op).await;
        self.released.notify_waiters();
        match given {
            Ok(Reply::Locked(_)) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            // The file is gone, and its locks with it.
            Err(FsError::Denied(Denied::Stale)) => Ok(()),
            Err(FsError::Denied(Denied::Fenced)) => {
                let mut pipeline = open.file.pipeline.lock().await;
                self.lose_locks(&open.file, &mut pipeline);
                Err(Denied::Fenced.into())
            }
            Err(error) => Err(error),
        }
    }

    /// A handle is gone: what was locked through it and not given back by its owner was locked for the handle
    /// itself (`flock`, OFD locks).
    pub(super) async fn release_locks(self: &Arc<Self>, handle: Handle, open: &Arc<Open>) {
        let left: Vec<_> = {
            let owners = open.file.owners.of.lock();
            owners.iter().filter(|(_, handles)| handles.contains(&handle)).map(|(owner, _)| *owner).collect()
        };
        for (kind, owner) in left {
            if let Err(error) = self.unlock(open, FileLock::none(kind, owner)).await {
                tracing::warn!(ino = open.file.ino.0, %error, "a closed file's locks");
            }
        }
    }

    /// Locks on this file were lost, and others may have had them since. What was written and not committed is
    /// dropped, and handles that had locks are of no more use.
    pub(super) fn lose_locks(&self, file: &OpenFile, pipeline: &mut Pipeline) {
        // Counted first: who takes a lock meanwhile says so first, and then looks here.
        file.owners.losses.fetch_add(1, Ordering::SeqCst);
        for open in self.handles_of(file.ino) {
            if open.locks.taken.load(Ordering::SeqCst) {
                open.locks.lost.store(true, Ordering::Release);
            }
        }
        file.owners.of.lock().clear();
        let dropped = self.drop_changes(file, pipeline, None);
        tracing::error!(ino = file.ino.0, dropped, "locks were lost; files that had them must be closed");
        self.metadata.forget_lost(file.ino);
        self.released.notify_waiters();
    }

    /// Forgets what was written to a file and not committed; says whether there was anything. It is kept for
    /// who looks for it, and each handle through which it was written is told; but not if all of that is what was
    /// written through `failing`, which is told otherwise.
    pub(super) fn drop_changes(&self, file: &OpenFile, pipeline: &mut Pipeline, failing: Option<&Open>) -> bool {
        let handles = self.handles_of(file.ino);
        let dirty = {
            let mut state = file.state.lock();
            let dirty = state.is_dirty();
            let mut lost = failing.is_none();
            for open in handles.iter().filter(|open| dirty && open.locks.check().is_ok()) {
                let fails = failing.is_some_and(|failing| std::ptr::eq(failing, &**open));
                lost |= !fails && open.writes.drop_after(state.settled_seq);
            }
            if dirty && lost {
                self.keep_changes(&state);
            }
            let (attr, content) = (state.attr, state.content.clone());
            state.reset(attr, content, &self.budget);
            // Its attributes may be of newer content than this.
            state.doubt();
            state.forget_base();
            dirty
        };
        self.outbox.discard(file.ino, &pipeline.pending);
        pipeline.pending.clear();
        dirty
    }

    fn handles_of(&self, ino: Ino) -> Vec<Arc<Open>> {
        self.handles.lock().values().filter(|open| open.file.ino == ino).cloned().collect()
    }
}

/// Tries again to give back what an owner has, unless it has taken something since.
async fn give_back_later<M: Metadata, B: BlockStore>(shared: Weak<Shared<M, B>>, open: Arc<Open>, lock: FileLock) {
    for _ in 0..RETRIES.0 {
        tokio::time::sleep(RETRIES.1).await;
        let Some(shared) = shared.upgrade() else { return };
        let _turn = match lock.kind {
            LockKind::Append => Some(open.file.appending.lock().await),
            _ if open.file.owners.of.lock().contains_key(&(lock.kind, lock.owner)) => return,
            _ => None,
        };
        match shared.try_give_back(&open, lock).await {
            Err(error) if error.may_pass() => {}
            _ => return,
        }
    }
}
