//! Checkpoints: proof that others reached the same state, and leave to forget how (TOCS'02 §4.3).

use core::ops::Bound::{Excluded, Unbounded};
use std::collections::BTreeMap;

use base::{Digest, Effects, ReplicaId, Seq, Signed, StateMachine, Time};

use crate::event::{Event, Evidence, Ignored};
use crate::message::{Checkpoint, Message};
use crate::record::{Divergence, Record, StableProof};
use crate::replica::Replica;
use crate::table::Table;
use crate::transfer::Image;

/// Checkpoint messages from the stable checkpoint on, the own ones included.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints<S> {
    votes: BTreeMap<Seq, BTreeMap<ReplicaId, Signed<Checkpoint>>>,
    /// What made the low water mark stable; `None` at the beginning of time.
    pub(crate) stable: Option<StableProof>,
    /// The states at the last few own checkpoints: also before the stable one, while peers fetch it.
    pub(crate) images: BTreeMap<Seq, Image<S>>,
}

impl<S> Default for Checkpoints<S> {
    fn default() -> Self {
        Checkpoints { votes: BTreeMap::new(), stable: None, images: BTreeMap::new() }
    }
}

impl<S> Checkpoints<S> {
    pub(crate) fn of(&self, seq: Seq, replica: ReplicaId) -> Option<&Signed<Checkpoint>> {
        self.votes.get(&seq)?.get(&replica)
    }

    /// The checkpoints of `replica` after `seq`.
    pub(crate) fn after(&self, seq: Seq, replica: ReplicaId) -> impl Iterator<Item = &Signed<Checkpoint>> {
        self.votes.range((Excluded(seq), Unbounded)).filter_map(move |(_, votes)| votes.get(&replica))
    }

    /// The checkpoints of `replica` from `seq` on.
    pub(crate) fn from(&self, seq: Seq, replica: ReplicaId) -> impl Iterator<Item = &Signed<Checkpoint>> {
        self.votes.range(seq..).filter_map(move |(_, votes)| votes.get(&replica))
    }

    pub(crate) fn add(&mut self, checkpoint: Signed<Checkpoint>) {
        let replica = checkpoint.body.replica;
        self.votes.entry(checkpoint.body.seq).or_default().insert(replica, checkpoint);
    }

    /// Makes room for one more of `replica` among `kept_max`, by forgetting its lowest: those of a
    /// replica far ahead say what is to come, and nobody stays to make old ones stable.
    fn make_room(&mut self, replica: ReplicaId, kept_max: u64) {
        let of_replica = self.votes.iter().filter(|(_, votes)| votes.contains_key(&replica));
        let places: Vec<Seq> = of_replica.map(|(seq, _)| *seq).collect();
        if places.len() as u64 >= kept_max
            && let Some(votes) = self.votes.get_mut(&places[0])
        {
            votes.remove(&replica);
        }
        self.votes.retain(|_, votes| !votes.is_empty());
    }

    /// `quorum` checkpoints at `seq` that agree.
    fn agreed(&self, seq: Seq, quorum: usize) -> Option<(Digest, Vec<Signed<Checkpoint>>)> {
        let mut by_digest: BTreeMap<Digest, Vec<Signed<Checkpoint>>> = BTreeMap::new();
        for vote in self.votes.get(&seq)?.values() {
            by_digest.entry(vote.body.digest).or_default().push(vote.clone());
        }
        by_digest.into_iter().find(|(_, votes)| votes.len() >= quorum)
    }

    pub(crate) fn drop_below(&mut self, seq: Seq) {
        self.votes = self.votes.split_off(&seq);
    }
}

/// The digest of place, agreed time, state and client table.
pub(crate) fn digest_of<S: StateMachine>(seq: Seq, at: Time, state: &mut S, table: &mut Table) -> Digest {
    Digest::of_encoded(&(seq, at, (state.digest(), table.digest())))
}

impl<S: StateMachine> Replica<S> {
    /// The digest of all that is replicated: place, agreed time, state, client table.
    pub(crate) fn checkpoint_digest(&mut self) -> Digest {
        digest_of(self.last_executed, self.last_at, &mut self.state, &mut self.table)
    }

