//! The world: a clock, a network, disks, and who lives there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{Decode, Digest, Effects, Encode, Protocol, PublicKey, ReplicaId, Seq, Time, To, Verified, View};
use bft::client::{self, Output, Session};
use bft::{ClientRequest, Context, Event, Input, Message, Params, Record, Replica, ReplicaStatus, Reply, Standing};
use bytes::Bytes;

use super::machine::{Entry, Machine, answer, place_of};
use super::{CLUSTER, Rng, Trusting, client_secret, params, replica_keys};

pub type Node = Replica<Machine>;

/// What the world does to those who live in it; chances in per cent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: u64,
    pub duplication: u64,
    /// Longest delay of a message.
    pub delay_ms: u64,
    /// Chance that a replica crashes while it carries out effects, in 1/1000.
    pub crash_permille: u64,
    /// Chance that a replica condenses its log after a step, in 1/1000.
    pub condense_permille: u64,
    /// Longest time a crashed replica stays down.
    pub down_ms: u64,
}

/// How replicas are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub tweak: fn(&mut Params),
    /// A replica whose state machine computes other digests than the others'.
    pub rotten: Option<usize>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { tweak: |_| (), rotten: None }
    }
}

impl Setup {
    fn restored(&self, n: usize, me: usize, records: Vec<Record>) -> Node {
        let mut params = params(n, me);
        (self.tweak)(&mut params);
        let genesis = Machine { rot: u8::from(self.rotten == Some(me)), ..Machine::default() };
        Node::restore((params, genesis), records).expect("its own records")
    }
}

/// Something on its way.
#[derive(Clone, Debug)]
enum Parcel {
    Message { from: ReplicaId, to: ReplicaId, message: Message },
    Request { to: ReplicaId, request: ClientRequest },
    Reply { from: ReplicaId, client: usize, reply: Reply },
}

/// A client with work to do.
pub struct Customer {
    pub key: PublicKey,
    pub session: Session,
    number: u64,
    pub to_do: Vec<Bytes>,
    tickets: BTreeMap<u64, Bytes>,
    pub done: Vec<(Bytes, u64)>,
    pub failed: Vec<bft::RefusedWhy>,
    /// Where the requests that are done were executed.
    pub seqs: Vec<Seq>,
}

type Tamper = Box<dyn FnMut(&mut Rng, ReplicaId, Message) -> Option<Message>>;
type TamperReply = Box<dyn FnMut(&mut Rng, Reply) -> Option<Reply>>;

pub struct World {
    pub rng: Rng,
    pub now: Time,
    pub n: usize,
    pub faults: Faults,
    pub replicas: Vec<Option<Node>>,
    pub disks: Vec<Vec<Record>>,
    back_at: Vec<Option<Time>>,
    parcels: BTreeMap<(Time, u64), Parcel>,
    sent: u64,
    pub customers: Vec<Customer>,
    /// Byzantine replicas: what becomes of what they would say. They are left out of the checks.
    pub tampers: BTreeMap<ReplicaId, Tamper>,
    pub tamper_replies: BTreeMap<ReplicaId, TamperReply>,
    /// Links that carry nothing, from and to.
    pub cut: BTreeSet<(ReplicaId, ReplicaId)>,
    /// The one history, of which every correct replica's is a prefix.
    pub history: Vec<Entry>,
    ops_seen: BTreeSet<Bytes>,
    /// What correct replicas said of a place: it must never change.
    said: BTreeMap<(ReplicaId, &'static str, View, Seq), Digest>,
    pub stable: BTreeMap<Seq, Digest>,
    pub events: Vec<(ReplicaId, Event)>,
    pub crashes: u64,
    pub setup: Setup,
    context: Context,
}

impl World {
    pub fn new(seed: u64, n: usize) -> World {
        World::with(seed, n, Setup::default())
    }

