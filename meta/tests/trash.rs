//! Trash: what lost its last name is found where it was, for as long as its volume keeps it.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::mount::Mount;
use common::*;
use meta::*;
use proptest::prelude::*;

const ROOT: u32 = 0;
const ALICE: u32 = 1000;
const BOB: u32 = 2000;
/// As [`World::throwing`] has it.
const KEPT: u32 = 100;

fn world() -> World {
    World::throwing()
}

/// What was thrown away from a directory: names, inodes, and whether the name leads to something else.
fn thrown(world: &mut World, home: Ino) -> Vec<(SealedName, Ino, bool)> {
    let (mut all, mut cookie, mut end) = (Vec::new(), 0, false);
    while !end {
        let listed = world.run(&user(ROOT), Op::ReadDir { ino: home.in_trash(), cookie, max: 2 });
        let Ok(Reply::Entries { entries, end: last }) = listed else { panic!("{home:?}: {listed:?}") };
        end = last;
        for DirEntry { cookie: at, name, attr } in entries {
            assert!(attr.ino.is_in_trash() && attr.nlink == 1 && at >> THROWN_SHIFT == attr.ino.now().0, "{attr:?}");
            assert!(at > cookie, "in order");
            cookie = at;
            all.push((name, attr.ino.now(), at & THROWN_HIDDEN != 0));
        }
    }
    all
}

fn names(world: &mut World, home: Ino) -> Vec<(SealedName, bool)> {
    thrown(world, home).into_iter().map(|(name, _, hidden)| (name, hidden)).collect()
}

/// Lets what was made be old enough to be kept.
fn age(world: &mut World) {
    world.later(THROWN_AGE.as_secs());
}

fn find(world: &mut World, caller: u32, home: Ino, text: &str) -> Result<Ino, Denied> {
    world.lookup(&user(caller), home.in_trash(), text).map(|attr| attr.ino.now())
}

fn restore(world: &mut World, caller: u32, ino: Ino, parent: Ino, text: &str) -> Result<Reply, Denied> {
    world.run(&user(caller), Op::Restore { ino, parent, name: name(text) })
}

fn purge(world: &mut World, caller: u32, ino: Ino) -> Result<Reply, Denied> {
    world.run(&user(caller), Op::Purge { ino })
}

fn size_of(world: &mut World, caller: u32, ino: Ino) -> Result<u64, Denied> {
    world.run(&user(caller), Op::Open { ino, mask: READ }).map(|reply| match reply {
        Reply::Opened { content, attr } => {
            assert_eq!((content.size, attr.ino), (attr.size, ino));
            content.size
        }
        other => panic!("{other:?}"),
    })
}

#[test]
fn what_is_removed_is_found_where_it_was_and_restored() {
    let mut world = world();
    let dir = world.dir(ALICE, world.root, "d", 0o755);
    let file = world.file(ALICE, dir, "f", 0o640);
    world.write(&user(ALICE), file, content(10, 10), true).unwrap();
    let (class, value, how) = (XattrClass::User, Bytes::from_static(b"value"), XattrHow::Set);
    world.run(&user(ALICE), Op::SetXattr { ino: file, class, name: name("x"), value, how }).unwrap();
    age(&mut world);
    world.unlink(&user(ALICE), dir, "f", false).unwrap();
    assert_eq!(world.run(&user(ALICE), Op::GetAttr { ino: file }), Err(Denied::Stale), "as if it were not there");
    assert_eq!(world.list(dir, 10), []);

    assert_eq!(names(&mut world, dir), [(name("f"), false)]);
    assert_eq!(find(&mut world, ALICE, dir, "f"), Ok(file));
    assert_eq!(find(&mut world, ALICE, dir, "g"), Err(Denied::NotFound));
    assert_eq!(size_of(&mut world, ALICE, file.in_trash()), Ok(10));
    assert_eq!(size_of(&mut world, BOB, file.in_trash()), Err(Denied::Access), "its rights are what they were");
    let listed = world.run(&user(ALICE), Op::ListXattr { ino: file.in_trash() });
    assert_eq!(listed, Ok(Reply::Names(vec![(XattrClass::User, name("x"))])));

    assert_eq!(restore(&mut world, BOB, file, dir, "f"), Err(Denied::Access));
    let other = world.dir(BOB, world.root, "b", 0o777);
    assert_eq!(restore(&mut world, BOB, file, other, "f"), Err(Denied::Access), "it is not his to take away");
    world.file(ALICE, dir, "f", 0o644);
    assert_eq!(restore(&mut world, ALICE, file, dir, "f"), Err(Denied::Exists));
    world.later(1);
    let restored = restore(&mut world, ALICE, file, dir, "g");
    assert_eq!(restored, Ok(Reply::Attr(world.attr(file))));
    let attr = world.lookup(&user(ALICE), dir, "g").unwrap();
    assert_eq!((attr.ino, attr.nlink, attr.size, attr.ctime), (file, 1, 10, at(START + 11)));
    assert_eq!(names(&mut world, dir), []);
    assert_eq!(restore(&mut world, ALICE, file, dir, "h"), Err(Denied::NotFound), "once");
}

