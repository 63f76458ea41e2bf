//! Locks, and appending where others append: what the kernel caches of such a file must not be older than the
//! lock.

use client::backend::{BlockStore, Metadata};
use client::fs::{FileLock, Handle, LockWait, OpenFlags};
use meta::{Attr, LOCK_END, LockKind, LockMode};

use crate::door::{Door, Result, refuse};
use crate::wire::abi::lock_type;
use crate::wire::{Errno, LockFound, Request, request};

impl<M: Metadata, B: BlockStore> Door<M, B> {
    /// `F_GETLK`.
    pub(crate) async fn get_lock(&self, request: &Request, lock: request::Lock) -> Result<LockFound> {
        let asked = file_lock(&lock)?;
        let found = self.wait(request, self.fs.get_lock(Handle(lock.handle), asked)).await?;
        Ok(found.map_or(LockFound { start: lock.start, end: lock.end, kind: lock_type::UNLOCK, pid: 0 }, |seen| {
            let kind = if seen.mode == LockMode::Shared { lock_type::READ } else { lock_type::WRITE };
            LockFound { start: seen.start, end: seen.end, kind, pid: seen.pid }
        }))
    }

    /// `F_SETLK`, `F_SETLKW` and `flock`.
    pub(crate) async fn set_lock(&self, request: &Request, inode: u64, lock: request::Lock, wait: bool) -> Result<()> {
        let (handle, asked) = (Handle(lock.handle), file_lock(&lock)?);
        let refused = |error| {
            // What was written under locks that are lost is not what others see.
            self.told.doubt_pages(self.ino(inode));
            refuse(request, &error)
        };
        if asked.mode == LockMode::Unlock {
            // Whoever ends has no locks in any case, so this is not given up for a signal.
            return self.fs.unlock(handle, asked).await.map_err(refused);
        }
        let wait = if wait { LockWait::Yes } else { LockWait::No };
        let interrupt = request.interrupt.clone();
        let interrupted = async move { interrupt.fired().await };
        let attr = self.fs.lock(handle, asked, wait, interrupted, self.grace).await.map_err(refused)?;
        self.revalidate(&attr).await;
        // They end with this process; if it crashes, whoever relies on them is told as of data that is lost.
        self.inherited.mark(inode, lock.handle);
        Ok(())
    }

    /// Before a lock is the program's the kernel forgets what it has of other content. (It holds nothing of the
    /// file locked while it waits for this answer.)
    async fn revalidate(&self, attr: &Attr) {
        let (attributes_changed, pages_good) = self.told.open(attr);
        if !pages_good && let Some(notifier) = self.told.notifier() {
            if let Err(errno) = notifier.inval_inode(self.inode(attr.ino), 0, 0).await {
                tracing::warn!(%errno, "the kernel keeps old pages of a file that was locked");
            }
        } else if attributes_changed {
            self.told.drop_attributes(self.inode(attr.ino));
        }
    }

    /// Writes pages that were changed through a mapping. The kernel takes any handle that can write,
    /// and one that appends would put them at the end of the file: they go through another then.
    pub(crate) async fn write_back(&self, inode: u64, write: request::Write) -> client::fs::Result<u32> {
        let handle = Handle(write.handle);
        let appender = self.appending.lock().get(&handle).cloned();
        let Some(caller) = appender else { return self.fs.write(handle, write.offset, write.data).await };
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let other = self.fs.open(&caller, self.ino(inode), flags).await?.handle;
        let written = self.fs.write(other, write.offset, write.data).await;
        self.fs.release(other).await.and(written)
    }

    /// After a write that may have gone to another place than the kernel believes: to the end of the file as it
    /// is, which others may have moved.
    pub(crate) fn appended(&self, inode: u64, handle: Handle) {
        let ino = self.ino(inode);
        if !self.appending.lock().contains_key(&handle) || self.fs.is_alone(ino) {
            return;
        }
        self.told.drop_attributes(inode);
        self.told.doubt_pages(ino);
        if let Some(notifier) = self.told.notifier().cloned() {
            let inode = self.inode(ino);
            // The kernel holds the file while it waits for the answer to the write.
            tokio::spawn(async move { notifier.inval_inode(inode, 0, 0).await });
        }
    }
}

fn file_lock(lock: &request::Lock) -> Result<FileLock> {
    let mode = match lock.kind {
        lock_type::READ => LockMode::Shared,
        lock_type::WRITE => LockMode::Exclusive,
        lock_type::UNLOCK => LockMode::Unlock,
        _ => return Err(Errno::INVAL),
    };
    let kind = if lock.flock { LockKind::Flock } else { LockKind::Posix };
    let end = lock.end.min(LOCK_END);
    Ok(FileLock { kind, owner: lock.owner, start: lock.start, end, mode, pid: lock.pid })
}
