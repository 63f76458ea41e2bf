//! The vote log: what a replica promised, on disk before it is spoken.
//!
//! An append-only, checksummed log of opaque records. [`Log::append`] only collects; [`Log::sync`]
//! writes what was collected and returns once it is durable, so the caller decides what shares a
//! sync (group commit). A *snapshot* stands for everything before it and lets the log be cut.
//!
//! In its folder:
//!
//! ```text
//! log-00000001        segments: header, records; the one with the highest number is appended to
//! log-00000002
//! snapshot-00000002   stands for all segments before log-00000002
//! ```
//!
//! **Crashes.** A record is there after a crash if `sync` returned after it. What was never synced
//! may be there, or be torn: then the tail is cut off and counted ([`Opened::torn_bytes`]). After
//! each sync the log also notes how far it is durable (a *mark*, see `frame`), which is how a torn
//! tail and a damaged promise are told apart: a replica that forgets a vote may vote twice, so
//! damage to what was synced is [`LogError::Rot`]. Then [`Log::readable`] gives what comes before it and
//! [`Log::replace`] puts a new log in its place. The one case that can't be told apart is the last sync
//! before a power cut, if its mark did not reach the disk: it is then taken for torn.
//!
//! A failed sync poisons the log for good: after it, nobody knows what the disk holds.
//!
//! **Room.** The segment that is appended to is longer than what was written, by up to [`ROOM`] bytes of
//! zeros: a sync that changes no length does not wait for the file system's journal. On ext4 one of 1 KiB
//! takes 143 to 155 us instead of 201 to 209, and 267 to 279 instead of 343 to 352 while three others sync
//! too. (With `KEEP_SIZE` the length changes all the same, and nothing is won.)

mod frame;
mod recover;
mod repair;
mod snapshot;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::folder::Identity;
use crate::folder::durable;
use crate::folder::header::FileHeader;
pub use snapshot::{Finished, SnapshotWriter};

/// The newest format of the log's files that this program knows.
pub const FORMAT: u32 = 1;
/// Longest record, bytes.
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// How much room is made at a time, bytes.
const ROOM: u64 = 1 << 20;

const SEGMENT_PREFIX: &str = "log-";
const SNAPSHOT_PREFIX: &str = "snapshot-";
const SEGMENT_MAGIC: &[u8; 8] = b"MGVLOG\r\n";

/// Why the log can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk said no.
    #[error("vote log: cannot {action} {}: {source}", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was durable is not what was written.
    #[error(
        "vote log file {} is damaged at byte {offset}: it no longer holds what this replica promised",
        file.display()
    )]
    Rot {
        /// The file.
        file: PathBuf,
        /// Where the first bad record starts, bytes from the start of the file.
        offset: u64,
    },
    /// A file that must be there is not.
    #[error(
        "vote log file {} is missing, and with it what this replica promised",
        file.display()
    )]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// A file's format is newer than the program.
    #[error(
        "vote log file {} was written by a newer version (format {format}; this program knows {FORMAT}); \
         start the node with that version or a newer one",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        format: u32,
    },
    /// A file is another node's.
    #[error("vote log file {} belongs to {found}, but this is {wanted}; put the right log back", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Who asked.
        wanted: Identity,
    },
    /// The folder is open already.
    #[error("vote log {} is in use by another process; stop that node first", folder.display())]
    InUse {
        /// The log's folder.
        folder: PathBuf,
    },
    /// An earlier write or sync failed.
    #[error("vote log {} failed earlier and can't be trusted any more; restart the node", folder.display())]
    Poisoned {
        /// The log's folder.
        folder: PathBuf,
    },
}

impl LogError {
    fn io<'a>(action: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> LogError + 'a {
        move |source| LogError::Io { action, file: file.into(), source }
    }
}

/// An open log and what it held.
#[derive(Debug)]
pub struct Opened {
    /// The log, ready for more.
    pub log: Log,
    /// The newest snapshot's records, then those appended since it was begun, in order; all durable.
    pub records: Vec<Vec<u8>>,
    /// Bytes cut off the end: a write that was never synced.
    pub torn_bytes: u64,
}

/// An append-only log of records.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    identity: Identity,
    segment: Segment,
    /// Encoded frames that [`Log::sync`] will write.
    pending: Vec<u8>,
    bytes_since_snapshot: u64,
    poisoned: bool,
    /// Held locked.
    _lock: File,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    header: FileHeader,
    /// Where its frames end.
    end: u64,
    /// Where its room ends, as far as it has any.
    room: u64,
    /// Counter of the next record.
    next: u64,
}

impl Log {
    /// Opens the log in `folder`, which is created on first use (its parent must be there).
    ///
    /// # Errors
    /// [`LogError`]; the files are then as they were.
    pub fn open(folder: &Path, identity: Identity) -> Result<Opened, LogError> {
        recover::open(folder, identity)
    }

    /// Adds a record, durable after the next [`Log::sync`].
    ///
    /// # Panics
    /// If the record is longer than [`RECORD_BYTES_MAX`].
    pub fn append(&mut self, record: &[u8]) {
        assert!(record.len() <= RECORD_BYTES_MAX, "a record of {} bytes", record.len());
        let before = self.pending.len();
        frame::push_record(&mut self.pending, self.segment.header.salt, self.segment.next, record);
        self.segment.next += 1;
        self.bytes_since_snapshot += (self.pending.len() - before) as u64;
    }

