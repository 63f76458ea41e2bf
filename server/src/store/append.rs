//! Appending to a segment: through the kernel's memory, or past it.
//!
//! A group of many bytes is written with `O_DIRECT`: nobody reads soon what comes in bulk, and copying it into
//! the page cache, to be written from there, takes longer than all else that a node does with it (ADR 24). Such
//! a group begins and ends where the disk's blocks do; *padding* records fill what is between (see
//! [`super::segment`]). Where a filesystem can't, all goes through the kernel's memory.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use rustix::fs::OFlags;

use super::segment::{self, Location, RECORD_ALIGNMENT, Segment};
use super::writer::Group;

/// What places, lengths and memory are to be multiples of in writing past the page cache, bytes.
pub(super) const DIRECT_ALIGNMENT: usize = 4096;
/// How much is written past it at a time at most, bytes.
const DIRECT_BYTES: usize = 4 << 20;
/// Most pieces that the kernel takes at a time.
const PIECES_MAX: usize = 1024;

/// The segment that is appended to.
pub(super) struct Active {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) number: u32,
    pub(super) salt: u64,
    pub(super) end: u64,
    /// The same file, past the page cache.
    direct: Option<File>,
}

/// Where a group goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Where its first record starts.
    pub(super) start: u64,
    /// Where its last record ends, padding included.
    pub(super) end: u64,
    direct: bool,
}

impl Active {
    /// Opens a segment, to append where it ends. None if its header is damaged.
    pub(super) fn open(segment: &Segment) -> io::Result<Option<Active>> {
        let Some(salt) = segment.salt else { return Ok(None) };
        let file = segment.open_to_append()?;
        let end = file.metadata()?.len();
        let direct = OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&segment.path).ok();
        Ok(Some(Active { file, path: segment.path.clone(), number: segment.number, salt, end, direct }))
    }

    /// Where a group of so many bytes of records would go: past the page cache from `direct_min` on, if there is
    /// `room` beside it for what that may waste.
    pub(super) fn plan(&self, bytes: u64, direct_min: u64, room: u64) -> Plan {
        if self.direct.is_none() || bytes < direct_min || room < 2 * DIRECT_ALIGNMENT as u64 {
            return Plan { start: self.end, end: self.end + bytes, direct: false };
        }
        let start = self.end.next_multiple_of(DIRECT_ALIGNMENT as u64);
        Plan { start, end: (start + bytes).next_multiple_of(DIRECT_ALIGNMENT as u64), direct: true }
    }

    /// Writes the group's records where they are planned to be.
    pub(super) fn append(&mut self, group: &Group, plan: Plan, scratch: &mut Scratch) -> io::Result<()> {
        let blocks = group.placed.iter().zip(&group.bodies);
        let headers: Vec<_> = blocks.map(|((id, at), body)| segment::record_header(id, body, at, self.salt)).collect();
        let mut pieces = Vec::with_capacity(3 * headers.len() + 1);
        for (header, body) in headers.iter().zip(&group.bodies) {
            pieces.extend([&header[..], body, &ZEROS[..body.len().next_multiple_of(RECORD_ALIGNMENT) - body.len()]]);
        }
        let ends = plan.start + group.bytes;
        let padding = self.padding(ends, plan.end);
        pieces.extend(padding.iter().flat_map(|(header, zeros)| [&header[..], zeros]));
        if let Some((header, _)) = self.padding(self.end, plan.start) {
            self.file.write_all_at(&header, self.end)?;
        }
        pieces.retain(|piece| !piece.is_empty());
        if plan.direct
            && let Some(direct) = &self.direct
        {
            match scratch.write(direct, &pieces, plan.start) {
                // The filesystem opens files so and does not write them so.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                done => return done,
            }
        }
        write_all(&self.file, &pieces, plan.start)
    }

    /// What fills the segment between two places; nothing if they are the same.
    fn padding(&self, from: u64, to: u64) -> Option<([u8; RECORD_ALIGNMENT], &'static [u8])> {
        let zeros = to.checked_sub(from + RECORD_ALIGNMENT as u64)? as usize;
        let location = Location { segment: self.number, offset: from, length: zeros as u32 };
        Some((segment::padding_header(&location, self.salt), &ZEROS[..zeros]))
    }
}

const ZEROS: [u8; DIRECT_ALIGNMENT] = [0; DIRECT_ALIGNMENT];

fn write_all(file: &File, pieces: &[&[u8]], mut at: u64) -> io::Result<()> {
    let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match rustix::io::pwritev(file, &left[..left.len().min(PIECES_MAX)], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Memory from which is written past the page cache.
#[derive(Default)]
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    /// Writes pieces whose place and whole length are aligned.
    fn write(&mut self, file: &File, pieces: &[&[u8]], mut at: u64) -> io::Result<()> {
        self.0.resize(DIRECT_BYTES + DIRECT_ALIGNMENT, 0);
        let skip = (self.0.as_ptr() as usize).wrapping_neg() % DIRECT_ALIGNMENT;
        let buffer = &mut self.0[skip..skip + DIRECT_BYTES];
        let mut filled = 0;
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let (now, later) = piece.split_at(piece.len().min(DIRECT_BYTES - filled));
                buffer[filled..filled + now.len()].copy_from_slice(now);
                (piece, filled) = (later, filled + now.len());
                if filled == DIRECT_BYTES {
                    file.write_all_at(buffer, at)?;
                    (at, filled) = (at + DIRECT_BYTES as u64, 0);
                }
            }
        }
        file.write_all_at(&buffer[..filled], at)
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, NodeId};

    use super::*;
    use crate::folder::Identity;
    use crate::store::segments::Segments;
    use crate::store::writer::tests::group;

    #[test]
    fn what_can_not_be_written_past_the_page_cache_is_written_through_it() {
        let temp = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(1) };
        let segments = Segments::open(&temp.path().join("segments"), identity).unwrap();
        let segment = segments.create().unwrap();
        let mut active = Active::open(&segment).unwrap().unwrap();
        if active.direct.is_none() {
            eprintln!("skipped: the filesystem of {} opens no file past the page cache", temp.path().display());
            return;
        }
        // As on a disk whose blocks are longer than those that are planned for.
        let mut group = group(1, 20);
        let plan = Plan { start: active.end, end: active.end + group.bytes, direct: true };
        for (_, location) in &mut group.placed {
            location.segment = active.number;
            location.offset += plan.start;
        }
        active.append(&group, plan, &mut Scratch::default()).unwrap();
        assert!(active.direct.is_none(), "it is not tried again");
        let scan = segment.scan(active.end, u64::MAX, true).unwrap();
        assert_eq!((scan.records, scan.end, scan.torn_bytes), (group.placed, plan.end, 0));
    }
}
