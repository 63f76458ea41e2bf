//! Replies: from typed answers to the bytes the kernel reads.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;

use super::abi;
use super::request::Timestamp;

/// An inode's attributes (`fuse_attr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Number of the inode.
    pub inode: u64,
    /// Length, bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of the inode.
    pub changed: Timestamp,
    /// When the inode was made, if that is known: only `statx(2)` tells it.
    pub born: Option<Timestamp>,
    /// File type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Names it has.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub device: u32,
    /// Preferred IO size, bytes.
    pub block_size: u32,
}

/// Answer to LOOKUP and to everything that makes a name: one more lookup of the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode; 0 says "no such name" and may be cached for `name_ttl`.
    pub inode: u64,
    /// Tells two lives of one inode number apart.
    pub generation: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// How long the kernel may use the attributes without asking.
    pub attributes_ttl: Duration,
    /// How long the kernel may use the name without asking.
    pub name_ttl: Duration,
}

impl Entry {
    /// No such name, which may be believed for so long.
    pub fn absent(name_ttl: Duration) -> Entry {
        let attributes = Attributes::default();
        Entry { inode: 0, generation: 0, attributes, attributes_ttl: Duration::ZERO, name_ttl }
    }
}

/// Answer to GETATTR and SETATTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributesFor {
    /// The attributes.
    pub attributes: Attributes,
    /// How long the kernel may use them without asking.
    pub ttl: Duration,
}

/// Answer to STATX: the same and more, laid out as `statx(2)` does.
pub(crate) struct Extended(pub(crate) AttributesFor);

/// Answer to OPEN and OPENDIR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The filesystem's own number for this open; comes back with every use.
    pub handle: u64,
    /// See [`abi::open_flag`].
    pub flags: u32,
}

/// Answer to CREATE: a new name, opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// The new name.
    pub entry: Entry,
    /// The open file.
    pub opened: Opened,
}

/// Answer to READ: pieces that follow one another. Shorter than asked means end of file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data(pub Vec<Bytes>);

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Data {
        Data(vec![bytes])
    }
}

/// Answer to WRITE and COPY_FILE_RANGE: bytes done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written(pub u32);

/// Answer to GETLK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockFound {
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// See [`abi::lock_type`].
    pub kind: u32,
    /// The process that has it.
    pub pid: u32,
}

/// Answer to STATFS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Size in units of `fragment_size`.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for others than root.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred IO size, bytes.
    pub block_size: u32,
    /// Longest name, bytes.
    pub name_bytes_max: u32,
    /// Unit of the block counts, bytes.
    pub fragment_size: u32,
}

/// Answer to GETXATTR and LISTXATTR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Xattr {
    /// Length of the value or the list: the answer when the caller asked with size 0.
    Size(u32),
    /// The value; or the names, each ended by a zero byte.
    Value(Bytes),
}

impl Xattr {
    /// The answer that carries `value` for a caller who has room for `size` bytes (0: only asks).
    ///
    /// # Errors
    /// ERANGE when there is not enough room.
    pub fn fitting(value: impl Into<Bytes>, size: u32) -> Result<Xattr, rustix::io::Errno> {
        let value = value.into();
        match (size as usize, value.len()) {
            (0, length) => Ok(Xattr::Size(u32::try_from(length).map_err(|_| rustix::io::Errno::TOOBIG)?)),
            (room, length) if room < length => Err(rustix::io::Errno::RANGE),
            _ => Ok(Xattr::Value(value)),
        }
    }
}

/// Answer to READLINK: the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(pub Bytes);

/// Answer to LSEEK: the new offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset(pub u64);

/// Answer to IOCTL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoctlResult {
    /// What `ioctl(2)` returns.
    pub result: i32,
    /// Data for the caller.
    pub output: Bytes,
}

/// Answer to POLL: `POLL*` events that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready(pub u32);

