//! Catching up: STATUS says where a replica stands, and others send what it lacks (TOCS'02 §5.2).
//!
//! For places still in the vote log that is the proposal and their own votes; for executed ones,
//! vouchers: `f + 1` alike are as good as a commit quorum, as one of them is by a correct replica.
//! Every message of the normal case may be lost, and every replica may restart; what is here makes
//! the group go on. A replica that lacks what nobody retains is *behind*: it says so and listens.

use core::time::Duration;
use std::collections::BTreeMap;

use base::{Effects, ReplicaId, Seq, StateMachine, Time};

use crate::archive::VOUCHED_AHEAD_MAX;
use crate::event::{Event, Ignored};
use crate::message::{Committed, Message, SlotState, Status};
use crate::record::StableProof;
use crate::replica::Replica;

/// Bytes of batches in one answer, beside the first.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Parts of checkpoints that a peer is given in an interval: 128 MiB a second at most.
const PARTS_MAX: u32 = 256;
/// Answers to a peer that keeps executing all it is sent, before it has to wait for the next interval.
const ANSWERS_BURST_MAX: u32 = 16;
/// A replica this many windows behind fetches a checkpoint, though it could execute what it missed.
const FAR_WINDOWS: u64 = 4;
/// How much slower STATUS is sent when there is nothing to say.
const IDLE_FACTOR: u32 = 10;
/// How long a request is remembered that is not proposed; its client repeats it if it still wants it.
const REQUEST_AGE_MAX: Duration = Duration::from_secs(30);

/// When STATUS is due.
#[derive(Clone, Debug)]
pub(crate) struct Pacing {
    /// When it is due next; at once after a restart.
    pub(crate) wake: Time,
    round: u64,
}

impl Default for Pacing {
    fn default() -> Self {
        Pacing { wake: Time::ZERO, round: 0 }
    }
}

/// What the others said of themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    known: BTreeMap<ReplicaId, Peer>,
    asking: BTreeMap<ReplicaId, Asking>,
    /// See [`crate::ReplicaStatus::behind`].
    pub(crate) behind: Option<Seq>,
}

#[derive(Clone, Debug)]
struct Peer {
    status: Status,
    answered: Option<Time>,
    vouched_through: Option<Seq>,
    burst: u32,
}

/// What a peer asked for, whether it says where it stands or not.
#[derive(Clone, Debug, Default)]
struct Asking {
    asked: Option<Time>,
    /// Parts answered since `parts_since`.
    parts: u32,
    parts_since: Time,
}

impl Peers {
    /// Notes a STATUS; gives back the one before it, unless the peer restarted since.
    fn note(&mut self, from: ReplicaId, status: &Status) -> Option<Status> {
        let Some(peer) = self.known.get_mut(&from) else {
            let new = Peer { status: status.clone(), answered: None, vouched_through: None, burst: 0 };
            self.known.insert(from, new);
            return None;
        };
        let earlier = core::mem::replace(&mut peer.status, status.clone());
        (status.round > 0).then_some(earlier)
    }

    /// The peers that lost their logs and wait for a stable checkpoint beyond this one.
    pub(crate) fn rejoining(&self, low: Seq) -> impl Iterator<Item = ReplicaId> + '_ {
        let waits = move |peer: &Peer| peer.status.rejoins.is_some_and(|beyond| beyond > low);
        self.known.iter().filter(move |(_, peer)| waits(peer)).map(|(replica, _)| *replica)
    }

    /// Whether a peer says that it lost its log, and may not vote yet.
    pub(crate) fn is_rejoining(&self, replica: ReplicaId) -> bool {
        self.known.get(&replica).is_some_and(|peer| peer.status.rejoins.is_some())
    }

    /// What a peer said in an earlier life.
    pub(crate) fn forget(&mut self, replica: ReplicaId) {
        self.known.remove(&replica);
    }

    /// Whether some peer lacks batches before `oldest`.
    pub(crate) fn any_before(&self, oldest: Seq) -> bool {
        self.known.values().any(|peer| peer.status.last_executed.0.saturating_add(1) < oldest.0)
    }

    /// Whether a peer may fetch another part of a checkpoint.
    pub(crate) fn admits_part(&mut self, from: ReplicaId, now: Time, pause: Duration) -> bool {
        let peer = self.asking.entry(from).or_default();
        if now < peer.parts_since || now.since(peer.parts_since) >= pause {
            (peer.parts, peer.parts_since) = (0, now);
        }
        peer.parts += 1;
        peer.parts <= PARTS_MAX
    }

    /// Whether a peer may ask for something again.
    pub(crate) fn admits_asking(&mut self, from: ReplicaId, now: Time, pause: Duration) -> bool {
        let peer = self.asking.entry(from).or_default();
        let admits = peer.asked.is_none_or(|asked| now < asked || now.since(asked) >= pause);
        if admits {
            peer.asked = Some(now);
        }
        admits
    }
}

