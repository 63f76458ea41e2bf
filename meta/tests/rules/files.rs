//! Inodes: their attributes, extended ones too, and content.

use base::StateMachine as _;
use bytes::Bytes;
use meta::*;

use super::common::*;
use super::{ALICE, BOB, ROOT, member};

#[test]
fn a_new_inode_is_as_asked() {
    let mut world = World::new();
    let root = world.root;
    let before = world.attr(root);
    world.later(5);
    let attr = world.create(&user(ALICE), root, "a", new(Kind::File, 0o640)).unwrap();
    let now = at(START + 5);
    assert_eq!((attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink), (Kind::File, 0o640, ALICE, ALICE, 1));
    assert_eq!((attr.size, attr.allocated, attr.rdev), (0, 0, 0));
    assert_eq!([attr.atime, attr.mtime, attr.ctime, attr.btime], [now; 4]);
    let after = world.attr(root);
    assert_eq!((after.size, after.nlink, after.mtime, after.ctime), (1, 2, now, now));
    assert_eq!(after.content_version, before.content_version + 1);
    assert_eq!(after.version, before.version + 1);
    assert_eq!(after.atime, before.atime);

    let symlink = world.create(&user(ALICE), root, "l", new(Kind::Symlink, 0)).unwrap();
    assert_eq!((symlink.mode, symlink.size), (0o777, 6));
    assert_eq!(world.run(&user(BOB), Op::ReadLink { ino: symlink.ino }), Ok(Reply::Target(sealed("target"))));
    assert_eq!(world.run(&user(BOB), Op::ReadLink { ino: attr.ino }), Err(Denied::Invalid));
    let subdirectory = world.create(&user(ALICE), root, "d", new(Kind::Directory, 0o700)).unwrap();
    assert_eq!((subdirectory.nlink, world.attr(root).nlink), (2, 3));
}

#[test]
fn only_root_makes_devices_and_targets_have_a_length() {
    let mut world = World::new();
    let root = world.root;
    for (index, kind) in [Kind::CharDevice, Kind::BlockDevice].into_iter().enumerate() {
        let text = format!("dev{index}");
        assert_eq!(world.create(&user(ALICE), root, &text, new(kind, 0o600)), Err(Denied::NotPermitted));
        assert_eq!(world.create(&user(ROOT), root, &text, new(kind, 0o600)).unwrap().rdev, 0x0801);
    }
    for (len, fits) in [(16, false), (17, true), (16 + 4095, true), (16 + 4096, false)] {
        let link = NewInode { target: Bytes::from(vec![1; len]), ..new(Kind::Symlink, 0) };
        let result = world.create(&user(ALICE), root, &format!("l{len}"), link);
        assert_eq!(result.map(|attr| attr.size), if fits { Ok(len as u64 - 16) } else { Err(Denied::Invalid) });
    }
    let aimed = NewInode { target: sealed("x"), ..new(Kind::File, 0o600) };
    assert_eq!(world.create(&user(ALICE), root, "f", aimed), Err(Denied::Invalid));
    assert_eq!(world.create(&user(ALICE), root, "f", new(Kind::File, 0o10_000)), Err(Denied::Invalid));
}

#[test]
fn create_meets_what_is_there() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o600);
    world.dir(ALICE, root, "d", 0o700);
    world.create(&user(ALICE), root, "l", new(Kind::Symlink, 0)).unwrap();
    let mut create = |text: &str, kind, exclusive| {
        let op = Op::Create { parent: root, name: name(text), new: new(kind, 0o644), exclusive };
        world.run(&user(BOB), op)
    };
    let Ok(Reply::Created { attr, fresh: false }) = create("f", Kind::File, false) else { panic!() };
    assert_eq!((attr.ino, attr.mode), (file, 0o600));
    assert_eq!(create("f", Kind::File, true), Err(Denied::Exists));
    assert_eq!(create("d", Kind::File, false), Err(Denied::IsDirectory));
    assert_eq!(create("d", Kind::File, true), Err(Denied::Exists));
    assert_eq!(create("d", Kind::Directory, false), Err(Denied::Exists));
    assert_eq!(create("f", Kind::Directory, false), Err(Denied::Exists));
    assert_eq!(create("l", Kind::File, false), Err(Denied::Exists));
}

