//! What the kernel is told it may keep: attributes, names, and pages of files.

use client::backend::{BlockStore, Metadata};
use client::fs::{Handle, OpenFlags};
use meta::{Attr, Caller, Ino};

use crate::door::Door;
use crate::translate;
use crate::wire::abi::open_flag;
use crate::wire::{Attributes, AttributesFor, Entry, Errno, Opened};

type Result<T> = std::result::Result<T, Errno>;

impl<M: Metadata, B: BlockStore> Door<M, B> {
    /// After a failure to write, the kernel's cached pages may hold what is lost: the next open drops them.
    pub(crate) fn doubt_pages<T>(&self, inode: u64, written: Result<T>) -> Result<T> {
        if written.is_err() {
            self.told.doubt_pages(self.ino(inode));
        }
        written
    }

    pub(crate) fn entry(&self, attr: &Attr) -> Entry {
        self.told.tell(attr);
        let attributes = self.shown(attr);
        let inode = attributes.inode;
        // Inode numbers are never used again, so one generation is enough.
        Entry { inode, generation: 0, attributes, attributes_ttl: self.ttl, name_ttl: self.ttl }
    }

    pub(crate) fn attributes(&self, attr: &Attr) -> AttributesFor {
        self.told.tell(attr);
        AttributesFor { attributes: self.shown(attr), ttl: self.ttl }
    }

    fn shown(&self, attr: &Attr) -> Attributes {
        let (uid, gid) = (self.shown_as.0.unwrap_or(attr.uid), self.shown_as.1.unwrap_or(attr.gid));
        translate::attributes(self.inode(attr.ino), &Attr { uid, gid, ..*attr })
    }

    /// Close-to-open: who opens a file sees what was written before. Cached pages of that content
    /// are kept; cached attributes of another, such as its length, must go.
    pub(crate) fn opened(&self, caller: Caller, opened: &client::fs::Opened, flags: OpenFlags) -> Opened {
        if flags.append {
            self.appending.lock().insert(opened.handle, caller);
        }
        let (attributes_changed, pages_good) = self.told.open(&opened.attr);
        if attributes_changed {
            self.drop_attributes(opened.attr.ino);
        }
        Opened { handle: opened.handle.0, flags: if pages_good { open_flag::KEEP_CACHE } else { 0 } }
    }

    fn drop_attributes(&self, ino: Ino) {
        if let Some(notifier) = self.notifier.get()
            && let Err(errno) = notifier.inval_attributes(self.inode(ino))
        {
            tracing::warn!(%errno, "the kernel keeps old attributes");
        }
    }

    /// After a commit: times and space that the kernel was told before were estimates, and would be
    /// seen to change later though nothing does.
    pub(crate) fn committed(&self, handle: u64) {
        let Ok(attr) = self.fs.committed_attr(Handle(handle)) else { return };
        if self.told.commit(&attr) {
            self.drop_attributes(attr.ino);
        }
    }
}
