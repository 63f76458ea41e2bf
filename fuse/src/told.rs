//! What the kernel was told of files, to know when it has to be told again; and of directories, which it
//! may ask for after they are removed.

use std::collections::HashMap;

use meta::{Attr, Ino, Kind};
use parking_lot::Mutex;

/// What the kernel was told of every file and directory that it knows.
#[derive(Debug, Default)]
pub(crate) struct Told {
    files: Mutex<HashMap<Ino, Known>>,
    directories: Mutex<HashMap<Ino, Attr>>,
}

/// Of one file.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Of which content its attributes are.
    attributes: Option<u64>,
    /// Of which content its cached pages are: as of its last open.
    pages: Option<u64>,
}

impl Told {
    /// The kernel is about to get these attributes.
    pub(crate) fn tell(&self, attr: &Attr) {
        match attr.kind {
            Kind::File => self.files.lock().entry(attr.ino).or_default().attributes = Some(attr.content_version),
            Kind::Directory => drop(self.directories.lock().insert(attr.ino, *attr)),
            _ => {}
        }
    }

    /// A file is opened with these attributes: whether the kernel has others, and whether the pages it
    /// has are of this content.
    pub(crate) fn open(&self, attr: &Attr) -> (bool, bool) {
        let version = Some(attr.content_version);
        let mut known = self.files.lock();
        let known = known.entry(attr.ino).or_default();
        let before = std::mem::replace(known, Known { pages: version, ..*known });
        (before.attributes != version, before.pages == version)
    }

    /// A file was committed and has these attributes: whether the kernel was told others, which it is
    /// now to drop.
    pub(crate) fn commit(&self, attr: &Attr) -> bool {
        let version = Some(attr.content_version);
        let mut known = self.files.lock();
        let before = known.get_mut(&attr.ino).map(|known| std::mem::replace(&mut known.attributes, version));
        before.is_some_and(|before| before != version)
    }

    /// The kernel's cached pages may hold what is not so.
    pub(crate) fn doubt_pages(&self, ino: Ino) {
        if let Some(known) = self.files.lock().get_mut(&ino) {
            known.pages = None;
        }
    }

    /// A directory that is there no more and that the kernel still knows, because a process is in it:
    /// as a local filesystem shows it, with no links and nothing in it.
    pub(crate) fn removed(&self, ino: Ino) -> Option<Attr> {
        self.directories.lock().get(&ino).map(|attr| Attr { nlink: 0, size: 0, ..*attr })
    }

    /// The kernel knows it no more.
    pub(crate) fn forget(&self, ino: Ino) {
        self.files.lock().remove(&ino);
        self.directories.lock().remove(&ino);
    }
}
