//! The line between a mount and the cluster: what `client::session::Session` is to a real mount, with its
//! bounds, in a world where time is virtual.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use client::backend::{CALL_TIMEOUT, Metadata, Unavailable};
use meta::{Answer, Batch, Ino};
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
    pub(crate) relied: Mutex<Relied>,
}

/// Who of a process' programs relies on a lock: all are told when it is lost, as all handles of a file are.
#[derive(Default)]
pub(crate) struct Relied {
    holds: BTreeMap<(Ino, u64), bool>,
    turns: BTreeMap<Ino, Arc<tokio::sync::Mutex<()>>>,
}

impl Relied {
    /// What is committed of a file, and that its locks are lost, comes one after the other.
    pub(crate) fn turn(&mut self, file: Ino) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.entry(file).or_default().clone()
    }

    /// An owner has a lock.
    pub(crate) fn begin(&mut self, file: Ino, owner: u64) {
        self.holds.insert((file, owner), true);
    }

    /// Whether it still has.
    pub(crate) fn holds(&self, file: Ino, owner: u64) -> bool {
        self.holds.get(&(file, owner)).copied().unwrap_or(false)
    }

    /// It relies on it no more.
    pub(crate) fn end(&mut self, file: Ino, owner: u64) {
        self.holds.remove(&(file, owner));
    }

    /// All locks on a file are lost.
    pub(crate) fn lose(&mut self, file: Ino) {
        self.holds.range_mut((file, 0)..=(file, u64::MAX)).for_each(|(_, holds)| *holds = false);
    }
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
