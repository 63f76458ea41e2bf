//! Strangers who speak the wire, and users who abuse it: dropped, counted, at bounded cost.

use std::fs;
use std::time::Duration;

use base::{Encode as _, SecretKey};
use bytes::Bytes;
use proto::MESSAGE_MAX;
use proto::keyfile::KeyFile;
use proto::link::{Dialled, Dialler, Identity, Protocol, dial};
use proto::pipe::{self, Frame, Head, Reader, Writer};
use proto::view::{ClusterView, Node};
use proto::wire::admin_client::AdminClient;
use proto::wire::block_answer::Answer;
use proto::wire::block_ask::Ask;
use proto::wire::{
    Block, BlockAnswer, BlockAsk, Get, Has, Hello, NoProof, Outcome, PeerFrame, Put, ReadAnswer, ReadAsk, SessionDown,
    SessionUp, StatusAsk, read_answer,
};
use tests::cluster::NODES;
use tests::random::noise;
use tests::{Cluster, one_at_a_time};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tonic::transport::Channel;

const REPLICA: usize = 1;
/// The replica whose key somebody else has.
const LIAR: usize = 3;
const STORAGE: usize = 4;
/// By how many links a user may read from a replica.
const READ_LINKS: usize = 24;
/// How many sessions it may have there.
const SESSIONS: usize = 64;
/// Messages that are too long, sent one after the other.
const FLOOD: usize = 24;
/// What such a flood may add to a node's memory, in KiB: it adds 120 MiB if all of it is kept.
const GROWTH_KIB_MAX: u64 = 80 << 10;
const SETTLE: Duration = Duration::from_secs(30);

fn view(cluster: &Cluster) -> ClusterView {
    ClusterView::read(&cluster.path().join("cluster.toml")).expect("the view")
}

fn admin(cluster: &Cluster) -> Identity {
    let key = KeyFile::read(&cluster.path().join("admin.key")).expect("the admin's key");
    Identity::new(&key.secret()).expect("an identity")
}

fn channel(identity: &Identity, node: &Node) -> Channel {
    dial(identity, node.address, node.key).expect("a channel")
}

fn dialler(identity: &Identity, node: &Node, protocol: Protocol) -> Dialler {
    Dialler::new(identity, node.address, node.key, protocol).expect("a dialler")
}

type Link = (Reader<ReadHalf<Dialled>>, Writer<WriteHalf<Dialled>>);

async fn open(identity: &Identity, node: &Node, protocol: Protocol) -> Link {
    pipe::split(dialler(identity, node, protocol).connect().await.expect("it listens"))
}

/// Whether a link ends without another word.
async fn ends<H: Head>(mut frames: Reader<ReadHalf<Dialled>>) -> bool {
    let next = tokio::time::timeout(SETTLE, frames.next::<H>()).await;
    !matches!(next.expect("it says something or ends"), Ok(Some(_)))
}

/// Sends each as the head of a frame, on a link of its own, with a body that it does not speak of.
async fn send_nonsense(dialler: &Dialler, heads: &[&[u8]]) {
    for head in heads {
        let mut link = dialler.connect().await.expect("it listens");
        let mut bytes = (head.len() as u32 + 1).to_le_bytes().to_vec();
        bytes.extend((head.len() as u32).to_le_bytes());
        bytes.extend(*head);
        bytes.push(0);
        link.write_all(&bytes).await.expect("it reads");
        let end = link.read(&mut [0]).await;
        assert!(!matches!(end, Ok(1..)), "an answer to nonsense");
    }
}

/// The most memory a process ever had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn dropped(cluster: &Cluster, node: usize) -> u64 {
    cluster.status().node(node).dropped_messages()
}

/// Runs a story on a runtime of its own, when it is this test's turn.
fn drive(story: impl Future<Output = ()>) {
    let _turn = one_at_a_time();
    tokio::runtime::Runtime::new().expect("a runtime").block_on(story);
}

fn hello(requests: Vec<Bytes>) -> SessionUp {
    SessionUp { hello: Some(Hello { session: 77, label: "abuse".to_owned() }), requests }
}

