//! What `mangrove status --json` says, as far as the tests look at it:
//!
//! ```json
//! {"nodes": [
//!   {"node": 0, "role": "replica", "up": true, "dropped": {"malformed": 1},
//!    "replica": {"last_executed": 17, "view": 0, "state": "normal", "behind": null}},
//!   {"node": 4, "role": "storage", "up": true, "dropped": {},
//!    "storage": {"blocks": 9, "corrupt_blocks": 0, "refused_puts": 0, "full": false}},
//!   {"node": 5, "role": "storage", "up": false, "error": "..."}],
//!  "sessions": [{"label": "mount /mnt on host", "replicas": 4}]}
//! ```

use std::collections::BTreeMap;
use std::process::Command;

use serde::Deserialize;

use crate::process::{ANSWER, run};

/// The state of a cluster as one client sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Every member of the cluster.
    pub nodes: Vec<Node>,
    /// The clients' sessions; a mount is one.
    pub sessions: Vec<Session>,
}

/// One node.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// Its number.
    #[serde(rename = "node")]
    pub id: usize,
    /// `replica` or `storage`.
    pub role: String,
    /// Whether it answered; if not, nothing below is known.
    pub up: bool,
    /// Of a replica.
    #[serde(default)]
    pub replica: Option<Replica>,
    /// Of a storage node.
    #[serde(default)]
    pub storage: Option<Storage>,
    /// Messages dropped since it started, by reason.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
}

/// The state of a replica.
#[derive(Clone, Debug, Deserialize)]
pub struct Replica {
    /// The last sequence number it executed.
    pub last_executed: u64,
    /// Its view.
    pub view: u64,
    /// `normal`, `changing view`, `rejoining` or `diverged`.
    pub state: String,
    /// Set if it lags further than its peers' logs reach back.
    #[serde(default)]
    pub behind: Option<u64>,
    /// Reads it was asked to prove since it started, by how it answered.
    #[serde(default)]
    pub reads: BTreeMap<String, u64>,
}

/// The state of a storage node.
#[derive(Clone, Debug, Deserialize)]
pub struct Storage {
    /// Blocks held.
    pub blocks: u64,
    /// Blocks found damaged since it started.
    pub corrupt_blocks: u64,
    /// Blocks it had no room for since it started.
    pub refused_puts: u64,
    /// Whether it has no room now.
    pub full: bool,
}

/// A client's session.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// What the client calls itself.
    pub label: String,
    /// How many replicas have it.
    pub replicas: usize,
}

impl Status {
    /// Runs `command`, to which `status --json` is added, and reads its output.
    ///
    /// # Panics
    /// If it fails (that some nodes are down, exit code 3, is no failure), or says something else
    /// than this module describes.
    #[must_use]
    #[track_caller]
    pub fn ask(command: &mut Command) -> Status {
        let done = run(command.args(["status", "--json"]), ANSWER);
        assert!(matches!(done.status.code(), Some(0 | 3)), "status ended with {}:\n{}", done.status, done.stderr);
        let json = done.stdout;
        let status: Status =
            serde_json::from_str(&json).unwrap_or_else(|error| panic!("status --json said {json:?}: {error}"));
        let all_up = status.nodes.iter().all(|node| node.up);
        assert_eq!(done.status.code(), Some(if all_up { 0 } else { 3 }), "the exit code says whether all are up");
        status
    }

    /// How many replicas answer.
    #[must_use]
    pub fn replicas_up(&self) -> usize {
        self.nodes.iter().filter(|node| node.up && node.role == "replica").count()
    }

    /// How many storage nodes answer.
    #[must_use]
    pub fn storage_up(&self) -> usize {
        self.nodes.iter().filter(|node| node.up && node.role == "storage").count()
    }

    /// The node of this number.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn node(&self, id: usize) -> &Node {
        self.nodes.iter().find(|node| node.id == id).unwrap_or_else(|| panic!("no node {id} in {self:?}"))
    }

    /// A replica's last executed sequence number; 0 if it does not answer.
    #[must_use]
    pub fn executed(&self, id: usize) -> u64 {
        self.node(id).replica.as_ref().map_or(0, |replica| replica.last_executed)
    }

    /// What storage nodes say, added up.
    pub fn storage_sum(&self, count: impl Fn(&Storage) -> u64) -> u64 {
        self.nodes.iter().filter_map(|node| node.storage.as_ref()).map(count).sum()
    }
}

impl Node {
    /// How many reads it proved; 0 if it does not answer.
    #[must_use]
    pub fn proven_reads(&self) -> u64 {
        self.replica.as_ref().and_then(|replica| replica.reads.get("proven")).copied().unwrap_or(0)
    }

    /// How many messages it dropped, whatever the reason.
    #[must_use]
    pub fn dropped_messages(&self) -> u64 {
        self.dropped.values().sum()
    }
}
