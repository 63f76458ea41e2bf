//! Chunks opened: from the outbox, the caches or the storage nodes to plain bytes.

use std::sync::Arc;

use base::BlockId;
use bytes::{Bytes, BytesMut};
use chunk::{ChunkRef, Corrupt, Patch, Recipe, RecipeReader, VolumeKeys};
use futures::stream::{self, StreamExt as _};
use meta::{Content, Ino};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::error::{FsError, Result};
use super::layout::Layout;
use super::outbox::Outbox;
use super::overlay::Overlay;
use super::view::{self, Part, Source};
use crate::backend::BlockStore;
use crate::cache::{BlockCache, Lru, SingleFlight};

/// Most chunks fetched at a time for one call.
const FETCHES_MAX: usize = 48;
/// Most readers for whom chunks are fetched ahead at a time.
const AHEAD_MAX: usize = 16;

impl From<Corrupt> for FsError {
    fn from(why: Corrupt) -> FsError {
        FsError::Corrupt(why.to_string())
    }
}

/// Where plain chunks come from.
#[derive(Debug)]
pub(super) struct Chunks<B> {
    pub(super) keys: VolumeKeys,
    cache: Arc<BlockCache<B>>,
    outbox: Arc<Outbox<B>>,
    opened: Mutex<Lru<BlockId, Bytes>>,
    flights: SingleFlight<BlockId, Result<Bytes>>,
    ahead: Arc<Semaphore>,
}

impl<B: BlockStore> Chunks<B> {
    pub(super) fn new(keys: VolumeKeys, cache: Arc<BlockCache<B>>, outbox: Arc<Outbox<B>>, opened_bytes: u64) -> Self {
        let (opened, ahead) = (Mutex::new(Lru::new(opened_bytes)), Arc::new(Semaphore::new(AHEAD_MAX)));
        Chunks { keys, cache, outbox, opened, flights: SingleFlight::default(), ahead }
    }

    pub(super) fn cache(&self) -> &Arc<BlockCache<B>> {
        &self.cache
    }

    /// The bytes of a chunk.
    pub(super) async fn open(&self, chunk: &ChunkRef) -> Result<Bytes> {
        let known = self.opened.lock().get(&chunk.block);
        let plain = match known {
            Some(plain) => plain,
            None => self.flights.run(chunk.block, || self.fetch(chunk)).await?,
        };
        // Two references to one block may disagree about its length; only one of them opens it.
        if plain.len() == chunk.len as usize { Ok(plain) } else { Err(FsError::Corrupt("a chunk's length".into())) }
    }

    async fn fetch(&self, chunk: &ChunkRef) -> Result<Bytes> {
        let sealed = self.sealed(chunk.block).await?;
        let plain = chunk::open(chunk, &sealed)?;
        self.opened.lock().insert(chunk.block, plain.clone(), plain.len() as u64);
        Ok(plain)
    }

    async fn sealed(&self, id: BlockId) -> Result<Bytes> {
        match self.outbox.get(id) {
            Some(sealed) => Ok(sealed),
            None => Ok(self.cache.get(id).await?),
        }
    }

    /// The recipe that replicas hold for a file.
    pub(super) async fn recipe(&self, ino: Ino, content: &Content) -> Result<Recipe> {
        // What is laid over it may make the file longer than what it says.
        let size = match content.patches.first() {
            Some(first) => Patch::open(&self.keys, ino.now().0, first)?.under.min(content.size),
            None => content.size,
        };
        let mut reader = RecipeReader::new(&self.keys, ino.now().0, size, content.root, &content.sealed)?;
        loop {
            let needs = reader.needs();
            if needs.is_empty() {
                return Ok(reader.finish()?);
            }
            let fetch = |chunk: ChunkRef| async move { (chunk.block, self.sealed(chunk.block).await) };
            let mut fetched = stream::iter(needs).map(fetch).buffer_unordered(FETCHES_MAX);
            while let Some((id, sealed)) = fetched.next().await {
                reader.supply(id, &sealed?)?;
            }
        }
    }

    /// The parts with their bytes in memory.
    pub(super) async fn fill(self: &Arc<Self>, parts: Vec<Part>) -> Result<Vec<Part>> {
        let several = parts.iter().filter(|part| matches!(part.source, Source::Sealed(_))).count() > 1;
        let fill = |part: Part| async move {
            let Source::Sealed(slice) = part.source else { return Ok(part) };
            let chunks = self.clone();
            let plain = if several {
                let opened = tokio::spawn(async move { chunks.open(&slice.chunk).await });
                opened.await.map_err(|failure| FsError::Unavailable(failure.to_string()))??
            } else {
                chunks.open(&slice.chunk).await?
            };
            let (from, len) = (slice.skip as usize, part.len() as usize);
            Ok(Part { source: Source::Bytes(plain.slice(from..from + len)), ..part })
        };
        let filled = stream::iter(parts).map(fill).buffered(FETCHES_MAX);
        filled.collect::<Vec<Result<Part>>>().await.into_iter().collect()
    }