#[test]
fn set_gid_directories_hand_down_their_group() {
    let mut world = World::new();
    let (root, alice) = (world.root, member(ALICE, &[50]));
    let shared = world.dir(ALICE, root, "shared", 0o777);
    world.chown(&user(ROOT), shared, None, Some(50)).unwrap();
    world.chmod(&user(ROOT), shared, 0o2777).unwrap();
    let file = world.create(&alice, shared, "f", new(Kind::File, 0o2755)).unwrap();
    assert_eq!((file.gid, file.mode), (50, 0o2755));
    let strangers = world.create(&user(BOB), shared, "g", new(Kind::File, 0o2755)).unwrap();
    assert_eq!((strangers.gid, strangers.mode), (50, 0o755), "no set-gid for a group one is not in");
    let locking = world.create(&user(BOB), shared, "h", new(Kind::File, 0o2745)).unwrap();
    assert_eq!(locking.mode, 0o2745, "without group execute it is not a right");
    let subdirectory = world.create(&user(BOB), shared, "d", new(Kind::Directory, 0o755)).unwrap();
    assert_eq!((subdirectory.gid, subdirectory.mode), (50, 0o2755));
}

#[test]
fn chmod_is_for_the_owner_and_set_gid_for_the_group() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o644);
    assert_eq!(world.chmod(&user(BOB), file, 0o666), Err(Denied::NotPermitted));
    assert_eq!(world.chmod(&user(ALICE), file, 0o17_777), Err(Denied::Invalid));
    assert_eq!(world.chmod(&user(ALICE), file, 0o6755).unwrap().mode, 0o6755);
    world.chown(&user(ROOT), file, None, Some(50)).unwrap();
    assert_eq!(world.chmod(&user(ALICE), file, 0o6755).unwrap().mode, 0o4755, "not of group 50");
    assert_eq!(world.chmod(&member(ALICE, &[50]), file, 0o6755).unwrap().mode, 0o6755);
    assert_eq!(world.chmod(&user(ROOT), file, 0o2711).unwrap().mode, 0o2711);
    let link = world.create(&user(ALICE), root, "l", new(Kind::Symlink, 0)).unwrap().ino;
    assert_eq!(world.chmod(&user(ALICE), link, 0o600), Err(Denied::Invalid));
}

#[test]
fn chown_is_for_root_and_chgrp_for_the_owner_among_its_groups() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o755);
    let alice = member(ALICE, &[50]);
    assert_eq!(world.chown(&alice, file, Some(BOB), None), Err(Denied::NotPermitted));
    assert_eq!(world.chown(&alice, file, None, Some(60)), Err(Denied::NotPermitted));
    assert_eq!(world.chown(&member(BOB, &[50]), file, None, Some(50)), Err(Denied::NotPermitted));
    assert_eq!(world.chown(&alice, file, Some(ALICE), Some(50)).unwrap().gid, 50);
    assert_eq!(world.chown(&user(ALICE), file, None, Some(50)).unwrap().gid, 50, "unchanged");
    assert_eq!(world.chown(&user(ROOT), file, Some(BOB), Some(60)).unwrap().uid, BOB);
    assert_eq!(world.chown(&user(ROOT), file, Some(u32::MAX), None), Err(Denied::Invalid));
    assert_eq!(world.chown(&user(ROOT), file, None, Some(u32::MAX)), Err(Denied::Invalid));
}