impl Peer {
    /// Whether an answer is due: some time after the last one, or when the peer executed all it was
    /// sent with that, so that a transfer runs at the pace of its receiver.
    fn admits_answer(&mut self, now: Time, pause: Duration) -> bool {
        let paused = self.answered.is_none_or(|answered| now < answered || now.since(answered) >= pause);
        let caught_up = self.vouched_through.is_some_and(|sent| self.status.last_executed >= sent);
        if paused {
            self.burst = 0;
        } else if caught_up && self.burst < ANSWERS_BURST_MAX {
            self.burst += 1;
        } else {
            return false;
        }
        self.answered = Some(now);
        self.vouched_through = None;
        true
    }
}

impl<S: StateMachine> Replica<S> {
    /// STATUS is due.
    pub(crate) fn on_status_due(&mut self, now: Time, fx: &mut Effects<Self>) {
        // Not before the primary is blamed for it, however long that takes by now.
        let age_max = REQUEST_AGE_MAX.max(self.view_timeout() * 8);
        self.queue.expire(Time(now.0.saturating_sub(u64::try_from(age_max.as_nanos()).unwrap_or(u64::MAX))));
        if self.pacing.round == 0 {
            self.resume(fx);
        }
        self.try_rejoin(fx);
        self.say_rejoin(fx);
        self.lives.refill_pads(now, self.params.window);
        self.review_view(now, fx);
        self.try_donors_again();
        self.pump(now, fx);
        self.propose(now, fx);
        self.broadcast_status(now, fx);
    }

    fn broadcast_status(&mut self, now: Time, fx: &mut Effects<Self>) {
        fx.broadcast(Message::Status(self.report()));
        self.pacing.round += 1;
        self.pacing.wake = now.after(self.pause());
    }

    /// Says again, after a restart, what was said of places not executed, and of checkpoints not stable.
    fn resume(&self, fx: &mut Effects<Self>) {
        if !self.views.active && !self.is_mute() {
            fx.broadcast(Message::ViewChange(self.own_change()));
        }
        for (seq, slot) in self.log.slots_after(self.last_executed) {
            if let Some(accepted) = slot.accepted().filter(|_| self.is_primary()) {
                fx.broadcast(Message::Proposal(accepted.proposal.clone()));
            }
            if let Some(prepare) = self.own_prepare(seq) {
                fx.broadcast(Message::Prepare(prepare));
            }
            if let Some(commit) = self.own_commit(seq) {
                fx.broadcast(Message::Commit(commit));
            }
        }
        for checkpoint in self.checkpoints.after(self.log.low(), self.params.me) {
            fx.broadcast(Message::Checkpoint(checkpoint.clone()));
        }
    }

    fn report(&self) -> Status {
        let before = self.last_executed.max(self.log.low());
        let slots = (before.0 + 1..=self.log.last_known().0)
            .map(|seq| self.log.slot(Seq(seq)).map_or(SlotState::Empty, |slot| slot.state()));
        Status {
            round: self.pacing.round,
            view: self.view,
            active: self.views.active,
            rejoins: self.rejoining.as_ref().and_then(|rejoining| rejoining.beyond),
            last_executed: self.last_executed,
            low_water_mark: self.log.low(),
            oldest_retained: self.oldest_retained(),
            slots: slots.collect(),
        }
    }

    fn pause(&self) -> Duration {
        if self.is_busy() { self.params.status_interval } else { self.params.status_interval * IDLE_FACTOR }
    }

    /// Sees to it that STATUS is due soon enough, also if the clock was set back.
    pub(crate) fn hasten(&mut self, now: Time) {
        self.pacing.wake = self.pacing.wake.min(now.after(self.pause()));
    }

