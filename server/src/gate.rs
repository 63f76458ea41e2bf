//! The gate: requests of all clients come through here, to be verified together.
//!
//! Many signatures cost half as much together as one by one. Whoever sent a forged one lately is
//! verified alone, so that nobody makes work for others by standing among them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base::PublicKey;
use tokio::sync::mpsc;

use crate::budget::{Budget, Budgets};
use crate::door::Door;

/// Requests verified together, at most.
const TOGETHER_MAX: usize = 256;
/// Requests on their way from the links.
const WAITING_MAX: usize = 1024;
/// Good requests in a row after which whoever forged one is trusted like the others.
const PROBATION: u32 = 256;

/// A request that is not verified.
struct Waiting {
    request: bft::ClientRequest,
    /// Whose link it came by.
    from: PublicKey,
    bad_in_a_row: Arc<AtomicU32>,
}

/// A link's way to the gate.
pub(crate) struct Lane {
    gate: mpsc::Sender<Waiting>,
    from: PublicKey,
    budget: Arc<Budget>,
    bad_in_a_row: Arc<AtomicU32>,
}

impl Lane {
    /// Hands a request over, when its principal's budget admits it; false if the node stops.
    pub(crate) async fn hand_over(&self, request: bft::ClientRequest) -> bool {
        self.budget.enter().await;
        let waiting = Waiting { request, from: self.from, bad_in_a_row: self.bad_in_a_row.clone() };
        self.gate.send(waiting).await.is_ok()
    }

    /// Notes a message that was not even a request.
    pub(crate) fn note_malformed(&self) {
        self.bad_in_a_row.fetch_add(1, Ordering::Relaxed);
    }

    /// Bad messages of this link since its last good one.
    pub(crate) fn bad_in_a_row(&self) -> u32 {
        self.bad_in_a_row.load(Ordering::Relaxed)
    }
}

/// Where links come to the gate.
#[derive(Clone)]
pub(crate) struct Gate {
    waiting: mpsc::Sender<Waiting>,
    budgets: Arc<Budgets>,
}

impl Gate {
    /// Opens the gate to the core.
    pub(crate) fn open(door: Arc<Door>, budgets: Arc<Budgets>, inputs: mpsc::Sender<bft::Input>) -> Gate {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(Keeper { door, inputs, probation: BTreeMap::new() }.run(waiting));
        Gate { waiting: sender, budgets }
    }

    /// A lane for one link.
    pub(crate) fn lane(&self, from: PublicKey) -> Lane {
        Lane { gate: self.waiting.clone(), from, budget: self.budgets.of(from), bad_in_a_row: Arc::default() }
    }
}

struct Keeper {
    door: Arc<Door>,
    inputs: mpsc::Sender<bft::Input>,
    /// Good requests still wanted of those that forged one.
    probation: BTreeMap<PublicKey, u32>,
}

impl Keeper {
    async fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, TOGETHER_MAX).await > 0 {
            // What other links have ready comes first, to be verified with it.
            tokio::task::yield_now().await;
            while batch.len() < TOGETHER_MAX
                && let Ok(more) = waiting.try_recv()
            {
                batch.push(more);
            }
            let (alone, together): (Vec<_>, Vec<_>) =
                batch.drain(..).partition(|waiting| self.probation.contains_key(&waiting.from));
            let groups = core::iter::once(together).chain(alone.into_iter().map(|one| vec![one]));
            for group in groups {
                if !self.admit(group).await {
                    return;
                }
            }
        }
    }

    /// Verifies requests together and passes them on; false if the core is gone.
    async fn admit(&mut self, group: Vec<Waiting>) -> bool {
        let (requests, links): (Vec<_>, Vec<_>) =
            group.into_iter().map(|waiting| (waiting.request, (waiting.from, waiting.bad_in_a_row))).unzip();
        for (verified, (from, bad_in_a_row)) in self.door.requests(requests).into_iter().zip(links) {
            self.note(from, verified.is_some());
            match verified {
                None => drop(bad_in_a_row.fetch_add(1, Ordering::Relaxed)),
                Some(request) => {
                    bad_in_a_row.store(0, Ordering::Relaxed);
                    if self.inputs.send(bft::Input::Client(request)).await.is_err() {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn note(&mut self, from: PublicKey, good: bool) {
        if !good {
            self.probation.insert(from, PROBATION);
        } else if let Some(left) = self.probation.get_mut(&from) {
            *left -= 1;
            if *left == 0 {
                self.probation.remove(&from);
            }
        }
    }
}
