//! Trash: what lost its last name stays for a while, and is found where it was.
//!
//! It is in no directory any more, and nothing that looks at inodes and names sees it, except that an orphan is
//! still there for who has it open. Inodes *in the trash* ([`Ino::in_trash`]) show it: a directory shows what was
//! thrown away from it, whether it is still there itself or was thrown away, too. Nothing is changed there;
//! [`Op::Restore`](crate::Op::Restore) gives something a name again, [`Op::Purge`](crate::Op::Purge) ends it before
//! its time.
//!
//! It counts in quotas as before, and makes room where a quota would be in the way.

use core::ops::Bound;
use core::time::Duration;

use base::{PublicKey, Time, canonical_struct};
use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use crate::access::{Context, Grant, READ, WRITE};
use crate::directory::{Entry, LISTING_LEN_MAX, listed_len, need_subdirectory};
use crate::filelocks::FileLocks;
use crate::inode::{Body, Inode};
use crate::op::{
    Answer, Attr, Call, Denied, DirEntry, ENTRIES_MAX, Ino, Kind, Op, Reply, SealedName, Snapshot, Volume, VolumeId,
};
use crate::past::{PastKey, PastRow, answered, in_snapshot};
use crate::read::Look;
use crate::state::State;
use crate::volume::Usage;
use crate::xattr::XattrKey;

/// The most that a volume's trash holds: what was thrown away first goes first.
pub const THROWN_MAX: usize = 1 << 18;
/// How much of what is over goes with a batch, and one more for each call.
const REAPED_MAX: usize = 1024;
/// How much goes at most for an operation that a quota is in the way of.
const ROOM_MAX: usize = 1024;

/// What was thrown away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thrown {
    /// Where it had its last name.
    pub(crate) home: Ino,
    /// That name.
    pub(crate) name: SealedName,
    /// When: each at another time of its volume's, so that what was in a directory went before it.
    pub(crate) at: Time,
}
canonical_struct!(Thrown { home, name, at });

/// What is in the trash, by what it is looked for. Follows from the table.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Bins {
    by_home: OrdSet<(Ino, Ino)>,
    by_name: OrdSet<(Ino, SealedName, Time, Ino)>,
    by_age: OrdMap<VolumeId, OrdSet<(Time, Ino)>>,
}

impl Bins {
    fn add(&mut self, volume: VolumeId, ino: Ino, Thrown { home, name, at }: &Thrown) {
        self.by_home.insert((*home, ino));
        self.by_name.insert((*home, name.clone(), *at, ino));
        self.by_age.entry(volume).or_default().insert((*at, ino));
    }

    fn remove(&mut self, volume: VolumeId, ino: Ino, Thrown { home, name, at }: &Thrown) {
        self.by_home.remove(&(*home, ino));
        self.by_name.remove(&(*home, name.clone(), *at, ino));
        if let Some(bin) = self.by_age.get_mut(&volume) {
            bin.remove(&(*at, ino));
            if bin.is_empty() {
                self.by_age.remove(&volume);
            }
        }
    }

    /// What was thrown away from a directory, after this inode.
    fn after(&self, home: Ino, ino: Ino) -> impl Iterator<Item = Ino> {
        let range = (Bound::Excluded((home, ino)), Bound::Included((home, Ino(u64::MAX))));
        self.by_home.range(range).map(|(_, ino)| *ino)
    }

    fn has_any_of(&self, home: Ino) -> bool {
        self.after(home, Ino(0)).next().is_some()
    }

    /// The last that was thrown away from this directory with this name.
    fn latest(&self, home: Ino, name: &SealedName) -> Option<Ino> {
        let key = |at, ino| (home, name.clone(), at, ino);
        let range = key(Time::ZERO, Ino(0))..=key(Time(u64::MAX), Ino(u64::MAX));
        self.by_name.range(range).next_back().map(|(.., ino)| *ino)
    }
}

