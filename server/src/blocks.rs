//! What a storage node answers: questions about blocks, in any order, over links of frames ([`pipe`]).

use std::io;
use std::sync::Arc;

use base::{BlockId, Decode};
use bytes::Bytes;
use proto::link::Link;
use proto::pipe::{self, Frame, Writer};
use proto::wire::block_answer::Answer;
use proto::wire::block_ask::Ask;
use proto::wire::{self, BlockAnswer, BlockAsk, Outcome};
use tokio::io::AsyncWrite;
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::counts::Counts;
use crate::frames;
use crate::store::{PutOutcome, Store};

/// Questions of one link under way at once; further ones wait on the wire.
const ASKS_MAX: usize = 64;
/// Longest block, bytes: the largest chunk there may be, and its seal.
const BLOCK_MAX: usize = (1 << 20) + 64;

/// Who answers.
#[derive(Clone)]
pub(crate) struct Blocks {
    pub(crate) store: Arc<Store>,
    pub(crate) dropped: Arc<Counts>,
}

/// An answer, and the block that goes with it.
type Answered = (Answer, Option<Bytes>);

impl Blocks {
    /// Answers what is asked on a link, until it ends.
    pub(crate) async fn serve(self, link: Link) {
        let (mut asks, answers) = pipe::split(link);
        let (answers, slots) = (Arc::new(Mutex::new(answers)), Arc::new(Semaphore::new(ASKS_MAX)));
        let mut under_way = JoinSet::new();
        while let Some(Frame { head: BlockAsk { ticket, ask }, bodies }) = frames::next(&mut asks, &self.dropped).await
        {
            while under_way.try_join_next().is_some() {}
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            // What the kernel has in memory is sent sooner than somebody else is woken to look for it.
            if let Some(found) = self.cached(ask.as_ref()) {
                if send(&answers, ticket, found).await.is_err() {
                    break;
                }
                continue;
            }
            let (blocks, answers) = (self.clone(), answers.clone());
            under_way.spawn(async move {
                let answered = blocks.answer(ask, bodies).await;
                let _ = send(&answers, ticket, answered).await;
                drop(slot);
            });
        }
        while under_way.join_next().await.is_some() {}
    }

    /// The answer, if it takes no waiting for a disk.
    fn cached(&self, ask: Option<&Ask>) -> Option<Answered> {
        let Some(Ask::Get(get)) = ask else { return None };
        self.store.get_cached(&BlockId::from_bytes(&get.id).ok()?).map(|body| got(Some(body)))
    }

    async fn answer(&self, ask: Option<Ask>, bodies: Vec<Bytes>) -> Answered {
        let answered = match ask {
            Some(Ask::Has(has)) => answer_has(&self.store, &has.ids).await.map(alone),
            Some(Ask::Put(put)) => Ok(alone(self.put(put.blocks, bodies).await)),
            Some(Ask::Get(get)) => answer_get(&self.store, &get.id).await,
            Some(Ask::Space(_)) => Ok(alone(answer_space(&self.store))),
            None => Err("not a question this node knows"),
        };
        answered.unwrap_or_else(|why| {
            self.dropped.add(why);
            alone(Answer::Refused(wire::Refused { why: why.to_owned() }))
        })
    }

    async fn put(&self, blocks: Vec<wire::Block>, bodies: Vec<Bytes>) -> Answer {
        let mut outcomes = vec![Outcome::Wrong; blocks.len()];
        let mut good = Vec::new();
        let mut places = Vec::new();
        for (place, (block, body)) in blocks.into_iter().zip(bodies).enumerate() {
            match BlockId::from_bytes(&block.id) {
                Ok(id) if body.len() <= BLOCK_MAX && *blake3::hash(&body).as_bytes() == id.hash => {
                    good.push((id, body));
                    places.push(place);
                }
                _ => self.dropped.add("block that is not what its id says"),
            }
        }
        let (done, stored) = oneshot::channel();
        self.store.put(good, Box::new(move |outcomes| drop(done.send(outcomes))));
        let stored = stored.await.unwrap_or_default();
        for (index, place) in places.into_iter().enumerate() {
            outcomes[place] = match stored.get(index) {
                Some(PutOutcome::Stored | PutOutcome::Had) => Outcome::Stored,
                Some(PutOutcome::Full) => Outcome::Full,
                Some(PutOutcome::Failed) | None => Outcome::Failed,
            };
        }
        Answer::Kept(wire::Kept { outcomes: outcomes.into_iter().map(i32::from).collect() })
    }
}

/// Sends an answer; at most one a link at a time.
async fn send<W: AsyncWrite + Unpin>(answers: &Mutex<Writer<W>>, ticket: u64, answered: Answered) -> io::Result<()> {
    let (answer, body) = answered;
    let head = BlockAnswer { ticket, answer: Some(answer) };
    answers.lock().await.send([Frame { head, bodies: body.into_iter().collect() }]).await
}

fn alone(answer: Answer) -> Answered {
    (answer, None)
}

fn got(body: Option<Bytes>) -> Answered {
    (Answer::Got(wire::Got { size: body.as_ref().map(|body| body.len() as u32) }), body)
}

async fn answer_has(store: &Arc<Store>, ids: &[Bytes]) -> Result<Answer, &'static str> {
    let ids = ids.iter().map(|id| BlockId::from_bytes(id)).collect::<Result<Vec<_>, _>>();
    let ids = ids.map_err(|_| "malformed block id")?;
    let store = store.clone();
    let held = tokio::task::spawn_blocking(move || store.has(&ids)).await.map_err(|_| "the store failed")?;
    Ok(Answer::Held(wire::Held { held }))
}

async fn answer_get(store: &Arc<Store>, id: &[u8]) -> Result<Answered, &'static str> {
    let id = BlockId::from_bytes(id).map_err(|_| "malformed block id")?;
    let store = store.clone();
    match tokio::task::spawn_blocking(move || store.get(&id)).await {
        Ok(Ok(body)) => Ok(got(body)),
        // A corrupt block is one this node does not have: the store counted it, and a put mends it.
        Ok(Err(error)) => {
            tracing::warn!(%error, %id, "a block could not be read");
            Ok(got(None))
        }
        Err(_) => Err("the store failed"),
    }
}

fn answer_space(store: &Store) -> Answer {
    let space = store.space();
    Answer::Room(wire::Room { capacity: space.capacity, used: space.used, free: space.free })
}
