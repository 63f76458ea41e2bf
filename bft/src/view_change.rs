//! The messages of a view change (TOCS'02 §4.5): their types, encoding and signatures. The
//! protocol that fills them is not here yet; replicas answer them with `Ignored`.

use base::{Decode, DecodeError, Digest, Encode, Reader, ReplicaId, Seq, Signable, Signed, View, canonical_struct};

use crate::params::{MESSAGE_MAX, REPLICAS_MAX, WINDOW_MAX};

/// Most checkpoints a replica holds at a time, with room: L / K is 2.
pub const CHECKPOINTS_MAX: usize = 16;
/// Most entries of the Q set: a few digests a sequence number (`f + 2` are kept, TOCS'02 §4.5.3).
pub const PRE_PREPARED_MAX: usize = 4 * WINDOW_MAX as usize;

/// A checkpoint that a replica holds: an element of the C set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldCheckpoint {
    /// The last batch that the state includes.
    pub seq: Seq,
    /// The checkpoint's digest.
    pub digest: Digest,
}
canonical_struct!(HeldCheckpoint { seq, digest });

/// A digest that prepared, or pre-prepared, at a replica: an element of the P or the Q set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The place in the order.
    pub seq: Seq,
    /// [`crate::PrePrepare::digest`] of the proposal.
    pub digest: Digest,
    /// The last view in which it did.
    pub view: View,
}
canonical_struct!(Vote { seq, digest, view });

/// ⟨VIEW-CHANGE, v+1, h, C, P, Q, i⟩.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewChange {
    /// The view asked for.
    pub view: View,
    /// The sender's stable checkpoint (h).
    pub low_water_mark: Seq,
    /// C: the checkpoints held.
    pub checkpoints: Vec<HeldCheckpoint>,
    /// P: for each place, what prepared last.
    pub prepared: Vec<Vote>,
    /// Q: for each place, what was pre-prepared, each digest with its last view.
    pub pre_prepared: Vec<Vote>,
    /// Who asks.
    pub replica: ReplicaId,
}

impl Signable for ViewChange {
    const DOMAIN: &'static str = "view-change";
}

impl Encode for ViewChange {
    fn encode(&self, out: &mut Vec<u8>) {
        self.view.encode(out);
        self.low_water_mark.encode(out);
        self.checkpoints.encode(out);
        self.prepared.encode(out);
        self.pre_prepared.encode(out);
        self.replica.encode(out);
    }
}

impl Decode for ViewChange {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(ViewChange {
            view: View::decode(input)?,
            low_water_mark: Seq::decode(input)?,
            checkpoints: input.seq_max("checkpoints", CHECKPOINTS_MAX)?,
            prepared: input.seq_max("prepared set", WINDOW_MAX as usize)?,
            pre_prepared: input.seq_max("pre-prepared set", PRE_PREPARED_MAX)?,
            replica: ReplicaId::decode(input)?,
        })
    }
}

/// What the new view proposes at one place; a null request where `digest` is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The place in the order.
    pub seq: Seq,
    /// [`crate::PrePrepare::digest`] of the proposal taken over.
    pub digest: Option<Digest>,
}
canonical_struct!(Chosen { seq, digest });

/// ⟨NEW-VIEW, v+1, V, X⟩.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewView {
    /// The view that starts.
    pub view: View,
    /// V: the view changes it follows from.
    pub view_changes: Vec<Signed<ViewChange>>,
    /// X: the checkpoint it starts from.
    pub checkpoint: HeldCheckpoint,
    /// X: what is proposed after the checkpoint.
    pub chosen: Vec<Chosen>,
}

impl Signable for NewView {
    const DOMAIN: &'static str = "new-view";
}

impl Encode for NewView {
    fn encode(&self, out: &mut Vec<u8>) {
        self.view.encode(out);
        self.view_changes.encode(out);
        self.checkpoint.encode(out);
        self.chosen.encode(out);
    }
}

impl Decode for NewView {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let available = input.remaining();
        let view = View::decode(input)?;
        let count = u32::decode(input)? as usize;
        if count > REPLICAS_MAX {
            return Err(DecodeError::TooLong { what: "view changes", len: count, max: REPLICAS_MAX });
        }
        let mut view_changes = Vec::with_capacity(count);
        for _ in 0..count {
            view_changes.push(Signed::decode(input)?);
            let len = available - input.remaining();
            if len > MESSAGE_MAX {
                return Err(DecodeError::TooLong { what: "new view", len, max: MESSAGE_MAX });
            }
        }
        let checkpoint = HeldCheckpoint::decode(input)?;
        Ok(NewView { view, view_changes, checkpoint, chosen: input.seq_max("chosen", WINDOW_MAX as usize)? })
    }
}
