//! The adversary. A lying replica is an honest core whose effects a function tampers with; it holds
//! its own keys and those of its gang, and no others. A lying client is a function that signs
//! whatever it likes. Each way of lying is one row of [`BEHAVIOURS`].

mod certificates;
mod clients;
mod fuzz;
mod omissions;
mod primary;
mod replies;
mod standing;
mod table;
mod transfer;
mod views;
mod votes;

use base::{PublicKey, ReplicaId, Signable, Signed, Time};
use bft::{Message, Reply, Request};
use bytes::Bytes;

use crate::check::Invariant;
use crate::core_can::CORE;
use crate::keys::{CLUSTER, principal_secret, replica_secret};
use crate::machine::Service;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::world::{What, World};
pub use table::BEHAVIOURS;
pub(crate) use table::{TIME_LAGS, TIME_LIES};

/// What a lying replica's core is about to do, or about to be told. The function says whether it
/// goes on as it is; what happens instead, or besides, it leaves in [`Lie`].
pub(crate) enum Act<'a> {
    /// It would say this to a peer.
    Say { to: ReplicaId, message: &'a Message },
    /// It would answer a client.
    Answer { client: PublicKey, session: u64, reply: &'a Reply },
    /// A peer's message comes.
    Hear { from: ReplicaId, message: &'a Message },
    /// A client's request comes.
    Asked { request: &'a Signed<Request> },
    /// Some time has passed.
    Tick,
}

/// What a gang remembers together.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Messages worth keeping, the latest last.
    pub(crate) messages: Vec<(ReplicaId, Message)>,
    /// Requests heard of, the latest last.
    pub(crate) requests: Vec<Signed<Request>>,
    /// Whatever else needs counting.
    pub(crate) numbers: [u64; 8],
}

/// Most messages, and most requests, that a gang remembers.
const MEMORY_MAX: usize = 200;

impl Memory {
    /// Remembers a message.
    pub(crate) fn keep(&mut self, from: ReplicaId, message: &Message) {
        if self.messages.len() >= MEMORY_MAX {
            self.messages.remove(0);
        }
        self.messages.push((from, message.clone()));
    }

    /// Remembers a request.
    pub(crate) fn keep_request(&mut self, request: &Signed<Request>) {
        if self.requests.len() >= MEMORY_MAX {
            self.requests.remove(0);
        }
        self.requests.push(request.clone());
    }
}

/// Something a liar does beside what its core does.
#[derive(Debug)]
pub(crate) enum Deed {
    /// It sends a message, after so many ns.
    Send { after: u64, to: ReplicaId, message: Message },
    /// It answers a client.
    Answer { client: PublicKey, session: u64, reply: Reply },
    /// It crashes and loses its disk.
    Forget,
}

/// What a lying function has at hand.
pub(crate) struct Lie<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) me: ReplicaId,
    pub(crate) n: usize,
    /// The liar's clock.
    pub(crate) now: Time,
    /// All liars.
    pub(crate) gang: &'a [ReplicaId],
    pub(crate) memory: &'a mut Memory,
    pub(crate) deeds: Vec<Deed>,
}

impl Lie<'_> {
    /// Sends a message instead, or besides.
    pub(crate) fn send(&mut self, to: ReplicaId, message: Message) {
        self.deeds.push(Deed::Send { after: 0, to, message });
    }

    /// Sends a message to every other replica.
    pub(crate) fn send_all(&mut self, message: &Message) {
        for to in self.others() {
            self.send(to, message.clone());
        }
    }

    /// Every other replica.
    pub(crate) fn others(&self) -> Vec<ReplicaId> {
        (0..self.n as u16).map(ReplicaId).filter(|to| *to != self.me).collect()
    }

    /// Signs with the liar's own key.
    pub(crate) fn sign<M: Signable>(&self, body: M) -> Signed<M> {
        self.sign_as(self.me, body)
    }

    /// Signs with the key of a member of the gang.
    pub(crate) fn sign_as<M: Signable>(&self, who: ReplicaId, body: M) -> Signed<M> {
        assert!(self.gang.contains(&who), "an adversary signs with keys that it holds");
        Signed::new(body, &replica_secret(usize::from(who.0)), &CLUSTER)
    }

    /// Splits the correct replicas in two halves; whether this one is in the first.
    pub(crate) fn is_in_first_half(&self, who: ReplicaId) -> bool {
        let correct = (0..self.n as u16).map(ReplicaId).filter(|other| !self.gang.contains(other));
        let before = correct.clone().filter(|other| *other < who).count();
        2 * before < correct.count()
    }
}

