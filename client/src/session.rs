//! A session with the replicas: calls in, answers out.
//!
//! Calls that wait together travel under one signature. The protocol itself (retransmission, f+1
//! matching replies) is `bft::client`; this module gives it a clock and links.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base::{Decode as _, Encode as _, ReplicaId, SecretKey, Time, To};
use bft::client::{Output, Session as Core};
use bytes::Bytes;
use meta::{Answer, BATCH_MAX, Batch, By, Call, Denied, Op, PATCHES_LEN_MAX};
use proto::frame::framed;
use proto::link::{Dialled, Dialler, Identity, LinkError, Protocol};
use proto::pipe::{self, Writer};
use proto::view::ClusterView;
use proto::wire::{Hello, SessionDown, SessionUp};
use tokio::io::WriteHalf;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::backend::{CALL_TIMEOUT, Metadata, OUTSTANDING_MAX, RETRANSMIT, Unavailable};
use crate::exchange::Exchange;
use crate::proofs::{Attempt, Proofs, Read, ReadCounts, Source};

/// What calls of one request may add up to, bytes.
const REQUEST_TARGET: usize = 96 << 10;
/// What the answers to one request may add up to, bytes. Replicas refuse the calls of a batch whose
/// answers go beyond `meta::ANSWERS_LEN_MAX`.
const ANSWERS_TARGET: usize = meta::ANSWERS_LEN_MAX - (128 << 10);
/// What of a replica's reason is told, characters.
const REFUSED_MAX: usize = 200;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A session. Cheap to clone; ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Session {
    asks: mpsc::Sender<Ask>,
    proofs: Arc<Proofs>,
    clock: Clock,
    /// Some replica says that others want what this user has leases on.
    recalls: Arc<Notify>,
}

#[derive(Debug)]
struct Ask {
    calls: Vec<Call>,
    /// In whose name; only what is in the same travels together, and a part of a log alone.
    by: Option<By>,
    bytes: usize,
    /// What its answers may add up to, bytes.
    answers_bytes: usize,
    answer: oneshot::Sender<Result<Vec<Answer>, Unavailable>>,
}

impl Session {
    /// Opens a session of the user who holds `secret`; links connect by themselves. `label` is
    /// what operators see of it.
    ///
    /// # Errors
    /// [`LinkError`] if TLS can't be set up with the identity.
    pub fn open(
        view: &ClusterView,
        identity: &Identity,
        secret: &SecretKey,
        session: u64,
        label: &str,
    ) -> Result<Session, LinkError> {
        let (replies_in, replies) = mpsc::channel(1024);
        let (mut links, mut read_links) = (Vec::new(), Vec::new());
        let recalls = Arc::new(Notify::new());
        for (index, node) in view.replicas().enumerate() {
            let (requests, waiting) = mpsc::channel(64);
            let dial = |protocol| Dialler::new(identity, node.address, node.key, protocol);
            read_links.push(Exchange::start(dial(Protocol::Reads)?));
            let hello = Hello { session, label: label.to_owned() };
            let (replica, replies, recalls) = (ReplicaId(index as u16), replies_in.clone(), recalls.clone());
            let down = Down { replica, replies, recalls, refused: false };
            tokio::spawn(carry(dial(Protocol::Session)?, hello, waiting, down));
            links.push(requests);
        }
        let params = bft::client::Params {
            cluster: view.cluster,
            replicas: view.replica_keys(),
            secret: secret.clone(),
            session,
            retransmit: RETRANSMIT,
        };
        let clock = Clock::start();
        let core = Core::new(params, clock.now()).expect("a view has 3f+1 replicas with distinct keys");
        let (asks, waiting) = mpsc::channel(1024);
        let context = bft::Context { cluster: view.cluster, replicas: view.replica_keys().into() };
        let first = usize::try_from(session % 1024).unwrap_or(0);
        let proofs = Proofs::new(context, secret.public(), read_links, first);
        let driver =
            Driver { core, clock, links, proofs: proofs.clone(), queue: VecDeque::new(), outstanding: BTreeMap::new() };
        tokio::spawn(driver.run(waiting, replies));
        Ok(Session { asks, proofs, clock, recalls })
    }

