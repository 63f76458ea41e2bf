//! One replica on a bench, and hands that write what the other replicas would say.

use base::{Digest, Effects, Protocol, ReplicaId, Send, Seq, Signed, Time, View};
use bft::{
    Batch, Checkpoint, ClientRequest, Commit, Committed, Event, Input, Message, Params, PrePrepare, Prepare, Proposal,
    Record, ReplicaStatus, Request, Status,
};
use bytes::Bytes;

use super::machine::Machine;
use super::world::Node;
use super::{CLUSTER, client_secret, params, replica_secret, verified};

pub const NOW: Time = Time(1_700_000_000_000_000_000);
pub const V0: View = View(0);

pub struct Bench {
    pub replica: Node,
    pub n: usize,
    pub me: usize,
    pub now: Time,
    /// All that was persisted.
    pub disk: Vec<Record>,
}

impl Bench {
    pub fn new(n: usize, me: usize) -> Bench {
        Bench::with(params(n, me))
    }

    pub fn with(params: Params) -> Bench {
        let (n, me) = (params.replicas.len(), usize::from(params.me.0));
        let replica = Node::restore((params, Machine::default()), Vec::new()).unwrap();
        let mut bench = Bench { replica, n, me, now: NOW, disk: Vec::new() };
        bench.wake();
        bench
    }

    pub fn wake(&mut self) -> Out {
        let mut fx = Effects::new();
        self.now = self.now.max(self.replica.deadline().unwrap_or(self.now));
        self.replica.on_deadline(self.now, &mut fx);
        self.out(fx)
    }

    pub fn hear(&mut self, from: usize, message: Message) -> Out {
        let from = ReplicaId(from as u16);
        let message = verified(message, from, self.n);
        let mut fx = Effects::new();
        self.replica.handle(self.now, Input::Peer { from, message }, &mut fx);
        self.out(fx)
    }

    pub fn request(&mut self, request: Signed<Request>) -> Out {
        let request = verified(ClientRequest(request), (), self.n);
        let mut fx = Effects::new();
        self.replica.handle(self.now, Input::Client(request), &mut fx);
        self.out(fx)
    }

    fn out(&mut self, fx: Effects<Node>) -> Out {
        self.disk.extend(fx.persist.iter().cloned());
        Out { persist: fx.persist, send: fx.send, events: fx.events }
    }

    pub fn status(&self) -> ReplicaStatus {
        self.replica.status()
    }

    /// The same replica after a crash.
    pub fn restart(&mut self, params: Params) {
        self.replica = Node::restore((params, Machine::default()), self.disk.clone()).unwrap();
    }

    /// Takes a batch through the whole normal case, with votes of everybody else (a backup's bench).
    pub fn commit(&mut self, proposal: &Proposal) -> Vec<Event> {
        let me = self.me;
        let (seq, digest) = (proposal.header.body.seq.0, proposal.header.body.digest());
        let mut events = self.hear(0, Message::Proposal(proposal.clone())).events;
        for other in (1..self.n).filter(|other| *other != me) {
            events.extend(self.hear(other, prepare(other, seq, digest)).events);
        }
        for other in (0..self.n).filter(|other| *other != me) {
            events.extend(self.hear(other, commit(seq, digest)).events);
        }
        events
    }
}

/// What came of an input.
#[derive(Debug)]
pub struct Out {
    pub persist: Vec<Record>,
    pub send: Vec<Send<ReplicaId, Message>>,
    pub events: Vec<Event>,
}

impl Out {
    pub fn prepares(&self) -> usize {
        self.send.iter().filter(|send| matches!(send.message, Message::Prepare(_))).count()
    }

    pub fn commits(&self) -> usize {
        self.send.iter().filter(|send| matches!(send.message, Message::Commit(_))).count()
    }

    pub fn proposals(&self) -> Vec<Proposal> {
        let proposal = |send: &Send<_, Message>| match &send.message {
            Message::Proposal(proposal) => Some(proposal.clone()),
            _ => None,
        };
        self.send.iter().filter_map(proposal).collect()
    }

    pub fn executed(&self) -> Vec<Seq> {
        let executed = |event: &Event| if let Event::Executed { seq, .. } = event { Some(*seq) } else { None };
        self.events.iter().filter_map(executed).collect()
    }

    pub fn replies(&self) -> Vec<bft::Reply> {
        let reply = |event: &Event| if let Event::Reply { reply, .. } = event { Some(reply.clone()) } else { None };
        self.events.iter().filter_map(reply).collect()
    }

    pub fn ignored(&self) -> Option<bft::Ignored> {
        self.events.iter().find_map(|event| if let Event::Ignored(why) = event { Some(*why) } else { None })
    }
}

pub fn request(client: usize, timestamp: u64, op: &[u8]) -> Signed<Request> {
    let secret = client_secret(client);
    let body = Request { client: secret.public(), session: 1, timestamp, op: Bytes::copy_from_slice(op) };
    Signed::new(body, &secret, &CLUSTER)
}

/// A proposal of the primary of view 0, one request long.
pub fn proposal(seq: u64, timestamp: u64) -> Proposal {
    proposal_of(seq, NOW, vec![request(0, timestamp, b"\x01op")])
}

pub fn proposal_of(seq: u64, at: Time, requests: Vec<Signed<Request>>) -> Proposal {
    let batch = Batch::new(requests);
    let header = PrePrepare { view: V0, seq: Seq(seq), at, batch: batch.digest() };
    Proposal { header: Signed::new(header, &replica_secret(0), &CLUSTER), batch }
}

pub fn prepare(from: usize, seq: u64, digest: Digest) -> Message {
    let body = Prepare { view: V0, seq: Seq(seq), digest, replica: ReplicaId(from as u16) };
    Message::Prepare(Signed::new(body, &replica_secret(from), &CLUSTER))
}

pub fn commit(seq: u64, digest: Digest) -> Message {
    Message::Commit(Commit { view: V0, seq: Seq(seq), digest })
}

pub fn checkpoint(from: usize, seq: u64, digest: Digest) -> Message {
    let body = Checkpoint { seq: Seq(seq), digest, replica: ReplicaId(from as u16) };
    Message::Checkpoint(Signed::new(body, &replica_secret(from), &CLUSTER))
}

pub fn committed(proposal: &Proposal) -> Message {
    let header = proposal.header.body;
    let batch = proposal.batch.clone();
    Message::Committed(Committed { seq: header.seq, view: header.view, at: header.at, batch })
}

pub fn status(round: u64, last_executed: u64, slots: &[bft::SlotState]) -> Message {
    Message::Status(Status {
        round,
        view: V0,
        active: true,
        rejoins: None,
        last_executed: Seq(last_executed),
        low_water_mark: Seq(0),
        oldest_retained: Seq(1),
        slots: slots.to_vec(),
    })
}