/// A lying client.
pub(crate) struct Rogue {
    pub(crate) rng: Rng,
    pub(crate) n: usize,
    pub(crate) now: Time,
    /// Which principal it is; its secret key is its own.
    pub(crate) principal: usize,
    /// Requests to be sent, and to whom.
    pub(crate) out: Vec<(ReplicaId, Signed<Request>)>,
    /// Requests signed so far.
    pub(crate) signed: Vec<Signed<Request>>,
    /// Ticks so far.
    pub(crate) ticks: u64,
    operations: u64,
    operation: fn(&mut Rng, u64) -> Bytes,
    act: fn(&mut Rogue),
}

/// Operations of rogues are numbered from here, so that they are nobody else's.
const ROGUE_OPERATIONS: u64 = 1 << 40;

impl Rogue {
    /// An operation that nobody asked for yet.
    pub(crate) fn operation(&mut self) -> Bytes {
        self.operations += 1;
        let number = ROGUE_OPERATIONS + ((self.principal as u64) << 24) + self.operations;
        (self.operation)(&mut self.rng, number)
    }

    /// Signs a request with the rogue's own key.
    pub(crate) fn sign(&mut self, session: u64, timestamp: u64, op: Bytes) -> Signed<Request> {
        let secret = principal_secret(self.principal);
        let request = Signed::new(Request { client: secret.public(), session, timestamp, op }, &secret, &CLUSTER);
        self.signed.push(request.clone());
        request
    }

    /// Sends a request to one replica.
    pub(crate) fn send(&mut self, to: u16, request: Signed<Request>) {
        self.out.push((ReplicaId(to), request));
    }

    /// Sends a request to all replicas.
    pub(crate) fn send_all(&mut self, request: &Signed<Request>) {
        for to in 0..self.n as u16 {
            self.send(to, request.clone());
        }
    }
}

/// Where in the group liars sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// From the first primary on.
    Primaries,
    /// Anywhere but at the first primary's place.
    Backups,
    /// From the second primary on; the first one is cut off now and then, so that their turn comes.
    Second,
    /// The same with two of them, in a group of seven.
    Pair,
    /// Anywhere.
    Anywhere,
    /// Beside a correct replica that loses its disk and must be helped: one liar fewer than is
    /// tolerated, in a group of seven.
    Donors,
}

/// How somebody lies.
#[derive(Clone, Copy)]
pub(crate) enum How {
    /// A replica's effects are tampered with.
    Tamper(fn(&mut Lie<'_>, &Act<'_>) -> bool),
    /// Two copies of a replica, each of which sees a part of the world.
    Twins,
    /// A client does as it likes; in a control run, replicas lie to clients about results.
    Client(fn(&mut Rogue)),
    /// A replica's machine gives other results than the others'.
    Spoilt,
}

/// One way of lying.
pub struct Behaviour {
    /// Its name.
    pub name: &'static str,
    /// The fault it stands for, in the catalogue's words.
    pub row: &'static str,
    /// What it is aimed at.
    pub applies: &'static [Invariant],
    pub(crate) how: How,
    pub(crate) place: Place,
    /// In a control run the liars, who can't do harm enough in their own way, also fall silent in
    /// the end: the checkers must see at least that.
    pub(crate) hush: bool,
}

impl core::fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

impl Behaviour {
    /// Whether it is a client that lies.
    #[must_use]
    pub fn is_clients(&self) -> bool {
        matches!(self.how, How::Client(_))
    }

    /// Whether control runs need the liars' silence to break anything.
    #[must_use]
    pub fn hushes(&self) -> bool {
        self.hush
    }

    pub(crate) fn has_twins(&self) -> bool {
        matches!(self.how, How::Twins)
    }

    /// Whether liars must become primary to lie.
    pub(crate) fn needs_a_turn(&self) -> bool {
        matches!(self.place, Place::Second | Place::Pair)
    }

    /// Whether it takes two to lie like this.
    pub(crate) fn needs_a_partner(&self) -> bool {
        self.place == Place::Pair
    }

    /// Whether there is a correct replica that loses its disk.
    pub(crate) fn has_rejoiner(&self) -> bool {
        self.place == Place::Donors
    }

    pub(crate) fn rot(&self) -> u8 {
        u8::from(matches!(self.how, How::Spoilt))
    }

    /// Which replicas lie, if `count` do.
    pub(crate) fn liars(&self, rng: &mut Rng, n: usize, count: usize) -> Vec<usize> {
        let count = match self.how {
            _ if self.has_rejoiner() && count <= (n - 1) / 3 => count - 1,
            // In its control run it is replicas that lie to clients.
            How::Client(_) if count <= (n - 1) / 3 => 0,
            _ => count,
        };
        let first = match self.place {
            // Twins that never lead can't make two histories, however many they are.
            _ if self.has_twins() && count > (n - 1) / 3 => 0,
            Place::Primaries => 0,
            Place::Second | Place::Pair => 1,
            // The last one loses its disk.
            Place::Donors => rng.below((n - count) as u64) as usize,
            Place::Backups => rng.between(1, (n - count) as u64) as usize,
            Place::Anywhere => rng.below(n as u64) as usize,
        };
        (0..count).map(|index| (first + index) % n).collect()
    }

