//! Links to storage nodes that misbehave, over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use base::{BlockId, ClusterId, NodeId, SecretKey};
use dht::{Member, Ring};
use proto::link::{Identity, Known, Link, Protocol, accept};
use proto::wire::block_answer::Answer;
use proto::wire::block_ask::Ask;
use proto::wire::{self, Outcome};
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::backend::{BlockError, BlockStore as _};
use crate::blocks::Blocks;

/// What a node does with what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Has every block, and this one is it.
    Honest,
    /// Sends other bytes than were asked for.
    Lies,
    /// Sends half a frame and hangs up; on its second connection it is honest.
    CutsOff,
    /// Hangs up before it is asked.
    HangsUp,
    /// Answers once and never again.
    FallsSilent,
    /// Answers what nobody asked, and what was asked with something else.
    Babbles,
    /// Claims more than a frame may hold.
    Claims,
}

const BLOCK: &[u8] = b"what a block holds";
const PATIENCE: Duration = Duration::from_secs(5);

fn id() -> BlockId {
    BlockId::blake3(*blake3::hash(BLOCK).as_bytes())
}

fn get() -> (Ask, Vec<Bytes>) {
    (Ask::Get(wire::Get { id: Bytes::copy_from_slice(&id().to_array()) }), Vec::new())
}

/// A node of this manner; where it is, and how many connections it had.
async fn node(seed: u8, manner: Manner) -> (Dialler, Arc<AtomicUsize>) {
    let (user, own) = (SecretKey::from_seed(&[50; 32]), SecretKey::from_seed(&[seed; 32]));
    let (user, own) = (Identity::new(&user).expect("an identity"), Identity::new(&own).expect("an identity"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let known = Known::users([user.public()]);
    let mut incoming = accept(&own, listener, known, &[Protocol::Blocks]).expect("TLS");
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Some(Ok(link)) = incoming.recv().await {
            let before = count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(link, manner, before));
        }
    });
    (Dialler::new(&user, address, own.public(), Protocol::Blocks).expect("a dialler"), connections)
}

async fn serve(mut link: Link, manner: Manner, connections_before: usize) {
    match manner {
        Manner::HangsUp => return,
        Manner::CutsOff if connections_before == 0 => {
            let _ = link.write_all(&[200, 0, 0, 0, 10, 0, 0, 0, 1, 2, 3]).await;
            let _ = link.shutdown().await;
            return;
        }
        Manner::Claims => {
            let _ = link.write_all(&[0xff; 8]).await;
            return std::future::pending().await;
        }
        _ => {}
    }
    let (mut asks, mut answers) = pipe::split(link);
    let mut answered = 0;
    while let Ok(Some(Frame { head: BlockAsk { ticket, ask }, .. })) = asks.next().await {
        if manner == Manner::FallsSilent && answered > 0 {
            continue;
        }
        if manner == Manner::Babbles {
            let unasked = Answer::Got(wire::Got { size: Some(2) });
            let head = BlockAnswer { ticket: ticket + 1000, answer: Some(unasked) };
            let unasked = Frame { head, bodies: vec![Bytes::from_static(b"hi")] };
            let other = match ask {
                Some(Ask::Get(_)) => Some(Answer::Kept(wire::Kept { outcomes: vec![-7; 3] })),
                Some(Ask::Put(_)) => Some(Answer::Kept(wire::Kept { outcomes: vec![1; 99] })),
                Some(Ask::Has(_)) => Some(Answer::Held(wire::Held { held: vec![true; 99] })),
                Some(Ask::Space(_)) => {
                    Some(Answer::Room(wire::Room { capacity: u64::MAX, used: u64::MAX, free: u64::MAX }))
                }
                None => None,
            };
            let other = Frame::from(BlockAnswer { ticket, answer: other });
            if answers.send([unasked, other]).await.is_err() {
                return;
            }
            continue;
        }
        let body = Bytes::from_static(if manner == Manner::Lies { b"some other bytes.." } else { BLOCK });
        let (answer, bodies) = match ask {
            Some(Ask::Put(put)) => {
                let outcomes = vec![i32::from(Outcome::Stored); put.blocks.len()];
                (Answer::Kept(wire::Kept { outcomes }), Vec::new())
            }
            Some(Ask::Has(has)) => (Answer::Held(wire::Held { held: vec![false; has.ids.len()] }), Vec::new()),
            _ => (Answer::Got(wire::Got { size: Some(body.len() as u32) }), vec![body]),
        };
        let frame = Frame { head: BlockAnswer { ticket, answer: Some(answer) }, bodies };
        if answers.send([frame]).await.is_err() {
            return;
        }
        answered += 1;
    }
}

