//! Names: links, renames, listings, and inodes that have none left.

use base::StateMachine as _;
use meta::*;

use super::common::*;
use super::{ALICE, BOB, ROOT};

#[test]
fn links_share_an_inode() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let directory = world.dir(ALICE, root, "d", 0o700);
    world.later(1);
    let Ok(Reply::Attr(attr)) = world.link(&alice, file, directory, "g") else { panic!() };
    assert_eq!((attr.ino, attr.nlink, attr.ctime), (file, 2, at(START + 1)));
    assert_eq!(world.link(&alice, file, root, "f"), Err(Denied::Exists));
    assert_eq!(world.link(&alice, directory, root, "e"), Err(Denied::NotPermitted));
    assert_eq!(world.link(&alice, Ino(999), root, "e"), Err(Denied::Stale));
    assert_eq!(world.link(&alice, file, file, "e"), Err(Denied::NotDirectory));
    assert_eq!(world.unlink(&alice, root, "f", false), Ok(Reply::Unlinked { ino: file, nlink: 1 }));
    assert_eq!(world.attr(file).nlink, 1);
    assert_eq!(world.unlink(&alice, directory, "g", false), Ok(Reply::Unlinked { ino: file, nlink: 0 }));
    assert_eq!(world.run(&alice, Op::GetAttr { ino: file }), Err(Denied::Stale));
}

#[test]
fn links_are_limited() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o600);
    let link = |index: u32| Call {
        caller: user(ALICE),
        op: Op::Link { ino: file, parent: root, name: name(&index.to_string()) },
    };
    for first in (1..LINKS_MAX).step_by(BATCH_MAX) {
        let batch = Batch::new((first..LINKS_MAX.min(first + BATCH_MAX as u32)).map(link).collect());
        let answers = world.state.apply_batch(world.now, &key(1), &batch);
        assert!(answers.iter().all(|answer| matches!(answer, Answer::Done(_))));
    }
    assert_eq!(world.attr(file).nlink, LINKS_MAX);
    assert_eq!(world.link(&user(ALICE), file, root, "one more"), Err(Denied::TooManyLinks));
}

#[test]
fn unlink_is_for_files_and_rmdir_for_empty_directories() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let directory = world.dir(ALICE, root, "d", 0o700);
    world.file(ALICE, root, "f", 0o600);
    world.file(ALICE, directory, "g", 0o600);
    assert_eq!(world.unlink(&alice, root, "d", false), Err(Denied::IsDirectory));
    assert_eq!(world.rmdir(&alice, root, "f"), Err(Denied::NotDirectory));
    assert_eq!(world.rmdir(&alice, root, "d"), Err(Denied::NotEmpty));
    assert_eq!(world.rmdir(&alice, root, "none"), Err(Denied::NotFound));
    assert_eq!(world.unlink(&alice, root, "none", false), Err(Denied::NotFound));
    world.unlink(&alice, directory, "g", false).unwrap();
    assert_eq!(world.rmdir(&alice, root, "d"), Ok(Reply::Unit));
    let attr = world.attr(root);
    assert_eq!((attr.nlink, attr.size), (2, 1));
    assert_eq!(world.run(&alice, Op::GetAttr { ino: directory }), Err(Denied::Stale));
    assert_eq!(world.file(ALICE, root, "h", 0o600), Ino(5), "numbers are not used again");
}

#[test]
fn a_directory_knows_its_parent() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let outer = world.dir(ALICE, root, "outer", 0o700);
    let inner = world.dir(ALICE, outer, "inner", 0o700);
    let file = world.file(ALICE, outer, "f", 0o600);
    let parent = |world: &mut World, uid, ino| match world.run(&user(uid), Op::Parent { ino }) {
        Ok(Reply::Attr(attr)) => Ok(attr.ino),
        Ok(other) => panic!("{other:?}"),
        Err(why) => Err(why),
    };
    assert_eq!(parent(&mut world, ALICE, inner), Ok(outer));
    assert_eq!(parent(&mut world, ALICE, root), Ok(root));
    assert_eq!(parent(&mut world, BOB, inner), Err(Denied::Access));
    assert_eq!(parent(&mut world, ALICE, file), Err(Denied::NotDirectory));
    world.rename(&alice, (outer, "inner"), (root, "inner"), RenameHow::Replace).unwrap();
    assert_eq!(parent(&mut world, ALICE, inner), Ok(root));
}