#[test]
fn of_one_name_the_last_is_found_and_all_are_listed() {
    let mut world = world();
    let root = world.root;
    let mut files = Vec::new();
    for _ in 0..3 {
        world.later(1);
        files.push(world.file(ALICE, root, "f", 0o644));
        age(&mut world);
        world.unlink(&user(ALICE), root, "f", false).unwrap();
    }
    assert_eq!(find(&mut world, ALICE, root, "f"), Ok(files[2]));
    let hidden = |world: &mut World| thrown(world, root).into_iter().map(|(_, ino, hidden)| (ino, hidden)).collect();
    let all: Vec<_> = hidden(&mut world);
    assert_eq!(all, [(files[0], true), (files[1], true), (files[2], false)]);
    // A directory that is there now is what the name leads to.
    let there = world.dir(ALICE, root, "f", 0o755);
    assert_eq!(find(&mut world, ALICE, root, "f"), Ok(there));
    let all: Vec<_> = hidden(&mut world);
    assert_eq!(all, [(files[0], true), (files[1], true), (files[2], true)]);
    world.rmdir(&user(ALICE), root, "f").unwrap();
    // What a rename replaces is thrown away, too.
    let [old, new] = ["a", "b"].map(|name| world.file(ALICE, root, name, 0o644));
    age(&mut world);
    world.rename(&user(ALICE), (root, "b"), (root, "a"), RenameHow::Replace).unwrap();
    assert_eq!(find(&mut world, ALICE, root, "a"), Ok(old));
    assert_eq!(world.lookup(&user(ALICE), root, "a").unwrap().ino, new);
    let [over, moved] = ["c", "d"].map(|name| world.dir(ALICE, root, name, 0o755));
    age(&mut world);
    world.rename(&user(ALICE), (root, "d"), (root, "c"), RenameHow::Replace).unwrap();
    assert_eq!(find(&mut world, ALICE, root, "c"), Ok(moved), "it is there");
    assert!(thrown(&mut world, root).contains(&(name("c"), over, true)));
    assert_eq!(world.attr(moved).nlink, 2);
    // With another name left nothing is.
    world.link(&user(ALICE), new, root, "e").unwrap();
    world.unlink(&user(ALICE), root, "e", false).unwrap();
    assert_eq!(find(&mut world, ALICE, root, "e"), Err(Denied::NotFound));
}

