//! Marks: signed digests of the state, at places of their own, for reads that are proven.
//!
//! A checkpoint comes after so many batches, which may take a second or a day. A read that is proven
//! should be of lately, so replicas also sign what they have after the first batch in each half second
//! of agreed time. Everybody finds the same places, for the agreed times are the same everywhere. A mark is
//! no vote: nothing in agreement looks at it, it is neither durable nor sent again, and one that is lost
//! is made up for by the next. What it says stays true all the same, as a committed batch stays where it
//! is: `f + 1` correct replicas among `2f + 1` signers had this state after this batch.

use core::time::Duration;
use std::collections::BTreeMap;

use base::{Digest, Effects, ReplicaId, Seq, Signable, Signature, Signed, StateMachine, Time, canonical_struct};

use crate::checkpoint::digest_of;
use crate::event::{Event, Ignored};
use crate::message::{Head, Message};
use crate::proof::Certified;
use crate::replica::Replica;
use crate::transfer::Image;

/// Marks kept of each replica: the latest.
const KEPT_MAX: usize = 4;

fn nanos(every: Duration) -> u64 {
    u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Which span of agreed time this is in.
fn span_of(at: Time, every: Duration) -> u64 {
    at.0 / nanos(every)
}

/// ⟨MARK, n, d, i⟩: what a checkpoint says, for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The place: every batch up to here is in the state.
    pub seq: Seq,
    /// [`Head::digest`] there.
    pub digest: Digest,
    /// Who says so.
    pub replica: ReplicaId,
}
canonical_struct!(Mark { seq, digest, replica });

impl Signable for Mark {
    const DOMAIN: &'static str = "mark";
}

/// Where a replica stands with marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// The latest mark made here, and its agreed time.
    pub made: (Seq, Time),
    /// The latest that `2f + 1` replicas have signed, if its state is kept here.
    pub certified: Option<Seq>,
    /// The earliest agreed time of the next mark.
    pub next_at: Time,
}

/// Marks of all replicas, and the states at the own ones.
#[derive(Clone, Debug)]
pub(crate) struct Marks<S> {
    of: BTreeMap<ReplicaId, BTreeMap<Seq, Signed<Mark>>>,
    images: BTreeMap<Seq, (Digest, Image<S>)>,
    certified: Option<Seq>,
}

impl<S> Default for Marks<S> {
    fn default() -> Self {
        Marks { of: BTreeMap::new(), images: BTreeMap::new(), certified: None }
    }
}

impl<S> Marks<S> {
    fn add(&mut self, mark: Signed<Mark>) {
        let held = self.of.entry(mark.body.replica).or_default();
        held.insert(mark.body.seq, mark);
        if held.len() > KEPT_MAX {
            held.pop_first();
        }
    }

    /// Who signed this digest at this place.
    fn signers(&self, seq: Seq, digest: Digest) -> Vec<(ReplicaId, Signature)> {
        let marks = self.of.values().filter_map(|held| held.get(&seq));
        let agreeing = marks.filter(|mark| mark.body.digest == digest);
        agreeing.map(|mark| (mark.body.replica, mark.signature)).collect()
    }
}

impl<S: StateMachine> Replica<S> {
    /// If the batch just executed is the first in its span of agreed time, signs the state after it.
    pub(crate) fn mark_if_due(&mut self, before: Time, fx: &mut Effects<Self>) {
        let Some(every) = self.params.mark_interval else { return };
        if span_of(before, every) == span_of(self.last_at, every) || self.is_mute() || self.state.tree().is_none() {
            return;
        }
        let seq = self.last_executed;
        let digest = self.checkpoint_digest();
        let image = Image { at: self.last_at, state: self.state.clone(), table: self.table.clone() };
        let mark = self.params.sign(Mark { seq, digest, replica: self.params.me });
        self.marks.images.insert(seq, (digest, image));
        if self.marks.images.len() > KEPT_MAX {
            self.marks.images.pop_first();
        }
        self.marks.add(mark.clone());
        fx.broadcast(Message::Mark(mark));
        self.certify(seq, fx);
    }

    /// ⟨MARK, n, d, i⟩.
    pub(crate) fn on_mark(&mut self, mark: Signed<Mark>, fx: &mut Effects<Self>) {
        let Mark { seq, replica, .. } = mark.body;
        let held = self.marks.of.get(&replica);
        // Correct replicas make them in order.
        if held.and_then(BTreeMap::last_key_value).is_some_and(|(last, _)| *last >= seq) {
            return self.ignore(Ignored::Stale, fx);
        }
        self.marks.add(mark);
        self.certify(seq, fx);
    }

    /// A mark made here counts once `2f + 1` have signed it, this replica included.
    fn certify(&mut self, seq: Seq, fx: &mut Effects<Self>) {
        let Some((digest, _)) = self.marks.images.get(&seq) else { return };
        let enough = self.marks.signers(seq, *digest).len() >= self.quorums.strong();
        if enough && self.marks.certified.is_none_or(|certified| certified < seq) {
            self.marks.certified = Some(seq);
            self.marks.images.retain(|at, _| *at >= seq);
            fx.events.push(Event::Marked { seq });
        }
    }

    /// Where this replica stands with marks.
    pub fn marked(&self) -> Marked {
        let made = self.marks.images.last_key_value();
        let made = made.map_or((Seq(0), Time::ZERO), |(seq, (_, image))| (*seq, image.at));
        let certified = self.marks.certified.filter(|seq| self.marks.images.contains_key(seq));
        let every = self.params.mark_interval.unwrap_or(Duration::MAX);
        let next_at = Time(span_of(self.last_at, every).saturating_add(1).saturating_mul(nanos(every)));
        Marked { made, certified, next_at }
    }

    /// The state at the latest certified mark, for reads to be proven from.
    pub fn certified(&mut self) -> Option<Certified<S>> {
        let seq = self.marks.certified?;
        let (digest, image) = self.marks.images.get_mut(&seq)?;
        assert!(digest_of(seq, image.at, &mut image.state, &mut image.table) == *digest, "an image does not change");
        let head = Head { seq, at: image.at, state: image.state.digest(), table: image.table.digest() };
        let (digest, tree) = (*digest, image.state.tree()?.clone());
        let state = image.state.clone();
        Some(Certified::new(head, self.marks.signers(seq, digest), state, tree))
    }
}
