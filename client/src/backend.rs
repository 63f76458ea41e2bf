//! What the filesystem needs from the cluster.
//!
//! Two traits, implemented by the real session and block client, and by in-process twins in tests.
//! `Arc`s of either are either, so one client can carry several mounted volumes.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use base::{BlockId, Time};
use bytes::Bytes;
use futures::future::BoxFuture;
use meta::{Answer, Batch, Call, Content, Denied, Ino, State};
use tokio::time::Instant;

/// The longest that somebody else's lease may have to be waited out.
const LEASED_MAX: Duration = Duration::from_secs(90);
/// How long to wait before asking again for what somebody else holds: at first, and at most.
const LEASED_PAUSE: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(100));

/// How long to wait before asking again for a lock: at first, and at most.
pub const LOCK_PAUSE: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(100));
/// Requests that a session has under way at once. While they are, further calls gather into the next request:
/// a signature costs every replica a verification, so few large requests beat many small ones.
pub const OUTSTANDING_MAX: usize = 4;
/// How long a call may wait for the cluster before it fails.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a session waits for replies before a request is sent to all replicas.
pub const RETRANSMIT: Duration = Duration::from_millis(300);

/// Writes down all that was written, before leases are given back.
pub type Flush = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Forgets all that is remembered because [`Metadata::lasts`] said so.
pub type Forget = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Something that is about to be named, and must be stored before.
pub trait Unstored: Send + Sync {
    /// Waits until it is stored; may be called more than once.
    fn stored(&self) -> BoxFuture<'static, Result<(), Unavailable>>;

    /// It will not be named, and need not be stored.
    fn give_up(&self);
}

/// What a commit waits for.
pub type Ready = Arc<dyn Unstored>;

/// Something that was done here and that replicas will never have.
#[derive(Clone, Debug)]
pub struct LostCall {
    /// What.
    pub call: Call,
    /// The inode that it made.
    pub made: Option<Ino>,
}

/// What a client did while it was cut off, and lost with its leases.
pub struct Loss {
    /// In order.
    pub calls: Vec<LostCall>,
    /// The files on which locks were lost.
    pub locked: Vec<Ino>,
    /// What is gone because of what was done.
    pub removed: HashSet<Ino>,
    /// The namespace as this client saw it, as far as it had leases on it still.
    pub seen: State,
}

impl std::fmt::Debug for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loss").field("calls", &self.calls.len()).field("locked", &self.locked).finish_non_exhaustive()
    }
}

/// Takes what is lost, in the moment when it is: must not wait for anything, nor call back.
pub type TakeLoss = Arc<dyn Fn(Loss) + Send + Sync>;

