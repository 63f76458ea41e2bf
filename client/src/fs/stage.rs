//! Staging: what was written is cut, sealed and on its way to the storage nodes, and the layout
//! names it. Nothing is committed here.
//!
//! Only the chunks that a change touches are cut anew: a dirty range is widened to the boundaries
//! of the chunks around it, and a chunk that a run continues (a file's last, or one cut short) is
//! cut again with what follows it, so that files grown in steps are cut as if written at once.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chunk::{Cutter, is_zero};
use futures::stream::{self, StreamExt as _};

use super::Shared;
use super::chunks::concatenate;
use super::error::{FsError, Result};
use super::file::{OpenFile, Pipeline};
use super::layout::{Found, Layout, Piece};
use super::overlay::{Overlay, Run};
use super::view::{self, Part, Source};
use crate::backend::{BlockStore, Metadata};

/// How much is cut in one go, bytes; in any case several of the largest chunks.
const BATCH_BYTES: u64 = 8 << 20;
/// How much is sealed in one go on one thread, bytes.
const SEAL_BYTES: u64 = 1 << 20;
/// Work on no more bytes than this is done at once: handing it to another thread costs more.
const INLINE_BYTES: u64 = 32 << 10;
/// Most portions cut in one go.
const BATCH_PORTIONS: usize = 256;

/// What is to be staged.
pub(super) struct Order<'a> {
    /// All that was written.
    pub(super) dirty: &'a Overlay,
    /// The last write that is in it.
    pub(super) seq: u64,
    /// What of it to stage, at least.
    pub(super) runs: Vec<Run>,
    /// The end of each run waits for what will be written after it.
    pub(super) keep_tails: bool,
}

/// Part of a region that is cut in one go.
struct Portion {
    range: Range<u64>,
    parts: Vec<Part>,
    /// What of the region comes after it.
    rest: Range<u64>,
    /// Its last chunk is not cut yet, because more bytes follow: the rest, or what will be written.
    more: bool,
}

/// A portion that was cut: the range it replaces, and that range's pieces.
struct Cut {
    range: Range<u64>,
    pieces: Vec<Plain>,
}

/// A piece before it is sealed; a hole has no bytes.
struct Plain {
    len: u64,
    bytes: Option<Bytes>,
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Stages everything in `order`, and the parts of chunks that the layout holds. The caller has
    /// the pipeline's lock; writers carry on.
    ///
    /// # Errors
    /// If chunks that have to be cut anew can't be read. Nothing is lost: what was not staged is
    /// in the overlay still.
    pub(super) async fn stage(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        pipeline: &mut Pipeline,
        order: Order<'_>,
    ) -> Result<()> {
        self.ensure_layout(file).await?;
        let natural_end = pipeline.natural_end.take();
        let mut regions = with_layout(file, |layout| regions(&order, layout, &self.cutter, natural_end));
        while !regions.is_empty() {
            let mut batch = self.next_batch(file, &order, &mut regions);
            let rest = batch.last().map_or(0..0, |portion| portion.rest.clone());
            let waits = batch.last().is_some_and(|portion| portion.more && rest.is_empty());
            self.fill_batch(&mut batch).await?;
            let cutter = self.cutter.clone();
            let bytes = batch.iter().flat_map(|portion| &portion.parts).map(Part::data_len).sum();
            let cut = move || batch.into_iter().map(|portion| cut_portion(&cutter, portion)).collect::<Vec<_>>();
            let cut = blocking(bytes, cut).await?;
            let end = cut.last().map_or(0, |cut| cut.range.end);
            self.seal_batch(file, pipeline, cut, order.seq).await?;
            if !rest.is_empty() {
                regions.push_front(end..rest.end);
            } else if waits {
                pipeline.natural_end = Some(end);
            }
        }
        Ok(())
    }

