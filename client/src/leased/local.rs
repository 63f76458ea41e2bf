//! What a holder of leases knows and has done.

mod log;
mod loss;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use base::{ClusterId, Encode as _, PublicKey, Time};
use meta::{
    Answer, By, Call, Content, Denied, Ino, Lease, Log, Op, Reply, Row, State, is_change, is_logged, logged_as,
    makes_inode,
};
use tokio::time::Instant;

use super::clock::SinceBoot;
use super::owned::Owned;
use super::walk::{Readers, Walk};
use crate::backend::{Ready, TakeLoss};
use log::Logged;
pub(super) use log::Part;

/// How far agreed time may be from true time either way. Leases are not used this much before their end,
/// twice: once for when they began, once for when they end.
const UNCERTAINTY: Duration = Duration::from_secs(10);
/// Below so many inode numbers more are asked for.
const INOS_LOW: u64 = 1 << 13;
/// Leases that end within this are renewed, if they are used.
const FADING: Duration = Duration::from_secs(25);
/// How many inodes the copy may hold, some hundred bytes each, before it is begun anew.
const COPY_MAX: usize = 400_000;
/// How long a directory that could not be fetched is not fetched again.
const UNFETCHED: Duration = Duration::from_secs(10);

/// How long what others asked for is nobody's at least: it is of no use to ask for it before.
const OPEN: Duration = Duration::from_secs(10);
/// How long what was changed is not shared at least.
const QUIET: Duration = Duration::from_secs(2);
/// As whom nobody asks.
const ANYBODY: u32 = u32::MAX;

/// What an operation takes that can't be done here as things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To know whether the leases last.
    Renew,
    /// This directory's names.
    Fetch(Ino),
    /// A lease on this directory; to look, one that others have, too, will do.
    Hold(Ino, Kind),
    /// To be known to replicas, to have locks.
    Enroll,
    /// Agreement.
    Order,
}

/// What kind of lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Nobody else's.
    Alone,
    /// Others may look, too, and nobody changes anything.
    Shared,
}

impl Kind {
    /// What an operation takes.
    fn of(op: &Op) -> Kind {
        if is_change(op) { Kind::Alone } else { Kind::Shared }
    }
}

/// A holder's copy of the state, its leases, and its log.
pub(super) struct Local {
    pub(super) copy: State,
    pub(super) clock: SinceBoot,
    /// 0: it has no leases.
    epoch: u64,
    /// When the leases must not be used any more, since this machine was started.
    until: Duration,
    /// The agreed time when it was heard of last, and when that was.
    heard: (Time, Duration),
    last: Time,
    used: bool,
    asked: bool,
    log: VecDeque<Logged>,
    oldest: Option<Instant>,
    logged: u64,
    shipped: u64,
    parts: u64,
    /// How many operations the part has that was sent and not answered: sent again, it must be the same.
    sending: usize,
    /// What was refused to whom, and until when it is not asked again.
    refused: HashMap<(Ino, u32, Kind), Instant>,
    /// Changes that were lost and that nobody was told of, and how often something was lost.
    lost: Option<usize>,
    losses: u64,
    /// It had leases in this life: whoever has its number with another epoch is somebody else, and goes on.
    has_held: bool,
    /// The epoch that was somebody's with this holder's number, and ends when this one begins; 0: nobody's.
    instead: u64,
    /// Something is being given back: until that is done replicas would still say that it is held here.
    pub(super) ceding: bool,
    /// The volume's root, until a lease on it was asked for: before anything else, so that whoever had this
    /// holder's number is fenced, and nobody waits for it.
    root: Option<Ino>,
    /// `None`: everything is ordered, and only locks need a holder.
    volume_root: Option<Ino>,
    /// How often something stopped being this client's alone.
    pub(super) ended: u64,
    /// The end of leases that is known to be past.
    expired: Duration,
    /// How often something was granted: answers from before do not count for it.
    granted: u64,
    granted_at: Option<Instant>,
    /// What is looked at or changed by what is in the log.
    pub(super) touched: HashSet<Ino>,
    /// What is gone because of what is in the log. (What the copy lacks may also have been given back.)
    removed: HashMap<Ino, Time>,
    pub(super) owned: Owned,
    /// Files of which content was lost that somebody here may still build on.
    unfounded: BTreeSet<Ino>,
    /// Who takes what is lost.
    pub(super) taker: Option<TakeLoss>,
    pub(super) walk: Walk,
    readers: Readers,
}

