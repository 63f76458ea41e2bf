//! The namespace: finding, making, linking, renaming, removing and listing names.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chunk::name::{DirectoryKey, open_target, seal_name, seal_target};
use meta::{Attr, Caller, Denied, Ino, Kind, NewInode, Op, RenameHow, Reply, SealedName};

use super::error::{FsError, Result};
use super::{Filesystem, Shared, sealed_name, unexpected};
use crate::backend::{BlockStore, Metadata};

/// For how long at least a file whose last name was removed can be opened here: the kernel may have looked the
/// name up just before.
const LINGER_HERE: Duration = Duration::from_secs(1);

/// Mode bits for something new, and what its maker wants to be taken off them (`umask(2)`): which is so
/// unless the directory has an access list for what is made in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewMode {
    /// The bits asked for.
    pub mode: u16,
    /// Which of the low nine are not given.
    pub umask: u16,
}

impl From<u16> for NewMode {
    fn from(mode: u16) -> NewMode {
        NewMode { mode, umask: 0 }
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place: reading goes on after it. Always above 2, which leaves room for `.` and `..`.
    pub cookie: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub attr: Attr,
}

/// Some entries of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// In the order of their cookies.
    pub entries: Vec<Entry>,
    /// None follow these.
    pub end: bool,
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// Finds a name in a directory.
    ///
    /// # Errors
    /// `Denied(NotFound)`, and others of `lookup`'s.
    pub async fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        if self.shared.is_special_name(parent, name) {
            return self.shared.find_special(caller, parent, name).await;
        }
        if parent.is_in_trash() {
            return self.shared.find_thrown(caller, parent, name).await;
        }
        let sealed = self.shared.seal_name(parent, name)?;
        self.shared.look_attr(caller, Op::Lookup { parent, name: sealed }).await
    }

    /// The directory that a directory is in; of the root, itself.
    ///
    /// # Errors
    /// `Denied`.
    pub async fn parent(&self, caller: &Caller, ino: Ino) -> Result<Attr> {
        self.shared.look_attr(caller, Op::Parent { ino }).await
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// `Denied(Invalid)` if it is none.
    pub async fn readlink(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        match self.shared.look(caller, Op::ReadLink { ino }).await? {
            Reply::Target(sealed) => Ok(open_target(&self.shared.chunks.keys, &sealed)?),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `Denied(Exists)` and others.
    pub async fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: impl Into<NewMode>) -> Result<Attr> {
        let NewMode { mode, umask } = mode.into();
        let new = NewInode { kind: Kind::Directory, mode, umask, rdev: 0, target: Bytes::new() };
        self.shared.make(caller, parent, name, new).await
    }

    /// Makes a pipe, a socket, a device, or a regular file that is not opened.
    ///
    /// # Errors
    /// `Denied(Exists)` and others; `Invalid` for directories and links, which are made otherwise.
    pub async fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: impl Into<NewMode>,
        rdev: u32,
    ) -> Result<Attr> {
        if matches!(kind, Kind::Directory | Kind::Symlink) {
            return Err(FsError::Invalid);
        }
        let NewMode { mode, umask } = mode.into();
        let new = NewInode { kind, mode, umask, rdev, target: Bytes::new() };
        self.shared.make(caller, parent, name, new).await
    }

    /// Makes a symbolic link to `target`, at most 4095 bytes.
    ///
    /// # Errors
    /// `Denied(Exists)` and others; `NameTooLong`, and as POSIX has it `Denied(NotFound)` if
    /// `target` is empty.
    pub async fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        match target.len() {
            0 => return Err(FsError::Denied(Denied::NotFound)),
            len if len > meta::TARGET_MAX => return Err(FsError::NameTooLong),
            _ => {}
        }
        let target = seal_target(&self.shared.chunks.keys, target).into();
        let new = NewInode { kind: Kind::Symlink, mode: 0o777, umask: 0, rdev: 0, target };
        self.shared.make(caller, parent, name, new).await
    }

    /// Gives a file (no directory) another name; or its first, if it was made here without one and is open.
    ///
    /// # Errors
    /// `Denied(Exists)` and others.
    pub async fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let sealed = self.shared.seal_name(parent, name)?;
        let (shared, caller) = (self.shared.clone(), caller.clone());
        // Goes on even if the caller stops waiting: the last handle must not let go of what has a name by now.
        let linked = tokio::spawn(async move {
            let pinned = shared.pin(ino)?;
            let linked = shared.call_attr(&caller, Op::Link { ino, parent, name: sealed }).await;
            if let Some(file) = pinned
                && let Err(error) = shared.unpin(&file, &caller).await
            {
                tracing::warn!(ino = ino.0, %error, "a file that was closed while it was linked");
            }
            linked
        });
        linked.await.map_err(|failure| FsError::Unavailable(failure.to_string()))?
    }

    /// Removes a name. A file that loses its last one lives on while it is open here.
    ///
    /// # Errors
    /// `Denied(IsDirectory)` for directories, and others.
    pub async fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if parent.is_in_trash() {
            return self.shared.purge(caller, parent, name, false).await;
        }
        let sealed = self.shared.seal_name(parent, name)?;
        let unlink = Op::Unlink { parent, name: sealed, keep: true };
        match self.shared.remove(caller, unlink).await? {
            Reply::Unlinked { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `Denied(NotEmpty)` and others.
    pub async fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if parent.is_in_trash() {
            return self.shared.purge(caller, parent, name, true).await;
        }
        let name = self.shared.seal_name(parent, name)?;
        self.shared.call_unit(caller, Op::Rmdir { parent, name }).await
    }

    /// Renames. A file that is replaced lives on while it is open here.
    ///
    /// # Errors
    /// `Denied(Exists)` with [`RenameHow::NoReplace`], and others.
    pub async fn rename(
        &self,
        caller: &Caller,
        (from, from_name): (Ino, &[u8]),
        (to, to_name): (Ino, &[u8]),
        how: RenameHow,
    ) -> Result<()> {
        let shared = &self.shared;
        if from.is_in_trash() {
            return shared.restore(caller, (from, from_name), (to, to_name), how).await;
        }
        let (from_name, to_name) = (shared.seal_name(from, from_name)?, shared.seal_name(to, to_name)?);
        let rename = Op::Rename { from, from_name, to, to_name, how, keep: true };
        match shared.remove(caller, rename).await? {
            Reply::Renamed { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Entries after `cookie` (0: from the start), at most `max`, without `.` and `..`. Entries that
    /// are there all the while are listed once, whatever else is added or removed.
    ///
    /// # Errors
    /// `Denied(NotDirectory)` and others.
    pub async fn readdir(&self, caller: &Caller, ino: Ino, mut cookie: u64, max: u32) -> Result<Entries> {
        if let Some(entries) = self.shared.list_special(caller, ino, cookie).await? {
            return Ok(entries);
        }
        if ino.is_in_trash() {
            return self.list_trash(caller, ino, cookie, max).await;
        }
        let key = DirectoryKey::new(&self.shared.chunks.keys, ino.now().0);
        loop {
            let max = max.clamp(1, meta::ENTRIES_MAX);
            let (listed, end) = match self.shared.call(caller, Op::ReadDir { ino, cookie, max }).await? {
                Reply::Entries { entries, end } => (entries, end),
                other => return Err(unexpected(&other)),
            };
            cookie = listed.last().map_or(cookie, |entry| entry.cookie);
            let entries: Vec<Entry> = listed
                .into_iter()
                .filter_map(|entry| {
                    let name = key.open(entry.name.as_bytes()).ok().filter(|name| check_name(name).is_ok());
                    let name = name.filter(|name| !self.shared.is_special_name(ino, name));
                    if name.is_none() {
                        tracing::warn!(directory = ino.0, cookie = entry.cookie, "a name that can't be opened");
                    }
                    Some(Entry { cookie: entry.cookie, name: name?, attr: self.shared.localize(entry.attr) })
                })
                .collect();
            if end || !entries.is_empty() {
                return Ok(Entries { entries, end });
            }
        }
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    pub(super) fn seal_name(&self, parent: Ino, name: &[u8]) -> Result<SealedName> {
        check_name(name)?;
        if self.is_special_name(parent, name) {
            return Err(Denied::ReadOnly.into());
        }
        sealed_name(seal_name(&self.chunks.keys, parent.now().0, name))
    }

    async fn make(&self, caller: &Caller, parent: Ino, name: &[u8], new: NewInode) -> Result<Attr> {
        let sealed = self.seal_name(parent, name)?;
        let create = Op::Create { parent, name: sealed, new, exclusive: true };
        match self.call(caller, create).await? {
            Reply::Created { attr, .. } => Ok(attr),
            other => Err(unexpected(&other)),
        }
    }

    /// Does `op`, which may take the last name off an inode and then keeps it as an orphan. If that
    /// is neither open nor being opened here, it is let go in the background. Goes on even if the
    /// caller stops waiting.
    async fn remove(self: &Arc<Self>, caller: &Caller, op: Op) -> Result<Reply> {
        let (shared, caller) = (self.clone(), caller.clone());
        let parent = match &op {
            Op::Rename { to, .. } => *to,
            Op::Unlink { parent, .. } => *parent,
            _ => unreachable!("nothing else takes names off files"),
        };
        // Nobody elsewhere can have found a name that is only known here, if it has been for a while and is until
        // the name is gone.
        let linger = self.options.linger;
        let alone = self.metadata.kept_for(parent).is_some_and(|kept| kept >= linger);
        let generation = self.metadata.generation();
        let mut removed = Box::pin(async move {
            let reply = shared.call(&caller, op).await?;
            let linger = match alone && shared.metadata.generation() == generation {
                true => LINGER_HERE.min(linger),
                false => linger,
            };
            match &reply {
                Reply::Unlinked { ino, nlink } => shared.note_removed(&caller, *ino, *nlink, linger).await,
                Reply::Renamed { moved, replaced } => {
                    if let Some((ino, nlink)) = replaced {
                        shared.note_removed(&caller, *ino, *nlink, linger).await;
                    }
                    shared.localize(*moved);
                }
                _ => {}
            }
            Ok(reply)
        });
        // Under a lease it waits for nothing.
        if let Poll::Ready(removed) = futures::poll!(&mut removed) {
            return removed;
        }
        tokio::spawn(removed).await.map_err(|failure| FsError::Unavailable(failure.to_string()))?
    }

    async fn note_removed(self: &Arc<Self>, caller: &Caller, ino: Ino, nlink: u32, linger: Duration) {
        let gone = {
            // No open may be attached between looking and taking note.
            let mut opening = self.opening.lock();
            let gone = !self.lost_name(ino, nlink) && nlink == 0;
            if gone {
                opening.lose(ino, caller, Instant::now() + linger);
            }
            gone
        };
        if !gone {
            return;
        }
        if let Some(closed) = self.file(ino) {
            // It was closed with something that could not be committed.
            self.give_up(&closed).await;
        }
        self.settle_lost();
    }

    /// Takes note that an inode lost a name; says whether it is open here.
    fn lost_name(&self, ino: Ino, nlink: u32) -> bool {
        let files = self.files.lock();
        let Some((file, handles)) = files.get(&ino) else { return false };
        let mut state = file.state.lock();
        // Older attributes that are on their way must not bring the name back.
        state.attr.version += 1;
        state.attr.nlink = nlink;
        state.fetched = None;
        (state.orphan, state.borrowed) = (nlink == 0, false);
        *handles > 0
    }
}

/// A name that a directory can have.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" => Err(FsError::Denied(Denied::NotFound)),
        b"." | b".." => Err(FsError::Invalid),
        name if name.len() > meta::NAME_MAX => Err(FsError::NameTooLong),
        name if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(FsError::Invalid),
        _ => Ok(()),
    }
}
