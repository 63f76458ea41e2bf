//! A file as its readers see it: what was written last over what is sealed.

use std::ops::Range;

use bytes::Bytes;

use super::layout::{Layout, Piece, Slice};
use super::overlay::{Body, Overlay};

/// A range of a file and where its bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) source: Source,
}

/// Where bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From memory.
    Bytes(Bytes),
    /// From a sealed chunk.
    Sealed(Slice),
    /// From nowhere: they are zero.
    Hole,
}

impl Part {
    pub(super) fn len(&self) -> u64 {
        self.end - self.start
    }

    /// How many of its bytes are not in a hole.
    pub(super) fn data_len(&self) -> u64 {
        if self.is_hole() { 0 } else { self.len() }
    }

    /// The same in a layout, which has a hole where bytes are in memory.
    pub(super) fn piece(&self) -> Piece {
        let slice = match self.source {
            Source::Sealed(slice) => Some(slice),
            Source::Bytes(_) | Source::Hole => None,
        };
        Piece { len: self.len(), slice }
    }

    pub(super) fn is_hole(&self) -> bool {
        self.source == Source::Hole
    }
}

/// What covers `at`, up to `limit` at most.
fn part(overlay: &Overlay, layout: &Layout, at: u64, limit: u64) -> Part {
    if let Some(dirty) = overlay.at(at) {
        let end = dirty.end.min(limit);
        let source = match dirty.body {
            Body::Data(bytes) => Source::Bytes(bytes.slice(..(end - at) as usize)),
            Body::Hole => Source::Hole,
        };
        return Part { start: at, end, source };
    }
    let limit = overlay.next_start(at).map_or(limit, |next| next.min(limit));
    match layout.at(at) {
        None => Part { start: at, end: limit, source: Source::Hole },
        Some(found) => {
            let skipped = |slice: Slice| Slice { skip: slice.skip + (at - found.start) as u32, ..slice };
            let source = found.slice.map_or(Source::Hole, |slice| Source::Sealed(skipped(slice)));
            Part { start: at, end: found.end.min(limit), source }
        }
    }
}

/// The parts of `range` in order, until they hold `data_max` bytes that are not holes (the last
/// part may go beyond that).
pub(super) fn parts(overlay: &Overlay, layout: &Layout, range: Range<u64>, data_max: u64) -> Vec<Part> {
    let (mut parts, mut at, mut data) = (Vec::new(), range.start, 0);
    while at < range.end && data < data_max {
        let part = part(overlay, layout, at, range.end);
        at = part.end;
        data += part.data_len();
        parts.push(part);
    }
    parts
}

/// The first offset in `range` that is a hole (or that is not one).
pub(super) fn seek(overlay: &Overlay, layout: &Layout, range: Range<u64>, hole: bool) -> Option<u64> {
    let mut at = range.start;
    while at < range.end {
        let part = part(overlay, layout, at, range.end);
        if part.is_hole() == hole {
            return Some(at);
        }
        at = part.end;
    }
    None
}