impl Local {
    pub(super) fn new(cluster: ClusterId, root: Option<Ino>, clock: SinceBoot) -> Local {
        let now = clock();
        Local {
            copy: State::copy_of(cluster),
            clock,
            epoch: 0,
            until: now,
            heard: (Time::ZERO, now),
            last: Time::ZERO,
            used: false,
            asked: false,
            log: VecDeque::new(),
            oldest: None,
            logged: 0,
            shipped: 0,
            parts: 0,
            sending: 0,
            refused: HashMap::new(),
            lost: None,
            losses: 0,
            has_held: false,
            instead: 0,
            ceding: false,
            root,
            volume_root: root,
            ended: 0,
            expired: Duration::ZERO,
            granted: 0,
            granted_at: None,
            touched: HashSet::new(),
            removed: HashMap::new(),
            owned: Owned::default(),
            unfounded: BTreeSet::new(),
            taker: None,
            walk: Walk::default(),
            readers: Readers::default(),
        }
    }

    pub(super) fn has_leases(&self) -> bool {
        self.epoch != 0
    }

    /// The epoch that ends when this holder begins.
    pub(super) fn instead(&self) -> u64 {
        self.instead
    }

    /// Takes note that somebody has this holder's number, with this epoch; whether it is to be ended.
    pub(super) fn begin_instead(&mut self, epoch: u64) -> bool {
        let known = self.epoch != 0 || self.has_held || self.instead == epoch;
        self.instead = epoch;
        !known
    }

