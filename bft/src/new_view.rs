//! The new view (OSDI'99 §4.4): its primary says what follows from `2f + 1` view changes, and every
//! backup computes the same before it believes it.

use std::collections::BTreeMap;

use base::{Digest, Effects, ReplicaId, Seq, Signed, StateMachine, Time, View};

use crate::event::{Event, Evidence, Ignored};
use crate::message::{Body, Message, PrePrepare, Proposal, Want};
use crate::record::{Divergence, Record, StableProof};
use crate::replica::Replica;
use crate::request::Batch;
use crate::view_change::{Choice, NewView, ViewChange};

/// Bytes of batches or view changes in one answer, beside the first.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of requests that are passed on to a new primary at once; clients repeat the others.
const FORWARD_BYTES_MAX: usize = 1024 * 1024;

/// A new view, and the view changes that it follows from.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) new_view: Signed<NewView>,
    pub(crate) changes: Vec<Signed<ViewChange>>,
}

/// A new view that refers to view changes not here yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    new_view: Signed<NewView>,
    changes: BTreeMap<ReplicaId, Signed<ViewChange>>,
}

impl Pending {
    pub(crate) fn view(&self) -> View {
        self.new_view.body.view
    }

    fn missing(&self) -> Vec<ReplicaId> {
        let named = self.new_view.body.view_changes.iter().map(|(replica, _)| *replica);
        named.filter(|replica| !self.changes.contains_key(replica)).collect()
    }
}

impl<S: StateMachine> Replica<S> {
    /// The primary of the view asked for has `2f + 1` view changes for it.
    pub(crate) fn start_view(&mut self, now: Time, fx: &mut Effects<Self>) {
        let view = self.view;
        let held = self.views.changes.values().filter(|held| held.change.body.view == view);
        let view_changes = held.clone().map(|held| (held.change.body.replica, held.digest)).collect();
        let changes: Vec<_> = held.map(|held| held.change.clone()).collect();
        let choice = Choice::of(changes.iter().map(|change| &change.body));
        let header = |&(seq, at, batch): &(Seq, Time, Digest)| self.params.sign(PrePrepare { view, seq, at, batch });
        let proposals = choice.places.iter().map(header).collect();
        let new_view = self.params.sign(NewView { view, view_changes, proposals });
        fx.broadcast(Message::NewView(new_view.clone()));
        self.enter_view(now, Shown { new_view, changes }, choice.stable, fx);
    }

    /// ⟨NEW-VIEW, v+1, V, O⟩, from its primary or passed on.
    pub(crate) fn on_new_view(
        &mut self,
        now: Time,
        from: ReplicaId,
        new_view: Signed<NewView>,
        fx: &mut Effects<Self>,
    ) {
        let (view, primary) = (new_view.body.view, self.params.primary(new_view.body.view));
        if view < self.view || (view == self.view && self.views.active) {
            return self.ignore(Ignored::Stale, fx);
        }
        if self.views.pending.get(&primary).is_some_and(|pending| pending.view() >= view) {
            return self.ignore(Ignored::Duplicate, fx);
        }
        let held = |(replica, digest): &(ReplicaId, Digest)| {
            let held = self.views.changes.get(replica).filter(|held| held.digest == *digest)?;
            Some((*replica, held.change.clone()))
        };
        let changes = new_view.body.view_changes.iter().filter_map(held).collect();
        self.views.pending.insert(primary, Pending { new_view, changes });
        self.ask_for_missing(Some(from), fx);
        self.try_enter(now, primary, fx);
    }

    /// A view change that a new view waits for, perhaps. Says whether it was.
    pub(crate) fn fill_pending(
        &mut self,
        change: &Signed<ViewChange>,
        digest: Digest,
        now: Time,
        fx: &mut Effects<Self>,
    ) -> bool {
        let primary = self.params.primary(change.body.view);
        let named = (change.body.replica, digest);
        let Some(pending) = self.views.pending.get_mut(&primary) else { return false };
        let wanted = pending.new_view.body.view_changes.contains(&named);
        if !wanted || pending.changes.insert(named.0, change.clone()).is_some() {
            return false;
        }
        self.try_enter(now, primary, fx);
        true
    }

