//! The block store of a storage node: sealed blocks by id.
//!
//! In its folder:
//!
//! ```text
//! segments/00000001.seg   the blocks' bytes, append-only; the highest number is appended to
//! index/                  where each block is; derived from the segments, rebuilt when in doubt
//! index.bad/              the last index that was given up, for whoever wants to know why
//! ```
//!
//! **Put.** One thread appends what many tasks hand in and syncs once for all that waits (group
//! commit); a second one enters the blocks in the index and answers. An answer of
//! [`PutOutcome::Stored`] or [`PutOutcome::Had`] means that the block is durable.
//!
//! **Get.** The body's BLAKE3 is checked against the id on every read, so neither disk nor index has
//! to be trusted. A block that fails is dropped, remembered as damaged, and mended by the next put.
//!
//! **Start.** The index says how far it covers the segments; only what was appended since is read
//! again. An index that fails, panics, or contradicts the segments is moved aside and rebuilt from
//! the records' headers.
//!
//! **Trouble.** A full disk refuses puts and nothing else, until there is room again. A failed sync
//! is final ([`Store::fatal`]). An index that fails while the node runs is replaced by one in memory.

mod append;
mod catalog;
mod index;
mod recover;
mod segment;
mod segments;
mod sled_index;
mod writer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use base::BlockId;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::folder::{Identity, durable};
use catalog::Catalog;
pub use index::{Entry, Index, IndexError, MemIndex, Op};
use segment::Location;
use segments::Segments;
pub use sled_index::SledIndex;

/// The newest format of segments that this program knows.
pub const FORMAT: u32 = 1;
/// Longest block, bytes.
pub const BLOCK_BYTES_MAX: usize = 4 << 20;

/// How much a store may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of segments; `None` for as much as the filesystem has room for.
    pub capacity_bytes: Option<u64>,
    /// Bytes of the filesystem that are left free.
    pub reserve_bytes: u64,
}

/// Which index a store uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexKind {
    /// sled, in the store's folder.
    #[default]
    Sled,
    /// In memory; rebuilt at every start.
    Memory,
}

/// Sizes that only tests have a reason to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// A segment longer than this, bytes, is not appended to any more.
    pub segment_bytes: u64,
    /// Bytes appended between two syncs of the index: what a start reads again, at most.
    pub checkpoint_bytes: u64,
    /// Groups of blocks from this size on, bytes, are written past the kernel's memory.
    pub direct_bytes: u64,
    /// Which index.
    pub index: IndexKind,
}

impl Default for Tuning {
    fn default() -> Tuning {
        let (segment_bytes, checkpoint_bytes, direct_bytes) = (256 << 20, 64 << 20, 512 << 10);
        Tuning { segment_bytes, checkpoint_bytes, direct_bytes, index: IndexKind::default() }
    }
}

/// What became of one block of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It is durable now.
    Stored,
    /// It was durable already; nothing was written.
    Had,
    /// There is no room for it.
    Full,
    /// It was not stored: it is longer than [`BLOCK_BYTES_MAX`], its id is of no known kind, or the
    /// store has failed or is closed.
    Failed,
}

/// Is told the outcomes of a put, in the order of its blocks. Runs on the store's own thread, so it
/// must be quick and must not close the store.
pub type Done = Box<dyn FnOnce(Vec<PutOutcome>) + Send>;

/// Why the store can't do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk said no.
    #[error("block store: cannot {action} {}: {source}", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A block's bytes are not what its id says, or can't be read.
    #[error(
        "block {id} is damaged (in {} at byte {offset}); the next put of it, by a client or a peer, mends it",
        file.display()
    )]
    Corrupt {
        /// The block.
        id: BlockId,
        /// The segment it is in.
        file: PathBuf,
        /// Where its record starts, bytes from the start of the segment.
        offset: u64,
    },
    /// A file's format is newer than the program.
    #[error(
        "block segment {} was written by a newer version (format {format}; this program knows {FORMAT}); \
         start the node with that version or a newer one",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        format: u32,
    },
    /// A file is another node's.
    #[error("block segment {} belongs to {found}, but this is {wanted}; move it away", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Who asked.
        wanted: Identity,
    },
    /// The folder is open already.
    #[error("block store {} is in use by another process; stop that node first", folder.display())]
    InUse {
        /// The store's folder.
        folder: PathBuf,
    },
    /// The store has been closed.
    #[error("the block store is closed")]
    Closed,
}

