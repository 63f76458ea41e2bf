//! `mangrove up`: a whole cluster in one process, and its mount.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::task::Poll;

use anyhow::{Context as _, bail};
use client::connect::{DEFAULT_VOLUME, TRASH_KEPT};
use client::{Cluster, ConnectError};
use proto::keyfile::KeyFile;
use proto::view::ClusterView;
use server::{Node, NodeConfig, NodeError};

use crate::args::Up;
use crate::cluster::{self, Layout, Stop};
use crate::output::say;
use crate::{config, mount};

pub(crate) async fn run(args: Up) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::listen()?;
    let dir = match &args.data {
        Some(dir) => dir.clone(),
        None => config::data_folder()?,
    };
    let made = args.mountpoint.as_deref().map(prepare).transpose()?.unwrap_or(false);
    let up = async {
        let mut running = start(&args, &dir).await?;
        let outcome = serve(&args, &dir, &mut running, &mut stop).await;
        eprintln!("stopping the cluster ...");
        running.stop().await;
        outcome
    };
    let outcome = up.await;
    if made && outcome.is_err() {
        // Leave no empty folder behind where nothing was mounted.
        let _ = args.mountpoint.as_deref().map(std::fs::remove_dir);
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Checks the mountpoint before anything is written; makes it if only it is missing. Says whether
/// it was made.
fn prepare(mountpoint: &Path) -> anyhow::Result<bool> {
    fuse::clear_stale(mountpoint, fuse::KIND)?;
    let in_a_folder = match mountpoint.parent() {
        Some(parent) => parent.as_os_str().is_empty() || parent.is_dir(),
        None => false,
    };
    let missing = mountpoint.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    if missing && in_a_folder {
        std::fs::create_dir(mountpoint).with_context(|| format!("cannot make {}", mountpoint.display()))?;
        return Ok(true);
    }
    fuse::check_mountpoint(mountpoint)?;
    Ok(false)
}

struct Running {
    nodes: Vec<Node>,
    view: ClusterView,
    key: KeyFile,
    _lock: File,
}

impl Running {
    async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }

    /// Waits until a node can't go on, and says which and why.
    async fn failed(&mut self) -> String {
        let ids: Vec<_> = self.view.nodes.iter().map(|node| node.id).collect();
        let mut failures: Vec<_> = self.nodes.iter_mut().map(|node| Box::pin(node.failed())).collect();
        std::future::poll_fn(|cx| {
            for (id, failure) in ids.iter().zip(&mut failures) {
                if let Poll::Ready(cause) = failure.as_mut().poll(cx) {
                    return Poll::Ready(format!("node-{id}: {cause}"));
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Makes the cluster if it is new, and starts its nodes.
async fn start(args: &Up, dir: &Path) -> anyhow::Result<Running> {
    let view_file = dir.join("cluster.toml");
    if !view_file.exists() {
        let host = std::net::Ipv4Addr::LOCALHOST.into();
        cluster::write(dir, Layout { replicas: args.replicas, nodes: args.nodes, host, base_port: None })?;
        eprintln!("made a new cluster in {}", dir.display());
    }
    let lock = lock(dir)?;
    let key = KeyFile::read(&dir.join("admin.key"))?;
    let mut view = ClusterView::read(&view_file)?;
    eprintln!("starting {} replicas and {} storage nodes ...", view.replicas().count(), view.storage().count());
    let (mut nodes, mut readdressed) = (start_nodes(dir, &view).await, false);
    if let Err(StartError::Node(NodeError::Listen { source, .. })) = &nodes
        && source.kind() == std::io::ErrorKind::AddrInUse
    {
        // The ports are nobody's business but this process's: take others.
        let (host, view_len) = (std::net::Ipv4Addr::LOCALHOST.into(), view.nodes.len());
        for (node, address) in view.nodes.iter_mut().zip(cluster::free_addresses(host, view_len)?) {
            node.address = address;
        }
        nodes = start_nodes(dir, &view).await;
        readdressed = true;
    }
    let running = Running { nodes: nodes?, view, key, _lock: lock };
    let noted = match readdressed {
        // Only once all nodes are ours: the ports may have been taken by these very nodes.
        true => cluster::write_file(&view_file, &running.view.to_toml()),
        false => Ok(()),
    };
    let noted = noted.and_then(|()| config::remember(&absolute(&view_file)?, &absolute(&dir.join("admin.key"))?));
    match noted {
        Ok(()) => Ok(running),
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Config(#[from] server::NodeConfigError),
    #[error(transparent)]
    Node(#[from] NodeError),
}

async fn start_nodes(dir: &Path, view: &ClusterView) -> Result<Vec<Node>, StartError> {
    let mut nodes = Vec::new();
    for node in &view.nodes {
        let started = match NodeConfig::read(&cluster::node_file(dir, node.id)) {
            Ok(config) => {
                let config = NodeConfig { listen: node.address, view: view.clone(), ..config };
                Node::start(config).await.map_err(StartError::from)
            }
            Err(error) => Err(error.into()),
        };
        match started {
            Ok(node) => nodes.push(node),
            Err(error) => {
                for node in nodes {
                    node.stop().await;
                }
                return Err(error);
            }
        }
    }
    Ok(nodes)
}

/// One process a folder.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("up.lock");
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open().with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        bail!(
            "the cluster in {} is running already (process {}); `mangrove mount MOUNTPOINT` mounts it once more",
            dir.display(),
            pid.trim()
        );
    }
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()))?;
    Ok(file)
}

/// Mounts, and waits until somebody asks to stop or something breaks.
async fn serve(args: &Up, dir: &Path, running: &mut Running, stop: &mut Stop) -> anyhow::Result<()> {
    let Some(mountpoint) = &args.mountpoint else {
        let cluster = Cluster::connect(running.view.clone(), running.key.clone(), "up")?;
        tokio::select! {
            ready = ensure_volume(&cluster) => ready?,
            () = stop.asked() => return Ok(()),
            cause = running.failed() => bail!("{cause}"),
        }
        say!("running, not mounted; cluster view: {}", dir.join("cluster.toml").display());
        return wait(running, stop, std::future::pending()).await;
    };
    let cluster = Cluster::connect(running.view.clone(), running.key.clone(), &mount::label(mountpoint))?;
    tokio::select! {
        ready = ensure_volume(&cluster) => ready?,
        () = stop.asked() => return Ok(()),
        cause = running.failed() => bail!("{cause}"),
    }
    let mounted = mount::mount(&cluster, DEFAULT_VOLUME, mountpoint, &args.using).await?;
    say!("mounted at {}; Ctrl-C stops the cluster and keeps the files", mountpoint.display());
    let outcome = wait(running, stop, mounted.ended()).await;
    mounted.close(stop).await.and(outcome)
}

async fn wait(running: &mut Running, stop: &mut Stop, ended: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.asked() => Ok(()),
        () = ended => Ok(()),
        cause = running.failed() => bail!("{cause}"),
    }
}

/// Makes the default volume if it is not there yet.
async fn ensure_volume(cluster: &Cluster) -> anyhow::Result<()> {
    match cluster.open_volume(DEFAULT_VOLUME).await {
        Ok(_) => Ok(()),
        Err(ConnectError::NoVolume(_)) => Ok(cluster.create_volume(DEFAULT_VOLUME, mount::owner(), TRASH_KEPT).await?),
        Err(error) => Err(error.into()),
    }
}
