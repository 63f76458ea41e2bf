//! What the kernel was told: of files, to know when it has to be told again; of directories, which it may
//! ask for after they are removed; and what it may believe for as long as a lease lasts, and must forget
//! when the lease is given back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meta::{Attr, Ino, Kind};
use parking_lot::Mutex;
use tokio::sync::RwLock;

use crate::wire::abi::ROOT;
use crate::wire::{Notifier, Request};

/// The longest that an operation may go on after its caller was interrupted: others' leases are waited for,
/// and replicas, several times a minute each.
const UNSETTLED: Duration = Duration::from_secs(300);

/// What the kernel was told of every file and directory that it knows.
#[derive(Debug, Default)]
pub(crate) struct Told {
    files: Mutex<HashMap<Ino, Known>>,
    directories: Mutex<HashMap<Ino, Attr>>,
    /// In which generation of leases directories were opened whose listings it keeps.
    listings: Mutex<HashMap<Ino, u64>>,
    /// Of which version the attributes are that it has, and which access lists there were then.
    listed: Mutex<HashMap<Ino, Listed>>,
    /// Of which inodes, by the kernel's numbers, it may believe the attributes for as long as a lease lasts.
    lasting: Mutex<HashSet<u64>>,
    /// Shared by answers that say so until the kernel has them; held alone while it is made to forget.
    telling: Arc<RwLock<()>>,
    notifier: OnceLock<Notifier>,
    names_expire: OnceLock<bool>,
    /// Until when an interrupted change may still be made.
    unsettled: Mutex<Option<Instant>>,
}

/// Of one file.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Of which content its attributes are.
    attributes: Option<u64>,
    /// Of which content its cached pages are: as of its last open.
    pages: Option<u64>,
}

/// The access lists of one inode, by name: as good as its attributes of this version are.
#[derive(Clone, Debug, Default)]
struct Listed {
    version: u64,
    lists: Vec<(Vec<u8>, Option<Bytes>)>,
}

impl Told {
    /// The kernel is about to get these attributes.
    pub(crate) fn tell(&self, attr: &Attr) {
        {
            let mut listed = self.listed.lock();
            let listed = listed.entry(attr.ino).or_default();
            if listed.version < attr.version {
                *listed = Listed { version: attr.version, lists: Vec::new() };
            }
        }
        match attr.kind {
            Kind::File => self.files.lock().entry(attr.ino).or_default().attributes = Some(attr.content_version),
            Kind::Directory => drop(self.directories.lock().insert(attr.ino, *attr)),
            _ => {}
        }
    }

    /// An access list as of the attributes that the kernel has, if that is known; and which version they are.
    pub(crate) fn list(&self, ino: Ino, name: &[u8]) -> (Option<Option<Bytes>>, u64) {
        let listed = self.listed.lock();
        let Some(listed) = listed.get(&ino) else { return (None, 0) };
        let known = listed.lists.iter().find(|(known, _)| known == name).map(|(_, list)| list.clone());
        (known, listed.version)
    }

    /// Keeps an access list that was asked for when the kernel had attributes of that version.
    pub(crate) fn keep_list(&self, ino: Ino, name: &[u8], version: u64, list: Option<Bytes>) {
        if let Some(listed) = self.listed.lock().get_mut(&ino).filter(|listed| listed.version == version) {
            listed.lists.retain(|(known, _)| known != name);
            listed.lists.push((name.to_vec(), list));
        }
    }

