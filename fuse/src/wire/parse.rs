//! From the bytes the kernel wrote to a typed request.
//!
//! Every read is checked, so a malformed message is a [`Malformed`] with the reason, never a panic.
//! Names and data are slices of the message itself ([`Bytes`]): nothing is copied here.

use bytes::Bytes;

use super::abi::{self, opcode, setattr_valid};
use super::request::{
    CopyFileRange, Fallocate, Header, Init, Ioctl, Lock, Name, NewMode, Open, Operation, Read, Release, Rename,
    SetAttributes, SetTime, Timestamp, Write,
};

/// Why a message cannot be a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends before the fields of its operation do.
    #[error("the message ends inside a field")]
    Short,
    /// The header's length is not the number of bytes that came.
    #[error("the header says another length than the message has")]
    Length,
    /// A name is not ended by a zero byte.
    #[error("a name has no end")]
    Name,
    /// The data of a write or an extended attribute has another length than announced.
    #[error("the data has another length than announced")]
    Data,
}

/// Reads the header of `message`.
///
/// # Errors
/// [`Malformed`] when there is none, or its length is not the message's.
pub fn header(message: &Bytes) -> Result<Header, Malformed> {
    let mut fields = Fields { message, at: 0, end: message.len() };
    let length = fields.u32()? as usize;
    let header = Header {
        opcode: fields.u32()?,
        unique: fields.u64()?,
        inode: fields.u64()?,
        uid: fields.u32()?,
        gid: fields.u32()?,
        pid: fields.u32()?,
        extension_bytes: usize::from(fields.u16()?) * 8,
    };
    fields.u16()?;
    if length != message.len() { Err(Malformed::Length) } else { Ok(header) }
}

/// Reads the operation that follows `header` in `message`.
///
/// # Errors
/// [`Malformed`] with the reason; the request is then answered EIO.
pub fn operation(header: &Header, message: &Bytes) -> Result<Operation, Malformed> {
    let end = message.len().checked_sub(header.extension_bytes).ok_or(Malformed::Short)?;
    if end < abi::REQUEST_HEADER_BYTES {
        return Err(Malformed::Short);
    }
    let mut fields = Fields { message, at: abi::REQUEST_HEADER_BYTES, end };
    match header.opcode {
        opcode::LOOKUP
        | opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::CREATE
        | opcode::TMPFILE => fields.name_operation(header.opcode),
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
            fields.xattr_operation(header.opcode)
        }
        opcode::FORGET => Ok(Operation::Forget { lookups: vec![(header.inode, fields.u64()?)] }),
        opcode::BATCH_FORGET => fields.batch_forget(),
        opcode::INIT => fields.init(),
        opcode::DESTROY => Ok(Operation::Destroy),
        opcode::INTERRUPT => Ok(Operation::Interrupt { unique: fields.u64()? }),
        opcode::NOTIFY_REPLY => Ok(Operation::NotifyReply),
        other => fields.file_operation(other),
    }
}

/// A checked walk through a message.
struct Fields<'a> {
    message: &'a Bytes,
    at: usize,
    end: usize,
}

