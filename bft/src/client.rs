//! The client session: signs requests, sends them to whoever is primary, and believes a result
//! when `f + 1` replicas say it (TOCS'02 §4.1). Pure, like the replica: time and replies in,
//! [`Output`]s out.
//!
//! **Timestamps** name requests. A session's rise strictly, and follow the clock. Replicas remember
//! the highest 64 of a session; [`Session::can_submit`] keeps the distance at half of that, so that
//! a request can't be overtaken by so many others that it looks forgotten.
//!
//! **Opening.** Replicas refuse timestamps that are not above those of the principal's sessions
//! that they have forgotten, and the clock here may be behind the one those came from. A refused
//! request must not simply be sent again under a higher timestamp: "stale" may as well mean that it
//! was executed and its session forgotten since. So a session starts with a request whose operation
//! is empty, which does nothing but make the session known; that one may leap over the floor as
//! often as it takes. What follows has higher timestamps, and is executed at most once: if it is
//! called stale all the same, its session was forgotten meanwhile, and nobody can tell its outcome.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use base::{ClusterId, Digest, PublicKey, Quorums, ReplicaId, SecretKey, Seq, Signed, Time, To, View};
use bytes::Bytes;

use crate::params::{BadParams, REQUEST_OP_MAX, TIMESTAMPS_MAX, check_group};
use crate::request::{RefusedWhy, Reply, ReplyResult, Request};

/// Requests that may be outstanding at a time.
pub const OUTSTANDING_MAX: usize = 16;
/// Longest pause before a request is sent again.
pub const RETRANSMIT_MAX: Duration = Duration::from_secs(5);
/// How many times longer than at least it may take until a request is first sent again: by that the
/// backups learn what a primary lets wait.
const SLOWER_MAX: u32 = 2;
/// Submissions from the oldest outstanding one on.
const DISTANCE_MAX: u64 = TIMESTAMPS_MAX as u64 / 2;

/// A session's parameters.
#[derive(Clone, Debug)]
pub struct Params {
    /// The cluster that signatures are bound to.
    pub cluster: ClusterId,
    /// The replicas' keys, in order.
    pub replicas: Vec<PublicKey>,
    /// The principal's key.
    pub secret: SecretKey,
    /// The session's number, drawn at random: two sessions of a principal must not share one.
    pub session: u64,
    /// How long to wait for replies before sending a request again, to all, at least: longer, while
    /// replies take longer. 300 ms is good. Doubles with every time, up to [`RETRANSMIT_MAX`].
    pub retransmit: Duration,
}

/// How long replies take (RFC 6298): to ask again sooner would be to make a slow cluster slower.
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    smoothed: Duration,
    variation: Duration,
}

impl Latency {
    fn note(&mut self, sample: Duration) {
        if self.smoothed.is_zero() {
            (self.smoothed, self.variation) = (sample, sample / 2);
        } else {
            self.variation = (self.variation * 3 + self.smoothed.abs_diff(sample)) / 4;
            self.smoothed = (self.smoothed * 7 + sample) / 8;
        }
    }

    fn patience(self) -> Duration {
        self.smoothed + self.variation * 4
    }
}

/// What a session wants done or has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this request ([`To::All`]: to every replica).
    Send {
        /// To whom.
        to: To<ReplicaId>,
        /// The request.
        request: Signed<Request>,
    },
    /// A request was executed: `f + 1` replicas say so, with this result.
    Done {
        /// What [`Session::submit`] gave.
        ticket: u64,
        /// Where in the order it was executed.
        seq: Seq,
        /// The result.
        result: Bytes,
    },
    /// A request has no result: `f + 1` replicas say so.
    Failed {
        /// What [`Session::submit`] gave.
        ticket: u64,
        /// Why. `UnknownPrincipal`: it was not executed. `ResultLost`: it was. `Stale`: nobody
        /// remembers whether it was, because 64 other sessions of the principal have been used since
        /// this one. `Overloaded` never comes here: the session tries again.
        why: RefusedWhy,
    },
}

/// A client's session.
#[derive(Clone, Debug)]
pub struct Session {
    params: Params,
    quorums: Quorums,
    view: View,
    standing: Standing,
    last_timestamp: u64,
    submissions: u64,
    latency: Latency,
    /// By timestamp.
    outstanding: BTreeMap<u64, Outstanding>,
    /// Submitted before the session was open: tickets and operations.
    waiting: VecDeque<(u64, Bytes)>,
}

