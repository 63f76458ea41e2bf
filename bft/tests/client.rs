//! The client session.

mod common;

use std::time::Duration;

use base::{Digest, ReplicaId, Seq, Signed, Time, To, View};
use bft::client::{OUTSTANDING_MAX, Output, Params, Session};
use bft::{RefusedWhy, Reply, ReplyResult, Request, TIMESTAMPS_MAX};
use bytes::Bytes;
use common::bench::NOW;
use common::{CLUSTER, client_secret, replica_keys};

const PAUSE: Duration = Duration::from_millis(300);

struct Client {
    session: Session,
    now: Time,
}

impl Client {
    fn new(n: usize) -> Client {
        let (replicas, secret) = (replica_keys(n), client_secret(0));
        let params = Params { cluster: CLUSTER, replicas, secret, session: 9, retransmit: PAUSE };
        Client { session: Session::new(params, NOW).unwrap(), now: NOW }
    }

    /// A client whose session is open.
    fn open(n: usize) -> Client {
        let mut client = Client::new(n);
        let (ticket, _, open) = client.submit_any();
        assert!(open.body.op.is_empty(), "the session is opened first");
        let f = (n as u16 - 1) / 3;
        let fx: Vec<_> = (0..=f).flat_map(|from| client.hear(from, open.body.timestamp, full(b""))).collect();
        let [Output::Send { request, .. }] = &fx[..] else { panic!("{fx:?}") };
        let t = request.body.timestamp;
        let fx: Vec<_> = (0..=f).flat_map(|from| client.hear(from, t, full(b"x"))).collect();
        assert_eq!(fx, done(ticket, b"x"));
        client
    }

    fn submit_any(&mut self) -> (u64, To<ReplicaId>, Signed<Request>) {
        let mut fx = Vec::new();
        let ticket = self.session.submit(self.now, Bytes::from_static(b"op"), &mut fx);
        let [Output::Send { to, request }] = &fx[..] else { panic!("{fx:?}") };
        assert_eq!(request.body.session, 9);
        (ticket, *to, request.clone())
    }

    fn submit(&mut self) -> (u64, To<ReplicaId>, Signed<Request>) {
        let mut fx = Vec::new();
        let ticket = self.session.submit(self.now, Bytes::from_static(b"op"), &mut fx);
        let [Output::Send { to, request }] = &fx[..] else { panic!("{fx:?}") };
        assert_eq!((request.body.timestamp, request.body.session), (ticket, 9));
        (ticket, *to, request.clone())
    }

    fn hear(&mut self, from: u16, timestamp: u64, result: ReplyResult) -> Vec<Output> {
        self.hear_in(View(0), from, timestamp, result)
    }

    fn hear_in(&mut self, view: View, from: u16, timestamp: u64, result: ReplyResult) -> Vec<Output> {
        let reply = Reply { view, timestamp, session: 9, seq: Seq(5), result };
        let mut fx = Vec::new();
        self.session.on_reply(self.now, ReplicaId(from), reply, &mut fx);
        fx
    }

    fn wake(&mut self) -> Vec<Output> {
        let mut fx = Vec::new();
        self.now = self.session.deadline().expect("something is outstanding");
        self.session.on_deadline(self.now, &mut fx);
        fx
    }
}

fn full(bytes: &'static [u8]) -> ReplyResult {
    ReplyResult::Full(Bytes::from_static(bytes))
}

fn only_digest(bytes: &[u8]) -> ReplyResult {
    ReplyResult::DigestOnly(Digest::of(bytes))
}

fn done(ticket: u64, result: &'static [u8]) -> Vec<Output> {
    vec![Output::Done { ticket, seq: Seq(5), result: Bytes::from_static(result) }]
}

fn stale(floor: u64) -> ReplyResult {
    ReplyResult::Refused(RefusedWhy::Stale { floor })
}

