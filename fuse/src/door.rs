//! The door: each operation of the kernel as one of the client library's.
//!
//! It keeps nothing that matters: inode numbers are the cluster's own (but for the root's, which the
//! kernel calls 1), handles are the library's. What it adds is who asks (with all groups), for how
//! long the kernel may believe an answer, and patience with interrupts.

mod list;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::backend::{BlockStore, Metadata};
use client::fs::{Fallocate, FsError, Handle, OpenFlags, Seek, SetAttr};
use meta::{Attr, AttrChange, Caller, Ino, RenameHow, XattrHow};
use parking_lot::Mutex;

use crate::changes::Changes;
use crate::errno::errno;
use crate::groups::Groups;
use crate::listing::Listings;
use crate::told::Told;
use crate::translate;
use crate::wire::abi::{ROOT, open_flag};
use crate::wire::{
    AttributesFor, Created, Data, DirectoryEntries, Entry, Errno, Filesystem, Interrupt, LockFound, Notifier, Offset,
    Opened, Request, Statistics, Target, Written, Xattr, request,
};

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// A volume behind a mount.
#[derive(Debug)]
pub(crate) struct Door<M, B> {
    pub(crate) fs: Arc<client::fs::Filesystem<M, B>>,
    ttl: Duration,
    pub(crate) grace: Duration,
    groups: Groups,
    listings: Listings,
    pub(crate) told: Arc<Told>,
    /// Handles that append, and who opened them; see `locks`.
    pub(crate) appending: Mutex<HashMap<Handle, Caller>>,
    /// How many operations that change something have ended; see [`Door::changing`].
    changes: Changes,
}

