//! Extended attributes, by the rules of their four classes (`xattr(7)`).

use core::ops::{Bound, RangeBounds};

use bytes::Bytes;

use crate::access::{Context, READ, STICKY, WRITE};
use crate::inode::Inode;
use crate::op::{Attr, Denied, Ino, Kind, Reply, SEAL_LEN, SealedName, XATTR_VALUE_MAX, XattrClass, XattrHow};
use crate::read::Look as _;
use crate::state::State;

/// Most that the extended attributes of one inode may take, bytes: of each its sealed name, its
/// sealed value and 32 more.
pub const XATTRS_LEN_MAX: u64 = 128 * 1024;
/// What an extended attribute takes beside name and value, bytes.
const XATTR_OVERHEAD: u64 = 32;

/// Where an extended attribute is kept.
pub(crate) type XattrKey = (Ino, XattrClass, SealedName);

/// No sealed name is less.
pub(crate) fn least_name() -> SealedName {
    SealedName::new(Bytes::from_static(&[0; SEAL_LEN + 1])).expect("the shortest there is")
}

/// The keys of all extended attributes of `ino`.
pub(crate) fn xattrs_of(ino: Ino) -> impl RangeBounds<XattrKey> {
    let least = least_name();
    let end = Ino(ino.0.saturating_add(1));
    (Bound::Included((ino, XattrClass::User, least.clone())), Bound::Excluded((end, XattrClass::User, least)))
}

/// What an attribute counts for against [`XATTRS_LEN_MAX`].
pub(crate) fn xattr_len(name: &SealedName, value: &Bytes) -> u64 {
    (name.as_bytes().len() + value.len()) as u64 + XATTR_OVERHEAD
}

impl State {
    pub(crate) fn set_xattr(
        &mut self,
        cx: &Context<'_>,
        (ino, class, name): XattrKey,
        value: &Bytes,
        how: XattrHow,
    ) -> Result<Reply, Denied> {
        let inode = self.inode(ino)?;
        need_xattr_write(cx, inode, class)?;
        let key = (ino, class, name);
        let before = self.xattrs.get(&key).map_or(0, |value| xattr_len(&key.2, value));
        match how {
            XattrHow::Create if before != 0 => return Err(Denied::Exists),
            XattrHow::Replace if before == 0 => return Err(Denied::NoAttribute),
            _ => {}
        }
        let total = inode.xattrs_len - before + xattr_len(&key.2, value);
        if value.len() > XATTR_VALUE_MAX + SEAL_LEN || total > XATTRS_LEN_MAX {
            return Err(Denied::AttributesFull);
        }
        self.keep_xattr(&key);
        let inode = self.change(ino);
        inode.xattrs_len = total;
        inode.touch(cx.stamp());
        self.xattrs.insert(key, value.clone());
        Ok(Reply::Unit)
    }

    /// Names of trusted attributes are listed to root alone; the others need no permission.
    pub(crate) fn list_xattr(&self, cx: &Context<'_>, ino: Ino) -> Result<Reply, Denied> {
        Ok(self.names_of_xattrs(cx, self.inode(ino)?))
    }

    pub(crate) fn names_of_xattrs(&self, cx: &Context<'_>, inode: &Inode) -> Reply {
        let keys = self.xattrs.range(xattrs_of(inode.attr.ino)).map(|((_, class, name), _)| (*class, name.clone()));
        let names = keys.filter(|(class, _)| cx.is_root() || *class != XattrClass::Trusted).collect();
        match inode.listed() {
            (false, false) => Reply::Names(names),
            (access, default) => Reply::Listed { names, access, default },
        }
    }

    pub(crate) fn remove_xattr(&mut self, cx: &Context<'_>, key: &XattrKey) -> Result<Reply, Denied> {
        need_xattr_write(cx, self.inode(key.0)?, key.1)?;
        let value = self.xattrs.get(key).cloned().ok_or(Denied::NoAttribute)?;
        let volume = self.attr(key.0)?.volume;
        self.keep_xattr(key);
        self.xattrs.remove(key);
        self.kept_xattr(volume, key);
        let inode = self.change(key.0);
        inode.xattrs_len -= xattr_len(&key.2, &value);
        inode.touch(cx.stamp());
        Ok(Reply::Unit)
    }
}

fn has_user_xattrs(attr: &Attr) -> bool {
    matches!(attr.kind, Kind::File | Kind::Directory)
}

/// Whether the caller may read an attribute of this class.
pub(crate) fn need_xattr_read(cx: &Context<'_>, inode: &Inode, class: XattrClass) -> Result<(), Denied> {
    match class {
        XattrClass::User if !has_user_xattrs(&inode.attr) => Err(Denied::NoAttribute),
        XattrClass::User => cx.need(inode, READ),
        XattrClass::Trusted if !cx.is_root() => Err(Denied::NoAttribute),
        XattrClass::Trusted | XattrClass::Security | XattrClass::System => Ok(()),
    }
}

fn need_xattr_write(cx: &Context<'_>, inode: &Inode, class: XattrClass) -> Result<(), Denied> {
    let attr = &inode.attr;
    let sticky = attr.kind == Kind::Directory && attr.mode & STICKY != 0;
    let allowed = match class {
        XattrClass::User => has_user_xattrs(attr) && (!sticky || cx.owns(attr)),
        XattrClass::Trusted | XattrClass::Security => cx.is_root(),
        XattrClass::System => cx.owns(attr),
    };
    if !allowed {
        return Err(Denied::NotPermitted);
    }
    if class == XattrClass::User { cx.need(inode, WRITE) } else { Ok(()) }
}