#[test]
fn a_change_of_owner_takes_set_id_bits_away() {
    let mut world = World::new();
    let (root, alice) = (world.root, member(ALICE, &[50]));
    let file = world.file(ALICE, root, "f", 0o755);
    world.chmod(&alice, file, 0o6755).unwrap();
    assert_eq!(world.chown(&alice, file, None, Some(50)).unwrap().mode, 0o755);
    world.chmod(&alice, file, 0o6745).unwrap();
    assert_eq!(world.chown(&alice, file, None, Some(ALICE)).unwrap().mode, 0o2745, "set-gid without group execute");
    world.chmod(&user(ROOT), file, 0o4755).unwrap();
    assert_eq!(world.chown(&user(ROOT), file, Some(BOB), None).unwrap().mode, 0o755, "root's chown too");
    let both = AttrChange { mode: Some(0o4755), uid: Some(ALICE), ..AttrChange::default() };
    assert_eq!(world.set(&user(ROOT), file, both).unwrap().mode, 0o4755, "unless a mode is given with it");
    let directory = world.dir(ALICE, root, "d", 0o2755);
    assert_eq!(world.chown(&alice, directory, None, Some(50)).unwrap().mode, 0o2755, "directories keep theirs");
}

#[test]
fn times_are_set_by_the_owner_or_to_now_by_a_writer() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o602);
    let past = at(42);
    let times = |atime, mtime| AttrChange { atime, mtime, ..AttrChange::default() };
    let set = Some(SetTime::At(past));
    assert_eq!(world.set(&user(BOB), file, times(set, None)), Err(Denied::NotPermitted));
    assert_eq!(world.set(&user(BOB), file, times(None, set)), Err(Denied::NotPermitted));
    world.later(9);
    let attr = world.set(&user(ALICE), file, times(set, None)).unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.ctime), (past, at(START), at(START + 9)));
    world.later(1);
    let attr = world.set(&user(BOB), file, times(Some(SetTime::Now), Some(SetTime::Now))).unwrap();
    assert_eq!([attr.atime, attr.mtime, attr.ctime], [at(START + 10); 3]);
    world.chmod(&user(ALICE), file, 0o600).unwrap();
    assert_eq!(world.set(&user(BOB), file, times(None, Some(SetTime::Now))), Err(Denied::Access));
    let no_decoder_allows = SetTime::At(Timestamp { seconds: 0, nanos: 1_000_000_000 });
    let call = Call { caller: user(ROOT), op: Op::SetAttr { ino: file, change: times(Some(no_decoder_allows), None) } };
    let answers = world.state.apply_batch(world.now, &key(1), &Batch::new(vec![call]));
    assert_eq!(answers, [Answer::Denied(Denied::Invalid)]);
}

#[test]
fn an_empty_change_changes_nothing() {
    let mut world = World::new();
    let root = world.root;
    let (file, digest) = (world.file(ALICE, root, "f", 0o600), world.state.digest());
    let attr = world.attr(file);
    assert_eq!(world.set(&user(BOB), file, AttrChange::default()), Ok(attr));
    assert_eq!(world.state.digest(), digest);
}

#[test]
fn open_asks_for_what_it_will_do() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o641);
    world.write(&user(ALICE), file, content(10, 6), false).unwrap();
    let mut open = |uid, ino, mask| world.run(&user(uid), Op::Open { ino, mask });
    let Ok(Reply::Opened { attr, content: held }) = open(ALICE, file, 6) else { panic!() };
    assert_eq!((attr.size, attr.allocated, held), (10, 6, content(10, 6)));
    assert_eq!(open(BOB, file, 4), Err(Denied::Access));
    assert!(open(BOB, file, 1).is_ok(), "whoever may run it may have it");
    assert_eq!(open(BOB, file, 5), Err(Denied::Access));
    assert_eq!(open(ALICE, file, 0), Err(Denied::Invalid));
    assert_eq!(open(ALICE, file, 12), Err(Denied::Invalid));
    assert_eq!(open(ALICE, root, 2), Err(Denied::IsDirectory));
    assert_eq!(open(ALICE, root, 4), Err(Denied::Invalid));
    assert_eq!(open(ALICE, Ino(999), 4), Err(Denied::Stale));
}

