//! Files that are made without a name.

use meta::*;

use super::common::*;
use super::{ALICE, BOB, ROOT, member};

#[test]
fn a_file_without_a_name_is_made_as_others_are_but_nobody_finds_it() {
    let mut world = World::new();
    let (alice, bob) = (user(ALICE), user(BOB));
    let dir = world.dir(ALICE, world.root, "d", 0o755);
    world.chmod(&alice, dir, 0o2755).unwrap();
    world.chown(&user(ROOT), dir, None, Some(42)).unwrap();
    let before = world.attr(dir);
    world.later(1);
    assert_eq!(world.unnamed(&bob, dir, 0o600), Err(Denied::Access));
    let made = world.unnamed(&alice, dir, 0o640).unwrap();
    assert_eq!((made.nlink, made.mode, made.uid, made.gid), (0, 0o640, ALICE, 42), "the group is the directory's");
    assert_eq!(made.btime, at(START + 1));
    assert_eq!(world.attr(dir), before, "the directory does not change");
    assert_eq!(world.list(dir, 10), []);
    assert_eq!((world.state.counts().orphans, world.space().used_inodes), (1, 3));
    assert_eq!(world.write(&alice, made.ino, content(5, 5), true).unwrap().size, 5);
    assert_eq!(world.unnamed(&alice, made.ino, 0o600), Err(Denied::NotDirectory));
    for kind in [Kind::Directory, Kind::Fifo, Kind::Symlink] {
        let op = Op::CreateUnnamed { parent: dir, new: new(kind, 0o600) };
        assert_eq!(world.run(&alice, op), Err(Denied::Invalid), "{kind:?}");
    }
    assert_eq!(world.unnamed(&alice, dir, 0o10_000), Err(Denied::Invalid));
}

#[test]
fn it_counts_against_the_quota() {
    let mut world = World::with(VolumeSpec { quota_inodes: 2, ..spec("small") });
    let root = world.root;
    world.unnamed(&user(ALICE), root, 0o600).unwrap();
    assert_eq!(world.unnamed(&user(ALICE), root, 0o600), Err(Denied::Quota));
}

#[test]
fn whoever_made_it_may_give_it_a_name_and_then_it_is_like_any_other() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(1000));
    world.key = key(2);
    let made = world.unnamed(&alice, root, 0o666).unwrap().ino;
    world.key = key(1);
    assert_eq!(world.link(&user(ROOT), made, root, "mine"), Err(Denied::NotFound), "nobody else can know it");
    world.key = key(2);
    let dir = world.dir(1000, root, "d", 0o755);
    world.later(1);
    let Ok(Reply::Attr(linked)) = world.link(&alice, made, dir, "f") else { panic!("refused") };
    assert_eq!((linked.nlink, linked.ctime), (1, at(START + 1)));
    assert_eq!(world.lookup(&alice, dir, "f").unwrap(), linked);
    assert_eq!(world.state.counts().orphans, 0);
    assert_eq!(world.run(&alice, Op::ReleaseOrphan { ino: made }), Err(Denied::Invalid));
    assert_eq!(world.run(&alice, Op::KeepOrphan { ino: made }), Err(Denied::Invalid));
    world.later(2 * ORPHAN_TERM.as_secs());
    assert_eq!(world.lookup(&alice, dir, "f").unwrap(), linked, "it does not expire");
    let Ok(Reply::Attr(linked)) = world.link(&alice, made, root, "g") else { panic!("refused") };
    assert_eq!(linked.nlink, 2);
}

#[test]
fn what_lost_its_last_name_has_none_again() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o644);
    world.unlink(&alice, root, "f", true).unwrap();
    assert_eq!(world.link(&alice, file, root, "f"), Err(Denied::NotFound));
    let made = world.unnamed(&alice, root, 0o644).unwrap().ino;
    world.link(&alice, made, root, "f").unwrap();
    world.unlink(&alice, root, "f", true).unwrap();
    assert_eq!(world.link(&alice, made, root, "f"), Err(Denied::NotFound), "it was given a name, and that is gone");
    // So is what a rename replaces.
    let made = world.unnamed(&alice, root, 0o644).unwrap().ino;
    world.link(&alice, made, root, "a").unwrap();
    world.file(ALICE, root, "b", 0o644);
    let (from_name, to_name) = (name("b"), name("a"));
    let how = RenameHow::Replace;
    world.run(&alice, Op::Rename { from: root, from_name, to: root, to_name, how, keep: true }).unwrap();
    assert_eq!(world.link(&alice, made, root, "c"), Err(Denied::NotFound));
}

#[test]
fn a_first_name_is_given_where_names_can_be_made() {
    let mut world = World::new();
    let (root, bob) = (world.root, member(BOB, &[]));
    let closed = world.dir(ROOT, root, "closed", 0o755);
    world.file(ROOT, root, "taken", 0o644);
    let made = world.unnamed(&bob, root, 0o600).unwrap().ino;
    assert_eq!(world.link(&bob, made, closed, "f"), Err(Denied::Access));
    assert_eq!(world.link(&bob, made, root, "taken"), Err(Denied::Exists));
    assert_eq!(world.attr(made).nlink, 0);
    world.link(&bob, made, root, "free").unwrap();
}

#[test]
fn nobody_keeps_it_for_ever() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let made = world.unnamed(&alice, root, 0o600).unwrap().ino;
    world.write(&alice, made, content(100, 100), true).unwrap();
    let kept = world.unnamed(&alice, root, 0o600).unwrap().ino;
    world.later(ORPHAN_TERM.as_secs() - 1);
    world.run(&alice, Op::KeepOrphan { ino: kept }).unwrap();
    world.later(1);
    assert_eq!(world.run(&alice, Op::GetAttr { ino: made }), Err(Denied::Stale));
    assert_eq!(world.space().used_bytes, 0);
    assert_eq!(world.attr(kept).nlink, 0);
    world.run(&alice, Op::ReleaseOrphan { ino: kept }).unwrap();
    assert_eq!(world.state.counts().inodes, 1);
}

#[test]
fn the_directory_it_was_made_in_can_be_removed() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let dir = world.dir(ALICE, root, "d", 0o755);
    let made = world.unnamed(&alice, dir, 0o600).unwrap().ino;
    world.rmdir(&alice, root, "d").unwrap();
    world.write(&alice, made, content(1, 1), true).unwrap();
    world.link(&alice, made, root, "f").unwrap();
    assert_eq!(world.attr(made).nlink, 1);
}
