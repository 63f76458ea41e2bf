//! Requests known and not executed: at the primary the backlog that becomes the next batch, at a
//! backup what it passed on and waits for.
//!
//! Principals take turns, and each has a budget of its own, so that one that floods delays only
//! itself (Aardvark's resource isolation).

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use base::{PublicKey, Signed, Time};

use crate::params::{PRINCIPAL_BYTES_MAX, PRINCIPAL_REQUESTS_MAX, QUEUE_BYTES_MAX, QUEUE_REQUESTS_MAX};
use crate::request::{Request, encoded_len};

#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    principals: BTreeMap<PublicKey, Backlog>,
    /// Principals with waiting requests, each once, next first.
    turns: VecDeque<PublicKey>,
    requests: usize,
    bytes: usize,
    arrivals: u64,
}

#[derive(Clone, Debug, Default)]
struct Backlog {
    /// By arrival, those that wait to be proposed, by session and timestamp.
    waiting: BTreeMap<u64, (u64, u64)>,
    places: BTreeMap<(u64, u64), Place>,
    bytes: usize,
    /// When a request of this principal was executed last.
    served: Time,
}

#[derive(Clone, Debug)]
struct Place {
    request: Signed<Request>,
    arrival: u64,
    proposed: bool,
    bytes: usize,
    since: Time,
    forwarded: Time,
}