/// "The client waits for f+1 replies with valid signatures from different replicas, and with the
/// same t and r, before accepting the result r."
#[test]
fn a_result_takes_f_plus_1_matching_replies() {
    for (n, f) in [(4, 1), (7, 2)] {
        let mut client = Client::open(n);
        let (t, ..) = client.submit();
        for liar in 0..f {
            assert!(client.hear(liar, t, full(b"lie")).is_empty());
            assert!(client.hear(liar, t, full(b"lie")).is_empty(), "one replica counts once");
        }
        for from in f..2 * f {
            assert!(client.hear(from, t, full(b"truth")).is_empty());
        }
        assert_eq!(client.hear(2 * f, t, full(b"truth")), done(t, b"truth"));
        assert!(client.hear(2 * f + 1, t, full(b"truth")).is_empty(), "done once");
        assert_eq!(client.session.deadline(), None);
    }
}

#[test]
fn a_digest_counts_and_the_bytes_must_match_it() {
    let mut client = Client::open(4);
    let (t, ..) = client.submit();
    assert!(client.hear(0, t, only_digest(b"long")).is_empty());
    assert!(client.hear(1, t, only_digest(b"long")).is_empty(), "agreed, but nobody sent it");
    assert!(client.hear(2, t, full(b"wrong")).is_empty());
    assert_eq!(client.hear(3, t, full(b"long")), done(t, b"long"));
    let (t, ..) = client.submit();
    client.hear(0, t, full(b"long"));
    client.hear(0, t, only_digest(b"long"));
    assert_eq!(client.hear(1, t, only_digest(b"long")), done(t, b"long"), "bytes once given are kept");
}

/// The designated replica may be down: nobody waits for it as if the primary were.
#[test]
fn one_that_vouches_is_asked_for_the_bytes() {
    let mut client = Client::open(4);
    let (t, _, request) = client.submit();
    client.now = client.now.after(Duration::from_millis(20));
    client.hear(0, t, only_digest(b"lie"));
    client.hear(1, t, only_digest(b"long"));
    assert_eq!(client.session.deadline(), Some(NOW.after(PAUSE)), "nothing is agreed yet");
    client.hear(2, t, only_digest(b"long"));
    assert_eq!(client.wake(), [Output::Send { to: To::One(ReplicaId(2)), request: request.clone() }]);
    assert_eq!(client.now, NOW.after(Duration::from_millis(40)), "as long again as agreeing took");
    client.hear(3, t, only_digest(b"long"));
    assert_eq!(client.wake(), [Output::Send { to: To::All, request }], "it was a liar: once is enough");
    assert_eq!(client.now, NOW.after(PAUSE));
    assert_eq!(client.hear(1, t, full(b"long")), done(t, b"long"));
}

#[test]
fn replies_must_agree_on_the_place_too() {
    let mut client = Client::open(4);
    let (timestamp, ..) = client.submit();
    let reply = |seq| Reply { view: View(0), timestamp, session: 9, seq: Seq(seq), result: full(b"x") };
    let mut fx = Vec::new();
    client.session.on_reply(NOW, ReplicaId(0), reply(1), &mut fx);
    client.session.on_reply(NOW, ReplicaId(1), reply(2), &mut fx);
    assert!(fx.is_empty());
    client.session.on_reply(NOW, ReplicaId(2), Reply { session: 8, ..reply(2) }, &mut fx);
    client.session.on_reply(NOW, ReplicaId(4), reply(2), &mut fx);
    assert!(fx.is_empty(), "neither another session's nor a stranger's reply counts");
    client.session.on_reply(NOW, ReplicaId(2), reply(2), &mut fx);
    assert!(matches!(fx[..], [Output::Done { seq: Seq(2), .. }]));
}

/// "If the client does not receive replies soon enough, it broadcasts the request to all replicas."
#[test]
fn the_primary_first_then_everybody_and_ever_more_slowly() {
    let mut client = Client::open(4);
    let (_, to, request) = client.submit();
    assert_eq!(to, To::One(ReplicaId(0)));
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let before = client.now;
        assert_eq!(client.wake(), [Output::Send { to: To::All, request: request.clone() }]);
        pauses.push(client.now.since(before).as_millis());
    }
    assert_eq!(pauses, [300, 300, 600, 1200, 2400, 4800, 5000]);
}

