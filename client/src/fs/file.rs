//! A file that is open here: one for each inode, shared by all its handles.
//!
//! What replicas hold (the *base*: attributes, content, the `content_version` they had), the layout
//! of what is sealed, the overlay of what is not, and what changed since the base. Nothing here
//! waits; staging and committing do, under the file's pipeline lock.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use base::BlockId;
use bytes::Bytes;
use meta::{Attr, Caller, Content, Ino, Timestamp};
use parking_lot::Mutex;

use super::error::{FsError, Result};
use super::layout::Layout;
use super::locks::LockOwners;
use super::outbox::Budget;
use super::overlay::{Overlay, Ranges};
use super::view::{self, Part, Source};
use super::writing::{Touched, Writing};

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) ino: Ino,
    pub(super) state: Mutex<State>,
    /// Held by whoever seals or commits.
    pub(super) pipeline: tokio::sync::Mutex<Pipeline>,
    /// Held by whoever loads the layout.
    pub(super) loading: tokio::sync::Mutex<()>,
    /// Held by whoever appends where others may, too.
    pub(super) appending: tokio::sync::Mutex<()>,
    pub(super) owners: LockOwners,
}

/// What sealing and committing keep from one time to the next.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    /// Blocks that must be durable before the next commit.
    pub(super) pending: BTreeSet<BlockId>,
    /// Where sealing a long run stopped, at a boundary that content decided.
    pub(super) natural_end: Option<u64>,
}

/// What is known of an open file.
#[derive(Debug)]
pub(super) struct State {
    pub(super) attr: Attr,
    /// When `attr` came from the replicas.
    pub(super) fetched: Option<Instant>,
    /// What replicas hold since `content_version` was `base`.
    pub(super) content: Content,
    pub(super) base: u64,
    /// What is sealed; `None` until it is needed. Holds more than `content` while data is staged.
    pub(super) layout: Option<Layout>,
    pub(super) overlay: Overlay,
    pub(super) size: u64,
    /// Counts writes.
    pub(super) seq: u64,
    /// Of them, those that the commit under way covers, and those that are committed or given up.
    committing_seq: u64,
    pub(super) settled_seq: u64,
    /// What changed since the last commit began.
    pub(super) changes: Changes,
    /// What the commit under way covers.
    pub(super) committing: Option<Changes>,
    /// When it was last written to here, and when the oldest change that is not committed was made.
    touched: Touched,
    pub(super) dirty_since: Option<Instant>,
    /// Since when replicas have patches of it that were made here and are not folded.
    pub(super) patched_since: Option<Instant>,
    /// An error of work in the background that nobody was told yet.
    pub(super) error: Option<FsError>,
    /// For whom content is committed: who wrote last.
    pub(super) writer: Caller,
    /// Replicas are known to hold newer content.
    pub(super) stale: bool,
    /// What is known of it was lost: whatever replicas have is newer.
    doubted: bool,
    /// It has no name any more, and is kept for us.
    pub(super) orphan: bool,
    /// It has no name any more, because of another mount: it is that one's to let go.
    pub(super) borrowed: bool,
    /// Whoever has the pipeline lays what is sealed into the layout, which must not be given up.
    pub(super) sealing: bool,
    /// Sealing long runs in the background is under way.
    pub(super) staging: bool,
    /// How much unsealed data there must be before long runs are looked for.
    pub(super) stage_at: u64,
    pub(super) ahead: ReadAhead,
}

/// What changed in a file, to be done again if somebody else committed in the meantime.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    /// What was written, holes too.
    pub(super) written: Ranges,
    /// The size was set: it is `least`, whatever it is in anybody else's content.
    pub(super) exact: bool,
    /// The file has at least this size.
    pub(super) least: u64,
}

impl Changes {
    pub(super) fn is_none(&self) -> bool {
        self.written.is_empty() && !self.exact && self.least == 0
    }

    /// The size of a file that had `size` once these changes are made to it.
    pub(super) fn size_of(&self, size: u64) -> u64 {
        if self.exact { self.least } else { size.max(self.least) }
    }

    /// Adds changes that were made after these.
    pub(super) fn add(&mut self, newer: &Changes) {
        self.written.add_all(&newer.written);
        self.least = if newer.exact { newer.least } else { self.least.max(newer.least) };
        self.exact |= newer.exact;
    }
}