    /// One call that changes nothing, answered as it was at some moment not longer than `max_age` ago, by
    /// this machine's clock and the replicas', and not before anything that this session has seen. One
    /// replica proves the answer if it can; else the call is ordered.
    ///
    /// # Errors
    /// If no answer that enough replicas agree on came.
    pub async fn read_within(&self, call: Call, max_age: Duration) -> Result<Read, Unavailable> {
        let mut turn = None;
        match self.proofs.attempt(&call, max_age, self.clock.latest()).await {
            Attempt::Proven(read) => return Ok(*read),
            Attempt::Vain => {}
            Attempt::Old => {
                // Whoever comes after the first may find the mark that the first one brings.
                let (mine, waited) = self.proofs.turn().await;
                turn = mine;
                if waited
                    && turn.is_some()
                    && let Attempt::Proven(read) = self.proofs.attempt(&call, max_age, self.clock.latest()).await
                {
                    return Ok(*read);
                }
            }
        }
        self.proofs.note_ordered();
        let mut answers = self.calls(vec![call]).await?;
        drop(turn);
        let answer = answers.pop().ok_or_else(|| Unavailable("the replicas answered nothing".into()))?;
        Ok(Read { answer, source: Source::Ordered })
    }

    /// How reads were answered so far.
    #[must_use]
    pub fn read_counts(&self) -> ReadCounts {
        self.proofs.counts()
    }

    /// One call, as `Result`.
    ///
    /// # Errors
    /// The refusal, or that the cluster can't be reached.
    pub async fn call(&self, call: Call) -> Result<Result<meta::Reply, Denied>, Unavailable> {
        let mut answers = self.calls(vec![call]).await?;
        let answer = answers.pop().ok_or_else(|| Unavailable("the replicas answered nothing".into()))?;
        Ok(answer.into_result())
    }
}

impl Metadata for Session {
    async fn batch(&self, Batch { calls, by }: Batch) -> Result<Vec<Answer>, Unavailable> {
        let gone = || Unavailable("the session has ended".into());
        let count = calls.len();
        assert!(count <= BATCH_MAX, "a request has at most {BATCH_MAX} calls");
        let bytes = calls.to_bytes().len();
        let answers_bytes = calls.iter().map(|call| answer_bytes_max(&call.op)).sum();
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask { calls, by, bytes, answers_bytes, answer }).await.map_err(|_| gone())?;
        let answers = match tokio::time::timeout(CALL_TIMEOUT, answered).await {
            Ok(answers) => answers.map_err(|_| gone())??,
            Err(_) => {
                return Err(Unavailable(format!(
                    "no answer of enough replicas within {} s; `mangrove status` shows which are up",
                    CALL_TIMEOUT.as_secs()
                )));
            }
        };
        match answers.as_slice() {
            _ if answers.len() == count => Ok(answers),
            [Answer::Denied(why)] => Ok(vec![Answer::Denied(*why); count]),
            _ => Err(Unavailable("the replicas answered other questions than were asked".into())),
        }
    }

    async fn read(&self, call: Call, max_age: Duration) -> Result<Answer, Unavailable> {
        Ok(self.read_within(call, max_age).await?.answer)
    }

    async fn recalled(&self) {
        self.recalls.notified().await;
    }
}

/// The wall clock as it was when the session began, and what has passed since by a clock that nobody
/// sets: setting the wall clock back must not delay a retransmission.
#[derive(Clone, Copy, Debug)]
struct Clock {
    began: Time,
    at: Instant,
}

impl Clock {
    fn start() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { began: Time::ZERO.after(wall), at: Instant::now() }
    }

    fn now(self) -> Time {
        self.began.after(self.at.elapsed())
    }

    /// The later of this clock and the wall clock: for telling ages, where to be wrong must not mean to
    /// take something old for new.
    fn latest(self) -> Time {
        self.now().max(Clock::start().began)
    }
}

