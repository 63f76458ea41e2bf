//! Attributes, permissions and space.

use std::sync::Arc;

use meta::{Attr, AttrChange, Call, Caller, Denied, Ino, Op, Reply};

use super::error::{FsError, Result};
use super::handles::{Handle, OpenFlags};
use super::{Filesystem, Shared, attr_of, unexpected};
use crate::backend::{BlockStore, Metadata, StoreSpace};

/// Blocks in which space is reported, bytes.
const BLOCK_BYTES: u64 = 4096;
/// How many inodes are reported to be free where there is no limit.
const INODES_FREE: u64 = 1 << 32;

/// A change of attributes; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New size.
    pub size: Option<u64>,
    /// The rest.
    pub attrs: AttrChange,
}

/// What `statfs(2)` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSpace {
    /// The unit of the numbers of blocks, bytes.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Of them, free: the smaller of what the quota and the storage nodes leave.
    pub blocks_free: u64,
    /// Inodes in all.
    pub files: u64,
    /// Of them, free.
    pub files_free: u64,
    /// The longest name, bytes.
    pub name_max: u32,
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// An inode's attributes, with what was written here and is not committed yet. Of a file that is open here and
    /// that others removed and let go, those that it had.
    ///
    /// # Errors
    /// `Denied(Stale)` if there is no such inode any more.
    pub async fn getattr(&self, caller: &Caller, ino: Ino) -> Result<Attr> {
        let known = self.shared.file(ino);
        match known.and_then(|file| file.recent_attr(self.shared.options.dirty_attr_ttl)) {
            Some(attr) => Ok(attr),
            None => match self.shared.look_attr(caller, Op::GetAttr { ino }).await {
                Err(FsError::Denied(Denied::Stale)) => self.shared.gone_attr(ino).ok_or(Denied::Stale.into()),
                asked => asked,
            },
        }
    }

    /// Changes attributes. A new size is committed by the next flush if `handle` is open for
    /// writing, else at once.
    ///
    /// # Errors
    /// `Denied`, and as [`Filesystem::flush`]; if size and others are to change, the size may have
    /// changed all the same.
    pub async fn setattr(&self, caller: &Caller, ino: Ino, change: &SetAttr, handle: Option<Handle>) -> Result<Attr> {
        let shared = &self.shared;
        if let Some(size) = change.size {
            shared.resize(caller, ino, size, handle).await?;
            if change.attrs == AttrChange::default() {
                return self.getattr(caller, ino).await;
            }
        }
        let op = Op::SetAttr { ino, change: change.attrs };
        let times = change.attrs.atime.is_some() || change.attrs.mtime.is_some();
        let set_ids = change.attrs.mode.is_some_and(|mode| mode & meta::SET_IDS != 0);
        match shared.file(ino).filter(|file| (times || set_ids) && file.is_dirty()) {
            // What was written before must not set the time after, nor take set-id bits away.
            Some(file) => {
                let mut answers = shared.commit(&file, vec![Call { caller: caller.clone(), op }]).await?;
                let attr = attr_of(answers.pop().expect("an answer to the call").into_result()?)?;
                Ok(shared.localize(attr))
            }
            None => shared.call_attr(caller, op).await,
        }
    }

    /// Whether the caller may do all of `mask` (4 read, 2 write, 1 execute) with an inode.
    ///
    /// # Errors
    /// `Denied(Access)` if not.
    pub async fn access(&self, caller: &Caller, ino: Ino, mask: u8) -> Result<()> {
        match self.shared.look(caller, Op::Access { ino, mask }).await? {
            Reply::Unit => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Space and inodes of the volume.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn statfs(&self, caller: &Caller) -> Result<VolumeSpace> {
        let shared = &self.shared;
        let statfs = Op::StatFs { volume: shared.volume.id };
        let (reply, space) = tokio::join!(shared.look(caller, statfs), shared.store_space());
        let used = match reply? {
            Reply::Space(used) => used,
            other => return Err(unexpected(&other)),
        };
        let quota_left = match used.quota_bytes {
            0 => u64::MAX,
            quota => quota.saturating_sub(used.used_bytes),
        };
        let free = space.free.min(quota_left);
        let files_free = match used.quota_inodes {
            0 => INODES_FREE,
            quota => quota.saturating_sub(used.used_inodes),
        };
        Ok(VolumeSpace {
            block_bytes: BLOCK_BYTES as u32,
            blocks: used.used_bytes.div_ceil(BLOCK_BYTES) + free / BLOCK_BYTES,
            blocks_free: free / BLOCK_BYTES,
            files: used.used_inodes.saturating_add(files_free),
            files_free,
            name_max: meta::NAME_MAX as u32,
        })
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// The attributes of a file that is open here, and of which replicas know nothing any more; `None` if it is not,
    /// or what was known of it was lost.
    fn gone_attr(&self, ino: Ino) -> Option<Attr> {
        self.file(ino)?.let_go()
    }

    async fn resize(self: &Arc<Self>, caller: &Caller, ino: Ino, size: u64, handle: Option<Handle>) -> Result<()> {
        if size > chunk::SIZE_MAX {
            return Err(FsError::TooBig);
        }
        let open = handle.map(|handle| self.handle(handle)).transpose()?;
        if let Some(open) = open.filter(|open| open.flags.write && open.file.ino == ino) {
            open.locks.check()?;
            self.note_write(&open);
            let mut state = open.file.state.lock();
            state.truncate(size, &self.writing(&open));
            open.writes.wrote(state.seq);
            return Ok(());
        }
        let flags = OpenFlags { write: true, truncate: size == 0, ..OpenFlags::default() };
        let opened = self.open(caller, ino, flags).await?;
        let open = self.handles.lock().remove(&opened.handle).expect("opened just now");
        if size != 0 {
            open.file.state.lock().truncate(size, &self.writing(&open));
        }
        // A caller that stops waiting must not leave the handle behind.
        let shared = self.clone();
        let closing = tokio::spawn(async move {
            let committed = shared.commit(&open.file, Vec::new()).await;
            committed.and(shared.detach(&open).await)
        });
        closing.await.map_err(|failure| FsError::Unavailable(failure.to_string()))?
    }

    /// What the storage nodes can hold, or could when they last said so.
    async fn store_space(&self) -> StoreSpace {
        if let Some(space) = self.chunks.cache().store().space().await {
            *self.space.lock() = space;
        }
        *self.space.lock()
    }
}
