//! Coming back without a log: a replica that lost its disk may have voted, and must not vote twice.
//!
//! It begins a new *life*, with a number of its own, and is mute: it learns and votes for nothing.
//! It asks for the others' word, signed, that they know of its new life; with `2f + 1` of them no
//! view can be entered any more by a view change of its earlier ones (who gave their word refuses
//! such a new view, and the others are too few to vote it through). From their stable checkpoints it
//! knows how far it can have voted: its own checkpoint was held by a correct one of them or is at
//! most a window beyond that one's, and it voted for a window beyond its own. So once its stable
//! checkpoint is two windows past the highest of theirs, whatever it votes for it never voted for
//! before. (TOCS'02 §4.3.2 bounds a recovering replica's log in the same way.) See ADR 8.

use core::time::Duration;
use std::collections::BTreeMap;

use base::{Decode, DecodeError, Effects, Encode, Reader, ReplicaId, Seq, Signable, Signed, StateMachine, Time};

use crate::event::{Event, Ignored};
use crate::message::Message;
use crate::params::REPLICAS_MAX;
use crate::record::{Record, StableProof};
use crate::replica::Replica;

/// Null requests that a group spends on a replica that comes back, in windows.
const PAD_WINDOWS: u64 = 4;
/// How long a life lasts at least.
const LIFE_PAUSE: Duration = Duration::from_secs(1);
/// How often it gets that many, whatever lives it begins meanwhile.
const PAD_PAUSE: Duration = Duration::from_secs(60);

/// ⟨REJOIN, life, i⟩: the sender lost its log and begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejoin {
    /// The number of its life: higher than any before.
    pub life: u64,
    /// Whose.
    pub replica: ReplicaId,
}
base::canonical_struct!(Rejoin { life, replica });

impl Signable for Rejoin {
    const DOMAIN: &'static str = "rejoin";
}

/// The sender knows of this life, and will have nothing of earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The highest life of the receiver that the sender knows.
    pub life: u64,
    /// The sender's stable checkpoint.
    pub stable: Option<StableProof>,
    /// All lives but first ones that the sender knows, of anybody: the receiver forgot them.
    pub lives: Vec<Signed<Rejoin>>,
}

impl Encode for Welcome {
    fn encode(&self, out: &mut Vec<u8>) {
        self.life.encode(out);
        self.stable.encode(out);
        self.lives.encode(out);
    }
}

impl Decode for Welcome {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (life, stable) = (u64::decode(input)?, Option::decode(input)?);
        Ok(Welcome { life, stable, lives: input.seq_max("lives", REPLICAS_MAX)? })
    }
}

/// A replica on its way back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rejoining {
    /// The stable checkpoints of those who know.
    welcomes: BTreeMap<ReplicaId, Seq>,
    /// Where the stable checkpoint must be before it votes, once that is known.
    pub(crate) beyond: Option<Seq>,
}

/// The lives of the group's members.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lives {
    /// This replica's own; 0 is the first.
    pub(crate) own: u64,
    known: BTreeMap<ReplicaId, Life>,
}

#[derive(Clone, Debug)]
struct Life {
    /// What its replica said of it.
    rejoin: Signed<Rejoin>,
    began: Time,
    /// Null requests that may still be ordered on its account; some more every [`PAD_PAUSE`].
    pads: u64,
    filled: Time,
}

impl Lives {
    pub(crate) fn of(&self, replica: ReplicaId) -> u64 {
        self.known.get(&replica).map_or(0, |life| life.rejoin.body.life)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Signed<Rejoin>> {
        self.known.values().map(|life| &life.rejoin)
    }

    /// Whether a replica may begin another life so soon: each costs everybody a record.
    fn admits(&self, now: Time, replica: ReplicaId) -> bool {
        let began = self.known.get(&replica).map(|life| life.began);
        began.is_none_or(|began| now < began || now.since(began) >= LIFE_PAUSE)
    }

    fn begin(&mut self, now: Time, rejoin: Signed<Rejoin>, window: u64) {
        let replica = rejoin.body.replica;
        let pads = self.known.get(&replica).map_or((window * PAD_WINDOWS, now), |life| (life.pads, life.filled));
        self.known.insert(replica, Life { rejoin, began: now, pads: pads.0, filled: pads.1 });
    }

    /// Gives those who wait for long another share.
    pub(crate) fn refill_pads(&mut self, now: Time, window: u64) {
        for life in self.known.values_mut() {
            if now < life.filled || now.since(life.filled) >= PAD_PAUSE {
                (life.pads, life.filled) = (window * PAD_WINDOWS, now);
            }
        }
    }

    /// A null request was executed.
    pub(crate) fn spend_pad(&mut self) {
        self.known.values_mut().for_each(|life| life.pads = life.pads.saturating_sub(1));
    }

    pub(crate) fn may_pad(&self, replica: ReplicaId) -> bool {
        self.known.get(&replica).is_some_and(|life| life.pads > 0)
    }
}

impl<S: StateMachine> Replica<S> {
    /// Whether this replica is mute.
    pub(crate) fn is_mute(&self) -> bool {
        self.rejoining.is_some()
    }

