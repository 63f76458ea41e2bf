//! Sealed blocks on disk, one after the other in a few files.
//!
//! A block is appended to the newest file; when there is no room the oldest file goes, with what is in it.
//! What was asked for and is about to go is appended anew, so that what is used stays. Nothing is ever
//! synced: what a crash tears or mixes up is noticed, because every block is hashed when it is read.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::BlockId;
use bytes::Bytes;
use parking_lot::Mutex;

use super::DiskOptions;
use super::unused::hold;

/// Most blocks that wait to be written; more are not kept.
const WRITES_MAX: usize = 256;
/// Most blocks in one write.
const PART_MAX: usize = 64;
/// A file is full when it has this much, or the part of the cache that this says.
const FILE_BYTES: u64 = 64 << 20;
const FILES: u64 = 16;
/// What is before each block: four letters, its length, its id.
const MAGIC: [u8; 4] = *b"MGB1";
const HEADER_LEN: usize = 8 + ID_LEN;
const ID_LEN: usize = 33;
/// Longest block that is kept, bytes.
const BLOCK_MAX: usize = 2 << 20;

/// A bounded folder of sealed blocks.
#[derive(Debug)]
pub(super) struct DiskCache {
    dir: PathBuf,
    bytes: u64,
    state: Mutex<State>,
    _held: File,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first; the last is appended to.
    files: VecDeque<CacheFile>,
    index: HashMap<BlockId, Place>,
    /// What the files take, bytes.
    total: u64,
    queue: Vec<(BlockId, Bytes)>,
    /// A thread writes what is queued.
    writing: bool,
}

#[derive(Debug)]
struct CacheFile {
    number: u64,
    file: Arc<File>,
    end: u64,
    ids: Vec<BlockId>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    file: u64,
    offset: u64,
    len: u32,
}

impl DiskCache {
    /// Opens the folder, and makes it if it is missing.
    pub(super) fn open(options: &DiskOptions) -> io::Result<DiskCache> {
        std::fs::create_dir_all(&options.dir)?;
        let held = hold(&options.dir)?;
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&options.dir)? {
            let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
            let name = name.to_string_lossy();
            match name.strip_suffix(".blocks").and_then(|number| number.parse::<u64>().ok()) {
                Some(number) => numbers.push(number),
                // Each block had a file of its own once.
                None if name.len() == 2 && u8::from_str_radix(&name, 16).is_ok() => {
                    drop(std::fs::remove_dir_all(path));
                }
                None => {}
            }
        }
        numbers.sort_unstable();
        let cache = DiskCache { dir: options.dir.clone(), bytes: options.bytes, state: Mutex::default(), _held: held };
        let mut state = State::default();
        for number in numbers {
            let file = File::options().read(true).append(true).open(cache.path(number))?;
            state.learn(number, file)?;
        }
        cache.make_room(&mut state, 0);
        *cache.state.lock() = state;
        Ok(cache)
    }

    /// The block, if it is here and undamaged.
    pub(super) async fn get(self: Arc<Self>, id: BlockId) -> Option<Bytes> {
        let (file, place, old) = self.state.lock().find(&id)?;
        let read = move || {
            let mut bytes = vec![0; place.len as usize];
            let read = file.read_exact_at(&mut bytes, place.offset);
            if read.is_err() || id != BlockId::blake3(blake3::hash(&bytes).into()) {
                self.state.lock().index.remove(&id);
                return None;
            }
            let bytes = Bytes::from(bytes);
            if old {
                self.queue(id, bytes.clone());
            }
            Some(bytes)
        };
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    /// Writes the block in the background; drops it if too many wait or the disk won't take it.
    pub(super) fn put(self: Arc<Self>, id: BlockId, bytes: Bytes) {
        if !self.state.lock().index.contains_key(&id) {
            self.queue(id, bytes);
        }
    }

    /// Whether nothing waits to be written.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        !self.state.lock().writing
    }

    fn queue(self: &Arc<Self>, id: BlockId, bytes: Bytes) {
        let fits = bytes.len() <= BLOCK_MAX && (bytes.len() + HEADER_LEN) as u64 <= self.bytes;
        let mut state = self.state.lock();
        if !fits || state.queue.len() >= WRITES_MAX || state.queue.iter().any(|(queued, _)| *queued == id) {
            return;
        }
        state.queue.push((id, bytes));
        if !std::mem::replace(&mut state.writing, true) {
            let cache = self.clone();
            drop(tokio::task::spawn_blocking(move || cache.work_off()));
        }
    }

    /// Writes what is queued until nothing is.
    fn work_off(&self) {
        loop {
            let batch = {
                let mut state = self.state.lock();
                state.writing = !state.queue.is_empty();
                if !state.writing {
                    return;
                }
                std::mem::take(&mut state.queue)
            };
            let mut rest = batch.as_slice();
            while !rest.is_empty() {
                let (part, later) = rest.split_at(self.part_of(rest));
                if let Err(error) = self.write(part) {
                    tracing::debug!(%error, "blocks not cached on disk");
                }
                rest = later;
            }
        }
    }

    /// How many of these are written together: what fits into a file, and one at least.
    fn part_of(&self, blocks: &[(BlockId, Bytes)]) -> usize {
        let mut len = 0;
        let fit = blocks.iter().take(PART_MAX).take_while(|block| {
            len += record_len(block);
            len <= self.full()
        });
        fit.count().max(1)
    }

    /// From what length on a file is full.
    fn full(&self) -> u64 {
        FILE_BYTES.min(self.bytes / FILES)
    }

    fn write(&self, blocks: &[(BlockId, Bytes)]) -> io::Result<()> {
        let len = blocks.iter().map(record_len).sum();
        let (file, number, start) = {
            let mut state = self.state.lock();
            self.make_room(&mut state, len);
            let next = state.files.back().map_or(1, |last| last.number + 1);
            if state.files.back().is_none_or(|last| last.end >= self.full()) {
                let file = File::options().read(true).append(true).create_new(true).open(self.path(next))?;
                state.files.push_back(CacheFile { number: next, file: Arc::new(file), end: 0, ids: Vec::new() });
            }
            let last = state.files.back().expect("pushed if there was none");
            (last.file.clone(), last.number, last.end)
        };
        if let Err(error) = append(&file, blocks) {
            // What is there of it must not be taken for blocks.
            drop(file.set_len(start));
            return Err(error);
        }
        let state = &mut *self.state.lock();
        let last = state.files.back_mut().expect("only this thread takes files away");
        for (id, bytes) in blocks {
            let offset = last.end + HEADER_LEN as u64;
            last.end = offset + bytes.len() as u64;
            last.ids.push(*id);
            state.index.insert(*id, Place { file: number, offset, len: bytes.len() as u32 });
        }
        state.total += len;
        Ok(())
    }

    /// Deletes the oldest files until so many bytes more may be written.
    fn make_room(&self, state: &mut State, len: u64) {
        while state.total + len > self.bytes
            && let Some(oldest) = state.files.pop_front()
        {
            state.total -= oldest.end;
            for id in oldest.ids {
                if state.index.get(&id).is_some_and(|place| place.file == oldest.number) {
                    state.index.remove(&id);
                }
            }
            drop(std::fs::remove_file(self.path(oldest.number)));
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        path_of(&self.dir, number)
    }
}