#[test]
fn commit_binds_content_and_counts_versions() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let before = world.attr(file);
    world.later(3);
    let mut commit = Commit {
        ino: file,
        base: Some(1),
        content: content(7, 7),
        form: Form::Whole,
        mtime: None,
        atime: None,
        opened: false,
    };
    let Ok(Reply::Attr(after)) = world.run(&alice, Op::Commit(commit.clone())) else { panic!() };
    assert_eq!((after.size, after.allocated), (7, 7));
    assert_eq!((after.version, after.content_version), (before.version + 1, before.content_version + 1));
    assert_eq!((after.mtime, after.ctime, after.atime), (at(START + 3), at(START + 3), before.atime));
    assert_eq!(world.run(&alice, Op::Commit(commit.clone())), Err(Denied::Stale), "made from version 1");
    commit = Commit { base: Some(2), mtime: Some(at(1)), atime: Some(at(2)), ..commit };
    let Ok(Reply::Attr(after)) = world.run(&alice, Op::Commit(commit.clone())) else { panic!() };
    assert_eq!((after.mtime, after.atime, after.ctime), (at(1), at(2), at(START + 3)));
    assert!(world.run(&alice, Op::Commit(Commit { base: None, ..commit })).is_ok());
}

#[test]
fn patches_lie_over_what_is_there_until_they_are_folded() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o644);
    world.write(&alice, file, content(10, 10), false).unwrap();
    let commit = |base, form, content| {
        let (mtime, atime) = (None, None);
        Op::Commit(Commit { ino: file, base: Some(base), content, form, mtime, atime, opened: false })
    };
    let patch = |size, patches: &[&[u8]]| {
        let patches = patches.iter().map(|patch| Bytes::copy_from_slice(patch)).collect();
        Content { size, allocated: size, patches, ..Content::default() }
    };
    let opened = |world: &mut World| match world.run(&alice, Op::Open { ino: file, mask: READ }) {
        Ok(Reply::Opened { attr, content }) => (attr, content),
        other => panic!("{other:?}"),
    };
    assert_eq!(world.run(&alice, commit(2, Form::Fold, content(10, 10))), Err(Denied::Invalid), "has no patches");
    world.later(1);
    assert!(world.run(&alice, commit(2, Form::Patch { over: 0 }, patch(12, &[b"one", b"two"]))).is_ok());
    assert_eq!(world.run(&alice, commit(2, Form::Patch { over: 0 }, patch(12, &[b"late"]))), Err(Denied::Stale));
    for wrong in [
        commit(3, Form::Patch { over: 2 }, patch(11, &[b"shorter"])),
        commit(3, Form::Patch { over: 2 }, patch(12, &[])),
        commit(3, Form::Patch { over: 2 }, Content { patches: vec![Bytes::from_static(b"x")], ..content(12, 12) }),
        commit(3, Form::Fold, content(11, 11)),
        commit(3, Form::Fold, patch(12, &[b"x"])),
        commit(3, Form::Whole, patch(12, &[b"x"])),
    ] {
        assert_eq!(world.run(&alice, wrong.clone()), Err(Denied::Invalid), "{wrong:?}");
    }
    let folded_since = commit(3, Form::Patch { over: 1 }, patch(20, &[b"three"]));
    assert_eq!(world.run(&alice, folded_since), Err(Denied::Stale), "over others than it knows");
    assert!(world.run(&alice, commit(3, Form::Patch { over: 2 }, patch(20, &[b"three"]))).is_ok());
    let (before, patched) = opened(&mut world);
    let expected: Vec<Bytes> = [&b"one"[..], b"two", b"three"].map(Bytes::from_static).into();
    assert_eq!(patched, Content { size: 20, allocated: 20, patches: expected, ..content(10, 10) });
    assert_eq!((before.size, before.content_version), (20, 4));

    // Nothing is written by folding them: no times change, and no reader has anything to ask for.
    world.later(5);
    assert_eq!(world.run(&user(BOB), commit(4, Form::Fold, content(20, 15))), Err(Denied::Access));
    assert!(world.run(&alice, commit(4, Form::Fold, content(20, 15))).is_ok());
    let (after, folded) = opened(&mut world);
    assert_eq!(folded, content(20, 15));
    assert_eq!(after, Attr { allocated: 15, version: before.version + 1, ..before });
    assert_eq!(world.state.space(world.volume).unwrap().used_bytes, 15);
    assert_eq!(world.run(&alice, commit(4, Form::Fold, content(20, 15))), Err(Denied::Invalid), "twice");
    assert_eq!(world.state.audit(), Ok(()));
}

