//! A folder with what was lost: `what-was-lost.txt`, the same as lines of JSON, and `files`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use meta::Ino;

use super::super::error::{FsError, Result};
use super::super::view::{Part, Source};
use super::places::by_number;
use super::words::{Line, shown};

/// So much room is left on the disk in any case, bytes.
const RESERVE: u64 = 256 << 20;
/// How many folders may have been made in one second.
const SAME_SECOND: usize = 1000;

/// A folder for one loss. What can't be written to it is told in the log.
pub(super) struct Folder {
    path: PathBuf,
    list: Arc<File>,
    /// How much content may still be begun with, bytes.
    left: u64,
    kept: (usize, u64),
    missed: usize,
}

/// A file that is being written.
pub(super) struct Draft {
    file: Arc<File>,
    /// Where it is, and where it was.
    at: PathBuf,
    place: PathBuf,
}

/// Runs what waits for a disk.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Folder {
    /// Makes a folder within `within` that says what was lost. `most`: how many bytes of content may be in there,
    /// with those of all earlier losses.
    ///
    /// # Errors
    /// If it can't be made or written to.
    pub(super) async fn make(within: PathBuf, volume: &str, most: u64, lines: Vec<Line>) -> io::Result<Folder> {
        let name = format!("{volume}-{}", utc(SystemTime::now()));
        on_disk(move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&within)?;
            let left = most.saturating_sub(kept_before(&within)?);
            let path = make_new(&within, &name)?;
            let mut list = open_new(&path.join("what-was-lost.txt"), 0o600)?;
            list.write_all(HEAD.as_bytes())?;
            write_lines(&mut list, &path, &lines)?;
            File::open(&path)?.sync_all()?;
            Ok(Folder { path, list: Arc::new(list), left, kept: (0, 0), missed: 0 })
        })
        .await
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nobody has removed it.
    pub(super) async fn is_there(&self) -> bool {
        let list = self.path.join("what-was-lost.txt");
        on_disk(move || list.symlink_metadata()).await.is_ok()
    }

    /// Adds to what was lost.
    pub(super) async fn add(&mut self, lines: Vec<Line>) {
        let (list, path) = (self.list.clone(), self.path.clone());
        let added = on_disk(move || write_lines(&mut &*list, &path, &lines)).await;
        self.note(added);
    }

    async fn say(&mut self, text: String) {
        let list = self.list.clone();
        let said = on_disk(move || (&*list).write_all(text.as_bytes())).await;
        self.note(said);
    }

    fn note(&self, done: io::Result<()>) {
        if let Err(error) = done {
            tracing::error!(%error, folder = %self.path.display(), "not all that was lost is listed");
        }
    }

    /// Begins with a file that was at `place` and takes so many bytes; says why if it is left out.
    pub(super) async fn begin(&mut self, place: PathBuf, ino: Ino, bytes: u64, executable: bool) -> Option<Draft> {
        if bytes > self.left {
            self.miss(&place, "there would be more than `lost-size` allows; remove what is not wanted").await;
            return None;
        }
        let (root, wanted) = (self.path.clone(), place.clone());
        let begun = on_disk(move || {
            let space = rustix::fs::statvfs(&root)?;
            if space.f_bavail.saturating_mul(space.f_frsize) < bytes + RESERVE {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mode = if executable { 0o700 } else { 0o600 };
            let files = root.join("files");
            // What can't have its own name, for that would be too long here, has its number.
            let placed = open_at(&files, &wanted, mode);
            placed.or_else(|_| open_at(&files, &by_number(ino), mode))
        });
        match begun.await {
            Ok((file, at)) => {
                self.left -= bytes;
                Some(Draft { file: Arc::new(file), at, place })
            }
            Err(error) => {
                self.miss(&place, &error.to_string()).await;
                None
            }
        }
    }

    /// A file is whole.
    pub(super) async fn kept(&mut self, draft: Draft, bytes: u64) {
        self.kept = (self.kept.0 + 1, self.kept.1 + bytes);
        let at = draft.at.strip_prefix(&self.path).unwrap_or(&draft.at);
        self.say(format!("kept: {} is {}\n", shown(&draft.place), shown(at))).await;
    }

    /// A file could not be had.
    pub(super) async fn incomplete(&mut self, draft: Draft, why: &FsError) {
        let mut name = draft.at.file_name().unwrap_or_default().to_owned();
        name.push(".incomplete");
        let (from, to) = (draft.at.clone(), draft.at.with_file_name(name));
        // Nobody must take it for the whole.
        let marked = on_disk(move || std::fs::rename(&from, to).or_else(|_| std::fs::remove_file(&from))).await;
        self.note(marked);
        self.miss(&draft.place, &why.to_string()).await;
    }

    async fn miss(&mut self, place: &Path, why: &str) {
        self.missed += 1;
        self.say(format!("not kept: the content of {}: {why}\n", shown(place))).await;
    }

    /// All is written that could be.
    pub(super) async fn end(&mut self) {
        let (files, bytes) = self.kept;
        let missed = self.missed;
        self.say(format!("This is all: {files} files kept, {bytes} bytes; {missed} not kept.\n")).await;
        let list = self.list.clone();
        let synced = on_disk(move || list.sync_all()).await;
        self.note(synced);
        let folder = self.path.display();
        match missed {
            0 => tracing::warn!(files, bytes, %folder, "what was lost is kept"),
            _ => tracing::error!(files, bytes, missed, %folder, "not all that was lost could be kept"),
        }
    }
}

