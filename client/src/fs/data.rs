//! Reading and writing open files.

use std::sync::Arc;

use bytes::Bytes;
use meta::Denied;

use super::chunks::{concatenate, pieces};
use super::error::{FsError, Result};
use super::file::checked_end;
use super::handles::{Handle, Open};
use super::view::{self, Part};
use super::{Filesystem, Shared};
use crate::backend::{BlockStore, Metadata};

/// Into how many pieces a read is worth being cut.
const PIECES_MAX: usize = 64;

/// What `fallocate(2)` is to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Nothing is set aside, but the file is at least that long afterwards.
    Allocate,
    /// The same, and the size stays (`FALLOC_FL_KEEP_SIZE`): nothing at all.
    AllocateKeepSize,
    /// Make the range a hole; the size stays (`FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`).
    PunchHole,
    /// The range reads as zeros, and the file is at least that long (`FALLOC_FL_ZERO_RANGE`).
    ZeroRange,
    /// The range reads as zeros; the size stays.
    ZeroRangeKeepSize,
}

impl Fallocate {
    /// The meaning of Linux's `mode` bits.
    ///
    /// # Errors
    /// `NotSupported` for all others: collapsing and inserting ranges, unsharing.
    pub fn from_mode(mode: i32) -> Result<Fallocate> {
        match mode {
            0 => Ok(Fallocate::Allocate),
            0x01 => Ok(Fallocate::AllocateKeepSize),
            0x03 => Ok(Fallocate::PunchHole),
            0x10 => Ok(Fallocate::ZeroRange),
            0x11 => Ok(Fallocate::ZeroRangeKeepSize),
            _ => Err(FsError::NotSupported),
        }
    }
}

