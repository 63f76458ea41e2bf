//! The world: virtual time, and everything that happens in it, one event after the other.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

use base::{Effects, Protocol as _, PublicKey, ReplicaId, Signed, Time, Verified};
use bft::{ClientRequest, Condensed, Context, Input, Message, Reply, Request};

use crate::byz::{Act, Memory, Rogue};
use crate::check::Checks;
use crate::clock::{Clock, START};
use crate::keys::{Symbolic, known_principals};
use crate::machine::{Service, Tape, Watched};
use crate::net::Net;
use crate::node::{Node, params};
use crate::people::Customer;
use crate::plan::{Fault, Plan};
use crate::rng::Rng;
use crate::stats::Stats;
use crate::trace::{Trace, numbers, words};

/// How often liars get the word by themselves, ns.
const TICK: u64 = 100_000_000;
/// How often the world looks around, ns.
pub(crate) const SURVEY: u64 = 500_000_000;

/// Something that happens at one moment.
pub(crate) enum What<S: Service> {
    /// Messages arrive that were sent together.
    Parcel { from: usize, to: usize, messages: Vec<Message> },
    /// A client's request arrives.
    Request { client: usize, to: usize, request: Box<Signed<Request>> },
    /// A reply arrives at a client.
    Reply { from: usize, client: usize, reply: Reply },
    /// A core's deadline.
    Wake { node: usize, life: u64, at: Time },
    /// A sync returns.
    Synced { node: usize, life: u64 },
    /// A snapshot is durable.
    Snapshot { node: usize, life: u64, condensed: Box<Condensed<Watched<S>>> },
    /// A node comes back.
    Start { node: usize, life: u64 },
    /// A client's deadline, or its next idea.
    Client { client: usize },
    /// Something goes wrong.
    Fault(Fault),
    /// The faults stop.
    Calm,
    /// Liars get the word.
    Tick,
    /// The world looks around.
    Survey,
}

/// An event in its place: by time, and in the order of causes.
pub(crate) struct Event<S: Service> {
    at: Time,
    number: u64,
    what: What<S>,
}

impl<S: Service> PartialEq for Event<S> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<S: Service> Eq for Event<S> {}
impl<S: Service> PartialOrd for Event<S> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<S: Service> Ord for Event<S> {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// A cluster, its clients, and what may go wrong with them.
pub(crate) struct World<S: Service> {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) now: Time,
    events: BinaryHeap<Event<S>>,
    number: u64,
    pub(crate) nodes: Vec<Node<S>>,
    pub(crate) net: Net,
    pub(crate) clients: Vec<Customer>,
    pub(crate) rogues: Vec<Rogue>,
    /// How far the first correct replica was, at each survey since the faults stopped.
    pub(crate) reached: Vec<base::Seq>,
    /// Whose replies go where.
    pub(crate) sessions: BTreeMap<(PublicKey, u64), usize>,
    pub(crate) checks: Checks<S>,
    pub(crate) tape: Rc<RefCell<Tape>>,
    pub(crate) memory: Memory,
    pub(crate) gang: Vec<ReplicaId>,
    pub(crate) stats: Stats,
    pub(crate) trace: Trace,
    pub(crate) context: Context,
    /// Operations thought of so far.
    pub(crate) operations: u64,
    /// Whether the faults have stopped.
    pub(crate) calm: bool,
    /// Requests that were not done then.
    pub(crate) left_at_calm: u64,
    /// Whether somebody outside still has requests to make, and hears what they are answered.
    pub(crate) open: bool,
    /// What they were answered: client, ticket, result.
    pub(crate) told: Vec<(usize, u64, Option<Vec<u8>>)>,
    /// Whether the run is over.
    pub(crate) over: bool,
}

