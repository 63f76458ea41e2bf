//! Four replicas as a user would run them: `mangrove node run`, each a process of its own, in a
//! folder on the disk or in memory. No storage node runs, since only names are agreed on here.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::{ClusterId, NodeId};
use futures::future::join_all;
use meta::Ino;
use proto::keyfile::KeyFile;
use proto::view::{ClusterView, Node as Member, Principal as User, Role};
use proto::wire::admin_client::AdminClient;
use proto::wire::{NodeStatus, StatusAsk};
use tempfile::TempDir;
use tests::Process;

use crate::Outcome;
use crate::link::Principal;
use crate::usage::{self, Usage};
use crate::work;

pub(crate) const REPLICAS: usize = 4;
/// Users of the cluster.
pub(crate) const USERS: usize = 65;
/// How long a replica may take to say how it is.
const STATUS: Duration = Duration::from_secs(2);

/// Where the replicas' logs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogPlace {
    /// In the build folder: every vote is durable before it is sent.
    Disk,
    /// In /dev/shm: the same code, but syncing costs nothing and a power cut forgets.
    Memory,
}

impl LogPlace {
    pub(crate) fn name(self) -> &'static str {
        match self {
            LogPlace::Disk => "disk",
            LogPlace::Memory => "memory",
        }
    }

    fn folder(self) -> PathBuf {
        match self {
            // On the project's disk, and not among its files.
            LogPlace::Disk => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
            LogPlace::Memory => "/dev/shm".into(),
        }
    }
}

fn node_key(index: usize) -> KeyFile {
    KeyFile::from_seed([index as u8 + 1; 32])
}

fn user_key(index: usize) -> KeyFile {
    KeyFile::from_seed([index as u8 + 100; 32])
}

/// A running cluster. Its processes are killed and its folder deleted when it is dropped.
pub(crate) struct Cluster {
    pub(crate) users: Vec<Principal>,
    /// A file for each user.
    pub(crate) files: Vec<Ino>,
    nodes: Vec<Option<Process>>,
    dir: TempDir,
}

impl Cluster {
    /// Starts four replicas and makes a file for each user.
    pub(crate) async fn start(place: LogPlace) -> Outcome<Cluster> {
        let mut cluster = Cluster::configure(place)?;
        for node in 0..REPLICAS {
            cluster.launch(node);
        }
        cluster.ready(0..REPLICAS);
        cluster.files = work::make_files(&mut cluster.users[0].session(), USERS).await?;
        Ok(cluster)
    }

    /// Writes keys and settings, and starts nothing.
    pub(crate) fn configure(place: LogPlace) -> Outcome<Cluster> {
        let folder = place.folder();
        fs::create_dir_all(&folder)?;
        let dir = tempfile::Builder::new().prefix("mangrove-bench-").tempdir_in(folder)?;
        let view = make_view()?;
        for index in 0..REPLICAS {
            let folder = dir.path().join(format!("node-{index}"));
            fs::create_dir(&folder)?;
            node_key(index).write_new(&folder.join("node.key"))?;
            fs::write(folder.join("first-start"), "")?;
            fs::write(folder.join("cluster.toml"), view.to_toml())?;
            let settings = format!(
                "format = {}\nid = {index}\ncluster = \"cluster.toml\"\nkey = \"node.key\"\ndata = \"data\"\n",
                proto::view::FORMAT
            );
            fs::write(folder.join("node.toml"), settings)?;
        }
        let users = (0..USERS).map(|index| Principal::new(&view, user_key(index).secret()));
        let users = users.collect::<Outcome<Vec<_>>>()?;
        let nodes = (0..REPLICAS).map(|_| None).collect();
        Ok(Cluster { users, files: Vec::new(), nodes, dir })
    }

    fn log(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node-{node}.log"))
    }

    /// Starts a replica, which is not ready yet.
    pub(crate) fn launch(&mut self, node: usize) {
        let mut command = tests::mangrove(self.dir.path());
        command.args(["node", "run", "--config"]);
        command.arg(self.dir.path().join(format!("node-{node}/node.toml")));
        self.nodes[node] = Some(Process::start(format!("node-{node}"), &mut command, &self.log(node)));
    }

    /// Waits until these replicas say that they are ready.
    pub(crate) fn ready(&mut self, nodes: impl IntoIterator<Item = usize>) {
        for node in nodes {
            self.node(node).wait_for(&format!("node-{node} ready"));
        }
    }

    fn node(&mut self, node: usize) -> &mut Process {
        self.nodes[node].as_mut().expect("the replica was started")
    }

    /// The folder that everything is in.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// What the running replicas have used, and the most memory that one of them had.
    pub(crate) fn usage(&self) -> Usage {
        usage::of(self.nodes.iter().flatten().map(Process::id))
    }

    /// From now on, [`Cluster::usage`] tells peaks anew.
    pub(crate) fn forget_peaks(&self) {
        self.nodes.iter().flatten().for_each(|node| usage::forget_peak(node.id()));
    }

    /// How the replicas say they are; `None` for one that doesn't answer.
    pub(crate) async fn status(&self) -> Vec<Option<NodeStatus>> {
        let ask = |replica: usize| async move {
            let mut admin = AdminClient::new(self.users[0].channel(replica));
            let answer = tokio::time::timeout(STATUS, admin.status(StatusAsk {})).await;
            answer.ok()?.ok().map(tonic::Response::into_inner)
        };
        join_all((0..REPLICAS).map(ask)).await
    }
}

/// Four replicas on free ports, and users.
fn make_view() -> Outcome<ClusterView> {
    // One more than run: a cluster has a storage node, and nobody asks it for anything here.
    let held: Vec<_> = (0..=REPLICAS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut nodes = Vec::new();
    for (index, listener) in held.iter().enumerate() {
        nodes.push(Member {
            id: NodeId(index as u32),
            key: node_key(index).secret().public(),
            address: listener.local_addr()?,
            role: Role::Replica,
            domain: format!("node-{index}"),
        });
    }
    nodes.last_mut().expect("the storage node").role = Role::Storage;
    let user = |index: usize| User {
        name: format!("client-{index}"),
        key: user_key(index).secret().public(),
        uids: None,
        admin: true,
    };
    Ok(ClusterView { cluster: ClusterId([5; 16]), nodes, principals: (0..USERS).map(user).collect() })
}
