//! Appending to a file that others may append to at the same time.
//!
//! Where this mount has a lease on the file nobody else can, and a write to the end is a write. Elsewhere it
//! takes a lock of a kind of its own, takes over what others wrote, writes after that, commits, and gives the
//! lock back: so what two mounts append stands one after the other.

use std::sync::Arc;

use bytes::Bytes;
use meta::{Denied, LOCK_END, LockHow, LockKind, LockMode, LockRequest, Locked};

use super::Shared;
use super::error::{FsError, Result};
use super::handles::{Handle, Open};
use super::locks::FileLock;
use crate::backend::{BlockStore, Metadata, Patience};

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Writes at the end of a file, wherever that is by now.
    pub(super) async fn append(self: &Arc<Self>, handle: Handle, open: &Arc<Open>, bytes: Bytes) -> Result<()> {
        if self.append_here(open, &bytes)? {
            return Ok(());
        }
        let (shared, open) = (self.clone(), open.clone());
        // Even if the caller stops waiting the lock must be given back.
        let appended = tokio::spawn(async move { shared.append_locked(handle, &open, bytes).await });
        appended.await.map_err(|failure| FsError::Unavailable(failure.to_string()))?
    }

    /// Writes at the end if nobody else can; says whether it did.
    fn append_here(&self, open: &Open, bytes: &Bytes) -> Result<bool> {
        let mut state = open.file.state.lock();
        // Asked while nothing else can be written: what is written now is committed before others see the file.
        let alone = state.orphan || self.metadata.keeps(open.file.ino);
        if alone {
            state.write(None, bytes.clone(), &self.writing(open))?;
            open.writes.wrote(state.seq);
        }
        Ok(alone)
    }

    async fn append_locked(self: &Arc<Self>, handle: Handle, open: &Arc<Open>, bytes: Bytes) -> Result<()> {
        // Those of this mount one after the other: they have one lock.
        let _turn = open.file.appending.lock().await;
        let (kind, mode, owner) = (LockKind::Append, LockMode::Exclusive, 0);
        let lock = FileLock { kind, owner, start: 0, end: LOCK_END, mode, pid: 0 };
        let how = LockHow::Wait;
        let ino = open.file.ino;
        let request = LockRequest { ino, kind, owner, start: 0, end: LOCK_END, mode, pid: 0, how };
        let (mut patience, mut lost) = (Patience::new(), false);
        loop {
            match self.take_lock(handle, open, request).await {
                Ok(Locked::Granted) => break,
                Ok(_) => patience.wait().await?,
                // What was lost was for an earlier write; if anybody relied on it, this handle says so from now on.
                Err(FsError::Denied(Denied::Fenced)) if !std::mem::replace(&mut lost, true) => open.locks.check()?,
                Err(error) => return Err(error),
            }
        }
        let written = self.append_alone(open, bytes).await;
        let given = self.give_back(open, FileLock { mode: LockMode::Unlock, ..lock }).await;
        open.file.owners.forget(kind, owner);
        written.and(given)
    }

    /// Writes at the end of what replicas have, and commits it.
    async fn append_alone(self: &Arc<Self>, open: &Arc<Open>, bytes: Bytes) -> Result<()> {
        // What was written to the file otherwise goes first, so that only this is at stake.
        self.commit(&open.file, Vec::new()).await?;
        {
            let mut state = open.file.state.lock();
            state.write(None, bytes, &self.writing(open))?;
            open.writes.wrote(state.seq);
        }
        let (mut committed, mut patience) = (self.commit(&open.file, Vec::new()).await, Patience::new());
        while let Err(FsError::Unavailable(_)) = &committed
            && patience.wait().await.is_ok()
        {
            // Nobody else appended since, so if it was done all the same it stands there, and is laid over itself.
            committed = self.commit(&open.file, Vec::new()).await;
        }
        if let Err(error) = &committed
            && *error != FsError::Denied(Denied::Fenced)
        {
            // Tried again later it would stand where others have written meanwhile.
            let mut pipeline = open.file.pipeline.lock().await;
            self.drop_changes(&open.file, &mut pipeline, Some(&**open));
        }
        committed.map(drop)
    }
}
