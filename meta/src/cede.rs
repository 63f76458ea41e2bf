//! Asking for leases back, giving them back, and taking them from who does not.

use core::time::Duration;

use base::Time;

use crate::access::Context;
use crate::lease::{COOL, HolderId, LEASE_TERM, ZONES_MAX, ZONES_TOTAL_MAX, Zone};
use crate::op::{Denied, Ino, Kind, Reply};
use crate::state::State;

/// Most directories that a holder is asked for at a time; instead of more it is asked for all of their zones.
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
        let asked = self.holders.get(id).expect("it holds a zone").recalls.len();
        match self.zone_around(ino) {
            // Else it could be kept busy with what others ask for.
            Some((root, _)) if asked >= RECALLS_MAX => self.ask_for(id, root),
            _ => self.ask_for(id, directory),
        }
    }

    fn ask_for(&mut self, id: &HolderId, directory: Ino) {
        let holder = self.holder(id);
        if !holder.recalls.contains(&directory) {
            holder.recalls.push(directory);
            self.recalled.insert(*id);
        }
    }

    /// Gives directories back, with what is below them.
    pub(crate) fn cede(&mut self, cx: &Context<'_>, directories: &[Ino]) -> Result<Reply, Denied> {
        let id = cx.holder()?;
        if directories.len() > RECALLS_MAX + 2 * ZONES_MAX {
            return Err(Denied::Malformed);
        }
        for ino in directories {
            let Some((root, zone)) = self.zone_of(*ino) else { continue };
            let asked = self.holders.get(&id).is_some_and(|holder| holder.recalls.contains(ino));
            let is_directory = self.inodes.get(ino).is_some_and(|inode| inode.attr.kind == Kind::Directory);
            match zone {
                _ if !asked || !is_directory || !zone.holders().contains(&id) => {}
                // Its copy knows what it gave back, and no more: all of the zone is asked for.
                _ if root != *ino && !self.has_room(&zone) => self.ask_for(&id, root),
                Zone::Held { since, cool, .. } => self.cede_held(*ino, root, since, cool),
                Zone::Shared { by, .. } => self.leave_zone(*ino, root, &id, by),
                Zone::Open { .. } => {}
            }
        }
        Ok(Reply::Lease(self.lease(&id)))
    }

    /// Opens a directory that was held, with all below it.
    fn cede_held(&mut self, ino: Ino, root: Ino, since: Time, cool: u64) {
        let long = self.clock.last.since(since) > Duration::from_nanos(cool.saturating_mul(10));
        let cool = if long || root != ino { COOL.0 } else { Duration::from_nanos(cool.saturating_mul(2)).min(COOL.1) };
        self.end_zone(ino);
        let (until, cool) = (self.clock.last.after(cool), cool.as_nanos() as u64);
        // Whoever asked for it may only want to look.
        self.zones.insert(ino, Zone::Open { until, cool, changed: Time::ZERO });
    }

    /// Whether there is room for a zone inside of this one, with all of its holders in it.
    pub(crate) fn has_room(&mut self, around: &Zone) -> bool {
        self.drop_overdue();
        let zones = |id: &HolderId| self.holders.get(id).map_or(0, |holder| holder.zones.len());
        self.zones.len() < ZONES_TOTAL_MAX && around.holders().iter().all(|id| zones(id) < 2 * ZONES_MAX)
    }

    /// Leaves a directory in a zone that is shared `by` these to the others, with all below it; to everybody, if
    /// there are none.
    fn leave_zone(&mut self, cut: Ino, root: Ino, id: &HolderId, mut by: Vec<HolderId>) {
        by.retain(|other| other != id);
        let now = self.clock.last;
        let reserved = now.after(RESERVED);
        // It is about to be changed.
        let (until, cool, changed) = match self.zones.get(&root) {
            Some(Zone::Shared { until, cool, changed, .. }) if cut == root => {
                (reserved.max(*until), *cool, now.max(*changed))
            }
            // Only what is around it was contended for.
            _ => (reserved, COOL.0.as_nanos() as u64, now),
        };
        self.end_zone(cut);
        let zone = match by.is_empty() {
            true => Zone::Open { until, cool, changed },
            false => Zone::Shared { by, until, cool, changed },
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
        // What others asked for is theirs to use for a while, whoever comes next, if only to look.
        let asked: Vec<(Ino, bool)> = holder.recalls.into_iter().map(|ino| (ino, self.is_held_by(ino, id))).collect();
        let asked: Vec<(Ino, bool)> =
            asked.into_iter().filter(|(ino, held)| *held || self.is_read_by(*ino, id)).collect();
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
        for (directory, held) in asked {
            self.keep_open(directory, held);
        }
    }

    /// Sees to it that a directory that somebody did not give back is nobody's for a term; or if he was one of
    /// several, only the others'.
    fn keep_open(&mut self, directory: Ino, held: bool) {
        let (changed, cool) = (self.clock.last.after(LEASE_TERM), COOL.0.as_nanos() as u64);
        let around = self.zone_of(directory).filter(|_| !held);
        let room = around.as_ref().is_none_or(|(_, zone)| self.has_room(zone)) && self.zones.len() < ZONES_TOTAL_MAX;
        match around {
            Some((root, Zone::Shared { .. } | Zone::Open { .. })) if root == directory => {
                self.close_until(root, changed)
            }
            _ if !room || self.zones.get(&directory).is_some() => {}
            Some((_, Zone::Shared { by, until, .. })) => {
                self.begin_zone(directory, Zone::Shared { by, until, cool, changed });
            }
            _ => drop(self.zones.insert(directory, Zone::Open { until: changed, cool, changed })),
        }
    }

    /// Nobody joins those who share this zone, or shares it, before then; nor has it alone, if it is open.
    fn close_until(&mut self, root: Ino, then: Time) {
        match self.zones.change(&root) {
            Some(Zone::Shared { changed, .. }) => *changed = then,
            Some(Zone::Open { until, changed, .. }) => (*until, *changed) = (then.max(*until), then),
            _ => {}
        }
    }
}
