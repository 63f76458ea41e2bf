//! I3, durability: what a client was told is on the disks of enough correct replicas that no crash,
//! not even of everybody at once, can take it back.

use std::collections::BTreeMap;

use base::{ReplicaId, Seq, View};
use bft::{Record, Snapshot};

use super::Verdict;

/// What clients were told.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    /// The last place of the history that a client knows of.
    last: Option<u64>,
    /// Batches in which they are.
    seqs: BTreeMap<Seq, u64>,
}

impl Durable {
    /// A client was told that its operation is at this place, in this batch.
    pub(crate) fn acked(&mut self, place: u64, seq: Seq) {
        self.last = self.last.max(Some(place));
        self.seqs.insert(seq, place);
    }

    /// Everybody is down. Each batch that a client was told of must have left a prepared certificate,
    /// or its execution, on the disks of `weak` correct replicas: less, and another batch could take
    /// its place.
    pub(crate) fn on_disks<'a>(&self, weak: usize, disks: impl Iterator<Item = &'a [Record]>) -> Verdict {
        let held: Vec<Held> = disks.map(Held::read).collect();
        for (seq, place) in &self.seqs {
            let holders = held.iter().filter(|held| held.holds(*seq)).count();
            if holders < weak {
                return Err(format!("place {place} of the history, in {seq:?}, is on {holders} disks, not {weak}"));
            }
        }
        Ok(())
    }

    /// At the end a correct replica has applied so many operations.
    pub(crate) fn held(&self, who: ReplicaId, applied: u64) -> Verdict {
        match self.last {
            Some(last) if last >= applied => {
                Err(format!("{who:?} has {applied} operations; a client was told of place {last}"))
            }
            _ => Ok(()),
        }
    }
}

/// What a disk remembers of the order.
#[derive(Default)]
struct Held {
    through: Seq,
    prepared: BTreeMap<Seq, View>,
}

impl Held {
    fn read(records: &[Record]) -> Held {
        let mut held = Held::default();
        for record in records {
            match record {
                Record::Prepared(certificate) => {
                    held.prepared.insert(certificate.seq, certificate.view);
                }
                Record::PriorPrepared(prepared) => {
                    held.prepared.insert(prepared.header.body.seq, prepared.header.body.view);
                }
                Record::Snapshot(Snapshot::Begin { seq, .. }) => held.through = held.through.max(*seq),
                Record::Committed(place) => held.through = held.through.max(place.seq),
                Record::Learned(committed) => held.through = held.through.max(committed.seq),
                Record::Stable(proof) => held.through = held.through.max(proof.seq),
                _ => {}
            }
        }
        held
    }

    fn holds(&self, seq: Seq) -> bool {
        seq <= self.through || self.prepared.contains_key(&seq)
    }
}

#[cfg(test)]
mod tests {
    use base::Digest;
    use bft::{Certificate, Place};

    use super::*;

    #[test]
    fn a_promise_on_too_few_disks_is_caught() {
        let mut durable = Durable::default();
        durable.acked(5, Seq(2));
        let prepared = [Record::Prepared(Certificate { view: View(0), seq: Seq(2), prepares: Vec::new() })];
        let place = Place { view: View(0), seq: Seq(2), digest: Digest::default() };
        let executed = [Record::Committed(place)];
        let disks = |count| [&prepared[..], &executed[..], &[]].into_iter().take(count);
        assert!(durable.on_disks(2, disks(3)).is_ok());
        assert!(durable.on_disks(2, disks(1)).is_err());
    }

    #[test]
    fn a_forgotten_operation_is_caught() {
        let mut durable = Durable::default();
        assert!(durable.held(ReplicaId(0), 0).is_ok());
        durable.acked(5, Seq(2));
        assert!(durable.held(ReplicaId(0), 6).is_ok());
        assert!(durable.held(ReplicaId(0), 5).is_err());
    }
}
