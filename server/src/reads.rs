//! Proven reads: answered from the latest certified mark, beside the core and without it.
//!
//! The core's thread lays the state at each certified mark on the shelf; answering looks at that and at
//! nothing else. A read is judged first as an ordered one would be, for the key that the link proved, and
//! who may not have the rows gets none.

use std::sync::Arc;
use std::time::Duration;

use base::{Decode as _, Encode as _, PublicKey, Seq, Time};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use meta::{Call, Unproven};
use proto::pipe::{Reader, Writer};
use proto::wire::read_answer::Answer;
use proto::wire::{NoProof, ReadAnswer, ReadAsk, Unanswered};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::budget::Budgets;
use crate::counts::Counts;
use crate::door::Door;
use crate::frames;

/// Longest call, bytes: two sealed names and all groups.
const CALL_MAX: usize = 4 << 10;
/// Reads of one link that are answered at a time.
const READS_MAX: usize = 8;
/// How long to wait for a mark that is made here and not signed by enough others yet.
const SIGNING: Duration = Duration::from_millis(100);

/// What reads are proven from.
#[derive(Clone, Default)]
pub(crate) struct Shelf {
    pub(crate) marked: bft::Marked,
    pub(crate) certified: Option<Arc<bft::Certified<meta::State>>>,
}

/// Where reads are answered.
pub(crate) struct Desk {
    pub(crate) shelf: watch::Receiver<Shelf>,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) door: Arc<Door>,
    /// How reads were answered.
    pub(crate) counts: Counts,
}

impl Desk {
    /// Answers what a user reads by a link, until it ends.
    pub(crate) async fn serve<R, W>(self: &Arc<Self>, who: PublicKey, asks: Reader<R>, mut answers: Writer<W>)
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        // Given back when the link ends.
        let Ok(_place) = self.budgets.of(who).read_links.clone().try_acquire_owned() else {
            return self.door.dropped.add("reading link of a user who has too many");
        };
        let door = self.door.clone();
        let asked = stream::unfold(asks, move |mut asks| {
            let door = door.clone();
            async move { frames::next::<ReadAsk, _>(&mut asks, &door.dropped).await.map(|ask| (ask.head, asks)) }
        });
        let mut asked = core::pin::pin!(asked);
        // In tasks of their own, so that who does not take an answer holds up none of the user's other links. They
        // end with the link.
        let (mut under_way, mut over) = (JoinSet::new(), false);
        loop {
            tokio::select! {
                Some(answer) = under_way.join_next() => {
                    let Ok(answer): Result<ReadAnswer, _> = answer else { return };
                    if answers.send([answer.into()]).await.is_err() {
                        return;
                    }
                }
                ask = asked.next(), if !over && under_way.len() < READS_MAX => match ask {
                    Some(ask) => {
                        let desk = self.clone();
                        under_way.spawn(async move { desk.answer(who, ask).await });
                    }
                    None => over = true,
                },
                else => return,
            }
        }
    }

    /// Answers a read of the user whose link it came by.
    async fn answer(&self, who: PublicKey, ask: ReadAsk) -> ReadAnswer {
        let budget = self.budgets.of(who);
        budget.enter().await;
        let answer = match self.prove(&who, &ask, &budget.reading).await {
            Ok(proof) => {
                self.counts.add("proven");
                Answer::Proof(proof)
            }
            Err(why) => {
                self.counts.add(match why {
                    NoProof::Old => "nothing that new",
                    NoProof::Withheld => "withheld",
                    NoProof::Malformed | NoProof::Unspecified => "malformed",
                });
                Answer::None(Unanswered { why: why.into(), again_at: self.next_mark().0 })
            }
        };
        self.budgets.served(&who);
        ReadAnswer { ticket: ask.ticket, answer: Some(answer) }
    }

    async fn prove(&self, who: &PublicKey, ask: &ReadAsk, reading: &tokio::sync::Mutex<()>) -> Result<Bytes, NoProof> {
        let call = Some(&ask.call).filter(|call| call.len() <= CALL_MAX).and_then(|call| Call::from_bytes(call).ok());
        let Some(call) = call else {
            self.door.dropped.add("malformed read");
            return Err(NoProof::Malformed);
        };
        let certified = self.certified(Seq(ask.seq_min), Time(ask.at_min)).await.ok_or(NoProof::Old)?;
        // One at a time of each user: reading keeps no more than one thread from the others.
        let _turn = reading.lock().await;
        let names = certified.state().rows_of(certified.at(), who, &call).map_err(|why| match why {
            Unproven::NotARead => NoProof::Malformed,
            Unproven::Withheld | Unproven::NotShown => NoProof::Withheld,
        })?;
        let proof = certified.prove(&names).to_bytes();
        if proof.len() > bft::READ_PROOF_MAX { Err(NoProof::Withheld) } else { Ok(proof.into()) }
    }

    /// The state at the latest certified mark, if that is new enough, or soon will be.
    async fn certified(&self, seq: Seq, at: Time) -> Option<Arc<bft::Certified<meta::State>>> {
        let mut shelf = self.shelf.clone();
        let good = |shelf: &Shelf| shelf.certified.clone().filter(|there| there.seq() >= seq && there.at() >= at);
        let (there, made) = {
            let shelf = shelf.borrow_and_update();
            (good(&shelf), shelf.marked.made)
        };
        if there.is_some() || made.0 < seq || made.1 < at {
            return there;
        }
        let signed = tokio::time::timeout(SIGNING, shelf.wait_for(|shelf| good(shelf).is_some())).await;
        signed.ok()?.ok().and_then(|shelf| good(&shelf))
    }

    /// The earliest agreed time of the next mark.
    fn next_mark(&self) -> Time {
        self.shelf.borrow().marked.next_at
    }
}
