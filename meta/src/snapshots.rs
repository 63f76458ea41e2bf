//! Taking snapshots of volumes and deleting them; and before rows change, keeping them ([`crate::past`]).

use core::ops::Bound;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::access::Context;
use crate::op::{Denied, Ino, Reply, SealedName, Snapshot, VolumeId};
use crate::past::{Past, PastKey, PastRow, SNAPSHOTS_MAX};
use crate::state::State;
use crate::xattr::XattrKey;

/// Most rows of a deleted snapshot that are given up with one batch.
const GIVEN_UP_MAX: usize = 64;
const NAME_LEN_MAX: usize = 64;
/// For how long nobody is given leases for a snapshot that waits for them, unless it is asked for again.
const WANTED: Duration = Duration::from_secs(5);

impl State {
    pub(crate) fn snapshot_take(&mut self, cx: &Context<'_>, volume: VolumeId, name: &str) -> Result<Reply, Denied> {
        self.may_take(cx, volume, name)?;
        let number = self.clock.next_snapshot;
        self.clock.next_snapshot += 1;
        self.wanted.remove(&volume);
        let before = self.snapshots_of(volume).next_back().map(|snapshot| snapshot.number);
        if let Some(before) = before.and_then(|before| self.snapshots.change(&before)) {
            before.later = number;
        }
        let (name, taken) = (name.to_owned(), cx.stamp());
        let snapshot = Snapshot { volume, number, name, taken, later: 0, deleted: false };
        self.snapshots.insert(number, snapshot.clone());
        self.taken.insert((volume, number));
        Ok(Reply::Snapshots(vec![snapshot]))
    }

    /// Whether the caller may take a snapshot of this name: asked before anybody's lease is in the way.
    pub(crate) fn may_take(&self, cx: &Context<'_>, volume: VolumeId, name: &str) -> Result<(), Denied> {
        if !cx.grant.admin {
            return Err(Denied::NotGranted);
        }
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:+".contains(&byte);
        if !(1..=NAME_LEN_MAX).contains(&name.len()) || !name.bytes().all(letter) || name.starts_with('.') {
            return Err(Denied::Invalid);
        }
        self.volumes.get(&volume).ok_or(Denied::NotFound)?;
        if self.snapshot_named(volume, name).is_some() {
            return Err(Denied::Exists);
        }
        let none_left = self.clock.next_snapshot >= Ino::SNAPSHOTS_END;
        if none_left || self.snapshots_of(volume).count() >= SNAPSHOTS_MAX { Err(Denied::Quota) } else { Ok(()) }
    }

    /// Takes note that a snapshot waits for leases: for a while nobody is given one that keeps it waiting.
    pub(crate) fn want_snapshot(&mut self, volume: VolumeId) {
        self.wanted.insert(volume, self.clock.last.after(WANTED));
    }

    pub(crate) fn is_snapshot_wanted(&self, volume: VolumeId) -> bool {
        self.wanted.get(&volume).is_some_and(|until| *until > self.clock.last)
    }

    pub(crate) fn snapshot_list(&self, volume: VolumeId) -> Reply {
        Reply::Snapshots(self.snapshots_of(volume).filter(|snapshot| !snapshot.deleted).cloned().collect())
    }

    pub(crate) fn snapshot_delete(&mut self, cx: &Context<'_>, volume: VolumeId, name: &str) -> Result<Reply, Denied> {
        if !cx.grant.admin {
            return Err(Denied::NotGranted);
        }
        let number = self.snapshot_named(volume, name).ok_or(Denied::NotFound)?.number;
        if let Some(snapshot) = self.snapshots.change(&number) {
            snapshot.deleted = true;
        }
        self.doomed.insert(number);
        Ok(Reply::Unit)
    }

    fn snapshot_named(&self, volume: VolumeId, name: &str) -> Option<&Snapshot> {
        self.snapshots_of(volume).find(|snapshot| snapshot.name == name && !snapshot.deleted)
    }

    /// A volume's snapshots, the latest last, with those whose rows are not all given up yet.
    fn snapshots_of(&self, volume: VolumeId) -> impl DoubleEndedIterator<Item = &Snapshot> {
        let numbers = self.taken.range((volume, 0)..=(volume, u64::MAX));
        numbers.filter_map(|(_, number)| self.snapshots.get(number))
    }

