//! The gRPC service of a storage node: questions about blocks, answered in any order.

use std::pin::Pin;
use std::sync::Arc;

use base::{BlockId, Decode};
use bytes::Bytes;
use futures::Stream;
use proto::wire::block_answer::Answer;
use proto::wire::block_ask::Ask;
use proto::wire::blocks_server::Blocks;
use proto::wire::{self, BlockAnswer, BlockAsk, Outcome};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::consensus::{next_frame, peer_key};
use crate::counts::Counts;
use crate::store::{PutOutcome, Store};

/// Questions of one link under way at once; further ones wait on the wire.
const ASKS_MAX: usize = 64;
/// Longest block, bytes: the largest chunk there may be, and its seal.
const BLOCK_MAX: usize = (1 << 20) + 64;

/// The service.
pub(crate) struct BlocksService {
    pub(crate) store: Arc<Store>,
    pub(crate) dropped: Arc<Counts>,
}

#[tonic::async_trait]
impl Blocks for BlocksService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<BlockAnswer, Status>> + Send>>;

    async fn exchange(&self, request: Request<Streaming<BlockAsk>>) -> Result<Response<Self::ExchangeStream>, Status> {
        peer_key(&request)?;
        let (answers, outgoing) = mpsc::channel(ASKS_MAX);
        let (store, dropped) = (self.store.clone(), self.dropped.clone());
        let mut asks = request.into_inner();
        tokio::spawn(async move {
            let slots = Arc::new(Semaphore::new(ASKS_MAX));
            while let Some(BlockAsk { ticket, ask }) = next_frame(&mut asks, &dropped).await {
                let slot = slots.clone().acquire_owned().await.expect("never closed");
                let (store, dropped, answers) = (store.clone(), dropped.clone(), answers.clone());
                tokio::spawn(async move {
                    let answer = answer(&store, &dropped, ask).await;
                    let _ = answers.send(Ok(BlockAnswer { ticket, answer: Some(answer) })).await;
                    drop(slot);
                });
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

async fn answer(store: &Arc<Store>, dropped: &Counts, ask: Option<Ask>) -> Answer {
    let answered = match ask {
        Some(Ask::Has(has)) => answer_has(store, &has.ids).await,
        Some(Ask::Put(put)) => Ok(Answer::Kept(answer_put(store, dropped, put.blocks).await)),
        Some(Ask::Get(get)) => answer_get(store, &get.id).await,
        Some(Ask::Space(_)) => Ok(answer_space(store)),
        None => Err("not a question this node knows"),
    };
    answered.unwrap_or_else(|why| {
        dropped.add(why);
        Answer::Refused(wire::Refused { why: why.to_owned() })
    })
}

async fn answer_has(store: &Arc<Store>, ids: &[Bytes]) -> Result<Answer, &'static str> {
    let ids = ids.iter().map(|id| BlockId::from_bytes(id)).collect::<Result<Vec<_>, _>>();
    let ids = ids.map_err(|_| "malformed block id")?;
    let store = store.clone();
    let held = tokio::task::spawn_blocking(move || store.has(&ids)).await.map_err(|_| "the store failed")?;
    Ok(Answer::Held(wire::Held { held }))
}

async fn answer_get(store: &Arc<Store>, id: &[u8]) -> Result<Answer, &'static str> {
    let id = BlockId::from_bytes(id).map_err(|_| "malformed block id")?;
    let store = store.clone();
    match tokio::task::spawn_blocking(move || store.get(&id)).await {
        Ok(Ok(body)) => Ok(Answer::Got(wire::Got { body })),
        // A corrupt block is one this node does not have: the store counted it, and a put mends it.
        Ok(Err(error)) => {
            tracing::warn!(%error, %id, "a block could not be read");
            Ok(Answer::Got(wire::Got { body: None }))
        }
        Err(_) => Err("the store failed"),
    }
}

async fn answer_put(store: &Arc<Store>, dropped: &Counts, blocks: Vec<wire::Block>) -> wire::Kept {
    let mut outcomes = vec![Outcome::Wrong; blocks.len()];
    let mut good = Vec::new();
    let mut places = Vec::new();
    for (place, block) in blocks.into_iter().enumerate() {
        match BlockId::from_bytes(&block.id) {
            Ok(id) if block.body.len() <= BLOCK_MAX && *blake3::hash(&block.body).as_bytes() == id.hash => {
                good.push((id, block.body));
                places.push(place);
            }
            _ => dropped.add("block that is not what its id says"),
        }
    }
    let (done, stored) = oneshot::channel();
    store.put(good, Box::new(move |outcomes| drop(done.send(outcomes))));
    let stored = stored.await.unwrap_or_default();
    for (index, place) in places.into_iter().enumerate() {
        outcomes[place] = match stored.get(index) {
            Some(PutOutcome::Stored | PutOutcome::Had) => Outcome::Stored,
            Some(PutOutcome::Full) => Outcome::Full,
            Some(PutOutcome::Failed) | None => Outcome::Failed,
        };
    }
    wire::Kept { outcomes: outcomes.into_iter().map(i32::from).collect() }
}

fn answer_space(store: &Store) -> Answer {
    let space = store.space();
    Answer::Room(wire::Room { capacity: space.capacity, used: space.used, free: space.free })
}
