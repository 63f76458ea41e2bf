//! Looking at the trash: what was thrown away ([`crate::trash`]) in the directories that it was in.

use base::{DecodeError, PublicKey};
use bytes::Bytes;

use crate::access::{Context, EXECUTE, Grant, READ, SET_IDS};
use crate::directory::{Entry, LISTING_LEN_MAX, listed_len};
use crate::inode::{Body, Inode};
use crate::op::{
    Answer, Attr, Call, Denied, DirEntry, ENTRIES_MAX, Ino, Kind, Op, Reply, Row, SealedName, Snapshot, Volume,
    VolumeId,
};
use crate::past::{PastKey, PastRow, answered, in_snapshot};
use crate::read::Look;
use crate::state::State;
use crate::trash::{SKIPPED_MAX, THROWN_BEFORE, THROWN_HIDDEN, THROWN_SHIFT};
use crate::volume::Usage;
use crate::xattr::XattrKey;

/// A volume's trash, to be looked at: a name leads to a directory that is there, or else to what was thrown away
/// last.
pub(crate) struct Bin<'a> {
    pub(crate) state: &'a State,
    pub(crate) cx: &'a Context<'a>,
}

impl Look for Bin<'_> {
    fn grant_row(&self, who: &PublicKey) -> Option<Grant> {
        self.state.grant_row(who)
    }

    fn inode_row(&self, ino: Ino) -> Option<&Inode> {
        let inode = self.state.inodes.get(&ino)?;
        let thrown = self.state.thrown.get(&ino);
        let over = thrown.is_some_and(|thrown| self.state.has_been_kept(inode.attr.volume, thrown.at));
        (!over).then_some(&**inode)
    }

    fn entry_row(&self, key: &(Ino, SealedName)) -> Option<Entry> {
        let thrown = || self.state.bins.latest(key.0, &key.1).filter(|ino| self.shows(*ino));
        let ino = self.directory_of(key).or_else(thrown)?;
        Some(Entry { ino, cookie: ino.0 << THROWN_SHIFT })
    }

    fn xattr_row(&self, key: &XattrKey) -> Option<&Bytes> {
        self.state.xattr_row(key)
    }

    fn volume_row(&self, volume: VolumeId) -> Option<&Volume> {
        self.state.volume_row(volume)
    }

    fn usage_row(&self, volume: VolumeId) -> Option<Usage> {
        self.state.usage_row(volume)
    }

    fn snapshot_row(&self, number: u64) -> Option<&Snapshot> {
        self.state.snapshot_row(number)
    }

    fn past_row(&self, key: &(u64, PastKey)) -> Option<&PastRow> {
        self.state.past_row(key)
    }

    fn next_volume(&self) -> VolumeId {
        self.state.next_volume()
    }
}

