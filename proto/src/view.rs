//! The view: who belongs to the cluster, read from `cluster.toml` and checked once.
//!
//! Everybody who takes part (nodes, clients) holds the same file. Keys in it are what TLS sessions
//! and signatures are checked against; nothing else is trusted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base::{ClusterId, NodeId, PublicKey, Quorums, ReplicaId};
use serde::{Deserialize, Serialize};

use crate::link::Known;

/// The version of the file format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Orders and holds the namespace (PBFT).
    Replica,
    /// Holds blocks.
    Storage,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its key: of its TLS sessions and of its signatures.
    pub key: PublicKey,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it does.
    pub role: Role,
    /// What it fails together with: a host, a rack, a household.
    pub domain: String,
}

/// A user of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// What operators call it.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// The user ids it may act for, first and last; `None` for any.
    pub uids: Option<[u32; 2]>,
    /// Whether it may make volumes.
    pub admin: bool,
}

/// The cluster as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The cluster's name, part of everything signed.
    pub cluster: ClusterId,
    /// All nodes, by id.
    pub nodes: Vec<Node>,
    /// All users.
    pub principals: Vec<Principal>,
}

/// Why a `cluster.toml` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
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
    /// It was written by a newer program.
    #[error("{path} has format {format}, and this program knows {FORMAT}; use a newer mangrove")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// The format found.
        format: u32,
    },
    /// It says something that can't be.
    #[error("{path}: {what}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        what: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    cluster: String,
    #[serde(default)]
    node: Vec<FileNode>,
    #[serde(default)]
    principal: Vec<FilePrincipal>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    id: u32,
    key: String,
    address: SocketAddr,
    role: Role,
    domain: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePrincipal {
    name: String,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uids: Option<[u32; 2]>,
    #[serde(default)]
    admin: bool,
}

impl ClusterView {
    /// Reads and checks a `cluster.toml`.
    ///
    /// # Errors
    /// What is wrong with it, naming the entry and the mend.
    pub fn read(path: &Path) -> Result<ClusterView, ViewError> {
        let text = fs::read_to_string(path).map_err(|source| ViewError::Read { path: path.into(), source })?;
        ClusterView::parse(&text, path)
    }

    /// As [`ClusterView::read`], from text; `path` is for messages.
    ///
    /// # Errors
    /// As [`ClusterView::read`].
    pub fn parse(text: &str, path: &Path) -> Result<ClusterView, ViewError> {
        let syntax = |source| ViewError::Syntax { path: path.into(), source: Box::new(source) };
        let format = text.parse::<toml::Table>().map_err(syntax)?.get("format").and_then(toml::Value::as_integer);
        if let Some(format) = format.and_then(|format| u32::try_from(format).ok()).filter(|format| *format > FORMAT) {
            return Err(ViewError::Newer { path: path.into(), format });
        }
        let file: File = toml::from_str(text).map_err(syntax)?;
        file.check().map_err(|what| ViewError::Invalid { path: path.into(), what })
    }

    /// The file's text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let file = File {
            format: FORMAT,
            cluster: self.cluster.to_string(),
            node: self
                .nodes
                .iter()
                .map(|node| FileNode {
                    id: node.id.0,
                    key: node.key.to_string(),
                    address: node.address,
                    role: node.role,
                    domain: node.domain.clone(),
                })
                .collect(),
            principal: self
                .principals
                .iter()
                .map(|principal| FilePrincipal {
                    name: principal.name.clone(),
                    key: principal.key.to_string(),
                    uids: principal.uids,
                    admin: principal.admin,
                })
                .collect(),
        };
        let body = toml::to_string(&file).expect("the view has no values that TOML lacks");
        format!("# A mangrove cluster: who belongs to it. The same file for every node and client.\n{body}")
    }

    /// The nodes that are replicas, in replica order.
    pub fn replicas(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role == Role::Replica)
    }

    /// The nodes that hold blocks.
    pub fn storage(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role == Role::Storage)
    }

    /// The replicas' keys, in replica order.
    #[must_use]
    pub fn replica_keys(&self) -> Vec<PublicKey> {
        self.replicas().map(|node| node.key).collect()
    }

    /// Which replica this node is.
    #[must_use]
    pub fn replica_id(&self, node: NodeId) -> Option<ReplicaId> {
        self.replicas().position(|other| other.id == node).map(|index| ReplicaId(index as u16))
    }

    /// The node with this number.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Every key that may open a TLS session here.
    #[must_use]
    pub fn known(&self) -> Known {
        let nodes = self.nodes.iter().map(|node| node.key).collect();
        Known { nodes, users: self.principals.iter().map(|principal| principal.key).collect() }
    }
}

