//! A mounted volume as POSIX operations: what every door (the mount, backup) is made of.
//!
//! Writes go to memory and are cut, sealed and put in the background within a bound; `flush` and
//! `fsync` return when all holders have the data and the replicas name it. Other mounts see a file
//! as it was when they opened it, or newer (close-to-open consistency). Attributes and names are
//! asked of the replicas every time, except what was changed here and is not committed yet; what only
//! looks may be answered by one of them, with proof, if the options allow it to be a little old.
//!
//! Where to look: `names`, `attrs`, `xattr` and `acl` are the namespace; `handles` opens, flushes and closes;
//! `adopt` takes over handles of a process that is gone;
//! `opening` keeps what loses its name while it is opened; `data` reads and writes; `locks`
//! keeps others out, and `append` is a write to the end among others; `copy` shares what is sealed; `file` is
//! what is known of an open file; `overlay`, `layout` and `view` say where its bytes are; `stage`, `outbox`
//! and `commit` are the way down; `room` keeps the bound; `chunks` is the way up. Where that was for nothing,
//! because leases ended before, `losses` knows who is to be told, and `lost` keeps what can be kept.

mod acl;
mod adopt;
mod append;
mod attrs;
mod chunks;
mod commit;
mod copy;
mod data;
mod error;
mod file;
mod handles;
mod layout;
mod locks;
mod losses;
mod lost;
mod names;
mod opening;
mod outbox;
mod overlay;
mod patch;
mod room;
mod snapshots;
mod stage;
mod trash;
mod view;
mod writing;
mod xattr;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chunk::{Cutter, Sizes, VolumeKeys};
use futures::stream::{self, StreamExt as _};
use meta::{Answer, Attr, Call, Caller, Denied, Ino, Op, Reply, Volume};
use parking_lot::Mutex;

use crate::backend::{BlockStore, Forget, Metadata, StoreSpace};
use crate::cache::{BlockCache, CacheCounts, CacheOptions};
use chunks::Chunks;
use file::OpenFile;
use outbox::{Budget, Outbox};

pub use adopt::first_handle;
pub use attrs::{SetAttr, VolumeSpace};
pub use data::{Fallocate, Seek};
pub use error::{FsError, Result};
pub use handles::{Handle, OpenFlags, Opened};
pub use locks::{FileLock, LockWait};
pub use losses::Doubt;
pub use lost::utc;
pub use names::{Entries, Entry, NewMode};

/// How long a volume that is unmounted waits for patches to be folded.
const FOLDING_MAX: Duration = Duration::from_secs(5);
/// How many files are committed at a time.
const COMMITS_MAX: usize = 256;

/// How a mounted volume uses this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The block cache.
    pub cache: CacheOptions,
    /// How much may be written and not yet durable, bytes; writers wait beyond it.
    pub dirty_bytes_max: u64,
    /// How much must be written to a file in one run before that is put in the background, bytes.
    pub stage_bytes: u64,
    /// How far to read ahead of a sequential reader at most, bytes.
    pub read_ahead_bytes: u64,
    /// After how long a change is committed though nobody asked for it.
    pub write_back: Duration,
    /// For how long the attributes of a file that is being written to here are not asked for again.
    pub dirty_attr_ttl: Duration,
    /// For how long a file whose last name was removed is kept for others who found that name just before.
    pub linger: Duration,
    /// How old names, attributes and links may be that one replica proves; `None`: every one is ordered.
    pub max_age: Option<Duration>,
    /// The folder of this machine that gets a folder for each loss, with what could be kept of what was done here
    /// and lost because this mount was cut off; `None`: nothing is kept.
    pub lost: Option<PathBuf>,
    /// How much content may be in there, bytes.
    pub lost_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache: CacheOptions::default(),
            dirty_bytes_max: 64 << 20,
            stage_bytes: 4 << 20,
            read_ahead_bytes: 16 << 20,
            write_back: Duration::from_secs(30),
            dirty_attr_ttl: Duration::from_secs(1),
            linger: Duration::from_secs(5),
            max_age: None,
            lost: None,
            lost_bytes_max: 10 << 30,
        }
    }
}

/// A mounted volume. Cheap to share; every method may be called from any number of tasks.
///
/// Dropping it stops its background work and loses what was written and neither flushed nor
/// committed: call [`Filesystem::sync_all`] first.
#[derive(Debug)]
pub struct Filesystem<M, B> {
    shared: Arc<Shared<M, B>>,
    background: tokio::task::AbortHandle,
}