#[test]
fn patches_have_limits() {
    let mut world = World::new();
    let alice = user(ALICE);
    let file = world.file(ALICE, world.root, "f", 0o600);
    let (mut base, mut over) = (1, 0);
    let mut patch = |world: &mut World, len: usize, count: usize| {
        let patches = vec![Bytes::from(vec![7; len]); count];
        let content = Content { size: 9, allocated: 9, patches, ..Content::default() };
        let (mtime, atime, form) = (None, None, Form::Patch { over });
        let commit = Commit { ino: file, base: Some(base), content, form, mtime, atime, opened: false };
        let done = world.run(&alice, Op::Commit(commit));
        base += u64::from(done.is_ok());
        over += if done.is_ok() { count as u32 } else { 0 };
        done.map(drop)
    };
    assert_eq!(patch(&mut world, PATCHES_LEN_MAX + 1, 1), Err(Denied::TooBig));
    assert_eq!(patch(&mut world, 1, PATCHES_MAX + 1), Err(Denied::TooBig));
    assert_eq!(patch(&mut world, PATCHES_LEN_MAX, 1), Ok(()));
    assert_eq!(patch(&mut world, 1, 1), Err(Denied::TooBig));
    assert!(world.write(&alice, file, content(9, 9), false).is_ok(), "the whole takes their place");
    (base, over) = (base + 1, 0);
    let mut patch = |world: &mut World, count: usize| {
        let patches = vec![Bytes::from_static(b"x"); count];
        let content = Content { size: 9, allocated: 9, patches, ..Content::default() };
        let (mtime, atime, form) = (None, None, Form::Patch { over });
        let commit = Commit { ino: file, base: Some(base), content, form, mtime, atime, opened: false };
        let done = world.run(&alice, Op::Commit(commit)).map(drop);
        (base, over) = (base + 1, over + count as u32);
        done
    };
    assert_eq!(patch(&mut world, PATCHES_MAX), Ok(()));
    assert_eq!(patch(&mut world, 1), Err(Denied::TooBig));
    assert_eq!(world.state.audit(), Ok(()));
}

#[test]
fn content_has_limits() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let link = world.create(&alice, root, "l", new(Kind::Symlink, 0)).unwrap().ino;
    let recipe = |len| Content { sealed: Bytes::from(vec![1; len]), ..content(1, 1) };
    assert!(world.write(&alice, file, recipe(RECIPE_MAX), false).is_ok());
    assert_eq!(world.write(&alice, file, recipe(RECIPE_MAX + 1), false), Err(Denied::Invalid));
    assert_eq!(world.write(&alice, file, content(1, 2), false), Err(Denied::Invalid));
    assert!(world.write(&alice, file, content(i64::MAX as u64, 0), false).is_ok());
    assert_eq!(world.write(&alice, file, content(1 << 63, 0), false), Err(Denied::TooBig));
    assert_eq!(world.write(&alice, root, content(1, 1), false), Err(Denied::IsDirectory));
    assert_eq!(world.write(&alice, link, content(1, 1), false), Err(Denied::Invalid));
    assert_eq!(world.write(&alice, Ino(999), content(1, 1), false), Err(Denied::Stale));
}