/// Whether the replicas know the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Closed,
    Opening,
    Open,
}

#[derive(Clone, Debug)]
struct Outstanding {
    purpose: Purpose,
    submission: u64,
    request: Signed<Request>,
    replies: BTreeMap<ReplicaId, (View, Answer)>,
    sent: Time,
    view: View,
    pause: Duration,
    send_again: Time,
    whole: Whole,
}

/// Whether one of those who vouch for a result was asked to send it whole: its sender may be down.
#[derive(Clone, Copy, Debug)]
enum Whole {
    /// Nothing is agreed on yet.
    Early,
    /// To be asked for then.
    Due(Time),
    /// Once; if that one lies, all are asked when the request is sent again.
    Asked,
}

#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// Opens the session; this many timestamps were tried before.
    Open { tried: u32 },
    /// Is what the user of the session submitted.
    Submitted { ticket: u64 },
}

/// Who says the same, and the bytes, if one of them sent them.
type Vouchers<'a> = (Vec<ReplicaId>, Option<&'a Bytes>);

/// A result that enough replicas vouch for, so that it is right.
struct Agreed<'a> {
    seq: Seq,
    vouchers: Vec<ReplicaId>,
    /// If one of them has sent it.
    whole: Option<&'a Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Executed { seq: Seq, digest: Digest, result: Option<Bytes> },
    Refused(RefusedWhy),
}

impl Session {
    /// A new session. Nothing is sent before the first submission.
    ///
    /// # Errors
    /// If the keys are not those of a group of replicas.
    pub fn new(params: Params, now: Time) -> Result<Session, BadParams> {
        let quorums = check_group(&params.replicas)?;
        Ok(Session {
            params,
            quorums,
            view: View(0),
            standing: Standing::Closed,
            last_timestamp: now.0,
            submissions: 0,
            latency: Latency::default(),
            outstanding: BTreeMap::new(),
            waiting: VecDeque::new(),
        })
    }

    /// Whether another request may be submitted now.
    #[must_use]
    pub fn can_submit(&self) -> bool {
        let oldest = self.outstanding.values().map(|outstanding| outstanding.submission).min();
        self.outstanding() < OUTSTANDING_MAX
            && oldest.is_none_or(|oldest| self.submissions - oldest < DISTANCE_MAX)
            && self.last_timestamp < u64::MAX
    }

