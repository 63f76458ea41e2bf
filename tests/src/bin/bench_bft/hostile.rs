//! Attackers, each in a process of its own, so that what they use counts for nobody else. They are
//! in this program only: no shipped one can do any of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base::{Encode as _, ReplicaId, SecretKey, Seq, Signed, View};
use bytes::Bytes;
use clap::Subcommand;
use meta::{Batch, Ino};
use proto::link::{Dialler, Identity, Protocol};
use proto::pipe::{self, Head};
use proto::view::ClusterView;
use proto::wire::{Hello, PeerFrame, SessionDown, SessionUp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::Outcome;
use crate::cluster::{ATTACKER, node_key, user_key};
use crate::work::operation;

/// Messages in a frame.
const FRAME: usize = 32;
/// Chunks of bytes on their way through a relay, for each connection.
const RELAYED_MAX: usize = 4096;
/// A good request among the forged ones, so that the link is not cut for bad ones in a row.
const GOOD_EVERY: usize = 32;

/// What an attacker does.
#[derive(Subcommand, Debug, Clone)]
pub(crate) enum Hostile {
    /// Relays connections, and holds up what the side that connected sends.
    Delay {
        /// For how long; grows to that over some seconds, as no stall would show.
        #[arg(long)]
        by_ms: u64,
        /// From when this file is there.
        #[arg(long)]
        when: PathBuf,
        /// Where to; the relays' own addresses are printed in this order.
        to: Vec<SocketAddr>,
    },
    /// Sends new signed requests to all replicas, as many as they take.
    Flood {
        /// The cluster.
        view: PathBuf,
        /// A file that the requests may change.
        file: u64,
    },
    /// Sends requests with wrong signatures to all replicas, as many as they take.
    Forge {
        /// The cluster.
        view: PathBuf,
        /// The file that the requests name.
        file: u64,
    },
    /// As a replica, sends the others votes and reports of where it stands, as many as they take.
    Babble {
        /// The cluster.
        view: PathBuf,
        /// The replica whose key it has.
        replica: u16,
    },
}

/// Attacks until the process is killed.
pub(crate) async fn run(hostile: &Hostile) -> Outcome<()> {
    match hostile {
        Hostile::Delay { by_ms, when, to } => delay(Duration::from_millis(*by_ms), when, to).await,
        Hostile::Flood { view, file } => flood(&ClusterView::read(view)?, Ino(*file), false).await,
        Hostile::Forge { view, file } => flood(&ClusterView::read(view)?, Ino(*file), true).await,
        Hostile::Babble { view, replica } => babble(&ClusterView::read(view)?, *replica).await,
    }
}

/// Of this many steps, each of [`GROW_EVERY`], does a delay grow.
const GROW_STEPS: u64 = 50;
const GROW_EVERY: Duration = Duration::from_millis(50);

async fn delay(by: Duration, when: &Path, to: &[SocketAddr]) -> Outcome<()> {
    let now_us = Arc::new(AtomicU64::new(0));
    let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
    for _ in to {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addresses.push(listener.local_addr()?.to_string());
        listeners.push(listener);
    }
    println!("relays {}.", addresses.join(" "));
    for (listener, to) in listeners.into_iter().zip(to.to_vec()) {
        let now_us = now_us.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                if let Ok(to) = TcpStream::connect(to).await {
                    relay(from, to, now_us.clone());
                }
            }
        });
    }
    let (mut every, mut step) = (tokio::time::interval(GROW_EVERY), 0);
    loop {
        every.tick().await;
        if step < GROW_STEPS && when.exists() {
            step += 1;
            now_us.store(by.as_micros() as u64 * step / GROW_STEPS, Ordering::Relaxed);
        }
    }
}

/// Relays one connection.
fn relay(from: TcpStream, to: TcpStream, by_us: Arc<AtomicU64>) {
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let (mut from_reads, mut from_writes) = from.into_split();
    let (mut to_reads, mut to_writes) = to.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut to_reads, &mut from_writes).await });
    let (held, mut due) = mpsc::channel::<(Instant, Bytes)>(RELAYED_MAX);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_reads.read(&mut buffer).await {
            let bytes = Bytes::copy_from_slice(&buffer[..count]);
            let by = Duration::from_micros(by_us.load(Ordering::Relaxed));
            if held.send((Instant::now() + by, bytes)).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at.into()).await;
            if to_writes.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
}

/// Makes requests and offers them to all replicas.
async fn flood(view: &ClusterView, file: Ino, forged: bool) -> Outcome<()> {
    let secret = user_key(ATTACKER).secret();
    let identity = Identity::new(&secret)?;
    let sent = Arc::new(AtomicU64::new(0));
    let mut queues = Vec::new();
    for node in view.replicas() {
        let (queue, waiting) = mpsc::channel(4);
        let dialler = Dialler::new(&identity, node.address, node.key, Protocol::Session)?;
        tokio::spawn(pour(dialler, waiting, sent.clone()));
        queues.push(queue);
    }
    tokio::spawn(count(sent));
    let mut maker = Maker::new(view, secret, file);
    let bad = maker.forged();
    offer(&queues, || if forged { bad.clone() } else { maker.signed(FRAME) }).await
}

