//! The door: each operation of the kernel as one of the client library's.
//!
//! It keeps nothing that matters: inode numbers are the cluster's own (but for the root's, which the
//! kernel calls 1), handles are the library's. What it adds is who asks (with all groups), for how
//! long the kernel may believe an answer, and patience with interrupts.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use client::backend::{BlockStore, Metadata};
use client::fs::{Fallocate, FsError, Handle, OpenFlags, Seek, SetAttr};
use meta::{Attr, AttrChange, Caller, Ino, RenameHow};
use parking_lot::Mutex;

use crate::MountOptions;
use crate::changes::Changes;
use crate::errno::errno;
use crate::groups::Groups;
use crate::listing::Listings;
use crate::takeover::Inheritance;
use crate::told::Told;
use crate::translate;
use crate::wire::abi::ROOT;
use crate::wire::{
    AttributesFor, Created, Data, DirectoryEntries, Entry, Errno, Filesystem, Interrupt, LockFound, Notifier, Offset,
    Opened, Request, Statistics, Target, Written, Xattr, request,
};

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// A volume behind a mount.
pub(crate) struct Door<M, B> {
    pub(crate) fs: Arc<client::fs::Filesystem<M, B>>,
    pub(crate) ttl: Duration,
    pub(crate) grace: Duration,
    groups: Groups,
    pub(crate) listings: Listings,
    pub(crate) told: Arc<Told>,
    /// Handles that append, and who opened them; see `locks`.
    pub(crate) appending: Mutex<HashMap<Handle, Caller>>,
    /// How many operations that change something have ended; see [`Door::changing`].
    pub(crate) changes: Changes,
    pub(crate) inherited: Inheritance,
    agreed: Option<Agreed>,
    /// Whom everything is shown to belong to, if not to its owner.
    pub(crate) shown_as: (Option<u32>, Option<u32>),
}

/// Told what was agreed on with the kernel, before the kernel is.
pub(crate) type Agreed = Box<dyn Fn(&request::Init) + Send + Sync>;

impl<M: Metadata, B: BlockStore> Door<M, B> {
    pub(crate) fn new(
        fs: Arc<client::fs::Filesystem<M, B>>,
        options: &MountOptions,
        inherited: Inheritance,
        agreed: Option<Agreed>,
    ) -> Door<M, B> {
        let (ttl, grace) = (options.ttl, options.interrupt_grace);
        let told = Arc::new(Told::default());
        let forgetting = told.clone();
        fs.before_sharing(Arc::new(move || Box::pin(forgetting.clone().forget_lasting())));
        let (doubting, root) = (told.clone(), fs.root());
        fs.on_doubt(Arc::new(move |inos| doubting.doubt(inos, root)));
        Door {
            fs,
            ttl,
            grace,
            inherited,
            agreed,
            shown_as: options.shown_as,
            groups: Groups::default(),
            listings: Listings::new(ttl),
            told,
            appending: Mutex::default(),
            changes: Changes::default(),
        }
    }

    /// The library's result, or EINTR; see [`patiently`].
    pub(crate) async fn wait<T>(
        &self,
        request: &Request,
        operation: impl Future<Output = client::fs::Result<T>>,
    ) -> Result<T> {
        patiently(&request.interrupt, self.grace, operation).await?.map_err(|error| refuse(request, &error))
    }

    /// A name that is made.
    async fn make(
        &self,
        request: &Request,
        caller: &Caller,
        place: (u64, &[u8]),
        operation: impl Future<Output = client::fs::Result<Attr>>,
    ) -> Result<Entry> {
        let generation = self.fs.generation();
        let made = self.changing(request, operation).await;
        let attr = self.made(request, caller, place, made).await?;
        Ok(self.entry(request, place.0, &attr, generation).await)
    }

    /// Like [`Door::wait`], for what changes files or names. Before the kernel learns that it has
    /// ended, what was listed ahead is void: it may be older. (Flushing and closing change nothing more.)
    pub(crate) async fn changing<T>(
        &self,
        request: &Request,
        operation: impl Future<Output = client::fs::Result<T>>,
    ) -> Result<T> {
        let _change = self.changes.begin();
        let changed = self.wait(request, operation).await;
        if matches!(changed, Err(Errno::INTR)) {
            self.told.note_interrupted().await;
        }
        changed
    }

