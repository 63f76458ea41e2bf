//! What a node tells operators about itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use base::{NodeId, ReplicaId};
use parking_lot::Mutex;
use proto::link::PeerKey;
use proto::wire::admin_server::Admin;
use proto::wire::{Count, NodeStatus, ReplicaStatus, StatusAsk, StorageStatus};
use tonic::{Request, Response, Status};

use crate::counts::Counts;
use crate::door::Door;
use crate::driver::Seen;
use crate::reads::Desk;
use crate::sessions::Sessions;
use crate::store::Store;

/// The service.
pub(crate) struct AdminService {
    pub(crate) node: NodeId,
    pub(crate) started: Instant,
    pub(crate) part: Part,
}

/// What this node is.
pub(crate) enum Part {
    /// A replica.
    Replica {
        me: ReplicaId,
        replicas: usize,
        seen: Arc<Mutex<Seen>>,
        door: Arc<Door>,
        sessions: Arc<Sessions>,
        desk: Arc<Desk>,
        log_bytes: Arc<AtomicU64>,
    },
    /// A storage node.
    Storage { store: Arc<Store>, dropped: Arc<Counts> },
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, request: Request<StatusAsk>) -> Result<Response<NodeStatus>, Status> {
        if request.extensions().get::<PeerKey>().is_none() {
            return Err(Status::unauthenticated("no key on this link"));
        }
        let mut status = NodeStatus {
            node: self.node.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ..NodeStatus::default()
        };
        match &self.part {
            Part::Replica { me, replicas, seen, door, sessions, desk, log_bytes } => {
                let seen = seen.lock().clone();
                let mut replica = replica_status(*me, *replicas, &seen, log_bytes.load(Ordering::Relaxed));
                replica.reads = desk.counts.to_wire();
                replica.marked = desk.shelf.borrow().certified.as_ref().map(|certified| certified.seq().0);
                status.replica = Some(replica);
                status.sessions = sessions.to_wire();
                status.dropped = door.dropped.to_wire();
            }
            Part::Storage { store, dropped } => {
                status.storage = Some(storage_status(store));
                status.dropped = dropped.to_wire();
            }
        }
        Ok(Response::new(status))
    }
}

fn replica_status(me: ReplicaId, replicas: usize, seen: &Seen, log_bytes: u64) -> ReplicaStatus {
    let status = &seen.status;
    let counts = |counts: &[(String, u64)]| {
        counts.iter().map(|(what, count)| Count { what: what.clone(), count: *count }).collect::<Vec<_>>()
    };
    let ignored: Vec<_> = status.ignored.iter().map(|(why, count)| (format!("{why:?}"), *count)).collect();
    let lied: Vec<_> = status.misbehaved.iter().map(|(who, count)| (format!("{who:?}"), *count)).collect();
    ReplicaStatus {
        replica: u32::from(me.0),
        view: status.view.0,
        primary: status.view.primary(replicas) == me,
        last_executed: status.last_executed.0,
        low_water_mark: status.low_water_mark.0,
        high_water_mark: status.high_water_mark.0,
        pending_requests: status.pending as u64,
        behind: status.behind.map(|seq| seq.0),
        inodes: seen.inodes,
        log_bytes,
        state: match status.status {
            bft::Standing::Normal => "normal",
            bft::Standing::ChangingView => "changing view",
            bft::Standing::Rejoining => "rejoining",
            bft::Standing::Diverged => "diverged",
        }
        .to_owned(),
        ignored: counts(&ignored),
        misbehaved: counts(&lied),
        ..ReplicaStatus::default()
    }
}

fn storage_status(store: &Store) -> StorageStatus {
    let (space, stats) = (store.space(), store.stats());
    StorageStatus {
        blocks: stats.blocks,
        used_bytes: space.used,
        capacity_bytes: space.capacity,
        free_bytes: space.free,
        corrupt_blocks: stats.corrupt,
        refused_puts: stats.refused,
        full: stats.full,
    }
}