#[test]
fn a_tree_that_is_removed_is_a_tree_in_the_trash() {
    let mut world = world();
    let root = world.root;
    let top = world.dir(ALICE, root, "top", 0o755);
    let sub = world.dir(ALICE, top, "sub", 0o755);
    let file = world.file(ALICE, sub, "f", 0o644);
    age(&mut world);
    world.unlink(&user(ALICE), sub, "f", false).unwrap();
    world.rmdir(&user(ALICE), top, "sub").unwrap();
    world.rmdir(&user(ALICE), root, "top").unwrap();
    assert_eq!(find(&mut world, BOB, root, "top"), Ok(top));
    assert_eq!(find(&mut world, BOB, top, "sub"), Ok(sub));
    assert_eq!(find(&mut world, BOB, sub, "f"), Ok(file));
    let parent = world.run(&user(BOB), Op::Parent { ino: sub.in_trash() });
    assert!(matches!(parent, Ok(Reply::Attr(attr)) if attr.ino == top.in_trash()), "{parent:?}");

    // Nobody gets into what was removed as if it were there.
    let made = Op::Create { parent: top, name: name("x"), new: new(Kind::File, 0o644), exclusive: true };
    let into = Op::Rename {
        from: root,
        from_name: name("other"),
        to: top,
        to_name: name("x"),
        how: RenameHow::Replace,
        keep: false,
    };
    world.file(ALICE, root, "other", 0o644);
    for op in [made, into, Op::ReadDir { ino: top, cookie: 0, max: 9 }, Op::Lookup { parent: top, name: name("sub") }] {
        assert_eq!(world.run(&user(ALICE), op.clone()), Err(Denied::Stale), "{op:?}");
    }
    assert_eq!(restore(&mut world, ALICE, file, top, "f"), Err(Denied::Stale));

    assert_eq!(purge(&mut world, ALICE, top), Err(Denied::NotEmpty));
    restore(&mut world, ALICE, top, root, "again").unwrap();
    assert_eq!(world.attr(top).nlink, 2);
    restore(&mut world, ALICE, sub, top, "sub").unwrap();
    assert_eq!(world.attr(top).nlink, 3);
    restore(&mut world, ALICE, file, sub, "f").unwrap();
    assert_eq!(world.state.counts().thrown, 0);
    assert_eq!(world.lookup(&user(BOB), sub, "f").unwrap().ino, file);
}

#[test]
fn it_goes_when_its_time_is_up_and_what_was_in_a_directory_goes_first() {
    let mut world = world();
    let root = world.root;
    let before = world.space();
    let dir = world.dir(ALICE, root, "d", 0o755);
    let file = world.file(ALICE, dir, "f", 0o644);
    world.write(&user(ALICE), file, content(10, 10), true).unwrap();
    age(&mut world);
    world.unlink(&user(ALICE), dir, "f", false).unwrap();
    world.later(10);
    world.rmdir(&user(ALICE), root, "d").unwrap();
    let space = world.space();
    assert_eq!((space.used_inodes, space.used_bytes), (before.used_inodes + 2, before.used_bytes + 10), "it counts");
    world.later(u64::from(KEPT) - 11);
    assert_eq!(find(&mut world, ALICE, dir, "f"), Ok(file));
    world.later(1);
    assert_eq!(find(&mut world, ALICE, dir, "f"), Err(Denied::NotFound));
    assert_eq!(restore(&mut world, ALICE, file, root, "f"), Err(Denied::NotFound));
    assert_eq!(find(&mut world, ALICE, root, "d"), Ok(dir));
    world.later(10);
    assert_eq!(find(&mut world, ALICE, root, "d"), Err(Denied::NotFound));
    assert_eq!((world.space(), world.state.counts().thrown), (before, 0));
    // All at the same moment, too.
    let dir = world.dir(ALICE, root, "d", 0o755);
    world.file(ALICE, dir, "f", 0o644);
    age(&mut world);
    world.unlink(&user(ALICE), dir, "f", false).unwrap();
    world.rmdir(&user(ALICE), root, "d").unwrap();
    world.later(u64::from(KEPT) + 1);
    assert_eq!(names(&mut world, root), []);
    assert_eq!((world.space(), world.state.counts().thrown), (before, 0));
}

#[test]
fn administrators_say_for_how_long_and_empty_it() {
    let mut world = world();
    let (root, volume) = (world.root, world.volume);
    let remove = |world: &mut World, text| {
        world.file(ALICE, root, text, 0o644);
        age(world);
        world.unlink(&user(ALICE), root, text, false).unwrap();
    };
    remove(&mut world, "f");
    world.key = key(2);
    for op in [Op::TrashEmpty { volume }, Op::TrashKeep { volume, seconds: 0 }] {
        assert_eq!(world.run(&user(ALICE), op.clone()), Err(Denied::NotGranted), "{op:?}");
    }
    world.key = key(1);
    let none = VolumeId(77);
    for op in [Op::TrashEmpty { volume: none }, Op::TrashKeep { volume: none, seconds: 0 }] {
        assert_eq!(world.run(&user(ROOT), op.clone()), Err(Denied::NotFound), "{op:?}");
    }
    world.run(&user(ROOT), Op::TrashKeep { volume, seconds: 2 * KEPT }).unwrap();
    world.later(u64::from(KEPT) + 1);
    assert_eq!(names(&mut world, root), [(name("f"), false)]);
    world.run(&user(ROOT), Op::TrashEmpty { volume }).unwrap();
    assert_eq!(names(&mut world, root), []);
    remove(&mut world, "g");
    assert_eq!(names(&mut world, root), [(name("g"), false)], "what comes later is kept as before");
    // Without a trash, what has nothing in it is gone at once; a directory shows what it had.
    let dir = world.dir(ALICE, root, "d", 0o755);
    world.file(ALICE, dir, "f", 0o644);
    age(&mut world);
    world.unlink(&user(ALICE), dir, "f", false).unwrap();
    world.run(&user(ROOT), Op::TrashKeep { volume, seconds: 0 }).unwrap();
    world.run(&user(ROOT), Op::TrashKeep { volume, seconds: KEPT }).unwrap();
    assert_eq!(names(&mut world, dir), [], "it does not come back");
    world.run(&user(ROOT), Op::TrashKeep { volume, seconds: 0 }).unwrap();
    world.rmdir(&user(ALICE), root, "d").unwrap();
    remove(&mut world, "h");
    world.later(1);
    assert_eq!((names(&mut world, root), world.state.counts().thrown), (vec![], 0));
}

