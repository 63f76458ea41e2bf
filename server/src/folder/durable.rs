//! The few disk operations whose order makes the difference after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    // The parent of a relative path of one part is "".
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// Makes a file's bytes durable (`fdatasync`). An error means that nobody knows what is on the disk
/// now; it must never be retried and taken for clean, because the kernel forgets it.
pub(crate) fn sync_data(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    faults::check(path)?;
    #[cfg(not(test))]
    let _ = path;
    file.sync_data()
}

/// The name that a file has until it is complete.
pub(crate) fn temporary(name: &str) -> String {
    format!("{name}.tmp")
}

/// Creates a file that is there with all its bytes or not at all.
pub(crate) fn create(folder: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let unfinished = folder.join(temporary(name));
    let written = write_new(&unfinished, contents).and_then(|()| publish(folder, name));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// Gives a file, complete and synced under its temporary name, its own name.
pub(crate) fn publish(folder: &Path, name: &str) -> io::Result<()> {
    fs::rename(folder.join(temporary(name)), folder.join(name))?;
    sync_folder(folder)
}

/// Creates `path` if it is not there (its parent must be), durably.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Locks `file` (or folder) until it is closed; false if somebody else has.
pub(crate) fn lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The files in `folder` named `prefix`, a number, `suffix`; in the order of their numbers.
pub(crate) fn numbered(folder: &Path, prefix: &str, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what a crash left under temporary names.
pub(crate) fn remove_temporaries(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Syncs that fail, for tests of what a node does then.
#[cfg(test)]
pub(crate) mod faults {
    use std::io;
    use std::path::{Path, PathBuf};

    use parking_lot::Mutex;

    static FAILING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    /// From now on the syncs of all files under `folder` fail.
    pub(crate) fn fail_syncs(folder: &Path) {
        FAILING.lock().push(folder.into());
    }

    /// Syncs under `folder` succeed again, as they do after a kernel has dropped the dirty pages.
    pub(crate) fn forgive_syncs(folder: &Path) {
        FAILING.lock().retain(|failing| failing != folder);
    }

    pub(super) fn check(path: &Path) -> io::Result<()> {
        let fails = FAILING.lock().iter().any(|folder| path.starts_with(folder));
        if fails { Err(io::Error::other("a sync that fails for a test")) } else { Ok(()) }
    }
}
