//! Leases: parts of the tree that one client may change, and remember, without asking.
//!
//! FARSITE (OSDI'02 §4.2; TOCS'07) hands authority over files to whoever uses them. Here it is handed out
//! by *zones*: a directory with everything below it, down to the next zone. The nearest record at or above
//! a directory says whose it is: held by one client, which may change it on its own copy of this state
//! machine and send the [log](crate::Log) of that later; shared by several, each of which may remember what is
//! there until it is to be changed; or open, which means that several want it and every operation is ordered
//! for a while. What is not in a directory, or in several, belongs to no zone; what has no
//! name yet is of the directory that it was made in.
//!
//! Whatever somebody else asks of a zone that is held is refused with [`Denied::Leased`] and the holder is
//! asked to cede the directory concerned; and so are all who share it if anybody asks for a change. One that
//! does not answer is waited out: when its lease has run out by agreed time it is fenced, and no batch with its
//! epoch is applied any more. A lease that ran out goes on while nobody else wants what it covers. Leases give
//! no rights: every operation is judged by grants and modes as ever.

use core::time::Duration;

use base::{PublicKey, Time, canonical_enum, canonical_struct};

use crate::access::Context;
use crate::op::{Answer, Batch, By, Denied, Ino, Kind, Lease, LockHow, LockRequest, Locked, Op, Reply};
use crate::read::Look as _;
use crate::rename::DEPTH_MAX;
use crate::state::State;

/// How long a lease lasts after the latest batch in its holder's name, agreed time.
pub const LEASE_TERM: Duration = Duration::from_secs(60);
/// How far ahead of agreed time the stamps of a log may be: as far as replicas let agreed time be from
/// their clocks.
const STAMP_SLACK: Duration = Duration::from_secs(10);
/// For how long a directory is open that was asked back: at first, and at most, doubling each time that
/// it was not held ten times as long before.
pub(crate) const COOL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(640));
/// An open zone may be shared when it was not changed for so long: before, whoever shares it would be asked to
/// cede it at once.
const QUIET: Duration = Duration::from_secs(2);
/// How exactly it is known when a zone was changed.
const CHANGED_EVERY: Duration = Duration::from_secs(1);
/// Most holders of a zone that is shared.
pub(crate) const SHARERS_MAX: usize = 64;
/// Inode numbers in a range granted ahead.
const RANGE: u64 = 1 << 16;
/// In the long run a key is given one range in this time, and so much ahead.
const RANGE_EVERY: Duration = Duration::from_secs(5);
const RANGES_AHEAD: Duration = Duration::from_secs(64 * 5);
/// Most ranges a holder has at a time.
const RANGES_MAX: usize = 4;
/// Most zones of one holder.
pub(crate) const ZONES_MAX: usize = 256;
/// Most zones in all, open ones too.
pub(crate) const ZONES_TOTAL_MAX: usize = 4096;

/// A client that holds leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) epoch: u64,
    pub(crate) since: Time,
    pub(crate) until: Time,
    /// Parts of its log that were applied.
    pub(crate) parts: u64,
    /// Numbers for the inodes that it makes, each range from its first, without its last.
    pub(crate) inos: Vec<(Ino, Ino)>,
    pub(crate) zones: Vec<Ino>,
    pub(crate) recalls: Vec<Ino>,
}
canonical_struct!(Holder { epoch, since, until, parts, inos, zones, recalls });

/// A holder's key in its table: its signer, and the number it chose.
pub(crate) type HolderId = (PublicKey, u64);

/// Whose a directory is, with what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Zone {
    /// One holder's alone.
    Held { by: HolderId, since: Time, cool: u64 },
    /// Nobody's alone until this time at least; and when it was changed last, about.
    Open { until: Time, cool: u64, changed: Time },
    /// These holders' to read: it is changed when all but who changes it have ceded it. Nobody's alone until
    /// this time at least; and when it was changed last.
    Shared { by: Vec<HolderId>, until: Time, cool: u64, changed: Time },
}
canonical_enum!(Zone {
    0 => Held { by, since, cool },
    1 => Open { until, cool, changed },
    2 => Shared { by, until, cool, changed },
});