    /// How many requests are outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding.len() + self.waiting.len()
    }

    /// The view whose primary requests are sent to first.
    #[must_use]
    pub fn view(&self) -> View {
        self.view
    }

    /// Submits an operation; gives a ticket, by which its outcome will be named. (The ticket is the
    /// request's timestamp, if the session is open.)
    ///
    /// # Panics
    /// If [`Session::can_submit`] said no, or the operation is empty or longer than [`REQUEST_OP_MAX`].
    pub fn submit(&mut self, now: Time, op: Bytes, fx: &mut Vec<Output>) -> u64 {
        assert!(self.can_submit(), "asked before submitting");
        assert!(!op.is_empty() && op.len() <= REQUEST_OP_MAX, "an operation of {} bytes", op.len());
        let ticket = self.next_timestamp(now.0);
        match self.standing {
            Standing::Open => self.send_first(now, ticket, Purpose::Submitted { ticket }, op, fx),
            Standing::Opening => self.waiting.push_back((ticket, op)),
            Standing::Closed => {
                self.waiting.push_back((ticket, op));
                self.standing = Standing::Opening;
                let timestamp = self.next_timestamp(now.0);
                self.send_first(now, timestamp, Purpose::Open { tried: 0 }, Bytes::new(), fx);
            }
        }
        ticket
    }

    fn next_timestamp(&mut self, at_least: u64) -> u64 {
        self.last_timestamp = self.last_timestamp.saturating_add(1).max(at_least);
        self.last_timestamp
    }

    fn send_first(&mut self, now: Time, timestamp: u64, purpose: Purpose, op: Bytes, fx: &mut Vec<Output>) {
        let body = Request { client: self.params.secret.public(), session: self.params.session, timestamp, op };
        let request = Signed::new(body, &self.params.secret, &self.params.cluster);
        fx.push(Output::Send { to: To::One(self.view.primary(self.quorums.n())), request: request.clone() });
        let pause = self.latency.patience().clamp(self.params.retransmit, self.params.retransmit * SLOWER_MAX);
        let (submission, replies, view) = (self.submissions, BTreeMap::new(), self.view);
        self.submissions += 1;
        let send_again = now.after(pause);
        let (sent, whole) = (now, Whole::Early);
        let outstanding = Outstanding { purpose, submission, request, replies, sent, view, pause, send_again, whole };
        self.outstanding.insert(timestamp, outstanding);
    }

    /// The replicas know the session: what waited for that goes out.
    fn opened(&mut self, now: Time, fx: &mut Vec<Output>) {
        self.standing = Standing::Open;
        for (ticket, op) in core::mem::take(&mut self.waiting) {
            let timestamp = self.next_timestamp(now.0);
            self.send_first(now, timestamp, Purpose::Submitted { ticket }, op, fx);
        }
    }

    /// When to call [`Session::on_deadline`].
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.outstanding.values().map(Outstanding::deadline).min()
    }

    /// Sends again, to all, what has waited long enough; and asks for results that are known by their
    /// digests only.
    pub fn on_deadline(&mut self, now: Time, fx: &mut Vec<Output>) {
        for outstanding in self.outstanding.values_mut() {
            if let Whole::Due(at) = outstanding.whole
                && at <= now
            {
                outstanding.whole = Whole::Asked;
                let agreed = outstanding.agreed(self.quorums);
                let voucher = agreed.and_then(|agreed| agreed.vouchers.last().copied());
                let send = |to| Output::Send { to: To::One(to), request: outstanding.request.clone() };
                fx.extend(voucher.map(send));
            }
        }
        for outstanding in self.outstanding.values_mut().filter(|outstanding| outstanding.send_again <= now) {
            outstanding.back_off(now);
            fx.push(Output::Send { to: To::All, request: outstanding.request.clone() });
        }
    }

    /// Takes a reply that came over an authenticated link from a replica. One that answers nothing
    /// outstanding is passed over in silence: most come after the f + 1 that were needed.
    pub fn on_reply(&mut self, now: Time, from: ReplicaId, reply: Reply, fx: &mut Vec<Output>) {
        if reply.session != self.params.session || usize::from(from.0) >= self.quorums.n() {
            return;
        }
        let timestamp = reply.timestamp;
        let Some(outstanding) = self.outstanding.get_mut(&timestamp) else { return };
        let answer = match reply.result {
            ReplyResult::Full(bytes) => {
                Answer::Executed { seq: reply.seq, digest: Digest::of(&bytes), result: Some(bytes) }
            }
            ReplyResult::DigestOnly(digest) => Answer::Executed { seq: reply.seq, digest, result: None },
            ReplyResult::Refused(RefusedWhy::Stale { floor }) if floor < timestamp => return,
            ReplyResult::Refused(why) => Answer::Refused(why),
        };
        outstanding.note(from, reply.view, answer);
        if let Some((seq, result)) = outstanding.done(self.quorums) {
            let (view, purpose) = (outstanding.confirmed_view(self.quorums), outstanding.purpose);
            if view <= outstanding.view {
                // Else it waited for a new primary, which says nothing of how fast this one is.
                self.latency.note(now.since(outstanding.sent));
            }
            self.view = self.view.max(view);
            self.outstanding.remove(&timestamp);
            match purpose {
                Purpose::Submitted { ticket } => fx.push(Output::Done { ticket, seq, result }),
                Purpose::Open { .. } => self.opened(now, fx),
            }
        } else if let Some(why) = outstanding.refused(self.quorums) {
            self.on_refused(now, timestamp, why, fx);
        } else if matches!(outstanding.whole, Whole::Early) && outstanding.agreed(self.quorums).is_some() {
            // The bytes come from the designated replica, in about the time that this took, or not at all.
            outstanding.whole = Whole::Due(now.after(now.since(outstanding.sent)));
        }
    }

    /// `f + 1` replicas refused, at least one of them correct.
    fn on_refused(&mut self, now: Time, timestamp: u64, why: RefusedWhy, fx: &mut Vec<Output>) {
        let outstanding = self.outstanding.get_mut(&timestamp).expect("the caller found it");
        if why == RefusedWhy::Overloaded {
            outstanding.replies.clear();
            return outstanding.back_off(now);
        }
        let purpose = outstanding.purpose;
        self.outstanding.remove(&timestamp);
        match (purpose, why) {
            (Purpose::Submitted { ticket }, why) => {
                if matches!(why, RefusedWhy::Stale { .. }) && self.standing == Standing::Open {
                    self.standing = Standing::Closed;
                }
                fx.push(Output::Failed { ticket, why });
            }
            (Purpose::Open { .. }, RefusedWhy::ResultLost) => self.opened(now, fx),
            (Purpose::Open { tried }, RefusedWhy::Stale { floor }) if floor < u64::MAX => {
                // Farther every time, so that one liar among the f + 1 can't make it crawl.
                let leap = 1u64 << (tried * 4).min(60);
                let timestamp = self.next_timestamp(floor.saturating_add(leap).max(now.0));
                self.send_first(now, timestamp, Purpose::Open { tried: tried + 1 }, Bytes::new(), fx);
            }
            (Purpose::Open { .. }, why) => {
                self.standing = Standing::Closed;
                let failed = core::mem::take(&mut self.waiting).into_iter();
                fx.extend(failed.map(|(ticket, _)| Output::Failed { ticket, why }));
            }
        }
    }
}

