//! Links to the other replicas: one stream each, many messages a frame.
//!
//! Queues are bounded and sending never waits: PBFT survives loss, and its status messages ask
//! again for what was lost.

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
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The sending side of the links to all other replicas.
#[derive(Debug)]
pub(crate) struct Peers {
    queues: Vec<Option<mpsc::Sender<Bytes>>>,
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
            tokio::spawn(run(link::dial(identity, node.address, node.key)?, waiting));
            queues.push(Some(queue));
        }
        Ok(Peers { queues })
    }

    /// Queues a message; drops it if the peer's queue is full.
    pub(crate) fn send(&self, to: To<ReplicaId>, message: &Bytes) {
        match to {
            To::All => self.queues.iter().flatten().for_each(|queue| drop(queue.try_send(message.clone()))),
            To::One(peer) => {
                if let Some(queue) = self.queues.get(usize::from(peer.0)).and_then(Option::as_ref) {
                    let _ = queue.try_send(message.clone());
                }
            }
        }
    }
}

/// Keeps a stream open to one peer for as long as somebody may send.
async fn run(channel: Channel, mut waiting: mpsc::Receiver<Bytes>) {
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
        if waiting.is_closed() && waiting.is_empty() {
            return;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Carries messages until the link breaks (`Some`) or nobody sends any more (`None`).
async fn carry(
    mut answers: tonic::Streaming<PeerFrame>,
    waiting: &mut mpsc::Receiver<Bytes>,
    frames: &mpsc::Sender<PeerFrame>,
) -> Option<()> {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = answers.message() => return Some(()),
            count = waiting.recv_many(&mut batch, 256) => {
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
