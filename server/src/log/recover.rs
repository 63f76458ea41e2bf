//! Opening a log: read the newest snapshot and the segments since, cut a torn tail, refuse the rest.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::frame::{self, Ending, Scan};
use super::snapshot::SNAPSHOT_MAGIC;
use super::{FORMAT, Log, LogError, Opened, SEGMENT_MAGIC, SEGMENT_PREFIX, SNAPSHOT_PREFIX, Segment};
use crate::folder::Identity;
use crate::folder::durable;
use crate::folder::header::{BadHeader, FileHeader, HEADER_LEN};

pub(super) fn open(folder: &Path, identity: Identity) -> Result<Opened, LogError> {
    super::repair::finish(folder)?;
    durable::create_folder(folder).map_err(LogError::io("create", folder))?;
    let lock = File::open(folder).map_err(LogError::io("open", folder))?;
    if !durable::lock(&lock).map_err(LogError::io("lock", folder))? {
        return Err(LogError::InUse { folder: folder.into() });
    }
    // All is read, and whatever is wrong is refused, before anything is changed.
    let mut read = Read::default();
    read.folder(folder, identity)?;
    durable::remove_temporaries(folder).map_err(LogError::io("clean", folder))?;
    remove_before(folder, read.start)?;
    let (segment, torn_bytes) = match read.last.take() {
        Some(last) => last.resume()?,
        None => (Segment::create(folder, identity, 1, 0)?, 0),
    };
    let log = Log {
        folder: folder.into(),
        identity,
        segment,
        pending: Vec::new(),
        bytes_since_snapshot: read.segment_bytes,
        poisoned: false,
        _lock: lock,
    };
    Ok(Opened { log, records: read.records, torn_bytes })
}

/// Deletes the snapshots and segments before `number`.
pub(super) fn remove_before(folder: &Path, number: u64) -> Result<(), LogError> {
    let mut removed = false;
    for prefix in [SEGMENT_PREFIX, SNAPSHOT_PREFIX] {
        let files = durable::numbered(folder, prefix, "").map_err(LogError::io("list", folder))?;
        for (_, path) in files.iter().filter(|(found, _)| *found < number) {
            fs::remove_file(path).map_err(LogError::io("remove", path))?;
            removed = true;
        }
    }
    if removed { durable::sync_folder(folder).map_err(LogError::io("sync", folder)) } else { Ok(()) }
}

/// What a folder holds; up to the first damage, if there is any.
#[derive(Default)]
pub(super) struct Read {
    pub(super) records: Vec<Vec<u8>>,
    /// The newest snapshot's number; what is before it is garbage.
    start: u64,
    /// Total length of the frames in the segments since.
    segment_bytes: u64,
    last: Option<LastSegment>,
}

struct LastSegment {
    path: PathBuf,
    header: FileHeader,
    scan: Scan,
    /// Its length, bytes.
    length: u64,
    /// Bytes after its frames that are no room.
    torn_bytes: u64,
}

impl Read {
    /// Reads all of it.
    pub(super) fn folder(&mut self, folder: &Path, identity: Identity) -> Result<(), LogError> {
        let list = |prefix| durable::numbered(folder, prefix, "").map_err(LogError::io("list", folder));
        let (snapshots, segments) = (list(SNAPSHOT_PREFIX)?, list(SEGMENT_PREFIX)?);
        self.start = 1;
        if let Some((number, path)) = snapshots.last() {
            self.start = *number;
            let file = ReadFile::read(path, SNAPSHOT_MAGIC, identity, *number)?;
            let scan = frame::scan(&file.bytes, file.header.salt, HEADER_LEN, 0);
            self.take(&file.bytes, &scan.records);
            if scan.ending != Ending::Finished {
                return Err(file.rot(scan.end));
            }
        }
        let segments: Vec<_> = segments.into_iter().filter(|(number, _)| *number >= self.start).collect();
        let fresh = snapshots.is_empty() && segments.is_empty();
        let expected = self.start..=segments.last().map_or(self.start, |(number, _)| *number);
        let mut found = segments.into_iter().peekable();
        let mut first = if snapshots.is_empty() { Some(0) } else { None };
        for number in expected.filter(|_| !fresh) {
            let Some((_, path)) = found.next_if(|(found, _)| *found == number) else {
                return Err(LogError::Missing { file: folder.join(Segment::name(number)) });
            };
            first = Some(self.segment(path, identity, number, first, found.peek().is_none())?);
        }
        Ok(())
    }