#[test]
fn an_unknown_key_gets_no_answer_at_all() {
    drive(async {
        let cluster = Cluster::start();
        let stranger = Identity::new(&SecretKey::from_seed(&[99; 32])).expect("an identity");
        for node in &view(&cluster).nodes {
            let asked = AdminClient::new(channel(&stranger, node)).status(StatusAsk {}).await;
            assert!(asked.is_err(), "node {} answered a stranger: {asked:?}", node.id);
            let impostor = SecretKey::from_seed(&[98; 32]).public();
            let wrong = dial(&admin(&cluster), node.address, impostor).expect("a channel");
            assert!(AdminClient::new(wrong).status(StatusAsk {}).await.is_err(), "a node passed for another");
        }
        for (index, protocols) in
            [(REPLICA, &[Protocol::Peer, Protocol::Session, Protocol::Reads][..]), (STORAGE, &[Protocol::Blocks])]
        {
            for protocol in protocols {
                // In TLS 1.3 whoever dials hears of it with the first answer.
                if let Ok(link) = dialler(&stranger, &view(&cluster).nodes[index], *protocol).connect().await {
                    assert!(ends::<SessionDown>(pipe::split(link).0).await, "{protocol:?} with a stranger");
                }
            }
        }
        let status = cluster.status();
        assert_eq!((status.replicas_up(), status.storage_up()), (4, 4));
    });
}

#[test]
fn a_user_who_abuses_a_replica() {
    drive(async {
        let mut cluster = Cluster::start();
        let (view, identity) = (view(&cluster), admin(&cluster));
        let open = |protocol| open(&identity, &view.nodes[REPLICA], protocol);

        let before = dropped(&cluster, REPLICA);
        let mut link = open(Protocol::Peer).await;
        let frame = PeerFrame { messages: vec![Bytes::from_static(b"I am a replica")] };
        let _ = link.1.send([frame.into()]).await;
        assert!(ends::<PeerFrame>(link.0).await, "a user is no replica");
        for (first, why) in [
            (SessionUp::default(), "session without a hello"),
            (SessionUp { hello: Some(Hello { session: 1, label: "a".repeat(300) }), ..SessionUp::default() }, "label"),
        ] {
            let (mut downs, mut ups) = open(Protocol::Session).await;
            ups.send([first.into()]).await.expect("it reads");
            let refused: Frame<SessionDown> = downs.next().await.expect("it goes on").expect("a refusal");
            assert!(refused.head.refused.contains(why), "{refused:?}");
            assert!(ends::<SessionDown>(downs).await, "refused");
        }
        assert!(dropped(&cluster, REPLICA) >= before + 3, "and counted");

        let before = dropped(&cluster, REPLICA);
        let nonsense = (0..40).map(|seed| Bytes::from(noise(seed, 0, 500))).collect();
        let (downs, mut ups) = open(Protocol::Session).await;
        ups.send([hello(nonsense).into()]).await.expect("it reads");
        cluster.wait_status("40 malformed requests are counted", SETTLE, |status| {
            status.node(REPLICA).dropped_messages() >= before + 40
        });
        // More of them end the link.
        let nonsense = (0..40).map(|seed| Bytes::from(noise(seed, 0, 500))).collect();
        ups.send([SessionUp { requests: nonsense, ..SessionUp::default() }.into()]).await.expect("it reads");
        assert!(ends::<SessionDown>(downs).await, "whoever sends nothing but nonsense is cut off");

        // More messages than a frame may hold: what is empty is cheaper to send than to keep.
        let before = dropped(&cluster, REPLICA);
        let (downs, mut ups) = open(Protocol::Session).await;
        let empty = SessionUp { requests: vec![Bytes::new(); 100_000], ..SessionUp::default() };
        ups.send([hello(Vec::new()).into(), empty.into()]).await.expect("it reads");
        assert!(ends::<SessionDown>(downs).await, "a frame with too much in it was taken");
        assert_eq!(dropped(&cluster, REPLICA), before + 1);

        // More sessions than a user may have.
        let mut sessions = Vec::new();
        for session in 0..=SESSIONS {
            let (downs, mut ups) = open(Protocol::Session).await;
            let hello = Hello { session: 1000 + session as u64, label: "one more".to_owned() };
            ups.send([SessionUp { hello: Some(hello), ..SessionUp::default() }.into()]).await.expect("it reads");
            sessions.push((downs, ups));
        }
        let (mut last, _ups) = sessions.pop().expect("the last");
        let refused = tokio::time::timeout(SETTLE, last.next::<SessionDown>()).await.expect("it is not taken");
        let refused = refused.expect("it goes on").expect("a refusal").head.refused;
        assert!(refused.contains("too many"), "{refused}");
        let asked = cluster.admin().args(["status"]).output().expect("it runs");
        assert!(asked.status.success(), "there is room for a question: {asked:?}");
        drop(sessions);

        // Neither protobuf, nor what its head says, nor with a body that no such message has.
        let before = dropped(&cluster, REPLICA);
        for protocol in [Protocol::Session, Protocol::Reads] {
            let dialler = dialler(&identity, &view.nodes[REPLICA], protocol);
            send_nonsense(&dialler, &[&noise(3, 0, 40), &[0xff; 12], &[]]).await;
        }
        assert!(dropped(&cluster, REPLICA) >= before + 6, "unreadable frames are counted");

        let (before, peak) = (dropped(&cluster, REPLICA), peak_kib(cluster.node(REPLICA).id()));
        for _ in 0..FLOOD {
            let (downs, mut ups) = open(Protocol::Session).await;
            let long = SessionUp { hello: None, requests: vec![Bytes::from(vec![7; MESSAGE_MAX + 1])] };
            // The node ends the session, before it has read all.
            let _ = ups.send([hello(Vec::new()).into(), long.into()]).await;
            assert!(ends::<SessionDown>(downs).await, "a message that is too long was taken");
        }
        let growth = peak_kib(cluster.node(REPLICA).id()).saturating_sub(peak);
        assert!(growth < GROWTH_KIB_MAX, "messages that are too long cost {growth} KiB");
        cluster.wait_status("messages that are too long are counted", SETTLE, |status| {
            status.node(REPLICA).dropped_messages() >= before + FLOOD as u64
        });
        cluster.stop_nodes(0..NODES);
    });
}