    /// Takes as many regions as make a batch, the last of them perhaps in part.
    fn next_batch(&self, file: &OpenFile, order: &Order<'_>, regions: &mut VecDeque<Range<u64>>) -> Vec<Portion> {
        let batch_bytes = BATCH_BYTES.max(4 * u64::from(self.cutter.sizes().max()));
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < batch_bytes
            && batch.len() < BATCH_PORTIONS
            && let Some(region) = regions.pop_front()
        {
            let left = batch_bytes - bytes;
            let parts = with_layout(file, |layout| view::parts(order.dirty, layout, region.clone(), left));
            let end = parts.last().map_or(region.end, |part| part.end);
            bytes += parts.iter().map(Part::data_len).sum::<u64>();
            let waits = order.keep_tails && order.dirty.at(region.end - 1).is_some();
            batch.push(Portion {
                range: region.start..end,
                parts,
                rest: end..region.end,
                more: end < region.end || waits,
            });
        }
        batch
    }

    /// Brings what the portions take from sealed chunks into memory.
    async fn fill_batch(&self, batch: &mut [Portion]) -> Result<()> {
        let counts: Vec<_> = batch.iter().map(|portion| portion.parts.len()).collect();
        let parts = batch.iter_mut().flat_map(|portion| std::mem::take(&mut portion.parts)).collect();
        let mut filled = self.chunks.fill(parts).await?.into_iter();
        for (portion, count) in batch.iter_mut().zip(counts) {
            portion.parts = filled.by_ref().take(count).collect();
        }
        Ok(())
    }

    /// Seals what was cut, sends it on its way and lays it into the layout.
    async fn seal_batch(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        pipeline: &mut Pipeline,
        cut: Vec<Cut>,
        seq: u64,
    ) -> Result<()> {
        let counts: Vec<_> = cut.iter().map(|cut| (cut.range.clone(), cut.pieces.len())).collect();
        let plain = cut.into_iter().flat_map(|cut| cut.pieces).collect();
        let mut pieces = self.seal_pieces(file, pipeline, plain).await?.into_iter();

        let state = &mut *file.state.lock();
        let before = state.overlay.charge();
        let layout = state.layout.as_mut().expect(KEPT);
        for (range, count) in counts {
            layout.set(range.clone(), pieces.by_ref().take(count));
            state.overlay.drop_until(range, seq);
        }
        self.budget.adjust(before, state.overlay.charge());
        Ok(())
    }

    async fn seal_pieces(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        pipeline: &mut Pipeline,
        plain: Vec<Plain>,
    ) -> Result<Vec<Piece>> {
        let seal = |group: Vec<Plain>| {
            let chunks = self.chunks.clone();
            let bytes = group.iter().filter(|plain| plain.bytes.is_some()).map(|plain| plain.len).sum();
            blocking(bytes, move || {
                let seal = |plain: Plain| (plain.len, plain.bytes.map(|bytes| chunk::seal(&chunks.keys, &bytes)));
                group.into_iter().map(seal).collect::<Vec<_>>()
            })
        };
        let mut sealing = stream::iter(groups(plain)).map(seal).buffered(self.threads);
        let mut pieces = Vec::new();
        while let Some(group) = sealing.next().await {
            let mut blocks = Vec::new();
            for (len, sealed) in group? {
                pieces.push(match sealed {
                    None => Piece::hole(len),
                    Some(sealed) => {
                        blocks.push((sealed.reference.block, sealed.block));
                        Piece::whole(sealed.reference)
                    }
                });
            }
            pipeline.pending.extend(blocks.iter().map(|(id, _)| *id));
            self.outbox.push(file.ino, blocks);
        }
        self.outbox.prune(&mut pipeline.pending);
        Ok(pieces)
    }
}

/// Why the layout is there: it is loaded before anything is staged, and given up only by whoever
/// has the pipeline's lock, or while nothing was changed.
const KEPT: &str = "a layout is kept while its pipeline is held";

fn with_layout<T>(file: &OpenFile, run: impl FnOnce(&Layout) -> T) -> T {
    run(file.state.lock().layout.as_ref().expect(KEPT))
}

/// Runs work on so many bytes, which keeps a processor busy; on this thread if they are few.
pub(super) async fn blocking<T: Send + 'static>(bytes: u64, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if bytes <= INLINE_BYTES {
        return Ok(work());
    }
    // It fails only if the runtime is shutting down, or if the work panicked.
    tokio::task::spawn_blocking(work).await.map_err(|failure| FsError::Unavailable(failure.to_string()))
}