/// Three copies of each block, on nodes of these manners; the first holds [`id`] before all others.
async fn blocks(manners: [Manner; 3]) -> Blocks {
    let (mut links, mut members) = (std::collections::BTreeMap::new(), Vec::new());
    for index in 0..3u8 {
        let key = SecretKey::from_seed(&[index; 32]).public();
        let ring = dht::ring_id(&ClusterId([1; 16]), &key, b"test");
        members.push(Member { node: NodeId(index.into()), ring, domain: format!("host-{index}") });
    }
    let ring = Ring::new(members).expect("a ring");
    for (place, manner) in ring.ranked(&id()).into_iter().zip(manners) {
        links.insert(place, Exchange::start(node(place.0 as u8, manner).await.0));
    }
    Blocks::new(ring, links, 3)
}

#[tokio::test]
async fn answers_to_other_questions_are_no_answers() {
    use Manner::{Babbles, Claims, Honest};
    for bad in [Babbles, Claims] {
        let one_bad = blocks([bad, Honest, Honest]).await;
        assert_eq!(one_bad.get(id()).await.expect("two are honest"), BLOCK, "{bad:?}");
    }
    let all_bad = blocks([Babbles; 3]).await;
    assert!(matches!(all_bad.get(id()).await, Err(BlockError::Unavailable(_))));
    let space = all_bad.space().await.expect("they say something");
    assert_eq!((space.total, space.free), (u64::MAX / 3, u64::MAX / 3), "a sum that does not fit");
    let link = Exchange::<BlockService>::start(node(9, Babbles).await.0);
    let put = Ask::Put(wire::Put { blocks: vec![wire::Block { id: Bytes::new(), size: 18 }] });
    let answer = link.ask((put, vec![Bytes::from_static(BLOCK)]), PATIENCE).await.expect("of the right kind");
    assert!(matches!(answer, (Answer::Kept(kept), _) if kept.outcomes.len() == 99), "whoever asked counts them");
}

#[tokio::test]
async fn more_blocks_than_a_question_may_have_are_put_in_several() {
    let blocks = blocks([Manner::Honest; 3]).await;
    let block = |number: usize| {
        let body = Bytes::from(number.to_le_bytes().to_vec());
        (BlockId::blake3(*blake3::hash(&body).as_bytes()), body)
    };
    let many = (0..pipe::ENTRIES_MAX + 10).map(block).collect();
    let put = tokio::time::timeout(4 * PATIENCE, blocks.put(many)).await;
    put.expect("no question was refused").expect("stored");
}

#[tokio::test]
async fn bytes_that_are_not_the_block_are_counted_as_a_lie_and_another_is_asked() {
    let blocks = blocks([Manner::Lies, Manner::Honest, Manner::Honest]).await;
    assert_eq!(blocks.get(id()).await.expect("two are honest"), BLOCK);
    assert_eq!(blocks.lies(), 1);
}

#[tokio::test]
async fn whoever_waits_is_told_at_once_of_a_link_that_breaks_in_the_middle_of_an_answer() {
    let (dialler, _) = node(1, Manner::CutsOff).await;
    let link = Exchange::<BlockService>::start(dialler);
    let began = Instant::now();
    assert!(link.ask(get(), PATIENCE).await.is_err());
    assert!(began.elapsed() < PATIENCE, "it was waited for");
    let mut answer = link.ask(get(), PATIENCE).await;
    while answer.is_err() && began.elapsed() < 2 * PATIENCE {
        answer = link.ask(get(), PATIENCE).await;
    }
    assert_eq!(answer.expect("it is there again").1, [BLOCK]);
}

#[tokio::test]
async fn a_node_that_hangs_up_is_let_be_for_a_while() {
    let (dialler, connections) = node(1, Manner::HangsUp).await;
    let link = Exchange::<BlockService>::start(dialler);
    let (began, mut asked) = (Instant::now(), 0);
    while began.elapsed() < 2 * REST {
        assert!(link.ask(get(), PATIENCE).await.is_err());
        asked += 1;
    }
    let connections = connections.load(Ordering::SeqCst);
    assert!(connections <= 4 && asked > connections, "{connections} connections for {asked} questions");
}

#[tokio::test]
async fn a_link_that_owes_an_answer_for_too_long_is_given_up() {
    let (dialler, connections) = node(1, Manner::FallsSilent).await;
    let link = Exchange::<BlockService>::start_with(dialler, Duration::from_millis(400));
    assert_eq!(link.ask(get(), PATIENCE).await.expect("it answers once").1, [BLOCK]);
    let began = Instant::now();
    assert!(link.ask(get(), PATIENCE).await.is_err());
    assert!(began.elapsed() < PATIENCE, "only patience ended it");
    assert_eq!(link.ask(get(), PATIENCE).await.expect("a new link").1, [BLOCK]);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    // Silence alone is no debt.
    let (dialler, connections) = node(2, Manner::Honest).await;
    let link = Exchange::<BlockService>::start_with(dialler, Duration::from_millis(100));
    for _ in 0..3 {
        assert_eq!(link.ask(get(), PATIENCE).await.expect("it answers").1, [BLOCK]);
        drop(link.ask(get(), Duration::ZERO).await);
        tokio::time::timeout(Duration::from_millis(300), std::future::pending::<()>()).await.unwrap_err();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}