    /// Reads one segment, whose first record's counter must be `first`; returns the next one's.
    fn segment(
        &mut self,
        path: PathBuf,
        identity: Identity,
        number: u64,
        first: Option<u64>,
        is_last: bool,
    ) -> Result<u64, LogError> {
        let file = ReadFile::read(&path, SEGMENT_MAGIC, identity, number)?;
        if first.is_some_and(|first| first != file.header.first) {
            // The segment before ends short of where this one starts.
            let before = path.with_file_name(Segment::name(number - 1));
            let offset = fs::metadata(&before).map_or(0, |found| found.len());
            return Err(LogError::Rot { file: before, offset });
        }
        let scan = frame::scan(&file.bytes, file.header.salt, HEADER_LEN, file.header.first);
        self.take(&file.bytes, &scan.records);
        match scan.ending {
            Ending::Rot | Ending::Finished => return Err(file.rot(scan.end)),
            // A segment is synced before the next one is begun.
            Ending::Torn if !is_last => return Err(file.rot(scan.end)),
            Ending::Torn | Ending::Whole | Ending::Marked => {}
        }
        self.segment_bytes += (scan.end - HEADER_LEN) as u64;
        let next = scan.next;
        if is_last {
            let (length, torn) = (file.bytes.len() as u64, frame::used(&file.bytes[scan.end..]));
            self.last = Some(LastSegment { path, header: file.header, scan, length, torn_bytes: torn as u64 });
        }
        Ok(next)
    }

    fn take(&mut self, bytes: &[u8], records: &[Range<usize>]) {
        self.records.extend(records.iter().map(|record| bytes[record.clone()].to_vec()));
    }
}

impl LastSegment {
    /// Cuts a torn tail and makes sure that all that was read is durable: after a killed process some
    /// of it may be in the kernel's memory only.
    fn resume(self) -> Result<(Segment, u64), LogError> {
        let path = self.path;
        let file = File::options().read(true).write(true).open(&path).map_err(LogError::io("open", &path))?;
        let end = self.scan.end as u64;
        let mut room = self.length;
        if self.torn_bytes > 0 {
            file.set_len(end).map_err(LogError::io("cut the torn tail of", &path))?;
            room = end;
        }
        durable::sync_data(&file, &path).map_err(LogError::io("sync", &path))?;
        let (header, next) = (self.header, self.scan.next);
        let mut segment = Segment { file, path: path.clone(), header, end, room, next };
        if self.scan.ending != Ending::Marked && segment.next > self.header.first {
            // Only a hint, and the disk may be full: the next sync brings a mark of its own.
            let _ = segment.mark();
        }
        Ok((segment, self.torn_bytes))
    }
}

/// A whole file with a sound header of this node's.
struct ReadFile {
    path: PathBuf,
    header: FileHeader,
    bytes: Vec<u8>,
}

impl ReadFile {
    fn read(path: &Path, magic: &[u8; 8], identity: Identity, number: u64) -> Result<ReadFile, LogError> {
        let bytes = fs::read(path).map_err(LogError::io("read", path))?;
        let file = path.to_path_buf();
        match FileHeader::decode(&bytes, magic, FORMAT, identity, number) {
            Ok(header) => Ok(ReadFile { path: file, header, bytes }),
            Err(BadHeader::Damaged) => Err(LogError::Rot { file, offset: 0 }),
            Err(BadHeader::Newer { format }) => Err(LogError::Newer { file, format }),
            Err(BadHeader::Foreign { found }) => Err(LogError::Foreign { file, found, wanted: identity }),
        }
    }

    fn rot(&self, offset: usize) -> LogError {
        LogError::Rot { file: self.path.clone(), offset: offset as u64 }
    }
}