/// What a replica says that has nothing: whoever believes it has much to send.
fn report(round: u64) -> Bytes {
    let (view, seq) = (base::View(0), base::Seq(0));
    let status = bft::Status {
        round,
        view,
        active: true,
        rejoins: None,
        last_executed: seq,
        low_water_mark: seq,
        oldest_retained: seq.next(),
        slots: Vec::new(),
    };
    Bytes::from(bft::Message::Status(status).to_bytes())
}

/// Whoever has a replica's key can't crowd out the others.
#[test]
fn a_replica_that_floods_another() {
    drive(async {
        let mut cluster = Cluster::start();
        let view = view(&cluster);
        cluster.kill_nodes([LIAR]);
        let key = KeyFile::read(&cluster.node_dir(LIAR).join("node.key")).expect("its key");
        let identity = Identity::new(&key.secret()).expect("an identity");
        let liar = || open(&identity, &view.nodes[REPLICA], Protocol::Peer);

        // Four times what a burst may be.
        let frames = (0..2048).map(|frame| PeerFrame { messages: (0..32).map(|n| report(frame * 32 + n)).collect() });
        let (answers, mut flood) = liar().await;
        let frames: Vec<_> = frames.map(Into::into).collect();
        let flood = tokio::spawn(async move {
            flood.send(frames).await.expect("it is read, if slowly");
            (answers, flood)
        });
        for _ in 0..10 {
            let asked = cluster.admin().args(["volume", "list"]).output().expect("it runs");
            assert!(asked.status.success(), "the others are served: {asked:?}");
        }
        cluster.wait_status("it is made to wait", SETTLE, |status| {
            status.node(REPLICA).dropped.contains_key("wait of a replica that says too much")
        });
        drop(flood.await.expect("it ends"));

        // A stream of nonsense is cut, and is paid for by the next.
        let nonsense = (0..200).map(|seed| Bytes::from(noise(seed, 0, 500))).collect();
        let (answers, mut messages) = liar().await;
        messages.send([PeerFrame { messages: nonsense }.into()]).await.expect("it reads");
        assert!(ends::<PeerFrame>(answers).await);
        let counted = cluster.status().node(REPLICA).dropped["malformed message of a replica"];
        assert_eq!(counted, 65, "cut after 64 bad ones in a row");
        cluster.stop_nodes((0..NODES).filter(|node| *node != LIAR));
    });
}