/// The task that owns the session's core.
struct Driver {
    core: Core,
    clock: Clock,
    links: Vec<mpsc::Sender<Bytes>>,
    proofs: Arc<Proofs>,
    queue: VecDeque<Ask>,
    /// The asks whose calls travel in each request, in order.
    outstanding: BTreeMap<u64, Vec<Ask>>,
}

impl Driver {
    async fn run(mut self, mut asks: mpsc::Receiver<Ask>, mut replies: mpsc::Receiver<(ReplicaId, bft::Reply)>) {
        let mut outputs = Vec::new();
        loop {
            let wait = self.core.deadline().map_or(Duration::from_secs(3600), |at| at.since(self.clock.now()));
            tokio::select! {
                ask = asks.recv(), if self.queue.len() < 1024 => match ask {
                    Some(ask) => self.queue.push_back(ask),
                    None => return,
                },
                Some((from, reply)) = replies.recv() => self.core.on_reply(self.clock.now(), from, reply, &mut outputs),
                () = tokio::time::sleep(wait) => self.core.on_deadline(self.clock.now(), &mut outputs),
            }
            while let Ok(ask) = asks.try_recv() {
                self.queue.push_back(ask);
            }
            self.act(&mut outputs);
            self.submit(&mut outputs);
            self.act(&mut outputs);
        }
    }

    /// Sends what waits, as few requests as fit.
    fn submit(&mut self, outputs: &mut Vec<Output>) {
        self.queue.retain(|ask| !ask.answer.is_closed());
        while !self.queue.is_empty() && self.outstanding.len() < OUTSTANDING_MAX && self.core.can_submit() {
            let (mut asks, mut calls, mut bytes, mut answers_bytes) = (Vec::new(), Vec::new(), 0, 0);
            while let Some(next) = self.queue.front() {
                let first = asks.first().map(|ask: &Ask| &ask.by);
                let alike = first.is_none_or(|by| *by == next.by && by.as_ref().is_none_or(|by| by.log.is_none()));
                let fits = alike
                    && calls.len() + next.calls.len() <= BATCH_MAX
                    && bytes + next.bytes <= REQUEST_TARGET
                    && answers_bytes + next.answers_bytes <= ANSWERS_TARGET;
                if !asks.is_empty() && !fits {
                    break;
                }
                let ask = self.queue.pop_front().expect("just seen");
                bytes += ask.bytes;
                answers_bytes += ask.answers_bytes;
                calls.extend(ask.calls.iter().cloned());
                asks.push(ask);
            }
            let by = asks.first().and_then(|ask| ask.by.clone());
            let batch = Batch { calls, by };
            let ticket = self.core.submit(self.clock.now(), Bytes::from(batch.to_bytes()), outputs);
            self.outstanding.insert(ticket, asks);
        }
    }

    fn act(&mut self, outputs: &mut Vec<Output>) {
        for output in outputs.drain(..) {
            match output {
                Output::Send { to, request } => {
                    let bytes = Bytes::from(request.to_bytes());
                    match to {
                        To::All => self.links.iter().for_each(|link| drop(link.try_send(bytes.clone()))),
                        To::One(replica) => {
                            if let Some(link) = self.links.get(usize::from(replica.0)) {
                                let _ = link.try_send(bytes);
                            }
                        }
                    }
                }
                Output::Done { ticket, seq, result } => {
                    self.proofs.note_seen(seq);
                    deliver(self.outstanding.remove(&ticket).unwrap_or_default(), &result);
                }
                Output::Failed { ticket, why } => {
                    for ask in self.outstanding.remove(&ticket).unwrap_or_default() {
                        let _ = ask.answer.send(Err(Unavailable(format!("the replicas refused the request: {why:?}"))));
                    }
                }
            }
        }
    }
}