    /// Whether something is outstanding here, or unknown, or elsewhere and not here.
    fn is_busy(&self) -> bool {
        let known = self.last_executed.max(self.log.last_known());
        !self.queue.is_empty()
            || !self.views.active
            || self.transfer.is_some()
            || self.is_mute()
            || self.helps_rejoin()
            || known > self.last_executed
            || self.checkpoints.after(self.log.low(), self.params.me).next().is_some()
            || self.peers.known.len() < self.quorums.prepares()
            || self
                .peers
                .known
                .values()
                .any(|peer| peer.status.last_known() > known || peer.status.low_water_mark > self.log.low())
            || self.peers.known.values().any(|peer| peer.status.view > self.view)
    }

    /// STATUS of a peer.
    pub(crate) fn on_status(&mut self, now: Time, from: ReplicaId, status: Status, fx: &mut Effects<Self>) {
        let earlier = self.peers.note(from, &status);
        self.note_behind(fx);
        if !self.deserves_answer(&status, earlier.as_ref()) {
            return;
        }
        let pause = self.params.status_interval / 2;
        let peer = self.peers.known.get_mut(&from).expect("just noted");
        if peer.admits_answer(now, pause) {
            self.answer(from, &status, earlier.as_ref(), fx);
        }
    }

    /// Whether a peer lacks something that is here, and not only because it is on its way.
    fn deserves_answer(&self, status: &Status, earlier: Option<&Status>) -> bool {
        let Some(earlier) = earlier else { return true };
        let stuck = earlier.last_executed >= status.last_executed && earlier.low_water_mark >= status.low_water_mark;
        let in_flight = self.params.in_flight_max;
        let far_behind = status.last_executed.0.saturating_add(in_flight) < self.last_executed.0;
        (stuck || far_behind || self.lacks_view(status)) && self.has_for(status)
    }

    /// Whether a peer has yet to come to this view.
    fn lacks_view(&self, status: &Status) -> bool {
        status.view < self.view || (status.view == self.view && !status.active)
    }

    /// Whether `f + 1` others have executed more than this replica.
    pub(crate) fn is_lagging(&self) -> bool {
        let ahead = |peer: &&Peer| peer.status.last_executed > self.last_executed;
        self.peers.known.values().filter(ahead).count() >= self.quorums.weak()
    }

    fn has_for(&self, status: &Status) -> bool {
        status.last_executed < self.last_executed
            || self.lacks_view(status)
            || self.checkpoints.after(status.low_water_mark, self.params.me).next().is_some()
            || self.log.slots_after(status.last_executed).any(|(seq, slot)| {
                let theirs = status.slot(seq);
                (theirs == SlotState::Empty && slot.accepted().is_some())
                    || (theirs < SlotState::Prepared && self.own_prepare(seq).is_some())
                    || (theirs < SlotState::Committed && self.own_commit(seq).is_some())
            })
    }

    fn answer(&mut self, to: ReplicaId, status: &Status, earlier: Option<&Status>, fx: &mut Effects<Self>) {
        fx.send_to(to, Message::Status(self.report()));
        let mut room = ANSWER_BYTES_MAX;
        // Both, where there are both: under load and with small windows a fetched state may always be
        // too old, and executing may always be too slow.
        self.send_vouchers(to, status, &mut room, fx);
        if let Some(proof) = self.worth_fetching(status.last_executed) {
            fx.send_to(to, Message::Stable(proof));
        }
        if self.lacks_view(status) {
            self.send_view(to, fx);
        }
        for (seq, slot) in self.log.slots_after(status.last_executed) {
            let theirs = status.slot(seq);
            if let Some(accepted) = slot.accepted().filter(|_| theirs == SlotState::Empty) {
                // The primary's business, while it minds it; with what is executed, vouchers are tried first.
                let insists = earlier.is_some_and(|earlier| earlier.slot(seq) == SlotState::Empty);
                let bytes = accepted.proposal.batch.bytes();
                if bytes <= room && (insists || (self.is_primary() && seq > self.last_executed)) {
                    room -= bytes;
                    fx.send_to(to, Message::Proposal(accepted.proposal.clone()));
                }
            }
            if let Some(prepare) = self.own_prepare(seq).filter(|_| theirs < SlotState::Prepared) {
                fx.send_to(to, Message::Prepare(prepare));
            }
            if let Some(commit) = self.own_commit(seq).filter(|_| theirs < SlotState::Committed) {
                fx.send_to(to, Message::Commit(commit));
            }
        }
        for checkpoint in self.checkpoints.after(status.low_water_mark, self.params.me) {
            fx.send_to(to, Message::Checkpoint(checkpoint.clone()));
        }
    }

