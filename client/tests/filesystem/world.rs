//! Twins of the cluster, and mounts of a volume on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::{BlockId, ClusterId, Decode as _, Encode as _, PublicKey, SecretKey, Time};
use bytes::Bytes;
use client::backend::{BlockError, BlockStore, Metadata, StoreSpace, Unavailable};
use client::cache::CacheOptions;
use client::fs::{Filesystem, FsError, Handle, OpenFlags, Opened, Options};
use client::leased::Leased;
use meta::{Answer, Attr, Batch, Call, Caller, Chunking, Genesis, Grant, Ino, Op, Redundancy, Reply, Uids};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub(crate) type Fs = Filesystem<Leased<Arc<Replicas>>, Arc<Stores>>;

pub(crate) const ROOT: Caller = Caller { uid: 0, gid: 0, groups: Vec::new() };
pub(crate) const SECRET: [u8; 32] = [42; 32];

/// The replicas: one state machine behind a lock.
#[derive(Debug)]
pub(crate) struct Replicas {
    state: Mutex<meta::State>,
    pub(crate) key: PublicKey,
    clock: AtomicUsize,
    pub(crate) requests: AtomicUsize,
    /// How many of the next answers are lost after the request was applied.
    pub(crate) lose_answers: AtomicUsize,
    /// For how long each request is kept before it fails, in seconds; 0: it is answered.
    pub(crate) away: AtomicUsize,
    /// How many come through before that.
    pub(crate) spare_answers: AtomicUsize,
    /// How many of the next answers about locks are held back until `answering`.
    pub(crate) held_answers: AtomicUsize,
    pub(crate) answering: watch::Sender<bool>,
    stores: Arc<Stores>,
    recalled: Notify,
    mounts: AtomicUsize,
}

impl Replicas {
    pub(crate) fn state(&self) -> meta::State {
        self.state.lock().clone()
    }

    /// Lets agreed time pass.
    #[allow(dead_code, reason = "only with leases")]
    pub(crate) fn pass(&self, time: std::time::Duration) {
        self.clock.fetch_add(time.as_nanos() as usize, Ordering::SeqCst);
    }

    /// Has holders of leases ask what others want.
    #[allow(dead_code, reason = "only with leases")]
    pub(crate) fn nudge(&self) {
        self.recalled.notify_waiters();
    }

    pub(crate) fn ask(&self, op: Op) -> Reply {
        let at = Time(self.clock.fetch_add(1_000_000, Ordering::SeqCst) as u64);
        let batch = Batch::new(vec![Call { caller: ROOT, op }]);
        let answer = self.state.lock().apply_batch(at, &self.key, &batch).pop().expect("an answer");
        answer.into_result().expect("done")
    }
}

impl Metadata for Replicas {
    async fn batch(&self, batch: Batch) -> Result<Vec<Answer>, Unavailable> {
        tokio::task::yield_now().await;
        self.requests.fetch_add(1, Ordering::SeqCst);
        let away = self.away.load(Ordering::SeqCst) as u64;
        if away > 0 {
            let patience = std::time::Duration::from_secs(away);
            let _ = tokio::time::timeout(patience, std::future::pending::<()>()).await;
            return Err(Unavailable("nobody answers".into()));
        }
        let batch = Batch::from_bytes(&batch.to_bytes()).expect("canonical");
        for call in &batch.calls {
            if let Op::Commit(commit) = &call.op {
                let root = commit.content.root;
                assert!(root.is_none_or(|root| self.stores.has(root)), "data down before the name goes up");
            }
        }
        let at = Time(self.clock.fetch_add(1_000_000, Ordering::SeqCst) as u64);
        let answers = {
            let mut state = self.state.lock();
            let answers = state.apply_batch(at, &self.key, &batch);
            if state.recalled().next().is_some() {
                self.recalled.notify_waiters();
            }
            answers
        };
        let less = |left: usize| left.checked_sub(1);
        // What is asked in the background goes on.
        let about_locks = batch.calls.iter().any(|call| matches!(call.op, Op::Lock(_)));
        if about_locks && self.held_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            let _ = self.answering.subscribe().wait_for(|answering| *answering).await;
        }
        if self.spare_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Ok(answers);
        }
        let lost = self.lose_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if lost.is_ok() { Err(Unavailable("the answer was lost".into())) } else { Ok(answers) }
    }

    async fn recalled(&self) {
        self.recalled.notified().await;
    }
}

/// The storage nodes: a map.
#[derive(Debug)]
pub(crate) struct Stores {
    blocks: Mutex<BTreeMap<BlockId, Bytes>>,
    /// What the next puts fail with.
    pub(crate) fail: Mutex<Option<BlockError>>,
    pub(crate) failures: AtomicUsize,
    pub(crate) puts: AtomicUsize,
    pub(crate) gets: AtomicUsize,
    /// Whether puts go through, or wait.
    pub(crate) open: watch::Sender<bool>,
}