impl<S: Service> World<S> {
    /// The world that a plan describes.
    pub(crate) fn new(plan: Plan, aloud: bool) -> World<S> {
        let mut rng = Rng::new(plan.seed ^ 0x00c0_ffee);
        let tape = Rc::new(RefCell::new(Tape::default()));
        let principals = known_principals();
        let nodes = Self::nodes_of(&plan);
        let clients: Vec<_> = plan.clients.iter().map(|client| Customer::new(*client, plan.n, START)).collect();
        let rogues = plan.behaviour.map_or_else(Vec::new, |behaviour| behaviour.rogues(plan.n, &mut rng, S::operation));
        let ends = nodes.len() + clients.len() + rogues.len();
        let sessions = clients.iter().enumerate().map(|(index, client)| ((client.key, client.plan.session), index));
        let mut world = World {
            net: Net::new(ends, plan.weather, (plan.near, plan.far), rng.fork()),
            rng,
            now: START,
            events: BinaryHeap::new(),
            number: 0,
            nodes,
            sessions: sessions.collect(),
            clients,
            rogues,
            reached: Vec::new(),
            checks: Checks::new(!plan.control, S::genesis(&principals), tape.clone(), &principals),
            tape,
            memory: Memory::default(),
            gang: plan.liars.iter().map(|index| ReplicaId(*index as u16)).collect(),
            stats: Stats::default(),
            trace: Trace::new(aloud),
            context: params(plan.n, 0, &plan.tuning).context(),
            operations: 0,
            calm: false,
            left_at_calm: 0,
            open: false,
            told: Vec::new(),
            over: false,
            plan,
        };
        world.begin();
        world
    }

    fn nodes_of(plan: &Plan) -> Vec<Node<S>> {
        let node = |index: usize, lies: bool| {
            let (offset, rate) = plan.clocks[index];
            Node::new(ReplicaId(index as u16), Clock::new(offset, rate), lies)
        };
        let lies = |index: usize| plan.liars.contains(&index);
        let twins = plan.behaviour.is_some_and(|behaviour| behaviour.has_twins());
        let second = plan.liars.iter().filter(|_| twins).map(|index| node(*index, true));
        (0..plan.n).map(|index| node(index, lies(index))).chain(second).collect()
    }

    fn begin(&mut self) {
        self.cut_for_ever();
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        for client in 0..self.clients.len() {
            let thinks = self.now.0 + self.rng.waiting(self.plan.clients[client].think);
            self.clients[client].thinks = Time(thinks);
            self.at(Time(thinks), What::Client { client });
        }
        for (at, fault) in self.plan.faults.clone() {
            self.at(Time(START.0 + at), What::Fault(fault));
        }
        self.at(Time(START.0 + self.plan.calm), What::Calm);
        self.after_ns(SURVEY, What::Survey);
        if self.plan.behaviour.is_some() {
            self.after_ns(TICK, What::Tick);
        }
    }

    /// The end that stands for a client in the network.
    pub(crate) fn end_of(&self, client: usize) -> usize {
        self.nodes.len() + client
    }

    /// Lets something happen at a moment.
    pub(crate) fn at(&mut self, at: Time, what: What<S>) {
        self.number += 1;
        self.events.push(Event { at, number: self.number, what });
    }

