//! Trash in the tree: `.mangrove/trash` is the root directory as the trash has it.
//!
//! A directory shows there what was thrown away from it, and its subdirectories, so that everything is found by the
//! path that it had. Of what had the same name in turn the last is found by it, and the others by that and a number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunk::name::DirectoryKey;
use meta::{
    Answer, Attr, Call, Caller, Denied, DirEntry, Ino, Kind, NAME_MAX, Op, RenameHow, Reply, THROWN_BEFORE,
    THROWN_HIDDEN, THROWN_SHIFT,
};

use super::error::{FsError, Result};
use super::names::{Entries, Entry, check_name};
use super::{Filesystem, Shared, unexpected};
use crate::backend::{BlockStore, Metadata};

/// What was in a directory, or why that is not known.
type Inner = Result<Vec<DirEntry>>;

/// Cookies from here on are of what was thrown away, those below of subdirectories.
const THROWN: u64 = 1 << 62;
/// Most names that are given back at once.
const RESTORED_MAX: usize = 128;

/// For how long a name in the trash that led to a directory is taken to lead there: every path goes by some.
const WAY: Duration = Duration::from_secs(1);
const WAYS_MAX: usize = 4096;

/// Directories that were found in the trash a moment ago, by who looked there.
#[derive(Default)]
pub(super) struct Ways(HashMap<(Ino, Vec<u8>), (Instant, Caller, Attr)>);

