//! A node: a core and its clock, and between the core and the world the voice, which writes before
//! it speaks (`server/src/driver.rs`).

use core::time::Duration;

use base::{Effects, Protocol as _, ReplicaId, StateMachine, Time};
use bft::{Condensed, Params, Replica};

use crate::clock::Clock;
use crate::disk::Disk;
use crate::keys::{CLUSTER, replica_keys, replica_secret};
use crate::machine::{Service, Watched};
use crate::plan::Tuning;

/// The core under test.
pub(crate) type Core<S> = Replica<Watched<S>>;

/// What the core hands to its voice.
pub(crate) enum Work<S: StateMachine> {
    /// To be written, said and told.
    Effects(Effects<Core<S>>),
    /// To be written in place of the log so far.
    Snapshot(Box<Condensed<Watched<S>>>),
}

/// A node of the cluster; a twin is a second one with the same identity.
pub(crate) struct Node<S: Service> {
    /// Which replica it is.
    pub(crate) id: ReplicaId,
    /// The running core; `None` while the node is down.
    pub(crate) core: Option<Core<S>>,
    pub(crate) disk: Disk,
    pub(crate) clock: Clock,
    /// Counts starts: what belongs to an earlier life does not happen.
    pub(crate) life: u64,
    /// What waits for the voice.
    pub(crate) waiting: Vec<Work<S>>,
    /// What is said once the disk has synced.
    pub(crate) speech: Option<Vec<Work<S>>>,
    /// The core's deadline as last seen, and when the node wakes for it.
    pub(crate) wake: Option<(Time, Time)>,
    /// Until when the process stands still.
    pub(crate) paused: Time,
    /// Whether its effects are tampered with.
    pub(crate) lies: bool,
    /// It does not come back.
    pub(crate) lost: bool,
    /// Its disk is damaged where it matters, which its next start will find.
    pub(crate) rotten: bool,
    /// Messages sent.
    pub(crate) sent: u64,
}

impl<S: Service> Node<S> {
    /// A node that has not started yet.
    pub(crate) fn new(id: ReplicaId, clock: Clock, lies: bool) -> Node<S> {
        Node {
            id,
            core: None,
            disk: Disk::default(),
            clock,
            life: 0,
            waiting: Vec::new(),
            speech: None,
            wake: None,
            paused: Time::ZERO,
            lies,
            lost: false,
            rotten: false,
            sent: 0,
        }
    }

    /// Starts from what the disk holds.
    pub(crate) fn start(&mut self, n: usize, tuning: &Tuning, genesis: Watched<S>) {
        let params = params(n, usize::from(self.id.0), tuning);
        let core = Replica::restore((params, genesis), self.disk.durable().to_vec());
        self.core = Some(core.expect("its own records"));
        self.life += 1;
    }

    /// The process is gone, and with it all that was not written.
    pub(crate) fn stop(&mut self) {
        self.core = None;
        self.life += 1;
        self.waiting.clear();
        self.speech = None;
        self.wake = None;
        self.clock.forget();
    }

    /// When to wake it, if that is not known already.
    pub(crate) fn next_wake(&mut self, now: Time) -> Option<Time> {
        let deadline = self.core.as_ref()?.deadline()?;
        let local = self.clock.read(now);
        // Waking takes a moment, so that a deadline that stays in the past does not stop the world.
        let at = now.after(deadline.since(local).max(Duration::from_millis(1)));
        // A driver sleeps anew after each step, so that a clock that stands still is waited for again.
        let same = self.wake.is_some_and(|(known, wakes)| known == deadline && wakes.0.abs_diff(at.0) < 1_000_000);
        if same {
            return None;
        }
        self.wake = Some((deadline, at));
        Some(at)
    }
}

/// The parameters of a replica.
pub(crate) fn params(n: usize, me: usize, tuning: &Tuning) -> Params {
    let me_id = ReplicaId(u16::try_from(me).expect("few replicas"));
    let params = Params::new(CLUSTER, me_id, replica_keys(n), replica_secret(me));
    let mut params = params.expect("good parameters");
    params.checkpoint_interval = tuning.checkpoint_interval;
    params.window = tuning.window;
    params.in_flight_max = tuning.in_flight_max;
    params.batch_requests_max = tuning.batch_requests_max;
    params.status_interval = tuning.status_interval;
    params.retained_bytes_max = tuning.retained_bytes_max;
    params
}
