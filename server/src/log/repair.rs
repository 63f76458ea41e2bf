//! A damaged log: what can still be read of it, and a new one in its place.
//!
//! The new log is written beside the damaged one (`log.new`), which then becomes `log.damaged-N` and
//! is kept. A crash leaves either the damaged log, and all begins again; or no log and a whole new
//! one, which the next start takes.

use std::fs;
use std::path::{Path, PathBuf};

use super::recover::Read;
use super::{Log, LogError, Opened};
use crate::folder::Identity;
use crate::folder::durable;

impl Log {
    /// The records before the first damage. Changes nothing.
    ///
    /// # Errors
    /// [`LogError`], but for [`LogError::Rot`] and [`LogError::Missing`].
    pub fn readable(folder: &Path, identity: Identity) -> Result<Vec<Vec<u8>>, LogError> {
        let mut read = Read::default();
        match read.folder(folder, identity) {
            Ok(()) | Err(LogError::Rot { .. } | LogError::Missing { .. }) => Ok(read.records),
            Err(error) => Err(error),
        }
    }

    /// Puts a new log with these records in the place of a damaged one; gives it, and where the
    /// damaged one is now.
    ///
    /// # Errors
    /// [`LogError`]. The damaged log is then where it was, or the next [`Log::open`] opens the new one.
    pub fn replace(
        folder: &Path,
        identity: Identity,
        records: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(Opened, PathBuf), LogError> {
        let new = beside(folder, "new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(LogError::io("remove", &new))?;
        }
        let mut log = Log::open(&new, identity)?.log;
        let mut writer = log.begin_snapshot()?;
        for record in records {
            writer.append(&record)?;
        }
        log.retire(writer.finish()?)?;
        drop(log);
        let aside = (1_u64..).map(|number| beside(folder, &format!("damaged-{number}")));
        let aside = aside.into_iter().find(|path| !path.exists()).unwrap_or_else(|| beside(folder, "damaged"));
        fs::rename(folder, &aside).map_err(LogError::io("rename", folder))?;
        finish(folder)?;
        Ok((Log::open(folder, identity)?, aside))
    }
}

/// Gives a whole new log its place, if no log is there.
pub(super) fn finish(folder: &Path) -> Result<(), LogError> {
    let new = beside(folder, "new");
    if folder.exists() || !new.exists() {
        return Ok(());
    }
    fs::rename(&new, folder).map_err(LogError::io("rename", &new))?;
    let parent = folder.parent().unwrap_or(Path::new("."));
    durable::sync_folder(parent).map_err(LogError::io("sync", parent))
}

fn beside(folder: &Path, what: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}"));
    folder.with_file_name(name)
}
