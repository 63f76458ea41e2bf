//! Snapshots of volumes: what is looked at in one is what was there, whatever is done after.

mod common;

use base::Time;
use bytes::Bytes;
use common::mount::Mount;
use common::*;
use meta::*;
use proptest::prelude::*;

/// All that can be seen of a tree by root: a line for each inode, name and attribute, by path.
fn seen(state: &mut State, at: Time, root: Ino) -> Vec<String> {
    seen_by(&mut |op| ask(state, at, op), root)
}

fn ask(state: &mut State, at: Time, op: Op) -> Answer {
    let batch = Batch::new(vec![Call { caller: user(0), op }]);
    state.apply_batch(at, &key(1), &batch).pop().unwrap()
}

/// The same in a copy that is fetched as it is looked at.
fn seen_in_copy(state: &mut State, at: Time, root: Ino) -> Vec<String> {
    let mut copy = State::copy_of(CLUSTER);
    let looked = &mut |op: Op| {
        let call = Call { caller: user(0), op: op.clone() };
        match copy.look_at_past(&key(1), &call) {
            Ok(answer) => answer,
            Err(Some(directory)) => {
                let (ino, mut cookie, mut more) = (directory.in_snapshot(root.snapshot()), 0, true);
                while more {
                    let also = copy.unfetched_in_past(directory, 2);
                    let fetched = ask(state, at, Op::Fetch { ino, cookie, also });
                    let Answer::Done(Reply::Rows { rows, whole, next }) = fetched else { panic!("{fetched:?}") };
                    copy.learn_past(&rows, &whole).unwrap();
                    (cookie, more) = (next.unwrap_or(0), next.is_some());
                }
                copy.look_at_past(&key(1), &call).expect("it is there now")
            }
            // Nothing of it was fetched yet.
            Err(None) => {
                let first =
                    matches!(op, Op::GetAttr { .. } | Op::ListXattr { .. } | Op::GetXattr { .. } | Op::Parent { .. });
                assert!(first && copy.counts().inodes == 0, "{op:?}");
                ask(state, at, op)
            }
        }
    };
    seen_by(looked, root)
}

fn seen_by(ask: &mut impl FnMut(Op) -> Answer, root: Ino) -> Vec<String> {
    let (mut lines, mut ahead) = (Vec::new(), vec![(String::new(), root)]);
    while let Some((path, ino)) = ahead.pop() {
        let Answer::Done(Reply::Attr(attr)) = ask(Op::GetAttr { ino }) else { panic!("{path} is gone") };
        assert_eq!(attr.ino, ino, "{path}");
        lines.push(format!("{path} {:?}", Attr { ino: ino.now(), ..attr }));
        let Answer::Done(Reply::Names(names)) = ask(Op::ListXattr { ino }) else { panic!("{path}: no attributes") };
        for (class, name) in names {
            lines.push(format!("{path} {name:?} {:?}", ask(Op::GetXattr { ino, class, name: name.clone() })));
        }
        match attr.kind {
            Kind::File => match ask(Op::Open { ino, mask: READ }) {
                Answer::Done(Reply::Opened { content, .. }) => lines.push(format!("{path} {content:?}")),
                other => panic!("{path}: {other:?}"),
            },
            Kind::Directory => {
                let parent = ask(Op::Parent { ino });
                let Answer::Done(Reply::Attr(parent)) = parent else { panic!("{path}: {parent:?}") };
                lines.push(format!("{path} in {:?}", parent.ino.now()));
                let (mut cookie, mut end) = (0, false);
                while !end {
                    let Answer::Done(Reply::Entries { entries, end: last }) = ask(Op::ReadDir { ino, cookie, max: 2 })
                    else {
                        panic!("{path}: no names")
                    };
                    end = last;
                    for entry in entries {
                        cookie = entry.cookie;
                        let found = ask(Op::Lookup { parent: ino, name: entry.name.clone() });
                        assert_eq!(found, Answer::Done(Reply::Attr(entry.attr)), "{path}");
                        lines.push(format!("{path} {cookie} {:?}", entry.name));
                        ahead.push((format!("{path}/{:?}", entry.name), entry.attr.ino));
                    }
                }
                // What was not there is not found.
                for text in ["n0", "n1", "n2", "n3", "n4"] {
                    let found = matches!(ask(Op::Lookup { parent: ino, name: name(text) }), Answer::Done(_));
                    lines.push(format!("{path} {text} {found}"));
                }
            }
            _ => {}
        }
    }
    lines.sort();
    lines
}

