//! Going on where a process before this one stopped: handles that it gave out, what it had not synced, and
//! requests that it may have done.
//!
//! What was lost is told once: to each handle through which it was written, at its next `fsync` or `close`;
//! if those are closed or it was names, to whoever next syncs the file or the directory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::backend::{BlockStore, Metadata};
use client::fs::{Handle, OpenFlags, Opened, first_handle};
use meta::{Attr, Caller, Ino};
use parking_lot::Mutex;

use crate::door::Door;
use crate::ledger::{Ledger, Mark};
use crate::wire::{Errno, Request};

type Result<T> = std::result::Result<T, Errno>;

/// How often to look whether what was not synced is by now.
const SETTLE_PAUSE: Duration = Duration::from_secs(3);

/// What a door keeps for those after it, and has from those before.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    ledger: Option<Arc<Ledger>>,
    /// Somebody served before: there may be handles of theirs.
    resumed: bool,
    lost: Mutex<HashMap<u64, Lost>>,
}

/// What of one inode was not synced when the process before died.
#[derive(Debug, Default)]
struct Lost {
    /// Those who wrote it and were not told.
    handles: HashSet<u64>,
    /// Somebody was told.
    told: bool,
}

impl Inheritance {
    /// `lost`: what the process before had not synced when it died, if it did.
    pub(crate) fn new(ledger: Option<Arc<Ledger>>, resumed: bool, lost: Option<Vec<Mark>>) -> Inheritance {
        let mut inodes = HashMap::<u64, Lost>::new();
        for (inode, handle) in lost.unwrap_or_default() {
            let handles = &mut inodes.entry(inode).or_default().handles;
            if handle != 0 {
                handles.insert(handle);
            }
        }
        Inheritance { ledger, resumed, lost: Mutex::new(inodes) }
    }

    /// Notes that `inode` was changed, through `handle` if any, and not synced.
    pub(crate) fn mark(&self, inode: u64, handle: u64) {
        if let Some(ledger) = &self.ledger {
            ledger.mark((inode, handle));
        }
    }

    fn note_done(&self, request: &Request, inode: u64) {
        if let Some(ledger) = &self.ledger {
            ledger.note_done(request.unique, inode);
        }
    }

    /// The inode of what this request did already, through the process before.
    fn done_before(&self, request: &Request) -> Option<u64> {
        if !request.is_resent() {
            return None;
        }
        self.ledger.as_ref()?.done_before(request.unique)
    }

    /// Whether somebody is to be told now that data was lost: who flushes or syncs `handle`, or whoever
    /// `syncs` the inode.
    fn tell_lost(&self, inode: u64, handle: u64, syncs: bool) -> Result<()> {
        let mut inodes = self.lost.lock();
        let Some(lost) = inodes.get_mut(&inode) else { return Ok(()) };
        let wrote = lost.handles.remove(&handle);
        let first = syncs && !lost.told;
        lost.told |= wrote || syncs;
        if !wrote && !first {
            return Ok(());
        }
        if let Some(ledger) = &self.ledger {
            let settled = ledger.unsynced(Some(inode)).into_iter().filter(|(mark, change)| {
                // Changed since, it waits to be synced like anything else.
                *change == 0 && !lost.handles.contains(&mark.1)
            });
            ledger.synced(settled.collect::<Vec<_>>());
        }
        tracing::warn!(inode, handle, "told that what was written and not synced before a crash may be lost");
        Err(Errno::IO)
    }
}

