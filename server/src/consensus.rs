//! A replica's links: those of its peers, of clients' sessions, and of whoever reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{PublicKey, ReplicaId};
use bytes::Bytes;
use proto::frame::framed;
use proto::link::{Link, Protocol};
use proto::pipe::{self, Reader, Writer};
use proto::wire::{Hello, PeerFrame, SessionDown, SessionUp};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::allowance::Allowance;
use crate::door::Door;
use crate::frames;
use crate::gate::{Gate, Lane};
use crate::reads::Desk;
use crate::sessions::{Opened, Sessions};

/// Bad messages in a row after which a link is cut.
const BAD_IN_A_ROW_MAX: u32 = 64;
/// How long a session's link may say nothing before its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest label of a session, bytes.
const LABEL_MAX: usize = 256;

/// Who answers on them.
pub(crate) struct Consensus {
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

type Ups = Reader<ReadHalf<Link>>;
type Downs = Writer<WriteHalf<Link>>;

impl Consensus {
    /// Serves a link until it ends, if it is of somebody who may have it.
    pub(crate) async fn serve(self: Arc<Self>, link: Link) {
        let (protocol, key) = (link.protocol(), link.key());
        let (ups, downs) = pipe::split(link);
        let is_user = self.principals.contains(&key);
        match (protocol, self.replicas.get(&key)) {
            // Nothing is said to it, but the link is open both ways.
            (Protocol::Peer, Some((from, allowance))) => self.hear_peer(*from, allowance, ups, downs).await,
            (Protocol::Peer, None) => self.door.dropped.add("peer link of a stranger"),
            (Protocol::Session, _) if is_user => self.hold_session(key, ups, downs).await,
            (Protocol::Reads, _) if is_user => self.desk.serve(key, ups, downs).await,
            _ => self.door.dropped.add("session of a stranger"),
        }
    }

    /// Hands on what a replica says.
    async fn hear_peer(&self, from: ReplicaId, allowance: &Allowance, mut ups: Ups, _downs: Downs) {
        let mut bad_in_a_row = 0;
        while let Some(frame) = frames::next::<PeerFrame, _>(&mut ups, &self.door.dropped).await {
            for bytes in frame.head.messages {
                if allowance.enter().await {
                    self.door.dropped.add("wait of a replica that says too much");
                }
                let Some(message) = self.door.peer_message(from, &bytes) else {
                    allowance.charge_bad();
                    bad_in_a_row += 1;
                    if bad_in_a_row > BAD_IN_A_ROW_MAX {
                        return;
                    }
                    continue;
                };
                bad_in_a_row = 0;
                if self.peer_inputs.send(bft::Input::Peer { from, message }).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Opens a session, and carries requests and replies.
    async fn hold_session(&self, client: PublicKey, mut ups: Ups, mut downs: Downs) {
        let first = frames::next::<SessionUp, _>(&mut ups, &self.door.dropped);
        let Ok(Some(first)) = tokio::time::timeout(HELLO_TIMEOUT, first).await else { return };
        let (session, opened) = match self.open_session(client, first.head.hello) {
            Ok(opened) => opened,
            Err(why) => {
                self.door.dropped.add(why);
                let refusal = SessionDown { refused: why.to_owned(), ..SessionDown::default() };
                let _ = downs.send([refusal.into()]).await;
                return;
            }
        };
        let generation = opened.generation;
        let lane = self.gate.lane(client);
        // Whichever ends first: a link of which one side is gone is no session.
        tokio::select! {
            () = carry_requests(first.head.requests, ups, &self.door, &lane) => {}
            () = carry_replies(opened, downs) => {}
        }
        self.sessions.close(client, session, generation);
    }

    fn open_session(&self, client: PublicKey, hello: Option<Hello>) -> Result<(u64, Opened), &'static str> {
        let Hello { session, label } = hello.ok_or("session without a hello")?;
        if label.len() > LABEL_MAX {
            return Err("session with too long a label");
        }
        let opened = self.sessions.open(client, session, label).ok_or("session of a user who has too many")?;
        Ok((session, opened))
    }
}

/// Carries a client's requests to the gate until the link ends.
async fn carry_requests(first: Vec<Bytes>, mut ups: Ups, door: &Door, lane: &Lane) {
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
        let Some(frame) = frames::next::<SessionUp, _>(&mut ups, &door.dropped).await else { return };
        requests = frame.head.requests;
    }
}

/// Carries replies, and hints, to a client until the link breaks or another one takes over the session.
async fn carry_replies(mut opened: Opened, mut downs: Downs) {
    let mut batch = Vec::new();
    loop {
        let recalled = tokio::select! {
            count = opened.replies.take(&mut batch) => match count {
                0 => return,
                _ => false,
            },
            () = opened.recalled.notified() => true,
        };
        let down = |replies, recalled| SessionDown { replies, recalled, ..SessionDown::default() };
        let frames = framed(&mut batch).into_iter().map(|replies| down(replies, false));
        let hint = recalled.then(|| down(Vec::new(), true));
        if downs.send(frames.chain(hint).map(Into::into)).await.is_err() {
            return;
        }
    }
}
