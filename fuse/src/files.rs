//! Files without a name, and copies from file to file.

use std::time::Duration;

use client::backend::{BlockStore, Metadata};
use client::fs::{Handle, OpenFlags};

use crate::door::{Door, Result};
use crate::translate;
use crate::wire::{Created, Entry, Errno, Request, Written, request};

/// How much is copied for one request at most, bytes: whole pages, and what an answer can say.
const COPIED_MAX: u64 = (u32::MAX - 4095) as u64;

impl<M: Metadata, B: BlockStore> Door<M, B> {
    pub(crate) async fn create_unnamed(
        &self,
        request: &Request,
        parent: u64,
        mode: request::NewMode,
        open: request::Open,
    ) -> Result<Created> {
        let (caller, flags) = (self.caller(request), translate::open_flags(open.flags));
        // What the process before made for this very request it kept for nobody: it goes after a while.
        let made = self.fs.create_unnamed(&caller, self.ino(parent), translate::new_mode(mode), flags);
        let made = self.changing(request, made).await?;
        let inode = self.inode(made.attr.ino);
        if self.fs.keeps(made.attr.ino) {
            self.inherited.mark(inode, made.handle.0);
        }
        let attributes = self.shown_now(&made.attr);
        let entry = Entry { inode, generation: 0, attributes, attributes_ttl: self.ttl, name_ttl: Duration::ZERO };
        Ok(Created { entry, opened: self.opened(caller, &made, flags) })
    }

    pub(crate) async fn copy_range(
        &self,
        request: &Request,
        inode: u64,
        copy: request::CopyFileRange,
    ) -> Result<Written> {
        if copy.flags != 0 {
            return Err(Errno::INVAL);
        }
        let writes = OpenFlags { write: true, ..OpenFlags::default() };
        self.adopt(request, inode, copy.handle, OpenFlags::reading()).await?;
        self.adopt(request, copy.to_inode, copy.to_handle, writes).await?;
        let (from, to) = ((Handle(copy.handle), copy.offset), (Handle(copy.to_handle), copy.to_offset));
        let copied = self.changing(request, self.fs.copy(from, to, copy.length.min(COPIED_MAX))).await;
        self.inherited.mark(copy.to_inode, copy.to_handle);
        // The kernel drops the pages of what was copied by itself.
        let copied = self.doubt_pages(copy.to_inode, copied)?;
        Ok(Written(copied as u32))
    }
}
