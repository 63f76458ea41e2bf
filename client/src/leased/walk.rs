//! How far ahead directories and files are fetched when somebody walks through a tree.

use std::collections::VecDeque;
use std::time::Duration;

use meta::{Content, Ino, State};
use tokio::time::Instant;

/// What comes so soon after a fetch belongs to the same walk.
const STRIDE: Duration = Duration::from_millis(100);
/// How many directories are asked for ahead first.
const FIRST: usize = 4;

/// How somebody walks through directories that are not here yet. One `stat` deep down fetches each directory on
/// its way and little more; `find` soon fetches as many at a time as fit into an answer.
#[derive(Debug, Default)]
pub(super) struct Walk {
    ended: Option<Instant>,
    width: usize,
}

impl Walk {
    /// A directory is fetched now: how many others are worth asking for with it.
    pub(super) fn begin(&mut self) -> usize {
        let goes_on = self.ended.is_some_and(|ended| ended.elapsed() < STRIDE);
        self.width = if goes_on { (self.width * 2).clamp(FIRST, meta::ALSO_MAX) } else { 0 };
        self.width
    }

    /// It is here.
    pub(super) fn end(&mut self) {
        self.ended = Some(Instant::now());
    }
}

/// Files are fetched ahead up to this long, bytes.
const FILE_MAX: u64 = 256 << 10;
/// So many are, at most.
const FILES_MAX: usize = 64;
/// Whoever skips so many names reads at random.
const NEAR: usize = 8;
/// In so many directories at a time readers are known.
const READERS_MAX: usize = 16;

/// Who reads the files of a directory one after the other, as `tar` and `grep -r` do.
#[derive(Debug, Default)]
pub(super) struct Readers(VecDeque<(Ino, Reader)>);

#[derive(Debug, Default)]
struct Reader {
    /// The file that is read, and its place.
    ino: Ino,
    at: u64,
    /// How far files were asked for, and how many of them are not read yet.
    until: u64,
    ahead: usize,
    width: usize,
}

impl Readers {
    /// A file is read from its beginning: those that are worth fetching ahead.
    pub(super) fn read(&mut self, copy: &State, ino: Ino) -> Vec<(Ino, Content)> {
        let Some(home) = copy.home_of(ino) else { return Vec::new() };
        let known = self.0.iter().position(|(directory, _)| *directory == home).and_then(|index| self.0.remove(index));
        let goes_on = known.is_some();
        let mut reader = known.map_or_else(Reader::default, |(_, reader)| reader);
        if reader.ino != ino {
            let mut near = copy.names_after(home, reader.at).take(NEAR).enumerate();
            let Some((passed, (at, ..))) = near.find(|(_, (_, next, _))| *next == ino) else { return Vec::new() };
            (reader.ino, reader.at, reader.until) = (ino, at, reader.until.max(at));
            reader.ahead = reader.ahead.saturating_sub(passed + 1);
            reader.width = if goes_on { (reader.width * 2).clamp(FIRST, FILES_MAX) } else { 0 };
        }
        let wanted = if reader.ahead * 2 <= reader.width { reader.width - reader.ahead } else { 0 };
        let mut files = Vec::new();
        for (at, next, content) in copy.names_after(home, reader.until).take(wanted) {
            reader.until = at;
            reader.ahead += 1;
            files.extend(
                content.filter(|content| (1..=FILE_MAX).contains(&content.size)).map(|one| (next, one.clone())),
            );
        }
        self.0.truncate(READERS_MAX - 1);
        self.0.push_front((home, reader));
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longer_a_walk_the_more_is_asked_for_until_it_pauses() {
        let mut walk = Walk::default();
        let mut widths = Vec::new();
        for pause in [0, 1, 1, 1, 1, 1, 1, 200, 1] {
            tokio::time::advance(Duration::from_millis(pause)).await;
            widths.push(walk.begin());
            walk.end();
        }
        assert_eq!(widths, [0, 4, 8, 16, 32, 64, 64, 0, 4]);
    }
}
