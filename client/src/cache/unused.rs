//! Caches of mounts that are no more: each mount has a folder of its own, and nobody else would remove it.

use std::fs::{self, DirEntry, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

/// Says that a folder is used, now and for as long as the answer lives.
///
/// # Errors
/// If it can't be opened.
pub(super) fn hold(folder: &Path) -> io::Result<File> {
    let held = File::open(folder)?;
    // Without either it may go though it is used, and then it is a cache no more; nothing else follows from it.
    let _ = held.set_modified(SystemTime::now());
    let _ = flock(&held, FlockOperation::NonBlockingLockShared);
    Ok(held)
}

/// Removes caches that nobody has used for `unused`; returns how many. `within`: a folder with one for each
/// cluster, named by its number, with one for each mount.
///
/// # Errors
/// If the folder can't be read. One cache that can't be removed does not keep the others.
pub fn remove_unused_caches(within: &Path, unused: Duration) -> io::Result<usize> {
    let mut removed = 0;
    for cluster in folders(within)?.filter(|cluster| is_cluster(&cluster.file_name().to_string_lossy())) {
        let Ok(mounts) = folders(&cluster.path()) else { continue };
        for mount in mounts {
            match remove_if_unused(&mount.path(), unused) {
                Ok(done) => removed += usize::from(done),
                Err(error) => tracing::debug!(%error, cache = %mount.path().display(), "an old cache stays"),
            }
        }
        // Not if there is one left.
        let _ = fs::remove_dir(cluster.path());
    }
    Ok(removed)
}

fn folders(within: &Path) -> io::Result<impl Iterator<Item = DirEntry> + use<>> {
    let entries = fs::read_dir(within)?.filter_map(Result::ok);
    Ok(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())))
}

fn is_cluster(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn remove_if_unused(folder: &Path, unused: Duration) -> io::Result<bool> {
    let held = File::open(folder)?;
    let old = held.metadata()?.modified()?.elapsed().is_ok_and(|age| age >= unused);
    if !old || flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    fs::remove_dir_all(folder)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn only_old_caches_that_nobody_uses_go() {
        let within = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let folder = within.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("1.blocks"), "blocks").unwrap();
            File::open(&folder).unwrap().set_modified(SystemTime::now() - age).unwrap();
            folder
        };
        let (first, second) = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100");
        let old = make(&format!("{first}/-mnt-old"), DAY * 31);
        let new = make(&format!("{first}/-mnt-new"), DAY * 29);
        let used = make(&format!("{first}/-mnt-used"), Duration::ZERO);
        let held = hold(&used).unwrap();
        held.set_modified(SystemTime::now() - DAY * 40).unwrap();
        let last = make(&format!("{second}/-mnt"), DAY * 31);
        let not_ours = make("run/-mnt", DAY * 300);
        assert_eq!(remove_unused_caches(within.path(), DAY * 30).unwrap(), 2);
        assert!(!old.exists() && new.exists() && used.exists() && not_ours.exists());
        assert!(!last.exists() && !last.parent().unwrap().exists(), "and what is empty then");
        drop(held);
        assert_eq!(remove_unused_caches(within.path(), DAY * 30).unwrap(), 1);
        assert!(!used.exists());
        assert!(remove_unused_caches(&within.path().join("none"), DAY).is_err());
    }

    #[test]
    fn a_cache_that_is_opened_is_in_use() {
        let within = tempfile::tempdir().unwrap();
        let folder = within.path().join("00112233445566778899aabbccddeeff/-mnt");
        let cache = super::super::DiskCache::open(&super::super::DiskOptions { dir: folder.clone(), bytes: 1 << 20 });
        File::open(&folder).unwrap().set_modified(SystemTime::now() - DAY * 40).unwrap();
        assert_eq!(remove_unused_caches(within.path(), DAY * 30).unwrap(), 0);
        drop(cache);
        assert_eq!(remove_unused_caches(within.path(), DAY * 30).unwrap(), 1);
    }
}
