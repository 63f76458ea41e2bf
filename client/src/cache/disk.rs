//! Sealed blocks as files named by their ids, in 256 folders.
//!
//! The folder is scanned once, when it is opened. Files are written beside their place and renamed
//! into it, so a crash leaves whole files and `*.new` litter that the next scan removes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use base::BlockId;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{DiskOptions, Lru};

/// Most blocks that wait to be written; more are not kept.
const WRITES_MAX: usize = 64;

/// A bounded folder of sealed blocks.
#[derive(Debug)]
pub(super) struct DiskCache {
    dir: PathBuf,
    index: Mutex<Lru<BlockId, ()>>,
    writes: AtomicUsize,
}

impl DiskCache {
    /// Opens the folder, and makes it if it is missing.
    pub(super) fn open(options: &DiskOptions) -> io::Result<DiskCache> {
        std::fs::create_dir_all(&options.dir)?;
        let mut found = Vec::new();
        for folder in std::fs::read_dir(&options.dir)? {
            let Ok(files) = std::fs::read_dir(folder?.path()) else { continue };
            for file in files.flatten() {
                match (parse(&file.file_name().to_string_lossy()), file.metadata()) {
                    (Some(id), Ok(data)) => {
                        found.push((data.modified().unwrap_or(SystemTime::UNIX_EPOCH), id, data.len()));
                    }
                    _ => drop(std::fs::remove_file(file.path())),
                }
            }
        }
        found.sort_unstable();
        let cache = DiskCache {
            dir: options.dir.clone(),
            index: Mutex::new(Lru::new(options.bytes)),
            writes: AtomicUsize::new(0),
        };
        for (_, id, bytes) in found {
            let gone = cache.index.lock().insert(id, (), bytes);
            cache.delete(&gone);
        }
        Ok(cache)
    }

    /// The block, if it is here and undamaged.
    pub(super) async fn get(self: Arc<Self>, id: BlockId) -> Option<Bytes> {
        self.index.lock().get(&id)?;
        let read = move || {
            let bytes = std::fs::read(self.path(id)).ok();
            let whole = bytes.filter(|bytes| id == BlockId::blake3(blake3::hash(bytes).into()));
            if whole.is_none() {
                self.index.lock().remove(&id);
                self.delete(&[id]);
            }
            whole.map(Bytes::from)
        };
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    /// Writes the block in the background; drops it if too many wait or the disk won't take it.
    pub(super) fn put(self: Arc<Self>, id: BlockId, bytes: Bytes) {
        if self.index.lock().contains(&id) {
            return;
        }
        if self.writes.fetch_add(1, Ordering::AcqRel) >= WRITES_MAX {
            self.writes.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        tokio::task::spawn_blocking(move || {
            match self.write(id, &bytes) {
                Ok(()) => {
                    let gone = self.index.lock().insert(id, (), bytes.len() as u64);
                    self.delete(&gone);
                }
                Err(error) => tracing::debug!(%error, "block not cached on disk"),
            }
            self.writes.fetch_sub(1, Ordering::AcqRel);
        });
    }

    /// Whether nothing waits to be written.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.writes.load(Ordering::Acquire) == 0
    }

    fn write(&self, id: BlockId, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(id);
        let new = path.with_extension("new");
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let written = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, &path));
        if written.is_err() {
            drop(std::fs::remove_file(&new));
        }
        written
    }

    fn delete(&self, ids: &[BlockId]) {
        for &id in ids {
            drop(std::fs::remove_file(self.path(id)));
        }
    }

    fn path(&self, id: BlockId) -> PathBuf {
        self.dir.join(format!("{:02x}", id.hash[0])).join(id.to_string())
    }
}

/// The id that [`BlockId`]'s `Display` wrote.
fn parse(name: &str) -> Option<BlockId> {
    let hex = name.strip_prefix("01-").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    let id = BlockId::blake3(hash);
    (id.to_string() == name).then_some(id)
}
