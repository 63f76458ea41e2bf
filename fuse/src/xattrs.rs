//! Extended attributes for the kernel, and access lists, which look like them. After setting one the kernel asks
//! for attributes again by itself.

use bytes::Bytes;
use client::backend::{BlockStore, Metadata};
use meta::XattrHow;

use crate::door::{Door, Result};
use crate::wire::{Errno, Request, Xattr};

/// What the names of access lists begin with.
const LISTS: &[u8] = b"system.posix_acl_";

impl<M: Metadata, B: BlockStore> Door<M, B> {
    pub(crate) async fn set_xattr(
        &self,
        request: &Request,
        inode: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        let how = match flags {
            0 => XattrHow::Set,
            1 => XattrHow::Create,
            2 => XattrHow::Replace,
            _ => return Err(Errno::INVAL),
        };
        let caller = self.caller(request);
        let set = self.wait(request, self.fs.setxattr(&caller, self.ino(inode), name, value, how)).await;
        self.relisted(inode, name);
        self.changed(inode, set)
    }

    pub(crate) async fn get_xattr(&self, request: &Request, inode: u64, name: &[u8], size: u32) -> Result<Xattr> {
        let (caller, ino) = (self.caller(request), self.ino(inode));
        if !name.starts_with(LISTS) {
            return Xattr::fitting(self.wait(request, self.fs.getxattr(&caller, ino, name)).await?, size);
        }
        // The kernel asks for lists whenever it has new attributes, to judge whoever is not the owner.
        let (known, version) = self.told.list(ino, name);
        let list = match known {
            Some(known) => known,
            None => {
                let list = match self.wait(request, self.fs.getxattr(&caller, ino, name)).await {
                    Err(Errno::NODATA) => None,
                    asked => Some(Bytes::from(asked?)),
                };
                self.told.keep_list(ino, name, version, list.clone());
                list
            }
        };
        Xattr::fitting(list.ok_or(Errno::NODATA)?, size)
    }

    pub(crate) async fn list_xattr(&self, request: &Request, inode: u64, size: u32) -> Result<Xattr> {
        let caller = self.caller(request);
        let names = self.wait(request, self.fs.listxattr(&caller, self.ino(inode))).await?;
        let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Xattr::fitting(Bytes::from(list), size)
    }

    pub(crate) async fn remove_xattr(&self, request: &Request, inode: u64, name: &[u8]) -> Result<()> {
        let caller = self.caller(request);
        let gone = self.wait(request, self.fs.removexattr(&caller, self.ino(inode), name)).await;
        self.relisted(inode, name);
        self.changed(inode, gone)
    }

    fn relisted(&self, inode: u64, name: &[u8]) {
        if name.starts_with(LISTS) {
            self.told.drop_lists(self.ino(inode));
        }
    }
}