/// What the tasks of a mounted volume share.
struct Shared<M, B> {
    metadata: M,
    /// The volume's snapshots, as they were listed last.
    ways: Mutex<trash::Ways>,
    snapshots: Mutex<Option<(Instant, Vec<meta::Snapshot>)>>,
    volume: Volume,
    options: Options,
    cutter: Arc<Cutter>,
    chunks: Arc<Chunks<B>>,
    outbox: Arc<Outbox<B>>,
    budget: Arc<Budget>,
    /// Files that are open, or were written to and are not committed; and for each how many
    /// handles it has.
    files: Mutex<HashMap<Ino, (Arc<OpenFile>, usize)>>,
    handles: Mutex<HashMap<Handle, Arc<handles::Open>>>,
    next_handle: AtomicU64,
    /// What is being opened, and what lost its last name. Locked before `files`.
    opening: Mutex<opening::Opening>,
    /// A lock was given back here.
    released: tokio::sync::Notify,
    /// Held by the one writer that makes room.
    relief: tokio::sync::Mutex<()>,
    /// Held by whoever folds patches.
    folding: tokio::sync::Mutex<()>,
    losses: Arc<losses::Losses>,
    space: Mutex<StoreSpace>,
    /// How many threads may seal at a time.
    threads: usize,
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// Mounts `volume`, whose opened `secret` this is. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// If the volume's chunk sizes make no sense.
    pub fn open_volume(
        metadata: M,
        blocks: B,
        volume: Volume,
        secret: &[u8; 32],
        options: Options,
    ) -> Result<Filesystem<M, B>> {
        let keys = VolumeKeys::new(secret);
        let meta::Chunking { min, average, max } = volume.spec.chunking;
        let sizes = Sizes::new(min, average, max).map_err(|why| FsError::Corrupt(why.to_string()))?;
        let budget = Arc::new(Budget::default());
        let cache = Arc::new(BlockCache::new(Arc::new(blocks), &options.cache));
        let outbox = Arc::new(Outbox::new(cache.clone(), budget.clone()));
        let cutter = Arc::new(Cutter::new(sizes, &keys));
        let chunks = Arc::new(Chunks::new(keys, cache, outbox.clone(), options.cache.opened_bytes));
        let (losses, lots) = losses::Losses::new(options.lost.clone());
        let (taking, rescuing) = (losses.clone(), outbox.clone());
        metadata.before_losing(Arc::new(move |loss| taking.take(loss, &rescuing)));
        let shared = Arc::new(Shared {
            metadata,
            ways: Mutex::default(),
            snapshots: Mutex::default(),
            volume,
            options,
            cutter,
            chunks,
            outbox,
            budget,
            files: Mutex::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(first_handle()),
            opening: Mutex::default(),
            released: tokio::sync::Notify::new(),
            relief: tokio::sync::Mutex::default(),
            folding: tokio::sync::Mutex::default(),
            losses,
            space: Mutex::default(),
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        });
        let weak = Arc::downgrade(&shared);
        let flushed = weak.clone();
        shared.metadata.before_ceding(Arc::new(move || {
            let weak = flushed.clone();
            Box::pin(async move {
                if let Some(shared) = weak.upgrade() {
                    // What fails stays, and is tried again.
                    let _ = shared.commit_all().await;
                }
            })
        }));
        tokio::spawn(lost::keep(weak, lots));
        let background = tokio::spawn(room::background(Arc::downgrade(&shared))).abort_handle();
        Ok(Filesystem { shared, background })
    }

    /// The volume that is mounted.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.shared.volume
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Ino {
        self.shared.volume.root
    }

    /// How often each part of the block cache had what was asked for.
    #[must_use]
    pub fn cache_counts(&self) -> CacheCounts {
        self.shared.chunks.cache().counts()
    }

    /// How much is written and not yet durable, bytes.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.shared.budget.used()
    }

    /// The kernel forgets `lookups` references to an inode. Nothing is kept for it here.
    pub fn forget(&self, _ino: Ino, _lookups: u64) {}

    /// Counts how often something stopped being this mount's alone.
    pub fn generation(&self) -> u64 {
        self.shared.metadata.generation()
    }

    /// For how long what was asked of this inode in this generation may be remembered: its attributes, and if
    /// it is a directory its names. See [`Metadata::lasts`].
    pub fn lasts(&self, ino: Ino, generation: u64) -> Duration {
        match self.shared.file(ino) {
            // Its times and the space it takes are estimates.
            Some(file) if file.is_dirty() => Duration::ZERO,
            _ => snapshots::lasts(ino, self.root()).unwrap_or_else(|| self.shared.metadata.lasts(ino, generation)),
        }
    }

    /// Says how what was remembered for so long is forgotten; see [`Metadata::before_sharing`].
    pub fn before_sharing(&self, forget: Forget) {
        self.shared.metadata.before_sharing(forget);
    }

    /// Commits everything that was written, for `sync(2)` and before unmounting.
    ///
    /// # Errors
    /// The first failure; the other files are committed all the same.
    pub async fn sync_all(&self) -> Result<()> {
        let committed = self.shared.commit_all().await;
        committed.and(self.sync_names().await)
    }

    /// Returns when replicas have every change of names and attributes that was made here.
    ///
    /// # Errors
    /// If they do not.
    pub async fn sync_names(&self) -> Result<()> {
        self.shared.sync_names().await
    }

    /// Puts what replicas keep of short writes that were synced into blocks. It is done in the background, and
    /// what can't be put stays with the replicas.
    pub async fn fold(&self) {
        self.shared.fold_all().await;
    }

    /// Commits everything and gives back what this mount has leases on; to be called last.
    ///
    /// # Errors
    /// As [`Filesystem::sync_all`].
    pub async fn close(&self) -> Result<()> {
        let synced = self.sync_all().await;
        if synced.is_ok() {
            // What is not folded by then stays with the replicas.
            let _ = tokio::time::timeout(FOLDING_MAX, self.fold()).await;
        }
        self.shared.metadata.close().await;
        self.keep_lost().await;
        synced
    }
}