impl State {
    /// Where a block is, and whether it is about to go.
    fn find(&self, id: &BlockId) -> Option<(Arc<File>, Place, bool)> {
        let place = *self.index.get(id)?;
        let at = self.files.binary_search_by_key(&place.file, |file| file.number).ok()?;
        Some((self.files[at].file.clone(), place, at + 1 < self.files.len() / 2))
    }

    /// Takes note of what is in a file, up to what was torn.
    fn learn(&mut self, number: u64, file: File) -> io::Result<()> {
        let len = file.metadata()?.len();
        let (mut header, mut end, mut ids) = ([0; HEADER_LEN], 0, Vec::new());
        while end + (HEADER_LEN as u64) <= len {
            file.read_exact_at(&mut header, end)?;
            let Some((id, length)) = parse(&header) else { break };
            let (offset, next) = (end + HEADER_LEN as u64, end + (HEADER_LEN as u64) + u64::from(length));
            if next > len {
                break;
            }
            self.index.insert(id, Place { file: number, offset, len: length });
            ids.push(id);
            end = next;
        }
        if end < len {
            file.set_len(end)?;
        }
        self.total += end;
        self.files.push_back(CacheFile { number, file: Arc::new(file), end, ids });
        Ok(())
    }
}

fn record_len((_, bytes): &(BlockId, Bytes)) -> u64 {
    (HEADER_LEN + bytes.len()) as u64
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.blocks"))
}

fn header_of(id: &BlockId, bytes: &[u8]) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    header[8..].copy_from_slice(&id.to_array());
    header
}

fn parse(header: &[u8; HEADER_LEN]) -> Option<(BlockId, u32)> {
    let (magic, rest) = header.split_first_chunk::<4>()?;
    let (len, id) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len);
    let (kind, hash) = id.split_first()?;
    let id = BlockId::blake3(hash.try_into().ok()?);
    (*magic == MAGIC && *kind == id.kind && len as usize <= BLOCK_MAX).then_some((id, len))
}

fn append(mut file: &File, blocks: &[(BlockId, Bytes)]) -> io::Result<()> {
    let headers: Vec<_> = blocks.iter().map(|(id, bytes)| header_of(id, bytes)).collect();
    let both = headers.iter().zip(blocks).flat_map(|(header, (_, bytes))| [IoSlice::new(header), IoSlice::new(bytes)]);
    let mut slices: Vec<_> = both.filter(|slice| !slice.is_empty()).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
