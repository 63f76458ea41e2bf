//! What operations are about: volumes, attributes, content, entries.

use std::collections::BTreeMap;

use base::{BlockId, Decode, DecodeError, Encode, PublicKey, Reader, Time, canonical_enum, canonical_struct};
use bytes::Bytes;

use crate::op::{Ino, PATCHES_LEN_MAX, PATCHES_MAX, SealedName, Timestamp, VolumeId};

/// What a volume is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name: 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// Most bytes its files may hold together; 0: no limit.
    pub quota_bytes: u64,
    /// Most inodes it may hold; 0: no limit.
    pub quota_inodes: u64,
    /// How its blocks are kept.
    pub redundancy: Redundancy,
    /// How its files are cut: smallest, average, largest chunk, bytes.
    pub chunking: Chunking,
    /// The volume's secret, sealed to each user who may read it.
    pub secrets: BTreeMap<PublicKey, Bytes>,
    /// Mode bits of the root directory.
    pub root_mode: u16,
    /// For how long what loses its last name is kept in the trash, seconds; 0: it is not.
    pub trash: u32,
}
canonical_struct!(VolumeSpec { name, quota_bytes, quota_inodes, redundancy, chunking, secrets, root_mode, trash });

/// How a volume's blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redundancy {
    /// This many whole copies, 1 to 16.
    Replicate(u8),
}
canonical_enum!(Redundancy { 0 => Replicate(copies) });

/// How a volume's files are cut, bytes: `min <= average <= max`, all powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// No chunk but a file's last is shorter.
    pub min: u32,
    /// What chunks measure on average.
    pub average: u32,
    /// No chunk is longer.
    pub max: u32,
}
canonical_struct!(Chunking { min, average, max });

/// A volume as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its number.
    pub id: VolumeId,
    /// Its root directory.
    pub root: Ino,
    /// What it was made with.
    pub spec: VolumeSpec,
}
canonical_struct!(Volume { id, root, spec });

/// Space of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes its files hold: what is stored of them, without holes.
    pub used_bytes: u64,
    /// The quota of them; 0: no limit.
    pub quota_bytes: u64,
    /// Inodes it holds.
    pub used_inodes: u64,
    /// The quota of them; 0: no limit.
    pub quota_inodes: u64,
}
canonical_struct!(Space { used_bytes, quota_bytes, used_inodes, quota_inodes });

/// What kind of thing an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}
canonical_enum!(Kind {
    0 => File,
    1 => Directory,
    2 => Symlink,
    3 => Fifo,
    4 => Socket,
    5 => CharDevice,
    6 => BlockDevice,
});

/// What `stat` says of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// Its volume.
    pub volume: VolumeId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits: the low twelve.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names it has; for a directory, 2 and one for each subdirectory.
    pub nlink: u32,
    /// Bytes: of content, or of a symbolic link's target before sealing; for a directory, entries.
    pub size: u64,
    /// Bytes of content that are not holes.
    pub allocated: u64,
    /// Device number of a device.
    pub rdev: u32,
    /// When last read (kept as set; reads do not change it).
    pub atime: Timestamp,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// When anything about it last changed.
    pub ctime: Timestamp,
    /// When it was made.
    pub btime: Timestamp,
    /// Counts every change of the inode.
    pub version: u64,
    /// Counts every change of content (of a directory: of its entries).
    pub content_version: u64,
}
canonical_struct!(Attr {
    ino,
    volume,
    kind,
    mode,
    uid,
    gid,
    nlink,
    size,
    allocated,
    rdev,
    atime,
    mtime,
    ctime,
    btime,
    version,
    content_version,
});

/// A change of attributes; `None` leaves one alone. Size is changed by [`Commit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrChange {
    /// New mode bits.
    pub mode: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}
canonical_struct!(AttrChange { mode, uid, gid, atime, mtime });

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The agreed time (write permission is enough).
    Now,
    /// This time (owner or root only).
    At(Timestamp),
}
canonical_enum!(SetTime { 0 => Now, 1 => At(time) });

/// A file's content, as far as replicas know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes in the file.
    pub size: u64,
    /// Of these, bytes that are stored (not holes).
    pub allocated: u64,
    /// The root of the recipe's tree of blocks, if the recipe does not fit in `sealed`.
    pub root: Option<BlockId>,
    /// The recipe, or the key that opens its root; sealed, at most [`RECIPE_MAX`] bytes.
    pub sealed: Bytes,
    /// What was written over that since, in order; each sealed, with where it goes. At most [`PATCHES_MAX`],
    /// together no longer than [`PATCHES_LEN_MAX`].
    pub patches: Vec<Bytes>,
}
canonical_struct!(Content { size, allocated, root, sealed, patches });

impl Content {
    /// What its patches take, bytes.
    #[must_use]
    pub fn patches_len(&self) -> usize {
        self.patches.iter().map(Bytes::len).sum()
    }

    /// Whether so many more patches of so many bytes have room.
    #[must_use]
    pub fn has_room(&self, patches: usize, len: usize) -> bool {
        self.patches.len() + patches <= PATCHES_MAX && self.patches_len() + len <= PATCHES_LEN_MAX
    }
}

/// What a commit's content is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// All of it.
    #[default]
    Whole,
    /// Patches to lay over what the file has, which is at least as long then, and over so many patches: they may
    /// have been folded since.
    Patch {
        /// How many.
        over: u32,
    },
    /// What the file has with its patches, without them: nothing was written, so no times change, and neither
    /// does the `content_version`.
    Fold,
}
canonical_enum!(Form { 0 => Whole, 1 => Patch { over }, 2 => Fold });

