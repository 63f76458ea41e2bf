//! Copying a range from one file to another, or within one, by reference.
//!
//! What is sealed is laid into the target as it is: the two files name the same chunks, and no byte is read or
//! sent. Where a range begins or ends within a chunk the target has a part of it, which whoever commits cuts
//! anew. What was written to the source and is not sealed is shared in memory, as if it were written again. The
//! target is only committed once everything it names is durable, whichever file it was sealed for.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use base::BlockId;
use meta::Ino;

use super::error::{FsError, Result};
use super::file::checked_end;
use super::handles::{Handle, Open};
use super::view::{self, Part, Source};
use super::{Filesystem, Shared};
use crate::backend::{BlockStore, Metadata};

/// How much is copied in one go at most, without holes, bytes: so much takes milliseconds.
const COPIED_MAX: u64 = 1 << 30;
/// From how much on what the source has in memory only is sealed first, bytes.
const SEALED_FROM: u64 = 256 << 10;

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// `copy_file_range(2)`: copies up to `len` bytes from one place to another, of the same file or not, and
    /// returns how many. That is less at the end of the source, and may be less if it is very much. Holes stay
    /// holes. It is safe when a write would be.
    ///
    /// # Errors
    /// `BadHandle` if the source is not open for reading, or the target not for writing or to append;
    /// `Invalid` if the ranges overlap; `TooBig`; and as [`Filesystem::write`].
    pub async fn copy(&self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<u64> {
        let shared = &self.shared;
        let (source, target) = (shared.handle(from.0)?, shared.handle(to.0)?);
        if !source.flags.read || !target.flags.write || target.flags.append {
            return Err(FsError::BadHandle);
        }
        source.locks.check()?;
        target.locks.check()?;
        shared.tell_dropped(&target)?;
        shared.tell_earlier(&target)?;
        shared.make_room().await?;
        shared.note_write(&target);
        let same = (source.file.ino == target.file.ino).then_some(to.1);
        let wanted = from.1..from.1.saturating_add(len);
        let (parts, pending) = shared.share(&source, target.file.ino, wanted, same).await?;
        let copied = parts.iter().map(Part::len).sum();
        checked_end(to.1, copied)?;
        if copied > 0 {
            shared.lay(&target, to.1, parts, pending).await?;
            shared.stage_in_background(&target.file);
        }
        Ok(copied)
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// What a range of a file holds, for the file `target` to have it too; and which of its blocks are not
    /// durable yet, which are kept for the target from now on. `same`: where it goes in the same file.
    async fn share(
        self: &Arc<Self>,
        source: &Open,
        target: Ino,
        wanted: Range<u64>,
        same: Option<u64>,
    ) -> Result<(Vec<Part>, BTreeSet<BlockId>)> {
        self.freshen(source).await?;
        // While it is held nobody gives up what is sealed for this file.
        let mut pipeline = source.file.pipeline.lock().await;
        let mut sealed = false;
        loop {
            self.ensure_layout(&source.file).await?;
            {
                let state = source.file.state.lock();
                // Newer content may have come in between.
                let Some(layout) = &state.layout else { continue };
                let range = wanted.start..wanted.end.min(state.size);
                if range.is_empty() {
                    return Ok((Vec::new(), BTreeSet::new()));
                }
                let len = range.end - range.start;
                if same.is_some_and(|to| to < range.end && range.start < to.saturating_add(len)) {
                    return Err(FsError::Invalid);
                }
                let parts = view::parts(&state.overlay, layout, range, COPIED_MAX);
                let unsealed = parts.iter().filter(|part| matches!(part.source, Source::Bytes(_))).map(Part::len);
                if sealed || unsealed.sum::<u64>() < SEALED_FROM {
                    let ids = parts.iter().filter_map(|part| match &part.source {
                        Source::Sealed(slice) => Some(slice.chunk.block),
                        _ => None,
                    });
                    let pending = self.outbox.share(target, ids);
                    return Ok((parts, pending));
                }
            }
            self.stage_now(&source.file, &mut pipeline).await?;
            sealed = true;
        }
    }

    /// Lays what another range holds into a file.
    async fn lay(&self, target: &Open, at: u64, parts: Vec<Part>, pending: BTreeSet<BlockId>) -> Result<()> {
        // Nobody seals or commits meanwhile.
        let mut pipeline = target.file.pipeline.lock().await;
        pipeline.pending.extend(pending);
        pipeline.natural_end = None;
        loop {
            self.ensure_layout(&target.file).await?;
            let mut state = target.file.state.lock();
            if state.layout.is_some() {
                state.lay(at, parts, &self.writing(target));
                target.writes.wrote(state.seq);
                return Ok(());
            }
        }
    }
}
