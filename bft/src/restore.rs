//! From records back to a replica that contradicts nothing it ever said, and from a replica to few
//! records.

use std::iter::Peekable;

use base::{DecodeError, PublicKey, ReplicaId, Seq, Signed, StateMachine, Time, View};
use bytes::Bytes;

use crate::archive::Retained;
use crate::log::Log;
use crate::message::{Body, Checkpoint, Committed};
use crate::new_view::Shown;
use crate::params::{BadParams, Params};
use crate::record::{Certificate, Divergence, Place, Record, SNAPSHOT_PIECE_MAX, Snapshot, StableProof};
use crate::rejoin::{Lives, Rejoining};
use crate::replica::Replica;
use crate::table::{Executed, Table};
use crate::view_change::ViewChange;

/// Why records don't add up to a replica.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The parameters are not ones of a replica.
    #[error(transparent)]
    Params(#[from] BadParams),
    /// The state machine refused its snapshot.
    #[error("the snapshot of the state is damaged: {0}")]
    State(DecodeError),
    /// A record contradicts those before it.
    #[error("record {index} of the consensus log is not one that this replica wrote there: {what}")]
    Record {
        /// Which record, from 0.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A snapshot that is being read.
#[derive(Default)]
struct Reading {
    begins: Option<(Seq, Time)>,
    partitions: Vec<Vec<u8>>,
    partition: Vec<u8>,
    table: Table,
    owner: Option<(PublicKey, u64)>,
}

type Records = Peekable<std::iter::Enumerate<std::vec::IntoIter<Record>>>;

pub(crate) fn restore<S: StateMachine>(
    params: Params,
    genesis: S,
    records: Vec<Record>,
) -> Result<Replica<S>, Corrupt> {
    params.check()?;
    let mut replica = Replica::new(params, genesis);
    let mut records: Records = records.into_iter().enumerate().peekable();
    let mut included = Seq(0);
    let mut shown = Vec::new();
    loop {
        if let Some((_, Record::Snapshot(_))) = records.peek() {
            // A checkpoint was fetched from peers.
            replica.restore_snapshot(&mut records)?;
            included = replica.last_executed;
            continue;
        }
        let Some((index, record)) = records.next() else { break };
        replica.replay(record, included, &mut shown).map_err(|what| Corrupt::Record { index, what })?;
    }
    // Only now, and only for the places still in the log: a signature costs more than a replay.
    let places: Vec<Seq> = replica.log.slots().map(|(seq, _)| seq).collect();
    places.into_iter().for_each(|seq| replica.renew_prepare(seq));
    if !replica.views.active && !replica.is_mute() {
        replica.hold_own_change(Time::ZERO);
    }
    Ok(replica)
}

impl<S: StateMachine> Replica<S> {
    /// Reads a snapshot: at the start of a condensed log, or later, where a checkpoint was fetched. A
    /// later one that has no end is left out: nothing was said from it.
    fn restore_snapshot(&mut self, records: &mut Records) -> Result<(), Corrupt> {
        let is_piece = |(_, record): &(usize, Record)| matches!(record, Record::Snapshot(_));
        let first = records.peek().map_or(0, |(index, _)| *index);
        let mut next = first;
        let mut reading = Reading::default();
        while let Some((index, Record::Snapshot(piece))) = records.next_if(is_piece) {
            let wrong = |what| Corrupt::Record { index, what };
            next = index + 1;
            match piece {
                Snapshot::Begin { view, seq, at } => {
                    // Again: what came before has no end.
                    reading = Reading { begins: Some((seq, at)), ..Reading::default() };
                    if index == 0 {
                        self.view = view;
                        self.views.active = view == View(0);
                    } else if first == 0 || seq <= self.last_executed {
                        return Err(wrong("a snapshot begins once, and after what is executed"));
                    }
                }
                Snapshot::State { ends, bytes } => {
                    reading.partition.extend_from_slice(&bytes);
                    if ends {
                        reading.partitions.push(core::mem::take(&mut reading.partition));
                    }
                }
                Snapshot::Principal { .. } | Snapshot::Session { .. } | Snapshot::Executed { .. } => {
                    let Reading { table, owner, .. } = &mut reading;
                    restore_table(table, piece, owner).ok_or(wrong("it is not where it belongs"))?;
                }
                Snapshot::End { digest } => {
                    let (seq, at) = reading.begins.ok_or(wrong("a snapshot without a beginning"))?;
                    let state = self.state.restore(&reading.partitions).map_err(Corrupt::State)?;
                    self.admit_installed(seq, at, state, reading.table);
                    let same = reading.partition.is_empty() && self.checkpoint_digest() == digest;
                    return if same { Ok(()) } else { Err(wrong("the snapshot has another digest")) };
                }
            }
        }
        if first > 0 {
            return Ok(());
        }
        Err(Corrupt::Record { index: next, what: "the snapshot has no end" })
    }

    /// Applies a record. Places up to `included` are in the snapshot.
    fn replay(
        &mut self,
        record: Record,
        included: Seq,
        shown: &mut Vec<Signed<ViewChange>>,
    ) -> Result<(), &'static str> {
        match record {
            Record::Snapshot(_) => Err("a snapshot belongs to the start"),
            Record::Proposed(proposal) => {
                let header = proposal.header.body;
                let here = header.view == self.view && self.views.active && self.log.in_window(header.seq);
                ensure(here, "a proposal out of place")?;
                ensure(header.batch == proposal.batch.digest(), "a proposal of another batch")?;
                let slot = self.log.slot(header.seq);
                let earlier = slot.and_then(|slot| slot.header()).map(|earlier| earlier.body.digest());
                ensure(earlier.is_none_or(|earlier| earlier == header.digest()), "another proposal for one place")?;
                if self.log.accepted(header.seq).is_none() {
                    self.log.accept(proposal);
                    return Ok(());
                }
                // What the new view proposed was taken over from elsewhere in the log.
                ensure(self.views.proposes(header.seq), "a second proposal for one place")
            }
            Record::Prepared(certificate) => self.replay_prepared(certificate),
            Record::Committed(place) => {
                let committed = self.proposed(place).ok_or("a commit of another proposal")?;
                self.log.slot_mut(place.seq).set_committed();
                self.replay_committed(committed, included)
            }
            Record::Learned(committed) => self.replay_committed(committed, included),
            Record::Checkpoint(checkpoint) => self.replay_checkpoint(checkpoint, included),
            Record::Stable(proof) => {
                ensure(proof.seq > self.log.low(), "a stable checkpoint out of place")?;
                let own = self.checkpoints.of(proof.seq, self.params.me);
                ensure(own.is_none_or(|own| own.body.digest == proof.digest), "a stable checkpoint of another state")?;
                self.admit_stable(proof);
                Ok(())
            }
            Record::Diverged(divergence) => {
                self.divergence = Some(divergence);
                Ok(())
            }
            other => self.replay_view(other, shown),
        }
    }

    /// Applies a record of views and lives.
    fn replay_view(&mut self, record: Record, shown: &mut Vec<Signed<ViewChange>>) -> Result<(), &'static str> {
        match record {
            Record::Left(view) => {
                ensure(view > self.view, "a view left before")?;
                self.admit_left(view);
                Ok(())
            }
            Record::Shown(change) => {
                shown.push(change);
                Ok(())
            }
            Record::Entered(new_view) => {
                let view = new_view.body.view;
                ensure(view > self.view || (view == self.view && !self.views.active), "a view entered before")?;
                let changes = core::mem::take(shown);
                self.admit_entered(Shown { new_view, changes });
                Ok(())
            }
            Record::PriorPrepared(prepared) => {
                ensure(self.log.in_window(prepared.header.body.seq), "a prior certificate out of place")?;
                self.log.keep_prepared(prepared);
                Ok(())
            }
            Record::Life { replica, life } => {
                ensure(replica == self.params.me, "another replica's life")?;
                self.admit_life(life);
                Ok(())
            }
            Record::Known(rejoin) => {
                self.admit_known(Time::ZERO, rejoin);
                Ok(())
            }
            Record::Beyond(seq) => {
                let rejoining = self.rejoining.as_mut().ok_or("a bound for votes without a new life")?;
                rejoining.beyond = Some(seq);
                Ok(())
            }
            Record::Rejoined => {
                self.admit_rejoined();
                Ok(())
            }
            Record::PriorBatch(Body { seq, batch }) => {
                ensure(self.log.in_window(seq), "a prior batch out of place")?;
                self.log.keep_batch(seq, batch);
                Ok(())
            }
            _ => unreachable!("the caller applies the others"),
        }
    }

    fn proposed(&self, place: Place) -> Option<Committed> {
        let accepted = self.log.accepted(place.seq)?;
        let header = accepted.proposal.header.body;
        let (seq, view, at, batch) = (place.seq, header.view, header.at, accepted.proposal.batch.clone());
        (accepted.digest == place.digest && view == place.view).then_some(Committed { seq, view, at, batch })
    }

    fn replay_prepared(&mut self, certificate: Certificate) -> Result<(), &'static str> {
        let slot = self.log.slot(certificate.seq).filter(|slot| slot.certificate().is_none());
        let accepted = slot.and_then(|slot| slot.accepted()).ok_or("a certificate out of place")?;
        let good = certificate.view == accepted.proposal.header.body.view
            && certificate.prepares.len() >= self.quorums.prepares()
            && certificate.prepares.iter().all(|prepare| prepare.body.digest == accepted.digest);
        ensure(good, "a certificate for another proposal")?;
        self.admit_certificate(certificate);
        Ok(())
    }

    fn replay_committed(&mut self, committed: Committed, included: Seq) -> Result<(), &'static str> {
        let last = self.retained.last();
        if committed.seq <= included && self.last_executed == included {
            ensure(last.is_none_or(|last| last.next() == committed.seq), "a gap in the retained batches")?;
            self.retained.push(committed);
            return Ok(());
        }
        ensure(committed.seq == self.last_executed.next(), "a batch executed out of order")?;
        ensure(last.is_none_or(|last| last == self.last_executed), "a gap after the retained batches")?;
        self.execute(&committed);
        Ok(())
    }

    fn replay_checkpoint(&mut self, checkpoint: Signed<Checkpoint>, included: Seq) -> Result<(), &'static str> {
        let Checkpoint { seq, digest, replica } = checkpoint.body;
        ensure(replica == self.params.me, "another replica's checkpoint")?;
        match self.checkpoints.of(seq, replica) {
            Some(own) => ensure(own.body.digest == digest, "executing the log again gave another state"),
            None => {
                ensure(seq <= included, "a checkpoint out of place")?;
                if seq == self.last_executed {
                    // With its image: peers may have nobody else to fetch it from.
                    self.take_checkpoint();
                    return self.replay_checkpoint(checkpoint, included);
                }
                if seq >= self.log.low() {
                    self.checkpoints.add(checkpoint);
                }
                Ok(())
            }
        }
    }

    /// A clone, cheap and independent of what happens next, that gives few records for many. Write
    /// them to a new log, then what was persisted since this call, then let the new log take the
    /// old one's place.
    ///
    /// It starts from the stable checkpoint and executes what follows again, so that who restarts can
    /// still hand that checkpoint to others: they may have nobody else to fetch it from.
    pub fn condense(&self) -> Condensed<S> {
        let low = self.log.low();
        let image = self.checkpoints.images.get(&low).filter(|_| self.retains_after(low));
        let (seq, at, state, table) = match image {
            Some(image) => (low, image.at, &image.state, &image.table),
            None => (self.last_executed, self.last_at, &self.state, &self.table),
        };
        let own = self.checkpoints.from(low, self.params.me);
        Condensed {
            view: self.view,
            shown: self.views.shown.clone(),
            lives: self.lives.clone(),
            me: self.params.me,
            rejoining: self.rejoining.clone(),
            seq,
            at,
            state: state.clone(),
            table: table.clone(),
            log: self.log.clone(),
            retained: self.retained.clone(),
            own_checkpoints: own.cloned().collect(),
            stable: self.checkpoints.stable.clone(),
            divergence: self.divergence,
        }
    }

    /// What a new life of this replica may start from, when its log was damaged and this was restored
    /// from what came before the damage: the stable checkpoint, so that only what has changed since
    /// must be fetched, and others' lives. Nothing that it voted for: it is mute until it can't
    /// contradict that (ADR 8). `None`, if no stable checkpoint is known.
    pub fn salvage(&self, life: u64) -> Option<Condensed<S>> {
        let stable = self.checkpoints.stable.clone()?;
        let image = self.checkpoints.images.get(&stable.seq)?;
        let mut lives = self.lives.clone();
        lives.own = life;
        Some(Condensed {
            view: View(0),
            shown: None,
            lives,
            me: self.params.me,
            rejoining: Some(Rejoining::default()),
            seq: stable.seq,
            at: image.at,
            state: image.state.clone(),
            table: image.table.clone(),
            log: Log::new(self.params.window),
            retained: Retained::default(),
            own_checkpoints: Vec::new(),
            stable: Some(stable),
            divergence: None,
        })
    }

    /// Whether everything executed after `seq` is retained.
    fn retains_after(&self, seq: Seq) -> bool {
        seq == self.last_executed || self.retained.oldest().is_some_and(|oldest| oldest <= seq.next())
    }
}

