//! A node: the composition root. Everything it refuses, it refuses before it writes.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use proto::link::{self, Identity, LinkError, Protocol};
use proto::view::Role;
use proto::wire::admin_server::AdminServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::admin::{AdminService, Part};
use crate::allowance::Allowance;
use crate::blocks::Blocks;
use crate::budget::Budgets;
use crate::config::NodeConfig;
use crate::consensus::Consensus;
use crate::counts::Counts;
use crate::door::Door;
use crate::driver::{Driver, Parts};
use crate::folder::{Folder, FolderError};
use crate::frames::{Incoming, divert};
use crate::gate::Gate;
use crate::log::LogError;
use crate::peers::Peers;
use crate::reads::{Desk, Shelf};
use crate::recovery;
use crate::sessions::Sessions;
use crate::store::{Store, StoreError, StoreOptions};

/// Inputs of peers waiting for the core.
const PEER_INPUTS_MAX: usize = 4096;
/// Requests of clients waiting for the core.
const CLIENT_INPUTS_MAX: usize = 1024;
/// Longest question of an operator, bytes.
const QUESTION_MAX: usize = 1 << 10;
/// Bytes of disk that a storage node leaves free.
const RESERVE_BYTES: u64 = 64 << 20;

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its address is taken or not its own.
    #[error("cannot listen on {address}: {source}; {}", listen_hint(.source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its data folder can't be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its log can't be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its block store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log's records contradict each other.
    #[error("the log in {path} does not add up: {cause}; restore the folder from a copy, or replace the node")]
    Records {
        /// The node's folder.
        path: PathBuf,
        /// What does not.
        cause: String,
    },
    /// The file that allows an empty log can't be removed.
    #[error(
        "cannot remove {} ({source}), which says that this replica has never run; remove it and start again",
        file.display()
    )]
    FirstStart {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The replicas' keys do not make a group.
    #[error("the cluster's replicas can't work together: {0}")]
    Params(String),
    /// TLS could not be set up.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

fn listen_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "another process (this node, started twice?) has the port; stop it or give the node another"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need root; give the node another",
        io::ErrorKind::AddrNotAvailable => "the address is not this machine's; set `listen` in node.toml",
        _ => "see the node's address in cluster.toml and `listen` in node.toml",
    }
}

/// A running node. Dropping it leaves its tasks running; use [`Node::stop`].
pub struct Node {
    driver: Option<Driver>,
    store: Option<Arc<Store>>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
    fatal: mpsc::Receiver<String>,
    address: SocketAddr,
    _folder: Folder,
}

