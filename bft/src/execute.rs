//! Execution: committed batches, in order, each request at most once (TOCS'02 §4.1).

use base::{Effects, Seq, StateMachine, Time};

use crate::event::Event;
use crate::message::Committed;
use crate::params::RESULT_INLINE_MAX;
use crate::record::{Place, Record};
use crate::replica::Replica;
use crate::request::{RefusedWhy, Reply, ReplyResult, Request};
use crate::table::{Executed, Verdict};

impl<S: StateMachine> Replica<S> {
    /// Executes what can be executed, and goes on with what that makes possible.
    pub(crate) fn execute_ready(&mut self, now: Time, fx: &mut Effects<Self>) {
        while self.divergence.is_none()
            && let Some((record, committed)) = self.next_committed()
        {
            if let Record::Committed(place) = &record {
                // By votes it is already; by vouchers it is now, as it will be after a restart.
                self.log.slot_mut(place.seq).set_committed();
            }
            fx.persist.push(record);
            let before = self.last_at;
            self.pace.learn(now, committed.at);
            let replies = self.execute(&committed);
            let requests = replies.iter().filter(|event| executed_now(event)).count();
            for request in committed.batch.requests() {
                let Request { client, session, timestamp, .. } = &request.body;
                if let Some(since) = self.queue.executed(now, client, *session, *timestamp) {
                    self.floor.waited(now.since(since), self.params.view_timeout);
                }
            }
            if committed.batch.requests().is_empty() {
                self.lives.spend_pad();
            }
            self.floor.note(requests, committed.batch.bytes());
            self.note_progress(now, requests);
            fx.events.push(Event::Executed { seq: committed.seq, requests });
            fx.events.extend(replies);
            self.say_checkpoint(now, fx);
            self.mark_if_due(before, fx);
        }
        self.vouchers.drop_through(self.last_executed);
        self.try_rejoin(fx);
        if self.divergence.is_none() {
            self.propose(now, fx);
        }
    }

    /// The next batch in order, if it is committed, by votes or by vouchers.
    fn next_committed(&self) -> Option<(Record, Committed)> {
        let seq = self.last_executed.next();
        let agreed = self.vouchers.agreed(seq, self.quorums);
        if let Some(accepted) = self.log.accepted(seq) {
            let by_votes = self.log.slot(seq).is_some_and(|slot| slot.committed().is_some());
            if by_votes || agreed.is_some_and(|agreed| agreed.digest() == accepted.digest) {
                let header = accepted.proposal.header.body;
                let place = Place { view: header.view, seq, digest: accepted.digest };
                let batch = accepted.proposal.batch.clone();
                return Some((Record::Committed(place), Committed { seq, view: header.view, at: header.at, batch }));
            }
        }
        agreed.map(|agreed| (Record::Learned(agreed.clone()), agreed.clone()))
    }

    /// Executes the next batch; the answers to its requests. Everything here depends on the batch
    /// and the state alone, so that it is the same at every replica and after a restart.
    pub(crate) fn execute(&mut self, committed: &Committed) -> Vec<Event> {
        assert_eq!(committed.seq, self.last_executed.next(), "executed in order");
        self.last_executed = committed.seq;
        self.last_at = self.last_at.max(committed.at);
        let mut replies = Vec::new();
        for request in committed.batch.requests() {
            replies.extend(self.execute_request(&request.body));
        }
        self.retained.push(committed.clone());
        self.retained.trim(self.log.low(), self.params.retained_bytes_max);
        if self.last_executed.0.is_multiple_of(self.params.checkpoint_interval) {
            self.take_checkpoint();
        }
        replies
    }

    fn execute_request(&mut self, request: &Request) -> Option<Event> {
        let Request { client, session, timestamp, op } = request;
        match self.table.verdict(client, *session, *timestamp) {
            // Ordered twice: answered when it was executed, and again when the client asks again.
            Verdict::Executed(_) => return None,
            Verdict::Stale { floor } => {
                return Some(self.refusal(client, *session, *timestamp, RefusedWhy::Stale { floor }));
            }
            Verdict::Fresh => {}
        }
        if !self.state.admits(client) {
            return Some(self.refusal(client, *session, *timestamp, RefusedWhy::UnknownPrincipal));
        }
        // The empty operation makes its session known, and does nothing else (see `client`).
        let result = if op.is_empty() { Vec::new() } else { self.state.apply(self.last_at, client, op) };
        let executed = self.table.record(client, *session, *timestamp, self.last_executed, result);
        let designated = *timestamp % self.quorums.n() as u64 == u64::from(self.params.me.0);
        let mut reply = self.whole_reply(*session, *timestamp, &executed);
        if let ReplyResult::Full(bytes) = &reply.result
            && bytes.len() > RESULT_INLINE_MAX
            && !designated
        {
            reply.result = ReplyResult::DigestOnly(executed.digest);
        }
        Some(Event::Reply { client: *client, session: *session, reply })
    }

    pub(crate) fn whole_reply(&self, session: u64, timestamp: u64, executed: &Executed) -> Reply {
        let result = match &executed.result {
            Some(bytes) => ReplyResult::Full(bytes.clone()),
            None => ReplyResult::Refused(RefusedWhy::ResultLost),
        };
        Reply { view: self.view, timestamp, session, seq: executed.seq, result }
    }

    /// The first executed batch still retained for peers; the next place, if none is.
    pub(crate) fn oldest_retained(&self) -> Seq {
        self.retained.oldest().unwrap_or(self.last_executed.next())
    }
}

/// Whether this answer is to a request that was executed, not refused.
fn executed_now(event: &Event) -> bool {
    match event {
        Event::Reply { reply, .. } => {
            !matches!(reply.result, ReplyResult::Refused(RefusedWhy::Stale { .. } | RefusedWhy::UnknownPrincipal))
        }
        _ => false,
    }
}