impl Zone {
    /// Who has a lease on it, of either kind.
    pub(crate) fn holders(&self) -> &[HolderId] {
        match self {
            Zone::Held { by, .. } => core::slice::from_ref(by),
            Zone::Shared { by, .. } => by,
            Zone::Open { .. } => &[],
        }
    }
}

impl Batch {
    /// Calls to be ordered, in nobody's name but the signer's.
    #[must_use]
    pub fn new(calls: Vec<crate::op::Call>) -> Batch {
        Batch { calls, by: None }
    }
}

impl State {
    /// The holders that are asked to cede something.
    pub fn recalled(&self) -> impl Iterator<Item = &(PublicKey, u64)> {
        self.recalled.iter()
    }

    /// Whether this holder has a lease that covers `ino`, and nobody else.
    #[must_use]
    pub fn is_held_by(&self, ino: Ino, holder: &(PublicKey, u64)) -> bool {
        matches!(self.zone_around(ino), Some((_, Zone::Held { by, .. })) if by == holder)
    }

    /// Whether this holder has a lease that covers `ino`, alone or with others: nobody else changes it before
    /// the holder has ceded it.
    #[must_use]
    pub fn is_read_by(&self, ino: Ino, holder: &(PublicKey, u64)) -> bool {
        self.zone_around(ino).is_some_and(|(_, zone)| zone.holders().contains(holder))
    }

    /// The record that says whose an inode is, and the directory that it is of.
    pub(crate) fn zone_of(&self, ino: Ino) -> Option<(Ino, Zone)> {
        self.zone_around(ino).map(|(root, zone)| (root, zone.clone()))
    }

    pub(crate) fn zone_around(&self, ino: Ino) -> Option<(Ino, &Zone)> {
        let inode = self.inodes.get(&ino)?;
        let mut at = match inode.attr.kind {
            Kind::Directory => ino,
            _ => inode.home,
        };
        for _ in 0..DEPTH_MAX {
            if let Some(zone) = self.zones.get(&at) {
                return Some((at, zone));
            }
            // One in the trash is nobody's, and what was made in it without a name, too.
            let home = self.inodes.get(&at).filter(|directory| directory.attr.nlink > 0)?.home;
            if home == at {
                return None;
            }
            at = home;
        }
        None
    }

    /// Begins a batch in a holder's name: it is the one it says, and its leases last longer now, unless
    /// others want what it holds.
    pub(crate) fn enter(&mut self, who: &PublicKey, batch: &Batch) -> Result<(), Denied> {
        let Some(by) = &batch.by else { return Ok(()) };
        let until = self.clock.last.after(LEASE_TERM);
        let id = (*who, by.holder);
        let holder = self.holders.get(&id).filter(|holder| holder.epoch == by.epoch).ok_or(Denied::Fenced)?;
        if let Some(log) = &by.log {
            match () {
                () if log.stamps.len() != batch.calls.len() => return Err(Denied::Malformed),
                () if log.part < holder.parts => return Err(Denied::Applied),
                () if log.part > holder.parts => return Err(Denied::Fenced),
                () => {}
            }
        }
        if holder.recalls.is_empty() {
            // Whoever is asked for something has no longer than it had.
            self.holder(&id).until = until;
        }
        Ok(())
    }

    /// Whether a batch's holder, if it says one, is still the one that it was when the batch began.
    pub(crate) fn is_current(&self, who: &PublicKey, batch: &Batch) -> bool {
        let holder = |by: &By| self.holders.get(&(*who, by.holder));
        batch.by.as_ref().is_none_or(|by| holder(by).is_some_and(|holder| holder.epoch == by.epoch))
    }

    /// Ends a part of a log.
    pub(crate) fn leave(&mut self, who: &PublicKey, by: &By, whole: bool) {
        let id = (*who, by.holder);
        match self.holders.change(&id) {
            Some(holder) if whole => holder.parts += 1,
            _ => self.fence(&id),
        }
    }

    /// When a call of a log happened: as the holder says, within bounds.
    pub(crate) fn stamp_of(&self, who: &PublicKey, by: &By, stamp: Time) -> Time {
        let since = self.holders.get(&(*who, by.holder)).map_or(Time::ZERO, |holder| holder.since);
        stamp.min(self.clock.last.after(STAMP_SLACK)).max(since)
    }

