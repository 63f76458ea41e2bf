//! Every decoder: what is encoded comes back, and no bytes of a stranger make it panic.

mod common;

use base::merkle::Prefix;
use base::{Decode, Digest, Encode, ReplicaId, Seq, Signature, Signed, Time, View};
use bft::{
    BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Batch, Body, CachedResult, Certificate, Checkpoint, ClientRequest, Commit,
    Committed, Content, Divergence, Head, MESSAGE_MAX, Mark, Message, NewView, Part, PartName, Place, PrePrepare,
    Prepare, Prepared, Proposal, REQUEST_OP_MAX, RESULT_MAX, Record, RefusedWhy, Rejoin, Reply, ReplyResult, Request,
    SlotState, Snapshot, StableProof, Status, Tree, ViewChange, WINDOW_MAX, Want, Welcome,
};
use bytes::Bytes;
use common::client_secret;
use proptest::collection::vec;
use proptest::prelude::*;

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn signed<M: Clone + core::fmt::Debug>(body: impl Strategy<Value = M>) -> impl Strategy<Value = Signed<M>> {
    let signature = vec(any::<u8>(), 64).prop_map(|bytes| Signature(bytes.try_into().expect("64 bytes")));
    (body, signature).prop_map(|(body, signature)| Signed { body, signature })
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn request() -> impl Strategy<Value = Signed<Request>> {
    let body = (0..4usize, any::<u64>(), any::<u64>(), bytes(40)).prop_map(|(client, session, timestamp, op)| {
        Request { client: client_secret(client).public(), session, timestamp, op }
    });
    signed(body)
}

fn batch() -> impl Strategy<Value = Batch> {
    vec(request(), 0..4).prop_map(Batch::new)
}

fn place() -> impl Strategy<Value = (View, Seq)> {
    (any::<u64>(), any::<u64>()).prop_map(|(view, seq)| (View(view), Seq(seq)))
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let header = (place(), any::<u64>(), digest());
    let header = header.prop_map(|((view, seq), at, batch)| PrePrepare { view, seq, at: Time(at), batch });
    (signed(header), batch()).prop_map(|(header, batch)| Proposal { header, batch })
}

fn prepare() -> impl Strategy<Value = Signed<Prepare>> {
    let body = (place(), digest(), any::<u16>());
    signed(body.prop_map(|((view, seq), digest, i)| Prepare { view, seq, digest, replica: ReplicaId(i) }))
}

fn checkpoint() -> impl Strategy<Value = Signed<Checkpoint>> {
    let body = (any::<u64>(), digest(), any::<u16>());
    signed(body.prop_map(|(seq, digest, i)| Checkpoint { seq: Seq(seq), digest, replica: ReplicaId(i) }))
}

fn mark() -> impl Strategy<Value = Signed<Mark>> {
    checkpoint().prop_map(|Signed { body: Checkpoint { seq, digest, replica }, signature }| Signed {
        body: Mark { seq, digest, replica },
        signature,
    })
}

fn committed() -> impl Strategy<Value = Committed> {
    (place(), any::<u64>(), batch()).prop_map(|((view, seq), at, batch)| Committed { seq, view, at: Time(at), batch })
}

fn state() -> impl Strategy<Value = SlotState> {
    prop_oneof![
        Just(SlotState::Empty),
        Just(SlotState::Proposed),
        Just(SlotState::Prepared),
        Just(SlotState::Committed)
    ]
}

fn status() -> impl Strategy<Value = Status> {
    let seqs = (any::<u64>(), any::<u64>(), any::<u64>());
    let head = (any::<u64>(), any::<u64>(), any::<bool>());
    (head, seqs, vec(state(), 0..9)).prop_map(|((round, view, active), (a, b, c), slots)| Status {
        round,
        view: View(view),
        active,
        rejoins: active.then_some(Seq(c)),
        last_executed: Seq(a),
        low_water_mark: Seq(b),
        oldest_retained: Seq(c),
        slots,
    })
}

fn stable() -> impl Strategy<Value = Option<StableProof>> {
    let proof = (any::<u64>(), digest(), vec(checkpoint(), 0..3));
    proptest::option::of(proof.prop_map(|(seq, digest, checkpoints)| StableProof {
        seq: Seq(seq),
        digest,
        checkpoints,
    }))
}

fn header() -> impl Strategy<Value = Signed<PrePrepare>> {
    proposal().prop_map(|proposal| proposal.header)
}

fn prepared() -> impl Strategy<Value = Prepared> {
    (header(), vec(prepare(), 0..3)).prop_map(|(header, prepares)| Prepared { header, prepares })
}

fn view_change() -> impl Strategy<Value = Signed<ViewChange>> {
    let body = (any::<u64>(), stable(), vec(prepared(), 0..3), any::<u16>(), any::<u64>());
    signed(body.prop_map(|(view, stable, prepared, i, life)| ViewChange {
        view: View(view),
        stable,
        prepared,
        replica: ReplicaId(i),
        life,
    }))
}

fn new_view() -> impl Strategy<Value = Signed<NewView>> {
    let change = (any::<u16>(), digest()).prop_map(|(i, digest)| (ReplicaId(i), digest));
    let body = (any::<u64>(), vec(change, 0..3), vec(header(), 0..3));
    signed(body.prop_map(|(view, view_changes, proposals)| NewView { view: View(view), view_changes, proposals }))
}

fn want() -> impl Strategy<Value = Want> {
    prop_oneof![
        (any::<u64>(), vec(any::<u16>().prop_map(ReplicaId), 0..4))
            .prop_map(|(view, of)| Want::ViewChanges { view: View(view), of }),
        vec((any::<u64>().prop_map(Seq), digest()), 0..4).prop_map(|places| Want::Batches { places }),
        any::<u64>().prop_map(|seq| Want::Head { seq: Seq(seq) }),
        (any::<u64>(), part_name()).prop_map(|(seq, name)| Want::Part { seq: Seq(seq), name }),
    ]
}

fn part_name() -> impl Strategy<Value = PartName> {
    let at =
        vec(0..16usize, 0..5).prop_map(|path| path.into_iter().fold(Prefix::default(), |at, digit| at.child(digit)));
    (any::<bool>(), at).prop_map(|(state, at)| PartName { tree: if state { Tree::State } else { Tree::Table }, at })
}

fn part() -> impl Strategy<Value = Part> {
    let children = vec(proptest::option::of(digest()), 16);
    let fork = children.prop_map(|children| Content::Fork(Box::new(children.try_into().expect("16 of them"))));
    let rows = vec((bytes(30), bytes(30)), 0..4).prop_map(Content::Rows);
    let content = prop_oneof![fork, rows];
    (any::<u64>(), part_name(), content).prop_map(|(seq, name, content)| Part { seq: Seq(seq), name, content })
}

fn head() -> impl Strategy<Value = Head> {
    let fields = (any::<u64>(), any::<u64>(), digest(), digest());
    fields.prop_map(|(seq, at, state, table)| Head { seq: Seq(seq), at: Time(at), state, table })
}

fn body() -> impl Strategy<Value = Body> {
    (any::<u64>(), batch()).prop_map(|(seq, batch)| Body { seq: Seq(seq), batch })
}

fn rejoin() -> impl Strategy<Value = Signed<Rejoin>> {
    signed((any::<u64>(), any::<u16>()).prop_map(|(life, i)| Rejoin { life, replica: ReplicaId(i) }))
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        proposal().prop_map(Message::Proposal),
        prepare().prop_map(Message::Prepare),
        (place(), digest()).prop_map(|((view, seq), digest)| Message::Commit(Commit { view, seq, digest })),
        checkpoint().prop_map(Message::Checkpoint),
        status().prop_map(Message::Status),
        committed().prop_map(Message::Committed),
        request().prop_map(Message::Forward),
        view_change().prop_map(Message::ViewChange),
        new_view().prop_map(Message::NewView),
        want().prop_map(Message::Ask),
        body().prop_map(Message::Body),
        stable().prop_filter_map("a proof", |proof| proof.map(Message::Stable)),
        head().prop_map(Message::Head),
        part().prop_map(Message::Part),
        any::<u64>().prop_map(|seq| Message::Gone(Seq(seq))),
        rejoin().prop_map(Message::Rejoin),
        (any::<u64>(), stable(), vec(rejoin(), 0..3)).prop_map(|(life, stable, lives)| Message::Welcome(Welcome {
            life,
            stable,
            lives
        })),
        mark().prop_map(Message::Mark),
    ]
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let result = proptest::option::of(bytes(40).prop_map(CachedResult));
    prop_oneof![
        (place(), any::<u64>()).prop_map(|((view, seq), at)| Snapshot::Begin { view, seq, at: Time(at) }),
        (any::<bool>(), bytes(40)).prop_map(|(ends, bytes)| Snapshot::State { ends, bytes }),
        any::<u64>().prop_map(|floor| Snapshot::Principal { client: client_secret(0).public(), floor }),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(session, floor, seq)| Snapshot::Session {
            session,
            floor,
            last_seq: Seq(seq)
        }),
        (any::<u64>(), any::<u64>(), digest(), result).prop_map(|(timestamp, seq, digest, result)| {
            Snapshot::Executed { timestamp, seq: Seq(seq), digest, result }
        }),
        digest().prop_map(|digest| Snapshot::End { digest }),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    let certificate = (place(), vec(prepare(), 0..4));
    let proof = (any::<u64>(), digest(), vec(checkpoint(), 0..4));
    prop_oneof![
        snapshot().prop_map(Record::Snapshot),
        proposal().prop_map(Record::Proposed),
        certificate.prop_map(|((view, seq), prepares)| Record::Prepared(Certificate { view, seq, prepares })),
        (place(), digest()).prop_map(|((view, seq), digest)| Record::Committed(Place { view, seq, digest })),
        committed().prop_map(Record::Learned),
        checkpoint().prop_map(Record::Checkpoint),
        proof.prop_map(|(seq, digest, checkpoints)| {
            Record::Stable(StableProof { seq: Seq(seq), digest, checkpoints })
        }),
        (any::<u64>(), digest(), digest()).prop_map(|(seq, mine, theirs)| Record::Diverged(Divergence {
            seq: Seq(seq),
            mine,
            theirs
        })),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let why = prop_oneof![
        any::<u64>().prop_map(|floor| RefusedWhy::Stale { floor }),
        Just(RefusedWhy::UnknownPrincipal),
        Just(RefusedWhy::Overloaded),
        Just(RefusedWhy::ResultLost),
    ];
    let result = prop_oneof![
        bytes(400).prop_map(ReplyResult::Full),
        digest().prop_map(ReplyResult::DigestOnly),
        why.prop_map(ReplyResult::Refused),
    ];
    (place(), any::<u64>(), any::<u64>(), result).prop_map(|((view, seq), timestamp, session, result)| Reply {
        view,
        timestamp,
        session,
        seq,
        result,
    })
}

/// What decodes at all is canonical: it encodes to the very bytes.
fn decodes_canonically<T: Encode + Decode>(bytes: &[u8]) -> bool {
    T::from_bytes(bytes).is_ok_and(|value| value.to_bytes() == bytes)
}

/// Damages an encoding: flips a byte, cuts it, or lengthens it.
fn damage(bytes: &mut Vec<u8>, at: usize, with: u8, how: u8) {
    let at = at % (bytes.len() + 1);
    match (how % 4, bytes.get_mut(at)) {
        (0, Some(byte)) => *byte ^= with,
        (1, _) => bytes.truncate(at),
        (2, _) => bytes.insert(at, with),
        (_, _) => bytes.push(with),
    }
}

macro_rules! decoder {
    ($test:ident, $type:ty, $strategy:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(192))]
            #[test]
            fn $test(value in $strategy, at: usize, with in 1u8.., how: u8, noise in vec(any::<u8>(), 0..64)) {
                let mut bytes = value.to_bytes();
                prop_assert_eq!(&<$type>::from_bytes(&bytes), &Ok(value));
                damage(&mut bytes, at, with, how);
                for bytes in [bytes, noise] {
                    prop_assert!(<$type>::from_bytes(&bytes).is_err() || decodes_canonically::<$type>(&bytes));
                }
            }
        }
    };
}

