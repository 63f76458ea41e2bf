//! Segment files: where the blocks' bytes are.
//!
//! After the file header ([`crate::folder::header`]) a segment is a row of records, each padded with
//! zeros to a multiple of 64 bytes:
//!
//! ```text
//!  0  magic     4 B        "BLK1"
//!  4  kind      u8         1 block, 2 padding: zeros up to where the next record starts
//!  5  flags     u8         none yet
//!  6  zero      2 B
//!  8  length    u32        of the body, bytes
//! 12  body crc  u32        crc32c of the body
//! 16  id        33 B
//! 49  zero      11 B
//! 60  crc32c    u32        of the file's salt, the record's place, and the 60 bytes before
//! 64  body
//! ```
//!
//! The body has a checksum of its own, so that an index can be rebuilt from the headers alone. The
//! place (segment and offset) is in the header's checksum, so a record is only sound where it was
//! written.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use base::BlockId;
use rustix::io::ReadWriteFlags;

use super::BLOCK_BYTES_MAX;
use crate::folder::header::u32_at;

/// Length of a record's header and alignment of records, bytes.
pub(super) const RECORD_ALIGNMENT: usize = 64;

const RECORD_MAGIC: &[u8; 4] = b"BLK1";
const KIND_BLOCK: u8 = 1;
const KIND_PADDING: u8 = 2;
/// Read at a time when looking for the next sound record, bytes.
const SEARCH_BYTES: usize = 1 << 20;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Number of the segment.
    pub(super) segment: u32,
    /// Where its record starts, bytes from the start of the segment.
    pub(super) offset: u64,
    /// Length of its body, bytes.
    pub(super) length: u32,
}

impl Location {
    /// The record's length in the segment, bytes.
    pub(super) fn record_len(&self) -> u64 {
        record_len(self.length as usize)
    }

    /// Where the record ends.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.record_len()
    }
}

/// Length of the record of a body of `length` bytes.
pub(super) fn record_len(length: usize) -> u64 {
    (RECORD_ALIGNMENT + length.next_multiple_of(RECORD_ALIGNMENT)) as u64
}

/// The header of the record of `body`, to be written at `location`.
pub(super) fn record_header(id: &BlockId, body: &[u8], location: &Location, salt: u64) -> [u8; RECORD_ALIGNMENT] {
    let mut header = [0; RECORD_ALIGNMENT];
    header[0..4].copy_from_slice(RECORD_MAGIC);
    header[4] = KIND_BLOCK;
    header[8..12].copy_from_slice(&location.length.to_le_bytes());
    header[12..16].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    header[16..49].copy_from_slice(&id.to_array());
    let crc = header_crc(&header, location.segment, location.offset, salt);
    header[60..64].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The header of a record that only fills the segment, to be written at `location`.
pub(super) fn padding_header(location: &Location, salt: u64) -> [u8; RECORD_ALIGNMENT] {
    let mut header = [0; RECORD_ALIGNMENT];
    header[0..4].copy_from_slice(RECORD_MAGIC);
    header[4] = KIND_PADDING;
    header[8..12].copy_from_slice(&location.length.to_le_bytes());
    let crc = header_crc(&header, location.segment, location.offset, salt);
    header[60..64].copy_from_slice(&crc.to_le_bytes());
    header
}

fn header_crc(header: &[u8; RECORD_ALIGNMENT], segment: u32, offset: u64, salt: u64) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &segment.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &offset.to_le_bytes()), &header[..60])
}

/// A segment that is there.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    /// None if the file's header is damaged: its blocks can be read where the index says, but not
    /// be found without it.
    pub(super) salt: Option<u64>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The sound records, in order.
    pub(super) records: Vec<(BlockId, Location)>,
    /// Records whose header is sound and whose body is not, with sound records after.
    pub(super) damaged: Vec<(BlockId, Location)>,
    /// Bytes passed over between sound records.
    pub(super) damaged_bytes: u64,
    /// Where the last sound record ends.
    pub(super) end: u64,
    /// Bytes after it.
    pub(super) torn_bytes: u64,
}

impl Segment {
    pub(super) fn name(number: u32) -> String {
        format!("{number:08}.seg")
    }