impl Stores {
    fn has(&self, id: BlockId) -> bool {
        self.blocks.lock().contains_key(&id)
    }

    /// Whether a put waits for its answer.
    #[allow(dead_code, reason = "only without leases")]
    pub(crate) fn are_asked_to_put(&self) -> bool {
        self.open.receiver_count() > 0
    }

    pub(crate) fn ids(&self) -> BTreeSet<BlockId> {
        self.blocks.lock().keys().copied().collect()
    }

    /// All disks are gone.
    #[allow(dead_code, reason = "only with leases")]
    pub(crate) fn forget_all(&self) {
        self.blocks.lock().clear();
    }
}

impl BlockStore for Stores {
    async fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> Result<(), BlockError> {
        self.open.subscribe().wait_for(|open| *open).await.expect("the sender lives");
        tokio::task::yield_now().await;
        if let Some(error) = self.fail.lock().clone() {
            self.failures.fetch_add(1, Ordering::SeqCst);
            return Err(error);
        }
        self.puts.fetch_add(blocks.len(), Ordering::SeqCst);
        for (id, bytes) in &blocks {
            assert_eq!(*id, BlockId::blake3(blake3::hash(bytes).into()), "a block is named by its hash");
        }
        self.blocks.lock().extend(blocks);
        Ok(())
    }

    async fn get(&self, id: BlockId) -> Result<Bytes, BlockError> {
        tokio::task::yield_now().await;
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.blocks.lock().get(&id).cloned().ok_or(BlockError::Missing(id))
    }

    async fn space(&self) -> Option<StoreSpace> {
        Some(StoreSpace { total: 1 << 40, free: 1 << 39 })
    }
}

/// A cluster with one volume.
pub(crate) struct World {
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) stores: Arc<Stores>,
    pub(crate) volume: meta::Volume,
}

impl World {
    /// Chunks of 4 to 16 KiB, so that small files have several.
    pub(crate) fn new() -> World {
        World::with(Chunking { min: 4 << 10, average: 8 << 10, max: 16 << 10 }, 0)
    }

    pub(crate) fn with(chunking: Chunking, quota_bytes: u64) -> World {
        let key = SecretKey::from_seed(&[7; 32]).public();
        let principals = vec![(key, Grant { uids: Uids::Any, admin: true })];
        let state = meta::State::genesis(Genesis { cluster: ClusterId([1; 16]), principals });
        let stores = Arc::new(Stores {
            blocks: Mutex::default(),
            fail: Mutex::default(),
            failures: AtomicUsize::new(0),
            puts: AtomicUsize::new(0),
            gets: AtomicUsize::new(0),
            open: watch::channel(true).0,
        });
        let replicas = Arc::new(Replicas {
            state: Mutex::new(state),
            key,
            clock: AtomicUsize::new(1_700_000_000_000_000_000),
            requests: AtomicUsize::new(0),
            lose_answers: AtomicUsize::new(0),
            away: AtomicUsize::new(0),
            spare_answers: AtomicUsize::new(0),
            held_answers: AtomicUsize::new(0),
            answering: watch::channel(false).0,
            stores: stores.clone(),
            recalled: Notify::new(),
            mounts: AtomicUsize::new(0),
        });
        let spec = meta::VolumeSpec {
            name: "home".into(),
            quota_bytes,
            quota_inodes: 0,
            redundancy: Redundancy::Replicate(3),
            chunking,
            secrets: BTreeMap::new(),
            root_mode: 0o777,
            trash: 0,
        };
        let Reply::Volume(volume) = replicas.ask(Op::VolumeCreate(spec)) else { panic!("no volume") };
        World { replicas, stores, volume }
    }

    /// A mount as users have it, but for its size.
    pub(crate) fn mount(&self) -> Fs {
        self.mount_with(options())
    }

    /// A mount with so little memory that everything is put in the background all the time.
    pub(crate) fn cramped_mount(&self) -> Fs {
        self.mount_with(cramped())
    }

    pub(crate) fn mount_with(&self, options: Options) -> Fs {
        let names = self.names(crate::LEASED);
        Filesystem::open_volume(names, self.stores.clone(), self.volume.clone(), &SECRET, options).expect("mounted")
    }

    /// The namespace as one more mount reaches it.
    pub(crate) fn names(&self, leased: bool) -> Leased<Arc<Replicas>> {
        let (replicas, user, cluster) = (self.replicas.clone(), self.replicas.key, ClusterId([1; 16]));
        let holder = replicas.mounts.fetch_add(1, Ordering::SeqCst) as u64;
        match leased {
            true => Leased::new(replicas, cluster, user, holder, self.volume.root),
            false => Leased::ordered(replicas, cluster, user, holder),
        }
    }