#[test]
fn a_write_takes_set_id_bits_away_unless_by_root() {
    let mut world = World::new();
    let (root, writer) = (world.root, member(BOB, &[ALICE]));
    let file = world.file(ALICE, root, "f", 0o777);
    world.chmod(&user(ALICE), file, 0o6777).unwrap();
    assert_eq!(world.write(&user(ROOT), file, content(1, 1), false).unwrap().mode, 0o6777);
    assert_eq!(world.write(&writer, file, content(1, 1), false).unwrap().mode, 0o777);
    world.chmod(&user(ALICE), file, 0o2767).unwrap();
    assert_eq!(world.write(&writer, file, content(1, 1), false).unwrap().mode, 0o2767, "no group execute");
}

#[test]
fn an_open_file_stays_writable_to_those_who_could_open_it() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o666);
    let (alice, bob) = (user(ALICE), user(BOB));
    let one = || content(1, 1);
    world.chmod(&alice, file, 0o644).unwrap();
    assert_eq!(world.write(&bob, file, one(), false), Err(Denied::Access), "as truncate would be");
    assert!(world.write(&bob, file, one(), true).is_ok(), "it was open when the mode changed");
    world.chmod(&alice, file, 0o444).unwrap();
    assert!(world.write(&bob, file, one(), true).is_ok(), "a second change forgets nothing");
    assert!(world.write(&alice, file, one(), true).is_ok(), "the owner made it so");
    assert_eq!(world.write(&alice, file, one(), false), Err(Denied::Access));
    world.later(ORPHAN_TERM.as_secs());
    assert_eq!(world.write(&bob, file, one(), true), Err(Denied::Access), "not for ever");
    world.chown(&user(ROOT), file, Some(2000), None).unwrap();
    assert!(world.write(&alice, file, one(), true).is_ok(), "the file was given away under it");
}

#[test]
fn a_creator_writes_to_what_it_made_unwritable() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "object", 0o444);
    assert!(world.write(&user(ALICE), file, content(1, 1), true).is_ok());
    assert_eq!(world.write(&user(ALICE), file, content(2, 2), false), Err(Denied::Access));
    assert_eq!(world.write(&user(BOB), file, content(2, 2), true), Err(Denied::Access));
}

#[test]
fn an_open_file_is_opened_again_by_those_who_could_open_it() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "object", 0o444);
    world.write(&user(ALICE), file, content(3, 3), true).unwrap();
    let secret = world.file(ROOT, root, "shadow", 0o600);
    let again = WRITE | OPENED;
    let open = |world: &mut World, uid, ino, mask| world.run(&user(uid), Op::Open { ino, mask });
    assert_eq!(open(&mut world, ALICE, file, WRITE), Err(Denied::Access), "as the mode has it");
    let Ok(Reply::Opened { content: held, .. }) = open(&mut world, ALICE, file, again) else { panic!() };
    assert_eq!(held, content(3, 3));
    assert_eq!(open(&mut world, BOB, file, again), Err(Denied::Access), "it never could");
    assert_eq!(open(&mut world, BOB, secret, again), Err(Denied::Access), "saying so opens nothing");
    assert_eq!(open(&mut world, ALICE, file, again | EXECUTE), Err(Denied::Access), "the rest goes by the mode");
    assert!(open(&mut world, ALICE, file, again | READ).is_ok());
    for mask in [OPENED, OPENED | READ, again | 16, 128 | again] {
        assert_eq!(open(&mut world, ALICE, file, mask), Err(Denied::Invalid), "{mask}");
    }
    assert_eq!(open(&mut world, ROOT, root, again), Err(Denied::IsDirectory));
    let access = Op::Access { ino: file, mask: again };
    assert_eq!(world.run(&user(ALICE), access), Err(Denied::Invalid), "only to open");

    world.chmod(&user(ALICE), file, 0o666).unwrap();
    world.chmod(&user(ALICE), file, 0o644).unwrap();
    assert!(open(&mut world, BOB, file, again).is_ok(), "it was open when the mode changed");
    world.later(ORPHAN_TERM.as_secs());
    assert_eq!(open(&mut world, BOB, file, again), Err(Denied::Access), "not for ever");
}