impl Outstanding {
    fn back_off(&mut self, now: Time) {
        self.send_again = now.after(self.pause);
        self.pause = (self.pause * 2).min(RETRANSMIT_MAX);
    }

    /// Notes what a replica says; the latest counts, but bytes once given are kept.
    fn note(&mut self, from: ReplicaId, view: View, answer: Answer) {
        if let (Some((_, Answer::Executed { digest: old, result: Some(_), .. })), Answer::Executed { digest, .. }) =
            (self.replies.get(&from), &answer)
            && old == digest
        {
            return;
        }
        self.replies.insert(from, (view, answer));
    }

    fn deadline(&self) -> Time {
        match self.whole {
            Whole::Due(at) => at.min(self.send_again),
            Whole::Early | Whole::Asked => self.send_again,
        }
    }

    /// The result that `f + 1` replicas agree on, once one of them has sent it whole.
    fn done(&self, quorums: Quorums) -> Option<(Seq, Bytes)> {
        let agreed = self.agreed(quorums)?;
        Some((agreed.seq, agreed.whole?.clone()))
    }

    /// What `f + 1` replicas agree on.
    fn agreed(&self, quorums: Quorums) -> Option<Agreed<'_>> {
        let mut counts: BTreeMap<(Seq, Digest), Vouchers<'_>> = BTreeMap::new();
        for (from, (_, answer)) in &self.replies {
            if let Answer::Executed { seq, digest, result } = answer {
                let (vouchers, whole) = counts.entry((*seq, *digest)).or_default();
                vouchers.push(*from);
                *whole = whole.or(result.as_ref());
            }
        }
        let agreed = counts.into_iter().find(|(_, (vouchers, _))| vouchers.len() >= quorums.weak());
        agreed.map(|((seq, _), (vouchers, whole))| Agreed { seq, vouchers, whole })
    }

    /// The highest view that `f + 1` replicas have reached, at least one of them correct.
    fn confirmed_view(&self, quorums: Quorums) -> View {
        let mut views: Vec<View> = self.replies.values().map(|(view, _)| *view).collect();
        views.sort_unstable();
        let index = views.len().checked_sub(quorums.weak());
        index.map_or(View(0), |index| views[index])
    }

    /// The reason that `f + 1` replicas agree on. Floors may differ (replicas answer at different
    /// times): the highest that `f + 1` are not below counts.
    fn refused(&self, quorums: Quorums) -> Option<RefusedWhy> {
        let reasons = || {
            self.replies.values().filter_map(|(_, answer)| match answer {
                Answer::Refused(why) => Some(*why),
                Answer::Executed { .. } => None,
            })
        };
        let same = [RefusedWhy::UnknownPrincipal, RefusedWhy::Overloaded, RefusedWhy::ResultLost];
        if let Some(why) = same.into_iter().find(|why| reasons().filter(|other| other == why).count() >= quorums.weak())
        {
            return Some(why);
        }
        let stale = reasons().filter_map(|why| if let RefusedWhy::Stale { floor } = why { Some(floor) } else { None });
        let mut floors: Vec<u64> = stale.collect();
        floors.sort_unstable();
        let index = floors.len().checked_sub(quorums.weak())?;
        Some(RefusedWhy::Stale { floor: floors[index] })
    }
}
