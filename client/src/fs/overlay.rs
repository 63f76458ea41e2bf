//! What was written to a file and is not sealed yet: segments of data and holes over its content.
//!
//! Every segment carries the sequence number of the write that made it. Whoever seals takes a
//! clone (cheap: bytes are shared), and afterwards drops only what no newer write has replaced,
//! so that writers never wait for a sealer. Truncation is a hole to the end.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// What a segment is charged beside its bytes, so that single-byte writes are bounded too.
pub(super) const SEGMENT_COST: u64 = 128;
/// Writes up to this long join the segment they continue, bytes.
const JOIN_MAX: usize = 64 << 10;
/// Segments grown by joining stay below this, bytes.
const JOINED_MAX: usize = 256 << 10;

/// The unsealed segments of a file, none overlapping. A clone shares the bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    /// By first offset.
    segments: BTreeMap<u64, Segment>,
    charge: u64,
}

#[derive(Clone, Debug)]
struct Segment {
    end: u64,
    seq: u64,
    body: Body,
    /// How long the allocation behind the bytes was at first.
    held: usize,
}

/// What a range holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// These bytes.
    Data(Bytes),
    /// Nothing: zeros that take no room.
    Hole,
}

/// What covers an offset: up to where, and what is there from that offset on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dirty {
    pub(super) end: u64,
    pub(super) body: Body,
}

/// A range that is covered without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) starts_with_data: bool,
    pub(super) ends_in_data: bool,
}

impl Segment {
    fn charge(&self, start: u64) -> u64 {
        match self.body {
            Body::Data(_) => self.end - start + SEGMENT_COST,
            Body::Hole => SEGMENT_COST,
        }
    }

    /// The part of this segment, which begins at `start`, that lies in `part`.
    fn part(&self, start: u64, part: &Range<u64>) -> Segment {
        let body = match &self.body {
            Body::Hole => Body::Hole,
            Body::Data(bytes) => {
                let bytes = bytes.slice((part.start - start) as usize..(part.end - start) as usize);
                // A small rest of a big buffer must not keep the whole buffer alive.
                let small = bytes.len() < self.held / 4;
                Body::Data(if small { Bytes::copy_from_slice(&bytes) } else { bytes })
            }
        };
        let held = match &body {
            Body::Data(bytes) if bytes.len() < self.held / 4 => bytes.len(),
            _ => self.held,
        };
        Segment { end: part.end, seq: self.seq, body, held }
    }
}

