//! Access lists: more users and groups than an owner and one group (POSIX.1e, draft 17).
//!
//! The mode stays what everybody sees. Its classes are the list's entries for the owner and for others; where
//! there is a list, the group's bits are its mask, the most that anybody but these two may do, so that `chmod`
//! does to a list what it should without knowing of it. What is kept beside the mode is what the mode has no
//! room for: what the owning group may, and whom else the list names.

use base::{Decode, DecodeError, Encode, Reader, canonical_enum, canonical_struct};

use crate::access::{Context, NO_ID, SET_GID};
use crate::inode::Inode;
use crate::op::{Denied, Ino, Kind, NewInode, Reply};
use crate::read::Look as _;
use crate::state::State;

/// Most users and groups that one list names beside the three classes.
pub const ACL_NAMED_MAX: usize = 32;
/// The nine bits of a mode that say who may read, write and execute.
const PERMISSIONS: u16 = 0o777;

/// Which list of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclKind {
    /// Who may do what with it.
    Access,
    /// Of a directory: the list that is given to what is made in it.
    Default,
}
canonical_enum!(AclKind { 0 => Access, 1 => Default });

/// What a list says of one user or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// Whose it is.
    pub id: u32,
    /// 4 read, 2 write, 1 execute.
    pub may: u8,
}
canonical_struct!(AclEntry { id, may });

/// An access list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// What the owner may (4 read, 2 write, 1 execute).
    pub owner: u8,
    /// What the owning group may, within the mask.
    pub group: u8,
    /// What everybody else may.
    pub other: u8,
    /// The most that the owning group and whoever is named may; there is one if anybody is.
    pub mask: Option<u8>,
    /// What single users may, within the mask; by ascending ids.
    pub users: Vec<AclEntry>,
    /// What other groups may, within the mask; by ascending ids.
    pub groups: Vec<AclEntry>,
}

impl Encode for Acl {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.owner, self.group, self.other).encode(out);
        (&self.mask, &self.users, &self.groups).encode(out);
    }
}

impl Decode for Acl {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (owner, group, other) = Decode::decode(input)?;
        let mask = Decode::decode(input)?;
        Ok(Acl { owner, group, other, mask, users: named(input)?, groups: named(input)? })
    }
}

fn named(input: &mut Reader<'_>) -> Result<Vec<AclEntry>, DecodeError> {
    input.seq_max("access list", ACL_NAMED_MAX)
}

impl Acl {
    /// Refuses a list that can't be one: what bits there are, whether ids are in order, and how many.
    pub(crate) fn check(&self) -> Result<(), Denied> {
        let Acl { owner, group, other, mask, users, groups } = self;
        if users.len() + groups.len() > ACL_NAMED_MAX {
            return Err(Denied::AttributesFull);
        }
        let ascending = |entries: &[AclEntry]| entries.windows(2).all(|pair| pair[0].id < pair[1].id);
        let named = || users.iter().chain(groups);
        let sound = [*owner, *group, *other, mask.unwrap_or(0)].into_iter().chain(named().map(|entry| entry.may));
        let valid = sound.into_iter().all(|may| may <= 7)
            && named().all(|entry| entry.id != NO_ID)
            && (ascending(users) && ascending(groups))
            && (mask.is_some() || named().next().is_none());
        if valid { Ok(()) } else { Err(Denied::Invalid) }
    }

    /// The nine bits that a mode has with this list.
    fn bits(&self) -> u16 {
        u16::from(self.owner) << 6 | u16::from(self.mask.unwrap_or(self.group)) << 3 | u16::from(self.other)
    }

    /// What is kept of it beside the mode: nothing, if the mode says it all.
    fn rest(&self) -> Option<Named> {
        let Acl { group, users, groups, .. } = self;
        self.mask.map(|_| Named { group: *group, users: users.clone(), groups: groups.clone() })
    }
}

/// What an access list says beside the mode, whose group bits are its mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    group: u8,
    users: Vec<AclEntry>,
    groups: Vec<AclEntry>,
}

impl Encode for Named {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.group, &self.users, &self.groups).encode(out);
    }
}

impl Decode for Named {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Named { group: Decode::decode(input)?, users: named(input)?, groups: named(input)? })
    }
}

impl Named {
    fn acl(&self, mode: u16) -> Acl {
        let class = |shift: u16| (mode >> shift & 7) as u8;
        let Named { group, users, groups } = self.clone();
        Acl { owner: class(6), group, other: class(0), mask: Some(class(3)), users, groups }
    }
}

/// The lists of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    pub(crate) access: Option<Named>,
    pub(crate) default: Option<Acl>,
}
canonical_struct!(Lists { access, default });

impl Lists {
    /// The same, unless there are none.
    pub(crate) fn kept(self) -> Option<Box<Lists>> {
        (self != Lists::default()).then(|| Box::new(self))
    }
}