impl Draft {
    /// Writes parts that are in memory; returns how many bytes.
    pub(super) async fn write(&self, parts: Vec<Part>) -> Result<u64> {
        let file = self.file.clone();
        let written = on_disk(move || {
            let mut bytes = 0;
            for part in &parts {
                if let Source::Bytes(data) = &part.source {
                    file.write_all_at(data, part.start)?;
                    bytes += data.len() as u64;
                }
            }
            Ok(bytes)
        });
        written.await.map_err(|error| FsError::Corrupt(format!("it can't be written: {error}")))
    }

    /// All is written: the rest is a hole.
    pub(super) async fn finish(&self, size: u64) -> Result<()> {
        let file = self.file.clone();
        let finished = on_disk(move || file.set_len(size).and_then(|()| file.sync_all()));
        finished.await.map_err(|error| FsError::Corrupt(format!("it can't be written: {error}")))
    }
}

const HEAD: &str = "\
This mount was cut off, and others were given what it had leases on before it had sent everything. What follows
was done here and is not in the volume; some of it may be, where the answer was lost. Paths are as this mount saw
them. `files` has what was written, as far as the end of this list says so.

";

fn write_lines(list: &mut impl io::Write, folder: &Path, lines: &[Line]) -> io::Result<()> {
    let (mut text, mut json) = (String::new(), String::new());
    for line in lines {
        text.push_str(line.text());
        text.push('\n');
        json.push_str(&serde_json::to_string(line).map_err(io::Error::other)?);
        json.push('\n');
    }
    list.write_all(text.as_bytes())?;
    let path = folder.join("what-was-lost.jsonl");
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(json.as_bytes())?;
    file.sync_all()
}

/// How many bytes of content were kept in earlier folders and not removed.
fn kept_before(within: &Path) -> io::Result<u64> {
    let (mut bytes, mut left) = (0, Vec::new());
    for folder in std::fs::read_dir(within)? {
        let files = folder?.path().join("files");
        left.extend(files.symlink_metadata().is_ok_and(|of| of.is_dir()).then_some(files));
    }
    while let Some(folder) = left.pop() {
        // Somebody may be removing it.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(of) if of.is_dir() => left.push(entry.path()),
                Ok(of) => bytes += of.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    Ok(bytes)
}

/// A folder that nobody else has.
fn make_new(within: &Path, name: &str) -> io::Result<PathBuf> {
    let names = (1..SAME_SECOND).map(|count| if count == 1 { name.to_owned() } else { format!("{name}-{count}") });
    for name in names {
        let path = within.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn open_new(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// A new file at that place, or beside it if there is one.
fn open_at(files: &Path, place: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    let path = files.join(place);
    DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(files))?;
    let mut name = path.clone().into_os_string();
    for _ in 0..SAME_SECOND {
        match open_new(Path::new(&name), mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => name.push(".later"),
            opened => return opened.map(|file| (file, name.into())),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A moment as `2026-02-03T04-05-06Z`.
#[must_use]
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin with March, so that a leap day is a year's last: Hinnant, "chrono-compatible date algorithms".
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_as_the_calendar_has_them() {
        let at = |seconds| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00-00-00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23-59-59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00-00-00Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23-59-59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00-00-00Z");
    }
}
