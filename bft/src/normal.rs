//! The normal case (TOCS'02 §4.1): request, pre-prepare, prepare, commit.

use base::{Effects, PublicKey, ReplicaId, Seq, Signed, StateMachine, Time};

use crate::event::{Event, Evidence, Ignored};
use crate::message::{Commit, Message, PrePrepare, Prepare, Proposal};
use crate::queue::Pushed;
use crate::record::{Certificate, Record};
use crate::replica::Replica;
use crate::request::{Batch, RefusedWhy, Reply, ReplyResult, Request};
use crate::table::Verdict;

/// Batches that may be under way however little is in them.
const IN_FLIGHT_SMALL: u64 = 2;
/// Requests that have to wait for a further one.
const BATCH_WORTHWHILE: usize = 64;

impl<S: StateMachine> Replica<S> {
    /// A client's request, from the client or (`via`) passed on by a backup.
    pub(crate) fn on_request(
        &mut self,
        now: Time,
        request: Signed<Request>,
        via: Option<ReplicaId>,
        fx: &mut Effects<Self>,
    ) {
        let (client, session, timestamp) = (request.body.client, request.body.session, request.body.timestamp);
        match self.table.verdict(&client, session, timestamp) {
            // The backup that passed it on has the same answer, or will have.
            Verdict::Executed(_) if via.is_some() => return self.ignore(Ignored::Duplicate, fx),
            Verdict::Executed(executed) => {
                let reply = self.whole_reply(session, timestamp, &executed);
                return fx.events.push(Event::Reply { client, session, reply });
            }
            Verdict::Stale { floor } => {
                return self.refuse(&request.body, via, RefusedWhy::Stale { floor }, Ignored::Stale, fx);
            }
            Verdict::Fresh => {}
        }
        if !self.state.admits(&client) {
            let (why, ignored) = (RefusedWhy::UnknownPrincipal, Ignored::UnknownPrincipal);
            return self.refuse(&request.body, via, why, ignored, fx);
        }
        // Another backup could not reach the primary. What is known here the primary was told.
        match self.queue.push(now, &request, self.params.status_interval) {
            Pushed::Full => {
                self.refuse(&request.body, via, RefusedWhy::Overloaded, Ignored::Overloaded, fx);
            }
            Pushed::New if self.is_primary() => self.propose(now, fx),
            // A client that repeats a request may mean that the primary never heard of it.
            Pushed::New | Pushed::Again { due: true } if self.views.active && !self.is_primary() => {
                fx.send_to(self.params.primary(self.view), Message::Forward(request));
            }
            Pushed::New | Pushed::Again { .. } => self.ignore(Ignored::Duplicate, fx),
        }
    }

    fn refuse(
        &mut self,
        request: &Request,
        via: Option<ReplicaId>,
        why: RefusedWhy,
        ignored: Ignored,
        fx: &mut Effects<Self>,
    ) {
        if via.is_some() {
            return self.ignore(ignored, fx);
        }
        let event = self.refusal(&request.client, request.session, request.timestamp, why);
        fx.events.push(event);
    }

    pub(crate) fn refusal(&self, client: &PublicKey, session: u64, timestamp: u64, why: RefusedWhy) -> Event {
        let result = ReplyResult::Refused(why);
        let reply = Reply { view: self.view, timestamp, session, seq: self.last_executed, result };
        Event::Reply { client: *client, session, reply }
    }

    /// Proposals that are not executed.
    pub(crate) fn in_flight(&self) -> u64 {
        self.log.last_proposed().0.saturating_sub(self.last_executed.0)
    }

    /// Whether a null request belongs at this place: some peer must fetch a checkpoint, and none is
    /// kept here since a restart, so the next one must come soon.
    fn pads(&self, seq: Seq) -> bool {
        if self.helps_rejoin() {
            return true;
        }
        let last = self.log.low().0 + self.params.checkpoint_interval;
        !self.checkpoints.images.contains_key(&self.log.low())
            && seq.0 <= last
            && self.peers.any_before(self.oldest_retained())
    }

    /// Whether one more batch may be under way: two at any time, and more when much waits. A batch costs
    /// every replica the same few dozen signatures, whatever is in it, so few large ones beat many small.
    fn may_propose(&self) -> bool {
        let in_flight = self.in_flight();
        let many = BATCH_WORTHWHILE.min(self.params.batch_requests_max);
        // What is under way is known, too.
        let long = (in_flight as usize + 1) * self.params.batch_bytes_max;
        // Nulls are not worth waiting for at all.
        let worthwhile = || !self.queue.has_waiting() || self.queue.waiting() >= many || self.queue.bytes() >= long;
        in_flight < self.params.in_flight_max && (in_flight < IN_FLIGHT_SMALL || worthwhile())
    }

