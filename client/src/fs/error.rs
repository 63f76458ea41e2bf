//! Why a filesystem operation failed. A door maps each to one `errno`, in one place.

use meta::Denied;

use crate::backend::{BlockError, Unavailable};

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The replicas refused it; each refusal has its own `errno`.
    #[error("refused: {0:?}")]
    Denied(Denied),
    /// EIO: too few replicas or storage nodes answered. Trying again may help.
    #[error("the cluster can't be reached: {0}")]
    Unavailable(String),
    /// EIO: what was done here and not synced is lost: this mount was cut off for too long.
    #[error("changes made here were lost: this mount was cut off for too long{0}")]
    Lost(String),
    /// ENOSPC: the storage nodes are full.
    #[error("no space left on the storage nodes")]
    NoSpace,
    /// EIO: what is stored is not what it should be: a lost block, a recipe that does not open.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// ENAMETOOLONG: a name above 255 bytes, a symbolic link target above 4095.
    #[error("name too long")]
    NameTooLong,
    /// EINVAL: an argument that makes no sense (a name with `/`, a length of zero, ...).
    #[error("invalid argument")]
    Invalid,
    /// EBADF: no such handle, or not opened for this.
    #[error("bad file handle")]
    BadHandle,
    /// EFBIG: beyond the longest file there can be.
    #[error("file too large")]
    TooBig,
    /// E2BIG / ERANGE: an extended attribute value that is too long.
    #[error("value too long")]
    ValueTooLong,
    /// ENXIO: no data, or nothing at all, at or after this offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// EINTR: whoever waited for a lock was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// EDEADLK: whoever has the lock waits for who asks for it.
    #[error("a circle of waits for locks")]
    Deadlock,
    /// EOPNOTSUPP: a mode or namespace that is not supported.
    #[error("not supported")]
    NotSupported,
}

/// What a filesystem operation gives.
pub type Result<T> = std::result::Result<T, FsError>;

impl FsError {
    /// Whether the same call may succeed later with nothing changed by the caller.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, FsError::Unavailable(_) | FsError::NoSpace | FsError::Denied(Denied::Quota))
    }
}

impl From<Denied> for FsError {
    fn from(why: Denied) -> FsError {
        FsError::Denied(why)
    }
}

impl From<Unavailable> for FsError {
    fn from(Unavailable(cause): Unavailable) -> FsError {
        FsError::Unavailable(cause)
    }
}

impl From<BlockError> for FsError {
    fn from(error: BlockError) -> FsError {
        match error {
            BlockError::Full => FsError::NoSpace,
            BlockError::Missing(_) => FsError::Corrupt(error.to_string()),
            BlockError::Unavailable(cause) => FsError::Unavailable(cause),
        }
    }
}
