//! Links to the other replicas: one each, many messages a frame.
//!
//! Queues are bounded and sending never waits: PBFT survives loss, and its status messages ask
//! again for what was lost.

use std::time::{Duration, Instant};

use base::{ReplicaId, To};
use bytes::Bytes;
use proto::frame::framed;
use proto::link::{Dialled, Dialler, Identity, LinkError, Protocol};
use proto::pipe::{self, Frame, FrameError};
use proto::view::ClusterView;
use proto::wire::PeerFrame;

use crate::queue::{Queue, Waiting, queue};

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

impl Peers {
    /// Starts a link to every replica but `me`; they connect by themselves, again and again.
    pub(crate) fn start(view: &ClusterView, me: ReplicaId, identity: &Identity) -> Result<Peers, LinkError> {
        let mut queues = Vec::new();
        for (index, node) in view.replicas().enumerate() {
            if index == usize::from(me.0) {
                queues.push(None);
                continue;
            }
            let (queue, waiting) = queue(QUEUE_MAX, QUEUE_BYTES_MAX);
            tokio::spawn(run(Dialler::new(identity, node.address, node.key, Protocol::Peer)?, waiting));
            queues.push(Some(queue));
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

/// Keeps a link to one peer open for as long as somebody may send.
async fn run(dialler: Dialler, mut waiting: Waiting) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match dialler.connect().await {
            Ok(link) => {
                let began = Instant::now();
                match carry(link, &mut waiting).await {
                    Some(why) => tracing::debug!(?dialler, why, "the link to this replica ended"),
                    None => return,
                }
                // Whoever hangs up at once is as good as nobody.
                if began.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                }
            }
            Err(error) => tracing::debug!(?dialler, %error, "no link to this replica"),
        }
        if waiting.is_over() {
            return;
        }
        tokio::time::sleep(backoff).await;
        // Its status will ask for what still counts.
        waiting.forget();
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Carries messages until the link breaks (gives why) or nobody sends any more.
async fn carry(link: Dialled, waiting: &mut Waiting) -> Option<String> {
    let (mut answers, mut frames) = pipe::split(link);
    // Nothing comes back; it ends when the link does.
    let mut ended = std::pin::pin!(answers.next::<PeerFrame>());
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            ended = &mut ended => return Some(why(ended)),
            count = waiting.take(&mut batch) => {
                if count == 0 {
                    return None;
                }
            }
        }
        let sent = framed(&mut batch).into_iter().map(|messages| PeerFrame { messages }.into());
        tokio::select! {
            ended = &mut ended => return Some(why(ended)),
            sent = frames.send(sent) => if let Err(error) = sent { return Some(error.to_string()) },
        }
    }
}

/// Why a link ended on which nothing should have come.
fn why(ended: Result<Option<Frame<PeerFrame>>, FrameError>) -> String {
    match ended {
        Err(error) => error.to_string(),
        Ok(None) => "it hung up".to_owned(),
        Ok(Some(_)) => "it said something".to_owned(),
    }
}