/// Makes messages of a replica and offers them to the others.
async fn babble(view: &ClusterView, replica: u16) -> Outcome<()> {
    let secret = node_key(replica.into()).secret();
    let identity = Identity::new(&secret)?;
    let sent = Arc::new(AtomicU64::new(0));
    let mut queues = Vec::new();
    for (_, node) in view.replicas().enumerate().filter(|(index, _)| *index != usize::from(replica)) {
        let (queue, waiting) = mpsc::channel(4);
        let dialler = Dialler::new(&identity, node.address, node.key, Protocol::Peer)?;
        tokio::spawn(pour_messages(dialler, waiting, sent.clone()));
        queues.push(queue);
    }
    tokio::spawn(count(sent));
    let mut seq = 0;
    offer(&queues, || {
        let message = |_| {
            seq += 1;
            Bytes::from(if seq % 2 == 0 { report(seq) } else { vote(view, &secret, replica, seq) }.to_bytes())
        };
        (0..FRAME).map(message).collect()
    })
    .await
}

/// A vote for a proposal that nobody made.
fn vote(view: &ClusterView, secret: &SecretKey, replica: u16, seq: u64) -> bft::Message {
    let digest = base::Digest::of(&seq.to_le_bytes());
    let body = bft::Prepare { view: View(0), seq: Seq(seq), digest, replica: ReplicaId(replica) };
    bft::Message::Prepare(Signed::new(body, secret, &view.cluster))
}

/// Where a replica stands that has nothing: whoever believes it has much to send.
fn report(round: u64) -> bft::Message {
    bft::Message::Status(bft::Status {
        round,
        view: View(0),
        active: true,
        rejoins: None,
        last_executed: Seq(0),
        low_water_mark: Seq(0),
        oldest_retained: Seq(1),
        slots: Vec::new(),
    })
}

/// Offers frames for ever, to whoever has room; the slowest holds up nobody.
async fn offer(queues: &[mpsc::Sender<Vec<Bytes>>], mut frame: impl FnMut() -> Vec<Bytes>) -> Outcome<()> {
    loop {
        let frame = frame();
        while queues.iter().filter(|queue| queue.try_send(frame.clone()).is_ok()).count() == 0 {
            tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_millis(1)).await;
        }
        tokio::task::yield_now().await;
    }
}

/// Says every so often how many messages went out.
async fn count(sent: Arc<AtomicU64>) {
    let mut every = tokio::time::interval(Duration::from_millis(200));
    loop {
        every.tick().await;
        println!("sent {}.", sent.load(Ordering::Relaxed));
    }
}

/// Makes requests.
struct Maker {
    view: ClusterView,
    secret: SecretKey,
    file: Ino,
    timestamp: u64,
}

impl Maker {
    fn new(view: &ClusterView, secret: SecretKey, file: Ino) -> Maker {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = base::Time::ZERO.after(now).0;
        Maker { view: view.clone(), secret, file, timestamp }
    }

    fn signed(&mut self, count: usize) -> Vec<Bytes> {
        let make = |_| {
            self.timestamp += 1;
            let op = Batch::new(vec![operation(self.file, 512, self.timestamp % 1000)]).to_bytes();
            let client = self.secret.public();
            let request = bft::Request { client, session: SESSION, timestamp: self.timestamp, op: op.into() };
            Bytes::from(Signed::new(request, &self.secret, &self.view.cluster).to_bytes())
        };
        (0..count).map(make).collect()
    }

    /// A frame of requests whose signatures are as dear to check as good ones, and wrong.
    fn forged(&mut self) -> Vec<Bytes> {
        let spoil = |(index, bytes): (usize, Bytes)| {
            let mut bytes = bytes.to_vec();
            // The point R: a signature whose scalar is out of range would be cheap to refuse.
            let at = bytes.len() - 64;
            bytes[at] ^= u8::from(!index.is_multiple_of(GOOD_EVERY));
            Bytes::from(bytes)
        };
        self.signed(FRAME).into_iter().enumerate().map(spoil).collect()
    }
}

const SESSION: u64 = 1 << 40;

/// Sends what comes to one replica, opening its link again whenever it is cut.
async fn pour(dialler: Dialler, mut waiting: mpsc::Receiver<Vec<Bytes>>, sent: Arc<AtomicU64>) {
    let hello = Hello { session: SESSION, label: "hostile".to_owned() };
    let first = SessionUp { hello: Some(hello), requests: Vec::new() };
    let frame = |requests| SessionUp { hello: None, requests };
    pour_frames::<_, SessionDown>(&dialler, Some(first), frame, &mut waiting, &sent).await;
}

/// As [`pour`], to a replica as its peer.
async fn pour_messages(dialler: Dialler, mut waiting: mpsc::Receiver<Vec<Bytes>>, sent: Arc<AtomicU64>) {
    let frame = |messages| PeerFrame { messages };
    pour_frames::<_, PeerFrame>(&dialler, None, frame, &mut waiting, &sent).await;
}

async fn pour_frames<U: Head + Clone + Send + 'static, D: Head>(
    dialler: &Dialler,
    first: Option<U>,
    frame: impl Fn(Vec<Bytes>) -> U,
    waiting: &mut mpsc::Receiver<Vec<Bytes>>,
    sent: &AtomicU64,
) {
    loop {
        if let Ok(link) = dialler.connect().await {
            let (mut downs, mut ups) = pipe::split(link);
            let ended = tokio::spawn(async move { while let Ok(Some(_)) = downs.next::<D>().await {} });
            let mut going = ups.send(first.clone().map(Into::into)).await.is_ok();
            while going && let Some(messages) = waiting.recv().await {
                let count = messages.len() as u64;
                going = !ended.is_finished() && ups.send([frame(messages).into()]).await.is_ok();
                sent.fetch_add(if going { count } else { 0 }, Ordering::Relaxed);
            }
            ended.abort();
        }
        tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_millis(1)).await;
    }
}
