//! Correct clients: sessions with work to do.

use std::collections::BTreeMap;

use base::{PublicKey, Time};
use bft::client::{self, Session};
use bytes::Bytes;

use crate::clock::Clock;
use crate::keys::{CLUSTER, principal_secret, replica_keys};
use crate::plan::ClientPlan;

/// An operation under way.
#[derive(Clone, Debug)]
pub(crate) struct Errand {
    pub(crate) op: Bytes,
    /// How far the history was known to anybody when it began.
    pub(crate) floor: Option<u64>,
}

/// A client.
pub(crate) struct Customer {
    pub(crate) plan: ClientPlan,
    pub(crate) key: PublicKey,
    pub(crate) session: Session,
    pub(crate) clock: Clock,
    /// Requests not submitted yet.
    pub(crate) to_do: u64,
    pub(crate) errands: BTreeMap<u64, Errand>,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// The session's deadline as last seen.
    pub(crate) wake: Option<Time>,
    /// When it thinks of the next request.
    pub(crate) thinks: Time,
    /// Until when its process stands still.
    pub(crate) paused: Time,
    /// Its process is gone, and does not come back.
    pub(crate) gone: bool,
}

impl Customer {
    /// A client of a group of `n`.
    pub(crate) fn new(plan: ClientPlan, n: usize, now: Time) -> Customer {
        let secret = principal_secret(plan.principal);
        let mut clock = Clock::new(plan.clock, 0);
        let params = client::Params {
            cluster: CLUSTER,
            replicas: replica_keys(n),
            secret,
            session: plan.session,
            retransmit: plan.retransmit,
        };
        Customer {
            plan,
            key: params.secret.public(),
            session: Session::new(params, clock.read(now)).expect("good parameters"),
            clock,
            to_do: plan.requests,
            errands: BTreeMap::new(),
            done: 0,
            failed: 0,
            wake: None,
            thinks: now,
            paused: Time::ZERO,
            gone: false,
        }
    }

    /// Whether it has all it wanted.
    pub(crate) fn is_done(&self) -> bool {
        self.gone || (self.to_do == 0 && self.errands.is_empty())
    }
}
