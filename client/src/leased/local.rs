//! What a holder of leases knows and has done.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use base::{ClusterId, Encode as _, PublicKey, Time};
use meta::{Answer, BATCH_MAX, Batch, By, Call, Denied, Ino, Lease, Log, Op, Row, State, is_logged, logged_as};

use super::owned::Owned;
use super::way_of;
use crate::backend::{Ready, Unavailable};

/// How far agreed time may be from true time either way. Leases are not used this much before their end,
/// twice: once for when they began, once for when they end.
const UNCERTAINTY: Duration = Duration::from_secs(10);
/// What a part of the log may take, bytes.
const PART_BYTES: usize = 96 << 10;
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
/// As whom nobody asks.
const ANYBODY: u32 = u32::MAX;

/// What an operation takes that can't be done here as things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To know whether the leases last.
    Renew,
    /// This directory's names.
    Fetch(Ino),
    /// A lease on this directory.
    Hold(Ino),
    /// To be known to replicas, to have locks.
    Enroll,
    /// Agreement.
    Order,
}

/// How long ago this machine was started, by a clock that nobody sets and that goes on while it sleeps.
pub(super) fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Something done here.
struct Logged {
    call: Call,
    at: Time,
    /// How long it is, encoded.
    len: usize,
    /// What is to be stored before replicas hear of it.
    ready: Option<Ready>,
}

/// The beginning of a log.
pub(super) struct Part {
    pub(super) batch: Batch,
    pub(super) epoch: u64,
    /// What is to be stored before some of its operations, and which.
    pub(super) ready: Vec<(usize, Ready)>,
}

/// A holder's copy of the state, its leases, and its log.
pub(super) struct Local {
    pub(super) copy: State,
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
    refused: HashMap<(Ino, u32), Instant>,
    /// Changes that were lost and that nobody was told of, and how often something was lost.
    lost: Option<usize>,
    losses: u64,
    has_held: bool,
    /// Something is being given back: until that is done replicas would still say that it is held here.
    pub(super) ceding: bool,
    /// The volume's root, until a lease on it was asked for: before anything else, so that whoever had this
    /// holder's number is fenced, and nobody waits for it.
    root: Option<Ino>,
    /// `None`: everything is ordered, and only locks need a holder.
    volume_root: Option<Ino>,
    generation: u64,
    /// How often something was granted: answers from before do not count for it.
    granted: u64,
    /// What is looked at or changed by what is in the log.
    pub(super) touched: HashSet<Ino>,
    pub(super) owned: Owned,
}

impl Local {
    pub(super) fn new(cluster: ClusterId, root: Option<Ino>) -> Local {
        let now = since_boot();
        Local {
            copy: State::copy_of(cluster),
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
            ceding: false,
            root,
            volume_root: root,
            generation: 0,
            granted: 0,
            touched: HashSet::new(),
            owned: Owned::default(),
        }
    }

    pub(super) fn has_leases(&self) -> bool {
        self.epoch != 0
    }

    /// Whether it ever had any, in this life.
    pub(super) fn has_held(&self) -> bool {
        self.has_held
    }

