//! Granting a lease: who gets which zone, what it takes in, and what its holder begins with.

use base::{Encode as _, Time};

use crate::access::{Context, EXECUTE, READ, WRITE};
use crate::lease::{COOL, Holder, HolderId, LEASE_TERM, SHARERS_MAX, ZONES_MAX, ZONES_TOTAL_MAX, Zone};
use crate::op::{Denied, Ino, Reply, Row};
use crate::read::Look as _;
use crate::rename::DEPTH_MAX;
use crate::state::State;

/// Most holders with one key: mounts of one user.
const HOLDERS_MAX: usize = 64;

/// What a holder asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) number: u64,
    pub(crate) ino: Ino,
    pub(crate) instead: u64,
    pub(crate) shared: bool,
}

/// What it can have.
enum Found {
    /// It has it.
    Had,
    /// A zone of its own.
    Alone { cool: u64 },
    /// A zone that others may share.
    Share { root: Ino, until: Time, cool: u64 },
    /// Its part of one.
    Join { root: Ino },
    /// Its part of what is cut out of one, to all of which it has no right.
    Cut { by: Vec<HolderId>, until: Time, cool: u64 },
}

impl State {
    /// Gives the batch's signer a zone, as the holder with this number: alone, or if that can't be and will do,
    /// together with others who look at it.
    pub(crate) fn hold(&mut self, cx: &Context<'_>, ask: Hold) -> Result<Reply, Denied> {
        let Hold { number, ino, instead, shared } = ask;
        let id = (*cx.key, number);
        if let Some(taken) = self.begin_anew(cx, &id, instead) {
            return Ok(taken);
        }
        if self.holders.get(&id).is_some_and(|holder| !holder.recalls.is_empty()) {
            // It should give something back first.
            return Err(Denied::Contended);
        }
        let directory = self.directory(ino)?;
        cx.need(directory, READ | EXECUTE)?;
        let volume = directory.attr.volume;
        let space = self.space(volume).ok_or(Denied::Stale)?;
        // With a quota, what a holder does could be refused when it is too late.
        let quota = space.quota_bytes != 0 || space.quota_inodes != 0;
        let alone = if quota { Err(Denied::NotPermitted) } else { cx.need(directory, WRITE) };
        if !shared {
            alone?;
        }
        // Whoever looks keeps no snapshot waiting.
        let waited_for = self.is_snapshot_wanted(volume);
        if waited_for && !shared {
            return Err(Denied::Contended);
        }
        let alone = alone.is_ok() && !waited_for;
        let found = self.find_zone(cx, ask, alone)?;
        if self.holders.get(&id).is_some() {
            return self.take_zone(&id, ask, found);
        }
        // Room for one more holder may be another's, with what that one had: it is looked for anew.
        self.enlist(&id)?;
        let taken = self.find_zone(cx, ask, alone).and_then(|found| self.take_zone(&id, ask, found));
        if taken.is_err() {
            self.fence(&id);
        }
        taken
    }

    /// Ends the holder with this number that the caller begins anew `instead` of. If somebody else is it,
    /// that is the answer.
    pub(crate) fn begin_anew(&mut self, cx: &Context<'_>, id: &HolderId, instead: u64) -> Option<Reply> {
        let epoch = self.holders.get(id)?.epoch;
        match () {
            () if cx.by == Some(id.1) => None,
            () if epoch == instead => {
                self.fence(id);
                None
            }
            () => Some(Reply::Taken { epoch }),
        }
    }

