//! Words of the kernel for words of the cluster, and back.

use client::fs::{OpenFlags, VolumeSpace};
use meta::{Attr, Kind};

use crate::wire::request::{NewMode, SetTime, Timestamp};
use crate::wire::{Attributes, Statistics};

/// The file type of a directory, as in `st_mode`.
pub(crate) const DIRECTORY: u32 = 0o040_000;
/// What programs are told is a good size for reads and writes: an average chunk. Buffered streams
/// of the C library and others follow it.
const IO_BYTES: u32 = 64 << 10;

const O_WRITE_ONLY: u32 = 0o1;
const O_READ_WRITE: u32 = 0o2;
const O_EXCLUSIVE: u32 = 0o200;
const O_TRUNCATE: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;
/// The kernel's own `__FMODE_EXEC`: the file is opened to be executed.
const EXECUTE: u32 = 0x20;

pub(crate) fn attributes(inode: u64, attr: &Attr) -> Attributes {
    let time = |time: meta::Timestamp| Timestamp { seconds: time.seconds, nanoseconds: time.nanos };
    Attributes {
        inode,
        size: attr.size,
        blocks: attr.allocated.div_ceil(512),
        accessed: time(attr.atime),
        modified: time(attr.mtime),
        changed: time(attr.ctime),
        born: Some(time(attr.btime)),
        mode: mode(attr),
        links: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        device: attr.rdev,
        block_size: IO_BYTES,
    }
}

/// File type and permissions, as in `st_mode`.
pub(crate) fn mode(attr: &Attr) -> u32 {
    let kind = match attr.kind {
        Kind::File => 0o100_000,
        Kind::Directory => DIRECTORY,
        Kind::Symlink => 0o120_000,
        Kind::Fifo => 0o010_000,
        Kind::Socket => 0o140_000,
        Kind::CharDevice => 0o020_000,
        Kind::BlockDevice => 0o060_000,
    };
    kind | u32::from(attr.mode)
}

/// What `mknod(2)` is to make; `None` for what it cannot.
pub(crate) fn kind(mode: u32) -> Option<Kind> {
    match mode & 0o170_000 {
        0 | 0o100_000 => Some(Kind::File),
        0o010_000 => Some(Kind::Fifo),
        0o140_000 => Some(Kind::Socket),
        0o020_000 => Some(Kind::CharDevice),
        0o060_000 => Some(Kind::BlockDevice),
        _ => None,
    }
}

/// What something new is made with.
pub(crate) fn new_mode(mode: NewMode) -> client::fs::NewMode {
    client::fs::NewMode { mode: permissions(mode.mode), umask: (mode.umask & 0o777) as u16 }
}

/// The low twelve bits.
pub(crate) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(crate) fn set_time(time: SetTime) -> meta::SetTime {
    match time {
        SetTime::Now => meta::SetTime::Now,
        SetTime::To(time) => meta::SetTime::At(meta::Timestamp { seconds: time.seconds, nanos: time.nanoseconds }),
    }
}

pub(crate) fn open_flags(flags: u32) -> OpenFlags {
    let has = |bit: u32| flags & bit != 0;
    let truncate = has(O_TRUNCATE);
    OpenFlags {
        read: !has(O_WRITE_ONLY),
        // Truncation needs the right to write, even of who then only reads.
        write: has(O_WRITE_ONLY | O_READ_WRITE) || truncate,
        append: has(O_APPEND),
        truncate,
        execute: has(EXECUTE),
    }
}

/// Whether the name must not be there yet.
pub(crate) fn is_exclusive(flags: u32) -> bool {
    flags & O_EXCLUSIVE != 0
}

pub(crate) fn statistics(space: &VolumeSpace) -> Statistics {
    Statistics {
        blocks: space.blocks,
        blocks_free: space.blocks_free,
        blocks_available: space.blocks_free,
        files: space.files,
        files_free: space.files_free,
        block_size: space.block_bytes,
        name_bytes_max: space.name_max,
        fragment_size: space.block_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_flags_are_linuxs() {
        use rustix::fs::OFlags;
        let flags = |flags: OFlags| open_flags(flags.bits());
        assert_eq!(flags(OFlags::RDONLY), OpenFlags::reading());
        assert_eq!(flags(OFlags::RDWR), OpenFlags::writing());
        let append = flags(OFlags::WRONLY | OFlags::APPEND);
        assert_eq!(append, OpenFlags { write: true, append: true, ..OpenFlags::default() });
        assert!(flags(OFlags::WRONLY | OFlags::TRUNC).truncate);
        assert!(flags(OFlags::RDONLY | OFlags::TRUNC).write, "or the library refuses it");
        assert!(is_exclusive(OFlags::EXCL.bits()) && !is_exclusive(OFlags::CREATE.bits()));
        assert!(open_flags(0x20).execute);
    }

    #[test]
    fn kinds_are_the_same_both_ways() {
        for kind in [Kind::File, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice] {
            let attr = Attr { kind, ..any() };
            assert_eq!(super::kind(mode(&attr)), Some(kind));
        }
        assert_eq!(kind(mode(&Attr { kind: Kind::Directory, ..any() })), None);
        assert_eq!(kind(mode(&Attr { kind: Kind::Symlink, ..any() })), None);
        assert_eq!(mode(&any()), 0o104_755);
        assert_eq!(attributes(1, &any()).blocks, 2, "half kilobytes, rounded up");
    }

    fn any() -> Attr {
        Attr {
            ino: meta::Ino(9),
            volume: meta::VolumeId(1),
            kind: Kind::File,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            nlink: 1,
            size: 5000,
            allocated: 1000,
            rdev: 0,
            atime: meta::Timestamp::default(),
            mtime: meta::Timestamp::default(),
            ctime: meta::Timestamp::default(),
            btime: meta::Timestamp::default(),
            version: 1,
            content_version: 1,
        }
    }
}