    pub(crate) fn caller(&self, request: &Request) -> Caller {
        self.groups.caller(request)
    }

    /// The cluster's number of the kernel's inode.
    pub(crate) fn ino(&self, inode: u64) -> Ino {
        if inode == ROOT { self.fs.root() } else { Ino(inode) }
    }

    /// The kernel's number of the cluster's inode.
    pub(crate) fn inode(&self, ino: Ino) -> u64 {
        if ino == self.fs.root() { ROOT } else { ino.0 }
    }
}

/// What `operation` gives, unless the caller is interrupted and it takes longer than `grace` from
/// then on: interval timers interrupt all the time, and their programs expect files to just work.
async fn patiently<T>(interrupt: &Interrupt, grace: Duration, operation: impl Future<Output = T>) -> Result<T> {
    let out_of_patience = async {
        interrupt.fired().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        biased;
        done = operation => Ok(done),
        () = out_of_patience => Err(Errno::INTR),
    }
}

/// The error number for what went wrong. What is nobody's fault here is worth a line in the log.
pub(crate) fn refuse(request: &Request, error: &FsError) -> Errno {
    if matches!(error, FsError::Corrupt(_) | FsError::Unavailable(_)) {
        tracing::warn!(unique = request.unique, %error, "an operation failed");
    }
    errno(error)
}

impl<M: Metadata, B: BlockStore> Filesystem for Door<M, B> {
    async fn init(&self, agreed: &request::Init, notifier: Notifier) -> Result<()> {
        if let Some(told) = &self.agreed {
            told(agreed);
        }
        // What a process before this one told of names may not be so.
        if self.told.connect(notifier) { Ok(()) } else { Err(Errno::BUSY) }
    }

    async fn destroy(&self) {
        if let Err(error) = self.fs.sync_all().await {
            tracing::warn!(%error, "not everything written could be committed at the unmount");
        }
    }

    async fn lookup(&self, request: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        let (caller, generation) = (self.caller(request), self.fs.generation());
        match self.wait(request, self.fs.lookup(&caller, self.ino(parent), name.as_bytes())).await {
            Err(Errno::NOENT) => match self.name_ttl(request, parent, generation).await {
                Duration::ZERO => Err(Errno::NOENT),
                name_ttl => Ok(Entry::absent(name_ttl)),
            },
            found => Ok(self.entry(request, parent, &found?, generation).await),
        }
    }

    fn forget(&self, inode: u64, lookups: u64) {
        let ino = self.ino(inode);
        self.told.forget(ino);
        self.fs.forget(ino, lookups);
    }

    async fn getattr(&self, request: &Request, inode: u64, handle: Option<u64>) -> Result<AttributesFor> {
        if let Some(handle) = handle.map(Handle) {
            // The kernel asks before it reads from its own pages.
            match self.wait(request, self.fs.need_locks(handle)).await {
                Err(Errno::BADF) | Ok(()) => {}
                Err(lost) => return Err(lost),
            }
        }
        let (caller, ino, generation) = (self.caller(request), self.ino(inode), self.fs.generation());
        let attr = match self.wait(request, self.fs.getattr(&caller, ino)).await {
            Err(Errno::STALE) => self.told.removed(ino).ok_or(Errno::STALE)?,
            asked => asked?,
        };
        Ok(self.attributes(request, &attr, generation).await)
    }