    /// The primary proposes while it may, between the water marks.
    pub(crate) fn propose(&mut self, now: Time, fx: &mut Effects<Self>) {
        while self.views.active && !self.is_mute() && self.is_primary() && self.may_propose() {
            let seq = self.last_executed.max(self.log.last_proposed()).next();
            if !self.log.in_window(seq) || !(self.queue.has_waiting() || self.pads(seq)) {
                return;
            }
            let batch = Batch::new(self.queue.take(self.params.batch_requests_max, self.params.batch_bytes_max));
            // Never before an earlier place's time, wherever the clock went since.
            let earliest = self.last_at.max(self.log.at_before(seq).unwrap_or(Time::ZERO));
            let latest = self.pace.proposable(now, self.params.clock_bound);
            let at = now.min(latest).max(earliest);
            self.pace.accept(now, at, self.params.clock_bound);
            let header = self.params.sign(PrePrepare { view: self.view, seq, at, batch: batch.digest() });
            self.accept(Proposal { header, batch }, fx);
        }
    }

    /// ⟨PRE-PREPARE, v, n, d⟩.
    pub(crate) fn on_proposal(&mut self, now: Time, proposal: Proposal, fx: &mut Effects<Self>) {
        let header = proposal.header.body;
        if let Some(why) = self.ignore_place(header.view, header.seq) {
            return self.ignore(why, fx);
        }
        if !self.views.active {
            return self.ignore(Ignored::OtherView, fx);
        }
        let slot = self.log.slot(header.seq);
        if let Some(earlier) =
            slot.and_then(|slot| slot.header().filter(|earlier| earlier.body.digest() != header.digest()))
        {
            let evidence = Evidence::TwoProposals(Box::new([earlier.clone(), proposal.header]));
            return self.accuse(self.params.primary(header.view), evidence, fx);
        }
        if slot.is_some_and(|slot| slot.accepted().is_some()) {
            return self.ignore(Ignored::Duplicate, fx);
        }
        let announced = slot.is_some_and(|slot| slot.announced().is_some());
        if header.batch != proposal.batch.digest() {
            return self.ignore(Ignored::WrongBatch, fx);
        }
        if header.seq <= self.last_executed {
            // Learned as committed before its proposal came. Others may still need this vote.
            if self.retained.get(header.seq).is_none_or(|executed| executed.digest() != header.digest()) {
                return self.ignore(Ignored::Contradiction, fx);
            }
        } else if announced {
            // Its time was accepted when it prepared.
        } else if let Some(why) = self.ignore_time(now, header.seq, header.at) {
            return self.ignore(why, fx);
        } else {
            self.pace.accept(now, header.at, self.params.clock_bound);
            if now.since(header.at) > self.params.clock_bound {
                fx.events.push(Event::TimeLags { seq: header.seq, by: now.since(header.at) });
            }
        }
        self.accept(proposal, fx);
        self.advance(now, header.seq, fx);
    }

    fn ignore_place(&self, view: base::View, seq: Seq) -> Option<Ignored> {
        match () {
            () if view != self.view => Some(Ignored::OtherView),
            () if seq <= self.log.low() => Some(Ignored::Stale),
            () if !self.log.in_window(seq) => Some(Ignored::OutOfWindow),
            () => None,
        }
    }

    /// Agreed time never runs backwards, and never ahead of a correct clock by more than the bound
    /// (TOCS'02 §4.6): what waits for a time to pass must not be cheated.
    ///
    /// A time far *behind* is accepted, for clocks are set back, but does not catch up at once: see
    /// [`crate::pace`]. A time that merely *stands still* is accepted: after every clock was set back, the
    /// primary can propose no earlier one.
    fn ignore_time(&self, now: Time, seq: Seq, at: Time) -> Option<Ignored> {
        let earliest = self.last_at.max(self.log.at_before(seq).unwrap_or(Time::ZERO));
        let (after, bound) = (self.log.at_after(seq), self.params.clock_bound);
        match () {
            () if at < earliest => Some(Ignored::TimeNotMonotone),
            () if after.is_some_and(|latest| at > latest) => Some(Ignored::TimeNotMonotone),
            () if at > now.after(bound) && at > earliest => Some(Ignored::TimeAhead),
            () if self.pace.is_blank() && now.since(at) > bound && !self.nobody_gets_on() => Some(Ignored::TimeBehind),
            () if at > self.pace.latest(now) && at > earliest => Some(Ignored::TimeTooFast),
            // What was accepted for a later place before this one must not be a leap from here.
            () if after.is_some_and(|latest| latest.since(at) > bound) => Some(Ignored::TimeTooFast),
            () => None,
        }
    }