/// Entries of a directory, up to the room the kernel has for them.
#[derive(Debug)]
pub struct DirectoryEntries {
    bytes: Vec<u8>,
    room: usize,
    with_attributes: bool,
}

impl DirectoryEntries {
    /// An empty list for READDIR, or for READDIRPLUS (`with_attributes`).
    pub fn new(room: usize, with_attributes: bool) -> DirectoryEntries {
        DirectoryEntries { bytes: Vec::new(), room, with_attributes }
    }

    /// Adds a name of `inode` whose file type is in `mode`; `next_offset` is where a later listing
    /// goes on after it. Returns false, and adds nothing, when there is no room.
    ///
    /// In a listing with attributes this is an entry without: the way to give `.` and `..`.
    pub fn add(&mut self, name: &OsStr, inode: u64, mode: u32, next_offset: u64) -> bool {
        self.push(None, name, inode, mode, next_offset)
    }

    /// Adds a name with its attributes, which counts as one lookup of the inode (unless the name is
    /// `.` or `..`). Returns false, and adds and counts nothing, when there is no room.
    pub fn add_entry(&mut self, name: &OsStr, entry: &Entry, next_offset: u64) -> bool {
        self.push(Some(entry), name, entry.inode, entry.attributes.mode, next_offset)
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn push(&mut self, entry: Option<&Entry>, name: &OsStr, inode: u64, mode: u32, next_offset: u64) -> bool {
        let plus = if self.with_attributes { ENTRY_BYTES } else { 0 };
        let length = (plus + DIRENT_BYTES + name.len()).next_multiple_of(8);
        if self.bytes.len() + length > self.room {
            return false;
        }
        let end = self.bytes.len() + length;
        if self.with_attributes {
            match entry {
                Some(entry) => entry.encode(&mut self.bytes),
                None => self.bytes.resize(self.bytes.len() + ENTRY_BYTES, 0),
            }
        }
        put_u64(&mut self.bytes, &[inode, next_offset]);
        put_u32(&mut self.bytes, &[name.len() as u32, (mode & 0o170_000) >> 12]);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.resize(end, 0);
        true
    }
}

/// The kernel's half answered: what is agreed on (`fuse_init_out`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitAnswer {
    pub(crate) minor: u32,
    pub(crate) max_readahead: u32,
    pub(crate) capabilities: u64,
    pub(crate) max_background: u16,
}

/// Answer to COPY_FILE_RANGE_64.
pub(crate) struct Copied(pub(crate) u64);

/// An answer that knows its layout.
pub(crate) trait Answer {
    /// Appends the fixed part.
    fn encode(&self, out: &mut Vec<u8>);

    /// What follows the fixed part and is not to be copied.
    fn pieces(&self) -> &[Bytes] {
        &[]
    }
}

const ENTRY_BYTES: usize = 128;
const DIRENT_BYTES: usize = 24;

fn put_u32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_ne_bytes()));
}

fn put_u64(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_ne_bytes()));
}

impl Answer for () {
    fn encode(&self, _: &mut Vec<u8>) {}
}

impl Answer for Attributes {
    fn encode(&self, out: &mut Vec<u8>) {
        let times = [self.accessed, self.modified, self.changed];
        put_u64(out, &[self.inode, self.size, self.blocks]);
        put_u64(out, &times.map(|time| time.seconds as u64));
        put_u32(out, &times.map(|time| time.nanoseconds));
        put_u32(out, &[self.mode, self.links, self.uid, self.gid, self.device, self.block_size, 0]);
    }
}

impl Answer for Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, &[self.inode, self.generation, self.name_ttl.as_secs(), self.attributes_ttl.as_secs()]);
        put_u32(out, &[self.name_ttl.subsec_nanos(), self.attributes_ttl.subsec_nanos()]);
        self.attributes.encode(out);
    }
}

impl Answer for AttributesFor {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, &[self.ttl.as_secs()]);
        put_u32(out, &[self.ttl.subsec_nanos(), 0]);
        self.attributes.encode(out);
    }
}