decoder!(messages, Message, message());
decoder!(records, Record, record());
decoder!(replies, Reply, reply());
decoder!(requests, ClientRequest, request().prop_map(ClientRequest));

fn long_request(op_len: usize) -> Signed<Request> {
    let client = client_secret(0).public();
    let body = Request { client, session: 1, timestamp: 1, op: vec![0; op_len].into() };
    Signed { body, signature: Signature([0; 64]) }
}

#[test]
fn bounds_are_checked_when_decoding() {
    let op = |len| ClientRequest(long_request(len)).to_bytes();
    assert!(ClientRequest::from_bytes(&op(REQUEST_OP_MAX)).is_ok());
    assert!(ClientRequest::from_bytes(&op(REQUEST_OP_MAX + 1)).is_err());

    let count = |count| vec![long_request(0); count].to_bytes();
    assert!(Batch::from_bytes(&count(BATCH_REQUESTS_MAX)).is_ok());
    assert!(Batch::from_bytes(&count(BATCH_REQUESTS_MAX + 1)).is_err());
    let long = vec![long_request(REQUEST_OP_MAX - 200); 5].to_bytes();
    assert!(long.len() > BATCH_BYTES_MAX && Batch::from_bytes(&long).is_err());

    let result = |len| {
        let result = ReplyResult::Full(vec![0; len].into());
        Reply { view: View(0), timestamp: 1, session: 1, seq: Seq(1), result }.to_bytes()
    };
    assert!(Reply::from_bytes(&result(RESULT_MAX)).is_ok());
    assert!(result(RESULT_MAX).len() <= MESSAGE_MAX);
    assert!(Reply::from_bytes(&result(RESULT_MAX + 1)).is_err());

    let slots = |count| Status {
        round: 0,
        view: View(0),
        active: true,
        rejoins: None,
        last_executed: Seq(0),
        low_water_mark: Seq(0),
        oldest_retained: Seq(1),
        slots: vec![SlotState::Empty; count],
    };
    assert!(Status::from_bytes(&slots(WINDOW_MAX as usize).to_bytes()).is_ok());
    assert!(Status::from_bytes(&slots(WINDOW_MAX as usize + 1).to_bytes()).is_err());

    let signature = Signature([0; 64]);
    let (zero, me) = (Digest([0; 32]), ReplicaId(0));
    let header = PrePrepare { view: View(0), seq: Seq(1), at: Time(1), batch: zero };
    let header = Signed { body: header, signature };
    let prepare = Signed { body: Prepare { view: View(0), seq: Seq(1), digest: zero, replica: me }, signature };
    let change = |count, prepares| {
        let prepared = Prepared { header: header.clone(), prepares: vec![prepare.clone(); prepares] };
        ViewChange { view: View(1), stable: None, prepared: vec![prepared; count], replica: me, life: 0 }.to_bytes()
    };
    assert!(ViewChange::from_bytes(&change(WINDOW_MAX as usize, 2)).is_ok());
    assert!(ViewChange::from_bytes(&change(WINDOW_MAX as usize + 1, 2)).is_err());
    assert!(ViewChange::from_bytes(&change(WINDOW_MAX as usize, 10)).is_err(), "longer than a message");
    let new_view = |count| {
        let (view_changes, proposals) = (vec![(me, zero); 3], vec![header.clone(); count]);
        NewView { view: View(1), view_changes, proposals }.to_bytes()
    };
    assert!(NewView::from_bytes(&new_view(WINDOW_MAX as usize)).is_ok());
    assert!(NewView::from_bytes(&new_view(WINDOW_MAX as usize + 1)).is_err());
}

#[test]
fn a_batch_has_the_digest_of_its_encoding() {
    let batch = Batch::new(vec![long_request(5), long_request(6)]);
    assert_eq!(batch.digest(), Digest::of(&batch.to_bytes()));
    let again = Batch::from_bytes(&batch.to_bytes()).unwrap();
    assert_eq!((again.digest(), again.bytes()), (batch.digest(), batch.bytes()));
    assert_eq!(batch.bytes(), batch.to_bytes().len());
}