impl StoreError {
    fn io<'a>(action: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::Io { action, file: file.into(), source }
    }
}

/// Room for blocks, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What the store may hold in all.
    pub capacity: u64,
    /// What its segments take.
    pub used: u64,
    /// What there is room for now.
    pub free: u64,
}

/// What a store has seen since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks it holds.
    pub blocks: u64,
    /// Blocks that were put and stored.
    pub stored: u64,
    /// Blocks that were put and there already.
    pub had: u64,
    /// Blocks refused for want of room.
    pub refused: u64,
    /// Blocks that could not be stored for any other reason.
    pub failed: u64,
    /// Reads of a block that was damaged.
    pub corrupt: u64,
    /// Blocks known to be damaged and not mended yet.
    pub damaged: u64,
    /// Syncs that blocks were stored with.
    pub groups: u64,
    /// Whether the last block that was to be stored was refused for want of room.
    pub full: bool,
    /// Records read again at the start.
    pub replayed: u64,
    /// Bytes cut off the last segment at the start: a write that was never synced.
    pub torn_bytes: u64,
    /// Bytes in segments read again at the start that were no sound record, with sound ones after.
    pub damaged_bytes: u64,
    /// Whether the start gave up an index and rebuilt it.
    pub index_rebuilt: bool,
    /// Whether the index is in memory (by choice, or because the disk has failed it).
    pub index_in_memory: bool,
}

/// A store of blocks, shared by any number of threads.
pub struct Store {
    shared: Arc<Shared>,
    puts: Mutex<Option<Sender<Put>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<File>>,
    recovered: recover::Recovered,
}

/// One call of [`Store::put`].
struct Put {
    blocks: Vec<(BlockId, Bytes)>,
    done: Done,
}

/// What the store's threads and its callers share.
struct Shared {
    segments: Segments,
    catalog: Catalog,
    options: StoreOptions,
    tuning: Tuning,
    fatal: Mutex<Option<String>>,
    full: AtomicBool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    stored: AtomicU64,
    had: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    corrupt: AtomicU64,
    groups: AtomicU64,
}

impl Store {
    /// Opens the store in `folder`, which is created on first use (its parent must be there).
    ///
    /// # Errors
    /// [`StoreError`]; the files are then as they were.
    pub fn open(folder: &Path, identity: Identity, options: StoreOptions) -> Result<Store, StoreError> {
        Store::open_tuned(folder, identity, options, Tuning::default())
    }