    async fn setattr(&self, request: &Request, inode: u64, set: request::SetAttributes) -> Result<AttributesFor> {
        let caller = self.caller(request);
        let attrs = AttrChange {
            mode: set.mode.map(translate::permissions),
            uid: set.uid,
            gid: set.gid,
            atime: set.accessed.map(translate::set_time),
            mtime: set.modified.map(translate::set_time),
        };
        let (ino, handle) = (self.ino(inode), set.handle.map(Handle));
        if let (Some(handle), Some(_)) = (set.handle, set.size) {
            self.adopt(request, inode, handle, OpenFlags { write: true, ..OpenFlags::default() }).await?;
        }
        let change = SetAttr { size: set.size, attrs };
        let attr = match change == SetAttr::default() {
            true => self.wait(request, self.fs.getattr(&caller, ino)).await?,
            false => {
                let changed = self.changing(request, self.fs.setattr(&caller, ino, &change, handle)).await;
                self.changed(inode, changed)?
            }
        };
        if set.size.is_some() {
            self.inherited.mark(inode, set.handle.unwrap_or(0));
        }
        Ok(AttributesFor { attributes: self.shown_now(&attr), ttl: self.ttl })
    }

    async fn readlink(&self, request: &Request, inode: u64) -> Result<Target> {
        let caller = self.caller(request);
        Ok(Target(self.wait(request, self.fs.readlink(&caller, self.ino(inode))).await?.into()))
    }

    async fn mknod(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: request::NewMode,
        device: u32,
    ) -> Result<Entry> {
        let caller = self.caller(request);
        let (kind, mode) = (translate::kind(mode.mode).ok_or(Errno::INVAL)?, translate::new_mode(mode));
        let made = self.fs.mknod(&caller, self.ino(parent), name.as_bytes(), kind, mode, device);
        self.make(request, &caller, (parent, name.as_bytes()), made).await
    }

    async fn mkdir(&self, request: &Request, parent: u64, name: &OsStr, mode: request::NewMode) -> Result<Entry> {
        let caller = self.caller(request);
        let made = self.fs.mkdir(&caller, self.ino(parent), name.as_bytes(), translate::new_mode(mode));
        self.make(request, &caller, (parent, name.as_bytes()), made).await
    }

    async fn unlink(&self, request: &Request, parent: u64, name: &OsStr) -> Result<()> {
        let caller = self.caller(request);
        let removed = self.changing(request, self.fs.unlink(&caller, self.ino(parent), name.as_bytes())).await;
        self.removed(request, &[parent], removed)
    }

    async fn rmdir(&self, request: &Request, parent: u64, name: &OsStr) -> Result<()> {
        let caller = self.caller(request);
        let removed = self.changing(request, self.fs.rmdir(&caller, self.ino(parent), name.as_bytes())).await;
        self.removed(request, &[parent], removed)
    }

    async fn symlink(&self, request: &Request, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        let caller = self.caller(request);
        let made = self.fs.symlink(&caller, self.ino(parent), name.as_bytes(), target.as_bytes());
        self.make(request, &caller, (parent, name.as_bytes()), made).await
    }

    async fn rename(&self, request: &Request, parent: u64, rename: request::Rename) -> Result<()> {
        let how = match rename.flags {
            0 => RenameHow::Replace,
            1 => RenameHow::NoReplace,
            2 => RenameHow::Exchange,
            // A whiteout, which only overlay filesystems want.
            _ => return Err(Errno::INVAL),
        };
        let caller = self.caller(request);
        let from = (self.ino(parent), rename.name.as_bytes());
        let to = (self.ino(rename.new_parent), rename.new_name.as_bytes());
        let exchange = how == RenameHow::Exchange;
        if exchange && self.is_exchanged(request, &caller, to).await? {
            return Ok(());
        }
        let renamed = self.changing(request, self.fs.rename(&caller, from, to, how)).await;
        self.removed(request, &[parent, rename.new_parent], renamed)?;
        if exchange { self.exchanged(request, &caller, to).await } else { Ok(()) }
    }

    async fn link(&self, request: &Request, inode: u64, new_parent: u64, new_name: &OsStr) -> Result<Entry> {
        let caller = self.caller(request);
        let linked = self.fs.link(&caller, self.ino(inode), self.ino(new_parent), new_name.as_bytes());
        self.make(request, &caller, (new_parent, new_name.as_bytes()), linked).await
    }