/// What [`Filesystem::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file. What this mount
    /// wrote is there at once.
    ///
    /// # Errors
    /// `BadHandle` if it is not open for reading; `Unavailable` or `Corrupt` if a chunk can't be had;
    /// `Denied(Fenced)` if locks that were taken through this handle are lost.
    pub async fn read(&self, handle: Handle, offset: u64, len: u32) -> Result<Bytes> {
        Ok(concatenate(self.read_parts(handle, offset, len).await?))
    }

    /// As [`Filesystem::read`], in pieces that follow one another, for those who would copy them anyway.
    ///
    /// # Errors
    /// As [`Filesystem::read`].
    pub async fn read_pieces(&self, handle: Handle, offset: u64, len: u32) -> Result<Vec<Bytes>> {
        let parts = self.read_parts(handle, offset, len).await?;
        Ok(if parts.len() > PIECES_MAX { vec![concatenate(parts)] } else { pieces(parts) })
    }

    /// What is to be read, in memory.
    async fn read_parts(&self, handle: Handle, offset: u64, len: u32) -> Result<Vec<Part>> {
        let open = self.shared.handle(handle)?;
        if !open.flags.read && !open.flags.execute {
            return Err(FsError::BadHandle);
        }
        self.shared.read(&open, offset, len).await
    }

    /// Writes at `offset` (at the end, if the handle was opened to append) and returns how much was
    /// written: all. It is in memory then; [`Filesystem::flush`] says when it is safe.
    ///
    /// # Errors
    /// `BadHandle`, `TooBig`; or that something written *before* could not be stored, once: that is
    /// kept and tried again, and this write may be tried again too.
    pub async fn write(&self, handle: Handle, offset: u64, bytes: Bytes) -> Result<u32> {
        let (shared, open) = (&self.shared, self.shared.handle(handle)?);
        if !open.flags.write {
            return Err(FsError::BadHandle);
        }
        open.locks.check()?;
        let len = u32::try_from(bytes.len()).map_err(|_| FsError::Invalid)?;
        if len == 0 {
            return Ok(0);
        }
        shared.tell_dropped(&open)?;
        shared.tell_earlier(&open)?;
        shared.make_room().await?;
        shared.note_write(&open);
        match open.flags.append {
            true => shared.append(handle, &open, bytes).await?,
            false => {
                let mut state = open.file.state.lock();
                state.write(Some(offset), bytes, &shared.writing(&open))?;
                open.writes.wrote(state.seq);
            }
        }
        shared.stage_in_background(&open.file);
        Ok(len)
    }

    /// `fallocate(2)`.
    ///
    /// # Errors
    /// `BadHandle`, `Invalid` (no bytes), `TooBig`.
    pub async fn fallocate(&self, handle: Handle, how: Fallocate, offset: u64, len: u64) -> Result<()> {
        let open = self.shared.handle(handle)?;
        if !open.flags.write {
            return Err(FsError::BadHandle);
        }
        open.locks.check()?;
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = checked_end(offset, len)?;
        self.shared.note_write(&open);
        let (by, mut state) = (self.shared.writing(&open), open.file.state.lock());
        match how {
            Fallocate::Allocate => state.allocate(end, &by),
            Fallocate::AllocateKeepSize => {}
            Fallocate::PunchHole | Fallocate::ZeroRangeKeepSize => {
                state.zero(offset..end, false, &by);
            }
            Fallocate::ZeroRange => state.zero(offset..end, true, &by),
        }
        open.writes.wrote(state.seq);
        Ok(())
    }

    /// The first data or hole at or after `offset` (`lseek(2)`); the end of the file is a hole.
    ///
    /// # Errors
    /// `NoSuchOffset` if `offset` is not before the end, or no data follows.
    pub async fn seek(&self, handle: Handle, offset: u64, what: Seek) -> Result<u64> {
        let open = self.shared.handle(handle)?;
        self.shared.freshen(&open).await?;
        loop {
            self.shared.ensure_layout(&open.file).await?;
            let state = open.file.state.lock();
            if let Some(layout) = &state.layout {
                return state.seek(layout, offset, what == Seek::Hole);
            }
        }
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Parts that are in memory; none at the end of the file.
    async fn read(&self, open: &Open, offset: u64, len: u32) -> Result<Vec<Part>> {
        self.need_locks(open).await?;
        self.freshen(open).await?;
        let (parts, ahead) = loop {
            self.ensure_layout(&open.file).await?;
            let state = &mut *open.file.state.lock();
            // Newer content may have come in between.
            let Some(layout) = &state.layout else { continue };
            let end = offset.saturating_add(u64::from(len)).min(state.size);
            if offset >= end {
                return Ok(Vec::new());
            }
            let parts = view::parts(&state.overlay, layout, offset..end, u64::MAX);
            let window_max = self.options.read_ahead_bytes.min(self.options.cache.opened_bytes / 4);
            let ahead = state.ahead.after(&(offset..end), window_max).filter(|ahead| ahead.start < state.size);
            let ahead = ahead
                .map(|ahead| view::parts(&state.overlay, layout, ahead.start..ahead.end.min(state.size), u64::MAX));
            break (parts, ahead);
        };
        if let Some(ahead) = ahead {
            self.chunks.read_ahead(ahead);
        }
        if offset == 0 {
            self.chunks.read_files_ahead(self.metadata.ahead_of(open.file.ino));
        }
        self.chunks.fill(parts).await
    }

    /// Tells whoever writes, once, that something written before could not be stored.
    pub(super) fn tell_earlier(self: &Arc<Self>, open: &Open) -> Result<()> {
        let earlier = open.file.state.lock().error.take();
        let Some(error) = self.outbox.take_failure(open.file.ino).or(earlier) else { return Ok(()) };
        self.outbox.retry();
        Err(error)
    }

    /// Takes over content that replicas are known to hold and this mount does not.
    pub(super) async fn freshen(&self, open: &Open) -> Result<()> {
        let stale = {
            let state = open.file.state.lock();
            state.stale && !state.is_dirty()
        };
        if !stale {
            return Ok(());
        }
        match self.open_content(&open.caller, open.file.ino, open.flags.mask()).await {
            Ok((attr, content)) => open.file.refresh(attr, &content, &self.budget),
            // A handle reads on after its file was removed or closed to it, as it was.
            Err(FsError::Denied(Denied::Access | Denied::Stale)) => open.file.state.lock().stale = false,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
