//! A cluster of separate processes: four replicas (`node-0` to `node-3`) and four storage nodes
//! (`node-4` to `node-7`).

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::mount::Mount;
use crate::net::{self, Net, inside};
use crate::process::{ANSWER, Process, mangrove, run_ok};
use crate::status::Status;
use crate::wait::wait_until;

/// How many nodes a cluster has here.
pub const NODES: usize = 8;
/// Ports set aside for one cluster.
const PORTS: u16 = 32;

/// The first of [`PORTS`] loopback ports in a row that are free now. Below the range from which
/// the system picks ports for outgoing connections.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 16_000 + (std::process::id() % 400) as u16 * PORTS;
    for _ in 0..400 {
        let base = start + NEXT.fetch_add(PORTS, Ordering::Relaxed) % 3_000;
        if (base..base + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
    panic!("no {PORTS} free ports in a row");
}

/// The value of the line `name = value` in a file of settings, without quotes.
///
/// # Panics
/// If there is none.
#[must_use]
#[track_caller]
pub fn setting(file: &Path, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name} in {}:\n{text}", file.display())).trim().trim_matches('"').to_owned()
}

/// Replaces the value of the first line `name = value` in a file of settings, or adds the line.
///
/// # Panics
/// If the file can't be read or written.
#[track_caller]
pub fn set(file: &Path, name: &str, value: &str) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let is_it = |line: &String| line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='));
    match lines.iter_mut().find(|line| is_it(line)) {
        Some(line) => *line = format!("{name} = {value}"),
        None => lines.insert(0, format!("{name} = {value}")),
    }
    fs::write(file, lines.join("\n") + "\n").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// A cluster in a temporary folder; its nodes are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<usize, Process>,
    net: Option<Net>,
    dir: TempDir,
}

impl Cluster {
    /// Makes keys and configuration, and starts nothing.
    ///
    /// # Panics
    /// If `cluster new` fails.
    #[must_use]
    #[track_caller]
    pub fn configure() -> Cluster {
        Cluster::configure_in(&std::env::temp_dir(), None)
    }

    /// Makes a cluster somewhere below `parent`, on hosts of its own if there is a net, with all its nodes
    /// running and an empty default volume.
    ///
    /// # Panics
    /// If a node does not get ready.
    #[must_use]
    #[track_caller]
    pub fn start_in(parent: &Path, net: Option<Net>) -> Cluster {
        let mut cluster = Cluster::configure_in(parent, net);
        cluster.start_all();
        cluster
    }

    #[track_caller]
    fn configure_in(parent: &Path, net: Option<Net>) -> Cluster {
        let dir = tempfile::Builder::new().prefix("mangrove-cluster-").tempdir_in(parent).expect("a temporary folder");
        let mut command = mangrove(dir.path());
        command.args(["cluster", "new"]).arg(dir.path().join("cluster"));
        match &net {
            Some(_) => command.args(["--host", net::CLUSTER, "--base-port", "16000"]),
            None => command.args(["--base-port", &free_ports().to_string()]),
        };
        run_ok(&mut command, ANSWER);
        Cluster { nodes: BTreeMap::new(), net, dir }
    }

    /// The hosts that this cluster and its clients are on.
    ///
    /// # Panics
    /// If all are on the machine itself.
    #[must_use]
    #[track_caller]
    pub fn net(&self) -> &Net {
        self.net.as_ref().expect("a cluster with hosts of its own")
    }

    /// Makes a cluster with all its nodes running and an empty default volume.
    ///
    /// # Panics
    /// If a node does not get ready.
    #[must_use]
    #[track_caller]
    pub fn start() -> Cluster {
        let mut cluster = Cluster::configure();
        cluster.start_all();
        cluster
    }

    /// Starts all nodes for the first time and makes the default volume.
    ///
    /// # Panics
    /// If a node does not get ready, or the volume is refused.
    #[track_caller]
    pub fn start_all(&mut self) {
        self.start_nodes(0..NODES);
        let mut create = self.admin();
        create.args(["volume", "create", "main"]);
        run_ok(&mut self.on_its_host(create), ANSWER);
    }

    fn on_its_host(&self, command: Command) -> Command {
        match &self.net {
            Some(net) => inside(net.cluster(), &command),
            None => command,
        }
    }

    /// The folder that `cluster new` made: `cluster.toml`, `admin.key` and a folder a node.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    /// A folder that belongs to the test and not to the cluster.
    #[must_use]
    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of one node: its `node.toml` and its data.
    #[must_use]
    pub fn node_dir(&self, node: usize) -> PathBuf {
        self.path().join(format!("node-{node}"))
    }

    /// The file with one node's settings.
    #[must_use]
    pub fn node_config(&self, node: usize) -> PathBuf {
        self.node_dir(node).join("node.toml")
    }

    /// Where one node keeps its data, as its settings say.
    ///
    /// # Panics
    /// If they do not.
    #[must_use]
    #[track_caller]
    pub fn node_data(&self, node: usize) -> PathBuf {
        self.node_dir(node).join(setting(&self.node_config(node), "data"))
    }