#[test]
fn rename_moves_and_replaces() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (a, b) = (world.dir(ALICE, root, "a", 0o700), world.dir(ALICE, root, "b", 0o700));
    let (f, g) = (world.file(ALICE, a, "f", 0o600), world.file(ALICE, b, "g", 0o600));
    world.later(1);
    let Ok(Reply::Renamed { moved, replaced }) = world.rename(&alice, (a, "f"), (b, "g"), RenameHow::Replace) else {
        panic!()
    };
    assert_eq!((moved.ino, moved.ctime, replaced), (f, at(START + 1), Some((g, 0))));
    assert_eq!(world.lookup(&alice, a, "f"), Err(Denied::NotFound));
    assert_eq!(world.lookup(&alice, b, "g").unwrap().ino, f);
    let (from, to) = (world.attr(a), world.attr(b));
    assert_eq!((from.size, from.mtime, from.ctime), (0, at(START + 1), at(START + 1)));
    assert_eq!((to.size, to.mtime, to.ctime), (1, at(START + 1), at(START + 1)));
    let Ok(Reply::Renamed { replaced: Some((gone, 0)), .. }) =
        world.rename(&alice, (root, "a"), (root, "a"), RenameHow::Replace).and_then(|_| {
            world.dir(ALICE, b, "sub", 0o700);
            world.rename(&alice, (b, "sub"), (root, "a"), RenameHow::Replace)
        })
    else {
        panic!("an empty directory is replaced by a directory")
    };
    assert_eq!(gone, a);
    assert_eq!((world.attr(root).nlink, world.attr(b).nlink), (4, 2));
}

#[test]
fn rename_refuses_what_makes_no_sense() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let outer = world.dir(ALICE, root, "outer", 0o700);
    let inner = world.dir(ALICE, outer, "inner", 0o700);
    let file = world.file(ALICE, root, "f", 0o600);
    world.dir(ALICE, root, "empty", 0o700);
    let mut rename = |from, to, how| world.rename(&alice, from, to, how).err();
    let replace = RenameHow::Replace;
    assert_eq!(rename((root, "f"), (root, "outer"), replace), Some(Denied::IsDirectory));
    assert_eq!(rename((root, "outer"), (root, "f"), replace), Some(Denied::NotDirectory));
    assert_eq!(rename((root, "empty"), (root, "outer"), replace), Some(Denied::NotEmpty));
    assert_eq!(rename((root, "outer"), (outer, "x"), replace), Some(Denied::Invalid));
    assert_eq!(rename((root, "outer"), (inner, "x"), replace), Some(Denied::Invalid));
    assert_eq!(rename((outer, "inner"), (root, "outer"), replace), Some(Denied::NotEmpty));
    assert_eq!(rename((outer, "inner"), (root, "outer"), RenameHow::Exchange), Some(Denied::Invalid));
    assert_eq!(rename((root, "outer"), (outer, "inner"), RenameHow::Exchange), Some(Denied::Invalid));
    assert_eq!(rename((root, "none"), (root, "x"), replace), Some(Denied::NotFound));
    assert_eq!(rename((root, "f"), (root, "none"), RenameHow::Exchange), Some(Denied::NotFound));
    assert_eq!(rename((root, "f"), (root, "empty"), RenameHow::NoReplace), Some(Denied::Exists));
    assert_eq!(rename((root, "f"), (root, "f"), RenameHow::NoReplace), Some(Denied::Exists));
    assert_eq!(rename((root, "f"), (file, "x"), replace), Some(Denied::NotDirectory));
    assert_eq!(rename((root, "f"), (outer, "g"), RenameHow::NoReplace), None);
}