fn restore_table(table: &mut Table, piece: Snapshot, owner: &mut Option<(PublicKey, u64)>) -> Option<()> {
    match piece {
        Snapshot::Principal { client, floor } => {
            *owner = Some((client, 0));
            table.restore_principal(client, floor)
        }
        Snapshot::Session { session, floor, last_seq } => {
            let (client, current) = owner.as_mut()?;
            *current = session;
            table.restore_session(*client, session, floor, last_seq)
        }
        Snapshot::Executed { timestamp, seq, digest, result } => {
            let (client, session) = (*owner)?;
            let executed = Executed { seq, digest, result: result.map(|cached| cached.0) };
            table.restore_executed(client, session, timestamp, executed)
        }
        _ => None,
    }
}

fn ensure(good: bool, what: &'static str) -> Result<(), &'static str> {
    if good { Ok(()) } else { Err(what) }
}

/// A replica at one moment, to be written as records; see [`Replica::condense`].
#[derive(Clone, Debug)]
pub struct Condensed<S> {
    view: View,
    shown: Option<Shown>,
    lives: Lives,
    me: ReplicaId,
    rejoining: Option<Rejoining>,
    /// The state's place and agreed time: the stable checkpoint's, if that is kept, or the last executed.
    seq: Seq,
    at: Time,
    state: S,
    table: Table,
    log: Log,
    retained: Retained,
    own_checkpoints: Vec<Signed<Checkpoint>>,
    stable: Option<StableProof>,
    divergence: Option<Divergence>,
}

impl<S: StateMachine> Condensed<S> {
    /// The place of its state.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// The records. They restore the replica with its state, client table, votes, certificates and
    /// retained batches; each is at most about 1 MiB long. Takes time and memory in proportion to
    /// the state: not for the thread that drives the replica.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let begin = Snapshot::Begin { view: self.view, seq: self.seq, at: self.at };
        let end = core::iter::once_with(|| Snapshot::End { digest: self.digest() });
        let pieces = core::iter::once(begin).chain(state_pieces(&self.state)).chain(self.table.pieces()).chain(end);
        // Those after the state are taken again, and compared.
        let (included, again): (Vec<_>, Vec<_>) =
            self.own_checkpoints.iter().cloned().partition(|own| own.body.seq <= self.seq);
        pieces
            .map(Record::Snapshot)
            .chain(self.stable.clone().map(Record::Stable))
            .chain(self.lives())
            .chain(self.prior())
            .chain(self.entered())
            .chain(self.votes())
            .chain(included.into_iter().map(Record::Checkpoint))
            .chain(self.retained.iter().map(|committed| self.retained_record(committed)))
            .chain(again.into_iter().map(Record::Checkpoint))
            .chain(self.divergence.map(Record::Diverged))
    }

    fn digest(&self) -> base::Digest {
        let (mut state, mut table) = (self.state.clone(), self.table.clone());
        crate::checkpoint::digest_of(self.seq, self.at, &mut state, &mut table)
    }

    /// Whose lives are not their first, and how far the own one is on its way back.
    fn lives(&self) -> impl Iterator<Item = Record> + '_ {
        let own = core::iter::once(Record::Life { replica: self.me, life: self.lives.own });
        let others = self.lives.iter().cloned().map(Record::Known);
        let beyond = self.rejoining.as_ref().and_then(|rejoining| rejoining.beyond).map(Record::Beyond);
        let rejoined = self.rejoining.is_none().then_some(Record::Rejoined);
        own.chain(others).chain(beyond).chain(rejoined)
    }

    /// What prior views left.
    fn prior(&self) -> impl Iterator<Item = Record> + '_ {
        self.log.prior().flat_map(|(seq, prepared, batches)| {
            let batches = batches.iter().map(move |batch| Record::PriorBatch(Body { seq, batch: batch.clone() }));
            prepared.cloned().map(Record::PriorPrepared).into_iter().chain(batches)
        })
    }

    /// How the view began.
    fn entered(&self) -> impl Iterator<Item = Record> + '_ {
        self.shown.iter().flat_map(|shown| {
            let changes = shown.changes.iter().cloned().map(Record::Shown);
            changes.chain(core::iter::once(Record::Entered(shown.new_view.clone())))
        })
    }

    fn votes(&self) -> impl Iterator<Item = Record> + '_ {
        self.log.slots().flat_map(|(seq, slot)| {
            let proposal = slot.accepted().map(|accepted| accepted.proposal.clone());
            let view = proposal.as_ref().map_or(self.view, |proposal| proposal.header.body.view);
            let certificate = slot.certificate().map(|prepares| Certificate { view, seq, prepares: prepares.to_vec() });
            proposal.map(Record::Proposed).into_iter().chain(certificate.map(Record::Prepared))
        })
    }

    /// A retained batch, by reference to its proposal if the vote log has that.
    fn retained_record(&self, committed: &Committed) -> Record {
        let digest = committed.digest();
        match self.log.accepted(committed.seq).filter(|accepted| accepted.digest == digest) {
            Some(accepted) => {
                let view = accepted.proposal.header.body.view;
                Record::Committed(Place { view, seq: committed.seq, digest })
            }
            None => Record::Learned(committed.clone()),
        }
    }
}

pub(crate) fn state_pieces<S: StateMachine>(state: &S) -> impl Iterator<Item = Snapshot> + '_ {
    state.snapshot().flat_map(|partition| {
        let partition = Bytes::from(partition);
        let count = partition.len().div_ceil(SNAPSHOT_PIECE_MAX).max(1);
        (0..count).map(move |index| {
            let start = index * SNAPSHOT_PIECE_MAX;
            let end = partition.len().min(start + SNAPSHOT_PIECE_MAX);
            Snapshot::State { ends: index + 1 == count, bytes: partition.slice(start..end) }
        })
    })
}