    /// The command that runs one node.
    #[must_use]
    pub fn node_command(&self, node: usize) -> Command {
        let mut command = mangrove(self.dir.path());
        command.args(["node", "run", "--config"]).arg(self.node_config(node));
        command
    }

    /// Starts these nodes and waits until each says that it is ready.
    ///
    /// # Panics
    /// If one does not.
    #[track_caller]
    pub fn start_nodes(&mut self, nodes: impl IntoIterator<Item = usize>) {
        let mut started = Vec::new();
        for node in nodes {
            let (name, log) = (format!("node-{node}"), self.dir.path().join(format!("node-{node}.log")));
            let command = self.on_its_host(self.node_command(node));
            self.nodes.insert(node, Process::start(&name, &mut { command }, &log));
            started.push(node);
        }
        for node in started {
            self.node(node).wait_for(&format!("node-{node} ready"));
        }
    }

    /// A running node.
    ///
    /// # Panics
    /// If it was not started.
    #[track_caller]
    pub fn node(&mut self, node: usize) -> &mut Process {
        self.nodes.get_mut(&node).unwrap_or_else(|| panic!("node-{node} was not started"))
    }

    /// `kill -9` of these nodes, all signals before the first wait.
    ///
    /// # Panics
    /// If one was not started.
    #[track_caller]
    pub fn kill_nodes(&mut self, nodes: impl IntoIterator<Item = usize>) {
        let nodes: Vec<_> = nodes.into_iter().collect();
        nodes.iter().for_each(|node| self.node(*node).signal(rustix::process::Signal::KILL));
        nodes.iter().for_each(|node| self.node(*node).kill());
    }

    /// Stops these nodes cleanly.
    ///
    /// # Panics
    /// If one does not stop.
    #[track_caller]
    pub fn stop_nodes(&mut self, nodes: impl IntoIterator<Item = usize>) {
        nodes.into_iter().for_each(|node| self.node(node).stop());
    }

    /// A command asked as the administrator of this cluster, its arguments still to come.
    #[must_use]
    pub fn admin(&self) -> Command {
        self.admin_at(self.dir.path())
    }

    fn admin_at(&self, home: &Path) -> Command {
        let mut command = mangrove(home);
        command.arg("--cluster").arg(self.path().join("cluster.toml"));
        command.arg("--key").arg(self.path().join("admin.key"));
        command
    }

    /// Mounts the default volume on a new folder called `name`, beside a local cache that all mounts
    /// of this cluster share.
    ///
    /// # Panics
    /// If it does not mount.
    #[must_use]
    #[track_caller]
    pub fn mount(&self, name: &str) -> Mount {
        self.mount_with(name, &[])
    }

    /// As [`Cluster::mount`], without a cache on disk: what is read comes from the nodes.
    ///
    /// # Panics
    /// If it does not mount.
    #[must_use]
    #[track_caller]
    pub fn mount_uncached(&self, name: &str) -> Mount {
        self.mount_with(name, &["--cache-disk", "0"])
    }

    /// As [`Cluster::mount`], where names and attributes may be so old; without leases, which would make
    /// asking needless.
    ///
    /// # Panics
    /// If it does not mount.
    #[must_use]
    #[track_caller]
    pub fn mount_aged(&self, name: &str, age: &str) -> Mount {
        self.mount_with(name, &["--ordered", "--max-age", age])
    }

    /// As [`Cluster::mount`], on the host of a client, and with a local cache that only this mount has.
    ///
    /// # Panics
    /// If it does not mount.
    #[must_use]
    #[track_caller]
    pub fn mount_at(&self, client: usize, options: &[&str]) -> Mount {
        let home = self.dir.path().join(format!("client{client}"));
        let (path, log) = (home.join("mnt"), home.join("mount.log"));
        fs::create_dir_all(&path).expect("mkdir");
        let mut command = self.admin_at(&home);
        command.arg("mount").args(options).arg(&path);
        Mount::start(&format!("client{client}"), &mut inside(self.net().client(client), &command), &path, &log)
    }

    /// As [`Cluster::mount`], with these options.
    ///
    /// # Panics
    /// If it does not mount.
    #[must_use]
    #[track_caller]
    pub fn mount_with(&self, name: &str, options: &[&str]) -> Mount {
        let (path, log) = (self.dir.path().join(name), self.dir.path().join(format!("{name}.log")));
        fs::create_dir_all(&path).expect("mkdir");
        Mount::start(name, self.admin().arg("mount").args(options).arg(&path), &path, &log)
    }

    /// What `status` says now.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        Status::ask(&mut self.on_its_host(self.admin()))
    }

    /// Waits until `status` shows what `condition` asks for.
    ///
    /// # Panics
    /// If it does not within `limit`.
    #[track_caller]
    pub fn wait_status(&self, what: &str, limit: Duration, condition: impl Fn(&Status) -> bool) -> Status {
        wait_until(what, limit, || Some(self.status()).filter(&condition))
    }
}
