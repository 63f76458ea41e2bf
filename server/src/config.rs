//! A node's settings: `node.toml`, checked once.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base::{NodeId, SecretKey};
use proto::keyfile::{KeyFile, KeyFileError};
use proto::view::{ClusterView, ViewError};
use serde::{Deserialize, Serialize};

/// Everything a node needs to start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Who belongs to the cluster.
    pub view: ClusterView,
    /// Which of them this is.
    pub id: NodeId,
    /// Its key.
    pub secret: SecretKey,
    /// Where its data lives.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Most bytes of blocks it holds; `None`: what the disk has.
    pub capacity_bytes: Option<u64>,
    /// The file that says that a replica has never run, so that its log may be empty. It goes at the
    /// first start: an empty log without it was lost. `None`: it may be empty always.
    pub first_start: Option<PathBuf>,
}

/// The name of [`NodeConfig::first_start`], beside `node.toml`.
pub const FIRST_START: &str = "first-start";

/// Why a `node.toml` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeConfigError {
    /// It could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML, or has a key that means nothing.
    #[error("{path}: {source}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// The cluster's view can't be used.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The node's key can't be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// It says something that can't be.
    #[error("{path}: {what}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        what: String,
    },
}

/// `node.toml`. Paths are relative to the file's own folder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    /// The version of the format: [`proto::view::FORMAT`].
    pub format: u32,
    /// The node's number in the cluster's view.
    pub id: u32,
    /// The cluster's view.
    pub cluster: PathBuf,
    /// The node's secret key.
    pub key: PathBuf,
    /// Where the node keeps its data.
    pub data: PathBuf,
    /// Where it listens, if not at its address in the view (behind a forwarder, say).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Most bytes of blocks it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
}

impl NodeConfig {
    /// Reads a `node.toml` and the files it names.
    ///
    /// # Errors
    /// What is wrong, in which file, and how to mend it.
    pub fn read(path: &Path) -> Result<NodeConfig, NodeConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| NodeConfigError::Read { path: path.into(), source })?;
        let file: NodeFile = toml::from_str(&text)
            .map_err(|source| NodeConfigError::Syntax { path: path.into(), source: Box::new(source) })?;
        let invalid = |what| NodeConfigError::Invalid { path: path.into(), what };
        if file.format != proto::view::FORMAT {
            let (found, known) = (file.format, proto::view::FORMAT);
            return Err(invalid(format!(
                "format {found} is not one this program knows ({known}); use a newer mangrove"
            )));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let view = ClusterView::read(&folder.join(&file.cluster))?;
        let secret = KeyFile::read(&folder.join(&file.key))?.secret();
        let id = NodeId(file.id);
        let Some(node) = view.node(id) else {
            return Err(invalid(format!("the cluster has no node {id}; its nodes are {}", ids(&view))));
        };
        if node.key != secret.public() {
            let (mine, theirs) = (secret.public(), node.key);
            return Err(invalid(format!(
                "the key file holds {mine}, but the cluster knows node {id} by {theirs}; use node {id}'s own key"
            )));
        }
        let listen = file.listen.unwrap_or(node.address);
        let (data, capacity_bytes) = (folder.join(&file.data), file.capacity_bytes);
        let first_start = Some(folder.join(FIRST_START));
        Ok(NodeConfig { id, secret, data, listen, capacity_bytes, first_start, view })
    }
}

fn ids(view: &ClusterView) -> String {
    view.nodes.iter().map(|node| node.id.to_string()).collect::<Vec<_>>().join(", ")
}