#[test]
fn rename_between_names_of_one_inode_does_nothing() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    world.link(&alice, file, root, "g").unwrap();
    let digest = world.state.digest();
    for how in [RenameHow::Replace, RenameHow::Exchange] {
        let reply = world.rename(&alice, (root, "f"), (root, "g"), how);
        assert!(matches!(reply, Ok(Reply::Renamed { replaced: None, moved }) if moved.ino == file));
    }
    assert_eq!(world.state.digest(), digest);
}

#[test]
fn exchange_swaps_whatever_is_there() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (a, b) = (world.dir(ALICE, root, "a", 0o700), world.dir(ALICE, root, "b", 0o700));
    let (directory, file) = (world.dir(ALICE, a, "x", 0o700), world.file(ALICE, b, "y", 0o600));
    world.file(ALICE, directory, "kept", 0o600);
    world.rename(&alice, (a, "x"), (b, "y"), RenameHow::Exchange).unwrap();
    assert_eq!(world.lookup(&alice, a, "x").unwrap().ino, file);
    assert_eq!(world.lookup(&alice, b, "y").unwrap().ino, directory);
    assert_eq!((world.attr(a).nlink, world.attr(b).nlink), (2, 3));
    assert_eq!(world.run(&alice, Op::Parent { ino: directory }), Ok(Reply::Attr(world.attr(b))));
    assert!(world.lookup(&alice, directory, "kept").is_ok());
}

#[test]
fn a_directory_leaves_its_parent_only_for_those_who_may_write_to_it() {
    let mut world = World::new();
    let root = world.root;
    let (shared, other) = (world.dir(ALICE, root, "shared", 0o777), world.dir(ALICE, root, "other", 0o777));
    world.dir(BOB, shared, "bobs", 0o755);
    world.file(BOB, shared, "file", 0o600);
    world.dir(2000, other, "carols", 0o700);
    let carol = user(2000);
    let mut rename = |from, to, how| world.rename(&carol, from, to, how).err();
    assert_eq!(rename((shared, "bobs"), (other, "x"), RenameHow::Replace), Some(Denied::Access));
    assert_eq!(rename((other, "carols"), (shared, "bobs"), RenameHow::Exchange), Some(Denied::Access));
    assert_eq!(rename((shared, "file"), (other, "file"), RenameHow::Replace), None, "files do not mind");
    assert_eq!(rename((shared, "bobs"), (shared, "renamed"), RenameHow::Replace), None, "its `..` stays");
}

#[test]
fn nothing_crosses_volumes() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let Ok(Reply::Volume(other)) = world.run(&user(ROOT), Op::VolumeCreate(spec("other"))) else { panic!() };
    let file = world.file(ALICE, root, "f", 0o600);
    assert_eq!(world.link(&alice, file, other.root, "f"), Err(Denied::CrossVolume));
    let moved = world.rename(&alice, (root, "f"), (other.root, "f"), RenameHow::Replace);
    assert_eq!(moved, Err(Denied::CrossVolume));
}

#[test]
fn a_walk_for_loops_is_bounded() {
    let mut world = World::new();
    let root = world.root;
    world.dir(ALICE, root, "d", 0o700);
    let mut deepest = root;
    let mut chain = Vec::new();
    for _ in 0..DEPTH_MAX {
        let create = Op::Create { parent: deepest, name: name("x"), new: new(Kind::Directory, 0o700), exclusive: true };
        let call = Call { caller: user(ALICE), op: create };
        let answers = world.state.apply_batch(world.now, &key(1), &Batch::new(vec![call]));
        let [Answer::Done(Reply::Created { attr, .. })] = &answers[..] else { panic!("{answers:?}") };
        deepest = attr.ino;
        chain.push(deepest);
    }
    let too_deep = world.rename(&user(ALICE), (root, "d"), (deepest, "d"), RenameHow::Replace);
    assert_eq!(too_deep, Err(Denied::Invalid));
    let above = chain[DEPTH_MAX - 2];
    assert!(world.rename(&user(ALICE), (root, "d"), (above, "d"), RenameHow::Replace).is_ok());
    assert!(world.rename(&user(ALICE), (above, "d"), (root, "d"), RenameHow::Replace).is_ok(), "upwards always");
}