#[test]
fn what_is_open_is_there_for_whoever_has_it_open() {
    let mut world = world();
    let root = world.root;
    let [file, other] = ["f", "g"].map(|name| world.file(ALICE, root, name, 0o644));
    age(&mut world);
    world.unlink(&user(ALICE), root, "f", true).unwrap();
    world.unlink(&user(ALICE), root, "g", true).unwrap();
    world.write(&user(ALICE), file, content(7, 7), true).unwrap();
    assert_eq!(world.attr(file).nlink, 0);
    assert_eq!(size_of(&mut world, ALICE, file.in_trash()), Ok(7), "as it is");
    assert_eq!(world.link(&user(ALICE), file, root, "f"), Err(Denied::NotFound), "a link is not how it comes back");
    // Let go of, it is in the trash alone; its time up, with whoever has it alone.
    world.run(&user(ALICE), Op::ReleaseOrphan { ino: file }).unwrap();
    assert_eq!(world.run(&user(ALICE), Op::GetAttr { ino: file }), Err(Denied::Stale));
    assert_eq!(find(&mut world, ALICE, root, "f"), Ok(file));
    world.later(u64::from(KEPT) + 1);
    assert_eq!(find(&mut world, ALICE, root, "f"), Err(Denied::NotFound));
    assert_eq!((world.attr(other).nlink, world.state.counts().thrown), (0, 0));
    world.run(&user(ALICE), Op::ReleaseOrphan { ino: other }).unwrap();
    assert_eq!((world.state.counts().inodes, world.state.counts().orphans), (1, 0));
    // Restored while it is open, it is a file like others.
    let file = world.file(ALICE, root, "f", 0o644);
    age(&mut world);
    world.unlink(&user(ALICE), root, "f", true).unwrap();
    restore(&mut world, ALICE, file, root, "f").unwrap();
    assert_eq!(world.run(&user(ALICE), Op::ReleaseOrphan { ino: file }), Err(Denied::Invalid));
    world.later(2 * ORPHAN_TERM.as_secs());
    assert_eq!(world.attr(file).nlink, 1);
}

#[test]
fn it_makes_room_where_a_quota_is_in_the_way_and_never_in_vain() {
    let mut world = World::with(VolumeSpec { trash: KEPT, quota_bytes: 100, quota_inodes: 6, ..spec("small") });
    let root = world.root;
    for text in ["a", "b", "c"] {
        let file = world.file(ALICE, root, text, 0o644);
        world.write(&user(ALICE), file, content(30, 30), true).unwrap();
        age(&mut world);
        world.unlink(&user(ALICE), root, text, false).unwrap();
    }
    let file = world.file(ALICE, root, "f", 0o644);
    assert_eq!(world.write(&user(ALICE), file, content(101, 101), true), Err(Denied::Quota));
    assert_eq!(world.state.counts().thrown, 3, "it would not have been enough");
    world.write(&user(ALICE), file, content(50, 50), true).unwrap();
    assert_eq!(names(&mut world, root), [(name("c"), false)], "what was removed first has gone");
    for text in ["g", "h", "i"] {
        world.file(ALICE, root, text, 0o644);
    }
    assert_eq!(world.state.counts().thrown, 1);
    let made = world.file(ALICE, root, "j", 0o644);
    assert_eq!((world.state.counts().thrown, world.attr(made).nlink), (0, 1));
    let create = Op::Create { parent: root, name: name("k"), new: new(Kind::File, 0o644), exclusive: true };
    assert_eq!(world.run(&user(ALICE), create), Err(Denied::Quota));
}

