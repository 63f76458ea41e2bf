//! The vote log: for every place between the water marks, what was proposed and who voted.
//!
//! Everything in a slot is of the current view; a view change will fold the log into P and Q and
//! start an empty one.

use core::ops::Bound::{Excluded, Unbounded};
use std::collections::BTreeMap;

use base::{Digest, Quorums, ReplicaId, Seq, Signed, Time};

use crate::message::{Commit, Prepare, Proposal, SlotState};

/// The slots between the water marks.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    low: Seq,
    window: u64,
    slots: BTreeMap<Seq, Slot>,
    last_proposed: Seq,
}

/// One place in the order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    accepted: Option<Accepted>,
    /// At most one of each backup, whatever it is for; may be there before the proposal.
    prepares: BTreeMap<ReplicaId, Signed<Prepare>>,
    /// At most one of each replica, whatever it is for; may be there before the proposal.
    commits: BTreeMap<ReplicaId, Digest>,
    certificate: Option<Vec<Signed<Prepare>>>,
    committed: bool,
}

/// The one proposal accepted for a place in this view.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    /// The proposal.
    pub(crate) proposal: Proposal,
    /// Its [`crate::PrePrepare::digest`].
    pub(crate) digest: Digest,
}

impl Log {
    pub(crate) fn new(window: u64) -> Log {
        Log { low: Seq(0), window, slots: BTreeMap::new(), last_proposed: Seq(0) }
    }

    /// The low water mark: the last stable checkpoint (h).
    pub(crate) fn low(&self) -> Seq {
        self.low
    }

    /// The high water mark (h + L).
    pub(crate) fn high(&self) -> Seq {
        Seq(self.low.0.saturating_add(self.window))
    }

    /// `h < n <= h + L` (TOCS'02 §4.1).
    pub(crate) fn in_window(&self, seq: Seq) -> bool {
        self.low < seq && seq <= self.high()
    }

    pub(crate) fn slot(&self, seq: Seq) -> Option<&Slot> {
        self.slots.get(&seq)
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = (Seq, &Slot)> {
        self.slots.iter().map(|(seq, slot)| (*seq, slot))
    }

    pub(crate) fn slots_after(&self, seq: Seq) -> impl Iterator<Item = (Seq, &Slot)> {
        self.slots.range((Excluded(seq), Unbounded)).map(|(seq, slot)| (*seq, slot))
    }

    pub(crate) fn slot_mut(&mut self, seq: Seq) -> &mut Slot {
        assert!(self.in_window(seq), "{seq:?} is outside the window above {:?}", self.low);
        self.slots.entry(seq).or_default()
    }

    /// The last place for which a proposal was accepted since the beginning of time.
    pub(crate) fn last_proposed(&self) -> Seq {
        self.last_proposed
    }

    /// The last place that anything is known of.
    pub(crate) fn last_known(&self) -> Seq {
        self.slots.last_key_value().map_or(self.low, |(seq, _)| *seq)
    }

    pub(crate) fn accepted(&self, seq: Seq) -> Option<&Accepted> {
        self.slots.get(&seq)?.accepted.as_ref()
    }

    /// Accepts a proposal for an empty place.
    pub(crate) fn accept(&mut self, proposal: Proposal) {
        let header = &proposal.header.body;
        assert_eq!(header.batch, proposal.batch.digest(), "the batch is the one that the header names");
        let (seq, digest) = (header.seq, header.digest());
        let slot = self.slot_mut(seq);
        assert!(slot.accepted.is_none(), "one proposal a place and view");
        slot.accepted = Some(Accepted { proposal, digest });
        self.last_proposed = self.last_proposed.max(seq);
    }

    /// The time proposed for the nearest earlier place that has a proposal.
    pub(crate) fn at_before(&self, seq: Seq) -> Option<Time> {
        self.slots.range(..seq).rev().find_map(|(_, slot)| slot.at())
    }

    /// The time proposed for the nearest later place that has a proposal.
    pub(crate) fn at_after(&self, seq: Seq) -> Option<Time> {
        self.slots.range((Excluded(seq), Unbounded)).find_map(|(_, slot)| slot.at())
    }

    /// Moves the low water mark to a stable checkpoint and forgets what is not above it (TOCS'02 §4.3).
    pub(crate) fn truncate(&mut self, stable: Seq) {
        assert!(stable >= self.low, "water marks only rise");
        self.low = stable;
        self.slots = self.slots.split_off(&stable.next());
    }
}

impl Slot {
    pub(crate) fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    pub(crate) fn at(&self) -> Option<Time> {
        self.accepted.as_ref().map(|accepted| accepted.proposal.header.body.at)
    }

    pub(crate) fn prepare_of(&self, replica: ReplicaId) -> Option<&Signed<Prepare>> {
        self.prepares.get(&replica)
    }

    pub(crate) fn commit_of(&self, replica: ReplicaId) -> Option<Digest> {
        self.commits.get(&replica).copied()
    }

    pub(crate) fn add_prepare(&mut self, prepare: Signed<Prepare>) {
        let earlier = self.prepares.insert(prepare.body.replica, prepare);
        assert!(earlier.is_none(), "the first prepare of a replica stands");
    }

    pub(crate) fn add_commit(&mut self, replica: ReplicaId, commit: Commit) {
        let earlier = self.commits.insert(replica, commit.digest);
        assert!(earlier.is_none(), "the first commit of a replica stands");
    }

    /// The prepares that make this place *prepared* (the proposal and `2f` matching prepares of
    /// distinct backups, TOCS'02 §4.1), unless it already is, or is not yet.
    pub(crate) fn newly_prepared(&self, quorums: Quorums) -> Option<Vec<Signed<Prepare>>> {
        let accepted = self.accepted.as_ref().filter(|_| self.certificate.is_none())?;
        let matching = self.prepares.values().filter(|prepare| prepare.body.digest == accepted.digest);
        let certificate: Vec<_> = matching.take(quorums.prepares()).cloned().collect();
        (certificate.len() == quorums.prepares()).then_some(certificate)
    }

    pub(crate) fn set_prepared(&mut self, certificate: Vec<Signed<Prepare>>) {
        assert!(self.accepted.is_some() && self.certificate.is_none(), "prepared once, with a proposal");
        self.certificate = Some(certificate);
    }

    pub(crate) fn certificate(&self) -> Option<&[Signed<Prepare>]> {
        self.certificate.as_deref()
    }

    /// Whether this place has become *committed-local*: prepared, and `2f + 1` matching commits,
    /// the own included (TOCS'02 §4.1).
    pub(crate) fn newly_committed(&self, quorums: Quorums) -> bool {
        let (Some(accepted), Some(_), false) = (&self.accepted, &self.certificate, self.committed) else {
            return false;
        };
        self.commits.values().filter(|digest| **digest == accepted.digest).count() >= quorums.strong()
    }

    pub(crate) fn set_committed(&mut self) {
        assert!(self.accepted.is_some(), "only a proposal commits");
        self.committed = true;
    }

    pub(crate) fn committed(&self) -> Option<&Accepted> {
        self.accepted.as_ref().filter(|_| self.committed)
    }

    pub(crate) fn state(&self) -> SlotState {
        match (&self.accepted, &self.certificate, self.committed) {
            (None, ..) => SlotState::Empty,
            (Some(_), _, true) => SlotState::Committed,
            (Some(_), Some(_), false) => SlotState::Prepared,
            (Some(_), None, false) => SlotState::Proposed,
        }
    }
}
