//! What is checked: the bounds, who lies, what may happen.

use core::time::Duration;
use std::collections::BTreeMap;

use base::{Digest, ReplicaId, Seq, Signed, Time, View};
use bft::{Batch, ClientRequest, Params, PrePrepare, Request};
use bytes::Bytes;

use crate::keys::{self, CLUSTER, N};

/// What every clock says, always: time passes only in that a primary may be suspected.
pub(crate) const NOW: Time = Time(2_000_000_000_000);
/// Before which every timer that runs has begun; it has therefore run out.
pub(crate) const EARLIER: Time = Time(NOW.0 - 1_000_000_000);

/// When replicas restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarts {
    /// Never.
    Never,
    /// At any moment and any number of times, or not.
    Sometimes,
    /// After every step. What a replica forgets by that can be said to it again, as nothing said is
    /// ever lost; so nothing is missed that replicas do which don't restart. That it does become
    /// again what it was is checked after every step.
    Always,
}

/// The bounds of a check, and what may happen within them.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Views from 0 that messages are of.
    pub views: u64,
    /// Sequence numbers from 1 that messages are of.
    pub places: u64,
    /// Replicas that lie.
    pub traitors: Vec<u16>,
    /// When replicas restart.
    pub restarts: Restarts,
    /// Whether replicas vouch for what they executed.
    pub vouchers: bool,
    /// Whether there is a checkpoint at every place, of which the first may become stable.
    pub checkpoints: bool,
    /// Whether one step may mix votes and what changes views. It reaches the same, more slowly.
    pub mixed: bool,
}

impl Setup {
    /// One place, with a traitor.
    #[must_use]
    pub fn one_place(views: u64, traitor: u16) -> Setup {
        let (restarts, vouchers, checkpoints, mixed) = (Restarts::Always, false, false, false);
        Setup { views, places: 1, traitors: vec![traitor], restarts, vouchers, checkpoints, mixed }
    }

    pub(crate) fn is_traitor(&self, replica: ReplicaId) -> bool {
        self.traitors.contains(&replica.0)
    }

    /// The replicas that don't lie.
    pub(crate) fn honest(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        (0..N as u16).map(ReplicaId).filter(|replica| !self.is_traitor(*replica))
    }

    /// A replica's parameters. No STATUS is ever due, and every view times out at once.
    pub(crate) fn params(&self, me: ReplicaId) -> Params {
        let params = Params::new(CLUSTER, me, keys::group(), keys::of_replica(me).clone());
        let mut params = params.expect("good parameters");
        (params.checkpoint_interval, params.window) = if self.checkpoints { (1, 2) } else { (8, 16) };
        params.in_flight_max = self.places;
        params.batch_requests_max = 1;
        params.status_interval = Duration::from_secs(3600);
        params.view_timeout = Duration::from_millis(1);
        params
    }

    /// The requests that a replica knows from its clients: as many as there are places.
    pub(crate) fn requests_at(&self, me: ReplicaId) -> Vec<ClientRequest> {
        (1..=self.places).map(|timestamp| ClientRequest(request(usize::from(me.0), timestamp))).collect()
    }

    /// The batches between which a lying primary may choose at a place.
    pub(crate) fn lies_of(&self, traitor: ReplicaId, seq: Seq) -> [Batch; 2] {
        let client = usize::from(traitor.0);
        [client, N + client].map(|client| Batch::new(vec![request(client, seq.0)]))
    }

    /// Everything that anybody may propose at a place, but the null request.
    pub(crate) fn batches(&self) -> Vec<Batch> {
        let batch = |client: usize, timestamp| Batch::new(vec![request(client, timestamp)]);
        (0..2 * N).flat_map(|client| (1..=self.places).map(move |timestamp| batch(client, timestamp))).collect()
    }

    /// What may be agreed on at each place, by its digest.
    pub(crate) fn choices(&self) -> BTreeMap<(Seq, Digest), (Time, Batch)> {
        let mut choices = BTreeMap::new();
        for seq in (1..=self.places).map(Seq) {
            let null = [(Time::ZERO, Batch::null())];
            for (at, batch) in self.batches().into_iter().map(|batch| (NOW, batch)).chain(null) {
                let header = PrePrepare { view: View(0), seq, at, batch: batch.digest() };
                choices.insert((seq, header.digest()), (at, batch));
            }
        }
        choices
    }
}

fn request(client: usize, timestamp: u64) -> Signed<Request> {
    let key = keys::of_client(client);
    let op = Bytes::from(vec![b'a' + u8::try_from(client).expect("few clients"), b'0' + (timestamp % 10) as u8]);
    Signed::new(Request { client: key.public(), session: 1, timestamp, op }, key, &CLUSTER)
}
