//! The two shapes every core has.
//!
//! A [`Protocol`] is a deterministic machine: inputs and deadlines in, [`Effects`] out. It touches
//! nothing. One driver (`server`) and one simulator (`tests`) run every protocol, and a Byzantine
//! node is an honest one whose effects a function has tampered with.
//!
//! A [`StateMachine`] is what a replication protocol replicates.

use crate::hash::Digest;
use crate::keys::PublicKey;
use crate::merkle::Trie;
use crate::time::Time;

/// A protocol as a pure state machine.
///
/// The driver's duties:
/// 1. `restore` with the records of stable storage, in the order they were persisted;
/// 2. hand over every input with the current time, and call `on_deadline` once `deadline()` has
///    passed; one at a time;
/// 3. after each call carry out the effects in this order: make `persist` durable, **then** `send`,
///    then act on `events`. *Write, then speak.* Effects of several calls may share one sync.
pub trait Protocol: Sized {
    /// What never changes while it runs: keys, sizes, timeouts.
    type Params;
    /// What must be durable before the world hears of it.
    type Record;
    /// What the world hands in: checked messages and commands.
    type Input;
    /// What it sends to its like.
    type Message;
    /// What it tells its own node.
    type Event;
    /// Why records do not add up to a state.
    type Corrupt;

    /// The machine as it was when it had persisted these records.
    ///
    /// # Errors
    /// If the records are not ones that a machine with these parameters wrote.
    fn restore(params: Self::Params, records: Vec<Self::Record>) -> Result<Self, Self::Corrupt>;

    /// Takes one input. A stranger's mistakes are events, never errors and never panics.
    fn handle(&mut self, now: Time, input: Self::Input, fx: &mut Effects<Self>);

    /// When it wants to be woken, if at all.
    fn deadline(&self) -> Option<Time>;

    /// Wakes it; called once `deadline()` is not after `now`.
    fn on_deadline(&mut self, now: Time, fx: &mut Effects<Self>);
}

/// Whom a message is for, as an index among the protocol's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To<Peer> {
    /// Every other member.
    All,
    /// One member.
    One(Peer),
}

/// A message and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send<Peer, M> {
    /// Whom it is for.
    pub to: To<Peer>,
    /// What it says.
    pub message: M,
}

/// What a protocol wants done, in this order: persist, send, events.
#[derive(Debug)]
pub struct Effects<P: Protocol> {
    /// To be made durable before anything is sent.
    pub persist: Vec<P::Record>,
    /// To be sent once `persist` is durable.
    pub send: Vec<Send<crate::id::ReplicaId, P::Message>>,
    /// For the node itself, once `persist` is durable.
    pub events: Vec<P::Event>,
}

impl<P: Protocol> Default for Effects<P> {
    fn default() -> Self {
        Effects { persist: Vec::new(), send: Vec::new(), events: Vec::new() }
    }
}

impl<P: Protocol> Effects<P> {
    /// No effects yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.persist.is_empty() && self.send.is_empty() && self.events.is_empty()
    }

    /// Sends to one member.
    pub fn send_to(&mut self, to: crate::id::ReplicaId, message: P::Message) {
        self.send.push(Send { to: To::One(to), message });
    }

    /// Sends to every other member.
    pub fn broadcast(&mut self, message: P::Message) {
        self.send.push(Send { to: To::All, message });
    }
}

/// A deterministic service. Two machines that applied the same operations are equal to the bit:
/// no clock, no randomness, no map order of their own.
pub trait StateMachine: Clone {
    /// Applies one operation signed by `who`, at the time agreed through the log. The answer says
    /// whether it was refused; it never fails otherwise and never panics, whatever `op` holds.
    fn apply(&mut self, at: Time, who: &PublicKey, op: &[u8]) -> Vec<u8>;

    /// Whether requests signed by `who` are worth ordering at all.
    fn admits(&self, who: &PublicKey) -> bool;

    /// The digest of the whole state. May bring caches up to date, hence `&mut`.
    fn digest(&mut self) -> Digest;

    /// The state as byte strings, one a non-empty partition, in partition order.
    fn snapshot(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_>;

    /// The state that [`StateMachine::snapshot`] gave these partitions of.
    ///
    /// # Errors
    /// If the bytes are not such a snapshot.
    fn restore(&self, partitions: &[Vec<u8>]) -> Result<Self, crate::codec::DecodeError>;

    /// The tree of digests over the state's rows, brought up to date: its root is the state's digest
    /// and a leaf the digest of the row's encoded value. A state that has none can't be fetched from
    /// peers.
    fn tree(&mut self) -> Option<&Trie> {
        None
    }

    /// The encoded value of the row with this name.
    fn row(&self, _name: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Sets rows to these values, or removes them. What comes of it need not be a state that any
    /// machine was in, before all that differs is patched: it is for its tree alone until then.
    ///
    /// # Errors
    /// If a name or a value is not one of a row.
    fn patch(&mut self, _rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), crate::codec::DecodeError> {
        Err(crate::codec::DecodeError::Invalid { what: "row of a state without rows" })
    }
}