    /// Gives a holder what was found for it.
    fn take_zone(&mut self, id: &HolderId, ask: Hold, found: Found) -> Result<Reply, Denied> {
        let Hold { ino, shared, .. } = ask;
        let absorbed = self.absorbed(id, ino);
        match found {
            Found::Had => {}
            // There is too much below it that is others'.
            Found::Alone { cool } if absorbed.is_err() && shared => {
                self.need_zone(id, 0)?;
                self.end_zone(ino);
                let (by, until, changed) = (vec![*id], self.clock.last, Time::ZERO);
                self.begin_zone(ino, Zone::Shared { by, until, cool, changed });
            }
            Found::Alone { cool } => {
                let absorbed = absorbed?;
                self.need_zone(id, absorbed.len())?;
                for root in absorbed {
                    self.end_zone(root);
                }
                self.end_zone(ino);
                self.begin_zone(ino, Zone::Held { by: *id, since: self.clock.last, cool });
            }
            Found::Share { root, until, cool } => {
                self.need_zone(id, 0)?;
                self.end_zone(root);
                self.begin_zone(root, Zone::Shared { by: vec![*id], until, cool, changed: Time::ZERO });
            }
            Found::Join { root } => {
                self.need_zone(id, 0)?;
                self.join(root, *id)?;
            }
            Found::Cut { mut by, until, cool } => {
                by.push(*id);
                self.need_zone(id, 0)?;
                if !self.has_room(&Zone::Shared { by: by.clone(), until, cool, changed: Time::ZERO }) {
                    return Err(Denied::Contended);
                }
                self.end_zone(ino);
                self.begin_zone(ino, Zone::Shared { by, until, cool, changed: Time::ZERO });
            }
        }
        Ok(self.held(id, ino))
    }

    /// What a holder can have, `alone` if it may. Whose time is up is not in the way.
    fn find_zone(&mut self, cx: &Context<'_>, ask: Hold, alone: bool) -> Result<Found, Denied> {
        loop {
            if let Some(found) = self.look_for_zone(cx, ask, alone)? {
                return Ok(found);
            }
        }
    }

    /// The same. `None`: somebody whose time is up was in the way, and is not now.
    fn look_for_zone(&mut self, cx: &Context<'_>, ask: Hold, alone: bool) -> Result<Option<Found>, Denied> {
        let Hold { number, ino, shared, .. } = ask;
        let id = &(*cx.key, number);
        let (now, first) = (self.clock.last, COOL.0.as_nanos() as u64);
        // Several want a directory that this one is in, not this one.
        let cooled = |root, until| root != ino || until <= now;
        let cool_of = |root, cool| if root == ino { cool } else { first };
        match self.zone_of(ino) {
            None if alone => Ok(Some(Found::Alone { cool: first })),
            None => Ok(Some(Found::Share { root: ino, until: now, cool: first })),
            Some((_, Zone::Held { by, .. })) if by == *id => Ok(Some(Found::Had)),
            Some((_, Zone::Held { by, .. })) if shared => match self.recall_all(&[by], ino) {
                Some(_) => Err(Denied::Leased),
                None => Ok(None),
            },
            Some((_, Zone::Held { by, .. })) if self.is_over(&by) => {
                self.fence(&by);
                Ok(None)
            }
            Some((_, Zone::Held { .. })) => Err(Denied::Contended),
            Some((root, Zone::Open { until, cool, .. })) if alone && cooled(root, until) => {
                Ok(Some(Found::Alone { cool: cool_of(root, cool) }))
            }
            Some((root, Zone::Open { until, cool, changed })) if shared => match () {
                () if !self.is_quiet(changed) => Err(Denied::Contended),
                () if self.may_look(cx, root) => Ok(Some(Found::Share { root, until, cool })),
                () => Ok(Some(Found::Share { root: ino, until: now, cool: first })),
            },
            Some((_, Zone::Open { .. })) => Err(Denied::Contended),
            Some((_, Zone::Shared { by, .. })) if shared && by.contains(id) => Ok(Some(Found::Had)),
            Some((root, Zone::Shared { by, until, cool, changed })) if shared => match () {
                () if by.len() >= SHARERS_MAX || !self.is_quiet(changed) => Err(Denied::Contended),
                () if self.may_look(cx, root) => Ok(Some(Found::Join { root })),
                () => Ok(Some(Found::Cut { by, until, cool })),
            },
            Some((root, Zone::Shared { until, .. })) if !cooled(root, until) => Err(Denied::Contended),
            Some((root, Zone::Shared { by, cool, .. })) => {
                let others: Vec<HolderId> = by.into_iter().filter(|other| other != id).collect();
                match self.recall_all(&others, ino) {
                    None => Ok(None),
                    Some(true) => {
                        self.note_change(root);
                        Err(Denied::Leased)
                    }
                    Some(false) => Ok(Some(Found::Alone { cool: cool_of(root, cool) })),
                }
            }
        }
    }

