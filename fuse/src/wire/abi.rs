//! The numbers of the kernel's FUSE protocol 7.x: versions, opcodes, flags and fixed sizes.
//!
//! They are those of the kernel's `include/uapi/linux/fuse.h`; nothing here does anything. All
//! integers on the wire have the machine's own byte order.

/// Major version; a kernel with another one is refused.
pub const MAJOR: u32 = 7;
/// The newest minor version whose layouts this module knows.
pub const MINOR: u32 = 40;
/// The oldest minor version served (Linux 5.4, 2019).
pub const MINOR_MIN: u32 = 31;

/// In a request's `unique`: somebody read it before and did not answer it (7.40, Linux 6.9).
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// The inode number of the mount's root.
pub const ROOT: u64 = 1;

/// Most bytes in one read or write: 256 pages, the kernel's own default limit.
pub const TRANSFER_BYTES_MAX: usize = 1 << 20;
/// A page, as `max_pages` counts them.
pub const PAGE_BYTES: usize = 4096;
/// A reader's buffer: one transfer and one page for the headers before it.
pub const MESSAGE_BYTES_MAX: usize = TRANSFER_BYTES_MAX + PAGE_BYTES;
/// Length of `fuse_in_header`.
pub const REQUEST_HEADER_BYTES: usize = 40;
/// Length of `fuse_out_header`.
pub const REPLY_HEADER_BYTES: usize = 16;

/// What a request asks for (`enum fuse_opcode`).
#[expect(missing_docs, reason = "the kernel's own names; fuse.h is their documentation")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// What kernel and filesystem agree on at INIT; bits 32 and up travel in `flags2`.
pub mod capability {
    /// Several reads of one file may be under way at once.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// `fcntl` locks go to the filesystem (`GETLK`, `SETLK`, `SETLKW`). Unless asked for, the kernel keeps
    /// them, per mount.
    pub const POSIX_LOCKS: u64 = 1 << 1;
    /// `O_TRUNC` reaches `open`, instead of a `setattr` after it.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// Writes longer than a page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The filesystem takes the umask off the modes of what is made: it comes along. Unless asked for, the
    /// kernel does.
    pub const DONT_MASK: u64 = 1 << 6;
    /// `flock` locks go to the filesystem; see [`POSIX_LOCKS`].
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    /// Cached pages are dropped when size or mtime are seen to have changed.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// Directory listings with attributes.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// The kernel chooses between plain and attributed listings.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct IO may be split into requests that run side by side.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// Lookups and listings of one directory may run side by side.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// The kernel judges by access lists, too (and by modes, as if mounted with `default_permissions`): it asks
    /// for them as extended attributes, and remembers them for as long as attributes.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// `max_pages` in the INIT reply is valid.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Targets of symbolic links are cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// The filesystem clears set-uid and set-gid bits itself, when told (`kill_privileges`) and on
    /// chown. Saves the kernel one `getxattr(security.capability)` per `write(2)`.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// `flags2` is valid.
    pub const INIT_EXT: u64 = 1 << 30;
    /// An entry may be expired instead of dropped (notify `inval_entry`).
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    /// Shared `mmap` of files opened with `DIRECT_IO`.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;

    /// Requests that were read and not answered can be asked for again ([`super::notification::RESEND`]).
    pub const HAS_RESEND: u64 = 1 << 39;

    /// What a session asks for unless told otherwise.
    pub const DEFAULT: u64 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | AUTO_INVAL_DATA
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | MAX_PAGES
        | CACHE_SYMLINKS
        | HAS_EXPIRE_ONLY
        | DIRECT_IO_ALLOW_MMAP
        | HAS_RESEND;
}

/// Flags of the reply to OPEN, OPENDIR and CREATE (`FOPEN_*`).
pub mod open_flag {
    /// Reads and writes bypass the page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Cached pages of the file survive this open.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The file cannot be seeked.
    pub const NONSEEKABLE: u32 = 1 << 2;
    /// The kernel may cache this directory's listing.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No FLUSH when the file is closed.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Direct writes to one file may run side by side.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Which fields of SETATTR are meant (`FATTR_*`).
#[expect(missing_docs, reason = "the kernel's own names; fuse.h is their documentation")]
pub mod setattr_valid {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// GETATTR carries a file handle.
pub const GETATTR_FH: u32 = 1 << 0;
/// STATX: what every `stat(2)` tells (`STATX_BASIC_STATS`).
pub const STATX_BASIC: u32 = 0x7ff;
/// STATX: when the inode was made.
pub const STATX_BORN: u32 = 0x800;
/// OPEN and CREATE: clear set-uid and set-gid bits ([`capability::HANDLE_KILLPRIV_V2`]).
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// WRITE: delayed write from the page cache, the file handle is a guess.
pub const WRITE_CACHE: u32 = 1 << 0;
/// WRITE: clear set-uid and set-gid bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// RELEASE: the last `flock` of this open goes with it.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// GETLK, SETLK, SETLKW: the lock is `flock`'s.
pub const LK_FLOCK: u32 = 1 << 0;
/// Types of locks (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`).
#[expect(missing_docs, reason = "the kernel's own names")]
pub mod lock_type {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const UNLOCK: u32 = 2;
}
/// FSYNC: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;

/// Messages the filesystem may send unasked (`enum fuse_notify_code`).
pub mod notification {
    /// Drop attributes and a range of cached pages.
    pub const INVAL_INODE: i32 = 2;
    /// Drop a name.
    pub const INVAL_ENTRY: i32 = 3;
    /// Send again what was read and is not answered.
    pub const RESEND: i32 = 7;
    /// Have every name looked up again (Linux 6.16).
    pub const INC_EPOCH: i32 = 8;
    /// [`INVAL_ENTRY`]: expire the name instead, so that it is looked up again.
    pub const EXPIRE_ONLY: u32 = 1 << 0;
}