    pub(super) fn open_to_read(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    pub(super) fn open_to_append(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(&self.path)
    }

    /// Finds the records between `from`, where one starts, and `to` or the end of the file. With
    /// `check_bodies` their bodies are read too.
    pub(super) fn scan(&self, from: u64, to: u64, check_bodies: bool) -> io::Result<Scan> {
        let file = self.open_to_read()?;
        let end = file.metadata()?.len().min(to);
        let mut scan = Scan { end: from.min(end), ..Scan::default() };
        let Some(salt) = self.salt else {
            scan.torn_bytes = end - scan.end;
            return Ok(scan);
        };
        let reader = Reader { file: &file, segment: self.number, salt, end };
        let (mut at, mut damaged) = (from, Vec::new());
        while at < end {
            match reader.record(at)? {
                Some(Record::Padding(location)) => {
                    // Says nothing of what is before it.
                    if scan.end == at {
                        scan.end = location.end();
                    }
                    at = location.end();
                }
                Some(Record::Block(id, location, body_crc)) => {
                    if !check_bodies || reader.body_is_sound(&location, body_crc)? {
                        scan.damaged_bytes += at - scan.end;
                        scan.damaged.append(&mut damaged);
                        scan.records.push((id, location));
                        scan.end = location.end();
                    } else {
                        damaged.push((id, location));
                    }
                    at = location.end();
                }
                None => match reader.next_record(at)? {
                    Some(next) => at = next,
                    None => break,
                },
            }
        }
        scan.torn_bytes = end.saturating_sub(scan.end);
        Ok(scan)
    }
}

/// What a sound header says.
enum Record {
    /// A block, and its body's checksum.
    Block(BlockId, Location, u32),
    Padding(Location),
}

/// Reads records of one segment.
struct Reader<'a> {
    file: &'a File,
    segment: u32,
    salt: u64,
    /// Nothing is read from here on.
    end: u64,
}

impl Reader<'_> {
    /// The record at `offset`, if its header is sound and all of it is there.
    fn record(&self, offset: u64) -> io::Result<Option<Record>> {
        if offset + RECORD_ALIGNMENT as u64 > self.end {
            return Ok(None);
        }
        let mut header = [0; RECORD_ALIGNMENT];
        self.file.read_exact_at(&mut header, offset)?;
        Ok(self.parse(&header, offset))
    }

    fn parse(&self, header: &[u8; RECORD_ALIGNMENT], offset: u64) -> Option<Record> {
        if header[0..4] != *RECORD_MAGIC || header_crc(header, self.segment, offset, self.salt) != u32_at(header, 60) {
            return None;
        }
        let location = Location { segment: self.segment, offset, length: u32_at(header, 8) };
        if location.length as usize > BLOCK_BYTES_MAX || location.end() > self.end {
            return None;
        }
        match header[4] {
            KIND_PADDING => Some(Record::Padding(location)),
            KIND_BLOCK if header[16] == BlockId::BLAKE3 => {
                let hash = header[17..49].try_into().expect("32 bytes");
                Some(Record::Block(BlockId::blake3(hash), location, u32_at(header, 12)))
            }
            _ => None,
        }
    }

    fn body_is_sound(&self, location: &Location, body_crc: u32) -> io::Result<bool> {
        let mut body = vec![0; location.length as usize];
        self.file.read_exact_at(&mut body, location.offset + RECORD_ALIGNMENT as u64)?;
        Ok(crc32c::crc32c(&body) == body_crc)
    }

    /// Where the next sound record after the bad one at `offset` starts.
    fn next_record(&self, offset: u64) -> io::Result<Option<u64>> {
        let mut buffer = vec![0; SEARCH_BYTES];
        let mut at = offset + RECORD_ALIGNMENT as u64;
        while at < self.end {
            let length = (self.end - at).min(SEARCH_BYTES as u64) as usize;
            self.file.read_exact_at(&mut buffer[..length], at)?;
            for (index, header) in buffer[..length].as_chunks().0.iter().enumerate() {
                let here = at + (index * RECORD_ALIGNMENT) as u64;
                if self.parse(header, here).is_some() {
                    return Ok(Some(here));
                }
            }
            at += length as u64;
        }
        Ok(None)
    }
}

/// Reads a block's body. Whether it is the right one is for its hash to say. `at_once` gives nothing but what the
/// kernel has in memory.
///
/// # Errors
/// As the file gives them: `WouldBlock` if it is not in memory.
pub(super) fn read_body(file: &File, location: &Location, at_once: bool) -> io::Result<Vec<u8>> {
    let mut body = vec![0; location.length as usize];
    let offset = location.offset + RECORD_ALIGNMENT as u64;
    if !at_once {
        file.read_exact_at(&mut body, offset)?;
    } else if rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut body)], offset, ReadWriteFlags::NOWAIT)? < body.len()
    {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(body)
}

/// The number in a segment's file name.
pub(super) fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_suffix(".seg")?.parse().ok()
}