impl Bin<'_> {
    /// Whether something is in the trash, and the caller could find it when it was thrown away.
    fn shows(&self, ino: Ino) -> bool {
        let Ok((inode, _)) = self.state.in_bin(ino) else { return false };
        self.state.thrown.get(&ino).is_some_and(|thrown| thrown.let_in(self.cx, &inode.attr, EXECUTE))
    }

    /// What was thrown away from a directory.
    fn read_dir(&self, home: Ino, cookie: u64, max: u32) -> Result<Reply, Denied> {
        let directory = self.directory(home)?;
        self.cx.need(directory, READ)?;
        if max == 0 {
            return Err(Denied::Invalid);
        }
        let (mut entries, mut len, mut over, mut withheld) = (Vec::new(), 0, 0, 0);
        for ino in self.state.bins.after(home, Ino(cookie >> THROWN_SHIFT)) {
            let Some(thrown) = self.state.thrown.get(&ino).filter(|_| self.shows(ino)) else {
                let is_over = self.state.in_bin(ino).is_err();
                (over, withheld) = (over + usize::from(is_over), withheld + usize::from(!is_over));
                match () {
                    // What is left is shown once more of it has gone.
                    () if over > SKIPPED_MAX => break,
                    () if withheld > SKIPPED_MAX => return Err(Denied::Access),
                    () => continue,
                }
            };
            if entries.len() >= max.min(ENTRIES_MAX) as usize || len >= LISTING_LEN_MAX {
                return Ok(Reply::Entries { entries, end: false });
            }
            let hidden = self.entry(home, &thrown.name).is_none_or(|entry| entry.ino != ino);
            let before = thrown.is_before(directory, self.state.thrown.get(&home));
            let marks = if hidden { THROWN_HIDDEN } else { 0 } | if before { THROWN_BEFORE } else { 0 };
            let cookie = ino.0 << THROWN_SHIFT | marks;
            let entry = DirEntry { cookie, name: thrown.name.clone(), attr: *self.attr(ino)? };
            len += listed_len(&entry);
            entries.push(entry);
        }
        Ok(Reply::Entries { entries, end: true })
    }

    /// The directory that has this name.
    fn directory_of(&self, key: &(Ino, SealedName)) -> Option<Ino> {
        let inode = self.state.entries.get(key).and_then(|entry| self.state.inode_row(entry.ino))?;
        matches!(inode.body, Body::Directory { .. }).then_some(inode.attr.ino)
    }

    /// What was thrown away from a directory next, and the name that it had.
    pub(crate) fn name_after(&self, home: Ino, cookie: u64) -> Option<(u64, SealedName)> {
        let ino = self.state.bins.after(home, Ino(cookie >> THROWN_SHIFT)).next()?;
        self.state.thrown.get(&ino).map(|thrown| (ino.0 << THROWN_SHIFT, thrown.name.clone()))
    }
}

impl State {
    /// What `op` reads of the trash.
    pub(crate) fn read_trash(&self, cx: &Context<'_>, op: &Op) -> Result<Reply, Denied> {
        let bin = Bin { state: self, cx };
        let reply = match op {
            Op::ReadDir { ino, cookie, max } => bin.read_dir(*ino, *cookie, *max),
            // One directory at a time: of what is not to be seen no row fills the answer.
            Op::Fetch { ino, cookie, .. } => bin.fetch(*ino, *cookie),
            Op::ListXattr { ino } => Ok(self.names_of_xattrs(cx, bin.inode(*ino)?)),
            op => bin.read(cx, op).unwrap_or(Err(Denied::ReadOnly)),
        }?;
        Ok(answered(Ino::TRASH, reply))
    }
}

/// The same answer about what is in the trash: it has a name there; how many subdirectories nobody counts.
pub(crate) fn named(attr: &mut Attr) {
    attr.nlink = if attr.kind == Kind::Directory { 1 } else { attr.nlink.max(1) };
    if attr.kind == Kind::File {
        // Whoever replaced a program had a reason.
        attr.mode &= !SET_IDS;
    }
}

/// A copy of what was thrown away, at whoever looks at it: rows that were fetched.
impl State {
    /// Adds rows that replicas gave of the trash. What was here under the same name is replaced.
    ///
    /// # Errors
    /// If they are not rows of a state.
    pub fn learn_thrown(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        let rows: Vec<_> = rows.iter().map(|(name, value)| (name.to_vec(), Some(value.to_vec()))).collect();
        self.patch_rows(&rows)?;
        self.forget_changes();
        Ok(())
    }

    /// It is to end.
    pub fn forget_thrown(&mut self, ino: Ino) {
        self.inodes.remove(&ino);
    }

    /// Answers a call about what is in the trash, if what it looks at is here. Of names only what they lead to is
    /// told, not that there is nothing.
    #[must_use]
    pub fn look_into_trash(&self, who: &PublicKey, call: &Call) -> Option<Answer> {
        let (_, op) = in_snapshot(&call.op)?.ok()?;
        let known = |ino: Ino| self.inodes.get(&ino).is_some();
        let there = match &op {
            Op::Lookup { parent, name } => {
                known(*parent) && self.entry(*parent, name).is_some_and(|entry| known(entry.ino))
            }
            op => self.has_looked_at(op),
        };
        if there { self.answer_past(who, &call.caller, Ino::TRASH, &op) } else { None }
    }
}
