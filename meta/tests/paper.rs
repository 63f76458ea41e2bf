//! What the papers promise of a replicated directory service, each claim beside its test.

mod common;

use base::StateMachine as _;
use common::*;
use meta::*;

fn file(parent: Ino, text: String) -> Op {
    Op::Create { parent, name: name(&text), new: new(Kind::File, 0o600), exclusive: true }
}

fn call(uid: u32, op: Op) -> Call {
    Call { caller: user(uid), op }
}

/// A history with something of everything, refusals too.
fn history(root: Ino) -> Vec<(u64, u8, Batch)> {
    let directory = Op::Create { parent: root, name: name("d"), new: new(Kind::Directory, 0o755), exclusive: true };
    let unlink = |text, keep| Op::Unlink { parent: root, name: name(text), keep };
    let rename = Op::Rename {
        from: root,
        from_name: name("f1"),
        to: root,
        to_name: name("f2"),
        how: RenameHow::Exchange,
        keep: false,
    };
    let commit = Commit {
        ino: Ino(2),
        base: None,
        content: content(9, 9),
        form: Form::Whole,
        mtime: None,
        atime: None,
        opened: false,
    };
    vec![
        (1, 1, Batch::new((0..20).map(|index| call(1000, file(root, format!("f{index}")))).collect())),
        (2, 2, Batch::new(vec![call(1000, directory.clone()), call(0, directory), call(1000, rename)])),
        (3, 1, Batch::new(vec![call(1000, Op::Commit(commit)), call(1000, unlink("f3", true))])),
        (2, 9, Batch::new(vec![call(1000, unlink("f4", false))])),
        (9000, 1, Batch::new(vec![call(1001, unlink("f5", false)), call(1000, unlink("none", false))])),
    ]
}

/// PBFT (OSDI'99 §4) asks two things of replicas, as all state machine replication does: they are
/// deterministic (the same operation in the same state always has the same result), and they start
/// in the same state.
#[test]
fn the_same_batches_give_the_same_answers_and_the_same_digest() {
    let (mut one, mut two) = (World::new(), World::new());
    assert_eq!(one.state.digest(), two.state.digest(), "they start in the same state");
    for (seconds, signer, batch) in history(one.root) {
        let at = base::Time::from_parts(START + seconds, 0);
        // One is asked for its digest after every batch, the other only in the end.
        let answers = one.state.apply_batch(at, &key(signer), &batch);
        one.state.digest();
        assert_eq!(two.state.apply_batch(at, &key(signer), &batch), answers);
    }
    assert_eq!(one.state.digest(), two.state.digest());
    assert!(one.state.snapshot().eq(two.state.snapshot()));
}

/// The other half of it: a digest tells different states apart, in every table.
#[test]
fn any_difference_shows_in_the_digest() {
    let mut world = World::new();
    let root = world.root;
    let ino = world.file(1000, root, "f", 0o600);
    let alice = user(1000);
    let mut digests = vec![world.state.digest()];
    let mut differs = |world: &mut World| {
        let digest = world.state.digest();
        assert!(!digests.contains(&digest));
        digests.push(digest);
    };
    world.chmod(&alice, ino, 0o640).unwrap();
    differs(&mut world);
    world.link(&alice, ino, root, "g").unwrap();
    differs(&mut world);
    world.write(&alice, ino, content(5, 5), false).unwrap();
    differs(&mut world);
    let class = XattrClass::User;
    let value = bytes::Bytes::from_static(b"value");
    world.run(&alice, Op::SetXattr { ino, class, name: name("x"), value, how: XattrHow::Set }).unwrap();
    differs(&mut world);
    world.unlink(&alice, root, "f", true).unwrap();
    world.unlink(&alice, root, "g", true).unwrap();
    differs(&mut world);
    world.run(&alice, Op::KeepOrphan { ino }).unwrap();
    world.later(1);
    world.run(&alice, Op::KeepOrphan { ino }).unwrap();
    differs(&mut world);
    world.run(&user(0), Op::VolumeCreate(spec("other"))).unwrap();
    differs(&mut world);

    let genesis = |cluster, uids| {
        let principals = vec![(key(1), Grant { uids, admin: true })];
        State::genesis(Genesis { cluster: base::ClusterId([cluster; 16]), principals }).digest()
    };
    assert_ne!(genesis(1, Uids::Any), genesis(2, Uids::Any), "no cluster is in another's state");
    assert_ne!(genesis(1, Uids::Any), genesis(1, Uids::One(0)));
}