#[test]
fn the_last_four_permissions_are_remembered() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o600);
    let owners = [2000, 2001, 2002, 2003, 2004];
    for uid in owners.into_iter().chain([BOB]) {
        world.chown(&user(ROOT), file, Some(uid), None).unwrap();
    }
    let may = |world: &mut World, uid| world.write(&user(uid), file, content(1, 1), true).is_ok();
    assert_eq!([ALICE, 2000].map(|uid| may(&mut world, uid)), [false; 2]);
    assert_eq!([2001, 2002, 2003, 2004, BOB].map(|uid| may(&mut world, uid)), [true; 5]);
}

#[test]
fn a_change_of_group_is_remembered_too() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o660);
    let bob = member(BOB, &[ALICE]);
    world.chown(&user(ROOT), file, None, Some(50)).unwrap();
    assert_eq!(world.write(&bob, file, content(1, 1), false), Err(Denied::Access));
    assert!(world.write(&bob, file, content(1, 1), true).is_ok());
}

#[test]
fn saying_it_is_open_opens_nothing() {
    let mut world = World::new();
    let root = world.root;
    let secret = world.file(ROOT, root, "shadow", 0o600);
    assert_eq!(world.write(&user(BOB), secret, content(1, 1), true), Err(Denied::Access));
    world.chmod(&user(ROOT), secret, 0o640).unwrap();
    world.chown(&user(ROOT), secret, None, Some(42)).unwrap();
    assert_eq!(world.write(&user(BOB), secret, content(1, 1), true), Err(Denied::Access));
    assert_eq!(world.write(&member(BOB, &[42]), secret, content(1, 1), true), Err(Denied::Access));
}

fn set(ino: Ino, class: XattrClass, text: &str, value: &[u8], how: XattrHow) -> Op {
    Op::SetXattr { ino, class, name: name(text), value: Bytes::copy_from_slice(value), how }
}

fn get(ino: Ino, class: XattrClass, text: &str) -> Op {
    Op::GetXattr { ino, class, name: name(text) }
}

#[test]
fn extended_attributes_are_set_read_listed_and_removed() {
    use XattrClass::{Trusted, User};
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (file, other) = (world.file(ALICE, root, "f", 0o600), world.file(ALICE, root, "g", 0o600));
    let before = world.attr(file);
    world.later(1);
    assert_eq!(world.run(&alice, set(file, User, "a", b"1", XattrHow::Replace)), Err(Denied::NoAttribute));
    assert_eq!(world.run(&alice, set(file, User, "a", b"1", XattrHow::Create)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(file, User, "a", b"2", XattrHow::Create)), Err(Denied::Exists));
    assert_eq!(world.run(&alice, set(file, User, "a", b"", XattrHow::Replace)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(file, User, "b", b"3", XattrHow::Set)), Ok(Reply::Unit));
    assert_eq!(world.run(&user(ROOT), set(file, Trusted, "a", b"4", XattrHow::Set)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(other, User, "c", b"5", XattrHow::Set)), Ok(Reply::Unit));
    let after = world.attr(file);
    assert_eq!((after.version, after.ctime, after.mtime), (before.version + 4, at(START + 1), before.mtime));
    assert_eq!(after.content_version, before.content_version);

    assert_eq!(world.run(&alice, get(file, User, "a")), Ok(Reply::Value(Bytes::new())));
    assert_eq!(world.run(&user(ROOT), get(file, Trusted, "a")), Ok(Reply::Value(Bytes::from_static(b"4"))));
    assert_eq!(world.run(&alice, get(file, User, "c")), Err(Denied::NoAttribute));
    let users = vec![(User, name("a")), (User, name("b"))];
    let all = [users.clone(), vec![(Trusted, name("a"))]].concat();
    assert_eq!(world.run(&user(BOB), Op::ListXattr { ino: file }), Ok(Reply::Names(users)));
    assert_eq!(world.run(&user(ROOT), Op::ListXattr { ino: file }), Ok(Reply::Names(all)));
    let remove = Op::RemoveXattr { ino: file, class: User, name: name("a") };
    assert_eq!(world.run(&alice, remove.clone()), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, remove), Err(Denied::NoAttribute));
    assert_eq!(world.state.counts().xattrs, 3);
    world.unlink(&alice, root, "f", false).unwrap();
    assert_eq!(world.state.counts().xattrs, 1, "they go with the inode");
}