impl Node {
    /// Starts a node: binds its port, locks and reads its folder, serves.
    ///
    /// # Errors
    /// Whatever stands in the way, with the mend; nothing has been written then.
    pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
        let listen = |source| NodeError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let folder = Folder::open(&config.data, &config.view.cluster, config.id, &config.secret.public())?;
        let identity = Identity::new(&config.secret)?;
        let (fatal_in, fatal) = mpsc::channel(1);
        let role = config.view.node(config.id).expect("the config was checked").role;
        let protocols: &[Protocol] = match role {
            Role::Replica => &[Protocol::Calls, Protocol::Peer, Protocol::Session, Protocol::Reads],
            Role::Storage => &[Protocol::Calls, Protocol::Blocks],
        };
        let incoming = link::accept(&identity, listener, config.view.known(), protocols)?;
        let running = match role {
            Role::Replica => start_replica(&config, &folder, &identity, incoming, fatal_in)?,
            Role::Storage => start_storage(&config, &folder, incoming)?,
        };
        tracing::info!(node = config.id.0, %address, ?role, "node started");
        Ok(Node {
            driver: running.driver,
            store: running.store,
            stop: running.stop,
            served: running.served,
            fatal,
            address,
            _folder: folder,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the node can't go on (a failed sync, say), and says why. Cancel-safe.
    pub async fn failed(&mut self) -> String {
        match self.fatal.recv().await {
            Some(cause) => cause,
            None => match &self.store {
                Some(store) => store_failed(store.clone()).await,
                // The voice ends only when its core has: after a panic, which is on standard error.
                None => "its core has stopped; this is a bug of mangrove's, and standard error says where".to_owned(),
            },
        }
    }

    /// Stops serving, then the core, then the disk.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.served.abort();
        let _ = self.served.await;
        let (driver, store) = (self.driver, self.store);
        let _ = tokio::task::spawn_blocking(move || {
            if let Some(driver) = driver {
                driver.stop();
            }
            if let Some(store) = store {
                store.close();
            }
        })
        .await;
    }
}

/// Waits until a store has failed for good, and says why.
async fn store_failed(store: Arc<Store>) -> String {
    let mut every = tokio::time::interval(std::time::Duration::from_millis(500));
    loop {
        every.tick().await;
        if let Some(cause) = store.fatal() {
            return cause;
        }
    }
}

struct Running {
    driver: Option<Driver>,
    store: Option<Arc<Store>>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

fn start_replica(
    config: &NodeConfig,
    folder: &Folder,
    identity: &Identity,
    incoming: Incoming,
    fatal: mpsc::Sender<String>,
) -> Result<Running, NodeError> {
    let view = &config.view;
    let me = view.replica_id(config.id).expect("a replica, as its role says");
    let params = bft::Params::new(view.cluster, me, view.replica_keys(), config.secret.clone())
        .map_err(|bad| NodeError::Params(bad.to_string()))?;
    let door = Arc::new(Door::new(params.context()));
    let (log, core) = recovery::open(config, folder, params, me)?;
    let sessions = Arc::new(Sessions::default());
    let (peer_in, peer_inputs) = mpsc::channel(PEER_INPUTS_MAX);
    let (client_in, client_inputs) = mpsc::channel(CLIENT_INPUTS_MAX);
    let peers = Peers::start(view, me, identity)?;
    let budgets = Arc::new(Budgets::default());
    let (shelf_in, shelf) = watch::channel(Shelf::default());
    let desk = Arc::new(Desk { shelf, budgets: budgets.clone(), door: door.clone(), counts: Counts::default() });
    let parts = Parts {
        core,
        log,
        peers,
        sessions: sessions.clone(),
        budgets: budgets.clone(),
        peer_inputs,
        client_inputs,
        shelf: shelf_in,
        fatal,
    };
    let driver = Driver::start(parts, &format!("node-{}", config.id)).map_err(NodeError::Thread)?;
    let consensus = Arc::new(Consensus {
        door: door.clone(),
        sessions: sessions.clone(),
        replicas: view
            .replicas()
            .enumerate()
            .map(|(i, node)| (node.key, (base::ReplicaId(i as u16), Allowance::new())))
            .collect(),
        principals: view.principals.iter().map(|principal| principal.key).collect(),
        peer_inputs: peer_in,
        gate: Gate::open(door.clone(), budgets, client_in),
        desk: desk.clone(),
    });
    let (seen, log_bytes) = (driver.seen.clone(), driver.log_bytes.clone());
    let admin = AdminService {
        node: config.id,
        started: Instant::now(),
        part: Part::Replica { me, replicas: view.replicas().count(), seen, door, sessions, desk, log_bytes },
    };
    let (stop, served) = serve(admin, divert(incoming, move |link| consensus.clone().serve(link)));
    Ok(Running { driver: Some(driver), store: None, stop, served })
}

fn start_storage(config: &NodeConfig, folder: &Folder, incoming: Incoming) -> Result<Running, NodeError> {
    let options = StoreOptions { capacity_bytes: config.capacity_bytes, reserve_bytes: RESERVE_BYTES };
    let store = Arc::new(Store::open(&folder.path().join("blocks"), folder.identity(), options)?);
    let dropped = Arc::new(Counts::default());
    let blocks = Blocks { store: store.clone(), dropped: dropped.clone() };
    let part = Part::Storage { store: store.clone(), dropped };
    let admin = AdminService { node: config.id, started: Instant::now(), part };
    let (stop, served) = serve(admin, divert(incoming, move |link| blocks.clone().serve(link)));
    Ok(Running { driver: None, store: Some(store), stop, served })
}

/// Answers operators' questions on these links.
fn serve(admin: AdminService, incoming: Incoming) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let router = link::server().add_service(AdminServer::new(admin).max_decoding_message_size(QUESTION_MAX));
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        if let Err(error) = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stopped).await {
            tracing::error!(%error, "the node's service ended");
        }
    });
    (stop, served)
}
