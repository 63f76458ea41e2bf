//! Access lists as programs set and read them: as extended attributes, in the form that Linux gives them.

use meta::{ACL_NAMED_MAX, Acl, AclEntry, AclKind, Caller, Denied, Ino, Op, Reply};

use super::error::{FsError, Result};
use super::{Shared, unexpected};
use crate::backend::{BlockStore, Metadata};

/// The names of the lists, and which they are.
pub(super) const NAMES: [(&[u8], AclKind); 2] =
    [(b"system.posix_acl_access", AclKind::Access), (b"system.posix_acl_default", AclKind::Default)];
/// The version of the form (`POSIX_ACL_XATTR_VERSION`), first of all.
const VERSION: u32 = 2;
/// Each entry: what it is of, what that may, and its id.
const ENTRY_BYTES: usize = 8;
/// The id of an entry that is nobody's in particular.
const NO_ID: u32 = u32::MAX;

/// What an entry is of (`ACL_*`).
mod tag {
    pub(super) const OWNER: u16 = 0x01;
    pub(super) const USER: u16 = 0x02;
    pub(super) const OWNING_GROUP: u16 = 0x04;
    pub(super) const GROUP: u16 = 0x08;
    pub(super) const MASK: u16 = 0x10;
    pub(super) const OTHER: u16 = 0x20;
}

/// Which list an extended attribute is, if it is one.
pub(super) fn kind_of(name: &[u8]) -> Option<AclKind> {
    NAMES.iter().find_map(|(known, kind)| (*known == name).then_some(*kind))
}

/// A list as the bytes of an extended attribute.
pub(super) fn to_bytes(acl: &Acl) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    let mut put = |tag: u16, may: u8, id: u32| {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&u16::from(may).to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    };
    put(tag::OWNER, acl.owner, NO_ID);
    acl.users.iter().for_each(|user| put(tag::USER, user.may, user.id));
    put(tag::OWNING_GROUP, acl.group, NO_ID);
    acl.groups.iter().for_each(|group| put(tag::GROUP, group.may, group.id));
    acl.mask.into_iter().for_each(|mask| put(tag::MASK, mask, NO_ID));
    put(tag::OTHER, acl.other, NO_ID);
    bytes
}

/// A list from the bytes of an extended attribute; `None` if there are none.
///
/// # Errors
/// `Invalid` if it is no list; `NotSupported` for another version; `Denied(AttributesFull)` if it names too many.
pub(super) fn from_bytes(bytes: &[u8]) -> Result<Option<Acl>> {
    let Some((version, entries)) = bytes.split_first_chunk() else {
        return if bytes.is_empty() { Ok(None) } else { Err(FsError::Invalid) };
    };
    if u32::from_le_bytes(*version) != VERSION {
        return Err(FsError::NotSupported);
    }
    let (mut owner, mut group, mut other, mut mask) = (None, None, None, None);
    let (mut users, mut groups) = (Vec::new(), Vec::new());
    for entry in entries.chunks(ENTRY_BYTES) {
        let Ok([t0, t1, m0, m1, id @ ..]) = <[u8; ENTRY_BYTES]>::try_from(entry) else { return Err(FsError::Invalid) };
        let (tag, id) = (u16::from_le_bytes([t0, t1]), u32::from_le_bytes(id));
        let may = u8::try_from(u16::from_le_bytes([m0, m1])).map_err(|_| FsError::Invalid)?;
        let class = match tag {
            tag::OWNER => &mut owner,
            tag::OWNING_GROUP => &mut group,
            tag::OTHER => &mut other,
            tag::MASK => &mut mask,
            tag::USER => {
                users.push(AclEntry { id, may });
                continue;
            }
            tag::GROUP => {
                groups.push(AclEntry { id, may });
                continue;
            }
            _ => return Err(FsError::Invalid),
        };
        if class.replace(may).is_some() {
            return Err(FsError::Invalid);
        }
    }
    let (Some(owner), Some(group), Some(other)) = (owner, group, other) else { return Err(FsError::Invalid) };
    if users.len() + groups.len() > ACL_NAMED_MAX {
        return Err(FsError::Denied(Denied::AttributesFull));
    }
    users.sort_by_key(|user| user.id);
    groups.sort_by_key(|group| group.id);
    Ok(Some(Acl { owner, group, other, mask, users, groups }))
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Sets a list, or takes it away.
    pub(super) async fn set_acl(&self, caller: &Caller, ino: Ino, kind: AclKind, acl: Option<Acl>) -> Result<()> {
        self.call_attr(caller, Op::SetAcl { ino, kind, acl }).await.map(drop)
    }

    pub(super) async fn get_acl(&self, caller: &Caller, ino: Ino, kind: AclKind) -> Result<Acl> {
        match self.look(caller, Op::GetAcl { ino, kind }).await? {
            Reply::Acl(acl) => Ok(acl),
            other => Err(unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acl() -> impl Strategy<Value = Acl> {
        let named = || prop::collection::btree_map(any::<u32>(), 0..8u8, 0..5);
        let class = || 0..8u8;
        (class(), class(), class(), prop::option::of(class()), named(), named()).prop_map(
            |(owner, group, other, mask, users, groups)| {
                let entries = |named: std::collections::BTreeMap<u32, u8>| {
                    named.into_iter().map(|(id, may)| AclEntry { id, may }).collect()
                };
                Acl { owner, group, other, mask, users: entries(users), groups: entries(groups) }
            },
        )
    }

    proptest! {
        #[test]
        fn a_list_is_the_same_both_ways(acl in acl(), cut in any::<usize>()) {
            let bytes = to_bytes(&acl);
            prop_assert_eq!(from_bytes(&bytes), Ok(Some(acl)));
            // Half an entry is none, and without the last one something is missing.
            let cut = cut % bytes.len();
            prop_assert_eq!(from_bytes(&bytes[..cut]).is_ok(), cut == 0);
        }

        #[test]
        fn any_bytes_are_a_list_or_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = from_bytes(&bytes);
        }
    }

    #[test]
    fn the_form_is_linuxs() {
        // As getfattr shows user::rw-,user:1000:r--,group::r--,mask::r--,other::---.
        let bytes = [
            [2, 0, 0, 0].as_slice(),
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 4, 0, 0xe8, 3, 0, 0],
            &[4, 0, 4, 0, 255, 255, 255, 255],
            &[16, 0, 4, 0, 255, 255, 255, 255],
            &[32, 0, 0, 0, 255, 255, 255, 255],
        ]
        .concat();
        let users = vec![AclEntry { id: 1000, may: 4 }];
        let acl = Acl { owner: 6, group: 4, other: 0, mask: Some(4), users, groups: vec![] };
        assert_eq!(from_bytes(&bytes), Ok(Some(acl.clone())));
        assert_eq!(to_bytes(&acl), bytes);
        assert_eq!(from_bytes(&[1, 0, 0, 0]), Err(FsError::NotSupported));
        assert_eq!(from_bytes(&[bytes.as_slice(), &bytes[4..12]].concat()), Err(FsError::Invalid), "two owners");
    }
}