#[test]
fn who_may_not_remove_does_not_purge_or_restore() {
    let mut world = world();
    let root = world.root;
    let sticky = world.dir(ROOT, root, "tmp", 0o1777);
    let file = world.file(ALICE, sticky, "f", 0o666);
    age(&mut world);
    world.unlink(&user(ALICE), sticky, "f", false).unwrap();
    assert_eq!(purge(&mut world, BOB, file), Err(Denied::NotPermitted));
    assert_eq!(restore(&mut world, BOB, file, root, "f"), Err(Denied::NotPermitted));
    assert_eq!(purge(&mut world, ALICE, root), Err(Denied::NotFound), "it is not in the trash");
    purge(&mut world, ALICE, file).unwrap();
    assert_eq!((world.state.counts().thrown, world.state.counts().inodes), (0, 2));
    // A directory that may not be searched hides what was in it.
    let secret = world.dir(ALICE, root, "secret", 0o700);
    world.file(ALICE, secret, "f", 0o666);
    age(&mut world);
    world.unlink(&user(ALICE), secret, "f", false).unwrap();
    world.rmdir(&user(ALICE), root, "secret").unwrap();
    assert_eq!(find(&mut world, BOB, secret, "f"), Err(Denied::Access));
    let listed = world.run(&user(BOB), Op::ReadDir { ino: secret.in_trash(), cookie: 0, max: 9 });
    assert_eq!(listed, Err(Denied::Access));
    // Nothing else changes anything there.
    let [file, home] = [file, secret].map(Ino::in_trash);
    let refused = [
        Op::Open { ino: file, mask: READ | WRITE },
        Op::SetAttr { ino: home, change: AttrChange::default() },
        Op::Create { parent: home, name: name("new"), new: new(Kind::File, 0o644), exclusive: false },
        Op::Unlink { parent: home, name: name("f"), keep: false },
        Op::Restore { ino: file, parent: root, name: name("f") },
        Op::Restore { ino: file.now(), parent: home, name: name("f") },
        Op::Purge { ino: file },
        Op::Hold { holder: 1, ino: home, instead: 0, shared: true },
    ];
    for op in refused {
        assert_eq!(world.run(&user(ROOT), op.clone()), Err(Denied::ReadOnly), "{op:?}");
    }
}

#[test]
fn what_a_holder_removes_is_thrown_away_by_replicas() {
    let mut world = world();
    let root = world.root;
    let file = world.file(ROOT, root, "f", 0o644);
    age(&mut world);
    let mut mount = Mount::new(1);
    mount.hold(&mut world, root, false).unwrap();
    mount.fetch(&mut world, root).unwrap();
    let now = world.now;
    mount.apply_own(now, &Op::Unlink { parent: root, name: name("f"), keep: false }).unwrap();
    mount.ship(&mut world);
    assert_eq!(world.state.audit(), Ok(()));
    // Looking at it takes nobody's lease, and giving it back does: the holder is asked first.
    assert_eq!(find(&mut world, ROOT, root, "f"), Ok(file));
    let call = Call { caller: user(ROOT), op: Op::Restore { ino: file, parent: root, name: name("f") } };
    let answers = world.state.apply_batch(world.now, &key(1), &Batch::new(vec![call]));
    assert_eq!(answers, [Answer::Denied(Denied::Leased)]);
}

#[test]
fn what_was_there_for_a_moment_leaves_nothing() {
    let mut world = world();
    let root = world.root;
    let dir = world.dir(ALICE, root, "d", 0o755);
    world.file(ALICE, dir, "f", 0o644);
    world.later(THROWN_AGE.as_secs() - 1);
    world.unlink(&user(ALICE), dir, "f", false).unwrap();
    world.rmdir(&user(ALICE), root, "d").unwrap();
    assert_eq!((names(&mut world, root), world.state.counts().inodes), (vec![], 1));
}