    /// Starts to open small files that will be wanted soon.
    pub(super) fn read_files_ahead(self: &Arc<Self>, files: Vec<(Ino, Content)>) {
        if files.is_empty() {
            return;
        }
        let Ok(permit) = self.ahead.clone().try_acquire_owned() else { return };
        let chunks = self.clone();
        tokio::spawn(async move {
            let open = |(ino, content): (Ino, Content)| {
                let chunks = chunks.clone();
                async move { drop(tokio::spawn(async move { chunks.open_file(ino, &content).await }).await) }
            };
            stream::iter(files).for_each_concurrent(FETCHES_MAX, open).await;
            drop(permit);
        });
    }

    /// Opens all chunks of a file.
    async fn open_file(&self, ino: Ino, content: &Content) -> Result<()> {
        let layout = Layout::from_recipe(&self.recipe(ino, content).await?);
        for chunk in sealed(view::parts(&Overlay::default(), &layout, 0..content.size, u64::MAX)) {
            self.open(&chunk).await?;
        }
        Ok(())
    }

    /// Starts to open chunks that will be wanted soon.
    pub(super) fn read_ahead(self: &Arc<Self>, parts: Vec<Part>) {
        let wanted = sealed(parts);
        let Ok(permit) = self.ahead.clone().try_acquire_owned() else { return };
        let chunks = self.clone();
        tokio::spawn(async move {
            let open = |chunk: ChunkRef| {
                let chunks = chunks.clone();
                // Whoever reads it for good will see the error.
                async move { drop(tokio::spawn(async move { chunks.open(&chunk).await.map(drop) }).await) }
            };
            stream::iter(wanted).for_each_concurrent(FETCHES_MAX, open).await;
            drop(permit);
        });
    }
}

/// The chunks that parts are of.
fn sealed(parts: Vec<Part>) -> Vec<ChunkRef> {
    let sealed = |part: Part| match part.source {
        Source::Sealed(slice) => Some(slice.chunk),
        _ => None,
    };
    parts.into_iter().filter_map(sealed).collect()
}

/// The bytes of parts that are in memory, one after the other; holes are zeros.
pub(super) fn concatenate(mut parts: Vec<Part>) -> Bytes {
    if parts.len() == 1
        && let Source::Bytes(bytes) = &mut parts[0].source
    {
        return std::mem::take(bytes);
    }
    let mut all = BytesMut::with_capacity(parts.iter().map(|part| part.len() as usize).sum());
    for part in parts {
        match part.source {
            Source::Bytes(bytes) => all.extend_from_slice(&bytes),
            Source::Hole => all.resize(all.len() + part.len() as usize, 0),
            Source::Sealed(_) => unreachable!("parts are filled before"),
        }
    }
    all.freeze()
}

/// As [`concatenate`], without copying.
pub(super) fn pieces(parts: Vec<Part>) -> Vec<Bytes> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    let mut pieces = Vec::with_capacity(parts.len());
    for part in parts {
        let mut missing = part.len() as usize;
        match part.source {
            Source::Bytes(bytes) => pieces.push(bytes),
            Source::Hole => {
                while missing > 0 {
                    let zeros = &ZEROS[..missing.min(ZEROS.len())];
                    pieces.push(Bytes::from_static(zeros));
                    missing -= zeros.len();
                }
            }
            Source::Sealed(_) => unreachable!("parts are filled before"),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_what_they_would_be_in_one() {
        let part = |start: u64, source: Source, len: u64| Part { start, end: start + len, source };
        let bytes = |text: &'static [u8]| Source::Bytes(Bytes::from_static(text));
        let parts = vec![
            part(10, bytes(b"first"), 5),
            part(15, Source::Hole, 200_000),
            part(200_015, bytes(b"second"), 6),
            part(200_021, Source::Hole, 1),
        ];
        let in_pieces = pieces(parts.clone());
        assert_eq!(in_pieces.concat(), concatenate(parts));
        assert_eq!(in_pieces.concat().len(), 200_012);
        assert!(pieces(Vec::new()).is_empty());
    }
}
