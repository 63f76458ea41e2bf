//! Sealed blocks on their way to the storage nodes.
//!
//! A block stays here, readable, until the store says it is durable; a put that failed is kept for
//! the next [`Outbox::settle`]. *Data down before the name goes up*: content is only committed once
//! everything it names has settled.
//!
//! Blocks are not sent one by one as they come: they wait until somebody waits for them, or until they
//! are many. So small files go many at a time, and what is removed soon is never sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::BlockId;
use bytes::Bytes;
use meta::Ino;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::error::{FsError, Result};
use crate::backend::{BlockError, BlockStore};
use crate::cache::{BlockCache, Lru};

/// Most puts under way.
const PUTS_MAX: usize = 8;
/// Most bytes in a put of more than one block.
const PUT_BYTES: usize = 1 << 20;
/// Most blocks in a put.
const PUT_BLOCKS: usize = 64;
/// How many bytes may be queued before they are sent though nobody waits for them.
const QUEUED_MAX: u64 = 16 << 20;
/// How many ids known to be durable are remembered, so that what did not change is not put again.
const DURABLE_MAX: u64 = 1 << 16;

/// How many bytes wait to be durable: written, or sealed and not yet put. Whoever waits for room is
/// woken whenever something changed.
#[derive(Debug, Default)]
pub(super) struct Budget {
    used: AtomicU64,
    pub(super) changed: Notify,
}

impl Budget {
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Accounts for something that cost `before` and now costs `after`.
    pub(super) fn adjust(&self, before: u64, after: u64) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::AcqRel);
        } else {
            self.used.fetch_sub(before - after, Ordering::AcqRel);
            self.changed.notify_waiters();
        }
    }
}

/// Blocks that are not durable yet.
#[derive(Debug)]
pub(super) struct Outbox<B> {
    cache: Arc<BlockCache<B>>,
    budget: Arc<Budget>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    blocks: HashMap<BlockId, Pending>,
    /// What somebody waits for, to be sent before the rest. What is not queued any more is passed over here and
    /// in `queue`.
    urgent: VecDeque<BlockId>,
    queue: VecDeque<BlockId>,
    tally: Tally,
    /// All that is queued is being sent.
    hurry: bool,
    puts: usize,
    durable: Lru<BlockId, ()>,
    /// The latest failure for each file, until somebody was told.
    failures: BTreeMap<Ino, BlockError>,
    /// Files with somebody who waits for their blocks, and is told.
    settling: BTreeSet<Ino>,
    /// Blocks of what is being saved because it was lost, and how many such savings there are.
    rescued: HashMap<BlockId, Bytes>,
    rescues: usize,
}

#[derive(Debug)]
struct Pending {
    sealed: Bytes,
    status: Status,
    /// It is among what is sent first.
    urgent: bool,
    /// The files that wait for it.
    holders: BTreeSet<Ino>,
}

/// What follows from the blocks' status.
#[derive(Debug, Default)]
struct Tally {
    /// How much is queued, bytes.
    queued: u64,
    failed: BTreeSet<BlockId>,
}

#[derive(Debug, PartialEq, Eq)]
enum Status {
    Queued,
    Sending,
    Failed(BlockError),
}

impl<B: BlockStore> Outbox<B> {
    pub(super) fn new(cache: Arc<BlockCache<B>>, budget: Arc<Budget>) -> Outbox<B> {
        let state = State {
            blocks: HashMap::new(),
            urgent: VecDeque::new(),
            queue: VecDeque::new(),
            tally: Tally::default(),
            hurry: false,
            puts: 0,
            durable: Lru::new(DURABLE_MAX),
            failures: BTreeMap::new(),
            settling: BTreeSet::new(),
            rescued: HashMap::new(),
            rescues: 0,
        };
        Outbox { cache, budget, state: Mutex::new(state) }
    }

    /// The sealed bytes of a block that is not durable yet.
    pub(super) fn get(&self, id: BlockId) -> Option<Bytes> {
        let state = self.state.lock();
        let pending = state.blocks.get(&id).map(|pending| &pending.sealed);
        pending.or_else(|| state.rescued.get(&id)).cloned()
    }

    /// Keeps what these files have here readable until [`Outbox::end_rescue`], whatever becomes of it.
    pub(super) fn rescue(&self, holders: &BTreeSet<Ino>) {
        let State { blocks, rescued, rescues, .. } = &mut *self.state.lock();
        *rescues += 1;
        let theirs = blocks.iter().filter(|(_, pending)| !pending.holders.is_disjoint(holders));
        rescued.extend(theirs.map(|(id, pending)| (*id, pending.sealed.clone())));
    }

