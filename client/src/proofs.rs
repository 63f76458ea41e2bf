//! Reads that one replica answers, with proof.
//!
//! The replica shows rows of a state that `2f + 1` have signed (`bft::ReadProof`), and the read is
//! evaluated here, by the code that the replicas run. So the replica is not trusted: an answer that does
//! not hold, or none in time, costs a moment, and the read is ordered as it always could be.
//!
//! Of when a proven answer is: not before `max_age` ago, by the agreed time of the state and this
//! machine's clock, and not before anything that the session has itself seen ([`Proofs::note_seen`]). So
//! a session never sees things go backwards, whichever way its reads are answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::verdict::verdict_key;
use base::{Claim, Cofactored, Decode as _, Digest, Encode as _, Forged, PublicKey, Seq, Signature, Time, Verifier};
use bytes::Bytes;
use meta::{Answer, Call};
use parking_lot::Mutex;
use proto::wire::read_answer::Answer as Wire;
use proto::wire::{NoProof, ReadAsk};
use tokio::sync::MutexGuard;

use crate::exchange::{Exchange, ReadService};

/// How long a replica may take over a read.
const PATIENCE: Duration = Duration::from_millis(300);
/// After this long nobody else is asked, and the read is ordered.
const DELAY_MAX: Duration = Duration::from_millis(400);
/// How far ahead of this machine's clock a proven state may be: as far as replicas let a proposed time be
/// ahead of theirs. Beyond it one of the clocks is of no use for telling ages.
const AHEAD_MAX: Duration = Duration::from_secs(10);
/// For how long at most a replica's word that it will have nothing new is taken.
const LET_BE_MAX: Duration = Duration::from_secs(2);
/// How long a read waits for another that is being ordered, and may bring a new mark.
const TURN: Duration = Duration::from_millis(10);
/// Good verdicts on signatures that are remembered: those on the last few marks.
const VERDICTS_MAX: usize = 256;

/// The answer to a read, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The answer.
    pub answer: Answer,
    /// Where it comes from.
    pub source: Source,
}

/// Where the answer to a read comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `f + 1` replicas executed it in its place in the order: it is of now.
    Ordered,
    /// One replica proved it.
    Proven {
        /// The last batch in the state it was read from.
        seq: Seq,
        /// The agreed time of that batch.
        at: Time,
    },
}

/// How a session's reads were answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// With proof.
    pub proven: u64,
    /// Ordered, though an older answer would have done.
    pub ordered: u64,
    /// Times that a replica had nothing that new.
    pub old: u64,
    /// Times that a replica may not show the rows.
    pub withheld: u64,
    /// Times that a replica did not answer in time.
    pub silent: u64,
    /// Answers that did not hold.
    pub refuted: u64,
}

#[derive(Debug, Default)]
struct Counters {
    proven: AtomicU64,
    ordered: AtomicU64,
    old: AtomicU64,
    withheld: AtomicU64,
    silent: AtomicU64,
    refuted: AtomicU64,
}

/// Why an answer is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Disbelief {
    #[error("it is too long")]
    TooLong,
    #[error(transparent)]
    Malformed(#[from] base::DecodeError),
    #[error(transparent)]
    Forged(#[from] Forged),
    #[error("it is older than was asked for")]
    Older,
    #[error("its time is far ahead of this machine's clock")]
    Ahead,
    #[error(transparent)]
    Unproven(#[from] meta::Unproven),
}

/// What is asked of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) who: &'a PublicKey,
    pub(crate) call: &'a Call,
    pub(crate) seq_min: Seq,
    pub(crate) at_min: Time,
    /// This machine's clock.
    pub(crate) now: Time,
}

impl Question<'_> {
    /// The answer, if these bytes prove it.
    pub(crate) fn judge(
        &self,
        context: &bft::Context,
        proof: &[u8],
        verifier: &dyn Verifier,
    ) -> Result<(Answer, Seq, Time), Disbelief> {
        if proof.len() > bft::READ_PROOF_MAX {
            return Err(Disbelief::TooLong);
        }
        let bft::ProvenRows { seq, at, rows } = bft::ReadProof::from_bytes(proof)?.verify(context, verifier)?;
        if seq < self.seq_min || at < self.at_min {
            return Err(Disbelief::Older);
        }
        if at > self.now.after(AHEAD_MAX) {
            return Err(Disbelief::Ahead);
        }
        Ok((meta::read_proven(&rows, at, self.who, self.call)?, seq, at))
    }
}

/// What came of asking for a proof.
#[derive(Debug)]
pub(crate) enum Attempt {
    Proven(Box<Read>),
    /// Nobody has anything that new, or nobody answered well: an ordered read may bring a new mark.
    Old,
    /// Not worth asking, for a while or for this call.
    Vain,
}

/// A session's part in proven reads.
#[derive(Debug)]
pub(crate) struct Proofs {
    context: bft::Context,
    who: PublicKey,
    links: Vec<Exchange<ReadService>>,
    /// Whom to ask first.
    first: AtomicUsize,
    /// The last place in the order that the session has seen something of.
    seen: AtomicU64,
    /// Before this time nobody has anything new.
    let_be: AtomicU64,
    turn: tokio::sync::Mutex<()>,
    verdicts: Verdicts,
    counts: Counters,
}