/// The replicated namespace, as a session sees it.
pub trait Metadata: Send + Sync + 'static {
    /// Orders a batch as one signed request and applies its calls in order; one answer a call, in
    /// order. At most [`meta::BATCH_MAX`] calls.
    ///
    /// # Errors
    /// If no answer that enough replicas agree on came: the calls may or may not have been applied.
    fn batch(&self, batch: Batch) -> impl Future<Output = Result<Vec<Answer>, Unavailable>> + Send;

    /// Calls in nobody's name but the signer's. Where somebody else has a lease, waits until it is over.
    ///
    /// # Errors
    /// As [`Metadata::batch`].
    fn calls(&self, calls: Vec<Call>) -> impl Future<Output = Result<Vec<Answer>, Unavailable>> + Send {
        async move {
            let mut answers = self.batch(Batch::new(calls.clone())).await?;
            let mut patience = Patience::new();
            while let Some(leased) = leased(&calls, &answers) {
                patience.wait().await?;
                let again = leased.iter().map(|index| calls[*index].clone()).collect();
                let again = self.batch(Batch::new(again)).await?;
                leased.into_iter().zip(again).for_each(|(index, answer)| answers[index] = answer);
            }
            Ok(answers)
        }
    }

    /// Calls that replicas must not hear of before `ready`.
    ///
    /// # Errors
    /// As [`Metadata::batch`], or as `ready`.
    fn calls_after(
        &self,
        calls: Vec<Call>,
        ready: Ready,
    ) -> impl Future<Output = Result<Vec<Answer>, Unavailable>> + Send {
        async move {
            ready.stored().await?;
            self.calls(calls).await
        }
    }

    /// One call that changes nothing, answered as it was at some moment not longer than `max_age` ago.
    /// It is ordered, and so of now, unless there is another way.
    ///
    /// # Errors
    /// As [`Metadata::batch`].
    fn read(&self, call: Call, _max_age: Duration) -> impl Future<Output = Result<Answer, Unavailable>> + Send {
        async move {
            let mut answers = self.calls(vec![call]).await?;
            answers.pop().ok_or_else(|| Unavailable("the replicas answered nothing".into()))
        }
    }

    /// Whether what is done to this inode is kept here for a while, for nobody else can see it.
    fn keeps(&self, _ino: Ino) -> bool {
        false
    }

    /// For how long nobody else can have seen this inode at least; `None` if somebody may now.
    fn kept_for(&self, _ino: Ino) -> Option<Duration> {
        None
    }

    /// The agreed time, as long as what is done to this inode is kept here.
    fn time_of(&self, _ino: Ino) -> Option<Time> {
        None
    }

    /// Files that are worth having at hand soon, now that this one is read from its beginning.
    fn ahead_of(&self, _ino: Ino) -> Vec<(Ino, Content)> {
        Vec::new()
    }

    /// Counts how often something stopped being this client's alone.
    fn generation(&self) -> u64 {
        0
    }

    /// For how long nobody else can change this inode, or if it is a directory its names: so long may be
    /// remembered what was asked of it in this generation, unless [`Metadata::before_sharing`] calls
    /// before. Zero if others may change it, or that generation is over.
    fn lasts(&self, _ino: Ino, _generation: u64) -> Duration {
        Duration::ZERO
    }

    /// Says how what was remembered is forgotten. It is called, and waited for, before others may change it.
    fn before_sharing(&self, _forget: Forget) {}

    /// Returns when replicas have all that was done here.
    ///
    /// # Errors
    /// If they do not, or never will.
    fn sync(&self) -> impl Future<Output = Result<(), Unavailable>> + Send {
        async { Ok(()) }
    }

    /// Returns when replicas have all that was done here, or it is lost: whoever takes losses was told by then.
    ///
    /// # Errors
    /// If replicas can't be reached.
    fn settle(&self) -> impl Future<Output = Result<(), Unavailable>> + Send {
        self.sync()
    }

    /// Says who takes what is lost.
    fn before_losing(&self, _take: TakeLoss) {}

    /// Whoever has this file open has forgotten content of it that was lost: until then commits that build on it
    /// are refused as [`Denied::Stale`].
    fn forget_content(&self, _ino: Ino) {}

    /// Waits until others may want what this client has leases on.
    fn recalled(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Whether locks on this file were lost that somebody here may rely on still.
    fn has_lost_locks(&self, _ino: Ino) -> bool {
        false
    }

    /// Says whether the locks on this file that somebody here has are his still; asks, if the time is up for
    /// which that is known.
    ///
    /// # Errors
    /// If replicas can't be reached.
    fn keeps_locks(&self, _ino: Ino) -> impl Future<Output = Result<bool, Unavailable>> + Send {
        async { Ok(true) }
    }

    /// Nobody relies any more on locks on this file that were lost: until then it is not changed.
    fn forget_lost(&self, _ino: Ino) {}

    /// Says what is to be done before a lease is given back.
    fn before_ceding(&self, _flush: Flush) {}

    /// Gives back all leases, once everything is sent.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Which calls were refused because somebody else has a lease; `None`: none.
pub(crate) fn leased(calls: &[Call], answers: &[Answer]) -> Option<Vec<usize>> {
    let leased = |answer: &Answer| *answer == Answer::Denied(Denied::Leased);
    let found = (0..answers.len()).filter(|index| leased(&answers[*index])).collect::<Vec<_>>();
    (answers.len() == calls.len() && !found.is_empty()).then_some(found)
}

/// Waiting for somebody else's lease to end.
#[derive(Debug)]
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience { until: Instant::now() + LEASED_MAX, pause: LEASED_PAUSE.0 }
    }

    /// Waits a little, longer each time.
    ///
    /// # Errors
    /// If it took too long.
    pub(crate) async fn wait(&mut self) -> Result<(), Unavailable> {
        if Instant::now() >= self.until {
            return Err(Unavailable("another client holds a lease on this and does not give it back".into()));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LEASED_PAUSE.1);
        Ok(())
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
    async fn batch(&self, batch: Batch) -> Result<Vec<Answer>, Unavailable> {
        M::batch(self, batch).await
    }

    async fn calls(&self, calls: Vec<Call>) -> Result<Vec<Answer>, Unavailable> {
        M::calls(self, calls).await
    }

    async fn calls_after(&self, calls: Vec<Call>, ready: Ready) -> Result<Vec<Answer>, Unavailable> {
        M::calls_after(self, calls, ready).await
    }

    async fn read(&self, call: Call, max_age: Duration) -> Result<Answer, Unavailable> {
        M::read(self, call, max_age).await
    }

    fn keeps(&self, ino: Ino) -> bool {
        M::keeps(self, ino)
    }

    fn kept_for(&self, ino: Ino) -> Option<Duration> {
        M::kept_for(self, ino)
    }

    fn generation(&self) -> u64 {
        M::generation(self)
    }

    fn lasts(&self, ino: Ino, generation: u64) -> Duration {
        M::lasts(self, ino, generation)
    }

    fn before_sharing(&self, forget: Forget) {
        M::before_sharing(self, forget);
    }

    async fn sync(&self) -> Result<(), Unavailable> {
        M::sync(self).await
    }

    async fn settle(&self) -> Result<(), Unavailable> {
        M::settle(self).await
    }

    fn before_losing(&self, take: TakeLoss) {
        M::before_losing(self, take);
    }

    fn forget_content(&self, ino: Ino) {
        M::forget_content(self, ino);
    }

    async fn recalled(&self) {
        M::recalled(self).await;
    }

    fn has_lost_locks(&self, ino: Ino) -> bool {
        M::has_lost_locks(self, ino)
    }

    async fn keeps_locks(&self, ino: Ino) -> Result<bool, Unavailable> {
        M::keeps_locks(self, ino).await
    }

    fn forget_lost(&self, ino: Ino) {
        M::forget_lost(self, ino);
    }

    fn before_ceding(&self, flush: Flush) {
        M::before_ceding(self, flush);
    }

    async fn close(&self) {
        M::close(self).await;
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
