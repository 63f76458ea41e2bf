//! Replicas that misbehave on a session's links, over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use base::{ClusterId, NodeId, Seq, View};
use meta::Caller;
use proto::link::{Known, Link, accept};
use proto::pipe::Frame;
use proto::view::{Node, Role};
use tokio::io::AsyncWriteExt as _;

use super::*;

/// What a replica does with requests.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Honest,
    /// Answers something else.
    Lies,
    /// Takes no session, and gives a long reason.
    Refuses,
    /// Hangs up before it hears anything.
    HangsUp,
    /// Reads nothing and says nothing.
    StandsStill,
    /// Sends replies that are none.
    Babbles,
    /// Sends more replies in a frame than there may be.
    Overfills,
    /// Claims more than a frame may hold.
    Claims,
    /// Says again and again that others want something.
    Nags,
}

const CLUSTER: ClusterId = ClusterId([4; 16]);
const SOON: Duration = Duration::from_secs(20);

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn reply(request: &bft::Request, why: Denied) -> Bytes {
    let result = bft::ReplyResult::Full(vec![Answer::Denied(why)].to_bytes().into());
    let (timestamp, session) = (request.timestamp, request.session);
    bft::Reply { view: View(0), timestamp, session, seq: Seq(1), result }.to_bytes().into()
}

async fn serve(mut link: Link, manner: Manner) {
    match manner {
        Manner::HangsUp => return,
        Manner::StandsStill => return std::future::pending().await,
        Manner::Claims => {
            let _ = link.write_all(&[0xff; 8]).await;
            return std::future::pending().await;
        }
        _ => {}
    }
    let (mut ups, mut downs) = pipe::split(link);
    while let Ok(Some(Frame { head: SessionUp { hello, requests }, .. })) = ups.next().await {
        let down = match manner {
            Manner::Refuses => SessionDown { refused: "no\x1b[2J".repeat(100_000), ..SessionDown::default() },
            Manner::Babbles => SessionDown { replies: vec![Bytes::from(vec![9; 300]); 50], ..SessionDown::default() },
            Manner::Overfills => SessionDown { replies: vec![Bytes::new(); 100_000], ..SessionDown::default() },
            _ => {
                assert_eq!(hello.is_some(), requests.is_empty(), "a hello, and then requests");
                let why = if manner == Manner::Lies { Denied::Stale } else { Denied::NotFound };
                let request = |bytes: &Bytes| bft::ClientRequest::from_bytes(bytes).expect("a request").0.body;
                let replies = requests.iter().map(|bytes| reply(&request(bytes), why)).collect();
                SessionDown { replies, recalled: manner == Manner::Nags, ..SessionDown::default() }
            }
        };
        let times = if manner == Manner::Nags { 2000 } else { 1 };
        if downs.send(vec![down; times].into_iter().map(Into::into)).await.is_err() || manner == Manner::Refuses {
            return;
        }
    }
}

/// A session with four replicas, the first of which is of this manner; and how many links they have open.
async fn session(first: Manner) -> (Session, Arc<AtomicUsize>) {
    let (user, open) = (key(50), Arc::new(AtomicUsize::new(0)));
    let mut nodes = Vec::new();
    for index in 0..4u8 {
        let own = Identity::new(&key(index)).expect("an identity");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut incoming = accept(&own, listener, Known::users([user.public()]), &[Protocol::Session]).expect("TLS");
        let (manner, open) = (if index == 0 { first } else { Manner::Honest }, open.clone());
        tokio::spawn(async move {
            while let Some(Ok(link)) = incoming.recv().await {
                let open = open.clone();
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    serve(link, manner).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        let (id, key) = (NodeId(index.into()), own.public());
        nodes.push(Node { id, key, address, role: Role::Replica, domain: format!("host-{index}") });
    }
    let view = ClusterView { cluster: CLUSTER, nodes, principals: Vec::new() };
    let identity = Identity::new(&user).expect("an identity");
    (Session::open(&view, &identity, &user, 7, "test").expect("opened"), open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_that_misbehaves_keeps_nobody_from_the_answer_of_the_others() {
    use Manner::{Babbles, Claims, HangsUp, Honest, Lies, Nags, Overfills, Refuses, StandsStill};
    let first = [Honest, Lies, Refuses, HangsUp, StandsStill, Babbles, Overfills, Claims, Nags];
    let asked = first.map(|first| async move {
        let (session, _) = session(first).await;
        for _ in 0..3 {
            let call = Call { caller: Caller::default(), op: Op::VolumeList };
            let answer = tokio::time::timeout(SOON, session.call(call)).await;
            let answer = answer.unwrap_or_else(|_| panic!("{first:?} keeps it waiting"));
            assert_eq!(answer.expect("there are enough others"), Err(Denied::NotFound), "{first:?}");
        }
    });
    futures::future::join_all(asked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_links_of_a_session_end_with_it() {
    let (session, open) = session(Manner::Honest).await;
    let call = Call { caller: Caller::default(), op: Op::VolumeList };
    assert_eq!(session.call(call).await.expect("they answer"), Err(Denied::NotFound));
    let began = Instant::now();
    while open.load(Ordering::SeqCst) < 4 {
        assert!(began.elapsed() < SOON, "not all are connected");
        tokio::task::yield_now().await;
    }
    drop(session);
    while open.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < SOON, "links of nobody stay open");
        tokio::task::yield_now().await;
    }
}
