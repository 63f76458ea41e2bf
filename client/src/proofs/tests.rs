//! What liars show, and what becomes of it.

use base::{ClusterId, ReplicaId, SecretKey, Signed, StateMachine as _};
use bft::{Head, Mark, ReadProof};
use meta::{
    Batch, Caller, Chunking, Denied, Genesis, Grant, Ino, Kind, NewInode, Op, Redundancy, Reply, SealedName, State,
    Uids, VolumeSpec,
};
use proto::link::{Dialler, Identity, Known, Link, Protocol, accept};
use proto::pipe::{self, Frame};
use proto::wire::{ReadAnswer, Unanswered};

use super::*;

const CLUSTER: ClusterId = ClusterId([3; 16]);
const NOW: Time = Time(1_700_000_000_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn replica(index: u16) -> SecretKey {
    SecretKey::from_seed(&[index as u8 + 1; 32])
}

fn user() -> PublicKey {
    SecretKey::from_seed(&[50; 32]).public()
}

fn context() -> bft::Context {
    let keys: Vec<_> = (0..4).map(|index| replica(index).public()).collect();
    bft::Context { cluster: CLUSTER, replicas: keys.into() }
}

fn call(op: Op) -> Call {
    Call { caller: Caller::default(), op }
}

fn name(text: &str) -> SealedName {
    SealedName::new(text.repeat(20).into_bytes()).expect("of a name's length")
}

fn create(text: &str) -> Call {
    let new = NewInode { kind: Kind::File, mode: 0o644, umask: 0, rdev: 0, target: Bytes::new() };
    call(Op::Create { parent: Ino(1), name: name(text), new, exclusive: true })
}

/// A state with a file that is called `f`.
fn state() -> State {
    let grant = Grant { uids: Uids::Any, admin: true };
    let mut state = State::genesis(Genesis { cluster: CLUSTER, principals: vec![(user(), grant)] });
    let spec = VolumeSpec {
        name: "main".into(),
        quota_bytes: 0,
        quota_inodes: 0,
        redundancy: Redundancy::Replicate(1),
        chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
        secrets: [].into(),
        root_mode: 0o777,
        trash: 0,
    };
    state.apply_batch(NOW, &user(), &Batch::new(vec![call(Op::VolumeCreate(spec)), create("f")]));
    state
}

/// A proof of what `asked` reads, as replicas would make it that have signed this state.
fn proof(state: &mut State, seq: u64, at: Time, asked: &Call, signers: u16) -> ReadProof {
    let names = state.rows_of(at, &user(), asked).expect("it may be read");
    let tree = state.tree().expect("it has one").clone();
    let part = tree.part(names.iter().map(Vec::as_slice), |name| state.row(name));
    let head = Head { seq: Seq(seq), at, state: tree.root(), table: Digest([9; 32]) };
    let sign = |index: u16| {
        let mark = Mark { seq: Seq(seq), digest: head.digest(), replica: ReplicaId(index) };
        (ReplicaId(index), Signed::new(mark, &replica(index), &CLUSTER).signature)
    };
    ReadProof { head, signers: (0..signers).map(sign).collect(), part }
}

fn question(call: &Call) -> Question<'_> {
    static USER: std::sync::OnceLock<PublicKey> = std::sync::OnceLock::new();
    Question { who: USER.get_or_init(user), call, seq_min: Seq(10), at_min: NOW, now: NOW.after(SECOND) }
}

fn judge(call: &Call, proof: &ReadProof) -> Result<Answer, Disbelief> {
    question(call).judge(&context(), &proof.to_bytes(), &Cofactored).map(|(answer, ..)| answer)
}

fn lookup(text: &str) -> Call {
    call(Op::Lookup { parent: Ino(1), name: name(text) })
}

#[test]
fn what_holds_is_believed() {
    let mut state = state();
    let there = judge(&lookup("f"), &proof(&mut state, 10, NOW, &lookup("f"), 3));
    assert!(matches!(there, Ok(Answer::Done(Reply::Attr(attr))) if attr.ino == Ino(2)), "{there:?}");
    let gone = judge(&lookup("g"), &proof(&mut state, 10, NOW, &lookup("g"), 4));
    assert_eq!(gone, Ok(Answer::Denied(Denied::NotFound)));
}