impl<M: Metadata, B: BlockStore> Door<M, B> {
    /// Sees to it that a handle is known that the process before gave out.
    pub(crate) async fn adopt(&self, request: &Request, inode: u64, handle: u64, flags: OpenFlags) -> Result<()> {
        if !self.inherited.resumed || self.fs.is_known(Handle(handle), flags) {
            return Ok(());
        }
        let (caller, ino) = (self.caller(request), self.ino(inode));
        self.wait(request, self.fs.adopt(Handle(handle), ino, flags, &caller)).await?;
        if flags.append {
            self.appending.lock().insert(Handle(handle), caller);
        }
        tracing::debug!(inode, handle, "adopted a handle");
        if let Some(notifier) = self.told.notifier().cloned() {
            // Cached pages may hold what was lost. Not awaited: it waits for the very pages that are asked for.
            tokio::spawn(async move {
                if let Err(errno) = notifier.inval_inode(inode, 0, 0).await {
                    tracing::warn!(%errno, inode, "the kernel keeps old pages");
                }
            });
        }
        Ok(())
    }

    /// Whether a handle is somebody else's that was never used here.
    pub(crate) fn is_strange(&self, handle: u64) -> bool {
        self.inherited.resumed && !self.fs.is_known(Handle(handle), OpenFlags::default())
    }

    /// `flush` and `fsync`: `run`, for handles that are known here; what was lost is told first.
    pub(crate) async fn sync_with(
        &self,
        request: &Request,
        inode: u64,
        handle: u64,
        syncs: bool,
        run: impl Future<Output = client::fs::Result<()>>,
    ) -> Result<()> {
        self.inherited.tell_lost(inode, handle, syncs)?;
        let before = self.inherited.ledger.as_ref().map(|ledger| ledger.unsynced(Some(inode)));
        match (self.is_strange(handle), syncs) {
            (false, _) => self.wait(request, run).await?,
            (true, true) => self.wait(request, self.fs.sync_file(&self.caller(request), self.ino(inode))).await?,
            // Nothing was written through it here.
            (true, false) => {}
        }
        if let (true, Some(ledger), Some(before)) = (syncs, &self.inherited.ledger, before)
            // Locks on it would still be lost.
            && !self.fs.is_dirty(self.ino(inode))
        {
            ledger.synced(before.into_iter().filter(|(_, change)| *change > 0));
        }
        Ok(())
    }

    /// `fsyncdir`.
    pub(crate) async fn sync_names(&self, request: &Request, inode: u64) -> Result<()> {
        self.inherited.tell_lost(inode, 0, true)?;
        self.wait(request, self.fs.sync_inode(self.ino(inode))).await
    }

    /// After names in a directory, or an inode's attributes, were changed, and before that is answered.
    fn mark_names(&self, inode: u64) {
        if self.fs.keeps(self.ino(inode)) {
            self.inherited.mark(inode, 0);
        }
    }

    /// After attributes were changed.
    pub(crate) fn changed<T>(&self, inode: u64, changed: Result<T>) -> Result<T> {
        if changed.is_ok() {
            self.mark_names(inode);
        }
        changed
    }

    /// After something was made: what the process before made for this very request is what was asked for.
    pub(crate) async fn made(
        &self,
        request: &Request,
        caller: &Caller,
        place: (u64, &[u8]),
        made: Result<Attr>,
    ) -> Result<Attr> {
        let (parent, name) = place;
        let made = match (made, self.inherited.done_before(request)) {
            (Err(Errno::EXIST), Some(before)) => {
                let found = self.wait(request, self.fs.lookup(caller, self.ino(parent), name)).await?;
                if self.inode(found.ino) == before { Ok(found) } else { Err(Errno::EXIST) }
            }
            (made, _) => made,
        }?;
        self.inherited.note_done(request, self.inode(made.ino));
        self.mark_names(parent);
        Ok(made)
    }