/// What became of a request offered to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It is in.
    New,
    /// It was in already. `due`: it was last passed on longer ago than the interval given.
    Again { due: bool },
    /// There is no room.
    Full,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.requests
    }

    /// Bytes of the requests known.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// How many requests wait to be proposed.
    pub(crate) fn waiting(&self) -> usize {
        self.turns.iter().filter_map(|client| self.principals.get(client)).map(|backlog| backlog.waiting.len()).sum()
    }

    /// Whether a request waits to be proposed.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.turns.is_empty()
    }

    pub(crate) fn push(&mut self, now: Time, request: &Signed<Request>, interval: Duration) -> Pushed {
        let (body, bytes) = (&request.body, encoded_len(request));
        let name = (body.session, body.timestamp);
        let backlog = self.principals.get_mut(&body.client);
        if let Some(place) = backlog.and_then(|backlog| backlog.places.get_mut(&name)) {
            let due = now < place.forwarded || now.since(place.forwarded) >= interval;
            if due {
                place.forwarded = now;
            }
            return Pushed::Again { due };
        }
        if self.is_full_for(&body.client, bytes) {
            return Pushed::Full;
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.requests += 1;
        self.bytes += bytes;
        let backlog = self.principals.entry(body.client).or_default();
        if backlog.waiting.is_empty() {
            self.turns.push_back(body.client);
        }
        backlog.bytes += bytes;
        backlog.waiting.insert(arrival, name);
        let request = request.clone();
        backlog.places.insert(name, Place { request, arrival, proposed: false, bytes, since: now, forwarded: now });
        Pushed::New
    }

    fn is_full_for(&self, client: &PublicKey, bytes: usize) -> bool {
        let own = self.principals.get(client);
        self.requests >= QUEUE_REQUESTS_MAX
            || self.bytes + bytes > QUEUE_BYTES_MAX
            || own.is_some_and(|own| {
                own.places.len() >= PRINCIPAL_REQUESTS_MAX || own.bytes + bytes > PRINCIPAL_BYTES_MAX
            })
    }

    /// Takes the next waiting requests, one of each principal in turn. They stay known as proposed
    /// until [`Queue::remove`].
    pub(crate) fn take(&mut self, requests_max: usize, bytes_max: usize) -> Vec<Signed<Request>> {
        let mut batch = Vec::new();
        let mut room = bytes_max - 4;
        while batch.len() < requests_max {
            let Some(client) = self.turns.front().copied() else { break };
            let backlog = self.principals.get_mut(&client).expect("who has a turn has a backlog");
            let entry = backlog.waiting.first_entry().expect("who has a turn waits");
            let place = backlog.places.get_mut(entry.get()).expect("what waits has a place");
            if place.bytes > room {
                break;
            }
            room -= place.bytes;
            entry.remove();
            place.proposed = true;
            batch.push(place.request.clone());
            self.turns.pop_front();
            if !backlog.waiting.is_empty() {
                self.turns.push_back(client);
            }
        }
        batch
    }

    /// Forgets a request that never will be executed.
    pub(crate) fn remove(&mut self, client: &PublicKey, session: u64, timestamp: u64) {
        let _ = self.forget(client, session, timestamp);
    }

    /// Since when the request was known.
    fn forget(&mut self, client: &PublicKey, session: u64, timestamp: u64) -> Option<Time> {
        let backlog = self.principals.get_mut(client)?;
        let place = backlog.places.remove(&(session, timestamp))?;
        backlog.bytes -= place.bytes;
        self.bytes -= place.bytes;
        self.requests -= 1;
        backlog.stop_waiting(&place, client, &mut self.turns);
        if backlog.places.is_empty() {
            self.principals.remove(client);
        }
        Some(place.since)
    }

    /// A request was executed: it is forgotten, and its principal was served. Since when it was known.
    pub(crate) fn executed(&mut self, now: Time, client: &PublicKey, session: u64, timestamp: u64) -> Option<Time> {
        let since = self.forget(client, session, timestamp);
        if let Some(backlog) = self.principals.get_mut(client) {
            backlog.served = now;
        }
        since
    }

    /// A request is in a proposal of this view: it need not be proposed again.
    pub(crate) fn note_proposed(&mut self, client: &PublicKey, session: u64, timestamp: u64) {
        let Some(backlog) = self.principals.get_mut(client) else { return };
        let Some(place) = backlog.places.get_mut(&(session, timestamp)).filter(|place| !place.proposed) else { return };
        place.proposed = true;
        let place = place.clone();
        backlog.stop_waiting(&place, client, &mut self.turns);
    }

    /// The view is left: what was proposed in it waits again.
    pub(crate) fn unpropose(&mut self) {
        self.turns.clear();
        for (client, backlog) in &mut self.principals {
            for (name, place) in &mut backlog.places {
                place.proposed = false;
                backlog.waiting.insert(place.arrival, *name);
            }
            self.turns.push_back(*client);
        }
    }

    /// The requests known, in no particular order: each that is not executed.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Signed<Request>> {
        self.principals.values().flat_map(|backlog| backlog.places.values()).map(|place| &place.request)
    }

    /// Since when some principal has waited in vain: the longest time that a request is known and
    /// nothing of its principal was executed.
    pub(crate) fn unserved_since(&self) -> Option<Time> {
        let waits = |backlog: &Backlog| backlog.places.values().map(|place| place.since.max(backlog.served)).min();
        self.principals.values().filter_map(waits).min()
    }

    /// Since when the request that is known longest is known.
    pub(crate) fn oldest(&self) -> Option<Time> {
        self.principals.values().flat_map(|backlog| backlog.places.values()).map(|place| place.since).min()
    }

    /// A clock was set back: nothing waits since later than now.
    pub(crate) fn rebase(&mut self, now: Time) {
        for backlog in self.principals.values_mut() {
            backlog.served = backlog.served.min(now);
            backlog.places.values_mut().for_each(|place| place.since = place.since.min(now));
        }
    }

    /// Forgets the requests that wait since before `since`.
    pub(crate) fn expire(&mut self, since: Time) {
        let mut old = Vec::new();
        for (client, backlog) in &self.principals {
            let waiting = backlog.places.iter().filter(|(_, place)| !place.proposed && place.since < since);
            old.extend(waiting.map(|((session, timestamp), _)| (*client, *session, *timestamp)));
        }
        for (client, session, timestamp) in old {
            self.remove(&client, session, timestamp);
        }
    }
}

