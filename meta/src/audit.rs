//! The namespace's fsck: everything that must be true of a state, whatever was applied to it.

use std::collections::{BTreeMap, BTreeSet};

use crate::directory::FIRST_COOKIE;
use crate::filelocks::{LOCK_END, Lock, LockMode};
use crate::inode::{Body, Inode, NO_HOME};
use crate::lease::{HolderId, Zone};
use crate::lock::LockIndex;
use crate::op::{Ino, Kind};
use crate::read::Look as _;
use crate::state::State;
use crate::volume::Usage;
use crate::xattr::xattr_len;

/// Something that must be true of a state and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsound(pub String);

/// Names seen of every inode, and the directories they are in.
type Names = BTreeMap<Ino, Vec<Ino>>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Unsound> {
    if holds { Ok(()) } else { Err(Unsound(what())) }
}

impl State {
    /// Checks the whole state: names, places, links, sizes, parents, orphans, usage. Takes time in
    /// proportion to the state; made for tests, simulators and doubts.
    ///
    /// # Errors
    /// The first thing found that cannot be.
    pub fn audit(&self) -> Result<(), Unsound> {
        let names = self.audit_entries()?;
        for (ino, inode) in self.inodes.iter() {
            let parents = names.get(ino).map_or(&[][..], Vec::as_slice);
            ensure(inode.attr.ino == *ino && *ino < self.clock.next_ino && *ino < Ino::END, || {
                format!("{ino:?} has a wrong number")
            })?;
            let lists = inode.unsound_lists();
            ensure(lists.is_none(), || format!("{ino:?} has access lists that can't be: {lists:?}"))?;
            match &inode.body {
                Body::Directory { next_cookie } => {
                    self.audit_directory(*ino, inode, inode.home, *next_cookie, parents)?;
                }
                _ => self.audit_file(*ino, inode, parents)?,
            }
        }
        self.audit_loops()?;
        self.audit_xattrs()?;
        self.audit_orphans()?;
        self.audit_leases()?;
        self.audit_locks()?;
        self.audit_snapshots()?;
        self.audit_trash()?;
        self.audit_usage()
    }

    fn audit_snapshots(&self) -> Result<(), Unsound> {
        let unsound = self.unsound_snapshots();
        ensure(unsound.is_none(), || format!("snapshots: {unsound:?}"))
    }

    fn audit_trash(&self) -> Result<(), Unsound> {
        let unsound = self.unsound_trash();
        ensure(unsound.is_none(), || format!("trash: {unsound:?}"))
    }

    fn audit_entries(&self) -> Result<Names, Unsound> {
        ensure(self.entries.len() == self.cookies.len(), || "as many names as places".into())?;
        let mut names = Names::new();
        for ((parent, name), entry) in self.entries.iter() {
            let place = self.cookies.get(&(*parent, entry.cookie));
            ensure(place == Some(name), || format!("a name in {parent:?} is not in its place"))?;
            let volume = |ino: &Ino| self.inodes.get(ino).map(|inode| inode.attr.volume);
            ensure(volume(&entry.ino).is_some() && volume(&entry.ino) == volume(parent), || {
                format!("a name in {parent:?} leads nowhere or to another volume")
            })?;
            names.entry(entry.ino).or_default().push(*parent);
        }
        Ok(names)
    }

    fn audit_directory(
        &self,
        ino: Ino,
        inode: &Inode,
        parent: Ino,
        next_cookie: u64,
        parents: &[Ino],
    ) -> Result<(), Unsound> {
        let places: Vec<_> = self.cookies.range((ino, 0)..=(ino, u64::MAX)).collect();
        let children = places.iter().filter_map(|(_, name)| self.entry(ino, name));
        let is_directory = |child: Ino| self.inodes.get(&child).is_some_and(|c| c.attr.kind == Kind::Directory);
        let subdirectories = children.filter(|entry| is_directory(entry.ino)).count();
        let root = self.volumes.get(&inode.attr.volume).map(|volume| volume.root);
        let thrown = self.thrown.get(&ino).is_some();
        let expected = if root == Some(ino) || thrown { vec![] } else { vec![parent] };
        ensure(parents == expected, || format!("{ino:?} is in {parents:?}, not in {parent:?}"))?;
        ensure(root != Some(ino) || parent == ino, || format!("root {ino:?} is in {parent:?}"))?;
        ensure(inode.attr.size == places.len() as u64, || format!("{ino:?} counts its entries wrong"))?;
        let links = if thrown { 0 } else { 2 + subdirectories };
        ensure(inode.attr.nlink as usize == links && !(thrown && inode.attr.size != 0), || {
            format!("{ino:?} counts its links wrong")
        })?;
        ensure(places.iter().all(|((_, cookie), _)| (FIRST_COOKIE..next_cookie).contains(cookie)), || {
            format!("{ino:?} has a place out of range")
        })
    }

    fn audit_file(&self, ino: Ino, inode: &Inode, parents: &[Ino]) -> Result<(), Unsound> {
        ensure(inode.attr.nlink as usize == parents.len(), || format!("{ino:?} counts its names wrong"))?;
        let kept = self.orphans.get(&ino).is_some() || self.thrown.get(&ino).is_some();
        ensure(parents.is_empty() == kept, || format!("{ino:?} is lost"))?;
        ensure(inode.home == NO_HOME || parents.iter().all(|parent| *parent == inode.home), || {
            format!("{ino:?} is in {parents:?}, not in {:?} alone", inode.home)
        })?;
        let Body::File { content, .. } = &inode.body else { return Ok(()) };
        let held = (inode.attr.size, inode.attr.allocated);
        ensure(content.has_room(0, 0), || format!("{ino:?} has too many patches"))?;
        ensure(held == (content.size, content.allocated), || format!("{ino:?} is not as long as its content"))
    }

