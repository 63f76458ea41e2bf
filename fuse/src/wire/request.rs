//! Requests as types: who asks, and for what. `parse` makes them of bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;

/// The header before every request (`fuse_in_header`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked; see [`super::abi::opcode`].
    pub opcode: u32,
    /// Names the request; its reply and its interrupt carry it.
    pub unique: u64,
    /// The inode it is about.
    pub inode: u64,
    /// Filesystem uid of the caller.
    pub uid: u32,
    /// Filesystem gid of the caller.
    pub gid: u32,
    /// Thread id of the caller; 0 for what the kernel itself asks (write-back, read-ahead).
    pub pid: u32,
    /// Bytes of extensions at the end of the message.
    pub(super) extension_bytes: usize,
}

/// A name or a path in a request: bytes without a zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub(super) Bytes);

impl std::ops::Deref for Name {
    type Target = OsStr;
    fn deref(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// A point in time as inodes carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// 0..1,000,000,000.
    pub nanoseconds: u32,
}

/// What to set a timestamp to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The filesystem's own present.
    Now,
    /// This time.
    To(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits (and file type, which does not change).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length, bytes.
    pub size: Option<u64>,
    /// Access time.
    pub accessed: Option<SetTime>,
    /// Modification time.
    pub modified: Option<SetTime>,
    /// Change time (only with a write-back cache).
    pub changed: Option<Timestamp>,
    /// The open file through which this came (`ftruncate`).
    pub handle: Option<u64>,
    /// Clear set-uid and set-gid bits.
    pub kill_privileges: bool,
}

/// The mode of something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewMode {
    /// File type and permission bits. Unless [`DONT_MASK`](super::abi::capability::DONT_MASK) was agreed on, the
    /// umask is already taken off.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
}

/// READ, READDIR and READDIRPLUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The open file's handle.
    pub handle: u64,
    /// First byte; in a directory, the offset given with the last entry seen.
    pub offset: u64,
    /// Most bytes to answer.
    pub size: u32,
    /// The open file's flags (`O_*`).
    pub flags: u32,
}

/// WRITE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The open file's handle.
    pub handle: u64,
    /// First byte.
    pub offset: u64,
    /// What to write.
    pub data: Bytes,
    /// The open file's flags (`O_*`).
    pub flags: u32,
    /// From the page cache (`mmap`): caller and handle are the kernel's guess.
    pub from_cache: bool,
    /// Clear set-uid and set-gid bits.
    pub kill_privileges: bool,
}

/// OPEN and OPENDIR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// `O_*`.
    pub flags: u32,
    /// Clear set-uid and set-gid bits (with `O_TRUNC`).
    pub kill_privileges: bool,
}

/// RELEASE and RELEASEDIR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The handle that will not be used again.
    pub handle: u64,
    /// The open file's flags (`O_*`).
    pub flags: u32,
    /// Drop this open's `flock`.
    pub flock_unlock: bool,
    /// Whose `fcntl` locks go.
    pub lock_owner: u64,
}

/// GETLK, SETLK and SETLKW (`fuse_lk_in`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The open file's handle.
    pub handle: u64,
    /// Whose lock.
    pub owner: u64,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// See [`super::abi::lock_type`].
    pub kind: u32,
    /// The process that asks.
    pub pid: u32,
    /// It is `flock`'s, not `fcntl`'s.
    pub flock: bool,
}

/// RENAME and RENAME2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// The old name.
    pub name: Name,
    /// The new directory.
    pub new_parent: u64,
    /// The new name.
    pub new_name: Name,
    /// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT`.
    pub flags: u32,
}

/// FALLOCATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallocate {
    /// The open file's handle.
    pub handle: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// `FALLOC_FL_*`.
    pub mode: u32,
}

/// COPY_FILE_RANGE; the inode of the request is the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFileRange {
    /// The source's handle.
    pub handle: u64,
    /// First byte in the source.
    pub offset: u64,
    /// The destination.
    pub to_inode: u64,
    /// The destination's handle.
    pub to_handle: u64,
    /// First byte in the destination.
    pub to_offset: u64,
    /// Bytes.
    pub length: u64,
    /// None are defined.
    pub flags: u64,
}

/// IOCTL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ioctl {
    /// The open file's handle.
    pub handle: u64,
    /// `FUSE_IOCTL_*`.
    pub flags: u32,
    /// The command.
    pub command: u32,
    /// Its argument as given.
    pub argument: u64,
    /// The data that the argument points to.
    pub input: Bytes,
    /// Room for data in the reply, bytes.
    pub output_bytes_max: u32,
}

/// The kernel's half of INIT (`fuse_init_in`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// The kernel's read-ahead, bytes.
    pub max_readahead: u32,
    /// What the kernel can do; see [`super::abi::capability`].
    pub capabilities: u64,
}

/// A request's operation with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "variants and fields are the arguments of the methods of `Filesystem`")]
pub enum Operation {
    Lookup {
        name: Name,
    },
    Forget {
        lookups: Vec<(u64, u64)>,
    },
    GetAttr {
        handle: Option<u64>,
    },
    StatX {
        handle: Option<u64>,
    },
    SetAttr(SetAttributes),
    ReadLink,
    Symlink {
        name: Name,
        target: Name,
    },
    MkNod {
        name: Name,
        mode: NewMode,
        device: u32,
    },
    MkDir {
        name: Name,
        mode: NewMode,
    },
    Unlink {
        name: Name,
    },
    RmDir {
        name: Name,
    },
    Rename(Rename),
    Link {
        from: u64,
        name: Name,
    },
    Open(Open),
    Create {
        name: Name,
        mode: NewMode,
        open: Open,
    },
    TmpFile {
        mode: NewMode,
        open: Open,
    },
    Read(Read),
    Write(Write),
    Flush {
        handle: u64,
        lock_owner: u64,
    },
    Release(Release),
    GetLock(Lock),
    SetLock {
        lock: Lock,
        wait: bool,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    OpenDir(Open),
    ReadDir(Read),
    ReadDirPlus(Read),
    ReleaseDir(Release),
    FsyncDir {
        handle: u64,
        data_only: bool,
    },
    StatFs,
    SetXattr {
        name: Name,
        value: Bytes,
        flags: u32,
    },
    GetXattr {
        name: Name,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: Name,
    },
    Access {
        mask: u32,
    },
    Fallocate(Fallocate),
    LSeek {
        handle: u64,
        offset: i64,
        whence: u32,
    },
    CopyFileRange {
        copy: CopyFileRange,
        wide: bool,
    },
    Ioctl(Ioctl),
    Poll {
        handle: u64,
        events: u32,
    },
    Interrupt {
        unique: u64,
    },
    Init(Init),
    Destroy,
    NotifyReply,
    /// Anything else: answered ENOSYS, which the kernel remembers.
    Unsupported,
}