    pub fn with(seed: u64, n: usize, setup: Setup) -> World {
        let replicas = (0..n).map(|me| setup.restored(n, me, Vec::new())).map(Some).collect();
        World {
            rng: Rng::new(seed),
            now: Time(1_700_000_000_000_000_000),
            n,
            faults: Faults { delay_ms: 5, ..Faults::default() },
            replicas,
            disks: vec![Vec::new(); n],
            back_at: vec![None; n],
            parcels: BTreeMap::new(),
            sent: 0,
            customers: Vec::new(),
            tampers: BTreeMap::new(),
            tamper_replies: BTreeMap::new(),
            cut: BTreeSet::new(),
            history: Vec::new(),
            ops_seen: BTreeSet::new(),
            said: BTreeMap::new(),
            stable: BTreeMap::new(),
            events: Vec::new(),
            crashes: 0,
            setup,
            context: params(n, 0).context(),
        }
    }

    /// A client with `count` operations to do.
    pub fn add_customer(&mut self, count: usize) -> usize {
        let index = self.customers.len();
        self.add_session(index, index as u64 + 1, count)
    }

    /// A session of the client `who`, with `count` operations to do.
    pub fn add_session(&mut self, who: usize, number: u64, count: usize) -> usize {
        let index = self.customers.len();
        let secret = client_secret(who);
        let key = secret.public();
        let replicas = replica_keys(self.n);
        let retransmit = Duration::from_millis(100);
        let params = client::Params { cluster: CLUSTER, replicas, secret, session: number, retransmit };
        let session = Session::new(params, self.now).expect("good parameters");
        let ops = (0..count)
            .rev()
            .map(|op| Bytes::from(format!("{}op {index}/{op}", if op % 3 == 0 { '\x20' } else { '\x01' })));
        self.customers.push(Customer {
            key,
            session,
            number,
            to_do: ops.collect(),
            tickets: BTreeMap::new(),
            done: Vec::new(),
            failed: Vec::new(),
            seqs: Vec::new(),
        });
        index
    }

    pub fn node(&self, index: usize) -> &Node {
        self.replicas[index].as_ref().expect("it is up")
    }

    pub fn status(&self, index: usize) -> ReplicaStatus {
        self.node(index).status()
    }

    fn correct(&self, who: ReplicaId) -> bool {
        !self.tampers.contains_key(&who)
    }

    /// Does the next thing there is to do.
    pub fn step(&mut self) {
        for index in 0..self.customers.len() {
            self.submit(index);
        }
        let mut next = self.parcels.first_key_value().map(|((at, _), _)| *at);
        let mut sooner = |at: Option<Time>| next = [next, at].into_iter().flatten().min();
        self.replicas.iter().flatten().for_each(|replica| sooner(replica.deadline()));
        self.customers.iter().for_each(|customer| sooner(customer.session.deadline()));
        self.back_at.iter().for_each(|at| sooner(*at));
        self.now = self.now.max(next.expect("replicas have heartbeats"));
        for index in 0..self.n {
            if self.back_at[index].is_some_and(|at| at <= self.now) {
                self.restart(index);
            }
            let due = |replica: &Node| replica.deadline().is_some_and(|at| at <= self.now);
            if self.replicas[index].as_ref().is_some_and(due) {
                let mut fx = Effects::new();
                self.replicas[index].as_mut().expect("just seen").on_deadline(self.now, &mut fx);
                self.carry_out(index, fx);
            }
        }
        for index in 0..self.customers.len() {
            let mut outputs = Vec::new();
            if self.customers[index].session.deadline().is_some_and(|at| at <= self.now) {
                self.customers[index].session.on_deadline(self.now, &mut outputs);
            }
            self.client_outputs(index, outputs);
        }
        if let Some(entry) = self.parcels.first_entry()
            && entry.key().0 <= self.now
        {
            let parcel = entry.remove();
            self.deliver(parcel);
        }
    }

    /// Steps until `done`; panics after `limit` of virtual time.
    pub fn run_until(&mut self, limit: Duration, what: &str, done: impl Fn(&World) -> bool) {
        let end = self.now.after(limit);
        while !done(self) {
            assert!(self.now <= end, "not within {limit:?}: {what}\n{}", self.describe());
            self.step();
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.step();
        }
    }

    /// Ends all faults but Byzantine ones, and brings everybody back.
    pub fn heal(&mut self) {
        self.faults = Faults { delay_ms: 5, ..Faults::default() };
        self.cut.clear();
        for index in 0..self.n {
            if self.replicas[index].is_none() {
                self.restart(index);
            }
        }
    }

