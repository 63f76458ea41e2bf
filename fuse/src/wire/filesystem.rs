//! What a filesystem must answer: one method per operation of the protocol.

use std::ffi::OsStr;
use std::future::{Future, ready};
use std::sync::OnceLock;

use tokio::sync::OwnedRwLockReadGuard;

use super::abi;
use super::interrupt::Interrupt;
use super::notify::Notifier;
use super::reply::{
    AttributesFor, Created, Data, DirectoryEntries, Entry, IoctlResult, LockFound, Offset, Opened, Ready, Statistics,
    Target, Written, Xattr,
};
use super::request::{
    CopyFileRange, Fallocate, Init, Ioctl, Lock, NewMode, Open, Read, Release, Rename, SetAttributes, Write,
};

/// An error number, as the caller of the system call will see it.
pub use rustix::io::Errno;

/// Who asks.
#[derive(Debug)]
pub struct Request {
    /// Names the request in the protocol and in logs.
    pub unique: u64,
    /// Filesystem uid of the caller.
    pub uid: u32,
    /// Filesystem gid of the caller.
    pub gid: u32,
    /// Thread id of the caller; 0 when the kernel itself asks (write-back, read-ahead).
    pub pid: u32,
    /// Given back when the kernel has the answer.
    pub until_answered: OnceLock<OwnedRwLockReadGuard<()>>,
    /// Fires when the caller was signalled. A killed process does not die before its answer, so
    /// whatever may wait long should give up (`EINTR`) when this fires.
    pub interrupt: Interrupt,
}

impl Request {
    /// Whether somebody read it before us and did not answer: what it asks for may be done already.
    pub fn is_resent(&self) -> bool {
        self.unique & abi::UNIQUE_RESEND != 0
    }
}

