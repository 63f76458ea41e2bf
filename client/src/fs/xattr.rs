//! Extended attributes: plain names in, a class and a sealed rest out. Access lists look like two of them.

use chunk::name::{open_xattr_name, open_xattr_value, seal_xattr_name, seal_xattr_value};
use meta::{AclKind, Caller, Ino, Op, Reply, SealedName, XATTR_VALUE_MAX, XattrClass, XattrHow};

use super::error::{FsError, Result};
use super::{Filesystem, Shared, acl, sealed_name, unexpected};
use crate::backend::{BlockStore, Metadata};

/// The namespaces by their prefixes.
const CLASSES: [(&[u8], XattrClass); 4] = [
    (b"user.", XattrClass::User),
    (b"trusted.", XattrClass::Trusted),
    (b"security.", XattrClass::Security),
    (b"system.", XattrClass::System),
];

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// Sets the extended attribute with this name, such as `user.comment`. An access list is set whether or not
    /// there is one (Linux knows no other way), and taken away by no bytes at all.
    ///
    /// # Errors
    /// `NotSupported` for an unknown namespace, `ValueTooLong`, `Invalid` for what is no access list, `Denied`.
    pub async fn setxattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: &[u8], how: XattrHow) -> Result<()> {
        if let Some(kind) = acl::kind_of(name) {
            return self.shared.set_acl(caller, ino, kind, acl::from_bytes(value)?).await;
        }
        let (class, sealed) = self.shared.seal_xattr(ino, name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(FsError::ValueTooLong);
        }
        let value = seal_xattr_value(&self.shared.chunks.keys, ino.0, name, value).into();
        self.shared.call_unit(caller, Op::SetXattr { ino, class, name: sealed, value, how }).await
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `Denied(NoAttribute)` and others.
    pub async fn getxattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(kind) = acl::kind_of(name) {
            return Ok(acl::to_bytes(&self.shared.get_acl(caller, ino, kind).await?));
        }
        let (class, sealed) = self.shared.seal_xattr(ino, name)?;
        match self.shared.look(caller, Op::GetXattr { ino, class, name: sealed }).await? {
            Reply::Value(value) => Ok(open_xattr_value(&self.shared.chunks.keys, ino.now().0, name, &value)?),
            other => Err(unexpected(&other)),
        }
    }

    /// The names of an inode's extended attributes.
    ///
    /// # Errors
    /// `Denied(Stale)` if there is no such inode any more.
    pub async fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let (sealed, access, default) = match self.shared.call(caller, Op::ListXattr { ino }).await? {
            Reply::Names(names) => (names, false, false),
            Reply::Listed { names, access, default } => (names, access, default),
            other => return Err(unexpected(&other)),
        };
        let is_there = |kind: AclKind| if kind == AclKind::Access { access } else { default };
        let lists = acl::NAMES.iter().filter(|(_, kind)| is_there(*kind)).map(|(name, _)| name.to_vec());
        let open = |(class, sealed): (XattrClass, SealedName)| {
            let rest = open_xattr_name(&self.shared.chunks.keys, ino.now().0, sealed.as_bytes()).ok()?;
            let (prefix, _) = CLASSES.iter().find(|(_, known)| *known == class)?;
            Some([*prefix, rest.as_slice()].concat())
        };
        Ok(lists.chain(sealed.into_iter().filter_map(open)).collect())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `Denied(NoAttribute)` and others.
    pub async fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        if let Some(kind) = acl::kind_of(name) {
            return self.shared.set_acl(caller, ino, kind, None).await;
        }
        let (class, name) = self.shared.seal_xattr(ino, name)?;
        self.shared.call_unit(caller, Op::RemoveXattr { ino, class, name }).await
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    fn seal_xattr(&self, ino: Ino, name: &[u8]) -> Result<(XattrClass, SealedName)> {
        if name.len() > meta::NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let class = CLASSES.iter().find_map(|(prefix, class)| Some((*class, name.strip_prefix(*prefix)?)));
        match class {
            None => Err(FsError::NotSupported),
            Some((_, b"")) => Err(FsError::Invalid),
            Some((class, rest)) => Ok((class, sealed_name(seal_xattr_name(&self.chunks.keys, ino.now().0, rest))?)),
        }
    }
}
