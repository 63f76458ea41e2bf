//! Who may do what: grants, and the permission rules of POSIX as Linux applies them.

use base::{PublicKey, Time, canonical_enum, canonical_struct};

use crate::acl::Lists;
use crate::inode::Inode;
use crate::op::{Attr, AttrChange, Caller, Denied, GROUPS_MAX, Kind, NewInode, SetTime, Timestamp};

/// Permission to read, as in `access(2)`.
pub const READ: u8 = 4;
/// Permission to write.
pub const WRITE: u8 = 2;
/// Permission to execute a file or to search a directory.
pub const EXECUTE: u8 = 1;
/// With [`WRITE`], to open a file again: the caller opened it for writing earlier. Judged as
/// `opened` in [`Commit`](crate::Commit) is; no permission to ask for otherwise.
pub const OPENED: u8 = 8;

/// The low twelve bits: all that a mode can hold.
pub(crate) const MODE_BITS: u16 = 0o7777;
pub(crate) const SET_UID: u16 = 0o4000;
pub(crate) const SET_GID: u16 = 0o2000;
/// The bits of a mode by which a program runs with its file's ids.
pub const SET_IDS: u16 = SET_UID | SET_GID;
pub(crate) const STICKY: u16 = 0o1000;
const GROUP_EXECUTE: u16 = 0o010;
const ANY_EXECUTE: u16 = 0o111;
/// The id that means "none" to `chown(2)`; nobody can own a file as it.
pub(crate) const NO_ID: u32 = u32::MAX;

/// What a principal (a key) may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// For whom it may act.
    pub uids: Uids,
    /// Whether it may make volumes.
    pub admin: bool,
}
canonical_struct!(Grant { uids, admin });

/// A set of user ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uids {
    /// All of them, root's too.
    Any,
    /// One.
    One(u32),
    /// From `first` to `last`, both included.
    Range {
        /// The lowest.
        first: u32,
        /// The highest.
        last: u32,
    },
}
canonical_enum!(Uids { 0 => Any, 1 => One(uid), 2 => Range { first, last } });

impl Uids {
    /// Whether `uid` is one of them.
    #[must_use]
    pub fn contains(self, uid: u32) -> bool {
        match self {
            Uids::Any => true,
            Uids::One(only) => uid == only,
            Uids::Range { first, last } => (first..=last).contains(&uid),
        }
    }
}

/// Everything a rule may ask about the call it judges.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The agreed time.
    pub(crate) now: Time,
    /// The key that signed the batch.
    pub(crate) key: &'a PublicKey,
    /// What that key was granted.
    pub(crate) grant: Grant,
    /// For whom it acts.
    pub(crate) caller: &'a Caller,
    /// The key's holder of leases in whose name the batch comes.
    pub(crate) by: Option<u64>,
    /// Whether the holder did this before, on its own copy.
    pub(crate) logged: bool,
}

