//! One principal's links to the replicas, and those of its sessions.
//!
//! As `client::session` does it, but with nothing between the caller and the protocol: what a request holds and
//! when it goes out is the benchmark's to say.

use base::{Decode as _, Encode as _, ReplicaId, SecretKey, Time, To};
use bft::client::{Output, Session as Core};
use bytes::Bytes;
use meta::{Answer, Batch, Call};
use proto::frame::framed;
use proto::link::{self, Dialled, Dialler, Identity, Protocol};
use proto::pipe::{self, Reader, Writer};
use proto::view::{ClusterView, Node};
use proto::wire::{Hello, SessionDown, SessionUp};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::Outcome;

/// As the product's client has it.
const RETRANSMIT: Duration = Duration::from_millis(300);
/// Requests and replies that wait for a task of this process.
const QUEUE_MAX: usize = 64;
/// Before a broken stream is opened again.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a lone question may take.
const ANSWER: Duration = Duration::from_secs(60);

/// A user with connections to all replicas.
#[derive(Clone)]
pub(crate) struct Principal {
    view: ClusterView,
    secret: SecretKey,
    /// For operators' questions.
    channels: Vec<Channel>,
    diallers: Vec<Dialler>,
}

impl Principal {
    /// Connections are made when first used.
    pub(crate) fn new(view: &ClusterView, secret: SecretKey) -> Outcome<Principal> {
        let identity = Identity::new(&secret)?;
        let dialled = view.replicas().map(|node| link::dial(&identity, node.address, node.key));
        let channels = dialled.collect::<Result<_, _>>()?;
        let dialler = |node: &Node| Dialler::new(&identity, node.address, node.key, Protocol::Session);
        let diallers = view.replicas().map(dialler).collect::<Result<_, _>>()?;
        Ok(Principal { view: view.clone(), secret, channels, diallers })
    }

    /// The connection to one replica.
    pub(crate) fn channel(&self, replica: usize) -> Channel {
        self.channels[replica].clone()
    }

    /// A new session, its links about to open.
    pub(crate) fn session(&self) -> Session {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let (heard, replies) = mpsc::channel(QUEUE_MAX);
        let mut links = Vec::new();
        for (index, dialler) in self.diallers.iter().enumerate() {
            let (requests, waiting) = mpsc::channel(QUEUE_MAX);
            tokio::spawn(carry(dialler.clone(), number, ReplicaId(index as u16), waiting, heard.clone()));
            links.push(requests);
        }
        let params = bft::client::Params {
            cluster: self.view.cluster,
            replicas: self.view.replica_keys(),
            secret: self.secret.clone(),
            session: number,
            retransmit: RETRANSMIT,
        };
        let clock = Clock::start();
        let core = Core::new(params, clock.now()).expect("a view has 3f+1 replicas with distinct keys");
        Session { core, clock, links, replies, outputs: Vec::new() }
    }
}

/// The wall clock when it began, and what has passed since.
#[derive(Clone, Copy)]
struct Clock(Time, Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Time::ZERO.after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()), Instant::now())
    }

    fn now(self) -> Time {
        self.0.after(self.1.elapsed())
    }
}

/// What came of a request.
pub(crate) enum Ended {
    /// f+1 replicas agree on these answers.
    Answered { ticket: u64, answers: Vec<Answer> },
    /// f+1 replicas agree that there is none, or on something that is no answer.
    Failed { ticket: u64, why: String },
}

/// A session, driven by the task that holds it.
pub(crate) struct Session {
    core: Core,
    clock: Clock,
    links: Vec<mpsc::Sender<Bytes>>,
    replies: mpsc::Receiver<(ReplicaId, bft::Reply)>,
    outputs: Vec<Output>,
}

impl Session {
    /// Whether the protocol lets it send another request now.
    pub(crate) fn can_submit(&self) -> bool {
        self.core.can_submit()
    }

    /// Sends a request; gives its ticket.
    pub(crate) fn submit(&mut self, calls: Vec<Call>) -> u64 {
        let op = Bytes::from(Batch::new(calls).to_bytes());
        let ticket = self.core.submit(self.clock.now(), op, &mut self.outputs);
        self.act(&mut Vec::new());
        ticket
    }