    /// Refuses what concerns somebody else's zone, and asks for it; and in a log, what is not the
    /// holder's. Whose lease has run out is fenced.
    pub(crate) fn need_leases(&mut self, cx: &Context<'_>, op: &Op) -> Result<(), Denied> {
        if cx.logged && !is_logged(op) {
            return Err(Denied::Malformed);
        }
        if let Op::SnapshotTake { volume, name } = op {
            self.may_take(cx, *volume, name)?;
        }
        if self.zones.len() == 0 && !cx.logged {
            return Ok(());
        }
        let (mut leased, change) = (false, is_change(op));
        for ino in self.touched(op) {
            // Whoever else is in the way is asked, too: terms are waited out together.
            leased |= self.is_others(cx, ino, change)?;
        }
        if let Op::SnapshotTake { volume, .. } = op
            && leased
        {
            self.want_snapshot(*volume);
        }
        if leased { Err(Denied::Leased) } else { Ok(()) }
    }

    /// Whether somebody else's lease is in the way of looking at an inode, or of changing it; asks for it then.
    fn is_others(&mut self, cx: &Context<'_>, ino: Ino, change: bool) -> Result<bool, Denied> {
        let is_own = |id: &HolderId| Some(id.1) == cx.by && id.0 == *cx.key;
        loop {
            match self.zone_of(ino) {
                Some((_, Zone::Held { by, .. })) if is_own(&by) => return Ok(false),
                Some((_, Zone::Held { by, .. })) if self.recall_all(&[by], ino).is_some() => return Ok(true),
                Some((_, Zone::Held { .. })) => {}
                _ if cx.logged => return Err(Denied::Fenced),
                Some((root, Zone::Shared { by, .. })) if change => {
                    let others = by.into_iter().filter(|id| !is_own(id));
                    if let Some(in_the_way) = self.recall_all(&others.collect::<Vec<_>>(), ino) {
                        // And nobody joins them meanwhile.
                        self.note_change(root);
                        return Ok(in_the_way);
                    }
                }
                Some((root, Zone::Open { .. })) if change => {
                    self.note_change(root);
                    return Ok(false);
                }
                _ => return Ok(false),
            }
        }
    }

    /// Takes note that an open or shared zone is changed, or is to be.
    pub(crate) fn note_change(&mut self, root: Ino) {
        let now = self.clock.last;
        let old = |changed: &Time| now.since(*changed) >= CHANGED_EVERY;
        let due = match self.zones.get(&root) {
            Some(Zone::Open { changed, .. } | Zone::Shared { changed, .. }) => old(changed),
            _ => false,
        };
        if due && let Some(Zone::Open { changed, .. } | Zone::Shared { changed, .. }) = self.zones.change(&root) {
            *changed = now;
        }
    }

    /// Whether `op` concerns what somebody holds.
    pub(crate) fn is_leased(&self, op: &Op) -> bool {
        self.touched(op).into_iter().any(|ino| matches!(self.zone_of(ino), Some((_, Zone::Held { .. }))))
    }

