//! `mangrove cluster new` and `mangrove node run`.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use base::{ClusterId, NodeId, Quorums};
use proto::keyfile::KeyFile;
use proto::view::{ClusterView, FORMAT, Node, Principal, Role};
use server::config::{FIRST_START, NodeFile};

use crate::args::{ClusterNew, NodeRun};
use crate::output::say;

/// How a new cluster is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) replicas: usize,
    pub(crate) nodes: usize,
    pub(crate) host: IpAddr,
    pub(crate) base_port: Option<u16>,
}

pub(crate) fn new(args: &ClusterNew) -> anyhow::Result<ExitCode> {
    let layout = Layout { replicas: args.replicas, nodes: args.nodes, host: args.host, base_port: args.base_port };
    let view = write(&args.dir, layout)?;
    let dir = args.dir.display();
    say!("made a cluster of {} replicas and {} storage nodes in {dir}", args.replicas, args.nodes);
    say!("start each node:   mangrove node run --config {dir}/node-N/node.toml   (N = 0 to {})", view.nodes.len() - 1);
    say!("make a volume:     mangrove --cluster {dir}/cluster.toml volume create main");
    say!("mount it:          mangrove --cluster {dir}/cluster.toml mount main MOUNTPOINT");
    say!("keep {dir}/admin.key safe: whoever has it can read everything, and without it nobody can");
    Ok(ExitCode::SUCCESS)
}

/// Makes a cluster's folder, whole or not at all.
pub(crate) fn write(dir: &Path, layout: Layout) -> anyhow::Result<ClusterView> {
    if Quorums::of(layout.replicas).is_none() {
        bail!("--replicas {}: there must be 3f+1 of them, 4 or 7 or 10 ..., to tolerate f liars", layout.replicas);
    }
    if layout.nodes == 0 || layout.nodes > 1000 {
        bail!("--nodes {}: a cluster needs 1 to 1000 storage nodes", layout.nodes);
    }
    if dir.exists() && dir.read_dir().with_context(|| format!("cannot use {}", dir.display()))?.next().is_some() {
        bail!("{} exists and is not empty; name a folder that is still to be made", dir.display());
    }
    let name = dir.file_name().with_context(|| format!("{} is no name for a new folder", dir.display()))?;
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let fresh = parent.join(format!(".{}.new-{}", name.to_string_lossy(), std::process::id()));
    let written = fill(&fresh, layout);
    let made = written.and_then(|view| {
        let rename = || std::fs::rename(&fresh, dir).and_then(|()| sync_folder(parent));
        rename().with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(view)
    });
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&fresh);
    }
    made
}

fn fill(dir: &Path, layout: Layout) -> anyhow::Result<ClusterView> {
    make_private(dir)?;
    let admin = new_key(&dir.join("admin.key"))?;
    let mut nodes = Vec::new();
    for (index, address) in addresses(layout)?.into_iter().enumerate() {
        let folder = dir.join(format!("node-{index}"));
        make_private(&folder)?;
        let key = new_key(&folder.join("node.key"))?;
        let role = if index < layout.replicas { Role::Replica } else { Role::Storage };
        let id = NodeId(index as u32);
        nodes.push(Node { id, key: key.secret().public(), address, role, domain: format!("node-{index}") });
        let file = NodeFile {
            format: FORMAT,
            id: id.0,
            cluster: "../cluster.toml".into(),
            key: "node.key".into(),
            data: "data".into(),
            listen: None,
            capacity_bytes: None,
        };
        write_file(&folder.join("node.toml"), &toml::to_string(&file)?)?;
        if role == Role::Replica {
            write_file(&folder.join(FIRST_START), FIRST_START_TEXT)?;
        }
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let user = Principal { name: "admin".into(), key: admin.secret().public(), uids: None, admin: true };
    let view = ClusterView { cluster: ClusterId(id), nodes, principals: vec![user] };
    // Syncs the folder, and so the names of all that was made in it.
    write_file(&dir.join("cluster.toml"), &view.to_toml())?;
    Ok(view)
}

/// For whoever finds the file (ADR 8).
const FIRST_START_TEXT: &str = "This replica has never run. Its first start removes this file; do not restore it: \
a replica that starts without its log and with this file may vote twice.\n";

fn make_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

fn new_key(path: &Path) -> anyhow::Result<KeyFile> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let key = KeyFile::from_seed(seed);
    key.write_new(path)?;
    Ok(key)
}

/// Writes a file whole or not at all, and durably: the settings must outlive a power cut as the data
/// do.
pub(crate) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        sync_folder(path.parent().unwrap_or(Path::new(".")))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// An address for each node: consecutive ports, or free ones.
fn addresses(layout: Layout) -> anyhow::Result<Vec<SocketAddr>> {
    let count = layout.replicas + layout.nodes;
    match layout.base_port {
        Some(base) => {
            let last = usize::from(base) + count - 1;
            if base == 0 || last > 65_535 {
                bail!("--base-port {base}: {count} nodes would need ports {base} to {last}");
            }
            Ok((0..count).map(|index| SocketAddr::new(layout.host, base + index as u16)).collect())
        }
        None => free_addresses(layout.host, count),
    }
}

/// Addresses with ports that are free now.
pub(crate) fn free_addresses(host: IpAddr, count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let bind = |_| TcpListener::bind((host, 0)).with_context(|| format!("cannot listen on {host}"));
    let held = (0..count).map(bind).collect::<anyhow::Result<Vec<_>>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?)).collect()
}

pub(crate) async fn run_node(args: &NodeRun) -> anyhow::Result<ExitCode> {
    let config = server::NodeConfig::read(&args.config)?;
    let id = config.id;
    let mut stop = Stop::listen()?;
    let mut node = server::Node::start(config).await?;
    say!("node-{id} ready on {}", node.address());
    let cause = tokio::select! {
        () = stop.asked() => None,
        cause = node.failed() => Some(cause),
    };
    node.stop().await;
    match cause {
        None => Ok(ExitCode::SUCCESS),
        Some(cause) => bail!("node-{id} stopped itself: {cause}"),
    }
}

/// Ctrl-C, SIGTERM, or a terminal that was closed.
pub(crate) struct Stop {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    /// Listens from now on.
    pub(crate) fn listen() -> anyhow::Result<Stop> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Stop {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits until somebody asks to stop. Cancel-safe.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.hangup.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The node.toml of a node in a cluster's folder.
pub(crate) fn node_file(dir: &Path, id: NodeId) -> PathBuf {
    dir.join(format!("node-{id}")).join("node.toml")
}