impl Context<'_> {
    /// Whether the key may act for this caller at all.
    pub(crate) fn check(&self) -> Result<(), Denied> {
        match () {
            () if !self.grant.uids.contains(self.caller.uid) => Err(Denied::NotGranted),
            () if self.caller.groups.len() > GROUPS_MAX => Err(Denied::Malformed),
            () => Ok(()),
        }
    }

    /// The holder in whose name the batch comes.
    pub(crate) fn holder(&self) -> Result<(PublicKey, u64), Denied> {
        Ok((*self.key, self.by.ok_or(Denied::Fenced)?))
    }

    pub(crate) fn stamp(&self) -> Timestamp {
        Timestamp::from(self.now)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.caller.uid == 0
    }

    pub(crate) fn owns(&self, attr: &Attr) -> bool {
        self.is_root() || self.caller.uid == attr.uid
    }

    pub(crate) fn in_group(&self, gid: u32) -> bool {
        is_in_group(self.caller, gid)
    }

    /// Whether `who` (an inode's mode, owners and access list) lets the caller do all of `mask`.
    pub(crate) fn may(&self, who: &Inode, mask: u8) -> bool {
        let attr = &who.attr;
        if self.is_root() {
            return mask & EXECUTE == 0 || attr.kind == Kind::Directory || attr.mode & ANY_EXECUTE != 0;
        }
        self.allows(attr.mode, (attr.uid, attr.gid), who.named(), mask)
    }

    /// Refuses with [`Denied::Access`] unless the caller [`may`](Self::may).
    pub(crate) fn need(&self, who: &Inode, mask: u8) -> Result<(), Denied> {
        if self.may(who, mask) { Ok(()) } else { Err(Denied::Access) }
    }

    /// Whether the caller may take `victim`'s name out of `directory`: write and search, and in a
    /// sticky directory the ownership of either.
    pub(crate) fn need_removal(&self, directory: &Inode, victim: &Attr) -> Result<(), Denied> {
        self.need(directory, WRITE | EXECUTE)?;
        let sticky = directory.attr.mode & STICKY != 0;
        if sticky && !self.owns(&directory.attr) && !self.owns(victim) {
            return Err(Denied::NotPermitted);
        }
        Ok(())
    }

    /// `mode` without the set-id bits that a write or a change of owner takes away.
    pub(crate) fn without_set_ids(&self, mode: u16, gid: u32) -> u16 {
        without_set_ids(self.caller, mode, gid)
    }

    /// Whether the caller may make this change of attributes.
    pub(crate) fn need_change(&self, inode: &Inode, change: &AttrChange) -> Result<(), Denied> {
        let attr = &inode.attr;
        if let Some(mode) = change.mode {
            check_mode(mode)?;
            if attr.kind == Kind::Symlink {
                return Err(Denied::Invalid);
            }
            if !self.owns(attr) {
                return Err(Denied::NotPermitted);
            }
        }
        if change.uid == Some(NO_ID) || change.gid == Some(NO_ID) {
            return Err(Denied::Invalid);
        }
        let owner = self.caller.uid == attr.uid;
        let other_uid = change.uid.is_some_and(|uid| !owner || uid != attr.uid);
        let other_gid = change.gid.is_some_and(|gid| !owner || (gid != attr.gid && !self.in_group(gid)));
        if (other_uid || other_gid) && !self.is_root() {
            return Err(Denied::NotPermitted);
        }
        self.need_time(inode, change.atime)?;
        self.need_time(inode, change.mtime)
    }

    fn need_time(&self, inode: &Inode, time: Option<SetTime>) -> Result<(), Denied> {
        match time {
            None => Ok(()),
            Some(_) if self.owns(&inode.attr) => Ok(()),
            Some(SetTime::Now) => self.need(inode, WRITE),
            Some(SetTime::At(_)) => Err(Denied::NotPermitted),
        }
    }

    /// What is given to what the caller makes in `directory`: a set-gid directory gives its group to
    /// everything in it, and the bit to its subdirectories; one with a list for it gives that.
    pub(crate) fn inherited(&self, directory: &Inode, new: &NewInode) -> Inherited {
        let (mode, lists) = directory.bequest(new);
        let Attr { mode: theirs, gid, .. } = directory.attr;
        if theirs & SET_GID == 0 {
            return Inherited { mode, gid: self.caller.gid, lists };
        }
        let stranger = !self.is_root() && !self.in_group(gid);
        let mode = match new.kind {
            Kind::Directory => mode | SET_GID,
            _ if stranger && new.mode & GROUP_EXECUTE != 0 => mode & !SET_GID,
            _ => mode,
        };
        Inherited { mode, gid, lists }
    }
}

/// What a new inode has of its directory.
pub(crate) struct Inherited {
    pub(crate) mode: u16,
    pub(crate) gid: u32,
    pub(crate) lists: Option<Box<Lists>>,
}

/// The mode of a file once this caller has written to it.
#[must_use]
pub fn written_mode(writer: &Caller, attr: &Attr) -> u16 {
    if writer.uid == 0 { attr.mode } else { without_set_ids(writer, attr.mode, attr.gid) }
}

/// Takes set-uid always; set-gid if it gives a group's rights to who executes it, or the caller is
/// not of the group.
fn without_set_ids(caller: &Caller, mode: u16, gid: u32) -> u16 {
    let mode = mode & !SET_UID;
    let trusted = caller.uid == 0 || is_in_group(caller, gid);
    if mode & GROUP_EXECUTE != 0 || !trusted { mode & !SET_GID } else { mode }
}

fn is_in_group(caller: &Caller, gid: u32) -> bool {
    caller.gid == gid || caller.groups.contains(&gid)
}

/// Refuses a mode with bits that no mode has.
pub(crate) fn check_mode(mode: u16) -> Result<(), Denied> {
    if mode & !MODE_BITS == 0 { Ok(()) } else { Err(Denied::Invalid) }
}