    /// As many as are between the water marks, and those at the marks.
    fn checkpoints_kept_max(&self) -> u64 {
        self.params.window / self.params.checkpoint_interval + 2
    }

    /// Signs the state as it is now.
    pub(crate) fn take_checkpoint(&mut self) {
        let digest = self.checkpoint_digest();
        let checkpoint = Checkpoint { seq: self.last_executed, digest, replica: self.params.me };
        self.checkpoints.make_room(self.params.me, self.checkpoints_kept_max());
        self.checkpoints.add(self.params.sign(checkpoint));
        let image = Image { at: self.last_at, state: self.state.clone(), table: self.table.clone() };
        self.checkpoints.images.insert(self.last_executed, image);
        while self.checkpoints.images.len() as u64 > self.checkpoints_kept_max() {
            self.checkpoints.images.pop_first();
        }
    }

    /// If a checkpoint was taken at the last executed place, makes it durable and says it.
    pub(crate) fn say_checkpoint(&mut self, now: Time, fx: &mut Effects<Self>) {
        let seq = self.last_executed;
        let Some(own) = self.checkpoints.of(seq, self.params.me).cloned() else { return };
        if let Some(stable) = self.checkpoints.stable.as_ref().filter(|stable| stable.seq == seq)
            && stable.digest != own.body.digest
        {
            let divergence = Divergence { seq, mine: own.body.digest, theirs: stable.digest };
            return self.diverge(divergence, fx);
        }
        fx.persist.push(Record::Checkpoint(own.clone()));
        fx.broadcast(Message::Checkpoint(own));
        self.stabilize(now, seq, fx);
    }

    /// ⟨CHECKPOINT, n, d, i⟩.
    pub(crate) fn on_checkpoint(&mut self, now: Time, checkpoint: Signed<Checkpoint>, fx: &mut Effects<Self>) {
        let Checkpoint { seq, digest, replica } = checkpoint.body;
        if let Some(earlier) = self.checkpoints.of(seq, replica) {
            if earlier.body.digest == digest {
                return self.ignore(Ignored::Duplicate, fx);
            }
            let evidence = Evidence::TwoCheckpoints(Box::new([earlier.clone(), checkpoint]));
            return self.accuse(replica, evidence, fx);
        }
        if seq <= self.log.low() {
            return self.ignore(Ignored::Stale, fx);
        }
        if !seq.0.is_multiple_of(self.params.checkpoint_interval) {
            return self.ignore(Ignored::NotACheckpoint, fx);
        }
        self.checkpoints.make_room(replica, self.checkpoints_kept_max());
        self.checkpoints.add(checkpoint);
        self.stabilize(now, seq, fx);
    }

    /// A checkpoint is stable with `2f + 1` that agree, the own included.
    fn stabilize(&mut self, now: Time, seq: Seq, fx: &mut Effects<Self>) {
        let Some(own) = self.checkpoints.of(seq, self.params.me) else { return };
        let mine = own.body.digest;
        let Some((digest, checkpoints)) = self.checkpoints.agreed(seq, self.quorums.strong()) else { return };
        if digest != mine {
            return self.diverge(Divergence { seq, mine, theirs: digest }, fx);
        }
        if seq <= self.log.low() {
            return;
        }
        let proof = StableProof { seq, digest, checkpoints };
        fx.persist.push(Record::Stable(proof.clone()));
        fx.events.push(Event::StableCheckpoint { seq, digest });
        self.admit_stable(proof);
        self.try_rejoin(fx);
        self.propose(now, fx);
    }

    /// Moves the low water mark, and forgets what is below it. A new view may move it beyond what is
    /// executed here: that must then come from others.
    pub(crate) fn admit_stable(&mut self, proof: StableProof) {
        self.log.truncate(proof.seq);
        self.checkpoints.drop_below(proof.seq);
        self.retained.trim(proof.seq, self.params.retained_bytes_max);
        self.checkpoints.stable = Some(proof);
    }
}
