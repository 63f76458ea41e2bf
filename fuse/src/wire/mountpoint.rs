//! Mountpoints: what is mounted where, and whether a directory may be mounted on.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::mount::MountError;

/// The device of a mounted filesystem (`major:minor`): tells one mount from the next at the same path.
pub(crate) type DeviceId = String;

/// One mount of this process's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Where.
    pub mountpoint: PathBuf,
    /// The filesystem's type, such as `ext4` or `fuse.mangrove`.
    pub kind: String,
    /// `major:minor` of its device.
    pub device: String,
}

/// Everything mounted, oldest first; unreadable tables count as empty.
pub fn mounts() -> Vec<MountInfo> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
}

/// The topmost mount at exactly `mountpoint` (an absolute, resolved path).
pub fn mounted_at(mountpoint: &Path) -> Option<MountInfo> {
    mounts().into_iter().rev().find(|mount| mount.mountpoint == mountpoint)
}

/// Checks that `path` can be mounted on, and returns it absolute and resolved. Changes nothing.
///
/// # Errors
/// The [`MountError`] that names what is wrong with the directory and what to do about it.
pub fn check_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let resolved = resolve(path)?;
    // The table first: a look at a dead mount fails, and at a stuck one waits.
    if let Some(mount) = mounted_at(&resolved) {
        let path = resolved;
        return Err(match is_stale(&path) {
            true => MountError::Stale { path },
            false => MountError::AlreadyMounted { path, kind: mount.kind },
        });
    }
    let metadata = std::fs::metadata(&resolved).map_err(|error| MountError::from_path(path, error))?;
    if !metadata.is_dir() {
        return Err(MountError::NotADirectory { path: path.into() });
    }
    let mut entries = std::fs::read_dir(&resolved).map_err(|error| MountError::from_path(path, error))?;
    match entries.next() {
        Some(_) => Err(MountError::NotEmpty { path: path.into() }),
        None => Ok(resolved),
    }
}

/// Unmounts what a dead process of ours left at `path`. Returns whether there was something.
///
/// # Errors
/// [`super::mount::UnmountError`] when it is there and cannot be unmounted.
pub fn clear_stale(path: &Path, kind: &str) -> Result<bool, super::mount::UnmountError> {
    let Ok(resolved) = resolve(path) else { return Ok(false) };
    match mounted_at(&resolved) {
        Some(mount) if mount.kind == kind && is_stale(&resolved) => {
            super::mount::unmount(&resolved, super::mount::Unmount::Lazy).map(|()| true)
        }
        _ => Ok(false),
    }
}

/// Whether the filesystem at `path` has lost its process.
fn is_stale(path: &Path) -> bool {
    matches!(rustix::fs::stat(path), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// The absolute path without links. Its last part is not looked into if a dead mount is there.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    match std::fs::canonicalize(path) {
        Ok(resolved) => Ok(resolved),
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            let parent = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => return Err(MountError::Stale { path: path.into() }),
            };
            let parent = std::fs::canonicalize(parent).map_err(|error| MountError::from_path(path, error))?;
            Ok(path.file_name().map_or(parent.clone(), |name| parent.join(name)))
        }
        Err(error) => Err(MountError::from_path(path, error)),
    }
}

impl MountError {
    /// The error for what a look at the mountpoint met.
    fn from_path(path: &Path, error: std::io::Error) -> MountError {
        let path = path.into();
        match error.kind() {
            ErrorKind::NotFound => MountError::Missing { path },
            ErrorKind::NotADirectory => MountError::NotADirectory { path },
            _ => MountError::Inaccessible { path, source: error },
        }
    }
}

/// A line of mountinfo: `id parent major:minor root mountpoint options [tags] - kind source options`.
fn parse_mount(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    Some(MountInfo {
        mountpoint: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        kind: String::from_utf8_lossy(fields.get(separator + 1)?).into_owned(),
        device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
    })
}

/// Undoes the kernel's escapes: space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(digits) => {
                plain.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_with_their_escapes_and_tags() {
        let line = br"36 35 0:52 / /mnt/a\040b\134c rw,nosuid shared:7 master:1 - fuse.mangrove mangrove rw,user_id=0";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.mountpoint, Path::new(r"/mnt/a b\c"));
        assert_eq!((mount.kind.as_str(), mount.device.as_str()), ("fuse.mangrove", "0:52"));
        assert_eq!(parse_mount(b""), None);
        assert_eq!(parse_mount(b"1 2 3 -"), None);
        assert_eq!(unescape(br"a\04"), br"a\04");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounted_at(Path::new("/")).is_some());
    }

    #[test]
    fn each_bad_mountpoint_is_refused_with_its_cause_and_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path| check_mountpoint(path).unwrap_err().to_string();
        let missing = check(&folder.path().join("missing"));
        assert!(missing.contains("does not exist") && missing.contains("mkdir"), "{missing}");
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(check(&file).contains("not a directory"));
        assert!(check(&file.join("below")).contains("not a directory"));
        let full = check(folder.path());
        assert!(full.contains("not empty") && full.contains("empty directory"), "{full}");
        let mounted = check(Path::new("/proc"));
        assert!(mounted.contains("already mounted") && mounted.contains("umount"), "{mounted}");
        let good = folder.path().join("good");
        std::fs::create_dir(&good).unwrap();
        std::os::unix::fs::symlink(&good, folder.path().join("link")).unwrap();
        let resolved = check_mountpoint(&folder.path().join("link")).unwrap();
        assert_eq!(resolved, std::fs::canonicalize(good).unwrap());
    }
}
