//! What must hold, whatever happens: one checker a file, each of which says what is wrong with one
//! observation, and nothing more. [`Checks`] hands every observation to those whom it concerns.
//!
//! Observations are of correct replicas and correct clients only; what liars say counts for nothing.

mod agreement;
mod answers;
mod authority;
mod bounds;
mod durable;
mod hours;
mod once;
mod progress;

use core::fmt;
use std::cell::RefCell;
use std::rc::Rc;

use base::{Digest, PublicKey, ReplicaId, Seq, Time};
use bft::{Event, Message, Record, RefusedWhy, Replica, ReplicaStatus, ReplyResult, Request};

use crate::machine::{Service, Tape, Watched};

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// I1: correct replicas agree, and contradict nothing they said.
    Agreement,
    /// I2: clients see one history, in the order of real time.
    Linearizability,
    /// I3: what a client was told stays, through any crashes.
    Durability,
    /// I4: nothing happens that nobody entitled asked for.
    Authority,
    /// I5: nothing happens twice.
    Once,
    /// I6: once the faults stop, everything asked for is done.
    Progress,
    /// I7: what a replica keeps and says is bounded.
    Bounds,
    /// I8: what is leased or locked is one's alone.
    Leases,
    /// And none of the core's own assertions fails.
    Asserts,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Invariant; 9] = [
        Invariant::Agreement,
        Invariant::Linearizability,
        Invariant::Durability,
        Invariant::Authority,
        Invariant::Once,
        Invariant::Progress,
        Invariant::Bounds,
        Invariant::Leases,
        Invariant::Asserts,
    ];
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invariant::Asserts => f.write_str("A (Asserts)"),
            _ => write!(f, "I{} ({self:?})", *self as u8 + 1),
        }
    }
}

/// Something that must hold and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What must hold.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
}

/// What a checker says of an observation: nothing, or what is wrong with it.
pub(crate) type Verdict = Result<(), String>;

/// All checkers, and the first violation.
pub(crate) struct Checks<S: Service> {
    tape: Rc<RefCell<Tape>>,
    /// How much of the tape was looked at.
    looked: usize,
    agreement: agreement::Agreement,
    answers: answers::Answers<S>,
    authority: authority::Authority,
    bounds: bounds::Bounds,
    durable: durable::Durable,
    hours: hours::Hours,
    once: once::Once,
    pub(crate) progress: progress::Progress,
    /// The first violation.
    pub(crate) violation: Option<Violation>,
}

impl<S: Service> Checks<S> {
    /// Nothing was observed yet. Replicas replicate `genesis`, for these principals. `strict`: what a
    /// client is told, some correct replica has executed by then, since there are enough of them.
    pub(crate) fn new(strict: bool, genesis: S, tape: Rc<RefCell<Tape>>, principals: &[PublicKey]) -> Checks<S> {
        Checks {
            tape,
            looked: 0,
            agreement: agreement::Agreement::default(),
            answers: answers::Answers::new(genesis, strict),
            authority: authority::Authority::new(principals),
            bounds: bounds::Bounds::new(),
            durable: durable::Durable::default(),
            hours: hours::Hours::default(),
            once: once::Once::default(),
            progress: progress::Progress::default(),
            violation: None,
        }
    }

    fn judge(&mut self, invariant: Invariant, verdict: Verdict) {
        if let (Err(what), None) = (verdict, &self.violation) {
            self.violation = Some(Violation { invariant, what });
        }
    }

    /// A client signed a request: a correct one submits it, or a lying one says it.
    pub(crate) fn signed(&mut self, request: &Request) {
        let op = Digest::of(&request.op);
        let name = (request.client, request.session, request.timestamp);
        self.authority.signed(op, request.client);
        self.answers.named(name, op);
        self.once.named(op, name);
    }

    /// A correct client submits an operation, under whatever name. Gives how far the history had got
    /// that anybody can know of.
    pub(crate) fn submitted(&mut self) -> Option<u64> {
        self.answers.known_through()
    }

    /// A correct client was told the result of its operation, submitted when the history was known
    /// through `floor`.
    pub(crate) fn done(&mut self, op: &[u8], floor: Option<u64>, seq: Seq, result: &[u8]) {
        match self.answers.done(Digest::of(op), floor, seq, result) {
            Ok(Some(place)) => self.durable.acked(place, seq),
            Ok(None) => {}
            Err(what) => self.judge(Invariant::Linearizability, Err(what)),
        }
    }

    /// A correct client, whom the service knows, was refused.
    pub(crate) fn refused(&mut self, why: RefusedWhy) {
        self.judge(Invariant::Linearizability, Err(format!("a client was refused what it may do: {why:?}")));
    }

    /// A correct replica says something to another.
    pub(crate) fn said(&mut self, who: ReplicaId, message: &Message) {
        let verdict = self.agreement.said(who, message);
        self.judge(Invariant::Agreement, verdict);
    }