#[test]
fn the_view_is_believed_from_f_plus_1() {
    let mut client = Client::open(4);
    let (t, ..) = client.submit();
    client.hear_in(View(7), 3, t, full(b"lie"));
    client.hear_in(View(2), 0, t, full(b"x"));
    assert_eq!(client.hear_in(View(3), 1, t, full(b"x")), done(t, b"x"));
    assert_eq!(client.session.view(), View(3), "3 and 7 are not below 3, and one of them is correct");
    let (_, to, _) = client.submit();
    assert_eq!(to, To::One(ReplicaId(3)));
}

#[test]
fn a_refusal_takes_f_plus_1_too() {
    let mut client = Client::open(4);
    let (t, ..) = client.submit();
    let refused = ReplyResult::Refused(RefusedWhy::UnknownPrincipal);
    assert!(client.hear(0, t, refused.clone()).is_empty());
    assert!(client.hear(1, t, ReplyResult::Refused(RefusedWhy::Overloaded)).is_empty());
    let failed = Output::Failed { ticket: t, why: RefusedWhy::UnknownPrincipal };
    assert_eq!(client.hear(2, t, refused), [failed]);
    assert!(client.session.can_submit());
}

#[test]
fn an_overloaded_group_is_tried_again_later() {
    let mut client = Client::open(4);
    let (t, ..) = client.submit();
    let overloaded = ReplyResult::Refused(RefusedWhy::Overloaded);
    client.wake();
    let due = client.session.deadline();
    client.hear(0, t, overloaded.clone());
    assert_eq!(client.session.deadline(), due, "one alone slows nobody down");
    client.now = client.now.after(Duration::from_millis(100));
    assert!(client.hear(1, t, overloaded).is_empty());
    assert_eq!(client.session.deadline(), Some(client.now.after(PAUSE * 2)));
    client.wake();
    client.hear(0, t, full(b"x"));
    assert_eq!(client.hear(1, t, full(b"x")), done(t, b"x"));
}

#[test]
fn a_session_is_opened_before_anything_is_asked_of_it() {
    let mut client = Client::new(4);
    assert_eq!(client.session.deadline(), None);
    let (first, to, open) = client.submit_any();
    assert_eq!((to, open.body.op.len()), (To::One(ReplicaId(0)), 0));
    let mut fx = Vec::new();
    let second = client.session.submit(client.now, Bytes::from_static(b"more"), &mut fx);
    assert!(fx.is_empty() && second > first, "it waits");
    client.hear(0, open.body.timestamp, full(b""));
    let sent = client.hear(1, open.body.timestamp, full(b""));
    let [Output::Send { request: one, .. }, Output::Send { request: two, .. }] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((&one.body.op[..], &two.body.op[..]), (&b"op"[..], &b"more"[..]));
    assert!(open.body.timestamp < one.body.timestamp && one.body.timestamp < two.body.timestamp);
    for (ticket, request) in [(second, two), (first, one)] {
        client.hear(0, request.body.timestamp, full(b"x"));
        assert_eq!(client.hear(1, request.body.timestamp, full(b"x")), done(ticket, b"x"));
    }
}

#[test]
fn a_session_whose_clock_is_behind_leaps_over_the_floor() {
    let mut client = Client::new(4);
    let (ticket, _, open) = client.submit_any();
    let floor = NOW.0 + 1_000_000;
    assert!(client.hear(3, open.body.timestamp, stale(u64::MAX)).is_empty(), "a liar alone moves nothing");
    let fx = client.hear(0, open.body.timestamp, stale(floor));
    let [Output::Send { request, .. }] = &fx[..] else { panic!("{fx:?}") };
    let raised = request.body.timestamp;
    assert_eq!((raised, request.body.op.len()), (floor + 1, 0), "only what does nothing is named anew");
    client.hear(0, raised, full(b""));
    let fx = client.hear(1, raised, full(b""));
    let [Output::Send { request, .. }] = &fx[..] else { panic!("{fx:?}") };
    assert!(request.body.timestamp > raised);
    client.hear(0, request.body.timestamp, full(b"x"));
    assert_eq!(client.hear(1, request.body.timestamp, full(b"x")), done(ticket, b"x"));
}

