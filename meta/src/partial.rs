//! A holder's own copy of the state: the rows of its zones, as far as it has fetched them.
//!
//! It is a [`State`] like the replicas', with rows missing. A holder applies an operation to it only if
//! everything that the operation looks at is there and its own ([`State::locally`]); then the answer, and
//! every row that changes, are what replicas would have given and changed.

use core::ops::Bound;
use std::collections::BTreeSet;

use base::{ClusterId, DecodeError, PublicKey, Time};

use crate::access::Context;
use crate::filelocks::FileLocks;
use crate::inode::{Body, Inode};
use crate::lease::{Holder, HolderId, Zone, is_logged};
use crate::op::{
    Answer, Attr, Call, Commit, Content, Denied, ENTRIES_MAX, Form, Ino, Kind, Op, Reply, Row, SealedName, Volume,
    VolumeSpec,
};
use crate::read::Look as _;
use crate::state::State;
use crate::table::Rows;
use crate::volume::Usage;
use crate::xattr::{xattr_len, xattrs_of};

/// Whether a holder can apply an operation to its own copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// It can.
    Can,
    /// It can once it has fetched this directory.
    Fetch(Ino),
    /// It can't; it could perhaps with a lease on this directory.
    Cannot(Option<Ino>),
}

impl State {
    /// Whether all extended attributes of an inode are in this copy.
    pub(crate) fn has_xattrs(&self, inode: &Inode) -> bool {
        let rows = self.xattrs.range(xattrs_of(inode.attr.ino));
        inode.xattrs_len == rows.map(|((_, _, name), value)| xattr_len(name, value)).sum::<u64>()
    }

    /// A copy with nothing in it.
    #[must_use]
    pub fn copy_of(cluster: ClusterId) -> State {
        State::empty(cluster)
    }

    /// Adds rows that replicas gave. What is newer here, because it was changed since, stays as it is.
    ///
    /// # Errors
    /// If they are not rows of a state.
    pub fn learn(&mut self, rows: &[Row], me: &(PublicKey, u64)) -> Result<(), DecodeError> {
        let mut given = State::empty(self.clock.cluster);
        let rows: Vec<_> = rows.iter().map(|(name, value)| (name.to_vec(), Some(value.to_vec()))).collect();
        given.patch_rows(&rows)?;
        if given.zones.len() > 0 {
            // What becomes the holder's now may have changed before.
            self.sweep(me);
        }
        for (key, grant) in given.principals.iter() {
            self.principals.insert(*key, *grant);
        }
        for (id, volume) in given.volumes.iter() {
            // What is thrown away here is not in this copy any more: the trash is the replicas'.
            let spec = VolumeSpec { trash: 0, ..volume.spec.clone() };
            self.volumes.insert(*id, Volume { spec, ..volume.clone() });
        }
        // Others use the volume, too: what is counted here only must not come to nothing.
        given.usage.iter().for_each(|(id, _)| self.usage.add(id, &Usage { bytes: 1 << 62, inodes: 1 << 62 }));
        for (id, holder) in given.holders.iter() {
            // Its numbers come with what it is told of its leases.
            self.holders.add(id, &Holder { inos: Vec::new(), ..holder.clone() });
        }
        if let Some(holder) = given.holders.get(me) {
            self.drop_zones_but(&holder.zones, me);
            // With these come the records of all that begin there.
            let ended: Vec<Ino> = given.inodes.iter().map(|(ino, _)| *ino).collect();
            ended.into_iter().filter(|ino| given.zones.get(ino).is_none()).for_each(|ino| self.end_zone(ino));
        }
        let taken = given
            .zones
            .iter()
            .filter(|(root, zone)| matches!(zone, Zone::Held { by, .. } if by == me) && !self.is_held_by(**root, me));
        let taken: Vec<Ino> = taken.map(|(root, _)| *root).collect();
        for (root, zone) in given.zones.iter() {
            self.set_zone(*root, zone.clone(), me);
        }
        // While others had leases there, too, they took locks.
        taken.into_iter().for_each(|root| self.forget_all_below(root));
        for (ino, inode) in given.inodes.iter() {
            if self.inodes.get(ino).is_none_or(|known| known.attr.version <= inode.attr.version) {
                self.forget_inode(*ino);
                self.inodes.insert(*ino, inode.clone());
            }
        }
        for (key, entry) in given.entries.iter() {
            self.entries.add(key, entry);
            self.cookies.add(&(key.0, entry.cookie), &key.1);
        }
        given.xattrs.iter().for_each(|(key, value)| self.xattrs.add(key, value));
        for (ino, _) in given.inodes.iter() {
            // With a file come its locks; it was not used while these rows were on their way.
            self.unsure.remove(ino);
            self.set_locks(*ino, given.locks.get(ino).map_or_else(FileLocks::default, |locks| FileLocks::clone(locks)));
            if !self.is_read_by(*ino, me) {
                self.forget_inode(*ino);
            }
        }
        self.forget_changes();
        Ok(())
    }