#[test]
fn what_was_in_a_directory_when_it_was_removed_is_told_from_what_went_before() {
    let mut world = world();
    let root = world.root;
    let dir = world.dir(ALICE, root, "d", 0o755);
    let files = ["early", "late"].map(|name| world.file(ALICE, dir, name, 0o644));
    age(&mut world);
    world.unlink(&user(ALICE), dir, "early", false).unwrap();
    let new = world.file(ALICE, dir, "new", 0o644);
    world.later(60);
    for text in ["late", "new"] {
        world.unlink(&user(ALICE), dir, text, false).unwrap();
        // Somebody works there still.
        world.file(ALICE, dir, "x", 0o644);
        world.unlink(&user(ALICE), dir, "x", false).unwrap();
    }
    world.rmdir(&user(ALICE), root, "d").unwrap();
    let listed = world.run(&user(ROOT), Op::ReadDir { ino: dir.in_trash(), cookie: 0, max: 9 });
    let Ok(Reply::Entries { entries, .. }) = listed else { panic!("{listed:?}") };
    let before: Vec<_> = entries.iter().map(|entry| (entry.attr.ino.now(), entry.cookie & 3)).collect();
    assert_eq!(before, [(files[0], THROWN_BEFORE), (files[1], 0), (new, 0)]);
}

#[test]
fn who_could_not_reach_it_then_does_not_see_it_now() {
    let mut world = world();
    let root = world.root;
    let dir = world.dir(ALICE, root, "d", 0o700);
    let team = AclEntry { id: 3000, may: 7 };
    let list = Acl { owner: 7, group: 0, other: 0, mask: Some(7), users: vec![team], groups: vec![] };
    world.run(&user(ALICE), Op::SetAcl { ino: dir, kind: AclKind::Access, acl: Some(list) }).unwrap();
    let file = world.file(ALICE, dir, "f", 0o4666);
    world.chmod(&user(ALICE), file, 0o4777).unwrap();
    age(&mut world);
    world.unlink(&user(ALICE), dir, "f", false).unwrap();
    world.run(&user(ALICE), Op::SetAcl { ino: dir, kind: AclKind::Access, acl: None }).unwrap();
    world.chmod(&user(ALICE), dir, 0o777).unwrap();
    assert_eq!(find(&mut world, BOB, dir, "f"), Err(Denied::NotFound));
    assert_eq!(find(&mut world, 3000, dir, "f"), Ok(file), "who was on its list is as before");
    assert_eq!(world.lookup(&Caller { gid: ALICE, ..user(BOB) }, dir.in_trash(), "f"), Err(Denied::NotFound));
    let listed = world.run(&user(BOB), Op::ReadDir { ino: dir.in_trash(), cookie: 0, max: 9 });
    assert_eq!(listed, Ok(Reply::Entries { entries: vec![], end: true }));
    assert_eq!(purge(&mut world, BOB, file), Err(Denied::Access));
    assert_eq!(restore(&mut world, BOB, file, dir, "f"), Err(Denied::Access));
    let attr = world.lookup(&user(ALICE), dir.in_trash(), "f").unwrap();
    assert_eq!((attr.ino.now(), attr.mode), (file, 0o777), "nobody runs it as its owner");
    restore(&mut world, ALICE, file, dir, "f").unwrap();
    assert_eq!(world.attr(file).mode, 0o4777);
}

#[test]
fn what_is_thrown_away_right_after_it_was_emptied_stays() {
    let mut world = world();
    let (root, volume) = (world.root, world.volume);
    for text in ["a", "b"] {
        world.file(ALICE, root, text, 0o644);
    }
    age(&mut world);
    world.unlink(&user(ALICE), root, "a", false).unwrap();
    world.run(&user(ROOT), Op::TrashEmpty { volume }).unwrap();
    assert_eq!(world.run(&user(ROOT), Op::VolumeList).map(|_| world.state.counts().thrown), Ok(0));
    world.unlink(&user(ALICE), root, "b", false).unwrap();
    assert_eq!(names(&mut world, root), [(name("b"), false)]);
}

