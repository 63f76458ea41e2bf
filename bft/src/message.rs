//! What replicas say to each other.

use base::merkle::{FAN_OUT, Prefix};
use base::{
    Decode, DecodeError, Digest, Encode, Reader, ReplicaId, Seq, Signable, Signed, Time, View, canonical_enum,
    canonical_struct,
};
use bytes::Bytes;

use crate::mark::Mark;
use crate::params::{REPLICAS_MAX, ROWS_MAX, WINDOW_MAX};
use crate::record::StableProof;
use crate::rejoin::{Rejoin, Welcome};
use crate::request::{Batch, Request};
use crate::view_change::{NewView, ViewChange};

/// A message between replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The primary's proposal. Anybody may pass it on: its signature says whose it is.
    Proposal(Proposal),
    /// A backup accepted a proposal.
    Prepare(Signed<Prepare>),
    /// The sender holds a prepared certificate. Authenticated by the link alone: it is proof to its
    /// receiver and to nobody else, and nothing else is asked of it.
    Commit(Commit),
    /// The sender's state at a checkpoint.
    Checkpoint(Signed<Checkpoint>),
    /// Where the sender stands, so that others may send it what it lacks.
    Status(Status),
    /// The sender vouches that this batch was committed.
    Committed(Committed),
    /// A client's request, passed on by a backup to the primary.
    Forward(Signed<Request>),
    /// The sender asks for a new view.
    ViewChange(Signed<ViewChange>),
    /// The new view's primary starts it.
    NewView(Signed<NewView>),
    /// The sender lacks something that it knows the digest of.
    Ask(Want),
    /// A batch that was asked for.
    Body(Body),
    /// The sender's stable checkpoint: what it has instead of the batches before it.
    Stable(StableProof),
    /// The first part of a checkpoint that was asked for.
    Head(Head),
    /// A part of a checkpoint that was asked for.
    Part(Part),
    /// The sender does not keep the checkpoint asked for.
    Gone(Seq),
    /// The sender lost its log.
    Rejoin(Signed<Rejoin>),
    /// The sender knows that the receiver did.
    Welcome(Welcome),
    /// The sender's state at a mark.
    Mark(Signed<Mark>),
}
canonical_enum!(Message {
    0 => Proposal(proposal),
    1 => Prepare(prepare),
    2 => Commit(commit),
    3 => Checkpoint(checkpoint),
    4 => Status(status),
    5 => Committed(committed),
    6 => Forward(request),
    7 => ViewChange(view_change),
    8 => NewView(new_view),
    9 => Ask(want),
    10 => Body(body),
    11 => Stable(proof),
    12 => Head(head),
    13 => Part(part),
    14 => Gone(seq),
    15 => Rejoin(rejoin),
    16 => Welcome(welcome),
    17 => Mark(mark),
});

/// ⟨PRE-PREPARE, v, n, d⟩ and the time agreed with it (TOCS'02 §4.1, §4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrePrepare {
    /// The view it is proposed in.
    pub view: View,
    /// The place in the order.
    pub seq: Seq,
    /// The time at which the batch is executed: the non-deterministic choice of TOCS'02 §4.6.
    pub at: Time,
    /// The digest of the batch.
    pub batch: Digest,
}
canonical_struct!(PrePrepare { view, seq, at, batch });

impl Signable for PrePrepare {
    const DOMAIN: &'static str = "pre-prepare";
}

impl PrePrepare {
    /// What is agreed on: place, time and batch, but not the view, so that a later view can take
    /// over what an earlier one prepared. This is the `d` of prepares and commits.
    #[must_use]
    pub fn digest(&self) -> Digest {
        agreed_digest(self.seq, self.at, self.batch)
    }
}

pub(crate) fn agreed_digest(seq: Seq, at: Time, batch: Digest) -> Digest {
    Digest::of_encoded(&(seq, at, batch))
}

/// A signed pre-prepare with the batch it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Signed by the primary of its view.
    pub header: Signed<PrePrepare>,
    /// The batch. That it has the digest that the header names is not checked at the door: who
    /// sends another one is ignored, whoever signed the header.
    pub batch: Batch,
}
canonical_struct!(Proposal { header, batch });