    /// Makes every record appended so far durable.
    ///
    /// # Errors
    /// Fatal: the log is poisoned, and every later sync fails too.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.poisoned {
            return Err(io::Error::other("the vote log failed earlier"));
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        self.poisoned = true;
        self.segment.write(&self.pending)?;
        durable::sync_data(&self.segment.file, &self.segment.path)?;
        self.segment.mark()?;
        self.poisoned = false;
        self.pending.clear();
        self.pending.shrink_to(1 << 20);
        Ok(())
    }

    /// Bytes appended since the newest snapshot was begun: what is to be read again at a start.
    #[must_use]
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// Begins a snapshot: what was appended so far is synced, and a new segment starts at once, where
    /// later records go. The writer takes the records that are to stand for everything before; it
    /// may do so on another thread. Until it has finished and [`Log::retire`] was called, nothing is
    /// lost by a crash or by dropping the writer.
    ///
    /// # Errors
    /// [`LogError::Poisoned`], or [`LogError::Io`]. If a sync failed the log is poisoned; if the new
    /// files could not be made it goes on without them.
    pub fn begin_snapshot(&mut self) -> Result<SnapshotWriter, LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned { folder: self.folder.clone() });
        }
        let path = self.segment.path.clone();
        self.sync().map_err(LogError::io("sync", &path))?;
        let number = self.segment.header.number + 1;
        let writer = SnapshotWriter::create(&self.folder, self.identity, number)?;
        self.segment = Segment::create(&self.folder, self.identity, number, self.segment.next).inspect_err(|_| {
            // If the name is there, perhaps durably, records must not go to the old segment any more.
            self.poisoned = self.folder.join(Segment::name(number)).exists();
        })?;
        self.bytes_since_snapshot = 0;
        Ok(writer)
    }

    /// Deletes what a finished snapshot of this log stands for.
    ///
    /// # Errors
    /// [`LogError::Io`]. Nothing is lost then, and the next start tries again.
    ///
    /// # Panics
    /// If the snapshot is another log's.
    pub fn retire(&mut self, snapshot: Finished) -> Result<(), LogError> {
        assert_eq!(snapshot.folder, self.folder, "a snapshot of another log");
        recover::remove_before(&self.folder, snapshot.number)
    }
}

impl Segment {
    fn name(number: u64) -> String {
        format!("{SEGMENT_PREFIX}{number:08}")
    }

    /// Makes a new segment, durable before it is used.
    fn create(folder: &Path, identity: Identity, number: u64, first: u64) -> Result<Segment, LogError> {
        let header = FileHeader::new(identity, number, first);
        let (name, bytes) = (Segment::name(number), header.encode(SEGMENT_MAGIC, FORMAT));
        let path = folder.join(&name);
        durable::create(folder, &name, &bytes).map_err(LogError::io("create", &path))?;
        let file = File::options().read(true).write(true).open(&path).map_err(LogError::io("open", &path))?;
        let end = bytes.len() as u64;
        Ok(Segment { file, path, header, end, room: end, next: first })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.end + bytes.len() as u64;
        if end > self.room {
            self.make_room(end);
        }
        self.file.write_all_at(bytes, self.end)?;
        self.end = end;
        Ok(())
    }

    /// Makes room for what ends there, and more. Where the file system can't, the file grows as it is written.
    fn make_room(&mut self, end: u64) {
        let (from, room) = (self.end.max(self.room), end.next_multiple_of(ROOM));
        if let Err(errno) = rustix::fs::fallocate(&self.file, FallocateFlags::empty(), from, room - from) {
            tracing::debug!(%errno, "no room ahead of the vote log's end");
        }
        // Not asked for again before it is used up, either.
        self.room = room;
    }

    /// Notes that every record so far is durable. The note itself is not synced: it is there after a
    /// killed process, and after a power cut if the kernel got round to it.
    fn mark(&mut self) -> io::Result<()> {
        let mut mark = Vec::with_capacity(frame::FRAME_HEADER_LEN);
        frame::push_mark(&mut mark, self.header.salt, self.next);
        self.write(&mark)
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, NodeId};

    use super::*;
    use crate::folder::durable::faults;

    #[test]
    fn a_failed_sync_is_never_taken_for_clean() {
        let temp = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(1) };
        let mut log = Log::open(temp.path(), identity).unwrap().log;
        log.append(b"promised");
        log.sync().unwrap();
        log.append(b"lost");
        faults::fail_syncs(temp.path());
        log.sync().unwrap_err();
        // The kernel has dropped the dirty pages and would say yes now.
        faults::forgive_syncs(temp.path());
        log.sync().unwrap_err();
        assert!(matches!(log.begin_snapshot(), Err(LogError::Poisoned { .. })));
        drop(log);
        assert_eq!(Log::open(temp.path(), identity).unwrap().records[0], b"promised");
    }

    #[test]
    fn a_snapshot_that_can_not_be_begun_leaves_the_log_going() {
        let temp = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(1) };
        let mut log = Log::open(temp.path(), identity).unwrap().log;
        // A folder where the new segment's first bytes should go.
        std::fs::create_dir(temp.path().join("log-00000002.tmp")).unwrap();
        assert!(matches!(log.begin_snapshot(), Err(LogError::Io { .. })));
        log.append(b"one");
        log.sync().unwrap();
        std::fs::remove_dir(temp.path().join("log-00000002.tmp")).unwrap();
        drop(log.begin_snapshot().unwrap());
        log.append(b"two");
        log.sync().unwrap();
        drop(log);
        assert_eq!(Log::open(temp.path(), identity).unwrap().records, [b"one".to_vec(), b"two".to_vec()]);
    }
}