/// A filesystem. Methods run side by side, on the session's threads until they first wait and on
/// tokio's afterwards, so they must not block for long without awaiting. A method that panics is
/// answered EIO.
///
/// A method left out answers ENOSYS. The kernel remembers that for the life of the mount and then
/// does without: it takes `open`, `flush` and `access` as granted, and tells callers EOPNOTSUPP for
/// extended attributes and fallocate. `fsync` has no default because ENOSYS there means success.
///
/// Every [`Entry`] answered, in listings too, is one *lookup* of its inode, which must stay
/// valid until `forget` has taken all its lookups back.
pub trait Filesystem: Send + Sync + 'static {
    /// The mount is ready; `kernel` is what the two sides agreed on, `notifier` the way to tell the
    /// kernel what has changed. No other method runs before.
    fn init(&self, kernel: &Init, notifier: Notifier) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (kernel, notifier);
        ready(Ok(()))
    }

    /// The mount is gone. Handles not released and lookups not forgotten are void.
    fn destroy(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// The inode called `name` in directory `parent`.
    fn lookup(&self, request: &Request, parent: u64, name: &OsStr)
    -> impl Future<Output = Result<Entry, Errno>> + Send;

    /// The kernel drops `lookups` lookups of `inode`. Must be quick: readers call it themselves.
    fn forget(&self, inode: u64, lookups: u64) {
        let _ = (inode, lookups);
    }

    /// Attributes of `inode`, asked through an open file where `handle` is given.
    fn getattr(
        &self,
        request: &Request,
        inode: u64,
        handle: Option<u64>,
    ) -> impl Future<Output = Result<AttributesFor, Errno>> + Send;

    /// Changes attributes (chmod, chown, truncate, utimensat) and returns them all.
    fn setattr(
        &self,
        request: &Request,
        inode: u64,
        set: SetAttributes,
    ) -> impl Future<Output = Result<AttributesFor, Errno>> + Send {
        let _ = (request, inode, set);
        ready(Err(Errno::NOSYS))
    }

    /// The target of a symbolic link.
    fn readlink(&self, request: &Request, inode: u64) -> impl Future<Output = Result<Target, Errno>> + Send {
        let _ = (request, inode);
        ready(Err(Errno::NOSYS))
    }

    /// Makes a file, device node, pipe or socket.
    fn mknod(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
        device: u32,
    ) -> impl Future<Output = Result<Entry, Errno>> + Send {
        let _ = (request, parent, name, mode, device);
        ready(Err(Errno::NOSYS))
    }

    /// Makes a directory.
    fn mkdir(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
    ) -> impl Future<Output = Result<Entry, Errno>> + Send {
        let _ = (request, parent, name, mode);
        ready(Err(Errno::NOSYS))
    }

    /// Removes a name that is not a directory's.
    fn unlink(&self, request: &Request, parent: u64, name: &OsStr) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, parent, name);
        ready(Err(Errno::NOSYS))
    }

    /// Removes an empty directory.
    fn rmdir(&self, request: &Request, parent: u64, name: &OsStr) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, parent, name);
        ready(Err(Errno::NOSYS))
    }

    /// Makes a symbolic link.
    fn symlink(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        target: &OsStr,
    ) -> impl Future<Output = Result<Entry, Errno>> + Send {
        let _ = (request, parent, name, target);
        ready(Err(Errno::NOSYS))
    }

    /// Renames `rename.name` in `parent`; EINVAL for flags that are not supported.
    fn rename(&self, request: &Request, parent: u64, rename: Rename) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, parent, rename);
        ready(Err(Errno::NOSYS))
    }

    /// One more name for `inode`.
    fn link(
        &self,
        request: &Request,
        inode: u64,
        new_parent: u64,
        new_name: &OsStr,
    ) -> impl Future<Output = Result<Entry, Errno>> + Send {
        let _ = (request, inode, new_parent, new_name);
        ready(Err(Errno::NOSYS))
    }

    /// Opens a file. `O_CREAT` and `O_EXCL` are already dealt with; `O_TRUNC` is not.
    fn open(&self, request: &Request, inode: u64, open: Open) -> impl Future<Output = Result<Opened, Errno>> + Send {
        let _ = (request, inode, open);
        ready(Err(Errno::NOSYS))
    }

    /// Makes a file and opens it.
    fn create(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
        open: Open,
    ) -> impl Future<Output = Result<Created, Errno>> + Send {
        let _ = (request, parent, name, mode, open);
        ready(Err(Errno::NOSYS))
    }

    /// Makes a file without a name, as if in `parent`, and opens it (`O_TMPFILE`).
    fn tmpfile(
        &self,
        request: &Request,
        parent: u64,
        mode: NewMode,
        open: Open,
    ) -> impl Future<Output = Result<Created, Errno>> + Send {
        let _ = (request, parent, mode, open);
        ready(Err(Errno::NOSYS))
    }

    /// Reads. Less than `read.size` means end of file, whose rest the kernel fills with zeroes.
    fn read(&self, request: &Request, inode: u64, read: Read) -> impl Future<Output = Result<Data, Errno>> + Send {
        let _ = (request, inode, read);
        ready(Err(Errno::NOSYS))
    }

    /// Writes. The data may be kept: it is not copied again.
    fn write(
        &self,
        request: &Request,
        inode: u64,
        write: Write,
    ) -> impl Future<Output = Result<Written, Errno>> + Send {
        let _ = (request, inode, write);
        ready(Err(Errno::NOSYS))
    }

    /// A descriptor of the open file is closed (`close(2)` returns this error); there may be others.
    fn flush(
        &self,
        request: &Request,
        inode: u64,
        handle: u64,
        lock_owner: u64,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, handle, lock_owner);
        ready(Err(Errno::NOSYS))
    }

    /// The open file is gone; nobody sees the result.
    fn release(
        &self,
        request: &Request,
        inode: u64,
        release: Release,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, release);
        ready(Ok(()))
    }

    /// A lock that is in the way of this one; if none is, this one as an unlock.
    fn getlk(
        &self,
        request: &Request,
        inode: u64,
        lock: Lock,
    ) -> impl Future<Output = Result<LockFound, Errno>> + Send {
        let _ = (request, inode, lock);
        ready(Err(Errno::NOSYS))
    }

    /// Takes a lock or gives it back; with `wait`, once it can be had.
    fn setlk(
        &self,
        request: &Request,
        inode: u64,
        lock: Lock,
        wait: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, lock, wait);
        ready(Err(Errno::NOSYS))
    }

    /// Makes the file durable; its data and length only, when `data_only`.
    fn fsync(
        &self,
        request: &Request,
        inode: u64,
        handle: u64,
        data_only: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send;

    /// Opens a directory.
    fn opendir(&self, request: &Request, inode: u64, open: Open) -> impl Future<Output = Result<Opened, Errno>> + Send {
        let _ = (request, inode, open);
        ready(Ok(Opened::default()))
    }

    /// Lists a directory from `read.offset` on, until `entries` is full; nothing added means the end.
    fn readdir(
        &self,
        request: &Request,
        inode: u64,
        read: Read,
        entries: &mut DirectoryEntries,
    ) -> impl Future<Output = Result<(), Errno>> + Send;

    /// As `readdir`, with attributes. Without it, leave `DO_READDIRPLUS` out of the session's capabilities.
    fn readdirplus(
        &self,
        request: &Request,
        inode: u64,
        read: Read,
        entries: &mut DirectoryEntries,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, read, entries);
        ready(Err(Errno::NOSYS))
    }

    /// The open directory is gone.
    fn releasedir(
        &self,
        request: &Request,
        inode: u64,
        release: Release,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, release);
        ready(Ok(()))
    }

    /// Makes the directory's names durable.
    fn fsyncdir(
        &self,
        request: &Request,
        inode: u64,
        handle: u64,
        data_only: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send;

    /// Space and inodes, used and free.
    fn statfs(&self, request: &Request, inode: u64) -> impl Future<Output = Result<Statistics, Errno>> + Send {
        let _ = (request, inode);
        ready(Err(Errno::NOSYS))
    }

    /// Sets an extended attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    fn setxattr(
        &self,
        request: &Request,
        inode: u64,
        name: &OsStr,
        value: &[u8],
        flags: u32,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, name, value, flags);
        ready(Err(Errno::NOSYS))
    }

    /// An extended attribute's value, or its length where `size` is 0; see [`Xattr::fitting`].
    fn getxattr(
        &self,
        request: &Request,
        inode: u64,
        name: &OsStr,
        size: u32,
    ) -> impl Future<Output = Result<Xattr, Errno>> + Send {
        let _ = (request, inode, name, size);
        ready(Err(Errno::NOSYS))
    }

    /// The names of the extended attributes, each ended by a zero byte; see [`Xattr::fitting`].
    fn listxattr(&self, request: &Request, inode: u64, size: u32) -> impl Future<Output = Result<Xattr, Errno>> + Send {
        let _ = (request, inode, size);
        ready(Err(Errno::NOSYS))
    }

    /// Removes an extended attribute.
    fn removexattr(
        &self,
        request: &Request,
        inode: u64,
        name: &OsStr,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, name);
        ready(Err(Errno::NOSYS))
    }

    /// Checks permission (`R_OK`, `W_OK`, `X_OK`); not called under `default_permissions`.
    fn access(&self, request: &Request, inode: u64, mask: u32) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, mask);
        ready(Err(Errno::NOSYS))
    }

    /// Reserves, punches, zeroes or shifts space.
    fn fallocate(
        &self,
        request: &Request,
        inode: u64,
        fallocate: Fallocate,
    ) -> impl Future<Output = Result<(), Errno>> + Send {
        let _ = (request, inode, fallocate);
        ready(Err(Errno::NOSYS))
    }

    /// `SEEK_DATA` and `SEEK_HOLE`; the kernel does the rest itself.
    fn lseek(
        &self,
        request: &Request,
        inode: u64,
        handle: u64,
        offset: i64,
        whence: u32,
    ) -> impl Future<Output = Result<Offset, Errno>> + Send {
        let _ = (request, inode, handle, offset, whence);
        ready(Err(Errno::NOSYS))
    }

    /// Copies inside the filesystem; fewer bytes than asked may be done.
    fn copy_file_range(
        &self,
        request: &Request,
        inode: u64,
        copy: CopyFileRange,
    ) -> impl Future<Output = Result<Written, Errno>> + Send {
        let _ = (request, inode, copy);
        ready(Err(Errno::NOSYS))
    }

    /// An `ioctl(2)` that the kernel does not know.
    fn ioctl(
        &self,
        request: &Request,
        inode: u64,
        ioctl: Ioctl,
    ) -> impl Future<Output = Result<IoctlResult, Errno>> + Send {
        let _ = (request, inode, ioctl);
        ready(Err(Errno::NOTTY))
    }

    /// `poll(2)` on an open file; without it files are always ready.
    fn poll(
        &self,
        request: &Request,
        inode: u64,
        handle: u64,
        events: u32,
    ) -> impl Future<Output = Result<Ready, Errno>> + Send {
        let _ = (request, inode, handle, events);
        ready(Err(Errno::NOSYS))
    }
}