/// The ranges to be cut anew, in order, none overlapping. Where the end of a run waits for what will be written
/// after it, the rest of the chunk around that end is left for later: it is about to be written over.
fn regions(order: &Order<'_>, layout: &Layout, cutter: &Cutter, natural_end: Option<u64>) -> VecDeque<Range<u64>> {
    let wide = order.runs.iter().map(|run| {
        let joins_left = run.starts_with_data && natural_end != Some(run.start);
        let start = left_end(layout, run.start, joins_left.then_some(cutter));
        match order.keep_tails {
            true => start..run.end,
            false => start..right_end(layout, run.end, run.ends_in_data.then_some(cutter)),
        }
    });
    let mut wide: Vec<Range<u64>> = match order.keep_tails {
        true => wide.collect(),
        false => wide.chain(layout.parts()).collect(),
    };
    wide.sort_unstable_by_key(|range| range.start);
    let mut regions: VecDeque<Range<u64>> = VecDeque::new();
    for range in wide {
        match regions.back_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => regions.push_back(range),
        }
    }
    regions
}

/// Where to begin for a run that begins `at`: with the chunk around it, or with one before it that
/// was not cut where its content says.
fn left_end(layout: &Layout, at: u64, joins: Option<&Cutter>) -> u64 {
    let Some(before) = at.checked_sub(1).and_then(|before| layout.at(before)) else { return at };
    let around = before.end > at;
    let short = joins.is_some_and(|cutter| is_short(cutter, &before) || before.end == layout.end());
    if before.slice.is_some() && (around || short) { before.start } else { at }
}

/// Where to end for a run that ends `at`: with the chunk around it, or with a short one after it.
fn right_end(layout: &Layout, at: u64, joins: Option<&Cutter>) -> u64 {
    let Some(after) = layout.at(at) else { return at };
    let around = after.start < at;
    let short = joins.is_some_and(|cutter| is_short(cutter, &after));
    if after.slice.is_some() && (around || short) { after.end } else { at }
}

/// Whether a chunk was not cut where its content says: it ends too soon.
fn is_short(cutter: &Cutter, found: &Found) -> bool {
    found.end - found.start < u64::from(cutter.sizes_at(found.start).min())
}

/// Cuts the stretches of data between holes.
fn cut_portion(cutter: &Cutter, portion: Portion) -> Cut {
    let (start, end) = (portion.range.start, portion.range.end);
    let mut cut = Cut { range: start..start, pieces: Vec::new() };
    let mut stretch = Vec::new();
    for part in portion.parts {
        if part.source == Source::Hole {
            cut.add_stretch(cutter, std::mem::take(&mut stretch), true);
            cut.add(part.len(), None);
        } else {
            stretch.push(part);
        }
    }
    cut.add_stretch(cutter, stretch, !portion.more);
    assert!(portion.more || cut.range.end == end, "all of a portion that ends is cut");
    cut
}

impl Cut {
    fn add(&mut self, len: u64, bytes: Option<Bytes>) {
        self.range.end += len;
        self.pieces.push(Plain { len, bytes });
    }

    fn add_stretch(&mut self, cutter: &Cutter, parts: Vec<Part>, last: bool) {
        if parts.is_empty() {
            return;
        }
        let mut rest = concatenate(parts);
        while !rest.is_empty() {
            let len = cutter.cut(self.range.end, &rest, last);
            if len == 0 {
                return;
            }
            let bytes = rest.split_to(len);
            self.add(len as u64, (!is_zero(&bytes)).then_some(bytes));
        }
    }
}

/// Pieces in groups of about [`SEAL_BYTES`].
fn groups(pieces: Vec<Plain>) -> Vec<Vec<Plain>> {
    let (mut groups, mut bytes) = (Vec::<Vec<Plain>>::new(), SEAL_BYTES);
    for piece in pieces {
        if bytes >= SEAL_BYTES {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += piece.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        groups.last_mut().expect("pushed before the first piece").push(piece);
    }
    groups
}
