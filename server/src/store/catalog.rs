//! Where each block is: what the store keeps in its index.
//!
//! ```text
//! "b" id    ->  segment u32, offset u64, length u32     a block
//! "d" id    ->  the same                                a damaged block, until it is put again
//! "m"       ->  the checkpoint
//! ```
//!
//! The *checkpoint* says up to which position the index covers the segments, and how many blocks it
//! has before that position: an index that has lost entries is found out by counting them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base::BlockId;
use parking_lot::{Mutex, RwLock};

use super::index::{Index, IndexError, MemIndex, Op};
use super::recover::Recovered;
use super::segment::Location;
use super::segments::{Position, Segments};
use super::sled_index::ENTRIES_MAX;
use super::{IndexKind, StoreError};
use crate::folder::header::{u32_at, u64_at};

/// The first byte of a block's key; the keys of all blocks are between it and the next byte.
pub(super) const BLOCK: u8 = b'b';
/// The first byte of a damaged block's key.
pub(super) const DAMAGED: u8 = b'd';
const CHECKPOINT_KEY: &[u8] = b"m";

/// How far an index covers the segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// All records before it are in the index.
    pub(super) upto: Position,
    /// The salt of the segment that `upto` is in; tells whether it is still the same file.
    pub(super) salt: u64,
    /// How many blocks the index has before `upto`.
    pub(super) blocks: u64,
}

impl Checkpoint {
    const LEN: usize = 28;

    pub(super) fn put(&self) -> Op {
        let mut value = Vec::with_capacity(Checkpoint::LEN);
        value.extend_from_slice(&self.upto.segment.to_le_bytes());
        value.extend_from_slice(&self.upto.offset.to_le_bytes());
        value.extend_from_slice(&self.salt.to_le_bytes());
        value.extend_from_slice(&self.blocks.to_le_bytes());
        Op::Put { key: CHECKPOINT_KEY.to_vec(), value }
    }

    /// Reads it; `Some(Err)` if its bytes make no sense, `None` if there is none yet.
    pub(super) fn read(index: &dyn Index) -> Result<Option<Checkpoint>, IndexError> {
        let Some(value) = index.get(CHECKPOINT_KEY)? else { return Ok(None) };
        if value.len() != Checkpoint::LEN {
            return Err(IndexError::Failed("a checkpoint of the wrong length".to_owned()));
        }
        let upto = Position { segment: u32_at(&value, 0), offset: u64_at(&value, 4) };
        Ok(Some(Checkpoint { upto, salt: u64_at(&value, 12), blocks: u64_at(&value, 20) }))
    }

    fn covers(&self, location: &Location) -> bool {
        location.position() < self.upto
    }
}

impl Location {
    pub(super) fn position(&self) -> Position {
        Position { segment: self.segment, offset: self.offset }
    }

    pub(super) fn to_value(self) -> Vec<u8> {
        let mut value = Vec::with_capacity(16);
        value.extend_from_slice(&self.segment.to_le_bytes());
        value.extend_from_slice(&self.offset.to_le_bytes());
        value.extend_from_slice(&self.length.to_le_bytes());
        value
    }

    pub(super) fn from_value(value: &[u8]) -> Result<Location, IndexError> {
        if value.len() != 16 {
            return Err(IndexError::Failed("a location of the wrong length".to_owned()));
        }
        Ok(Location { segment: u32_at(value, 0), offset: u64_at(value, 4), length: u32_at(value, 12) })
    }
}

pub(super) fn key(kind: u8, id: &BlockId) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + BlockId::ENCODED_LEN);
    key.push(kind);
    key.extend_from_slice(&id.to_array());
    key
}

/// The index a store uses, and what is counted beside it.
pub(super) struct Catalog {
    folder: PathBuf,
    current: RwLock<Current>,
    /// Held while entries are dropped or the checkpoint is moved.
    checkpoint: Mutex<Checkpoint>,
    blocks: AtomicU64,
    damaged: Mutex<BTreeMap<BlockId, Location>>,
}

struct Current {
    /// None once the store is closed.
    index: Option<Box<dyn Index>>,
    kind: IndexKind,
    /// Whether the index is the one of the start.
    original: bool,
}

/// An index and where it is.
pub(super) struct Opened {
    pub(super) index: Box<dyn Index>,
    pub(super) kind: IndexKind,
}

impl Catalog {
    pub(super) fn new(folder: &Path, opened: Opened, recovered: &Recovered) -> Catalog {
        Catalog {
            folder: folder.into(),
            current: RwLock::new(Current { index: Some(opened.index), kind: opened.kind, original: true }),
            checkpoint: Mutex::new(recovered.checkpoint),
            blocks: AtomicU64::new(recovered.checkpoint.blocks),
            damaged: Mutex::new(recovered.damaged.clone()),
        }
    }

