//! A user's connection to a cluster, and the volumes in it.

use std::collections::BTreeMap;

use base::NodeId;
use bytes::Bytes;
use chunk::{unwrap_secret, wrap_secret};
use dht::{Member, Ring};
use meta::{Call, Caller, Chunking, Denied, Op, Redundancy, Reply, VolumeSpec};
use proto::keyfile::KeyFile;
use proto::link::{Dialler, Identity, LinkError, Protocol};
use proto::view::ClusterView;

use crate::backend::Metadata as _;
use crate::backend::Unavailable;
use crate::blocks::Blocks;
use crate::exchange::{BlockService, Exchange};
use crate::session::Session;

/// The volume that `up` makes and `mount` takes when none is named.
pub const DEFAULT_VOLUME: &str = "main";

/// For how long the trash of a volume keeps things if nobody says otherwise, seconds.
pub const TRASH_KEPT: u32 = 24 * 3600;
/// What ring ids of configured members are salted with. All clients must use the same.
const RING_SALT: &[u8] = b"view-1";

/// A user's connection to a cluster.
#[derive(Debug)]
pub struct Cluster {
    view: ClusterView,
    key: KeyFileDebug,
    identity: Identity,
    session: Session,
    max_age: Option<std::time::Duration>,
}

/// A key file that prints nothing.
struct KeyFileDebug(KeyFile);

impl std::fmt::Debug for KeyFileDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.secret())
    }
}

/// A volume that this user can open.
#[derive(Clone)]
pub struct Volume {
    /// The volume as the replicas know it.
    pub info: meta::Volume,
    /// Its secret, from which all its keys are derived.
    pub secret: zeroize::Zeroizing<[u8; 32]>,
    /// Its blocks.
    pub blocks: Blocks,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({:?})", self.info.spec.name)
    }
}

/// Why a cluster or a volume can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The key is not one of the cluster's users.
    #[error("the key {0} is not a user of this cluster; use the admin.key that was made with it, or --key FILE")]
    NotAUser(String),
    /// TLS could not be set up.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The replicas do not answer.
    #[error("the cluster does not answer: {0}")]
    Unavailable(#[from] Unavailable),
    /// The view's storage nodes do not make a ring.
    #[error("the cluster's storage nodes can't be placed on a ring: {0}")]
    Ring(String),
    /// The view has fewer storage nodes than the volume's blocks have copies.
    #[error(
        "volume {volume:?} keeps {copies} copies of each block, but cluster.toml lists {nodes} storage nodes; \
         use the cluster's current cluster.toml"
    )]
    TooFewNodes {
        /// Which volume.
        volume: String,
        /// How many copies it keeps.
        copies: usize,
        /// How many storage nodes there are.
        nodes: usize,
    },
    /// There is no such volume.
    #[error("there is no volume {0:?}; `mangrove volume list` shows which there are")]
    NoVolume(String),
    /// The volume is there, but sealed to others.
    #[error("this key has no share in volume {0:?}: its secret is not sealed to it")]
    NotShared(String),
    /// The volume's sealed secret does not open.
    #[error("the sealed secret of volume {0:?} is damaged, or was sealed to another key")]
    Secret(String),
    /// The replicas refused.
    #[error("the cluster refused to {what}: {why:?}")]
    Denied {
        /// To do what.
        what: String,
        /// Why.
        why: Denied,
    },
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
}

impl Cluster {
    /// Connects as the user who holds `key`. `label` is what operators see of the session.
    ///
    /// # Errors
    /// If the key is no user's or TLS can't be set up; that nodes are down shows only later.
    pub fn connect(view: ClusterView, key: KeyFile, label: &str) -> Result<Cluster, ConnectError> {
        let secret = key.secret();
        if !view.principals.iter().any(|principal| principal.key == secret.public()) {
            return Err(ConnectError::NotAUser(secret.public().to_string()));
        }
        let identity = Identity::new(&secret)?;
        let session_id = getrandom::u64().map_err(ConnectError::Random)?;
        let session = Session::open(&view, &identity, &secret, session_id, label)?;
        Ok(Cluster { view, key: KeyFileDebug(key), identity, session, max_age: None })
    }

