//! Trash: what lost its last name stays for a while, and is found where it was.
//!
//! It is in no directory any more, and nothing that looks at inodes and names sees it, except that an orphan is
//! still there for who has it open. Inodes *in the trash* ([`Ino::in_trash`]) show it: a directory shows what was
//! thrown away from it, whether it is still there itself or was thrown away, too. Nothing is changed there;
//! [`Op::Restore`](crate::Op::Restore) gives something a name again, [`Op::Purge`](crate::Op::Purge) ends it before
//! its time. Who could not reach it when it was thrown away does not see it, whatever its directory allows since.
//!
//! It counts in quotas as before, and makes room where a quota would be in the way.

use core::ops::Bound;
use core::time::Duration;

use base::{Time, canonical_struct};
use imbl::{OrdMap, OrdSet};

use crate::access::{Context, EXECUTE, WRITE};
use crate::acl::Named;
use crate::directory::need_subdirectory;
use crate::filelocks::FileLocks;
use crate::inode::{Body, Inode};
use crate::op::{Attr, Denied, Ino, Kind, Op, Reply, SealedName, VolumeId};
use crate::read::Look as _;
use crate::state::State;

/// The most that a volume's trash holds: what was thrown away first goes first.
pub const THROWN_MAX: usize = 1 << 18;
/// What did not live for so long leaves nothing: what programs make for a moment.
pub const THROWN_AGE: Duration = Duration::from_secs(10);
/// In a cookie of the trash: the name leads to something else, to what was thrown away later or to a directory that
/// is there.
pub const THROWN_HIDDEN: u64 = 1;
/// In a cookie of the trash: names were bound in the directory since, and it was not thrown away itself within a
/// minute. What was in a directory when it was thrown away is what is without this.
pub const THROWN_BEFORE: u64 = 2;
/// Above those is the inode's number.
pub const THROWN_SHIFT: u32 = 2;
/// What is thrown away so long before its directory, or later, went with it, though others still made names there.
const TOGETHER: Duration = Duration::from_secs(60);
/// How much of what is over goes with a batch, and one more for each call: an inode, or so many bytes of extended
/// attributes.
const REAPED_MAX: usize = 1024;
const REAPED_LEN: u64 = 64;
/// How much goes at most in a batch that a quota is in the way of.
pub(crate) const ROOM_MAX: usize = 1024;
/// How much that is not to be seen is looked at for a listing: a batch may ask for many.
pub const SKIPPED_MAX: usize = 1024;

/// What was thrown away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thrown {
    /// Where it had its last name.
    pub(crate) home: Ino,
    /// That name.
    pub(crate) name: SealedName,
    /// When: each at another time of its volume's, so that what was in a directory went before it.
    pub(crate) at: Time,
    /// How many places that directory had given.
    pub(crate) places: u64,
    /// The directory's mode, owner and group, and what its access list said beside the mode.
    pub(crate) rights: (u16, u32, u32),
    pub(crate) named: Option<Named>,
}
canonical_struct!(Thrown { home, name, at, places, rights, named });

impl Thrown {
    /// Whether it went before its directory did, and not with it.
    pub(crate) fn is_before(&self, directory: &Inode, home: Option<&Thrown>) -> bool {
        let together = home.is_some_and(|home| home.at.since(self.at) < TOGETHER);
        self.places != places_of(directory) && !together
    }

    /// Whether whoever may not do everything could reach it with these rights to its directory.
    pub(crate) fn let_in(&self, cx: &Context<'_>, attr: &Attr, mask: u8) -> bool {
        let (mode, uid, gid) = self.rights;
        cx.is_root() || cx.owns(attr) || cx.allows(mode, (uid, gid), self.named.as_ref(), mask)
    }
}

/// What is in the trash, by what it is looked for. Follows from the table.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Bins {
    by_home: OrdSet<(Ino, Ino)>,
    by_name: OrdSet<(Ino, SealedName, Time, Ino)>,
    by_age: OrdMap<VolumeId, OrdSet<(Time, Ino)>>,
}

impl Bins {
    fn add(&mut self, volume: VolumeId, ino: Ino, Thrown { home, name, at, .. }: &Thrown) {
        self.by_home.insert((*home, ino));
        self.by_name.insert((*home, name.clone(), *at, ino));
        self.by_age.entry(volume).or_default().insert((*at, ino));
    }