#[test]
fn places_are_stable() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    for text in ["a", "b", "c"] {
        world.file(ALICE, root, text, 0o600);
    }
    let places = |world: &mut World| -> Vec<(u64, SealedName)> {
        world.list(root, 2).into_iter().map(|entry| (entry.cookie, entry.name)).collect()
    };
    assert_eq!(places(&mut world), [(3, name("a")), (4, name("b")), (5, name("c"))]);
    world.unlink(&alice, root, "b", false).unwrap();
    world.file(ALICE, root, "b", 0o600);
    assert_eq!(places(&mut world), [(3, name("a")), (5, name("c")), (6, name("b"))], "no place is used twice");
    world.rename(&alice, (root, "a"), (root, "d"), RenameHow::Replace).unwrap();
    assert_eq!(places(&mut world), [(3, name("d")), (5, name("c")), (6, name("b"))], "renamed in place");
    world.rename(&alice, (root, "d"), (root, "c"), RenameHow::Replace).unwrap();
    assert_eq!(places(&mut world), [(5, name("c")), (6, name("b"))], "takes the place of what it replaces");
}

#[test]
fn listings_are_bounded() {
    let mut world = World::new();
    let root = world.root;
    let long = |index: usize| format!("{index:0>255}");
    for first in (0..1000).step_by(250) {
        let call = |index| Call {
            caller: user(ALICE),
            op: Op::Create { parent: root, name: name(&long(index)), new: new(Kind::File, 0o600), exclusive: true },
        };
        let batch = Batch::new((first..first + 250).map(call).collect());
        world.state.apply_batch(world.now, &key(1), &batch);
    }
    use base::Encode as _;
    let reply = world.run(&user(ALICE), Op::ReadDir { ino: root, cookie: 0, max: u32::MAX }).unwrap();
    let len = reply.to_bytes().len();
    let Reply::Entries { entries, end: false } = reply else { panic!() };
    assert!((60_000..100_000).contains(&len) && entries.len() < 512, "{len} bytes, {} entries", entries.len());
    assert_eq!(world.list(root, 512).len(), 1000);
    assert_eq!(world.run(&user(ALICE), Op::ReadDir { ino: root, cookie: 0, max: 0 }), Err(Denied::Invalid));
    let past = world.run(&user(ALICE), Op::ReadDir { ino: root, cookie: u64::MAX, max: 5 });
    assert_eq!(past, Ok(Reply::Entries { entries: vec![], end: true }));

    let call = Call { caller: user(ALICE), op: Op::ReadDir { ino: root, cookie: 0, max: 512 } };
    let answers = world.state.apply_batch(world.now, &key(1), &Batch::new(vec![call; BATCH_MAX]));
    assert!(answers.to_bytes().len() < ANSWERS_LEN_MAX + 128 * 1024);
    assert!(matches!(answers[0], Answer::Done(_)));
    assert_eq!(answers[BATCH_MAX - 1], Answer::Denied(Denied::TooBig));
}