/// What is done with it.
impl State {
    /// Puts what has no name any more into the trash, if its volume has one. Says whether it did.
    pub(crate) fn throw(&mut self, cx: &Context<'_>, ino: Ino, home: Ino, name: &SealedName) -> bool {
        let Some(attr) = self.inodes.get(&ino).map(|inode| inode.attr) else { return false };
        let kept = self.volumes.get(&attr.volume).is_some_and(|volume| volume.spec.trash != 0);
        // What was thrown away from it before is found by it.
        if !kept && !self.bins.has_any_of(ino) {
            return false;
        }
        let bin = self.bins.by_age.get(&attr.volume);
        let last = bin.and_then(OrdSet::get_max).map_or(Time::ZERO, |(at, _)| at.after(Duration::from_nanos(1)));
        if let Some((_, oldest)) = bin.filter(|bin| bin.len() >= THROWN_MAX).and_then(OrdSet::get_min) {
            self.give_up(*oldest);
        }
        let thrown = Thrown { home, name: name.clone(), at: self.clock.last.max(last) };
        self.bins.add(attr.volume, ino, &thrown);
        self.thrown.insert(ino, thrown);
        if attr.kind == Kind::Directory {
            self.end_zone(ino);
            let directory = self.change(ino);
            directory.attr.nlink = 0;
            directory.touch(cx.stamp());
        }
        true
    }

    /// Ends what was thrown away; whoever has it open keeps it as an orphan.
    fn give_up(&mut self, ino: Ino) {
        self.take_out(ino);
        if self.orphans.get(&ino).is_none() {
            self.destroy(ino);
        }
    }

    fn take_out(&mut self, ino: Ino) {
        let volume = self.inodes.get(&ino).map(|inode| inode.attr.volume);
        if let (Some(volume), Some(thrown)) = (volume, self.thrown.remove(&ino)) {
            self.bins.remove(volume, ino, &thrown);
        }
    }

    /// Whether something is thrown away, and not open.
    pub(crate) fn is_thrown(&self, ino: Ino) -> bool {
        self.thrown.get(&ino).is_some() && self.orphans.get(&ino).is_none()
    }

    /// An orphan in the trash is an orphan no more.
    pub(crate) fn close_thrown(&mut self, ino: Ino) {
        self.set_locks(ino, FileLocks::default());
    }

    /// Ends some of what was thrown away long enough ago, for a batch of so many calls.
    pub(crate) fn reap_trash(&mut self, calls: usize) {
        let mut left = REAPED_MAX + calls;
        let volumes: Vec<VolumeId> = self.bins.by_age.keys().copied().collect();
        for volume in volumes {
            while left > 0
                && let Some((at, ino)) = self.oldest(volume)
                && self.has_been_kept(volume, at)
            {
                self.give_up(ino);
                left -= 1;
            }
        }
    }

    fn oldest(&self, volume: VolumeId) -> Option<(Time, Ino)> {
        self.bins.by_age.get(&volume)?.get_min().copied()
    }

    /// Whether what was thrown away then has been there for long enough.
    fn has_been_kept(&self, volume: VolumeId, at: Time) -> bool {
        let emptied = self.emptied.get(&volume).is_some_and(|emptied| at <= *emptied);
        let kept = self.volumes.get(&volume).map_or(0, |volume| volume.spec.trash);
        emptied || at.after(Duration::from_secs(kept.into())) <= self.clock.last
    }

    /// Does an operation; with less in the trash, if there a quota was in the way.
    pub(crate) fn apply_op(&mut self, cx: &Context<'_>, op: &Op) -> Result<Reply, Denied> {
        let result = self.apply_once(cx, op);
        if result != Err(Denied::Quota) {
            return result;
        }
        let oldest = self.in_the_way(op);
        if oldest.is_empty() {
            return result;
        }
        let before = self.clone();
        oldest.into_iter().for_each(|ino| self.give_up(ino));
        let result = self.apply_once(cx, op);
        if result.is_err() {
            *self = before;
        }
        result
    }

