//! One principal's links to the replicas, and its sessions' streams on them.
//!
//! As `client::session` does it, but with many sessions on one set of connections, and with nothing
//! between the caller and the protocol: what a request holds and when it goes out is the benchmark's
//! to say.

use base::{Decode as _, Encode as _, ReplicaId, SecretKey, Time, To};
use bft::client::{Output, Session as Core};
use bytes::Bytes;
use meta::{Answer, Batch, Call};
use proto::MESSAGE_MAX;
use proto::frame::framed;
use proto::link::{self, Identity};
use proto::view::ClusterView;
use proto::wire::consensus_client::ConsensusClient;
use proto::wire::{Hello, SessionUp};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
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
    channels: Vec<Channel>,
}

impl Principal {
    /// Connections are made when first used.
    pub(crate) fn new(view: &ClusterView, secret: SecretKey) -> Outcome<Principal> {
        let identity = Identity::new(&secret)?;
        let dialled = view.replicas().map(|node| link::dial(&identity, node.address, node.key));
        Ok(Principal { view: view.clone(), secret, channels: dialled.collect::<Result<_, _>>()? })
    }

    /// The connection to one replica.
    pub(crate) fn channel(&self, replica: usize) -> Channel {
        self.channels[replica].clone()
    }

    /// A new session, its streams about to open.
    pub(crate) fn session(&self) -> Session {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let (heard, replies) = mpsc::channel(QUEUE_MAX);
        let mut links = Vec::new();
        for (index, channel) in self.channels.iter().enumerate() {
            let (requests, waiting) = mpsc::channel(QUEUE_MAX);
            tokio::spawn(carry(channel.clone(), number, ReplicaId(index as u16), waiting, heard.clone()));
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

/// Keeps a session's stream to one replica open for as long as the session lives.
async fn carry(
    channel: Channel,
    session: u64,
    replica: ReplicaId,
    mut requests: mpsc::Receiver<Bytes>,
    replies: mpsc::Sender<(ReplicaId, bft::Reply)>,
) {
    while !replies.is_closed() {
        let (frames, outgoing) = mpsc::channel(4);
        let hello = Hello { session, label: "bench".to_owned() };
        frames.try_send(SessionUp { hello: Some(hello), requests: Vec::new() }).expect("an empty queue has room");
        let mut client = ConsensusClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
        let opened = tokio::select! {
            opened = client.session(ReceiverStream::new(outgoing)) => opened,
            () = replies.closed() => return,
        };
        if let Ok(answer) = opened
            && exchange(answer.into_inner(), &mut requests, &frames, replica, &replies).await.is_none()
        {
            return;
        }
        tokio::time::sleep_until(tokio::time::Instant::now() + AGAIN).await;
    }
}

/// Carries until the stream breaks (`Some`) or the session is gone (`None`).
async fn exchange(
    mut down: tonic::Streaming<proto::wire::SessionDown>,
    requests: &mut mpsc::Receiver<Bytes>,
    frames: &mpsc::Sender<SessionUp>,
    replica: ReplicaId,
    replies: &mpsc::Sender<(ReplicaId, bft::Reply)>,
) -> Option<()> {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            frame = down.message() => {
                let Ok(Some(frame)) = frame else { return Some(()) };
                for bytes in frame.replies {
                    let Ok(reply) = bft::Reply::from_bytes(&bytes) else { continue };
                    replies.send((replica, reply)).await.ok()?;
                }
            }
            count = requests.recv_many(&mut batch, QUEUE_MAX) => {
                if count == 0 {
                    return None;
                }
                for requests in framed(&mut batch) {
                    if frames.send(SessionUp { hello: None, requests }).await.is_err() {
                        return Some(());
                    }
                }
            }
        }
    }
}
