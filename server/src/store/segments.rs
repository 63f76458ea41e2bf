//! All segments of a store: which there are, their open files, and how much they take.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::segment::{self, Location, Segment};
use super::{FORMAT, StoreError};
use crate::folder::header::{BadHeader, FileHeader, HEADER_LEN};
use crate::folder::{Identity, durable};

const SEGMENT_MAGIC: &[u8; 8] = b"MGVSEG\r\n";
/// Files kept open for reading.
const OPEN_FILES_MAX: usize = 128;

/// A point between two records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) segment: u32,
    pub(super) offset: u64,
}

/// The segments of a store.
pub(super) struct Segments {
    folder: PathBuf,
    identity: Identity,
    all: RwLock<BTreeMap<u32, Arc<Segment>>>,
    open: Mutex<BTreeMap<u32, Arc<File>>>,
    used: AtomicU64,
    /// All before it is durable.
    synced: Mutex<Position>,
}

impl Segments {
    /// Finds the segments in `folder`, which is created if it is not there.
    pub(super) fn open(folder: &Path, identity: Identity) -> Result<Segments, StoreError> {
        durable::create_folder(folder).map_err(StoreError::io("create", folder))?;
        let (mut all, mut used) = (BTreeMap::new(), 0);
        for entry in fs::read_dir(folder).map_err(StoreError::io("list", folder))? {
            let path = entry.map_err(StoreError::io("list", folder))?.path();
            if let Some(number) = segment::number_of(&path) {
                used += fs::metadata(&path).map_err(StoreError::io("read", &path))?.len();
                all.insert(number, Arc::new(open_one(path, number, identity)?));
            }
        }
        durable::remove_temporaries(folder).map_err(StoreError::io("clean", folder))?;
        Ok(Segments {
            folder: folder.into(),
            identity,
            all: RwLock::new(all),
            open: Mutex::new(BTreeMap::new()),
            used: AtomicU64::new(used),
            synced: Mutex::new(Position::default()),
        })
    }

    /// The segments, ascending.
    pub(super) fn all(&self) -> Vec<Arc<Segment>> {
        self.all.read().values().cloned().collect()
    }

    /// The segment of this number.
    pub(super) fn find(&self, number: u32) -> Option<Arc<Segment>> {
        self.all.read().get(&number).cloned()
    }

    /// The segment that is appended to, if there is one.
    pub(super) fn last(&self) -> Option<Arc<Segment>> {
        self.all.read().last_key_value().map(|(_, segment)| segment.clone())
    }

    /// Where a segment is.
    pub(super) fn path_of(&self, number: u32) -> PathBuf {
        self.folder.join(Segment::name(number))
    }

    /// Makes the next segment; it and its header are durable then.
    pub(super) fn create(&self) -> io::Result<Arc<Segment>> {
        let mut all = self.all.write();
        let number = all.last_key_value().map_or(1, |(number, _)| number + 1);
        let header = FileHeader::new(self.identity, u64::from(number), 0);
        durable::create(&self.folder, &Segment::name(number), &header.encode(SEGMENT_MAGIC, FORMAT))?;
        let segment = Arc::new(Segment { number, path: self.path_of(number), salt: Some(header.salt) });
        all.insert(number, segment.clone());
        self.used.fetch_add(HEADER_LEN as u64, Ordering::Relaxed);
        Ok(segment)
    }

    /// Reads a block's body; whatever bytes are there.
    pub(super) fn read(&self, location: &Location) -> io::Result<Vec<u8>> {
        segment::read_body(&*self.file(location.segment)?, location, false)
    }

    /// The same without waiting for a disk, if that can be.
    pub(super) fn read_cached(&self, location: &Location) -> Option<Vec<u8>> {
        let file = self.open.lock().get(&location.segment)?.clone();
        segment::read_body(&file, location, true).ok()
    }

    fn file(&self, number: u32) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.lock().get(&number) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.path_of(number))?);
        // Of blocks that follow one another each is read from another node: what the kernel would read ahead is
        // mostly not asked for here.
        let _ = rustix::fs::fadvise(&*file, 0, None, rustix::fs::Advice::Random);
        let mut open = self.open.lock();
        if open.len() >= OPEN_FILES_MAX {
            open.pop_first();
        }
        open.insert(number, file.clone());
        Ok(file)
    }

    /// Bytes the segments take.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The used bytes have changed.
    pub(super) fn add_used(&self, change: i64) {
        self.used.fetch_add(change as u64, Ordering::Relaxed);
    }

    /// Bytes the filesystem has left for this user.
    pub(super) fn available(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.folder)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Up to where all is durable.
    pub(super) fn synced(&self) -> Position {
        *self.synced.lock()
    }

    /// All before `position` is durable now.
    pub(super) fn set_synced(&self, position: Position) {
        *self.synced.lock() = position;
    }
}

fn open_one(path: PathBuf, number: u32, identity: Identity) -> Result<Segment, StoreError> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    File::open(&path)
        .and_then(|file| file.take(HEADER_LEN as u64).read_to_end(&mut bytes))
        .map_err(StoreError::io("read", &path))?;
    match FileHeader::decode(&bytes, SEGMENT_MAGIC, FORMAT, identity, u64::from(number)) {
        Ok(header) => Ok(Segment { number, path, salt: Some(header.salt) }),
        Err(BadHeader::Newer { format }) => Err(StoreError::Newer { file: path, format }),
        Err(BadHeader::Foreign { found }) => Err(StoreError::Foreign { file: path, found, wanted: identity }),
        Err(BadHeader::Damaged) => {
            tracing::warn!(file = %path.display(), "a segment's header is damaged: what is not indexed is not found");
            Ok(Segment { number, path, salt: None })
        }
    }
}

/// Whether an error in reading a block means that its bytes are gone, rather than that the node is
/// short of something.
pub(super) fn is_damage(error: &io::Error) -> bool {
    let gone = [io::ErrorKind::UnexpectedEof, io::ErrorKind::NotFound].contains(&error.kind());
    gone || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