/// ⟨PREPARE, v, n, d, i⟩.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// The view.
    pub view: View,
    /// The place in the order.
    pub seq: Seq,
    /// [`PrePrepare::digest`] of the accepted proposal.
    pub digest: Digest,
    /// Who says so.
    pub replica: ReplicaId,
}
canonical_struct!(Prepare { view, seq, digest, replica });

impl Signable for Prepare {
    const DOMAIN: &'static str = "prepare";
}

/// ⟨COMMIT, v, n, d, i⟩; `i` is who the link says.
///
/// A prepared certificate fixes the digest, so it need not be said (libbyz does not say it). It is
/// said all the same: a commit then tells by itself what it commits to, whichever arrives first,
/// it or the proposal, and a log line of a disagreement shows what the disagreement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The view.
    pub view: View,
    /// The place in the order.
    pub seq: Seq,
    /// [`PrePrepare::digest`] of what is prepared.
    pub digest: Digest,
}
canonical_struct!(Commit { view, seq, digest });

/// ⟨CHECKPOINT, n, d, i⟩ (TOCS'02 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last batch that the state includes.
    pub seq: Seq,
    /// The digest of place, time, state and client table.
    pub digest: Digest,
    /// Whose state it is.
    pub replica: ReplicaId,
}
canonical_struct!(Checkpoint { seq, digest, replica });

impl Signable for Checkpoint {
    const DOMAIN: &'static str = "checkpoint";
}

/// STATUS (TOCS'02 §5.2): where a replica stands. Said over an authenticated link, so it can't be
/// replayed by anyone but its sender, who gains nothing by it: answers are bounded in bytes and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// How many STATUS messages the sender sent since it started; 0 means it has just restarted.
    pub round: u64,
    /// The sender's view.
    pub view: View,
    /// Whether the sender is in it; else it has asked for it, and waits for its new view.
    pub active: bool,
    /// Where the sender's stable checkpoint must be before it votes again: it lost its log.
    pub rejoins: Option<Seq>,
    /// Everything up to here is executed.
    pub last_executed: Seq,
    /// The stable checkpoint (h).
    pub low_water_mark: Seq,
    /// The first of the executed batches that the sender can still vouch for, which go on to `last_executed`.
    pub oldest_retained: Seq,
    /// What the sender has for the places that still need votes, as far as it knows of any: those
    /// after `last_executed` and `low_water_mark`.
    pub slots: Vec<SlotState>,
}

impl Status {
    /// What the sender has for `seq`.
    #[must_use]
    pub fn slot(&self, seq: Seq) -> SlotState {
        let before = self.last_executed.max(self.low_water_mark);
        if seq <= before {
            return SlotState::Committed;
        }
        let index = seq.0 - before.0 - 1;
        usize::try_from(index).ok().and_then(|index| self.slots.get(index)).copied().unwrap_or(SlotState::Empty)
    }

    /// The last place that the sender knows something of.
    #[must_use]
    pub fn last_known(&self) -> Seq {
        Seq(self.last_executed.max(self.low_water_mark).0.saturating_add(self.slots.len() as u64))
    }
}

impl Encode for Status {
    fn encode(&self, out: &mut Vec<u8>) {
        self.round.encode(out);
        self.view.encode(out);
        self.active.encode(out);
        self.rejoins.encode(out);
        self.last_executed.encode(out);
        self.low_water_mark.encode(out);
        self.oldest_retained.encode(out);
        self.slots.encode(out);
    }
}

impl Decode for Status {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Status {
            round: u64::decode(input)?,
            view: View::decode(input)?,
            active: bool::decode(input)?,
            rejoins: Option::decode(input)?,
            last_executed: Seq::decode(input)?,
            low_water_mark: Seq::decode(input)?,
            oldest_retained: Seq::decode(input)?,
            slots: input.seq_max("slot states", WINDOW_MAX as usize)?,
        })
    }
}

/// How far a replica has come with one place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotState {
    /// It has no proposal.
    Empty,
    /// It has the proposal.
    Proposed,
    /// It has a prepared certificate.
    Prepared,
    /// It is committed-local.
    Committed,
}
canonical_enum!(SlotState { 0 => Empty, 1 => Proposed, 2 => Prepared, 3 => Committed });