    /// [`Store::open`] with other sizes.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_tuned(
        folder: &Path,
        identity: Identity,
        options: StoreOptions,
        tuning: Tuning,
    ) -> Result<Store, StoreError> {
        durable::create_folder(folder).map_err(StoreError::io("create", folder))?;
        let lock = File::open(folder).map_err(StoreError::io("open", folder))?;
        if !durable::lock(&lock).map_err(StoreError::io("lock", folder))? {
            return Err(StoreError::InUse { folder: folder.into() });
        }
        let segments = Segments::open(&folder.join("segments"), identity)?;
        let (index, recovered) = recover::open(folder, tuning.index, &segments)?;
        let catalog = Catalog::new(folder, index, &recovered);
        let shared = Arc::new(Shared {
            segments,
            catalog,
            options,
            tuning,
            fatal: Mutex::new(None),
            full: AtomicBool::new(false),
            counts: Counts::default(),
        });
        let (puts, waiting) = mpsc::channel();
        let threads = writer::start(&shared, waiting).map_err(StoreError::io("start the threads of", folder))?;
        Ok(Store {
            shared,
            puts: Mutex::new(Some(puts)),
            threads: Mutex::new(threads),
            lock: Mutex::new(Some(lock)),
            recovered,
        })
    }

    /// Stores blocks and says what became of them once that is durable. The caller has checked that
    /// each body is what its id says, and bounds what it has under way: a put waits in memory.
    pub fn put(&self, blocks: Vec<(BlockId, Bytes)>, done: Done) {
        let put = Put { blocks, done };
        let unsent = match &*self.puts.lock() {
            Some(puts) => puts.send(put).err().map(|error| {
                self.shared.fail("the thread that writes has ended".to_owned());
                error.0
            }),
            None => Some(put),
        };
        if let Some(put) = unsent {
            self.shared.counts.failed.fetch_add(put.blocks.len() as u64, Ordering::Relaxed);
            (put.done)(vec![PutOutcome::Failed; put.blocks.len()]);
        }
    }

    /// Which of these blocks are here and durable, as far as the store knows without reading them.
    pub fn has(&self, ids: &[BlockId]) -> Vec<bool> {
        ids.iter().map(|id| matches!(self.shared.catalog.locate(id, &self.shared.segments), Ok(Some(_)))).collect()
    }

    /// A block's bytes, checked against its id; `None` if it is not here. Reads the disk.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] the first time that a damaged block is read; it is not here after that.
    pub fn get(&self, id: &BlockId) -> Result<Option<Bytes>, StoreError> {
        let Some(location) = self.shared.catalog.locate(id, &self.shared.segments)? else { return Ok(None) };
        match self.shared.segments.read(&location) {
            Ok(body) if *blake3::hash(&body).as_bytes() == id.hash => Ok(Some(body.into())),
            Err(error) if !segments::is_damage(&error) => {
                let file = self.shared.segments.path_of(location.segment);
                Err(StoreError::Io { action: "read", file, source: error })
            }
            _ => Err(self.shared.on_damage(id, &location)),
        }
    }

    /// A block that is in memory, and sound; for anything else there is [`Store::get`]. Does not wait for a disk,
    /// but for the index, where that has to read some of itself.
    pub fn get_cached(&self, id: &BlockId) -> Option<Bytes> {
        let location = self.shared.catalog.locate_at_once(id)?;
        let body = self.shared.segments.read_cached(&location)?;
        (*blake3::hash(&body).as_bytes() == id.hash).then(|| body.into())
    }

    /// Up to `limit` blocks that are damaged and were not mended yet, after `after`, ascending.
    pub fn damaged(&self, after: Option<&BlockId>, limit: usize) -> Vec<BlockId> {
        self.shared.catalog.damaged(after, limit)
    }

    /// How much room there is.
    pub fn space(&self) -> Space {
        let used = self.shared.segments.used();
        let room = self.shared.room();
        let capacity = self.shared.options.capacity_bytes.unwrap_or(used.saturating_add(room));
        Space { capacity, used, free: room }
    }

    /// What the store has seen.
    pub fn stats(&self) -> Stats {
        let (shared, counts) = (&self.shared, &self.shared.counts);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            blocks: shared.catalog.blocks(),
            stored: read(&counts.stored),
            had: read(&counts.had),
            refused: read(&counts.refused),
            failed: read(&counts.failed),
            corrupt: read(&counts.corrupt),
            damaged: shared.catalog.damaged_count(),
            groups: read(&counts.groups),
            full: shared.full.load(Ordering::Relaxed),
            replayed: self.recovered.replayed,
            torn_bytes: self.recovered.torn_bytes,
            damaged_bytes: self.recovered.damaged_bytes,
            index_rebuilt: self.recovered.rebuilt,
            index_in_memory: shared.catalog.in_memory(),
        }
    }

    /// Why the store has failed for good and the node must stop, if it has.
    pub fn fatal(&self) -> Option<String> {
        self.shared.fatal.lock().clone()
    }

    /// Finishes what waits, syncs the index and lets go of the folder; every later call finds the
    /// store closed. Dropping the store does the same.
    pub fn close(&self) {
        drop(self.puts.lock().take());
        for thread in self.threads.lock().drain(..) {
            // The last owner may be what an answer's closure held; that runs on such a thread.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        self.shared.catalog.close();
        self.lock.lock().take();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Bytes that may be appended now.
    fn room(&self) -> u64 {
        let available = self.segments.available().unwrap_or(0).saturating_sub(self.options.reserve_bytes);
        match self.options.capacity_bytes {
            Some(capacity) => available.min(capacity.saturating_sub(self.segments.used())),
            None => available,
        }
    }

    /// A block's bytes are not what they should be.
    fn on_damage(&self, id: &BlockId, location: &Location) -> StoreError {
        self.counts.corrupt.fetch_add(1, Ordering::Relaxed);
        self.catalog.drop_damaged(id, location, &self.segments);
        let file = self.segments.path_of(location.segment);
        tracing::warn!(%id, file = %file.display(), offset = location.offset, "a block is damaged");
        StoreError::Corrupt { id: *id, file, offset: location.offset }
    }

    /// The store has failed for good; the first cause is the one that counts.
    fn fail(&self, cause: String) {
        tracing::error!(%cause, "the block store has failed");
        self.fatal.lock().get_or_insert(cause);
    }
}
