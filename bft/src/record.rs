//! What must be durable before the world hears of it.

use base::{
    Decode, DecodeError, Digest, Encode, PublicKey, Reader, ReplicaId, Seq, Signed, Time, View, canonical_enum,
    canonical_struct,
};
use bytes::Bytes;

use crate::message::{Body, Checkpoint, Committed, Prepare, Proposal};
use crate::params::{REPLICAS_MAX, RESULT_MAX};
use crate::rejoin::Rejoin;
use crate::view_change::{NewView, Prepared, ViewChange};

/// Most bytes of state in one [`Snapshot::State`] piece.
pub const SNAPSHOT_PIECE_MAX: usize = 1024 * 1024;

/// One durable record. Records are replayed in the order in which they were persisted.
///
/// All are promises, on which what is sent beside them depends, but for `Committed` and `Learned`:
/// those repeat what a quorum's durable certificates imply, and spare a restart from asking for it
/// again. A driver may let them wait for the next sync, in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A piece of a snapshot; only at the start, and all of it (see [`crate::Condensed`]).
    Snapshot(Snapshot),
    /// This proposal was made, or accepted, here. A backup's own prepare follows from it: signing
    /// is deterministic, so it need not be kept.
    Proposed(Proposal),
    /// This proposal prepared here, by these prepares. The own commit follows from it.
    Prepared(Certificate),
    /// The proposal accepted for this place was committed and executed. (In a condensed log, for a
    /// place that the snapshot includes: its batch is retained for peers.)
    Committed(Place),
    /// This batch was learned from `f + 1` peers as committed, and executed. (In a condensed log,
    /// for a place that the snapshot includes: it is retained for peers.)
    Learned(Committed),
    /// This replica's own checkpoint.
    Checkpoint(Signed<Checkpoint>),
    /// A checkpoint became stable.
    Stable(StableProof),
    /// This replica's state is not the others'.
    Diverged(Divergence),
    /// This replica asked for a view: it votes in no lower one.
    Left(View),
    /// A view change that the new view of the next `Entered` follows from.
    Shown(Signed<ViewChange>),
    /// A view began here. The prepares for what it proposes follow from it, where the batch was here;
    /// for the others there will be a `Proposed`.
    Entered(Signed<NewView>),
    /// In a condensed log: what prepared last at a place, in a view before this one.
    PriorPrepared(Prepared),
    /// In a condensed log: a batch accepted at a place in a view before this one.
    PriorBatch(Body),
    /// This replica began a life with this number. If it is not its first, it lost its log, and is
    /// mute until `Rejoined`. (The driver writes this one, into an empty log.)
    Life {
        /// This replica.
        replica: ReplicaId,
        /// The number; 0 for the first life.
        life: u64,
    },
    /// This replica votes again once its stable checkpoint is here.
    Beyond(Seq),
    /// This replica votes again.
    Rejoined,
    /// Another replica began a new life: nothing of its earlier ones counts.
    Known(Signed<Rejoin>),
}
canonical_enum!(Record {
    0 => Snapshot(piece),
    1 => Proposed(proposal),
    2 => Prepared(certificate),
    3 => Committed(place),
    4 => Learned(committed),
    5 => Checkpoint(checkpoint),
    6 => Stable(proof),
    7 => Diverged(divergence),
    8 => Left(view),
    9 => Shown(view_change),
    10 => Entered(new_view),
    11 => PriorPrepared(prepared),
    12 => PriorBatch(body),
    13 => Life { replica, life },
    14 => Beyond(seq),
    15 => Rejoined,
    16 => Known(rejoin),
});

/// A prepared certificate: beside the proposal, `2f` prepares of distinct backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The view.
    pub view: View,
    /// The place in the order.
    pub seq: Seq,
    /// The prepares, all of one digest.
    pub prepares: Vec<Signed<Prepare>>,
}

impl Encode for Certificate {
    fn encode(&self, out: &mut Vec<u8>) {
        self.view.encode(out);
        self.seq.encode(out);
        self.prepares.encode(out);
    }
}

impl Decode for Certificate {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Certificate {
            view: View::decode(input)?,
            seq: Seq::decode(input)?,
            prepares: input.seq_max("prepares", REPLICAS_MAX)?,
        })
    }
}

/// Which proposal, by view, place and digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The view.
    pub view: View,
    /// The place in the order.
    pub seq: Seq,
    /// [`crate::PrePrepare::digest`] of the proposal.
    pub digest: Digest,
}
canonical_struct!(Place { view, seq, digest });

/// `2f + 1` checkpoints of one place and digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StableProof {
    /// The place.
    pub seq: Seq,
    /// The digest.
    pub digest: Digest,
    /// The checkpoints.
    pub checkpoints: Vec<Signed<Checkpoint>>,
}

impl Encode for StableProof {
    fn encode(&self, out: &mut Vec<u8>) {
        self.seq.encode(out);
        self.digest.encode(out);
        self.checkpoints.encode(out);
    }
}

impl Decode for StableProof {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(StableProof {
            seq: Seq::decode(input)?,
            digest: Digest::decode(input)?,
            checkpoints: input.seq_max("checkpoints", REPLICAS_MAX)?,
        })
    }
}

/// A checkpoint of this replica that `2f + 1` others contradict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The checkpoint's place.
    pub seq: Seq,
    /// The digest here.
    pub mine: Digest,
    /// The digest of the others.
    pub theirs: Digest,
}
canonical_struct!(Divergence { seq, mine, theirs });

/// A piece of a snapshot, in this order: `Begin`, all `State`, then for every principal one
/// `Principal`, and after it for each of its sessions one `Session` and its `Executed`; `End`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// A snapshot starts.
    Begin {
        /// The view the replica is in, if an `Entered` follows, or asks for. (View 0 begins by itself.)
        view: View,
        /// The last batch that the state includes.
        seq: Seq,
        /// The agreed time of that batch.
        at: Time,
    },
    /// Bytes of a partition of the state, at most [`SNAPSHOT_PIECE_MAX`].
    State {
        /// Whether the partition ends with these bytes.
        ends: bool,
        /// The bytes.
        bytes: Bytes,
    },
    /// A principal of the client table.
    Principal {
        /// Its key.
        client: PublicKey,
        /// See [`crate::RefusedWhy::Stale`].
        floor: u64,
    },
    /// A session of the principal before it.
    Session {
        /// Its number.
        session: u64,
        /// See [`crate::RefusedWhy::Stale`].
        floor: u64,
        /// Where a request of it was executed last.
        last_seq: Seq,
    },
    /// A request executed in the session before it.
    Executed {
        /// Its timestamp.
        timestamp: u64,
        /// Where in the order it was executed.
        seq: Seq,
        /// The digest of the result.
        digest: Digest,
        /// The result, if it is kept.
        result: Option<CachedResult>,
    },
    /// The snapshot is whole.
    End {
        /// The checkpoint digest of what it holds.
        digest: Digest,
    },
}

canonical_enum!(Snapshot {
    0 => Begin { view, seq, at },
    1 => State { ends, bytes },
    2 => Principal { client, floor },
    3 => Session { session, floor, last_seq },
    4 => Executed { timestamp, seq, digest, result },
    5 => End { digest },
});

/// A result kept for retransmission, at most [`RESULT_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedResult(pub Bytes);

impl Encode for CachedResult {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for CachedResult {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(CachedResult(Bytes::copy_from_slice(input.bytes_max("result", RESULT_MAX)?)))
    }
}
