//! The line between a mount and the cluster: what `client::session::Session` is to a real mount, with its
//! bounds, in a world where time is virtual.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use client::backend::{CALL_TIMEOUT, Metadata, Unavailable};
use meta::{Answer, Batch};
use tokio::sync::{Notify, oneshot};

use super::brake::{Brake, Kind, Point};

/// A request that a mount makes.
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) batch: Batch,
    pub(crate) answer: oneshot::Sender<Result<Vec<Answer>, Unavailable>>,
}

/// What a process and the world hand each other.
#[derive(Default)]
pub(crate) struct Desk {
    pub(crate) asks: Mutex<VecDeque<Ask>>,
    pub(crate) recalls: Notify,
    pub(crate) brake: Brake,
}

/// A mount's end of it.
#[derive(Clone)]
pub(crate) struct Line(pub(crate) Arc<Desk>);

impl Metadata for Line {
    async fn batch(&self, batch: Batch) -> Result<Vec<Answer>, Unavailable> {
        let (kind, count) = (Kind::of(&batch), batch.calls.len());
        self.0.brake.pass(Point::Made(kind)).await;
        let (answer, answered) = oneshot::channel();
        self.0.asks.lock().expect("nobody panics with it").push_back(Ask { kind, batch, answer });
        self.0.brake.pass(Point::Sent(kind)).await;
        let answers = match tokio::time::timeout(CALL_TIMEOUT, answered).await {
            Ok(answers) => answers.map_err(|_| Unavailable("the session has ended".into()))??,
            Err(_) => return Err(Unavailable("no answer of enough replicas".into())),
        };
        match answers.as_slice() {
            _ if answers.len() == count => Ok(answers),
            [Answer::Denied(why)] => Ok(vec![Answer::Denied(*why); count]),
            _ => Err(Unavailable("the replicas answered other questions than were asked".into())),
        }
    }

    async fn recalled(&self) {
        self.0.recalls.notified().await;
    }
}