impl Inode {
    /// What its access list says beside its mode, if it has one.
    pub(crate) fn named(&self) -> Option<&Named> {
        self.lists.as_ref()?.access.as_ref()
    }

    fn default_acl(&self) -> Option<&Acl> {
        self.lists.as_ref()?.default.as_ref()
    }

    /// Which lists it has.
    pub(crate) fn listed(&self) -> (bool, bool) {
        (self.named().is_some(), self.default_acl().is_some())
    }

    pub(crate) fn acl(&self, kind: AclKind) -> Option<Acl> {
        match kind {
            AclKind::Access => self.named().map(|named| named.acl(self.attr.mode)),
            AclKind::Default => self.default_acl().cloned(),
        }
    }

    /// The mode and the lists of what is made in this directory. Where it has a list for that, the caller's
    /// umask is of no account.
    pub(crate) fn bequest(&self, new: &NewInode) -> (u16, Option<Box<Lists>>) {
        let default = match self.default_acl() {
            Some(default) if new.kind != Kind::Symlink => default,
            _ => return (new.mode & !new.umask, None),
        };
        let inherited = (new.kind == Kind::Directory).then(|| default.clone());
        let lists = Lists { access: default.rest(), default: inherited };
        (new.mode & (default.bits() | !PERMISSIONS), lists.kept())
    }

    /// Why its lists can't be what they are, if so.
    pub(crate) fn unsound_lists(&self) -> Option<Denied> {
        let lists = self.lists.as_ref()?;
        let misplaced = **lists == Lists::default() || (lists.default.is_some() && self.attr.kind != Kind::Directory);
        let wrong = [AclKind::Access, AclKind::Default].into_iter().find_map(|kind| self.acl(kind)?.check().err());
        wrong.or(misplaced.then_some(Denied::Invalid))
    }
}

impl Context<'_> {
    /// Whether a mode and owners, and the list beside them if there is one, let the caller, who is not root, do
    /// all of `mask` (POSIX.1e §23.1.5). The first class that the caller belongs to decides; of several groups
    /// one that allows everything is enough.
    pub(crate) fn allows(&self, mode: u16, (uid, gid): (u32, u32), named: Option<&Named>, mask: u8) -> bool {
        let class = |shift: u16| (mode >> shift & 7) as u8;
        let allows = |may: u8| may & mask == mask;
        if self.caller.uid == uid {
            return allows(class(6));
        }
        let Some(named) = named else {
            return allows(class(if self.in_group(gid) { 3 } else { 0 }));
        };
        if let Some(user) = named.users.iter().find(|user| user.id == self.caller.uid) {
            return allows(user.may & class(3));
        }
        let owning = AclEntry { id: gid, may: named.group };
        let groups = core::iter::once(&owning).chain(&named.groups).filter(|group| self.in_group(group.id));
        let mut groups = groups.peekable();
        match groups.peek() {
            Some(_) => groups.any(|group| allows(group.may & class(3))),
            None => allows(class(0)),
        }
    }
}

impl State {
    /// Gives an inode a list, or takes one away. One that says no more than a mode becomes the mode.
    pub(crate) fn set_acl(
        &mut self,
        cx: &Context<'_>,
        ino: Ino,
        kind: AclKind,
        acl: Option<&Acl>,
    ) -> Result<Reply, Denied> {
        let inode = self.inode(ino)?;
        match (kind, inode.attr.kind) {
            (_, Kind::Symlink) => return Err(Denied::Invalid),
            (AclKind::Default, other) if other != Kind::Directory => return Err(Denied::Access),
            _ if !cx.owns(&inode.attr) => return Err(Denied::NotPermitted),
            _ => {}
        }
        acl.map_or(Ok(()), Acl::check)?;
        if acl.is_none() && inode.acl(kind).is_none() {
            return Err(Denied::NoAttribute);
        }
        let (mut attr, mut lists) = (inode.attr, inode.lists.as_deref().cloned().unwrap_or_default());
        match kind {
            AclKind::Default => lists.default = acl.cloned(),
            AclKind::Access => {
                lists.access = acl.and_then(Acl::rest);
                if let Some(acl) = acl {
                    let keeps_set_gid = cx.is_root() || cx.in_group(attr.gid);
                    let kept = if keeps_set_gid { !PERMISSIONS } else { !PERMISSIONS & !SET_GID };
                    attr.mode = attr.mode & kept | acl.bits();
                }
            }
        }
        let inode = self.change(ino);
        inode.remember_permissions(&attr, kind == AclKind::Access, cx.now);
        (inode.attr, inode.lists) = (attr, lists.kept());
        inode.touch(cx.stamp());
        Ok(Reply::Attr(inode.attr))
    }
}