impl Ways {
    fn find(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Option<Attr> {
        let (at, by, attr) = self.0.get(&(parent, name.to_vec()))?;
        (at.elapsed() < WAY && by == caller).then_some(*attr)
    }

    fn forget(&mut self, ino: Ino) {
        self.0.retain(|_, (.., found)| found.ino != ino);
    }

    fn note(&mut self, caller: &Caller, parent: Ino, name: &[u8], found: Attr) {
        if self.0.len() >= WAYS_MAX {
            self.0.retain(|_, (at, ..)| at.elapsed() < WAY);
        }
        if self.0.len() < WAYS_MAX {
            self.0.insert((parent, name.to_vec()), (Instant::now(), caller.clone(), found));
        }
    }
}

/// The name by which something is found that another hides.
fn numbered(name: &[u8], ino: Ino) -> Vec<u8> {
    let suffix = format!("~{}~", ino.now().0);
    match name.len() + 1 + suffix.len() {
        len if len > NAME_MAX => suffix.into_bytes(),
        _ => [name, b".", suffix.as_bytes()].concat(),
    }
}

/// The number in such a name.
fn number_in(name: &[u8]) -> Option<Ino> {
    let digits = name.strip_suffix(b"~")?.rsplit(|byte| *byte == b'~').next()?;
    let plain = digits.first().is_some_and(|first| (b'1'..=b'9').contains(first));
    let number = std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()?;
    Some(Ino(number)).filter(|ino| ino.now() == *ino)
}

/// A subdirectory, as the trash has it.
fn in_trash(attr: Attr) -> Attr {
    Attr { ino: attr.ino.in_trash(), nlink: 1, ..attr }
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// What was thrown away from a directory, and its subdirectories.
    pub(super) async fn list_trash(&self, caller: &Caller, ino: Ino, mut cookie: u64, max: u32) -> Result<Entries> {
        while cookie < THROWN {
            let there = match Box::pin(self.readdir(caller, ino.now(), cookie, max)).await {
                Ok(there) => there,
                // It was thrown away itself. Whether this caller may see what is in it replicas say.
                Err(FsError::Denied(_)) => break,
                Err(error) => return Err(error),
            };
            cookie = there.entries.last().map_or(THROWN, |entry| entry.cookie);
            let directories = there.entries.into_iter().filter(|entry| entry.attr.kind == Kind::Directory);
            let entries: Vec<Entry> = directories.map(|entry| Entry { attr: in_trash(entry.attr), ..entry }).collect();
            if !entries.is_empty() {
                return Ok(Entries { entries, end: false });
            }
            if there.end {
                break;
            }
        }
        let (listed, end) = self.shared.list_thrown(caller, ino, cookie.saturating_sub(THROWN), max).await?;
        let key = DirectoryKey::new(&self.shared.chunks.keys, ino.now().0);
        let shown = listed.into_iter().filter_map(|entry| {
            let name = key.open(entry.name.as_bytes()).ok().filter(|name| check_name(name).is_ok())?;
            let name = if entry.cookie & THROWN_HIDDEN == 0 { name } else { numbered(&name, entry.attr.ino) };
            Some(Entry { cookie: THROWN + entry.cookie, name, attr: self.shared.localize(entry.attr) })
        });
        Ok(Entries { entries: shown.collect(), end })
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Some of what was thrown away from a directory, after a cookie of replicas'; and whether that is all.
    async fn list_thrown(&self, caller: &Caller, ino: Ino, cookie: u64, max: u32) -> Result<(Vec<DirEntry>, bool)> {
        let max = max.clamp(1, meta::ENTRIES_MAX);
        match self.call(caller, Op::ReadDir { ino, cookie, max }).await? {
            Reply::Entries { entries, end } => Ok((entries, end)),
            other => Err(unexpected(&other)),
        }
    }

    /// Finds a name in a directory of the trash.
    ///
    /// # Errors
    /// `Denied(NotFound)` and others.
    pub(super) async fn find_thrown(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        if let Some(found) = self.ways.lock().find(caller, parent, name) {
            return Ok(found);
        }
        let sealed = self.seal_name(parent, name)?;
        let found = match self.look_attr(caller, Op::Lookup { parent, name: sealed }).await {
            Err(FsError::Denied(Denied::NotFound)) => self.find_numbered(caller, parent, name).await,
            found => found,
        }?;
        if found.kind == Kind::Directory {
            self.ways.lock().note(caller, parent, name, found);
        }
        Ok(found)
    }

    async fn find_numbered(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        let number = number_in(name).ok_or(Denied::NotFound)?;
        let before = (number.0 - 1) << THROWN_SHIFT;
        let (found, _) = self.list_thrown(caller, parent, before, 1).await?;
        let key = DirectoryKey::new(&self.chunks.keys, parent.now().0);
        let is_it = |entry: &DirEntry| {
            let plain = key.open(entry.name.as_bytes());
            entry.attr.ino.now() == number && plain.is_ok_and(|plain| numbered(&plain, number) == name)
        };
        let found = found.into_iter().find(is_it).ok_or(Denied::NotFound)?;
        Ok(self.localize(found.attr))
    }

    /// Ends something in the trash before its time.
    ///
    /// # Errors
    /// `Denied(ReadOnly)` for directories that were not thrown away; `NotEmpty` and others.
    pub(super) async fn purge(&self, caller: &Caller, parent: Ino, name: &[u8], directory: bool) -> Result<()> {
        let attr = self.find_thrown(caller, parent, name).await?;
        match (attr.kind == Kind::Directory, directory) {
            (true, false) => return Err(Denied::IsDirectory.into()),
            (false, true) => return Err(Denied::NotDirectory.into()),
            _ => {}
        }
        self.ways.lock().forget(attr.ino);
        self.call_unit(caller, Op::Purge { ino: attr.ino.now() }).await.map_err(still_there)
    }

    /// Gives something in the trash a name again; a directory with what was in it when it was removed.
    ///
    /// # Errors
    /// `Denied(Exists)` if the name is taken, whatever `how` says; `ReadOnly` for directories that were not thrown
    /// away; and others. If not all that was in a directory could be given back, the first reason.
    pub(super) async fn restore(
        self: &Arc<Self>,
        caller: &Caller,
        (from, from_name): (Ino, &[u8]),
        (to, to_name): (Ino, &[u8]),
        how: RenameHow,
    ) -> Result<()> {
        if to.snapshot() != 0 || how == RenameHow::Exchange {
            return Err(Denied::ReadOnly.into());
        }
        let name = self.seal_name(to, to_name)?;
        let attr = self.find_thrown(caller, from, from_name).await?;
        *self.ways.lock() = Ways::default();
        let (shared, caller, ino) = (self.clone(), caller.clone(), attr.ino.now());
        // Goes on even if the caller stops waiting.
        let restored = tokio::spawn(async move {
            let inner = shared.inner(&caller, attr.kind, ino).await;
            let restored = shared.call_attr(&caller, Op::Restore { ino, parent: to, name }).await;
            restored.map_err(still_there)?;
            shared.note_restored(ino);
            shared.restore_below(&caller, ino, inner).await
        });
        restored.await.map_err(|failure| FsError::Unavailable(failure.to_string()))?
    }

    /// What lost its last name here has one by this answer: it is of before, or it was restored elsewhere.
    pub(super) async fn look_if_restored(&self, caller: &Caller, answered: &Attr) {
        let lost = self.opening.lock().is_lost(answered.ino).unwrap_or(true);
        if lost && answered.nlink > 0 && self.is_restored(caller, answered.ino).await {
            self.note_restored(answered.ino);
        }
    }

    /// Whether what lost its last name here has one again.
    pub(super) async fn is_restored(&self, caller: &Caller, ino: Ino) -> bool {
        let asked = self.call_attr(caller, Op::GetAttr { ino }).await;
        asked.is_ok_and(|attr| attr.nlink > 0)
    }

    /// It may be opened again, and nobody lets go of it.
    fn note_restored(&self, ino: Ino) {
        self.opening.lock().find(|lost| lost == ino);
    }

    /// What was in a directory when it was thrown away. To be asked before it is there again.
    async fn inner(&self, caller: &Caller, kind: Kind, ino: Ino) -> Inner {
        let (mut inner, mut cookie, mut end) = (Vec::new(), 0, kind != Kind::Directory);
        while !end {
            let (listed, last) = self.list_thrown(caller, ino.in_trash(), cookie, meta::ENTRIES_MAX).await?;
            (cookie, end) = (listed.last().map_or(cookie, |entry| entry.cookie), last || listed.is_empty());
            inner.extend(listed.into_iter().filter(|entry| entry.cookie & (THROWN_HIDDEN | THROWN_BEFORE) == 0));
        }
        Ok(inner)
    }

    /// Gives back what was in a directory that is there again, and in those in it. What can't be is left in the
    /// trash.
    async fn restore_below(&self, caller: &Caller, top: Ino, inner: Inner) -> Result<()> {
        let (mut ahead, mut failed) = (vec![(top, inner)], None);
        while let Some((directory, inner)) = ahead.pop() {
            let entries = match inner {
                Ok(entries) => entries,
                Err(error) => {
                    failed.get_or_insert(error);
                    continue;
                }
            };
            for entries in entries.chunks(RESTORED_MAX) {
                let mut inner = Vec::with_capacity(entries.len());
                for entry in entries {
                    inner.push(self.inner(caller, entry.attr.kind, entry.attr.ino.now()).await);
                }
                let calls = entries.iter().map(|entry| {
                    let op = Op::Restore { ino: entry.attr.ino.now(), parent: directory, name: entry.name.clone() };
                    Call { caller: caller.clone(), op }
                });
                let answers = self.calls(calls.collect()).await?;
                for ((entry, inner), answer) in entries.iter().zip(inner).zip(answers) {
                    match answer {
                        Answer::Done(Reply::Attr(attr)) => {
                            self.note_restored(attr.ino);
                            self.localize(attr);
                        }
                        Answer::Done(other) => return Err(unexpected(&other)),
                        // If it is not there any more, whoever restores it at the same time has, or its time was up.
                        Answer::Denied(Denied::NotFound) => {}
                        Answer::Denied(why) => {
                            failed.get_or_insert(why.into());
                            continue;
                        }
                    }
                    ahead.push((entry.attr.ino.now(), inner));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// What is found in the trash and is not in it is a directory that is still there.
fn still_there(error: FsError) -> FsError {
    match error {
        FsError::Denied(Denied::NotFound) => Denied::ReadOnly.into(),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_a_name_is_the_one_that_was_put_there() {
        let long = vec![b'x'; NAME_MAX - 2];
        for name in [&b"report.txt"[..], b"~1~", b"a.~7~", &long] {
            assert_eq!(number_in(&numbered(name, Ino(77).in_trash())), Some(Ino(77)));
        }
        assert_eq!(numbered(b"a", Ino(7)), b"a.~7~");
        let endless = [&b"a.~"[..], &[b'9'; 30], b"~"].concat();
        for none in [&b""[..], b"~", b"~~", b"a", b"a.~~", b"a.~x~", b"a.~0~", b"a.~+7~", b"a.~7", &endless] {
            assert_eq!(number_in(none), None, "{none:?}");
        }
        let tagged = format!("a.~{}~", Ino(7).in_trash().0);
        assert_eq!(number_in(tagged.as_bytes()), None);
    }
}
