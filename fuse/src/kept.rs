//! What the kernel is told it may keep: attributes, names, and pages of files.

use std::time::Duration;

use client::backend::{BlockStore, Metadata};
use client::fs::{Handle, OpenFlags};
use meta::{Attr, Caller, Ino, Kind};

use crate::door::{Door, Result};
use crate::translate;
use crate::wire::abi::open_flag;
use crate::wire::{Attributes, AttributesFor, Entry, Opened, Request};

impl<M: Metadata, B: BlockStore> Door<M, B> {
    /// After a failure to write, the kernel's cached pages may hold what is lost: the next open drops them.
    pub(crate) fn doubt_pages<T>(&self, inode: u64, written: Result<T>) -> Result<T> {
        if written.is_err() {
            self.told.doubt_pages(self.ino(inode));
        }
        written
    }

    /// An answer that names an inode in the directory `parent`, asked in that generation of leases.
    pub(crate) async fn entry(&self, request: &Request, parent: u64, attr: &Attr, generation: u64) -> Entry {
        let in_parent = self.name_ttl(request, parent, generation).await;
        let attributes = self.shown_now(attr);
        // Who would move a directory, or remove it, needs the lease on it as well as on where it is.
        let name_ttl = match attr.kind {
            Kind::Directory => in_parent.max(self.name_ttl(request, attributes.inode, generation).await),
            _ => in_parent,
        };
        // Inode numbers are never used again, so one generation is enough.
        Entry { inode: attributes.inode, generation: 0, attributes, attributes_ttl: self.ttl, name_ttl }
    }

    /// An entry of a listing. The kernel takes its name for as new as the moment when it looks at the answer, so
    /// it could not be made to forget it before.
    pub(crate) fn listed(&self, attr: &Attr) -> Entry {
        let attributes = self.shown_now(attr);
        let name_ttl = Duration::ZERO;
        Entry { inode: attributes.inode, generation: 0, attributes, attributes_ttl: self.ttl, name_ttl }
    }

    /// Attributes that the kernel asked for. It knows the inode, and so drops an answer that is older than when
    /// it was made to forget; with a name that is new to it, it could not.
    pub(crate) async fn attributes(&self, request: &Request, attr: &Attr, generation: u64) -> AttributesFor {
        let attributes = self.shown_now(attr);
        let lasts = self.lasts(request, attr.ino, generation).await;
        if lasts > self.ttl {
            self.told.tell_lasting(attributes.inode);
        }
        AttributesFor { attributes, ttl: lasts.max(self.ttl) }
    }

    /// How long a name in `parent`, there or not, can't be changed by others. Where they can, it is looked up
    /// every time: an old one would lead to a file that is somebody's backup by now.
    pub(crate) async fn name_ttl(&self, request: &Request, parent: u64, generation: u64) -> Duration {
        match self.told.names_expire() {
            true => self.lasts(request, self.ino(parent), generation).await,
            false => Duration::ZERO,
        }
    }

    /// How long others can't change what this mount has a lease on. They can't before the kernel has the
    /// answer that says so and was made to forget it.
    async fn lasts(&self, request: &Request, ino: Ino, generation: u64) -> Duration {
        if self.told.is_unsettled() || self.fs.lasts(ino, generation).is_zero() {
            return Duration::ZERO;
        }
        self.told.begin_telling(request).await;
        if self.told.is_unsettled() { Duration::ZERO } else { self.fs.lasts(ino, generation) }
    }

    /// Attributes after a change.
    pub(crate) fn shown_now(&self, attr: &Attr) -> Attributes {
        self.told.tell(attr);
        self.shown(attr)
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
            self.told.drop_attributes(self.inode(opened.attr.ino));
        }
        // The kernel would keep what is appended where it believes the end to be.
        let direct = if flags.append { open_flag::DIRECT_IO } else { 0 };
        Opened { handle: opened.handle.0, flags: direct | if pages_good { open_flag::KEEP_CACHE } else { 0 } }
    }

    /// Whether the kernel may keep what it reads of a directory, and whether what it kept is good: only if what it
    /// is can't have been changed by others since it was opened to be kept. What is changed here the kernel knows.
    pub(crate) async fn listing_flags(&self, request: &Request, inode: u64, generation: u64) -> u32 {
        let ino = self.ino(inode);
        if self.lasts(request, ino, generation).await.is_zero() {
            return 0;
        }
        open_flag::CACHE_DIR | if self.told.open_listing(ino, generation) { open_flag::KEEP_CACHE } else { 0 }
    }

    /// After a commit: times and space that the kernel was told before were estimates, and would be
    /// seen to change later though nothing does.
    pub(crate) fn committed(&self, handle: u64) {
        let Ok(attr) = self.fs.committed_attr(Handle(handle)) else { return };
        if self.told.commit(&attr) {
            self.told.drop_attributes(self.inode(attr.ino));
        }
    }
}