impl<M, B> Drop for Filesystem<M, B> {
    fn drop(&mut self) {
        self.background.abort();
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Asks the replicas.
    async fn calls(&self, calls: Vec<Call>) -> Result<Vec<Answer>> {
        let count = calls.len();
        let answers = self.metadata.calls(calls).await?;
        match answers.as_slice() {
            answers if answers.len() == count => {}
            // A batch that is refused as a whole has one answer.
            [Answer::Denied(why)] => return Err((*why).into()),
            _ => return Err(FsError::Unavailable("fewer answers than calls".into())),
        }
        Ok(answers)
    }

    async fn call(&self, caller: &Caller, op: Op) -> Result<Reply> {
        match self.ask_special(caller, &op).await? {
            Some(reply) => Ok(reply),
            None => self.call_replicas(caller, op).await,
        }
    }

    async fn call_replicas(&self, caller: &Caller, op: Op) -> Result<Reply> {
        let mut answers = self.calls(vec![Call { caller: caller.clone(), op }]).await?;
        Ok(answers.pop().expect("as many answers as calls").into_result()?)
    }

    /// Asks for what changes nothing, and may be as old as the options allow.
    async fn look(&self, caller: &Caller, op: Op) -> Result<Reply> {
        if meta::is_of_snapshot(&op) {
            return self.call(caller, op).await;
        }
        match self.options.max_age {
            None => self.call(caller, op).await,
            Some(age) => Ok(self.metadata.read(Call { caller: caller.clone(), op }, age).await?.into_result()?),
        }
    }

    async fn look_attr(&self, caller: &Caller, op: Op) -> Result<Attr> {
        Ok(self.localize(attr_of(self.look(caller, op).await?)?))
    }

    async fn call_attr(&self, caller: &Caller, op: Op) -> Result<Attr> {
        Ok(self.localize(attr_of(self.call(caller, op).await?)?))
    }

    async fn call_unit(&self, caller: &Caller, op: Op) -> Result<()> {
        match self.call(caller, op).await? {
            Reply::Unit => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Attributes as this mount sees them.
    fn localize(&self, attr: Attr) -> Attr {
        self.file(attr.ino).map_or(attr, |file| file.localize(attr))
    }

    fn file(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.files.lock().get(&ino).map(|(file, _)| file.clone())
    }

    fn open_files(&self) -> Vec<Arc<OpenFile>> {
        self.files.lock().values().map(|(file, _)| file.clone()).collect()
    }

    async fn sync_names(&self) -> Result<()> {
        let synced = self.metadata.sync().await;
        synced.map_err(|why| self.outbox.failure().unwrap_or_else(|| why.into()))
    }

    /// Commits every file that was changed.
    async fn commit_all(self: &Arc<Self>) -> Result<()> {
        let files = self.open_files();
        let commits = files.iter().filter(|file| file.is_dirty()).map(|file| self.commit(file, Vec::new()));
        let results: Vec<_> = stream::iter(commits.collect::<Vec<_>>()).buffer_unordered(COMMITS_MAX).collect().await;
        self.forget_closed();
        results.into_iter().try_for_each(|result| result.map(drop))
    }

    /// Forgets files that nobody has open and that hold nothing uncommitted.
    fn forget_closed(&self) {
        self.files.lock().retain(|_, (file, handles)| *handles > 0 || !self.is_settled(file));
    }
}

impl<M, B> fmt::Debug for Shared<M, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("volume", &self.volume.id).finish_non_exhaustive()
    }
}

/// The attributes in a reply.
fn attr_of(reply: Reply) -> Result<Attr> {
    match reply {
        Reply::Attr(attr) | Reply::Created { attr, .. } | Reply::Renamed { moved: attr, .. } => Ok(attr),
        other => Err(unexpected(&other)),
    }
}

/// Replicas that agree answered something that is no answer to what was asked: they run another
/// version.
fn unexpected(reply: &Reply) -> FsError {
    tracing::warn!(?reply, "unexpected reply: do the replicas run another version?");
    FsError::Denied(Denied::Malformed)
}

/// A name as replicas keep it.
fn sealed_name(sealed: Vec<u8>) -> Result<meta::SealedName> {
    meta::SealedName::new(Bytes::from(sealed)).ok_or(FsError::NameTooLong)
}