impl<M: Metadata, B: BlockStore> Door<M, B> {
    /// `ttl`: for how long the kernel may use attributes without asking that others may change. `grace`: how long
    /// an interrupted operation may take to end by itself.
    pub(crate) fn new(fs: Arc<client::fs::Filesystem<M, B>>, ttl: Duration, grace: Duration) -> Door<M, B> {
        let told = Arc::new(Told::default());
        let forgetting = told.clone();
        fs.before_sharing(Arc::new(move || Box::pin(forgetting.clone().forget_lasting())));
        Door {
            fs,
            ttl,
            grace,
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

    /// Like [`Door::wait`], for what changes files or names. Before the kernel learns that it has
    /// ended, what was listed ahead is void: it may be older. (Flushing and closing change nothing more.)
    async fn changing<T>(
        &self,
        request: &Request,
        operation: impl Future<Output = client::fs::Result<T>>,
    ) -> Result<T> {
        let _change = self.changes.begin();
        self.wait(request, operation).await
    }

    /// A name that was made in the directory `parent`.
    async fn made(
        &self,
        request: &Request,
        parent: u64,
        operation: impl Future<Output = client::fs::Result<Attr>>,
    ) -> Result<Entry> {
        let generation = self.fs.generation();
        let attr = self.changing(request, operation).await?;
        Ok(self.entry(request, parent, &attr, generation).await)
    }

    /// After a failure to write, the kernel's cached pages may hold what is lost: the next open drops them.
    fn doubt_pages<T>(&self, inode: u64, written: Result<T>) -> Result<T> {
        if written.is_err() {
            self.told.doubt_pages(self.ino(inode));
        }
        written
    }

    fn caller(&self, request: &Request) -> Caller {
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

    /// An answer that names an inode in the directory `parent`, asked in that generation of leases.
    async fn entry(&self, request: &Request, parent: u64, attr: &Attr, generation: u64) -> Entry {
        let name_ttl = self.name_ttl(request, parent, generation).await;
        let AttributesFor { attributes, ttl } = self.attributes(request, attr, generation).await;
        // Inode numbers are never used again, so one generation is enough.
        Entry { inode: attributes.inode, generation: 0, attributes, attributes_ttl: ttl, name_ttl }
    }

    async fn attributes(&self, request: &Request, attr: &Attr, generation: u64) -> AttributesFor {
        self.told.tell(attr);
        let inode = self.inode(attr.ino);
        let lasts = self.lasts(request, attr.ino, generation).await;
        if lasts > self.ttl {
            self.told.tell_lasting(inode);
        }
        AttributesFor { attributes: translate::attributes(inode, attr), ttl: lasts.max(self.ttl) }
    }

    /// How long a name in `parent`, there or not, can't be changed by others. Where they can, it is looked up
    /// every time: an old one would lead to a file that is somebody's backup by now.
    async fn name_ttl(&self, request: &Request, parent: u64, generation: u64) -> Duration {
        match self.told.names_expire() {
            true => self.lasts(request, self.ino(parent), generation).await,
            false => Duration::ZERO,
        }
    }

    /// How long others can't change what this mount has a lease on. They can't before the kernel has the
    /// answer that says so and was made to forget it.
    async fn lasts(&self, request: &Request, ino: Ino, generation: u64) -> Duration {
        if self.fs.lasts(ino, generation).is_zero() {
            return Duration::ZERO;
        }
        self.told.begin_telling(request).await;
        self.fs.lasts(ino, generation)
    }

    /// Close-to-open: who opens a file sees what was written before. Cached pages of that content
    /// are kept; cached attributes of another, such as its length, must go.
    fn opened(&self, caller: Caller, opened: &client::fs::Opened, flags: OpenFlags) -> Opened {
        if flags.append {
            self.appending.lock().insert(opened.handle, caller);
        }
        let (attributes_changed, pages_good) = self.told.open(&opened.attr);
        if attributes_changed {
            self.told.drop_attributes(self.inode(opened.attr.ino));
        }
        // The kernel would keep what is appended where it believes the end to be.
        let direct = if flags.append { open_flag::DIRECT_IO } else { 0 };
        Opened { handle: opened.handle.0, flags: direct | if pages_good { open_flag::KEEP_CACHE } else { 0 } }
    }

    /// After a commit: times and space that the kernel was told before were estimates, and would be
    /// seen to change later though nothing does.
    fn committed(&self, handle: u64) {
        let Ok(attr) = self.fs.committed_attr(Handle(handle)) else { return };
        if self.told.commit(&attr) {
            self.told.drop_attributes(self.inode(attr.ino));
        }
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
    async fn init(&self, _: &request::Init, notifier: Notifier) -> Result<()> {
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
        self.told.forget(ino, inode);
        self.fs.forget(ino, lookups);
    }

    async fn getattr(&self, request: &Request, inode: u64, _: Option<u64>) -> Result<AttributesFor> {
        let (caller, ino, generation) = (self.caller(request), self.ino(inode), self.fs.generation());
        let attr = match self.wait(request, self.fs.getattr(&caller, ino)).await {
            Err(Errno::STALE) => self.told.removed(ino).ok_or(Errno::STALE)?,
            asked => asked?,
        };
        Ok(self.attributes(request, &attr, generation).await)
    }

    async fn setattr(&self, request: &Request, inode: u64, set: request::SetAttributes) -> Result<AttributesFor> {
        let (caller, generation) = (self.caller(request), self.fs.generation());
        let attrs = AttrChange {
            mode: set.mode.map(translate::permissions),
            uid: set.uid,
            gid: set.gid,
            atime: set.accessed.map(translate::set_time),
            mtime: set.modified.map(translate::set_time),
        };
        let (ino, handle) = (self.ino(inode), set.handle.map(Handle));
        let change = SetAttr { size: set.size, attrs };
        let attr = match change == SetAttr::default() {
            true => self.wait(request, self.fs.getattr(&caller, ino)).await?,
            false => self.changing(request, self.fs.setattr(&caller, ino, &change, handle)).await?,
        };
        Ok(self.attributes(request, &attr, generation).await)
    }

    async fn readlink(&self, request: &Request, inode: u64) -> Result<Target> {
        let caller = self.caller(request);
        Ok(Target(self.wait(request, self.fs.readlink(&caller, self.ino(inode))).await?.into()))
    }

    async fn mknod(&self, request: &Request, parent: u64, name: &OsStr, mode: u32, device: u32) -> Result<Entry> {
        let (caller, inode, parent) = (self.caller(request), parent, self.ino(parent));
        let (kind, permissions) = (translate::kind(mode).ok_or(Errno::INVAL)?, translate::permissions(mode));
        let made = self.fs.mknod(&caller, parent, name.as_bytes(), kind, permissions, device);
        self.made(request, inode, made).await
    }

    async fn mkdir(&self, request: &Request, parent: u64, name: &OsStr, mode: u32) -> Result<Entry> {
        let (caller, inode, parent) = (self.caller(request), parent, self.ino(parent));
        let made = self.fs.mkdir(&caller, parent, name.as_bytes(), translate::permissions(mode));
        self.made(request, inode, made).await
    }

    async fn unlink(&self, request: &Request, parent: u64, name: &OsStr) -> Result<()> {
        let caller = self.caller(request);
        self.changing(request, self.fs.unlink(&caller, self.ino(parent), name.as_bytes())).await
    }

    async fn rmdir(&self, request: &Request, parent: u64, name: &OsStr) -> Result<()> {
        let caller = self.caller(request);
        self.changing(request, self.fs.rmdir(&caller, self.ino(parent), name.as_bytes())).await
    }

    async fn symlink(&self, request: &Request, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        let (caller, inode, parent) = (self.caller(request), parent, self.ino(parent));
        let made = self.fs.symlink(&caller, parent, name.as_bytes(), target.as_bytes());
        self.made(request, inode, made).await
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
        self.changing(request, self.fs.rename(&caller, from, to, how)).await
    }

    async fn link(&self, request: &Request, inode: u64, new_parent: u64, new_name: &OsStr) -> Result<Entry> {
        let (caller, parent) = (self.caller(request), self.ino(new_parent));
        let linked = self.fs.link(&caller, self.ino(inode), parent, new_name.as_bytes());
        self.made(request, new_parent, linked).await
    }

    async fn open(&self, request: &Request, inode: u64, open: request::Open) -> Result<Opened> {
        let (caller, flags) = (self.caller(request), translate::open_flags(open.flags));
        let opening = self.fs.open(&caller, self.ino(inode), flags);
        let opened = match flags.truncate {
            true => self.changing(request, opening).await?,
            false => self.wait(request, opening).await?,
        };
        Ok(self.opened(caller, &opened, flags))
    }

    async fn create(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        open: request::Open,
    ) -> Result<Created> {
        let (caller, flags, generation) =
            (self.caller(request), translate::open_flags(open.flags), self.fs.generation());
        let (inode, parent) = (parent, self.ino(parent));
        let (mode, exclusive) = (translate::permissions(mode), translate::is_exclusive(open.flags));
        let created = self.fs.create(&caller, parent, name.as_bytes(), mode, flags, exclusive);
        let created = self.changing(request, created).await?;
        let entry = self.entry(request, inode, &created.attr, generation).await;
        Ok(Created { entry, opened: self.opened(caller, &created, flags) })
    }

    async fn read(&self, request: &Request, _: u64, read: request::Read) -> Result<Data> {
        let data = self.wait(request, self.fs.read(Handle(read.handle), read.offset, read.size)).await?;
        Ok(data.into())
    }

    async fn write(&self, request: &Request, inode: u64, write: request::Write) -> Result<Written> {
        let handle = Handle(write.handle);
        let written = match write.from_cache {
            true => self.changing(request, self.write_back(inode, write)).await,
            false => self.changing(request, self.fs.write(Handle(write.handle), write.offset, write.data)).await,
        };
        self.appended(inode, handle);
        self.doubt_pages(inode, written).map(Written)
    }

    async fn flush(&self, request: &Request, inode: u64, handle: u64, lock_owner: u64) -> Result<()> {
        let flushed = self.doubt_pages(inode, self.wait(request, self.fs.flush(Handle(handle))).await);
        self.committed(handle);
        flushed.and(self.wait(request, self.fs.close_locks(Handle(handle), lock_owner)).await)
    }

    async fn getlk(&self, request: &Request, _: u64, lock: request::Lock) -> Result<LockFound> {
        self.get_lock(request, lock).await
    }

    async fn setlk(&self, request: &Request, inode: u64, lock: request::Lock, wait: bool) -> Result<()> {
        self.set_lock(request, inode, lock, wait).await
    }

    async fn release(&self, request: &Request, inode: u64, release: request::Release) -> Result<()> {
        let handle = Handle(release.handle);
        self.appending.lock().remove(&handle);
        // Nobody waits for this, so nobody can be interrupted in it.
        self.doubt_pages(inode, self.fs.release(handle).await.map_err(|error| refuse(request, &error)))
    }

    async fn fsync(&self, request: &Request, inode: u64, handle: u64, _: bool) -> Result<()> {
        let synced = self.doubt_pages(inode, self.wait(request, self.fs.fsync(Handle(handle))).await);
        self.committed(handle);
        synced
    }

    async fn opendir(&self, _: &Request, _: u64, _: request::Open) -> Result<Opened> {
        Ok(Opened { handle: self.listings.open(), flags: 0 })
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

    async fn fsyncdir(&self, request: &Request, _: u64, _: u64, _: bool) -> Result<()> {
        self.wait(request, self.fs.sync_names()).await
    }

    async fn statfs(&self, request: &Request, _: u64) -> Result<Statistics> {
        let caller = self.caller(request);
        let space = self.wait(request, self.fs.statfs(&caller)).await?;
        Ok(translate::statistics(&space))
    }

    async fn setxattr(&self, request: &Request, inode: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        refuse_acl(name)?;
        let how = match flags {
            0 => XattrHow::Set,
            1 => XattrHow::Create,
            2 => XattrHow::Replace,
            _ => return Err(Errno::INVAL),
        };
        let caller = self.caller(request);
        self.wait(request, self.fs.setxattr(&caller, self.ino(inode), name.as_bytes(), value, how)).await
    }

    async fn getxattr(&self, request: &Request, inode: u64, name: &OsStr, size: u32) -> Result<Xattr> {
        refuse_acl(name)?;
        let caller = self.caller(request);
        let value = self.wait(request, self.fs.getxattr(&caller, self.ino(inode), name.as_bytes())).await?;
        Xattr::fitting(value, size)
    }

    async fn listxattr(&self, request: &Request, inode: u64, size: u32) -> Result<Xattr> {
        let caller = self.caller(request);
        let names = self.wait(request, self.fs.listxattr(&caller, self.ino(inode))).await?;
        let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Xattr::fitting(Bytes::from(list), size)
    }

    async fn removexattr(&self, request: &Request, inode: u64, name: &OsStr) -> Result<()> {
        refuse_acl(name)?;
        let caller = self.caller(request);
        self.wait(request, self.fs.removexattr(&caller, self.ino(inode), name.as_bytes())).await
    }

    async fn fallocate(&self, request: &Request, _: u64, fallocate: request::Fallocate) -> Result<()> {
        let how = Fallocate::from_mode(fallocate.mode as i32).map_err(|error| errno(&error))?;
        let handle = Handle(fallocate.handle);
        self.changing(request, self.fs.fallocate(handle, how, fallocate.offset, fallocate.length)).await
    }

    async fn lseek(&self, request: &Request, _: u64, handle: u64, offset: i64, whence: u32) -> Result<Offset> {
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let what = match whence {
            3 => Seek::Data,
            4 => Seek::Hole,
            _ => return Err(Errno::INVAL),
        };
        self.wait(request, self.fs.seek(Handle(handle), offset, what)).await.map(Offset)
    }
}

/// Access control lists are not kept, and must not look as if they were.
fn refuse_acl(name: &OsStr) -> Result<()> {
    if name.as_bytes().starts_with(b"system.posix_acl_") { Err(Errno::OPNOTSUPP) } else { Ok(()) }
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