/// Where a sequential reader is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReadAhead {
    next: u64,
    window: u64,
    until: u64,
}

impl ReadAhead {
    const WINDOW_MIN: u64 = 512 << 10;

    /// What to fetch ahead after a read of `range`, at most `window_max` bytes beyond it.
    pub(super) fn after(&mut self, range: &Range<u64>, window_max: u64) -> Option<Range<u64>> {
        // The kernel may send neighbouring reads out of order.
        if window_max < Self::WINDOW_MIN {
            return None;
        }
        let sequential = range.start <= self.next && range.end + Self::WINDOW_MIN >= self.next && self.next > 0;
        if !sequential {
            *self = ReadAhead { next: range.end, window: 0, until: range.end };
            return None;
        }
        self.next = self.next.max(range.end);
        self.window = (self.window * 2).clamp(Self::WINDOW_MIN, window_max);
        let from = self.until.max(self.next);
        let until = self.next + self.window;
        // Ask in strides, not for every little read.
        if until < from + self.window / 4 {
            return None;
        }
        self.until = until;
        Some(from..until)
    }
}

impl OpenFile {
    pub(super) fn new(attr: Attr, content: Content, stage_bytes: u64) -> OpenFile {
        let state = State {
            attr,
            fetched: Some(Instant::now()),
            size: content.size,
            base: attr.content_version,
            layout: None,
            content,
            overlay: Overlay::default(),
            seq: 0,
            committing_seq: 0,
            settled_seq: 0,
            changes: Changes::default(),
            committing: None,
            touched: Touched::Never,
            dirty_since: None,
            patched_since: None,
            error: None,
            writer: Caller::default(),
            stale: false,
            doubted: false,
            orphan: attr.nlink == 0,
            borrowed: attr.nlink == 0,
            sealing: false,
            staging: false,
            stage_at: stage_bytes,
            ahead: ReadAhead::default(),
        };
        OpenFile {
            ino: attr.ino,
            state: Mutex::new(state),
            pipeline: tokio::sync::Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            appending: tokio::sync::Mutex::default(),
            owners: LockOwners::default(),
        }
    }

    /// Whether something was changed here that replicas do not hold.
    pub(super) fn is_dirty(&self) -> bool {
        self.state.lock().is_dirty()
    }

    /// `attr` as this mount sees it: never older than what is known, with what was changed here.
    pub(super) fn localize(&self, attr: Attr) -> Attr {
        let mut state = self.state.lock();
        state.note(attr);
        state.local_attr()
    }

    /// The attributes without asking replicas, while the file is dirty and they were asked within
    /// `ttl`.
    pub(super) fn recent_attr(&self, ttl: Duration) -> Option<Attr> {
        let state = self.state.lock();
        let recent = state.fetched.is_some_and(|fetched| fetched.elapsed() < ttl);
        (recent && state.is_dirty()).then(|| state.local_attr())
    }

    /// Takes note that replicas know nothing of it any more: others removed it, and let it go. Its attributes, unless
    /// what was known of it was lost.
    pub(super) fn let_go(&self) -> Option<Attr> {
        let mut state = self.state.lock();
        if state.doubted {
            return None;
        }
        (state.attr.nlink, state.stale) = (0, false);
        (state.borrowed, state.orphan) = (state.borrowed || !state.orphan, true);
        state.fetched = Some(Instant::now());
        Some(state.local_attr())
    }

    /// Takes newer content over, unless something was changed here.
    pub(super) fn refresh(&self, attr: Attr, content: &Content, budget: &Budget) {
        let mut state = self.state.lock();
        state.note(attr);
        if !state.is_dirty() && !state.sealing && (attr.content_version > state.base || state.doubted) {
            state.unload(budget);
            state.patched_since = None;
            state.rebase(attr, content.clone(), None);
        }
    }
}

impl State {
    pub(super) fn is_dirty(&self) -> bool {
        self.committing.is_some() || !self.changes.is_none()
    }

