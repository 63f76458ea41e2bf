//! What a file is made of: its chunks and holes, in order.

use core::fmt;
use core::ops::Range;

use base::{Decode, DecodeError, Encode, Reader};

use crate::seal::ChunkRef;

/// The largest file, bytes: what a file offset can say.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extent {
    /// A chunk that is stored.
    Data(ChunkRef),
    /// This many bytes, at least one, that were never written and read as zero.
    Hole(u64),
}

impl Extent {
    /// How many bytes of the file it covers.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u64 {
        match self {
            Extent::Data(reference) => u64::from(reference.len),
            Extent::Hole(len) => *len,
        }
    }

    /// How many of its bytes are stored.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        match self {
            Extent::Data(reference) => u64::from(reference.len),
            Extent::Hole(_) => 0,
        }
    }
}

impl Encode for Extent {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Extent::Data(reference) => {
                out.push(0);
                reference.encode(out);
            }
            Extent::Hole(len) => {
                out.push(1);
                len.encode(out);
            }
        }
    }
}

impl Decode for Extent {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => Ok(Extent::Data(Decode::decode(input)?)),
            1 => match u64::decode(input)? {
                0 => Err(DecodeError::Invalid { what: "hole" }),
                len => Ok(Extent::Hole(len)),
            },
            tag => Err(DecodeError::Tag { what: "extent", tag: u64::from(tag) }),
        }
    }
}

/// A file's extents in order, found by offset in logarithmic time. No extent is empty, no two holes
/// are neighbours, and all together cover at most [`SIZE_MAX`] bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Recipe {
    extents: Vec<Extent>,
    /// Where each extent ends, bytes from the file's start: ascending.
    ends: Vec<u64>,
    allocated: u64,
}

impl Recipe {
    /// The recipe of an empty file.
    #[must_use]
    pub fn new() -> Recipe {
        Recipe::default()
    }

    /// The recipe of these extents; neighbouring holes become one. `None` if they cover more than
    /// [`SIZE_MAX`] bytes, or one is empty.
    #[must_use]
    pub fn from_extents(extents: impl IntoIterator<Item = Extent>) -> Option<Recipe> {
        let mut merged = Merged::default();
        extents.into_iter().try_for_each(|extent| merged.push(extent))?;
        let mut recipe = Recipe { extents: merged.0, ..Recipe::default() };
        recipe.measure_from(0)?;
        recipe.allocated = allocated(&recipe.extents);
        Some(recipe)
    }

    /// The file's size, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// How many of its bytes are not in holes.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// All extents in order.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Where the extent at `index` starts, bytes; with `index` equal to the number of extents, the
    /// file's size.
    ///
    /// # Panics
    /// If there is no such extent.
    #[must_use]
    pub fn start(&self, index: usize) -> u64 {
        assert!(index <= self.extents.len(), "extent {index} of {}", self.extents.len());
        if index == 0 { 0 } else { self.ends[index - 1] }
    }

    /// The extent that holds the byte at `offset`: its index, itself, and where it starts. `None` at
    /// and beyond the end of the file.
    #[must_use]
    pub fn locate(&self, offset: u64) -> Option<(usize, Extent, u64)> {
        let index = self.index_at(offset);
        Some((index, *self.extents.get(index)?, self.start(index)))
    }

    /// The indices of the extents that hold bytes of this range of offsets. Where the range is
    /// empty, so is the answer, at the extent that holds the offset (or past the last).
    #[must_use]
    pub fn covering(&self, bytes: Range<u64>) -> Range<usize> {
        let first = self.index_at(bytes.start);
        if bytes.is_empty() {
            return first..first;
        }
        first..(self.index_at(bytes.end - 1) + 1).min(self.extents.len())
    }