    /// After a file was made and opened; as [`Door::made`].
    pub(crate) async fn created(
        &self,
        request: &Request,
        caller: &Caller,
        place: (u64, &[u8]),
        flags: OpenFlags,
        created: Result<Opened>,
    ) -> Result<Opened> {
        let (handle, made) = match created {
            Ok(Opened { handle, attr }) => (handle, Ok(attr)),
            // The mode does not limit who made it: such a handle is as one that the process before gave out.
            Err(errno) => (Handle(first_handle()), Err(errno)),
        };
        let attr = self.made(request, caller, place, made).await?;
        if !self.fs.is_known(handle, OpenFlags::default()) {
            self.wait(request, self.fs.adopt(handle, attr.ino, flags, caller)).await?;
        }
        let inode = self.inode(attr.ino);
        if self.fs.keeps(attr.ino) {
            self.inherited.mark(inode, handle.0);
        }
        Ok(Opened { handle, attr })
    }

    /// After a name was removed or moved away: if the process before did that for this very request it is done.
    pub(crate) fn removed(&self, request: &Request, parents: &[u64], removed: Result<()>) -> Result<()> {
        match removed {
            Err(Errno::NOENT) if self.inherited.done_before(request).is_some() => {}
            removed => removed?,
        }
        self.inherited.note_done(request, 0);
        parents.iter().for_each(|parent| self.mark_names(*parent));
        Ok(())
    }

    /// Whether an exchange of names that was asked for again was done. To do it twice would undo it.
    ///
    /// # Errors
    /// EIO if that is not known.
    pub(crate) async fn is_exchanged(&self, request: &Request, caller: &Caller, to: (Ino, &[u8])) -> Result<bool> {
        if !request.is_resent() {
            return Ok(false);
        }
        let before = self.inherited.done_before(request).ok_or(Errno::IO)?;
        let found = self.wait(request, self.fs.lookup(caller, to.0, to.1)).await?;
        Ok(self.inode(found.ino) == before)
    }

    /// After an exchange of names.
    pub(crate) async fn exchanged(&self, request: &Request, caller: &Caller, to: (Ino, &[u8])) -> Result<()> {
        if self.inherited.ledger.is_some() {
            let found = self.wait(request, self.fs.lookup(caller, to.0, to.1)).await?;
            self.inherited.note_done(request, self.inode(found.ino));
        }
        Ok(())
    }
}

/// Notes now and then what is synced by now, for as long as the mount is served.
pub(crate) async fn settle<M: Metadata, B: BlockStore>(
    fs: Arc<client::fs::Filesystem<M, B>>,
    ledger: Arc<Ledger>,
    root: u64,
) {
    let mut pauses = tokio::time::interval(SETTLE_PAUSE);
    pauses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pauses.tick().await;
        let ino = |mark: &Mark| if mark.0 == crate::wire::abi::ROOT { Ino(root) } else { Ino(mark.0) };
        // What a crash lost is not synced until somebody was told.
        let marks = ledger.unsynced(None).into_iter().filter(|(_, change)| *change > 0);
        let clean: Vec<_> = marks.filter(|(mark, _)| !fs.is_dirty(ino(mark))).collect();
        if !clean.is_empty() && fs.sync_names().await.is_ok() {
            ledger.synced(clean.into_iter().filter(|(mark, _)| !fs.is_dirty(ino(mark))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_once_to_each_who_wrote_and_once_to_who_syncs() {
        let inherited = Inheritance::new(None, true, Some(vec![(5, 11), (5, 12), (6, 0)]));
        assert_eq!(inherited.tell_lost(7, 1, true), Ok(()), "another file");
        assert_eq!(inherited.tell_lost(5, 13, false), Ok(()), "a reader closes");
        assert_eq!(inherited.tell_lost(5, 11, false), Err(Errno::IO));
        assert_eq!(inherited.tell_lost(5, 11, false), Ok(()));
        assert_eq!(inherited.tell_lost(5, 13, true), Ok(()), "somebody was told");
        assert_eq!(inherited.tell_lost(5, 12, true), Err(Errno::IO), "and so is the other who wrote");
        assert_eq!(inherited.tell_lost(6, 0, true), Err(Errno::IO));
        assert_eq!(inherited.tell_lost(6, 0, true), Ok(()));
    }
}