#[test]
fn each_class_has_its_rules() {
    use XattrClass::{Security, System, Trusted, User};
    let mut world = World::new();
    let (root, alice, bob) = (world.root, user(ALICE), user(BOB));
    let file = world.file(ALICE, root, "f", 0o604);
    let fifo = world.create(&alice, root, "p", new(Kind::Fifo, 0o666)).unwrap().ino;
    let sticky = world.dir(ALICE, root, "t", 0o1777);
    for class in [User, Trusted, Security, System] {
        assert_eq!(world.run(&user(ROOT), set(file, class, "x", b"v", XattrHow::Set)), Ok(Reply::Unit));
    }
    let mut write = |caller: &Caller, ino, class| world.run(caller, set(ino, class, "x", b"v", XattrHow::Set)).err();
    assert_eq!(write(&alice, file, User), None);
    assert_eq!(write(&bob, file, User), Some(Denied::Access));
    assert_eq!(write(&user(ROOT), fifo, User), Some(Denied::NotPermitted));
    assert_eq!(write(&bob, sticky, User), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, sticky, User), None);
    assert_eq!(write(&alice, file, Trusted), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, file, Security), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, file, System), None);
    assert_eq!(write(&bob, file, System), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, Ino(999), User), Some(Denied::Stale));
    let mut read = |caller: &Caller, ino, class| world.run(caller, get(ino, class, "x")).err();
    assert_eq!(read(&bob, file, User), None);
    assert_eq!(read(&member(BOB, &[ALICE]), file, User), Some(Denied::Access));
    assert_eq!(read(&user(ROOT), fifo, User), Some(Denied::NoAttribute));
    assert_eq!(read(&alice, file, Trusted), Some(Denied::NoAttribute));
    assert_eq!(read(&bob, file, Security), None);
    assert_eq!(read(&bob, file, System), None);
    let remove = Op::RemoveXattr { ino: file, class: Security, name: name("x") };
    assert_eq!(world.run(&alice, remove), Err(Denied::NotPermitted));
}

#[test]
fn extended_attributes_are_limited() {
    use XattrClass::User;
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let biggest = vec![7; XATTR_VALUE_MAX + SEAL_LEN];
    let too_big = vec![7; XATTR_VALUE_MAX + SEAL_LEN + 1];
    assert_eq!(world.run(&alice, set(file, User, "a", &too_big, XattrHow::Set)), Err(Denied::AttributesFull));
    assert_eq!(world.run(&alice, set(file, User, "a", &biggest, XattrHow::Set)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(file, User, "b", &biggest, XattrHow::Set)), Err(Denied::AttributesFull));
    assert_eq!(world.run(&alice, set(file, User, "a", &biggest, XattrHow::Set)), Ok(Reply::Unit), "replaces itself");
    // What is left: the limit, less two names of 17 bytes with 32 each, less the first value.
    let left = XATTRS_LEN_MAX as usize - 2 * (17 + 32) - biggest.len();
    let refused = world.run(&alice, set(file, User, "b", &vec![7; left + 1], XattrHow::Set));
    assert_eq!(refused, Err(Denied::AttributesFull));
    assert_eq!(world.run(&alice, set(file, User, "b", &vec![7; left], XattrHow::Set)), Ok(Reply::Unit));
}
