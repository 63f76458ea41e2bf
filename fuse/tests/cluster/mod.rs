//! A cluster in memory: the real state machine without the agreement, and a map for the blocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base::{BlockId, ClusterId, SecretKey, Time};
use bytes::Bytes;
use client::backend::{BlockError, BlockStore, Metadata, StoreSpace, Unavailable};
use client::fs::{Filesystem, Options};
use meta::{
    Answer, Batch, Call, Caller, Chunking, Genesis, Grant, Op, Redundancy, Reply, State, Uids, Volume, VolumeSpec,
};
use parking_lot::Mutex;
use tokio::sync::watch;

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
    volume: Volume,
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
            volume,
        }
    }

    /// The volume, as one more client sees it.
    pub(crate) fn open(&self) -> Arc<Filesystem<Cluster, Cluster>> {
        let (volume, options) = (self.volume.clone(), Options::default());
        Arc::new(Filesystem::open_volume(self.clone(), self.clone(), volume, &SECRET, options).unwrap())
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
        Ok(self.state.lock().apply_batch(now(), &self.key.public(), &batch))
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