    /// Lets volumes be found as they were not longer ago than this, by what one replica proves.
    #[must_use]
    pub fn looking_back(mut self, max_age: Option<std::time::Duration>) -> Cluster {
        self.max_age = max_age;
        self
    }

    /// The session with the replicas.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The user whose key this connection has.
    #[must_use]
    pub fn user(&self) -> base::PublicKey {
        self.key.0.secret().public()
    }

    /// The cluster's view.
    #[must_use]
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// One operation as root.
    async fn call(&self, what: &str, op: Op) -> Result<Reply, ConnectError> {
        let call = Call { caller: Caller::default(), op };
        let done = match self.max_age {
            None => self.session.call(call).await?,
            Some(age) => match self.session.read_within(call.clone(), age).await?.answer.into_result() {
                // It may have been made since.
                Err(_) => self.session.call(call).await?,
                found => found,
            },
        };
        done.map_err(|why| ConnectError::Denied { what: what.to_owned(), why })
    }

    /// All volumes of the cluster.
    ///
    /// # Errors
    /// If the cluster does not answer or refuses.
    pub async fn volumes(&self) -> Result<Vec<meta::Volume>, ConnectError> {
        match self.call("list volumes", Op::VolumeList).await? {
            Reply::Volumes(volumes) => Ok(volumes),
            _ => Err(unexpected()),
        }
    }

    /// Makes a volume whose files belong to whoever writes them, readable by this user; what is removed is kept in
    /// its trash for `trash` seconds.
    ///
    /// # Errors
    /// If it exists, or the cluster does not answer or refuses.
    pub async fn create_volume(&self, name: &str, root: Caller, trash: u32) -> Result<(), ConnectError> {
        let mut secret = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(ConnectError::Random)?;
        let sealed = Bytes::from(wrap_secret(self.key.0.seed(), &secret));
        let copies = self.view.storage().count().min(3) as u8;
        let spec = VolumeSpec {
            name: name.to_owned(),
            quota_bytes: 0,
            quota_inodes: 0,
            redundancy: Redundancy::Replicate(copies),
            chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
            secrets: BTreeMap::from([(self.key.0.secret().public(), sealed)]),
            root_mode: 0o755,
            trash,
        };
        let call = Call { caller: root, op: Op::VolumeCreate(spec) };
        let what = format!("make volume {name:?}");
        self.session.call(call).await?.map(drop).map_err(|why| ConnectError::Denied { what, why })
    }

    /// Takes a snapshot of a volume, with all that mounts have not sent yet: they are asked for it.
    ///
    /// # Errors
    /// If there is one with this name, or too many; or the cluster does not answer or refuses.
    pub async fn take_snapshot(&self, volume: &str, name: &str) -> Result<meta::Snapshot, ConnectError> {
        let op = Op::SnapshotTake { volume: self.volume_id(volume).await?, name: name.to_owned() };
        let call = Call { caller: Caller::default(), op };
        let mut answers = self.session.calls(vec![call]).await?;
        let answer = answers.pop().ok_or_else(unexpected)?;
        let what = format!("take snapshot {name:?} of volume {volume:?}");
        match answer.into_result().map_err(|why| ConnectError::Denied { what, why })? {
            Reply::Snapshots(mut taken) => taken.pop().ok_or_else(unexpected),
            _ => Err(unexpected()),
        }
    }

    /// A volume's snapshots, the latest last.
    ///
    /// # Errors
    /// If there is no such volume, or the cluster does not answer or refuses.
    pub async fn snapshots(&self, volume: &str) -> Result<Vec<meta::Snapshot>, ConnectError> {
        let op = Op::SnapshotList { volume: self.volume_id(volume).await? };
        match self.call(&format!("list snapshots of volume {volume:?}"), op).await? {
            Reply::Snapshots(all) => Ok(all),
            _ => Err(unexpected()),
        }
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// If there is none with this name, or the cluster does not answer or refuses.
    pub async fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), ConnectError> {
        let op = Op::SnapshotDelete { volume: self.volume_id(volume).await?, name: name.to_owned() };
        self.change(&format!("delete snapshot {name:?} of volume {volume:?}"), op).await
    }

