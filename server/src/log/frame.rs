//! Frames: what the files of a log are made of, after the file header.
//!
//! ```text
//!  0  length   u32     of the body, bytes
//!  4  crc32c   u32     of the file's salt, length, counter, kind and body
//!  8  counter  u64     see below
//! 16  kind     u8      1 record, 2 mark, 3 end of a snapshot
//! 17  zero     7 B
//! 24  body, and zeros up to a multiple of 8
//! ```
//!
//! The counter of a record is how many records came before it in the whole log (in the snapshot). A
//! mark's counter says that all records below it were durable when it was written. The end of a
//! snapshot carries the number of its records.

use std::ops::Range;

use super::RECORD_BYTES_MAX;
use crate::folder::header::{u32_at, u64_at};

/// Length of a frame without its body, bytes.
pub(super) const FRAME_HEADER_LEN: usize = 24;
/// Frames start at multiples of this.
const ALIGNMENT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Record = 1,
    Mark = 2,
    End = 3,
}

/// Appends a record's frame.
pub(super) fn push_record(out: &mut Vec<u8>, salt: u64, counter: u64, body: &[u8]) {
    push(out, salt, Kind::Record, counter, body);
}

/// Appends a mark: records below `counter` are durable.
pub(super) fn push_mark(out: &mut Vec<u8>, salt: u64, counter: u64) {
    push(out, salt, Kind::Mark, counter, &[]);
}

/// Appends the end of a snapshot of `count` records.
pub(super) fn push_end(out: &mut Vec<u8>, salt: u64, count: u64) {
    push(out, salt, Kind::End, count, &[]);
}

fn push(out: &mut Vec<u8>, salt: u64, kind: Kind, counter: u64, body: &[u8]) {
    let mut header = [0; FRAME_HEADER_LEN];
    header[0..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[8..16].copy_from_slice(&counter.to_le_bytes());
    header[16] = kind as u8;
    let crc = checksum(salt, &header, body);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

fn checksum(salt: u64, header: &[u8; FRAME_HEADER_LEN], body: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &header[0..4]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &header[8..]), body)
}

struct Frame {
    kind: Kind,
    counter: u64,
    body: Range<usize>,
    end: usize,
}

/// The frame at `offset`, if there is a whole and sound one.
fn read(bytes: &[u8], salt: u64, offset: usize) -> Option<Frame> {
    let header = bytes.get(offset..)?.first_chunk::<FRAME_HEADER_LEN>()?;
    let length = u32_at(header, 0) as usize;
    let kind = match header[16] {
        1 if length <= RECORD_BYTES_MAX => Kind::Record,
        2 if length == 0 => Kind::Mark,
        3 if length == 0 => Kind::End,
        _ => return None,
    };
    let start = offset + FRAME_HEADER_LEN;
    let body = start..start + length;
    let end = body.end.next_multiple_of(ALIGNMENT);
    let sound = end <= bytes.len() && checksum(salt, header, &bytes[body.clone()]) == u32_at(header, 4);
    sound.then_some(Frame { kind, counter: u64_at(header, 8), body, end })
}

/// How a file's frames end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With the file or where its room begins, and a mark that covers the last record.
    Marked,
    /// With the file, or where its room begins.
    Whole,
    /// With the end of a snapshot, which covers all of its records.
    Finished,
    /// At a frame that is not sound; nothing says that what it held was ever durable.
    Torn,
    /// At a frame that is not sound, though a later mark says that it was durable.
    Rot,
}

/// The sound frames at the front of a file.
#[derive(Debug)]
pub(super) struct Scan {
    /// Where the records' bodies are.
    pub(super) records: Vec<Range<usize>>,
    /// Where the sound frames end.
    pub(super) end: usize,
    /// Counter of the next record.
    pub(super) next: u64,
    /// Why they end there.
    pub(super) ending: Ending,
}

