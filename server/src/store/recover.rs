//! Opening a store's index: trust it as far as it adds up, read the rest from the segments.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base::BlockId;

use super::catalog::{self, BLOCK, Checkpoint, DAMAGED, Opened, drop_quietly, move_aside};
use super::index::{Entry, Index, IndexError, MemIndex, Op};
use super::segment::{Location, Scan, Segment};
use super::segments::{Position, Segments};
use super::sled_index::SledIndex;
use super::{IndexKind, StoreError};
use crate::folder::durable;
use crate::folder::header::HEADER_LEN;

/// Entries read from an index at a time.
const PAGE: usize = 4096;

/// What a start found.
#[derive(Clone, Debug, Default)]
pub(super) struct Recovered {
    pub(super) checkpoint: Checkpoint,
    pub(super) damaged: BTreeMap<BlockId, Location>,
    pub(super) replayed: u64,
    pub(super) torn_bytes: u64,
    pub(super) damaged_bytes: u64,
    pub(super) rebuilt: bool,
}

/// Why an index can't be used, or why a store can't be opened with any.
#[derive(Debug)]
enum Trouble {
    Index(IndexError),
    Store(StoreError),
}

impl From<IndexError> for Trouble {
    fn from(error: IndexError) -> Trouble {
        Trouble::Index(error)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Store(error)
    }
}

/// Opens the index of the store in `folder` and brings it up to date.
pub(super) fn open(folder: &Path, kind: IndexKind, segments: &Segments) -> Result<(Opened, Recovered), StoreError> {
    let mut recovered = Recovered::default();
    // The index that is there; then a new one; then, on a disk that can hold none, memory.
    let attempts = if kind == IndexKind::Sled { 2 } else { 0 };
    for _ in 0..attempts {
        let error = match SledIndex::open(&folder.join("index")) {
            Ok(index) => match recover(&index, segments, &mut recovered) {
                Ok(()) => return Ok((Opened { index: Box::new(index), kind: IndexKind::Sled }, recovered)),
                Err(Trouble::Store(error)) => return Err(error),
                Err(Trouble::Index(error)) => {
                    drop_quietly(Some(Box::new(index)));
                    error
                }
            },
            Err(error) => error,
        };
        tracing::warn!(%error, "the index can't be used; it is moved aside and rebuilt from the segments");
        move_aside(folder);
        recovered.rebuilt = true;
    }
    let index = MemIndex::default();
    match recover(&index, segments, &mut recovered) {
        Ok(()) => Ok((Opened { index: Box::new(index), kind: IndexKind::Memory }, recovered)),
        Err(Trouble::Store(error)) => Err(error),
        Err(Trouble::Index(error)) => unreachable!("memory does not fail: {error}"),
    }
}

/// Checks `index` against the segments and enters what it lacks.
fn recover(index: &dyn Index, segments: &Segments, recovered: &mut Recovered) -> Result<(), Trouble> {
    let mut checkpoint = Checkpoint::read(index)?.unwrap_or_default();
    let beyond = examine(index, &checkpoint, segments)?;
    let mut replay = Replay { index, blocks: checkpoint.blocks, beyond, damaged: damaged(index)? };
    recovered.replayed = 0;
    let covered = checkpoint.upto;
    let last = segments.last().map(|last| last.number);
    for segment in segments.all().into_iter().filter(|segment| segment.number >= covered.segment) {
        let is_last = last == Some(segment.number);
        let from = if segment.number == covered.segment { covered.offset } else { HEADER_LEN as u64 };
        // Only the last segment can have a tail that was never synced.
        let scan = segment.scan(from, u64::MAX, is_last).map_err(StoreError::io("read", &segment.path))?;
        if is_last {
            recovered.torn_bytes += finish_tail(&segment, &scan, segments)?;
        }
        recovered.replayed += scan.records.len() as u64;
        recovered.damaged_bytes += scan.damaged_bytes;
        replay.enter(&scan)?;
        checkpoint.upto = Position { segment: segment.number, offset: scan.end };
        checkpoint.salt = segment.salt.unwrap_or(0);
    }
    for key in replay.beyond {
        index.apply(&[Op::Delete { key }])?;
    }
    segments.set_synced(checkpoint.upto);
    index.sync()?;
    checkpoint.blocks = replay.blocks;
    index.apply(&[checkpoint.put()])?;
    recovered.checkpoint = checkpoint;
    recovered.damaged = replay.damaged;
    Ok(())
}

