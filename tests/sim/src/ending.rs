//! Looking around: whether what must happen after the faults did happen, and whether all is over.

use core::time::Duration;

use base::{Seq, View};
use bft::Standing;

use crate::machine::Service;
use crate::stats::Settled;
use crate::world::World;

/// After the faults have stopped everything asked for is done within this time, and
/// [`REQUEST_WITHIN`] for each request that was left then.
const DONE_WITHIN: Duration = Duration::from_secs(120);
/// Where somebody lies less goes wrong otherwise.
const DONE_WITHIN_LIARS: Duration = Duration::from_secs(60);
/// A primary that takes a little less than the view timeout (1 s) for each batch is not suspected.
const REQUEST_WITHIN: Duration = Duration::from_secs(1);
/// Between two surveys.
const EVERY: Duration = Duration::from_millis(500);
/// How many surveys a replica may be behind where there is always something to do.
const KEEPS_UP_WITHIN: usize = 10;
/// How long those outside may take.
const OUTSIDE_WITHIN: Duration = Duration::from_secs(200);
/// And so much later all correct replicas are at one point.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

impl<S: Service> World<S> {
    /// Looks around, every half second.
    pub(crate) fn on_survey(&mut self) {
        for node in 0..self.nodes.len() {
            let actor = &self.nodes[node];
            if let (Some(core), false) = (&actor.core, actor.lies) {
                let status = core.status();
                self.checks.status(actor.id, &status);
                self.stats.view = self.stats.view.max(status.view.0);
            }
        }
        let Some(calm) = self.checks.progress.calm_for(self.now) else { return };
        let executed = self.correct_nodes().filter_map(|node| self.nodes[node].core.as_ref());
        let furthest = executed.map(|core| core.status().last_executed).max().unwrap_or_default();
        self.reached.push(furthest);
        let done = !self.open && self.clients.iter().all(|client| client.is_done());
        if done && self.stats.settled.done.is_none() {
            self.stats.settled.done = Some(calm);
        }
        if !self.expects_progress() {
            // Nothing is promised; some time after the faults, what must hold has held.
            self.over = calm > Duration::from_secs(20) || (done && self.is_settled());
        } else if done && self.is_settled() {
            self.finish(calm);
        } else if self.is_starved() || (!done && calm > self.patience()) || calm > self.patience() + SETTLED_WITHIN {
            let what = self.describe(done);
            self.checks.stuck(self.now, what);
        }
    }

    /// How long it may take until everything is done.
    fn patience(&self) -> Duration {
        let left = u32::try_from(self.left_at_calm).unwrap_or(u32::MAX);
        // Where everything is slow, a request takes a view change or two.
        let each = if self.plan.near > 0 { 20 * REQUEST_WITHIN } else { REQUEST_WITHIN };
        let within = if self.plan.behaviour.is_some() { DONE_WITHIN_LIARS } else { DONE_WITHIN };
        // Somebody outside may have to wait until a lease ends, and has more to do then.
        let outside = if self.plan.outside { OUTSIDE_WITHIN } else { Duration::ZERO };
        within + outside + each * left
    }

    /// Whether the core promises progress in this world.
    fn expects_progress(&self) -> bool {
        self.plan.control || self.plan.behaviour.is_none_or(|behaviour| behaviour.leaves_progress(&self.plan))
    }

    /// Whether all correct replicas are up, vote, and are at one point; or, where a client never stops
    /// asking, have all come to where the first of them was some seconds before.
    fn is_settled(&self) -> bool {
        if !self.rogues.is_empty() {
            let Some(before) = self.reached.len().checked_sub(1 + KEEPS_UP_WITHIN) else { return false };
            // What honest clients were told is among it.
            let told = self.stats.settled.done.is_some_and(|done| EVERY * before as u32 >= done);
            return told
                && self.correct_nodes().all(|node| {
                    let status = self.nodes[node].core.as_ref().map(|core| core.status());
                    status.is_some_and(|status| {
                        status.status != Standing::Rejoining && status.last_executed >= self.reached[before]
                    })
                });
        }
        let mut points = self.correct_nodes().map(|node| {
            let status = self.nodes[node].core.as_ref()?.status();
            let back = status.status != Standing::Rejoining;
            back.then_some((status.last_executed, self.nodes[node].core.as_ref()?.state().applied))
        });
        let Some(Some(first)) = points.next() else { return false };
        first.1 as usize == self.checks.applied() && points.all(|point| point == Some(first))
    }

    fn finish(&mut self, calm: Duration) {
        let correct: Vec<usize> = self.correct_nodes().collect();
        for node in correct {
            let actor = &self.nodes[node];
            let Some(core) = &actor.core else { continue };
            self.checks.settled(actor.id, core);
            self.checks.view(actor.id, core);
            let allowed = self.traffic_allowed();
            let actor = &self.nodes[node];
            self.checks.traffic(actor.id, actor.sent, allowed);
            self.stats.sent_max = self.stats.sent_max.max(actor.sent);
        }
        let Settled { all, .. } = &mut self.stats.settled;
        *all = Some(calm);
        self.over = true;
    }

    /// Messages a replica may send: some to each peer for a batch, for a STATUS and its answers, and
    /// for what arrived.
    fn traffic_allowed(&self) -> u64 {
        let peers = self.nodes.len() as u64;
        let batches = self.correct_nodes().filter_map(|node| self.nodes[node].core.as_ref());
        let batches = batches.map(|core| core.status().last_executed.0).max().unwrap_or(0);
        let intervals = self.now.since(crate::clock::START).as_millis() as u64
            / self.plan.tuning.status_interval.as_millis() as u64;
        let requests = self.stats.requests + self.stats.messages;
        peers * (200 + 20 * batches + 8 * intervals) + 2 * requests
    }

    /// What there is to see when something is stuck.
    fn describe(&self, done: bool) -> String {
        let clients: Vec<_> = self.clients.iter().map(|client| (client.to_do, client.errands.len())).collect();
        let nodes: Vec<(Seq, Seq, View, usize, Standing)> = self
            .correct_nodes()
            .filter_map(|node| self.nodes[node].core.as_ref())
            .map(|core| core.status())
            .map(|status| (status.last_executed, status.low_water_mark, status.view, status.pending, status.status))
            .collect();
        let what = if done { "the replicas are not at one point" } else { "requests are not done" };
        let columns = "(executed, stable, view, pending, standing)";
        format!("{what}; clients (to do, outstanding): {clients:?}; replicas {columns}: {nodes:?}")
    }
}
