//! Why operations are refused.

use base::canonical_enum;

/// Why an operation was refused. Each maps to one `errno` at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The signing key is not a user of the cluster, or may not act for this uid, or not here.
    NotGranted,
    /// The request is not one that this version understands.
    Malformed,
    /// EACCES: mode bits forbid it.
    Access,
    /// EPERM: only the owner, or root, may.
    NotPermitted,
    /// ENOENT.
    NotFound,
    /// ESTALE: no such inode, or content that changed since it was read (see [`Commit::base`](crate::Commit::base)).
    Stale,
    /// EEXIST.
    Exists,
    /// ENOTDIR.
    NotDirectory,
    /// EISDIR.
    IsDirectory,
    /// ENOTEMPTY.
    NotEmpty,
    /// EMLINK.
    TooManyLinks,
    /// EXDEV: between volumes.
    CrossVolume,
    /// EINVAL: a directory into itself, a flag or a value that makes no sense.
    Invalid,
    /// ENODATA: no such extended attribute.
    NoAttribute,
    /// ENOSPC / E2BIG: the extended attributes of one inode take too much.
    AttributesFull,
    /// EDQUOT: the volume's quota of bytes or inodes.
    Quota,
    /// EFBIG.
    TooBig,
    /// Somebody holds a lease on it, and was asked for it: try again.
    Leased,
    /// The holder's leases are over, or what it sent is not what it could send.
    Fenced,
    /// The holder sent this part of its log before.
    Applied,
    /// No lease on this for now: others use it, too.
    Contended,
    /// EAGAIN: somebody else has a lock there.
    Locked,
    /// ENOLCK: too many locks, or too many that wait for one.
    NoLocks,
    /// EROFS: it is in a snapshot.
    ReadOnly,
}
canonical_enum!(Denied {
    0 => NotGranted,
    1 => Malformed,
    2 => Access,
    3 => NotPermitted,
    4 => NotFound,
    5 => Stale,
    6 => Exists,
    7 => NotDirectory,
    8 => IsDirectory,
    9 => NotEmpty,
    10 => TooManyLinks,
    11 => CrossVolume,
    12 => Invalid,
    13 => NoAttribute,
    14 => AttributesFull,
    15 => Quota,
    16 => TooBig,
    17 => Leased,
    18 => Fenced,
    19 => Applied,
    20 => Contended,
    21 => Locked,
    22 => NoLocks,
    23 => ReadOnly,
});