    /// Says for how long a volume's trash keeps what is removed, seconds; 0: it does not.
    ///
    /// # Errors
    /// If there is no such volume, or the cluster does not answer or refuses.
    pub async fn keep_trash(&self, volume: &str, seconds: u32) -> Result<(), ConnectError> {
        let op = Op::TrashKeep { volume: self.volume_id(volume).await?, seconds };
        self.change(&format!("say what the trash of volume {volume:?} keeps"), op).await
    }

    /// Ends all that is in a volume's trash.
    ///
    /// # Errors
    /// If there is no such volume, or the cluster does not answer or refuses.
    pub async fn empty_trash(&self, volume: &str) -> Result<(), ConnectError> {
        let op = Op::TrashEmpty { volume: self.volume_id(volume).await? };
        self.change(&format!("empty the trash of volume {volume:?}"), op).await
    }

    async fn change(&self, what: &str, op: Op) -> Result<(), ConnectError> {
        let done = self.session.call(Call { caller: Caller::default(), op }).await?;
        done.map(drop).map_err(|why| ConnectError::Denied { what: what.to_owned(), why })
    }

    async fn volume_id(&self, name: &str) -> Result<meta::VolumeId, ConnectError> {
        match self.call("find a volume", Op::VolumeGet { name: name.to_owned() }).await {
            Ok(Reply::Volume(volume)) => Ok(volume.id),
            Ok(_) => Err(unexpected()),
            Err(ConnectError::Denied { why: Denied::NotFound, .. }) => Err(ConnectError::NoVolume(name.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Opens a volume: finds it, unseals its secret, links to its storage nodes.
    ///
    /// # Errors
    /// If there is none, or it is not shared with this user, or the cluster does not answer.
    pub async fn open_volume(&self, name: &str) -> Result<Volume, ConnectError> {
        let info = match self.call("find a volume", Op::VolumeGet { name: name.to_owned() }).await {
            Ok(Reply::Volume(volume)) => volume,
            Ok(_) => return Err(unexpected()),
            Err(ConnectError::Denied { why: Denied::NotFound, .. }) => {
                return Err(ConnectError::NoVolume(name.to_owned()));
            }
            Err(error) => return Err(error),
        };
        let sealed = info.spec.secrets.get(&self.key.0.secret().public());
        let sealed = sealed.ok_or_else(|| ConnectError::NotShared(name.to_owned()))?;
        let secret = unwrap_secret(self.key.0.seed(), sealed).map_err(|_| ConnectError::Secret(name.to_owned()))?;
        let Redundancy::Replicate(copies) = info.spec.redundancy;
        let (copies, nodes) = (usize::from(copies), self.view.storage().count());
        if nodes < copies {
            return Err(ConnectError::TooFewNodes { volume: name.to_owned(), copies, nodes });
        }
        let blocks = self.blocks(copies)?;
        Ok(Volume { info, secret, blocks })
    }

    fn blocks(&self, copies: usize) -> Result<Blocks, ConnectError> {
        let (mut members, mut links) = (Vec::new(), BTreeMap::<NodeId, Exchange<BlockService>>::new());
        for node in self.view.storage() {
            let ring = dht::ring_id(&self.view.cluster, &node.key, RING_SALT);
            members.push(Member { node: node.id, ring, domain: node.domain.clone() });
            let dial = Dialler::new(&self.identity, node.address, node.key, Protocol::Blocks)?;
            links.insert(node.id, Exchange::start(dial));
        }
        let ring = Ring::new(members).map_err(|bad| ConnectError::Ring(bad.to_string()))?;
        Ok(Blocks::new(ring, links, copies))
    }
}

fn unexpected() -> ConnectError {
    ConnectError::Unavailable(Unavailable("the replicas agree on an answer to another question".into()))
}