    /// One of those who had blocks kept needs them no more.
    pub(super) fn end_rescue(&self) {
        let state = &mut *self.state.lock();
        state.rescues -= 1;
        if state.rescues == 0 {
            state.rescued = HashMap::new();
        }
    }

    /// Takes blocks of the file `holder`, to be put before long.
    pub(super) fn push(self: &Arc<Self>, holder: Ino, blocks: Vec<(BlockId, Bytes)>) {
        let mut state = self.state.lock();
        for (id, sealed) in blocks {
            if state.durable.get(&id).is_some() {
                continue;
            }
            let state = &mut *state;
            let cost = sealed.len() as u64;
            let pending = state.blocks.entry(id).or_insert_with(|| {
                state.queue.push_back(id);
                state.tally.queued += cost;
                self.budget.adjust(0, cost);
                Pending { sealed, status: Status::Queued, urgent: false, holders: BTreeSet::new() }
            });
            pending.holders.insert(holder);
        }
        drop(state);
        self.pump();
    }

    /// Keeps those of `ids` that are not durable yet for the file `holder`, too, and says which they are.
    pub(super) fn share(&self, holder: Ino, ids: impl Iterator<Item = BlockId>) -> BTreeSet<BlockId> {
        let mut state = self.state.lock();
        ids.filter(|id| {
            let pending = state.blocks.get_mut(id);
            pending.map(|pending| pending.holders.insert(holder)).is_some()
        })
        .collect()
    }

    /// Waits until every one of `ids` is durable, and takes those that are out of the list. What
    /// fails, or failed before, is tried once more.
    ///
    /// # Errors
    /// What failed again. The blocks are kept; none of them is under way then, so that nobody is
    /// told about the same failure later.
    pub(super) async fn settle(self: &Arc<Self>, holder: Ino, ids: &mut BTreeSet<BlockId>) -> Result<()> {
        self.state.lock().settling.insert(holder);
        let settled = self.settle_ids(ids).await;
        let mut state = self.state.lock();
        state.settling.remove(&holder);
        state.failures.remove(&holder);
        settled
    }

    async fn settle_ids(self: &Arc<Self>, ids: &mut BTreeSet<BlockId>) -> Result<()> {
        let (mut tried, mut failure) = (BTreeSet::new(), None);
        loop {
            let changed = self.budget.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let moving = self.state.lock().settle_step(ids, &mut tried, &mut failure);
            self.pump();
            if ids.is_empty() {
                return Ok(());
            }
            if !moving {
                return Err(failure.expect("what is pending and does not move has failed").into());
            }
            changed.await;
        }
    }

    /// Sends all that is queued.
    pub(super) fn hurry(self: &Arc<Self>) {
        self.state.lock().hurry = true;
        self.pump();
    }

    /// Takes those of `ids` that are durable by now out of the list.
    pub(super) fn prune(&self, ids: &mut BTreeSet<BlockId>) {
        let state = self.state.lock();
        ids.retain(|id| state.blocks.contains_key(id));
    }

    /// Lets go of blocks on behalf of a file whose content is given up.
    pub(super) fn discard(&self, holder: Ino, ids: &BTreeSet<BlockId>) {
        let mut state = self.state.lock();
        state.failures.remove(&holder);
        for id in ids {
            let State { blocks, tally, .. } = &mut *state;
            let Some(pending) = blocks.get_mut(id) else { continue };
            pending.holders.remove(&holder);
            if pending.holders.is_empty() && pending.status != Status::Sending {
                let cost = pending.sealed.len() as u64;
                tally.turn(*id, pending, Status::Sending);
                blocks.remove(id);
                self.budget.adjust(cost, 0);
            }
        }
    }

    /// The latest failure to put a block of this file, if nobody was told yet.
    pub(super) fn take_failure(&self, holder: Ino) -> Option<FsError> {
        self.state.lock().failures.remove(&holder).map(FsError::from)
    }

    /// Whether anything is being sent, so that room may come by itself; if not, what is queued is.
    pub(super) fn is_moving(self: &Arc<Self>) -> bool {
        self.hurry();
        self.state.lock().puts > 0
    }

    /// The error of some put that failed and was not retried, if there is one.
    pub(super) fn failure(&self) -> Option<FsError> {
        let state = self.state.lock();
        let failed = state.tally.failed.first()?;
        match &state.blocks.get(failed)?.status {
            Status::Failed(error) => Some(error.clone().into()),
            _ => None,
        }
    }

