//! Blocks to and from storage nodes.
//!
//! *Put*: the ring says who should hold a block; each holder is asked which blocks it lacks and is
//! sent those, many a message. A holder that is down, full or failing is replaced by the next node
//! on the ring, so that a put is durable on as many nodes as the volume asks for, or fails.
//!
//! *Get*: any holder will do, because the id is the hash. The quickest is asked first, the next
//! after the time that 95 % of reads take (OpenDHT's lesson: hedge, don't wait), the rest when one
//! says no or lies. A holder that should have had the block and did not is sent it again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::{BlockId, NodeId};
use bytes::Bytes;
use dht::Ring;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use proto::pipe::ENTRIES_MAX;
use proto::wire::block_answer::Answer;
use proto::wire::block_ask::Ask;
use proto::wire::{self, Outcome};

use crate::backend::{BlockError, BlockStore, CALL_TIMEOUT, StoreSpace};
use crate::exchange::{BlockService, Exchange, Silent};

/// What one put message is filled up to, bytes.
const PUT_TARGET: usize = 1 << 20;
/// Below this, asking first costs more than sending, bytes.
const ASK_FIRST: usize = 8 << 10;
/// How long a node may take over a put before the next one is asked.
const PUT_PATIENCE: Duration = Duration::from_secs(20);
/// For how long a put is tried again that could not be made often enough. Whoever waits for one that failed tries
/// it once more, so that it takes as long as a request to replicas before he is told.
const TRIED: Duration = Duration::from_secs(CALL_TIMEOUT.as_secs() / 2);
const AGAIN: Duration = Duration::from_secs(1);
/// How long a node may take over a get before it counts as silent.
const GET_PATIENCE: Duration = Duration::from_secs(10);
/// Bounds of the hedging delay.
const HEDGE_MIN: Duration = Duration::from_millis(10);
const HEDGE_MAX: Duration = Duration::from_secs(1);
/// Read times remembered.
const TIMES_MAX: usize = 256;
/// Which part of them must be new before the percentile is looked for anew.
const SLOW_EVERY: usize = 16;

/// The storage nodes, as one store of blocks.
#[derive(Clone, Debug)]
pub struct Blocks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Ring,
    links: BTreeMap<NodeId, Exchange<BlockService>>,
    copies: usize,
    times: Mutex<Times>,
    lies: AtomicU64,
}

/// How long reads took lately: of all nodes, and each node's moving average.
#[derive(Debug, Default)]
struct Times {
    recent: VecDeque<Duration>,
    /// The 95th percentile of these when it was looked for last, and how many came since.
    slow: Option<Duration>,
    since: usize,
    average: BTreeMap<NodeId, Duration>,
}

impl Blocks {
    pub(crate) fn new(ring: Ring, links: BTreeMap<NodeId, Exchange<BlockService>>, copies: usize) -> Blocks {
        assert!(copies <= links.len(), "{copies} copies on {} nodes", links.len());
        let shared = Shared { ring, links, copies, times: Mutex::default(), lies: AtomicU64::new(0) };
        Blocks { shared: Arc::new(shared) }
    }

    /// How often a node sent bytes that were not the block asked for.
    #[must_use]
    pub fn lies(&self) -> u64 {
        self.shared.lies.load(Ordering::Relaxed)
    }
}