    async fn open(&self, request: &Request, inode: u64, open: request::Open) -> Result<Opened> {
        let (caller, flags) = (self.caller(request), translate::open_flags(open.flags));
        let opening = self.fs.open(&caller, self.ino(inode), flags);
        let opened = match flags.truncate {
            true => self.changing(request, opening).await?,
            false => self.wait(request, opening).await?,
        };
        if flags.truncate {
            self.inherited.mark(inode, opened.handle.0);
        }
        Ok(self.opened(caller, &opened, flags))
    }

    async fn create(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: request::NewMode,
        open: request::Open,
    ) -> Result<Created> {
        let (caller, flags) = (self.caller(request), translate::open_flags(open.flags));
        let generation = self.fs.generation();
        let (mode, exclusive) = (translate::new_mode(mode), translate::is_exclusive(open.flags));
        let created = self.fs.create(&caller, self.ino(parent), name.as_bytes(), mode, flags, exclusive);
        let created = self.changing(request, created).await;
        let created = self.created(request, &caller, (parent, name.as_bytes()), flags, created).await?;
        let entry = self.entry(request, parent, &created.attr, generation).await;
        Ok(Created { entry, opened: self.opened(caller, &created, flags) })
    }

    async fn tmpfile(
        &self,
        request: &Request,
        parent: u64,
        mode: request::NewMode,
        open: request::Open,
    ) -> Result<Created> {
        self.create_unnamed(request, parent, mode, open).await
    }

    async fn read(&self, request: &Request, inode: u64, read: request::Read) -> Result<Data> {
        let flags = OpenFlags { write: false, ..translate::open_flags(read.flags) };
        self.adopt(request, inode, read.handle, OpenFlags { read: true, truncate: false, ..flags }).await?;
        let pieces = self.fs.read_pieces(Handle(read.handle), read.offset, read.size);
        self.wait(request, pieces).await.map(Data)
    }

    async fn write(&self, request: &Request, inode: u64, write: request::Write) -> Result<Written> {
        let (handle, append) = (write.handle, translate::open_flags(write.flags).append);
        self.adopt(request, inode, handle, OpenFlags { write: true, append, ..OpenFlags::default() }).await?;
        let written = match write.from_cache {
            true => self.changing(request, self.write_back(inode, write)).await,
            false => self.changing(request, self.fs.write(Handle(write.handle), write.offset, write.data)).await,
        };
        self.inherited.mark(inode, handle);
        self.appended(inode, Handle(handle));
        self.doubt_pages(inode, written).map(Written)
    }

    async fn flush(&self, request: &Request, inode: u64, handle: u64, lock_owner: u64) -> Result<()> {
        let flush = self.fs.flush(Handle(handle));
        let flushed = self.doubt_pages(inode, self.sync_with(request, inode, handle, false, flush).await);
        self.committed(handle);
        let close_locks = async {
            match self.is_strange(handle) {
                true => Ok(()),
                false => self.wait(request, self.fs.close_locks(Handle(handle), lock_owner)).await,
            }
        };
        flushed.and(close_locks.await)
    }

    async fn getlk(&self, request: &Request, inode: u64, lock: request::Lock) -> Result<LockFound> {
        self.adopt(request, inode, lock.handle, OpenFlags::reading()).await?;
        self.get_lock(request, lock).await
    }

    async fn setlk(&self, request: &Request, inode: u64, lock: request::Lock, wait: bool) -> Result<()> {
        self.adopt(request, inode, lock.handle, OpenFlags::reading()).await?;
        self.set_lock(request, inode, lock, wait).await
    }

    async fn release(&self, request: &Request, inode: u64, release: request::Release) -> Result<()> {
        let handle = Handle(release.handle);
        self.appending.lock().remove(&handle);
        if self.is_strange(release.handle) {
            return Ok(());
        }
        // Nobody waits for this, so nobody can be interrupted in it.
        self.doubt_pages(inode, self.fs.release(handle).await.map_err(|error| refuse(request, &error)))
    }

    async fn fsync(&self, request: &Request, inode: u64, handle: u64, _: bool) -> Result<()> {
        let sync = self.fs.fsync(Handle(handle));
        let synced = self.doubt_pages(inode, self.sync_with(request, inode, handle, true, sync).await);
        self.committed(handle);
        synced
    }

