//! Listing a directory for the kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use client::backend::{BlockStore, Metadata};

use crate::door::{Door, Result};
use crate::translate;
use crate::wire::abi::ROOT;
use crate::wire::{DirectoryEntries, Request, request};

impl<M: Metadata, B: BlockStore> Door<M, B> {
    pub(crate) async fn list(
        &self,
        request: &Request,
        inode: u64,
        read: request::Read,
        entries: &mut DirectoryEntries,
        with_attributes: bool,
    ) -> Result<()> {
        let caller = self.caller(request);
        let ino = self.ino(inode);
        let listing = self.listings.get(read.handle);
        let mut listing = listing.lock().await;
        if read.offset == 0 {
            listing.forget();
        }
        if read.offset < 2 {
            let parent = match inode {
                ROOT => ROOT,
                _ => self.inode(self.wait(request, self.fs.parent(&caller, ino)).await?.ino),
            };
            for (offset, (name, inode)) in [(".", inode), ("..", parent)].into_iter().enumerate() {
                let after = offset as u64 + 1;
                if after > read.offset && !entries.add(name.as_ref(), inode, translate::DIRECTORY, after) {
                    return Ok(());
                }
            }
        }
        // The cookies of the cluster begin above those two.
        let mut cookie = if read.offset <= 2 { 0 } else { read.offset };
        loop {
            // Read before it is asked: a change meanwhile may be in the answer or not.
            let now = self.changes.now();
            if !listing.has(cookie, now) {
                if self.told.is_telling(request) {
                    // What is told must not wait for more; it will be asked for.
                    return Ok(());
                }
                listing.generation = self.fs.generation();
                let more = self.fs.readdir(&caller, ino, cookie, meta::ENTRIES_MAX);
                listing.take(cookie, self.wait(request, more).await?, now);
            }
            while let Some(entry) = listing.after(cookie) {
                let name = OsStr::from_bytes(&entry.name);
                let added = match with_attributes {
                    true => {
                        let told = self.entry(request, inode, &entry.attr, listing.generation).await;
                        entries.add_entry(name, &told, entry.cookie)
                    }
                    false => {
                        let mode = translate::mode(&entry.attr);
                        entries.add(name, self.inode(entry.attr.ino), mode, entry.cookie)
                    }
                };
                if !added {
                    listing.put_back(cookie, entry);
                    return Ok(());
                }
                cookie = entry.cookie;
            }
            if listing.is_at_end(cookie) {
                return Ok(());
            }
        }
    }
}
