//! What the filesystem needs from the cluster.
//!
//! Two traits, implemented by the real session and block client, and by in-process twins in tests.
//! `Arc`s of either are either, so one client can carry several mounted volumes.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use base::BlockId;
use bytes::Bytes;

/// The replicated namespace, as a session sees it.
pub trait Metadata: Send + Sync + 'static {
    /// Orders `calls` as one signed request and applies them in order; one answer a call, in
    /// order. At most [`meta::BATCH_MAX`] calls.
    ///
    /// # Errors
    /// If no answer that enough replicas agree on came: the calls may or may not have been applied.
    fn calls(&self, calls: Vec<meta::Call>) -> impl Future<Output = Result<Vec<meta::Answer>, Unavailable>> + Send;

    /// One call that changes nothing, answered as it was at some moment not longer than `max_age` ago.
    /// It is ordered, and so of now, unless there is another way.
    ///
    /// # Errors
    /// As [`Metadata::calls`].
    fn read(
        &self,
        call: meta::Call,
        _max_age: Duration,
    ) -> impl Future<Output = Result<meta::Answer, Unavailable>> + Send {
        async move {
            let mut answers = self.calls(vec![call]).await?;
            answers.pop().ok_or_else(|| Unavailable("the replicas answered nothing".into()))
        }
    }
}

/// The block stores of a volume's nodes.
pub trait BlockStore: Send + Sync + 'static {
    /// Stores sealed blocks. When it returns, every one of them is durable on all holders that the
    /// volume's redundancy asks for. Asks for missing ids first and sends only those.
    ///
    /// # Errors
    /// If some of them may not be stored. Putting a block again is harmless.
    fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> impl Future<Output = Result<(), BlockError>> + Send;

    /// Fetches a sealed block whose bytes hash to `id`.
    ///
    /// # Errors
    /// If no holder gave such bytes.
    fn get(&self, id: BlockId) -> impl Future<Output = Result<Bytes, BlockError>> + Send;

    /// How much the nodes can hold; `None` if too few of them answered to say.
    fn space(&self) -> impl Future<Output = Option<StoreSpace>> + Send;
}

/// What a volume's nodes can hold, bytes, redundant copies counted once: with three copies and 30
/// GiB of free disk, `free` is 10 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSpace {
    /// Room for blocks in all.
    pub total: u64,
    /// Of it, not taken.
    pub free: u64,
}

/// Why blocks could not be put or fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Too few nodes have room.
    #[error("the storage nodes are full")]
    Full,
    /// Every node that should hold the block was asked, and none has it.
    #[error("block {0} is on none of its holders")]
    Missing(BlockId),
    /// Too few nodes answered.
    #[error("the storage nodes can't be reached: {0}")]
    Unavailable(String),
}

/// Why the namespace could not be asked: the cause, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the replicas can't be reached: {0}")]
pub struct Unavailable(pub String);

impl<M: Metadata> Metadata for Arc<M> {
    async fn calls(&self, calls: Vec<meta::Call>) -> Result<Vec<meta::Answer>, Unavailable> {
        M::calls(self, calls).await
    }

    async fn read(&self, call: meta::Call, max_age: Duration) -> Result<meta::Answer, Unavailable> {
        M::read(self, call, max_age).await
    }
}

impl<B: BlockStore> BlockStore for Arc<B> {
    async fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> Result<(), BlockError> {
        B::put(self, blocks).await
    }

    async fn get(&self, id: BlockId) -> Result<Bytes, BlockError> {
        B::get(self, id).await
    }

    async fn space(&self) -> Option<StoreSpace> {
        B::space(self).await
    }
}