#[test]
fn lies_are_not() {
    let mut state = state();
    let asked = lookup("f");
    let good = proof(&mut state, 10, NOW, &asked, 3);
    assert!(judge(&asked, &good).is_ok());
    // A name that is there is not proven absent by that of another, whatever the signatures.
    let other = proof(&mut state, 10, NOW, &lookup("g"), 3);
    assert_eq!(judge(&asked, &other), Err(Disbelief::Unproven(meta::Unproven::NotShown)));
    // Another value: a state that nobody signed, under the signatures on this one.
    let mut forged = state.clone();
    forged.apply_batch(NOW, &user(), &Batch::new(vec![create("g")]));
    let part = proof(&mut forged, 10, NOW, &asked, 3).part;
    let mixed = ReadProof { part, ..good.clone() };
    assert!(matches!(judge(&asked, &mixed), Err(Disbelief::Forged(_))));
    let few = proof(&mut forged, 10, NOW, &asked, 2);
    assert!(matches!(judge(&asked, &few), Err(Disbelief::Forged(_))), "f + 1 of them may sign what they like");
    let mut spoilt = good.clone();
    spoilt.signers[2].1.0[5] ^= 1;
    assert!(matches!(judge(&asked, &spoilt), Err(Disbelief::Forged(_))));
    let bytes = good.to_bytes();
    let refuted = |bytes: &[u8]| question(&asked).judge(&context(), bytes, &Cofactored);
    assert!(matches!(refuted(&bytes[..bytes.len() - 1]), Err(Disbelief::Malformed(_))));
    assert_eq!(refuted(&vec![0; bft::READ_PROOF_MAX + 1]), Err(Disbelief::TooLong));
}

#[test]
fn a_state_that_is_too_old_is_refused() {
    let mut state = state();
    let asked = lookup("f");
    let mut at = |seq: u64, at: Time| judge(&asked, &proof(&mut state, seq, at, &asked, 3));
    assert!(at(10, NOW).is_ok());
    assert_eq!(at(9, NOW), Err(Disbelief::Older), "before what the session has seen");
    assert_eq!(at(11, Time(NOW.0 - 1)), Err(Disbelief::Older), "of before the bound");
    assert!(at(11, NOW.after(AHEAD_MAX)).is_ok());
    assert_eq!(at(11, NOW.after(AHEAD_MAX + 2 * SECOND)), Err(Disbelief::Ahead));
}

#[test]
fn verdicts_are_remembered_and_only_good_ones() {
    let verdicts = Verdicts::default();
    let claim = |body: u64| {
        let mark = Mark { seq: Seq(body), digest: Digest([0; 32]), replica: ReplicaId(0) };
        Signed::new(mark, &replica(0), &CLUSTER).claim(&replica(0).public(), &CLUSTER)
    };
    for body in 0..2 * VERDICTS_MAX as u64 {
        assert!(verdicts.verify_all(&[&claim(body), &claim(body + 1)]));
    }
    assert!(verdicts.0.lock().len() <= VERDICTS_MAX);
    let mut bad = claim(2 * VERDICTS_MAX as u64);
    bad.signature.0[3] ^= 1;
    assert!(!verdicts.verify_all(&[&bad]) && !verdicts.verify_all(&[&bad]));
}

/// What a replica of the tests does with a read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Honest,
    /// Shows another state than the one that was signed.
    Lies,
    Silent,
    /// Shows what was signed long ago.
    Stale,
    /// Says that it has nothing new, and won't for an hour.
    Old,
}