    /// What was thrown away first in an operation's volume, as much as has to go for it; nothing if that is not
    /// enough.
    fn in_the_way(&self, op: &Op) -> Vec<Ino> {
        let (ino, inodes, content) = match op {
            Op::Create { parent, .. } | Op::CreateUnnamed { parent, .. } => (*parent, 1, 0),
            Op::Commit(commit) => (commit.ino, 0, commit.content.allocated),
            _ => return Vec::new(),
        };
        let Some(attr) = self.inodes.get(&ino).map(|inode| inode.attr) else { return Vec::new() };
        let Some(space) = self.space(attr.volume) else { return Vec::new() };
        let beyond = |used: u64, more: u64, quota: u64| used.saturating_add(more).saturating_sub(quota);
        let grown = if inodes == 0 { content.saturating_sub(attr.allocated) } else { 0 };
        let bytes = if space.quota_bytes == 0 { 0 } else { beyond(space.used_bytes, grown, space.quota_bytes) };
        let inodes = if space.quota_inodes == 0 { 0 } else { beyond(space.used_inodes, inodes, space.quota_inodes) };
        let (mut gone, mut freed) = (Vec::new(), (0, 0));
        let bin = self.bins.by_age.get(&attr.volume).into_iter().flatten();
        for ino in bin.map(|(_, ino)| *ino).take(ROOM_MAX) {
            if freed.0 >= bytes && freed.1 >= inodes {
                break;
            }
            if self.orphans.get(&ino).is_none() {
                let allocated = self.inodes.get(&ino).map_or(0, |inode| inode.attr.allocated);
                freed = (freed.0 + allocated, freed.1 + 1);
            }
            gone.push(ino);
        }
        if freed.0 >= bytes && freed.1 >= inodes { gone } else { Vec::new() }
    }

    /// Gives something in the trash a name again: who could take it away from where it was may, and name it there.
    pub(crate) fn restore(
        &mut self,
        cx: &Context<'_>,
        ino: Ino,
        parent: Ino,
        name: &SealedName,
    ) -> Result<Reply, Denied> {
        let (inode, home) = self.in_bin(ino)?;
        let attr = inode.attr;
        cx.need_removal(home, &attr)?;
        let directory = self.searchable(cx, parent)?;
        if self.entry(parent, name).is_some() {
            return Err(Denied::Exists);
        }
        cx.need(directory, WRITE)?;
        if attr.volume != directory.attr.volume {
            return Err(Denied::CrossVolume);
        }
        let is_directory = attr.kind == Kind::Directory;
        if is_directory {
            need_subdirectory(&directory.attr)?;
            if home.attr.ino != parent {
                cx.need(inode, WRITE)?;
            }
        }
        self.take_out(ino);
        self.end_orphan(ino);
        self.bind(parent, name, ino, None);
        self.touch_directory(cx.stamp(), parent, 1, i32::from(is_directory));
        let inode = self.change(ino);
        inode.attr.nlink = if is_directory { 2 } else { 1 };
        inode.home = parent;
        inode.touch(cx.stamp());
        Ok(Reply::Attr(inode.attr))
    }

    /// Ends something in the trash before its time: who could take it away from where it was may.
    pub(crate) fn purge(&mut self, cx: &Context<'_>, ino: Ino) -> Result<Reply, Denied> {
        let (inode, home) = self.in_bin(ino)?;
        cx.need_removal(home, &inode.attr)?;
        if self.bins.has_any_of(ino) {
            return Err(Denied::NotEmpty);
        }
        self.give_up(ino);
        Ok(Reply::Unit)
    }

    /// What is in the trash and not over, and where it was.
    fn in_bin(&self, ino: Ino) -> Result<(&Inode, &Inode), Denied> {
        let thrown = self.thrown.get(&ino).ok_or(Denied::NotFound)?;
        let inode = |ino: Ino| self.inodes.get(&ino).map(|inode| &**inode).ok_or(Denied::Stale);
        let (inode, home) = (inode(ino)?, inode(thrown.home)?);
        if self.has_been_kept(inode.attr.volume, thrown.at) {
            return Err(Denied::NotFound);
        }
        Ok((inode, home))
    }