    /// Ends those of the holder's zones that a wider lease took in.
    fn drop_zones_but(&mut self, kept: &[Ino], me: &HolderId) {
        let zones = self.holders.get(me).map_or(Vec::new(), |holder| holder.zones.clone());
        zones.into_iter().filter(|root| !kept.contains(root)).for_each(|root| self.end_zone(root));
    }

    fn set_zone(&mut self, root: Ino, zone: Zone, me: &HolderId) {
        self.end_zone(root);
        let mine = zone.holders().contains(me);
        self.zones.insert(root, zone);
        if mine
            && let Some(holder) = self.holders.change(me)
            && !holder.zones.contains(&root)
        {
            holder.zones.push(root);
        }
    }

    /// Takes note that a directory was given back, with all below it, and forgets what was there.
    pub fn give_back(&mut self, directory: Ino, me: &(PublicKey, u64)) {
        self.end_zone(directory);
        self.zones.insert(directory, Zone::Open { until: Time(u64::MAX), cool: 0, changed: Time::ZERO });
        self.sweep(me);
    }

    /// Forgets everything that is not the holder's.
    fn sweep(&mut self, me: &HolderId) {
        let directories: BTreeSet<Ino> = self.cookies.iter().map(|((directory, _), _)| *directory).collect();
        for directory in directories.into_iter().filter(|ino| !self.is_read_by(*ino, me)).collect::<Vec<_>>() {
            self.forget_names(directory);
        }
        let others: Vec<Ino> =
            self.inodes.iter().map(|(ino, _)| *ino).filter(|ino| !self.is_read_by(*ino, me)).collect();
        for ino in others {
            self.complete.remove(&ino);
            self.forget_inode(ino);
        }
        let inodes = &self.inodes;
        self.complete = self.complete.iter().copied().filter(|ino| inodes.get(ino).is_some()).collect();
    }

    /// Whether there is such an inode in this copy.
    #[must_use]
    pub fn has_inode(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some()
    }

    /// An inode's attributes, if it is in this copy.
    #[must_use]
    pub fn known(&self, ino: Ino) -> Option<&Attr> {
        self.inode_row(ino).map(|inode| &inode.attr)
    }

    /// A file's content, if this copy has it.
    pub fn content(&self, ino: Ino) -> Option<&Content> {
        match &self.inode_row(ino)?.body {
            Body::File { content, .. } => Some(content),
            _ => None,
        }
    }

    /// All names in this copy: the directory that each is in, and what it leads to.
    pub fn names(&self) -> impl Iterator<Item = (Ino, &SealedName, Ino)> {
        self.entries.iter().map(|((directory, name), entry)| (*directory, name, entry.ino))
    }

    /// Takes note of the ranges of inode numbers that replicas say the holder has: of those that it did not
    /// know. (Of the others it may have used more than they know.)
    pub fn grant_inos(&mut self, me: &(PublicKey, u64), inos: &[(Ino, Ino)]) {
        let known = self.clock.next_ino;
        let Some(holder) = self.holders.change(me) else { return };
        holder.inos.extend(inos.iter().filter(|(_, end)| *end > known));
        self.clock.next_ino = inos.iter().map(|(_, end)| *end).fold(known, Ino::max);
    }

    /// Takes note that all of a directory's names are there.
    pub fn note_complete(&mut self, directory: Ino) {
        self.complete.insert(directory);
    }

    /// How many inodes the holder can make before it needs more numbers.
    #[must_use]
    pub fn inos_left(&self, me: &(PublicKey, u64)) -> u64 {
        self.holders.get(me).map_or(0, |holder| holder.inos.iter().map(|(from, to)| to.0 - from.0).sum())
    }

    /// The directories of which an operation changes a name, or the attributes of what has one there.
    #[must_use]
    pub fn disturbed(&self, op: &Op) -> BTreeSet<Ino> {
        let homes = self.touched(op).into_iter().filter_map(|ino| Some(self.inodes.get(&ino)?.home));
        Self::directories_of(op).into_iter().chain(homes).collect()
    }

    /// An inode was given back from the trash: what was known of it before it was thrown away is over.
    pub fn note_restored(&mut self, ino: Ino) {
        self.end_zone(ino);
        self.forget_all_below(ino);
        self.forget_inode(ino);
    }

