//! What can be asked of the namespace, and what it answers.
//!
//! A request signed by a client carries a [`Batch`]: one signature over many [`Call`]s, applied in
//! order, each answered by itself. Names, symbolic link targets and extended attributes arrive
//! sealed (AES-SIV-like, deterministic within a directory or file): replicas keep them unique
//! without being able to read them.

use base::{Decode, DecodeError, Encode, Reader, Time, canonical_enum, canonical_struct};
use bytes::Bytes;

pub use crate::acl::{Acl, AclEntry, AclKind};
pub use crate::denied::Denied;
pub use crate::filelocks::{LockHow, LockKind, LockMode, LockRequest, LockSeen, Locked};
pub use crate::types::*;

/// Longest name before sealing, bytes (`NAME_MAX` of Linux).
pub const NAME_MAX: usize = 255;
/// What sealing adds to a name, a target or a value, bytes: the AEAD's tag.
pub const SEAL_LEN: usize = 16;
/// Longest symbolic link target before sealing, bytes (`PATH_MAX` less its NUL).
pub const TARGET_MAX: usize = 4095;
/// Longest extended attribute value before sealing, bytes (Linux's `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65536;
/// Most calls in a batch.
pub const BATCH_MAX: usize = 256;
/// Most supplementary groups a caller may name.
pub const GROUPS_MAX: usize = 256;
/// Longest sealed recipe an inode holds itself, bytes; longer recipes live in blocks.
pub const RECIPE_MAX: usize = 512;
/// Most patches of a file's content.
pub const PATCHES_MAX: usize = 64;
/// The most that they take together, bytes: what an answer has room for beside others.
pub const PATCHES_LEN_MAX: usize = 64 << 10;
/// Most directory entries in one [`Reply::Entries`].
pub const ENTRIES_MAX: u32 = 512;
/// Most hard links to one file (ext4's figure).
pub const LINKS_MAX: u32 = 65_000;

macro_rules! canonical_newtype {
    ($name:ident($inner:ty)) => {
        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }
        impl Decode for $name {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok($name(<$inner>::decode(input)?))
            }
        }
    };
}

/// An inode number, unique in the cluster and never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);
canonical_newtype!(Ino(u64));

/// A volume's number, unique in the cluster and never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);
canonical_newtype!(VolumeId(u32));

/// A sealed name: 1 to [`NAME_MAX`] bytes and the seal's [`SEAL_LEN`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealedName(Bytes);

impl SealedName {
    /// The sealed bytes as a name; `None` if their length is not a name's.
    #[must_use]
    pub fn new(sealed: impl Into<Bytes>) -> Option<SealedName> {
        let sealed = sealed.into();
        (sealed.len() > SEAL_LEN && sealed.len() <= NAME_MAX + SEAL_LEN).then_some(SealedName(sealed))
    }

    /// The sealed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Encode for SealedName {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for SealedName {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        SealedName::new(Bytes::decode(input)?).ok_or(DecodeError::Invalid { what: "sealed name" })
    }
}

/// A file's timestamp: seconds since the epoch (may be negative) and nanoseconds beyond them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl From<Time> for Timestamp {
    fn from(time: Time) -> Timestamp {
        let (seconds, nanos) = time.parts();
        Timestamp { seconds: seconds as i64, nanos }
    }
}

/// What was before 1970 is at its beginning.
impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Time {
        u64::try_from(at.seconds).map_or(Time::ZERO, |seconds| Time::from_parts(seconds, at.nanos))
    }
}

impl Encode for Timestamp {
    fn encode(&self, out: &mut Vec<u8>) {
        self.seconds.encode(out);
        self.nanos.encode(out);
    }
}

impl Decode for Timestamp {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (seconds, nanos) = Decode::decode(input)?;
        if nanos >= 1_000_000_000 {
            return Err(DecodeError::Invalid { what: "timestamp" });
        }
        Ok(Timestamp { seconds, nanos })
    }
}

/// For whom a client acts. The signing key's grant must cover `uid`; `gid` and `groups` are taken
/// at its word, as NFS takes them, because a grant over a uid is a grant over what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Supplementary groups, at most [`GROUPS_MAX`].
    pub groups: Vec<u32>,
}
canonical_struct!(Caller { uid, gid, groups });

