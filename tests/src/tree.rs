//! Trees of files: made from a seed, and compared by everything that a copy must keep.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::random::{Random, noise};

/// Files to a directory, about.
const FANOUT: usize = 25;
const LARGEST: u64 = 1 << 20;

/// One file of a made-up tree. Its content is `noise(seed, 0, size)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// The path below the root of the tree.
    pub path: PathBuf,
    /// Bytes.
    pub size: usize,
    /// What its content grows from.
    pub seed: u64,
}

impl PlannedFile {
    /// What is in the file.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        noise(self.seed, 0, self.size)
    }
}

/// The plan of a tree of `files` files: about 25 to a directory, directories nested up to three
/// deep, sizes log-normal around a median of 4 KiB and at most 1 MiB, some of them empty.
#[must_use]
pub fn plan(files: usize, seed: u64) -> Vec<PlannedFile> {
    let mut random = Random::new(seed);
    (0..files)
        .map(|index| {
            let dir = index / FANOUT;
            let (top, middle) = (dir / (FANOUT * FANOUT), dir / FANOUT);
            let extension = ["rs", "md", "toml", "bin"][random.below(4) as usize];
            let path = format!("part-{top}/group-{middle:03}/dir-{dir:04}/file-{index:05}.{extension}");
            PlannedFile { path: path.into(), size: size(&mut random), seed: random.next_u64() }
        })
        .collect()
}

/// A size: 2^k times a mantissa, where k is a sum of coin flips around 12. Whole numbers only, so
/// that it is the same everywhere.
fn size(random: &mut Random) -> usize {
    if random.below(100) == 0 {
        return 0;
    }
    let exponent = 4 + (random.next_u64() & 0xffff).count_ones();
    let mantissa = 724 + random.below(724);
    ((mantissa << exponent >> 10).min(LARGEST)) as usize
}

/// Makes the planned tree in `root`, which must exist, with some modes and old times, and a
/// symbolic link, a hard link and an empty directory for good measure.
///
/// # Panics
/// If the filesystem refuses.
pub fn make(root: &Path, plan: &[PlannedFile]) {
    for (index, planned) in plan.iter().enumerate() {
        let path = root.join(&planned.path);
        fs::create_dir_all(path.parent().expect("a planned file is in a directory")).expect("mkdir");
        let mut file = File::create(&path).expect("create");
        file.write_all(&planned.content()).expect("write");
        let mode = [0o644, 0o600, 0o755, 0o444][index % 4];
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_500_000_000 + index as u64 * 61)).expect("utimes");
        file.set_permissions(fs::Permissions::from_mode(mode)).expect("chmod");
    }
    if let Some(first) = plan.first() {
        symlink(&first.path, root.join("a symbolic link")).expect("symlink");
        symlink("nowhere/at all", root.join("a dangling link")).expect("symlink");
        fs::hard_link(root.join(&first.path), root.join("a hard link")).expect("link");
    }
    fs::create_dir(root.join("an empty directory")).expect("mkdir");
}

/// What a copy of an entry must share with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Bytes; 0 for a directory, whose size is its filesystem's business.
    pub size: u64,
    /// Seconds since 1970; 0 for a symbolic link or directory, which `cp` may touch last.
    pub mtime: i64,
    /// How many names it has; 0 for a directory.
    pub links: u64,
    /// The BLAKE3 hash of a file's bytes or of a symbolic link's target; empty for the rest.
    pub hash: String,
}

/// Reads a whole tree: every path below `root` with what must be the same in a copy.
///
/// # Panics
/// If anything cannot be read.
#[must_use]
#[track_caller]
pub fn read(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let list = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for item in list {
            let path = item.unwrap_or_else(|error| panic!("{}: {error}", dir.display())).path();
            let entry = entry(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if entry.mode & 0o170_000 == 0o040_000 {
                todo.push(path.clone());
            }
            let name = path.strip_prefix(root).expect("found below the root").to_owned();
            assert!(entries.insert(name, entry).is_none(), "{} was listed twice", path.display());
        }
    }
    entries
}

fn entry(path: &Path) -> std::io::Result<Entry> {
    let meta = fs::symlink_metadata(path)?;
    let (mode, links) = (meta.mode(), meta.nlink());
    if meta.is_dir() {
        return Ok(Entry { mode, size: 0, mtime: 0, links: 0, hash: String::new() });
    }
    if meta.is_symlink() {
        let target = fs::read_link(path)?;
        let hash = blake3::hash(target.as_os_str().as_encoded_bytes()).to_string();
        return Ok(Entry { mode, size: meta.size(), mtime: 0, links, hash });
    }
    let mut hash = String::new();
    if meta.is_file() {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        hash = hasher.finalize().to_string();
    }
    Ok(Entry { mode, size: meta.size(), mtime: meta.mtime(), links, hash })
}

/// Compares two trees as [`read`] gives them.
///
/// # Panics
/// If they differ; the message names the first few differences.
#[track_caller]
pub fn assert_same(want: &BTreeMap<PathBuf, Entry>, found: &BTreeMap<PathBuf, Entry>) {
    let differences = differences(want, found);
    let few = differences.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n  ");
    assert!(differences.is_empty(), "{} differences, first:\n  {few}", differences.len());
}

fn differences(want: &BTreeMap<PathBuf, Entry>, found: &BTreeMap<PathBuf, Entry>) -> Vec<String> {
    let paths = want.keys().chain(found.keys().filter(|path| !want.contains_key(*path)));
    paths
        .filter_map(|path| match (want.get(path), found.get(path)) {
            (Some(a), Some(b)) if a == b => None,
            (Some(a), Some(b)) => Some(format!("{}: wanted {a:?}, found {b:?}", path.display())),
            (Some(_), None) => Some(format!("{}: missing", path.display())),
            (None, _) => Some(format!("{}: should not be there", path.display())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_the_same_every_time_and_of_the_promised_shape() {
        let files = plan(2000, 1);
        assert_eq!(files, plan(2000, 1));
        assert_ne!(files, plan(2000, 2));
        let mut sizes: Vec<_> = files.iter().map(|file| file.size).collect();
        sizes.sort_unstable();
        assert!((3 << 10..6 << 10).contains(&sizes[1000]), "median {}", sizes[1000]);
        assert!(sizes[0] == 0 && sizes[1999] > 64 << 10, "{} to {}", sizes[0], sizes[1999]);
    }

    #[test]
    fn a_tree_equals_its_copy_and_not_a_damaged_one() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let files = plan(60, 3);
        for root in [&a, &b] {
            fs::create_dir(root).expect("mkdir");
            make(root, &files);
        }
        assert_same(&read(&a), &read(&b));
        let victim = files.iter().find(|file| file.size > 10).expect("one is longer");
        let bytes = fs::read(b.join(&victim.path)).expect("read");
        let (path, time) = (b.join(&victim.path), fs::metadata(b.join(&victim.path)).expect("stat"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        fs::write(&path, [&bytes[..bytes.len() - 1], &[!bytes[bytes.len() - 1]]].concat()).expect("write");
        let file = File::options().write(true).open(&path).expect("open");
        file.set_modified(time.modified().expect("mtime")).expect("utimes");
        fs::set_permissions(&path, time.permissions()).expect("chmod");
        assert_eq!(differences(&read(&a), &read(&b)).len(), 1 + usize::from(time.nlink() > 1));
        fs::remove_file(b.join("a dangling link")).expect("unlink");
        assert!(differences(&read(&a), &read(&b)).iter().any(|line| line.contains("missing")));
        assert!(differences(&read(&b), &read(&a)).iter().any(|line| line.contains("should not be there")));
    }
}