/// A volume as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose.
    pub volume: VolumeId,
    /// Unique in the cluster, and never used again. Its root is the volume's, [`Ino::in_snapshot`].
    pub number: u64,
    /// Unique in the volume.
    pub name: String,
    /// When it was taken.
    pub taken: Timestamp,
    /// The number of the volume's next one; 0 if there is none.
    pub later: u64,
    /// It is deleted, and what was kept for it is not given up yet.
    pub deleted: bool,
}
canonical_struct!(Snapshot { volume, number, name, taken, later, deleted });

/// Binds new content to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Which file.
    pub ino: Ino,
    /// The `content_version` this content was made from; [`Denied::Stale`] if it moved on, and the
    /// client merges its changes with the new content. `None`: whatever is there (truncate to 0).
    pub base: Option<u64>,
    /// The content, whole or what is new of it.
    pub content: Content,
    /// Which of these.
    pub form: Form,
    /// Modification time; the agreed time if `None`.
    pub mtime: Option<Timestamp>,
    /// Access time; unchanged if `None`.
    pub atime: Option<Timestamp>,
    /// The writer opened the file while it was allowed to write (POSIX: later changes of mode do
    /// not take that away); otherwise write permission is checked now, as `truncate(2)` is.
    pub opened: bool,
}
canonical_struct!(Commit { ino, base, content, form, mtime, atime, opened });

impl Commit {
    /// All of a file's content, written now by whoever may write.
    #[must_use]
    pub fn whole(ino: Ino, base: Option<u64>, content: Content) -> Commit {
        Commit { ino, base, content, form: Form::Whole, mtime: None, atime: None, opened: false }
    }
}

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewInode {
    /// What kind.
    pub kind: Kind,
    /// Mode bits.
    pub mode: u16,
    /// Which of them are not given, of the low nine; unless the directory has a list for what is made in it.
    pub umask: u16,
    /// Device number, for devices.
    pub rdev: u32,
    /// Sealed target, for symbolic links.
    pub target: Bytes,
}

/// In the tag of a new inode's kind: there is a umask. Without this bit it reads as before there were any.
const MASKED: u8 = 0x80;

impl Encode for NewInode {
    fn encode(&self, out: &mut Vec<u8>) {
        let tag = out.len();
        self.kind.encode(out);
        if self.umask != 0 {
            out[tag] |= MASKED;
            self.umask.encode(out);
        }
        (self.mode, self.rdev, &self.target).encode(out);
    }
}

impl Decode for NewInode {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = u8::decode(input)?;
        let kind = Kind::from_bytes(&[tag & !MASKED])?;
        let umask = if tag & MASKED != 0 { u16::decode(input)? } else { 0 };
        if tag & MASKED != 0 && umask == 0 {
            return Err(DecodeError::Invalid { what: "umask" });
        }
        let (mode, rdev, target) = Decode::decode(input)?;
        Ok(NewInode { kind, mode, umask, rdev, target })
    }
}

/// Flags of `renameat2(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameHow {
    /// Replace what is there.
    Replace,
    /// Refuse if something is there.
    NoReplace,
    /// Swap the two.
    Exchange,
}
canonical_enum!(RenameHow { 0 => Replace, 1 => NoReplace, 2 => Exchange });

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its place: stable while the entry exists, above 2.
    pub cookie: u64,
    /// Its sealed name.
    pub name: SealedName,
    /// What it names.
    pub attr: Attr,
}
canonical_struct!(DirEntry { cookie, name, attr });

/// The namespace of an extended attribute: what decides who may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XattrClass {
    /// `user.`: with the file's read or write permission; files and directories only.
    User,
    /// `trusted.`: root only, for reading too.
    Trusted,
    /// `security.`: root may change it, everybody read it.
    Security,
    /// `system.`: the owner may change it, everybody read it.
    System,
}
canonical_enum!(XattrClass { 0 => User, 1 => Trusted, 2 => Security, 3 => System });

/// Flags of `setxattr(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrHow {
    /// Create or replace.
    Set,
    /// Refuse if there ([`Denied::Exists`]).
    Create,
    /// Refuse if not there ([`Denied::NoAttribute`]).
    Replace,
}
canonical_enum!(XattrHow { 0 => Set, 1 => Create, 2 => Replace });

/// In whose name as a holder of leases a batch comes, beside its signer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// Which of the signer's holders: the number it chose.
    pub holder: u64,
    /// The epoch of its leases. A batch with another one than it has is refused with [`Denied::Fenced`].
    pub epoch: u64,
    /// The calls were applied before, by the holder to its own copy; `None`: they are to be ordered only.
    pub log: Option<Log>,
}
canonical_struct!(By { holder, epoch, log });

/// A part of a holder's log. Its calls are applied up to the first that is refused, which fences the
/// holder: so what is lost of a log is its end, and never something in the middle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Which part: 0, 1, 2, ... in this epoch. [`Denied::Applied`] if it was applied before.
    pub part: u64,
    /// When each call was applied at the holder's, by its idea of agreed time.
    pub stamps: Vec<Time>,
}
canonical_struct!(Log { part, stamps });

/// What a holder is told of its leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The agreed time now.
    pub now: Time,
    /// When its leases run out, agreed time.
    pub until: Time,
    /// Directories that others want: to be ceded as soon as possible.
    pub recalls: Vec<Ino>,
    /// The ranges of inode numbers that it may use and, as far as replicas know, has not: each from the first,
    /// up to but without the second. Later ones are higher.
    pub inos: Vec<(Ino, Ino)>,
}
canonical_struct!(Lease { now, until, recalls, inos });

/// A row of the state: its name and its value.
pub type Row = (Bytes, Bytes);