    async fn opendir(&self, request: &Request, inode: u64, _: request::Open) -> Result<Opened> {
        let generation = self.fs.generation();
        let flags = self.listing_flags(request, inode, generation).await;
        Ok(Opened { handle: self.listings.open(), flags })
    }

    async fn readdir(
        &self,
        request: &Request,
        inode: u64,
        read: request::Read,
        entries: &mut DirectoryEntries,
    ) -> Result<()> {
        self.list(request, inode, read, entries, false).await
    }

    async fn readdirplus(
        &self,
        request: &Request,
        inode: u64,
        read: request::Read,
        entries: &mut DirectoryEntries,
    ) -> Result<()> {
        self.list(request, inode, read, entries, true).await
    }

    async fn releasedir(&self, _: &Request, _: u64, release: request::Release) -> Result<()> {
        self.listings.close(release.handle);
        Ok(())
    }

    async fn fsyncdir(&self, request: &Request, inode: u64, _: u64, _: bool) -> Result<()> {
        self.sync_names(request, inode).await
    }

    async fn statfs(&self, request: &Request, _: u64) -> Result<Statistics> {
        let caller = self.caller(request);
        let space = self.wait(request, self.fs.statfs(&caller)).await?;
        Ok(translate::statistics(&space))
    }

    async fn setxattr(&self, request: &Request, inode: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        self.set_xattr(request, inode, name.as_bytes(), value, flags).await
    }

    async fn getxattr(&self, request: &Request, inode: u64, name: &OsStr, size: u32) -> Result<Xattr> {
        self.get_xattr(request, inode, name.as_bytes(), size).await
    }

    async fn listxattr(&self, request: &Request, inode: u64, size: u32) -> Result<Xattr> {
        self.list_xattr(request, inode, size).await
    }

    async fn removexattr(&self, request: &Request, inode: u64, name: &OsStr) -> Result<()> {
        self.remove_xattr(request, inode, name.as_bytes()).await
    }

    async fn fallocate(&self, request: &Request, inode: u64, fallocate: request::Fallocate) -> Result<()> {
        let writes = OpenFlags { write: true, ..OpenFlags::default() };
        self.adopt(request, inode, fallocate.handle, writes).await?;
        let how = Fallocate::from_mode(fallocate.mode as i32).map_err(|error| errno(&error))?;
        let handle = Handle(fallocate.handle);
        let done = self.changing(request, self.fs.fallocate(handle, how, fallocate.offset, fallocate.length)).await;
        self.inherited.mark(inode, fallocate.handle);
        done
    }

    async fn copy_file_range(&self, request: &Request, inode: u64, copy: request::CopyFileRange) -> Result<Written> {
        self.copy_range(request, inode, copy).await
    }

    async fn lseek(&self, request: &Request, inode: u64, handle: u64, offset: i64, whence: u32) -> Result<Offset> {
        self.adopt(request, inode, handle, OpenFlags::reading()).await?;
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let what = match whence {
            3 => Seek::Data,
            4 => Seek::Hole,
            _ => return Err(Errno::INVAL),
        };
        self.wait(request, self.fs.seek(Handle(handle), offset, what)).await.map(Offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interrupted_operation_may_still_end_within_the_grace_period() {
        let interrupt = Interrupt::default();
        interrupt.fire();
        let soon = async {
            tokio::task::yield_now().await;
            7
        };
        assert_eq!(patiently(&interrupt, Duration::from_secs(3600), soon).await, Ok(7));
        let never = std::future::pending::<()>();
        assert_eq!(patiently(&interrupt, Duration::from_millis(5), never).await, Err(Errno::INTR));
    }

    #[tokio::test]
    async fn without_an_interrupt_there_is_no_limit() {
        let (done, wait) = tokio::sync::oneshot::channel();
        let patient = tokio::spawn(async move { patiently(&Interrupt::default(), Duration::ZERO, wait).await });
        tokio::task::yield_now().await;
        done.send(7).unwrap();
        assert_eq!(patient.await.unwrap(), Ok(Ok(7)));
    }
}