    /// The inodes that an operation looks at or changes.
    #[must_use]
    pub fn touched(&self, op: &Op) -> Vec<Ino> {
        let named = |parent: &Ino, name| self.entry(*parent, name).map(|entry| entry.ino);
        match op {
            Op::Lookup { parent, name }
            | Op::Create { parent, name, .. }
            | Op::Unlink { parent, name, .. }
            | Op::Rmdir { parent, name } => [Some(*parent), named(parent, name)].into_iter().flatten().collect(),
            Op::CreateUnnamed { parent, .. } => vec![*parent],
            Op::Link { ino, parent, name } => {
                [Some(*ino), Some(*parent), named(parent, name)].into_iter().flatten().collect()
            }
            Op::Restore { parent, name, .. } => [Some(*parent), named(parent, name)].into_iter().flatten().collect(),
            Op::Rename { from, from_name, to, to_name, .. } => {
                let ends = [Some(*from), Some(*to), named(from, from_name), named(to, to_name)];
                ends.into_iter().flatten().collect()
            }
            Op::Parent { ino } => vec![*ino, self.inodes.get(ino).map_or(*ino, |inode| inode.home)],
            Op::ReadDir { ino, .. } => {
                let inner = self.zones.iter().map(|(root, _)| *root);
                let inner = inner.filter(|root| self.inodes.get(root).is_some_and(|inode| inode.home == *ino));
                core::iter::once(*ino).chain(inner).collect()
            }
            Op::GetAttr { ino }
            | Op::Access { ino, .. }
            | Op::Open { ino, .. }
            | Op::SetAttr { ino, .. }
            | Op::SetAcl { ino, .. }
            | Op::GetAcl { ino, .. }
            | Op::ReadLink { ino }
            | Op::SetXattr { ino, .. }
            | Op::GetXattr { ino, .. }
            | Op::ListXattr { ino }
            | Op::RemoveXattr { ino, .. } => vec![*ino],
            Op::Commit(commit) => vec![commit.ino],
            Op::Lock(request) | Op::GetLock(request) => vec![request.ino],
            // Nobody but who keeps it can use an orphan that had a name; it is in no zone.
            Op::KeepOrphan { ino } | Op::ReleaseOrphan { ino } => {
                self.zone_of(*ino).map(|_| *ino).into_iter().collect()
            }
            // What is not sent yet is to be in it.
            Op::SnapshotTake { volume, .. } => {
                let of = |ino: &Ino| self.inodes.get(ino).is_some_and(|inode| inode.attr.volume == *volume);
                let held = self.zones.iter().filter(|(_, zone)| matches!(zone, Zone::Held { .. }));
                held.map(|(root, _)| *root).filter(of).collect()
            }
            Op::SnapshotList { .. }
            | Op::SnapshotDelete { .. }
            | Op::Purge { .. }
            | Op::TrashKeep { .. }
            | Op::TrashEmpty { .. }
            | Op::VolumeCreate(_)
            | Op::VolumeGet { .. }
            | Op::VolumeList
            | Op::StatFs { .. }
            | Op::Hold { .. }
            | Op::Renew
            | Op::Cede { .. }
            | Op::Release
            | Op::Fetch { .. }
            | Op::Enroll { .. } => Vec::new(),
        }
    }

    pub(crate) fn renew(&mut self, cx: &Context<'_>) -> Result<Reply, Denied> {
        let id = cx.holder()?;
        Ok(Reply::Lease(self.lease(&id)))
    }

    /// What a holder is told; gives it more inode numbers if it will need some.
    pub(crate) fn lease(&mut self, id: &HolderId) -> Lease {
        let now = self.clock.last;
        let recalls: Vec<Ino> = self.holders.get(id).map_or(Vec::new(), |holder| holder.recalls.clone());
        let recalls: Vec<Ino> = recalls.into_iter().filter(|ino| self.is_read_by(*ino, id)).collect();
        if recalls.is_empty() {
            self.recalled.remove(id);
        }
        let first = self.clock.next_ino;
        let may_draw = self.may_draw(&id.0);
        let holder = self.holder(id);
        holder.recalls.clone_from(&recalls);
        let left: u64 = holder.inos.iter().map(|(from, to)| to.0 - from.0).sum();
        let until = holder.until;
        let more =
            (may_draw && left < RANGE / 2 && holder.inos.len() < RANGES_MAX).then_some((first, Ino(first.0 + RANGE)));
        holder.inos.extend(more);
        let inos = holder.inos.clone();
        if let Some((_, end)) = more {
            self.clock.next_ino = end;
            let drawn = self.drawn.get(&id.0).map_or(now, |drawn| (*drawn).max(now));
            self.drawn.insert(id.0, drawn.after(RANGE_EVERY));
        }
        Lease { now, until, recalls, inos }
    }

    /// Whether a key may draw one more range of inode numbers: there are many, and not so many that somebody who
    /// begins anew again and again may have as many as he likes. Without, inodes are made by agreement.
    fn may_draw(&self, key: &PublicKey) -> bool {
        let ahead = self.drawn.get(key).map_or(Duration::ZERO, |drawn| drawn.since(self.clock.last));
        ahead < RANGES_AHEAD && self.clock.next_ino.0 + RANGE < Ino::END.0
    }

    /// Whether an open zone was not changed for so long that it may be shared.
    pub(crate) fn is_quiet(&self, changed: Time) -> bool {
        self.clock.last.since(changed) >= QUIET
    }