    /// Lets something happen so much later, ns.
    pub(crate) fn after_ns(&mut self, delay: u64, what: What<S>) {
        self.at(Time(self.now.0 + delay), what);
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(&mut self) {
        while !self.over && self.checks.violation.is_none() {
            self.turn();
        }
        self.conclude();
    }

    /// When something happens next.
    pub(crate) fn next_at(&self) -> Time {
        self.events.peek().expect("the world always looks around again").at
    }

    /// Lets the next thing happen.
    pub(crate) fn turn(&mut self) {
        let event = self.events.pop().expect("the world always looks around again");
        self.now = self.now.max(event.at);
        self.stats.events += 1;
        self.checks.events(self.stats.events);
        self.happen(event.what);
    }

    /// Sums up.
    pub(crate) fn conclude(&mut self) {
        self.stats.simulated = self.now.since(START);
        self.stats.close(&self.net);
        let applied = self.checks.applied() as u64;
        self.trace.note(self.now, &[99, applied], || format!("the end: {applied} operations"));
    }

    fn happen(&mut self, what: What<S>) {
        match what {
            What::Parcel { from, to, messages } => self.on_parcel(from, to, messages),
            What::Request { client, to, request } => self.on_request(client, to, request),
            What::Reply { from, client, reply } => self.on_reply(from, client, reply),
            What::Wake { node, life, at } => self.on_wake(node, life, at),
            What::Synced { node, life } if self.nodes[node].life == life => self.on_synced(node),
            What::Snapshot { node, life, condensed } if self.nodes[node].life == life => {
                self.nodes[node].disk.finish_snapshot(condensed.records());
                self.stats.snapshots += 1;
            }
            What::Start { node, life } if self.nodes[node].life == life => self.start(node),
            What::Synced { .. } | What::Snapshot { .. } | What::Start { .. } => {}
            What::Client { client } => self.on_client(client),
            What::Fault(fault) => self.on_fault(fault),
            What::Calm => self.on_calm(),
            What::Tick => {
                self.on_tick();
                self.after_ns(TICK, What::Tick);
            }
            What::Survey => {
                self.on_survey();
                self.after_ns(SURVEY, What::Survey);
            }
        }
    }

    /// Puts an event off while its node's process stands still.
    fn held_up(&mut self, node: usize) -> Option<Time> {
        let until = self.nodes[node].paused;
        (until > self.now).then_some(until)
    }

    fn on_parcel(&mut self, from: usize, to: usize, messages: Vec<Message>) {
        if let Some(until) = self.held_up(to) {
            return self.at(until, What::Parcel { from, to, messages });
        }
        if self.net.is_cut(from, to) || self.nodes[to].core.is_none() {
            return;
        }
        let sender = self.nodes[from].id;
        let mut fx = Effects::new();
        for message in messages {
            let [kind, place, digest] = numbers(&message);
            let ends = (from as u64) << 8 | to as u64;
            self.trace
                .note(self.now, &[kind, ends, place, digest], || format!("n{from} -> n{to}  {}", words(&message)));
            self.stats.messages += 1;
            if self.nodes[to].lies && !self.lie(to, &Act::Hear { from: sender, message: &message }) {
                continue;
            }
            let Some(message) = self.admit(from, message) else { continue };
            let node = &mut self.nodes[to];
            let local = node.clock.read(self.now);
            if let Some(core) = &mut node.core {
                core.handle(local, Input::Peer { from: sender, message }, &mut fx);
            }
        }
        self.after_step(to, fx);
    }

    /// The door: what is not signed by whom it claims, or too long, goes no further.
    fn admit(&mut self, from: usize, message: Message) -> Option<Verified<Message>> {
        let message = if self.nodes[from].lies || self.rng.below(64) == 0 { reread(message)? } else { message };
        let sender = self.nodes[from].id;
        let verified = Verified::check(message, &sender, &self.context, &Symbolic).ok();
        assert!(verified.is_some() || self.nodes[from].lies, "a correct replica forges nothing");
        self.stats.forged += u64::from(verified.is_none());
        verified
    }

    fn on_request(&mut self, client: usize, to: usize, request: Box<Signed<Request>>) {
        if let Some(until) = self.held_up(to) {
            return self.at(until, What::Request { client, to, request });
        }
        if self.net.is_cut(self.end_of(client), to) || self.nodes[to].core.is_none() {
            return;
        }
        let (session, timestamp) = (request.body.session, request.body.timestamp);
        let place = (client as u64) << 8 | to as u64;
        self.trace.note(self.now, &[20, place, session, timestamp], || {
            format!("c{client} -> n{to}  request {session}/{timestamp}")
        });
        if self.nodes[to].lies && !self.lie(to, &Act::Asked { request: &request }) {
            return;
        }
        let Ok(request) = Verified::check(ClientRequest(*request), &(), &self.context, &Symbolic) else {
            self.stats.forged += 1;
            return;
        };
        let mut fx = Effects::new();
        let node = &mut self.nodes[to];
        let local = node.clock.read(self.now);
        if let Some(core) = &mut node.core {
            core.handle(local, Input::Client(request), &mut fx);
        }
        self.after_step(to, fx);
    }

    fn on_wake(&mut self, node: usize, life: u64, at: Time) {
        if self.nodes[node].life != life || self.nodes[node].wake.is_none_or(|(_, wakes)| wakes != at) {
            return;
        }
        if let Some(until) = self.held_up(node) {
            self.nodes[node].wake = self.nodes[node].wake.map(|(deadline, _)| (deadline, until));
            return self.at(until, What::Wake { node, life, at: until });
        }
        let mut fx = Effects::new();
        let sleeper = &mut self.nodes[node];
        let local = sleeper.clock.read(self.now);
        sleeper.wake = None;
        if let Some(core) = &mut sleeper.core
            && let Some(deadline) = core.deadline()
        {
            // It has waited that long by a clock that nobody sets.
            core.on_deadline(local.max(deadline), &mut fx);
        }
        self.after_step(node, fx);
    }
}

/// A message as it arrives: written and read again.
fn reread(message: Message) -> Option<Message> {
    use base::{Decode as _, Encode as _};
    let bytes = message.to_bytes();
    if bytes.len() > bft::MESSAGE_MAX {
        return None;
    }
    let read = Message::from_bytes(&bytes).ok()?;
    assert!(read == message, "what is written can be read");
    Some(read)
}