#[test]
fn a_user_who_abuses_reads() {
    drive(async {
        let mut cluster = Cluster::start();
        let (view, identity) = (view(&cluster), admin(&cluster));
        let replica = || open(&identity, &view.nodes[REPLICA], Protocol::Reads);
        let before = dropped(&cluster, REPLICA);
        let nonsense = |ticket: u64| Bytes::from(noise(ticket, 0, if ticket == 0 { 10 << 10 } else { 300 }));
        let ask = move |ticket: u64| ReadAsk { ticket, call: nonsense(ticket), seq_min: 0, at_min: 0 };
        let (mut answers, mut asks) = replica().await;
        asks.send((0..200).map(ask).map(Into::into)).await.expect("it reads");
        for _ in 0..200 {
            let answer: Frame<ReadAnswer> = answers.next().await.expect("it goes on").expect("an answer to each");
            let Some(read_answer::Answer::None(none)) = answer.head.answer else {
                panic!("a proof of nonsense: {answer:?}")
            };
            assert_eq!(none.why(), NoProof::Malformed);
        }
        assert!(dropped(&cluster, REPLICA) >= before + 200, "and counted");

        drop((answers, asks));

        // What no read needs is not even taken.
        let (answers, mut asks) = replica().await;
        let _ = asks.send([ReadAsk { call: Bytes::from(vec![0; 20 << 10]), ..ask(1) }.into()]).await;
        assert!(ends::<ReadAnswer>(answers).await, "a question that is too long was taken");

        // Many links that ask, never listen and never end.
        let (mut links, mut refused) = (Vec::new(), 0);
        for _ in 0..100 {
            let (mut answers, mut asks) = replica().await;
            let _ = asks.send((1..50).map(ask).map(Into::into)).await;
            match answers.next::<ReadAnswer>().await {
                Ok(Some(_)) => links.push((answers, asks)),
                _ => refused += 1,
            }
        }
        assert_eq!((links.len(), refused), (READ_LINKS, 100 - READ_LINKS));
        let asked = cluster.admin().args(["volume", "list"]).output().expect("it runs");
        assert!(asked.status.success(), "the others serve its other commands: {asked:?}");
        drop(links);
        cluster.stop_nodes(0..NODES);
    });
}

#[test]
fn a_user_who_abuses_a_storage_node() {
    drive(async {
        let mut cluster = Cluster::start();
        let (view, identity) = (view(&cluster), admin(&cluster));
        let node = &view.nodes[STORAGE];
        let dialler = Dialler::new(&identity, node.address, node.key, Protocol::Blocks).expect("a dialler");

        let before = dropped(&cluster, STORAGE);
        let wrong = Block { id: Bytes::from(vec![0; 33]), size: 23 };
        let short = Block { id: Bytes::from_static(b"short"), size: 0 };
        let asks = [
            None,
            Some(Ask::Has(Has { ids: vec![Bytes::from_static(b"no id")] })),
            Some(Ask::Get(Get { id: Bytes::from(noise(1, 0, 1000)) })),
            Some(Ask::Put(Put { blocks: vec![wrong, short] })),
        ];
        let bodies = |ticket| match ticket {
            3 => vec![Bytes::from_static(b"not what the id says..."), Bytes::new()],
            _ => Vec::new(),
        };
        let frame = |(ticket, ask)| Frame { head: BlockAsk { ticket: ticket as u64, ask }, bodies: bodies(ticket) };
        let (mut answers, mut link) = pipe::split(dialler.connect().await.expect("it listens"));
        link.send(asks.into_iter().enumerate().map(frame)).await.expect("it reads");
        for _ in 0..4 {
            let answer: Frame<BlockAnswer> = answers.next().await.expect("it goes on").expect("an answer to each");
            match answer.head.answer {
                Some(Answer::Refused(_)) => assert!(answer.head.ticket < 3),
                Some(Answer::Kept(kept)) => assert_eq!(kept.outcomes, [i32::from(Outcome::Wrong); 2]),
                other => panic!("an answer to nonsense: {other:?}"),
            }
        }
        assert!(dropped(&cluster, STORAGE) >= before + 5, "and counted: three questions, two blocks");

        // Neither protobuf, nor what its head says.
        let before = dropped(&cluster, STORAGE);
        send_nonsense(&dialler, &[&noise(3, 0, 40), &[0xff; 12], &[], b"\x22\x04\x0a\x02\x10\x09"]).await;
        assert!(dropped(&cluster, STORAGE) >= before + 4, "unreadable frames are counted");

        let (before, peak) = (dropped(&cluster, STORAGE), peak_kib(cluster.node(STORAGE).id()));
        for _ in 0..FLOOD {
            let mut link = dialler.connect().await.expect("it listens");
            let mut bytes = (MESSAGE_MAX as u32 + 1).to_le_bytes().to_vec();
            bytes.resize(MESSAGE_MAX, 7);
            let _ = link.write_all(&bytes).await;
            let end = link.read(&mut [0]).await;
            assert!(!matches!(end, Ok(1..)), "a message that is too long was answered");
        }
        let growth = peak_kib(cluster.node(STORAGE).id()).saturating_sub(peak);
        assert!(growth < GROWTH_KIB_MAX, "messages that are too long cost {growth} KiB");
        cluster.wait_status("messages that are too long are counted", SETTLE, |status| {
            status.node(STORAGE).dropped_messages() >= before + FLOOD as u64
        });
        assert_eq!(cluster.status().storage_sum(|storage| storage.blocks), 0, "nothing of it was kept");
        cluster.stop_nodes(0..NODES);
    });
}