impl Backlog {
    fn stop_waiting(&mut self, place: &Place, client: &PublicKey, turns: &mut VecDeque<PublicKey>) {
        if self.waiting.remove(&place.arrival).is_some() && self.waiting.is_empty() {
            turns.retain(|turn| turn != client);
        }
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, SecretKey};
    use bytes::Bytes;

    use super::*;

    fn request(client: u8, timestamp: u64, op_len: usize) -> Signed<Request> {
        let key = SecretKey::from_seed(&[client; 32]);
        let op = Bytes::from(vec![0; op_len]);
        let body = Request { client: key.public(), session: 1, timestamp, op };
        Signed::new(body, &key, &ClusterId([0; 16]))
    }

    fn push(queue: &mut Queue, request: &Signed<Request>) -> Pushed {
        queue.push(Time(5), request, Duration::from_nanos(10))
    }

    #[test]
    fn principals_take_turns() {
        let mut queue = Queue::default();
        for timestamp in 0..4 {
            push(&mut queue, &request(1, timestamp, 8));
        }
        push(&mut queue, &request(2, 9, 8));
        let batch = queue.take(3, 4096);
        let order: Vec<_> = batch.iter().map(|r| r.body.timestamp).collect();
        assert_eq!(order, [0, 9, 1], "the one request of the second principal does not wait for four of the first");
        assert_eq!(queue.take(10, 4096).len(), 2);
        assert!(!queue.has_waiting() && queue.len() == 5, "what is proposed is still known");
    }

    #[test]
    fn a_request_is_in_once_and_passed_on_again_only_after_a_while() {
        let mut queue = Queue::default();
        let one = request(1, 1, 8);
        assert_eq!(push(&mut queue, &one), Pushed::New);
        assert_eq!(push(&mut queue, &one), Pushed::Again { due: false });
        assert_eq!(queue.push(Time(15), &one, Duration::from_nanos(10)), Pushed::Again { due: true });
        assert_eq!(queue.push(Time(16), &one, Duration::from_nanos(10)), Pushed::Again { due: false });
        queue.take(1, 4096);
        let again = queue.push(Time(17), &one, Duration::from_nanos(10));
        assert_eq!(again, Pushed::Again { due: false }, "proposed, and not to be proposed again");
        queue.remove(&one.body.client, 1, 1);
        assert!(queue.is_empty() && queue.bytes == 0);
        assert_eq!(push(&mut queue, &one), Pushed::New);
    }

    #[test]
    fn a_principal_that_floods_fills_its_own_budget_only() {
        let mut queue = Queue::default();
        let pushed = |queue: &mut Queue, client, timestamp| push(queue, &request(client, timestamp, 8));
        for timestamp in 0..PRINCIPAL_REQUESTS_MAX as u64 {
            assert_eq!(pushed(&mut queue, 1, timestamp), Pushed::New);
        }
        assert_eq!(pushed(&mut queue, 1, 1 << 40), Pushed::Full);
        assert_eq!(pushed(&mut queue, 2, 1), Pushed::New);
        let long = (0..64).find(|timestamp| push(&mut queue, &request(3, *timestamp, 100_000)) == Pushed::Full);
        assert_eq!(long, Some((PRINCIPAL_BYTES_MAX / 100_116) as u64), "bytes are budgeted too");
    }

    #[test]
    fn what_waits_too_long_is_forgotten() {
        let mut queue = Queue::default();
        push(&mut queue, &request(1, 1, 8));
        queue.take(1, 4096);
        push(&mut queue, &request(1, 2, 8));
        queue.expire(Time(5));
        assert_eq!(queue.len(), 2);
        queue.expire(Time(6));
        assert_eq!(queue.len(), 1, "what is proposed will be executed");
        assert!(!queue.has_waiting());
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let mut queue = Queue::default();
        for timestamp in 0..8 {
            push(&mut queue, &request(1, timestamp, 100_000));
        }
        let batch = queue.take(256, 512 * 1024);
        assert_eq!(batch.len(), 5);
        assert!(crate::Batch::new(batch).bytes() <= 512 * 1024);
    }
}