    /// Whether these are still the same leases.
    pub(super) fn has_epoch(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    fn is_usable(&self) -> bool {
        self.epoch != 0 && (self.clock)() < self.until
    }

    /// Whether leases that are used end soon.
    pub(super) fn is_fading(&mut self) -> bool {
        let needed = self.used || self.owned.any();
        let fading = self.epoch != 0 && needed && (self.clock)() + FADING > self.until;
        if fading {
            self.used = false;
        }
        fading
    }

    /// Whether others want something of what is held here, as far as is known.
    pub(super) fn is_asked(&mut self) -> bool {
        self.epoch != 0 && core::mem::take(&mut self.asked)
    }

    pub(super) fn keeps(&self, ino: Ino, me: &(PublicKey, u64)) -> bool {
        self.is_usable() && self.copy.is_held_by(ino, me)
    }

    /// For how long it has been so; the same for all that is held.
    pub(super) fn kept_for(&self, ino: Ino, me: &(PublicKey, u64)) -> Option<Duration> {
        self.keeps(ino, me).then(|| self.granted_at.map_or(Duration::ZERO, |granted| granted.elapsed()))
    }

    /// Counts how often something stopped being this client's alone, or began to be.
    pub(super) fn generation(&self) -> u64 {
        self.ended + self.granted
    }

    /// What is remembered of what was asked until now is not to be relied on.
    pub(super) fn end_generation(&mut self) {
        self.ended += 1;
    }

    /// For how long what was asked of this inode in this generation stays as it is.
    pub(super) fn lasts(&self, ino: Ino, generation: u64, me: &(PublicKey, u64)) -> Duration {
        let known = self.is_usable() && self.copy.is_read_by(ino, me);
        match known && generation == self.generation() {
            true => self.until.saturating_sub((self.clock)()),
            false => Duration::ZERO,
        }
    }

    /// A file is read from its beginning: those that are worth fetching ahead.
    pub(super) fn ahead_of(&mut self, ino: Ino) -> Vec<(Ino, Content)> {
        if self.is_usable() { self.readers.read(&self.copy, ino) } else { Vec::new() }
    }

    /// Takes note if the leases must not be used any more.
    pub(super) fn note_expiry(&mut self) {
        if self.epoch != 0 && !self.is_usable() && self.expired != self.until {
            self.expired = self.until;
            self.end_generation();
        }
    }

    /// In whose name batches go, if there are leases.
    pub(super) fn by(&self, me: &(PublicKey, u64), log: Option<Log>) -> Option<By> {
        (self.epoch != 0).then_some(By { holder: me.1, epoch: self.epoch, log })
    }

    /// Agreed time, never later than it is if clocks run alike.
    pub(super) fn now(&mut self) -> Time {
        self.last = self.last.max(self.heard.0.after((self.clock)().saturating_sub(self.heard.1)));
        self.last
    }

    /// Does a call here, if it can be.
    pub(super) fn apply(&mut self, call: &Call, me: &(PublicKey, u64), ready: Option<&Ready>) -> Option<Answer> {
        if let Some(why) = self.owned.refuse(&call.op) {
            return Some(Answer::Denied(why));
        }
        if self.is_unfounded(&call.op) {
            return Some(Answer::Denied(Denied::Stale));
        }
        if !self.is_usable() || self.copy.locally(&call.op, me) != meta::Local::Can {
            return None;
        }
        if makes_inode(&call.op) && self.copy.inos_left(me) == 0 {
            return None;
        }
        if let Some(why) = self.owned.refuse_here(&call.op) {
            return Some(Answer::Denied(why));
        }
        self.used = true;
        let now = self.now();
        let now = self.copy.stamp_own(now, me, &call.op);
        let touched = if is_logged(&call.op) { self.copy.touched(&call.op) } else { Vec::new() };
        let answer = self.copy.apply_own(now, me, call);
        self.owned.note(&call.op, &answer, me);
        self.note_removed(&call.op, &answer);
        if let Some(op) = logged_as(&call.op, &answer) {
            let call = Call { caller: call.caller.clone(), op };
            let (len, ready) = (call.to_bytes().len(), ready.cloned());
            let made = match &answer {
                Answer::Done(Reply::Created { attr, fresh: true }) => Some(attr.ino),
                _ => None,
            };
            self.log.push_back(Logged { call, at: now, len, ready, made });
            self.logged += 1;
            self.touched.extend(touched);
            self.oldest.get_or_insert_with(Instant::now);
        }
        Some(answer)
    }

    /// What is to be done before the operation can be done here; `try_more`: or else to order it.
    pub(super) fn step(&self, Call { caller, op }: &Call, me: &(PublicKey, u64), try_more: bool) -> Step {
        let out_of_inos = makes_inode(op) && self.copy.inos_left(me) == 0;
        if self.epoch != 0 && (!self.is_usable() || out_of_inos) {
            // Own operations are ordered in any case; others see to it that the leases end.
            return if try_more { Step::Renew } else { Step::Order };
        }
        if let Some(root) = self.root.filter(|_| try_more && !self.ceding) {
            return Step::Hold(root, Kind::of(op));
        }
        if self.volume_root.is_none() || (self.epoch == 0 && matches!(op, Op::Lock(_))) {
            let unknown = self.epoch == 0 && matches!(op, Op::Lock(_));
            return if unknown && try_more { Step::Enroll } else { Step::Order };
        }
        let step = self.way_of(op, me);
        let refused = match step {
            Step::Fetch(directory) if self.copy.is_held_by(directory, me) => {
                self.is_refused(directory, caller.uid, Kind::Alone)
            }
            Step::Fetch(directory) => self.is_refused(directory, caller.uid, Kind::Shared),
            Step::Hold(directory, kind) => self.is_refused(directory, caller.uid, kind),
            _ => return step,
        };
        if refused || self.ceding || !try_more { Step::Order } else { step }
    }

    /// What an operation needs before it can be done here.
    fn way_of(&self, op: &Op, me: &(PublicKey, u64)) -> Step {
        match self.copy.locally(op, me) {
            meta::Local::Can | meta::Local::Cannot(None) => Step::Order,
            meta::Local::Fetch(directory) => Step::Fetch(directory),
            meta::Local::Cannot(Some(directory)) => Step::Hold(directory, Kind::of(op)),
        }
    }

    fn is_refused(&self, directory: Ino, uid: u32, kind: Kind) -> bool {
        let refused = |uid| self.refused.get(&(directory, uid, kind)).is_some_and(|until| Instant::now() < *until);
        refused(uid) || refused(ANYBODY)
    }

    pub(super) fn note_refused(&mut self, directory: Ino, uid: u32, kind: Kind, pause: Duration) {
        let now = Instant::now();
        self.root = None;
        self.refused.retain(|_, until| now < *until);
        self.refused.insert((directory, uid, kind), now + pause);
    }

    pub(super) fn note_unfetched(&mut self, directory: Ino, uid: u32) {
        self.copy.doubt(&Op::ReadDir { ino: directory, cookie: 0, max: 1 });
        for kind in [Kind::Alone, Kind::Shared] {
            self.note_refused(directory, uid, kind, UNFETCHED);
        }
    }

    /// A lease was granted; nothing waits to be sent.
    pub(super) fn take_hold(
        &mut self,
        asked: Duration,
        epoch: u64,
        lease: &Lease,
        rows: &[Row],
        me: &(PublicKey, u64),
    ) {
        self.granted += 1;
        self.granted_at = Some(Instant::now());
        self.root = None;
        if epoch != self.epoch {
            assert!(self.log.is_empty(), "everything is sent before a lease is asked for");
            (self.epoch, self.parts, self.sending, self.has_held) = (epoch, 0, 0, true);
            self.copy = State::copy_of(self.copy.cluster());
        }
        if let Err(error) = self.copy.learn(rows, me) {
            tracing::error!(%error, "replicas agree on rows that are none: do they run another version?");
            self.epoch = 0;
            return;
        }
        self.take_lease(asked, lease, me);
    }

    /// Takes note of what replicas say of the leases, which was asked at that moment.
    pub(super) fn take_lease(&mut self, asked: Duration, lease: &Lease, me: &(PublicKey, u64)) {
        let lasts = lease.until.since(lease.now).saturating_sub(UNCERTAINTY * 2);
        // Clocks may run apart by a hundredth.
        self.until = asked + lasts * 99 / 100;
        self.heard = (lease.now, (self.clock)());
        self.asked |= !lease.recalls.is_empty();
        self.copy.grant_inos(me, &lease.inos);
    }

    pub(super) fn take_rows(&mut self, rows: &[Row], whole: &[Ino], me: &(PublicKey, u64)) {
        match self.copy.learn(rows, me) {
            Ok(()) => whole.iter().for_each(|directory| self.copy.note_complete(*directory)),
            Err(error) => tracing::error!(%error, "replicas agree on rows that are none"),
        }
    }

    /// Stops using these directories.
    pub(super) fn give_back(&mut self, directories: &[Ino], me: &(PublicKey, u64)) {
        self.ceding = true;
        self.end_generation();
        for directory in directories {
            self.copy.give_back(*directory, me);
            self.note_refused(*directory, ANYBODY, Kind::Alone, OPEN);
            self.note_refused(*directory, ANYBODY, Kind::Shared, QUIET);
        }
    }

    /// Replicas know what was given back.
    pub(super) fn end_ceding(&mut self) {
        self.ceding = false;
    }

    /// Replicas did what this copy did not.
    pub(super) fn doubt(&mut self, op: &Op, me: &(PublicKey, u64)) {
        if is_logged(op) || is_change(op) {
            let shared = self.copy.disturbed(op).into_iter().filter(|directory| !self.copy.is_held_by(*directory, me));
            for directory in shared.collect::<Vec<_>>() {
                // If it goes on like that, all its names would be fetched again each time.
                self.note_refused(directory, ANYBODY, Kind::Shared, QUIET);
            }
            self.copy.doubt(op);
        }
    }

    /// Takes note of what was given back from the trash.
    pub(super) fn note_restored(&mut self, op: &Op, answer: &Answer) {
        if let (Op::Restore { ino, .. }, Answer::Done(_)) = (op, answer) {
            self.copy.note_restored(*ino);
        }
    }

    /// Whether these answers say that the leases are over.
    pub(super) fn is_over(&self, answers: &[Answer]) -> bool {
        self.epoch != 0 && answers.first() == Some(&Answer::Denied(Denied::Fenced))
    }

    /// Others want something; it could not be given back yet.
    pub(super) fn note_asked(&mut self) {
        self.asked = true;
    }

    /// Whether the copy has grown so big that it should be begun anew.
    pub(super) fn is_too_big(&self) -> bool {
        // Locks go with the leases.
        self.copy.counts().inodes > COPY_MAX && !self.owned.any()
    }

    /// Whether any of these is about locks, or about a file that has some.
    pub(super) fn concerns_locks(&self, calls: &[Call]) -> bool {
        calls.iter().any(|call| self.owned.concerns(&call.op))
    }

    /// Whether it is known that locks which are had here are not others' by now.
    pub(super) fn knows_locks(&self) -> bool {
        !self.owned.any() || self.is_usable()
    }

    pub(super) fn log_len(&self) -> usize {
        self.log.len()
    }

    /// How many operations were ever logged, and how many of them replicas have.
    pub(super) fn logged(&self) -> u64 {
        self.logged
    }

    pub(super) fn shipped(&self) -> u64 {
        self.shipped
    }

    /// Whether it will need more inode numbers soon.
    pub(super) fn is_short_of_inos(&self, me: &(PublicKey, u64)) -> bool {
        self.epoch != 0 && self.used && self.copy.inos_left(me) < INOS_LOW
    }
}

#[cfg(test)]
mod tests {
    use base::SecretKey;
    use meta::Caller;

    use super::*;

    #[test]
    fn what_is_being_given_back_is_not_asked_for_meanwhile() {
        let me = (SecretKey::from_seed(&[1; 32]).public(), 1);
        let mut local =
            Local::new(ClusterId([1; 16]), Some(Ino(7)), std::sync::Arc::new(crate::leased::clock::since_boot));
        let call = Call { caller: Caller::default(), op: Op::ReadDir { ino: Ino(7), cookie: 0, max: 1 } };
        assert_eq!(local.step(&call, &me, true), Step::Hold(Ino(7), Kind::Shared));
        local.give_back(&[Ino(7)], &me);
        local.refused.clear();
        assert_eq!(local.step(&call, &me, true), Step::Order, "replicas would say that it is held here");
        local.end_ceding();
        assert_eq!(local.step(&call, &me, true), Step::Hold(Ino(7), Kind::Shared));
        local.note_refused(Ino(7), 0, Kind::Shared, Duration::from_secs(60));
        assert_eq!(local.step(&call, &me, true), Step::Order);
    }
}
