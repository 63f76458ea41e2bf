//! Sealed blocks on their way to the storage nodes.
//!
//! A block stays here, readable, until the store says it is durable; a put that failed is kept for
//! the next [`Outbox::settle`]. *Data down before the name goes up*: content is only committed once
//! everything it names has settled.

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
    queue: VecDeque<BlockId>,
    puts: usize,
    durable: Lru<BlockId, ()>,
    /// The latest failure for each file, until somebody was told.
    failures: BTreeMap<Ino, BlockError>,
    /// Files with somebody who waits for their blocks, and is told.
    settling: BTreeSet<Ino>,
}

#[derive(Debug)]
struct Pending {
    sealed: Bytes,
    status: Status,
    /// The files that wait for it.
    holders: BTreeSet<Ino>,
}

#[derive(Debug, PartialEq, Eq)]
enum Status {
    Queued,
    Sending,
    Failed(BlockError),
}

impl<B: BlockStore> Outbox<B> {
    pub(super) fn new(cache: Arc<BlockCache<B>>, budget: Arc<Budget>) -> Outbox<B> {
        let (blocks, queue) = (HashMap::new(), VecDeque::new());
        let (durable, failures, settling) = (Lru::new(DURABLE_MAX), BTreeMap::new(), BTreeSet::new());
        let state = State { blocks, queue, puts: 0, durable, failures, settling };
        Outbox { cache, budget, state: Mutex::new(state) }
    }

    /// The sealed bytes of a block that is not durable yet.
    pub(super) fn get(&self, id: BlockId) -> Option<Bytes> {
        self.state.lock().blocks.get(&id).map(|pending| pending.sealed.clone())
    }

    /// Takes blocks of the file `holder` and starts to put them.
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
                self.budget.adjust(0, cost);
                Pending { sealed, status: Status::Queued, holders: BTreeSet::new() }
            });
            pending.holders.insert(holder);
        }
        drop(state);
        self.pump();
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
            let Some(pending) = state.blocks.get_mut(id) else { continue };
            pending.holders.remove(&holder);
            if pending.holders.is_empty() && pending.status != Status::Sending {
                let cost = pending.sealed.len() as u64;
                state.blocks.remove(id);
                self.budget.adjust(cost, 0);
            }
        }
        let State { blocks, queue, .. } = &mut *state;
        queue.retain(|id| blocks.contains_key(id));
    }

    /// The latest failure to put a block of this file, if nobody was told yet.
    pub(super) fn take_failure(&self, holder: Ino) -> Option<FsError> {
        self.state.lock().failures.remove(&holder).map(FsError::from)
    }

    /// Whether anything is queued or being sent, so that room may come by itself.
    pub(super) fn is_moving(&self) -> bool {
        let state = self.state.lock();
        state.puts > 0 || !state.queue.is_empty()
    }

    /// The error of some put that failed and was not retried, if there is one.
    pub(super) fn failure(&self) -> Option<FsError> {
        self.state.lock().blocks.values().find_map(|pending| match &pending.status {
            Status::Failed(error) => Some(error.clone().into()),
            _ => None,
        })
    }

    /// Queues everything that failed again.
    pub(super) fn retry(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let State { blocks, queue, .. } = &mut *state;
        for (id, pending) in blocks.iter_mut() {
            if matches!(pending.status, Status::Failed(_)) {
                pending.status = Status::Queued;
                queue.push_back(*id);
            }
        }
        drop(state);
        self.pump();
    }

    /// Starts as many puts as may run.
    fn pump(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while state.puts < PUTS_MAX && !state.queue.is_empty() {
            let batch = state.next_batch();
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
        let State { blocks, durable, failures, settling, puts, .. } = &mut *state;
        *puts -= 1;
        let mut freed = 0;
        for id in ids {
            let Some(pending) = blocks.get_mut(id) else { continue };
            match &result {
                Err(error) if !pending.holders.is_empty() => {
                    pending.status = Status::Failed(error.clone());
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
    /// Takes what is durable out of `ids` and tries again what failed for the first time; once
    /// something failed twice, what was not sent yet is not sent. Says whether any is under way.
    fn settle_step(
        &mut self,
        ids: &mut BTreeSet<BlockId>,
        tried: &mut BTreeSet<BlockId>,
        failure: &mut Option<BlockError>,
    ) -> bool {
        let State { blocks, queue, .. } = self;
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
                (Status::Queued, Some(error)) => pending.status = Status::Failed(error.clone()),
                (Status::Queued | Status::Sending, _) => moving = true,
                (Status::Failed(_), None) => {
                    tried.insert(*id);
                    pending.status = Status::Queued;
                    queue.push_back(*id);
                    moving = true;
                }
            }
        }
        if failure.is_some() {
            queue.retain(|id| blocks[id].status == Status::Queued);
        }
        moving
    }

    fn next_batch(&mut self) -> Vec<(BlockId, Bytes)> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(id) = self.queue.front() {
            let pending = self.blocks.get_mut(id).expect("what is queued is pending");
            bytes += pending.sealed.len();
            if batch.len() == PUT_BLOCKS || (bytes > PUT_BYTES && !batch.is_empty()) {
                break;
            }
            pending.status = Status::Sending;
            batch.push((*id, pending.sealed.clone()));
            self.queue.pop_front();
        }
        batch
    }
}