impl File {
    fn check(self) -> Result<ClusterView, String> {
        if self.format != FORMAT {
            return Err(format!("format {} is not known; this program writes {FORMAT}", self.format));
        }
        let cluster = cluster_id(&self.cluster).ok_or("`cluster` must be 32 hexadecimal digits")?;
        let mut keys = BTreeMap::new();
        let mut key_of = |text: &str, who: String| {
            let key = PublicKey::from_hex(text)
                .ok_or_else(|| format!("the key of {who} is not an ed25519 public key (64 hexadecimal digits)"))?;
            match keys.insert(key, who.clone()) {
                Some(other) => Err(format!("{who} and {other} have the same key; every node and user needs its own")),
                None => Ok(key),
            }
        };
        let mut nodes = Vec::new();
        for node in self.node {
            let key = key_of(&node.key, format!("node {}", node.id))?;
            nodes.push(Node { id: NodeId(node.id), key, address: node.address, role: node.role, domain: node.domain });
        }
        let mut principals = Vec::new();
        for user in self.principal {
            let key = key_of(&user.key, format!("user {:?}", user.name))?;
            principals.push(Principal { name: user.name, key, uids: user.uids, admin: user.admin });
        }
        nodes.sort_by_key(|node| node.id);
        check_nodes(&nodes)?;
        if !principals.iter().any(|principal| principal.admin) {
            return Err("no [[principal]] has `admin = true`; somebody must be able to make volumes".into());
        }
        Ok(ClusterView { cluster, nodes, principals })
    }
}

fn check_nodes(nodes: &[Node]) -> Result<(), String> {
    let mut addresses = BTreeMap::new();
    for pair in nodes.windows(2) {
        if pair[0].id == pair[1].id {
            return Err(format!("two nodes have id {}; give one another number", pair[0].id));
        }
    }
    for node in nodes {
        if let Some(other) = addresses.insert(node.address, node.id) {
            return Err(format!("nodes {other} and {} have the same address {}", node.id, node.address));
        }
        if node.domain.is_empty() || node.domain.len() > 64 {
            return Err(format!("the domain of node {} must have 1 to 64 bytes", node.id));
        }
    }
    let replicas = nodes.iter().filter(|node| node.role == Role::Replica).count();
    if Quorums::of(replicas).is_none() {
        return Err(format!("{replicas} replicas: there must be 3f+1 of them, 4 or 7 or 10 ..., to tolerate f liars"));
    }
    if replicas == nodes.len() {
        return Err("no node has role \"storage\"; contents need at least one".into());
    }
    Ok(())
}

/// A cluster id from 32 hexadecimal digits.
fn cluster_id(text: &str) -> Option<ClusterId> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(ClusterId(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ClusterView {
        let key = |n: u8| base::SecretKey::from_seed(&[n; 32]).public();
        let node = |n: u8, role| Node {
            id: NodeId(u32::from(n)),
            key: key(n + 1),
            address: SocketAddr::from(([127, 0, 0, 1], 7400 + u16::from(n))),
            role,
            domain: format!("host-{n}"),
        };
        let mut nodes: Vec<_> = (0..4).map(|n| node(n, Role::Replica)).collect();
        nodes.extend((4..8).map(|n| node(n, Role::Storage)));
        let admin = Principal { name: "admin".into(), key: key(100), uids: None, admin: true };
        ClusterView { cluster: ClusterId([3; 16]), nodes, principals: vec![admin] }
    }

    fn refused(change: impl FnOnce(&mut ClusterView), expect: &str) {
        let mut view = sample();
        change(&mut view);
        let error = ClusterView::parse(&view.to_toml(), Path::new("cluster.toml")).expect_err(expect).to_string();
        assert!(error.contains(expect), "{error:?} should say {expect:?}");
    }

    #[test]
    fn a_view_reads_back() {
        let view = sample();
        assert_eq!(ClusterView::parse(&view.to_toml(), Path::new("x")).unwrap(), view);
        assert_eq!(view.replica_id(NodeId(2)), Some(ReplicaId(2)));
        assert_eq!(view.replica_id(NodeId(4)), None);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_cause() {
        refused(|view| view.nodes[1].key = view.nodes[0].key, "node 1 and node 0 have the same key");
        refused(|view| view.nodes[1].address = view.nodes[0].address, "same address");
        refused(|view| view.nodes[1].id = NodeId(0), "two nodes have id 0");
        refused(|view| drop(view.nodes.remove(0)), "3 replicas: there must be 3f+1");
        refused(|view| view.nodes.truncate(4), "no node has role \"storage\"");
        refused(|view| view.principals[0].admin = false, "admin = true");
        refused(|view| view.nodes[0].domain.clear(), "domain of node 0");
    }

    #[test]
    fn bad_text_is_refused_with_the_place() {
        let good = sample().to_toml();
        let parse = |text: String| ClusterView::parse(&text, Path::new("cluster.toml")).unwrap_err().to_string();
        assert!(parse(good.replace("format = 1", "format = 9")).contains("use a newer mangrove"));
        assert!(parse(good.replace("role = \"replica\"", "role = \"king\"")).contains("king"));
        assert!(parse(format!("{good}\nextra = 1")).contains("extra"));
        assert!(parse(good.replace("key = \"", "key = \"zz")).contains("not an ed25519 public key"));
        assert!(parse(good.replacen("id = 0", "id = 0\nid = 0", 1)).contains("duplicate key"));
    }
}
