//! Errors of the client library as error numbers: the one place that decides.

use client::fs::FsError;
use meta::Denied;

use crate::wire::Errno;

/// The error number for `error`. Never ENOSYS: the kernel would stop asking for good.
pub(crate) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::Denied(why) => denied(*why),
        FsError::Unavailable(_) | FsError::Corrupt(_) | FsError::Lost(_) => Errno::IO,
        FsError::NoSpace => Errno::NOSPC,
        FsError::NameTooLong => Errno::NAMETOOLONG,
        FsError::Invalid => Errno::INVAL,
        FsError::BadHandle => Errno::BADF,
        FsError::TooBig => Errno::FBIG,
        FsError::ValueTooLong => Errno::TOOBIG,
        FsError::NoSuchOffset => Errno::NXIO,
        FsError::NotSupported => Errno::OPNOTSUPP,
        FsError::Interrupted => Errno::INTR,
        FsError::Deadlock => Errno::DEADLK,
    }
}

fn denied(why: Denied) -> Errno {
    match why {
        Denied::NotGranted | Denied::Access => Errno::ACCESS,
        Denied::Malformed | Denied::Fenced | Denied::Applied => Errno::IO,
        Denied::Leased | Denied::Contended | Denied::Locked => Errno::AGAIN,
        Denied::NoLocks => Errno::NOLCK,
        Denied::ReadOnly => Errno::ROFS,
        Denied::NotPermitted => Errno::PERM,
        Denied::NotFound => Errno::NOENT,
        Denied::Stale => Errno::STALE,
        Denied::Exists => Errno::EXIST,
        Denied::NotDirectory => Errno::NOTDIR,
        Denied::IsDirectory => Errno::ISDIR,
        Denied::NotEmpty => Errno::NOTEMPTY,
        Denied::TooManyLinks => Errno::MLINK,
        Denied::CrossVolume => Errno::XDEV,
        Denied::Invalid => Errno::INVAL,
        Denied::NoAttribute => Errno::NODATA,
        Denied::AttributesFull => Errno::NOSPC,
        Denied::Quota => Errno::DQUOT,
        Denied::TooBig => Errno::FBIG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_can_act_on_keeps_its_meaning() {
        assert_eq!(errno(&FsError::Denied(Denied::NotFound)), Errno::NOENT);
        assert_eq!(errno(&FsError::Denied(Denied::Quota)), Errno::DQUOT);
        assert_eq!(errno(&FsError::NoSpace), Errno::NOSPC);
        assert_eq!(errno(&FsError::Unavailable("two replicas of four".into())), Errno::IO);
        assert_eq!(errno(&FsError::NoSuchOffset), Errno::NXIO, "what lseek says beyond the last data");
        assert_eq!(errno(&FsError::NotSupported), Errno::OPNOTSUPP, "not ENOSYS, which is for ever");
    }
}