impl BlockStore for Blocks {
    async fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> Result<(), BlockError> {
        let began = Instant::now();
        for part in blocks.chunks(ENTRIES_MAX) {
            while let Err(error) = self.shared.put(part.to_vec()).await {
                match error {
                    // A link that was cut takes a while to be noticed, and to come back: nobody is told of an error
                    // before he would be told that the replicas are away.
                    BlockError::Unavailable(_) if began.elapsed() < TRIED => tokio::time::sleep(AGAIN).await,
                    error => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn get(&self, id: BlockId) -> Result<Bytes, BlockError> {
        let (body, lacking) = self.shared.get(id).await?;
        if !lacking.is_empty() {
            let (shared, body) = (self.shared.clone(), body.clone());
            tokio::spawn(async move {
                for node in lacking {
                    shared.put_to(node, vec![(id, body.clone())]).await;
                }
            });
        }
        Ok(body)
    }

    async fn space(&self) -> Option<StoreSpace> {
        let asked =
            self.shared.links.values().map(|link| link.ask((Ask::Space(wire::Space {}), Vec::new()), GET_PATIENCE));
        let answers = futures::future::join_all(asked).await;
        let (mut total, mut free, mut heard) = (0, 0, false);
        for answer in answers {
            if let Ok((Answer::Room(room), _)) = answer {
                // A node may say anything.
                total = u64::saturating_add(total, room.capacity);
                free = u64::saturating_add(free, room.free);
                heard = true;
            }
        }
        let copies = self.shared.copies.max(1) as u64;
        heard.then_some(StoreSpace { total: total / copies, free: free / copies })
    }
}

/// One block on its way to its holders.
struct Placing {
    body: Bytes,
    /// Nodes not tried yet, best first.
    candidates: VecDeque<NodeId>,
    /// Copies still to be made.
    missing: usize,
    full: bool,
}

impl Shared {
    async fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> Result<(), BlockError> {
        let mut placing: BTreeMap<BlockId, Placing> = BTreeMap::new();
        for (id, body) in blocks {
            // A node that is silent is not waited for while others can take its place.
            let mut candidates = self.ring.ranked(&id);
            candidates.sort_by_key(|node| self.links[node].is_resting());
            let candidates = candidates.into();
            placing.entry(id).or_insert(Placing { body, candidates, missing: self.copies, full: false });
        }
        while placing.values().any(|block| block.missing > 0) {
            let mut by_node: BTreeMap<NodeId, Vec<(BlockId, Bytes)>> = BTreeMap::new();
            for (id, block) in &mut placing {
                for _ in 0..block.missing {
                    let Some(node) = block.candidates.pop_front() else { return Err(self.why_not(block)) };
                    by_node.entry(node).or_default().push((*id, block.body.clone()));
                }
            }
            let puts = by_node.into_iter().map(|(node, blocks)| self.put_to(node, blocks));
            for (id, outcome) in futures::future::join_all(puts).await.into_iter().flatten() {
                let block = placing.get_mut(&id).expect("only what was sent is answered");
                match outcome {
                    Outcome::Stored => block.missing -= 1,
                    Outcome::Full => block.full = true,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn why_not(&self, block: &Placing) -> BlockError {
        if block.full {
            return BlockError::Full;
        }
        let (made, wanted, nodes) = (self.copies - block.missing, self.copies, self.links.len());
        BlockError::Unavailable(format!(
            "only {made} of {wanted} copies could be made on {nodes} storage nodes; \
             `mangrove status` shows which are up"
        ))
    }

    /// Puts blocks to one node; what became of each.
    async fn put_to(&self, node: NodeId, blocks: Vec<(BlockId, Bytes)>) -> Vec<(BlockId, Outcome)> {
        let link = &self.links[&node];
        let ids: Vec<BlockId> = blocks.iter().map(|(id, _)| *id).collect();
        let mut outcomes = Vec::with_capacity(blocks.len());
        let lacking = match self.lacking(link, blocks, &mut outcomes).await {
            Ok(lacking) => lacking,
            Err(Silent) => return ids.into_iter().map(|id| (id, Outcome::Failed)).collect(),
        };
        let sends = batches(lacking).into_iter().map(|batch| async move {
            let (ids, bodies): (Vec<BlockId>, Vec<Bytes>) = batch.into_iter().unzip();
            let block = |(id, body): (&BlockId, &Bytes)| {
                let size = u32::try_from(body.len()).expect("a block is short");
                wire::Block { id: Bytes::copy_from_slice(&id.to_array()), size }
            };
            let put = wire::Put { blocks: ids.iter().zip(&bodies).map(block).collect() };
            let kept = match link.ask((Ask::Put(put), bodies), PUT_PATIENCE).await {
                Ok((Answer::Kept(kept), _)) if kept.outcomes.len() == ids.len() => kept.outcomes().collect(),
                _ => vec![Outcome::Failed; ids.len()],
            };
            ids.into_iter().zip(kept).collect::<Vec<_>>()
        });
        outcomes.extend(futures::future::join_all(sends).await.into_iter().flatten());
        outcomes
    }

    /// LBFS on the wire: asks for missing ids first. What the node holds goes into `outcomes`.
    async fn lacking(
        &self,
        link: &Exchange<BlockService>,
        blocks: Vec<(BlockId, Bytes)>,
        outcomes: &mut Vec<(BlockId, Outcome)>,
    ) -> Result<Vec<(BlockId, Bytes)>, Silent> {
        if blocks.iter().map(|(_, body)| body.len()).sum::<usize>() < ASK_FIRST {
            return Ok(blocks);
        }
        let ids = blocks.iter().map(|(id, _)| Bytes::copy_from_slice(&id.to_array())).collect();
        let asked = link.ask((Ask::Has(wire::Has { ids }), Vec::new()), PUT_PATIENCE).await?;
        let (Answer::Held(wire::Held { held }), _) = asked else { return Err(Silent) };
        if held.len() != blocks.len() {
            return Err(Silent);
        }
        let mut lacking = Vec::new();
        for (block, held) in blocks.into_iter().zip(held) {
            if held {
                outcomes.push((block.0, Outcome::Stored));
            } else {
                lacking.push(block);
            }
        }
        Ok(lacking)
    }

    /// A block, and the holders that should have had it and did not.
    async fn get(&self, id: BlockId) -> Result<(Bytes, Vec<NodeId>), BlockError> {
        let holders: BTreeSet<NodeId> = self.ring.holders(&id, self.copies).into_iter().collect();
        let (mut order, others): (Vec<_>, Vec<_>) =
            self.ring.ranked(&id).into_iter().partition(|node| holders.contains(node));
        self.times.lock().quickest_first(&mut order);
        order.sort_by_key(|node| self.links[node].is_resting());
        let mut waiting: VecDeque<NodeId> = order.into_iter().chain(others).collect();
        let mut asked = FuturesUnordered::new();
        let (mut lacking, mut silent) = (Vec::new(), false);
        loop {
            if asked.is_empty() {
                let Some(node) = waiting.pop_front() else {
                    return Err(match silent {
                        true => BlockError::Unavailable(format!("no reachable storage node has block {id}")),
                        false => BlockError::Missing(id),
                    });
                };
                asked.push(self.get_from(node, id));
            }
            let hedge = self.times.lock().hedge_after();
            tokio::select! {
                Some((node, got)) = asked.next() => match got {
                    Ok(Some(body)) => return Ok((body, lacking)),
                    Ok(None) => if holders.contains(&node) { lacking.push(node) },
                    Err(Silent) => silent = true,
                },
                () = tokio::time::sleep(hedge), if !waiting.is_empty() => {
                    let node = waiting.pop_front().expect("just seen");
                    asked.push(self.get_from(node, id));
                }
            }
        }
    }

    async fn get_from(&self, node: NodeId, id: BlockId) -> (NodeId, Result<Option<Bytes>, Silent>) {
        let mut clocked = Clocked { times: &self.times, node, started: Instant::now(), answered: false };
        let get = wire::Get { id: Bytes::copy_from_slice(&id.to_array()) };
        let answer = self.links[&node].ask((Ask::Get(get), Vec::new()), GET_PATIENCE).await;
        clocked.answered = answer.is_ok();
        drop(clocked);
        let got = match answer {
            Ok((Answer::Got(_), mut bodies)) => match bodies.pop() {
                Some(body) if *blake3::hash(&body).as_bytes() != id.hash => {
                    self.lies.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(node = node.0, %id, "a storage node sent what is not the block; asking another");
                    Ok(None)
                }
                body => Ok(body),
            },
            Ok(_) | Err(Silent) => Err(Silent),
        };
        (node, got)
    }
}

/// Takes the time of one question, also of one that was given up because another node was quicker:
/// else a slow node would never be known for slow.
struct Clocked<'a> {
    times: &'a Mutex<Times>,
    node: NodeId,
    started: Instant,
    answered: bool,
}

impl Drop for Clocked<'_> {
    fn drop(&mut self) {
        self.times.lock().took(self.node, self.started.elapsed(), self.answered);
    }
}

/// Groups blocks into put messages.
fn batches(blocks: Vec<(BlockId, Bytes)>) -> Vec<Vec<(BlockId, Bytes)>> {
    let (mut batches, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for block in blocks {
        if bytes + block.1.len() > PUT_TARGET && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += block.1.len();
        batch.push(block);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

impl Times {
    fn took(&mut self, node: NodeId, time: Duration, answered: bool) {
        if answered {
            if self.recent.len() == TIMES_MAX {
                self.recent.pop_front();
            }
            self.recent.push_back(time);
            self.since += 1;
        }
        let average = self.average.entry(node).or_insert(time);
        *average = (*average * 7 + time) / 8;
    }

    /// The observed 95th percentile, within bounds.
    fn hedge_after(&mut self) -> Duration {
        if self.since > 0 && self.since * SLOW_EVERY >= self.recent.len() {
            (self.slow, self.since) = (Some(self.percentile()), 0);
        }
        self.slow.map_or(HEDGE_MAX, |slow| slow.clamp(HEDGE_MIN, HEDGE_MAX))
    }

    fn percentile(&self) -> Duration {
        let mut times: Vec<Duration> = self.recent.iter().copied().collect();
        let at = (times.len() * 95 / 100).min(times.len() - 1);
        *times.select_nth_unstable(at).1
    }

    fn quickest_first(&self, nodes: &mut [NodeId]) {
        // Nodes alike within a millisecond keep the ring's order, which spreads the load.
        nodes.sort_by_key(|node| self.average.get(node).map_or(0, Duration::as_millis));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_nodes_are_asked_last_and_the_hedge_follows_the_p95() {
        let mut times = Times::default();
        assert_eq!(times.hedge_after(), HEDGE_MAX);
        for _ in 0..94 {
            times.took(NodeId(1), Duration::from_millis(20), true);
        }
        for _ in 0..6 {
            times.took(NodeId(2), Duration::from_millis(300), true);
        }
        assert_eq!(times.hedge_after(), Duration::from_millis(300));
        let mut order = [NodeId(2), NodeId(1), NodeId(3)];
        times.quickest_first(&mut order);
        assert_eq!(order, [NodeId(3), NodeId(1), NodeId(2)]);
    }

    #[test]
    fn put_messages_are_bounded() {
        let block = |n: u8| (BlockId::blake3([n; 32]), Bytes::from(vec![n; 300 << 10]));
        let batches = batches((0..10).map(block).collect());
        assert!(batches.iter().all(|batch| batch.iter().map(|block| block.1.len()).sum::<usize>() <= PUT_TARGET));
        assert_eq!(batches.concat(), (0..10).map(block).collect::<Vec<_>>());
    }
}