#[test]
fn a_liar_cannot_make_it_crawl() {
    let mut client = Client::new(4);
    let (_, _, mut open) = client.submit_any();
    let floor = NOW.0 + 3_600_000_000_000;
    let mut rounds = 0;
    while open.body.timestamp <= floor {
        let timestamp = open.body.timestamp;
        client.hear(0, timestamp, stale(timestamp));
        let fx = client.hear(1, timestamp, stale(floor));
        let [Output::Send { request: next, .. }] = &fx[..] else { panic!("{fx:?}") };
        open = next.clone();
        rounds += 1;
    }
    assert!(rounds < 16, "{rounds}");
    // And where there is nowhere to leap, it fails.
    let (t, end) = (open.body.timestamp, RefusedWhy::Stale { floor: u64::MAX });
    client.hear(0, t, ReplyResult::Refused(end));
    let fx = client.hear(1, t, ReplyResult::Refused(end));
    assert!(matches!(fx[..], [Output::Failed { why, .. }] if why == end));
}

#[test]
fn an_opening_that_is_refused_fails_what_waits() {
    let mut client = Client::new(4);
    let (ticket, _, open) = client.submit_any();
    let why = RefusedWhy::UnknownPrincipal;
    client.hear(0, open.body.timestamp, ReplyResult::Refused(why));
    let fx = client.hear(1, open.body.timestamp, ReplyResult::Refused(why));
    assert_eq!(fx, [Output::Failed { ticket, why }]);
    let (_, _, open) = client.submit_any();
    assert!(open.body.op.is_empty(), "tried again with the next");
}

#[test]
fn what_may_have_been_executed_is_never_sent_under_another_name() {
    let mut client = Client::open(4);
    let (t, ..) = client.submit();
    client.hear(0, t, stale(t));
    let why = RefusedWhy::Stale { floor: t };
    assert_eq!(client.hear(1, t, stale(t)), [Output::Failed { ticket: t, why }]);
    let (_, _, open) = client.submit_any();
    assert!(open.body.op.is_empty(), "the session is forgotten, and is opened again");
    // A floor below the request makes no sense.
    let mut client = Client::open(4);
    let (t, ..) = client.submit();
    client.hear(0, t, stale(t - 1));
    assert!(client.hear(1, t, stale(t - 1)).is_empty());
}

#[test]
fn few_are_outstanding_and_none_falls_out_of_the_table() {
    let mut client = Client::open(4);
    let (oldest, ..) = client.submit();
    let mut submitted = 1;
    while client.session.can_submit() {
        let (t, ..) = client.submit();
        submitted += 1;
        if submitted > OUTSTANDING_MAX / 2 {
            client.hear(0, t, full(b"x"));
            client.hear(1, t, full(b"x"));
        }
        assert!(submitted <= TIMESTAMPS_MAX / 2, "the oldest is about to be forgotten");
    }
    assert_eq!(submitted, TIMESTAMPS_MAX / 2);
    client.hear(0, oldest, full(b"x"));
    client.hear(1, oldest, full(b"x"));
    while client.session.can_submit() {
        client.submit();
    }
    assert!(client.session.outstanding() <= OUTSTANDING_MAX);
}

#[test]
fn timestamps_rise_whatever_the_clock_does() {
    let mut client = Client::open(4);
    let (first, ..) = client.submit();
    client.now = Time(NOW.0 - 1_000_000);
    let (second, ..) = client.submit();
    client.now = Time(NOW.0 + 1_000_000);
    let (third, ..) = client.submit();
    assert!(first > NOW.0 && second > first && third >= client.now.0);
}