/// PBFT (TOCS'02 §4.3 and §6.3): checkpoints are kept by copy-on-write while execution goes on, and a
/// replica that fetched one by state transfer goes on from it.
#[test]
fn a_checkpoint_is_not_touched_by_what_comes_after_and_can_be_gone_on_from() {
    let mut world = World::new();
    let root = world.root;
    world.file(1000, root, "f", 0o600);
    let digest = world.state.digest();
    let mut checkpoint = world.state.clone();
    let partitions: Vec<_> = checkpoint.snapshot().collect();
    for (seconds, signer, batch) in history(root) {
        world.state.apply_batch(base::Time::from_parts(START + seconds, 0), &key(signer), &batch);
    }
    assert_ne!(world.state.digest(), digest);
    assert_eq!(checkpoint.digest(), digest);
    assert!(checkpoint.snapshot().eq(partitions.iter().cloned()));

    let mut fetched = checkpoint.restore(&partitions).unwrap();
    assert_eq!(fetched.digest(), digest);
    for (seconds, signer, batch) in history(root) {
        fetched.apply_batch(base::Time::from_parts(START + seconds, 0), &key(signer), &batch);
    }
    assert_eq!(fetched.digest(), world.state.digest());
}

/// FARSITE (OSDI'02, abstract): "it maintains the integrity of file and directory data with a
/// Byzantine-fault-tolerant protocol". That holds only if the directory group itself, and not the
/// client, decides who may change what. A key is judged by its grant, whatever uid it claims.
#[test]
fn the_directory_group_enforces_access_control() {
    let mut world = World::new();
    let root = world.root;
    let private = world.dir(2000, root, "private", 0o700);
    let secret = world.file(2000, private, "secret", 0o600);
    world.write(&user(2000), secret, content(1, 1), false).unwrap();
    // The key of uid 1000 tries under its own name, and under others'.
    world.key = key(2);
    let attempts = |caller: &Caller, world: &mut World| {
        let opened = Commit {
            ino: secret,
            base: None,
            content: content(0, 0),
            form: Form::Whole,
            mtime: None,
            atime: None,
            opened: true,
        };
        let mode = AttrChange { mode: Some(0o777), ..AttrChange::default() };
        [
            Op::Lookup { parent: private, name: name("secret") },
            Op::ReadDir { ino: private, cookie: 0, max: 10 },
            Op::Open { ino: secret, mask: 4 },
            Op::Open { ino: secret, mask: 2 },
            Op::Commit(Commit { opened: false, ..opened.clone() }),
            Op::Commit(opened),
            Op::SetAttr { ino: secret, change: mode },
            file(private, "planted".into()),
            Op::Link { ino: secret, parent: private, name: name("planted") },
            Op::Unlink { parent: private, name: name("secret"), keep: false },
            Op::Rename {
                from: private,
                from_name: name("secret"),
                to: root,
                to_name: name("stolen"),
                how: RenameHow::Replace,
                keep: false,
            },
            Op::VolumeCreate(spec("other")),
        ]
        .map(|op| world.run(caller, op).expect_err("refused"))
    };
    for why in attempts(&user(1000), &mut world) {
        assert!(matches!(why, Denied::Access | Denied::NotPermitted | Denied::NotGranted), "{why:?}");
    }
    for claimed in [0, 2000] {
        assert_eq!(attempts(&user(claimed), &mut world), [Denied::NotGranted; 12]);
    }
    // The owner's own key may.
    world.key = key(3);
    assert!(world.run(&user(2000), Op::Open { ino: secret, mask: 6 }).is_ok());
}

