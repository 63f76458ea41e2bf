//! The vote log: for every place between the water marks, what was proposed and who voted.
//!
//! Everything in a slot is of the current view. A view change folds the slots into what *prior*
//! views left at their places (the P set, and the batches it names) and starts with empty ones.

use core::ops::Bound::{Excluded, Unbounded};
use std::collections::BTreeMap;

use base::{Digest, Quorums, ReplicaId, Seq, Signed, Time};

use crate::message::{Commit, PrePrepare, Prepare, Proposal, SlotState};
use crate::request::Batch;
use crate::view_change::Prepared;

/// Batches of prior views kept at a place. Only the one that prepared last can be needed, but a
/// batch may have prepared elsewhere that was merely accepted here; more than one such a place
/// takes a view change for each.
const PRIOR_BATCHES_MAX: usize = 4;

/// The slots between the water marks.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    low: Seq,
    window: u64,
    slots: BTreeMap<Seq, Slot>,
    last_proposed: Seq,
    prior: BTreeMap<Seq, Prior>,
}

/// What prior views left at a place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prior {
    /// What prepared here in the highest view.
    prepared: Option<Prepared>,
    /// Batches accepted here, the latest last.
    batches: Vec<Batch>,
}

/// One place in the order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    accepted: Option<Accepted>,
    /// What the new view proposes here, while its batch is not here.
    announced: Option<Signed<PrePrepare>>,
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
        Log { low: Seq(0), window, slots: BTreeMap::new(), last_proposed: Seq(0), prior: BTreeMap::new() }
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

    /// The last place for which this view has a proposal, or one before it had one.
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
        let announced = slot.announced.take();
        assert!(announced.is_none_or(|announced| announced.body.digest() == digest), "what the new view announced");
        slot.accepted = Some(Accepted { proposal, digest });
        self.last_proposed = self.last_proposed.max(seq);
    }

    /// Notes what the new view proposes at an empty place, while its batch is not here.
    pub(crate) fn announce(&mut self, header: Signed<PrePrepare>) {
        let seq = header.body.seq;
        let slot = self.slot_mut(seq);
        assert!(slot.accepted.is_none() && slot.announced.is_none(), "one proposal a place and view");
        slot.announced = Some(header);
        self.last_proposed = self.last_proposed.max(seq);
    }

    /// What the new view proposes at places whose batch is not here.
    pub(crate) fn announced(&self) -> impl Iterator<Item = &Signed<PrePrepare>> {
        self.slots.values().filter_map(|slot| slot.announced.as_ref())
    }

    /// Leaves the view: what prepared in it, and the batches accepted in it, are kept; all votes go.
    pub(crate) fn fold(&mut self) {
        for (seq, slot) in core::mem::take(&mut self.slots) {
            let Some(Accepted { proposal, .. }) = slot.accepted else { continue };
            if let Some(prepares) = slot.certificate {
                self.keep_prepared(Prepared { header: proposal.header, prepares });
            }
            self.keep_batch(seq, proposal.batch);
        }
        self.last_proposed = self.low;
    }

    /// Keeps a certificate of a prior view.
    pub(crate) fn keep_prepared(&mut self, prepared: Prepared) {
        let seq = prepared.header.body.seq;
        self.prior.entry(seq).or_default().prepared = Some(prepared);
    }

    /// Keeps a batch of a prior view, and in the end forgets those that can't be of use.
    pub(crate) fn keep_batch(&mut self, seq: Seq, batch: Batch) {
        let prior = self.prior.entry(seq).or_default();
        prior.batches.retain(|kept| kept.digest() != batch.digest());
        prior.batches.push(batch);
        if prior.batches.len() > PRIOR_BATCHES_MAX {
            let needed = prior.prepared.as_ref().map(|prepared| prepared.header.body.batch);
            let spare = prior.batches.iter().position(|kept| Some(kept.digest()) != needed);
            prior.batches.remove(spare.expect("more than one"));
        }
    }

    /// What prior views left at each place.
    pub(crate) fn prior(&self) -> impl Iterator<Item = (Seq, Option<&Prepared>, &[Batch])> {
        self.prior.iter().map(|(seq, prior)| (*seq, prior.prepared.as_ref(), prior.batches.as_slice()))
    }

    /// P: for each place, in order, what prepared last, in this view or a prior one.
    pub(crate) fn prepared(&self) -> Vec<Prepared> {
        let mut prepared: BTreeMap<Seq, Prepared> = BTreeMap::new();
        prepared.extend(self.prior.iter().filter_map(|(seq, prior)| Some((*seq, prior.prepared.clone()?))));
        prepared.extend(self.slots.iter().filter_map(|(seq, slot)| Some((*seq, slot.prepared()?))));
        prepared.into_values().collect()
    }

    /// The batch of this digest, if it was accepted at this place in this view or a prior one.
    pub(crate) fn batch(&self, seq: Seq, digest: Digest) -> Option<&Batch> {
        let accepted = self.accepted(seq).map(|accepted| &accepted.proposal.batch);
        let prior = self.prior.get(&seq).into_iter().flat_map(|prior| &prior.batches);
        accepted.into_iter().chain(prior).find(|batch| batch.digest() == digest)
    }

    /// The time proposed for the nearest earlier place that has a proposal.
    pub(crate) fn at_before(&self, seq: Seq) -> Option<Time> {
        // A null request says no time.
        self.slots.range(..seq).rev().find_map(|(_, slot)| slot.at().filter(|at| *at != Time::ZERO))
    }

    /// The time proposed for the nearest later place that has a proposal.
    pub(crate) fn at_after(&self, seq: Seq) -> Option<Time> {
        let mut after = self.slots.range((Excluded(seq), Unbounded));
        after.find_map(|(_, slot)| slot.at().filter(|at| *at != Time::ZERO))
    }

    /// See [`crate::Replica::fingerprint`].
    #[cfg(feature = "fingerprint")]
    pub(crate) fn fingerprint(&self, into: &mut impl core::hash::Hasher) {
        use core::hash::Hash as _;
        let Log { low, window: _, slots, last_proposed, prior } = self;
        (low, last_proposed, slots.len(), prior.len()).hash(into);
        for (seq, Slot { accepted, announced, prepares, commits, certificate, committed }) in slots {
            let header = accepted.as_ref().map(|accepted| accepted.proposal.header.signature);
            (seq, header, announced.as_ref().map(|header| header.signature)).hash(into);
            (certificate.is_some(), committed).hash(into);
            let prepares = prepares.values().filter(|_| certificate.is_none());
            prepares.map(|prepare| prepare.signature).collect::<Vec<_>>().hash(into);
            commits.iter().filter(|_| !committed).collect::<Vec<_>>().hash(into);
        }
        for (seq, Prior { prepared, batches }) in prior {
            (seq, prepared.as_ref().map(|prepared| prepared.header.signature)).hash(into);
            batches.iter().map(Batch::digest).collect::<Vec<_>>().hash(into);
        }
    }

    /// Moves the low water mark to a stable checkpoint and forgets what is not above it (TOCS'02 §4.3).
    pub(crate) fn truncate(&mut self, stable: Seq) {
        assert!(stable >= self.low, "water marks only rise");
        self.low = stable;
        self.slots = self.slots.split_off(&stable.next());
        self.prior = self.prior.split_off(&stable.next());
        self.last_proposed = self.last_proposed.max(stable);
    }
}

impl Slot {
    pub(crate) fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    pub(crate) fn at(&self) -> Option<Time> {
        self.header().map(|header| header.body.at)
    }

    /// What the new view proposes here, while its batch is not here.
    pub(crate) fn announced(&self) -> Option<&Signed<PrePrepare>> {
        self.announced.as_ref()
    }

    /// The one proposal of this view for this place, with its batch or not.
    pub(crate) fn header(&self) -> Option<&Signed<PrePrepare>> {
        self.accepted.as_ref().map(|accepted| &accepted.proposal.header).or(self.announced.as_ref())
    }

    fn prepared(&self) -> Option<Prepared> {
        let (accepted, prepares) = (self.accepted.as_ref()?, self.certificate.clone()?);
        Some(Prepared { header: accepted.proposal.header.clone(), prepares })
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
