//! Inodes: attributes, opening, changing attributes.

use base::{Decode, DecodeError, Encode, Reader, Time, canonical_enum};
use bytes::Bytes;

use crate::access::{Context, SET_GID, WRITE};
use crate::acl::{Lists, Named};
use crate::directory::FIRST_COOKIE;
use crate::op::{Attr, AttrChange, Content, Denied, Ino, Kind, NewInode, Reply, SetTime, Timestamp};
use crate::orphan::ORPHAN_TERM;
use crate::read::Look as _;
use crate::state::State;

/// How many former permissions an inode remembers.
const FORMERS_MAX: usize = 4;

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) attr: Attr,
    /// What its extended attributes take of `XATTRS_LEN_MAX`, bytes.
    pub(crate) xattrs_len: u64,
    /// The directory it is in; of a root, itself; [`NO_HOME`] if it is in several, or was. Of a file that has
    /// no name yet, the directory it was made in.
    pub(crate) home: Ino,
    /// The number of the first snapshot after it was made.
    pub(crate) born: u64,
    /// Its access lists, if it has any.
    pub(crate) lists: Option<Box<Lists>>,
    pub(crate) body: Body,
}

/// In the place of a body's tag: access lists, before the body. Without them a row is as before there were any.
const LISTED: u8 = 0xFF;

impl Encode for Inode {
    fn encode(&self, out: &mut Vec<u8>) {
        (&self.attr, self.xattrs_len, (self.home, self.born)).encode(out);
        if let Some(lists) = &self.lists {
            LISTED.encode(out);
            lists.encode(out);
        }
        self.body.encode(out);
    }
}

impl Decode for Inode {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (attr, xattrs_len, (home, born)) = Decode::decode(input)?;
        let mut ahead = input.clone();
        let lists = match u8::decode(&mut ahead)? {
            LISTED => {
                *input = ahead;
                let lists = Lists::decode(input)?.kept();
                Some(lists.ok_or(DecodeError::Invalid { what: "access lists" })?)
            }
            _ => None,
        };
        Ok(Inode { attr, xattrs_len, home, born, lists, body: Decode::decode(input)? })
    }
}

/// The home of what is in no single directory.
pub(crate) const NO_HOME: Ino = Ino(0);

/// What an inode holds beside attributes, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    File {
        content: Content,
        /// Permissions it had, for those who opened it under them; the latest last.
        formers: Vec<Former>,
    },
    Directory {
        /// Where the next entry goes. Never goes back.
        next_cookie: u64,
    },
    Symlink {
        target: Bytes,
    },
    /// A pipe, a socket or a device.
    Special,
}
canonical_enum!(Body {
    0 => File { content, formers },
    1 => Directory { next_cookie },
    2 => Symlink { target },
    3 => Special,
});

/// Permissions that a file once had. POSIX lets a handle that was opened for writing write on
/// after the mode was changed. Replicas do not see handles, and taking a client's word for it
/// would let it write to any file; so they let in whoever *could* have opened the file before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Former {
    mode: u16,
    uid: u32,
    gid: u32,
    /// What its access list said beside the mode.
    named: Option<Named>,
    /// When it is forgotten.
    until: Time,
}

/// In a former mode: an access list follows. Modes have twelve bits.
const WITH_LIST: u16 = 0x8000;

impl Encode for Former {
    fn encode(&self, out: &mut Vec<u8>) {
        let listed = if self.named.is_some() { WITH_LIST } else { 0 };
        (self.mode | listed, (self.uid, self.gid), self.until).encode(out);
        if let Some(named) = &self.named {
            named.encode(out);
        }
    }
}

impl Decode for Former {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (mode, (uid, gid), until): (u16, _, _) = Decode::decode(input)?;
        let named = if mode & WITH_LIST != 0 { Some(Named::decode(input)?) } else { None };
        Ok(Former { mode: mode & !WITH_LIST, uid, gid, named, until })
    }
}

impl Former {
    pub(crate) fn is_remembered(&self, now: Time) -> bool {
        self.until > now
    }