    /// A correct replica hands a record to its disk.
    pub(crate) fn persisted(&mut self, record: &Record) {
        let executed = match record {
            Record::Committed(place) => Some((place.seq, place.digest)),
            Record::Learned(committed) => Some((committed.seq, committed.digest())),
            _ => None,
        };
        if let Record::Committed(place) = record {
            self.agreement.committed(place.seq, place.view);
        }
        if let Some((seq, digest)) = executed {
            let verdict = self.agreement.executed(seq, digest);
            self.judge(Invariant::Agreement, verdict);
        }
    }

    /// A correct replica tells its node something.
    pub(crate) fn event(&mut self, who: ReplicaId, event: &Event, is_correct: impl Fn(ReplicaId) -> bool) {
        match event {
            Event::StableCheckpoint { seq, digest } => {
                let verdict = self.agreement.stable(*seq, *digest);
                self.judge(Invariant::Agreement, verdict);
            }
            Event::Executed { seq, requests } => {
                let verdict = self.once.executed(*seq, *requests);
                self.judge(Invariant::Once, verdict);
            }
            Event::Misbehaved { who: accused, .. } if is_correct(*accused) => {
                self.judge(
                    Invariant::Agreement,
                    Err(format!("{who:?} has evidence against {accused:?}, which is correct")),
                );
            }
            Event::Diverged(divergence) => {
                self.judge(Invariant::Agreement, Err(format!("{who:?} is correct and diverged: {divergence:?}")));
            }
            Event::Reply { client, session, reply } => {
                let digest = match &reply.result {
                    ReplyResult::Full(bytes) => Digest::of(bytes),
                    ReplyResult::DigestOnly(digest) => *digest,
                    ReplyResult::Refused(_) => return,
                };
                let name = (*client, *session, reply.timestamp);
                let verdict = self.answers.replied(who, name, reply.seq, digest);
                self.judge(Invariant::Linearizability, verdict);
            }
            _ => {}
        }
    }

    /// A correct replica has done something, at this time by its clock: is what it applied the one history?
    pub(crate) fn stepped(&mut self, who: ReplicaId, clock: Time, core: &Replica<Watched<S>>) {
        self.hours.read(clock);
        self.look();
        let state = core.state();
        let verdict = self.agreement.state(who, state.applied, state.chain, &self.tape.borrow());
        self.judge(Invariant::Agreement, verdict);
    }

    /// What a correct replica says of itself.
    pub(crate) fn status(&mut self, who: ReplicaId, status: &ReplicaStatus) {
        let verdict = self.bounds.status(who, status);
        self.judge(Invariant::Bounds, verdict);
    }

    /// Looks at what is new on the tape.
    fn look(&mut self) {
        let tape = self.tape.clone();
        let tape = tape.borrow();
        while let Some(entry) = tape.entries.get(self.looked) {
            let op = Digest::of(&entry.op);
            let verdict = self.authority.applied(op, &entry.who);
            self.judge(Invariant::Authority, verdict);
            let verdict = self.once.applied(op);
            self.judge(Invariant::Once, verdict);
            let verdict = self.answers.applied(entry, op);
            self.judge(Invariant::Linearizability, verdict);
            let verdict = self.hours.applied(entry.at);
            self.judge(Invariant::Linearizability, verdict);
            self.looked += 1;
        }
    }

    /// Everybody is down: what was promised must be on enough disks of correct replicas.
    pub(crate) fn all_down<'a>(&mut self, weak: usize, disks: impl Iterator<Item = &'a [Record]>) {
        let verdict = self.durable.on_disks(weak, disks);
        self.judge(Invariant::Durability, verdict);
    }

    /// The end: a correct replica has all that any client was told, in the state that follows from it.
    pub(crate) fn settled(&mut self, who: ReplicaId, core: &Replica<Watched<S>>) {
        let mut state = core.state().clone();
        let verdict = self.durable.held(who, state.applied);
        self.judge(Invariant::Durability, verdict);
        let verdict = self.answers.finish();
        self.judge(Invariant::Linearizability, verdict);
        if state.applied as usize == self.looked {
            let verdict = self.answers.state(who, state.inner.digest());
            self.judge(Invariant::Linearizability, verdict);
        }
    }

    /// So much has happened.
    pub(crate) fn events(&mut self, events: u64) {
        self.judge(Invariant::Bounds, bounds::Bounds::events(events));
    }

    /// What a correct replica sent in all, for so much work and time.
    pub(crate) fn traffic(&mut self, who: ReplicaId, sent: u64, allowed: u64) {
        let verdict = self.bounds.traffic(who, sent, allowed);
        self.judge(Invariant::Bounds, verdict);
    }

    /// The world says that something did not happen in time.
    pub(crate) fn stuck(&mut self, now: Time, what: String) {
        let verdict = self.progress.stuck(now, what);
        self.judge(Invariant::Progress, verdict);
    }

    /// The view of a correct replica, now that the faults have stopped.
    pub(crate) fn view(&mut self, who: ReplicaId, core: &Replica<Watched<S>>) {
        let verdict = self.progress.view(who, core.status().view);
        self.judge(Invariant::Progress, verdict);
    }

    /// How much was applied, and how much of that was ever told to a client.
    pub(crate) fn applied(&self) -> usize {
        self.looked
    }
}