    /// Forgets what an operation may have changed that replicas applied and this copy did not.
    pub fn doubt(&mut self, op: &Op) {
        if let Op::Lock(request) = op {
            if self.has_inode(request.ino) {
                self.unsure.insert(request.ino);
            }
            return;
        }
        if matches!(op, Op::CreateUnnamed { .. }) {
            // The directory stays as it is, and the file was not here.
            return;
        }
        let mut doubted = self.touched(op);
        for directory in Self::directories_of(op) {
            self.forget_below(directory);
            // Its names may not have been here, and yet zones that begin right below it.
            let roots = self.zones.iter().map(|(root, _)| *root);
            doubted.extend(roots.filter(|root| self.inodes.get(root).is_some_and(|inode| inode.home == directory)));
        }
        // A directory may be gone, and no zone begins there any more: what was made in it without a name is in none.
        let nameless = self.orphans.iter().map(|(ino, _)| *ino);
        let homeless = nameless.filter(|ino| self.inodes.get(ino).is_some_and(|inode| doubted.contains(&inode.home)));
        homeless.collect::<Vec<_>>().into_iter().for_each(|ino| self.forget_inode(ino));
        for ino in doubted {
            self.forget_below(ino);
            // To be fetched again, with this inode.
            if let Some(named) = self.inodes.get(&ino).filter(|inode| inode.attr.nlink > 0) {
                self.complete.remove(&named.home);
            }
            self.forget_inode(ino);
        }
    }

    /// The same, wherever only some of the names are here, too.
    fn forget_all_below(&mut self, top: Ino) {
        let directories: BTreeSet<Ino> = self.cookies.iter().map(|((directory, _), _)| *directory).collect();
        let below = directories.into_iter().filter(|at| *at == top || self.is_below(*at, top)).collect::<Vec<_>>();
        for directory in below {
            self.complete.remove(&directory);
            self.forget_names(directory);
        }
        self.forget_below(top);
    }

    /// Forgets all names in a directory and below it, and what they lead to.
    fn forget_below(&mut self, directory: Ino) {
        let below = self.complete.iter().copied().filter(|at| *at == directory || self.is_below(*at, directory));
        for at in below.collect::<Vec<_>>() {
            self.complete.remove(&at);
            self.forget_names(at);
        }
        self.forget_names(directory);
    }

    fn forget_names(&mut self, directory: Ino) {
        let here = (Bound::Included((directory, 0)), Bound::Included((directory, u64::MAX)));
        let places: Vec<_> = self.cookies.range(here).map(|(place, name)| (*place, name.clone())).collect();
        for (place, name) in places {
            self.cookies.remove(&place);
            if let Some(entry) = self.entries.remove(&(directory, name)) {
                self.forget_inode(entry.ino);
            }
        }
    }

    /// Forgets an inode, not its names.
    fn forget_inode(&mut self, ino: Ino) {
        if self.inodes.remove(&ino).is_some_and(|inode| inode.xattrs_len > 0) {
            let keys: Vec<_> = self.xattrs.range(xattrs_of(ino)).map(|(key, _)| key.clone()).collect();
            keys.iter().for_each(|key| drop(self.xattrs.remove(key)));
        }
        self.unsure.remove(&ino);
        self.set_locks(ino, FileLocks::default());
        if let Some(orphan) = self.orphans.remove(&ino) {
            self.expiry.remove(&(orphan.until, ino));
        }
    }

    /// The directories whose names `op` changes or looks at.
    #[must_use]
    pub fn directories_of(op: &Op) -> Vec<Ino> {
        match op {
            Op::Lookup { parent, .. }
            | Op::Create { parent, .. }
            | Op::Unlink { parent, .. }
            | Op::Rmdir { parent, .. }
            | Op::Restore { parent, .. }
            | Op::Link { parent, .. } => vec![*parent],
            Op::Rename { from, to, .. } => vec![*from, *to],
            Op::ReadDir { ino, .. } => vec![*ino],
            _ => Vec::new(),
        }
    }