    /// The stable checkpoint, for a peer that lacks what is not retained here, or so much that a state
    /// is sooner fetched than made again.
    fn worth_fetching(&mut self, last_executed: Seq) -> Option<StableProof> {
        let proof = self.checkpoints.stable.as_ref()?;
        let gone = last_executed.0.saturating_add(1) < self.oldest_retained().0;
        let far = self.is_far(last_executed, proof.seq) && self.checkpoints.images.contains_key(&proof.seq);
        if gone || (far && self.state.tree().is_some()) { self.checkpoints.stable.clone() } else { None }
    }

    /// Whether it is sooner fetched than executed.
    pub(crate) fn is_far(&self, last_executed: Seq, stable: Seq) -> bool {
        stable.0.saturating_sub(last_executed.0) > FAR_WINDOWS * self.params.window
    }

    /// Vouches for the batches that a peer needs next: at least one, if it is retained.
    fn send_vouchers(&mut self, to: ReplicaId, status: &Status, room: &mut usize, fx: &mut Effects<Self>) {
        let last = self.last_executed.0.min(status.last_executed.0.saturating_add(VOUCHED_AHEAD_MAX));
        let mut vouched = None;
        for seq in status.last_executed.0.saturating_add(1)..=last {
            let Some(committed) = self.retained.get(Seq(seq)) else { break };
            if vouched.is_some() && committed.batch.bytes() > *room {
                break;
            }
            *room = room.saturating_sub(committed.batch.bytes());
            vouched = Some(Seq(seq));
            fx.send_to(to, Message::Committed(committed.clone()));
        }
        if let Some(peer) = self.peers.known.get_mut(&to) {
            peer.vouched_through = vouched;
        }
    }

    /// A peer vouches for a committed batch.
    pub(crate) fn on_committed(&mut self, now: Time, from: ReplicaId, committed: Committed, fx: &mut Effects<Self>) {
        let seq = committed.seq;
        if seq <= self.last_executed {
            return self.ignore(Ignored::Stale, fx);
        }
        if seq.0 - self.last_executed.0 > VOUCHED_AHEAD_MAX {
            return self.ignore(Ignored::OutOfWindow, fx);
        }
        if let Some(earlier) = self.vouchers.of(seq, from) {
            let same = earlier.digest() == committed.digest();
            return self.ignore(if same { Ignored::Duplicate } else { Ignored::Contradiction }, fx);
        }
        let needed_next = seq == self.last_executed.next();
        if !needed_next && !self.vouchers.has_room(from, committed.batch.bytes()) {
            return self.ignore(Ignored::Overloaded, fx);
        }
        self.vouchers.add(from, committed);
        let before = self.last_executed;
        self.execute_ready(now, fx);
        let more = self.peers.known.values().any(|peer| peer.status.last_executed > self.last_executed);
        if self.last_executed > before && self.vouchers.is_empty() && more {
            self.broadcast_status(now, fx);
        }
    }

    /// Behind: `f + 1` peers are ahead and no longer retain what comes next here.
    fn note_behind(&mut self, fx: &mut Effects<Self>) {
        let next = self.last_executed.next();
        let ahead = self
            .peers
            .known
            .values()
            .map(|peer| &peer.status)
            .filter(|status| status.last_executed > self.last_executed && status.oldest_retained > next);
        let mut oldest: Vec<Seq> = ahead.map(|status| status.oldest_retained).collect();
        oldest.sort_unstable();
        // The lowest of f + 1 may be a lie; the highest is not below what a correct one says.
        let behind = oldest.get(self.quorums.weak() - 1).copied();
        if let (None, Some(oldest_retained)) = (self.peers.behind, behind) {
            fx.events.push(Event::Behind { last_executed: self.last_executed, oldest_retained });
        }
        self.peers.behind = behind;
    }
}
