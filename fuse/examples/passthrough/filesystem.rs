//! A plain passthrough filesystem: every operation is the same operation on a real directory.
//!
//! The system calls block, on the session's reader threads.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fuse::wire::request::{
    CopyFileRange, Fallocate, NewMode, Open, Read, Release, Rename, SetAttributes, SetTime, Timestamp, Write,
};
use fuse::wire::{
    Attributes, AttributesFor, Created, Data, DirectoryEntries, Entry, Errno, Filesystem, Offset, Opened, Request,
    Statistics, Target, Written, Xattr,
};
use parking_lot::RwLock;
use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Stat, Timespec,
    Timestamps, Uid, XattrFlags,
};

use super::inodes::Inodes;

/// How long the kernel may cache names and attributes.
const TTL: Duration = Duration::from_secs(1);

/// The filesystem over one source directory.
pub(crate) struct Passthrough {
    inodes: Inodes,
    handles: RwLock<HashMap<u64, Arc<OwnedFd>>>,
    next_handle: AtomicU64,
}

pub(crate) type Result<T> = std::result::Result<T, Errno>;

impl Passthrough {
    /// Opens `source`. Sets the process's umask to 0 (the kernel has already applied the caller's)
    /// and its limit of open files as high as it may go.
    pub(crate) fn new(source: &Path) -> Result<Passthrough> {
        // The other half is for files that are open.
        Passthrough::holding(source, raise_open_files() / 2)
    }