    /// Waits for something to happen, not beyond `until`, and says what ended and how many replies
    /// said that the replica is overloaded.
    pub(crate) async fn wait(&mut self, until: Instant, ended: &mut Vec<Ended>) -> u64 {
        let mut refused = 0;
        let own = self.core.deadline().map(|at| Instant::now() + at.since(self.clock.now()));
        let until = own.map_or(until, |own| own.min(until));
        let mut heard = tokio::select! {
            biased;
            heard = self.replies.recv() => heard,
            () = tokio::time::sleep_until(until.into()) => None,
        };
        while let Some((from, reply)) = heard {
            let overloaded = bft::ReplyResult::Refused(bft::RefusedWhy::Overloaded);
            refused += u64::from(reply.result == overloaded);
            self.core.on_reply(self.clock.now(), from, reply, &mut self.outputs);
            heard = self.replies.try_recv().ok();
        }
        let now = self.clock.now();
        if self.core.deadline().is_some_and(|at| at <= now) {
            self.core.on_deadline(now, &mut self.outputs);
        }
        self.act(ended);
        refused
    }

    /// One request, and the wait for its answers.
    pub(crate) async fn ask(&mut self, calls: Vec<Call>) -> Outcome<Vec<Answer>> {
        let limit = Instant::now() + ANSWER;
        self.submit(calls);
        let mut ended = Vec::new();
        while ended.is_empty() {
            if Instant::now() > limit {
                return Err(format!("the cluster gave no answer within {} s", ANSWER.as_secs()).into());
            }
            self.wait(limit, &mut ended).await;
        }
        match ended.remove(0) {
            Ended::Answered { answers, .. } => Ok(answers),
            Ended::Failed { why, .. } => Err(why.into()),
        }
    }

    fn act(&mut self, ended: &mut Vec<Ended>) {
        for output in self.outputs.drain(..) {
            match output {
                Output::Send { to, request } => {
                    let bytes = Bytes::from(request.to_bytes());
                    // A full queue is a replica that does not listen: the request is sent again later.
                    match to {
                        To::All => self.links.iter().for_each(|link| drop(link.try_send(bytes.clone()))),
                        To::One(replica) => drop(self.links[usize::from(replica.0)].try_send(bytes)),
                    }
                }
                Output::Done { ticket, result, .. } => ended.push(match Vec::<Answer>::from_bytes(&result) {
                    Ok(answers) => Ended::Answered { ticket, answers },
                    Err(error) => Ended::Failed { ticket, why: format!("an answer that can't be read: {error}") },
                }),
                Output::Failed { ticket, why } => ended.push(Ended::Failed { ticket, why: format!("{why:?}") }),
            }
        }
    }
}

/// Keeps a session's link to one replica open for as long as the session lives.
async fn carry(
    dialler: Dialler,
    session: u64,
    replica: ReplicaId,
    mut requests: mpsc::Receiver<Bytes>,
    replies: mpsc::Sender<(ReplicaId, bft::Reply)>,
) {
    while !replies.is_closed() {
        let opened = tokio::select! {
            opened = dialler.connect() => opened,
            () = replies.closed() => return,
        };
        if let Ok(link) = opened {
            let hello = Hello { session, label: "bench".to_owned() };
            let (downs, ups) = pipe::split(link);
            tokio::select! {
                () = hear(downs, replica, &replies) => {}
                gone = send(hello, ups, &mut requests) => if gone { return },
            }
        }
        tokio::time::sleep_until(tokio::time::Instant::now() + AGAIN).await;
    }
}

/// Hands replies on until the link breaks or the session is gone.
async fn hear(
    mut downs: Reader<ReadHalf<Dialled>>,
    replica: ReplicaId,
    replies: &mpsc::Sender<(ReplicaId, bft::Reply)>,
) {
    while let Ok(Some(frame)) = downs.next::<SessionDown>().await {
        for bytes in frame.head.replies {
            let Ok(reply) = bft::Reply::from_bytes(&bytes) else { continue };
            if replies.send((replica, reply)).await.is_err() {
                return;
            }
        }
    }
}

/// Sends requests until the link breaks, or the session is gone (true).
async fn send(hello: Hello, mut ups: Writer<WriteHalf<Dialled>>, requests: &mut mpsc::Receiver<Bytes>) -> bool {
    let (mut frames, mut batch) = (vec![SessionUp { hello: Some(hello), requests: Vec::new() }], Vec::new());
    loop {
        if ups.send(frames.drain(..).map(Into::into)).await.is_err() {
            return false;
        }
        if requests.recv_many(&mut batch, QUEUE_MAX).await == 0 {
            return true;
        }
        frames.extend(framed(&mut batch).into_iter().map(|requests| SessionUp { hello: None, requests }));
    }
}
