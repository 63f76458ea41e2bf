//! A replica's vote log as the node's driver and log treat it (`server/src/driver.rs`, `server/src/log`).
//!
//! Records wait in the process until somebody needs a sync; a sync writes all that wait; once it
//! returns they are durable. A crash loses what waits, and leaves some first part of what was being
//! written: the log cuts a torn tail. A snapshot takes the place of everything before it at one
//! moment, or never.

use base::ReplicaId;
use bft::Record;

use crate::rng::Rng;

/// A vote log.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    durable: Vec<Record>,
    /// Handed to the disk; not yet synced.
    writing: Vec<Record>,
    /// In the process's memory only.
    pending: Vec<Record>,
    /// How many records the snapshot being written stands for.
    snapshot: Option<usize>,
    since_snapshot: usize,
}

/// Whether what is said beside this record depends on it; `server/src/driver.rs` has the same rule.
pub(crate) fn is_promise(record: &Record) -> bool {
    !matches!(record, Record::Committed(_) | Record::Learned(_))
}

impl Disk {
    /// Adds a record, durable after the next sync.
    pub(crate) fn append(&mut self, record: Record) {
        self.pending.push(record);
        self.since_snapshot += 1;
    }

    /// Hands everything that waits to the disk.
    pub(crate) fn begin_sync(&mut self) {
        assert!(self.writing.is_empty(), "one sync at a time");
        self.writing = core::mem::take(&mut self.pending);
    }

    /// What was being written is durable.
    pub(crate) fn finish_sync(&mut self) {
        self.durable.append(&mut self.writing);
    }

    /// The process is gone. Gives whether a tail was torn.
    pub(crate) fn crash(&mut self, rng: &mut Rng) -> bool {
        self.pending.clear();
        self.snapshot = None;
        let written = self.writing.len();
        let kept = rng.below(written as u64 + 1) as usize;
        self.writing.truncate(kept);
        self.finish_sync();
        kept < written
    }

    /// A new segment starts: a snapshot of what the replica is now will stand for all before it.
    pub(crate) fn begin_snapshot(&mut self) {
        self.snapshot = Some(self.durable.len() + self.writing.len() + self.pending.len());
    }

    /// The snapshot is durable, and takes the place of what it stands for.
    pub(crate) fn finish_snapshot(&mut self, records: impl Iterator<Item = Record>) {
        let Some(replaced) = self.snapshot.take() else { return };
        assert!(replaced <= self.durable.len(), "a segment is synced before the next one is begun");
        self.durable = records.chain(self.durable.drain(replaced..)).collect();
    }

    /// Whether a snapshot is due: none is being written, and the log has grown by `after` records
    /// since this last said yes.
    pub(crate) fn wants_snapshot(&mut self, after: usize) -> bool {
        let wants = self.snapshot.is_none() && self.since_snapshot > after;
        if wants {
            self.since_snapshot = 0;
        }
        wants
    }

    /// What a start reads.
    pub(crate) fn durable(&self) -> &[Record] {
        &self.durable
    }

    /// The driver notes in an empty log which life of the replica begins, 0 being the first.
    pub(crate) fn begin_life(&mut self, replica: ReplicaId, life: u64) {
        self.durable.push(Record::Life { replica, life });
    }

    /// Damage is found, somewhere: what comes before it can still be read.
    pub(crate) fn readable(&self, rng: &mut Rng) -> Vec<Record> {
        let readable = rng.below(self.durable.len() as u64 + 1) as usize;
        self.durable[..readable].to_vec()
    }

    /// A new log takes the place of a damaged one.
    pub(crate) fn begin_with(&mut self, records: impl Iterator<Item = Record>) {
        *self = Disk { durable: records.collect(), ..Disk::default() };
    }

    /// Everything is gone: another disk.
    pub(crate) fn wipe(&mut self) {
        *self = Disk::default();
    }
}

#[cfg(test)]
mod tests {
    use base::{Digest, Seq};
    use bft::{Divergence, Record};

    use super::*;

    fn record(seq: u64) -> Record {
        Record::Diverged(Divergence { seq: Seq(seq), mine: Digest::default(), theirs: Digest::default() })
    }

    #[test]
    fn what_was_synced_stays_and_what_waits_is_lost() {
        for seed in 0..50 {
            let (mut disk, mut rng) = (Disk::default(), Rng::new(seed));
            (0..3).for_each(|seq| disk.append(record(seq)));
            disk.begin_sync();
            disk.finish_sync();
            (3..6).for_each(|seq| disk.append(record(seq)));
            disk.begin_sync();
            disk.append(record(6));
            let torn = disk.crash(&mut rng);
            let kept = disk.durable().len();
            assert!((3..=6).contains(&kept) && torn == (kept < 6), "{kept}");
            assert_eq!(disk.durable(), (0..kept as u64).map(record).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_snapshot_takes_the_place_of_what_was_before() {
        let mut disk = Disk::default();
        (0..3).for_each(|seq| disk.append(record(seq)));
        assert!(disk.wants_snapshot(2));
        disk.begin_snapshot();
        disk.append(record(3));
        disk.begin_sync();
        disk.finish_sync();
        disk.finish_snapshot([record(100)].into_iter());
        assert_eq!(disk.durable(), [record(100), record(3)]);
    }
}