impl Overlay {
    /// What the segments cost, bytes.
    pub(super) fn charge(&self) -> u64 {
        self.charge
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The end of the last segment.
    pub(super) fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(_, segment)| segment.end)
    }

    /// Lays `bytes` over everything at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: Bytes, seq: u64) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        self.carve(offset..end, u64::MAX);
        if !self.join(offset, &bytes, seq) {
            // A copy is nobody else's, so that what follows can join it.
            let bytes = if bytes.len() <= JOIN_MAX { Bytes::copy_from_slice(&bytes) } else { bytes };
            let held = bytes.len();
            self.insert(offset, Segment { end, seq, body: Body::Data(bytes), held });
        }
    }

    /// Lays a hole over `range`.
    pub(super) fn punch(&mut self, range: Range<u64>, seq: u64) {
        if range.is_empty() {
            return;
        }
        self.carve(range.clone(), u64::MAX);
        self.insert(range.start, Segment { end: range.end, seq, body: Body::Hole, held: 0 });
    }

    /// Forgets what lies in `range` and was written up to `seq`.
    pub(super) fn drop_until(&mut self, range: Range<u64>, seq: u64) {
        self.carve(range, seq);
    }

    /// Forgets what lies outside of these ranges.
    pub(super) fn retain(&mut self, kept: &Ranges) {
        let mut at = 0;
        for range in kept.iter() {
            self.carve(at..range.start, u64::MAX);
            at = range.end;
        }
        self.carve(at..u64::MAX, u64::MAX);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Overlay::default();
    }

    /// What covers `at`: the segment's end and body from `at` on.
    pub(super) fn at(&self, at: u64) -> Option<Dirty> {
        let (&start, segment) = self.segments.range(..=at).next_back()?;
        (segment.end > at).then(|| Dirty {
            end: segment.end,
            body: match &segment.body {
                Body::Data(bytes) => Body::Data(bytes.slice((at - start) as usize..)),
                Body::Hole => Body::Hole,
            },
        })
    }

    /// Where the first segment that begins after `at` begins.
    pub(super) fn next_start(&self, at: u64) -> Option<u64> {
        let after = (std::ops::Bound::Excluded(at), std::ops::Bound::Unbounded);
        self.segments.range(after).next().map(|(&start, _)| start)
    }

    /// The unbroken runs of segments, in order.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (&start, segment) in &self.segments {
            let is_data = matches!(segment.body, Body::Data(_));
            match runs.last_mut() {
                Some(run) if run.end == start => (run.end, run.ends_in_data) = (segment.end, is_data),
                _ => runs.push(Run { start, end: segment.end, starts_with_data: is_data, ends_in_data: is_data }),
            }
        }
        runs
    }

    /// The unbroken runs of nothing but data of at least `min` bytes, in order.
    pub(super) fn long_runs(&self, min: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let data = self.segments.iter().filter(|(_, segment)| matches!(segment.body, Body::Data(_)));
        for (&start, segment) in data {
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = segment.end,
                _ => runs.push(Run { start, end: segment.end, starts_with_data: true, ends_in_data: true }),
            }
        }
        runs.retain(|run| run.end - run.start >= min);
        runs
    }

    /// Appends short `bytes` in place to the segment that ends at `offset`, if nobody shares it.
    fn join(&mut self, offset: u64, bytes: &Bytes, seq: u64) -> bool {
        let Some((_, segment)) = self.segments.range_mut(..offset).next_back() else { return false };
        let Body::Data(tail) = &mut segment.body else { return false };
        if segment.end != offset || bytes.len() > JOIN_MAX || tail.len() + bytes.len() > JOINED_MAX {
            return false;
        }
        match std::mem::take(tail).try_into_mut() {
            Ok(mut grown) => {
                grown.extend_from_slice(bytes);
                segment.held = grown.len();
                segment.body = Body::Data(grown.freeze());
                segment.end += bytes.len() as u64;
                segment.seq = seq;
                self.charge += bytes.len() as u64;
                true
            }
            Err(shared) => {
                segment.body = Body::Data(shared);
                false
            }
        }
    }

    fn insert(&mut self, start: u64, segment: Segment) {
        self.charge += segment.charge(start);
        let replaced = self.segments.insert(start, segment);
        assert!(replaced.is_none(), "the place was carved out before");
    }

    /// Cuts `range` out of every segment written up to `seq`.
    fn carve(&mut self, range: Range<u64>, seq: u64) {
        if range.is_empty() {
            return;
        }
        let first = self.segments.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        let hit: Vec<u64> = self
            .segments
            .range(first..range.end)
            .filter(|(_, segment)| segment.end > range.start && segment.seq <= seq)
            .map(|(&start, _)| start)
            .collect();
        for start in hit {
            let Some(segment) = self.segments.remove(&start) else { continue };
            self.charge -= segment.charge(start);
            if start < range.start {
                let left = segment.part(start, &(start..range.start));
                self.insert(start, left);
            }
            if segment.end > range.end {
                let right = segment.part(start, &(range.end..segment.end));
                self.insert(range.end, right);
            }
        }
    }
}

