//! What happened in a run, in numbers.

use core::time::Duration;

use crate::net::Net;

/// How long after the faults stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Every request was done.
    pub done: Option<Duration>,
    /// All correct replicas were at one point.
    pub all: Option<Duration>,
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Virtual time that passed.
    pub simulated: Duration,
    /// Events that happened.
    pub events: u64,
    /// Messages between replicas that arrived.
    pub messages: u64,
    /// Messages turned away at the door.
    pub forged: u64,
    /// Requests submitted by correct clients.
    pub requests: u64,
    /// Of these, answered.
    pub done: u64,
    /// Of these, refused.
    pub failed: u64,
    /// Batches executed at the first replica, repetitions after a restart included.
    pub batches: u64,
    /// Syncs of all disks.
    pub syncs: u64,
    /// Snapshots written.
    pub snapshots: u64,
    /// Crashes of one process.
    pub crashes: u64,
    /// Starts, the first ones included.
    pub starts: u64,
    /// Crashes that tore what was being written.
    pub torn: u64,
    /// Losses of all power.
    pub power_losses: u64,
    /// Cuts of links.
    pub cuts: u64,
    /// Disks lost.
    pub disks_lost: u64,
    /// Damaged logs of which the stable checkpoint could be kept.
    pub salvaged: u64,
    /// Replicas that had lost their disk and vote again.
    pub rejoined: u64,
    /// States fetched from peers.
    pub transfers: u64,
    /// Clocks set.
    pub jumps: u64,
    /// Processes stopped for a while.
    pub pauses: u64,
    /// Parcels lost by chance, repeated, held up, and swallowed by cuts.
    pub parcels: [u64; 4],
    /// Times that a replica showed evidence against another.
    pub accused: u64,
    /// The highest view.
    pub view: u64,
    /// Most messages sent by one correct replica.
    pub sent_max: u64,
    /// How long it took after the faults.
    pub settled: Settled,
}

impl Stats {
    /// Takes over what the network counted.
    pub(crate) fn close(&mut self, net: &Net) {
        self.parcels = net.counts;
    }
}
