//! Granting a lease: who gets which zone, what it takes in, and what its holder begins with.

use crate::access::{Context, EXECUTE, READ, WRITE};
use crate::lease::{COOL, Holder, HolderId, LEASE_TERM, ZONES_MAX, ZONES_TOTAL_MAX, Zone};
use crate::op::{Denied, Ino, Reply, Row};
use crate::read::Look as _;
use crate::rename::DEPTH_MAX;
use crate::state::State;

/// Most holders with one key: mounts of one user.
const HOLDERS_MAX: usize = 64;

impl State {
    /// Gives the batch's signer a zone, as the holder with this number.
    pub(crate) fn hold(&mut self, cx: &Context<'_>, number: u64, ino: Ino, fresh: bool) -> Result<Reply, Denied> {
        let id = (*cx.key, number);
        if fresh {
            self.fence(&id);
        }
        if self.holders.get(&id).is_some_and(|holder| cx.by != Some(number) || !holder.recalls.is_empty()) {
            // Somebody else is this holder now; or it should give something back first.
            return Err(Denied::Contended);
        }
        let directory = self.directory(ino)?;
        cx.need(directory, READ | WRITE | EXECUTE)?;
        let space = self.space(directory.attr.volume).ok_or(Denied::Stale)?;
        if space.quota_bytes != 0 || space.quota_inodes != 0 {
            // What a holder does could be refused when it is too late.
            return Err(Denied::NotPermitted);
        }
        let mut cool = COOL.0.as_nanos() as u64;
        loop {
            match self.zone_of(ino) {
                Some((_, Zone::Held { by, .. })) if by == id => return Ok(self.held(&id, ino)),
                Some((_, Zone::Held { by, .. })) if self.is_over(&by) => self.fence(&by),
                Some((_, Zone::Held { .. })) => return Err(Denied::Contended),
                Some((root, Zone::Open { until, .. })) if root == ino && until > self.clock.last => {
                    return Err(Denied::Contended);
                }
                Some((root, Zone::Open { cool: before, .. })) if root == ino => break cool = before,
                // Several want a directory that this one is in, not this one.
                Some((_, Zone::Open { .. })) | None => break,
            }
        }
        let absorbed = self.absorbed(&id, ino)?;
        self.need_holder(&id, absorbed.len())?;
        for root in absorbed {
            self.end_zone(root);
        }
        self.end_zone(ino);
        self.zones.insert(ino, Zone::Held { by: id, since: self.clock.last, cool });
        self.holder(&id).zones.push(ino);
        Ok(self.held(&id, ino))
    }

    /// The zones below `ino` that a lease on it takes in: the holder's own, and open ones that nobody
    /// contends for any more.
    fn absorbed(&self, id: &HolderId, ino: Ino) -> Result<Vec<Ino>, Denied> {
        let (mut absorbed, mut others) = (Vec::new(), 0);
        for (root, zone) in self.zones.iter().filter(|(root, _)| **root != ino) {
            let free = match zone {
                Zone::Held { by, .. } => by == id,
                Zone::Open { until, .. } => *until <= self.clock.last,
            };
            match self.is_below(*root, ino) {
                true if free => absorbed.push(*root),
                true => others += 1,
                false => {}
            }
        }
        if others > ZONES_MAX { Err(Denied::Contended) } else { Ok(absorbed) }
    }

    /// Whether a directory is somewhere in another one.
    pub(crate) fn is_below(&self, mut at: Ino, top: Ino) -> bool {
        for _ in 0..DEPTH_MAX {
            match self.inodes.get(&at) {
                Some(inode) if inode.home == top && at != top => return true,
                Some(inode) if inode.home != at => at = inode.home,
                _ => return false,
            }
        }
        false
    }

    /// Makes a holder, unless there is one, if it may have one more zone.
    fn need_holder(&mut self, id: &HolderId, absorbed: usize) -> Result<(), Denied> {
        if self.zones.len() >= ZONES_TOTAL_MAX + absorbed {
            let over = |zone: &Zone| matches!(zone, Zone::Open { until, .. } if *until <= self.clock.last);
            let spare = self.zones.iter().find(|(_, zone)| over(zone)).map(|(root, _)| *root);
            self.end_zone(spare.ok_or(Denied::Contended)?);
        }
        if let Some(holder) = self.holders.get(id) {
            let full = holder.zones.len() >= ZONES_MAX + absorbed;
            return if full { Err(Denied::Contended) } else { Ok(()) };
        }
        self.enlist(id)
    }

    /// Makes a holder without anything.
    pub(crate) fn enlist(&mut self, id: &HolderId) -> Result<(), Denied> {
        let mine = || self.holders.range((id.0, 0)..=(id.0, u64::MAX));
        if mine().count() >= HOLDERS_MAX {
            let over = mine().map(|(id, _)| *id).find(|id| self.is_over(id));
            self.fence(&over.ok_or(Denied::Contended)?);
        }
        let (epoch, now) = (self.clock.next_epoch, self.clock.last);
        self.clock.next_epoch += 1;
        let (inos, zones, recalls) = (Vec::new(), Vec::new(), Vec::new());
        let holder = Holder { epoch, since: now, until: now.after(LEASE_TERM), parts: 0, inos, zones, recalls };
        self.holders.insert(*id, holder);
        Ok(())
    }

    /// The answer to whoever holds `ino`, by this zone or one around it: also the rows to begin with.
    fn held(&mut self, id: &HolderId, ino: Ino) -> Reply {
        let lease = self.lease(id);
        let holder = self.holders.get(id).expect("it holds a zone");
        let epoch = holder.epoch;
        let mut names = vec![self.principals.row_name(&id.0), self.holders.row_name(id)];
        let zones = self.zones.iter().map(|(root, _)| *root).filter(|root| *root == ino || self.is_below(*root, ino));
        names.extend(zones.map(|root| self.zones.row_name(&root)));
        let directory = self.inodes.get(&ino).expect("it is held");
        names.push(self.volumes.row_name(&directory.attr.volume));
        names.push(self.usage.row_name(&directory.attr.volume));
        let mut at = ino;
        while self.is_held_by(at, id) {
            names.push(self.inodes.row_name(&at));
            names.extend(self.zones.get(&at).map(|_| self.zones.row_name(&at)));
            match self.inodes.get(&at) {
                Some(inode) if inode.home != at => at = inode.home,
                _ => break,
            }
        }
        Reply::Held { epoch, lease, rows: self.rows_named(names) }
    }

    /// These rows, with what they hold.
    pub(crate) fn rows_named(&self, names: Vec<Vec<u8>>) -> Vec<Row> {
        let row = |name: Vec<u8>| self.row_of(&name).map(|value| (name.into(), value.into()));
        names.into_iter().filter_map(row).collect()
    }
}