    fn remove(&mut self, volume: VolumeId, ino: Ino, Thrown { home, name, at, .. }: &Thrown) {
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
    pub(crate) fn after(&self, home: Ino, ino: Ino) -> impl Iterator<Item = Ino> {
        let range = (Bound::Excluded((home, ino)), Bound::Included((home, Ino(u64::MAX))));
        self.by_home.range(range).map(|(_, ino)| *ino)
    }

    fn has_any_of(&self, home: Ino) -> bool {
        self.after(home, Ino(0)).next().is_some()
    }

    /// The last that was thrown away from this directory with this name.
    pub(crate) fn latest(&self, home: Ino, name: &SealedName) -> Option<Ino> {
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
        let lasted = cx.now.since(attr.btime.into()) >= THROWN_AGE;
        let kept = lasted && self.volumes.get(&attr.volume).is_some_and(|volume| volume.spec.trash != 0);
        // What was thrown away from it before is found by it.
        if !kept && !self.bins.has_any_of(ino) {
            return false;
        }
        let Some(directory) = self.inodes.get(&home) else { return false };
        let rights = (directory.attr.mode, directory.attr.uid, directory.attr.gid);
        let (places, named) = (places_of(directory), directory.named().cloned());
        let bin = self.bins.by_age.get(&attr.volume);
        let emptied = self.emptied.get(&attr.volume).copied().unwrap_or(Time::ZERO);
        let last = bin.and_then(OrdSet::get_max).map_or(emptied, |(at, _)| emptied.max(*at));
        if let Some((_, oldest)) = bin.filter(|bin| bin.len() >= THROWN_MAX).and_then(OrdSet::get_min) {
            self.give_up(*oldest);
        }
        let at = self.clock.last.max(last.after(Duration::from_nanos(1)));
        let thrown = Thrown { home, name: name.clone(), at, places, rights, named };
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
                let attributes = self.inodes.get(&ino).map_or(0, |inode| inode.xattrs_len / REAPED_LEN);
                left = left.saturating_sub(1 + attributes as usize);
                self.give_up(ino);
            }
        }
    }

    fn oldest(&self, volume: VolumeId) -> Option<(Time, Ino)> {
        self.bins.by_age.get(&volume)?.get_min().copied()
    }

    /// Whether what was thrown away then has been there for long enough.
    pub(crate) fn has_been_kept(&self, volume: VolumeId, at: Time) -> bool {
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
        let (before, room) = (self.clone(), self.room - oldest.len());
        oldest.into_iter().for_each(|ino| self.give_up(ino));
        let result = self.apply_once(cx, op);
        if result.is_err() {
            *self = before;
        }
        self.room = room;
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
        for ino in bin.map(|(_, ino)| *ino).take(self.room) {
            if freed.0 >= bytes && freed.1 >= inodes {
                break;
            }
            if self.orphans.get(&ino).is_none() {
                let allocated = self.inodes.get(&ino).map_or(0, |inode| inode.attr.allocated);
                freed = (u64::saturating_add(freed.0, allocated), freed.1 + 1);
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
        self.need_out(cx, inode, home)?;
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
        self.need_out(cx, inode, home)?;
        let inner: Vec<Ino> = self.bins.after(ino, Ino(0)).take(SKIPPED_MAX).collect();
        if inner.len() == SKIPPED_MAX || inner.iter().any(|ino| self.in_bin(*ino).is_ok() || self.bins.has_any_of(*ino))
        {
            return Err(Denied::NotEmpty);
        }
        // What is over, and goes sooner or later.
        inner.into_iter().for_each(|ino| self.give_up(ino));
        self.give_up(ino);
        Ok(Reply::Unit)
    }

    /// Whether the caller may take something away from where it is, and could when it was thrown away.
    fn need_out(&self, cx: &Context<'_>, inode: &Inode, home: &Inode) -> Result<(), Denied> {
        cx.need_removal(home, &inode.attr)?;
        let thrown = self.thrown.get(&inode.attr.ino);
        let could = thrown.is_some_and(|thrown| thrown.let_in(cx, &inode.attr, WRITE | EXECUTE));
        if could { Ok(()) } else { Err(Denied::Access) }
    }

    /// What is in the trash and not over, and where it was.
    pub(crate) fn in_bin(&self, ino: Ino) -> Result<(&Inode, &Inode), Denied> {
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
        if seconds == 0 {
            // Whatever is said later.
            return self.trash_empty(cx, volume);
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

/// How many places a directory has given.
pub(crate) fn places_of(directory: &Inode) -> u64 {
    match directory.body {
        Body::Directory { next_cookie } => next_cookie,
        _ => 0,
    }
}
