//! A cluster in memory: the real state machine without the agreement, and a map for the blocks; and what
//! mounting it takes.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::{BlockId, ClusterId, SecretKey, Time};
use bytes::Bytes;
use client::backend::{BlockError, BlockStore, Metadata, StoreSpace, Unavailable};
use client::fs::{Filesystem, Options};
use client::leased::Leased;
use fuse::wire::HelperError;
use fuse::{Mount, MountError, MountOptions, mount};
use meta::{
    Answer, Batch, Call, Caller, Chunking, Genesis, Grant, Op, Redundancy, Reply, State, Uids, Volume, VolumeSpec,
};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;

/// How long anything here may take before the test fails instead of hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: [u8; 32] = [7; 32];

/// The replicas and the nodes; clones are the same cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    blocks: Arc<Mutex<HashMap<BlockId, Bytes>>>,
    key: Arc<SecretKey>,
    reachable: watch::Sender<bool>,
    changeable: watch::Sender<bool>,
    changing: watch::Sender<usize>,
    waiting: watch::Sender<usize>,
    recalled: watch::Sender<BTreeSet<u64>>,
    mounts: Arc<AtomicU64>,
    /// By which number this client holds leases, if it does.
    pub(crate) holder: u64,
    pub(crate) volume: Volume,
}

impl Cluster {
    pub(crate) fn new() -> Cluster {
        let key = SecretKey::from_seed(&[1; 32]);
        let grant = Grant { uids: Uids::Any, admin: true };
        let genesis = Genesis { cluster: ClusterId([3; 16]), principals: vec![(key.public(), grant)] };
        let mut state = State::genesis(genesis);
        let make = |name: &str| {
            Op::VolumeCreate(VolumeSpec {
                name: name.into(),
                quota_bytes: 0,
                quota_inodes: 0,
                redundancy: Redundancy::Replicate(3),
                chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
                secrets: BTreeMap::new(),
                root_mode: 0o755,
                trash: 0,
            })
        };
        let caller = Caller {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: Vec::new(),
        };
        // The second one: its root is not inode 1, as the kernel would have it.
        let calls = ["first", "second"].map(|name| Call { caller: caller.clone(), op: make(name) });
        let mut answers = state.apply_batch(now(), &key.public(), &Batch::new(calls.into()));
        let Some(Answer::Done(Reply::Volume(volume))) = answers.pop() else { panic!("no volume: {answers:?}") };
        assert_ne!(volume.root.0, 1);
        Cluster {
            state: Arc::new(Mutex::new(state)),
            blocks: Arc::default(),
            key: Arc::new(key),
            reachable: watch::Sender::new(true),
            changeable: watch::Sender::new(true),
            changing: watch::Sender::new(0),
            waiting: watch::Sender::new(0),
            recalled: watch::Sender::new(BTreeSet::new()),
            mounts: Arc::new(AtomicU64::new(100)),
            holder: 0,
            volume,
        }
    }

    /// The volume, as one more client sees it.
    pub(crate) fn open(&self) -> Arc<Filesystem<Leased<Cluster>, Cluster>> {
        let holder = self.mounts.fetch_add(1, Ordering::Relaxed);
        let cluster = Cluster { holder, ..self.clone() };
        self.open_with(Leased::ordered(cluster, ClusterId([3; 16]), self.key.public(), holder))
    }

    /// The volume, its names by way of `names`.
    pub(crate) fn open_with<M: Metadata>(&self, names: M) -> Arc<Filesystem<M, Cluster>> {
        let (volume, options) = (self.volume.clone(), Options::default());
        Arc::new(Filesystem::open_volume(names, self.clone(), volume, &SECRET, options).unwrap())
    }

    /// One more client that takes leases, by this number.
    pub(crate) fn leased(&self, holder: u64) -> Leased<Cluster> {
        let cluster = Cluster { holder, ..self.clone() };
        Leased::new(cluster, ClusterId([3; 16]), self.key.public(), holder, self.volume.root)
    }

    /// Lets nobody change a name until [`Held::release`].
    #[must_use]
    pub(crate) fn hold_changes(&self) -> Held {
        self.changeable.send_replace(false);
        Held { cluster: self.clone(), before: *self.changing.borrow() }
    }

    /// Lets the replicas answer, or not.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        self.reachable.send_replace(reachable);
    }

    /// Waits until somebody waits for the replicas.
    pub(crate) async fn is_asked(&self) {
        self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await.unwrap();
    }
}

/// Changes of names that are held up.
pub(crate) struct Held {
    cluster: Cluster,
    before: usize,
}

impl Held {
    /// Waits until somebody is held up.
    pub(crate) async fn anybody(&self) {
        self.cluster.changing.subscribe().wait_for(|changing| *changing > self.before).await.unwrap();
    }

    pub(crate) fn release(self) {
        self.cluster.changeable.send_replace(true);
    }
}

fn now() -> Time {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time(wall.as_nanos() as u64)
}

impl Metadata for Cluster {
    async fn batch(&self, batch: Batch) -> Result<Vec<Answer>, Unavailable> {
        let changes = |call: &Call| {
            matches!(call.op, Op::Create { .. } | Op::Unlink { .. } | Op::Rmdir { .. } | Op::Rename { .. })
        };
        self.waiting.send_modify(|waiting| *waiting += 1);
        self.reachable.subscribe().wait_for(|reachable| *reachable).await.unwrap();
        if batch.calls.iter().any(changes) {
            self.changing.send_modify(|changing| *changing += 1);
            self.changeable.subscribe().wait_for(|changeable| *changeable).await.unwrap();
        }
        self.waiting.send_modify(|waiting| *waiting -= 1);
        let mut state = self.state.lock();
        let answers = state.apply_batch(now(), &self.key.public(), &batch);
        self.recalled.send_replace(state.recalled().map(|(_, holder)| *holder).collect());
        Ok(answers)
    }

    async fn recalled(&self) {
        self.recalled.subscribe().wait_for(|recalled| recalled.contains(&self.holder)).await.unwrap();
    }
}

impl BlockStore for Cluster {
    async fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> Result<(), BlockError> {
        self.blocks.lock().extend(blocks);
        Ok(())
    }

    async fn get(&self, id: BlockId) -> Result<Bytes, BlockError> {
        self.blocks.lock().get(&id).cloned().ok_or(BlockError::Missing(id))
    }

    async fn space(&self) -> Option<StoreSpace> {
        Some(StoreSpace { total: 1 << 30, free: 1 << 29 })
    }
}

/// Mounts the volume for one more client, or says why this machine cannot.
pub(crate) async fn mounted<M: Metadata>(
    fs: Arc<Filesystem<M, Cluster>>,
    options: MountOptions,
) -> Option<(Mount, TempDir)> {
    let mountpoint = tempfile::tempdir().unwrap();
    match mount(fs, mountpoint.path(), options).await {
        Ok(mount) => Some((mount, mountpoint)),
        Err(MountError::Mount(
            error @ (fuse::wire::MountError::DeviceMissing
            | fuse::wire::MountError::DeviceDenied
            | fuse::wire::MountError::NotPermitted
            | fuse::wire::MountError::Helper(HelperError::Missing { .. })),
        )) => {
            eprintln!("SKIPPED, this machine cannot mount: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(run)).await.expect("in time").unwrap()
}

pub(crate) async fn unmount(mount: Mount) {
    tokio::time::timeout(PATIENCE, mount.unmount()).await.expect("in time").unwrap();
}