impl Answer for Extended {
    fn encode(&self, out: &mut Vec<u8>) {
        let AttributesFor { attributes, ttl } = self.0;
        let mask = abi::STATX_BASIC | if attributes.born.is_some() { abi::STATX_BORN } else { 0 };
        let device = attributes.device;
        let (major, minor) = (device >> 8 & 0xfff, (device & 0xff) | (device >> 12 & 0xf_ff00));
        put_u64(out, &[ttl.as_secs()]);
        put_u32(out, &[ttl.subsec_nanos(), 0, 0, 0, 0, 0]);
        put_u32(out, &[mask, attributes.block_size, 0, 0, attributes.links, attributes.uid, attributes.gid]);
        out.extend_from_slice(&(attributes.mode as u16).to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        put_u64(out, &[attributes.inode, attributes.size, attributes.blocks, 0]);
        let born = attributes.born.unwrap_or_default();
        for time in [attributes.accessed, born, attributes.changed, attributes.modified] {
            put_u64(out, &[time.seconds as u64]);
            put_u32(out, &[time.nanoseconds, 0]);
        }
        put_u32(out, &[major, minor, 0, 0]);
        put_u64(out, &[0; 14]);
    }
}

impl Answer for Opened {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, &[self.handle]);
        put_u32(out, &[self.flags, 0]);
    }
}

impl Answer for Created {
    fn encode(&self, out: &mut Vec<u8>) {
        self.entry.encode(out);
        self.opened.encode(out);
    }
}

impl Answer for Data {
    fn encode(&self, _: &mut Vec<u8>) {}
    fn pieces(&self) -> &[Bytes] {
        &self.0
    }
}

impl Answer for Written {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, &[self.0, 0]);
    }
}

impl Answer for LockFound {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, &[self.start, self.end]);
        put_u32(out, &[self.kind, self.pid]);
    }
}

impl Answer for Copied {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, &[self.0]);
    }
}

impl Answer for Statistics {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, &[self.blocks, self.blocks_free, self.blocks_available, self.files, self.files_free]);
        put_u32(out, &[self.block_size, self.name_bytes_max, self.fragment_size]);
        put_u32(out, &[0; 7]);
    }
}

impl Answer for Xattr {
    fn encode(&self, out: &mut Vec<u8>) {
        if let Xattr::Size(size) = self {
            put_u32(out, &[*size, 0]);
        }
    }
    fn pieces(&self) -> &[Bytes] {
        match self {
            Xattr::Size(_) => &[],
            Xattr::Value(value) => std::slice::from_ref(value),
        }
    }
}

impl Answer for Target {
    fn encode(&self, _: &mut Vec<u8>) {}
    fn pieces(&self) -> &[Bytes] {
        std::slice::from_ref(&self.0)
    }
}

impl Answer for Offset {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, &[self.0]);
    }
}

impl Answer for IoctlResult {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, &[self.result as u32, 0, 0, 0]);
    }
    fn pieces(&self) -> &[Bytes] {
        std::slice::from_ref(&self.output)
    }
}

impl Answer for Ready {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, &[self.0, 0]);
    }
}

impl Answer for DirectoryEntries {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
    }
}

impl Answer for InitAnswer {
    fn encode(&self, out: &mut Vec<u8>) {
        let low = self.capabilities as u32;
        put_u32(out, &[abi::MAJOR, self.minor, self.max_readahead, low]);
        let congestion_threshold = self.max_background / 4 * 3;
        let pages = (abi::TRANSFER_BYTES_MAX / abi::PAGE_BYTES) as u16;
        out.extend_from_slice(&self.max_background.to_ne_bytes());
        out.extend_from_slice(&congestion_threshold.to_ne_bytes());
        put_u32(out, &[abi::TRANSFER_BYTES_MAX as u32, 1]);
        out.extend_from_slice(&pages.to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        put_u32(out, &[(self.capabilities >> 32) as u32]);
        put_u32(out, &[0; 7]);
    }
}
