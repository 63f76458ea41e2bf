//! The gRPC service of a replica: streams of its peers, and clients' sessions and reads.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use base::{PublicKey, ReplicaId};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use proto::frame::framed;
use proto::link::PeerKey;
use proto::wire::consensus_server::Consensus;
use proto::wire::{Hello, PeerFrame, ReadAnswer, ReadAsk, SessionDown, SessionUp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::allowance::Allowance;
use crate::counts::Counts;
use crate::door::Door;
use crate::gate::{Gate, Lane};
use crate::reads::Desk;
use crate::sessions::Sessions;

/// Bad messages in a row after which a link is cut.
const BAD_IN_A_ROW_MAX: u32 = 64;
/// Reads of one link that are answered at a time.
const READS_MAX: usize = 8;
/// Longest label of a session, bytes.
const LABEL_MAX: usize = 256;

/// The service.
pub(crate) struct ConsensusService {
    pub(crate) door: Arc<Door>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) replicas: BTreeMap<PublicKey, (ReplicaId, Allowance)>,
    pub(crate) principals: Vec<PublicKey>,
    /// To the core: messages of peers.
    pub(crate) peer_inputs: mpsc::Sender<bft::Input>,
    /// To the core, by a queue of their own, so that no client delays a replica: requests of clients.
    pub(crate) gate: Gate,
    pub(crate) desk: Arc<Desk>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The key that a request's link proved.
pub(crate) fn peer_key<T>(request: &Request<T>) -> Result<PublicKey, Status> {
    let key = request.extensions().get::<PeerKey>();
    key.map(|key| key.0).ok_or_else(|| Status::unauthenticated("no key on this link"))
}

/// The next frame of a link; `None` at its end. A frame that can't be read ends it too, and is
/// counted: what comes after it in the stream can't be found.
pub(crate) async fn next_frame<T>(frames: &mut Streaming<T>, dropped: &Counts) -> Option<T> {
    match frames.message().await {
        Ok(frame) => frame,
        Err(status) => {
            match status.code() {
                Code::OutOfRange => dropped.add("message that is too long"),
                Code::Internal => dropped.add("unreadable frame"),
                // The link broke.
                _ => {}
            }
            None
        }
    }
}

#[tonic::async_trait]
impl Consensus for ConsensusService {
    type PeerStream = Answers<PeerFrame>;
    type ReadStream = Answers<ReadAnswer>;
    type SessionStream = Answers<SessionDown>;

    async fn peer(&self, request: Request<Streaming<PeerFrame>>) -> Result<Response<Self::PeerStream>, Status> {
        let key = peer_key(&request)?;
        let Some((from, allowance)) = self.replicas.get(&key).cloned() else {
            self.door.dropped.add("peer link of a stranger");
            return Err(Status::permission_denied("not a replica of this cluster"));
        };
        let (alive, answers) = mpsc::channel(1);
        let (door, inputs) = (self.door.clone(), self.peer_inputs.clone());
        let mut frames = request.into_inner();
        tokio::spawn(async move {
            let _alive = alive;
            let mut bad_in_a_row = 0;
            while let Some(frame) = next_frame(&mut frames, &door.dropped).await {
                for bytes in frame.messages {
                    if allowance.enter().await {
                        door.dropped.add("wait of a replica that says too much");
                    }
                    let Some(message) = door.peer_message(from, &bytes) else {
                        allowance.charge_bad();
                        bad_in_a_row += 1;
                        if bad_in_a_row > BAD_IN_A_ROW_MAX {
                            return;
                        }
                        continue;
                    };
                    bad_in_a_row = 0;
                    if inputs.send(bft::Input::Peer { from, message }).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn read(&self, request: Request<Streaming<ReadAsk>>) -> Result<Response<Self::ReadStream>, Status> {
        let client = self.user(&request)?;
        let place = self.desk.budgets.of(client).read_links.clone().try_acquire_owned();
        let place = place.map_err(|_| Status::resource_exhausted("too many reading links of this user"))?;
        let (desk, door) = (self.desk.clone(), self.door.clone());
        let asks = stream::unfold(request.into_inner(), move |mut frames| {
            let door = door.clone();
            async move { next_frame(&mut frames, &door.dropped).await.map(|ask| (ask, frames)) }
        });
        let answers = asks.map(move |ask| {
            // Given back when the link ends.
            let (desk, _place) = (desk.clone(), &place);
            async move { Ok(desk.answer(client, ask).await) }
        });
        Ok(Response::new(Box::pin(answers.buffer_unordered(READS_MAX))))
    }

    async fn session(&self, request: Request<Streaming<SessionUp>>) -> Result<Response<Self::SessionStream>, Status> {
        let client = self.user(&request)?;
        let mut frames = request.into_inner();
        let first = frames.message().await?.ok_or_else(|| Status::invalid_argument("a session starts with a hello"))?;
        let Hello { session, label } = first.hello.ok_or_else(|| Status::invalid_argument("no hello"))?;
        if label.len() > LABEL_MAX {
            return Err(Status::invalid_argument("label too long"));
        }
        let opened = self.sessions.open(client, session, label);
        let mut opened = opened.ok_or_else(|| Status::resource_exhausted("too many sessions of this user"))?;
        let (down, answers) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut batch = Vec::new();
            loop {
                let recalled = tokio::select! {
                    count = opened.replies.recv_many(&mut batch, 256) => match count {
                        0 => return,
                        _ => false,
                    },
                    () = opened.recalled.notified() => true,
                };
                let frames = framed(&mut batch).into_iter().map(|replies| SessionDown { replies, recalled: false });
                let hint = recalled.then_some(SessionDown { replies: Vec::new(), recalled });
                for frame in frames.chain(hint) {
                    if down.send(Ok(frame)).await.is_err() {
                        return;
                    }
                }
            }
        });
        let (door, lane, sessions) = (self.door.clone(), self.gate.lane(client), self.sessions.clone());
        tokio::spawn(async move {
            carry_requests(first.requests, frames, &door, &lane).await;
            sessions.close(client, session, opened.generation);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl ConsensusService {
    /// The user whose link this is.
    fn user<T>(&self, request: &Request<T>) -> Result<PublicKey, Status> {
        let client = peer_key(request)?;
        if !self.principals.contains(&client) {
            self.door.dropped.add("session of a stranger");
            return Err(Status::permission_denied("not a user of this cluster"));
        }
        Ok(client)
    }
}

/// Carries a client's requests to the gate until the link ends.
async fn carry_requests(first: Vec<Bytes>, mut frames: Streaming<SessionUp>, door: &Door, lane: &Lane) {
    let mut requests = first;
    loop {
        for bytes in requests {
            let handed_over = match door.unchecked(&bytes) {
                Some(request) => lane.hand_over(request).await,
                None => {
                    lane.note_malformed();
                    true
                }
            };
            if !handed_over || lane.bad_in_a_row() > BAD_IN_A_ROW_MAX {
                return;
            }
        }
        let Some(frame) = next_frame(&mut frames, &door.dropped).await else { return };
        requests = frame.requests;
    }
}
