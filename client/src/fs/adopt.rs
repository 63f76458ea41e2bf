//! Handles that a process before this one gave out, and that programs still have.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use meta::{Attr, Caller, Content, Denied, Ino, Op};

use super::error::{FsError, Result};
use super::handles::{Handle, Open, OpenFlags};
use super::{Filesystem, Shared};
use crate::backend::{BlockStore, Metadata};

/// The number of a process's first handle: at random, so that those of the one before are none of its own.
#[must_use]
pub fn first_handle() -> u64 {
    // Room for more handles than anybody opens, and never 0.
    RandomState::new().hash_one(std::process::id()) >> 2 | 1
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// Whether a handle is known here, and can do what is asked of it.
    #[must_use]
    pub fn is_known(&self, handle: Handle, wanted: OpenFlags) -> bool {
        let covers = |has: OpenFlags| has.write >= wanted.write && has.read >= wanted.read;
        self.shared.handles.lock().get(&handle).is_some_and(|open| !open.adopted || covers(open.flags))
    }

    /// Takes over a handle that another process opened, at least with these `flags`, and that is still in
    /// use; for `caller`, who uses it. Whether it may be opened was asked then: modes may have changed
    /// since. A file without a name is taken over, too, as long as replicas keep it.
    ///
    /// # Errors
    /// `Denied(Stale)` if the file is gone, and what replicas refuse.
    pub async fn adopt(&self, handle: Handle, ino: Ino, flags: OpenFlags, caller: &Caller) -> Result<()> {
        let shared = &self.shared;
        let _opening = shared.begin_open();
        if self.is_known(handle, flags) {
            return Ok(());
        }
        let (attr, content) = shared.adopted_content(caller, ino, flags).await?;
        let file = shared.attach(attr, &content)?;
        let other = {
            let mut handles = shared.handles.lock();
            let before = handles.get(&handle).map_or(OpenFlags::default(), |open| open.flags);
            let flags = OpenFlags {
                read: flags.read | before.read,
                write: flags.write | before.write,
                append: flags.append | before.append,
                ..OpenFlags::default()
            };
            let (locks, writes) = Default::default();
            handles.insert(handle, Arc::new(Open { file, flags, caller: caller.clone(), locks, writes, adopted: true }))
        };
        match other {
            // It was adopted for less, and may be in use as that.
            Some(other) => shared.detach(&other).await,
            None => Ok(()),
        }
    }

    /// For `fsync` of a handle that nobody used here: whatever was written to its file by
    /// others is committed when it returns.
    ///
    /// # Errors
    /// As [`Filesystem::fsync`]; `Denied(Stale)` if the file is gone.
    pub async fn sync_file(&self, caller: &Caller, ino: Ino) -> Result<()> {
        let shared = &self.shared;
        match shared.file(ino) {
            Some(file) => drop(shared.commit(&file, Vec::new()).await?),
            None => drop(shared.call_attr(caller, Op::GetAttr { ino }).await?),
        }
        self.sync_inode(ino).await
    }

    /// Whether a crash would lose something of a file: what is not committed, locks on it, or the word that
    /// something of it was lost.
    #[must_use]
    pub fn is_dirty(&self, ino: Ino) -> bool {
        let shared = &self.shared;
        shared.losses.is_untold(ino) || shared.file(ino).is_some_and(|file| file.is_dirty() || file.owners.any())
    }

    /// Whether what is done to an inode is kept here for a while, before replicas have it.
    #[must_use]
    pub fn keeps(&self, ino: Ino) -> bool {
        self.shared.metadata.keeps(ino)
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// What an adopted handle is of: asked for as who has it, then as root, where the user's
    /// key may.
    async fn adopted_content(&self, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<(Attr, Content)> {
        let mask = flags.mask() | if flags.write { meta::OPENED } else { 0 };
        let root = Caller::default();
        match self.open_content(caller, ino, mask).await {
            Err(FsError::Denied(Denied::Access | Denied::NotPermitted)) if *caller != root => {
                self.open_content(&root, ino, mask).await
            }
            asked => asked,
        }
    }
}