    pub(crate) fn trash_keep(&mut self, cx: &Context<'_>, volume: VolumeId, seconds: u32) -> Result<Reply, Denied> {
        self.need_admin(cx, volume)?;
        if let Some(volume) = self.volumes.change(&volume) {
            volume.spec.trash = seconds;
        }
        Ok(Reply::Unit)
    }

    pub(crate) fn trash_empty(&mut self, cx: &Context<'_>, volume: VolumeId) -> Result<Reply, Denied> {
        self.need_admin(cx, volume)?;
        let bin = self.bins.by_age.get(&volume).and_then(OrdSet::get_max);
        if let Some((last, _)) = bin.copied() {
            self.emptied.insert(volume, last);
        }
        Ok(Reply::Unit)
    }

    fn need_admin(&self, cx: &Context<'_>, volume: VolumeId) -> Result<(), Denied> {
        match self.volumes.get(&volume) {
            _ if !cx.grant.admin => Err(Denied::NotGranted),
            None => Err(Denied::NotFound),
            Some(_) => Ok(()),
        }
    }

    /// What follows from the table of what was thrown away.
    pub(crate) fn index_trash(&mut self) {
        let mut bins = Bins::default();
        for (ino, thrown) in self.thrown.iter() {
            if let Some(inode) = self.inodes.get(ino) {
                bins.add(inode.attr.volume, *ino, thrown);
            }
        }
        self.bins = bins;
    }

    /// What must be true of all trash, and is not.
    pub(crate) fn unsound_trash(&self) -> Option<String> {
        let mut known = self.clone();
        known.index_trash();
        if known.bins != self.bins {
            return Some("forgotten or unknown".into());
        }
        self.thrown.iter().find_map(|(ino, thrown)| {
            let (inode, home) = (self.inodes.get(ino), self.inodes.get(&thrown.home));
            let (Some(inode), Some(home)) = (inode, home) else { return Some(format!("{ino:?} or its home is gone")) };
            let later = self.thrown.get(&thrown.home).is_none_or(|home| thrown.at < home.at);
            let sound = inode.attr.nlink == 0 && home.attr.kind == Kind::Directory && later;
            let sound = sound && inode.attr.volume == home.attr.volume;
            (!sound).then(|| format!("{ino:?} can't be in the trash: {thrown:?}"))
        })
    }
}

/// A volume's trash, to be looked at: a name leads to a directory that is there, or else to what was thrown away
/// last.
pub(crate) struct Bin<'a>(pub(crate) &'a State);

impl Look for Bin<'_> {
    fn grant_row(&self, who: &PublicKey) -> Option<Grant> {
        self.0.grant_row(who)
    }

    fn inode_row(&self, ino: Ino) -> Option<&Inode> {
        self.0.inodes.get(&ino).map(|inode| &**inode)
    }

    fn entry_row(&self, key: &(Ino, SealedName)) -> Option<Entry> {
        let thrown = || self.0.bins.latest(key.0, &key.1).filter(|ino| self.shows(*ino));
        let ino = self.directory_of(key).or_else(thrown)?;
        Some(Entry { ino, cookie: ino.0 << 1 })
    }

    fn xattr_row(&self, key: &XattrKey) -> Option<&Bytes> {
        self.0.xattr_row(key)
    }

    fn volume_row(&self, volume: VolumeId) -> Option<&Volume> {
        self.0.volume_row(volume)
    }

    fn usage_row(&self, volume: VolumeId) -> Option<Usage> {
        self.0.usage_row(volume)
    }

    fn snapshot_row(&self, number: u64) -> Option<&Snapshot> {
        self.0.snapshot_row(number)
    }

    fn past_row(&self, key: &(u64, PastKey)) -> Option<&PastRow> {
        self.0.past_row(key)
    }

    fn next_volume(&self) -> VolumeId {
        self.0.next_volume()
    }
}