impl Proofs {
    /// `first`: the replica to ask first, so that sessions spread over them.
    pub(crate) fn new(
        context: bft::Context,
        who: PublicKey,
        links: Vec<Exchange<ReadService>>,
        first: usize,
    ) -> Arc<Proofs> {
        Arc::new(Proofs {
            context,
            who,
            links,
            first: AtomicUsize::new(first),
            seen: AtomicU64::new(0),
            let_be: AtomicU64::new(0),
            turn: tokio::sync::Mutex::default(),
            verdicts: Verdicts::default(),
            counts: Counters::default(),
        })
    }

    /// The session has seen something of this place in the order: no proof may be of before it.
    pub(crate) fn note_seen(&self, seq: Seq) {
        self.seen.fetch_max(seq.0, Ordering::Relaxed);
    }

    /// A read was ordered though it could have been proven.
    pub(crate) fn note_ordered(&self) {
        self.counts.ordered.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits a moment while another read is ordered; says whether that was needed.
    pub(crate) async fn turn(&self) -> (Option<MutexGuard<'_, ()>>, bool) {
        match self.turn.try_lock() {
            Ok(turn) => (Some(turn), false),
            Err(_) => (tokio::time::timeout(TURN, self.turn.lock()).await.ok(), true),
        }
    }

    /// Asks one replica, and others as long as those asked are silent or lie and there is time.
    pub(crate) async fn attempt(&self, call: &Call, max_age: Duration, now: Time) -> Attempt {
        if now.0 < self.let_be.load(Ordering::Relaxed) {
            return Attempt::Vain;
        }
        let seen = Seq(self.seen.load(Ordering::Relaxed));
        let at_min = Time(now.0.saturating_sub(u64::try_from(max_age.as_nanos()).unwrap_or(u64::MAX)));
        let question = Question { who: &self.who, call, seq_min: seen, at_min, now };
        let bytes = Bytes::from(call.to_bytes());
        let began = Instant::now();
        for replica in self.order() {
            if began.elapsed() > DELAY_MAX {
                break;
            }
            let ask = ReadAsk { ticket: 0, call: bytes.clone(), seq_min: seen.0, at_min: at_min.0 };
            let Ok(answer) = self.links[replica].ask(ask, PATIENCE).await else {
                self.counts.silent.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            match answer {
                Wire::Proof(proof) => match question.judge(&self.context, &proof, &self.verdicts) {
                    Ok((answer, seq, at)) => {
                        self.note_seen(seq);
                        self.counts.proven.fetch_add(1, Ordering::Relaxed);
                        let read = Read { answer, source: Source::Proven { seq, at } };
                        return Attempt::Proven(Box::new(read));
                    }
                    Err(why) => {
                        tracing::warn!(replica, %why, "a replica's proof of a read does not hold");
                        self.counts.refuted.fetch_add(1, Ordering::Relaxed);
                        self.links[replica].rest();
                    }
                },
                Wire::None(none) if none.why() == NoProof::Old => {
                    self.counts.old.fetch_add(1, Ordering::Relaxed);
                    // The next time another is asked: this one may lag, or lie.
                    self.first.fetch_add(1, Ordering::Relaxed);
                    self.let_be.store(none.again_at.min(now.after(LET_BE_MAX).0), Ordering::Relaxed);
                    return Attempt::Old;
                }
                Wire::None(_) => {
                    self.counts.withheld.fetch_add(1, Ordering::Relaxed);
                    self.first.fetch_add(1, Ordering::Relaxed);
                    return Attempt::Vain;
                }
            }
        }
        Attempt::Old
    }

    /// The replicas in the order in which to ask them: those that rest come last.
    fn order(&self) -> Vec<usize> {
        let (count, first) = (self.links.len(), self.first.load(Ordering::Relaxed));
        let mut order: Vec<usize> = (0..count).map(|offset| (first.wrapping_add(offset)) % count).collect();
        order.sort_by_key(|replica| self.links[*replica].is_resting());
        order
    }

    pub(crate) fn counts(&self) -> ReadCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { proven, ordered, old, withheld, silent, refuted } = &self.counts;
        ReadCounts {
            proven: count(proven),
            ordered: count(ordered),
            old: count(old),
            withheld: count(withheld),
            silent: count(silent),
            refuted: count(refuted),
        }
    }
}

/// The verdict, with the last good ones remembered: the signatures on a mark are verified once, not with
/// every read that is proven from it.
#[derive(Debug, Default)]
struct Verdicts(Mutex<VecDeque<Digest>>);

impl Verifier for Verdicts {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        self.verify_all(&[&Claim { key: *key, bytes: bytes.to_vec(), signature: *signature }])
    }

    fn verify_all(&self, claims: &[&Claim]) -> bool {
        let verdicts = claims.iter().map(|claim| verdict_key(&claim.key, &claim.bytes, &claim.signature));
        let verdicts: Vec<Digest> = verdicts.collect();
        {
            let known = self.0.lock();
            if verdicts.iter().all(|verdict| known.contains(verdict)) {
                return true;
            }
        }
        if !Cofactored.verify_all(claims) {
            return false;
        }
        let mut known = self.0.lock();
        known.extend(verdicts);
        let surplus = known.len().saturating_sub(VERDICTS_MAX);
        known.drain(..surplus);
        true
    }
}

#[cfg(test)]
mod tests;