    /// Queues everything that failed again.
    pub(super) fn retry(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let State { blocks, queue, tally, .. } = &mut *state;
        for id in std::mem::take(&mut tally.failed) {
            if let Some(pending) = blocks.get_mut(&id) {
                tally.turn(id, pending, Status::Queued);
                queue.push_back(id);
            }
        }
        drop(state);
        self.hurry();
    }

    /// Starts as many puts as may run.
    fn pump(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.hurry |= state.tally.queued >= QUEUED_MAX;
        state.forget_sent();
        while state.puts < PUTS_MAX {
            let batch = state.next_batch();
            if batch.is_empty() {
                break;
            }
            state.puts += 1;
            let outbox = self.clone();
            tokio::spawn(async move {
                let ids: Vec<_> = batch.iter().map(|(id, _)| *id).collect();
                let result = outbox.cache.store().put(batch).await;
                outbox.finished(&ids, result);
                outbox.pump();
            });
        }
    }

    fn finished(&self, ids: &[BlockId], result: std::result::Result<(), BlockError>) {
        let mut state = self.state.lock();
        let State { blocks, tally, durable, failures, settling, puts, .. } = &mut *state;
        *puts -= 1;
        let mut freed = 0;
        for id in ids {
            let Some(pending) = blocks.get_mut(id) else { continue };
            match &result {
                Err(error) if !pending.holders.is_empty() => {
                    tally.turn(*id, pending, Status::Failed(error.clone()));
                    let untold = pending.holders.iter().filter(|holder| !settling.contains(holder));
                    failures.extend(untold.map(|holder| (*holder, error.clone())));
                }
                outcome => {
                    freed += pending.sealed.len() as u64;
                    let pending = blocks.remove(id).expect("found above");
                    if outcome.is_ok() {
                        durable.insert(*id, (), 1);
                        self.cache.keep(*id, pending.sealed);
                    }
                }
            }
        }
        drop(state);
        self.budget.adjust(freed, 0);
        self.budget.changed.notify_waiters();
    }
}

impl State {
    /// Takes what is durable out of `ids`, has the rest sent, and tries again what failed for the first time;
    /// once something failed twice, what was not sent yet is not sent. Says whether any is under way.
    fn settle_step(
        &mut self,
        ids: &mut BTreeSet<BlockId>,
        tried: &mut BTreeSet<BlockId>,
        failure: &mut Option<BlockError>,
    ) -> bool {
        let State { blocks, urgent, tally, .. } = self;
        ids.retain(|id| blocks.contains_key(id));
        let failed_twice = |id: &BlockId| match &blocks[id].status {
            Status::Failed(error) if tried.contains(id) => Some(error.clone()),
            _ => None,
        };
        *failure = failure.take().or_else(|| ids.iter().find_map(failed_twice));
        let mut moving = false;
        for id in ids.iter() {
            let pending = blocks.get_mut(id).expect("retained above");
            match (&pending.status, &*failure) {
                (Status::Failed(_), Some(_)) => {}
                (Status::Queued, Some(error)) => {
                    tally.turn(*id, pending, Status::Failed(error.clone()));
                }
                (Status::Sending, _) => moving = true,
                (Status::Queued, None) => {
                    if !std::mem::replace(&mut pending.urgent, true) {
                        urgent.push_back(*id);
                    }
                    moving = true;
                }
                (Status::Failed(_), None) => {
                    tried.insert(*id);
                    tally.turn(*id, pending, Status::Queued);
                    pending.urgent = true;
                    urgent.push_back(*id);
                    moving = true;
                }
            }
        }
        moving
    }

    /// Takes what went as urgent from the front of the queue.
    fn forget_sent(&mut self) {
        let queued = |id| self.blocks.get(id).is_some_and(|pending: &Pending| pending.status == Status::Queued);
        let sent = self.queue.iter().take_while(|id| !queued(id)).count();
        self.queue.drain(..sent);
    }

    /// The next blocks to be sent together: first what somebody waits for, then the rest if it is to go.
    fn next_batch(&mut self) -> Vec<(BlockId, Bytes)> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < PUT_BLOCKS {
            let from = match self.urgent.is_empty() {
                false => &mut self.urgent,
                true if self.hurry => &mut self.queue,
                true => break,
            };
            let Some(id) = from.front() else {
                self.hurry = false;
                break;
            };
            if let Some(pending) = self.blocks.get_mut(id).filter(|pending| pending.status == Status::Queued) {
                bytes += pending.sealed.len();
                if bytes > PUT_BYTES && !batch.is_empty() {
                    break;
                }
                self.tally.turn(*id, pending, Status::Sending);
                batch.push((*id, pending.sealed.clone()));
            }
            from.pop_front();
        }
        batch
    }
}