/// A set of offsets as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, in order, none touching another.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// Adds a range.
    pub(super) fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((&other, &other_end)) = self.0.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.0.remove(&other);
            start = start.min(other);
            end = end.max(other_end);
        }
        self.0.insert(start, end);
    }

    /// Adds all of another set.
    pub(super) fn add_all(&mut self, other: &Ranges) {
        other.iter().for_each(|range| self.add(range));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, u8, u64),
        Punch(u64, u64),
        Snapshot,
        DropUntil(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..200u64, any::<u8>(), 0..40u64).prop_map(|(at, byte, len)| Step::Write(at, byte, len)),
            2 => (0..200u64, 0..60u64).prop_map(|(at, len)| Step::Punch(at, len)),
            1 => Just(Step::Snapshot),
            1 => (0..200u64, 0..60u64, 0..40u64).prop_map(|(at, len, seq)| Step::DropUntil(at, len, seq)),
        ]
    }

    /// Per offset: the sequence number, and the byte or a hole.
    type Model = BTreeMap<u64, (u64, Option<u8>)>;

    fn assert_same(overlay: &Overlay, model: &Model) {
        let charge = overlay.segments.iter().map(|(&start, segment)| segment.charge(start)).sum::<u64>();
        assert_eq!(overlay.charge(), charge);
        let covered: Vec<u64> = overlay.runs().iter().flat_map(|run| run.start..run.end).collect();
        assert_eq!(covered, model.keys().copied().collect::<Vec<_>>());
        for at in 0..300 {
            let found = overlay.at(at).map(|dirty| match dirty.body {
                Body::Data(bytes) => Some(bytes[0]),
                Body::Hole => None,
            });
            assert_eq!(found, model.get(&at).map(|(_, byte)| *byte), "offset {at}");
            let next = model.range(at + 1..).find(|(next, _)| overlay.at(**next).is_some()).map(|(next, _)| *next);
            if let (None, Some(start)) = (model.get(&at), overlay.next_start(at)) {
                assert_eq!(Some(start), next);
            }
        }
    }

    proptest! {
        #[test]
        fn the_last_write_wins_and_drops_spare_newer_ones(steps in prop::collection::vec(step(), 0..40)) {
            let (mut overlay, mut model, mut kept) = (Overlay::default(), Model::new(), Vec::new());
            for (seq, step) in steps.into_iter().enumerate() {
                let seq = seq as u64;
                match step {
                    Step::Write(at, byte, len) => {
                        overlay.write(at, vec![byte; len as usize].into(), seq);
                        model.extend((at..at + len).map(|at| (at, (seq, Some(byte)))));
                    }
                    Step::Punch(at, len) => {
                        overlay.punch(at..at + len, seq);
                        model.extend((at..at + len).map(|at| (at, (seq, None))));
                    }
                    Step::Snapshot => kept.push((overlay.clone(), model.clone())),
                    Step::DropUntil(at, len, until) => {
                        // Joined segments count as new as their newest byte, so drop by segment.
                        overlay.drop_until(at..at + len, until);
                        model.retain(|offset, (seq, _)| !(at..at + len).contains(offset) || *seq > until
                            || overlay.at(*offset).is_some());
                    }
                }
                assert_same(&overlay, &model);
            }
            for (snapshot, model) in kept {
                assert_same(&snapshot, &model);
            }
        }

        #[test]
        fn ranges_are_a_set(adds in prop::collection::vec((0..100u64, 0..20u64), 0..30)) {
            let (mut ranges, mut model) = (Ranges::default(), std::collections::BTreeSet::new());
            for (start, len) in adds {
                ranges.add(start..start + len);
                model.extend(start..start + len);
            }
            prop_assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            let all: Vec<_> = ranges.iter().collect();
            prop_assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn drops_spare_what_is_newer() {
        let mut overlay = Overlay::default();
        overlay.write(0, vec![1; 100].into(), 1);
        overlay.write(40, vec![2; 20].into(), 2);
        overlay.drop_until(0..100, 1);
        let (starts_with_data, ends_in_data) = (true, true);
        assert_eq!(overlay.runs(), [Run { start: 40, end: 60, starts_with_data, ends_in_data }]);
        assert_eq!(overlay.at(40).map(|dirty| dirty.body), Some(Body::Data(vec![2; 20].into())));
    }

    #[test]
    fn small_appends_join_and_long_runs_are_found() {
        let mut overlay = Overlay::default();
        for at in 0..1000 {
            overlay.write(at, Bytes::from_static(b"x"), at);
        }
        assert_eq!(overlay.segments.len(), 1);
        overlay.write(5000, vec![0; 10].into(), 2000);
        overlay.punch(1000..1100, 2001);
        let long: Vec<_> = overlay.long_runs(1000).iter().map(|run| run.start..run.end).collect();
        assert!(long.len() == 1 && long[0] == (0..1000));
        assert_eq!(overlay.runs()[0].end, 1100);
        assert!(overlay.long_runs(1001).is_empty());
    }

    #[test]
    fn only_what_is_in_the_ranges_is_retained() {
        let mut overlay = Overlay::default();
        overlay.write(0, vec![1; 100].into(), 1);
        overlay.punch(150..300, 2);
        let mut kept = Ranges::default();
        kept.add(40..60);
        kept.add(200..u64::MAX);
        overlay.retain(&kept);
        let covered: Vec<_> = overlay.runs().iter().map(|run| run.start..run.end).collect();
        assert_eq!(covered, [40..60, 200..300]);
        overlay.retain(&Ranges::default());
        assert!(overlay.is_empty() && overlay.charge() == 0);
    }

    #[test]
    fn a_small_rest_does_not_keep_a_big_buffer() {
        let mut overlay = Overlay::default();
        let big = Bytes::from(vec![7; 1 << 20]);
        overlay.write(0, big.clone(), 1);
        overlay.punch(10..1 << 20, 2);
        assert!(big.is_unique(), "the rest was copied out");
    }
}