    /// What is known of it was lost.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Remembers attributes that replicas gave, if they are the newest so far.
    pub(super) fn note(&mut self, attr: Attr) {
        if attr.version >= self.attr.version {
            self.attr = attr;
            self.fetched = Some(Instant::now());
            self.stale = self.doubted || attr.content_version > self.base;
            self.borrowed |= attr.nlink == 0 && !self.orphan;
            self.orphan = attr.nlink == 0;
        }
    }

    pub(super) fn local_attr(&self) -> Attr {
        let mut attr = self.attr;
        if self.is_dirty() {
            attr.size = self.size;
            let sealed = self.layout.as_ref().map_or(self.content.allocated, Layout::allocated);
            attr.allocated = (sealed + self.overlay.charge()).min(self.size);
            attr.mode = meta::written_mode(&self.writer, &attr);
            match self.touched {
                Touched::Never => {}
                Touched::Agreed(at) => (attr.mtime, attr.ctime) = (at.into(), attr.ctime.max(at.into())),
                Touched::Estimated(at) => (attr.mtime, attr.ctime) = (attr.mtime.max(at), attr.ctime.max(at)),
            }
        }
        attr
    }

    /// Content that replicas hold, and its layout if it is known.
    pub(super) fn rebase(&mut self, attr: Attr, content: Content, layout: Option<Layout>) {
        self.doubted = false;
        self.note(attr);
        self.base = attr.content_version;
        self.stale = self.attr.content_version > self.base;
        self.size = content.size;
        self.layout = layout;
        self.content = content;
    }

    /// Writes at `offset`, or at the end; returns where it ends.
    pub(super) fn write(&mut self, offset: Option<u64>, bytes: Bytes, by: &Writing<'_>) -> Result<u64> {
        let offset = offset.unwrap_or(self.size);
        let end = checked_end(offset, bytes.len() as u64)?;
        self.change(by, |state| {
            state.overlay.write(offset, bytes, state.seq);
            state.changes.written.add(offset..end);
            state.grow(end);
        });
        Ok(end)
    }

    /// Makes `range` read as zeros. The size stays, unless the range is to be `within` the file.
    pub(super) fn zero(&mut self, range: Range<u64>, grow: bool, by: &Writing<'_>) {
        self.change(by, |state| {
            let held = state.held_end().max(state.size);
            state.overlay.punch(range.start..range.end.min(held), state.seq);
            state.changes.written.add(range.start..range.end.min(held));
            if grow {
                state.grow(range.end);
            }
        });
    }

    /// Lays parts of a file, this one or another, one after the other at `offset`. The layout is there, and the
    /// pipeline held.
    pub(super) fn lay(&mut self, offset: u64, parts: Vec<Part>, by: &Writing<'_>) {
        let end = offset + parts.iter().map(Part::len).sum::<u64>();
        self.change(by, |state| {
            state.overlay.drop_until(offset..end, state.seq);
            let layout = state.layout.as_mut().expect("it is loaded before anything is laid into it");
            layout.set(offset..end, parts.iter().map(Part::piece));
            let mut at = offset;
            for part in parts {
                let len = part.len();
                if let Source::Bytes(bytes) = part.source {
                    state.overlay.write(at, bytes, state.seq);
                }
                at += len;
            }
            state.changes.written.add(offset..end);
            state.grow(end);
        });
    }

    /// Makes the file at least `size` long.
    pub(super) fn allocate(&mut self, size: u64, by: &Writing<'_>) {
        if size > self.size {
            self.change(by, |state| state.grow(size));
        }
    }

    /// Sets the size.
    pub(super) fn truncate(&mut self, size: u64, by: &Writing<'_>) {
        self.change(by, |state| {
            let held = state.held_end().max(state.size);
            state.overlay.punch(size..held, state.seq);
            state.changes.written.add(size..u64::MAX);
            (state.changes.exact, state.changes.least, state.size) = (true, size, size);
        });
    }

    /// Forgets all that was written here and starts anew from `content`.
    pub(super) fn reset(&mut self, attr: Attr, content: Content, budget: &Budget) {
        budget.adjust(self.overlay.charge(), 0);
        self.overlay.clear();
        (self.changes, self.committing, self.error) = (Changes::default(), None, None);
        (self.touched, self.dirty_since, self.settled_seq) = (Touched::Never, None, self.seq);
        self.patched_since = None;
        self.rebase(attr, content, None);
    }