    /// Whether as many views as there are replicas came to nothing, one after the other.
    fn nobody_gets_on(&self) -> bool {
        self.views.failed as usize >= self.quorums.n()
    }

    /// Accepts a proposal, made here or by the primary: durable first, then said.
    fn accept(&mut self, proposal: Proposal, fx: &mut Effects<Self>) {
        let (seq, primary) = (proposal.header.body.seq, self.is_primary());
        fx.persist.push(Record::Proposed(proposal.clone()));
        self.adopt(proposal.clone());
        if primary {
            fx.broadcast(Message::Proposal(proposal));
        } else if let Some(prepare) = self.own_prepare(seq) {
            fx.broadcast(Message::Prepare(prepare));
        }
    }

    /// Signs the prepare that follows from an accepted proposal, at a backup.
    pub(crate) fn renew_prepare(&mut self, seq: Seq) {
        let Some(accepted) = self.log.accepted(seq) else { return };
        let (view, digest) = (accepted.proposal.header.body.view, accepted.digest);
        let signed = self.log.slot(seq).is_some_and(|slot| slot.prepare_of(self.params.me).is_some());
        if !signed && !self.params.is_primary(view) {
            let prepare = self.params.sign(Prepare { view, seq, digest, replica: self.params.me });
            self.log.slot_mut(seq).add_prepare(prepare);
        }
    }

    pub(crate) fn own_prepare(&self, seq: Seq) -> Option<Signed<Prepare>> {
        self.log.slot(seq)?.prepare_of(self.params.me).cloned()
    }

    pub(crate) fn own_commit(&self, seq: Seq) -> Option<Commit> {
        let digest = self.log.slot(seq)?.commit_of(self.params.me)?;
        Some(Commit { view: self.view, seq, digest })
    }

    /// ⟨PREPARE, v, n, d, i⟩. One that comes before its proposal is kept.
    pub(crate) fn on_prepare(&mut self, now: Time, prepare: Signed<Prepare>, fx: &mut Effects<Self>) {
        let Prepare { view, seq, digest, replica } = prepare.body;
        if let Some(why) = self.ignore_place(view, seq) {
            return self.ignore(why, fx);
        }
        if replica == self.params.primary(view) {
            return self.ignore(Ignored::PrepareByPrimary, fx);
        }
        if let Some(earlier) = self.log.slot(seq).and_then(|slot| slot.prepare_of(replica)) {
            if earlier.body.digest == digest {
                return self.ignore(Ignored::Duplicate, fx);
            }
            let evidence = Evidence::TwoPrepares(Box::new([earlier.clone(), prepare]));
            return self.accuse(replica, evidence, fx);
        }
        self.log.slot_mut(seq).add_prepare(prepare);
        self.advance(now, seq, fx);
    }

    /// ⟨COMMIT, v, n, d, i⟩. One that comes before its proposal is kept.
    pub(crate) fn on_commit(&mut self, now: Time, from: ReplicaId, commit: Commit, fx: &mut Effects<Self>) {
        if let Some(why) = self.ignore_place(commit.view, commit.seq) {
            return self.ignore(why, fx);
        }
        if let Some(earlier) = self.log.slot(commit.seq).and_then(|slot| slot.commit_of(from)) {
            let same = earlier == commit.digest;
            return self.ignore(if same { Ignored::Duplicate } else { Ignored::Contradiction }, fx);
        }
        self.log.slot_mut(commit.seq).add_commit(from, commit);
        self.advance(now, commit.seq, fx);
    }

    /// Takes a place as far as its votes allow: prepared, committed-local, executed.
    pub(crate) fn advance(&mut self, now: Time, seq: Seq, fx: &mut Effects<Self>) {
        let Some(slot) = self.log.slot(seq) else { return };
        if let Some(prepares) = slot.newly_prepared(self.quorums) {
            let certificate = Certificate { view: self.view, seq, prepares };
            fx.persist.push(Record::Prepared(certificate.clone()));
            let commit = self.admit_certificate(certificate);
            fx.broadcast(Message::Commit(commit));
        }
        if self.log.slot(seq).is_some_and(|slot| slot.newly_committed(self.quorums)) {
            self.log.slot_mut(seq).set_committed();
            self.execute_ready(now, fx);
        }
    }

    /// Puts a prepared certificate into the log, with the own commit that follows from it.
    pub(crate) fn admit_certificate(&mut self, certificate: Certificate) -> Commit {
        let (view, seq, me) = (certificate.view, certificate.seq, self.params.me);
        let digest = self.log.accepted(seq).expect("only a proposal prepares").digest;
        let commit = Commit { view, seq, digest };
        let slot = self.log.slot_mut(seq);
        slot.set_prepared(certificate.prepares);
        slot.add_commit(me, commit);
        commit
    }
}