    /// Every directory's parents lead to its volume's root.
    fn audit_loops(&self) -> Result<(), Unsound> {
        let mut rooted: BTreeSet<Ino> = self.volumes.iter().map(|(_, volume)| volume.root).collect();
        for (ino, _) in self.inodes.iter().filter(|(_, inode)| inode.attr.kind == Kind::Directory) {
            let (mut walk, mut at) = (BTreeSet::new(), *ino);
            while !rooted.contains(&at) {
                ensure(walk.insert(at), || format!("{ino:?} is in a loop"))?;
                at = self.parent_of(at);
            }
            rooted.append(&mut walk);
        }
        Ok(())
    }

    fn audit_xattrs(&self) -> Result<(), Unsound> {
        let mut lens: BTreeMap<Ino, u64> = BTreeMap::new();
        for ((ino, _, name), value) in self.xattrs.iter() {
            *lens.entry(*ino).or_default() += xattr_len(name, value);
        }
        for (ino, inode) in self.inodes.iter() {
            let len = lens.remove(ino).unwrap_or(0);
            ensure(inode.xattrs_len == len, || format!("{ino:?} counts its extended attributes wrong"))?;
        }
        ensure(lens.is_empty(), || "extended attributes of no inode".into())
    }

    fn audit_orphans(&self) -> Result<(), Unsound> {
        let by_expiry = self.orphans.iter().map(|(ino, orphan)| (orphan.until, *ino)).collect();
        ensure(self.expiry == by_expiry, || "orphans and their expiry differ".into())?;
        let nameless = |ino: &Ino| self.inodes.get(ino).is_some_and(|inode| inode.attr.nlink == 0);
        ensure(self.orphans.iter().all(|(ino, _)| nameless(ino)), || "an orphan has a name".into())
    }

    fn audit_leases(&self) -> Result<(), Unsound> {
        for (root, zone) in self.zones.iter() {
            let is_directory = self.inodes.get(root).is_some_and(|inode| inode.attr.kind == Kind::Directory);
            ensure(is_directory, || format!("a zone begins at {root:?}, which is no directory"))?;
            let known = |by: &HolderId| self.holders.get(by).is_some_and(|holder| holder.zones.contains(root));
            ensure(zone.holders().iter().all(known), || format!("whoever holds {root:?} does not know it"))?;
            let Zone::Shared { by, .. } = zone else { continue };
            let once: BTreeSet<_> = by.iter().collect();
            ensure(!by.is_empty() && once.len() == by.len(), || format!("{root:?} is shared by nobody, or twice"))?;
        }
        for (id, holder) in self.holders.iter() {
            let held = |root: &Ino| self.zones.get(root).is_some_and(|zone| zone.holders().contains(id));
            let once: BTreeSet<_> = holder.zones.iter().collect();
            ensure(once.len() == holder.zones.len() && holder.zones.iter().all(held), || {
                "a holder has a zone that is not its own".into()
            })?;
            let below = |(from, to): &(Ino, Ino)| from < to && *to <= self.clock.next_ino;
            ensure(holder.inos.iter().all(below), || "a range of inode numbers was not granted".into())?;
            let known = self.recalled.contains(id) || holder.recalls.is_empty();
            ensure(known && holder.epoch < self.clock.next_epoch, || "a holder is recalled or numbered wrong".into())?;
        }
        ensure(self.recalled.iter().all(|id| self.holders.get(id).is_some()), || "nobody is recalled".into())
    }

    /// No two locks are in each other's way, and all are somebody's.
    fn audit_locks(&self) -> Result<(), Unsound> {
        for (ino, row) in self.locks.iter() {
            let is_file = self.inodes.get(ino).is_some_and(|inode| inode.attr.kind == Kind::File);
            ensure(is_file && !row.is_empty(), || format!("locks on {ino:?}, which is no file, or none"))?;
            let mut owned: BTreeMap<_, u64> = BTreeMap::new();
            for lock in &row.locks {
                let sound = lock.start <= lock.end && lock.end <= LOCK_END && lock.mode != LockMode::Unlock;
                let after = owned.insert(lock.owner, lock.end).is_none_or(|end| end < lock.start);
                ensure(sound && after, || format!("{ino:?} has a lock that can't be: {lock:?}"))?;
                ensure(row.in_the_way(lock).next().is_none(), || format!("{ino:?} has locks in each other's way"))?;
            }
            let waiting = row.queue.iter().map(|waiter| &waiter.lock);
            let known = |lock: &Lock| self.holders.get(&lock.owner.0).is_some();
            ensure(row.locks.iter().chain(waiting).all(known), || format!("a lock on {ino:?} is nobody's"))?;
        }
        ensure(self.locked == LockIndex::of(self.locks.iter()), || "locks and their index differ".into())
    }

    fn audit_usage(&self) -> Result<(), Unsound> {
        let mut usage: BTreeMap<_, Usage> = self.volumes.iter().map(|(id, _)| (*id, Usage::default())).collect();
        for (ino, inode) in self.inodes.iter() {
            let Some(usage) = usage.get_mut(&inode.attr.volume) else {
                return Err(Unsound(format!("{ino:?} is in no volume")));
            };
            usage.inodes += 1;
            usage.bytes += inode.attr.allocated;
        }
        ensure(usage.iter().eq(self.usage.iter()), || format!("usage is {usage:?}, counted otherwise"))
    }
}
