//! Links to the other replicas: one stream each, many messages a frame.
//!
//! Queues are bounded and sending never waits: PBFT survives loss, and its status messages ask
//! again for what was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::{ReplicaId, To};
use bytes::Bytes;
use proto::MESSAGE_MAX;
use proto::frame::framed;
use proto::link::{self, Identity, LinkError};
use proto::view::ClusterView;
use proto::wire::PeerFrame;
use proto::wire::consensus_client::ConsensusClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

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
            tokio::spawn(run(link::dial(identity, node.address, node.key)?, waiting));
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

/// Keeps a stream open to one peer for as long as somebody may send.
async fn run(channel: Channel, mut waiting: Waiting) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let (frames, outgoing) = mpsc::channel(4);
        let mut client = ConsensusClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
        if let Ok(answer) = client.peer(ReceiverStream::new(outgoing)).await {
            backoff = BACKOFF_MIN;
            if carry(answer.into_inner(), &mut waiting, &frames).await.is_none() {
                return;
            }
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
async fn carry(
    mut answers: tonic::Streaming<PeerFrame>,
    waiting: &mut Waiting,
    frames: &mpsc::Sender<PeerFrame>,
) -> Option<()> {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = answers.message() => return Some(()),
            count = waiting.take(&mut batch) => {
                if count == 0 {
                    return None;
                }
                for frame in framed(&mut batch) {
                    if frames.send(PeerFrame { messages: frame }).await.is_err() {
                        return Some(());
                    }
                }
            }
        }
    }
}