    /// Whether the caller may look into a directory.
    fn may_look(&self, cx: &Context<'_>, ino: Ino) -> bool {
        self.directory(ino).is_ok_and(|directory| cx.need(directory, READ | EXECUTE).is_ok())
    }

    /// The zones below `ino` that a lease on it takes in: the holder's own, and open ones that nobody
    /// contends for any more.
    fn absorbed(&self, id: &HolderId, ino: Ino) -> Result<Vec<Ino>, Denied> {
        let (mut absorbed, mut others) = (Vec::new(), 0);
        for (root, zone) in self.zones.iter().filter(|(root, _)| **root != ino) {
            let free = match zone {
                Zone::Held { .. } | Zone::Shared { .. } => zone.holders() == core::slice::from_ref(id),
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

    /// Whether a holder may have one more zone, when these are taken in.
    fn need_zone(&mut self, id: &HolderId, absorbed: usize) -> Result<(), Denied> {
        let room = self.zones.len() < ZONES_TOTAL_MAX + absorbed || self.drop_overdue();
        let full = self.holders.get(id).is_none_or(|holder| holder.zones.len() >= ZONES_MAX + absorbed);
        if full || !room { Err(Denied::Contended) } else { Ok(()) }
    }

    /// If there are as many zones as there may be, forgets one that nobody contends for any more; whether there
    /// is room then.
    pub(crate) fn drop_overdue(&mut self) -> bool {
        if self.zones.len() < ZONES_TOTAL_MAX {
            return true;
        }
        let over = |zone: &Zone| matches!(zone, Zone::Open { until, .. } if *until <= self.clock.last);
        let spare = self.zones.iter().find(|(_, zone)| over(zone)).map(|(root, _)| *root);
        spare.map(|spare| self.end_zone(spare)).is_some()
    }

    /// Makes a holder without anything. If there are too many with its key, one whose time is up makes room.
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
        let mut zones: Vec<Ino> = zones.collect();
        let directory = self.inodes.get(&ino).expect("it is held");
        names.push(self.volumes.row_name(&directory.attr.volume));
        names.push(self.usage.row_name(&directory.attr.volume));
        let mut at = ino;
        while self.is_read_by(at, id) {
            names.push(self.inodes.row_name(&at));
            zones.extend(self.zones.get(&at).map(|_| at));
            match self.inodes.get(&at) {
                Some(inode) if inode.home != at => at = inode.home,
                _ => break,
            }
        }
        zones.sort_unstable();
        zones.dedup();
        let mut rows = self.rows_named(names);
        rows.extend(zones.into_iter().filter_map(|root| self.zone_row(root, id)));
        Reply::Held { epoch, lease, rows }
    }

    /// A zone's row as a holder needs it: who else shares it is no matter of his.
    pub(crate) fn zone_row(&self, root: Ino, id: &HolderId) -> Option<Row> {
        let zone = match self.zones.get(&root)?.clone() {
            Zone::Shared { by, until, cool, changed } => {
                let by = by.into_iter().filter(|other| other == id).collect();
                Zone::Shared { by, until, cool, changed }
            }
            zone => zone,
        };
        Some((self.zones.row_name(&root).into(), zone.to_bytes().into()))
    }

    /// These rows, with what they hold.
    pub(crate) fn rows_named(&self, names: Vec<Vec<u8>>) -> Vec<Row> {
        let row = |name: Vec<u8>| self.row_of(&name).map(|value| (name.into(), value.into()));
        names.into_iter().filter_map(row).collect()
    }
}