    pub(crate) fn root(&self) -> Ino {
        self.volume.root
    }

    /// The whole of a file as a mount that was just made sees it.
    pub(crate) async fn read_afresh(&self, name: &str) -> Vec<u8> {
        let fs = self.mount();
        read_file(&fs, name).await
    }
}

/// Options of mounts that let go of files at once.
pub(crate) fn options() -> Options {
    Options { linger: std::time::Duration::ZERO, ..Options::default() }
}

/// Options of a [`World::cramped_mount`].
pub(crate) fn cramped() -> Options {
    let cache = CacheOptions { memory_bytes: 64 << 10, opened_bytes: 64 << 10, disk: None };
    Options { cache, dirty_bytes_max: 48 << 10, stage_bytes: 20 << 10, ..options() }
}

/// The whole of a file in the root directory.
pub(crate) async fn read_file(fs: &Fs, name: &str) -> Vec<u8> {
    let attr = fs.lookup(&ROOT, fs.root(), name.as_bytes()).await.expect("there");
    let opened = fs.open(&ROOT, attr.ino, OpenFlags::reading()).await.expect("opened");
    let bytes = read_all(fs, opened.handle).await;
    assert_eq!(bytes.len() as u64, opened.attr.size);
    fs.release(opened.handle).await.expect("released");
    bytes
}

pub(crate) async fn read_all(fs: &Fs, handle: Handle) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let bytes = fs.read(handle, all.len() as u64, 1 << 16).await.expect("readable");
        if bytes.is_empty() {
            return all;
        }
        all.extend_from_slice(&bytes);
    }
}

pub(crate) async fn create(fs: &Fs, name: &str) -> Opened {
    fs.create(&ROOT, fs.root(), name.as_bytes(), 0o644, OpenFlags::writing(), false).await.expect("created")
}

/// Makes a file in the root directory and closes it.
pub(crate) async fn write_file(fs: &Fs, name: &str, bytes: &[u8]) -> Attr {
    let opened = create(fs, name).await;
    write_all(fs, opened.handle, 0, bytes).await;
    close(fs, opened.handle).await;
    fs.getattr(&ROOT, opened.attr.ino).await.expect("there")
}

pub(crate) async fn write_all(fs: &Fs, handle: Handle, offset: u64, bytes: &[u8]) {
    for (index, part) in bytes.chunks(10_000).enumerate() {
        let at = offset + index as u64 * 10_000;
        let written = fs.write(handle, at, Bytes::copy_from_slice(part)).await.expect("written");
        assert_eq!(written as usize, part.len());
    }
}

pub(crate) async fn close(fs: &Fs, handle: Handle) {
    fs.flush(handle).await.expect("flushed");
    fs.release(handle).await.expect("released");
    // So that other mounts can use its number without having looked it up.
    fs.sync_names().await.expect("sent");
}

/// Bytes that do not compress and depend on `seed`.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Waits until something is so.
pub(crate) async fn until(mut so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !so() {
        assert!(started.elapsed().as_secs() < 60, "it will never be so");
        tokio::task::yield_now().await;
    }
}

pub(crate) fn denied<T: std::fmt::Debug>(result: Result<T, FsError>) -> meta::Denied {
    match result {
        Err(FsError::Denied(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

/// What a path leads to.
pub(crate) async fn find(fs: &Fs, path: &str) -> Ino {
    let mut ino = fs.root();
    for name in path.split('/') {
        ino = fs.lookup(&ROOT, ino, name.as_bytes()).await.unwrap_or_else(|why| panic!("{path}: {name}: {why}")).ino;
    }
    ino
}

/// The whole of the file that a path leads to.
pub(crate) async fn content(fs: &Fs, path: &str) -> Vec<u8> {
    let ino = find(fs, path).await;
    let opened = fs.open(&ROOT, ino, OpenFlags::reading()).await.expect("opened");
    let bytes = read_all(fs, opened.handle).await;
    assert_eq!(bytes.len() as u64, opened.attr.size);
    fs.release(opened.handle).await.expect("released");
    bytes
}

/// The names in a directory, in order.
pub(crate) async fn list(fs: &Fs, ino: Ino) -> Vec<String> {
    let (mut names, mut cookie, mut end) = (Vec::new(), 0, false);
    while !end {
        let listed = fs.readdir(&ROOT, ino, cookie, 100).await.expect("listed");
        cookie = listed.entries.last().map_or(cookie, |entry| entry.cookie);
        names.extend(listed.entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
        end = listed.end;
    }
    names.sort();
    names
}
