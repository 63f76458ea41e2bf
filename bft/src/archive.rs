//! Batches that are committed: those executed here, kept for peers that lag, and those that peers
//! vouch for.

use std::collections::BTreeMap;

use base::{Digest, Quorums, ReplicaId, Seq};

use crate::message::Committed;

/// Vouchers are taken for this many places after the last executed one.
pub(crate) const VOUCHED_AHEAD_MAX: u64 = 32;
/// Bytes of vouched batches kept of one peer, beside the one that is needed next.
const VOUCHED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Executed batches, without a gap, up to the last executed one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retained {
    batches: BTreeMap<Seq, Committed>,
    bytes: usize,
}

impl Retained {
    pub(crate) fn get(&self, seq: Seq) -> Option<&Committed> {
        self.batches.get(&seq)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Committed> {
        self.batches.values()
    }

    /// The last place retained, if any is.
    pub(crate) fn last(&self) -> Option<Seq> {
        self.batches.last_key_value().map(|(seq, _)| *seq)
    }

    /// The first place retained, if any is.
    pub(crate) fn oldest(&self) -> Option<Seq> {
        self.batches.first_key_value().map(|(seq, _)| *seq)
    }

    pub(crate) fn push(&mut self, committed: Committed) {
        let last = self.batches.last_key_value();
        assert!(last.is_none_or(|(seq, _)| seq.next() == committed.seq), "executed in order");
        self.bytes += committed.batch.bytes();
        self.batches.insert(committed.seq, committed);
    }

    /// Drops the oldest batches while they take up more than `bytes_max`, but none after `stable`:
    /// those are in the vote log, too, and may be all that a peer can catch up from.
    pub(crate) fn trim(&mut self, stable: Seq, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some(oldest) = self.batches.first_entry().filter(|entry| *entry.key() <= stable) else { return };
            self.bytes -= oldest.remove().batch.bytes();
        }
    }
}

/// Batches that peers vouch for, after the last executed place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vouchers {
    places: BTreeMap<Seq, BTreeMap<ReplicaId, Committed>>,
}

impl Vouchers {
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(crate) fn of(&self, seq: Seq, from: ReplicaId) -> Option<&Committed> {
        self.places.get(&seq)?.get(&from)
    }

    /// Whether there is room for a batch of a peer that is not needed next.
    pub(crate) fn has_room(&self, from: ReplicaId, bytes: usize) -> bool {
        let held = self.places.values().filter_map(|place| place.get(&from));
        held.map(|committed| committed.batch.bytes()).sum::<usize>() + bytes <= VOUCHED_BYTES_MAX
    }

    pub(crate) fn add(&mut self, from: ReplicaId, committed: Committed) {
        self.places.entry(committed.seq).or_default().insert(from, committed);
    }

    /// The batch for `seq` that `f + 1` peers vouch for alike: at least one of them is correct.
    pub(crate) fn agreed(&self, seq: Seq, quorums: Quorums) -> Option<&Committed> {
        let mut counts: BTreeMap<Digest, usize> = BTreeMap::new();
        self.places.get(&seq)?.values().find(|committed| {
            let count = counts.entry(committed.digest()).or_default();
            *count += 1;
            *count >= quorums.weak()
        })
    }

    /// Forgets what is no longer needed.
    pub(crate) fn drop_through(&mut self, seq: Seq) {
        self.places = self.places.split_off(&seq.next());
    }
}