    /// As [`Passthrough::new`], with descriptors for this many inodes that are not open.
    pub(crate) fn holding(source: &Path, held_max: usize) -> Result<Passthrough> {
        rustix::process::umask(Mode::empty());
        let root = rustix::fs::open(source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let inodes = Inodes::new(root, held_max)?;
        Ok(Passthrough { inodes, handles: RwLock::default(), next_handle: AtomicU64::new(1) })
    }

    fn inode(&self, number: u64) -> Result<Arc<OwnedFd>> {
        self.inodes.get(number)
    }

    fn handle(&self, number: u64) -> Result<Arc<OwnedFd>> {
        self.handles.read().get(&number).cloned().ok_or(Errno::BADF)
    }

    fn keep(&self, descriptor: OwnedFd) -> Opened {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(handle, Arc::new(descriptor));
        Opened { handle, flags: 0 }
    }

    /// Looks `name` up in the directory `parent`, whose number is `number`, and counts it.
    fn find(&self, number: u64, parent: &OwnedFd, name: &OsStr) -> Result<Entry> {
        let (inode, stat) = self.inodes.find(number, parent, name)?;
        Ok(Entry { inode, generation: 0, attributes: attributes(&stat), attributes_ttl: TTL, name_ttl: TTL })
    }

    /// Gives what was just made to the caller: we made it as ourselves.
    fn give(&self, request: &Request, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if uid != 0 || (request.uid, request.gid) == (uid, gid) {
            return Ok(());
        }
        let inherits_group = stat(parent)?.st_mode & 0o2000 != 0;
        let group = (!inherits_group).then(|| Gid::from_raw(request.gid));
        rustix::fs::chownat(parent, name, Some(Uid::from_raw(request.uid)), group, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn made(&self, request: &Request, number: u64, parent: &OwnedFd, name: &OsStr) -> Result<Entry> {
        self.give(request, parent, name)?;
        self.find(number, parent, name)
    }

    fn list(&self, inode: u64, read: &Read, entries: &mut DirectoryEntries, plus: bool) -> Result<()> {
        let directory = self.inode(inode)?;
        let descriptor = self.handle(read.handle)?;
        rustix::fs::seek(&descriptor, SeekFrom::Start(read.offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); (read.size as usize).max(4096)];
        let mut names = RawDir::new(&*descriptor, &mut buffer);
        while let Some(entry) = names.next() {
            let entry = entry?;
            let (name, next) = (OsStr::from_bytes(entry.file_name().to_bytes()), entry.next_entry_cookie());
            let added = if plus && name != "." && name != ".." {
                match self.find(inode, &directory, name) {
                    Ok(found) => {
                        let added = entries.add_entry(name, &found, next);
                        if !added {
                            self.inodes.forget(found.inode, 1);
                        }
                        added
                    }
                    // Removed meanwhile.
                    Err(Errno::NOENT) => true,
                    Err(errno) => return Err(errno),
                }
            } else {
                entries.add(name, entry.ino(), entry.file_type().as_raw_mode(), next)
            };
            if !added {
                break;
            }
        }
        Ok(())
    }
}

impl Filesystem for Passthrough {
    async fn lookup(&self, _: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        self.find(parent, &*self.inode(parent)?, name)
    }

    fn forget(&self, inode: u64, lookups: u64) {
        self.inodes.forget(inode, lookups);
    }

    async fn getattr(&self, _: &Request, inode: u64, handle: Option<u64>) -> Result<AttributesFor> {
        let stat = match handle {
            Some(handle) => rustix::fs::fstat(self.handle(handle)?)?,
            None => stat(&*self.inode(inode)?)?,
        };
        Ok(AttributesFor { attributes: attributes(&stat), ttl: TTL })
    }

    async fn setattr(&self, request: &Request, inode: u64, set: SetAttributes) -> Result<AttributesFor> {
        let descriptor = self.inode(inode)?;
        if let Some(mode) = set.mode {
            rustix::fs::chmod(path_of(&descriptor), Mode::from_raw_mode(mode & 0o7777))?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            rustix::fs::chownat(&*descriptor, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = set.size {
            match set.handle {
                Some(handle) => rustix::fs::ftruncate(self.handle(handle)?, size)?,
                None => {
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::ftruncate(rustix::fs::open(path_of(&descriptor), flags, Mode::empty())?, size)?;
                }
            }
        }
        if set.accessed.is_some() || set.modified.is_some() {
            let times = Timestamps { last_access: timespec(set.accessed), last_modification: timespec(set.modified) };
            rustix::fs::utimensat(&*descriptor, "", &times, AtFlags::EMPTY_PATH)?;
        }
        self.getattr(request, inode, None).await
    }

    async fn readlink(&self, _: &Request, inode: u64) -> Result<Target> {
        let target = rustix::fs::readlinkat(&*self.inode(inode)?, "", Vec::new())?;
        Ok(Target(Bytes::from(target.into_bytes())))
    }

    async fn mknod(&self, request: &Request, parent: u64, name: &OsStr, mode: NewMode, device: u32) -> Result<Entry> {
        let mode = mode.mode;
        let number = parent;
        let parent = self.inode(number)?;
        let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
        let (kind, mode) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o7777));
        rustix::fs::mknodat(&*parent, name, kind, mode, rustix::fs::makedev(major, minor))?;
        self.made(request, number, &parent, name)
    }

    async fn mkdir(&self, request: &Request, parent: u64, name: &OsStr, mode: NewMode) -> Result<Entry> {
        let mode = mode.mode;
        let number = parent;
        let parent = self.inode(number)?;
        rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(mode & 0o7777))?;
        self.made(request, number, &parent, name)
    }

    async fn unlink(&self, _: &Request, parent: u64, name: &OsStr) -> Result<()> {
        let parent = self.inode(parent)?;
        self.inodes.hold(&parent, name)?;
        rustix::fs::unlinkat(&*parent, name, AtFlags::empty())
    }

    async fn rmdir(&self, _: &Request, parent: u64, name: &OsStr) -> Result<()> {
        rustix::fs::unlinkat(&*self.inode(parent)?, name, AtFlags::REMOVEDIR)
    }

    async fn symlink(&self, request: &Request, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        let number = parent;
        let parent = self.inode(number)?;
        rustix::fs::symlinkat(target, &*parent, name)?;
        self.made(request, number, &parent, name)
    }

    async fn rename(&self, _: &Request, parent: u64, rename: Rename) -> Result<()> {
        let (parent, new_parent) = (self.inode(parent)?, self.inode(rename.new_parent)?);
        self.inodes.hold(&parent, &rename.name)?;
        self.inodes.hold(&new_parent, &rename.new_name)?;
        let flags = RenameFlags::from_bits_retain(rename.flags);
        rustix::fs::renameat_with(&*parent, &*rename.name, &*new_parent, &*rename.new_name, flags)
    }

    async fn link(&self, _: &Request, inode: u64, new_parent: u64, new_name: &OsStr) -> Result<Entry> {
        let (inode, parent) = (self.inode(inode)?, self.inode(new_parent)?);
        rustix::fs::linkat(CWD, path_of(&inode), &*parent, new_name, AtFlags::SYMLINK_FOLLOW)?;
        self.find(new_parent, &parent, new_name)
    }

    async fn open(&self, _: &Request, inode: u64, open: Open) -> Result<Opened> {
        let flags = source_flags(open.flags);
        Ok(self.keep(rustix::fs::open(path_of(&*self.inode(inode)?), flags, Mode::empty())?))
    }

    async fn create(&self, request: &Request, parent: u64, name: &OsStr, mode: NewMode, open: Open) -> Result<Created> {
        let mode = mode.mode;
        let number = parent;
        let parent = self.inode(number)?;
        let exclusive = OFlags::from_bits_retain(open.flags) & OFlags::EXCL;
        let flags = source_flags(open.flags) | OFlags::CREATE | OFlags::NOFOLLOW | exclusive;
        let opened = rustix::fs::openat(&*parent, name, flags, Mode::from_raw_mode(mode & 0o7777))?;
        let entry = self.made(request, number, &parent, name)?;
        Ok(Created { entry, opened: self.keep(opened) })
    }

    async fn read(&self, _: &Request, _: u64, read: Read) -> Result<Data> {
        let descriptor = self.handle(read.handle)?;
        let mut data = Vec::with_capacity(read.size as usize);
        while data.len() < read.size as usize {
            let offset = read.offset + data.len() as u64;
            if rustix::io::pread(&descriptor, spare_capacity(&mut data), offset)? == 0 {
                break;
            }
        }
        Ok(Bytes::from(data).into())
    }

    async fn write(&self, _: &Request, _: u64, write: Write) -> Result<Written> {
        let descriptor = self.handle(write.handle)?;
        Ok(Written(rustix::io::pwrite(&descriptor, &write.data, write.offset)? as u32))
    }

    async fn flush(&self, _: &Request, _: u64, handle: u64, _: u64) -> Result<()> {
        // Closing a copy is what tells the source's filesystem that somebody closed the file.
        drop(rustix::io::fcntl_dupfd_cloexec(self.handle(handle)?, 0)?);
        Ok(())
    }

    async fn release(&self, _: &Request, _: u64, release: Release) -> Result<()> {
        self.handles.write().remove(&release.handle);
        Ok(())
    }

    async fn fsync(&self, _: &Request, _: u64, handle: u64, data_only: bool) -> Result<()> {
        let descriptor = self.handle(handle)?;
        if data_only { rustix::fs::fdatasync(&descriptor) } else { rustix::fs::fsync(&descriptor) }
    }

    async fn opendir(&self, _: &Request, inode: u64, _: Open) -> Result<Opened> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(self.keep(rustix::fs::openat(&*self.inode(inode)?, ".", flags, Mode::empty())?))
    }

    async fn readdir(&self, _: &Request, inode: u64, read: Read, entries: &mut DirectoryEntries) -> Result<()> {
        self.list(inode, &read, entries, false)
    }

    async fn readdirplus(&self, _: &Request, inode: u64, read: Read, entries: &mut DirectoryEntries) -> Result<()> {
        self.list(inode, &read, entries, true)
    }

    async fn releasedir(&self, request: &Request, inode: u64, release: Release) -> Result<()> {
        self.release(request, inode, release).await
    }

    async fn fsyncdir(&self, request: &Request, inode: u64, handle: u64, data_only: bool) -> Result<()> {
        self.fsync(request, inode, handle, data_only).await
    }

    async fn statfs(&self, _: &Request, inode: u64) -> Result<Statistics> {
        let stat = rustix::fs::fstatvfs(self.inode(inode)?)?;
        Ok(Statistics {
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            block_size: stat.f_bsize as u32,
            name_bytes_max: stat.f_namemax as u32,
            fragment_size: stat.f_frsize as u32,
        })
    }

    async fn setxattr(&self, _: &Request, inode: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        rustix::fs::setxattr(path_of(&*self.inode(inode)?), name, value, XattrFlags::from_bits_retain(flags))
    }

    async fn getxattr(&self, _: &Request, inode: u64, name: &OsStr, size: u32) -> Result<Xattr> {
        let mut value = Vec::with_capacity(64 << 10);
        rustix::fs::getxattr(path_of(&*self.inode(inode)?), name, spare_capacity(&mut value))?;
        Xattr::fitting(value, size)
    }

    async fn listxattr(&self, _: &Request, inode: u64, size: u32) -> Result<Xattr> {
        let mut names = Vec::with_capacity(64 << 10);
        rustix::fs::listxattr(path_of(&*self.inode(inode)?), spare_capacity(&mut names))?;
        Xattr::fitting(names, size)
    }

    async fn removexattr(&self, _: &Request, inode: u64, name: &OsStr) -> Result<()> {
        rustix::fs::removexattr(path_of(&*self.inode(inode)?), name)
    }

    async fn fallocate(&self, _: &Request, _: u64, fallocate: Fallocate) -> Result<()> {
        let mode = FallocateFlags::from_bits_retain(fallocate.mode);
        rustix::fs::fallocate(self.handle(fallocate.handle)?, mode, fallocate.offset, fallocate.length)
    }

    async fn lseek(&self, _: &Request, _: u64, handle: u64, offset: i64, whence: u32) -> Result<Offset> {
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let from = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(self.handle(handle)?, from).map(Offset)
    }

    async fn copy_file_range(&self, _: &Request, _: u64, copy: CopyFileRange) -> Result<Written> {
        let (from, to) = (self.handle(copy.handle)?, self.handle(copy.to_handle)?);
        let (mut offset, mut to_offset) = (copy.offset, copy.to_offset);
        let length = copy.length.min(1 << 30) as usize;
        let copied = rustix::fs::copy_file_range(&from, Some(&mut offset), &to, Some(&mut to_offset), length)?;
        Ok(Written(copied as u32))
    }
}

/// The flags to open the source with: what the kernel has done already is left out, and direct IO,
/// whose alignment our buffers do not have.
fn source_flags(flags: u32) -> OFlags {
    let done = OFlags::NOFOLLOW | OFlags::DIRECT | OFlags::CREATE | OFlags::EXCL | OFlags::NOCTTY;
    (OFlags::from_bits_retain(flags) - done) | OFlags::CLOEXEC
}

/// A path that leads to the inode itself, for calls that refuse `O_PATH` descriptors.
fn path_of(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

pub(crate) fn stat(descriptor: &OwnedFd) -> Result<Stat> {
    rustix::fs::statat(descriptor, "", AtFlags::EMPTY_PATH)
}

fn attributes(stat: &Stat) -> Attributes {
    let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Attributes {
        inode: stat.st_ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        accessed: time(stat.st_atime, stat.st_atime_nsec as u32),
        modified: time(stat.st_mtime, stat.st_mtime_nsec as u32),
        changed: time(stat.st_ctime, stat.st_ctime_nsec as u32),
        born: None,
        mode: stat.st_mode,
        links: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        device: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        block_size: stat.st_blksize as u32,
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::To(time)) => Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) },
    }
}

/// Raises the limit of open files as far as it goes, and says how far that is.
fn raise_open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    let system = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse::<u64>().ok());
    // Root may raise the hard limit too; for others the second attempt is as far as it goes.
    if setrlimit(Resource::Nofile, Rlimit { current: system, maximum: system }).is_err()
        && let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
    {
        eprintln!("the limit of open files stays as it is: {errno}");
    }
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize)
}