    /// Whether these are still the same leases.
    pub(super) fn has_epoch(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    fn is_usable(&self) -> bool {
        self.epoch != 0 && since_boot() < self.until
    }

    /// Whether leases that are used end soon.
    pub(super) fn is_fading(&mut self) -> bool {
        let needed = self.used || self.owned.any();
        let fading = self.epoch != 0 && needed && since_boot() + FADING > self.until;
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

    /// Counts how often something stopped being this client's alone.
    pub(super) fn ended(&self) -> u64 {
        self.generation
    }

    /// Counts the same, and how often something began to be.
    pub(super) fn generation(&self) -> u64 {
        self.generation + self.granted
    }

    /// What is remembered of what was asked until now is not to be relied on.
    pub(super) fn end_generation(&mut self) {
        self.generation += 1;
    }

    /// For how long what was asked of this inode in this generation stays as it is.
    pub(super) fn lasts(&self, ino: Ino, generation: u64, me: &(PublicKey, u64)) -> Duration {
        match generation == self.generation() && self.keeps(ino, me) {
            true => self.until.saturating_sub(since_boot()),
            false => Duration::ZERO,
        }
    }

    /// In whose name batches go, if there are leases.
    pub(super) fn by(&self, me: &(PublicKey, u64), log: Option<Log>) -> Option<By> {
        (self.epoch != 0).then_some(By { holder: me.1, epoch: self.epoch, log })
    }

    /// Agreed time, never later than it is if clocks run alike.
    fn now(&mut self) -> Time {
        self.last = self.last.max(self.heard.0.after(since_boot().saturating_sub(self.heard.1)));
        self.last
    }

    /// Does a call here, if it can be.
    pub(super) fn apply(&mut self, call: &Call, me: &(PublicKey, u64), ready: Option<&Ready>) -> Option<Answer> {
        if let Some(why) = self.owned.refuse(&call.op) {
            return Some(Answer::Denied(why));
        }
        if !self.is_usable() || self.copy.locally(&call.op, me) != meta::Local::Can {
            return None;
        }
        if matches!(call.op, Op::Create { .. }) && self.copy.inos_left(me) == 0 {
            return None;
        }
        if let Some(why) = self.owned.refuse_here(&call.op) {
            return Some(Answer::Denied(why));
        }
        self.used = true;
        let now = self.now();
        let touched = if is_logged(&call.op) { self.copy.touched(&call.op) } else { Vec::new() };
        let answer = self.copy.apply_own(now, me, call);
        self.owned.note(&call.op, &answer, me);
        if let Some(op) = logged_as(&call.op, &answer) {
            let call = Call { caller: call.caller.clone(), op };
            let (len, ready) = (call.to_bytes().len(), ready.cloned());
            self.log.push_back(Logged { call, at: now, len, ready });
            self.logged += 1;
            self.touched.extend(touched);
            self.oldest.get_or_insert_with(Instant::now);
        }
        Some(answer)
    }

    /// What is to be done before the operation can be done here; `try_more`: or else to order it.
    pub(super) fn step(&self, Call { caller, op }: &Call, me: &(PublicKey, u64), try_more: bool) -> Step {
        let out_of_inos = matches!(op, Op::Create { .. }) && self.copy.inos_left(me) == 0;
        if self.epoch != 0 && (!self.is_usable() || out_of_inos) {
            // Own operations are ordered in any case; others see to it that the leases end.
            return if try_more { Step::Renew } else { Step::Order };
        }
        if let Some(root) = self.root.filter(|_| try_more && !self.ceding) {
            return Step::Hold(root);
        }
        let refused = |directory| self.ceding || self.is_refused(directory, caller.uid);
        if self.volume_root.is_none() || (self.epoch == 0 && matches!(op, Op::Lock(_))) {
            let unknown = self.epoch == 0 && matches!(op, Op::Lock(_));
            return if unknown && try_more { Step::Enroll } else { Step::Order };
        }
        match way_of(self.copy.locally(op, me)) {
            Step::Fetch(directory) | Step::Hold(directory) if !try_more || refused(directory) => Step::Order,
            step => step,
        }
    }

    fn is_refused(&self, directory: Ino, uid: u32) -> bool {
        let refused = |uid| self.refused.get(&(directory, uid)).is_some_and(|until| Instant::now() < *until);
        refused(uid) || refused(ANYBODY)
    }

    pub(super) fn note_refused(&mut self, directory: Ino, uid: u32, pause: Duration) {
        let now = Instant::now();
        self.root = None;
        self.refused.retain(|_, until| now < *until);
        self.refused.insert((directory, uid), now + pause);
    }

    pub(super) fn note_unfetched(&mut self, directory: Ino, uid: u32) {
        self.copy.doubt(&Op::ReadDir { ino: directory, cookie: 0, max: 1 });
        self.note_refused(directory, uid, UNFETCHED);
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
        self.heard = (lease.now, since_boot());
        self.asked |= !lease.recalls.is_empty();
        self.copy.grant_inos(me, &lease.inos);
    }

    pub(super) fn take_rows(&mut self, rows: &[Row], directory: Ino, whole: bool, me: &(PublicKey, u64)) {
        match self.copy.learn(rows, me) {
            Ok(()) if whole => self.copy.note_complete(directory),
            Ok(()) => {}
            Err(error) => tracing::error!(%error, "replicas agree on rows that are none"),
        }
    }

    /// Stops using these directories.
    pub(super) fn give_back(&mut self, directories: &[Ino], me: &(PublicKey, u64)) {
        self.ceding = true;
        self.end_generation();
        for directory in directories {
            self.copy.give_back(*directory, me);
            self.note_refused(*directory, ANYBODY, OPEN);
        }
    }

    /// Replicas know what was given back.
    pub(super) fn end_ceding(&mut self) {
        self.ceding = false;
    }

    /// Replicas did what this copy did not.
    pub(super) fn doubt(&mut self, op: &Op) {
        if is_logged(op) {
            self.copy.doubt(op);
        }
    }

    /// Whether these answers say that the leases are over.
    pub(super) fn is_over(&self, answers: &[Answer]) -> bool {
        self.epoch != 0 && answers.first() == Some(&Answer::Denied(Denied::Fenced))
    }

    /// The leases are over: what is not sent is lost.
    pub(super) fn lose(&mut self, cluster: ClusterId) {
        let left = self.log.len();
        if left > 0 {
            tracing::error!(operations = left, "leases were over before everything done under them was sent");
        }
        let lost = self.lost.map_or(left, |before| before + left);
        let (logged, losses, root) = (self.logged, self.losses + u64::from(left > 0), self.volume_root);
        let (generation, granted, owned) = (self.generation + 1, self.granted, self.owned.lose());
        let new = Local::new(cluster, root);
        *self = Local { logged, shipped: logged, losses, has_held: true, generation, granted, owned, ..new };
        self.lost = (lost > 0).then_some(lost);
    }

    /// Nobody knows whether replicas did something that concerns these leases, or will: they are given up,
    /// and what is still under way in their name is refused once there are others.
    pub(super) fn give_up(&mut self, cluster: ClusterId) {
        assert!(self.log.is_empty(), "everything is sent before anything is ordered");
        let (logged, lost, losses, root) = (self.logged, self.lost, self.losses, self.volume_root);
        let (generation, granted, owned) = (self.generation + 1, self.granted, self.owned.lose());
        let new = Local::new(cluster, root);
        *self = Local { logged, shipped: logged, lost, losses, generation, granted, owned, ..new };
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

    /// How often something was lost.
    pub(super) fn losses(&self) -> u64 {
        self.losses
    }

    /// Says that something was lost: once, and to everybody who began to wait when it had not been lost
    /// (`losses`) yet.
    pub(super) fn tell_lost(&mut self, losses: u64) -> Result<(), Unavailable> {
        let told = self.lost.take();
        match told.or((losses != self.losses).then_some(0)) {
            None => Ok(()),
            Some(0) => Err(Unavailable("changes made here were lost: this client was cut off for too long".into())),
            Some(count) => Err(Unavailable(format!(
                "{count} changes made here were lost: this client was cut off for so long that others were given what \
                 it had leases on"
            ))),
        }
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

    /// Whether the log is to be sent, or more inode numbers asked for.
    pub(super) fn is_due(&self, after: Duration, most: usize) -> bool {
        self.log.len() >= most || self.oldest.is_some_and(|oldest| oldest.elapsed() >= after)
    }

    /// The beginning of the log, as a part to be sent.
    pub(super) fn next_part(&mut self, me: &(PublicKey, u64)) -> Option<Part> {
        let (mut calls, mut stamps, mut ready, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let most = if self.sending > 0 { self.sending } else { BATCH_MAX };
        for logged in self.log.iter().take(most) {
            bytes += logged.len;
            if bytes > PART_BYTES && !calls.is_empty() && self.sending == 0 {
                break;
            }
            calls.push(logged.call.clone());
            stamps.push(logged.at);
            ready.extend(logged.ready.clone().map(|ready| (calls.len() - 1, ready)));
        }
        if calls.is_empty() {
            return None;
        }
        let by = self.by(me, Some(Log { part: self.parts, stamps }))?;
        Some(Part { epoch: by.epoch, batch: Batch { calls, by: Some(by) }, ready })
    }

    /// The part is about to be sent: from here on it must not change.
    pub(super) fn note_sent(&mut self, epoch: u64, count: usize) {
        if epoch == self.epoch {
            self.sending = count;
        }
    }

    /// Takes operations out of the log that can't be sent because what they name can't be stored, if their
    /// files are gone by now: nobody will miss them. All of a file's commits go, since each builds on the one
    /// before. Says whether there were any.
    pub(super) fn withdraw_dead(&mut self, epoch: u64, indices: &[usize]) -> bool {
        if epoch != self.epoch || self.sending > 0 {
            return false;
        }
        let committed = |logged: &Logged| match &logged.call.op {
            Op::Commit(commit) => Some(commit.ino),
            _ => None,
        };
        let failed = indices.iter().filter_map(|index| self.log.get(*index).and_then(committed));
        let dead: BTreeSet<Ino> = failed.filter(|ino| !self.copy.has_inode(*ino)).collect();
        let before = self.log.len();
        self.log.retain(|logged| committed(logged).is_none_or(|ino| !dead.contains(&ino)));
        self.shipped += (before - self.log.len()) as u64;
        !dead.is_empty()
    }

    /// Replicas have the part of so many operations.
    pub(super) fn end_part(&mut self, epoch: u64, count: usize) {
        if epoch != self.epoch {
            return;
        }
        self.log.drain(..count);
        (self.parts, self.sending) = (self.parts + 1, 0);
        self.shipped += count as u64;
        self.oldest = (!self.log.is_empty()).then(Instant::now);
        if self.log.is_empty() {
            self.touched.clear();
            self.copy.forget_changes();
        }
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
        let mut local = Local::new(ClusterId([1; 16]), Some(Ino(7)));
        let call = Call { caller: Caller::default(), op: Op::ReadDir { ino: Ino(7), cookie: 0, max: 1 } };
        assert_eq!(local.step(&call, &me, true), Step::Hold(Ino(7)));
        local.give_back(&[Ino(7)], &me);
        local.refused.clear();
        assert_eq!(local.step(&call, &me, true), Step::Order, "replicas would say that it is held here");
        local.end_ceding();
        assert_eq!(local.step(&call, &me, true), Step::Hold(Ino(7)));
        local.note_refused(Ino(7), 0, Duration::from_secs(60));
        assert_eq!(local.step(&call, &me, true), Step::Order);
    }
}
