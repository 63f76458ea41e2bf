//! The messages of a view change, and the choice that follows from them (OSDI'99 §4.4).
//!
//! This is the variant with signatures: what a replica says it prepared comes with the signed
//! pre-prepare and the `2f` signed prepares that prove it, and its checkpoint with `2f + 1` signed
//! checkpoints. So nobody can invent a P entry, the choice never has to wait for further witnesses,
//! and the Q set of the MAC variant (TOCS'02 §4.5) has no purpose. See ADR 7.

use std::collections::BTreeMap;

use base::{Decode, DecodeError, Digest, Encode, Quorums, Reader, ReplicaId, Seq, Signable, Signed, Time, View};

use crate::message::{PrePrepare, Prepare};
use crate::params::{MESSAGE_MAX, REPLICAS_MAX, WINDOW_MAX};
use crate::record::StableProof;
use crate::request::Batch;

/// Proof that a proposal prepared: its signed pre-prepare, and `2f` prepares of distinct backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The proposal, by digest; whoever accepted it has the batch.
    pub header: Signed<PrePrepare>,
    /// The prepares, all of one digest.
    pub prepares: Vec<Signed<Prepare>>,
}

impl Prepared {
    /// Bytes that a certificate of a group with these quorums takes up.
    pub(crate) fn encoded_len(quorums: Quorums) -> usize {
        (56 + 64) + 4 + quorums.prepares() * (50 + 64)
    }
}

impl Encode for Prepared {
    fn encode(&self, out: &mut Vec<u8>) {
        self.header.encode(out);
        self.prepares.encode(out);
    }
}

impl Decode for Prepared {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Prepared { header: Signed::decode(input)?, prepares: input.seq_max("prepares", REPLICAS_MAX)? })
    }
}

/// ⟨VIEW-CHANGE, v+1, n, C, P, i⟩.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewChange {
    /// The view asked for.
    pub view: View,
    /// n and C: the sender's stable checkpoint and what proves it; `None` at the beginning of time.
    pub stable: Option<StableProof>,
    /// P: for each place after it, in order, what prepared last.
    pub prepared: Vec<Prepared>,
    /// Who asks.
    pub replica: ReplicaId,
    /// Which life of it: see [`crate::Rejoin`].
    pub life: u64,
}

impl ViewChange {
    /// The sender's stable checkpoint (h).
    #[must_use]
    pub fn low_water_mark(&self) -> Seq {
        self.stable.as_ref().map_or(Seq(0), |proof| proof.seq)
    }

    /// The name by which a new view refers to this message.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_encoded(self)
    }
}

impl Signable for ViewChange {
    const DOMAIN: &'static str = "view-change";
}

impl Encode for ViewChange {
    fn encode(&self, out: &mut Vec<u8>) {
        self.view.encode(out);
        self.stable.encode(out);
        self.prepared.encode(out);
        self.replica.encode(out);
        self.life.encode(out);
    }
}

impl Decode for ViewChange {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let available = input.remaining();
        let view = View::decode(input)?;
        let stable = Option::decode(input)?;
        let prepared = input.seq_max("prepared set", WINDOW_MAX as usize)?;
        let (replica, life) = <(ReplicaId, u64)>::decode(input)?;
        let change = ViewChange { view, stable, prepared, replica, life };
        let len = available - input.remaining();
        if len > MESSAGE_MAX {
            return Err(DecodeError::TooLong { what: "view change", len, max: MESSAGE_MAX });
        }
        Ok(change)
    }
}

/// ⟨NEW-VIEW, v+1, V, O⟩.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewView {
    /// The view that starts.
    pub view: View,
    /// V: the view changes it follows from, by sender and [`ViewChange::digest`], in order. Whoever
    /// lacks one asks for it.
    pub view_changes: Vec<(ReplicaId, Digest)>,
    /// O: for every place from the highest stable checkpoint in V to the last one that prepared,
    /// what is proposed there again. Where nothing prepared, that is the null request.
    pub proposals: Vec<Signed<PrePrepare>>,
}

impl Signable for NewView {
    const DOMAIN: &'static str = "new-view";
}

impl Encode for NewView {
    fn encode(&self, out: &mut Vec<u8>) {
        self.view.encode(out);
        self.view_changes.encode(out);
        self.proposals.encode(out);
    }
}

impl Decode for NewView {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(NewView {
            view: View::decode(input)?,
            view_changes: input.seq_max("view changes", REPLICAS_MAX)?,
            proposals: input.seq_max("proposals", WINDOW_MAX as usize)?,
        })
    }
}

/// What a set of view changes decides: the same at whoever computes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// min-s: the highest stable checkpoint.
    pub(crate) stable: Option<StableProof>,
    /// What to propose at each place after it, in order, without a gap: time and batch.
    pub(crate) places: Vec<(Seq, Time, Digest)>,
}

impl Choice {
    /// For each place what prepared in the highest view; the null request where nothing did.
    ///
    /// A batch that committed anywhere prepared at `f + 1` correct replicas at least, one of which is
    /// among any `2f + 1`; and no other batch can have prepared there in a later view.
    pub(crate) fn of<'a>(changes: impl Iterator<Item = &'a ViewChange> + Clone) -> Choice {
        let stable = changes.clone().filter_map(|change| change.stable.as_ref()).max_by_key(|proof| proof.seq);
        let low = stable.map_or(Seq(0), |proof| proof.seq);
        let mut highest: BTreeMap<Seq, &PrePrepare> = BTreeMap::new();
        for header in changes.flat_map(|change| &change.prepared).map(|prepared| &prepared.header.body) {
            let best = highest.entry(header.seq).or_insert(header);
            // Of two in one view only liars beyond f can be the cause; even then all choose alike.
            if (header.view, header.digest()) > (best.view, best.digest()) {
                *best = header;
            }
        }
        let last = highest.last_key_value().map_or(low, |(seq, _)| *seq);
        let place = |seq: Seq| match highest.get(&seq) {
            Some(header) => (seq, header.at, header.batch),
            None => (seq, Time::ZERO, Batch::null().digest()),
        };
        let places = (low.0 + 1..=last.0).map(|seq| place(Seq(seq))).collect();
        Choice { stable: stable.cloned(), places }
    }

    /// Whether these headers propose just that.
    pub(crate) fn is_proposed_by(&self, proposals: &[Signed<PrePrepare>]) -> bool {
        let proposed = proposals.iter().map(|header| (header.body.seq, header.body.at, header.body.batch));
        proposed.eq(self.places.iter().copied())
    }
}