    /// Runs until every client has what it asked for and all correct replicas are at one point.
    pub fn settle(&mut self, limit: Duration) {
        self.run_until(limit, "every request is done", |world| world.customers.iter().all(Customer::is_done));
        self.run_until(limit, "every replica has caught up", |world| {
            let last = |index: &usize| world.replicas[*index].as_ref().map(|replica| replica.status().last_executed);
            let all: BTreeSet<_> =
                (0..world.n).filter(|i| world.correct(ReplicaId(*i as u16))).map(|i| last(&i)).collect();
            all.len() == 1
        });
        for index in (0..self.n).filter(|index| self.correct(ReplicaId(*index as u16))) {
            assert_ne!(self.status(index).status, Standing::Diverged);
            let history: Vec<_> = self.node(index).state().history.iter().cloned().collect();
            assert!(history == self.history, "replica {index} has the whole history");
        }
    }

    pub fn describe(&self) -> String {
        let statuses: Vec<_> = self.replicas.iter().map(|replica| replica.as_ref().map(Node::status)).collect();
        let left: Vec<_> = self.customers.iter().map(|c| (c.to_do.len(), c.session.outstanding())).collect();
        format!("{statuses:#?}\nclients (to do, outstanding): {left:?}")
    }

    fn submit(&mut self, index: usize) {
        let mut outputs = Vec::new();
        let customer = &mut self.customers[index];
        while customer.session.can_submit()
            && let Some(op) = customer.to_do.pop()
        {
            let ticket = customer.session.submit(self.now, op.clone(), &mut outputs);
            assert!(customer.tickets.insert(ticket, op).is_none(), "tickets are unique");
        }
        self.client_outputs(index, outputs);
    }