/// Answers what is asked on a link.
async fn act(manner: Manner, link: Link) {
    let (mut asks, mut answers) = pipe::split(link);
    while let Ok(Some(Frame { head: ask, .. })) = asks.next::<ReadAsk>().await {
        let asked = <Call as base::Decode>::from_bytes(&ask.call).expect("a client asks what is a call");
        let mut state = state();
        let mut good = proof(&mut state, 10, NOW, &asked, 3);
        let answer = match manner {
            Manner::Silent => continue,
            Manner::Old => Wire::None(Unanswered { why: NoProof::Old.into(), again_at: NOW.after(3600 * SECOND).0 }),
            Manner::Honest => Wire::Proof(good.to_bytes().into()),
            Manner::Stale => Wire::Proof(proof(&mut state, 9, NOW, &asked, 3).to_bytes().into()),
            Manner::Lies => {
                state.apply_batch(NOW, &user(), &Batch::new(vec![create("h")]));
                good.part = proof(&mut state, 10, NOW, &asked, 3).part;
                Wire::Proof(good.to_bytes().into())
            }
        };
        let answer = ReadAnswer { ticket: ask.ticket, answer: Some(answer) };
        answers.send([answer.into()]).await.expect("it reads");
    }
}

/// A session among replicas of these manners; replica 0 is asked first.
async fn proofs(manners: [Manner; 4]) -> Arc<Proofs> {
    let client = SecretKey::from_seed(&[50; 32]);
    let identity = Identity::new(&client).expect("an identity");
    let mut links = Vec::new();
    for (index, manner) in manners.into_iter().enumerate() {
        let own = Identity::new(&replica(index as u16)).expect("an identity");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let known = Known::users([client.public()]);
        let mut incoming = accept(&own, listener, known, &[Protocol::Reads]).expect("TLS");
        tokio::spawn(async move {
            while let Some(Ok(link)) = incoming.recv().await {
                tokio::spawn(act(manner, link));
            }
        });
        let dialler = Dialler::new(&identity, address, own.public(), Protocol::Reads).expect("a dialler");
        links.push(Exchange::start(dialler));
    }
    let proofs = Proofs::new(context(), client.public(), links, 0);
    proofs.note_seen(Seq(10));
    proofs
}

async fn attempt(proofs: &Proofs) -> Attempt {
    proofs.attempt(&lookup("f"), SECOND, NOW.after(SECOND)).await
}

#[tokio::test]
async fn whoever_lies_or_is_silent_is_passed_over_and_asked_last() {
    use Manner::{Honest, Lies, Silent, Stale};
    for bad in [Lies, Silent, Stale] {
        let proofs = proofs([bad, Honest, Honest, Honest]).await;
        assert!(matches!(attempt(&proofs).await, Attempt::Proven(_)), "{bad:?}");
        let counts = proofs.counts();
        assert_eq!((counts.proven, counts.refuted + counts.silent), (1, 1), "{bad:?}");
        assert!(matches!(attempt(&proofs).await, Attempt::Proven(_)));
        assert_eq!(proofs.counts().refuted + proofs.counts().silent, 1, "{bad:?} is not asked again");
    }
}

#[tokio::test]
async fn liars_delay_a_read_by_no_more_than_their_turns() {
    use Manner::{Lies, Silent};
    for bad in [[Lies; 4], [Silent; 4]] {
        let proofs = proofs(bad).await;
        let began = Instant::now();
        assert!(matches!(attempt(&proofs).await, Attempt::Old), "{bad:?}");
        let passed = began.elapsed();
        assert!(passed < DELAY_MAX + PATIENCE + 2 * SECOND, "{passed:?}");
        assert!(proofs.counts().refuted + proofs.counts().silent >= 1);
    }
}

#[tokio::test]
async fn who_says_it_has_nothing_new_is_believed_for_a_moment_only() {
    use Manner::{Honest, Old};
    let proofs = proofs([Old, Honest, Honest, Honest]).await;
    assert!(matches!(attempt(&proofs).await, Attempt::Old));
    assert!(matches!(attempt(&proofs).await, Attempt::Vain), "it is let be");
    let later = NOW.after(SECOND + LET_BE_MAX);
    let asked = proofs.attempt(&lookup("f"), SECOND + LET_BE_MAX, later).await;
    assert!(matches!(asked, Attempt::Proven(_)), "another is asked then: {asked:?}");
}