    /// The extents that hold bytes of this range of offsets, each with where it starts.
    pub fn iter_range(&self, bytes: Range<u64>) -> impl Iterator<Item = (u64, Extent)> + '_ {
        self.covering(bytes).map(|index| (self.start(index), self.extents[index]))
    }

    /// Puts `new` extents in the place of those with indices in `range`; returns the indices they
    /// have now. Neighbouring holes become one, and that range covers all of what they grew into.
    ///
    /// # Panics
    /// If the range is not one of this recipe, an extent is empty, or the file would grow beyond
    /// [`SIZE_MAX`]; the caller has refused such a write.
    pub fn splice(&mut self, range: Range<usize>, new: impl IntoIterator<Item = Extent>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.extents.len(), "{range:?} of {}", self.extents.len());
        let mut merged = Merged::default();
        // The neighbours too, if they are holes that might become one with what is new.
        let from = range.start - usize::from(range.start > 0 && self.is_hole(range.start - 1));
        let to = range.end + usize::from(self.is_hole(range.end));
        let (before, after) = (&self.extents[from..range.start], &self.extents[range.end..to]);
        let mut all = before.iter().copied().chain(new).chain(after.iter().copied());
        let fits = all.try_for_each(|extent| merged.push(extent));
        assert!(fits.is_some(), "an empty extent, or holes beyond the largest file");
        let now = from..from + merged.0.len();
        self.allocated -= allocated(&self.extents[from..to]);
        self.extents.splice(from..to, merged.0);
        assert!(self.measure_from(from).is_some(), "beyond the largest file");
        self.allocated += allocated(&self.extents[now.clone()]);
        now
    }

    /// The first offset at or after `offset` that is not in a hole, as `lseek(2)`'s `SEEK_DATA`;
    /// `None` if there is none before the end of the file.
    #[must_use]
    pub fn seek_data(&self, offset: u64) -> Option<u64> {
        self.seek(offset, |extent| matches!(extent, Extent::Data(_)))
    }

    /// The first offset at or after `offset` that is in a hole, as `lseek(2)`'s `SEEK_HOLE`: the end
    /// of the file counts as one. `None` if `offset` is not before the end of the file.
    #[must_use]
    pub fn seek_hole(&self, offset: u64) -> Option<u64> {
        let found = self.seek(offset, |extent| matches!(extent, Extent::Hole(_)));
        found.or_else(|| (offset < self.size()).then(|| self.size()))
    }

    fn seek(&self, offset: u64, wanted: impl Fn(&Extent) -> bool) -> Option<u64> {
        let first = self.index_at(offset);
        let index = first + self.extents[first..].iter().position(wanted)?;
        Some(self.start(index).max(offset))
    }

    /// The index of the extent that holds the byte at `offset`; past the last if none does.
    fn index_at(&self, offset: u64) -> usize {
        self.ends.partition_point(|end| *end <= offset)
    }

    fn is_hole(&self, index: usize) -> bool {
        matches!(self.extents.get(index), Some(Extent::Hole(_)))
    }

    /// Brings `ends` up to date from the extent at `index` on. `None` if the file is too long.
    fn measure_from(&mut self, index: usize) -> Option<()> {
        self.ends.truncate(index);
        let mut end = self.size();
        self.ends.reserve(self.extents.len() - index);
        for extent in &self.extents[index..] {
            end = end.checked_add(extent.len()).filter(|end| *end <= SIZE_MAX)?;
            self.ends.push(end);
        }
        Some(())
    }
}

fn allocated(extents: &[Extent]) -> u64 {
    extents.iter().map(Extent::allocated).sum()
}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, allocated) = (self.size(), self.allocated);
        write!(f, "Recipe({size} bytes, {allocated} allocated, {} extents)", self.extents.len())
    }
}

/// Extents being put together, no two holes in a row.
#[derive(Default)]
struct Merged(Vec<Extent>);