impl Bin<'_> {
    fn shows(&self, ino: Ino) -> bool {
        self.0.in_bin(ino).is_ok()
    }

    /// What was thrown away from a directory. A cookie is twice the inode's number; and one more if the name
    /// leads to something else: to what was thrown away later, or to a directory that is there.
    fn read_dir(&self, cx: &Context<'_>, home: Ino, cookie: u64, max: u32) -> Result<Reply, Denied> {
        cx.need(self.directory(home)?, READ)?;
        if max == 0 {
            return Err(Denied::Invalid);
        }
        let mut inos = self.0.bins.after(home, Ino(cookie >> 1)).filter(|ino| self.shows(*ino)).peekable();
        let (mut entries, mut len) = (Vec::new(), 0);
        while entries.len() < max.min(ENTRIES_MAX) as usize && len < LISTING_LEN_MAX {
            let Some(ino) = inos.next() else { break };
            let (Some(thrown), attr) = (self.0.thrown.get(&ino), *self.attr(ino)?) else { continue };
            let found = self.entry(home, &thrown.name).map(|entry| entry.ino);
            let hidden = found != Some(ino);
            let entry = DirEntry { cookie: ino.0 << 1 | u64::from(hidden), name: thrown.name.clone(), attr };
            len += listed_len(&entry);
            entries.push(entry);
        }
        Ok(Reply::Entries { entries, end: inos.peek().is_none() })
    }

    /// The directory that has this name.
    fn directory_of(&self, key: &(Ino, SealedName)) -> Option<Ino> {
        let inode = self.0.entries.get(key).and_then(|entry| self.0.inode_row(entry.ino))?;
        matches!(inode.body, Body::Directory { .. }).then_some(inode.attr.ino)
    }

    /// What was thrown away from a directory next, and the name that it had.
    pub(crate) fn name_after(&self, home: Ino, cookie: u64) -> Option<(u64, SealedName)> {
        let ino = self.0.bins.after(home, Ino(cookie >> 1)).next()?;
        self.0.thrown.get(&ino).map(|thrown| (ino.0 << 1, thrown.name.clone()))
    }
}

impl State {
    /// What `op` reads of the trash.
    pub(crate) fn read_trash(&self, cx: &Context<'_>, op: &Op) -> Result<Reply, Denied> {
        let bin = Bin(self);
        let reply = match op {
            Op::ReadDir { ino, cookie, max } => bin.read_dir(cx, *ino, *cookie, *max),
            Op::Fetch { ino, cookie, also } => bin.fetch(cx, *ino, *cookie, also),
            Op::ListXattr { ino } => Ok(self.names_of_xattrs(cx, bin.inode(*ino)?)),
            op => bin.read(cx, op).unwrap_or(Err(Denied::ReadOnly)),
        }?;
        Ok(answered(Ino::TRASH, reply))
    }
}

/// The same answer about what is in the trash: it has a name there; how many subdirectories nobody counts.
pub(crate) fn named(attr: &mut Attr) {
    attr.nlink = if attr.kind == Kind::Directory { 1 } else { attr.nlink.max(1) };
}

/// A copy of what was thrown away, at whoever looks at it: rows that were fetched.
impl State {
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
            Op::GetXattr { ino, .. } | Op::ListXattr { ino } => {
                self.inodes.get(ino).is_some_and(|inode| self.has_xattrs(inode))
            }
            Op::GetAttr { ino }
            | Op::Access { ino, .. }
            | Op::Open { ino, .. }
            | Op::ReadLink { ino }
            | Op::GetAcl { ino, .. } => known(*ino),
            _ => false,
        };
        if there { self.answer_past(who, &call.caller, Ino::TRASH, &op) } else { None }
    }
}