    /// The number of an inode that is made: of the holder's range, if a log says so.
    pub(crate) fn draw_ino_for(&mut self, cx: &Context<'_>) -> Result<Ino, Denied> {
        if !cx.logged {
            return Ok(self.draw_ino());
        }
        let holder = self.holder(&cx.holder()?);
        let range = holder.inos.first_mut().ok_or(Denied::Fenced)?;
        let ino = range.0;
        range.0 = Ino(ino.0 + 1);
        if range.0 >= range.1 {
            holder.inos.remove(0);
        }
        Ok(ino)
    }

    /// Whether a log may make one more inode.
    pub(crate) fn need_number(&self, cx: &Context<'_>) -> Result<(), Denied> {
        match cx.logged {
            true if self.holders.get(&cx.holder()?).is_none_or(|holder| holder.inos.is_empty()) => Err(Denied::Fenced),
            _ => Ok(()),
        }
    }

    /// Puts a record at this directory, where there is none.
    pub(crate) fn begin_zone(&mut self, root: Ino, zone: Zone) {
        for id in zone.holders() {
            self.holders.change(id).expect("whoever has leases is known").zones.push(root);
        }
        self.zones.insert(root, zone);
    }

    /// Adds a holder to those who share the zone that begins here.
    pub(crate) fn join(&mut self, root: Ino, id: HolderId) -> Result<(), Denied> {
        let Some(Zone::Shared { by, .. }) = self.zones.change(&root) else { return Err(Denied::Contended) };
        by.push(id);
        self.holder(&id).zones.push(root);
        Ok(())
    }

    /// Ends the zone that begins at this directory, if one does.
    pub(crate) fn end_zone(&mut self, root: Ino) {
        for id in self.zones.remove(&root).iter().flat_map(Zone::holders) {
            if let Some(holder) = self.holders.change(id) {
                holder.zones.retain(|zone| *zone != root);
            }
        }
    }

    pub(crate) fn is_over(&self, id: &HolderId) -> bool {
        self.holders.get(id).is_none_or(|holder| holder.until < self.clock.last)
    }

    pub(crate) fn holder(&mut self, id: &HolderId) -> &mut Holder {
        self.holders.change(id).expect("whoever has leases is known")
    }
}

/// Whether a log may hold it: what changes one volume's namespace.
#[must_use]
pub fn is_logged(op: &Op) -> bool {
    matches!(
        op,
        Op::SetAttr { .. }
            | Op::SetAcl { .. }
            | Op::Commit(_)
            | Op::Create { .. }
            | Op::CreateUnnamed { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::KeepOrphan { .. }
            | Op::ReleaseOrphan { .. }
            | Op::Lock(_)
    )
}

/// Whether it changes what others can see of the namespace: locks are no part of it.
#[must_use]
pub fn is_change(op: &Op) -> bool {
    (is_logged(op) && !matches!(op, Op::Lock(_))) || matches!(op, Op::Restore { .. })
}

/// Whether it takes one of the holder's inode numbers to do this without asking.
#[must_use]
pub fn makes_inode(op: &Op) -> bool {
    matches!(op, Op::Create { .. } | Op::CreateUnnamed { .. })
}

/// What a log is to say of an operation that a holder did on its own copy, with this answer. Of a lock it says
/// what became of it: who came first there, and how long somebody waited, only the holder knows.
#[must_use]
pub fn logged_as(op: &Op, answer: &Answer) -> Option<Op> {
    let Answer::Done(reply) = answer else { return None };
    let how = match (op, reply) {
        (Op::Lock(_), Reply::Locked(Locked::Granted)) => LockHow::Try,
        (Op::Lock(_), Reply::Locked(Locked::Waiting { noted: true })) => LockHow::Queue,
        (Op::Lock(_), Reply::Locked(Locked::Waiting { noted: false })) => return None,
        (Op::Lock(_), Reply::Locked(Locked::Deadlock)) => LockHow::Leave,
        _ => return is_logged(op).then(|| op.clone()),
    };
    let Op::Lock(request) = op else { return None };
    Some(Op::Lock(LockRequest { how, ..*request }))
}

/// Whether it concerns an orphan, which may be gone before a log says what became of it: then its refusal
/// does no harm.
#[must_use]
pub fn is_about_orphan(op: &Op) -> bool {
    matches!(op, Op::KeepOrphan { .. } | Op::ReleaseOrphan { .. })
}