    /// A list was set: what is known is not so, whatever attributes the kernel has.
    pub(crate) fn drop_lists(&self, ino: Ino) {
        self.listed.lock().remove(&ino);
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

    /// A directory is opened whose listing the kernel will keep: whether the one that it has is of this generation
    /// of leases, which have not ended in between.
    pub(crate) fn open_listing(&self, ino: Ino, generation: u64) -> bool {
        self.listings.lock().insert(ino, generation) == Some(generation)
    }

    /// The kernel's cached pages may hold what is not so.
    pub(crate) fn doubt_pages(&self, ino: Ino) {
        if let Some(known) = self.files.lock().get_mut(&ino) {
            known.pages = None;
        }
    }

    /// What the kernel was told of these inodes, and its cached pages of them, is not so. Waits for nothing.
    pub(crate) fn doubt(&self, inos: &[Ino], root: Ino) {
        inos.iter().for_each(|ino| self.doubt_pages(*ino));
        let Some(notifier) = self.notifier.get().cloned() else { return };
        let inodes: Vec<u64> = inos.iter().map(|ino| if *ino == root { ROOT } else { ino.0 }).collect();
        tokio::spawn(async move {
            for inode in inodes {
                if let Err(errno) = notifier.inval_inode(inode, 0, 0).await {
                    tracing::warn!(%errno, inode, "the kernel keeps pages of what was lost");
                }
            }
        });
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
        self.listed.lock().remove(&ino);
        self.listings.lock().remove(&ino);
        // What may be believed for long is kept: it may know the inode anew by now, or by other names.
    }

    /// The way to the kernel is open.
    pub(crate) fn connect(&self, notifier: Notifier) -> bool {
        let names_expire = notifier.expire_names().is_ok();
        self.notifier.set(notifier).is_ok() && self.names_expire.set(names_expire).is_ok()
    }

    /// The way to the kernel, once it is open.
    pub(crate) fn notifier(&self) -> Option<&Notifier> {
        self.notifier.get()
    }

    /// Whether names can be taken back that the kernel may believe for long.
    pub(crate) fn names_expire(&self) -> bool {
        self.names_expire.get().is_some_and(|can| *can)
    }

    /// A change may be made yet though its caller was told that it was interrupted, and the kernel acts as if
    /// it were not: until it has ended one way or the other nothing lasts.
    pub(crate) async fn note_interrupted(self: &Arc<Self>) {
        *self.unsettled.lock() = Some(Instant::now() + UNSETTLED);
        self.clone().forget_lasting().await;
    }

    /// Whether such a change may be under way.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unsettled.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Before an answer says that something lasts: what makes the kernel forget waits for the answer.
    pub(crate) async fn begin_telling(&self, request: &Request) {
        if request.until_answered.get().is_none() {
            let guard = self.telling.clone().read_owned().await;
            // If another was quicker one guard is enough.
            let _ = request.until_answered.set(guard);
        }
    }

    /// The kernel is about to get attributes of this inode, by its number, that last.
    pub(crate) fn tell_lasting(&self, inode: u64) {
        self.lasting.lock().insert(inode);
    }

    /// Makes the kernel forget everything that it may believe for as long as a lease lasts.
    pub(crate) async fn forget_lasting(self: Arc<Self>) {
        let _alone = self.telling.clone().write_owned().await;
        let lasting = core::mem::take(&mut *self.lasting.lock());
        let told = self.clone();
        let forgotten = tokio::task::spawn_blocking(move || {
            let Some(notifier) = told.notifier.get() else { return Ok(()) };
            let names = if told.names_expire() { notifier.expire_names() } else { Ok(()) };
            // One that fails must not keep the others.
            lasting.into_iter().fold(names, |before, inode| before.and(notifier.inval_attributes(inode)))
        });
        match forgotten.await {
            Ok(Ok(())) => {}
            Ok(Err(errno)) => tracing::error!(%errno, "the kernel keeps what others may change from now on"),
            Err(_) => tracing::debug!("the runtime is shut down"),
        }
    }

    /// Makes the kernel ask for the attributes of this inode again.
    pub(crate) fn drop_attributes(&self, inode: u64) {
        if let Some(notifier) = self.notifier.get()
            && let Err(errno) = notifier.inval_attributes(inode)
        {
            tracing::warn!(%errno, "the kernel keeps old attributes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_good_for_one_generation_of_leases() {
        let told = Told::default();
        assert!(!told.open_listing(Ino(5), 1));
        assert!(told.open_listing(Ino(5), 1));
        assert!(!told.open_listing(Ino(5), 2), "others may have changed it in between");
        assert!(told.open_listing(Ino(5), 2));
        told.forget(Ino(5));
        assert!(!told.open_listing(Ino(5), 2));
    }

    #[tokio::test]
    async fn forgetting_waits_for_answers_that_say_that_something_lasts() {
        let told = Arc::new(Told::default());
        let (interrupt, until_answered) = Default::default();
        let request = Request { unique: 2, uid: 0, gid: 0, pid: 1, interrupt, until_answered };
        told.begin_telling(&request).await;
        told.begin_telling(&request).await;
        told.tell_lasting(7);
        let forgetting = told.clone().forget_lasting();
        tokio::pin!(forgetting);
        assert!(futures::poll!(forgetting.as_mut()).is_pending());
        assert!(told.lasting.lock().contains(&7));
        drop(request);
        forgetting.await;
        assert!(told.lasting.lock().is_empty());
    }

    #[test]
    fn a_list_is_known_for_as_long_as_the_attributes_are() {
        let told = Told::default();
        let time = meta::Timestamp::default();
        let attr = Attr {
            ino: Ino(7),
            volume: meta::VolumeId(1),
            kind: Kind::File,
            mode: 0o640,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            allocated: 0,
            rdev: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            version: 5,
            content_version: 1,
        };
        assert_eq!(told.list(Ino(7), b"list"), (None, 0));
        told.tell(&attr);
        assert_eq!(told.list(Ino(7), b"list"), (None, 5));
        told.keep_list(Ino(7), b"list", 5, None);
        told.keep_list(Ino(7), b"other", 5, Some(Bytes::from_static(b"x")));
        told.tell(&Attr { version: 4, ..attr });
        assert_eq!(told.list(Ino(7), b"list"), (Some(None), 5));
        assert_eq!(told.list(Ino(7), b"other"), (Some(Some(Bytes::from_static(b"x"))), 5));
        told.tell(&Attr { version: 6, ..attr });
        assert_eq!(told.list(Ino(7), b"other"), (None, 6), "the inode changed");
        told.keep_list(Ino(7), b"list", 5, None);
        assert_eq!(told.list(Ino(7), b"list"), (None, 6), "asked for before it did");
        told.keep_list(Ino(7), b"list", 6, None);
        told.drop_lists(Ino(7));
        told.keep_list(Ino(7), b"list", 6, None);
        assert_eq!(told.list(Ino(7), b"list"), (None, 0), "it was set");
        told.tell(&attr);
        told.forget(Ino(7));
        assert_eq!(told.list(Ino(7), b"list"), (None, 0));
    }

    #[tokio::test]
    async fn after_an_interrupted_change_nothing_lasts() {
        let told = Arc::new(Told::default());
        told.tell_lasting(7);
        assert!(!told.is_unsettled());
        told.note_interrupted().await;
        assert!(told.is_unsettled() && told.lasting.lock().is_empty());
    }
}
