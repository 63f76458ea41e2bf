//! Where a file's sealed bytes are: its extents by offset, changed in logarithmic time.
//!
//! Unlike a [`Recipe`], a layout may hold *parts* of chunks, because a range may be replaced
//! anywhere. Parts are on their way: whoever makes a recipe first cuts them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use chunk::{ChunkRef, Extent, Recipe};

/// A stretch of sealed bytes: a chunk from its byte `skip` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) chunk: ChunkRef,
    pub(super) skip: u32,
}

/// A piece to be laid into a file: so many bytes of a chunk, or of nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) len: u64,
    pub(super) slice: Option<Slice>,
}

impl Piece {
    pub(super) fn hole(len: u64) -> Piece {
        Piece { len, slice: None }
    }

    pub(super) fn whole(chunk: ChunkRef) -> Piece {
        Piece { len: u64::from(chunk.len), slice: Some(Slice { chunk, skip: 0 }) }
    }

    fn is_part(&self) -> bool {
        self.slice.is_some_and(|slice| u64::from(slice.chunk.len) != self.len)
    }

    /// The bytes of this piece that lie in `part`, counted from its start.
    fn part(&self, part: Range<u64>) -> Piece {
        let skipped = |slice: Slice| Slice { skip: slice.skip + part.start as u32, ..slice };
        Piece { len: part.end - part.start, slice: self.slice.map(skipped) }
    }
}

/// What [`Layout::at`] found: where it starts and ends, and the bytes there (`None`: a hole).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) slice: Option<Slice>,
}

/// A file's extents. They cover it from 0 to [`Layout::end`] without a gap.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// By first offset.
    pieces: BTreeMap<u64, Piece>,
    /// Where pieces start that are not whole chunks.
    parts: BTreeSet<u64>,
    end: u64,
    allocated: u64,
}

impl Layout {
    pub(super) fn from_recipe(recipe: &Recipe) -> Layout {
        let mut layout = Layout::default();
        for extent in recipe.extents() {
            let piece = match extent {
                Extent::Data(chunk) => Piece::whole(*chunk),
                Extent::Hole(len) => Piece::hole(*len),
            };
            layout.insert(layout.end, piece);
            layout.end += piece.len;
        }
        layout
    }

    /// The recipe of this layout.
    ///
    /// # Panics
    /// If a part of a chunk is left.
    pub(super) fn to_recipe(&self) -> Recipe {
        assert!(self.parts.is_empty(), "parts of chunks are cut anew before a recipe is made");
        let extents = self.pieces.values().map(|piece| match piece.slice {
            Some(slice) => Extent::Data(slice.chunk),
            None => Extent::Hole(piece.len),
        });
        Recipe::from_extents(extents).expect("no piece is empty, and sizes were checked by whoever wrote")
    }

    /// The offset after the last extent.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes are not holes.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// The extent that holds `at`; `None` at and beyond the end.
    pub(super) fn at(&self, at: u64) -> Option<Found> {
        let (&start, piece) = self.pieces.range(..=at).next_back()?;
        let end = start + piece.len;
        (end > at).then_some(Found { start, end, slice: piece.slice })
    }

