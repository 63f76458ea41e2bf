//! Links to the other replicas: one each, many messages a frame.
//!
//! Queues are bounded and sending never waits: PBFT survives loss, and its status messages ask
//! again for what was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{ReplicaId, To};
use bytes::Bytes;
use proto::frame::framed;
use proto::link::{Dialled, Dialler, Identity, LinkError, Protocol};
use proto::pipe;
use proto::view::ClusterView;
use proto::wire::PeerFrame;
use tokio::sync::mpsc;

/// Messages waiting for one peer.
const QUEUE_MAX: usize = 4096;
/// What they may add up to, bytes, about.
const QUEUE_BYTES_MAX: usize = 16 << 20;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The sending side of the links to all other replicas.
#[derive(Debug)]
pub(crate) struct Peers {
    queues: Vec<Option<Queue>>,
}

/// What waits for one peer.
#[derive(Debug)]
struct Queue {
    messages: mpsc::Sender<Bytes>,
    /// Bytes of it.
    bytes: Arc<AtomicUsize>,
}

impl Queue {
    fn push(&self, message: &Bytes) {
        // Counted before it can be taken, so that the count never falls below zero.
        let before = self.bytes.fetch_add(message.len(), Ordering::Relaxed);
        if before + message.len() > QUEUE_BYTES_MAX || self.messages.try_send(message.clone()).is_err() {
            self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        }
    }
}

impl Peers {
    /// Starts a link to every replica but `me`; they connect by themselves, again and again.
    pub(crate) fn start(view: &ClusterView, me: ReplicaId, identity: &Identity) -> Result<Peers, LinkError> {
        let mut queues = Vec::new();
        for (index, node) in view.replicas().enumerate() {
            if index == usize::from(me.0) {
                queues.push(None);
                continue;
            }
            let (queue, waiting) = mpsc::channel(QUEUE_MAX);
            let bytes = Arc::new(AtomicUsize::new(0));
            let waiting = Waiting { messages: waiting, bytes: bytes.clone() };
            tokio::spawn(run(Dialler::new(identity, node.address, node.key, Protocol::Peer)?, waiting));
            queues.push(Some(Queue { messages: queue, bytes }));
        }
        Ok(Peers { queues })
    }

    /// Queues a message; drops it if the peer's queue is full.
    pub(crate) fn send(&self, to: To<ReplicaId>, message: &Bytes) {
        match to {
            To::All => self.queues.iter().flatten().for_each(|queue| queue.push(message)),
            To::One(peer) => {
                if let Some(queue) = self.queues.get(usize::from(peer.0)).and_then(Option::as_ref) {
                    queue.push(message);
                }
            }
        }
    }
}

/// The other end of a [`Queue`].
struct Waiting {
    messages: mpsc::Receiver<Bytes>,
    bytes: Arc<AtomicUsize>,
}

impl Waiting {
    /// Takes what waits; nothing only when nobody sends any more.
    async fn take(&mut self, batch: &mut Vec<Bytes>) -> usize {
        let count = self.messages.recv_many(batch, 256).await;
        self.taken(batch);
        count
    }

    fn taken(&self, batch: &[Bytes]) {
        self.bytes.fetch_sub(batch.iter().map(Bytes::len).sum(), Ordering::Relaxed);
    }

    /// Forgets what waited for a peer that was away: its status will ask for what still counts.
    fn forget(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.taken(&[message]);
        }
    }
}

/// Keeps a link to one peer open for as long as somebody may send.
async fn run(dialler: Dialler, mut waiting: Waiting) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match dialler.connect().await {
            Ok(link) => {
                let began = Instant::now();
                if carry(link, &mut waiting).await.is_none() {
                    return;
                }
                // Whoever hangs up at once is as good as nobody.
                if began.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                }
            }
            Err(error) => tracing::debug!(?dialler, %error, "no link to this replica"),
        }
        if waiting.messages.is_closed() && waiting.messages.is_empty() {
            return;
        }
        tokio::time::sleep(backoff).await;
        waiting.forget();
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Carries messages until the link breaks (`Some`) or nobody sends any more (`None`).
async fn carry(link: Dialled, waiting: &mut Waiting) -> Option<()> {
    let (mut answers, mut frames) = pipe::split(link);
    // Nothing comes back; it ends when the link does.
    let mut ended = std::pin::pin!(answers.next::<PeerFrame>());
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = &mut ended => return Some(()),
            count = waiting.take(&mut batch) => {
                if count == 0 {
                    return None;
                }
            }
        }
        let sent = framed(&mut batch).into_iter().map(|messages| PeerFrame { messages }.into());
        tokio::select! {
            _ = &mut ended => return Some(()),
            sent = frames.send(sent) => if sent.is_err() { return Some(()) },
        }
    }
}