impl Merged {
    /// `None` if the extent is empty or the hole it adds to grows too long.
    fn push(&mut self, extent: Extent) -> Option<()> {
        if extent.len() == 0 {
            return None;
        }
        if let (Some(Extent::Hole(last)), Extent::Hole(len)) = (self.0.last_mut(), &extent) {
            *last = last.checked_add(*len)?;
        } else {
            self.0.push(extent);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use base::BlockId;
    use proptest::prelude::*;

    use super::*;

    fn data(name: u8, len: u32) -> Extent {
        Extent::Data(ChunkRef { block: BlockId::blake3([name; 32]), key: [0; 32], len })
    }

    fn any_extent() -> impl Strategy<Value = Extent> {
        prop_oneof![(any::<u8>(), 1u32..9).prop_map(|(name, len)| data(name, len)), (1u64..9).prop_map(Extent::Hole),]
    }

    fn any_extents(most: usize) -> impl Strategy<Value = Vec<Extent>> {
        proptest::collection::vec(any_extent(), 0..most)
    }

    /// The file byte by byte: of which chunk, and which byte of that; `None` in holes.
    fn bytes(extents: &[Extent]) -> Vec<Option<(u8, u64)>> {
        let byte_of = |extent: Extent, at: u64| match extent {
            Extent::Data(reference) => Some((reference.block.hash[0], at)),
            Extent::Hole(_) => None,
        };
        extents.iter().flat_map(|extent| (0..extent.len()).map(move |at| byte_of(*extent, at))).collect()
    }

    fn check(recipe: &Recipe, model: &[Option<(u8, u64)>]) {
        assert_eq!(bytes(recipe.extents()), model);
        assert_eq!(recipe.size(), model.len() as u64);
        assert_eq!(recipe.allocated(), model.iter().flatten().count() as u64);
        let two_holes = |pair: &[Extent]| matches!(pair, [Extent::Hole(_), Extent::Hole(_)]);
        assert!(!recipe.extents().windows(2).any(two_holes), "{:?}", recipe.extents());
        for offset in 0..=model.len() as u64 + 1 {
            let found = recipe.locate(offset).map(|(index, extent, start)| {
                assert_eq!((recipe.extents()[index], recipe.start(index)), (extent, start));
                assert!(start <= offset && offset - start < extent.len());
                bytes(&[extent])[(offset - start) as usize]
            });
            assert_eq!(found, model.get(offset as usize).copied());
            let rest = model.get(offset as usize..).unwrap_or(&[]);
            let first =
                |wanted: bool| rest.iter().position(|byte| byte.is_some() == wanted).map(|at| offset + at as u64);
            assert_eq!(recipe.seek_data(offset), first(true));
            let end = (!rest.is_empty()).then_some(model.len() as u64);
            assert_eq!(recipe.seek_hole(offset), first(false).or(end));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn splices_do_what_they_do_to_bytes(
            start in any_extents(12),
            splices in proptest::collection::vec((any::<(u8, u8)>(), any_extents(5)), 0..6),
        ) {
            let mut recipe = Recipe::from_extents(start.clone()).unwrap();
            let mut model = bytes(&start);
            check(&recipe, &model);
            for ((one, other), new) in splices {
                let len = recipe.extents().len() + 1;
                let (one, other) = (usize::from(one) % len, usize::from(other) % len);
                let range = one.min(other)..one.max(other);
                let (from, to) = (recipe.start(range.start), recipe.start(range.end));
                model.splice(from as usize..to as usize, bytes(&new));
                let now = recipe.splice(range, new.clone());
                check(&recipe, &model);
                let end = from + bytes(&new).len() as u64;
                prop_assert!(recipe.start(now.start) <= from && recipe.start(now.end) >= end, "covers what is new");
                prop_assert_eq!(&recipe, &Recipe::from_extents(recipe.extents().to_vec()).unwrap());
            }
        }

        #[test]
        fn a_range_is_covered_and_no_more(extents in any_extents(12), one in 0u64..100, other in 0u64..100) {
            let recipe = Recipe::from_extents(extents).unwrap();
            let wanted = one.min(other)..one.max(other);
            let covered = recipe.covering(wanted.clone());
            for (index, extent) in recipe.extents().iter().enumerate() {
                let start = recipe.start(index);
                let overlaps = start < wanted.end && wanted.start < start + extent.len() && !wanted.is_empty();
                prop_assert_eq!(covered.contains(&index), overlaps);
            }
            let listed: Vec<(u64, Extent)> = recipe.iter_range(wanted).collect();
            prop_assert_eq!(listed.len(), covered.len());
            for (index, (start, extent)) in covered.zip(listed) {
                prop_assert_eq!((start, extent), (recipe.start(index), recipe.extents()[index]));
            }
        }

        #[test]
        fn extents_round_trip(extent in any_extent(), other: Vec<u8>) {
            prop_assert_eq!(Extent::from_bytes(&extent.to_bytes()), Ok(extent));
            if let Ok(decoded) = Extent::from_bytes(&other) {
                prop_assert_eq!(decoded.to_bytes(), other);
            }
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(Recipe::from_extents([Extent::Hole(SIZE_MAX)]).map(|recipe| recipe.size()), Some(SIZE_MAX));
        assert_eq!(Recipe::from_extents([Extent::Hole(SIZE_MAX), data(1, 1)]), None);
        assert_eq!(Recipe::from_extents([Extent::Hole(u64::MAX), Extent::Hole(1)]), None);
        assert_eq!(Recipe::from_extents([Extent::Hole(0)]), None);
        assert_eq!(Extent::from_bytes(&[1, 0, 0, 0, 0, 0, 0, 0, 0]), Err(DecodeError::Invalid { what: "hole" }));
        assert_eq!(Extent::from_bytes(&[2]), Err(DecodeError::Tag { what: "extent", tag: 2 }));
    }
}