    /// Where the parts of chunks are, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.parts.iter().map(|&start| start..start + self.pieces[&start].len)
    }

    /// What `range` holds; beyond the end that is a hole.
    pub(super) fn slice(&self, range: Range<u64>) -> Vec<Piece> {
        let (mut pieces, mut at) = (Vec::new(), range.start);
        while at < range.end {
            let Some(found) = self.at(at) else {
                pieces.push(Piece::hole(range.end - at));
                break;
            };
            let end = found.end.min(range.end);
            let whole = Piece { len: found.end - found.start, slice: found.slice };
            pieces.push(whole.part(at - found.start..end - found.start));
            at = end;
        }
        pieces
    }

    /// Replaces what `range` holds by `pieces`, which are as long together. What lies between the
    /// end and the range becomes a hole.
    pub(super) fn set(&mut self, range: Range<u64>, pieces: impl IntoIterator<Item = Piece>) {
        if range.is_empty() {
            return;
        }
        if range.start > self.end {
            self.resize(range.start);
        }
        self.cut(range.start);
        self.cut(range.end);
        let inside: Vec<u64> = self.pieces.range(range.clone()).map(|(&start, _)| start).collect();
        inside.into_iter().for_each(|start| self.remove(start));
        let mut at = range.start;
        for piece in pieces {
            self.insert(at, piece);
            at += piece.len;
        }
        assert!(at == range.end, "pieces of {} bytes for a range to {}", at - range.start, range.end);
        self.end = self.end.max(range.end);
    }

    /// Drops what lies beyond `size`, or adds a hole up to it.
    pub(super) fn resize(&mut self, size: u64) {
        if size > self.end {
            let hole = Piece::hole(size - self.end);
            self.insert(self.end, hole);
        } else {
            self.cut(size);
            let beyond: Vec<u64> = self.pieces.range(size..).map(|(&start, _)| start).collect();
            beyond.into_iter().for_each(|start| self.remove(start));
        }
        self.end = size;
    }

    /// Splits the piece that spans `at`, if one does.
    fn cut(&mut self, at: u64) {
        let Some(found) = self.at(at).filter(|found| found.start < at) else { return };
        let piece = self.pieces[&found.start];
        self.remove(found.start);
        // Two holes in a row stay two here, so that what lies in a range can be taken out of it.
        self.insert_apart(found.start, piece.part(0..at - found.start));
        self.insert_apart(at, piece.part(at - found.start..piece.len));
    }

    fn insert(&mut self, start: u64, piece: Piece) {
        if piece.slice.is_none()
            && let Some((_, left)) = self.pieces.range_mut(..start).next_back()
            && left.slice.is_none()
        {
            left.len += piece.len;
            return;
        }
        self.insert_apart(start, piece);
    }

    fn insert_apart(&mut self, start: u64, piece: Piece) {
        if piece.is_part() {
            self.parts.insert(start);
        }
        if piece.slice.is_some() {
            self.allocated += piece.len;
        }
        self.pieces.insert(start, piece);
    }

    fn remove(&mut self, start: u64) {
        if let Some(piece) = self.pieces.remove(&start) {
            self.parts.remove(&start);
            if piece.slice.is_some() {
                self.allocated -= piece.len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base::BlockId;
    use proptest::prelude::*;

    use super::*;

    fn chunk(name: u8, len: u32) -> ChunkRef {
        ChunkRef { block: BlockId::blake3([name; 32]), key: [name; 32], len }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Chunk(u64, u8, u32),
        Hole(u64, u64),
        Resize(u64),
        Copy(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..100u64, any::<u8>(), 1..30u32).prop_map(|(at, name, len)| Step::Chunk(at, name, len)),
            2 => (0..100u64, 1..40u64).prop_map(|(at, len)| Step::Hole(at, len)),
            1 => (0..150u64).prop_map(Step::Resize),
            1 => (0..100u64, 0..100u64, 1..30u64).prop_map(|(from, to, len)| Step::Copy(from, to, len)),
        ]
    }

    proptest! {
        #[test]
        fn every_byte_is_where_it_was_laid(steps in prop::collection::vec(step(), 0..30)) {
            let (mut layout, mut model) = (Layout::default(), Vec::<Option<(u8, u32)>>::new());
            for step in steps {
                let mut lay = |at: u64, bytes: Vec<Option<(u8, u32)>>| {
                    let end = at as usize + bytes.len();
                    if model.len() < end { model.resize(end, None); }
                    model[at as usize..end].copy_from_slice(&bytes);
                };
                match step {
                    Step::Chunk(at, name, len) => {
                        layout.set(at..at + u64::from(len), [Piece::whole(chunk(name, len))]);
                        lay(at, (0..len).map(|byte| Some((name, byte))).collect());
                    }
                    Step::Hole(at, len) => {
                        layout.set(at..at + len, [Piece::hole(len)]);
                        lay(at, vec![None; len as usize]);
                    }
                    Step::Resize(size) => { layout.resize(size); model.resize(size as usize, None); }
                    Step::Copy(from, to, len) => {
                        let pieces = layout.slice(from..from + len);
                        layout.set(to..to + len, pieces);
                        let at = |at: u64| model.get(at as usize).copied().flatten();
                        let bytes = (from..from + len).map(at).collect::<Vec<_>>();
                        let end = (to + len) as usize;
                        if model.len() < end { model.resize(end, None); }
                        model[to as usize..end].copy_from_slice(&bytes);
                    }
                }
                prop_assert_eq!(layout.end(), model.len() as u64);
                prop_assert_eq!(layout.allocated(), model.iter().flatten().count() as u64);
                for (at, byte) in model.iter().enumerate() {
                    let found = layout.at(at as u64).expect("no gaps");
                    let there = found.slice.map(|s| (s.chunk.key[0], s.skip + (at as u64 - found.start) as u32));
                    prop_assert_eq!(there, *byte);
                }
                prop_assert!(layout.at(model.len() as u64).is_none());
                for part in layout.parts() {
                    let found = layout.at(part.start).expect("there");
                    let whole = u64::from(found.slice.expect("a chunk's").chunk.len);
                    prop_assert!((found.start, found.end) == (part.start, part.end) && part.end - part.start < whole);
                }
            }
            if layout.parts().next().is_none() {
                let recipe = layout.to_recipe();
                prop_assert_eq!((recipe.size(), recipe.allocated()), (layout.end(), layout.allocated()));
                let again = Layout::from_recipe(&recipe);
                prop_assert!((0..layout.end()).all(|at| again.at(at).map(|f| f.slice) == layout.at(at).map(|f| f.slice)
                    || again.at(at).is_some_and(|f| f.slice.is_some())));
            }
        }
    }
}