fn take(world: &mut World, text: &str) -> Result<Snapshot, Denied> {
    let taken = world.run(&user(0), Op::SnapshotTake { volume: world.volume, name: text.into() })?;
    let Reply::Snapshots(taken) = taken else { panic!("{taken:?}") };
    Ok(taken[0].clone())
}

fn delete(world: &mut World, text: &str) -> Result<Reply, Denied> {
    world.run(&user(0), Op::SnapshotDelete { volume: world.volume, name: text.into() })
}

fn listed(world: &mut World) -> Vec<Snapshot> {
    match world.run(&user(0), Op::SnapshotList { volume: world.volume }) {
        Ok(Reply::Snapshots(all)) => all,
        other => panic!("{other:?}"),
    }
}

type Step = (u8, usize, usize, u8, u8);

fn play(steps: &[Step]) {
    let mut world = World::with(VolumeSpec { trash: 20, ..spec("home") });
    let mut inos = vec![world.root];
    // Each with the state as it was.
    let mut kept: Vec<(Snapshot, State)> = Vec::new();
    for (index, (what, first, second, a, b)) in steps.iter().enumerate() {
        world.later(1);
        let (ino, other) = (inos[first % inos.len()], inos[second % inos.len()]);
        let (one, two) = (name(&format!("n{}", a % 4)), name(&format!("n{}", b % 4)));
        let kind = [Kind::File, Kind::Directory, Kind::Directory][usize::from(what / 17 % 3)];
        let op = match what % 17 {
            0..=4 => Op::Create { parent: ino, name: one, new: new(kind, 0o755), exclusive: true },
            5 => Op::Unlink { parent: ino, name: one, keep: b % 3 == 0 },
            6 => Op::Rmdir { parent: ino, name: one },
            7 => Op::Link { ino, parent: other, name: one },
            8 => Op::Restore { ino, parent: other, name: one },
            9..=10 => {
                let how = [RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange][usize::from(what / 17 % 3)];
                Op::Rename { from: ino, from_name: one, to: other, to_name: two, how, keep: false }
            }
            11 => Op::Commit(Commit::whole(ino, None, content(u64::from(*a) + 1, 1))),
            12 => {
                let (class, value, how) = (XattrClass::User, Bytes::from(vec![*b]), XattrHow::Set);
                Op::SetXattr { ino, class, name: one, value, how }
            }
            13 => Op::RemoveXattr { ino, class: XattrClass::User, name: one },
            14 => Op::SetAttr { ino, change: AttrChange { mode: Some(u16::from(*a)), ..AttrChange::default() } },
            15 => {
                let snapshot = take(&mut world, &format!("s{index}")).unwrap();
                kept.push((snapshot, world.state.clone()));
                continue;
            }
            _ => {
                if !kept.is_empty() {
                    let (snapshot, _) = kept.remove(first % kept.len());
                    delete(&mut world, &snapshot.name).unwrap();
                }
                continue;
            }
        };
        if let Ok(Reply::Created { attr, .. }) = world.run(&user(0), op) {
            inos.push(attr.ino);
        }
    }
    let (at, root) = (world.now, world.root);
    for (snapshot, mut then) in kept {
        let was = seen(&mut then, at, root);
        let root = root.in_snapshot(snapshot.number);
        assert_eq!(seen(&mut world.state, at, root), was, "{snapshot:?}");
        assert_eq!(seen_in_copy(&mut world.state, at, root), was, "a copy of {snapshot:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_looked_at_in_a_snapshot_is_what_was_there(
        steps in proptest::collection::vec((any::<u8>(), 0usize..8, 0usize..8, 0u8..8, 0u8..8), 1..90)
    ) {
        play(&steps);
    }
}

#[test]
fn snapshots_are_named_listed_deleted_and_few() {
    let mut world = World::new();
    for wrong in ["", ".", "..", ".hidden", "a/b", "a b", &"x".repeat(65)] {
        assert_eq!(take(&mut world, wrong), Err(Denied::Invalid), "{wrong:?}");
    }
    let none = Op::SnapshotTake { volume: VolumeId(77), name: "a".into() };
    assert_eq!(world.run(&user(0), none), Err(Denied::NotFound));
    let first = take(&mut world, "2026-01-01").unwrap();
    assert_eq!(take(&mut world, "2026-01-01"), Err(Denied::Exists));
    let second = take(&mut world, "second").unwrap();
    assert!(second.number > first.number);
    assert_eq!(listed(&mut world), [Snapshot { later: second.number, ..first }, second.clone()]);
    world.key = key(2);
    assert_eq!(take(&mut world, "mine"), Err(Denied::NotGranted));
    assert_eq!(delete(&mut world, "second"), Err(Denied::NotGranted));
    world.key = key(1);
    delete(&mut world, "2026-01-01").unwrap();
    assert_eq!(delete(&mut world, "2026-01-01"), Err(Denied::NotFound));
    assert_eq!(listed(&mut world), [second]);
    take(&mut world, "2026-01-01").unwrap();
    for index in 2..SNAPSHOTS_MAX {
        take(&mut world, &format!("s{index}")).unwrap();
    }
    assert_eq!(take(&mut world, "one too many"), Err(Denied::Invalid));
    assert_eq!(take(&mut world, "one-too-many"), Err(Denied::Quota));
    delete(&mut world, "second").unwrap();
    world.later(1);
    assert!(take(&mut world, "one-too-many").is_ok());
}

#[test]
fn nothing_changes_a_snapshot_and_rights_are_those_of_then() {
    let mut world = World::new();
    let open = world.dir(0, world.root, "open", 0o777);
    let secret = world.file(1000, open, "secret", 0o600);
    world.write(&user(1000), secret, content(10, 10), true).unwrap();
    let number = take(&mut world, "then").unwrap().number;
    world.chmod(&user(1000), secret, 0o644).unwrap();
    world.write(&user(1000), secret, content(99, 20), true).unwrap();
    let [then_root, then_open, then] = [world.root, open, secret].map(|ino| ino.in_snapshot(number));
    let content = |world: &mut World, uid, ino| match world.run(&user(uid), Op::Open { ino, mask: READ }) {
        Ok(Reply::Opened { content, .. }) => Ok(content.size),
        Ok(other) => panic!("{other:?}"),
        Err(why) => Err(why),
    };
    assert_eq!(content(&mut world, 2000, secret), Ok(99));
    assert_eq!(content(&mut world, 1000, then), Ok(10));
    assert_eq!(content(&mut world, 2000, then), Err(Denied::Access), "it was nobody else's");

    let new = new(Kind::File, 0o644);
    let refused = [
        Op::Open { ino: then, mask: READ | WRITE },
        Op::Access { ino: then, mask: WRITE },
        Op::Commit(Commit::whole(then, None, Content::default())),
        Op::SetAttr { ino: then, change: AttrChange::default() },
        Op::Create { parent: then_open, name: name("new"), new: new.clone(), exclusive: false },
        Op::CreateUnnamed { parent: then_open, new },
        Op::Unlink { parent: then_open, name: name("secret"), keep: false },
        Op::Rmdir { parent: then_root, name: name("open") },
        Op::Link { ino: then, parent: open, name: name("again") },
        Op::Link { ino: secret, parent: then_open, name: name("again") },
        Op::Rename {
            from: then_open,
            from_name: name("secret"),
            to: open,
            to_name: name("out"),
            how: RenameHow::Replace,
            keep: false,
        },
        Op::Hold { holder: 1, ino: then_open, instead: 0, shared: true },
    ];
    for op in refused {
        assert_eq!(world.run(&user(0), op.clone()), Err(Denied::ReadOnly), "{op:?}");
    }
    // What was made later is not there, nor is what is of no snapshot.
    let later = world.file(0, open, "later", 0o644);
    assert_eq!(world.lookup(&user(0), then_open, "later"), Err(Denied::NotFound));
    for ino in [later.in_snapshot(number), secret.in_snapshot(number + 1)] {
        assert_eq!(world.run(&user(0), Op::GetAttr { ino }), Err(Denied::Stale));
    }
    delete(&mut world, "then").unwrap();
    assert_eq!(world.run(&user(0), Op::GetAttr { ino: then }), Err(Denied::Stale));
}

#[test]
fn what_is_given_up_bit_by_bit_is_seen_all_the_while() {
    let mut world = World::new();
    let files: Vec<Ino> = (0..200).map(|index| world.file(0, world.root, &format!("f{index}"), 0o600)).collect();
    let first = take(&mut world, "first").unwrap().number;
    take(&mut world, "second").unwrap();
    for file in &files {
        world.chmod(&user(0), *file, 0o644).unwrap();
    }
    delete(&mut world, "second").unwrap();
    for round in 0..6 {
        for (index, file) in files.iter().enumerate() {
            let mut now = world.state.clone();
            let look = Call { caller: user(0), op: Op::GetAttr { ino: file.in_snapshot(first) } };
            let answer = now.apply_batch(world.now, &key(1), &Batch::new(vec![look])).pop().unwrap();
            assert!(
                matches!(answer, Answer::Done(Reply::Attr(attr)) if attr.mode == 0o600),
                "{index} in round {round}: {answer:?}"
            );
        }
        let change =
            Op::SetAttr { ino: files[round], change: AttrChange { mode: Some(0o640), ..AttrChange::default() } };
        let batch = Batch::new(vec![Call { caller: user(0), op: change }]);
        world.state.apply_batch(world.now, &key(1), &batch);
    }
    assert_eq!(world.state.audit(), Ok(()));
    assert_eq!(listed(&mut world).len(), 1);
}

#[test]
fn what_came_and_went_since_leaves_nothing() {
    let mut world = World::new();
    let (root, class) = (world.root, XattrClass::User);
    let ino = world.file(0, root, "f", 0o644);
    take(&mut world, "then").unwrap();
    let before = seen(&mut world.state.clone(), world.now, root.in_snapshot(1));
    let mut most = 0;
    for index in 0..200 {
        let (name, value) = (name(&format!("x{index}")), Bytes::from_static(b"value of an attribute"));
        let set = Op::SetXattr { ino, class, name: name.clone(), value, how: XattrHow::Set };
        world.run(&user(0), set).unwrap();
        world.run(&user(0), Op::RemoveXattr { ino, class, name }).unwrap();
        let (from, to) = (format!("f{}", index - 1), format!("f{index}"));
        let from = if index == 0 { "f" } else { &from };
        world.rename(&user(0), (root, from), (root, &to), RenameHow::Replace).unwrap();
        most = most.max(world.state.counts().kept);
    }
    assert!(most < 10, "{most} rows are kept");
    assert_eq!(seen(&mut world.state, world.now, root.in_snapshot(1)), before);
}

#[test]
fn only_who_may_take_a_snapshot_makes_others_give_leases_back() {
    let mut world = World::new();
    let root = world.root;
    let mut mount = Mount::new(1);
    mount.hold(&mut world, root, false).unwrap();
    let wrong = [(2, "then", Denied::NotGranted), (1, "../then", Denied::Invalid)];
    for (seed, name, why) in wrong {
        let op = Op::SnapshotTake { volume: world.volume, name: name.into() };
        let batch = Batch::new(vec![Call { caller: user(1000), op }]);
        let answers = world.state.apply_batch(world.now, &key(seed), &batch);
        assert_eq!(answers, [Answer::Denied(why)]);
        assert_eq!(world.state.recalled().count(), 0);
    }
    assert_eq!(ordered(&mut world, "then"), Err(Denied::Leased));
    assert_eq!(world.state.recalled().count(), 1);
}

fn ordered(world: &mut World, name: &str) -> Result<Reply, Denied> {
    let op = Op::SnapshotTake { volume: world.volume, name: name.into() };
    let batch = Batch::new(vec![Call { caller: user(0), op }]);
    world.state.apply_batch(world.now, &key(1), &batch).pop().unwrap().into_result()
}

#[test]
fn nobody_is_given_a_lease_that_a_snapshot_would_wait_for() {
    let mut world = World::new();
    let (root, other) = (world.root, world.dir(0, world.root, "d", 0o777));
    let (mut first, mut second) = (Mount::new(1), Mount::new(2));
    first.hold(&mut world, root, false).unwrap();
    assert_eq!(ordered(&mut world, "then"), Err(Denied::Leased));
    first.heed(&mut world);
    world.later(1);
    // Another directory, or the same, is asked for before the snapshot is tried again.
    for ino in [other, root] {
        assert_eq!(second.hold(&mut world, ino, false), Err(Denied::Contended));
    }
    second.hold(&mut world, other, true).unwrap();
    assert!(!world.state.is_held_by(other, &second.me), "it may look");
    assert!(ordered(&mut world, "then").is_ok());
    world.later(60);
    assert!(second.hold(&mut world, other, false).is_ok());
}

#[test]
fn what_was_not_there_stays_so_while_a_later_snapshot_is_given_up() {
    let mut world = World::new();
    let (root, class) = (world.root, XattrClass::User);
    let ino = world.file(0, root, "n0", 0o644);
    let others: Vec<Ino> = (0..400).map(|index| world.file(0, root, &format!("f{index}"), 0o600)).collect();
    let first = take(&mut world, "first").unwrap().number;
    let before = seen(&mut world.state.clone(), world.now, root.in_snapshot(first));
    let set = |value: &'static [u8]| {
        let (value, how) = (Bytes::from_static(value), XattrHow::Set);
        Op::SetXattr { ino, class, name: name("x"), value, how }
    };
    world.run(&user(0), set(b"the value of an attribute")).unwrap();
    world.rename(&user(0), (root, "n0"), (root, "n1"), RenameHow::Replace).unwrap();
    take(&mut world, "second").unwrap();
    world.run(&user(0), set(b"another value of the same")).unwrap();
    world.rename(&user(0), (root, "n1"), (root, "n2"), RenameHow::Replace).unwrap();
    for other in &others {
        world.chmod(&user(0), *other, 0o644).unwrap();
    }
    let call = |op: Op| Batch::new(vec![Call { caller: user(0), op }]);
    let (from_name, to_name, how) = (name("n2"), name("n1"), RenameHow::Replace);
    let all = [
        Op::SnapshotDelete { volume: world.volume, name: "second".into() },
        Op::RemoveXattr { ino, class, name: name("x") },
        Op::Rename { from: root, from_name, to: root, to_name, how, keep: false },
        Op::Unlink { parent: root, name: name("n1"), keep: false },
    ];
    for op in all {
        let answers = world.state.apply_batch(world.now, &key(1), &call(op));
        assert!(matches!(answers[..], [Answer::Done(_)]), "{answers:?}");
    }
    assert!(world.state.counts().kept > 64, "there is more to give up");
    let then = |state: &State| {
        let get = Op::GetXattr { ino: ino.in_snapshot(first), class, name: name("x") };
        assert_eq!(ask(&mut state.clone(), world.now, get), Answer::Denied(Denied::NoAttribute));
        seen(&mut state.clone(), world.now, root.in_snapshot(first))
    };
    assert_eq!(then(&world.state), before);
    for _ in 0..10 {
        world.state.apply_batch(world.now, &key(1), &Batch::new(vec![]));
    }
    assert_eq!(then(&world.state), before);
    assert_eq!(world.state.audit(), Ok(()));
}