/// Makes and removes so many files in a directory, in few batches.
fn throw_many(world: &mut World, uid: u32, parent: Ino, count: usize) {
    let all: Vec<usize> = (0..count).collect();
    let file = |index: usize| name(&format!("f{index}"));
    let each = |world: &mut World, op: &dyn Fn(usize) -> Op| {
        for part in all.chunks(BATCH_MAX) {
            let calls = part.iter().map(|index| Call { caller: user(uid), op: op(*index) }).collect();
            let answers = world.state.apply_batch(world.now, &key(1), &Batch::new(calls));
            assert!(answers.iter().all(|answer| matches!(answer, Answer::Done(_))), "{answers:?}");
        }
    };
    each(world, &|index| Op::Create { parent, name: file(index), new: new(Kind::File, 0o644), exclusive: true });
    age(world);
    each(world, &|index| Op::Unlink { parent, name: file(index), keep: false });
    assert_eq!(world.state.counts().thrown, count);
}

#[test]
fn a_batch_ends_no_more_than_so_much_to_make_room() {
    let mut world = World::with(VolumeSpec { trash: KEPT, quota_inodes: 1500, ..spec("small") });
    let root = world.root;
    throw_many(&mut world, ALICE, root, 1499);
    let make = |index| {
        let name = name(&format!("f{index}"));
        let op = Op::Create { parent: root, name, new: new(Kind::File, 0o644), exclusive: true };
        Call { caller: user(ALICE), op }
    };
    let again = Batch::new((0..BATCH_MAX).map(make).collect());
    let answers = world.state.apply_batch(world.now, &key(1), &again);
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Done(_))));
    assert_eq!(world.state.counts().thrown, 1499 - BATCH_MAX);
    assert_eq!(world.state.audit(), Ok(()));
}

#[test]
fn what_is_not_to_be_seen_is_not_looked_through_without_end() {
    let mut world = world();
    let dir = world.dir(ALICE, world.root, "d", 0o700);
    throw_many(&mut world, ALICE, dir, 3 * SKIPPED_MAX);
    world.chmod(&user(ALICE), dir, 0o777).unwrap();
    let list = |uid| Call { caller: user(uid), op: Op::ReadDir { ino: dir.in_trash(), cookie: 0, max: 9 } };
    let mut ask = |calls| world.state.apply_batch(world.now, &key(1), &Batch::new(calls));
    assert_eq!(ask(vec![list(BOB)]), [Answer::Denied(Denied::Access)], "it is not said to be empty");
    assert!(matches!(&ask(vec![list(ALICE)])[0], Answer::Done(Reply::Entries { entries, .. }) if entries.len() == 9));
    // Emptied, it is seen to be empty while it goes bit by bit.
    let empty = Call { caller: user(ROOT), op: Op::TrashEmpty { volume: VolumeId(1) } };
    let answers = ask(vec![empty, list(ALICE)]);
    assert_eq!(answers[1], Answer::Done(Reply::Entries { entries: vec![], end: true }));
    assert!(world.state.counts().thrown > 0);
}

type Step = (u8, usize, usize, u8, u8);