    /// Where a block is.
    pub(super) fn locate(&self, id: &BlockId, segments: &Segments) -> Result<Option<Location>, StoreError> {
        let key = key(BLOCK, id);
        self.with(segments, |index, _| index.get(&key)?.map(|value| Location::from_value(&value)).transpose())
    }

    /// Where a block is, if the index says so without anybody's help.
    pub(super) fn locate_at_once(&self, id: &BlockId) -> Option<Location> {
        let current = self.current.try_read()?;
        let value = current.index.as_ref()?.get(&key(BLOCK, id)).ok()??;
        Location::from_value(&value).ok()
    }

    /// Enters a block whose record is durable.
    pub(super) fn insert(&self, id: &BlockId, location: &Location, segments: &Segments) -> Result<(), StoreError> {
        let key = key(BLOCK, id);
        let mended = self.damaged.lock().contains_key(id);
        let new = self.with(segments, |index, original| {
            // An index rebuilt just now may have it already.
            let new = original || index.get(&key)?.is_none();
            let put = Op::Put { key: key.clone(), value: location.to_value() };
            if mended {
                index.apply(&[put, Op::Delete { key: self::key(DAMAGED, id) }])?;
            } else {
                index.apply(&[put])?;
            }
            Ok(new)
        })?;
        if mended {
            self.damaged.lock().remove(id);
        }
        if new && self.blocks.fetch_add(1, Ordering::Relaxed) + 1 == ENTRIES_MAX + 1 {
            tracing::warn!(
                blocks = ENTRIES_MAX,
                "more blocks than the index was measured with; it may need more memory"
            );
        }
        Ok(())
    }

    /// Drops a block whose bytes were found damaged where `location` says, and remembers it.
    pub(super) fn drop_damaged(&self, id: &BlockId, location: &Location, segments: &Segments) {
        let block = key(BLOCK, id);
        let mut checkpoint = self.checkpoint.lock();
        let mut after = *checkpoint;
        after.blocks -= u64::from(checkpoint.covers(location));
        self.damaged.lock().insert(*id, *location);
        let dropped = self.with(segments, |index, _| {
            // It may have been mended, or dropped by another reader, in the meantime.
            if index.get(&block)? != Some(location.to_value()) {
                return Ok(false);
            }
            let damaged = Op::Put { key: key(DAMAGED, id), value: location.to_value() };
            index.apply(&[Op::Delete { key: block.clone() }, damaged, after.put()])?;
            Ok(true)
        });
        match dropped {
            Ok(true) => {
                *checkpoint = after;
                self.blocks.fetch_sub(1, Ordering::Relaxed);
            }
            Ok(false) if self.locate(id, segments).is_ok_and(|found| found.is_some()) => {
                self.damaged.lock().remove(id);
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, %id, "a damaged block stays in the index"),
        }
    }