    /// What was committed here and is the base was lost. What was not committed stays, to be laid over what
    /// replicas have.
    pub(super) fn doubt(&mut self) {
        (self.attr.version, self.fetched) = (0, None);
        (self.stale, self.doubted) = (true, true);
    }

    /// When what the commit under way covers was written, if that is known by the agreed clock.
    pub(super) fn written_at(&self) -> Option<Timestamp> {
        match self.touched {
            Touched::Agreed(at) => Some(at.into()),
            Touched::Never | Touched::Estimated(_) => None,
        }
    }

    /// The base is not known: a commit would build on nothing that replicas have.
    pub(super) fn forget_base(&mut self) {
        self.base = u64::MAX;
    }

    /// The changes a commit that begins now covers: they are committing from here on.
    pub(super) fn begin_commit(&mut self) -> bool {
        if self.changes.is_none() {
            return false;
        }
        assert!(self.committing.is_none(), "one commit at a time, under the pipeline lock");
        self.committing = Some(std::mem::take(&mut self.changes));
        self.committing_seq = self.seq;
        self.dirty_since = None;
        true
    }

    /// The commit under way failed: its changes are still to be committed.
    pub(super) fn abort_commit(&mut self) {
        if let Some(mut changes) = self.committing.take() {
            changes.add(&self.changes);
            self.changes = changes;
            self.dirty_since.get_or_insert_with(Instant::now);
        }
    }

    /// The commit under way was applied.
    pub(super) fn end_commit(&mut self, attr: Attr, content: Content) {
        self.committing = None;
        (self.doubted, self.settled_seq) = (false, self.committing_seq);
        self.note(attr);
        self.base = attr.content_version;
        self.stale = self.attr.content_version > self.base;
        if content.patches.is_empty() {
            self.patched_since = None;
        }
        self.content = content;
    }

    /// Lays what the commit under way covers over somebody else's content, which is the base from
    /// here on; returns the size of both together. Parts of chunks may be left in the layout.
    pub(super) fn merge(&mut self, attr: Attr, content: Content, mut theirs: Layout) -> u64 {
        if let Touched::Agreed(at) = self.touched {
            // Others wrote meanwhile: what they see must not become older.
            self.touched = Touched::Estimated(at.into());
        }
        let ours = self.layout.take().unwrap_or_default();
        let changes = self.committing.as_ref().expect("merged only while committing");
        let held = ours.end().max(theirs.end());
        for written in changes.written.iter() {
            let written = written.start..written.end.min(held);
            theirs.set(written.clone(), ours.slice(written));
        }
        let committed = changes.size_of(content.size);
        let now = self.changes.size_of(committed);
        theirs.resize(committed);
        // What only replicas have as patches is in what they have now, unless it was written over.
        self.overlay.retain(&self.changes.written);
        self.rebase(attr, content, Some(theirs));
        self.size = now;
        committed
    }

    /// Where everything held here or by replicas ends.
    fn held_end(&self) -> u64 {
        self.overlay.end().max(self.layout.as_ref().map_or(self.content.size, Layout::end))
    }

    fn grow(&mut self, end: u64) {
        self.size = self.size.max(end);
        self.changes.least = self.changes.least.max(end);
    }

    fn change(&mut self, by: &Writing<'_>, change: impl FnOnce(&mut State)) {
        let before = self.overlay.charge();
        self.seq += 1;
        change(self);
        by.budget.adjust(before, self.overlay.charge());
        if self.writer != *by.caller {
            self.writer = by.caller.clone();
        }
        self.touched = by.agreed.map_or_else(Touched::estimated, Touched::Agreed);
        self.dirty_since.get_or_insert_with(Instant::now);
    }

    /// The first data, or the first hole, at or after `offset`.
    pub(super) fn seek(&self, layout: &Layout, offset: u64, hole: bool) -> Result<u64> {
        if offset >= self.size {
            return Err(FsError::NoSuchOffset);
        }
        let found = view::seek(&self.overlay, layout, offset..self.size, hole);
        match found {
            None if hole => Ok(self.size),
            found => found.ok_or(FsError::NoSuchOffset),
        }
    }
}

/// The end of a range, if a file can be that long.
pub(super) fn checked_end(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|end| *end <= chunk::SIZE_MAX).ok_or(FsError::TooBig)
}