    /// Whether the caller could open the file for writing then. (An owner always could, in effect.)
    pub(crate) fn let_write(&self, cx: &Context<'_>) -> bool {
        let allowed = || cx.allows(self.mode, (self.uid, self.gid), self.named.as_ref(), WRITE);
        self.is_remembered(cx.now) && (cx.caller.uid == self.uid || allowed())
    }
}

impl Body {
    /// The body of a new inode.
    pub(crate) fn new(new: &NewInode) -> Body {
        match new.kind {
            Kind::File => Body::File { content: Content::default(), formers: Vec::new() },
            Kind::Directory => Body::Directory { next_cookie: FIRST_COOKIE },
            Kind::Symlink => Body::Symlink { target: new.target.clone() },
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => Body::Special,
        }
    }
}

impl Inode {
    /// Notes that something about it changed.
    pub(crate) fn touch(&mut self, at: Timestamp) {
        self.attr.ctime = at;
        self.attr.version += 1;
    }

    /// Notes that its content, or its entries, changed.
    pub(crate) fn touch_content(&mut self, at: Timestamp) {
        self.touch(at);
        self.attr.mtime = at;
        self.attr.content_version += 1;
    }

    /// Remembers the permissions that `new` replaces, and the access list if that is to change, if somebody
    /// could lose a right to write by it.
    pub(crate) fn remember_permissions(&mut self, new: &Attr, relisted: bool, now: Time) {
        let named = self.named().cloned();
        let (old, Body::File { formers, .. }) = (&self.attr, &mut self.body) else { return };
        let owned = (old.uid, old.gid) != (new.uid, new.gid);
        let owner_lost = old.uid != new.uid && old.uid != 0;
        let others_lost = old.mode & 0o022 != 0 && (owned || relisted || old.mode & !new.mode & 0o022 != 0);
        formers.retain(|former| former.is_remembered(now));
        if owner_lost || others_lost {
            if formers.len() == FORMERS_MAX {
                formers.remove(0);
            }
            let until = now.after(ORPHAN_TERM);
            formers.push(Former { mode: old.mode, uid: old.uid, gid: old.gid, named, until });
        }
    }
}

impl State {
    /// The inode, to be changed.
    pub(crate) fn change(&mut self, ino: Ino) -> &mut Inode {
        self.keep_inode(ino);
        self.inodes.change(&ino).expect("rules are checked, this one's existence too, before a change")
    }

    pub(crate) fn set_attr(&mut self, cx: &Context<'_>, ino: Ino, change: &AttrChange) -> Result<Reply, Denied> {
        let inode = self.inode(ino)?;
        cx.need_change(inode, change)?;
        let mut attr = inode.attr;
        for time in [change.atime, change.mtime].into_iter().flatten() {
            check_set_time(time)?;
        }
        if *change == AttrChange::default() {
            return Ok(Reply::Attr(attr));
        }
        let old_gid = attr.gid;
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        if let Some(mode) = change.mode {
            let keeps_set_gid = cx.is_root() || cx.in_group(attr.gid);
            attr.mode = if keeps_set_gid { mode } else { mode & !SET_GID };
        } else if (change.uid.is_some() || change.gid.is_some()) && attr.kind != Kind::Directory {
            attr.mode = cx.without_set_ids(attr.mode, old_gid);
        }
        let resolve = |time| match time {
            SetTime::Now => cx.stamp(),
            SetTime::At(time) => time,
        };
        attr.atime = change.atime.map_or(attr.atime, resolve);
        attr.mtime = change.mtime.map_or(attr.mtime, resolve);

        let inode = self.change(ino);
        inode.remember_permissions(&attr, false, cx.now);
        inode.attr = attr;
        inode.touch(cx.stamp());
        Ok(Reply::Attr(inode.attr))
    }
}

fn check_set_time(time: SetTime) -> Result<(), Denied> {
    match time {
        SetTime::Now => Ok(()),
        SetTime::At(time) => check_timestamp(time),
    }
}

/// Refuses a time that no decoder would have let through.
pub(crate) fn check_timestamp(time: Timestamp) -> Result<(), Denied> {
    if time.nanos < 1_000_000_000 { Ok(()) } else { Err(Denied::Invalid) }
}