/// A batch that was committed, vouched for by whoever sends it. `f + 1` who vouch alike include a
/// correct replica, which committed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The place in the order.
    pub seq: Seq,
    /// The view in which the sender committed it; two correct senders may differ in this only.
    pub view: View,
    /// The agreed time.
    pub at: Time,
    /// The batch.
    pub batch: Batch,
}
canonical_struct!(Committed { seq, view, at, batch });

impl Committed {
    /// What is agreed on: [`PrePrepare::digest`] of the proposal that was committed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        agreed_digest(self.seq, self.at, self.batch.digest())
    }
}

/// What a replica lacks and knows the digest of. Answers are bounded like those to a STATUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// View changes that a new view refers to.
    ViewChanges {
        /// The new view.
        view: View,
        /// Whose.
        of: Vec<ReplicaId>,
    },
    /// Batches that a new view proposes.
    Batches {
        /// Where they are proposed, and their digests.
        places: Vec<(Seq, Digest)>,
    },
    /// The first part of a checkpoint.
    Head {
        /// The checkpoint's place.
        seq: Seq,
    },
    /// Another part of it.
    Part {
        /// The checkpoint's place.
        seq: Seq,
        /// Which part.
        name: PartName,
    },
}

impl Encode for Want {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Want::ViewChanges { view, of } => {
                out.push(0);
                view.encode(out);
                of.encode(out);
            }
            Want::Batches { places } => {
                out.push(1);
                places.encode(out);
            }
            Want::Head { seq } => {
                out.push(2);
                seq.encode(out);
            }
            Want::Part { seq, name } => {
                out.push(3);
                seq.encode(out);
                name.encode(out);
            }
        }
    }
}

impl Decode for Want {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => {
                let view = View::decode(input)?;
                Ok(Want::ViewChanges { view, of: input.seq_max("senders", REPLICAS_MAX)? })
            }
            1 => Ok(Want::Batches { places: input.seq_max("places", WINDOW_MAX as usize)? }),
            2 => Ok(Want::Head { seq: Seq::decode(input)? }),
            3 => Ok(Want::Part { seq: Seq::decode(input)?, name: PartName::decode(input)? }),
            tag => Err(DecodeError::Tag { what: "want", tag: u64::from(tag) }),
        }
    }
}

/// A batch that was asked for. Its digest is all the proof it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Where it is proposed.
    pub seq: Seq,
    /// The batch.
    pub batch: Batch,
}
canonical_struct!(Body { seq, batch });

/// The first part of a checkpoint: what its digest is the digest of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The checkpoint's place.
    pub seq: Seq,
    /// The agreed time there.
    pub at: Time,
    /// The digest of the state.
    pub state: Digest,
    /// The digest of the client table.
    pub table: Digest,
}
canonical_struct!(Head { seq, at, state, table });

/// Which of a checkpoint's two trees of digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// The state's.
    State,
    /// The client table's.
    Table,
}
canonical_enum!(Tree { 0 => State, 1 => Table });

/// A part of a checkpoint: all that is below one node of a tree of digests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartName {
    /// Which tree.
    pub tree: Tree,
    /// The way to the node.
    pub at: Prefix,
}
canonical_struct!(PartName { tree, at });

/// A part that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The checkpoint's place.
    pub seq: Seq,
    /// Which part.
    pub name: PartName,
    /// What it is.
    pub content: Content,
}
canonical_struct!(Part { seq, name, content });

/// What a part is: for large ones, the digests of the parts below; else the rows themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The digests of the children, where there are any.
    Fork(Box<[Option<Digest>; FAN_OUT]>),
    /// All rows: names and encoded values.
    Rows(Vec<(Bytes, Bytes)>),
}

impl Encode for Content {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Content::Fork(children) => {
                out.push(0);
                children.iter().for_each(|child| child.encode(out));
            }
            Content::Rows(rows) => {
                out.push(1);
                rows.encode(out);
            }
        }
    }
}

impl Decode for Content {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => {
                let mut children = [None; FAN_OUT];
                for child in &mut children {
                    *child = Option::decode(input)?;
                }
                Ok(Content::Fork(Box::new(children)))
            }
            1 => Ok(Content::Rows(input.seq_max("rows", ROWS_MAX)?)),
            tag => Err(DecodeError::Tag { what: "part", tag: u64::from(tag) }),
        }
    }
}