    /// Whether the order must be filled up for a replica that comes back.
    pub(crate) fn helps_rejoin(&self) -> bool {
        self.peers.rejoining(self.log.low()).any(|replica| self.lives.may_pad(replica))
    }

    /// Asks for the others' word, until enough have given it.
    pub(crate) fn say_rejoin(&self, fx: &mut Effects<Self>) {
        if self.rejoining.as_ref().is_some_and(|rejoining| rejoining.beyond.is_none()) {
            fx.broadcast(Message::Rejoin(self.params.sign(Rejoin { life: self.lives.own, replica: self.params.me })));
        }
    }

    /// ⟨REJOIN, life, i⟩.
    pub(crate) fn on_rejoin(&mut self, now: Time, rejoin: Signed<Rejoin>, fx: &mut Effects<Self>) {
        let Rejoin { life, replica } = rejoin.body;
        if self.is_mute() {
            // What this replica once knew of others' lives is lost, too.
            return self.ignore(Ignored::Rejoining, fx);
        }
        if life > self.lives.of(replica) {
            if !self.lives.admits(now, replica) {
                return self.ignore(Ignored::Overloaded, fx);
            }
            self.learn_life(now, rejoin, fx);
        }
        let lives = self.lives.iter().cloned().collect();
        let stable = self.checkpoints.stable.clone();
        fx.send_to(replica, Message::Welcome(Welcome { life: self.lives.of(replica), stable, lives }));
    }

    fn learn_life(&mut self, now: Time, rejoin: Signed<Rejoin>, fx: &mut Effects<Self>) {
        fx.persist.push(Record::Known(rejoin.clone()));
        self.admit_known(now, rejoin);
    }

    /// Has nothing more of the earlier lives of a replica.
    pub(crate) fn admit_known(&mut self, now: Time, rejoin: Signed<Rejoin>) {
        let Rejoin { life, replica } = rejoin.body;
        self.lives.begin(now, rejoin, self.params.window);
        if self.views.changes.get(&replica).is_some_and(|held| held.change.body.life < life) {
            self.views.changes.remove(&replica);
        }
        self.peers.forget(replica);
    }

    /// Begins a life of this replica's own.
    pub(crate) fn admit_life(&mut self, life: u64) {
        self.lives.own = life;
        self.rejoining = (life > 0).then(Rejoining::default);
    }

    /// The life of a replica below which nothing counts.
    pub(crate) fn life_of(&self, replica: ReplicaId) -> u64 {
        if replica == self.params.me { self.lives.own } else { self.lives.of(replica) }
    }

    /// The word of a peer.
    pub(crate) fn on_welcome(&mut self, now: Time, from: ReplicaId, welcome: Welcome, fx: &mut Effects<Self>) {
        let (own, me) = (self.lives.own, self.params.me);
        if self.rejoining.as_ref().is_none_or(|rejoining| rejoining.beyond.is_some()) {
            return self.ignore(Ignored::Stale, fx);
        }
        // What was known of others' lives is lost, too, and must be known again before this one votes.
        for rejoin in welcome.lives {
            let Rejoin { life, replica } = rejoin.body;
            if replica == me && life > own {
                // The clock that numbered this life was behind an earlier one's.
                let Some(life) = life.checked_add(1) else { continue };
                fx.persist.push(Record::Life { replica: me, life });
                self.admit_life(life);
                return self.say_rejoin(fx);
            }
            if replica != me && life > self.lives.of(replica) {
                self.learn_life(now, rejoin, fx);
            }
        }
        if welcome.life != own {
            return self.ignore(Ignored::Stale, fx);
        }
        let stable = welcome.stable.as_ref().map_or(Seq(0), |proof| proof.seq);
        let Some(rejoining) = self.rejoining.as_mut() else { return };
        rejoining.welcomes.insert(from, stable);
        if rejoining.welcomes.len() >= self.quorums.strong() {
            let highest = rejoining.welcomes.values().max().map_or(0, |seq| seq.0);
            let beyond = Seq(highest.saturating_add(2 * self.params.window));
            fx.persist.push(Record::Beyond(beyond));
            rejoining.beyond = Some(beyond);
            self.try_rejoin(fx);
        }
    }

    /// Votes again, if the stable checkpoint is far enough.
    pub(crate) fn try_rejoin(&mut self, fx: &mut Effects<Self>) {
        let beyond = self.rejoining.as_ref().and_then(|rejoining| rejoining.beyond);
        if beyond.is_some_and(|beyond| self.log.low() >= beyond && self.last_executed >= beyond) {
            fx.persist.push(Record::Rejoined);
            fx.events.push(Event::Rejoined { life: self.lives.own });
            self.admit_rejoined();
        }
    }

    /// Takes up the view it is in: what that proposed while this replica was mute is the only thing
    /// that may be proposed there.
    pub(crate) fn admit_rejoined(&mut self) {
        self.rejoining = None;
        let shown = self.views.shown.iter().flat_map(|shown| &shown.new_view.body.proposals);
        let headers: Vec<_> = shown.cloned().collect();
        self.take_over(&headers);
    }
}