    fn client_outputs(&mut self, index: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { to, request } => {
                    let request = ClientRequest(request);
                    for to in self.recipients(None, to) {
                        self.post(Parcel::Request { to, request: request.clone() });
                    }
                }
                Output::Done { ticket, result, seq } => {
                    let customer = &mut self.customers[index];
                    let op = customer.tickets.remove(&ticket).expect("done once");
                    let place = place_of(&result);
                    assert_eq!(result, answer(place, &op), "the result is that of the operation");
                    let entry = &self.history[usize::try_from(place).unwrap()];
                    assert_eq!((&entry.op, entry.who), (&op, customer.key), "it was executed where it says");
                    customer.done.push((op, place));
                    customer.seqs.push(seq);
                }
                Output::Failed { ticket, why } => {
                    let customer = &mut self.customers[index];
                    customer.tickets.remove(&ticket).expect("failed once");
                    customer.failed.push(why);
                }
            }
        }
    }

    fn recipients(&self, from: Option<ReplicaId>, to: To<ReplicaId>) -> Vec<ReplicaId> {
        match to {
            To::One(one) => vec![one],
            To::All => (0..self.n as u16).map(ReplicaId).filter(|to| Some(*to) != from).collect(),
        }
    }

    fn post(&mut self, parcel: Parcel) {
        let copies = 1 + u64::from(self.rng.percent(self.faults.duplication));
        for _ in 0..copies {
            if self.rng.percent(self.faults.loss) {
                continue;
            }
            let delay = 100_000 + self.rng.below(self.faults.delay_ms.max(1) * 1_000_000);
            self.sent += 1;
            self.parcels.insert((Time(self.now.0 + delay), self.sent), parcel.clone());
        }
    }

    fn deliver(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Message { from, to, message } => {
                if self.cut.contains(&(from, to)) {
                    return;
                }
                let bytes = message.to_bytes();
                assert!(bytes.len() <= bft::MESSAGE_MAX, "no message is too long");
                let message = Message::from_bytes(&bytes).expect("what is encoded can be decoded");
                let message = Verified::check(message, &from, &self.context, &Trusting).expect("nobody forges");
                self.handle(to, Input::Peer { from, message });
            }
            Parcel::Request { to, request } => {
                let request = Verified::check(request, &(), &self.context, &Trusting).expect("nobody forges");
                self.handle(to, Input::Client(request));
            }
            Parcel::Reply { from, client, reply } => {
                let mut outputs = Vec::new();
                self.customers[client].session.on_reply(self.now, from, reply, &mut outputs);
                self.client_outputs(client, outputs);
            }
        }
    }

    pub fn handle(&mut self, to: ReplicaId, input: Input) {
        let index = usize::from(to.0);
        if let Some(replica) = &mut self.replicas[index] {
            let mut fx = Effects::new();
            replica.handle(self.now, input, &mut fx);
            self.carry_out(index, fx);
        }
    }

    /// Write, then speak; a crash may come anywhere in between.
    fn carry_out(&mut self, index: usize, fx: Effects<Node>) {
        let who = ReplicaId(index as u16);
        self.check_history(index);
        let actions = (fx.persist.len() + fx.send.len() + fx.events.len() + 1) as u64;
        let crash = self.rng.below(1000) < self.faults.crash_permille;
        let mut left = if crash { self.rng.below(actions) } else { u64::MAX };
        let mut may = || {
            let may = left > 0;
            left = left.saturating_sub(1);
            may
        };
        self.disks[index].extend(fx.persist.into_iter().take_while(|_| may()));
        let send: Vec<_> = fx.send.into_iter().take_while(|_| may()).collect();
        let events: Vec<_> = fx.events.into_iter().take_while(|_| may()).collect();
        for send in send {
            self.send(who, send.to, send.message);
        }
        for event in events {
            self.on_event(who, event);
        }
        if crash {
            self.crash(index);
            let down = self.rng.below(self.faults.down_ms.max(1));
            self.back_at[index] = Some(self.now.after(Duration::from_millis(down)));
        } else if self.rng.below(1000) < self.faults.condense_permille {
            self.condense(index);
        }
    }

    fn send(&mut self, who: ReplicaId, to: To<ReplicaId>, message: Message) {
        for to in self.recipients(Some(who), to) {
            let message = match self.tampers.get_mut(&who) {
                None => {
                    self.check_said(who, &message);
                    Some(message.clone())
                }
                Some(tamper) => tamper(&mut self.rng, to, message.clone()),
            };
            if let Some(message) = message {
                self.post(Parcel::Message { from: who, to, message });
            }
        }
    }

    fn on_event(&mut self, who: ReplicaId, event: Event) {
        match &event {
            Event::Reply { client, session, reply } => {
                let reply = match self.tamper_replies.get_mut(&who) {
                    None => Some(reply.clone()),
                    Some(tamper) => tamper(&mut self.rng, reply.clone()),
                };
                let found = self.customers.iter().position(|c| c.key == *client && c.number == *session);
                if let (Some(reply), Some(client)) = (reply, found) {
                    let reply = Reply::from_bytes(&reply.to_bytes()).expect("what is encoded can be decoded");
                    self.post(Parcel::Reply { from: who, client, reply });
                }
            }
            Event::StableCheckpoint { seq, digest } if self.correct(who) => {
                assert_eq!(self.stable.entry(*seq).or_insert(*digest), digest, "one state at a stable checkpoint");
            }
            Event::Misbehaved { who: accused, evidence } => {
                assert!(!self.correct(*accused), "{accused:?} is correct: {evidence:?}");
            }
            _ => {}
        }
        self.events.push((who, event));
    }

    /// A correct replica never says two things of one place, whatever happened in between.
    fn check_said(&mut self, who: ReplicaId, message: &Message) {
        let (kind, view, seq, digest) = match message {
            Message::Proposal(proposal) => {
                let header = proposal.header.body;
                ("proposal", header.view, header.seq, header.digest())
            }
            Message::Prepare(prepare) => ("prepare", prepare.body.view, prepare.body.seq, prepare.body.digest),
            Message::Commit(commit) => ("commit", commit.view, commit.seq, commit.digest),
            Message::Checkpoint(checkpoint) => ("checkpoint", View(0), checkpoint.body.seq, checkpoint.body.digest),
            Message::Committed(committed) => ("committed", View(0), committed.seq, committed.digest()),
            _ => return,
        };
        let earlier = *self.said.entry((who, kind, view, seq)).or_insert(digest);
        assert_eq!(earlier, digest, "{who:?} said two things of {kind} {seq:?}");
    }

    /// Every correct replica's history is a prefix of one, in which nothing is twice.
    fn check_history(&mut self, index: usize) {
        if !self.correct(ReplicaId(index as u16)) {
            return;
        }
        let theirs = &self.replicas[index].as_ref().expect("it acts").state().history;
        let common = self.history.len().min(theirs.len());
        // Only the end can be new; older entries were compared when they were.
        let since = common.saturating_sub(8);
        for place in since..common {
            assert!(theirs[place] == self.history[place], "replica {index} differs at {place}");
        }
        for place in common..theirs.len() {
            let entry = theirs[place].clone();
            assert!(self.ops_seen.insert(entry.op.clone()), "{:?} executed twice", entry.op);
            assert!(self.history.last().is_none_or(|last| last.at <= entry.at), "time went back");
            self.history.push(entry);
        }
    }

    /// Power is lost: everybody crashes at once, and nothing is on its way any more.
    pub fn power_off(&mut self) {
        (0..self.n).for_each(|index| self.crash(index));
        self.parcels.clear();
    }

    pub fn crash(&mut self, index: usize) {
        self.crashes += 1;
        self.replicas[index] = None;
    }

    pub fn restart(&mut self, index: usize) {
        self.back_at[index] = None;
        self.replicas[index] = Some(self.setup.restored(self.n, index, self.disks[index].clone()));
        self.check_remembered(index);
    }

    /// A replica's disk is lost; it comes back with nothing but the knowledge that something is lost.
    pub fn wipe(&mut self, index: usize) {
        let replica = ReplicaId(index as u16);
        self.disks[index] = vec![Record::Life { replica, life: self.now.0 }];
        self.restart(index);
    }

    /// A replica's log is damaged after so many records; it begins a new life from what came before.
    /// Gives the checkpoint that was kept.
    pub fn rot(&mut self, index: usize, readable: usize) -> Option<Seq> {
        let replica = ReplicaId(index as u16);
        let mut params = params(self.n, index);
        (self.setup.tweak)(&mut params);
        let records = self.disks[index][..readable].to_vec();
        let damaged = Node::restore((params, Machine::default()), records).ok();
        let salvaged = damaged.and_then(|damaged| damaged.salvage(self.now.0));
        self.disks[index] = match &salvaged {
            Some(salvaged) => salvaged.records().collect(),
            None => vec![Record::Life { replica, life: self.now.0 }],
        };
        self.restart(index);
        salvaged.map(|salvaged| salvaged.seq())
    }

    /// What a replica said of places above its low water mark, it still knows after a restart.
    fn check_remembered(&self, index: usize) {
        if self.status(index).status == Standing::Rejoining {
            return;
        }
        let (mut proposed, mut prepared) = (BTreeMap::new(), BTreeMap::new());
        for record in self.node(index).condense().records() {
            match record {
                Record::Proposed(proposal) => {
                    proposed.insert(proposal.header.body.seq, proposal.header.body.digest());
                }
                Record::Prepared(certificate) => {
                    prepared.insert(certificate.seq, certificate.view);
                }
                Record::PriorPrepared(certificate) => {
                    prepared.entry(certificate.header.body.seq).or_insert(certificate.header.body.view);
                }
                _ => {}
            }
        }
        let (low, now) = (self.status(index).low_water_mark, self.status(index).view);
        for ((who, kind, view, seq), digest) in &self.said {
            if usize::from(who.0) != index || *seq <= low {
                continue;
            }
            assert!(
                *kind == "checkpoint" || *kind == "committed" || *view <= now,
                "{who:?} forgot that it left {now:?}"
            );
            match *kind {
                "proposal" if *view == now => assert!(proposed.contains_key(seq), "{who:?} forgot proposal {seq:?}"),
                "prepare" if *view == now => {
                    assert_eq!(proposed.get(seq), Some(digest), "{who:?} forgot prepare {seq:?}");
                }
                "commit" => {
                    let kept = prepared.get(seq).is_some_and(|kept| kept >= view);
                    assert!(kept, "{who:?} forgot its certificate for {seq:?}");
                }
                _ => {}
            }
        }
    }

    pub fn condense(&mut self, index: usize) {
        let records: Vec<_> = self.node(index).condense().records().collect();
        self.disks[index] = records.iter().map(|r| Record::from_bytes(&r.to_bytes()).expect("round trip")).collect();
    }
}

impl Customer {
    pub fn is_done(&self) -> bool {
        self.to_do.is_empty() && self.tickets.is_empty()
    }
}
