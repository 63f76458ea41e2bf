//! The index in sled.
//!
//! sled is fast enough for an index and not trustworthy enough for anything else, so this is all
//! that it is used for. What is done about what was measured and read in its source:
//!
//! - `flush` is `sync_file_range`, no durability barrier: [`Index::sync`] adds an `fdatasync`;
//! - damaged files make it panic: every call is caught, and an error here means a rebuild;
//! - damaged files make it lose entries silently: the catalog counts them at a start;
//! - it collects garbage in its flush thread only: that thread stays on;
//! - its threads may hold the lock of its folder for a moment after it was closed: [`SledIndex::open`] waits for it;
//! - its memory grows without bound once the data exceed its cache: the cache is larger than the
//!   index of the most blocks a node is meant to hold ([`ENTRIES_MAX`]).

use std::fs::{File, TryLockError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::index::{Entry, Index, IndexError, Op};

/// Size of sled's cache, bytes.
const CACHE_BYTES: u64 = 256 << 20;
/// How often sled's own thread flushes and collects garbage, milliseconds.
const FLUSH_EVERY_MS: u64 = 500;
/// How long an index that was just closed may keep its lock, and how often to look.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// More entries than this, and sled may need more memory than its cache.
pub(super) const ENTRIES_MAX: u64 = 500_000;

/// An index in a folder of sled's.
pub struct SledIndex {
    db: sled::Db,
    /// sled's data file: `fdatasync` covers an inode, whichever descriptor it is called on.
    file: File,
}

impl SledIndex {
    /// Opens or creates the index in `folder`. If another has it open, waits a while until that is closed.
    ///
    /// # Errors
    /// [`IndexError`], also if sled panics.
    pub fn open(folder: &Path) -> Result<SledIndex, IndexError> {
        wait_for_lock(folder);
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let db = caught(|| config.open())?;
        let file = File::open(folder.join("db")).map_err(|error| IndexError::Failed(error.to_string()))?;
        Ok(SledIndex { db, file })
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        caught(|| Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    fn apply(&self, ops: &[Op]) -> Result<(), IndexError> {
        caught(|| match ops {
            // A batch costs sled a write of its own, a single change does not.
            [Op::Put { key, value }] => self.db.insert(key, value.as_slice()).map(drop),
            [Op::Delete { key }] => self.db.remove(key).map(drop),
            _ => {
                let mut batch = sled::Batch::default();
                for op in ops {
                    match op {
                        Op::Put { key, value } => batch.insert(key.as_slice(), value.as_slice()),
                        Op::Delete { key } => batch.remove(key.as_slice()),
                    }
                }
                self.db.apply_batch(batch)
            }
        })
    }

    fn range(&self, low: &[u8], high: &[u8], limit: usize) -> Result<Vec<Entry>, IndexError> {
        if low >= high {
            return Ok(Vec::new());
        }
        caught(|| {
            let entries = self.db.range(low..high).take(limit);
            entries.map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        })
    }

    fn sync(&self) -> Result<(), IndexError> {
        caught(|| self.db.flush().map(drop))?;
        self.file.sync_data().map_err(|error| IndexError::Failed(error.to_string()))
    }
}

/// Waits until nobody has the index in `folder` open, but not for ever: sled itself gives up at once, and a good
/// index would be moved aside.
fn wait_for_lock(folder: &Path) {
    let Ok(file) = File::open(folder.join("db")) else { return };
    let begun = Instant::now();
    // The lock that is got here is let go with the file; nobody else is after it, for the store has its own.
    while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && begun.elapsed() < LOCK_PATIENCE {
        thread::sleep(LOCK_PAUSE);
    }
}

/// Runs `call`, with sled's errors and panics as an [`IndexError`].
fn caught<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| IndexError::Failed(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(IndexError::Panicked(text.unwrap_or_else(|| "no message".to_owned())))
        }
    }
}