/// Random changes, and beside them what is to be in the trash.
fn play(steps: &[Step]) {
    let mut world = world();
    let (volume, long) = (world.volume, 1 << 20);
    world.run(&user(ROOT), Op::TrashKeep { volume, seconds: long }).unwrap();
    let mut inos = vec![world.root];
    let mut bin: BTreeMap<Ino, (Ino, SealedName)> = BTreeMap::new();
    for (what, first, second, a, b) in steps {
        world.later(if b % 2 == 0 { 7 } else { 0 });
        let (ino, other) = (inos[first % inos.len()], inos[second % inos.len()]);
        let (one, two) = (name(&format!("n{}", a % 3)), name(&format!("n{}", b % 3)));
        let kind = [Kind::File, Kind::Directory][usize::from(what / 13 % 2)];
        let attr = |world: &mut World, parent, name: &SealedName| match world
            .run(&user(ROOT), Op::Lookup { parent, name: name.clone() })
        {
            Ok(Reply::Attr(attr)) => Some(attr),
            _ => None,
        };
        let (op, lost) = match what % 13 {
            0..=3 => (Op::Create { parent: ino, name: one, new: new(kind, 0o755), exclusive: true }, None),
            4..=5 => {
                let lost = attr(&mut world, ino, &one).filter(|attr| attr.nlink == 1);
                (Op::Unlink { parent: ino, name: one.clone(), keep: b % 3 == 0 }, lost.map(|attr| (attr, ino, one)))
            }
            6 => {
                let lost = attr(&mut world, ino, &one).map(|attr| (attr, ino, one.clone()));
                (Op::Rmdir { parent: ino, name: one }, lost)
            }
            7 => (Op::Link { ino, parent: other, name: one }, None),
            8..=9 => {
                let (from, target) = (attr(&mut world, ino, &one), attr(&mut world, other, &two));
                let gone = |attr: &Attr| attr.kind == Kind::Directory || attr.nlink == 1;
                let lost = target.filter(|target| gone(target) && from.is_none_or(|from| from.ino != target.ino));
                let lost = lost.map(|attr| (attr, other, two.clone()));
                let (how, keep) = (RenameHow::Replace, b % 2 == 0);
                (Op::Rename { from: ino, from_name: one, to: other, to_name: two, how, keep }, lost)
            }
            10..=11 => (Op::Restore { ino, parent: other, name: one }, None),
            _ => (Op::Purge { ino }, None),
        };
        let done = world.run(&user(ROOT), op.clone());
        match (&op, done) {
            (Op::Create { .. }, Ok(Reply::Created { attr, .. })) => inos.push(attr.ino),
            (Op::Restore { ino, .. } | Op::Purge { ino }, done) => {
                let empty = !bin.values().any(|(home, _)| home == ino);
                assert!(done.is_err() || bin.remove(ino).is_some(), "{op:?}");
                assert!(done.is_err() || empty || matches!(op, Op::Restore { .. }), "{op:?}");
            }
            (_, Ok(_)) => {
                let old = |attr: &Attr| world.now.since(attr.btime.into()) >= THROWN_AGE;
                let full = |attr: &Attr| bin.values().any(|(home, _)| *home == attr.ino);
                if let Some((attr, home, name)) = lost.filter(|(attr, ..)| old(attr) || full(attr)) {
                    bin.insert(attr.ino, (home, name));
                }
            }
            (_, Err(_)) => {}
        }
    }
    let homes: BTreeSet<Ino> = bin.values().map(|(home, _)| *home).collect();
    for home in homes {
        compare(&mut world, home);
        let mut there = thrown(&mut world, home);
        there.retain(|(name, ino, _)| bin.remove(ino) == Some((home, name.clone())));
        for (name, ino, hidden) in there {
            let found = world.run(&user(ROOT), Op::Lookup { parent: home.in_trash(), name });
            assert!(hidden || matches!(found, Ok(Reply::Attr(attr)) if attr.ino == ino.in_trash()), "{found:?}");
        }
    }
    assert!(bin.is_empty(), "not found: {bin:?}");
    world.later(u64::from(long) + 1);
    world.run(&user(ROOT), Op::VolumeList).unwrap();
    assert_eq!(world.state.counts().thrown, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_lost_its_last_name_is_there_and_nothing_else(
        steps in proptest::collection::vec((any::<u8>(), 0usize..8, 0usize..8, 0u8..8, 0u8..8), 1..90)
    ) {
        play(&steps);
    }
}

/// What a mount that fetched it tells of the trash is what replicas tell.
fn compare(world: &mut World, home: Ino) {
    let mut copy = State::copy_of(CLUSTER);
    let (mut cookie, mut more) = (0, true);
    while more {
        let fetched = world.run(&user(ROOT), Op::Fetch { ino: home.in_trash(), cookie, also: Vec::new() });
        let Ok(Reply::Rows { rows, next, .. }) = fetched else { panic!("{fetched:?}") };
        copy.learn_thrown(&rows).unwrap();
        (cookie, more) = (next.unwrap_or(0), next.is_some());
    }
    let mut told = 0;
    for (name, ino, hidden) in thrown(world, home) {
        let looks = [
            Op::Lookup { parent: home.in_trash(), name },
            Op::GetAttr { ino: ino.in_trash() },
            Op::Open { ino: ino.in_trash(), mask: READ },
            Op::ListXattr { ino: ino.in_trash() },
        ];
        for op in looks {
            let Some(answer) = copy.look_into_trash(&key(1), &Call { caller: user(ROOT), op: op.clone() }) else {
                assert!(hidden, "{op:?}");
                continue;
            };
            told += 1;
            assert_eq!(answer.into_result(), world.run(&user(ROOT), op));
        }
    }
    let none = Op::Lookup { parent: home.in_trash(), name: name("none") };
    assert_eq!(copy.look_into_trash(&key(1), &Call { caller: user(ROOT), op: none }), None, "that replicas are asked");
    assert!(told > 0 || thrown(world, home).is_empty());
}