/// FARSITE (OSDI'02 §1): "a shared namespace". A name leads to one thing, for everybody, and the
/// group puts in order what clients ask for at the same time.
#[test]
fn of_two_clients_that_take_one_name_one_gets_it() {
    let mut world = World::new();
    let root = world.root;
    let mut take = |seed: u8, uid: u32| {
        let batch = Batch::new(vec![call(uid, file(root, "lock".into()))]);
        world.state.apply_batch(world.now, &key(seed), &batch).remove(0)
    };
    assert!(matches!(take(2, 1000), Answer::Done(Reply::Created { fresh: true, .. })));
    assert_eq!(take(3, 2000), Answer::Denied(Denied::Exists));
    assert_eq!(world.lookup(&user(2000), root, "lock").unwrap().uid, 1000);
}

/// The same for content: of two writers that started from one version, the second is told, and
/// merges; nothing is lost silently.
#[test]
fn of_two_writers_of_one_version_the_second_is_told() {
    let mut world = World::new();
    let root = world.root;
    let ino = world.file(1000, root, "f", 0o666);
    let base = Some(world.attr(ino).content_version);
    let commit = |size| {
        Op::Commit(Commit {
            ino,
            base,
            content: content(size, size),
            form: Form::Whole,
            mtime: None,
            atime: None,
            opened: false,
        })
    };
    assert!(world.run(&user(1000), commit(1)).is_ok());
    assert_eq!(world.run(&user(2000), commit(2)), Err(Denied::Stale));
    assert_eq!(world.attr(ino).size, 1);
}

/// FARSITE encrypts names too ("exclusive encryption"); the directory group still keeps them apart and
/// finds them, because it compares what is sealed and needs no key.
#[test]
fn sealed_names_and_values_are_opaque() {
    let mut world = World::new();
    let root = world.root;
    let sealed_name = SealedName::new(vec![0xFF; NAME_MAX + SEAL_LEN]).unwrap();
    let create = Op::Create { parent: root, name: sealed_name.clone(), new: new(Kind::File, 0o600), exclusive: true };
    assert!(world.run(&user(1000), create.clone()).is_ok(), "255 bytes, whatever they are");
    assert_eq!(world.run(&user(1000), create), Err(Denied::Exists));
    assert!(world.run(&user(1000), Op::Lookup { parent: root, name: sealed_name }).is_ok());
    assert!(SealedName::new(vec![0; NAME_MAX + SEAL_LEN + 1]).is_none());
    assert!(SealedName::new(vec![0; SEAL_LEN]).is_none());
}

/// A batch is one signature over many calls; each is judged by itself, and a refused one changes
/// nothing, so that what follows it is as if it had not been asked.
#[test]
fn a_refused_call_is_as_if_it_had_not_been_asked() {
    let (mut with, mut without) = (World::new(), World::new());
    let root = with.root;
    let calls = [
        (call(1000, file(root, "a".into())), true),
        (call(1000, file(root, "a".into())), false),
        (call(1000, Op::Rmdir { parent: root, name: name("a") }), false),
        (call(1000, Op::Unlink { parent: Ino(77), name: name("a"), keep: true }), false),
        (call(1000, file(root, "b".into())), true),
    ];
    let batch =
        |all: bool| Batch::new(calls.iter().filter(|(_, good)| all || *good).map(|(call, _)| call.clone()).collect());
    let answers = with.state.apply_batch(with.now, &key(1), &batch(true));
    let fewer = without.state.apply_batch(without.now, &key(1), &batch(false));
    assert_eq!([&answers[0], &answers[4]], [&fewer[0], &fewer[1]]);
    assert!(answers[1..4].iter().all(|answer| matches!(answer, Answer::Denied(_))));
    assert_eq!(with.state.digest(), without.state.digest());
}