/// Many calls under one signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What is asked, at most [`BATCH_MAX`].
    pub calls: Vec<Call>,
    /// In whose name as a holder of leases; `None`: nobody's.
    pub by: Option<By>,
}

impl Encode for Batch {
    fn encode(&self, out: &mut Vec<u8>) {
        self.calls.encode(out);
        self.by.encode(out);
    }
}

impl Decode for Batch {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Batch { calls: input.seq_max("batch", BATCH_MAX)?, by: Decode::decode(input)? })
    }
}

/// One operation on somebody's behalf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// For whom.
    pub caller: Caller,
    /// What.
    pub op: Op,
}
canonical_struct!(Call { caller, op });

/// The answers to a [`Batch`], one a call, in order. A batch that can't be decoded, or whose signer
/// is unknown, is answered by a single refusal.
pub type Answers = Vec<Answer>;

/// The answer to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done(Reply),
    /// Refused, with no effect at all.
    Denied(Denied),
}
canonical_enum!(Answer { 0 => Done(reply), 1 => Denied(why) });

impl Answer {
    /// The answer as a `Result`.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result(self) -> Result<Reply, Denied> {
        match self {
            Answer::Done(reply) => Ok(reply),
            Answer::Denied(why) => Err(why),
        }
    }
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes a volume with an empty root directory owned by the caller. -> [`Reply::Volume`]
    VolumeCreate(VolumeSpec),
    /// Finds a volume by name. -> [`Reply::Volume`]
    VolumeGet { name: String },
    /// Lists all volumes. -> [`Reply::Volumes`]
    VolumeList,
    /// Space and inodes of a volume. -> [`Reply::Space`]
    StatFs { volume: VolumeId },
    /// Finds a name in a directory. -> [`Reply::Attr`]
    Lookup { parent: Ino, name: SealedName },
    /// An inode's attributes. -> [`Reply::Attr`]
    GetAttr { ino: Ino },
    /// Checks `mask` (4 read, 2 write, 1 execute) for the caller. -> [`Reply::Unit`]
    Access { ino: Ino, mask: u8 },
    /// Attributes and content of a regular file the caller may read (`mask` 4), write (2) or both;
    /// or wrote to before ([`crate::OPENED`] and 2). -> [`Reply::Opened`]
    Open { ino: Ino, mask: u8 },
    /// Changes attributes. -> [`Reply::Attr`]
    SetAttr { ino: Ino, change: AttrChange },
    /// Binds new content to a file: the last step of a write. -> [`Reply::Attr`]
    Commit(Commit),
    /// Makes an inode and its first name. -> [`Reply::Created`]
    Create { parent: Ino, name: SealedName, new: NewInode, exclusive: bool },
    /// Gives a non-directory another name; or its first, to what was made without. -> [`Reply::Attr`]
    Link { ino: Ino, parent: Ino, name: SealedName },
    /// Removes a non-directory's name. `keep`: if that was its last name, keep the inode as an
    /// orphan, because the caller has it open. -> [`Reply::Unlinked`]
    Unlink { parent: Ino, name: SealedName, keep: bool },
    /// Removes an empty directory. -> [`Reply::Unit`]
    Rmdir { parent: Ino, name: SealedName },
    /// Renames; `keep` as for `Unlink`, for the inode that is replaced. -> [`Reply::Renamed`]
    Rename { from: Ino, from_name: SealedName, to: Ino, to_name: SealedName, how: RenameHow, keep: bool },
    /// A symbolic link's sealed target. -> [`Reply::Target`]
    ReadLink { ino: Ino },
    /// Entries after `cookie` (0: from the start), at most `max`, in cookie order. -> [`Reply::Entries`]
    ReadDir { ino: Ino, cookie: u64, max: u32 },
    /// Sets an extended attribute. -> [`Reply::Unit`]
    SetXattr { ino: Ino, class: XattrClass, name: SealedName, value: Bytes, how: XattrHow },
    /// Reads an extended attribute. -> [`Reply::Value`]
    GetXattr { ino: Ino, class: XattrClass, name: SealedName },
    /// Lists extended attributes. -> [`Reply::Names`], or [`Reply::Listed`] if there are access lists
    ListXattr { ino: Ino },
    /// Removes an extended attribute. -> [`Reply::Unit`]
    RemoveXattr { ino: Ino, class: XattrClass, name: SealedName },
    /// Keeps an orphan for another hour of agreed time. -> [`Reply::Unit`]
    KeepOrphan { ino: Ino },
    /// Lets go of an orphan: its last opener closed it. -> [`Reply::Unit`]
    ReleaseOrphan { ino: Ino },
    /// The directory that a directory is in (`..`); of a root, itself. -> [`Reply::Attr`]
    Parent { ino: Ino },
    /// Asks for a lease on a directory with all below it, as the signer's holder with this number. The
    /// caller may read and search it. `instead`: asked in nobody's name the holder begins anew, and whoever
    /// had its number with this epoch is fenced; with another epoch it goes on. So a request that was held up
    /// ends nothing that began after it. `shared`: a lease that others have, too, will do, under which nothing
    /// is changed; else the caller may also write to the directory. -> [`Reply::Held`], [`Reply::Taken`]
    Hold { holder: u64, ino: Ino, instead: u64, shared: bool },
    /// What the batch's holder should know. Every batch in its name makes its leases last longer. ->
    /// [`Reply::Lease`]
    Renew,
    /// Gives directories back that others want, with all below them. -> [`Reply::Lease`]
    Cede { directories: Vec<Ino> },
    /// Gives all leases back. -> [`Reply::Unit`]
    Release,
    /// The rows of a directory's entries after `cookie`, which the holder has a lease on; and if that is all, the
    /// rows of the first of the others ([`ALSO_MAX`](crate::ALSO_MAX) at most) that there is room for. Of a
    /// snapshot it takes no lease, and the others are of it, too. -> [`Reply::Rows`]
    Fetch { ino: Ino, cookie: u64, also: Vec<Ino> },
    /// Takes a lock for an owner of the batch's holder, waits for it, or gives it back. -> [`Reply::Locked`]
    Lock(LockRequest),
    /// What is in the way of a lock. -> [`Reply::Conflict`]
    GetLock(LockRequest),
    /// Makes the signer's holder with this number known, to have locks without leases. `instead` as for
    /// `Hold`. -> [`Reply::Held`], [`Reply::Taken`]
    Enroll { holder: u64, instead: u64 },
    /// Makes a regular file without a name, which the signer keeps as it keeps an orphan. Until it is let go
    /// the signer may [`Op::Link`] it. -> [`Reply::Created`]
    CreateUnnamed { parent: Ino, new: NewInode },
    /// Gives an inode an access list, or takes it away; only its owner may. -> [`Reply::Attr`]
    SetAcl { ino: Ino, kind: AclKind, acl: Option<Acl> },
    /// An access list. -> [`Reply::Acl`]
    GetAcl { ino: Ino, kind: AclKind },
    /// Takes a snapshot of a volume, once nobody has a lease on any of it: administrators may. ->
    /// [`Reply::Snapshots`]
    SnapshotTake { volume: VolumeId, name: String },
    /// A volume's snapshots, the latest last. -> [`Reply::Snapshots`]
    SnapshotList { volume: VolumeId },
    /// Deletes a snapshot: administrators may. -> [`Reply::Unit`]
    SnapshotDelete { volume: VolumeId, name: String },
    /// Gives something in the trash a name. -> [`Reply::Attr`]
    Restore { ino: Ino, parent: Ino, name: SealedName },
    /// Ends something in the trash; a directory once nothing that was thrown away from it is there. ->
    /// [`Reply::Unit`]
    Purge { ino: Ino },
    /// For how long a volume's trash keeps what is thrown away; 0: it does not. Administrators may. ->
    /// [`Reply::Unit`]
    TrashKeep { volume: VolumeId, seconds: u32 },
    /// Ends everything in a volume's trash, bit by bit; it is not to be seen any more: administrators may. ->
    /// [`Reply::Unit`]
    TrashEmpty { volume: VolumeId },
}
canonical_enum!(Op {
    0 => VolumeCreate(spec),
    1 => VolumeGet { name },
    2 => VolumeList,
    3 => StatFs { volume },
    4 => Lookup { parent, name },
    5 => GetAttr { ino },
    6 => Access { ino, mask },
    7 => Open { ino, mask },
    8 => SetAttr { ino, change },
    9 => Commit(commit),
    10 => Create { parent, name, new, exclusive },
    11 => Link { ino, parent, name },
    12 => Unlink { parent, name, keep },
    13 => Rmdir { parent, name },
    14 => Rename { from, from_name, to, to_name, how, keep },
    15 => ReadLink { ino },
    16 => ReadDir { ino, cookie, max },
    17 => SetXattr { ino, class, name, value, how },
    18 => GetXattr { ino, class, name },
    19 => ListXattr { ino },
    20 => RemoveXattr { ino, class, name },
    21 => KeepOrphan { ino },
    22 => ReleaseOrphan { ino },
    23 => Parent { ino },
    24 => Hold { holder, ino, instead, shared },
    25 => Renew,
    26 => Cede { directories },
    27 => Release,
    28 => Fetch { ino, cookie, also },
    29 => Lock(request),
    30 => GetLock(request),
    31 => Enroll { holder, instead },
    32 => CreateUnnamed { parent, new },
    33 => SetAcl { ino, kind, acl },
    34 => GetAcl { ino, kind },
    35 => SnapshotTake { volume, name },
    36 => SnapshotList { volume },
    37 => SnapshotDelete { volume, name },
    38 => Restore { ino, parent, name },
    39 => Purge { ino },
    40 => TrashKeep { volume, seconds },
    41 => TrashEmpty { volume },
});

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done; nothing to say.
    Unit,
    /// A volume.
    Volume(Volume),
    /// All volumes.
    Volumes(Vec<Volume>),
    /// Space of a volume.
    Space(Space),
    /// An inode's attributes after the operation.
    Attr(Attr),
    /// A file's attributes and content.
    Opened { attr: Attr, content: Content },
    /// The inode, new unless `fresh` is false (not exclusive, and it was there).
    Created { attr: Attr, fresh: bool },
    /// The inode that lost a name and how many it has left.
    Unlinked { ino: Ino, nlink: u32 },
    /// The inode that was moved (as it is now), and the one that was replaced, with its links left.
    Renamed { moved: Attr, replaced: Option<(Ino, u32)> },
    /// A sealed symbolic link target.
    Target(Bytes),
    /// Directory entries; `end` if there are no more after these.
    Entries { entries: Vec<DirEntry>, end: bool },
    /// A sealed extended attribute value.
    Value(Bytes),
    /// Sealed extended attribute names with their classes.
    Names(Vec<(XattrClass, SealedName)>),
    /// A lease, and the rows to begin a copy of the state with.
    Held { epoch: u64, lease: Lease, rows: Vec<Row> },
    /// What a holder should know.
    Lease(Lease),
    /// Rows of directories; `whole`: those of which all are there now; `next`: the cookie after which the one
    /// that was asked for has more.
    Rows { rows: Vec<Row>, whole: Vec<Ino>, next: Option<u64> },
    /// What became of a lock.
    Locked(Locked),
    /// A lock that is in the way, if one is.
    Conflict(Option<LockSeen>),
    /// An access list.
    Acl(Acl),
    /// As `Names`; and which access lists there are: its own, and one for what is made in it.
    Listed { names: Vec<(XattrClass, SealedName)>, access: bool, default: bool },
    /// Somebody is the holder with this number, with this epoch: to begin anew, name it.
    Taken { epoch: u64 },
    /// Snapshots, the latest last.
    Snapshots(Vec<Snapshot>),
}
canonical_enum!(Reply {
    0 => Unit,
    1 => Volume(volume),
    2 => Volumes(volumes),
    3 => Space(space),
    4 => Attr(attr),
    5 => Opened { attr, content },
    6 => Created { attr, fresh },
    7 => Unlinked { ino, nlink },
    8 => Renamed { moved, replaced },
    9 => Target(target),
    10 => Entries { entries, end },
    11 => Value(value),
    12 => Names(names),
    13 => Held { epoch, lease, rows },
    14 => Lease(lease),
    15 => Rows { rows, whole, next },
    16 => Locked(locked),
    17 => Conflict(seen),
    18 => Acl(acl),
    19 => Listed { names, access, default },
    20 => Taken { epoch },
    21 => Snapshots(snapshots),
});