impl Tally {
    fn turn(&mut self, id: BlockId, pending: &mut Pending, status: Status) {
        let cost = pending.sealed.len() as u64;
        match std::mem::replace(&mut pending.status, status) {
            Status::Queued => self.queued -= cost,
            Status::Failed(_) => drop(self.failed.remove(&id)),
            Status::Sending => {}
        }
        pending.urgent = false;
        match pending.status {
            Status::Queued => self.queued += cost,
            Status::Failed(_) => drop(self.failed.insert(id)),
            Status::Sending => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::StoreSpace;
    use crate::cache::CacheOptions;

    /// Keeps the batches that were put.
    #[derive(Debug, Default)]
    struct Shelf(Mutex<Vec<Vec<BlockId>>>);

    impl Shelf {
        fn taken(&self) -> Vec<BlockId> {
            self.0.lock().concat()
        }
    }

    impl BlockStore for Shelf {
        async fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> std::result::Result<(), BlockError> {
            self.0.lock().push(blocks.into_iter().map(|(id, _)| id).collect());
            Ok(())
        }
        async fn get(&self, id: BlockId) -> std::result::Result<Bytes, BlockError> {
            Err(BlockError::Missing(id))
        }
        async fn space(&self) -> Option<StoreSpace> {
            None
        }
    }

    fn block(number: u32, len: usize) -> (BlockId, Bytes) {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        (BlockId::blake3(blake3::hash(&bytes).into()), Bytes::from(bytes))
    }

    fn outbox() -> (Arc<Shelf>, Arc<Outbox<Shelf>>) {
        let shelf = Arc::new(Shelf::default());
        let cache = Arc::new(BlockCache::new(shelf.clone(), &CacheOptions::default()));
        (shelf, Arc::new(Outbox::new(cache, Arc::new(Budget::default()))))
    }

    #[tokio::test]
    async fn small_blocks_wait_and_go_together() {
        let (shelf, outbox) = outbox();
        let blocks: Vec<_> = (0..100).map(|number| block(number, 4096)).collect();
        for (number, block) in blocks.iter().enumerate() {
            outbox.push(Ino(number as u64 % 10), vec![block.clone()]);
        }
        tokio::task::yield_now().await;
        assert!(shelf.taken().is_empty(), "nobody waits for them");

        // Whoever waits has its own sent, and nothing else.
        let mut own: BTreeSet<BlockId> = blocks.iter().skip(3).step_by(10).map(|(id, _)| *id).collect();
        let expected = own.clone();
        outbox.settle(Ino(3), &mut own).await.expect("stored");
        assert_eq!(BTreeSet::from_iter(shelf.taken()), expected);

        outbox.discard(Ino(4), &blocks.iter().map(|(id, _)| *id).collect());
        outbox.hurry();
        let mut rest: BTreeSet<BlockId> = blocks.iter().map(|(id, _)| *id).collect();
        outbox.settle(Ino(5), &mut rest).await.expect("stored");
        assert_eq!(shelf.taken().len(), 90, "each once, and none that was given up");
        assert_eq!(shelf.0.lock().len(), 3, "10, then {PUT_BLOCKS}, then what is left");
        let state = outbox.state.lock();
        assert_eq!((state.tally.queued, state.queue.len(), outbox.budget.used()), (0, 0, 0));
    }

    #[tokio::test]
    async fn what_is_rescued_is_readable_until_nobody_needs_it_whatever_becomes_of_it() {
        let (_, outbox) = outbox();
        let [ours, theirs] = [block(1, 4096), block(2, 4096)];
        outbox.push(Ino(1), vec![ours.clone()]);
        outbox.push(Ino(2), vec![theirs.clone()]);
        outbox.rescue(&BTreeSet::from([Ino(1)]));
        outbox.rescue(&BTreeSet::from([Ino(1)]));
        for (ino, block) in [(1, &ours), (2, &theirs)] {
            outbox.discard(Ino(ino), &BTreeSet::from([block.0]));
        }
        outbox.end_rescue();
        assert_eq!((outbox.get(ours.0), outbox.get(theirs.0)), (Some(ours.1), None));
        outbox.end_rescue();
        assert_eq!((outbox.get(ours.0), outbox.budget.used()), (None, 0));
    }

    #[tokio::test]
    async fn what_is_much_is_sent_unasked() {
        let (shelf, outbox) = outbox();
        let count = QUEUED_MAX / (256 << 10);
        for number in 0..count as u32 {
            tokio::task::yield_now().await;
            assert!(shelf.taken().is_empty(), "{number} of {count}");
            outbox.push(Ino(1), vec![block(number, 256 << 10)]);
        }
        while outbox.budget.used() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shelf.taken().len() as u64, count);
    }
}