/// What the answer to an operation may take up, bytes.
fn answer_bytes_max(op: &Op) -> usize {
    match op {
        Op::Hold { .. }
        | Op::Enroll { .. }
        | Op::Fetch { .. }
        | Op::ReadDir { .. }
        | Op::GetXattr { .. }
        | Op::ListXattr { .. }
        | Op::VolumeList => 130 << 10,
        Op::ReadLink { .. } => 5 << 10,
        Op::Open { .. } => PATCHES_LEN_MAX + (2 << 10),
        _ => 1 << 10,
    }
}

/// Deals one request's answers out to the asks that it carried.
fn deliver(asks: Vec<Ask>, result: &[u8]) {
    let Ok(answers) = Vec::<Answer>::from_bytes(result) else {
        for ask in asks {
            let _ = ask.answer.send(Err(Unavailable("f+1 replicas agree on an answer this version can't read".into())));
        }
        return;
    };
    if let [only @ Answer::Denied(_)] = answers.as_slice() {
        for ask in asks {
            let _ = ask.answer.send(Ok(vec![only.clone(); ask.calls.len()]));
        }
        return;
    }
    let mut answers = answers.into_iter();
    for ask in asks {
        let mine = answers.by_ref().take(ask.calls.len()).collect();
        let _ = ask.answer.send(Ok(mine));
    }
}

/// Where what a replica says goes.
struct Down {
    replica: ReplicaId,
    replies: mpsc::Sender<(ReplicaId, bft::Reply)>,
    recalls: Arc<Notify>,
    /// It has refused the session, and that was told.
    refused: bool,
}

impl Down {
    async fn take(&mut self, frame: SessionDown) {
        if !frame.refused.is_empty() && !std::mem::replace(&mut self.refused, true) {
            let why: String = frame.refused.chars().take(REFUSED_MAX).collect();
            tracing::warn!(replica = ?self.replica, ?why, "no session with this replica");
        }
        if frame.recalled {
            self.recalls.notify_one();
        }
        for bytes in frame.replies {
            let Ok(reply) = bft::Reply::from_bytes(&bytes) else { continue };
            self.refused = false;
            // Whoever does not listen any more ends the link.
            let _ = self.replies.send((self.replica, reply)).await;
        }
    }
}

/// Keeps a session's link to one replica open for as long as the session lives.
async fn carry(dialler: Dialler, hello: Hello, mut requests: mpsc::Receiver<Bytes>, mut to: Down) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match dialler.connect().await {
            Ok(link) => {
                let began = Instant::now();
                let (mut downs, ups) = pipe::split(link);
                let (replica, over) = (to.replica, to.replies.clone());
                let heard = async {
                    loop {
                        match downs.next().await {
                            Ok(Some(frame)) => to.take(frame.head).await,
                            Ok(None) => return "it hung up".to_owned(),
                            Err(error) => return error.to_string(),
                        }
                    }
                };
                let why = tokio::select! {
                    why = heard => why,
                    sent = send_requests(&hello, &mut requests, ups) => match sent {
                        Err(error) => error.to_string(),
                        Ok(()) => return,
                    },
                    () = over.closed() => return,
                };
                tracing::debug!(?replica, why, "the link of a session ended");
                // Whoever hangs up at once is as good as nobody.
                if began.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                }
            }
            Err(error) => tracing::debug!(replica = ?to.replica, %error, "no session with this replica"),
        }
        if to.replies.is_closed() {
            return;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Sends what waits, until the link breaks or nobody asks any more.
async fn send_requests(
    hello: &Hello,
    requests: &mut mpsc::Receiver<Bytes>,
    mut ups: Writer<WriteHalf<Dialled>>,
) -> io::Result<()> {
    let first = SessionUp { hello: Some(hello.clone()), requests: Vec::new() };
    let mut frames = vec![first];
    let mut batch = Vec::new();
    loop {
        ups.send(frames.drain(..).map(Into::into)).await?;
        if requests.recv_many(&mut batch, 64).await == 0 {
            return Ok(());
        }
        frames.extend(framed(&mut batch).into_iter().map(|requests| SessionUp { hello: None, requests }));
    }
}

#[cfg(test)]
mod tests;