    /// Enters a pending view, if all that it follows from is here and it does follow.
    fn try_enter(&mut self, now: Time, primary: ReplicaId, fx: &mut Effects<Self>) {
        let Some(pending) = self.views.pending.get(&primary).filter(|pending| pending.missing().is_empty()) else {
            return;
        };
        let (view, changes) = (pending.view(), pending.changes.values());
        let choice = Choice::of(changes.clone().map(|change| &change.body));
        // Its primary may not know yet that a replica began anew: no lie, and no new view either.
        if changes.clone().any(|change| change.body.life < self.life_of(change.body.replica)) {
            self.views.pending.remove(&primary);
            return self.ignore(Ignored::Rejoining, fx);
        }
        let good = pending.changes.len() >= self.quorums.strong()
            && changes.clone().all(|change| change.body.view == view)
            && choice.is_proposed_by(&pending.new_view.body.proposals);
        let Pending { new_view, changes } = self.views.pending.remove(&primary).expect("just seen");
        if good {
            let changes = changes.into_values().collect();
            return self.enter_view(now, Shown { new_view, changes }, choice.stable, fx);
        }
        self.accuse(primary, Evidence::BadNewView(Box::new(new_view)), fx);
        if view == self.view {
            self.leave_view(now, View(view.0.saturating_add(1)), fx);
        }
    }

    /// Enters the view: durable first, then votes for what it proposes.
    fn enter_view(&mut self, now: Time, shown: Shown, stable: Option<StableProof>, fx: &mut Effects<Self>) {
        let view = shown.new_view.body.view;
        fx.persist.extend(shown.changes.iter().cloned().map(Record::Shown));
        if let Some(proof) = stable.filter(|proof| proof.seq > self.log.low()) {
            if let Some(divergence) = self.contradiction(&proof) {
                return self.diverge(divergence, fx);
            }
            fx.persist.push(Record::Stable(proof.clone()));
            fx.events.push(Event::StableCheckpoint { seq: proof.seq, digest: proof.digest });
            self.admit_stable(proof);
        }
        fx.persist.push(Record::Entered(shown.new_view.clone()));
        let adopted = self.admit_entered(shown);
        fx.events.push(Event::EnteredView { view });
        for seq in adopted {
            if let Some(prepare) = self.own_prepare(seq) {
                fx.broadcast(Message::Prepare(prepare));
            }
        }
        self.ask_for_missing(None, fx);
        (self.views.since, self.views.entered) = (None, now);
        self.floor.enter(self.quorums.n());
        // Who asks for more than this view has to be alone with it for another while.
        self.views.changes.values_mut().for_each(|held| held.since = now);
        self.set_view_timer(now);
        if self.is_mute() {
            return;
        }
        if self.is_primary() {
            self.propose(now, fx);
        } else {
            self.forward_all(fx);
        }
        // Votes may have come before the new view did.
        let places: Vec<Seq> = self.log.slots().map(|(seq, _)| seq).collect();
        places.into_iter().for_each(|seq| self.advance(now, seq, fx));
    }

    /// Puts what the new view proposes into the log; the places whose batch is here are accepted,
    /// with the own prepare. (When entering and when replaying the record of it.)
    pub(crate) fn admit_entered(&mut self, shown: Shown) -> Vec<Seq> {
        let new_view = &shown.new_view.body;
        if self.view < new_view.view {
            self.admit_left(new_view.view);
        }
        self.views.active = true;
        self.views.changes.retain(|_, held| held.change.body.view > new_view.view);
        self.views.pending.retain(|_, pending| pending.view() > new_view.view);
        let adopted = self.take_over(&new_view.proposals);
        self.views.shown = Some(shown);
        adopted
    }

    /// Accepts what the new view proposes where the batch is here, and announces it elsewhere. Not
    /// while mute: see `rejoin`.
    pub(crate) fn take_over(&mut self, proposals: &[Signed<PrePrepare>]) -> Vec<Seq> {
        let mut adopted = Vec::new();
        for header in proposals {
            let seq = header.body.seq;
            let known = self.log.slot(seq).is_some_and(|slot| slot.header().is_some());
            if known || !self.log.in_window(seq) || self.is_mute() {
                continue;
            }
            match self.find_batch(seq, header.body.batch) {
                Some(batch) => {
                    self.adopt(Proposal { header: header.clone(), batch });
                    adopted.push(seq);
                }
                None => self.log.announce(header.clone()),
            }
        }
        adopted
    }

    /// Accepts what the new view proposes at a place.
    pub(crate) fn adopt(&mut self, proposal: Proposal) {
        let seq = proposal.header.body.seq;
        for request in proposal.batch.requests() {
            self.queue.note_proposed(&request.body.client, request.body.session, request.body.timestamp);
        }
        self.log.accept(proposal);
        self.renew_prepare(seq);
    }

    /// A batch that was accepted or executed at this place.
    fn find_batch(&self, seq: Seq, digest: Digest) -> Option<Batch> {
        if digest == Batch::null().digest() {
            return Some(Batch::null());
        }
        let executed =
            self.retained.get(seq).map(|committed| &committed.batch).filter(|batch| batch.digest() == digest);
        executed.or_else(|| self.log.batch(seq, digest)).cloned()
    }

    /// Passes on what is known and not executed: the new primary may never have heard of it.
    fn forward_all(&self, fx: &mut Effects<Self>) {
        let primary = self.params.primary(self.view);
        self.forwards().for_each(|forward| fx.send_to(primary, forward));
    }

