//! Asking for leases back, giving them back, and taking them from who does not.

use core::time::Duration;

use base::Time;

use crate::access::Context;
use crate::lease::{COOL, HolderId, LEASE_TERM, ZONES_MAX, ZONES_TOTAL_MAX, Zone};
use crate::op::{Denied, Ino, Kind, Reply};
use crate::state::State;

/// Most directories that a holder is asked for at a time; the others are asked for later.
const RECALLS_MAX: usize = 64;
/// For how long what was shared is nobody's alone: those who asked for it first have their changes ordered.
const RESERVED: Duration = Duration::from_secs(1);

impl State {
    /// Asks these holders for what they share; whether there are any. `None`: one's time was up, and it is fenced.
    pub(crate) fn recall_all(&mut self, holders: &[HolderId], ino: Ino) -> Option<bool> {
        if let Some(over) = holders.iter().find(|id| self.is_over(id)) {
            self.fence(over);
            return None;
        }
        holders.iter().for_each(|id| self.recall(id, ino));
        Some(!holders.is_empty())
    }

    /// Asks a holder for the directory that `ino` is, or is in.
    fn recall(&mut self, id: &HolderId, ino: Ino) {
        let inode = self.inodes.get(&ino).expect("it is in a zone");
        let directory = if inode.attr.kind == Kind::Directory { ino } else { inode.home };
        let asked = self.holders.get(id).expect("it holds a zone");
        if asked.recalls.len() < RECALLS_MAX && !asked.recalls.contains(&directory) {
            self.holder(id).recalls.push(directory);
            self.recalled.insert(*id);
        }
    }

    /// Gives directories back, with what is below them.
    pub(crate) fn cede(&mut self, cx: &Context<'_>, directories: &[Ino]) -> Result<Reply, Denied> {
        let id = cx.holder()?;
        if directories.len() > RECALLS_MAX {
            return Err(Denied::Malformed);
        }
        for ino in directories {
            let Some((root, zone)) = self.zone_of(*ino) else { continue };
            let asked = self.holders.get(&id).is_some_and(|holder| holder.recalls.contains(ino));
            let is_directory = self.inodes.get(ino).is_some_and(|inode| inode.attr.kind == Kind::Directory);
            match zone {
                _ if !asked || !is_directory || !zone.holders().contains(&id) => {}
                Zone::Held { since, cool, .. } => self.cede_held(*ino, root, since, cool),
                Zone::Shared { by, .. } => self.cede_shared(*ino, root, &id, by),
                Zone::Open { .. } => {}
            }
        }
        Ok(Reply::Lease(self.lease(&id)))
    }

    /// Opens a directory that was held, with all below it.
    fn cede_held(&mut self, ino: Ino, root: Ino, since: Time, cool: u64) {
        let long = self.clock.last.since(since) > Duration::from_nanos(cool.saturating_mul(10));
        let cool = if long || root != ino { COOL.0 } else { Duration::from_nanos(cool.saturating_mul(2)).min(COOL.1) };
        // If there are too many zones, all of this one is given back.
        let cut = if self.zones.len() < ZONES_TOTAL_MAX { ino } else { root };
        self.end_zone(cut);
        let (until, cool) = (self.clock.last.after(cool), cool.as_nanos() as u64);
        // Whoever asked for it may only want to look.
        self.zones.insert(cut, Zone::Open { until, cool, changed: Time::ZERO });
    }

    /// Takes a holder off those who share a directory and all below it.
    fn cede_shared(&mut self, ino: Ino, root: Ino, id: &HolderId, by: Vec<HolderId>) {
        let zones = |id: &HolderId| self.holders.get(id).map_or(0, |holder| holder.zones.len());
        let room = self.zones.len() < ZONES_TOTAL_MAX && by.iter().all(|other| zones(other) < 2 * ZONES_MAX);
        self.leave_zone(if room { ino } else { root }, root, id, by);
    }

    /// Leaves a directory in a zone that is shared `by` these to the others, with all below it; to everybody, if
    /// there are none.
    fn leave_zone(&mut self, cut: Ino, root: Ino, id: &HolderId, mut by: Vec<HolderId>) {
        by.retain(|other| other != id);
        let now = self.clock.last;
        let reserved = now.after(RESERVED);
        let (until, cool) = match self.zones.get(&root) {
            Some(Zone::Shared { until, cool, .. }) if cut == root => (reserved.max(*until), *cool),
            // Only what is around it was contended for.
            _ => (reserved, COOL.0.as_nanos() as u64),
        };
        self.end_zone(cut);
        // It is about to be changed.
        let zone = match by.is_empty() {
            true => Zone::Open { until, cool, changed: now },
            false => Zone::Shared { by, until, cool, changed: now },
        };
        self.begin_zone(cut, zone);
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self, cx: &Context<'_>) -> Result<Reply, Denied> {
        self.fence(&cx.holder()?);
        Ok(Reply::Unit)
    }

    /// Ends a holder: what it has not sent is not applied any more.
    pub(crate) fn fence(&mut self, id: &HolderId) {
        let Some(holder) = self.holders.get(id).cloned() else { return };
        // What others asked for is theirs to use for a while, whoever comes next, if only to look. (What it shared
        // others may share still; they are asked for it, too.)
        let asked: Vec<Ino> = holder.recalls.into_iter().filter(|ino| self.is_held_by(*ino, id)).collect();
        self.release_locks(id);
        self.holders.remove(id);
        for root in holder.zones {
            match self.zones.get(&root) {
                // What is around it was ceded here, and must not become somebody's again.
                Some(Zone::Shared { by, .. }) => {
                    let by = by.clone();
                    self.leave_zone(root, root, id, by);
                }
                _ => drop(self.zones.remove(&root)),
            }
        }
        self.recalled.remove(id);
        let changed = self.clock.last;
        let until = changed.after(LEASE_TERM);
        for directory in asked {
            if self.zones.len() < ZONES_TOTAL_MAX && self.zones.get(&directory).is_none() {
                let cool = COOL.0.as_nanos() as u64;
                self.zones.insert(directory, Zone::Open { until, cool, changed });
            }
        }
    }
}