impl Fields<'_> {
    fn name_operation(&mut self, code: u32) -> Result<Operation, Malformed> {
        Ok(match code {
            opcode::LOOKUP => Operation::Lookup { name: self.name()? },
            opcode::UNLINK => Operation::Unlink { name: self.name()? },
            opcode::RMDIR => Operation::RmDir { name: self.name()? },
            opcode::SYMLINK => Operation::Symlink { name: self.name()?, target: self.name()? },
            opcode::LINK => Operation::Link { from: self.u64()?, name: self.name()? },
            opcode::MKDIR => {
                let mode = NewMode { mode: self.u32()?, umask: self.u32()? };
                Operation::MkDir { name: self.name()?, mode }
            }
            opcode::MKNOD => {
                let (mode, device, umask, _) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
                let mode = NewMode { mode, umask };
                Operation::MkNod { name: self.name()?, mode, device }
            }
            opcode::CREATE | opcode::TMPFILE => {
                let (flags, mode, umask, open_flags) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
                let mode = NewMode { mode, umask };
                let open = Open { flags, kill_privileges: open_flags & abi::OPEN_KILL_SUIDGID != 0 };
                match code {
                    opcode::CREATE => Operation::Create { name: self.name()?, mode, open },
                    // What follows stands for a name and is none.
                    _ => Operation::TmpFile { mode, open },
                }
            }
            opcode::RENAME => {
                let new_parent = self.u64()?;
                Operation::Rename(Rename { new_parent, name: self.name()?, new_name: self.name()?, flags: 0 })
            }
            opcode::RENAME2 => {
                let (new_parent, flags, _) = (self.u64()?, self.u32()?, self.u32()?);
                Operation::Rename(Rename { new_parent, name: self.name()?, new_name: self.name()?, flags })
            }
            _ => Operation::Unsupported,
        })
    }

    fn xattr_operation(&mut self, code: u32) -> Result<Operation, Malformed> {
        Ok(match code {
            opcode::REMOVEXATTR => Operation::RemoveXattr { name: self.name()? },
            opcode::SETXATTR => {
                // The short layout: the long one comes only where FUSE_SETXATTR_EXT was agreed on.
                let (size, flags) = (self.u32()?, self.u32()?);
                let name = self.name()?;
                Operation::SetXattr { name, value: self.data(size)?, flags }
            }
            opcode::GETXATTR => {
                let (size, _) = (self.u32()?, self.u32()?);
                Operation::GetXattr { name: self.name()?, size }
            }
            opcode::LISTXATTR => Operation::ListXattr { size: self.u32()? },
            _ => Operation::Unsupported,
        })
    }

    fn file_operation(&mut self, code: u32) -> Result<Operation, Malformed> {
        Ok(match code {
            opcode::GETATTR => {
                let (flags, _, handle) = (self.u32()?, self.u32()?, self.u64()?);
                Operation::GetAttr { handle: (flags & abi::GETATTR_FH != 0).then_some(handle) }
            }
            opcode::STATX => {
                // What is asked for does not matter: all there is is told.
                let (flags, _, handle) = (self.u32()?, self.u32()?, self.u64()?);
                Operation::StatX { handle: (flags & abi::GETATTR_FH != 0).then_some(handle) }
            }
            opcode::SETATTR => Operation::SetAttr(self.set_attributes()?),
            opcode::READLINK => Operation::ReadLink,
            opcode::OPEN => Operation::Open(self.open()?),
            opcode::OPENDIR => Operation::OpenDir(self.open()?),
            opcode::READ => Operation::Read(self.read()?),
            opcode::READDIR => Operation::ReadDir(self.read()?),
            opcode::READDIRPLUS => Operation::ReadDirPlus(self.read()?),
            opcode::WRITE => Operation::Write(self.write()?),
            opcode::RELEASE => Operation::Release(self.release()?),
            opcode::RELEASEDIR => Operation::ReleaseDir(self.release()?),
            opcode::FLUSH => {
                let (handle, _, lock_owner) = (self.u64()?, self.u64()?, self.u64()?);
                Operation::Flush { handle, lock_owner }
            }
            opcode::GETLK => Operation::GetLock(self.lock()?),
            opcode::SETLK => Operation::SetLock { lock: self.lock()?, wait: false },
            opcode::SETLKW => Operation::SetLock { lock: self.lock()?, wait: true },
            opcode::FSYNC => {
                Operation::Fsync { handle: self.u64()?, data_only: self.u32()? & abi::FSYNC_FDATASYNC != 0 }
            }
            opcode::FSYNCDIR => {
                Operation::FsyncDir { handle: self.u64()?, data_only: self.u32()? & abi::FSYNC_FDATASYNC != 0 }
            }
            opcode::STATFS => Operation::StatFs,
            opcode::ACCESS => Operation::Access { mask: self.u32()? },
            opcode::FALLOCATE => Operation::Fallocate(Fallocate {
                handle: self.u64()?,
                offset: self.u64()?,
                length: self.u64()?,
                mode: self.u32()?,
            }),
            opcode::LSEEK => Operation::LSeek { handle: self.u64()?, offset: self.u64()? as i64, whence: self.u32()? },
            opcode::COPY_FILE_RANGE => Operation::CopyFileRange { copy: self.copy_file_range()?, wide: false },
            opcode::COPY_FILE_RANGE_64 => Operation::CopyFileRange { copy: self.copy_file_range()?, wide: true },
            opcode::IOCTL => Operation::Ioctl(self.ioctl()?),
            opcode::POLL => {
                let (handle, _kernel_handle, _flags, events) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
                Operation::Poll { handle, events }
            }
            _ => Operation::Unsupported,
        })
    }

    fn set_attributes(&mut self) -> Result<SetAttributes, Malformed> {
        let (valid, _) = (self.u32()?, self.u32()?);
        let (handle, size, _lock_owner) = (self.u64()?, self.u64()?, self.u64()?);
        let seconds = [self.u64()? as i64, self.u64()? as i64, self.u64()? as i64];
        let nanoseconds = [self.u32()?, self.u32()?, self.u32()?];
        let time = |i: usize| Timestamp { seconds: seconds[i], nanoseconds: nanoseconds[i].min(999_999_999) };
        let (mode, _) = (self.u32()?, self.u32()?);
        let (uid, gid) = (self.u32()?, self.u32()?);
        let has = |bit: u32| valid & bit != 0;
        let set_time = |bit: u32, now: u32, i: usize| match (has(now), has(bit)) {
            (true, _) => Some(SetTime::Now),
            (false, true) => Some(SetTime::To(time(i))),
            (false, false) => None,
        };
        Ok(SetAttributes {
            mode: has(setattr_valid::MODE).then_some(mode),
            uid: has(setattr_valid::UID).then_some(uid),
            gid: has(setattr_valid::GID).then_some(gid),
            size: has(setattr_valid::SIZE).then_some(size),
            accessed: set_time(setattr_valid::ATIME, setattr_valid::ATIME_NOW, 0),
            modified: set_time(setattr_valid::MTIME, setattr_valid::MTIME_NOW, 1),
            changed: has(setattr_valid::CTIME).then(|| time(2)),
            handle: has(setattr_valid::FH).then_some(handle),
            kill_privileges: has(setattr_valid::KILL_SUIDGID),
        })
    }

    fn open(&mut self) -> Result<Open, Malformed> {
        Ok(Open { flags: self.u32()?, kill_privileges: self.u32()? & abi::OPEN_KILL_SUIDGID != 0 })
    }

    fn read(&mut self) -> Result<Read, Malformed> {
        let (handle, offset, size, _read_flags) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
        let (_lock_owner, flags) = (self.u64()?, self.u32()?);
        // Never more than was agreed on, so that no answer outgrows its bound.
        Ok(Read { handle, offset, size: size.min(abi::TRANSFER_BYTES_MAX as u32), flags })
    }

    fn write(&mut self) -> Result<Write, Malformed> {
        let (handle, offset, size, write_flags) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
        let (_lock_owner, flags, _) = (self.u64()?, self.u32()?, self.u32()?);
        Ok(Write {
            handle,
            offset,
            data: self.data(size)?,
            flags,
            from_cache: write_flags & abi::WRITE_CACHE != 0,
            kill_privileges: write_flags & abi::WRITE_KILL_SUIDGID != 0,
        })
    }

    fn release(&mut self) -> Result<Release, Malformed> {
        let (handle, flags, release_flags, lock_owner) = (self.u64()?, self.u32()?, self.u32()?, self.u64()?);
        Ok(Release { handle, flags, flock_unlock: release_flags & abi::RELEASE_FLOCK_UNLOCK != 0, lock_owner })
    }

    fn lock(&mut self) -> Result<Lock, Malformed> {
        let (handle, owner, start, end) = (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        let (kind, pid, flags) = (self.u32()?, self.u32()?, self.u32()?);
        Ok(Lock { handle, owner, start, end, kind, pid, flock: flags & abi::LK_FLOCK != 0 })
    }

    fn copy_file_range(&mut self) -> Result<CopyFileRange, Malformed> {
        Ok(CopyFileRange {
            handle: self.u64()?,
            offset: self.u64()?,
            to_inode: self.u64()?,
            to_handle: self.u64()?,
            to_offset: self.u64()?,
            length: self.u64()?,
            flags: self.u64()?,
        })
    }

    fn ioctl(&mut self) -> Result<Ioctl, Malformed> {
        let (handle, flags, command) = (self.u64()?, self.u32()?, self.u32()?);
        let (argument, input_bytes, output_bytes_max) = (self.u64()?, self.u32()?, self.u32()?);
        Ok(Ioctl { handle, flags, command, argument, input: self.data(input_bytes)?, output_bytes_max })
    }

    fn batch_forget(&mut self) -> Result<Operation, Malformed> {
        let (count, _) = (self.u32()? as usize, self.u32()?);
        if count > (self.end - self.at) / 16 {
            return Err(Malformed::Short);
        }
        let lookups = (0..count).map(|_| Ok((self.u64()?, self.u64()?))).collect::<Result<_, _>>()?;
        Ok(Operation::Forget { lookups })
    }

    fn init(&mut self) -> Result<Operation, Malformed> {
        let (major, minor, max_readahead) = (self.u32()?, self.u32()?, self.u32()?);
        let mut capabilities = u64::from(self.u32()?);
        if capabilities & abi::capability::INIT_EXT != 0 {
            capabilities |= u64::from(self.u32()?) << 32;
        }
        Ok(Operation::Init(Init { major, minor, max_readahead, capabilities }))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.message[self.at..self.end].first_chunk::<N>().ok_or(Malformed::Short)?;
        self.at += N;
        Ok(*bytes)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    fn name(&mut self) -> Result<Name, Malformed> {
        let rest = &self.message[self.at..self.end];
        let length = rest.iter().position(|byte| *byte == 0).ok_or(Malformed::Name)?;
        let name = self.message.slice(self.at..self.at + length);
        self.at += length + 1;
        Ok(Name(name))
    }

    fn data(&mut self, size: u32) -> Result<Bytes, Malformed> {
        let size = size as usize;
        if size > self.end - self.at {
            return Err(Malformed::Data);
        }
        let data = self.message.slice(self.at..self.at + size);
        self.at += size;
        Ok(data)
    }
}