    /// Passes what is known and not executed on to everybody, who will tell the primary, in case the
    /// link to it is what fails, and be witnesses, in case it is the primary.
    pub(crate) fn relay(&self, fx: &mut Effects<Self>) {
        self.forwards().for_each(|forward| fx.broadcast(forward));
    }

    fn forwards(&self) -> impl Iterator<Item = Message> + '_ {
        let waiting = self.queue.requests().scan(FORWARD_BYTES_MAX, |room, request| {
            *room = room.checked_sub(crate::request::encoded_len(request))?;
            Some(request)
        });
        waiting.map(|request| Message::Forward(request.clone()))
    }

    /// Asks for the view changes and batches that new views refer to and that are not here.
    pub(crate) fn ask_for_missing(&self, one: Option<ReplicaId>, fx: &mut Effects<Self>) {
        let mut ask = |want: Want| match one {
            Some(one) => fx.send_to(one, Message::Ask(want)),
            None => fx.broadcast(Message::Ask(want)),
        };
        for pending in self.views.pending.values() {
            ask(Want::ViewChanges { view: pending.view(), of: pending.missing() });
        }
        let places: Vec<_> = self.log.announced().map(|header| (header.body.seq, header.body.batch)).collect();
        if !places.is_empty() {
            ask(Want::Batches { places });
        }
    }

    /// A peer lacks what may be here.
    pub(crate) fn on_ask(&mut self, now: Time, from: ReplicaId, want: &Want, fx: &mut Effects<Self>) {
        let interval = self.params.status_interval;
        let admitted = match want {
            // Where there is no answer but that it is gone, there is little work.
            Want::Part { seq, .. } if self.checkpoints.images.contains_key(seq) => {
                self.peers.admits_part(from, now, interval)
            }
            Want::Head { .. } | Want::Part { .. } => true,
            Want::ViewChanges { .. } | Want::Batches { .. } => self.peers.admits_asking(from, now, interval / 4),
        };
        if !admitted {
            return self.ignore(Ignored::Overloaded, fx);
        }
        match want {
            Want::Head { seq } => self.answer_head(from, *seq, fx),
            Want::Part { seq, name } => self.answer_part(from, *seq, name, fx),
            Want::ViewChanges { view, of } => {
                let shown = self.views.shown.iter().filter(|shown| shown.new_view.body.view == *view);
                let wanted = shown.flat_map(|shown| &shown.changes).filter(|change| of.contains(&change.body.replica));
                wanted.for_each(|change| fx.send_to(from, Message::ViewChange(change.clone())));
            }
            Want::Batches { places } => {
                let mut room = ANSWER_BYTES_MAX;
                for (seq, digest) in places {
                    let Some(batch) = self.find_batch(*seq, *digest) else { continue };
                    if room < ANSWER_BYTES_MAX && batch.bytes() > room {
                        break;
                    }
                    room = room.saturating_sub(batch.bytes().max(1));
                    fx.send_to(from, Message::Body(Body { seq: *seq, batch }));
                }
            }
        }
    }

    /// A batch that the new view proposes, from whoever had it.
    pub(crate) fn on_body(&mut self, now: Time, body: Body, fx: &mut Effects<Self>) {
        let Body { seq, batch } = body;
        let announced = self.log.slot(seq).and_then(|slot| slot.announced());
        let Some(header) = announced.filter(|header| header.body.batch == batch.digest()).cloned() else {
            return self.ignore(Ignored::Stale, fx);
        };
        let proposal = Proposal { header, batch };
        fx.persist.push(Record::Proposed(proposal.clone()));
        self.adopt(proposal);
        if let Some(prepare) = self.own_prepare(seq) {
            fx.broadcast(Message::Prepare(prepare));
        }
        self.advance(now, seq, fx);
    }

    /// What contradicts a stable checkpoint: another one taken here.
    fn contradiction(&self, proof: &StableProof) -> Option<Divergence> {
        let own = self.checkpoints.of(proof.seq, self.params.me)?.body.digest;
        (own != proof.digest).then_some(Divergence { seq: proof.seq, mine: own, theirs: proof.digest })
    }

    /// The new view, or the own view change, for a peer that is not in this view.
    pub(crate) fn send_view(&self, to: ReplicaId, fx: &mut Effects<Self>) {
        match &self.views.shown {
            Some(shown) => fx.send_to(to, Message::NewView(shown.new_view.clone())),
            None if !self.views.active => {
                let own = self.views.changes.get(&self.params.me).map(|held| held.change.clone());
                fx.send_to(to, Message::ViewChange(own.unwrap_or_else(|| self.own_change())));
            }
            None => {}
        }
    }
}