    /// Makes the index durable; from now on it covers all records before `upto`.
    pub(super) fn checkpoint(&self, upto: Position, salt: u64, segments: &Segments) -> Result<(), StoreError> {
        self.with(segments, |index, _| index.sync())?;
        let mut checkpoint = self.checkpoint.lock();
        let moved = Checkpoint { upto, salt, blocks: self.blocks.load(Ordering::Relaxed) };
        self.with(segments, |index, _| index.apply(&[moved.put()]))?;
        *checkpoint = moved;
        Ok(())
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    pub(super) fn damaged_count(&self) -> u64 {
        self.damaged.lock().len() as u64
    }

    pub(super) fn damaged(&self, after: Option<&BlockId>, limit: usize) -> Vec<BlockId> {
        let low = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.damaged.lock().range((low, Bound::Unbounded)).take(limit).map(|(id, _)| *id).collect()
    }

    pub(super) fn in_memory(&self) -> bool {
        self.current.read().kind == IndexKind::Memory
    }

    /// Lets go of the index.
    pub(super) fn close(&self) {
        let index = self.current.write().index.take();
        drop_quietly(index);
    }

    /// Calls the index (and says whether it is still the one of the start). If it fails, an index in
    /// memory takes its place and is called instead.
    fn with<T>(
        &self,
        segments: &Segments,
        call: impl Fn(&dyn Index, bool) -> Result<T, IndexError>,
    ) -> Result<T, StoreError> {
        loop {
            let error = {
                let current = self.current.read();
                let Some(index) = &current.index else { return Err(StoreError::Closed) };
                match call(&**index, current.original) {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                }
            };
            self.fall_back(&error, segments)?;
        }
    }

    /// Replaces an index that has failed by one in memory, read from the segments. The failed one is
    /// moved aside, so that the next start makes a new one.
    fn fall_back(&self, error: &IndexError, segments: &Segments) -> Result<(), StoreError> {
        let mut current = self.current.write();
        if !current.original || current.index.is_none() {
            return Ok(());
        }
        tracing::error!(%error, "the index has failed; it is rebuilt in memory, and on disk at the next start");
        let index = MemIndex::default();
        let damaged = self.damaged.lock().clone();
        let mut blocks = 0;
        let synced = segments.synced();
        for segment in segments.all().into_iter().filter(|segment| segment.number <= synced.segment) {
            let to = if segment.number == synced.segment { synced.offset } else { u64::MAX };
            let scan = segment
                .scan(crate::folder::header::HEADER_LEN as u64, to, false)
                .map_err(StoreError::io("read", &segment.path))?;
            for (id, location) in scan.records.iter().filter(|(id, location)| damaged.get(id) != Some(location)) {
                let put = Op::Put { key: key(BLOCK, id), value: location.to_value() };
                blocks += u64::from(matches!(index.get(&key(BLOCK, id)), Ok(None)));
                index.apply(&[put]).expect("memory does not fail");
            }
        }
        self.blocks.store(blocks, Ordering::Relaxed);
        drop_quietly(current.index.replace(Box::new(index)));
        current.kind = IndexKind::Memory;
        current.original = false;
        move_aside(&self.folder);
        Ok(())
    }
}

/// Drops an index that may panic as it goes.
pub(super) fn drop_quietly(index: Option<Box<dyn Index>>) {
    if catch_unwind(AssertUnwindSafe(|| drop(index))).is_err() {
        tracing::warn!("the index panicked as it was closed");
    }
}

/// Moves the index out of the way. What can't be moved is removed.
pub(super) fn move_aside(folder: &Path) {
    let (index, bad) = (folder.join("index"), folder.join("index.bad"));
    let _ = fs::remove_dir_all(&bad).or_else(|_| fs::remove_file(&bad));
    if fs::rename(&index, &bad).is_err() {
        let _ = fs::remove_dir_all(&index).or_else(|_| fs::remove_file(&index));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use base::{ClusterId, NodeId};
    use bytes::Bytes;

    use super::*;
    use crate::folder::Identity;
    use crate::store::index::Entry;
    use crate::store::{PutOutcome, Store, StoreOptions, Tuning};

    /// An index on a disk that has gone.
    struct Failed {
        panics: bool,
        /// Finds nothing instead of failing.
        reads: bool,
    }

    impl Failed {
        fn fail<T>(&self) -> Result<T, IndexError> {
            Err(if self.panics { IndexError::Panicked(String::new()) } else { IndexError::Failed(String::new()) })
        }
    }

    impl Index for Failed {
        fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
            if self.reads { Ok(None) } else { self.fail() }
        }
        fn apply(&self, _: &[Op]) -> Result<(), IndexError> {
            self.fail()
        }
        fn range(&self, _: &[u8], _: &[u8], _: usize) -> Result<Vec<Entry>, IndexError> {
            self.fail()
        }
        fn sync(&self) -> Result<(), IndexError> {
            self.fail()
        }
    }

    impl Drop for Failed {
        fn drop(&mut self) {
            assert!(!self.panics, "an index that panics as it is closed");
        }
    }

    fn put(store: &Store, numbers: std::ops::Range<u32>) -> Vec<PutOutcome> {
        let blocks = numbers.map(|number| {
            let body = number.to_le_bytes().repeat(100);
            (BlockId::blake3(*blake3::hash(&body).as_bytes()), Bytes::from(body))
        });
        let (done, outcomes) = mpsc::channel();
        store.put(blocks.collect(), Box::new(move |answer| done.send(answer).unwrap()));
        outcomes.recv().unwrap()
    }

    #[test]
    fn an_index_that_fails_while_running_is_replaced_by_one_in_memory() {
        for (panics, reads) in [(false, false), (true, false), (false, true)] {
            let temp = tempfile::tempdir().unwrap();
            let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(1) };
            let tuning = Tuning { segment_bytes: 4096, ..Tuning::default() };
            let store = Store::open_tuned(temp.path(), identity, StoreOptions::default(), tuning).unwrap();
            assert_eq!(put(&store, 0..40), vec![PutOutcome::Stored; 40]);
            assert!(!store.stats().index_in_memory);
            drop_quietly(store.shared.catalog.current.write().index.replace(Box::new(Failed { panics, reads })));

            assert_eq!(put(&store, 40..60), vec![PutOutcome::Stored; 20]);
            assert_eq!(put(&store, 0..60), vec![PutOutcome::Had; 60]);
            let stats = store.stats();
            assert_eq!((stats.blocks, stats.index_in_memory, store.fatal()), (60, true, None));
            assert!(temp.path().join("index.bad").exists() && !temp.path().join("index").exists());

            // The next start has an index on disk again.
            drop(store);
            let store = Store::open_tuned(temp.path(), identity, StoreOptions::default(), tuning).unwrap();
            assert_eq!((store.stats().blocks, store.stats().index_in_memory), (60, false));
            assert_eq!(put(&store, 0..60), vec![PutOutcome::Had; 60]);
        }
    }
}
