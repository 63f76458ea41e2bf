//! Four replicas as a user would run them: `mangrove node run`, each a process of its own, in a
//! folder on the disk or in memory. No storage node runs, since only names are agreed on here.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base::{ClusterId, NodeId};
use futures::future::join_all;
use meta::Ino;
use proto::keyfile::KeyFile;
use proto::view::{ClusterView, Node as Member, Principal as User, Role};
use proto::wire::admin_client::AdminClient;
use proto::wire::{NodeStatus, StatusAsk};
use rustix::process::Signal;
use tempfile::TempDir;
use tests::Process;

use crate::Outcome;
use crate::link::Principal;
use crate::usage::{self, Usage};
use crate::work;

pub(crate) const REPLICAS: usize = 4;
/// Users who may offer load.
pub(crate) const CLIENTS: usize = 64;
/// The user who attacks.
pub(crate) const ATTACKER: usize = CLIENTS;
/// The user who asks how things are, over connections that nobody else fills.
const OPERATOR: usize = CLIENTS + 1;
const USERS: usize = CLIENTS + 2;
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

pub(crate) fn node_key(index: usize) -> KeyFile {
    KeyFile::from_seed([index as u8 + 1; 32])
}

pub(crate) fn user_key(index: usize) -> KeyFile {
    KeyFile::from_seed([index as u8 + 100; 32])
}

/// A running cluster. Its processes are killed and its folder deleted when it is dropped.
pub(crate) struct Cluster {
    pub(crate) view: ClusterView,
    pub(crate) users: Vec<Principal>,
    /// A file for each user.
    pub(crate) files: Vec<Ino>,
    nodes: Vec<Option<Process>>,
    attacker: Option<Process>,
    dir: TempDir,
}

impl Cluster {
    /// Starts four replicas and makes a file for each user.
    pub(crate) async fn start(place: LogPlace) -> Outcome<Cluster> {
        let mut cluster = Cluster::configure(place)?;
        cluster.run().await?;
        Ok(cluster)
    }

    /// Starts what was configured.
    pub(crate) async fn run(&mut self) -> Outcome<()> {
        (0..REPLICAS).for_each(|node| self.launch(node));
        self.ready(0..REPLICAS);
        self.files = work::make_volume(&mut self.users[0].session(), "bench", USERS).await?;
        Ok(())
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
        Ok(Cluster { view, users, files: Vec::new(), nodes, attacker: None, dir })
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

    /// `kill -9`.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(mut process) = self.nodes[node].take() {
            process.kill();
        }
    }

    /// Stops a replica in mid-thought (SIGSTOP): its links stay open and nothing comes over them.
    pub(crate) fn freeze(&mut self, node: usize) {
        self.node(node).signal(Signal::STOP);
    }

    /// Where the peers of a node are, as that node alone is told. Before it is launched.
    pub(crate) fn redirect(&self, node: usize, peers: &[(usize, SocketAddr)]) -> Outcome<()> {
        let mut view = self.view.clone();
        for (peer, address) in peers {
            view.nodes[*peer].address = *address;
        }
        Ok(fs::write(self.dir.path().join(format!("node-{node}/cluster.toml")), view.to_toml())?)
    }

    /// Starts this program as an attacker; gives what it says after `word` as soon as it does.
    pub(crate) async fn attack(&mut self, arguments: impl IntoIterator<Item = String>, word: &str) -> Outcome<String> {
        let log = self.dir.path().join("attacker.log");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("hostile").args(arguments);
        let attacker = self.attacker.insert(Process::start("attacker", &mut command, &log));
        attacker.wait_for(word);
        let said = last_said(&attacker.log(), word).ok_or("the attacker said half a line")?;
        Ok(said)
    }

    /// Tells the attacker to begin, if it waits for that.
    pub(crate) fn unleash(&self) -> Outcome<()> {
        Ok(fs::write(self.go_file(), "")?)
    }

    /// What appears when [`Cluster::unleash`] is called.
    pub(crate) fn go_file(&self) -> PathBuf {
        self.dir.path().join("go")
    }

    /// How many messages the attacker got rid of so far.
    pub(crate) fn hostile_messages(&self) -> u64 {
        let log = self.attacker.as_ref().map(Process::log).unwrap_or_default();
        last_said(&log, "sent ").and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// The file that says who belongs to the cluster.
    pub(crate) fn view_file(&self) -> PathBuf {
        // The last node's: it is never redirected.
        self.dir.path().join(format!("node-{}/cluster.toml", REPLICAS - 1))
    }

    /// A node's data folder.
    pub(crate) fn data(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node-{node}/data"))
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
            let mut admin = AdminClient::new(self.users[OPERATOR].channel(replica));
            let answer = tokio::time::timeout(STATUS, admin.status(StatusAsk {})).await;
            answer.ok()?.ok().map(tonic::Response::into_inner)
        };
        join_all((0..REPLICAS).map(ask)).await
    }
}

/// The rest of the last whole line that begins with `word`; lines end with a full stop.
fn last_said(log: &str, word: &str) -> Option<String> {
    let said = log.lines().rev().find_map(|line| line.strip_prefix(word)?.strip_suffix('.'));
    said.map(str::to_owned)
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