    /// The clients that lie.
    pub(crate) fn rogues(&self, n: usize, rng: &mut Rng, operation: fn(&mut Rng, u64) -> Bytes) -> Vec<Rogue> {
        let How::Client(act) = self.how else { return Vec::new() };
        let rogue = |principal| Rogue {
            rng: rng.fork(),
            n,
            now: Time::ZERO,
            principal,
            out: Vec::new(),
            signed: Vec::new(),
            ticks: 0,
            operations: 0,
            operation,
            act,
        };
        (8..10).map(rogue).collect()
    }

    /// Whether everything gets done all the same.
    pub(crate) fn leaves_progress(&self, plan: &Plan) -> bool {
        CORE.view_change || !plan.liars.contains(&0) || matches!(self.how, How::Client(_))
    }
}

impl<S: Service> World<S> {
    /// A liar's core acts, or is told something: its function has the word. Gives whether it goes on.
    pub(crate) fn lie(&mut self, node: usize, act: &Act<'_>) -> bool {
        let Some(behaviour) = self.plan.behaviour else { return true };
        if self.plan.control && behaviour.hush && self.calm {
            return !matches!(act, Act::Say { .. } | Act::Answer { .. });
        }
        let tamper = match behaviour.how {
            How::Tamper(tamper) => tamper,
            How::Client(_) => replies::wrong_results,
            How::Twins | How::Spoilt => return true,
        };
        let actor = &mut self.nodes[node];
        let (me, now) = (actor.id, actor.clock.read(self.now));
        let mut lie = Lie {
            rng: &mut self.rng,
            me,
            n: self.plan.n,
            now,
            gang: &self.gang,
            memory: &mut self.memory,
            deeds: Vec::new(),
        };
        let goes_on = tamper(&mut lie, act);
        let deeds = lie.deeds;
        deeds.into_iter().for_each(|deed| self.do_deed(node, deed));
        goes_on
    }

    fn do_deed(&mut self, node: usize, deed: Deed) {
        match deed {
            Deed::Send { after, to, message } => {
                let ends: Vec<usize> = self.nodes_of_id(to).filter(|to| *to != node).collect();
                for to in ends {
                    let arrivals: Vec<Time> = self.net.post(Time(self.now.0 + after), node, to).collect();
                    for at in arrivals {
                        self.at(at, What::Parcel { from: node, to, messages: vec![message.clone()] });
                    }
                }
            }
            Deed::Answer { client, session, reply } => self.answer(node, client, session, reply),
            Deed::Forget => self.forget(node),
        }
    }

    /// Liars get the word by themselves.
    pub(crate) fn on_tick(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].lies && self.nodes[node].core.is_some() {
                self.lie(node, &Act::Tick);
            }
        }
        self.part_twins();
        for index in 0..self.rogues.len() {
            let end = self.nodes.len() + self.clients.len() + index;
            let rogue = &mut self.rogues[index];
            rogue.now = self.now;
            rogue.ticks += 1;
            let signed_before = rogue.signed.len();
            (rogue.act)(rogue);
            let out = core::mem::take(&mut rogue.out);
            for request in &rogue.signed[signed_before..] {
                self.checks.signed(&request.body);
            }
            for (to, request) in out {
                let to = usize::from(to.0);
                let client = self.clients.len() + index;
                let arrivals: Vec<Time> = self.net.post(self.now, end, to).collect();
                for at in arrivals {
                    self.at(at, What::Request { client, to, request: Box::new(request.clone()) });
                }
            }
        }
    }

    /// Twins: each copy of a replica sees its side of the group, and the sides change now and then
    /// (Bano et al., OPODIS'21). In the calm one copy sees nobody: an honest replica is left.
    fn part_twins(&mut self) {
        if !self.plan.behaviour.is_some_and(Behaviour::has_twins) || !self.rng.percent(30) {
            return;
        }
        let (n, nodes) = (self.plan.n, self.nodes.len());
        let split = self.plan.control || !self.calm;
        let mask = self.rng.next();
        let halves = self.plan.control;
        let gang = self.gang.clone();
        let first = |node: usize| match node {
            second if second >= n => false,
            liar if self.plan.liars.contains(&liar) => true,
            // Too many twins make two whole groups of the correct replicas' halves.
            correct if halves => {
                2 * (0..correct).filter(|node| !gang.contains(&ReplicaId(*node as u16))).count() < n - gang.len()
            }
            correct => !split || mask >> correct & 1 == 1,
        };
        self.net.heal();
        let sides: Vec<bool> = (0..nodes).map(first).collect();
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| sides[from] != sides[*to]) {
                let both_correct = !self.nodes[from].lies && !self.nodes[to].lies;
                if self.plan.control || !both_correct {
                    self.net.cut(from, to);
                }
            }
        }
    }
}
