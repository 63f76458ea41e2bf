//! Writing a snapshot: the records that stand for everything before a segment.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::{FORMAT, LogError, RECORD_BYTES_MAX, SNAPSHOT_PREFIX, frame};
use crate::folder::Identity;
use crate::folder::durable;
use crate::folder::header::FileHeader;

pub(super) const SNAPSHOT_MAGIC: &[u8; 8] = b"MGVSNAP\n";

pub(super) fn name(number: u64) -> String {
    format!("{SNAPSHOT_PREFIX}{number:08}")
}

/// Takes a snapshot's records. Dropped before [`SnapshotWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    folder: PathBuf,
    header: FileHeader,
    unfinished: PathBuf,
    out: BufWriter<File>,
    count: u64,
    frame: Vec<u8>,
}

/// A snapshot that is durable; to be handed to [`super::Log::retire`].
#[derive(Debug)]
#[must_use = "the log keeps what the snapshot replaces until it is retired"]
pub struct Finished {
    pub(super) folder: PathBuf,
    pub(super) number: u64,
}

impl SnapshotWriter {
    pub(super) fn create(folder: &Path, identity: Identity, number: u64) -> Result<SnapshotWriter, LogError> {
        let header = FileHeader::new(identity, number, 0);
        let unfinished = folder.join(durable::temporary(&name(number)));
        let file = File::create(&unfinished).map_err(LogError::io("create", &unfinished))?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let mut writer = SnapshotWriter { folder: folder.into(), header, unfinished, out, count: 0, frame: Vec::new() };
        writer.frame.extend_from_slice(&header.encode(SNAPSHOT_MAGIC, FORMAT));
        writer.write_frame()?;
        Ok(writer)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`LogError::Io`]; drop the writer then.
    ///
    /// # Panics
    /// If the record is longer than [`RECORD_BYTES_MAX`].
    pub fn append(&mut self, record: &[u8]) -> Result<(), LogError> {
        assert!(record.len() <= RECORD_BYTES_MAX, "a record of {} bytes", record.len());
        frame::push_record(&mut self.frame, self.header.salt, self.count, record);
        self.count += 1;
        self.write_frame()
    }

    /// Makes the snapshot durable. From here on a start reads it instead of what it stands for.
    ///
    /// # Errors
    /// [`LogError::Io`]; the log goes on as if the snapshot had never been begun.
    pub fn finish(mut self) -> Result<Finished, LogError> {
        frame::push_end(&mut self.frame, self.header.salt, self.count);
        self.write_frame()?;
        self.out.flush().map_err(LogError::io("write", &self.unfinished))?;
        durable::sync_data(self.out.get_ref(), &self.unfinished).map_err(LogError::io("sync", &self.unfinished))?;
        let name = name(self.header.number);
        durable::publish(&self.folder, &name).map_err(LogError::io("rename", &self.unfinished))?;
        Ok(Finished { folder: self.folder.clone(), number: self.header.number })
    }

    fn write_frame(&mut self) -> Result<(), LogError> {
        self.out.write_all(&self.frame).map_err(LogError::io("write", &self.unfinished))?;
        self.frame.clear();
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // Gone already if it was finished; otherwise the next start would remove it.
        let _ = fs::remove_file(&self.unfinished);
    }
}