/// Entering in an index what the segments hold after its checkpoint.
struct Replay<'a> {
    index: &'a dyn Index,
    /// Blocks that the segments have confirmed.
    blocks: u64,
    /// Keys of blocks in the index that they have not confirmed yet.
    beyond: BTreeSet<Vec<u8>>,
    damaged: BTreeMap<BlockId, Location>,
}

impl Replay<'_> {
    fn enter(&mut self, scan: &Scan) -> Result<(), IndexError> {
        for (id, location) in &scan.records {
            let key = catalog::key(BLOCK, id);
            let unconfirmed = self.beyond.remove(&key);
            self.blocks += u64::from(unconfirmed || self.index.get(&key)?.is_none());
            self.index.apply(&[Op::Put { key, value: location.to_value() }])?;
            if self.damaged.remove(id).is_some() {
                self.index.apply(&[Op::Delete { key: catalog::key(DAMAGED, id) }])?;
            }
        }
        for (id, location) in &scan.damaged {
            let key = catalog::key(BLOCK, id);
            if self.beyond.contains(&key) || self.index.get(&key)?.is_none() {
                let key = catalog::key(DAMAGED, id);
                self.index.apply(&[Op::Put { key, value: location.to_value() }])?;
                self.damaged.insert(*id, *location);
            }
        }
        Ok(())
    }
}

/// Cuts what was never synced off the last segment, and syncs the rest: after a killed process some
/// of it may be in the kernel's memory only. Returns how many bytes were cut.
fn finish_tail(segment: &Segment, scan: &Scan, segments: &Segments) -> Result<u64, StoreError> {
    if segment.salt.is_none() {
        return Ok(0);
    }
    let file = segment.open_to_append().map_err(StoreError::io("open", &segment.path))?;
    if scan.torn_bytes > 0 {
        file.set_len(scan.end).map_err(StoreError::io("cut the torn tail of", &segment.path))?;
        segments.add_used(-(scan.torn_bytes as i64));
    }
    durable::sync_data(&file, &segment.path).map_err(StoreError::io("sync", &segment.path))?;
    Ok(scan.torn_bytes)
}

/// Checks that the index adds up: its checkpoint is in a segment that is there, it has as many
/// blocks before the checkpoint as it says, and each is inside its segment. Returns the keys of the
/// blocks after the checkpoint, which the segments must confirm.
fn examine(index: &dyn Index, checkpoint: &Checkpoint, segments: &Segments) -> Result<BTreeSet<Vec<u8>>, Trouble> {
    let wrong = |what: &str| Err(Trouble::Index(IndexError::Failed(what.to_owned())));
    let mut lengths = BTreeMap::new();
    for segment in segments.all() {
        let length = std::fs::metadata(&segment.path).map_err(StoreError::io("read", &segment.path))?.len();
        lengths.insert(segment.number, length);
    }
    let upto = checkpoint.upto;
    if upto != Position::default() {
        let Some(segment) = segments.find(upto.segment) else { return wrong("its last segment is not there") };
        if segment.salt.is_some_and(|salt| salt != checkpoint.salt) {
            return wrong("its last segment is another file");
        }
        if lengths[&upto.segment] < upto.offset {
            return wrong("its last segment is shorter than it says");
        }
    }
    let (mut before, mut beyond) = (0, BTreeSet::new());
    for_each(index, BLOCK, |(key, value)| {
        let location = Location::from_value(&value)?;
        if location.position() >= upto {
            beyond.insert(key);
        } else if lengths.get(&location.segment).is_none_or(|length| location.end() > *length) {
            return Err(IndexError::Failed("a block outside its segment".to_owned()));
        } else {
            before += 1;
        }
        Ok(())
    })?;
    if before != checkpoint.blocks {
        return wrong(&format!("{before} blocks where there were {}", checkpoint.blocks));
    }
    Ok(beyond)
}

fn damaged(index: &dyn Index) -> Result<BTreeMap<BlockId, Location>, IndexError> {
    let mut damaged = BTreeMap::new();
    for_each(index, DAMAGED, |(key, value)| {
        let hash = key.get(2..).and_then(|hash| hash.try_into().ok());
        let hash = hash.ok_or_else(|| IndexError::Failed("a key of the wrong length".to_owned()))?;
        damaged.insert(BlockId::blake3(hash), Location::from_value(&value)?);
        Ok(())
    })?;
    Ok(damaged)
}

/// Calls `each` with every entry whose key starts with `kind`.
fn for_each(
    index: &dyn Index,
    kind: u8,
    mut each: impl FnMut(Entry) -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    let (mut low, high) = (vec![kind], [kind + 1]);
    loop {
        let page = index.range(&low, &high, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        low = last.clone();
        low.push(0);
        page.into_iter().try_for_each(&mut each)?;
    }
}
