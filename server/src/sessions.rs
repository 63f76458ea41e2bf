//! Clients' sessions: where replies go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use base::PublicKey;
use bytes::Bytes;
use parking_lot::Mutex;
use proto::wire;
use tokio::sync::Notify;

use crate::queue::{Queue, Waiting, queue};

/// Replies waiting for one client.
const QUEUE_MAX: usize = 1024;
/// What they may add up to, bytes: some of the longest there are.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Sessions one principal may have open here.
const PER_PRINCIPAL_MAX: usize = 64;

/// The open sessions of this replica.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    open: BTreeMap<(PublicKey, u64), Session>,
    opened_count: u64,
}

#[derive(Debug)]
struct Session {
    replies: Queue,
    recalled: Arc<Notify>,
    label: String,
    since: Instant,
    generation: u64,
}

/// What [`Sessions::open`] gives: the replies to carry, and a token to close with.
pub(crate) struct Opened {
    pub(crate) replies: Waiting,
    /// Others want what this user has leases on.
    pub(crate) recalled: Arc<Notify>,
    pub(crate) generation: u64,
}

impl Sessions {
    /// Opens a session, in place of an older link of the same session. `None` if the principal has
    /// too many.
    pub(crate) fn open(&self, client: PublicKey, session: u64, label: String) -> Option<Opened> {
        let (sender, replies) = queue(QUEUE_MAX, QUEUE_BYTES_MAX);
        let mut table = self.0.lock();
        let mine = table.open.range((client, 0)..=(client, u64::MAX)).count();
        if mine >= PER_PRINCIPAL_MAX && !table.open.contains_key(&(client, session)) {
            return None;
        }
        table.opened_count += 1;
        let generation = table.opened_count;
        let recalled = Arc::new(Notify::new());
        let entry = Session { replies: sender, recalled: recalled.clone(), label, since: Instant::now(), generation };
        table.open.insert((client, session), entry);
        Some(Opened { replies, recalled, generation })
    }

    /// Closes a session, unless a newer link has taken it over.
    pub(crate) fn close(&self, client: PublicKey, session: u64, generation: u64) {
        let mut table = self.0.lock();
        if table.open.get(&(client, session)).is_some_and(|entry| entry.generation == generation) {
            table.open.remove(&(client, session));
        }
    }

    /// Sends a reply; drops it if the client is not here or does not read: it will ask again.
    pub(crate) fn send(&self, client: PublicKey, session: u64, reply: Bytes) {
        if let Some(entry) = self.0.lock().open.get(&(client, session)) {
            entry.replies.push(&reply);
        }
    }

    /// Tells a user's sessions that others want what it has leases on.
    pub(crate) fn recall(&self, client: PublicKey) {
        let table = self.0.lock();
        for (_, entry) in table.open.range((client, 0)..=(client, u64::MAX)) {
            entry.recalled.notify_one();
        }
    }

    /// The open sessions, as an operator sees them.
    pub(crate) fn to_wire(&self) -> Vec<wire::SessionStatus> {
        let table = self.0.lock();
        let status = |(key, _): &(PublicKey, u64), session: &Session| wire::SessionStatus {
            principal: key.to_string(),
            label: session.label.clone(),
            connected_seconds: session.since.elapsed().as_secs(),
        };
        table.open.iter().map(|(key, session)| status(key, session)).collect()
    }
}