    /// A volume as its latest snapshot has it.
    fn latest(&self, volume: VolumeId) -> Option<Past<'_, State>> {
        if self.snapshots.len() == 0 {
            return None;
        }
        let snapshot = self.snapshots_of(volume).rev().find(|snapshot| !snapshot.deleted)?;
        Some(Past::of(self, snapshot))
    }

    /// An inode is about to change, or to go.
    pub(crate) fn keep_inode(&mut self, ino: Ino) {
        let Some(inode) = self.inodes.get(&ino) else { return };
        let Some(past) = self.latest(inode.attr.volume) else { return };
        let number = past.number();
        // What has no name and did not change since had none then.
        let named = inode.attr.nlink > 0;
        if named && inode.born <= number && past.kept(PastKey::Inode(ino)).is_none() {
            let inode = inode.clone();
            self.past.insert((number, PastKey::Inode(ino)), PastRow::Inode(inode));
        }
    }

    /// A name is about to be bound in a place that was another's, or unbound.
    pub(crate) fn keep_name(&mut self, directory: Ino, name: &SealedName, cookie: u64) {
        let Some(inode) = self.inodes.get(&directory) else { return };
        let Some(past) = self.latest(inode.attr.volume) else { return };
        let number = past.number();
        if inode.born > number || cookie >= past.next_cookie(directory) {
            return;
        }
        let (entry, place) = (PastKey::Entry(directory, name.clone()), PastKey::Place(directory, cookie));
        let there = self.entries.get(&(directory, name.clone())).map_or(PastRow::None, |entry| PastRow::Entry(*entry));
        let was = self.cookies.get(&(directory, cookie)).map_or(PastRow::None, |name| PastRow::Place(name.clone()));
        let rows = [(entry, there), (place, was)];
        let new: Vec<_> = rows.into_iter().filter(|(key, _)| past.kept(key.clone()).is_none()).collect();
        for (key, row) in new {
            self.past.insert((number, key), row);
        }
    }

    /// An extended attribute is about to change.
    pub(crate) fn keep_xattr(&mut self, key: &XattrKey) {
        let Some(inode) = self.inodes.get(&key.0) else { return };
        let Some(past) = self.latest(inode.attr.volume) else { return };
        let (number, kept) = (past.number(), PastKey::Xattr(key.0, key.1, key.2.clone()));
        if inode.born <= number && past.kept(kept.clone()).is_none() {
            let row = self.xattrs.get(key).map_or(PastRow::None, |value| PastRow::Xattr(value.clone()));
            self.past.insert((number, kept), row);
        }
    }

    /// What was kept is not needed to tell that there was nothing: there is nothing again. But while a later
    /// snapshot is given up, it tells that what that one has came later.
    fn keep_no_nothing(&mut self, volume: VolumeId, keys: impl IntoIterator<Item = PastKey>) {
        let alone = self.latest(volume).filter(Past::is_last);
        let Some(number) = alone.map(|past| past.number()) else { return };
        for key in keys {
            let row = (number, key);
            if self.past.get(&row) == Some(&PastRow::None) {
                self.past.remove(&row);
            }
        }
    }

    /// A name was unbound.
    pub(crate) fn kept_name(&mut self, directory: Ino, name: &SealedName, cookie: u64) {
        let Some(volume) = self.inodes.get(&directory).map(|inode| inode.attr.volume) else { return };
        let keys = [PastKey::Entry(directory, name.clone()), PastKey::Place(directory, cookie)];
        self.keep_no_nothing(volume, keys);
    }

    /// An extended attribute was removed.
    pub(crate) fn kept_xattr(&mut self, volume: VolumeId, key: &XattrKey) {
        self.keep_no_nothing(volume, [PastKey::Xattr(key.0, key.1, key.2.clone())]);
    }

    /// Gives up some rows of snapshots that are deleted: to the one before, if that has none of its own.
    pub(crate) fn give_up_past(&mut self) {
        let Some(number) = self.doomed.get_min().copied() else { return };
        let Some(volume) = self.snapshots.get(&number).map(|snapshot| snapshot.volume) else { return };
        let before = self.taken.range((volume, 0)..(volume, number)).next_back().map(|(_, before)| *before);
        let rows = self.past.range((Bound::Included((number, PastKey::Inode(Ino(0)))), Bound::Unbounded));
        let rows = rows.map(|(key, _)| key.clone()).take_while(|(of, _)| *of == number).take(GIVEN_UP_MAX);
        let rows: Vec<_> = rows.collect();
        let all = rows.len() < GIVEN_UP_MAX;
        for key in rows {
            let Some(row) = self.past.remove(&key) else { continue };
            if let Some(before) = before.filter(|before| row.was_there(*before)) {
                self.past.add(&(before, key.1), &row);
            }
        }
        if all {
            let later = self.snapshots.remove(&number).map_or(0, |snapshot| snapshot.later);
            if let Some(before) = before.and_then(|before| self.snapshots.change(&before)) {
                before.later = later;
            }
            self.taken.remove(&(volume, number));
            self.doomed.remove(&number);
        }
    }

    /// What must be true of all snapshots, and is not.
    pub(crate) fn unsound_snapshots(&self) -> Option<String> {
        let ordered = self.taken.iter().zip(self.taken.iter().skip(1)).filter(|(one, next)| one.0 == next.0);
        let later: BTreeSet<_> = ordered.map(|(one, next)| (one.1, next.1)).collect();
        let told = self.snapshots.iter().filter(|(_, snapshot)| snapshot.later != 0);
        let told: BTreeSet<_> = told.map(|(number, snapshot)| (*number, snapshot.later)).collect();
        let mut known = self.clone();
        known.index_snapshots();
        let stray = self.past.iter().map(|(key, _)| key.0).find(|number| self.snapshots.get(number).is_none());
        let least = self.snapshots.iter().map(|(number, _)| *number).max().unwrap_or(0) < self.clock.next_snapshot;
        match () {
            () if (&known.taken, &known.doomed) != (&self.taken, &self.doomed) => Some("forgotten or unknown".into()),
            () if later != told => Some(format!("not one after the other: {told:?}, {later:?}")),
            () if !least => Some("a number that is not given yet".into()),
            () => stray.map(|number| format!("rows kept for {number}, which is none")),
        }
    }

    /// What follows from the table of snapshots.
    pub(crate) fn index_snapshots(&mut self) {
        self.taken = self.snapshots.iter().map(|(number, snapshot)| (snapshot.volume, *number)).collect();
        let deleted = self.snapshots.iter().filter(|(_, snapshot)| snapshot.deleted);
        self.doomed = deleted.map(|(number, _)| *number).collect();
    }
}