/// Reads the frames in `bytes` from `offset`; the first record's counter is `first`.
pub(super) fn scan(bytes: &[u8], salt: u64, offset: usize, first: u64) -> Scan {
    let mut scan = Scan { records: Vec::new(), end: offset, next: first, ending: Ending::Whole };
    while scan.end < bytes.len() {
        match read(bytes, salt, scan.end) {
            Some(frame) if frame.counter == scan.next && scan.ending != Ending::Finished => {
                scan.end = frame.end;
                match frame.kind {
                    Kind::Record => {
                        scan.records.push(frame.body);
                        scan.next += 1;
                        scan.ending = Ending::Whole;
                    }
                    Kind::Mark => scan.ending = Ending::Marked,
                    Kind::End => scan.ending = Ending::Finished,
                }
            }
            // Nothing was ever written there.
            _ if used(&bytes[scan.end..]) == 0 && scan.ending != Ending::Finished => break,
            _ => {
                let promised = later_mark(bytes, salt, scan.end + ALIGNMENT, scan.next);
                scan.ending = if promised { Ending::Rot } else { Ending::Torn };
                break;
            }
        }
    }
    scan
}

/// How much of these bytes is something else than zeros at the end.
pub(super) fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Whether a mark at or after `offset` covers the record `counter`.
fn later_mark(bytes: &[u8], salt: u64, offset: usize, counter: u64) -> bool {
    (offset..bytes.len()).step_by(ALIGNMENT).any(|offset| {
        // The kind first, so that bodies are not checksummed at every step.
        bytes.get(offset + 16) == Some(&(Kind::Mark as u8))
            && read(bytes, salt, offset).is_some_and(|frame| frame.counter > counter)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 77;

    fn file(groups: &[&[&[u8]]], marks: bool) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut starts, mut counter) = (Vec::new(), Vec::new(), 0);
        for group in groups {
            for body in *group {
                starts.push(out.len());
                push_record(&mut out, SALT, counter, body);
                counter += 1;
            }
            if marks {
                push_mark(&mut out, SALT, counter);
            }
        }
        (out, starts)
    }

    #[test]
    fn a_bad_record_before_a_mark_is_rot_and_after_the_last_mark_is_torn() {
        let (mut bytes, starts) = file(&[&[b"one", b"two"], &[b"three"]], true);
        assert_eq!(scan(&bytes, SALT, 0, 0).ending, Ending::Marked);
        push_record(&mut bytes, SALT, 3, b"four, never synced");
        push_record(&mut bytes, SALT, 4, b"five, never synced");
        for (index, start) in starts.iter().enumerate() {
            let mut bad = bytes.clone();
            bad[start + FRAME_HEADER_LEN] ^= 1;
            let scan = scan(&bad, SALT, 0, 0);
            assert_eq!((scan.ending, scan.records.len(), scan.end), (Ending::Rot, index, *start));
        }
        // The disk may write the pages of one unsynced group in any order.
        let torn = bytes.len() - 2 * 48;
        bytes[torn + FRAME_HEADER_LEN] ^= 1;
        let scan = scan(&bytes, SALT, 0, 0);
        assert_eq!((scan.ending, scan.records.len(), scan.end), (Ending::Torn, 3, torn));
    }

    #[test]
    fn frames_of_another_file_mean_nothing_here() {
        let (bytes, _) = file(&[&[b"one"]], true);
        assert_eq!(scan(&bytes, SALT + 1, 0, 0).ending, Ending::Torn);
    }

    #[test]
    fn every_cut_keeps_the_whole_records_before_it() {
        let (bytes, starts) = file(&[&[b"one", b""], &[b"three"]], true);
        for cut in 0..bytes.len() {
            let ends = starts.iter().map(|start| {
                let length = u32_at(&bytes, *start) as usize;
                start + (FRAME_HEADER_LEN + length).next_multiple_of(ALIGNMENT)
            });
            let scan = scan(&bytes[..cut], SALT, 0, 0);
            assert_eq!(scan.records.len(), ends.filter(|end| *end <= cut).count(), "cut at {cut}");
            assert_ne!(scan.ending, Ending::Rot, "cut at {cut}");
        }
    }
}