    /// Whether the holder can apply `op` to this copy: what it shares it can look at.
    #[must_use]
    pub fn locally(&self, op: &Op, me: &(PublicKey, u64)) -> Local {
        if matches!(op, Op::Restore { .. }) {
            return Local::Cannot(None);
        }
        let alone = is_logged(op) || matches!(op, Op::GetLock(_));
        for directory in Self::directories_of(op) {
            match self.mine(directory, me, alone).map(|inode| inode.attr.kind) {
                None => return Local::Cannot(Some(directory)),
                Some(Kind::Directory) if !self.complete.contains(&directory) => return Local::Fetch(directory),
                Some(_) => {}
            }
        }
        let named = |parent: Ino, name: &SealedName| {
            self.entry(parent, name).is_none_or(|entry| self.mine(entry.ino, me, alone).is_some())
        };
        let can = match op {
            Op::Lookup { parent, name }
            | Op::Create { parent, name, .. }
            | Op::Unlink { parent, name, .. }
            | Op::Rmdir { parent, name } => named(*parent, name),
            Op::CreateUnnamed { parent, .. } => return self.locally_in(*parent, me),
            Op::Link { ino, parent, name } => self.mine(*ino, me, alone).is_some() && named(*parent, name),
            Op::Rename { from, from_name, to, to_name, .. } => named(*from, from_name) && named(*to, to_name),
            Op::ReadDir { ino, cookie, max } => self.lists(*ino, *cookie, *max, me),
            Op::Parent { ino } => {
                self.mine(*ino, me, alone).is_some_and(|inode| self.mine(inode.home, me, alone).is_some())
            }
            Op::GetAttr { ino }
            | Op::Access { ino, .. }
            | Op::Open { ino, .. }
            | Op::SetAttr { ino, .. }
            | Op::SetAcl { ino, .. }
            | Op::GetAcl { ino, .. }
            | Op::ReadLink { ino } => self.mine(*ino, me, alone).is_some(),
            Op::SetXattr { ino, .. }
            | Op::GetXattr { ino, .. }
            | Op::ListXattr { ino }
            | Op::RemoveXattr { ino, .. } => self.mine(*ino, me, alone).is_some_and(|inode| self.has_xattrs(inode)),
            Op::Commit(commit) => self.mine(commit.ino, me, alone).is_some(),
            Op::Lock(request) | Op::GetLock(request) => {
                let known = self.mine(request.ino, me, alone).is_some() && !self.unsure.contains(&request.ino);
                known && !self.is_disputed(request, me)
            }
            Op::KeepOrphan { ino } | Op::ReleaseOrphan { ino } => {
                self.orphans.get(ino).is_some_and(|orphan| orphan.owner == *me.0.as_array())
            }
            _ => false,
        };
        if can { Local::Can } else { Local::Cannot(None) }
    }

    /// Whether the holder can apply what looks at a directory and at none of its names.
    fn locally_in(&self, directory: Ino, me: &HolderId) -> Local {
        if self.mine(directory, me, true).is_some() { Local::Can } else { Local::Cannot(Some(directory)) }
    }

    /// An inode that is here and the holder's: its alone, or else to look at.
    fn mine(&self, ino: Ino, me: &HolderId, alone: bool) -> Option<&Inode> {
        self.inode_row(ino).filter(|_| if alone { self.is_held_by(ino, me) } else { self.is_read_by(ino, me) })
    }

    /// Whether a page of a listing shows only what is the holder's.
    fn lists(&self, directory: Ino, cookie: u64, max: u32, me: &HolderId) -> bool {
        let after = (Bound::Excluded((directory, cookie)), Bound::Included((directory, u64::MAX)));
        let mut page = self.cookies.range(after).take(max.min(ENTRIES_MAX) as usize);
        page.all(|(_, name)| {
            let child = self.entry(directory, name).and_then(|entry| self.inode_row(entry.ino));
            child.is_some_and(|inode| match inode.attr.kind {
                // It is of this directory's zone, unless its own zone begins with it.
                Kind::Directory => self.zones.get(&inode.attr.ino).is_none() || self.is_read_by(inode.attr.ino, me),
                _ => inode.home == directory,
            })
        })
    }

    /// When a holder's operation happens: now, or if it commits content, when that was written. That is not before
    /// it held anything, nor before the file was changed last.
    #[must_use]
    pub fn stamp_own(&self, now: Time, me: &HolderId, op: &Op) -> Time {
        let Op::Commit(Commit { ino, mtime: Some(written), form: Form::Whole | Form::Patch { .. }, .. }) = op else {
            return now;
        };
        let since = self.holders.get(me).map_or(now, |holder| holder.since);
        let changed = self.inode_row(*ino).map_or(now, |inode| inode.attr.ctime.into());
        Time::from(*written).max(since).max(changed).min(now)
    }

    /// Applies an operation to the holder's own copy, which can ([`State::locally`]).
    pub fn apply_own(&mut self, at: Time, me: &(PublicKey, u64), call: &Call) -> Answer {
        let Some(&grant) = self.principals.get(&me.0) else { return Answer::Denied(Denied::NotGranted) };
        self.clock.last = self.clock.last.max(at);
        let cx = Context { now: at, key: &me.0, grant, caller: &call.caller, by: Some(me.1), logged: true };
        let result = cx.check().and_then(|()| self.apply_op(&cx, &call.op));
        if let Ok(Reply::Created { attr, fresh: true }) = &result
            && attr.kind == Kind::Directory
        {
            self.complete.insert(attr.ino);
        }
        result.map_or_else(Answer::Denied, Answer::Done)
    }

    /// Forgets which rows changed: nobody asks a copy for its digest.
    pub fn forget_changes(&mut self) {
        self.tables_mut().into_iter().for_each(Rows::forget_changes);
    }
}
