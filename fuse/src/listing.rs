//! Open directories: entries that came with the last question and did not fit into the answer.
//!
//! The cluster answers with hundreds of entries at once, the kernel has room for as few as twenty.
//! What is left over has attributes of the time it was asked for, and the kernel takes them for new:
//! it would undo what was changed here since. So they are only good until the next change.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client::fs::{Entries, Entry, first_handle};
use parking_lot::Mutex;

/// The open directories of a mount.
#[derive(Debug)]
pub(crate) struct Listings {
    open: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<Listing>>>>,
    next: AtomicU64,
    ttl: Duration,
}

/// One open directory: what is known to follow `cookie`.
#[derive(Debug)]
pub(crate) struct Listing {
    cookie: u64,
    entries: VecDeque<Entry>,
    end: bool,
    fetched: Option<Instant>,
    /// How many changes were made through this mount before it was asked for.
    of: u64,
    /// Of which generation of leases it is.
    pub(crate) generation: u64,
    ttl: Duration,
}

impl Listings {
    /// Entries are given away for `ttl` after they were asked for: their attributes grow old.
    pub(crate) fn new(ttl: Duration) -> Listings {
        Listings { open: Mutex::default(), next: AtomicU64::new(first_handle()), ttl }
    }

    pub(crate) fn open(&self) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(handle, Listing::new(self.ttl));
        handle
    }

    /// The listing of a handle. One that was opened by a process before this starts anew: nothing depends
    /// on it.
    pub(crate) fn get(&self, handle: u64) -> Arc<tokio::sync::Mutex<Listing>> {
        self.open.lock().entry(handle).or_insert_with(|| Listing::new(self.ttl)).clone()
    }

    pub(crate) fn close(&self, handle: u64) {
        self.open.lock().remove(&handle);
    }
}

impl Listing {
    fn new(ttl: Duration) -> Arc<tokio::sync::Mutex<Listing>> {
        let (entries, fetched) = (VecDeque::new(), None);
        Arc::new(tokio::sync::Mutex::new(Listing {
            cookie: 0,
            entries,
            end: false,
            fetched,
            of: 0,
            generation: 0,
            ttl,
        }))
    }

    /// Whether it is known, and lately, what follows `cookie`: `now` changes were made by now.
    pub(crate) fn has(&self, cookie: u64, now: u64) -> bool {
        let fresh = self.of == now && self.fetched.is_some_and(|fetched| fetched.elapsed() < self.ttl);
        fresh && self.cookie == cookie && (self.end || !self.entries.is_empty())
    }

    /// Whether nothing followed `cookie` when it was last asked.
    pub(crate) fn is_at_end(&self, cookie: u64) -> bool {
        self.cookie == cookie && self.end && self.entries.is_empty()
    }

    /// Notes what follows `cookie`; `now` changes had been made before it was asked for.
    pub(crate) fn take(&mut self, cookie: u64, found: Entries, now: u64) {
        (self.cookie, self.end, self.fetched) = (cookie, found.end, Some(Instant::now()));
        (self.entries, self.of) = (found.entries.into(), now);
    }

    /// Forgets what is known: the directory is read from the start.
    pub(crate) fn forget(&mut self) {
        (self.end, self.fetched) = (false, None);
        self.entries.clear();
    }

    /// Takes the entry after `cookie` out; the one after that is next. `None`: ask again.
    pub(crate) fn after(&mut self, cookie: u64) -> Option<Entry> {
        if self.cookie != cookie {
            return None;
        }
        let entry = self.entries.pop_front()?;
        self.cookie = entry.cookie;
        Some(entry)
    }

    /// Puts back what `after` gave for `cookie`: there was no room for it.
    pub(crate) fn put_back(&mut self, cookie: u64, entry: Entry) {
        self.cookie = cookie;
        self.entries.push_front(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cookie: u64) -> Entry {
        let time = meta::Timestamp::default();
        let attr = meta::Attr {
            ino: meta::Ino(cookie + 100),
            volume: meta::VolumeId(1),
            kind: meta::Kind::File,
            mode: 0o644,
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
            version: 1,
            content_version: 1,
        };
        Entry { cookie, name: vec![b'n'], attr }
    }

    #[tokio::test]
    async fn what_did_not_fit_comes_first_the_next_time() {
        let listings = Listings::new(Duration::from_secs(60));
        let handle = listings.open();
        let shared = listings.get(handle);
        let mut listing = shared.lock().await;
        assert!(!listing.has(0, 0), "nothing was asked for yet");
        listing.take(0, Entries { entries: vec![entry(3), entry(7)], end: false }, 0);
        assert_eq!(listing.after(0).unwrap().cookie, 3);
        let second = listing.after(3).unwrap();
        listing.put_back(3, second);
        assert!(listing.has(3, 0) && !listing.has(0, 0) && !listing.has(7, 0));
        assert_eq!(listing.after(5), None, "somebody seeked");
        assert_eq!(listing.after(3).unwrap().cookie, 7);
        assert!(!listing.has(7, 0) && !listing.is_at_end(7), "there is more to ask for");
        listing.take(7, Entries { entries: vec![], end: true }, 0);
        assert!(listing.is_at_end(7) && !listing.is_at_end(3));
        drop(listing);
        listings.close(handle);
        assert!(!listings.get(handle).lock().await.has(7, 0));
    }

    #[tokio::test]
    async fn old_entries_are_asked_for_again() {
        let listings = Listings::new(Duration::ZERO);
        let shared = listings.get(listings.open());
        let mut listing = shared.lock().await;
        listing.take(0, Entries { entries: vec![entry(3)], end: true }, 0);
        assert!(!listing.has(0, 0));
    }

    #[tokio::test]
    async fn entries_from_before_a_change_or_a_rewind_are_asked_for_again() {
        let listings = Listings::new(Duration::from_secs(60));
        let shared = listings.get(listings.open());
        let mut listing = shared.lock().await;
        listing.take(0, Entries { entries: vec![entry(3)], end: true }, 4);
        assert!(listing.has(0, 4) && !listing.has(0, 5));
        listing.forget();
        assert!(!listing.has(0, 4) && !listing.is_at_end(0) && listing.after(0).is_none());
    }
}
