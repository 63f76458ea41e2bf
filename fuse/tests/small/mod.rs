//! A filesystem of a few odd files: one never answers until it is interrupted, one panics, one grows.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fuse::wire::abi::{ROOT, open_flag};
use fuse::wire::request::{Init, Open, Read};
use fuse::wire::{
    Attributes, AttributesFor, Data, DirectoryEntries, Entry, Errno, Filesystem, Notifier, Opened, Request, Statistics,
};
use tokio::sync::Semaphore;

/// What `fixed` holds.
pub(crate) const FIXED: &[u8] = b"always the same";
/// The inode of `counter`, whose length grows each time its attributes are asked for.
pub(crate) const COUNTER: u64 = 3;

const NAMES: [&str; 5] = ["fixed", "counter", "slow", "panics", "panics-later"];
const TTL: Duration = Duration::from_secs(3600);

pub(crate) struct Small {
    /// One permit per read of `slow` that has begun.
    pub(crate) slow_reads: Semaphore,
    /// One permit per read of `slow` that was interrupted.
    pub(crate) interrupted: Semaphore,
    refuses: bool,
    count: AtomicU64,
    lookups: AtomicU64,
    destroyed: AtomicBool,
}

impl Default for Small {
    fn default() -> Small {
        Small {
            slow_reads: Semaphore::new(0),
            interrupted: Semaphore::new(0),
            refuses: false,
            count: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            destroyed: AtomicBool::new(false),
        }
    }
}

impl Small {
    /// One that refuses INIT.
    pub(crate) fn refusing() -> Small {
        Small { refuses: true, ..Small::default() }
    }

    pub(crate) fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::SeqCst)
    }

    pub(crate) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::SeqCst)
    }

    fn attributes(&self, inode: u64) -> Attributes {
        let directory = inode == ROOT;
        let size = match inode {
            ROOT => 0,
            COUNTER => 1 + self.count.fetch_add(1, Ordering::SeqCst),
            _ => FIXED.len() as u64,
        };
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mode = if directory { 0o040_755 } else { 0o100_644 };
        Attributes {
            inode,
            size,
            mode,
            uid,
            gid,
            links: 1 + u32::from(directory),
            block_size: 4096,
            ..Default::default()
        }
    }
}

impl Filesystem for Small {
    async fn init(&self, _: &Init, _: Notifier) -> Result<(), Errno> {
        if self.refuses { Err(Errno::PERM) } else { Ok(()) }
    }

    async fn destroy(&self) {
        self.destroyed.store(true, Ordering::SeqCst);
    }

    async fn lookup(&self, _: &Request, _: u64, name: &OsStr) -> Result<Entry, Errno> {
        let inode = NAMES.iter().position(|known| OsStr::new(known) == name).ok_or(Errno::NOENT)? as u64 + 2;
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let attributes = self.attributes(inode);
        Ok(Entry { inode, generation: 1, attributes, attributes_ttl: TTL, name_ttl: TTL })
    }

    async fn getattr(&self, _: &Request, inode: u64, _: Option<u64>) -> Result<AttributesFor, Errno> {
        Ok(AttributesFor { attributes: self.attributes(inode), ttl: TTL })
    }

    async fn open(&self, _: &Request, inode: u64, _: Open) -> Result<Opened, Errno> {
        match NAMES[inode as usize - 2] {
            "panics" => panic!("as told"),
            "panics-later" => {
                tokio::task::yield_now().await;
                panic!("as told, later")
            }
            _ => Ok(Opened { handle: inode, flags: open_flag::DIRECT_IO }),
        }
    }

    async fn read(&self, request: &Request, inode: u64, read: Read) -> Result<Data, Errno> {
        if NAMES[inode as usize - 2] == "slow" {
            self.slow_reads.add_permits(1);
            request.interrupt.fired().await;
            self.interrupted.add_permits(1);
            return Err(Errno::INTR);
        }
        let from = (read.offset as usize).min(FIXED.len());
        Ok(Bytes::from_static(&FIXED[from..]).into())
    }

    async fn fsync(&self, _: &Request, _: u64, _: u64, _: bool) -> Result<(), Errno> {
        Ok(())
    }

    async fn readdir(&self, _: &Request, _: u64, read: Read, entries: &mut DirectoryEntries) -> Result<(), Errno> {
        for (at, name) in NAMES.iter().enumerate().skip(read.offset as usize) {
            if !entries.add(OsStr::new(name), at as u64 + 2, 0o100_644, at as u64 + 1) {
                break;
            }
        }
        Ok(())
    }

    async fn fsyncdir(&self, _: &Request, _: u64, _: u64, _: bool) -> Result<(), Errno> {
        Ok(())
    }

    async fn statfs(&self, _: &Request, _: u64) -> Result<Statistics, Errno> {
        Ok(Statistics { name_bytes_max: 255, block_size: 4096, fragment_size: 4096, ..Statistics::default() })
    }
}