#[test]
fn an_orphan_works_until_it_is_released() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    world.unlink(&alice, root, "f", true).unwrap();
    assert_eq!((world.attr(file).nlink, world.state.counts().orphans), (0, 1));
    assert!(world.run(&alice, Op::Open { ino: file, mask: 6 }).is_ok());
    assert!(world.write(&alice, file, content(100, 100), true).is_ok());
    assert!(world.chmod(&alice, file, 0o400).is_ok());
    assert_eq!(world.space().used_bytes, 100);
    assert_eq!(world.link(&alice, file, root, "g"), Err(Denied::NotFound));
    world.key = key(2);
    assert_eq!(world.run(&alice, Op::ReleaseOrphan { ino: file }), Err(Denied::NotPermitted), "another key's");
    assert_eq!(world.run(&alice, Op::KeepOrphan { ino: file }), Err(Denied::NotPermitted));
    world.key = key(1);
    assert_eq!(world.run(&user(BOB), Op::ReleaseOrphan { ino: file }), Ok(Reply::Unit), "one mount, many users");
    assert_eq!(world.run(&alice, Op::GetAttr { ino: file }), Err(Denied::Stale));
    assert_eq!(world.run(&alice, Op::ReleaseOrphan { ino: file }), Err(Denied::Stale));
    assert_eq!(world.run(&alice, Op::KeepOrphan { ino: root }), Err(Denied::Invalid));
    assert_eq!((world.space().used_bytes, world.space().used_inodes), (0, 1));
}

#[test]
fn what_a_rename_replaces_can_be_kept() {
    let mut world = World::new();
    let root = world.root;
    let (from_name, to_name) = (name("f"), name("g"));
    world.file(ALICE, root, "f", 0o600);
    let kept = world.file(ALICE, root, "g", 0o600);
    let op = Op::Rename { from: root, from_name, to: root, to_name, how: RenameHow::Replace, keep: true };
    let Ok(Reply::Renamed { replaced, .. }) = world.run(&user(ALICE), op) else { panic!() };
    assert_eq!(replaced, Some((kept, 0)));
    assert_eq!(world.attr(kept).nlink, 0);
}

#[test]
fn an_orphan_goes_after_an_hour_unless_kept() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (lost, kept) = (world.file(ALICE, root, "f", 0o600), world.file(ALICE, root, "g", 0o600));
    world.unlink(&alice, root, "f", true).unwrap();
    world.unlink(&alice, root, "g", true).unwrap();
    world.later(3599);
    assert_eq!(world.run(&alice, Op::KeepOrphan { ino: kept }), Ok(Reply::Unit));
    assert_eq!(world.attr(lost).nlink, 0);
    world.later(1);
    assert_eq!(world.run(&alice, Op::GetAttr { ino: lost }), Err(Denied::Stale));
    world.later(3598);
    assert_eq!(world.attr(kept).nlink, 0);
    world.later(1);
    assert_eq!(world.run(&alice, Op::GetAttr { ino: kept }), Err(Denied::Stale));
}

#[test]
fn orphans_are_reaped_a_few_at_a_time_and_the_oldest_first() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let files: Vec<_> = (0..40).map(|index| world.file(ALICE, root, &format!("f{index}"), 0o600)).collect();
    for index in 0..40 {
        world.later(1);
        world.unlink(&alice, root, &format!("f{index}"), true).unwrap();
    }
    world.later(10_000);
    world.state.apply_batch(world.now, &key(1), &Batch::new(vec![]));
    assert_eq!(world.state.counts().orphans, 24);
    let probe = |ino| Call { caller: user(ROOT), op: Op::GetAttr { ino } };
    let batch = Batch::new(vec![probe(files[16]), probe(files[18])]);
    let answers = world.state.apply_batch(world.now, &key(1), &batch);
    assert_eq!(answers[0], Answer::Denied(Denied::Stale));
    assert_eq!(world.state.counts().orphans, 6);
    world.state.apply_batch(world.now, &key(1), &Batch::new(vec![]));
    assert_eq!(world.state.counts().orphans, 0);
    assert_eq!(world.state.audit(), Ok(()));
}

#[test]
fn time_never_goes_back() {
    let mut world = World::new();
    let root = world.root;
    world.later(10);
    world.file(ALICE, root, "f", 0o600);
    world.now = base::Time::ZERO;
    let file = world.create(&user(ALICE), root, "g", new(Kind::File, 0o600)).unwrap();
    assert_eq!(file.ctime, at(START + 10));
    assert_eq!(world.state.now(), base::Time::from_parts(START + 10, 0));
}
