//! Where things are: the user's folders, and which cluster is meant.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use client::Cluster;
use proto::keyfile::KeyFile;
use proto::view::ClusterView;
use serde::{Deserialize, Serialize};

use crate::args::Access;

/// `config.toml` in the user's config folder: the cluster that `up` started last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserConfig {
    cluster: PathBuf,
    key: PathBuf,
}

fn home() -> anyhow::Result<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set; set it, or name --data, --cluster and --key")
}

/// A folder of the XDG base directory specification.
fn xdg(variable: &str, default: &str) -> anyhow::Result<PathBuf> {
    match std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => Ok(path.join("mangrove")),
        None => Ok(home()?.join(default).join("mangrove")),
    }
}

/// Where `up` keeps its cluster unless told otherwise.
pub(crate) fn data_folder() -> anyhow::Result<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share")
}

/// Where blocks at hand are kept.
pub(crate) fn cache_folder() -> anyhow::Result<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}

/// Where what a mount lost is kept.
pub(crate) fn lost_folder() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("XDG_STATE_HOME").is_some();
    let folder = match rustix::process::geteuid().is_root() && !named {
        true => PathBuf::from("/var/lib/mangrove"),
        false => xdg("XDG_STATE_HOME", ".local/state")?,
    };
    Ok(folder.join("lost"))
}

/// Where sockets and logs of running mounts are.
pub(crate) fn runtime_folder() -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path.join("mangrove"),
        None if rustix::process::geteuid().is_root() => PathBuf::from("/run/mangrove"),
        None => cache_folder()?.join("run"),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn config_file() -> anyhow::Result<PathBuf> {
    Ok(xdg("XDG_CONFIG_HOME", ".config")?.join("config.toml"))
}

/// Remembers which cluster is meant when none is named.
pub(crate) fn remember(cluster: &Path, key: &Path) -> anyhow::Result<()> {
    let path = config_file()?;
    let folder = path.parent().expect("a file in a folder");
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let text = toml::to_string(&UserConfig { cluster: cluster.into(), key: key.into() })?;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)
        .and_then(|()| std::fs::rename(&fresh, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The files that say which cluster, and who is asking.
fn files(access: &Access) -> anyhow::Result<(PathBuf, PathBuf)> {
    if let Some(cluster) = &access.cluster {
        let beside = cluster.parent().unwrap_or(Path::new(".")).join("admin.key");
        return Ok((cluster.clone(), access.key.clone().unwrap_or(beside)));
    }
    let path = config_file()?;
    if !path.exists() {
        bail!("no cluster named: start one with `mangrove up MOUNTPOINT`, or say --cluster FILE (or MANGROVE_CLUSTER)");
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: UserConfig = toml::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok((config.cluster, access.key.clone().unwrap_or(config.key)))
}

/// The view and key that are meant.
pub(crate) fn load(access: &Access) -> anyhow::Result<(ClusterView, KeyFile)> {
    let (cluster, key) = files(access)?;
    Ok((ClusterView::read(&cluster)?, KeyFile::read(&key)?))
}

/// A connection to the cluster that is meant.
pub(crate) fn connect(access: &Access, label: &str) -> anyhow::Result<Cluster> {
    let (view, key) = load(access)?;
    Ok(Cluster::connect(view, key, label)?)
}
